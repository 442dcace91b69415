//! What is asked for: by flags, and where one is not given by the variable that Istio has for it.

use crate::args::CaptureArgs;
use crate::config::{ConfigError, Environment, ReadFile, duration, interfaces};
use ::capture::{
    Dns, Family, InboundPorts, Interface, Mode, OutboundRanges, OwnerGroups, Settings, list, ports, ranges,
};
use anyhow::Context as _;
use clap::ValueEnum;
use std::fmt::Display;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

/// The name of the proxy's user, whose number counts if neither flag nor variable gives one.
const PROXY_USER: &str = "istio-proxy";

/// What puts rules into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// The first that works.
    Auto,
    /// `nft`.
    Nftables,
    /// `iptables-restore`.
    Iptables,
}

/// Whose traffic is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Families {
    /// IPv4's, and IPv6's if the workload has only IPv6 addresses.
    Auto,
    /// IPv4's.
    Ipv4,
    /// Both.
    Dual,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// What to capture.
    pub settings: Settings,
    /// With what.
    pub backend: Backend,
    /// The families that the kernel has.
    pub kernel: Vec<Family>,
    /// The families in which it is tried out.
    pub tried: Vec<Family>,
    /// Whether rules are changed at all.
    pub applies: bool,
    /// Whether they are only taken away.
    pub cleans: bool,
    /// Whether this only says what it would do.
    pub is_dry_run: bool,
    /// Whether it is tried out.
    pub validates: bool,
    /// The port that the trial connects to.
    pub probe_port: u16,
    /// How long the trial may take.
    pub probe_timeout: Duration,
    /// What is said but has no effect, for the log.
    pub warnings: Vec<String>,
}

/// Reads flags and variables.
struct Source<'a> {
    environment: &'a Environment,
}

impl Source<'_> {
    /// Parses a flag, or the variable of the same name; `None` if neither is given.
    fn value<T, E: Display>(
        &self,
        flag: Option<&String>,
        name: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> anyhow::Result<Option<T>> {
        let variable = name.to_ascii_uppercase().replace('-', "_");
        let (text, source) = match flag {
            Some(text) => (text.as_str(), format!("--{name}")),
            None => match self.environment.text(&variable) {
                Some(text) => (text, variable),
                None => return Ok(None),
            },
        };
        parse(text.trim()).map(Some).map_err(|error| anyhow::anyhow!("{source}: {error}"))
    }

    fn number<T: FromStr>(&self, flag: Option<&String>, name: &str, default: T) -> anyhow::Result<T> {
        let parse = |text: &str| text.parse().map_err(|_| format!("{text:?} is not a number that fits"));
        // An empty flag is Istio's way to say nothing.
        let flag = flag.filter(|text| !text.trim().is_empty());
        Ok(self.value(flag, name, parse)?.unwrap_or(default))
    }

    fn switch(&self, flag: Option<bool>, variable: &'static str) -> Result<bool, ConfigError> {
        match flag {
            Some(on) => Ok(on),
            None => self.environment.flag(variable, false),
        }
    }
}

