//! Flags. Names are Istio's where it has the same flag.

use clap::{Args as Group, Parser, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The Weft control plane: compiles mesh configuration to xDS and pushes it to Envoy, make before break.
///
/// Configuration comes from a directory of manifests (--config), or else from the Kubernetes API. It serves xDS in
/// plain text on --grpc-addr and encrypted on --secure-grpc-addr, readiness on --http-addr, and metrics and debug pages on --monitoring-addr.
#[derive(Clone, Debug, Parser)]
#[command(name = "weftd", version)]
pub struct Args {
    /// Where configuration comes from
    #[command(flatten)]
    pub source: SourceArgs,
    /// What the mesh is called
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// What is served where
    #[command(flatten)]
    pub server: ServerArgs,
    /// Who may come, and with which certificates
    #[command(flatten)]
    pub secure: SecureArgs,
    /// Admission: proxies in pods, and no bad objects
    #[command(flatten)]
    pub admission: AdmissionArgs,
    /// Logs
    #[command(flatten)]
    pub log: LogArgs,
}

/// Where configuration comes from.
#[derive(Clone, Debug, Group)]
#[command(next_help_heading = "Sources")]
pub struct SourceArgs {
    /// A directory of manifests (or one file), read with all below it and watched. No cluster is needed
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    pub config: Option<PathBuf>,
    /// The kubeconfig file of the cluster. Without it: $KUBECONFIG, ~/.kube/config, or the pod's service account
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The namespace that weftd itself is in, where the mesh ConfigMap `istio` is
    #[arg(
        long,
        short = 'n',
        value_name = "NAMESPACE",
        env = "POD_NAMESPACE",
        default_value = "istio-system",
        value_parser = dns_label
    )]
    pub namespace: String,
    /// A directory of weftd's own, in which the last good form of objects that are bad now outlives a restart. Without
    /// it such objects are not used at all after one. The same goes for the mesh configuration
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Accept security policies that are not enforced yet (AuthorizationPolicy, RequestAuthentication) with a warning.
    /// Without it each is reported as an error: traffic passes as if it were not there
    #[arg(long)]
    pub allow_unenforced_policies: bool,
}

/// What the mesh is called.
#[derive(Clone, Debug, Group)]
#[command(next_help_heading = "Mesh")]
pub struct MeshArgs {
    /// A file with a MeshConfig in YAML, watched. In a cluster the ConfigMap `istio` is merged over it
    #[arg(long, value_name = "FILE")]
    pub mesh_config: Option<PathBuf>,
    /// The DNS domain of the cluster
    #[arg(long, default_value = "cluster.local", value_parser = dns_name)]
    pub domain: String,
    /// The revision that weftd is: which pods, webhooks' configurations and ConfigMaps are its own
    #[arg(long, env = "REVISION", default_value = "default", value_parser = dns_label)]
    pub revision: String,
    /// The name of the cluster that endpoints are in
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes", value_parser = not_empty)]
    pub cluster_id: String,
}

/// What is served where.
#[derive(Clone, Debug, Group)]
#[command(next_help_heading = "Servers")]
pub struct ServerArgs {
    /// The address for xDS in plain text
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15010")]
    pub grpc_addr: SocketAddr,
    /// The address for readiness (/ready)
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    pub http_addr: SocketAddr,
    /// The address for metrics (/metrics), debug pages (/debug/...) and /version
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15014")]
    pub monitoring_addr: SocketAddr,
    /// Hand out the private keys of Kubernetes Secrets to gateways over plain text, from any address. By default
    /// only clients on the loopback interface get them
    #[arg(long)]
    pub insecure_plaintext_secrets: bool,
    /// Connections at once
    #[arg(long, value_name = "COUNT", default_value_t = 20_000, value_parser = at_least_one)]
    pub max_connections: usize,
    /// How long streams may go on after a signal to stop
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub shutdown_duration: Duration,
}

