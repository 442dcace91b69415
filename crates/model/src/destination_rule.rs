//! How clients talk to a host: what Istio calls a DestinationRule, parsed.

use crate::{ExportTo, Hostname, Labels, Meta, Str};
use std::time::Duration;

/// Policy for the clients of a host, and its subsets.
#[derive(Clone, Debug, PartialEq)]
pub struct DestinationRule {
    /// The object.
    pub meta: Meta,
    /// The host, completed with the object's namespace and the mesh's domain if it has no dots.
    pub host: Hostname,
    /// Who may see it.
    pub export_to: ExportTo,
    /// Clients it is limited to; none for all.
    pub workload_selector: Option<Labels>,
    /// The policy of the host.
    pub policy: Option<TrafficPolicy>,
    /// The subsets in the order of the object.
    pub subsets: Vec<Subset>,
}

impl DestinationRule {
    /// Returns the names of the labels by which the rule ranks endpoints.
    pub fn failover_labels(&self) -> impl Iterator<Item = &str> {
        let subsets = self.subsets.iter().filter_map(|subset| subset.policy.as_ref());
        self.policy
            .iter()
            .chain(subsets)
            .flat_map(|policy| {
                std::iter::once(&policy.base).chain(policy.port_level.iter().map(|(_, entry)| entry))
            })
            .filter_map(|policy| policy.load_balancer.as_ref()?.locality.as_ref())
            .flat_map(LocalityLb::failover_labels)
    }
}

/// Some of a host's endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct Subset {
    /// Its name.
    pub name: Str,
    /// The labels of its endpoints.
    pub labels: Labels,
    /// Its policy, over the host's by block.
    pub policy: Option<TrafficPolicy>,
}

/// A policy with exceptions by port.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrafficPolicy {
    /// The policy for ports without an entry of their own.
    pub base: PortPolicy,
    /// Whole replacements for single service ports.
    pub port_level: Vec<(u16, PortPolicy)>,
    /// Tunnelling of TCP and TLS through an HTTP proxy.
    pub tunnel: Option<Tunnel>,
}

/// The blocks of a policy. A block that is absent leaves the default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PortPolicy {
    /// Balancing.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits.
    pub connection_pool: Option<ConnectionPool>,
    /// Ejection of failing endpoints.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS to the endpoints.
    pub tls: Option<ClientTls>,
    /// The PROXY protocol version sent ahead of each connection.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Limits on concurrent retries.
    pub retry_budget: Option<RetryBudget>,
}

/// Balancing among endpoints.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadBalancer {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Preference by locality; replaces the mesh's.
    pub locality: Option<LocalityLb>,
    /// Slow start for new endpoints.
    pub warmup: Option<Warmup>,
}

/// A balancing algorithm.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Algorithm {
    /// None given: least requests.
    #[default]
    Unspecified,
    /// In turn.
    RoundRobin,
    /// The better of two by active requests.
    LeastRequest,
    /// At random.
    Random,
    /// Where the connection was going.
    Passthrough,
    /// By hash.
    ConsistentHash(ConsistentHash),
}

/// Hashing to endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct ConsistentHash {
    /// What is hashed.
    pub key: Option<HashKey>,
    /// How the ring is made.
    pub ring: HashRing,
}

/// What is hashed.
#[derive(Clone, Debug, PartialEq)]
pub enum HashKey {
    /// A header's value.
    Header(Str),
    /// A cookie, made if it has a lifetime and is missing.
    Cookie {
        /// Its name.
        name: Str,
        /// Its path.
        path: Option<Str>,
        /// How long it lives; none for hashing only what is there.
        ttl: Option<Duration>,
        /// Further attributes of the cookie that is made.
        attributes: Vec<(Str, Str)>,
    },
    /// The client's address, if true (false keeps the ring and hashes nothing).
    SourceIp(bool),
    /// A query parameter.
    QueryParameter(Str),
}

/// A hashing structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashRing {
    /// A ring of at least this many points.
    Ring {
        /// The minimum size; 1024 if not given.
        minimum_size: u64,
    },
    /// Maglev.
    Maglev {
        /// The table's size, a prime; none for Envoy's default.
        table_size: Option<u64>,
    },
}

/// Slow start.
#[derive(Clone, Debug, PartialEq)]
pub struct Warmup {
    /// How long.
    pub window: Duration,
    /// The share of weight at the start, in percent; none for the default of the deprecated form.
    pub minimum_percent: Option<f64>,
    /// The shape of the ramp.
    pub aggression: Option<f64>,
}

/// Preference by locality.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalityLb {
    /// Whether it is on; none inherits.
    pub enabled: Option<bool>,
    /// Shares by the client's locality.
    pub distribute: Vec<Distribute>,
    /// Regions to fall back to, as (from, to).
    pub failover: Vec<(Str, Str)>,
    /// Labels (`label` or `label=value`) that rank endpoints.
    pub failover_priority: Vec<Str>,
}

impl LocalityLb {
    /// Returns the names of the labels by which endpoints are ranked.
    pub fn failover_labels(&self) -> impl Iterator<Item = &str> {
        self.failover_priority.iter().map(|entry| entry.split_once('=').map_or(&**entry, |(name, _)| name))
    }
}

