//! The listeners of gateways: what the servers of all Gateways that select a workload come to on each address.

use super::chain::{Chain, Condition, MESH};
use super::http::{Http, Routes, Side};
use super::tcp::{L4, server_names};
use super::{
    ACCEPTS_AT_ONCE, Context, address, exact_balance, http, inspector, metadata_exchange, resource, tcp,
    without_collisions,
};
use crate::audience::{GatewayAudience, OutboundAudience};
use crate::destination_rule;
use crate::gateway::{self as merged, BoundListener, BoundServer};
use crate::names;
use crate::scope::Scope;
use crate::tls::{self, Application, Identity};
use crate::wire;
use model::gateway::{HostNamespace, ServerTlsMode};
use model::virtual_service::GatewayRef;
use model::{Hostname, Mesh, Protocol, VirtualService};
use proto::envoy::config::core::v3::TrafficDirection;
use proto::envoy::config::listener::v3::{AdditionalAddress, Listener};
use proto::resource::{Needs, Resource};
use std::collections::BTreeSet;

/// Says of a VirtualService that its routes are those of the Gateway API.
const ROUTE_SEMANTICS: &str = "internal.istio.io/route-semantics";

/// Returns all listeners of a gateway. An address on which no server has anything to do is not bound.
pub fn gateway(
    mesh: &Mesh<'_>,
    scope: &Scope,
    audience: &OutboundAudience,
    gateway: &GatewayAudience,
) -> Vec<Resource> {
    let context =
        Context { config: mesh.config(), switches: &audience.switches, families: audience.families };
    let l4 = L4 { context: &context, mesh, scope, audience };
    let bound = merged::merge(mesh, gateway);
    // A process without privileges would fail to bind, and Envoy would refuse the listener.
    let refused = |port: u16| audience.switches.unprivileged && (1..1024).contains(&port);
    bound.iter().filter(|bound| !refused(bound.port)).filter_map(|bound| listener(l4, bound)).collect()
}

fn listener(l4: L4<'_, '_>, bound: &BoundListener<'_>) -> Option<Resource> {
    let context = l4.context;
    let bind = bound.bind.as_deref().filter(|bind| !bind.is_empty());
    let additional = context.second_wildcard().filter(|_| bind.is_none());
    let bind = bind.map_or_else(|| context.wildcard().to_string(), str::to_owned);
    let name = names::listener(&bind, bound.port);

    let mut chains: Vec<Chain> = Vec::new();
    let mut plain_http = false;
    for server in &bound.servers {
        match &server.route {
            // Plain HTTP servers share a connection manager and its routes.
            Some(route) if server.server.protocol.is_http() => {
                if !std::mem::replace(&mut plain_http, true) {
                    chains.push(http_chain(context, &name, server, route));
                }
            }
            Some(route) => chains.extend(https_chain(l4, &name, server, route)),
            None => chains.extend(tcp_chains(l4, server)),
        }
    }
    let chains = without_collisions(chains);
    if chains.is_empty() {
        return None;
    }
    let proxy_protocol = context.switches.proxy.proxy_protocol.then(inspector::proxy_protocol);
    let tls = bound.servers.iter().any(BoundServer::is_tls).then(inspector::tls);
    let mut needs = Needs::default();
    let listener = Listener {
        name,
        address: Some(address(&bind, bound.port)),
        additional_addresses: additional
            .map(|ip| AdditionalAddress {
                address: Some(wire::socket_address(ip, bound.port)),
                ..AdditionalAddress::default()
            })
            .into_iter()
            .collect(),
        filter_chains: chains
            .into_iter()
            .map(|chain| chain.with_handshake_limit().into_message(&mut needs))
            .collect(),
        listener_filters: proxy_protocol.into_iter().chain(tls).collect(),
        per_connection_buffer_limit_bytes: context
            .switches
            .proxy
            .connection
            .listener_buffer
            .and_then(wire::u32_value),
        traffic_direction: TrafficDirection::Outbound.into(),
        connection_balance_config: exact_balance(context.switches.outbound_exact_balance),
        max_connections_to_accept_per_socket_event: wire::u32_value(ACCEPTS_AT_ONCE),
        ..Listener::default()
    };
    Some(resource(&listener, needs))
}

