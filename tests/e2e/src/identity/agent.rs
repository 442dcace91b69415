//! weft-agent with a real Envoy, as a pod would run it.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use testkit::rig::http::{Request, Response};
use testkit::rig::netns::Pod;
use testkit::rig::process::{Process, Scratch};

use crate::weftd;

/// The name that weftd's certificate has in a cluster.
const WEFTD_NAME: &str = "istiod.istio-system.svc";
/// How long certificates live.
const TTL: &str = "10s";
/// The user and the group of a proxy in a pod.
const PROXY: u32 = 1337;

/// An agent in a folder of its own, which stands for the root of a container; killed on drop.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    scratch: Scratch,
    pod: Option<Pod>,
    admin: SocketAddr,
    readiness: SocketAddr,
}

/// Who it is, and whom it talks to.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// The pod.
    pub pod: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its service account.
    pub account: &'a str,
    /// Its address.
    pub address: Ipv4Addr,
    /// What the API server says about it; nothing, if that is empty.
    pub token: &'a str,
    /// The roots that weftd is known by.
    pub roots: &'a str,
    /// weftd.
    pub weftd: SocketAddr,
    /// Where it runs, as the proxy's user and with the ports that it has in a cluster, if not beside the test.
    pub network: Option<&'a Pod>,
    /// What else it is told.
    pub variables: &'a [(&'a str, String)],
    /// Further files in its folder.
    pub files: &'a [(&'a str, String)],
}

impl Identity<'_> {
    /// Whether inbound connections keep their addresses on the way through the proxy.
    pub(super) fn keeps_addresses(&self) -> bool {
        self.variables
            .iter()
            .any(|(name, value)| *name == "ISTIO_META_INTERCEPTION_MODE" && value == "TPROXY")
    }
}

