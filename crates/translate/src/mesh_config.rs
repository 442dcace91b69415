//! MeshConfig.

use crate::context::{Context, DefaultExportTo, short_name_suffix};
use crate::discovery;
use crate::http_route::retries;
use crate::parse::{duration, port, positive_duration};
use crate::report::{At, Report, Translated};
use crate::server_tls::cipher_suites;
use crate::traffic_policy::{client_tls, connection_pool, locality_lb, outlier_detection, tcp_keepalive};
use crate::virtual_service::{Scope, destination, unknown};
use k8s_api::mesh_config as api;
use model::destination_rule::{ClientTls, ClientTlsMode, H2Upgrade, LocalityLb};
use model::gateway::TlsVersion;
use model::mesh_config::{PathNormalization, TlsDefaults};
use model::sidecar::{OutboundMode, OutboundTrafficPolicy};
use model::{Hostname, Kind, MeshConfig, Namespace, ObjectKey, ProxySettings, Str};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// The mesh-wide settings, and what they mean for translating objects.
#[derive(Clone, Debug, PartialEq)]
pub struct Mesh {
    /// The settings that compilation depends on.
    pub config: MeshConfig,
    /// The context of all objects.
    pub context: Context,
}

/// Translates the settings of a mesh whose DNS domain and cluster are given: all of it, or nothing if any part is
/// refused. Which of the set fields have no effect yet is [`api::fields_not_read`]'s to say.
pub fn mesh_config(domain: &Str, cluster: &Str, object: &api::MeshConfig) -> Translated<Mesh> {
    let root_namespace = Namespace::new(object.root_namespace.as_str());
    let report = Report::new(ObjectKey::new(Kind::ConfigMap, object.root_namespace.as_str(), "istio"));
    let at = report.at("mesh");
    let context = Context {
        domain: domain.clone(),
        short_name_suffix: short_name_suffix(domain),
        root_namespace: root_namespace.clone(),
        trust_domain: object.trust_domain.as_str().into(),
        cluster: cluster.clone(),
        default_export_to: DefaultExportTo {
            service: texts(&object.default_service_export_to),
            virtual_service: texts(&object.default_virtual_service_export_to),
            destination_rule: texts(&object.default_destination_rule_export_to),
        },
        discovery: discovery::selectors(&at.field("discoverySelectors"), &object.discovery_selectors),
        private_service_entries: service_entries_are_private(
            &at.field("serviceEntryVisibility"),
            object.service_entry_visibility.as_ref(),
        ),
    };
    let default = MeshConfig::default();
    let at_proxy = at.field("defaultConfig");
    let policy = object.default_traffic_policy.as_ref();
    let at_policy = at.field("defaultTrafficPolicy");
    let config = MeshConfig {
        domain: domain.clone(),
        cluster: cluster.clone(),
        root_namespace,
        trust_domain: object.trust_domain.as_str().into(),
        trust_domain_aliases: texts(&object.trust_domain_aliases),
        proxy_listen_port: listen_port(&at, "proxyListenPort", object.proxy_listen_port),
        proxy_inbound_listen_port: listen_port(
            &at,
            "proxyInboundListenPort",
            object.proxy_inbound_listen_port,
        ),
        proxy_http_port: object.proxy_http_port,
        connect_timeout: positive(&at, "connectTimeout", &object.connect_timeout, default.connect_timeout),
        protocol_detection_timeout: at
            .field("protocolDetectionTimeout")
            .check(duration(&object.protocol_detection_timeout))
            .unwrap_or_default(),
        dns_refresh_rate: positive(&at, "dnsRefreshRate", &object.dns_refresh_rate, default.dns_refresh_rate),
        tcp_keepalive: object
            .tcp_keepalive
            .as_ref()
            .map(|given| tcp_keepalive(&at.field("tcpKeepalive"), given)),
        enable_auto_mtls: object.enable_auto_mtls,
        outbound_traffic_policy: outbound(
            &at.field("outboundTrafficPolicy"),
            &context,
            &object.outbound_traffic_policy,
        ),
        dynamic_dns_tls: dynamic_dns_tls(&at.field("outboundTrafficPolicy"), &object.outbound_traffic_policy),
        inbound_passthrough: inbound(&at.field("inboundTrafficPolicy"), &object.inbound_traffic_policy),
        locality_lb: object
            .locality_lb_setting
            .as_ref()
            .map_or_else(LocalityLb::default, |given| locality_lb(&at.field("localityLbSetting"), given)),
        h2_upgrade: h2_upgrade(&at.field("h2UpgradePolicy"), &object.h2_upgrade_policy),
        default_http_retry: object
            .default_http_retry_policy
            .as_ref()
            .map(|given| retries(&at.field("defaultHttpRetryPolicy"), given)),
        default_inbound_http_retry: object
            .default_inbound_http_retry_policy
            .as_ref()
            .map(|given| retries(&at.field("defaultInboundHttpRetryPolicy"), given)),
        default_connection_pool: policy
            .and_then(|policy| policy.connection_pool.as_ref())
            .map(|pool| connection_pool(&at_policy.field("connectionPool"), pool)),
        default_outlier_detection: policy
            .and_then(|policy| policy.outlier_detection.as_ref())
            .map(|outlier| outlier_detection(&at_policy.field("outlierDetection"), outlier)),
        outbound_cluster_stat_name: object.outbound_cluster_stat_name.as_str().into(),
        inbound_cluster_stat_name: object.inbound_cluster_stat_name.as_str().into(),
        path_normalization: path_normalization(
            &at.field("pathNormalization"),
            object.path_normalization.as_ref(),
        ),
        access_log_file: object.access_log_file.as_str().into(),
        access_log_format: object.access_log_format.as_str().into(),
        access_log_json: access_log_json(&at.field("accessLogEncoding"), &object.access_log_encoding),
        listener_log: !object.disable_envoy_listener_log,
        tls_defaults: tls_defaults(&at.field("tlsDefaults"), object.tls_defaults.as_ref()),
        mesh_tls: mesh_tls(&at.field("meshMTLS"), object.mesh_mtls.as_ref()),
        cluster_local: cluster_local(&object.service_settings),
        proxy: Arc::new(proxy_settings(&at_proxy, &object.default_config)),
        drain_duration: positive(
            &at_proxy,
            "drainDuration",
            &object.default_config.drain_duration,
            default.drain_duration,
        ),
    };
    report.all_or_nothing(Mesh { config, context })
}

