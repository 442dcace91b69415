//! MeshConfig: settings of the whole mesh, with Istio's defaults and Istio's merge rules.
//!
//! ```text
//! defaults ─▶ shared ConfigMap ─▶ own ConfigMap ─▶ MeshConfig (every field effective)
//!                      └ each layer: unknown fields, and fields that Weft does not act on yet
//! ```
//!
//! A layer replaces fields as a whole, with four exceptions: `defaultConfig` is merged field by field (its `proxyMetadata` key by key),
//! `defaultProviders` is merged, `extensionProviders` are appended unless the name exists, and `trustDomainAliases` are united.

mod fields;
mod networks;
mod proxy;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::destination_rule::{
    ClientTlsSettings, ConnectionPoolSettings, LocalityLbSetting, OutlierDetection, TcpKeepalive,
    ZoneAwareLbSetting,
};
use crate::sidecar::OutboundTrafficPolicyMode as SidecarMode;
use crate::virtual_service::{Destination, HttpRetry};
use crate::wire::{Absent, api_type, mesh_type, open_enum};
use crate::yaml::{Warning, YamlError, parse_value};

pub use fields::{FIELDS, Field, Use, field, markdown};
pub use networks::{MeshNetworks, Network, NetworkEndpoints, NetworkGateway};
pub use proxy::{
    ConnectionSettings, ForwardClientCertDetails, GatewayTopology, HeaderSwitch, InterceptionMode,
    MetadataExchangeHeaders, MetadataExchangeMode, OptIn, ProxyConfig, ProxyHeaders, ProxyStatsMatcher,
    RemoteService, ServerHeader, SetCurrentClientCertDetails,
};