impl Request {
    /// Reads everything.
    ///
    /// # Errors
    /// The first value that is not understood, with the flag or variable that it is from.
    pub fn load(args: &CaptureArgs, environment: &Environment, read: ReadFile<'_>) -> anyhow::Result<Self> {
        let source = Source { environment };
        let mut warnings = Vec::new();
        let if_inet6 = read(Path::new("/proc/net/if_inet6"));
        let has_kernel_v6 = match (args.dry_run, args.families) {
            // What would be done is the same on every machine.
            (true, Families::Ipv4) => false,
            (true, Families::Dual) => true,
            _ => if_inet6.is_ok(),
        };
        let kernel = if has_kernel_v6 { vec![Family::V4, Family::V6] } else { vec![Family::V4] };
        let has_v6 = if_inet6.is_ok_and(|text| !interfaces::ipv6(&text).is_empty());
        let has_v4 =
            read(Path::new("/proc/net/fib_trie")).is_ok_and(|text| !interfaces::ipv4(&text).is_empty());
        let mut settings = settings(args, &source, read)?;
        settings.ipv6 = match args.families {
            // Of a workload with both, weftd has Envoy listen for IPv4 only if nobody says so, as istiod does.
            Families::Auto => (has_v6 && !has_v4) || source.switch(args.dual_stack, "ISTIO_DUAL_STACK")?,
            Families::Ipv4 => false,
            Families::Dual => true,
        };
        anyhow::ensure!(
            !settings.ipv6 || kernel.contains(&Family::V6),
            "IPv6 is asked for, and the kernel has none"
        );
        // A flag is seen here only; the variable, by the proxy too.
        if settings.ipv6 && has_v4 && !environment.flag("ISTIO_DUAL_STACK", false)? {
            warnings.push(
                "IPv6 connections come to Envoy, which weftd has listen for them beside IPv4 only if the proxy has \
                 ISTIO_DUAL_STACK=true"
                    .to_owned(),
            );
        }
        settings.dns = dns(args, &source, read, &mut warnings)?;
        settings.check()?;
        if args.iptables_trace_logging || environment.flag("IPTABLES_TRACE_LOGGING", false)? {
            warnings
                .push("rules are not logged: IPTABLES_TRACE_LOGGING has no effect on weft-agent".to_owned());
        }
        let backend = if args.native_nftables { Backend::Nftables } else { args.backend };
        let tried = match (has_v4, settings.ipv6) {
            (_, false) => vec![Family::V4],
            (false, true) => vec![Family::V6],
            (true, true) => vec![Family::V4, Family::V6],
        };
        Ok(Self {
            backend,
            kernel,
            tried,
            applies: !args.skip_rule_apply,
            cleans: args.cleanup_only,
            is_dry_run: args.dry_run,
            validates: args.run_validation && !args.cleanup_only,
            probe_port: source.number(args.iptables_probe_port.as_ref(), "iptables-probe-port", 15002)?,
            probe_timeout: source
                .value(args.probe_timeout.as_ref(), "probe-timeout", duration::parse)?
                .unwrap_or(Duration::from_secs(5)),
            settings,
            warnings,
        })
    }
}

fn settings(args: &CaptureArgs, source: &Source<'_>, read: ReadFile<'_>) -> anyhow::Result<Settings> {
    let default = Settings::default();
    let ids = |text: &str| -> Result<Vec<u32>, String> {
        list(text)
            .map(|id| id.parse().map_err(|_| format!("{id:?} is not the number of a user or group")))
            .collect()
    };
    // What is empty is as if it were not given.
    let given = |flag: &Option<String>| flag.clone().filter(|text| !text.trim().is_empty());
    let users = match source.value(given(&args.proxy_uid).as_ref(), "proxy-uid", ids)? {
        Some(users) => users,
        None => vec![proxy_user(source.environment, read)],
    };
    let groups = source.value(given(&args.proxy_gid).as_ref(), "proxy-gid", ids)?;
    let excluded = source
        .value(args.istio_local_exclude_ports.as_ref(), "istio-local-exclude-ports", ports)?
        .unwrap_or_default();
    let inbound = |text: &str| match text {
        "*" => Ok(InboundPorts::AllBut(excluded.clone())),
        text => ports(text).map(InboundPorts::Only),
    };
    let outbound = |text: &str| match text {
        "*" => Ok(OutboundRanges::All),
        text => ranges(text).map(OutboundRanges::Only),
    };
    let names = |text: &str| list(text).map(Interface::from_str).collect::<Result<Vec<_>, _>>();
    Ok(Settings {
        outbound_port: source.number(args.envoy_port.as_ref(), "envoy-port", default.outbound_port)?,
        inbound_port: source.number(
            args.inbound_capture_port.as_ref(),
            "inbound-capture-port",
            default.inbound_port,
        )?,
        tunnel_port: source.number(
            args.inbound_tunnel_port.as_ref(),
            "inbound-tunnel-port",
            default.tunnel_port,
        )?,
        groups: groups.unwrap_or_else(|| users.clone()),
        users,
        mode: source
            .value(
                args.istio_inbound_interception_mode.as_ref(),
                "istio-inbound-interception-mode",
                Mode::from_str,
            )?
            .unwrap_or_default(),
        tproxy: ::capture::TproxySettings {
            mark: source.number(
                args.istio_inbound_tproxy_mark.as_ref(),
                "istio-inbound-tproxy-mark",
                default.tproxy.mark,
            )?,
            table: source.number(
                args.istio_inbound_tproxy_route_table.as_ref(),
                "istio-inbound-tproxy-route-table",
                default.tproxy.table,
            )?,
        },
        inbound: source
            .value(args.istio_inbound_ports.as_ref(), "istio-inbound-ports", inbound)?
            .unwrap_or(default.inbound),
        outbound: source
            .value(args.istio_service_cidr.as_ref(), "istio-service-cidr", outbound)?
            .unwrap_or(default.outbound),
        outbound_except: source
            .value(args.istio_service_exclude_cidr.as_ref(), "istio-service-exclude-cidr", ranges)?
            .unwrap_or_default(),
        outbound_ports: source
            .value(args.istio_outbound_ports.as_ref(), "istio-outbound-ports", ports)?
            .unwrap_or_default(),
        outbound_ports_except: source
            .value(
                args.istio_local_outbound_ports_exclude.as_ref(),
                "istio-local-outbound-ports-exclude",
                ports,
            )?
            .unwrap_or_default(),
        owner_groups: owner_groups(source, read)?,
        virtual_interfaces: source
            .value(args.kube_virt_interfaces.as_ref(), "kube-virt-interfaces", names)?
            .unwrap_or_default(),
        except_interfaces: source
            .value(args.istio_exclude_interfaces.as_ref(), "istio-exclude-interfaces", names)?
            .unwrap_or_default(),
        dns: Dns::Off,
        drop_invalid: source.switch(args.drop_invalid, "INVALID_DROP")?,
        loopback: source
            .value(None, "istio-outbound-ipv4-loopback-cidr", str::parse)?
            .unwrap_or(default.loopback),
        ipv6: false,
    })
}

