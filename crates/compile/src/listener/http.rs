//! HTTP connection managers.

use super::chain::Filters;
use super::{Context, access_log};
use crate::wire;
use model::Protocol;
use model::mesh_config::PathNormalization;
use model::proxy_settings::{
    ClientCertDetails, ConnectionSettings, EscapedSlashes, ForwardClientCert, ProxyHeaders, ServerHeader,
    Underscores,
};
use proto::envoy::config::core::v3::http_protocol_options::HeadersWithUnderscoresAction;
use proto::envoy::config::core::v3::{Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions};
use proto::envoy::config::route::v3::{RouteConfiguration, route, route_action};
use proto::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use proto::envoy::extensions::filters::http::cors::v3::Cors;
use proto::envoy::extensions::filters::http::dynamic_forward_proxy::v3 as dynamic;
use proto::envoy::extensions::filters::http::fault::v3::HttpFault;
use proto::envoy::extensions::filters::http::grpc_stats::v3 as grpc_stats;
use proto::envoy::extensions::filters::http::grpc_web::v3::GrpcWeb;
use proto::envoy::extensions::filters::http::router::v3::Router;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier, ServerHeaderTransformation,
    SetCurrentClientCertDetails, UpgradeConfig,
};
use proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, RequestIdExtension,
};
use proto::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use proto::google::protobuf::Any;
use proto::resource::Needs;
use std::sync::LazyLock;
use std::time::Duration;

/// The name that servers of the mesh show in the `server` header.
const SERVER_NAME: &str = "istio-envoy";

/// Where a connection manager is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// In front of clients in the workload.
    Outbound,
    /// The explicit proxy that clients in the workload dial.
    ExplicitProxy,
    /// In front of the workload.
    Inbound,
    /// A gateway.
    Gateway,
}

/// Where a connection manager's routes come from.
pub(super) enum Routes {
    /// Asked for by name.
    Named(String),
    /// Part of the listener.
    Inline(Box<RouteConfiguration>),
}

/// What differs between connection managers.
pub(super) struct Http {
    /// Where it is.
    pub side: Side,
    /// The prefix of its statistics.
    pub stat_prefix: String,
    /// Its routes.
    pub routes: Routes,
    /// What is spoken on the port.
    pub protocol: Protocol,
    /// Caches of names that are resolved as requests come.
    pub dns_caches: Vec<DnsCacheConfig>,
}

/// Filters that are the same everywhere, encoded once.
struct Fixed {
    grpc_web: HttpFilter,
    before_routing: [HttpFilter; 3],
    router: HttpFilter,
    /// The router that adds no headers of Envoy's own.
    quiet_router: HttpFilter,
    request_id: Any,
}

static FIXED: LazyLock<Fixed> = LazyLock::new(|| {
    let grpc_stats = grpc_stats::FilterConfig {
        emit_filter_state: true,
        per_method_stat_specifier: Some(
            grpc_stats::filter_config::PerMethodStatSpecifier::StatsForAllMethods(false.into()),
        ),
        ..grpc_stats::FilterConfig::default()
    };
    let request_id = UuidRequestIdConfig {
        use_request_id_for_trace_sampling: wire::bool_value(true),
        ..UuidRequestIdConfig::default()
    };
    Fixed {
        grpc_web: wire::http_filter("envoy.filters.http.grpc_web", &GrpcWeb::default()),
        before_routing: [
            wire::http_filter("envoy.filters.http.grpc_stats", &grpc_stats),
            wire::http_filter("envoy.filters.http.fault", &HttpFault::default()),
            wire::http_filter("envoy.filters.http.cors", &Cors::default()),
        ],
        router: wire::http_filter("envoy.filters.http.router", &Router::default()),
        quiet_router: wire::http_filter(
            "envoy.filters.http.router",
            &Router { suppress_envoy_headers: true, ..Router::default() },
        ),
        request_id: proto::any(&request_id),
    }
});

/// Returns the filters of a chain that ends in a connection manager.
pub(super) fn filters(context: &Context<'_>, http: Http) -> Filters {
    let mut needs = Needs::default();
    let manager = manager(context, http, &mut needs);
    let filter = wire::network_filter("envoy.filters.network.http_connection_manager", &manager);
    Filters { filters: vec![filter], needs }
}

