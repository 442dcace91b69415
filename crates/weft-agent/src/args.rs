//! Flags. Names are those of Istio's agent where it has the same flag, so that pod templates work as they are.

use crate::capture::{Backend, Families};
use clap::{Args as Group, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Runs beside Envoy: gets the workload's certificate, serves it over SDS, writes the bootstrap, starts Envoy and
/// ends it gracefully.
///
/// Most settings come from the environment, as the injector sets it. docs/agent.md lists them.
#[derive(Clone, Debug, Parser)]
#[command(name = "weft-agent", version)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Gets a certificate, starts Envoy, and stays with it until it ends
    Proxy(ProxyArgs),
    /// Prints the bootstrap that `proxy` would start Envoy with
    Bootstrap(ProxyArgs),
    /// Waits until the proxy is ready; for a container's postStart hook
    Wait(WaitArgs),
    /// Sends a request to Envoy's administration, such as `request GET stats`
    Request(RequestArgs),
    /// Has the kernel hand the workload's traffic to Envoy, as `istio-iptables` does
    #[command(visible_alias = "istio-iptables", args_override_self = true)]
    Capture(Box<CaptureArgs>),
}

/// How the proxy is run.
#[derive(Clone, Debug, Group)]
pub struct ProxyArgs {
    /// What the proxy is
    #[arg(value_enum, default_value = "sidecar")]
    pub role: Role,
    /// The DNS domain of the workload [default: <namespace>.svc.cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    pub domain: Option<String>,
    /// Worker threads of Envoy; 0 means one for each processor [default: the proxy configuration's]
    #[arg(long, value_name = "COUNT")]
    pub concurrency: Option<u32>,
    /// A file with a MeshConfig, whose `defaultConfig` is used
    #[arg(long = "meshConfig", visible_alias = "mesh-config", default_value = "./etc/istio/config/mesh")]
    pub mesh_config: PathBuf,
    /// What Envoy logs: trace, debug, info, warning, error, critical or off
    #[arg(long = "proxyLogLevel", visible_alias = "proxy-log-level", default_value = "warning,misc:error")]
    pub proxy_log_level: String,
    /// What parts of Envoy log, such as misc:error,rbac:debug
    #[arg(long = "proxyComponentLogLevel", visible_alias = "proxy-component-log-level", default_value = "")]
    pub proxy_component_log_level: String,
    /// Where Envoy logs outlier detection
    #[arg(long = "outlierLogPath", visible_alias = "outlier-log-path", default_value = "")]
    pub outlier_log_path: String,
    /// Logs of the agent itself
    #[command(flatten)]
    pub log: LogArgs,
}

/// Logs of the agent itself.
#[derive(Clone, Debug, Group)]
pub struct LogArgs {
    /// What the agent logs, such as default:info or default:debug
    #[arg(long = "log_output_level", visible_alias = "log-output-level", default_value = "default:info")]
    pub log_output_level: String,
    /// Logs JSON
    #[arg(long = "log_as_json", visible_alias = "log-as-json")]
    pub log_as_json: bool,
}

/// What a proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Beside an application.
    Sidecar,
    /// A gateway.
    Router,
}

impl Role {
    /// Returns the name in node ids.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Router => "router",
        }
    }
}

/// How long to wait.
#[derive(Clone, Debug, Group)]
pub struct WaitArgs {
    /// Where the proxy says whether it is ready
    #[arg(long, default_value = "http://localhost:15021/healthz/ready")]
    pub url: String,
    /// How long to wait in all, in seconds
    #[arg(long = "timeoutSeconds", visible_alias = "timeout-seconds", default_value_t = 60)]
    pub timeout_seconds: u64,
    /// How long one answer may take, in milliseconds
    #[arg(long = "requestTimeoutMillis", visible_alias = "request-timeout-millis", default_value_t = 500)]
    pub request_timeout_millis: u64,
    /// How often to ask, in milliseconds
    #[arg(long = "periodMillis", visible_alias = "period-millis", default_value_t = 500)]
    pub period_millis: u64,
}

/// A request to Envoy's administration.
#[derive(Clone, Debug, Group)]
pub struct RequestArgs {
    /// GET or POST
    pub method: String,
    /// The path, such as stats/prometheus or config_dump
    pub path: String,
    /// The port of Envoy's administration
    #[arg(long, env = "ENVOY_ADMIN_PORT", default_value_t = 15000)]
    pub port: u16,
}