/// Who may come, and with which certificates.
#[derive(Clone, Debug, Group)]
#[command(next_help_heading = "Identity")]
pub struct SecureArgs {
    /// The address for encrypted xDS and certificates. Without a cluster it is served only with --ca-dir
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15012")]
    pub secure_grpc_addr: SocketAddr,
    /// A directory with the certificate authority: ca-cert.pem, ca-key.pem, root-cert.pem and cert-chain.pem, or
    /// tls.crt, tls.key and ca.crt; followed. If it is empty, a self-signed authority is made in it. Without it, and in a
    /// cluster: the Secret `cacerts`, or else `istio-ca-secret`, which is made if it is not there
    #[arg(long, value_name = "DIR")]
    pub ca_dir: Option<PathBuf>,
    /// The name of this weftd among its replicas: that of the pod. Without it the name of the host
    #[arg(long, value_name = "NAME", env = "POD_NAME", value_parser = dns_name)]
    pub replica_name: Option<String>,
    /// Further names and addresses of the certificate of the secure port
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub secure_name: Vec<String>,
    /// How long certificates of workloads are valid
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = seconds)]
    pub workload_cert_ttl: Duration,
    /// The longest that a workload may ask for
    #[arg(long, value_name = "DURATION", default_value = "2160h", value_parser = seconds)]
    pub max_workload_cert_ttl: Duration,
    /// Whom the tokens of service accounts must be meant for: one of these
    #[arg(
        long,
        value_name = "AUDIENCE",
        value_delimiter = ',',
        env = "TOKEN_AUDIENCES",
        default_value = "istio-ca"
    )]
    pub token_audience: Vec<String>,
    /// A file with the keys that tokens are signed with, a JSON Web Key Set; read anew when a key is unknown. It takes
    /// the place of the cluster's keys: no API server is asked
    #[arg(long, value_name = "FILE", requires = "token_issuer")]
    pub token_keys: Option<PathBuf>,
    /// Who issues those tokens: their `iss`
    #[arg(long, value_name = "ISSUER", requires = "token_keys")]
    pub token_issuer: Option<String>,
    /// After how long clients of the secure port are asked to connect again, so that they spread over replicas
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = seconds)]
    pub max_connection_age: Duration,
}

/// Admission: proxies in pods, and no bad objects.
#[derive(Clone, Debug, Group)]
#[command(next_help_heading = "Admission")]
pub struct AdmissionArgs {
    /// The address for the webhooks (/inject, /validate) over HTTPS. Without a cluster it is served only with --ca-dir
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15017")]
    pub https_addr: SocketAddr,
    /// A file with the chart's values for injection, in YAML. In a cluster the key `values` of the ConfigMap
    /// `istio-sidecar-injector` (`istio-sidecar-injector-REVISION`) is merged over it, and followed
    #[arg(long, value_name = "FILE")]
    pub injection_values: Option<PathBuf>,
    /// Whether proxies are native sidecars: auto means where every kubelet is new enough
    #[arg(long, value_name = "WHEN", env = "ENABLE_NATIVE_SIDECARS", default_value = "auto", value_parser = native)]
    pub native_sidecars: inject::NativeSidecars,
    /// What weftd writes to the cluster, one replica at a time. By default nothing: so a weftd that only looks at a
    /// cluster changes nothing there. charts/weft sets all
    #[arg(long, value_name = "WHAT", value_enum, value_delimiter = ',')]
    pub write: Vec<Writes>,
    /// The service account of weftd's pod: replicas tell each other how far their proxies are if they are of this one
    #[arg(long, value_name = "NAME", env = "SERVICE_ACCOUNT", default_value = "istiod", value_parser = dns_name)]
    pub service_account: String,
    /// The name of weftd's pod, by which it is known as the holder of a lease
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub pod_name: Option<String>,
}