impl Agent {
    /// Starts an agent with its Envoy.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start(identity: &Identity<'_>) -> anyhow::Result<Self> {
        let scratch = Scratch::new("agent")?;
        let write = |path: &str, text: &str| -> anyhow::Result<()> {
            let path = scratch.path().join(path);
            fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            Ok(fs::write(path, text)?)
        };
        write("var/run/secrets/istio/root-cert.pem", identity.roots)?;
        if !identity.token.is_empty() {
            write("var/run/secrets/tokens/istio-token", identity.token)?;
        }
        write("etc/istio/pod/labels", &format!("app=\"{}\"\n", identity.account))?;
        for (path, text) in identity.files {
            write(path, text)?;
        }
        let (mut envoy, mut agent) = (testkit::tools::envoy()?, weftd::agent()?);
        let ports = if identity.network.is_some() {
            (envoy, agent) = (for_everybody(&envoy, scratch.path())?, for_everybody(&agent, scratch.path())?);
            [15000, 15020, 15021, 15090]
        } else {
            free_ports()
        };
        let mut command = Command::new(agent);
        command.args(["proxy", "sidecar"]).current_dir(scratch.path()).env_clear();
        command.envs(variables(identity, &envoy, ports));
        command.envs(identity.variables.iter().map(|(name, value)| (name, value)));
        let log = scratch.path().join("agent.log");
        let process = match identity.network {
            Some(pod) => {
                give_to_proxy(scratch.path())?;
                // With TPROXY it needs a capability, and is known by its group.
                let user = if identity.keeps_addresses() { 0 } else { PROXY };
                command.uid(user).gid(PROXY);
                pod.run(|| Process::spawn("weft-agent", command, log))?
            }
            None => Process::spawn("weft-agent", command, log)?,
        };
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let [admin, _, readiness, _] = ports;
        let pod = identity.network.cloned();
        Ok(Self { process, scratch, pod, admin: local(admin), readiness: local(readiness) })
    }

    fn send(&self, request: &Request, to: SocketAddr) -> anyhow::Result<Response> {
        Ok(match &self.pod {
            Some(pod) => pod.run(|| request.send(to))?,
            None => request.send(to)?,
        })
    }

    /// Returns a file of its folder.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn file(&self, path: &str) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.scratch.path().join(path))?)
    }

    /// Ends it as the kubelet does, which tells only the first process of a container, waits, and returns what it has
    /// logged.
    ///
    /// # Errors
    ///
    /// If it does not end in time, or not well.
    pub fn terminate(self, limit: Duration) -> anyhow::Result<String> {
        let id =
            i32::try_from(self.process.id()).ok().and_then(Pid::from_raw).context("it has no process id")?;
        kill_process(id, Signal::TERM).context("it cannot be told to end")?;
        let status = crate::eventually("the agent to end", limit, || {
            self.process.status()?.with_context(|| format!("it still runs:\n{}", self.log()))
        })?;
        ensure!(status.success(), "it has ended with {status}:\n{}", self.log());
        Ok(self.log())
    }

    /// Waits until its Envoy serves.
    ///
    /// # Errors
    ///
    /// If that takes too long; the error has the end of the log.
    pub fn wait_ready(&self) -> anyhow::Result<()> {
        Ok(self.process.wait_until("the proxy to be ready", crate::PATIENCE, || {
            let question = Request::get("/healthz/ready").limit(Duration::from_secs(5));
            let answer = self.send(&question, self.readiness).ok()?;
            (answer.status == 200).then_some(())
        })?)
    }

    /// Asks Envoy's administration.
    ///
    /// # Errors
    ///
    /// If there is no answer.
    pub fn admin(&self, path: &str) -> anyhow::Result<Response> {
        let answer = self.send(&Request::get(path).limit(Duration::from_secs(5)), self.admin)?;
        ensure!(answer.status == 200, "{path}: {}", answer.status);
        Ok(answer)
    }

    /// Returns the value of one of Envoy's counters; zero if it has none of this name.
    ///
    /// # Errors
    ///
    /// If Envoy cannot be asked.
    pub fn counter(&self, name: &str) -> anyhow::Result<u64> {
        let stats = self.admin("/stats?format=json")?.json()?;
        let stats = stats["stats"].as_array().cloned().unwrap_or_default();
        let found = stats.iter().find(|stat| stat["name"].as_str() == Some(name));
        Ok(found.and_then(|stat| stat["value"].as_u64()).unwrap_or_default())
    }

    /// Returns how many HTTP requests have come to a port.
    ///
    /// # Errors
    ///
    /// If Envoy cannot be asked.
    pub fn requests(&self, port: u16) -> anyhow::Result<u64> {
        let stats = self.admin("/stats?format=json&filter=^http\\.inbound_.*downstream_rq_total$")?.json()?;
        let stats = stats["stats"].as_array().cloned().unwrap_or_default();
        let of_port = stats
            .iter()
            .filter(|stat| stat["name"].as_str().is_some_and(|name| name.contains(&format!("_{port}"))));
        Ok(of_port.filter_map(|stat| stat["value"].as_u64()).sum())
    }

    /// Returns the serial numbers of the workload's certificates that Envoy uses.
    ///
    /// # Errors
    ///
    /// If Envoy cannot be asked.
    pub fn certificates(&self) -> anyhow::Result<BTreeSet<String>> {
        let certificates = self.admin("/certs")?.json()?;
        let all = certificates["certificates"].as_array().into_iter().flatten();
        let leaves = all.flat_map(|entry| entry["cert_chain"].as_array().cloned().unwrap_or_default());
        Ok(leaves.filter_map(|leaf| Some(leaf["serial_number"].as_str()?.to_owned())).collect())
    }

    /// Returns the roots that Envoy trusts for workloads, each in PEM without its frame.
    ///
    /// # Errors
    ///
    /// If Envoy cannot be asked, or has none.
    pub fn roots(&self) -> anyhow::Result<BTreeSet<String>> {
        let dump = self.admin("/config_dump?resource=dynamic_active_secrets")?.json()?;
        let secrets = dump["configs"].as_array().cloned().unwrap_or_default();
        let roots = secrets.iter().find(|entry| entry["name"] == "ROOTCA").context("Envoy has no roots")?;
        let bytes = &roots["secret"]["validation_context"]["trusted_ca"]["inline_bytes"];
        let pem = STANDARD.decode(bytes.as_str().unwrap_or_default())?;
        let pem = String::from_utf8(pem)?;
        let certificates = pem.split("-----BEGIN CERTIFICATE-----").skip(1);
        Ok(certificates.map(|one| one.split("-----END").next().unwrap_or_default().to_owned()).collect())
    }

    /// Returns the process ids of the agent and of its Envoy.
    ///
    /// # Errors
    ///
    /// If it has no Envoy.
    pub fn processes(&self) -> anyhow::Result<[u32; 2]> {
        let agent = self.process.id();
        let tasks = fs::read_dir(format!("/proc/{agent}/task")).context("the agent has ended")?;
        let child = |path: &Path| {
            let children = fs::read_to_string(path.join("children")).ok()?;
            children.split_whitespace().next()?.parse().ok()
        };
        let envoy = tasks.flatten().find_map(|task| child(&task.path()));
        Ok([agent, envoy.context("the agent has no Envoy")?])
    }

    /// Returns what the agent and its Envoy have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.scratch.path().join("agent.log")).unwrap_or_default()
    }
}

