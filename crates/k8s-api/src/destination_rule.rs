//! DestinationRule: what happens to traffic once its service is known: subsets, load balancing, pools, ejection, TLS.

use std::collections::BTreeMap;

use schemars::{Schema, SchemaGenerator, json_schema};

use crate::crd::column;
use crate::meta::LabelSelector;
use crate::schema;
use crate::virtual_service::PortSelector;
use crate::wire::{api_type, istio_kind, open_enum};

istio_kind! {
    /// Policies for traffic to one host, applied after routing.
    DestinationRule(DestinationRuleSpec) {
        group: "networking.istio.io",
        plural: "destinationrules",
        short_names: &["dr"],
        categories: &["istio-io", "networking-istio-io"],
        versions: &["v1", "v1alpha3", "v1beta1"],
        columns: &[
            column("Host", "string", ".spec.host"),
            column("Age", "date", ".metadata.creationTimestamp"),
        ],
        spec_required: false,
    }
}

api_type! {
    /// Policies for traffic to one host.
    #[schemars(extend("required" = ["host"]))]
    pub struct DestinationRuleSpec {
        /// Namespaces that see this object: `*` all, `.` its own, or names. Empty means the mesh's default.
        pub export_to: Vec<String>,
        /// The service's name, with or without a leading wildcard; short names are completed with the object's namespace.
        pub host: String,
        /// Named groups of the service's endpoints.
        pub subsets: Vec<Subset>,
        /// Policies for all traffic to the host.
        pub traffic_policy: Option<TrafficPolicy>,
        /// Restricts the rule to proxies with these labels in its namespace.
        pub workload_selector: Option<LabelSelector>,
    }

    /// A named group of endpoints.
    #[schemars(extend("required" = ["name"]))]
    pub struct Subset {
        /// Labels that endpoints must carry.
        pub labels: BTreeMap<String, String>,
        /// The name that routes refer to.
        pub name: String,
        /// Policies that replace those of the host, block by block.
        pub traffic_policy: Option<TrafficPolicy>,
    }

    /// Policies for traffic to a host or subset.
    pub struct TrafficPolicy {
        /// Connection limits.
        pub connection_pool: Option<ConnectionPoolSettings>,
        /// How an endpoint is chosen.
        pub load_balancer: Option<LoadBalancerSettings>,
        /// When an endpoint is taken out for a while.
        pub outlier_detection: Option<OutlierDetection>,
        /// Policies for single ports, which replace the others as a whole.
        #[schemars(extend("maxItems" = 4096))]
        pub port_level_settings: Vec<PortTrafficPolicy>,
        /// Sends a PROXY protocol header to the endpoint.
        pub proxy_protocol: Option<ProxyProtocol>,
        /// Limits retries to a share of the running requests.
        pub retry_budget: Option<RetryBudget>,
        /// TLS towards the endpoint.
        pub tls: Option<ClientTlsSettings>,
        /// Tunnels connections through the host by HTTP CONNECT or POST.
        pub tunnel: Option<TunnelSettings>,
    }

    /// Policies for one port.
    pub struct PortTrafficPolicy {
        /// Connection limits.
        pub connection_pool: Option<ConnectionPoolSettings>,
        /// How an endpoint is chosen.
        pub load_balancer: Option<LoadBalancerSettings>,
        /// When an endpoint is taken out for a while.
        pub outlier_detection: Option<OutlierDetection>,
        /// The service port.
        pub port: Option<PortSelector>,
        /// TLS towards the endpoint.
        pub tls: Option<ClientTlsSettings>,
    }

    /// Connection limits.
    pub struct ConnectionPoolSettings {
        /// Limits for HTTP.
        pub http: Option<HttpSettings>,
        /// Limits for every connection.
        pub tcp: Option<TcpSettings>,
    }

    /// Limits for HTTP connections.
    pub struct HttpSettings {
        /// Whether HTTP/1.1 is upgraded to HTTP/2.
        pub h2_upgrade_policy: Option<H2UpgradePolicy>,
        /// How many requests may wait for a connection.
        pub http1_max_pending_requests: Option<i32>,
        /// HTTP/2 keepalive pings.
        pub http2_keep_alive: Option<Http2KeepAlive>,
        /// How many requests may run at once.
        pub http2_max_requests: Option<i32>,
        /// How long a connection may be idle.
        #[schemars(schema_with = "schema::duration")]
        pub idle_timeout: Option<String>,
        /// How many streams one HTTP/2 connection may carry.
        pub max_concurrent_streams: Option<i32>,
        /// How many requests one connection may carry; 1 turns keep-alive off.
        pub max_requests_per_connection: Option<i32>,
        /// How many retries may run at once.
        pub max_retries: Option<i32>,
        /// Uses the protocol of the client's connection.
        pub use_client_protocol: bool,
    }

    /// HTTP/2 keepalive pings.
    pub struct Http2KeepAlive {
        /// The time between pings.
        #[schemars(schema_with = "schema::duration")]
        pub interval: Option<String>,
        /// How long an answer may take.
        #[schemars(schema_with = "schema::duration")]
        pub timeout: Option<String>,
    }

    /// Limits for TCP connections.
    pub struct TcpSettings {
        /// How long connecting may take.
        #[schemars(schema_with = "schema::duration")]
        pub connect_timeout: Option<String>,
        /// How long a connection may be idle; `0s` means for ever.
        pub idle_timeout: Option<String>,
        /// How long a connection may live.
        #[schemars(schema_with = "schema::duration")]
        pub max_connection_duration: Option<String>,
        /// How many connections there may be.
        pub max_connections: Option<i32>,
        /// Keepalive of the socket.
        pub tcp_keepalive: Option<TcpKeepalive>,
    }

    /// Keepalive of a socket; an empty message turns it on with the system's values.
    pub struct TcpKeepalive {
        /// The time between probes.
        #[schemars(schema_with = "schema::duration")]
        pub interval: Option<String>,
        /// How many probes may fail.
        pub probes: Option<u32>,
        /// The idle time before the first probe.
        #[schemars(schema_with = "schema::duration")]
        pub time: Option<String>,
    }

    /// How an endpoint is chosen.
    #[schemars(transform = schema::one_of(&["simple", "consistentHash", "backendUtilization"]))]
    pub struct LoadBalancerSettings {
        /// Weights endpoints by the load that they report.
        pub backend_utilization: Option<BackendUtilization>,
        /// Sends equal requests to equal endpoints.
        pub consistent_hash: Option<ConsistentHashLb>,
        /// How localities share the traffic; replaces the mesh's setting.
        pub locality_lb_setting: Option<LocalityLbSetting>,
        /// A standard algorithm.
        pub simple: Option<SimpleLb>,
        /// Lets new endpoints start slowly.
        pub warmup: Option<WarmupConfiguration>,
        /// The earlier form of `warmup.duration`.
        #[schemars(schema_with = "schema::duration")]
        pub warmup_duration_secs: Option<String>,
        /// Zone-aware routing; replaces the mesh's setting.
        pub zone_aware_lb_setting: Option<ZoneAwareLbSetting>,
    }

    /// Weights endpoints by the load that they report (ORCA).
    pub struct BackendUtilization {
        /// How much reported errors lower a weight.
        pub error_utilization_penalty_percent: Option<u32>,
        /// The metrics that count as utilisation.
        pub metric_names_for_computing_utilization: Vec<String>,
        /// When a weight that is not renewed is dropped.
        pub weight_expiration_period: Option<String>,
        /// How long reports must have come before weights are used.
        pub weight_stabilization_period: Option<String>,
        /// How often weights are computed.
        pub weight_update_period: Option<String>,
    }

    /// Sends requests with equal keys to equal endpoints.
    #[schemars(transform = schema::two_one_ofs(
        &["httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"],
        &["ringHash", "maglev"],
    ))]
    pub struct ConsistentHashLb {
        /// The key is a cookie, made if absent.
        pub http_cookie: Option<HttpCookie>,
        /// The key is a header.
        pub http_header_name: Option<String>,
        /// The key is a query parameter.
        pub http_query_parameter_name: Option<String>,
        /// Uses a Maglev table.
        pub maglev: Option<Maglev>,
        /// The least ring size; `ringHash` replaces it.
        pub minimum_ring_size: Option<u64>,
        /// Uses a ring.
        pub ring_hash: Option<RingHash>,
        /// The key is the client's address.
        pub use_source_ip: Option<bool>,
    }

    /// A cookie as hash key.
    #[schemars(extend("required" = ["name"]))]
    pub struct HttpCookie {
        /// Further attributes of the cookie that is made.
        pub attributes: Vec<HttpCookieAttribute>,
        /// The cookie's name.
        pub name: String,
        /// The cookie's path.
        pub path: String,
        /// The cookie's life; absent means that no cookie is made, `0s` a session cookie.
        pub ttl: Option<String>,
    }

    /// An attribute of a cookie.
    #[schemars(extend("required" = ["name"]))]
    pub struct HttpCookieAttribute {
        /// Its name.
        pub name: String,
        /// Its value; empty for a flag.
        pub value: String,
    }

    /// Ring settings.
    pub struct RingHash {
        /// The least number of entries; absent means 1024.
        pub minimum_ring_size: Option<u64>,
    }

    /// Maglev settings.
    pub struct Maglev {
        /// The table's size, a prime; absent means 65537.
        pub table_size: Option<u64>,
    }

    /// How localities share the traffic.
    pub struct LocalityLbSetting {
        /// Shares by locality of the caller.
        pub distribute: Vec<LocalityDistribute>,
        /// Whether this is on at all; absent means yes.
        #[schemars(schema_with = "schema::nullable_bool")]
        pub enabled: Option<bool>,
        /// Where traffic goes when a region fails.
        pub failover: Vec<LocalityFailover>,
        /// Labels by which endpoints are ranked, most important first.
        pub failover_priority: Vec<String>,
    }

    /// Shares for callers of one locality.
    pub struct LocalityDistribute {
        /// The caller's locality, `region/zone/subzone` with `*`.
        pub from: String,
        /// Shares by destination locality, 100 in all.
        pub to: BTreeMap<String, u32>,
    }

    /// Where traffic goes when a region fails.
    pub struct LocalityFailover {
        /// The failing region.
        pub from: String,
        /// The region that takes over.
        pub to: String,
    }

    /// Zone-aware routing.
    pub struct ZoneAwareLbSetting {
        /// Whether this is on.
        #[schemars(schema_with = "schema::nullable_bool")]
        pub enabled: Option<bool>,
        /// Where traffic goes when a region fails.
        pub failover: Vec<LocalityFailover>,
        /// Labels by which endpoints are ranked, most important first.
        pub failover_priority: Vec<String>,
        /// The least number of endpoints for which zones count.
        #[schemars(schema_with = "min_cluster_size")]
        pub min_cluster_size: Option<u32>,
    }

    /// Lets new endpoints start slowly.
    #[schemars(extend("required" = ["duration"]))]
    pub struct WarmupConfiguration {
        /// How fast the share grows; 1 is linear.
        #[schemars(schema_with = "warmup_aggression")]
        pub aggression: Option<f64>,
        /// How long it takes to reach the full share.
        #[schemars(schema_with = "schema::duration")]
        pub duration: Option<String>,
        /// The share to begin with.
        #[schemars(schema_with = "schema::nullable_percent")]
        pub minimum_percent: Option<f64>,
    }

    /// When an endpoint is taken out for a while. An empty message turns detection on with the proxy's values.
    pub struct OutlierDetection {
        /// The shortest ejection; it grows with each one.
        #[schemars(schema_with = "schema::duration")]
        pub base_ejection_time: Option<String>,
        /// Server errors in a row; 0 turns this off, absent means 5.
        #[schemars(schema_with = "schema::nullable_u32")]
        #[serde(rename = "consecutive5xxErrors")]
        pub consecutive_5xx_errors: Option<u32>,
        /// Replaced by the other counts.
        pub consecutive_errors: Option<i32>,
        /// Gateway errors (502, 503, 504) in a row; 0 turns this off.
        #[schemars(schema_with = "schema::nullable_u32")]
        pub consecutive_gateway_errors: Option<u32>,
        /// Locally seen failures in a row, if they are counted apart.
        #[schemars(schema_with = "schema::nullable_u32")]
        pub consecutive_local_origin_failures: Option<u32>,
        /// The time between sweeps.
        #[schemars(schema_with = "schema::duration")]
        pub interval: Option<String>,
        /// The greatest share of endpoints that may be out.
        pub max_ejection_percent: Option<i32>,
        /// Below this share of healthy endpoints all of them are used.
        pub min_health_percent: Option<i32>,
        /// Further status codes that count as errors.
        #[schemars(schema_with = "http_error_codes")]
        pub outlier_detection_http_error_codes: Vec<u32>,
        /// Counts locally seen failures apart from errors that the endpoint answered.
        pub split_external_local_origin_errors: bool,
    }

    /// Sends a PROXY protocol header to the endpoint.
    pub struct ProxyProtocol {
        /// The protocol's version.
        pub version: Option<ProxyProtocolVersion>,
    }

    /// Limits retries to a share of the running requests.
    pub struct RetryBudget {
        /// The time over which requests are counted.
        pub budget_interval: Option<String>,
        /// Retries that are always allowed.
        pub min_retry_concurrency: Option<u32>,
        /// The share; absent means 20.
        #[schemars(schema_with = "schema::nullable_percent")]
        pub percent: Option<f64>,
    }

    /// TLS towards an endpoint. An empty message has the mode `DISABLE`.
    pub struct ClientTlsSettings {
        /// File with the certificates that the server's is checked against.
        pub ca_certificates: String,
        /// File with a revocation list.
        pub ca_crl: String,
        /// File with the client's certificate.
        pub client_certificate: String,
        /// A Secret that holds certificate, key and roots.
        pub credential_name: String,
        /// Skips the check of the server's certificate.
        #[schemars(schema_with = "schema::nullable_bool")]
        pub insecure_skip_verify: Option<bool>,
        /// Whether and how TLS is used; absent means `DISABLE`.
        pub mode: Option<ClientTlsMode>,
        /// File with the client's key.
        pub private_key: String,
        /// The server name to send.
        pub sni: String,
        /// Names of which the server's certificate must carry one.
        pub subject_alt_names: Vec<String>,
    }

    /// Tunnels connections through the host.
    #[schemars(extend("required" = ["targetHost", "targetPort"]))]
    pub struct TunnelSettings {
        /// `CONNECT` or `POST`; empty means `CONNECT`.
        pub protocol: String,
        /// The host that the tunnel leads to.
        pub target_host: String,
        /// The port that the tunnel leads to.
        pub target_port: Option<u32>,
    }
}