fn manager(context: &Context<'_>, http: Http, needs: &mut Needs) -> HttpConnectionManager {
    let Http { side, stat_prefix, routes, protocol, dns_caches } = http;
    let config = context.config;
    let settings = &context.switches.proxy;
    let mut manager = HttpConnectionManager {
        stat_prefix,
        http_filters: http_filters(protocol, dns_caches, settings.headers.no_envoy_headers),
        access_log: access_log::requests(config),
        use_remote_address: wire::bool_value(side == Side::Gateway),
        proxy_100_continue: true,
        stream_idle_timeout: wire::no_timeout(),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..UpgradeConfig::default()
        }],
        request_id_extension: Some(RequestIdExtension { typed_config: Some(FIXED.request_id.clone()) }),
        route_specifier: Some(route_specifier(routes, needs)),
        ..HttpConnectionManager::default()
    };
    normalize_paths(config.path_normalization, &mut manager);
    if let Some(idle_timeout) = context.switches.idle_timeout {
        manager.common_http_protocol_options = Some(HttpProtocolOptions {
            idle_timeout: wire::duration(Duration::from_nanos(idle_timeout)),
            ..HttpProtocolOptions::default()
        });
    }
    let http1 = Http1ProtocolOptions {
        accept_http_10: context.switches.http10,
        allow_absolute_url: (side == Side::ExplicitProxy).then(|| true.into()),
        header_key_format: settings.headers.preserve_case.then(wire::preserve_case),
        ..Http1ProtocolOptions::default()
    };
    if http1 != Http1ProtocolOptions::default() {
        manager.http_protocol_options = Some(http1);
    }
    match side {
        Side::Outbound | Side::ExplicitProxy => {}
        Side::Inbound => {
            SERVER_NAME.clone_into(&mut manager.server_name);
            forward_client_cert(&mut manager, &settings.headers, ForwardClientCert::AppendForward, false);
            if protocol.is_http2() {
                manager.http2_protocol_options = Some(Http2ProtocolOptions::default());
            }
        }
        Side::Gateway => {
            SERVER_NAME.clone_into(&mut manager.server_name);
            let mode = match settings.gateway_client_cert {
                ForwardClientCert::Undefined => ForwardClientCert::SanitizeSet,
                mode => mode,
            };
            forward_client_cert(&mut manager, &settings.headers, mode, true);
            manager.xff_num_trusted_hops = settings.num_trusted_proxies;
        }
    }
    apply_headers(&mut manager, &settings.headers);
    apply_connection_settings(&mut manager, &settings.connection);
    manager
}

/// Sets what happens to `x-forwarded-client-cert`: as the headers say, or as is usual here. `whole` says whether the
/// certificate itself belongs to what is usual.
fn forward_client_cert(
    manager: &mut HttpConnectionManager,
    headers: &ProxyHeaders,
    usual: ForwardClientCert,
    whole: bool,
) {
    let mode = match headers.forward_client_cert {
        ForwardClientCert::Undefined => usual,
        mode => mode,
    };
    let says_something = matches!(mode, ForwardClientCert::AppendForward | ForwardClientCert::SanitizeSet);
    let usual = ClientCertDetails { subject: true, cert: whole, chain: false, dns: true, uri: true };
    let details = headers.client_cert_details.or(says_something.then_some(usual));
    manager.set_current_client_cert_details = details.map(|details| SetCurrentClientCertDetails {
        subject: details.subject.then(|| true.into()),
        cert: details.cert,
        chain: details.chain,
        dns: details.dns,
        uri: details.uri,
        ..SetCurrentClientCertDetails::default()
    });
    manager.forward_client_cert_details = match mode {
        ForwardClientCert::Undefined | ForwardClientCert::Sanitize => ForwardClientCertDetails::Sanitize,
        ForwardClientCert::ForwardOnly => ForwardClientCertDetails::ForwardOnly,
        ForwardClientCert::AppendForward => ForwardClientCertDetails::AppendForward,
        ForwardClientCert::SanitizeSet => ForwardClientCertDetails::SanitizeSet,
        ForwardClientCert::AlwaysForwardOnly => ForwardClientCertDetails::AlwaysForwardOnly,
    }
    .into();
}

fn apply_headers(manager: &mut HttpConnectionManager, headers: &ProxyHeaders) {
    match &headers.server {
        ServerHeader::Default => {}
        ServerHeader::Named(name) => manager.server_name = name.to_string(),
        ServerHeader::PassedOn => {
            manager.server_name.clear();
            manager.server_header_transformation = ServerHeaderTransformation::PassThrough.into();
        }
    }
    if headers.no_request_id {
        manager.generate_request_id = wire::bool_value(false);
    }
    manager.append_x_forwarded_port = headers.forwarded_port;
}