mesh_type! {
    /// Settings of the whole mesh. Made by [`MeshConfig::merge`], so that every field has its effective value.
    pub struct MeshConfig {
        /// The port that outbound traffic is captured to.
        pub proxy_listen_port: u16,
        /// The port that inbound traffic is captured to.
        pub proxy_inbound_listen_port: u16,
        /// The port of an HTTP proxy listener; 0 means none.
        pub proxy_http_port: u16,
        /// How long connecting may take.
        pub connect_timeout: String,
        /// How long to wait for a client's first bytes; `0s` means for ever.
        pub protocol_detection_timeout: String,
        /// Keepalive of sockets.
        pub tcp_keepalive: Option<TcpKeepalive>,
        /// The class of Ingress objects to serve.
        pub ingress_class: String,
        /// The Service of the ingress gateway.
        pub ingress_service: String,
        /// Which Ingress objects are served.
        pub ingress_controller_mode: IngressControllerMode,
        /// The `istio` label of the ingress gateway.
        pub ingress_selector: String,
        /// Whether request ids and spans are made.
        pub enable_tracing: bool,
        /// The file for access logs; empty means none.
        pub access_log_file: String,
        /// The format of access logs; empty means Istio's.
        pub access_log_format: String,
        /// How access logs are encoded.
        pub access_log_encoding: AccessLogEncoding,
        /// Sends access logs to `defaultConfig.envoyAccessLogService`.
        pub enable_envoy_access_log_service: bool,
        /// Turns the listeners' own access logs off.
        pub disable_envoy_listener_log: bool,
        /// Settings of proxies that do not say otherwise.
        pub default_config: ProxyConfig,
        /// What happens to outbound traffic for unknown destinations. An empty message means `REGISTRY_ONLY`.
        pub outbound_traffic_policy: MeshOutboundTrafficPolicy,
        /// What happens to inbound traffic for unknown ports.
        pub inbound_traffic_policy: InboundTrafficPolicy,
        /// Where configuration comes from.
        pub config_sources: Vec<ConfigSource>,
        /// Whether mutual TLS is used wherever both sides can.
        pub enable_auto_mtls: bool,
        /// The trust domain of the mesh's identities.
        pub trust_domain: String,
        /// Trust domains that count as the same.
        pub trust_domain_aliases: Vec<String>,
        /// Further roots for traffic inside of the mesh.
        pub ca_certificates: Vec<CertificateData>,
        /// Namespaces that see services without `exportTo`.
        pub default_service_export_to: Vec<String>,
        /// Namespaces that see VirtualServices without `exportTo`.
        pub default_virtual_service_export_to: Vec<String>,
        /// Namespaces that see DestinationRules without `exportTo`.
        pub default_destination_rule_export_to: Vec<String>,
        /// The namespace whose objects apply to the whole mesh.
        pub root_namespace: String,
        /// How localities share the traffic.
        pub locality_lb_setting: Option<LocalityLbSetting>,
        /// Zone-aware routing.
        pub zone_aware_lb_setting: Option<ZoneAwareLbSetting>,
        /// How soon names are resolved again after a failure.
        pub dns_refresh_rate: String,
        /// Whether HTTP/1.1 is upgraded to HTTP/2.
        pub h2_upgrade_policy: MeshH2UpgradePolicy,
        /// A pattern for the statistics of inbound clusters.
        pub inbound_cluster_stat_name: String,
        /// A pattern for the statistics of outbound clusters.
        pub outbound_cluster_stat_name: String,
        /// Deprecated by Istio: certificates to provision.
        pub certificates: Vec<Value>,
        /// Settings of selected services.
        pub service_settings: Vec<ServiceSettings>,
        /// Which services ambient makes visible to other clusters.
        pub service_scope_configs: Vec<ServiceScopeConfig>,
        /// Whether agents merge the metrics of application and proxy.
        pub enable_prometheus_merge: bool,
        /// Deprecated by Istio: whether clients check server certificates by default.
        pub verify_certificate_at_client: Option<bool>,
        /// An external certificate authority.
        pub ca: Option<Ca>,
        /// Providers of telemetry and authorization, by name.
        pub extension_providers: Vec<ExtensionProvider>,
        /// Providers that are used where an object names none.
        pub default_providers: Option<DefaultProviders>,
        /// Namespaces that are looked at; empty means all.
        pub discovery_selectors: Vec<DiscoverySelector>,
        /// How paths are normalised before they are matched.
        pub path_normalization: Option<PathNormalization>,
        /// Retries of routes that say nothing about them.
        pub default_http_retry_policy: Option<HttpRetry>,
        /// Retries towards the application.
        pub default_inbound_http_retry_policy: Option<HttpRetry>,
        /// Connection limits and ejection where no DestinationRule says otherwise.
        pub default_traffic_policy: Option<DefaultTrafficPolicy>,
        /// TLS between workloads of the mesh.
        #[serde(rename = "meshMTLS")]
        pub mesh_mtls: Option<TlsConfig>,
        /// TLS of everything else.
        pub tls_defaults: Option<TlsConfig>,
        /// How long an HBONE connection may be idle.
        pub hbone_idle_timeout: Option<String>,
        /// Who sees ServiceEntries; kept as it is written.
        pub service_entry_visibility: Option<Value>,
    }
}