/// What is captured. Each flag with a value can be given as a variable, too: `--envoy-port` as `ENVOY_PORT`.
#[derive(Clone, Debug, Group)]
pub struct CaptureArgs {
    /// Where Envoy listens for outbound traffic [default: 15001]
    #[arg(short = 'p', long, value_name = "PORT")]
    pub envoy_port: Option<String>,
    /// Where Envoy listens for inbound traffic [default: 15006]
    #[arg(short = 'z', long, value_name = "PORT")]
    pub inbound_capture_port: Option<String>,
    /// Where Envoy listens for tunnels, which are never captured [default: 15008]
    #[arg(short = 'e', long, value_name = "PORT")]
    pub inbound_tunnel_port: Option<String>,
    /// Users whose traffic is the proxy's [default: that of $ENVOY_USER, or 1337]
    #[arg(short = 'u', long, value_name = "NUMBERS")]
    pub proxy_uid: Option<String>,
    /// Groups whose traffic is the proxy's [default: as --proxy-uid]
    #[arg(short = 'g', long, value_name = "NUMBERS")]
    pub proxy_gid: Option<String>,
    /// REDIRECT or TPROXY [default: REDIRECT]
    #[arg(short = 'm', long, value_name = "MODE")]
    pub istio_inbound_interception_mode: Option<String>,
    /// Ports whose inbound traffic is captured; * for all [default: none]
    #[arg(short = 'b', long, value_name = "PORTS")]
    pub istio_inbound_ports: Option<String>,
    /// Of all ports, those whose inbound traffic is not captured
    #[arg(short = 'd', long, value_name = "PORTS")]
    pub istio_local_exclude_ports: Option<String>,
    /// Network interfaces whose traffic is not captured
    #[arg(short = 'c', long, value_name = "NAMES")]
    pub istio_exclude_interfaces: Option<String>,
    /// Ranges of addresses to which outbound traffic is captured; * for all [default: none]
    #[arg(short = 'i', long, value_name = "RANGES")]
    pub istio_service_cidr: Option<String>,
    /// Ranges of addresses to which outbound traffic is not captured
    #[arg(short = 'x', long, value_name = "RANGES")]
    pub istio_service_exclude_cidr: Option<String>,
    /// Ports to which outbound traffic is captured whatever the address
    #[arg(short = 'q', long, value_name = "PORTS")]
    pub istio_outbound_ports: Option<String>,
    /// Ports to which outbound traffic is not captured
    #[arg(short = 'o', long, value_name = "PORTS")]
    pub istio_local_outbound_ports_exclude: Option<String>,
    /// Network interfaces of virtual machines, from which traffic is outbound
    #[arg(short = 'k', long, value_name = "NAMES")]
    pub kube_virt_interfaces: Option<String>,
    /// The mark of packets that TPROXY hands to Envoy [default: 1337]
    #[arg(short = 't', long, value_name = "NUMBER")]
    pub istio_inbound_tproxy_mark: Option<String>,
    /// The routing table for these packets [default: 133]
    #[arg(short = 'r', long, value_name = "NUMBER")]
    pub istio_inbound_tproxy_route_table: Option<String>,
    /// What puts the rules into the kernel
    #[arg(long, value_enum, default_value = "auto")]
    pub backend: Backend,
    /// As --backend nftables
    #[arg(long)]
    pub native_nftables: bool,
    /// Whose traffic is captured
    #[arg(long, value_enum, default_value = "auto")]
    pub families: Families,
    /// As --families dual, unless --families says otherwise
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub dual_stack: Option<bool>,
    /// Captures questions to the name servers of /etc/resolv.conf [default: $ISTIO_META_DNS_CAPTURE]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub redirect_dns: Option<bool>,
    /// With --redirect-dns, captures those to any name server
    #[arg(long)]
    pub capture_all_dns: bool,
    /// Drops packets that belong to no connection [default: $INVALID_DROP]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub drop_invalid: Option<bool>,
    /// Takes all rules away instead
    #[arg(long)]
    pub cleanup_only: bool,
    /// Prints what would be done, and does nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Changes no rules
    #[arg(long)]
    pub skip_rule_apply: bool,
    /// Tries out whether traffic is captured; only the proxy's user can
    #[arg(long)]
    pub run_validation: bool,
    /// The port that --run-validation connects to [default: 15002]
    #[arg(long, value_name = "PORT")]
    pub iptables_probe_port: Option<String>,
    /// How long --run-validation may take [default: 5s]
    #[arg(long, value_name = "DURATION")]
    pub probe_timeout: Option<String>,
    /// A network namespace to do this in, such as /run/netns/NAME
    #[arg(long, value_name = "PATH")]
    pub network_namespace: Option<PathBuf>,
    /// Accepted: rules of an earlier run are always replaced
    #[arg(long)]
    pub force_apply: bool,
    /// Accepted: rules of an earlier run are always replaced
    #[arg(long)]
    pub reconcile: bool,
    /// Accepted with a warning: rules are not logged
    #[arg(long)]
    pub iptables_trace_logging: bool,
    /// Logs of the agent itself
    #[command(flatten)]
    pub log: LogArgs,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_flags_are_consistent_and_explained() {
        let command = Args::command();
        command.clone().debug_assert();
        for part in command.get_subcommands() {
            for flag in part.get_arguments() {
                assert!(flag.get_help().is_some(), "{} is not explained", flag.get_id());
            }
        }
    }

    #[test]
    fn the_arguments_of_istios_pod_templates_are_understood() {
        let words = "weft-agent proxy router --domain app.svc.cluster.local --proxyLogLevel=warning \
                     --proxyComponentLogLevel=misc:error --log_output_level=default:info --concurrency 2";
        let args = Args::try_parse_from(words.split_whitespace()).unwrap();
        let Command::Proxy(proxy) = args.command else { panic!("another command") };
        assert_eq!(proxy.role, Role::Router);
        assert_eq!(proxy.domain.as_deref(), Some("app.svc.cluster.local"));
        assert_eq!(proxy.concurrency, Some(2));
    }
}
