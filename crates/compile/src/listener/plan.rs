//! Which outbound listeners a sidecar has, and which services are behind each of them.
//!
//! HTTP ports share one listener a port, since requests say which service they are for. Bytes and undeclared ports get
//! a listener for each address of the service. A service without an address shares its port's wildcard listener.

use super::Context;
use crate::audience::OutboundAudience;
use crate::scope::{EgressScope, Scope};
use ipnet::IpNet;
use model::proxy::{Interception, ProxyRole};
use model::service::{Address, Registry, Resolution, Vip};
use model::sidecar::CaptureMode;
use model::view::ServiceRow;
use model::{Hostname, Mesh, ObjectKey, Protocol, ServiceKey, ServicePort, Str};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// Identifies an outbound listener with everything that decides what goes into it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerKey {
    /// The address, or the path of a Unix socket.
    pub(super) bind: Str,
    /// Further addresses, in the other family.
    pub(super) additional: Vec<IpAddr>,
    /// The port; 0 for a Unix socket.
    pub(super) port: u16,
    /// Whether it is really bound. Otherwise captured connections are handed to it.
    pub(super) bound: bool,
    /// Whether `bind` is the address of all interfaces.
    pub(super) wildcard: bool,
    /// The ports of services that it is for, oldest first. Of HTTP ports only the first is here: more make no
    /// difference.
    pub(super) parts: Vec<Part>,
    /// Hosts among them whose names are resolved as requests come.
    pub(super) dynamic: Vec<Hostname>,
}

impl ListenerKey {
    /// Returns the listener's name.
    pub fn name(&self) -> String {
        crate::names::listener(&self.bind, self.port)
    }
}

/// A service's port behind a listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Part {
    /// The service.
    pub service: ServiceKey,
    /// The service's port.
    pub port: u16,
    /// What is spoken there.
    pub protocol: Protocol,
    /// The range of addresses that is the service's.
    pub range: Option<IpNet>,
    /// Whether the service has no address of its own.
    pub unaddressed: bool,
    /// The VirtualServices whose hosts overlap, in order of precedence; for HTTP they are the routes' business.
    pub rules: Vec<ObjectKey>,
}

/// Returns the outbound listeners of a sidecar, the fixed ones aside, in the order of their first services.
pub fn outbound_plan(mesh: &Mesh<'_>, scope: &Scope, audience: &OutboundAudience) -> Vec<ListenerKey> {
    if audience.role != ProxyRole::Sidecar {
        return Vec::new();
    }
    let context =
        Context { config: mesh.config(), switches: &audience.switches, families: audience.families };
    let mut plan =
        Plan { mesh, audience, context, listeners: Vec::new(), places: BTreeMap::new(), locked: 0 };
    for egress in &scope.egress {
        plan.add(egress);
    }
    plan.listeners
}

struct Plan<'a, 'm> {
    mesh: &'a Mesh<'m>,
    audience: &'a OutboundAudience,
    context: Context<'a>,
    listeners: Vec<ListenerKey>,
    places: BTreeMap<(Str, u16), usize>,
    /// How many of the listeners are a Sidecar's own: the one without a port adds nothing to them.
    locked: usize,
}

/// Where and what a service port is listened for.
struct Port<'a> {
    row: &'a ServiceRow,
    /// The port that is listened on.
    listen: u16,
    /// The service's port.
    own: u16,
    protocol: Protocol,
    bound: bool,
    rules: &'a Rules<'a>,
}

