//! What the agent is told: flags, environment, and the files of a pod or a virtual machine, parsed once.
//!
//! The names are Istio's, so that its injector and its instructions for virtual machines work as they are. A value
//! that is not understood is an error which names the variable; what is understood but has no effect here is a
//! warning. **Invariant:** nothing outside of this module reads the environment.

mod downward;
pub(crate) mod duration;
mod environment;
mod identity;
pub(crate) mod interfaces;
mod node;
pub mod probes;
mod proxy;
mod scrape;
#[cfg(test)]
pub(crate) mod tests;

use crate::args::{ProxyArgs, Role};

pub use environment::Environment;
pub use identity::{
    CertificateFiles, CertificateSource, IdentitySettings, KeyKind, Roots, Server, ServerTrust,
};
pub use node::{Families, NodeSettings};
pub use proxy::{DrainSettings, EnvoySettings, RuntimeValue, StatsSettings};
pub use scrape::ScrapeTarget;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Why the agent cannot run as it is told.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A variable of the environment.
    #[error("{name}: {reason}")]
    Variable {
        /// Its name.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A file.
    #[error("{path}: {reason}")]
    File {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl ConfigError {
    fn variable(name: &'static str, reason: impl Into<String>) -> Self {
        Self::Variable { name, reason: reason.into() }
    }

    fn file(path: &Path, reason: &impl ToString) -> Self {
        Self::File { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// Reads text files: of the system, or of a test.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> io::Result<String>;

/// The ports of the agent and of Envoy's own listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Envoy's administration, on the loopback interface.
    pub admin: u16,
    /// The agent's status, probes and merged metrics.
    pub status: u16,
    /// Envoy's listener for readiness.
    pub envoy_status: u16,
    /// Envoy's listener for its own metrics.
    pub envoy_prometheus: u16,
}

/// Everything that the agent is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the proxy is.
    pub role: Role,
    /// Who it is.
    pub node: NodeSettings,
    /// Its ports.
    pub ports: Ports,
    /// Where the control plane is.
    pub discovery: Server,
    /// Where certificates come from.
    pub identity: IdentitySettings,
    /// How Envoy is started.
    pub envoy: EnvoySettings,
    /// How it ends.
    pub drain: DrainSettings,
    /// Which statistics it keeps.
    pub stats: StatsSettings,
    /// Its runtime settings.
    pub runtime: BTreeMap<String, RuntimeValue>,
    /// The application's probes by path.
    pub probes: BTreeMap<String, probes::Probe>,
    /// Where the application is asked by probes.
    pub probe_address: IpAddr,
    /// Where the application has metrics.
    pub scrape: Option<ScrapeTarget>,
    /// What is said but has no effect, for the log.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads everything.
    ///
    /// # Errors
    /// The first setting that is not understood.
    pub fn load(
        args: &ProxyArgs,
        environment: &Environment,
        read: ReadFile<'_>,
    ) -> Result<Self, ConfigError> {
        let mut warnings = Vec::new();
        let pod = node::Pod::read(environment, read)?;
        let proxy = proxy::load(args, environment, read, &pod.annotations, &mut warnings)?;
        let ports = Ports {
            admin: proxy.proxy_admin_port,
            status: status_port(&pod.annotations)?.unwrap_or(proxy.status_port),
            envoy_status: environment.parse("ENVOY_STATUS_PORT", "a port")?.unwrap_or(15021),
            envoy_prometheus: environment.parse("ENVOY_PROMETHEUS_PORT", "a port")?.unwrap_or(15090),
        };
        let drain = proxy::drain(&proxy, environment)?;
        let discovery = identity::discovery(&proxy, environment)?;
        let node = node::NodeSettings::new(&node::Facts {
            args,
            environment,
            read,
            pod: &pod,
            proxy: &proxy,
            ports,
            exit_on_zero: drain.exit_on_zero_connections,
            control_plane: &discovery.host,
        })?;
        let identity = identity::load(&proxy, environment, read, &node)?;
        let probe_address = if environment.flag("REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION", false)? {
            node.families.loopback()
        } else {
            node.addresses[0]
        };
        let scrape = match args.role {
            // A gateway's status port is reachable from outside of the cluster.
            Role::Router => None,
            Role::Sidecar => scrape::parse(environment, ports.status)?,
        };
        unsupported(environment, &mut warnings)?;
        Ok(Self {
            role: args.role,
            ports,
            discovery,
            identity,
            envoy: proxy::envoy(&proxy, args, environment, &pod.annotations)?,
            drain,
            stats: proxy::stats(&proxy, &pod.annotations, &node.addresses, &mut warnings)?,
            runtime: proxy::runtime(&proxy),
            probes: environment
                .text("ISTIO_KUBE_APP_PROBERS")
                .map(probes::parse)
                .transpose()?
                .unwrap_or_default(),
            probe_address,
            scrape,
            warnings,
            node,
        })
    }
}

/// Reads the port of the status that a pod chose for itself; 0 only turns probes of the proxy off.
fn status_port(annotations: &BTreeMap<String, String>) -> Result<Option<u16>, ConfigError> {
    const NAME: &str = "status.sidecar.istio.io/port";
    let Some(text) = annotations.get(NAME) else { return Ok(None) };
    let port: u16 = text
        .trim()
        .parse()
        .map_err(|_| ConfigError::variable("annotation", format!("{NAME}: {text:?} is not a port")))?;
    Ok((port != 0).then_some(port))
}

/// Refuses what would break the workload if it were passed over, and tells of the rest.
fn unsupported(environment: &Environment, warnings: &mut Vec<String>) -> Result<(), ConfigError> {
    for name in ["ISTIO_META_DNS_CAPTURE", "ISTIO_META_ENABLE_DNS_SERVER"] {
        if environment.flag(name, false)? {
            // The pod's DNS would be redirected to a port where nobody answers.
            return Err(ConfigError::variable(name, "weft-agent has no DNS proxy yet"));
        }
    }
    if environment.flag("DISABLE_ENVOY", false)? {
        return Err(ConfigError::variable("DISABLE_ENVOY", "weft-agent always runs an Envoy"));
    }
    let chosen =
        [("CA_PROVIDER", "Citadel"), ("CREDENTIAL_FETCHER_TYPE", "JWT"), ("JWT_POLICY", "third-party-jwt")];
    for (name, only) in chosen {
        if let Some(value) = environment.text(name).filter(|value| *value != only) {
            return Err(ConfigError::variable(name, format!("{value:?} is not supported, only {only:?}")));
        }
    }
    let ignored = [
        "WORKLOAD_IDENTITY_SOCKET_FILE",
        "XDS_AUTH_PROVIDER",
        "PROXY_CONFIG_XDS_AGENT",
        "BOOTSTRAP_XDS_AGENT",
        "GRPC_XDS_BOOTSTRAP",
        "ISTIO_BOOTSTRAP_OVERRIDE",
        "PEER_METADATA_DISCOVERY",
        "WASM_INSECURE_REGISTRIES",
        "PKCS8_KEY",
    ];
    let set = ignored.into_iter().filter(|name| environment.text(name).is_some());
    warnings.extend(set.map(|name| format!("{name} has no effect on weft-agent")));
    if environment.with_prefix("XDS_HEADER_").next().is_some() {
        warnings.push("XDS_HEADER_ variables have no effect on weft-agent".to_owned());
    }
    Ok(())
}
