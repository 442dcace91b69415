//! Route configurations: which cluster a request goes to, and what happens to it on the way.
//!
//! ```text
//! rule          the rules of one VirtualService as routes     (matcher, action, destination)
//! sidecar       virtual hosts of what a captured request may be for         (domains)
//! gateway       virtual hosts of a gateway's servers
//! grpc          the same for gRPC libraries, which understand less
//! virtual_host  each virtual host encoded on its own, so that one can be held back without the others
//! ```

mod action;
mod destination;
mod domains;
#[cfg(test)]
mod fixture;
mod gateway;
mod grpc;
mod matcher;
mod rule;
mod sidecar;
mod virtual_host;

use crate::audience::{GatewayAudience, OutboundAudience};
use crate::gateway as servers;
use crate::names::{self, OutboundRoute};
use crate::scope::Scope;
use crate::wire;
use destination::Destinations;
use model::{Mesh, Protocol};
use proto::envoy::config::route::v3::route_action::{ClusterSpecifier, MaxStreamDuration};
use proto::envoy::config::route::v3::{RouteAction, RouteConfiguration, VirtualHost};
use proto::resource::Resource;
use std::time::Duration;

pub use grpc::grpc;

/// Returns a sidecar's route configuration by its name (`80`, `host:port`, the path of a Unix socket or
/// `http_proxy`). Nothing if the name has another form, or no egress listener or service is behind it.
pub fn outbound(mesh: &Mesh<'_>, scope: &Scope, audience: &OutboundAudience, name: &str) -> Option<Resource> {
    let route = OutboundRoute::parse(name)?;
    let (listener, wanted) = sidecar::egress(scope, route)?;
    let destinations = Destinations { mesh, scope, audience };
    let builder = sidecar::Builder { destinations, listener, wanted };
    let mut virtual_hosts = builder.virtual_hosts();
    let mut rest = virtual_host::configuration(name);
    match wanted {
        sidecar::Wanted::Service(..) if virtual_hosts.is_empty() => return None,
        sidecar::Wanted::Service(..) => {}
        sidecar::Wanted::Port(_) => virtual_hosts.push(sidecar::catch_all(destinations)),
        sidecar::Wanted::EveryPort => {
            // The same host is behind several ports here, which only the port can tell apart.
            rest.ignore_port_in_host_matching = false;
            virtual_hosts.push(sidecar::catch_all(destinations));
        }
    }
    without_attempts(audience, &mut virtual_hosts);
    Some(virtual_host::resource(&rest, &virtual_hosts))
}

/// Leaves out what proxies of this audience are not to say of attempts.
fn without_attempts(audience: &OutboundAudience, virtual_hosts: &mut [virtual_host::Draft]) {
    if audience.switches.proxy.headers.no_attempt_count {
        for draft in virtual_hosts {
            draft.host.include_request_attempt_count = false;
        }
    }
}

/// Returns the route configuration of requests that no listener for a service takes, which is part of a listener.
pub fn unknown_hosts(mesh: &Mesh<'_>, scope: &Scope, audience: &OutboundAudience) -> RouteConfiguration {
    let mut virtual_hosts = [sidecar::catch_all(Destinations { mesh, scope, audience })];
    without_attempts(audience, &mut virtual_hosts);
    RouteConfiguration {
        virtual_hosts: virtual_hosts.map(virtual_host::Draft::into_message).into(),
        ..virtual_host::configuration(names::ALLOW_ANY_DYNAMIC_DNS)
    }
}

/// Returns a gateway's route configuration by its name (`http.80`, `https.443.https.name.namespace`). Nothing if no
/// server has it.
pub fn gateway(
    mesh: &Mesh<'_>,
    scope: &Scope,
    audience: &OutboundAudience,
    gateway: &GatewayAudience,
    name: &str,
) -> Option<Resource> {
    let listeners = servers::merge(mesh, gateway);
    let servers = servers::servers_of_route(&listeners, name);
    if servers.is_empty() {
        return None;
    }
    let destinations = Destinations { mesh, scope, audience };
    let mut virtual_hosts = gateway::virtual_hosts(destinations, &servers);
    without_attempts(audience, &mut virtual_hosts);
    Some(virtual_host::resource(&virtual_host::configuration(name), &virtual_hosts))
}