fn http_chain(context: &Context<'_>, listener: &str, server: &BoundServer<'_>, route: &str) -> Chain {
    let http = Http {
        side: Side::Gateway,
        stat_prefix: format!("outbound_{listener};"),
        routes: Routes::Named(route.to_owned()),
        protocol: server.server.protocol,
        dns_caches: Vec::new(),
    };
    Chain::new(Condition::default(), http::filters(context, http))
}

/// Returns the chain of a server that opens TLS, or nothing if it cannot: without the workload's certificate, or
/// without a name that Envoy could match.
fn https_chain(l4: L4<'_, '_>, listener: &str, server: &BoundServer<'_>, route: &str) -> Option<Chain> {
    let condition = Condition { server_names: server_names(&hosts(server))?, ..Condition::default() };
    let mut chain = terminated(l4, server, condition, Application::Http, |_| {
        let name = server.server.name.as_deref();
        let http = Http {
            side: Side::Gateway,
            stat_prefix: name.map_or_else(|| format!("outbound_{listener};"), str::to_owned),
            routes: Routes::Named(route.to_owned()),
            protocol: server.server.protocol,
            dns_caches: Vec::new(),
        };
        Some(http::filters(l4.context, http))
    })?;
    chain.limits_handshake = true;
    Some(chain)
}

