//! The static clusters: the control plane, the agent's SDS server and status port, and Envoy's own metrics.

use super::wire::{self, duration, u32_value};
use super::{SDS_CLUSTER, SDS_SOCKET, XDS_CLUSTER};
use crate::config::{Config, Families, Roots, ServerTrust};
use crate::names;
use proto::envoy::config::bootstrap::v3::{ClusterManager, cluster_manager};
use proto::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, DnsLookupFamily};
use proto::envoy::config::cluster::v3::{CircuitBreakers, Cluster, UpstreamConnectionOptions};
use proto::envoy::config::core::v3::api_config_source::ApiType;
use proto::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use proto::envoy::config::core::v3::{
    Address, ApiConfigSource, ApiVersion, ConfigSource, Http2ProtocolOptions, KeepaliveSettings,
    RoutingPriority, TcpKeepalive, TransportSocket, transport_socket,
};
use proto::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints};
use proto::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use proto::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use proto::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, SdsSecretConfig, SubjectAltNameMatcher, TlsParameters,
    UpstreamTlsContext,
};
use proto::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use proto::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use proto::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions,
};
use proto::envoy::r#type::matcher::v3::StringMatcher;
use proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Returns the static clusters.
pub(super) fn all(config: &Config) -> Vec<Cluster> {
    let loopback = config.node.families.loopback();
    vec![
        local("prometheus_stats", wire::address(loopback, config.ports.admin)),
        local("agent", wire::address(loopback, config.ports.status)),
        Cluster {
            connect_timeout: duration(Duration::from_secs(1)),
            typed_extension_protocol_options: http2(None),
            ..local(SDS_CLUSTER, wire::pipe(SDS_SOCKET))
        },
        control_plane(config),
    ]
}

/// Returns what is said about clusters as a whole, if anything is.
pub(super) fn manager(config: &Config) -> Option<ClusterManager> {
    let path = &config.envoy.outlier_log_path;
    let outlier_detection =
        Some(cluster_manager::OutlierDetection { event_log_path: path.clone(), ..Default::default() });
    (!path.is_empty()).then(|| ClusterManager { outlier_detection, ..ClusterManager::default() })
}

fn local(name: &str, address: Address) -> Cluster {
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        connect_timeout: duration(Duration::from_millis(250)),
        load_assignment: Some(assignment(name, address)),
        ..Cluster::default()
    }
}

fn assignment(cluster: &str, address: Address) -> ClusterLoadAssignment {
    let endpoint = Endpoint { address: Some(address), ..Endpoint::default() };
    let endpoint =
        LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(endpoint)), ..LbEndpoint::default() };
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![endpoint],
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    }
}

fn http2(keepalive: Option<KeepaliveSettings>) -> BTreeMap<String, proto::google::protobuf::Any> {
    let http2 = Http2ProtocolOptions { connection_keepalive: keepalive, ..Http2ProtocolOptions::default() };
    let explicit = ExplicitHttpConfig { protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(http2)) };
    let options = HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)),
        ..HttpProtocolOptions::default()
    };
    BTreeMap::from([(HTTP_OPTIONS.to_owned(), proto::any(&options))])
}

/// Envoy speaks to the control plane itself: an agent that is restarted, or busy, takes nothing away from it.
#[expect(deprecated, reason = "what replaces `respect_dns_ttl` is an extension that older Envoys lack")]
fn control_plane(config: &Config) -> Cluster {
    let server = &config.discovery;
    let is_address = server.host.parse::<IpAddr>().is_ok();
    let kind = if is_address { DiscoveryType::Static } else { DiscoveryType::StrictDns };
    let lookup = match config.node.families {
        Families::V4 => DnsLookupFamily::V4Only,
        Families::V6 => DnsLookupFamily::V6Only,
        Families::V4AndV6 | Families::V6AndV4 => DnsLookupFamily::All,
    };
    let limits = |priority: RoutingPriority| Thresholds {
        priority: priority.into(),
        max_connections: u32_value(100_000),
        max_pending_requests: u32_value(100_000),
        max_requests: u32_value(100_000),
        ..Thresholds::default()
    };
    // A control plane that is gone without a word is noticed within half a minute.
    let keepalive = KeepaliveSettings {
        interval: duration(Duration::from_secs(20)),
        timeout: duration(Duration::from_secs(10)),
        ..KeepaliveSettings::default()
    };
    Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind.into())),
        connect_timeout: duration(Duration::from_secs(5)),
        dns_lookup_family: if is_address { DnsLookupFamily::Auto } else { lookup }.into(),
        respect_dns_ttl: !is_address,
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![limits(RoutingPriority::Default), limits(RoutingPriority::High)],
            ..CircuitBreakers::default()
        }),
        upstream_connection_options: Some(UpstreamConnectionOptions {
            tcp_keepalive: Some(TcpKeepalive { keepalive_time: u32_value(300), ..TcpKeepalive::default() }),
            ..UpstreamConnectionOptions::default()
        }),
        typed_extension_protocol_options: http2(Some(keepalive)),
        transport_socket: server.trust.as_ref().map(tls),
        ..local(XDS_CLUSTER, wire::host_address(&server.host, server.port))
    }
}

fn tls(trust: &ServerTrust) -> TransportSocket {
    let is_address = trust.name.parse::<IpAddr>().is_ok();
    let name = StringMatcher {
        match_pattern: Some(MatchPattern::Exact(trust.name.clone())),
        ..StringMatcher::default()
    };
    let kind = if is_address { SanType::IpAddress } else { SanType::Dns };
    let accepted = CertificateValidationContext {
        match_typed_subject_alt_names: vec![SubjectAltNameMatcher {
            san_type: kind.into(),
            matcher: Some(name),
            ..SubjectAltNameMatcher::default()
        }],
        ..CertificateValidationContext::default()
    };
    let roots = match &trust.roots {
        Roots::System => names::SYSTEM_ROOTS,
        Roots::File { .. } => names::CONTROL_PLANE_ROOTS,
    };
    let validation = CombinedCertificateValidationContext {
        default_validation_context: Some(accepted),
        validation_context_sds_secret_config: Some(secret(roots)),
        ..CombinedCertificateValidationContext::default()
    };
    let parameters = TlsParameters {
        tls_minimum_protocol_version: TlsProtocol::TlSv12.into(),
        tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
        ..TlsParameters::default()
    };
    let context = UpstreamTlsContext {
        sni: if is_address { String::new() } else { trust.name.clone() },
        common_tls_context: Some(CommonTlsContext {
            tls_params: Some(parameters),
            alpn_protocols: vec!["h2".to_owned()],
            tls_certificate_sds_secret_configs: vec![secret(names::WORKLOAD_CERTIFICATE)],
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(validation)),
            ..CommonTlsContext::default()
        }),
        // No tickets: a connection after a renewal is authenticated with the new certificate.
        max_session_keys: u32_value(0),
        ..UpstreamTlsContext::default()
    };
    TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(proto::any(&context))),
    }
}

/// A secret of the agent. Envoy waits for it as long as it takes.
fn secret(name: &str) -> SdsSecretConfig {
    let source = ApiConfigSource {
        api_type: ApiType::Grpc.into(),
        transport_api_version: ApiVersion::V3.into(),
        set_node_on_first_message_only: true,
        grpc_services: vec![wire::grpc_service(SDS_CLUSTER)],
        ..ApiConfigSource::default()
    };
    SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ConfigSource {
            config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(source)),
            initial_fetch_timeout: duration(Duration::ZERO),
            resource_api_version: ApiVersion::V3.into(),
            ..ConfigSource::default()
        }),
    }
}
