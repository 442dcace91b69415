//! weft-agent with a real Envoy, as a pod would run it.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use testkit::rig::http::{Request, Response};
use testkit::rig::process::{Process, Scratch};

use crate::weftd;

/// The name that weftd's certificate has in a cluster.
const WEFTD_NAME: &str = "istiod.istio-system.svc";
/// How long certificates live.
const TTL: &str = "10s";

/// An agent in a folder of its own, which stands for the root of a container; killed on drop.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    scratch: Scratch,
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
    /// What the API server says about it.
    pub token: &'a str,
    /// The roots that weftd is known by.
    pub roots: &'a str,
    /// weftd.
    pub weftd: SocketAddr,
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
        write("var/run/secrets/tokens/istio-token", identity.token)?;
        write("etc/istio/pod/labels", &format!("app=\"{}\"\n", identity.account))?;
        let [admin, status, readiness, prometheus] = free_ports();
        let proxy = json!({
            "binaryPath": testkit::tools::envoy()?,
            "discoveryAddress": identity.weftd.to_string(),
            "proxyAdminPort": admin,
            "statusPort": status,
            "terminationDrainDuration": "1s",
            "concurrency": 1,
            "proxyStatsMatcher": { "inclusionRegexps": [".*"] },
        });
        let mut command = Command::new(weftd::agent()?);
        command.args(["proxy", "sidecar"]).current_dir(scratch.path()).env_clear().envs([
            ("POD_NAME", identity.pod),
            ("POD_NAMESPACE", identity.namespace),
            ("SERVICE_ACCOUNT", identity.account),
            ("INSTANCE_IP", &identity.address.to_string()),
            ("ISTIOD_SAN", WEFTD_NAME),
            ("ISTIO_META_CLUSTER_ID", "Kubernetes"),
            ("ISTIO_META_INTERCEPTION_MODE", "NONE"),
            ("SECRET_TTL", TTL),
            ("ENVOY_STATUS_PORT", &readiness.to_string()),
            ("ENVOY_PROMETHEUS_PORT", &prometheus.to_string()),
            ("PROXY_CONFIG", &proxy.to_string()),
        ]);
        let process = Process::spawn("weft-agent", command, scratch.path().join("agent.log"))?;
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Ok(Self { process, scratch, admin: local(admin), readiness: local(readiness) })
    }

    /// Waits until its Envoy serves.
    ///
    /// # Errors
    ///
    /// If that takes too long; the error has the end of the log.
    pub fn wait_ready(&self) -> anyhow::Result<()> {
        Ok(self.process.wait_until("the proxy to be ready", crate::PATIENCE, || {
            let answer =
                Request::get("/healthz/ready").limit(Duration::from_secs(5)).send(self.readiness).ok()?;
            (answer.status == 200).then_some(())
        })?)
    }

    /// Asks Envoy's administration.
    ///
    /// # Errors
    ///
    /// If there is no answer.
    pub fn admin(&self, path: &str) -> anyhow::Result<Response> {
        let answer = Request::get(path).limit(Duration::from_secs(5)).send(self.admin)?;
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