fn terminated(
    l4: L4<'_, '_>,
    server: &BoundServer<'_>,
    condition: Condition,
    application: Application,
    filters: impl FnOnce(&BoundServer<'_>) -> Option<super::chain::Filters>,
) -> Option<Chain> {
    let settings = server.server.tls.as_ref()?;
    let socket =
        tls::server(Identity::outbound(l4.audience).under(l4.context.config), settings, application)?;
    let mut chain = Chain::new(condition, filters(server)?);
    if settings.mode == ServerTlsMode::IstioMutual && application == Application::Tcp {
        chain.filters.filters.splice(..0, metadata_exchange(l4.context.switches));
    }
    chain.socket = Some(socket.socket());
    chain.filters.needs.secrets.extend(socket.secrets);
    Some(chain)
}

/// Returns the chains of a server that handles connections rather than requests.
fn tcp_chains(l4: L4<'_, '_>, server: &BoundServer<'_>) -> Vec<Chain> {
    let mode = server.server.tls.as_ref().map(|tls| tls.mode);
    match mode {
        None => {
            let filters = tcp_rule(l4, server);
            filters.map(|filters| Chain::new(Condition::default(), filters)).into_iter().collect()
        }
        Some(ServerTlsMode::AutoPassthrough) => auto_passthrough_chains(l4, server),
        Some(ServerTlsMode::Passthrough) => passthrough_chains(l4, server),
        Some(_) => {
            let Some(server_names) = server_names(&hosts(server)) else { return Vec::new() };
            let condition = Condition { server_names, ..Condition::default() };
            let whole = terminated(l4, server, condition, Application::Tcp, |server| tcp_rule(l4, server));
            whole.map_or_else(|| terminated_chains(l4, server), |chain| vec![chain])
        }
    }
}

/// Returns the filters that the first rule which applies asks for.
fn tcp_rule(l4: L4<'_, '_>, server: &BoundServer<'_>) -> Option<super::chain::Filters> {
    let declared = server.server;
    for vs in rules(l4, server) {
        let rule = vs.tcp.iter().find(|rule| {
            rule.matches.is_empty()
                || rule.matches.iter().any(|condition| applies(server, condition.port, &condition.gateways))
        });
        if let Some(rule) = rule {
            return l4.to_destinations(&rule.route, vs, declared.port, declared.protocol);
        }
    }
    None
}

/// Returns a chain for each TLS match of the rules that apply.
fn passthrough_chains(l4: L4<'_, '_>, server: &BoundServer<'_>) -> Vec<Chain> {
    let chains = sni_chains(l4, server, |_| true).into_iter();
    chains.map(|(condition, filters)| Chain::new(condition, filters)).collect()
}

/// Returns a chain for each TLS match of rules with the semantics of the Gateway API, where a route by server names is
/// also for servers that open TLS. Other rules mean TLS that stays closed.
fn terminated_chains(l4: L4<'_, '_>, server: &BoundServer<'_>) -> Vec<Chain> {
    let of_gateway_api = |vs: &VirtualService| vs.meta.annotations.get(ROUTE_SEMANTICS) == Some("gateway");
    let chains = sni_chains(l4, server, of_gateway_api).into_iter();
    chains
        .filter_map(|(condition, filters)| {
            terminated(l4, server, condition, Application::Tcp, |_| Some(filters))
        })
        .collect()
}

/// Returns what each TLS match of the rules that apply and are `wanted` comes to. The same server names are taken once.
fn sni_chains(
    l4: L4<'_, '_>,
    server: &BoundServer<'_>,
    wanted: impl Fn(&VirtualService) -> bool,
) -> Vec<(Condition, super::chain::Filters)> {
    let declared = server.server;
    let mut taken: BTreeSet<&Hostname> = BTreeSet::new();
    let mut chains = Vec::new();
    for vs in rules(l4, server).into_iter().filter(|vs| wanted(vs)) {
        for rule in &vs.tls {
            for condition in &rule.matches {
                let hosts = &condition.sni_hosts;
                if !applies(server, condition.port, &condition.gateways)
                    || hosts.iter().any(|host| taken.contains(host))
                {
                    continue;
                }
                taken.extend(hosts);
                let filters = l4.to_destinations(&rule.route, vs, declared.port, declared.protocol);
                if let (Some(server_names), Some(filters)) = (server_names(hosts), filters) {
                    let condition = Condition { server_names, ..Condition::default() };
                    chains.push((condition, filters));
                }
            }
        }
    }
    chains
}

/// Returns a chain for each port and subset of each service in the mesh that the server has: clients in other networks
/// name the cluster in their SNI.
fn auto_passthrough_chains(l4: L4<'_, '_>, server: &BoundServer<'_>) -> Vec<Chain> {
    let mut chains = Vec::new();
    for key in &l4.scope.service_order {
        let offered = server.server.hosts.iter().any(|host| key.host.is_within(&host.host));
        if !offered {
            continue;
        }
        let Some(service) = l4.mesh.service(key) else { continue };
        if service.mesh_external || service.alias.is_some() {
            continue;
        }
        let rule = destination_rule::lookup(l4.mesh, l4.audience, &key.host, &key.namespace);
        let subsets: Vec<&str> =
            rule.iter().flat_map(|rule| rule.subsets()).map(|subset| subset.name.as_ref()).collect();
        for port in service.ports.iter().filter(|port| port.protocol != Protocol::Udp) {
            for subset in std::iter::once("").chain(subsets.iter().copied()) {
                let cluster = names::sni(port.port, subset, key.host.as_str());
                let filters = tcp::to_cluster(l4.context, &cluster, &cluster, Protocol::Tcp);
                let condition = Condition { server_names: vec![cluster], alpn: MESH, ..Condition::default() };
                chains.push(Chain::new(condition, filters));
            }
        }
    }
    chains
}

fn hosts(server: &BoundServer<'_>) -> Vec<Hostname> {
    server.server.hosts.iter().map(|host| host.host.clone()).collect()
}

/// Returns whether a match with this port and these gateways is for the server.
fn applies(server: &BoundServer<'_>, port: Option<u16>, gateways: &[GatewayRef]) -> bool {
    port.is_none_or(|port| port == server.server.port)
        && (gateways.is_empty() || gateways.contains(&reference(server)))
}

fn reference(server: &BoundServer<'_>) -> GatewayRef {
    let key = &server.gateway.meta.key;
    GatewayRef::Gateway(key.namespace.clone(), key.name.clone())
}

/// Returns the VirtualServices that are bound to the server and have a host in common with it, in order of precedence.
fn rules<'m>(l4: L4<'_, 'm>, server: &BoundServer<'_>) -> Vec<&'m VirtualService> {
    let reference = reference(server);
    let common = |host: &Hostname, namespace| {
        server.server.hosts.iter().any(|own| {
            let admitted = match &own.namespace {
                HostNamespace::Any => true,
                HostNamespace::Only(only) => only == namespace,
                HostNamespace::Nobody => false,
            };
            admitted && own.host.overlaps(host)
        })
    };
    let keys = l4.scope.egress.iter().flat_map(|egress| &egress.virtual_services);
    keys.filter(|key| {
        l4.mesh.virtual_service_row(key).is_some_and(|row| {
            row.gateways.contains(&reference) && row.hosts.iter().any(|host| common(host, &key.namespace))
        })
    })
    .filter_map(|key| l4.mesh.virtual_service(key).map(AsRef::as_ref))
    .collect()
}