/// Returns the number in the third field of the line of `name` in `/etc/passwd` or `/etc/group`.
fn number_of(file: &str, name: &str) -> Option<u32> {
    let mut lines = file.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?)
}

fn proxy_user(environment: &Environment, read: ReadFile<'_>) -> u32 {
    let name = environment.text("ENVOY_USER").unwrap_or(PROXY_USER);
    let passwd = read(Path::new("/etc/passwd")).unwrap_or_default();
    number_of(&passwd, name).unwrap_or(Settings::default().users[0])
}

/// Reads the groups whose traffic is captured, or is not. They may be names.
fn owner_groups(source: &Source<'_>, read: ReadFile<'_>) -> anyhow::Result<OwnerGroups> {
    let resolve = |text: &str| -> Result<Vec<u32>, String> {
        let file = read(Path::new("/etc/group")).unwrap_or_default();
        let id = |name: &str| {
            let id = name.parse().ok().or_else(|| number_of(&file, name));
            id.ok_or_else(|| format!("there is no group {name:?}"))
        };
        list(text).map(id).collect()
    };
    const INCLUDE: &str = "ISTIO_OUTBOUND_OWNER_GROUPS";
    const EXCLUDE: &str = "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE";
    let excluded = source.value(None, EXCLUDE, resolve)?.unwrap_or_default();
    match source.environment.text(INCLUDE) {
        None | Some("*") => Ok(OwnerGroups::AllBut(excluded)),
        Some(_) => Ok(OwnerGroups::Only(source.value(None, INCLUDE, resolve)?.unwrap_or_default())),
    }
}

fn dns(
    args: &CaptureArgs,
    source: &Source<'_>,
    read: ReadFile<'_>,
    warnings: &mut Vec<String>,
) -> anyhow::Result<Dns> {
    if !source.switch(args.redirect_dns, "ISTIO_META_DNS_CAPTURE")? {
        return Ok(Dns::Off);
    }
    warnings
        .push("questions to name servers go to port 15053, where weft-agent does not answer yet".to_owned());
    if args.capture_all_dns {
        return Ok(Dns::All);
    }
    let text = read(Path::new("/etc/resolv.conf")).context("cannot read /etc/resolv.conf")?;
    let servers = servers(&text);
    if servers.is_empty() {
        warnings.push("/etc/resolv.conf names no server: no questions are captured".to_owned());
        return Ok(Dns::Off);
    }
    Ok(Dns::Servers(servers))
}

/// Returns the name servers of `/etc/resolv.conf`.
fn servers(resolv_conf: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace();
        if words.next() == Some("nameserver")
            // A zone says through which interface, which rules need not know.
            && let Some(Ok(server)) = words.next().map(|word| word.split('%').next().unwrap_or(word).parse())
            && !found.contains(&server)
        {
            found.push(server);
        }
    }
    found
}

#[cfg(test)]
mod tests;