impl Plan<'_, '_> {
    fn add(&mut self, egress: &EgressScope) {
        let rules = Rules::new(self.mesh, egress);
        let bound =
            self.audience.interception == Interception::None || egress.capture_mode == CaptureMode::None;
        let bind = egress.bind.clone().filter(|bind| !bind.is_empty());
        let bind = match bind {
            None if bound => Some(Str::from(self.context.loopback().to_string())),
            bind => bind,
        };
        self.locked = if egress.port.is_none() { self.listeners.len() } else { 0 };
        for scoped in &egress.services {
            let Some(row) = self.mesh.service_row(&scoped.key) else { continue };
            if row.alias.is_some() {
                continue;
            }
            let visible = |port: u16| scoped.ports.as_ref().is_none_or(|ports| ports.contains(&port));
            if let Some(listener) = &egress.port {
                let own = match row.ports.as_slice() {
                    [only] => only.port,
                    _ => listener.number,
                };
                let port = Port {
                    row,
                    listen: listener.number,
                    own,
                    protocol: listener.protocol,
                    bound,
                    rules: &rules,
                };
                self.place(&port, bind.clone());
                continue;
            }
            for ServicePort { port, protocol, name, .. } in &row.ports {
                if !visible(*port) {
                    continue;
                }
                let port = Port { row, listen: *port, own: *port, protocol: *protocol, bound, rules: &rules };
                match self.pods(&port, name, bind.as_ref()) {
                    Some(pods) => pods.into_iter().for_each(|pod| self.place(&port, Some(pod))),
                    None => self.place(&port, bind.clone()),
                }
            }
        }
    }

    /// Returns the addresses of the pods of a service that has none of its own, if those are what clients dial.
    fn pods(&self, port: &Port<'_>, name: &str, bind: Option<&Str>) -> Option<Vec<Str>> {
        let row = port.row;
        let bytes = port.protocol.is_tcp() || port.protocol.is_unsupported();
        if bind.is_some() || !bytes || row.resolution != Resolution::Passthrough {
            return None;
        }
        if self.mesh.service(&row.key).is_none_or(|service| !service.vips.is_empty()) {
            return None;
        }
        let endpoints = self.mesh.endpoints(&row.key);
        let pods: Vec<Str> = endpoints
            .iter()
            .filter(|endpoint| endpoint.service_port.as_ref() == name)
            .filter_map(|endpoint| match endpoint.address {
                // A workload that dials itself does not come through here, and its listener would shadow the one for
                // inbound connections.
                Address::Ip(ip) if !self.audience.own_headless.contains(&ip) => Some(ip.to_string().into()),
                _ => None,
            })
            .collect();
        // A ServiceEntry that lists no endpoints leaves it to the client's own lookup where connections go.
        let open = row.registry == Registry::External && endpoints.is_empty() && row.selector.is_empty();
        (!open).then_some(pods)
    }

    /// Adds `port` to the listeners on `bind`, or, without one, to those on the addresses that its protocol asks for.
    fn place(&mut self, port: &Port<'_>, bind: Option<Str>) {
        let wildcard = self.context.wildcard();
        let reserved = self.is_reserved(port.listen);
        if reserved && bind.as_deref().is_none_or(|bind| bind == wildcard.to_string()) {
            return;
        }
        if port.bound && self.context.switches.unprivileged && (1..1024).contains(&port.listen) {
            return;
        }
        match bind {
            Some(bind) => self.insert(port, bind, Vec::new(), None, false),
            None if port.protocol.is_http() => self.on_wildcard(port, None, false),
            None if port.protocol.is_tcp() || port.protocol.is_unsupported() => self.on_addresses(port),
            None => {}
        }
    }

    fn on_wildcard(&mut self, port: &Port<'_>, range: Option<IpNet>, unaddressed: bool) {
        let bind = self.context.wildcard().to_string().into();
        let additional = self.context.second_wildcard().into_iter().collect();
        self.insert(port, bind, additional, range, unaddressed);
    }

    fn on_addresses(&mut self, port: &Port<'_>) {
        let Some(service) = self.mesh.service(&port.row.key) else { return };
        let families = self.context.families;
        let usable = |ip: IpAddr| if ip.is_ipv4() { families.v4 } else { families.v6 };
        if service.vips.is_empty() {
            return self.on_wildcard(port, None, true);
        }
        let mut ips: Vec<IpAddr> = Vec::new();
        for vip in &service.vips {
            match vip {
                Vip::Ip(ip) => ips.push(*ip),
                Vip::Cidr(net) if net.prefix_len() == net.max_prefix_len() => ips.push(net.addr()),
                // Bits behind the prefix mean nothing, and must not make two ranges of one.
                Vip::Cidr(net) => self.on_wildcard(port, Some(net.trunc()), false),
            }
        }
        match service.registry {
            Registry::Kubernetes => {
                if ips.iter().any(|ip| usable(*ip)) {
                    ips.retain(|ip| usable(*ip));
                }
                let Some((first, others)) = ips.split_first() else { return };
                let dual = families.v4 && families.v6;
                let additional = if dual { others.to_vec() } else { Vec::new() };
                self.insert(port, first.to_string().into(), additional, None, false);
            }
            Registry::External => {
                for ip in ips {
                    self.insert(port, ip.to_string().into(), Vec::new(), None, false);
                }
            }
        }
    }