open_enum! {
    /// Whether HTTP/1.1 is upgraded to HTTP/2.
    pub enum H2UpgradePolicy {
        /// As the mesh says.
        Default = "DEFAULT",
        /// Never.
        DoNotUpgrade = "DO_NOT_UPGRADE",
        /// Always.
        Upgrade = "UPGRADE",
    }

    /// A standard load balancing algorithm.
    pub enum SimpleLb {
        /// The default: least request.
        Unspecified = "UNSPECIFIED",
        /// The earlier name of `LEAST_REQUEST`.
        LeastConn = "LEAST_CONN",
        /// Random endpoints.
        Random = "RANDOM",
        /// The address that the caller asked for.
        Passthrough = "PASSTHROUGH",
        /// One after the other.
        RoundRobin = "ROUND_ROBIN",
        /// The less busy of two random ones.
        LeastRequest = "LEAST_REQUEST",
    }

    /// How TLS is used towards an endpoint.
    pub enum ClientTlsMode {
        /// Not at all.
        Disable = "DISABLE",
        /// Without a client certificate.
        Simple = "SIMPLE",
        /// With the given client certificate.
        Mutual = "MUTUAL",
        /// With the workload's mesh certificate.
        IstioMutual = "ISTIO_MUTUAL",
    }

    /// The PROXY protocol's version.
    pub enum ProxyProtocolVersion {
        /// Text.
        V1 = "V1",
        /// Binary.
        V2 = "V2",
    }
}

fn min_cluster_size(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "minimum": 1, "maximum": u32::MAX, "nullable": true })
}

fn warmup_aggression(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "number", "format": "double", "minimum": 0, "nullable": true })
}

fn http_error_codes(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": { "type": "integer", "minimum": 100, "maximum": 599 } })
}
