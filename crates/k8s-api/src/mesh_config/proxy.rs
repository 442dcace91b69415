//! ProxyConfig: settings of single proxies.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::merge_fields;
use crate::destination_rule::{ClientTlsSettings, TcpKeepalive};
use crate::wire::{api_type, mesh_type, open_enum};

mesh_type! {
    /// Settings of a proxy. As a part of [`super::MeshConfig`] every field has its effective value.
    #[derive(Default)]
    pub struct ProxyConfig {
        /// The directory of generated configuration.
        pub config_path: String,
        /// The proxy's program.
        pub binary_path: String,
        /// The name that the proxy gives as its cluster.
        pub service_cluster: String,
        /// How a name for traces is made.
        pub tracing_service_name: Option<String>,
        /// How long connections are drained.
        pub drain_duration: String,
        /// How long connections are drained when the proxy ends.
        pub termination_drain_duration: String,
        /// Deprecated by Istio: how long a parent process lives on.
        pub parent_shutdown_duration: Option<String>,
        /// The control plane's address.
        pub discovery_address: String,
        /// Deprecated by Istio.
        pub discovery_refresh_delay: Option<String>,
        /// Deprecated by Istio: replaced by `tracing`.
        pub zipkin_address: String,
        /// Where statsd listens.
        pub statsd_udp_address: String,
        /// Deprecated by Istio.
        pub envoy_metrics_service_address: String,
        /// The port of the proxy's administration.
        pub proxy_admin_port: u16,
        /// Deprecated by Istio.
        pub availability_zone: String,
        /// `MUTUAL_TLS` or `NONE`: how the proxy connects to the control plane.
        pub control_plane_auth_policy: String,
        /// A configuration file of the user's.
        pub custom_config_file: String,
        /// The greatest length of statistics' names.
        pub stat_name_length: u32,
        /// The number of worker threads; 0 means one per core.
        pub concurrency: Option<u32>,
        /// A template for the bootstrap.
        pub proxy_bootstrap_template_path: String,
        /// How inbound traffic gets to the proxy.
        pub interception_mode: Option<InterceptionMode>,
        /// Tracing; kept as it is written.
        pub tracing: Option<Value>,
        /// Deprecated by Istio.
        pub sds: Option<Value>,
        /// Where access logs are sent.
        pub envoy_access_log_service: Option<RemoteService>,
        /// Where metrics are sent.
        pub envoy_metrics_service: Option<RemoteService>,
        /// Environment of the proxy; names with `ISTIO_META_` become node metadata.
        pub proxy_metadata: BTreeMap<String, String>,
        /// Envoy's runtime settings.
        pub runtime_values: BTreeMap<String, String>,
        /// The agent's port for status and probes.
        pub status_port: u16,
        /// Further tags of statistics.
        pub extra_stat_tags: Vec<String>,
        /// What stands in front of gateways.
        pub gateway_topology: Option<GatewayTopology>,
        /// The mesh's id in telemetry.
        pub mesh_id: String,
        /// How a virtual machine's health is probed; kept as it is written.
        pub readiness_probe: Option<Value>,
        /// Further statistics.
        pub proxy_stats_matcher: Option<ProxyStatsMatcher>,
        /// Whether the application starts after the proxy.
        pub hold_application_until_proxy_starts: Option<bool>,
        /// Further roots, which the control plane fills in.
        pub ca_certificates_pem: Vec<String>,
        /// The proxy's image; kept as it is written.
        pub image: Option<Value>,
        /// Hardware for private keys; kept as it is written.
        pub private_key_provider: Option<Value>,
        /// Which headers the proxy adds.
        pub proxy_headers: Option<ProxyHeaders>,
        /// Buffers and timeouts of listeners and clusters.
        pub connection_settings: Option<ConnectionSettings>,
        /// How often access logs are written out.
        pub file_flush_interval: Option<String>,
        /// How many KiB of access logs are gathered before they are written out.
        pub file_flush_min_size_kb: Option<u32>,
        /// How often unused statistics are dropped.
        pub stats_eviction_interval: Option<String>,
    }
}