    /// Returns whether the bootstrap or the fixed listeners have this port on every address.
    fn is_reserved(&self, port: u16) -> bool {
        let config = self.context.config;
        self.context.switches.reserved_ports.contains(&port)
            || port == config.proxy_listen_port
            || port == config.proxy_inbound_listen_port
    }

    fn insert(
        &mut self,
        port: &Port<'_>,
        bind: Str,
        additional: Vec<IpAddr>,
        range: Option<IpNet>,
        unaddressed: bool,
    ) {
        if port.protocol == Protocol::Udp || port.protocol == Protocol::Hbone {
            return;
        }
        let next = self.listeners.len();
        let place = *self.places.entry((bind.clone(), port.listen)).or_insert(next);
        if place < self.locked {
            return;
        }
        if place == next {
            let ip = bind.parse::<IpAddr>();
            let wildcard = ip.as_ref().is_ok_and(IpAddr::is_unspecified);
            // Nothing can be captured on its way to a socket.
            let bound = port.bound || ip.is_err();
            self.listeners.push(ListenerKey {
                bind,
                additional,
                port: port.listen,
                bound,
                wildcard,
                parts: Vec::new(),
                dynamic: Vec::new(),
            });
        }
        let listener = &mut self.listeners[place];
        let http = port.protocol.is_http();
        if port.row.resolution == Resolution::DynamicDns && http {
            listener.dynamic.push(port.row.key.host.clone());
        }
        let has_http = |part: &Part| part.protocol.is_http() || part.protocol.is_unsupported();
        if http && listener.parts.iter().any(has_http) {
            return;
        }
        listener.parts.push(Part {
            service: port.row.key.clone(),
            port: port.own,
            protocol: port.protocol,
            range,
            unaddressed,
            rules: if http { Vec::new() } else { port.rules.overlapping(&port.row.key.host) },
        });
    }
}

/// The VirtualServices of an egress listener by host, so that services need not look at each of them.
struct Rules<'a> {
    keys: &'a [ObjectKey],
    exact: HashMap<&'a Hostname, Vec<usize>>,
    wildcards: Vec<(&'a Hostname, usize)>,
}

impl<'a> Rules<'a> {
    fn new(mesh: &Mesh<'a>, egress: &'a EgressScope) -> Self {
        let mut exact: HashMap<&Hostname, Vec<usize>> = HashMap::new();
        let mut wildcards = Vec::new();
        for (i, key) in egress.virtual_services.iter().enumerate() {
            let Some(row) = mesh.virtual_service_row(key) else { continue };
            for host in &row.hosts {
                match host.is_wildcard() {
                    true => wildcards.push((host, i)),
                    false => exact.entry(host).or_default().push(i),
                }
            }
        }
        Self { keys: &egress.virtual_services, exact, wildcards }
    }

    /// Returns those that have a host in common with `host`, in order.
    fn overlapping(&self, host: &Hostname) -> Vec<ObjectKey> {
        let mut found: Vec<usize> = if host.is_wildcard() {
            let exact = self.exact.iter().filter(|(candidate, _)| candidate.overlaps(host));
            exact.flat_map(|(_, rules)| rules).copied().collect()
        } else {
            self.exact.get(host).cloned().unwrap_or_default()
        };
        let wildcards = self.wildcards.iter().filter(|(candidate, _)| candidate.overlaps(host));
        found.extend(wildcards.map(|(_, rule)| *rule));
        found.sort_unstable();
        found.dedup();
        found.into_iter().map(|rule| self.keys[rule].clone()).collect()
    }
}