fn apply_connection_settings(manager: &mut HttpConnectionManager, settings: &ConnectionSettings) {
    let duration = |given: Option<Duration>| given.and_then(wire::duration);
    let mut common = manager.common_http_protocol_options.take().unwrap_or_default();
    common.idle_timeout = duration(settings.idle_timeout).or(common.idle_timeout);
    common.max_connection_duration = duration(settings.max_connection_duration);
    common.max_stream_duration = duration(settings.max_stream_duration);
    if let Some(action) = settings.underscores {
        common.headers_with_underscores_action = match action {
            Underscores::Allow => HeadersWithUnderscoresAction::Allow,
            Underscores::RejectRequest => HeadersWithUnderscoresAction::RejectRequest,
            Underscores::DropHeader => HeadersWithUnderscoresAction::DropHeader,
        }
        .into();
    }
    if common != HttpProtocolOptions::default() {
        manager.common_http_protocol_options = Some(common);
    }
    let streams = [settings.max_concurrent_streams, settings.stream_window, settings.connection_window];
    if streams.iter().any(Option::is_some) {
        let http2 = manager.http2_protocol_options.get_or_insert_default();
        let [max_concurrent, stream, connection] = streams.map(|limit| limit.and_then(wire::u32_value));
        http2.max_concurrent_streams = max_concurrent;
        http2.initial_stream_window_size = stream;
        http2.initial_connection_window_size = connection;
    }
    manager.drain_timeout = duration(settings.drain_timeout);
    manager.request_timeout = duration(settings.request_timeout);
    manager.request_headers_timeout = duration(settings.request_headers_timeout);
    manager.stream_idle_timeout = duration(settings.stream_idle_timeout).or(manager.stream_idle_timeout);
    manager.merge_slashes = settings.merge_slashes.unwrap_or(manager.merge_slashes);
    if let Some(action) = settings.escaped_slashes {
        manager.path_with_escaped_slashes_action = match action {
            EscapedSlashes::ImplementationDefault => {
                PathWithEscapedSlashesAction::ImplementationSpecificDefault
            }
            EscapedSlashes::KeepUnchanged => PathWithEscapedSlashesAction::KeepUnchanged,
            EscapedSlashes::RejectRequest => PathWithEscapedSlashesAction::RejectRequest,
            EscapedSlashes::UnescapeAndRedirect => PathWithEscapedSlashesAction::UnescapeAndRedirect,
            EscapedSlashes::UnescapeAndForward => PathWithEscapedSlashesAction::UnescapeAndForward,
        }
        .into();
    }
}

fn http_filters(protocol: Protocol, dns_caches: Vec<DnsCacheConfig>, quiet: bool) -> Vec<HttpFilter> {
    let mut filters = Vec::with_capacity(5 + dns_caches.len());
    if protocol == Protocol::GrpcWeb {
        filters.push(FIXED.grpc_web.clone());
    }
    filters.extend(FIXED.before_routing.iter().cloned());
    filters.extend(dns_caches.into_iter().enumerate().map(|(i, cache)| {
        let config = dynamic::FilterConfig {
            implementation_specifier: Some(dynamic::filter_config::ImplementationSpecifier::DnsCacheConfig(
                cache,
            )),
            ..dynamic::FilterConfig::default()
        };
        let name = "envoy.filters.http.dynamic_forward_proxy";
        match i {
            0 => wire::http_filter(name, &config),
            // Each cluster looks in its own cache, which its own filter fills.
            _ => wire::http_filter(&format!("{name}.{i}"), &config),
        }
    }));
    filters.push(if quiet { FIXED.quiet_router.clone() } else { FIXED.router.clone() });
    filters
}

fn route_specifier(routes: Routes, needs: &mut Needs) -> RouteSpecifier {
    match routes {
        Routes::Named(name) => {
            needs.routes.insert(name.as_str().into());
            RouteSpecifier::Rds(Rds { config_source: Some(wire::ads()), route_config_name: name })
        }
        Routes::Inline(routes) => {
            let actions = routes.virtual_hosts.iter().flat_map(|host| &host.routes);
            for action in actions.filter_map(|route| route.action.as_ref()) {
                if let route::Action::Route(action) = action
                    && let Some(route_action::ClusterSpecifier::Cluster(cluster)) = &action.cluster_specifier
                {
                    needs.clusters.insert(cluster.as_str().into());
                }
            }
            RouteSpecifier::RouteConfig(*routes)
        }
    }
}

fn normalize_paths(normalization: PathNormalization, manager: &mut HttpConnectionManager) {
    let decode = normalization == PathNormalization::DecodeAndMergeSlashes;
    manager.normalize_path = wire::bool_value(normalization != PathNormalization::None);
    manager.merge_slashes = decode || normalization == PathNormalization::MergeSlashes;
    manager.path_with_escaped_slashes_action = match decode {
        true => PathWithEscapedSlashesAction::UnescapeAndForward,
        false => PathWithEscapedSlashesAction::KeepUnchanged,
    }
    .into();
}
