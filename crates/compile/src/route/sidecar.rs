//! Outbound virtual hosts of sidecars: what a captured request's host stands for.

use super::destination::Destinations;
use super::domains::{self, Client, Domain, Taken};
use super::rule::Place;
use super::virtual_host::Draft;
use crate::audience::OutboundAudience;
use crate::names::{self, OutboundRoute};
use crate::scope::{EgressScope, Scope, ScopedService};
use model::service::Resolution;
use model::sidecar::OutboundMode;
use model::view::{ServiceRow, VirtualServiceRow};
use model::virtual_service::GatewayRef;
use model::{Hostname, Mesh, ObjectKey, Protocol, ServicePort};
use proto::envoy::config::route::v3::route::Action;
use proto::envoy::config::route::v3::route_action::ClusterSpecifier;
use proto::envoy::config::route::v3::{DirectResponseAction, Route, RouteAction};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// The port on which rules for hosts that no service has are made available.
const WELL_KNOWN_PORT: u16 = 80;

/// Which virtual hosts are wanted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted<'n> {
    /// Those of every service on a port.
    Port(u16),
    /// Those of every service on every port: an explicit proxy, or a Unix socket.
    EveryPort,
    /// That of one service on one port.
    Service(&'n str, u16),
}

impl Wanted<'_> {
    /// Returns the port that requests arrive at, if it is one only.
    fn port(self) -> Option<u16> {
        match self {
            Self::Port(port) | Self::Service(_, port) => Some(port),
            Self::EveryPort => None,
        }
    }
}

/// Returns the egress listener behind the route configuration `route`, and which of its virtual hosts belong to it.
pub(super) fn egress<'s, 'n>(
    scope: &'s Scope,
    route: OutboundRoute<'n>,
) -> Option<(&'s EgressScope, Wanted<'n>)> {
    let wanted = match route {
        OutboundRoute::Port(port) => Wanted::Port(port),
        OutboundRoute::Service { host, port } => Wanted::Service(host, port),
        OutboundRoute::Unix(_) | OutboundRoute::HttpProxy => Wanted::EveryPort,
    };
    let listener = scope.egress.iter().find(|listener| match (&listener.port, route) {
        (None, _) => true,
        (Some(port), OutboundRoute::Unix(path)) => {
            port.number == 0 && listener.bind.as_deref().is_some_and(|bind| same_socket(bind, path))
        }
        (Some(port), _) => wanted.port() == Some(port.number),
    })?;
    let proxy = listener.port.as_ref().is_some_and(|port| port.protocol == Protocol::HttpProxy);
    Some((listener, if proxy { Wanted::EveryPort } else { wanted }))
}

fn same_socket(a: &str, b: &str) -> bool {
    a.trim_start_matches("unix://") == b.trim_start_matches("unix://")
}

/// A service at a listener: the ports that count there.
pub(super) struct Listed<'a> {
    pub(super) row: &'a ServiceRow,
    pub(super) ports: Vec<&'a ServicePort>,
}

/// Virtual hosts that share their routes.
struct Group<'l, 'a> {
    port: u16,
    /// Hosts that no service has.
    hosts: Vec<&'a Hostname>,
    /// Services, by their place in the list.
    services: Vec<&'l Listed<'a>>,
    routes: Vec<Rc<Route>>,
}

/// Makes the virtual hosts of one egress listener.
pub(super) struct Builder<'m, 'a> {
    pub(super) destinations: Destinations<'m, 'a>,
    pub(super) listener: &'m EgressScope,
    pub(super) wanted: Wanted<'m>,
}

impl<'m, 'a> Builder<'m, 'a> {
    fn mesh(&self) -> &'m Mesh<'a> {
        self.destinations.mesh
    }

