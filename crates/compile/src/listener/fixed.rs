//! Listeners that every sidecar has whatever the services are: the one that captured connections arrive at, and the
//! explicit proxy.

use super::chain::{Chain, Condition, Filters, PLAIN_HTTP};
use super::http::{Http, Routes, Side};
use super::tcp::L4;
use super::{
    ACCEPTS_AT_ONCE, Context, access_log, exact_balance, http, inspection_timeout, inspector, resource, tcp,
};
use crate::audience::OutboundAudience;
use crate::cluster;
use crate::names;
use crate::route;
use crate::scope::Scope;
use crate::wire;
use model::proxy::{Interception, ProxyRole};
use model::sidecar::OutboundMode;
use model::{Mesh, Protocol};
use proto::envoy::config::core::v3::TrafficDirection;
use proto::envoy::config::listener::v3::Listener;
use proto::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use proto::resource::{Needs, Resource};

/// Returns the listeners of a sidecar that do not depend on services.
pub fn fixed(mesh: &Mesh<'_>, scope: &Scope, audience: &OutboundAudience) -> Vec<Resource> {
    if audience.role != ProxyRole::Sidecar {
        return Vec::new();
    }
    let context =
        Context { config: mesh.config(), switches: &audience.switches, families: audience.families };
    let l4 = L4 { context: &context, mesh, scope, audience };
    let captured = audience.interception != Interception::None;
    let captured = captured.then(|| virtual_outbound(l4));
    captured.into_iter().chain(explicit_proxy(l4)).collect()
}

/// Returns the cache of names that connection managers fill whose last virtual host leads to hosts that no service has.
pub(super) fn unknown_hosts_cache(scope: &Scope, audience: &OutboundAudience) -> Option<DnsCacheConfig> {
    let resolves = scope.outbound_traffic_policy.mode == OutboundMode::AllowAnyDynamicDns;
    resolves.then(|| cluster::unknown_hosts_cache(audience))
}

/// Returns what is done with connections that no service claims.
pub(super) fn unclaimed(l4: L4<'_, '_>) -> Filters {
    let policy = &l4.scope.outbound_traffic_policy;
    let cluster = match (policy.mode, &policy.egress_proxy) {
        (OutboundMode::RegistryOnly, _) => names::BLACK_HOLE_CLUSTER.to_owned(),
        (OutboundMode::AllowAny, Some(destination)) => l4.cluster_name(destination),
        (OutboundMode::AllowAny, None) | (OutboundMode::AllowAnyDynamicDns, _) => {
            names::PASSTHROUGH_CLUSTER.to_owned()
        }
    };
    tcp::to_cluster(l4.context, &cluster, &cluster, Protocol::Tcp)
}

fn virtual_outbound(l4: L4<'_, '_>) -> Resource {
    let context = l4.context;
    let port = context.config.proxy_listen_port;
    let itself = Condition { port: Some(port), ..Condition::default() };
    // A connection to the listener's own port would otherwise go round in circles.
    let mut chains = vec![Chain::named(names::VIRTUAL_OUTBOUND_BLACK_HOLE, itself, tcp::to_black_hole())];
    let mut inspectors = Vec::new();
    if let Some(cache) = unknown_hosts_cache(l4.scope, l4.audience) {
        inspectors.push(inspector::http());
        chains.push(unclaimed_http(l4, cache));
    }
    chains.push(Chain::named(names::VIRTUAL_OUTBOUND_CATCH_ALL, Condition::default(), unclaimed(l4)));
    let mut needs = Needs::default();
    let transparent = l4.audience.interception == Interception::Tproxy;
    let listener = Listener {
        name: names::VIRTUAL_OUTBOUND.to_owned(),
        address: Some(wire::socket_address(context.wildcard(), port)),
        additional_addresses: context.second_captured(port),
        filter_chains: chains.into_iter().map(|chain| chain.into_message(&mut needs)).collect(),
        use_original_dst: wire::bool_value(true),
        // Whoever waits for the server to speak first is let through in the end.
        continue_on_listener_filters_timeout: !inspectors.is_empty(),
        listener_filters: inspectors,
        transparent: transparent.then(|| true.into()),
        traffic_direction: TrafficDirection::Outbound.into(),
        access_log: access_log::unmatched_connections(context.config),
        connection_balance_config: exact_balance(context.switches.outbound_exact_balance),
        max_connections_to_accept_per_socket_event: wire::u32_value(ACCEPTS_AT_ONCE),
        ..Listener::default()
    };
    resource(&listener, needs)
}

/// Returns the chain of requests that no listener for a service takes.
fn unclaimed_http(l4: L4<'_, '_>, cache: DnsCacheConfig) -> Chain {
    let http = Http {
        side: Side::Outbound,
        stat_prefix: format!("outbound_{}_{};", names::VIRTUAL_OUTBOUND, names::ALLOW_ANY_DYNAMIC_DNS),
        routes: Routes::Inline(Box::new(route::unknown_hosts(l4.mesh, l4.scope, l4.audience))),
        protocol: Protocol::Http,
        dns_caches: vec![cache],
    };
    let condition = Condition { alpn: PLAIN_HTTP, ..Condition::default() };
    Chain::named(names::VIRTUAL_OUTBOUND_CATCH_ALL_HTTP, condition, http::filters(l4.context, http))
}

/// Returns the listener that applications name as their HTTP proxy, if there is to be one.
fn explicit_proxy(l4: L4<'_, '_>) -> Option<Resource> {
    let context = l4.context;
    let port = context.switches.http_proxy_port;
    if port == 0 {
        return None;
    }
    let bind = context.loopback();
    let name = names::listener(&bind.to_string(), port);
    let http = Http {
        side: Side::ExplicitProxy,
        stat_prefix: format!("outbound_{name};"),
        routes: Routes::Named(names::HTTP_PROXY_ROUTE.to_owned()),
        protocol: Protocol::HttpProxy,
        dns_caches: unknown_hosts_cache(l4.scope, l4.audience).into_iter().collect(),
    };
    let chain = Chain::new(Condition::default(), http::filters(context, http)).with_handshake_limit();
    let mut needs = Needs::default();
    let listener = Listener {
        name,
        address: Some(wire::socket_address(bind, port)),
        filter_chains: vec![chain.into_message(&mut needs)],
        traffic_direction: TrafficDirection::Outbound.into(),
        listener_filters_timeout: inspection_timeout(context.config, &[]),
        continue_on_listener_filters_timeout: true,
        connection_balance_config: exact_balance(context.switches.outbound_exact_balance),
        max_connections_to_accept_per_socket_event: wire::u32_value(ACCEPTS_AT_ONCE),
        ..Listener::default()
    };
    Some(resource(&listener, needs))
}