api_type! {
    /// What happens to outbound traffic for unknown destinations.
    pub struct MeshOutboundTrafficPolicy {
        /// Whether such traffic is allowed; absent means `REGISTRY_ONLY`.
        pub mode: Option<MeshOutboundMode>,
        /// Where such traffic is sent instead.
        pub egress_proxy: Option<Destination>,
        /// TLS towards dynamically resolved destinations.
        pub tls: Option<ClientTlsSettings>,
    }

    /// What happens to inbound traffic for unknown ports.
    pub struct InboundTrafficPolicy {
        /// Where it goes; absent means `PASSTHROUGH`.
        pub mode: Option<InboundMode>,
    }

    /// A source of configuration.
    pub struct ConfigSource {
        /// `k8s://`, `fs:///path` or `xds://host:port`.
        pub address: String,
        /// TLS towards the source.
        pub tls_settings: Option<ClientTlsSettings>,
        /// What is taken from the source.
        pub subscribed_resources: Vec<String>,
    }

    /// A further root certificate.
    pub struct CertificateData {
        /// The certificate itself.
        pub pem: Option<String>,
        /// Where it is fetched from.
        pub spiffe_bundle_url: Option<String>,
        /// Signers that it is for; empty means all.
        pub cert_signers: Vec<String>,
        /// Trust domains that it is for; empty means all.
        pub trust_domains: Vec<String>,
    }

    /// Settings of selected services.
    pub struct ServiceSettings {
        /// The settings.
        pub settings: Option<ClusterLocalSetting>,
        /// The services, with or without a leading wildcard.
        pub hosts: Vec<String>,
    }

    /// Whether a service stays inside of its cluster.
    pub struct ClusterLocalSetting {
        /// True if clients see endpoints of their own cluster only.
        pub cluster_local: bool,
    }

    /// Which services ambient makes visible to other clusters.
    pub struct ServiceScopeConfig {
        /// The services' namespaces.
        pub namespace_selector: Option<DiscoverySelector>,
        /// The services.
        pub services_selector: Option<DiscoverySelector>,
        /// `LOCAL` or `GLOBAL`.
        pub scope: String,
    }

    /// An external certificate authority.
    pub struct Ca {
        /// Its address.
        pub address: String,
        /// TLS towards it.
        pub tls_settings: Option<ClientTlsSettings>,
        /// How long it may take to answer.
        pub request_timeout: Option<String>,
        /// Whether the control plane or the agent talks to it.
        pub istiod_side: Option<bool>,
    }

    /// Providers that are used where an object names none.
    pub struct DefaultProviders {
        /// For traces.
        pub tracing: Vec<String>,
        /// For metrics.
        pub metrics: Vec<String>,
        /// For access logs.
        pub access_logging: Vec<String>,
    }

    /// Selects namespaces by labels: all requirements must hold.
    pub struct DiscoverySelector {
        /// Labels with their values.
        pub match_labels: BTreeMap<String, String>,
        /// Further requirements.
        pub match_expressions: Vec<SelectorRequirement>,
    }

    /// A requirement on one label.
    pub struct SelectorRequirement {
        /// The label.
        pub key: String,
        /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
        pub operator: String,
        /// The values, for `In` and `NotIn`.
        pub values: Vec<String>,
    }

    /// How paths are normalised.
    pub struct PathNormalization {
        /// Which rules are used; absent means `DEFAULT`.
        pub normalization: Option<NormalizationType>,
    }

    /// Connection limits and ejection for every service.
    pub struct DefaultTrafficPolicy {
        /// Connection limits.
        pub connection_pool: Option<ConnectionPoolSettings>,
        /// When an endpoint is taken out for a while.
        pub outlier_detection: Option<OutlierDetection>,
    }

    /// TLS parameters.
    pub struct TlsConfig {
        /// The oldest TLS version.
        pub min_protocol_version: Option<MeshTlsProtocol>,
        /// Key exchange groups.
        pub ecdh_curves: Vec<String>,
        /// Cipher suites up to TLS 1.2.
        pub cipher_suites: Vec<String>,
    }
}

/// A provider of telemetry or authorization. Its settings are kept as they are written.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct ExtensionProvider {
    /// The name that objects refer to.
    pub name: String,
    /// One entry: the provider's type, such as `prometheus` or `envoyExtAuthzGrpc`, with its settings.
    #[serde(flatten)]
    #[schemars(skip)]
    pub settings: BTreeMap<String, Value>,
}

