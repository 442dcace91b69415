//! The static listeners: readiness for the kubelet, and Envoy's metrics for Prometheus.

use super::wire;
use crate::config::Config;
use proto::envoy::config::listener::v3::{AdditionalAddress, Filter, FilterChain, Listener, filter};
use proto::envoy::config::route::v3::route::Action;
use proto::envoy::config::route::v3::route_action::ClusterSpecifier;
use proto::envoy::config::route::v3::route_match::PathSpecifier;
use proto::envoy::config::route::v3::{Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost};
use proto::envoy::extensions::filters::http::router::v3::Router;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter,
};

/// Returns the static listeners.
pub(super) fn all(config: &Config) -> Vec<Listener> {
    vec![
        listener(config, "stats", config.ports.envoy_prometheus, "/stats/prometheus", "prometheus_stats"),
        listener(config, "agent", config.ports.envoy_status, "/healthz/ready", "agent"),
    ]
}

/// A listener that passes on requests for one path. It is there when Envoy has reached its limit of connections too:
/// a proxy that is busy is not one that is dead.
fn listener(config: &Config, prefix: &str, port: u16, path: &str, cluster: &str) -> Listener {
    let mut wildcards = config.node.families.wildcards().into_iter().map(|ip| wire::address(ip, port));
    Listener {
        address: wildcards.next(),
        additional_addresses: wildcards
            .map(|address| AdditionalAddress { address: Some(address), ..AdditionalAddress::default() })
            .collect(),
        ignore_global_conn_limit: true,
        bypass_overload_manager: true,
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: "envoy.filters.network.http_connection_manager".to_owned(),
                config_type: Some(filter::ConfigType::TypedConfig(proto::any(&http(prefix, path, cluster)))),
            }],
            ..FilterChain::default()
        }],
        ..Listener::default()
    }
}

fn http(prefix: &str, path: &str, cluster: &str) -> HttpConnectionManager {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..RouteAction::default()
    };
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix(path.to_owned())),
            ..RouteMatch::default()
        }),
        action: Some(Action::Route(action)),
        ..Route::default()
    };
    let host = VirtualHost {
        name: "backend".to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        ..VirtualHost::default()
    };
    HttpConnectionManager {
        stat_prefix: prefix.to_owned(),
        route_specifier: Some(RouteSpecifier::RouteConfig(RouteConfiguration {
            virtual_hosts: vec![host],
            ..RouteConfiguration::default()
        })),
        http_filters: vec![HttpFilter {
            name: "envoy.filters.http.router".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(proto::any(&Router::default()))),
            ..HttpFilter::default()
        }],
        ..HttpConnectionManager::default()
    }
}