    fn audience(&self) -> &'m OutboundAudience {
        self.destinations.audience
    }

    /// Returns the virtual hosts by name, without the one for everything else.
    pub(super) fn virtual_hosts(&self) -> Vec<Draft> {
        let listed = self.listed();
        let by_host: HashMap<&Hostname, usize> =
            listed.iter().enumerate().map(|(index, service)| (&service.row.key.host, index)).collect();
        let groups = self.groups(&listed, &by_host);
        let mut drafts = self.drafts(&groups);
        drafts.sort_by(|a, b| a.host.name.cmp(&b.host.name));
        drafts
    }

    /// Returns the services that have the wanted port.
    fn listed(&self) -> Vec<Listed<'a>> {
        let wanted = |scoped: &&ScopedService| match self.wanted {
            Wanted::Service(host, _) => scoped.key.host.as_str() == host,
            _ => true,
        };
        self.listener.services.iter().filter(wanted).filter_map(|scoped| self.at_port(scoped)).collect()
    }

    fn at_port(&self, scoped: &ScopedService) -> Option<Listed<'a>> {
        let row = self.mesh().service_row(&scoped.key)?;
        let visible =
            |port: &&ServicePort| scoped.ports.as_ref().is_none_or(|ports| ports.contains(&port.port));
        let ports: Vec<&ServicePort> = match self.wanted.port() {
            // A UDP port may have the same number, and no say here.
            Some(wanted) => {
                let mut same = row.ports.iter().filter(|port| port.port == wanted).filter(visible);
                let first = same.next()?;
                let first =
                    if first.protocol == Protocol::Udp { same.next().unwrap_or(first) } else { first };
                vec![first]
            }
            None => row.ports.iter().filter(visible).collect(),
        };
        (!ports.is_empty()).then_some(Listed { row, ports })
    }

    /// Returns whether a VirtualService may be about what is wanted. For a single service most are not, and there may
    /// be as many single services as VirtualServices.
    fn may_concern(&self, row: &VirtualServiceRow) -> bool {
        match self.wanted {
            Wanted::Service(wanted, _) => {
                row.hosts.iter().any(|host| host.as_str() == wanted || host.is_wildcard())
            }
            _ => true,
        }
    }

    /// Returns the routes of every VirtualService that applies, in order of precedence, then those of the services
    /// that none is about.
    fn groups<'l>(
        &self,
        listed: &'l [Listed<'a>],
        by_host: &HashMap<&Hostname, usize>,
    ) -> Vec<Group<'l, 'a>> {
        let rows: Vec<&'a VirtualServiceRow> = self
            .listener
            .virtual_services
            .iter()
            .filter_map(|key| self.mesh().virtual_service_row(key))
            .map(AsRef::as_ref)
            .filter(|row| self.may_concern(row))
            .collect();
        let winners = most_specific(&rows, listed);
        let mut covered = vec![false; listed.len()];
        let mut groups = Vec::new();
        for row in &rows {
            let (hosts, services) = split_hosts(row, listed, by_host, &winners);
            let anywhere = matches!(self.wanted, Wanted::Port(WELL_KNOWN_PORT));
            if services.is_empty() && (hosts.is_empty() || !anywhere) {
                continue;
            }
            for index in self.groups_of(row, &hosts, &services, listed, anywhere, &mut groups) {
                covered[index] = true;
            }
        }
        for (service, _) in listed.iter().zip(covered).filter(|(_, covered)| !covered) {
            // An alias answers through the virtual host of what it stands for.
            if service.row.resolution == Resolution::Alias {
                continue;
            }
            for port in service.ports.iter().filter(|port| routable(port)) {
                let route = self.destinations.default_route(&service.row.key, port.port);
                groups.push(Group {
                    port: port.port,
                    hosts: Vec::new(),
                    services: vec![service],
                    routes: vec![Rc::new(route)],
                });
            }
        }
        groups
    }

    /// Adds the groups of one VirtualService, one for each port of its services. Returns the services in them.
    fn groups_of<'l>(
        &self,
        row: &VirtualServiceRow,
        hosts: &[&'a Hostname],
        services: &[usize],
        listed: &'l [Listed<'a>],
        anywhere: bool,
        groups: &mut Vec<Group<'l, 'a>>,
    ) -> Vec<usize> {
        let mut by_port: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        for &index in services {
            for port in listed[index].ports.iter().filter(|port| routable(port)) {
                by_port.entry(port.port).or_default().push(index);
            }
        }
        if by_port.is_empty() && anywhere {
            by_port.insert(WELL_KNOWN_PORT, Vec::new());
        }
        let mut covered = Vec::new();
        let Some(rules) = self.mesh().virtual_service(&row.key).filter(|_| !by_port.is_empty()) else {
            return covered;
        };
        let mut last: Option<(u16, Vec<Rc<Route>>)> = None;
        for (port, indices) in by_port {
            let destination_port = self.wanted.port().unwrap_or(port);
            let routes = match &last {
                Some((known, routes)) if *known == destination_port => routes.clone(),
                _ => {
                    let place = Place {
                        port: self.wanted.port().unwrap_or_default(),
                        destination_port,
                        gateway: &GatewayRef::Mesh,
                        tls: false,
                    };
                    self.destinations.routes(rules, place).into_iter().map(Rc::new).collect()
                }
            };
            last = Some((destination_port, routes.clone()));
            if routes.is_empty() {
                continue;
            }
            covered.extend(indices.iter().copied());
            groups.push(Group {
                port,
                hosts: hosts.to_vec(),
                services: indices.into_iter().map(|index| &listed[index]).collect(),
                routes,
            });
        }
        covered
    }

    /// Returns the virtual hosts of all groups. The first group to name a host keeps it.
    fn drafts(&self, groups: &[Group<'_, 'a>]) -> Vec<Draft> {
        let aliases = self.aliases(groups);
        let mut taken = Taken::default();
        for service in groups.iter().flat_map(|group| &group.services) {
            taken.reserve(service.row.key.host.as_str());
        }
        let mut seen: HashMap<(&Hostname, u16), ()> = HashMap::new();
        let mut drafts = Vec::new();
        for group in groups {
            let hosts = group.hosts.iter().map(|host| (*host, None));
            let services = group.services.iter().map(|service| (&service.row.key.host, Some(*service)));
            for (host, service) in hosts.chain(services) {
                let unwanted = match self.wanted {
                    Wanted::Service(only, port) => (host.as_str(), group.port) != (only, port),
                    _ => false,
                };
                if unwanted || seen.insert((host, group.port), ()).is_some() {
                    continue;
                }
                let domains = taken.take(self.domains(host, service, group.port, &aliases));
                if !domains.is_empty() {
                    let name = names::host_port(&domains::in_url(host.as_str()), group.port);
                    drafts.push(Draft::new(name, domains, group.routes.clone()));
                }
            }
        }
        drafts
    }

    fn domains(
        &self,
        host: &Hostname,
        service: Option<&Listed<'a>>,
        port: u16,
        aliases: &HashMap<&Hostname, Vec<&Hostname>>,
    ) -> Vec<Domain> {
        if let Wanted::Service(..) = self.wanted {
            return vec![Domain::full("*")];
        }
        let service = service.and_then(|service| self.mesh().service(&service.row.key));
        let domains = match service {
            None => vec![Domain::full(domains::in_url(host.as_str()))],
            Some(service) => {
                let audience = self.audience();
                let client = Client { dns_domain: &audience.dns_domain, families: audience.families };
                let aliases = aliases.get(host).map(Vec::as_slice).unwrap_or_default();
                domains::of_service(client, service, aliases)
            }
        };
        match self.wanted.port() {
            Some(_) => domains,
            None => with_ports(domains, port),
        }
    }

    /// Returns the aliases in scope by the host that they stand for, as far as it is in these groups.
    fn aliases(&self, groups: &[Group<'_, 'a>]) -> HashMap<&'a Hostname, Vec<&'a Hostname>> {
        let mut aliases: HashMap<&Hostname, Vec<&Hostname>> = HashMap::new();
        if let Wanted::Service(..) = self.wanted {
            return aliases;
        }
        let hosts: HashMap<&Hostname, ()> = groups
            .iter()
            .flat_map(|group| &group.services)
            .map(|service| (&service.row.key.host, ()))
            .collect();
        for scoped in self.destinations.scope.services.values() {
            let row = self.mesh().service_row(&scoped.key);
            let Some(row) = row.filter(|row| row.resolution == Resolution::Alias) else { continue };
            let Some(service) = self.mesh().service(&row.key) else { continue };
            let target = self.destinations.behind_alias(service);
            if let Some((target, ())) = hosts.get_key_value(target) {
                aliases.entry(*target).or_default().push(&row.key.host);
            }
        }
        aliases
    }
}