fn texts(given: &[String]) -> Vec<Str> {
    given.iter().map(|text| Str::from(text.as_str())).collect()
}

fn listen_port(at: &At<'_>, field: &str, given: u16) -> u16 {
    at.field(field).check(port(given.into())).unwrap_or_default()
}

fn positive(at: &At<'_>, field: &str, given: &str, default: Duration) -> Duration {
    at.field(field).check(positive_duration(given)).unwrap_or(default)
}

fn outbound(at: &At<'_>, context: &Context, given: &api::MeshOutboundTrafficPolicy) -> OutboundTrafficPolicy {
    let at_mode = at.field("mode");
    let mode = match &given.mode {
        // An empty policy is the strict one.
        None | Some(api::MeshOutboundMode::RegistryOnly) => OutboundMode::RegistryOnly,
        Some(api::MeshOutboundMode::AllowAny) => OutboundMode::AllowAny,
        Some(api::MeshOutboundMode::AllowAnyDynamicDns) => OutboundMode::AllowAnyDynamicDns,
        Some(api::MeshOutboundMode::Other(value)) => {
            unknown(&at_mode, value, api::MeshOutboundMode::VALUES);
            OutboundMode::RegistryOnly
        }
    };
    let scope = Scope {
        context,
        namespace: context.root_namespace.as_str(),
        is_delegate: false,
        has_gateway: false,
        hosts: &[],
    };
    let at_proxy = at.field("egressProxy");
    let egress_proxy = given.egress_proxy.as_ref().map(|proxy| destination(&at_proxy, &scope, Some(proxy)));
    if egress_proxy.is_some() && mode != OutboundMode::AllowAny {
        at_proxy.warn("has no effect: only mode ALLOW_ANY sends unknown traffic to a proxy");
    }
    OutboundTrafficPolicy { mode, egress_proxy: egress_proxy.filter(|_| mode == OutboundMode::AllowAny) }
}