/// What an inbound route configuration is for.
#[derive(Clone, Copy, Debug)]
pub struct InboundRoute<'a> {
    /// The cluster of the application's port, which gives the configuration its name.
    pub cluster: &'a str,
    /// The service's host, for traces; empty if no service has the port.
    pub host: &'a str,
    /// The service's port; 0 if no service has it.
    pub port: u16,
    /// What is spoken on it.
    pub protocol: Protocol,
}

/// Returns the route configuration that an inbound listener holds itself: everything goes to the application, for as
/// long as it takes, and once more if the application closed the connection before it saw the request.
pub fn inbound(mesh: &Mesh<'_>, inbound: InboundRoute<'_>) -> RouteConfiguration {
    let InboundRoute { cluster, host, port, protocol } = inbound;
    let retries = mesh.config().default_inbound_http_retry.as_ref();
    let grpc = matches!(protocol, Protocol::Grpc | Protocol::GrpcWeb);
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        timeout: wire::no_timeout(),
        max_stream_duration: Some(MaxStreamDuration {
            max_stream_duration: wire::no_timeout(),
            grpc_timeout_header_max: wire::no_timeout(),
            ..MaxStreamDuration::default()
        }),
        retry_policy: if grpc { None } else { action::inbound_retry_policy(retries) },
        ..RouteAction::default()
    };
    let host = VirtualHost {
        name: names::inbound_virtual_host(port),
        domains: vec!["*".to_owned()],
        routes: vec![rule::default_route_to(action, host, port)],
        ..VirtualHost::default()
    };
    RouteConfiguration {
        name: cluster.to_owned(),
        virtual_hosts: vec![host],
        validate_clusters: wire::bool_value(false),
        ..RouteConfiguration::default()
    }
}

/// Sets the deadline of requests; zero for none. gRPC's own timeout header may shorten it, not go beyond it.
#[expect(deprecated, reason = "its replacement in Envoy also ends streams that are still in use")]
fn set_timeout(action: &mut RouteAction, timeout: Duration) {
    action.timeout = wire::duration(timeout);
    action.max_grpc_timeout = wire::duration(timeout);
}

#[cfg(test)]
mod tests {
    use super::fixture::{World, destination, rule, rule_of, under, weighted, when};
    use super::*;
    use model::proxy::ProxyRole;
    use model::view::Key;
    use model::virtual_service::{HttpAction, HttpRule, Mirror, Retries};
    use model::{Kind, ObjectKey};
    use prost::Message;

    fn world() -> World {
        let canary = HttpAction::Route(vec![weighted("cart|a", 90), weighted("cart|b", 10)]);
        let mirrored = HttpRule {
            mirrors: vec![Mirror { destination: destination("mail|copy"), percentage: None }],
            ..rule_of(canary)
        };
        World::new()
            .service("shop/cart", "80/http 90/http")
            .service("shop/mail", "80/http")
            .service("shop/unrelated", "81/http")
            .rules(
                "shop/cart",
                &["cart.shop.svc.cluster.local", "www.example.com"],
                vec![when(vec![under("/mail")], rule("mail")), mirrored],
                |_| {},
            )
            .rules("shop/mail", &["mail.shop.svc.cluster.local"], vec![rule("mail|v1")], |_| {})
    }

    fn built(world: &World, name: &str) -> (Resource, Vec<Key>) {
        let (scope, audience) = world.client(ProxyRole::Sidecar, "shop", |_| {});
        let mesh = Mesh::new(world.view());
        let resource = outbound(&mesh, &scope, &audience, name).unwrap();
        (resource, mesh.into_reads().into_iter().collect())
    }

    #[test]
    fn fragments_are_the_virtual_hosts_of_the_message() {
        let (resource, _) = built(&world(), "80");
        let message = RouteConfiguration::decode(resource.bytes().clone()).unwrap();
        let fragments = resource.virtual_hosts().unwrap();
        assert_eq!(fragments.len(), message.virtual_hosts.len());
        for (fragment, host) in fragments.iter().zip(&message.virtual_hosts) {
            let one = RouteConfiguration::decode(fragment.field.clone()).unwrap();
            assert_eq!(one.virtual_hosts.first(), Some(host));
            assert_eq!(one.virtual_hosts.len(), 1);
            assert_eq!(*fragment.name, *host.name);
            let domains: Vec<&str> = fragment.domains.iter().map(AsRef::as_ref).collect();
            let mut expected: Vec<&str> = host.domains.iter().map(String::as_str).collect();
            expected.sort_unstable();
            assert_eq!(domains, expected);
        }
        // The one copy of each route is the same as encoding the message as a whole.
        let again = RouteConfiguration::decode(message.encode_to_vec().as_slice()).unwrap();
        assert_eq!(again, message);
    }

