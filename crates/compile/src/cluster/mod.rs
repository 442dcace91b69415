//! Clusters: one for each port of each visible service and for each subset of it, the workload's own ports, and the
//! fixed ones that traffic ends in when no service claims it.

mod draft;
mod dynamic;
mod inbound;
mod outbound;
mod policy;
#[cfg(test)]
mod tests;

pub use dynamic::{dns_cache, unknown_hosts_cache};
pub use inbound::inbound;
pub use outbound::{gateway, outbound};

use crate::audience::{IpFamilies, OutboundAudience};
use crate::destination_rule::Blocks;
use crate::names::{BLACK_HOLE_CLUSTER, PASSTHROUGH_CLUSTER};
use crate::scope::Scope;
use crate::tls::exchanges_metadata;
use draft::{Draft, Protocol};
use model::destination_rule::Algorithm;
use model::proxy::ProxyRole;
use model::service::Resolution;
use model::sidecar::OutboundMode;
use model::{Mesh, MeshConfig, Service, ServiceKey};
use proto::envoy::config::cluster::v3::cluster::{DiscoveryType, LbPolicy};
use proto::envoy::config::core::v3::{BindConfig, ExtraSourceAddress, SocketAddress, socket_address};
use proto::resource::Resource;
use std::time::Duration;

/// How long an idle connection to an unknown destination is kept.
const PASSTHROUGH_IDLE_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// How a cluster finds its endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Discovery {
    /// From the control plane.
    Eds,
    /// By resolving names; every address counts.
    StrictDns,
    /// By resolving one name; one address at a time.
    LogicalDns,
    /// Where the connection was going.
    OriginalDestination,
    /// By resolving the name in each request.
    DynamicDns,
}

/// Returns how the clusters of `service` find their endpoints; nothing if it has none.
pub(crate) fn discovery(
    audience: &OutboundAudience,
    service: &Service,
    blocks: Blocks<'_>,
) -> Option<Discovery> {
    // Nothing is captured on its way through a gateway or a library, so there is no original destination.
    let captured = audience.role == ProxyRole::Sidecar;
    let given = match service.resolution {
        Resolution::Alias => return None,
        Resolution::ClientSide => Discovery::Eds,
        Resolution::Dns if races(service) => Discovery::LogicalDns,
        Resolution::Dns => Discovery::StrictDns,
        Resolution::DnsRoundRobin => Discovery::LogicalDns,
        Resolution::Passthrough if captured => Discovery::OriginalDestination,
        Resolution::Passthrough => Discovery::Eds,
        Resolution::DynamicDns => Discovery::DynamicDns,
    };
    let passes_through = blocks.load_balancer.is_some_and(|lb| lb.algorithm == Algorithm::Passthrough);
    match given {
        Discovery::DynamicDns => Some(given),
        _ if passes_through && audience.role != ProxyRole::Grpc => Some(Discovery::OriginalDestination),
        _ => Some(given),
    }
}

/// Whether connections are raced to all addresses of the name, of both families (`istio.io/connect-strategy`).
fn races(service: &Service) -> bool {
    service.annotations.get("istio.io/connect-strategy") == Some("RACE_FIRST_TCP_CONNECT")
}

/// Returns the services that `audience` gets clusters for, in the order of the scope. Some of them may turn out to have
/// none: aliases, and services with UDP ports only.
pub fn outbound_services(_mesh: &Mesh<'_>, scope: &Scope, _audience: &OutboundAudience) -> Vec<ServiceKey> {
    scope.service_order.clone()
}

/// Returns the clusters that no service stands behind.
pub fn fixed(mesh: &Mesh<'_>, scope: &Scope, audience: &OutboundAudience) -> Vec<Resource> {
    let config = mesh.config();
    let black_hole = || {
        let mut draft = Draft::new(BLACK_HOLE_CLUSTER, DiscoveryType::Static);
        draft.set_stat_name(BLACK_HOLE_CLUSTER);
        draft.cluster.connect_timeout = Some(config.connect_timeout.into());
        draft.finish()
    };
    match audience.role {
        ProxyRole::Sidecar => {
            let resolves = scope.outbound_traffic_policy.mode == OutboundMode::AllowAnyDynamicDns;
            let resolved = resolves.then(|| dynamic::unknown_hosts(config, audience));
            let others = [passthrough(config, PASSTHROUGH_CLUSTER)].into_iter().chain(resolved);
            let others = others.map(|mut draft| {
                draft.http.preserve_case = audience.switches.proxy.headers.preserve_case;
                if exchanges_metadata(&audience.switches) {
                    draft.exchange_metadata();
                }
                draft.finish()
            });
            [black_hole()].into_iter().chain(others).collect()
        }
        // What a gateway has no route for was not on its way anywhere.
        ProxyRole::Router => vec![black_hole()],
        ProxyRole::Grpc => Vec::new(),
    }
}

/// A cluster of connections that go where they were going.
fn passthrough(config: &MeshConfig, name: &str) -> Draft {
    let mut draft = Draft::new(name, DiscoveryType::OriginalDst);
    // Inbound and outbound share their statistics' name, as in Istio.
    draft.set_stat_name(PASSTHROUGH_CLUSTER);
    draft.cluster.lb_policy = LbPolicy::ClusterProvided as i32;
    draft.http.protocol = Protocol::Downstream;
    draft.apply_connection_pool(config, config.default_connection_pool.as_ref(), None);
    draft.http.common_mut().idle_timeout = Some(PASSTHROUGH_IDLE_TIMEOUT.into());
    draft
}

/// Binds connections to an address that tells iptables to leave them alone.
fn bind_to_loopback(families: IpFamilies) -> BindConfig {
    let source = if families.v4 { "127.0.0.6" } else { "::6" };
    BindConfig { source_address: Some(any_port(source)), ..BindConfig::default() }
}

/// The same for connections to addresses of either family.
fn bind_to_either_loopback(families: IpFamilies) -> BindConfig {
    let extra = (families.v4 && families.v6)
        .then(|| ExtraSourceAddress { address: Some(any_port("::6")), ..ExtraSourceAddress::default() });
    BindConfig { extra_source_addresses: extra.into_iter().collect(), ..bind_to_loopback(families) }
}

fn any_port(address: &str) -> SocketAddress {
    SocketAddress {
        address: address.to_owned(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(0)),
        ..SocketAddress::default()
    }
}