/// Translates TLS towards names in requests. There is no service here whose mode or secret could be meant.
fn dynamic_dns_tls(at: &At<'_>, given: &api::MeshOutboundTrafficPolicy) -> Option<ClientTls> {
    let tls = given.tls.as_ref()?;
    let at_tls = at.field("tls");
    if given.mode != Some(api::MeshOutboundMode::AllowAnyDynamicDns) {
        at_tls.warn("has no effect: only mode ALLOW_ANY_DYNAMIC_DNS opens connections of its own");
        return None;
    }
    let tls = client_tls(&at_tls, tls);
    if tls.credential_name.as_ref().is_some_and(|name| !name.starts_with("configmap://")) {
        at_tls.field("credentialName").reject("cannot be used: sidecars get no Secrets; name files instead");
    }
    match tls.mode {
        ClientTlsMode::Disable => None,
        ClientTlsMode::Simple | ClientTlsMode::Mutual => Some(tls),
        ClientTlsMode::IstioMutual => {
            at_tls.field("mode").reject("ISTIO_MUTUAL cannot be used with hosts outside of the mesh");
            None
        }
    }
}

fn inbound(at: &At<'_>, given: &api::InboundTrafficPolicy) -> bool {
    match &given.mode {
        None | Some(api::InboundMode::Passthrough) => true,
        Some(api::InboundMode::Localhost) => false,
        Some(api::InboundMode::Other(value)) => {
            unknown(&at.field("mode"), value, api::InboundMode::VALUES);
            true
        }
    }
}

fn h2_upgrade(at: &At<'_>, given: &api::MeshH2UpgradePolicy) -> H2Upgrade {
    match given {
        api::MeshH2UpgradePolicy::DoNotUpgrade => H2Upgrade::Default,
        api::MeshH2UpgradePolicy::Upgrade => H2Upgrade::Upgrade,
        api::MeshH2UpgradePolicy::Other(value) => {
            unknown(at, value, api::MeshH2UpgradePolicy::VALUES);
            H2Upgrade::Default
        }
    }
}

fn path_normalization(at: &At<'_>, given: Option<&api::PathNormalization>) -> PathNormalization {
    match given.and_then(|given| given.normalization.as_ref()) {
        None | Some(api::NormalizationType::Default) => PathNormalization::Default,
        Some(api::NormalizationType::None) => PathNormalization::None,
        Some(api::NormalizationType::Base) => PathNormalization::Base,
        Some(api::NormalizationType::MergeSlashes) => PathNormalization::MergeSlashes,
        Some(api::NormalizationType::DecodeAndMergeSlashes) => PathNormalization::DecodeAndMergeSlashes,
        Some(api::NormalizationType::Other(value)) => {
            unknown(&at.field("normalization"), value, api::NormalizationType::VALUES);
            PathNormalization::Default
        }
    }
}

fn access_log_json(at: &At<'_>, given: &api::AccessLogEncoding) -> bool {
    match given {
        api::AccessLogEncoding::Text => false,
        api::AccessLogEncoding::Json => true,
        api::AccessLogEncoding::Other(value) => {
            unknown(at, value, api::AccessLogEncoding::VALUES);
            false
        }
    }
}