open_enum! {
    /// Which Ingress objects are served.
    pub enum IngressControllerMode {
        /// As `STRICT`.
        Unspecified = "UNSPECIFIED",
        /// None.
        Off = "OFF",
        /// Those of the class and those without a class.
        Default = "DEFAULT",
        /// Those of the class.
        Strict = "STRICT",
    }

    /// How access logs are encoded.
    pub enum AccessLogEncoding {
        /// As text.
        Text = "TEXT",
        /// As JSON.
        Json = "JSON",
    }

    /// Whether outbound traffic for unknown destinations is allowed.
    pub enum MeshOutboundMode {
        /// It is not.
        RegistryOnly = "REGISTRY_ONLY",
        /// It is.
        AllowAny = "ALLOW_ANY",
        /// It is; plain HTTP goes to a host that the proxy resolves.
        AllowAnyDynamicDns = "ALLOW_ANY_DYNAMIC_DNS",
    }

    /// Where inbound traffic for unknown ports goes.
    pub enum InboundMode {
        /// To the address it was sent to.
        Passthrough = "PASSTHROUGH",
        /// To the loopback address.
        Localhost = "LOCALHOST",
    }

    /// Whether HTTP/1.1 is upgraded to HTTP/2.
    pub enum MeshH2UpgradePolicy {
        /// No.
        DoNotUpgrade = "DO_NOT_UPGRADE",
        /// Yes.
        Upgrade = "UPGRADE",
    }

    /// Rules by which paths are normalised.
    pub enum NormalizationType {
        /// As `BASE`.
        Default = "DEFAULT",
        /// None.
        None = "NONE",
        /// RFC 3986.
        Base = "BASE",
        /// Also merges slashes.
        MergeSlashes = "MERGE_SLASHES",
        /// Also decodes escaped slashes first.
        DecodeAndMergeSlashes = "DECODE_AND_MERGE_SLASHES",
    }

    /// The oldest TLS version.
    pub enum MeshTlsProtocol {
        /// TLS 1.2.
        Auto = "TLS_AUTO",
        /// TLS 1.2.
        V1_2 = "TLSV1_2",
        /// TLS 1.3.
        V1_3 = "TLSV1_3",
    }
}

impl Absent for IngressControllerMode {}
impl Absent for AccessLogEncoding {}
impl Absent for MeshH2UpgradePolicy {}
impl Absent for MeshOutboundTrafficPolicy {}
impl Absent for InboundTrafficPolicy {}
impl Absent for ProxyConfig {}

impl MeshOutboundTrafficPolicy {
    /// Returns the mode as a Sidecar would say it, which knows no dynamic names.
    pub fn sidecar_mode(&self) -> SidecarMode {
        match self.mode {
            Some(MeshOutboundMode::AllowAny | MeshOutboundMode::AllowAnyDynamicDns) => SidecarMode::AllowAny,
            _ => SidecarMode::RegistryOnly,
        }
    }
}

/// A mesh configuration with what its author should know.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedMeshConfig {
    /// The effective settings.
    pub config: MeshConfig,
    /// Unknown fields and fields that Weft does not act on yet, each with the text it is in.
    pub warnings: Vec<(String, Warning)>,
}

impl Default for MeshConfig {
    /// Returns Istio's defaults.
    fn default() -> Self {
        DEFAULTS.clone()
    }
}

impl MeshConfig {
    /// Reads YAML texts, each with its origin, and merges them over the defaults; later ones win.
    ///
    /// # Errors
    /// If a text is not YAML or a field has the wrong type. Callers keep the last good configuration.
    pub fn parse(layers: &[(&str, &str)]) -> Result<ParsedMeshConfig, YamlError> {
        let mut values = Vec::new();
        let mut warnings = Vec::new();
        for (origin, text) in layers {
            let parsed = parse_value::<Self>(text, origin)?;
            let not_read = fields::not_read(&parsed.json).into_iter().map(|path| Warning {
                line: parsed.line_of(&path),
                message: "Weft does not act on this field yet".to_owned(),
                path,
            });
            let found = parsed.warnings.iter().cloned().chain(not_read);
            warnings.extend(found.map(|warning| ((*origin).to_owned(), warning)));
            values.push(parsed.json);
        }
        let config = Self::merge(&values).map_err(|error| {
            // Each layer decoded by itself, and merging mixes fields of equal types only.
            YamlError::of_value(layers.last().map_or("", |(origin, _)| origin), &error.to_string())
        })?;
        Ok(ParsedMeshConfig { config, warnings })
    }