/// How the traffic of one locality is shared out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribute {
    /// `region/zone/subzone` of clients, `*` allowed at the end.
    pub from: Str,
    /// Shares by locality of endpoints.
    pub to: Vec<(Str, u32)>,
}

/// Limits on connections and requests. Zero and absent mean unlimited.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConnectionPool {
    /// Whether there is a `tcp` block.
    pub tcp: Option<TcpPool>,
    /// Whether there is an `http` block.
    pub http: Option<HttpPool>,
}

/// Limits on connections.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TcpPool {
    /// How many.
    pub max_connections: Option<u32>,
    /// How long to wait for one.
    pub connect_timeout: Option<Duration>,
    /// Keep-alive probes; their presence alone switches them on.
    pub keepalive: Option<TcpKeepalive>,
    /// How long one may live.
    pub max_connection_duration: Option<Duration>,
    /// How long one may be idle.
    pub idle_timeout: Option<Duration>,
}

/// TCP keep-alive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// Probes before the connection counts as dead.
    pub probes: Option<u32>,
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}

/// Limits on requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpPool {
    /// Requests waiting for a connection.
    pub http1_max_pending_requests: Option<u32>,
    /// Active requests.
    pub http2_max_requests: Option<u32>,
    /// Requests before a connection is closed.
    pub max_requests_per_connection: Option<u32>,
    /// Retries at once.
    pub max_retries: Option<u32>,
    /// How long a connection may be idle.
    pub idle_timeout: Option<Duration>,
    /// Whether HTTP/1.1 is upgraded.
    pub h2_upgrade: H2Upgrade,
    /// Whether the client's protocol is kept.
    pub use_client_protocol: bool,
    /// Streams at once on one HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
    /// HTTP/2 pings.
    pub http2_keepalive: Option<Http2Keepalive>,
}

/// HTTP/2 pings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Http2Keepalive {
    /// Time between pings.
    pub interval: Option<Duration>,
    /// How long an answer may take.
    pub timeout: Option<Duration>,
}

/// Upgrading HTTP/1.1 to HTTP/2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum H2Upgrade {
    /// As the mesh says.
    #[default]
    Default,
    /// No.
    DoNotUpgrade,
    /// Yes.
    Upgrade,
}

/// Ejection of failing endpoints. Absent fields leave Envoy's defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OutlierDetection {
    /// 5xx answers in a row; 0 turns the check off.
    pub consecutive_5xx: Option<u32>,
    /// 502, 503 and 504 in a row; 0 turns the check off.
    pub consecutive_gateway_errors: Option<u32>,
    /// Failures to connect in a row; only with `split_external_local_origin`.
    pub consecutive_local_origin_failures: Option<u32>,
    /// Whether failures to connect are counted apart.
    pub split_external_local_origin: bool,
    /// Time between sweeps.
    pub interval: Option<Duration>,
    /// The shortest ejection.
    pub base_ejection_time: Option<Duration>,
    /// The largest share ejected, in percent.
    pub max_ejection_percent: Option<u32>,
    /// Below this share of healthy endpoints all are used, in percent.
    pub min_health_percent: u32,
    /// Status codes that count as errors (`outlierDetectionHttpErrorCodes`); empty for 5xx.
    pub http_error_codes: Vec<StatusRange>,
}

/// A range of HTTP status codes, ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRange {
    /// The first.
    pub start: u16,
    /// The last.
    pub end: u16,
}

/// TLS to a destination, or to clients of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTls {
    /// How.
    pub mode: ClientTlsMode,
    /// The client certificate's file.
    pub client_certificate: Option<Str>,
    /// The private key's file.
    pub private_key: Option<Str>,
    /// The file of authorities that the server is checked against.
    pub ca_certificates: Option<Str>,
    /// The name of a secret instead of files.
    pub credential_name: Option<Str>,
    /// Names that the server's certificate must have one of.
    pub subject_alt_names: Vec<Str>,
    /// The server name that is asked for.
    pub sni: Option<Str>,
    /// Whether the server's certificate is not checked at all.
    pub insecure_skip_verify: Option<bool>,
    /// The file of revocation lists.
    pub ca_crl: Option<Str>,
}

/// Modes of [`ClientTls`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientTlsMode {
    /// Plain text.
    Disable,
    /// TLS without a client certificate.
    Simple,
    /// TLS with the given client certificate.
    Mutual,
    /// TLS with the workload's own certificate.
    IstioMutual,
}

/// PROXY protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyProtocol {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// Limits on concurrent retries.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryBudget {
    /// The share of active requests, in percent.
    pub percent: f64,
    /// How many are always allowed.
    pub min_retry_concurrency: u32,
    /// The interval over which requests are counted.
    pub budget_interval: Option<Duration>,
}

/// Tunnelling through an HTTP proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Whether POST is used instead of CONNECT.
    pub post: bool,
    /// The host asked for.
    pub target_host: Str,
    /// The port asked for.
    pub target_port: u16,
}
