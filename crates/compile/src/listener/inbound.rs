//! The listeners of a sidecar for connections to its workload.
//!
//! `virtualInbound` takes everything that was captured and has filter chains by port. Which there are on a port follows
//! from what is spoken there and from what PeerAuthentication lets in:
//!
//! | mode       | HTTP                        | bytes                            | undeclared                         |
//! |------------|-----------------------------|----------------------------------|------------------------------------|
//! | STRICT     | mTLS                        | mTLS                             | mTLS+HTTP, mTLS                    |
//! | PERMISSIVE | mTLS by ALPN, plain         | mTLS by ALPN, TLS as it is, plain | mTLS+HTTP, plain HTTP, mTLS, plain, TLS as it is |
//! | DISABLE    | plain                       | bytes                            | plain HTTP, bytes                  |
//!
//! A proxy without a workload certificate cannot take mutual TLS. It treats PERMISSIVE as DISABLE, and on STRICT ports
//! it refuses every connection: there is no chain that lets plain text in.

use super::chain::{Chain, Condition, Filters, MESH, MESH_HTTP, MESH_TCP, PLAIN_HTTP, Transport};
use super::http::{Http, Routes, Side};
use super::{
    ACCEPTS_AT_ONCE, Context, access_log, address, exact_balance, http, inspection_timeout, inspector,
    metadata_exchange, resource, tcp,
};
use crate::audience::{InboundAudience, OutboundAudience};
use crate::names;
use crate::route::{self, InboundRoute};
use crate::scope::Scope;
use crate::tls::{self, Application, Identity};
use crate::wire;
use model::gateway::ServerTls;
use model::proxy::Interception;
use model::sidecar::CaptureMode;
use model::{Mesh, MtlsMode, ObjectKey, Protocol, ServiceKey, Sidecar};
use proto::envoy::config::core::v3::{TrafficDirection, TransportSocket};
use proto::envoy::config::listener::v3::Listener;
use proto::resource::{Needs, Resource};
use std::collections::BTreeMap;

/// Returns the inbound listeners of a sidecar: `virtualInbound` where connections are captured, and those of a Sidecar
/// that bind their ports themselves.
pub fn inbound(
    mesh: &Mesh<'_>,
    _scope: &Scope,
    audience: &InboundAudience,
    _outbound: &OutboundAudience,
) -> Vec<Resource> {
    let context =
        Context { config: mesh.config(), switches: &audience.switches, families: audience.families };
    let inbound = Inbound { context: &context, mesh, audience };
    let ports = inbound.ports();
    let captured = audience.interception != Interception::None;
    let own = ports.iter().filter(|port| port.bound).map(|port| inbound.bound_listener(port));
    let captured = captured.then(|| inbound.virtual_inbound(&ports));
    captured.into_iter().chain(own).collect()
}

struct Inbound<'a, 'm> {
    context: &'a Context<'a>,
    mesh: &'a Mesh<'m>,
    audience: &'a InboundAudience,
}

/// A port of the workload.
struct Port<'a> {
    /// The workload's port.
    number: u16,
    /// The service's port that leads to it; the same number for a Sidecar's.
    service_port: u16,
    protocol: Protocol,
    /// The service, or what stands for it in route names.
    of: Owner<'a>,
    /// The address in its name, and to bind if it is bound.
    bind: String,
    bound: bool,
    /// TLS that a Sidecar asks for in place of the mesh's.
    tls: Option<&'a ServerTls>,
}

enum Owner<'a> {
    Service(&'a ServiceKey),
    Sidecar(&'a ObjectKey),
}

/// What a chain does with what it lets in.
#[derive(Clone, Copy)]
enum Handling {
    Http,
    Bytes,
}

/// A chain of the table at the top.
struct Row {
    transport: Transport,
    alpn: &'static [&'static str],
    handling: Handling,
    terminates: bool,
}

