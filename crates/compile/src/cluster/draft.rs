//! A cluster that is being put together.

use crate::tls::{METADATA_EXCHANGE, metadata_exchange};
use crate::wire;
use model::destination_rule::ProxyProtocol;
use prost::Message;
use proto::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, TransportSocketMatch,
};
use proto::envoy::config::cluster::v3::{Cluster, Filter};
use proto::envoy::config::common::matcher::v3::MatchPredicate;
use proto::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as CommonOptions, Metadata,
    ProxyProtocolConfig, TransportSocket, UpstreamHttpProtocolOptions, proxy_protocol_config,
};
use proto::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use proto::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use proto::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use proto::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, OutlierDetection, UpstreamProtocolOptions, UseDownstreamHttpConfig,
};
use proto::google::protobuf::Value;
use proto::resource::{Body, Needs, Resource, ResourceType};
use std::sync::Arc;

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// What is spoken to endpoints.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Protocol {
    /// HTTP/1.1, or no HTTP at all.
    #[default]
    Default,
    /// HTTP/2.
    Http2(Box<Http2ProtocolOptions>),
    /// What the client speaks.
    Downstream,
}

/// The options of HTTP, which Envoy keeps in an extension.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Http {
    pub(super) protocol: Protocol,
    pub(super) common: Option<CommonOptions>,
    pub(super) upstream: Option<UpstreamHttpProtocolOptions>,
    pub(super) error_matcher: Option<MatchPredicate>,
    /// Whether HTTP/1.1 headers keep their case.
    pub(super) preserve_case: bool,
}

impl Http {
    pub(super) fn common_mut(&mut self) -> &mut CommonOptions {
        self.common.get_or_insert_default()
    }

    pub(super) fn is_http2(&self) -> bool {
        matches!(self.protocol, Protocol::Http2(_))
    }

    /// Returns the message; nothing if every option has its default.
    fn into_message(self) -> Option<HttpProtocolOptions> {
        let Self { protocol, common, upstream, error_matcher, preserve_case } = self;
        let plain = common.is_none() && upstream.is_none() && error_matcher.is_none() && !preserve_case;
        let http1 = || Http1ProtocolOptions {
            header_key_format: preserve_case.then(wire::preserve_case),
            ..Http1ProtocolOptions::default()
        };
        let explicit = |config| {
            UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) })
        };
        let protocol = match protocol {
            Protocol::Default if plain => return None,
            Protocol::Default => explicit(ProtocolConfig::HttpProtocolOptions(http1())),
            Protocol::Http2(options) => explicit(ProtocolConfig::Http2ProtocolOptions(*options)),
            Protocol::Downstream => {
                UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                    http_protocol_options: Some(http1()),
                    http2_protocol_options: Some(Http2ProtocolOptions::default()),
                    http3_protocol_options: None,
                })
            }
        };
        Some(HttpProtocolOptions {
            common_http_protocol_options: common,
            upstream_http_protocol_options: upstream,
            outlier_detection: error_matcher
                .map(|error_matcher| OutlierDetection { error_matcher: Some(error_matcher) }),
            upstream_protocol_options: Some(protocol),
            ..HttpProtocolOptions::default()
        })
    }
}

/// A cluster and what goes with it.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) cluster: Cluster,
    pub(super) http: Http,
    pub(super) needs: Needs,
}

impl Draft {
    pub(super) fn new(name: &str, discovery: DiscoveryType) -> Self {
        let cluster = Cluster {
            name: name.to_owned(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(discovery as i32)),
            ..Cluster::default()
        };
        Self { cluster, http: Http::default(), needs: Needs::default() }
    }

    /// Sets the name of the statistics, ended by the delimiter that agents' rules look for.
    pub(super) fn set_stat_name(&mut self, name: &str) {
        self.cluster.alt_stat_name = format!("{name};");
    }

    /// Makes the cluster ask for its endpoints, whose name is its own.
    pub(super) fn ask_for_endpoints(&mut self) {
        let name = self.cluster.name.clone();
        self.needs.assignments.insert(name.as_str().into());
        self.cluster.eds_cluster_config =
            Some(EdsClusterConfig { eds_config: Some(wire::ads()), service_name: name });
    }

    /// Adds a field to Istio's own metadata.
    pub(super) fn annotate(&mut self, field: &str, value: Value) {
        let metadata = self.cluster.metadata.get_or_insert_with(Metadata::default);
        let fields = metadata.filter_metadata.entry(wire::ISTIO_METADATA.to_owned()).or_default();
        fields.fields.insert(field.to_owned(), value);
    }

    /// Has names in requests checked against certificates if nothing was said about it. Envoy demands it of clusters
    /// that resolve those names and have options of HTTP, also in plain text, where there is no certificate.
    pub(super) fn check_names_of_requests(&mut self) {
        if self.http != Http::default() && self.cluster.transport_socket.is_none() {
            self.http.upstream = Some(UpstreamHttpProtocolOptions {
                auto_sni: true,
                auto_san_validation: true,
                ..UpstreamHttpProtocolOptions::default()
            });
        }
    }

    /// Adds the filter that swaps workload metadata where the endpoint agreed to it. Stock Envoy has none: see
    /// [`crate::tls::exchanges_metadata`].
    pub(super) fn exchange_metadata(&mut self) {
        self.cluster.filters.push(Filter {
            name: METADATA_EXCHANGE.to_owned(),
            typed_config: Some(proto::any(&metadata_exchange())),
            ..Filter::default()
        });
    }

    /// Puts every socket, and raw ones where there is none, behind the PROXY protocol.
    pub(super) fn wrap_in_proxy_protocol(&mut self, version: ProxyProtocol) {
        let wrap = |inner: TransportSocket| {
            let version = match version {
                ProxyProtocol::V1 => proxy_protocol_config::Version::V1,
                ProxyProtocol::V2 => proxy_protocol_config::Version::V2,
            };
            let config = ProxyProtocolUpstreamTransport {
                config: Some(ProxyProtocolConfig {
                    version: version as i32,
                    ..ProxyProtocolConfig::default()
                }),
                transport_socket: Some(inner),
                ..ProxyProtocolUpstreamTransport::default()
            };
            crate::tls::socket("envoy.transport_sockets.upstream_proxy_protocol", proto::any(&config))
        };
        let cluster = &mut self.cluster;
        if cluster.transport_socket_matches.is_empty() {
            let inner = cluster.transport_socket.take();
            let inner = inner.unwrap_or_else(|| crate::tls::raw_buffer("raw_buffer"));
            cluster.transport_socket = Some(wrap(inner));
        }
        for TransportSocketMatch { transport_socket, .. } in &mut cluster.transport_socket_matches {
            *transport_socket = transport_socket.take().map(wrap);
        }
    }

    /// Returns the resource.
    pub(super) fn finish(self) -> Resource {
        let Self { mut cluster, http, needs } = self;
        if let Some(options) = http.into_message() {
            let options = proto::any(&options);
            cluster.typed_extension_protocol_options.insert(HTTP_OPTIONS.to_owned(), options);
        }
        let name: Arc<str> = cluster.name.as_str().into();
        let body = Body::Whole(cluster.encode_to_vec().into());
        Resource::new(ResourceType::Cluster, name, body, needs)
    }
}
