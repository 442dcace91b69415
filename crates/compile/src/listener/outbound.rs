//! The listeners of a sidecar for services.

use super::chain::{Chain, Condition};
use super::fixed::{unclaimed, unknown_hosts_cache};
use super::http::{Http, Routes, Side};
use super::plan::{ListenerKey, Part};
use super::tcp::{L4, ServiceListener};
use super::{
    ACCEPTS_AT_ONCE, Context, address, exact_balance, http, inspection_timeout, inspector, resource,
    without_collisions,
};
use crate::audience::OutboundAudience;
use crate::cluster;
use crate::names;
use crate::scope::Scope;
use crate::wire;
use model::{Mesh, Protocol};
use proto::envoy::config::core::v3::TrafficDirection;
use proto::envoy::config::listener::v3::{AdditionalAddress, Listener, ListenerFilter};
use proto::resource::{Needs, Resource};

/// Returns the listener that `key` stands for, or nothing if nothing can be behind it.
pub fn outbound(
    mesh: &Mesh<'_>,
    scope: &Scope,
    audience: &OutboundAudience,
    key: &ListenerKey,
) -> Option<Resource> {
    let context =
        Context { config: mesh.config(), switches: &audience.switches, families: audience.families };
    let l4 = L4 { context: &context, mesh, scope, audience };
    let chains = merge(l4, key);
    if chains.is_empty() {
        return None;
    }
    let tls = chains.iter().any(|chain| chain.condition.needs_tls_inspector());
    let http = chains.iter().any(|chain| chain.condition.needs_http_inspector());
    let inspectors: Vec<ListenerFilter> =
        tls.then(inspector::tls).into_iter().chain(http.then(inspector::http)).collect();

    let mut needs = Needs::default();
    let (chains, default) = with_default(l4, chains);
    let listener = Listener {
        name: key.name(),
        address: Some(address(&key.bind, key.port)),
        additional_addresses: key
            .additional
            .iter()
            .map(|ip| AdditionalAddress {
                address: Some(wire::socket_address(*ip, key.port)),
                ..AdditionalAddress::default()
            })
            .collect(),
        filter_chains: chains.into_iter().map(|chain| chain.into_message(&mut needs)).collect(),
        default_filter_chain: default.map(|chain| chain.into_message(&mut needs)),
        listener_filters_timeout: inspection_timeout(context.config, &inspectors),
        listener_filters: inspectors,
        continue_on_listener_filters_timeout: true,
        traffic_direction: TrafficDirection::Outbound.into(),
        bind_to_port: (!key.bound).then(|| false.into()),
        max_connections_to_accept_per_socket_event: key.bound.then(|| ACCEPTS_AT_ONCE.into()),
        connection_balance_config: exact_balance(context.switches.outbound_exact_balance),
        ..Listener::default()
    };
    Some(resource(&listener, needs))
}

/// A chain without a condition beside others becomes the default: as one of several, Envoy would take it only where
/// no other matches up to the condition at which they part.
fn with_default(l4: L4<'_, '_>, mut chains: Vec<Chain>) -> (Vec<Chain>, Option<Chain>) {
    match chains.iter().position(|chain| chain.condition.is_empty()) {
        Some(_) if chains.len() == 1 => (chains, None),
        Some(open) => {
            let default = chains.remove(open);
            (chains, Some(default))
        }
        None => {
            let name = names::PASSTHROUGH_FILTER_CHAIN;
            (chains, Some(Chain::named(name, Condition::default(), unclaimed(l4))))
        }
    }
}

/// Returns the chains of all services behind the listener. Where services that share it speak differently, the
/// inspectors tell them apart; protocols in which the server speaks first share with nobody.
fn merge(l4: L4<'_, '_>, key: &ListenerKey) -> Vec<Chain> {
    let mut merged: Vec<Chain> = Vec::new();
    let mut spoken: Option<Protocol> = None;
    for part in &key.parts {
        let incoming = part.protocol;
        let mixes = |protocol: Protocol| !matches!(protocol, Protocol::Mongo | Protocol::MySql);
        match spoken {
            None => {
                merged = chains(l4, key, part);
                // On the wildcard HTTP shares from the start: bytes to unknown addresses arrive there as well.
                spoken =
                    Some(if incoming.is_http() && key.wildcard { Protocol::Unsupported } else { incoming });
            }
            Some(current) if incoming != current && !(mixes(incoming) && mixes(current)) => {}
            Some(current) if current.is_http() && incoming.is_unsupported() => {
                merged = chains(l4, key, part);
                spoken = Some(incoming);
            }
            Some(current) => {
                let plain_http = Condition::plain_http();
                let mut added = chains(l4, key, part);
                // HTTP that had the listener to itself takes only what is HTTP from now on.
                let narrow = |chains: &mut [Chain]| {
                    for chain in chains.iter_mut().filter(|chain| chain.condition.is_empty()) {
                        chain.condition = plain_http.clone();
                    }
                };
                match (current.is_http(), incoming.is_http()) {
                    (true, false) => narrow(&mut merged),
                    (false, true) => narrow(&mut added),
                    _ => {}
                }
                merged.append(&mut added);
                merged = without_collisions(merged);
                if current != incoming {
                    spoken = Some(Protocol::Unsupported);
                }
            }
        }
    }
    merged
}

fn chains(l4: L4<'_, '_>, key: &ListenerKey, part: &Part) -> Vec<Chain> {
    if part.protocol.is_http() {
        let condition = match key.wildcard {
            true => Condition::plain_http(),
            false => Condition::default(),
        };
        return vec![http_chain(l4, key, part, condition)];
    }
    let mut chains = l4.chains(&ServiceListener {
        service: &part.service,
        port: key.port,
        own_port: part.port,
        protocol: part.protocol,
        range: part.range,
        shares_address: part.unaddressed && key.wildcard,
        rules: &part.rules,
    });
    if part.protocol.is_unsupported() {
        let condition = Condition::plain_http();
        chains.push(http_chain(l4, key, part, condition));
    }
    chains
}

fn http_chain(l4: L4<'_, '_>, key: &ListenerKey, part: &Part, condition: Condition) -> Chain {
    let route = if key.port == 0 {
        key.bind.as_ref().to_owned()
    } else if part.protocol.is_unsupported() && !key.wildcard {
        names::host_port(part.service.host.as_str(), key.port)
    } else {
        key.port.to_string()
    };
    let known = key.dynamic.iter().map(|host| cluster::dns_cache(l4.audience, host.as_str()));
    let caches = known.chain(unknown_hosts_cache(l4.scope, l4.audience));
    let http = Http {
        side: Side::Outbound,
        stat_prefix: format!("outbound_{};", key.name()),
        routes: Routes::Named(route),
        protocol: part.protocol,
        dns_caches: caches.collect(),
    };
    Chain::new(condition, http::filters(l4.context, http)).with_handshake_limit()
}
