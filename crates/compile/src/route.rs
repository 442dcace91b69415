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
        sidecar::Wanted::Service(host, port) => {
            let own = names::host_port(host, port);
            virtual_hosts.retain(|draft| draft.host.name == own);
            if virtual_hosts.is_empty() {
                return None;
            }
        }
        sidecar::Wanted::Port(_) => virtual_hosts.push(sidecar::catch_all(destinations)),
        sidecar::Wanted::EveryPort => {
            // The same host is behind several ports here, which only the port can tell apart.
            rest.ignore_port_in_host_matching = false;
            virtual_hosts.push(sidecar::catch_all(destinations));
        }
    }
    Some(virtual_host::resource(&rest, &virtual_hosts))
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
    let virtual_hosts = gateway::virtual_hosts(destinations, &servers);
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