/// What weftd may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Writes {
    /// The `caBundle` of webhooks' configurations that are labelled with its revision
    Webhooks,
    /// The ConfigMap `istio-ca-root-cert` in every namespace of the mesh
    RootCertificates,
    /// The conditions `Accepted` and `Programmed` of the mesh's objects
    Status,
    /// Addresses in the status of ServiceEntries that have none of their own
    Addresses,
}

impl SecureArgs {
    /// Returns the name of this weftd among its replicas.
    pub(crate) fn replica_name(&self) -> String {
        let given = self.replica_name.clone();
        given.unwrap_or_else(|| {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
                .unwrap_or_default()
                .trim()
                .to_lowercase();
            let is_good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            let name: String = host.chars().map(|c| if is_good(c) { c } else { '-' }).collect();
            name.trim_matches('-').to_owned()
        })
    }
}

/// Logs.
#[derive(Clone, Debug, Group)]
#[command(next_help_heading = "Logs")]
pub struct LogArgs {
    /// What is logged: error, warn, info, debug, trace, or by part, such as `info,xds=debug`. Of the library that
    /// follows the Kubernetes API only errors are, unless `kube_runtime` is named: weftd says itself what becomes of them
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = log_filter)]
    pub log_level: String,
    /// How it is written
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Accepts a number of seconds, or `250ms`, `10s`, `2m`, `24h`.
fn seconds(text: &str) -> Result<Duration, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is not a duration, such as 10s"))?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "" | "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3600))),
        _ => Err(format!("{text:?} is not a duration, such as 10s")),
    }
}

/// Accepts Istio's words.
fn native(text: &str) -> Result<inject::NativeSidecars, String> {
    match text {
        "auto" | "" => Ok(inject::NativeSidecars::Auto),
        "enabled" | "true" => Ok(inject::NativeSidecars::Enabled),
        "disabled" | "false" => Ok(inject::NativeSidecars::Disabled),
        _ => Err(format!("{text:?} is none of auto, enabled and disabled")),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("with none, nobody is served".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => Err(format!("{text:?} is not a number")),
    }
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("it must not be empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// Accepts the name of a namespace.
fn dns_label(text: &str) -> Result<String, String> {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_good = (1..=63).contains(&text.len())
        && text.chars().all(is_inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if is_good {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not a name in DNS: lower-case letters, digits and inner hyphens"))
    }
}

fn dns_name(text: &str) -> Result<String, String> {
    text.split('.').try_for_each(|label| dns_label(label).map(drop))?;
    Ok(text.to_owned())
}

fn log_filter(text: &str) -> Result<String, String> {
    tracing_subscriber::EnvFilter::try_new(text)
        .map(|_| text.to_owned())
        .map_err(|error| format!("it is not a filter: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_flags_are_consistent_and_explained() {
        let command = Args::command();
        command.clone().debug_assert();
        for flag in command.get_arguments() {
            assert!(flag.get_help().is_some(), "{} is not explained", flag.get_id());
        }
    }

    #[test]
    fn values_that_cannot_be_are_refused_with_the_flag() {
        for flag in [
            ["--domain", ""],
            ["--domain", "a b"],
            ["--domain", "cluster..local"],
            ["--namespace", "Istio_System"],
            ["--cluster-id", " "],
            ["--max-connections", "0"],
            ["--max-connections", "many"],
            ["--log-level", "=;,"],
            ["--revision", "Canary"],
            ["--native-sidecars", "maybe"],
        ] {
            let error = Args::try_parse_from(["weftd", flag[0], flag[1]]).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(flag[0]), "{error}");
        }
        let good =
            ["weftd", "--domain", "corp.example", "--cluster-id", "East 1", "--log-level", "info,xds=debug"];
        Args::try_parse_from(good).unwrap();
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(seconds("10"), Ok(Duration::from_secs(10)));
        assert_eq!(seconds("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(seconds("2m"), Ok(Duration::from_secs(120)));
        assert!(seconds("soon").is_err());
        assert_eq!(seconds("24h"), Ok(Duration::from_secs(86_400)));
        assert!(seconds("1d").is_err());
    }
}