api_type! {
    /// A service that proxies talk to.
    pub struct RemoteService {
        /// Its address.
        pub address: String,
        /// TLS towards it.
        pub tls_settings: Option<ClientTlsSettings>,
        /// Keepalive of the socket.
        pub tcp_keepalive: Option<TcpKeepalive>,
    }

    /// What stands in front of gateways.
    pub struct GatewayTopology {
        /// How many proxies in front are trusted to name the client.
        pub num_trusted_proxies: u32,
        /// What happens to the client-certificate header.
        pub forward_client_cert_details: Option<ForwardClientCertDetails>,
        /// Present if connections begin with a PROXY protocol header.
        pub proxy_protocol: Option<BTreeMap<String, Value>>,
    }

    /// Further statistics.
    pub struct ProxyStatsMatcher {
        /// By the beginning of the name.
        pub inclusion_prefixes: Vec<String>,
        /// By the end of the name.
        pub inclusion_suffixes: Vec<String>,
        /// By regular expression.
        pub inclusion_regexps: Vec<String>,
    }

    /// Which headers the proxy adds.
    pub struct ProxyHeaders {
        /// `x-forwarded-client-cert`.
        pub forwarded_client_cert: Option<ForwardClientCertDetails>,
        /// What `x-forwarded-client-cert` says.
        pub set_current_client_cert_details: Option<SetCurrentClientCertDetails>,
        /// `x-request-id`.
        pub request_id: Option<HeaderSwitch>,
        /// `server`.
        pub server: Option<ServerHeader>,
        /// `x-envoy-attempt-count`.
        pub attempt_count: Option<HeaderSwitch>,
        /// Other `x-envoy-` headers.
        pub envoy_debug_headers: Option<HeaderSwitch>,
        /// Istio's metadata exchange headers.
        pub metadata_exchange_headers: Option<MetadataExchangeHeaders>,
        /// Whether HTTP/1.1 headers keep their case.
        pub preserve_http1_header_case: Option<bool>,
        /// `x-forwarded-host`.
        pub x_forwarded_host: Option<OptIn>,
        /// `x-forwarded-port`.
        pub x_forwarded_port: Option<OptIn>,
    }

    /// Turns a header off.
    pub struct HeaderSwitch {
        /// True for off.
        pub disabled: Option<bool>,
    }

    /// Turns a header on.
    pub struct OptIn {
        /// True for on.
        pub enabled: Option<bool>,
    }

    /// The `server` header.
    pub struct ServerHeader {
        /// True for off.
        pub disabled: Option<bool>,
        /// Its value; empty means `istio-envoy`.
        pub value: String,
    }

    /// What `x-forwarded-client-cert` says.
    pub struct SetCurrentClientCertDetails {
        /// The subject.
        pub subject: Option<bool>,
        /// The certificate.
        pub cert: Option<bool>,
        /// The chain.
        pub chain: Option<bool>,
        /// DNS names.
        pub dns: Option<bool>,
        /// URIs.
        pub uri: Option<bool>,
    }

    /// When metadata exchange headers are sent.
    pub struct MetadataExchangeHeaders {
        /// To whom.
        pub mode: Option<MetadataExchangeMode>,
    }

    /// Buffers and timeouts of listeners and clusters.
    pub struct ConnectionSettings {
        /// How much a listener buffers per connection.
        pub listener_per_connection_buffer_limit_bytes: Option<u32>,
        /// How much a cluster buffers per connection.
        pub cluster_per_connection_buffer_limit_bytes: Option<u32>,
        /// How long an HTTP connection may be idle.
        pub http_idle_timeout: Option<String>,
        /// How long an HTTP connection may live.
        pub http_max_connection_duration: Option<String>,
        /// How long an HTTP connection is drained.
        pub http_drain_timeout: Option<String>,
        /// How long a request may take to arrive.
        pub http_request_timeout: Option<String>,
        /// How long a request's headers may take to arrive.
        pub http_request_headers_timeout: Option<String>,
        /// How long a stream may be idle.
        pub http_stream_idle_timeout: Option<String>,
        /// How long a stream may live.
        pub http_max_stream_duration: Option<String>,
        /// How many streams an HTTP/2 connection may carry.
        pub http_max_concurrent_streams: Option<u32>,
        /// HTTP/2's window of a stream.
        pub http2_initial_stream_window_size: Option<u32>,
        /// HTTP/2's window of a connection.
        pub http2_initial_connection_window_size: Option<u32>,
        /// What happens to headers with underscores.
        pub http_headers_with_underscores_action: Option<String>,
        /// Whether slashes in paths are merged.
        pub http_merge_slashes: Option<bool>,
        /// What happens to paths with escaped slashes.
        pub http_path_with_escaped_slashes_action: Option<String>,
        /// How many connections a listener takes.
        pub listener_connection_limit: Option<u32>,
    }
}