/// Returns whether requests on this port are told apart: declared HTTP, or perhaps HTTP.
pub(super) fn routable(port: &ServicePort) -> bool {
    port.protocol.is_http() || port.protocol.is_unsupported()
}

/// Returns the names with the port appended, and for the default port also without.
fn with_ports(domains: Vec<Domain>, port: u16) -> Vec<Domain> {
    let mut all = Vec::with_capacity(domains.len() * 2);
    for domain in domains {
        let name = names::host_port(&domain.name, port);
        let shortened = domain.shortened;
        if port == WELL_KNOWN_PORT {
            all.push(domain);
        }
        all.push(Domain { name, shortened });
    }
    all
}

/// Returns for each service the VirtualService that the most specific host leads to. Of equal hosts the first counts.
/// Empty if there are no wildcards, for then hosts settle it.
fn most_specific<'a>(rows: &[&'a VirtualServiceRow], listed: &[Listed<'_>]) -> Vec<Option<&'a ObjectKey>> {
    let mut exact: HashMap<&Hostname, &ObjectKey> = HashMap::new();
    let mut wildcards: Vec<(&Hostname, &ObjectKey)> = Vec::new();
    for row in rows {
        for host in &row.hosts {
            if host.is_wildcard() {
                wildcards.push((host, &row.key));
            } else {
                exact.entry(host).or_insert(&row.key);
            }
        }
    }
    if wildcards.is_empty() {
        return Vec::new();
    }
    // A stable sort: among equal hosts the first stays first.
    wildcards.sort_by(|(a, _), (b, _)| a.by_specificity(b));
    listed
        .iter()
        .map(|service| {
            let host = &service.row.key.host;
            let exact = exact.get(host).copied().filter(|_| !host.is_wildcard());
            let covers =
                |pattern: &Hostname| host.as_str().ends_with(pattern.as_str().trim_start_matches('*'));
            exact.or_else(|| wildcards.iter().find(|(pattern, _)| covers(pattern)).map(|(_, key)| *key))
        })
        .collect()
}

/// Splits the hosts of a VirtualService into those that no service here has, and services.
fn split_hosts<'a>(
    row: &'a VirtualServiceRow,
    listed: &[Listed<'_>],
    by_host: &HashMap<&Hostname, usize>,
    winners: &[Option<&ObjectKey>],
) -> (Vec<&'a Hostname>, Vec<usize>) {
    let mut unknown = Vec::new();
    let mut services = Vec::new();
    for host in row.hosts.iter().filter(|host| !host.is_wildcard()) {
        match by_host.get(host) {
            Some(&index) => services.push(index),
            None => unknown.push(host),
        }
    }
    for pattern in row.hosts.iter().filter(|host| host.is_wildcard()) {
        let mut matched = false;
        for (index, service) in listed.iter().enumerate() {
            if !service.row.key.host.overlaps(pattern) {
                continue;
            }
            matched = true;
            if winners.get(index).copied().flatten() == Some(&row.key) && !services.contains(&index) {
                services.push(index);
            }
        }
        if !matched {
            unknown.push(pattern);
        }
    }
    (unknown, services)
}

/// Returns the virtual host of everything that no other one claims.
pub(super) fn catch_all(destinations: Destinations<'_, '_>) -> Draft {
    let policy = &destinations.scope.outbound_traffic_policy;
    let through = |cluster: String| {
        let mut action = RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
            append_x_forwarded_host: destinations.audience.switches.proxy.headers.forwarded_host,
            ..RouteAction::default()
        };
        super::set_timeout(&mut action, std::time::Duration::ZERO);
        Action::Route(action)
    };
    let (name, action) = match policy.mode {
        OutboundMode::AllowAnyDynamicDns => {
            (names::ALLOW_ANY_DYNAMIC_DNS, through(names::DYNAMIC_DNS_CLUSTER.to_owned()))
        }
        OutboundMode::AllowAny => {
            let cluster = match &policy.egress_proxy {
                Some(proxy) => {
                    let default = super::destination::DefaultPort::Listener(0);
                    destinations.cluster(proxy, default)
                }
                None => names::PASSTHROUGH_CLUSTER.to_owned(),
            };
            (names::ALLOW_ANY, through(cluster))
        }
        OutboundMode::RegistryOnly => {
            let refusal = DirectResponseAction { status: 502, ..DirectResponseAction::default() };
            (names::BLOCK_ALL, Action::DirectResponse(refusal))
        }
    };
    let route = Route {
        name: name.to_owned(),
        r#match: Some(super::matcher::everything()),
        action: Some(action),
        ..Route::default()
    };
    Draft::new(name.to_owned(), vec!["*".to_owned()], vec![Rc::new(route)])
}

#[cfg(test)]
mod tests;