impl Inbound<'_, '_> {
    /// Returns the workload's ports: those of a Sidecar that lists any, otherwise those that services lead to, the
    /// oldest service deciding what is spoken. Without capture a service's ports are the application's own to bind.
    fn ports(&self) -> Vec<Port<'_>> {
        match self.sidecar().filter(|sidecar| !sidecar.ingress.is_empty()) {
            Some(sidecar) => self.sidecar_ports(sidecar),
            None if self.audience.interception == Interception::None => Vec::new(),
            None => self.service_ports(),
        }
    }

    fn sidecar(&self) -> Option<&Sidecar> {
        let key = self.audience.scope.sidecar.as_ref()?;
        let mut sidecars = self.mesh.sidecars(&key.namespace);
        sidecars.find(|sidecar| sidecar.meta.key == *key).map(AsRef::as_ref)
    }

    fn sidecar_ports<'s>(&'s self, sidecar: &'s Sidecar) -> Vec<Port<'s>> {
        let uncaptured = self.audience.interception == Interception::None;
        let mut ports: BTreeMap<(Option<String>, u16), Port<'_>> = BTreeMap::new();
        for listener in &sidecar.ingress {
            let number = listener.port.number;
            let bound = uncaptured || listener.capture_mode == CaptureMode::None;
            if bound && self.context.switches.unprivileged && number < 1024 {
                continue;
            }
            let bind = match &listener.bind {
                Some(bind) if !bind.is_empty() => bind.to_string(),
                _ => self.audience.instance_ip.unwrap_or_else(|| self.context.wildcard()).to_string(),
            };
            ports.entry((bound.then(|| bind.clone()), number)).or_insert(Port {
                number,
                service_port: number,
                protocol: listener.port.protocol,
                of: Owner::Sidecar(&sidecar.meta.key),
                bind,
                bound,
                tls: listener.tls.as_ref(),
            });
        }
        ports.into_values().filter(|port| port.protocol != Protocol::Udp).collect()
    }

    fn service_ports(&self) -> Vec<Port<'_>> {
        let mut ports: BTreeMap<u16, Port<'_>> = BTreeMap::new();
        for target in &self.audience.targets {
            let Some(row) = self.mesh.service_row(&target.service) else { continue };
            for (service_port, number) in &target.ports {
                let Some(port) = row.ports.iter().find(|port| port.port == *service_port) else { continue };
                if *number == 0 || port.protocol == Protocol::Udp {
                    continue;
                }
                ports.entry(*number).or_insert_with(|| Port {
                    number: *number,
                    service_port: *service_port,
                    protocol: port.protocol,
                    of: Owner::Service(&target.service),
                    bind: self.context.wildcard().to_string(),
                    bound: false,
                    tls: None,
                });
            }
        }
        ports.into_values().collect()
    }

    fn virtual_inbound(&self, ports: &[Port<'_>]) -> Resource {
        let context = self.context;
        let number = context.config.proxy_inbound_listen_port;
        let itself = Condition { port: Some(number), ..Condition::default() };
        let mut chains = vec![Chain::named(names::VIRTUAL_INBOUND_BLACK_HOLE, itself, tcp::to_black_hole())];
        chains.extend(self.passthrough_chains(None, self.audience.mtls.default));
        for (port, mode) in &self.audience.mtls.ports {
            if !ports.iter().any(|own| own.number == *port) {
                chains.extend(self.passthrough_chains(Some(*port), *mode));
            }
        }
        for port in ports.iter().filter(|port| !port.bound) {
            chains.extend(self.port_chains(port));
        }
        self.exchange_metadata(&mut chains);
        let mut listener_filters = vec![inspector::original_destination()];
        let transparent = self.audience.interception == Interception::Tproxy;
        if transparent {
            listener_filters.push(inspector::original_source());
        }
        listener_filters.extend(inspector::inbound(&chains));
        let mut needs = Needs::default();
        let listener = Listener {
            name: names::VIRTUAL_INBOUND.to_owned(),
            address: Some(wire::socket_address(context.wildcard(), number)),
            additional_addresses: context.second_captured(number),
            filter_chains: chains.into_iter().map(|chain| chain.into_message(&mut needs)).collect(),
            listener_filters_timeout: inspection_timeout(context.config, &listener_filters),
            listener_filters,
            transparent: transparent.then(|| true.into()),
            access_log: access_log::unmatched_connections(context.config),
            ..self.listener()
        };
        resource(&listener, needs)
    }

    fn bound_listener(&self, port: &Port<'_>) -> Resource {
        let mut chains = self.port_chains(port);
        self.exchange_metadata(&mut chains);
        let listener_filters = inspector::inbound(&chains);
        let mut needs = Needs::default();
        let listener = Listener {
            name: names::listener(&port.bind, port.number),
            address: Some(address(&port.bind, port.number)),
            filter_chains: chains.into_iter().map(|chain| chain.into_message(&mut needs)).collect(),
            listener_filters_timeout: inspection_timeout(self.context.config, &listener_filters),
            listener_filters,
            ..self.listener()
        };
        resource(&listener, needs)
    }

    fn exchange_metadata(&self, chains: &mut [Chain]) {
        if let Some(filter) = metadata_exchange(self.context.switches) {
            for chain in chains {
                chain.filters.filters.insert(0, filter.clone());
            }
        }
    }

    fn listener(&self) -> Listener {
        Listener {
            continue_on_listener_filters_timeout: true,
            traffic_direction: TrafficDirection::Inbound.into(),
            connection_balance_config: exact_balance(self.context.switches.inbound_exact_balance),
            max_connections_to_accept_per_socket_event: wire::u32_value(ACCEPTS_AT_ONCE),
            ..Listener::default()
        }
    }

    /// Returns the chains for `port`, or for every port that has none of its own: connections go on to where they
    /// were sent.
    fn passthrough_chains(&self, port: Option<u16>, mode: MtlsMode) -> Vec<Chain> {
        let cluster = names::INBOUND_PASSTHROUGH_CLUSTER;
        self.chains(port, Protocol::Unsupported, mode, None, |handling| match handling {
            Handling::Http => {
                let nowhere = InboundRoute { cluster, host: "", port: 0, protocol: Protocol::Unsupported };
                let filters = self.http(cluster, nowhere);
                (names::VIRTUAL_INBOUND_CATCH_ALL_HTTP.to_owned(), filters)
            }
            Handling::Bytes => {
                let filters = tcp::to_cluster(self.context, cluster, cluster, Protocol::Tcp);
                (names::VIRTUAL_INBOUND_CATCH_ALL_TCP.to_owned(), filters)
            }
        })
    }

    fn port_chains(&self, port: &Port<'_>) -> Vec<Chain> {
        let name = names::listener(&port.bind, port.number);
        let cluster = names::inbound_cluster(port.number);
        let mode = self.audience.mtls.of(port.number);
        let mut chains =
            self.chains(Some(port.number), port.protocol, mode, port.tls, |handling| match handling {
                Handling::Http => {
                    let host = match port.of {
                        Owner::Service(service) => service.host.to_string(),
                        Owner::Sidecar(sidecar) => format!("{}.{}", sidecar.name, sidecar.namespace),
                    };
                    let route = InboundRoute {
                        cluster: &cluster,
                        host: &host,
                        port: port.service_port,
                        protocol: port.protocol,
                    };
                    (name.clone(), self.http(&format!("inbound_{name}"), route))
                }
                Handling::Bytes => {
                    (name.clone(), tcp::to_cluster(self.context, &cluster, &cluster, port.protocol))
                }
            });
        if let Owner::Sidecar(sidecar) = port.of {
            for chain in &mut chains {
                chain.metadata = Some(wire::config_metadata(sidecar));
            }
        }
        chains
    }

    fn http(&self, stat_prefix: &str, route: InboundRoute<'_>) -> Filters {
        let http = Http {
            side: Side::Inbound,
            stat_prefix: format!("{stat_prefix};"),
            routes: Routes::Inline(Box::new(route::inbound(self.mesh, route))),
            protocol: route.protocol,
            dns_caches: Vec::new(),
        };
        http::filters(self.context, http)
    }

    fn chains(
        &self,
        port: Option<u16>,
        protocol: Protocol,
        mode: MtlsMode,
        own_tls: Option<&ServerTls>,
        filters: impl Fn(Handling) -> (String, Filters),
    ) -> Vec<Chain> {
        let identity = Identity::inbound(self.audience);
        let condition = |transport, alpn| Condition { port, transport, alpn, ..Condition::default() };
        if let Some(settings) = own_tls.filter(|_| mode == MtlsMode::Disable && protocol.is_tls()) {
            let handling = if protocol == Protocol::Https { Handling::Http } else { Handling::Bytes };
            let identity = identity.under(self.context.config);
            let socket = tls::server(identity, settings, handling.application());
            let (name, filters) = match socket {
                Some(_) => filters(handling),
                None => (String::new(), tcp::to_black_hole()),
            };
            let mut chain = Chain::named(name, condition(Transport::Tls, &[]), filters);
            if let Some(socket) = socket {
                chain.filters.needs.secrets.extend(socket.secrets.iter().cloned());
                chain.socket = Some(socket.socket());
            }
            return vec![chain];
        }
        let mode = match (mode, identity.present) {
            (MtlsMode::Permissive, false) => MtlsMode::Disable,
            // Fails closed. Leaving the port out would hand it to the chains for other ports.
            (MtlsMode::Strict, false) => {
                return vec![Chain::named(
                    names::VIRTUAL_INBOUND_BLACK_HOLE,
                    condition(Transport::Any, &[]),
                    tcp::to_black_hole(),
                )];
            }
            (mode, _) => mode,
        };
        rows(protocol, mode)
            .into_iter()
            .map(|row| {
                let (name, filters) = filters(row.handling);
                let mut chain = Chain::named(name, condition(row.transport, row.alpn), filters);
                chain.socket = row.terminates.then(|| self.mesh_tls(row.handling.application())).flatten();
                chain
            })
            .collect()
    }

    fn mesh_tls(&self, application: Application) -> Option<TransportSocket> {
        let socket = tls::mesh_server(self.context.config, Identity::inbound(self.audience), application);
        socket.map(|socket| socket.socket())
    }
}