    #[test]
    fn fragments_know_their_clusters() {
        let (resource, _) = built(&world(), "80");
        let fragments = resource.virtual_hosts().unwrap();
        let clusters = |name: &str| {
            let fragment = fragments.iter().find(|fragment| &*fragment.name == name).unwrap();
            fragment.clusters.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            clusters("www.example.com:80"),
            [
                "outbound|80|a|cart.shop.svc.cluster.local",
                "outbound|80|b|cart.shop.svc.cluster.local",
                "outbound|80|copy|mail.shop.svc.cluster.local",
                "outbound|80||mail.shop.svc.cluster.local",
            ]
        );
        assert_eq!(clusters("allow_any"), ["PassthroughCluster"]);
        assert_eq!(resource.needs().clusters.len(), 6);
    }

    #[test]
    fn equal_meshes_make_equal_bytes() {
        for name in ["80", "90", "http_proxy"] {
            let (first, _) = built(&world(), name);
            let (second, _) = built(&world(), name);
            assert_eq!(first, second, "{name}");
        }
    }

    #[test]
    fn only_what_counts_on_the_port_is_read() {
        let object = |name| Key::Object(ObjectKey::new(Kind::VirtualService, "shop", name));
        let (_, reads) = built(&world(), "90");
        assert!(reads.contains(&object("cart")));
        assert!(!reads.contains(&object("mail")));
        let service = |name: &str| {
            Key::Service(model::ServiceKey {
                host: model::Hostname::new(format!("{name}.shop.svc.cluster.local")),
                namespace: model::Namespace::new("shop"),
            })
        };
        assert!(reads.contains(&service("cart")));
        assert!(!reads.contains(&service("unrelated")));
        assert!(!reads.iter().any(|key| matches!(key, Key::Endpoints(_))));
    }

    #[test]
    fn inbound_requests_go_to_the_application_for_as_long_as_it_takes() {
        let world = World::new().config(|config| {
            config.default_inbound_http_retry = Some(Retries { attempts: 5, ..Retries::default() });
        });
        let mesh = Mesh::new(world.view());
        let route = InboundRoute {
            cluster: "inbound|8080||",
            host: "cart.shop.svc.cluster.local",
            port: 80,
            protocol: Protocol::Http,
        };
        let got = inbound(&mesh, route);
        assert_eq!(got.name, "inbound|8080||");
        assert!(!got.ignore_port_in_host_matching);
        let host = &got.virtual_hosts[0];
        assert_eq!((host.name.as_str(), host.domains.as_slice()), ("inbound|http|80", &["*".to_owned()][..]));
        assert_eq!(host.routes[0].name, "default");
        let operation = host.routes[0].decorator.as_ref().map(|decorator| decorator.operation.as_str());
        assert_eq!(operation, Some("cart.shop.svc.cluster.local:80/*"));
        let action = |configuration: &RouteConfiguration| match configuration.virtual_hosts[0].routes[0]
            .action
            .clone()
        {
            Some(proto::envoy::config::route::v3::route::Action::Route(action)) => action,
            other => panic!("{other:?}"),
        };
        let http = action(&got);
        assert_eq!(http.timeout, wire::no_timeout());
        let limits = http.max_stream_duration.unwrap();
        assert_eq!(limits.grpc_timeout_header_max, wire::no_timeout());
        assert_eq!(http.retry_policy.and_then(|policy| policy.num_retries), wire::u32_value(5));
        let grpc = action(&inbound(&mesh, InboundRoute { protocol: Protocol::Grpc, ..route }));
        assert_eq!(grpc.retry_policy, None);
        let passthrough = InboundRoute { cluster: "InboundPassthroughCluster", host: "", port: 0, ..route };
        let got = inbound(&mesh, passthrough);
        assert_eq!(got.virtual_hosts[0].name, "inbound|http|0");
        let operation = got.virtual_hosts[0].routes[0].decorator.clone().map(|decorator| decorator.operation);
        assert_eq!(operation.as_deref(), Some(":0/*"));
    }
}