/// Puts a program into `folder`, where any user can run it: homes and build folders may be closed to them.
///
/// # Errors
///
/// If it cannot be put there.
pub fn for_everybody(program: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    let copy = folder.join(program.file_name().context("a program has a name")?);
    // A link, where the file system is the same: Envoy is large.
    fs::hard_link(program, &copy).or_else(|_| fs::copy(program, &copy).map(drop))?;
    Ok(copy)
}

/// Gives a folder to the proxy's user, with the folders in it and what is not a program.
fn give_to_proxy(folder: &Path) -> anyhow::Result<()> {
    chown(folder, Some(PROXY), Some(PROXY))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            give_to_proxy(&entry.path())?;
        } else if entry.metadata()?.permissions().mode() & 0o111 == 0 {
            chown(entry.path(), Some(PROXY), Some(PROXY))?;
        }
    }
    Ok(())
}

/// Returns what the agent is told by its environment.
fn variables(
    identity: &Identity<'_>,
    envoy: &Path,
    [admin, status, readiness, prometheus]: [u16; 4],
) -> Vec<(&'static str, String)> {
    let proxy = json!({
        "binaryPath": envoy,
        "discoveryAddress": identity.weftd.to_string(),
        "proxyAdminPort": admin,
        "statusPort": status,
        "terminationDrainDuration": if identity.network.is_some() { "5s" } else { "1s" },
        "concurrency": 1,
        "proxyStatsMatcher": { "inclusionRegexps": [".*"] },
    });
    let mut variables = vec![
        ("POD_NAME", identity.pod.to_owned()),
        ("POD_NAMESPACE", identity.namespace.to_owned()),
        ("SERVICE_ACCOUNT", identity.account.to_owned()),
        ("INSTANCE_IP", identity.address.to_string()),
        ("ISTIOD_SAN", WEFTD_NAME.to_owned()),
        ("ISTIO_META_CLUSTER_ID", "Kubernetes".to_owned()),
        ("SECRET_TTL", TTL.to_owned()),
        ("ENVOY_STATUS_PORT", readiness.to_string()),
        ("ENVOY_PROMETHEUS_PORT", prometheus.to_string()),
        ("PROXY_CONFIG", proxy.to_string()),
    ];
    if identity.network.is_none() {
        variables.push(("ISTIO_META_INTERCEPTION_MODE", "NONE".to_owned()));
    }
    variables
}

/// Returns ports below those that the system gives out by itself, which are free on all addresses.
fn free_ports() -> [u16; 4] {
    std::array::from_fn(|_| free_port(Ipv4Addr::UNSPECIFIED))
}

/// Returns a port of `address` that is free, and not one of those that clients are given.
pub(super) fn free_port(address: Ipv4Addr) -> u16 {
    loop {
        let port = fastrand::u16(10_000..20_000);
        if TcpListener::bind((address, port)).is_ok() {
            return port;
        }
    }
}