impl Handling {
    fn application(self) -> Application {
        match self {
            Self::Http => Application::Http,
            Self::Bytes => Application::Tcp,
        }
    }
}

/// Returns the chains of a port, in the order of the table at the top.
fn rows(protocol: Protocol, mode: MtlsMode) -> Vec<Row> {
    use Handling::{Bytes, Http};
    use Transport::{Raw, Tls};
    let row = |transport, alpn, handling, terminates| Row { transport, alpn, handling, terminates };
    let handling = match protocol {
        _ if protocol.is_http() => Some(Http),
        Protocol::Unsupported => None,
        _ => Some(Bytes),
    };
    match (handling, mode) {
        (Some(handling), MtlsMode::Strict) => vec![row(Tls, &[], handling, true)],
        (Some(handling), MtlsMode::Disable) => vec![row(Raw, &[], handling, false)],
        (Some(Http), MtlsMode::Permissive) => {
            vec![row(Tls, MESH, Http, true), row(Raw, &[], Http, false)]
        }
        (Some(Bytes), MtlsMode::Permissive) => {
            vec![row(Tls, MESH, Bytes, true), row(Tls, &[], Bytes, false), row(Raw, &[], Bytes, false)]
        }
        (None, MtlsMode::Strict) => vec![row(Tls, MESH_HTTP, Http, true), row(Tls, &[], Bytes, true)],
        (None, MtlsMode::Disable) => vec![row(Raw, PLAIN_HTTP, Http, false), row(Raw, &[], Bytes, false)],
        (None, MtlsMode::Permissive) => vec![
            row(Tls, MESH_HTTP, Http, true),
            row(Raw, PLAIN_HTTP, Http, false),
            row(Tls, MESH_TCP, Bytes, true),
            row(Raw, &[], Bytes, false),
            row(Tls, &[], Bytes, false),
        ],
    }
}