open_enum! {
    /// How inbound traffic gets to the proxy.
    pub enum InterceptionMode {
        /// By iptables `REDIRECT`.
        Redirect = "REDIRECT",
        /// By iptables `TPROXY`.
        Tproxy = "TPROXY",
        /// Not at all.
        None = "NONE",
    }

    /// What happens to the client-certificate header.
    pub enum ForwardClientCertDetails {
        /// Not said.
        Undefined = "UNDEFINED",
        /// It is removed.
        Sanitize = "SANITIZE",
        /// It is passed on if the client uses mutual TLS.
        ForwardOnly = "FORWARD_ONLY",
        /// The client's certificate is added to it.
        AppendForward = "APPEND_FORWARD",
        /// It is replaced by the client's certificate.
        SanitizeSet = "SANITIZE_SET",
        /// It is passed on.
        AlwaysForwardOnly = "ALWAYS_FORWARD_ONLY",
    }

    /// To whom metadata exchange headers are sent.
    pub enum MetadataExchangeMode {
        /// To everybody.
        Undefined = "UNDEFINED",
        /// Inside of the mesh only.
        InMesh = "IN_MESH",
    }
}

/// Istio's defaults (row MC7 of its behaviour).
pub(super) fn default_values() -> Value {
    json!({
        "configPath": "./etc/istio/proxy",
        "binaryPath": "/usr/local/bin/envoy",
        "serviceCluster": "istio-proxy",
        "drainDuration": "45s",
        "terminationDrainDuration": "5s",
        "proxyAdminPort": 15000,
        "controlPlaneAuthPolicy": "MUTUAL_TLS",
        "discoveryAddress": "istiod.istio-system.svc:15012",
        "statNameLength": 189,
        "statusPort": 15020,
    })
}

impl ProxyConfig {
    /// Merges layers over this configuration; later ones win.
    ///
    /// # Errors
    /// If a field has the wrong type.
    pub fn with<'a>(&self, layers: impl IntoIterator<Item = &'a Value>) -> Result<Self, serde_json::Error> {
        let mut merged = serde_json::to_value(self)?;
        for layer in layers {
            merge(&mut merged, layer);
        }
        serde_json::from_value(merged)
    }

    /// Returns the fields that differ from Istio's defaults.
    pub fn changed(&self) -> Value {
        let Ok(Value::Object(mut fields)) = serde_json::to_value(self) else { return json!({}) };
        let plain = serde_json::to_value(Self::default()).unwrap_or_default();
        let defaults = default_values();
        fields.retain(|name, value| {
            let default = defaults.get(name).or_else(|| plain.get(name));
            default != Some(value)
        });
        // What is not set means the same.
        if fields.get("interceptionMode").is_some_and(|mode| mode == "REDIRECT") {
            fields.remove("interceptionMode");
        }
        Value::Object(fields)
    }
}

/// Merges field by field, `proxyMetadata` key by key.
pub(super) fn merge(slot: &mut Value, value: &Value) {
    let metadata = slot.get("proxyMetadata").cloned();
    merge_fields(slot, value);
    if let (Some(mut metadata), Some(overlay)) = (metadata, value.get("proxyMetadata")) {
        merge_fields(&mut metadata, overlay);
        slot["proxyMetadata"] = metadata;
    }
}
