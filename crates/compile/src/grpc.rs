//! Listeners for gRPC libraries that speak xDS themselves (`xds:///host:port`).
//!
//! Such a client asks for a listener by the authority that it dials, and needs no more of it than the route
//! configuration to ask for next. The names it may use are those that routes give the service's domains.

use crate::audience::OutboundAudience;
use crate::names;
use crate::scope::Scope;
use crate::wire;
use model::{Mesh, ServiceKey};
use prost::Message;
use proto::envoy::config::listener::v3::{ApiListener, Listener};
use proto::envoy::extensions::filters::http::fault::v3::HttpFault;
use proto::envoy::extensions::filters::http::router::v3::Router;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds,
};
use proto::resource::{Body, Needs, Resource, ResourceType};
use std::collections::BTreeSet;

/// Returns a listener for every name and port of every service in the scope.
pub fn listeners(mesh: &Mesh<'_>, scope: &Scope, audience: &OutboundAudience) -> Vec<Resource> {
    let mut listeners = Vec::new();
    for scoped in scope.services.values() {
        let Some(service) = mesh.service(&scoped.key) else { continue };
        let visible = |port: u16| scoped.ports.as_ref().is_none_or(|ports| ports.contains(&port));
        for port in service.ports.iter().filter(|port| visible(port.port)) {
            let route = names::host_port(service.key.host.as_str(), port.port);
            for host in hosts(&service.key, audience) {
                listeners.push(listener(&names::host_port(&host, port.port), &route));
            }
        }
    }
    listeners
}

/// Returns the names under which a client may call a service: the host, and for services of the cluster its
/// shorter forms as DNS would complete them.
fn hosts(service: &ServiceKey, audience: &OutboundAudience) -> Vec<String> {
    let host = service.host.as_str();
    let mut hosts = vec![host.to_owned()];
    let cluster_domain = audience.dns_domain.split_once(".svc.").map(|(_, domain)| domain);
    let namespace = service.namespace.as_str();
    let Some(name) = cluster_domain.and_then(|domain| {
        host.strip_suffix(domain)?.strip_suffix(".svc.")?.strip_suffix(namespace)?.strip_suffix('.')
    }) else {
        return hosts;
    };
    hosts.push(format!("{name}.{namespace}.svc"));
    hosts.push(format!("{name}.{namespace}"));
    if service.namespace == audience.namespace {
        hosts.push(name.to_owned());
    }
    hosts
}

fn listener(name: &str, route: &str) -> Resource {
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(wire::ads()),
            route_config_name: route.to_owned(),
        })),
        // Routes configure the fault filter (gRFC A33). The last filter must be the router (A39).
        http_filters: vec![
            HttpFilter {
                is_optional: true,
                ..wire::http_filter("envoy.filters.http.fault", &HttpFault::default())
            },
            wire::http_filter("envoy.filters.http.router", &Router::default()),
        ],
        ..HttpConnectionManager::default()
    };
    let message = Listener {
        name: name.to_owned(),
        api_listener: Some(ApiListener { api_listener: Some(proto::any(&manager)) }),
        ..Listener::default()
    };
    let needs = Needs { routes: BTreeSet::from([route.into()]), ..Needs::default() };
    Resource::new(ResourceType::Listener, name, Body::Whole(message.encode_to_vec().into()), needs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select;
    use model::{MeshView, Proxy, WorkloadId};

    fn audience(namespace: &str) -> OutboundAudience {
        let proxy = Proxy {
            role: model::proxy::ProxyRole::Grpc,
            node_id: "client".into(),
            workload: WorkloadId { namespace: namespace.into(), name: "client".into() },
            namespace: namespace.into(),
            ips: Vec::new(),
            dns_domain: format!("{namespace}.svc.cluster.local").into(),
            labels: model::Labels::new(),
            locality: model::Locality::default(),
            cluster: "".into(),
            network: "".into(),
            node: None,
            interception: model::proxy::Interception::None,
            has_identity: false,
            metadata: std::collections::BTreeMap::new(),
            settings: None,
            extensions: Vec::new(),
        };
        let view = MeshView::default();
        let selection = select::select(&Mesh::new(&view), &proxy);
        (*selection.outbound).clone()
    }

    fn key(host: &str, namespace: &str) -> ServiceKey {
        ServiceKey { host: host.into(), namespace: namespace.into() }
    }

    #[test]
    fn cluster_services_have_short_names_and_others_have_not() {
        let cart = key("cart.shop.svc.cluster.local", "shop");
        let full = ["cart.shop.svc.cluster.local", "cart.shop.svc", "cart.shop"];
        assert_eq!(hosts(&cart, &audience("other")), full);
        assert_eq!(hosts(&cart, &audience("shop")), [&full[..], &["cart"]].concat());
        assert_eq!(hosts(&key("api.example.org", "shop"), &audience("shop")), ["api.example.org"]);
    }

    #[test]
    fn a_listener_names_its_route() {
        let resource = listener("cart.shop:80", "cart.shop.svc.cluster.local:80");
        let message = Listener::decode(resource.bytes().clone()).expect("valid encoding");
        assert_eq!(message.name, "cart.shop:80");
        assert!(resource.needs().routes.contains("cart.shop.svc.cluster.local:80"));
        let manager = message.api_listener.and_then(|listener| listener.api_listener).expect("a manager");
        let manager = HttpConnectionManager::decode(manager.value).expect("valid encoding");
        let filters: Vec<(&str, bool)> =
            manager.http_filters.iter().map(|filter| (filter.name.as_str(), filter.is_optional)).collect();
        assert_eq!(filters, [("envoy.filters.http.fault", true), ("envoy.filters.http.router", false)]);
    }
}