    /// Merges layers over the defaults; later ones win.
    ///
    /// # Errors
    /// If a field has the wrong type.
    pub fn merge<'a>(layers: impl IntoIterator<Item = &'a Value>) -> Result<Self, serde_json::Error> {
        let mut merged = default_values();
        for layer in layers {
            if let Value::Object(layer) = layer {
                merge_layer(&mut merged, layer);
            }
        }
        Self::deserialize(Value::Object(merged))
    }
}

/// Returns the paths of set fields, such as `defaultConfig.concurrency`, that Weft does not act on yet.
pub fn fields_not_read(layer: &Value) -> Vec<String> {
    fields::not_read(layer)
}

static DEFAULTS: LazyLock<MeshConfig> = LazyLock::new(|| {
    MeshConfig::deserialize(Value::Object(default_values()))
        .expect("the defaults have the types of the fields: tested")
});

/// Istio's defaults (rows MC1 to MC7 of its behaviour).
fn default_values() -> Map<String, Value> {
    let Value::Object(values) = json!({
        "proxyListenPort": 15001,
        "proxyInboundListenPort": 15006,
        "connectTimeout": "10s",
        "protocolDetectionTimeout": "0s",
        "dnsRefreshRate": "60s",
        "enableTracing": true,
        "accessLogEncoding": "TEXT",
        "enablePrometheusMerge": true,
        "trustDomain": "cluster.local",
        "enableAutoMtls": true,
        "rootNamespace": "istio-system",
        "outboundTrafficPolicy": { "mode": "ALLOW_ANY" },
        "inboundTrafficPolicy": { "mode": "PASSTHROUGH" },
        "localityLbSetting": { "enabled": true },
        "defaultServiceExportTo": ["*"],
        "defaultVirtualServiceExportTo": ["*"],
        "defaultDestinationRuleExportTo": ["*"],
        "ingressClass": "istio",
        "ingressService": "istio-ingressgateway",
        "ingressControllerMode": "STRICT",
        "ingressSelector": "ingressgateway",
        "extensionProviders": [
            { "name": "prometheus", "prometheus": {} },
            { "name": "stackdriver", "stackdriver": {} },
            { "name": "envoy", "envoyFileAccessLog": { "path": "/dev/stdout" } },
        ],
        "defaultConfig": proxy::default_values(),
    }) else {
        unreachable!("the literal above is an object")
    };
    values
}

fn merge_layer(merged: &mut Map<String, Value>, layer: &Map<String, Value>) {
    for (key, value) in layer.iter().filter(|(_, value)| !value.is_null()) {
        let slot = merged.entry(key.clone()).or_insert(Value::Null);
        match key.as_str() {
            "defaultConfig" => proxy::merge(slot, value),
            "defaultProviders" => merge_fields(slot, value),
            "extensionProviders" => merge_providers(slot, value),
            "trustDomainAliases" => merge_set(slot, value),
            _ => *slot = value.clone(),
        }
    }
}

/// Replaces the fields that are set.
fn merge_fields(slot: &mut Value, value: &Value) {
    match (&mut *slot, value) {
        (Value::Object(slot), Value::Object(value)) => {
            let set = value.iter().filter(|(_, value)| !value.is_null());
            slot.extend(set.map(|(key, value)| (key.clone(), value.clone())));
        }
        _ => *slot = value.clone(),
    }
}

/// Replaces providers of equal name where they are, and appends the others.
fn merge_providers(slot: &mut Value, value: &Value) {
    let (Value::Array(slot), Value::Array(value)) = (&mut *slot, value) else {
        *slot = value.clone();
        return;
    };
    for provider in value {
        match slot.iter_mut().find(|existing| existing["name"] == provider["name"]) {
            Some(existing) => *existing = provider.clone(),
            None => slot.push(provider.clone()),
        }
    }
}

fn merge_set(slot: &mut Value, value: &Value) {
    let (Value::Array(slot), Value::Array(value)) = (&mut *slot, value) else {
        *slot = value.clone();
        return;
    };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let union: BTreeSet<String> = slot.iter().chain(value).map(text).collect();
    *slot = union.into_iter().map(Value::from).collect();
}