fn tls_defaults(at: &At<'_>, given: Option<&api::TlsConfig>) -> TlsDefaults {
    let Some(given) = given else { return TlsDefaults::default() };
    TlsDefaults {
        min_version: match &given.min_protocol_version {
            None | Some(api::MeshTlsProtocol::Auto) => TlsVersion::Auto,
            Some(api::MeshTlsProtocol::V1_2) => TlsVersion::V1_2,
            Some(api::MeshTlsProtocol::V1_3) => TlsVersion::V1_3,
            Some(api::MeshTlsProtocol::Other(value)) => {
                unknown(&at.field("minProtocolVersion"), value, api::MeshTlsProtocol::VALUES);
                TlsVersion::Auto
            }
        },
        cipher_suites: cipher_suites(&at.field("cipherSuites"), &given.cipher_suites),
        ecdh_curves: texts(&given.ecdh_curves),
    }
}

fn mesh_tls(at: &At<'_>, given: Option<&api::TlsConfig>) -> TlsDefaults {
    if given.is_some_and(|given| !given.ecdh_curves.is_empty()) {
        at.field("ecdhCurves").reject("cannot be set for TLS between workloads of the mesh");
    }
    tls_defaults(at, given)
}

fn cluster_local(given: &[api::ServiceSettings]) -> Vec<(Hostname, bool)> {
    let of = |settings: &api::ServiceSettings| {
        let is_local = settings.settings.as_ref().is_some_and(|settings| settings.cluster_local);
        let hosts = settings.hosts.iter().map(move |host| (Hostname::new(host.as_str()), is_local));
        hosts.collect::<Vec<_>>()
    };
    given.iter().flat_map(of).collect()
}

/// Translates the settings of proxies that bring none of their own.
fn proxy_settings(at: &At<'_>, given: &api::ProxyConfig) -> ProxySettings {
    let json = serde_json::to_value(given).unwrap_or_default();
    let get = |path: &str| match json.pointer(&format!("/{}", path.replace('.', "/")))? {
        Value::Object(_) => Some(String::new()),
        Value::String(text) => Some(text.clone()),
        Value::Null | Value::Array(_) => None,
        other => Some(other.to_string()),
    };
    let mut refused = Vec::new();
    let settings = ProxySettings::read(&get, &mut |path, reason| refused.push((path.to_owned(), reason)));
    for (path, reason) in refused {
        at.field(&path).reject(reason);
    }
    let exchange =
        given.proxy_headers.as_ref().and_then(|headers| headers.metadata_exchange_headers.as_ref());
    if exchange.is_some() {
        at.field("proxyHeaders.metadataExchangeHeaders")
            .warn("has no effect: stock Envoy does not exchange metadata in headers");
    }
    let connection = given.connection_settings.as_ref();
    for (field, is_set) in [
        (
            "clusterPerConnectionBufferLimitBytes",
            connection.is_some_and(|given| given.cluster_per_connection_buffer_limit_bytes.is_some()),
        ),
        (
            "listenerConnectionLimit",
            connection.is_some_and(|given| given.listener_connection_limit.is_some()),
        ),
    ] {
        if is_set {
            at.field(&format!("connectionSettings.{field}")).warn("has no effect, as in what Istio sends");
        }
    }
    settings
}

/// Returns whether ServiceEntries are for their own namespaces at most. Which values there are besides is not documented.
fn service_entries_are_private(at: &At<'_>, given: Option<&Value>) -> bool {
    let Some(Value::Object(fields)) = given else { return false };
    for name in
        fields.keys().filter(|name| !["defaultVisibility", "applyToSidecars"].contains(&name.as_str()))
    {
        at.field(name).warn("is not known and has no effect");
    }
    let visibility = fields.get("defaultVisibility").and_then(Value::as_str).unwrap_or_default();
    if !matches!(visibility, "" | "NAMESPACE" | "PUBLIC") {
        at.field("defaultVisibility").warn(format!("{visibility:?} is not known and has no effect"));
    }
    visibility == "NAMESPACE" && fields.get("applyToSidecars").and_then(Value::as_bool) == Some(true)
}
