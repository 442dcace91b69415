//! Outbound virtual hosts of sidecars: what a captured request's host stands for.

use super::destination::Destinations;
use super::domains::{self, Client, Domain, Taken};
use super::rule::Place;
use super::virtual_host::Draft;
use crate::audience::OutboundAudience;
use crate::names::{self, OutboundRoute};
use crate::scope::{EgressScope, Scope, ScopedService};
use model::service::{Registry, Resolution};
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

    /// Returns the services that have the wanted port, one for each host.
    fn listed(&self) -> Vec<Listed<'a>> {
        let mut chosen: HashMap<&Hostname, usize> = HashMap::new();
        let mut listed: Vec<Listed<'a>> = Vec::new();
        for scoped in &self.listener.services {
            if let Wanted::Service(host, _) = self.wanted
                && scoped.key.host.as_str() != host
            {
                continue;
            }
            let Some(service) = self.at_port(scoped) else { continue };
            match chosen.get(&service.row.key.host) {
                None => {
                    chosen.insert(&service.row.key.host, listed.len());
                    listed.push(service);
                }
                Some(&index) => {
                    if self.is_better(service.row, listed[index].row) {
                        listed[index] = service;
                    }
                }
            }
        }
        listed
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

    /// Returns whether `new` is to be used for its host rather than `held`: a ServiceEntry has the addresses that are
    /// dialled although a Kubernetes Service has the endpoints; otherwise the scope decides.
    fn is_better(&self, new: &ServiceRow, held: &ServiceRow) -> bool {
        match (new.registry, held.registry) {
            (Registry::External, Registry::Kubernetes) => true,
            (Registry::Kubernetes, Registry::External) => false,
            _ => self.destinations.scope.service(&new.key.host) == Some(&new.key),
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
            .collect();
        let winners = most_specific(&rows, listed);
        let mut covered = vec![false; listed.len()];
        let mut groups = Vec::new();
        for row in &rows {
            let (hosts, services) = split_hosts(row, listed, by_host, &winners);
            let anywhere = matches!(self.wanted, Wanted::Port(WELL_KNOWN_PORT));
            if services.is_empty() && !(anywhere && !hosts.is_empty()) {
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
    let (name, action) = match policy.mode {
        OutboundMode::AllowAny => {
            let cluster = match &policy.egress_proxy {
                Some(proxy) => {
                    let default = super::destination::DefaultPort::Listener(0);
                    destinations.cluster(proxy, default)
                }
                None => names::PASSTHROUGH_CLUSTER.to_owned(),
            };
            let mut action = RouteAction {
                cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
                ..RouteAction::default()
            };
            super::set_timeout(&mut action, std::time::Duration::ZERO);
            (names::ALLOW_ANY, Action::Route(action))
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
mod tests {
    use crate::route::fixture::{World, destination, host, hosts, line, port, routes, rule, under, when};
    use model::service::{Resolution, Vip};
    use model::sidecar::{
        CaptureMode, EgressHost, EgressListener, EgressNamespace, OutboundMode, OutboundTrafficPolicy,
        SidecarPort,
    };
    use model::virtual_service::{GatewayRef, HttpMatch};
    use model::{ExportTo, Hostname, Labels, Namespace, Protocol};
    use std::time::Duration;

    const CART: &str = "cart.shop.svc.cluster.local:80";

    #[test]
    fn services_answer_to_all_their_names() {
        let world = World::new()
            .service("shop/cart", "80/http 90/http")
            .service("infra/mail", "80/http")
            .service("shop/db", "80/tcp")
            .service("shop/other", "81/http")
            .external("shop", "*.wiki.test", "80/http");
        let got = world.outbound("shop", "80").unwrap();
        assert_eq!(
            hosts(&got),
            [
                "*.wiki.test:80 = *.wiki.test *.wiki.test.",
                "cart.shop.svc.cluster.local:80 = cart.shop.svc.cluster.local cart.shop.svc.cluster.local. cart \
                 cart.shop.svc cart.shop 10.0.0.1",
                "mail.infra.svc.cluster.local:80 = mail.infra.svc.cluster.local mail.infra.svc.cluster.local. \
                 mail.infra.svc mail.infra 10.0.0.2",
                "allow_any = *",
            ]
        );
        assert_eq!(routes(&got, CART), ["/* -> 80||cart.shop"]);
        assert_eq!(routes(&got, "allow_any"), ["/* -> PassthroughCluster"]);
        assert!(got.ignore_port_in_host_matching);
        assert!(got.virtual_hosts.iter().all(|host| host.include_request_attempt_count));
        assert_eq!(got.validate_clusters.map(|value| value.value), Some(false));
        assert_eq!(got.max_direct_response_body_size_bytes.map(|value| value.value), Some(1 << 20));
    }

    #[test]
    fn headless_services_answer_for_their_pods() {
        let world = World::new().service_with("shop/db", "80/http", |service| {
            service.resolution = Resolution::Passthrough;
            service.vips.clear();
        });
        let got = world.outbound("infra", "80").unwrap();
        assert_eq!(
            host(&got, "db.shop.svc.cluster.local:80").domains,
            [
                "db.shop.svc.cluster.local",
                "db.shop.svc.cluster.local.",
                "db.shop.svc",
                "db.shop",
                "*.db.shop.svc.cluster.local",
                "*.db.shop.svc.cluster.local.",
                "*.db.shop.svc",
                "*.db.shop"
            ]
        );
    }

    #[test]
    fn aliases_answer_through_what_they_stand_for() {
        let alias = |to: &'static str| {
            move |service: &mut model::Service| {
                service.resolution = Resolution::Alias;
                service.alias = Some(Hostname::new(to));
                service.vips.clear();
            }
        };
        let world = World::new()
            .service("shop/cart", "80/http")
            .service_with("infra/basket", "80/http", alias("cart.shop.svc.cluster.local"))
            .service_with("infra/trolley", "80/http", alias("basket.infra.svc.cluster.local"))
            .service_with("infra/ruled", "80/http", alias("cart.shop.svc.cluster.local"))
            .rules(
                "infra/ruled",
                &["ruled.infra.svc.cluster.local"],
                vec![rule("ruled.infra.svc.cluster.local")],
                |_| {},
            );
        let got = world.outbound("other", "80").unwrap();
        assert_eq!(
            hosts(&got),
            [
                "cart.shop.svc.cluster.local:80 = cart.shop.svc.cluster.local cart.shop.svc.cluster.local. \
                 cart.shop.svc cart.shop basket.infra.svc.cluster.local basket.infra.svc.cluster.local. \
                 basket.infra.svc basket.infra trolley.infra.svc.cluster.local \
                 trolley.infra.svc.cluster.local. trolley.infra.svc trolley.infra 10.0.0.1",
                "ruled.infra.svc.cluster.local:80 = ruled.infra.svc.cluster.local \
                 ruled.infra.svc.cluster.local. ruled.infra.svc ruled.infra",
                "allow_any = *",
            ]
        );
        assert_eq!(routes(&got, "ruled.infra.svc.cluster.local:80"), ["/* -> 80||cart.shop"]);
    }

    #[test]
    fn a_service_entry_has_the_addresses_of_a_host_that_kubernetes_has_too() {
        let world =
            World::new().service("shop/cart", "80/http").service_with("infra/entry", "80/http", |service| {
                service.key.host = Hostname::new("cart.shop.svc.cluster.local");
                service.registry = model::service::Registry::External;
                service.vips = vec![Vip::Ip([172, 16, 0, 2].into())];
            });
        let got = world.outbound("other", "80").unwrap();
        let domains = &host(&got, CART).domains;
        assert!(domains.contains(&"172.16.0.2".to_owned()), "{domains:?}");
    }

    #[test]
    fn rules_replace_the_default_route_of_their_services() {
        let world =
            World::new().service("shop/cart", "80/http").service("shop/mail", "80/http 90/http").rules(
                "shop/cart",
                &["cart.shop.svc.cluster.local"],
                vec![when(vec![under("/mail")], rule("mail")), rule("cart|v1")],
                |_| {},
            );
        let got = world.outbound("shop", "80").unwrap();
        assert_eq!(routes(&got, CART), ["/mail* -> 80||mail.shop", "/* -> 80|v1|cart.shop"]);
        assert_eq!(routes(&got, "mail.shop.svc.cluster.local:80"), ["/* -> 80||mail.shop"]);
    }

    #[test]
    fn a_destination_without_port_gets_the_listeners_even_if_it_has_another_one_only() {
        let world = World::new().service("shop/cart", "80/http").service("shop/mail", "90/http").rules(
            "shop/cart",
            &["cart.shop.svc.cluster.local"],
            vec![when(vec![under("/a")], rule("mail||90")), rule("mail")],
            |_| {},
        );
        let got = world.outbound("shop", "80").unwrap();
        assert_eq!(routes(&got, CART), ["/a* -> 90||mail.shop", "/* -> 80||mail.shop"]);
    }

    #[test]
    fn unknown_hosts_are_served_on_port_80_and_beside_known_ones() {
        let world = World::new()
            .service("shop/cart", "90/http")
            .rules("shop/out", &["www.example.com"], vec![rule("cart||90")], |_| {})
            .rules(
                "shop/both",
                &["api.example.com", "cart.shop.svc.cluster.local"],
                vec![rule("cart||90")],
                |_| {},
            );
        assert_eq!(
            hosts(&world.outbound("shop", "80").unwrap()),
            [
                "api.example.com:80 = api.example.com",
                "cart.shop.svc.cluster.local:80 = cart.shop.svc.cluster.local",
                "www.example.com:80 = www.example.com",
                "allow_any = *",
            ]
        );
        let names: Vec<String> =
            world.outbound("shop", "90").unwrap().virtual_hosts.into_iter().map(|host| host.name).collect();
        assert_eq!(names, ["api.example.com:90", "cart.shop.svc.cluster.local:90", "allow_any"]);
        let other = world.outbound("shop", "91").unwrap();
        assert_eq!(hosts(&other), ["allow_any = *"]);
    }

    #[test]
    fn the_oldest_rules_of_a_host_win_unless_none_applies() {
        let client = |key: &str| {
            let source_labels: Labels = [("app", key)].into_iter().collect();
            HttpMatch { source_labels, ..HttpMatch::default() }
        };
        let cart = ["cart.shop.svc.cluster.local"];
        let world = World::new()
            .service("shop/cart", "80/http 90/http")
            .rules("shop/a", &cart, vec![when(vec![client("x")], rule("cart|a"))], |_| {})
            .rules(
                "shop/b",
                &cart,
                vec![when(vec![HttpMatch { port: Some(80), ..HttpMatch::default() }], rule("cart|b"))],
                |_| {},
            );
        let get = |sources: &[&str], name: &str, host: &str| {
            let got = world
                .outbound_for("shop", name, |audience| {
                    audience.sources =
                        sources.iter().map(|app| [("app", *app)].into_iter().collect()).collect();
                })
                .unwrap();
            routes(&got, host)
        };
        assert_eq!(get(&["x"], "80", CART), ["/* -> 80|a|cart.shop"]);
        assert_eq!(get(&[], "80", CART), ["/* -> 80|b|cart.shop"]);
        assert_eq!(get(&[], "90", "cart.shop.svc.cluster.local:90"), ["/* -> 90||cart.shop"]);
    }

    #[test]
    fn of_wildcards_the_most_specific_wins_for_each_service() {
        let world = World::new()
            .external("shop", "a.b.test", "80/http")
            .external("infra", "c.test", "80/http")
            .rules("shop/wide", &["*.test"], vec![rule("wide")], |_| {})
            .rules("shop/narrow", &["*.b.test"], vec![rule("narrow")], |_| {})
            .rules("shop/unknown", &["*.example"], vec![rule("unknown")], |_| {});
        let got = world.outbound("shop", "80").unwrap();
        assert_eq!(routes(&got, "a.b.test:80"), ["/* -> 80||narrow.shop"]);
        assert_eq!(routes(&got, "c.test:80"), ["/* -> 80||wide.shop"]);
        assert_eq!(host(&got, "*.example:80").domains, ["*.example"]);
        assert_eq!(got.virtual_hosts.len(), 4);
    }

    #[test]
    fn an_address_as_host_takes_the_address_of_a_service() {
        let world = World::new().service("shop/cart", "80/http").rules(
            "shop/ip",
            &["10.0.0.1"],
            vec![rule("cart")],
            |_| {},
        );
        let got = world.outbound("infra", "80").unwrap();
        assert_eq!(host(&got, "10.0.0.1:80").domains, ["10.0.0.1"]);
        assert!(!host(&got, CART).domains.contains(&"10.0.0.1".to_owned()));
    }

    #[test]
    fn a_sniffed_service_has_a_configuration_of_its_own() {
        let world = World::new().service("shop/cart", "70/").service("shop/mail", "70/").rules(
            "shop/cart",
            &["cart.shop.svc.cluster.local", "www.example.com"],
            vec![rule("cart|v1")],
            |_| {},
        );
        let got = world.outbound("shop", "cart.shop.svc.cluster.local:70").unwrap();
        assert_eq!(hosts(&got), ["cart.shop.svc.cluster.local:70 = *"]);
        assert_eq!(routes(&got, "cart.shop.svc.cluster.local:70"), ["/* -> 70|v1|cart.shop"]);
        let mail = world.outbound("shop", "mail.shop.svc.cluster.local:70").unwrap();
        assert_eq!(hosts(&mail), ["mail.shop.svc.cluster.local:70 = *"]);
        assert!(world.outbound("shop", "gone.shop.svc.cluster.local:70").is_none());
        assert!(world.outbound("shop", "cart.shop.svc.cluster.local:71").is_none());
        assert!(world.outbound("shop", "nonsense").is_none());
    }

    fn egress(port: Option<(u16, Protocol)>, bind: Option<&str>, host: &str) -> EgressListener {
        EgressListener {
            port: port.map(|(number, protocol)| SidecarPort { number, protocol, name: "x".into() }),
            bind: bind.map(Into::into),
            capture_mode: CaptureMode::Default,
            hosts: vec![EgressHost { namespace: EgressNamespace::Any, host: Hostname::new(host) }],
        }
    }

    #[test]
    fn each_egress_listener_has_its_own_services() {
        let world = World::new()
            .service("shop/cart", "80/http 90/http")
            .service("shop/mail", "80/http 90/http")
            .sidecar("shop/default", |sidecar| {
                sidecar.egress = vec![
                    egress(Some((80, Protocol::Http)), None, "cart.shop.svc.cluster.local"),
                    egress(Some((0, Protocol::Http)), Some("unix:///x"), "*"),
                    egress(Some((3128, Protocol::HttpProxy)), None, "mail.shop.svc.cluster.local"),
                    egress(None, None, "mail.shop.svc.cluster.local"),
                ];
            });
        let names = |name: &str| {
            let got = world.outbound("shop", name).unwrap();
            got.virtual_hosts.into_iter().map(|host| host.name).collect::<Vec<_>>()
        };
        assert_eq!(names("80"), [CART, "allow_any"]);
        assert_eq!(names("90"), ["mail.shop.svc.cluster.local:90", "allow_any"]);
        assert_eq!(
            names("unix:///x"),
            [
                CART,
                "cart.shop.svc.cluster.local:90",
                "mail.shop.svc.cluster.local:80",
                "mail.shop.svc.cluster.local:90",
                "allow_any"
            ]
        );
        assert_eq!(
            names("3128"),
            ["mail.shop.svc.cluster.local:80", "mail.shop.svc.cluster.local:90", "allow_any"]
        );
        let socket = world.outbound("shop", "unix:///x").unwrap();
        assert!(!socket.ignore_port_in_host_matching);
        assert_eq!(
            host(&socket, "cart.shop.svc.cluster.local:90").domains[0],
            "cart.shop.svc.cluster.local:90"
        );
    }

    #[test]
    fn the_explicit_proxy_serves_every_port() {
        let world = World::new().service("shop/cart", "80/http 90/http").rules(
            "shop/cart",
            &["cart.shop.svc.cluster.local"],
            vec![rule("cart|v1")],
            |_| {},
        );
        let got = world.outbound("infra", "http_proxy").unwrap();
        assert_eq!(
            hosts(&got),
            [
                "cart.shop.svc.cluster.local:80 = cart.shop.svc.cluster.local \
                 cart.shop.svc.cluster.local:80 cart.shop.svc.cluster.local. \
                 cart.shop.svc.cluster.local.:80 cart.shop.svc cart.shop.svc:80 cart.shop cart.shop:80 \
                 10.0.0.1 10.0.0.1:80",
                "cart.shop.svc.cluster.local:90 = cart.shop.svc.cluster.local:90 \
                 cart.shop.svc.cluster.local.:90 cart.shop.svc:90 cart.shop:90 10.0.0.1:90",
                "allow_any = *",
            ]
        );
        assert_eq!(routes(&got, "cart.shop.svc.cluster.local:90"), ["/* -> 90|v1|cart.shop"]);
    }

    #[test]
    fn unknown_destinations_follow_the_policy() {
        let policy = |mode, egress_proxy| OutboundTrafficPolicy { mode, egress_proxy };
        let cases = [
            (policy(OutboundMode::AllowAny, None), "allow_any", "/* -> PassthroughCluster"),
            (
                policy(OutboundMode::AllowAny, Some(destination("proxy|v1|3128"))),
                "allow_any",
                "/* -> 3128|v1|proxy.shop",
            ),
            (policy(OutboundMode::RegistryOnly, None), "block_all", "/* -> 502"),
        ];
        for (policy, name, route) in cases {
            let world = World::new().config(|config| config.outbound_traffic_policy = policy);
            let got = world.outbound("shop", "80").unwrap();
            assert_eq!(hosts(&got), [format!("{name} = *")]);
            assert_eq!(line(&got.virtual_hosts[0].routes[0]), route);
            assert_eq!(got.virtual_hosts[0].routes[0].name, name);
        }
    }

    #[test]
    fn rules_apply_to_whom_they_are_exported_and_where_they_are_bound() {
        let cart = ["cart.shop.svc.cluster.local"];
        let world = World::new()
            .service("shop/cart", "80/http")
            .rules("shop/edge", &cart, vec![rule("cart|edge")], |rules| {
                rules.gateways = vec![GatewayRef::Gateway(Namespace::new("edge"), "public".into())];
            })
            .rules("shop/all", &cart, vec![rule("cart|all")], |_| {})
            .rules("shop/own", &cart, vec![rule("cart|own")], |rules| {
                rules.export_to = ExportTo::Namespaces([Namespace::new("shop")].into());
            });
        let get = |namespace| routes(&world.outbound(namespace, "80").unwrap(), CART);
        assert_eq!(get("infra"), ["/* -> 80|all|cart.shop"]);
        assert_eq!(get("shop"), ["/* -> 80|own|cart.shop"]);
    }

    #[test]
    fn timeouts_and_retries_have_defaults() {
        let world = World::new().service("shop/cart", "80/http");
        let got = world.outbound("shop", "80").unwrap();
        let Some(super::Action::Route(action)) = &host(&got, CART).routes[0].action else { panic!() };
        assert_eq!(action.timeout, Some(Duration::ZERO.into()));
        let retries = action.retry_policy.as_ref().unwrap();
        assert_eq!(retries.num_retries.map(|value| value.value), Some(2));
        assert_eq!(
            retries.retry_on,
            "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
        );
        assert!(retries.retriable_status_codes.is_empty());
        assert_eq!(retries.retry_host_predicate.len(), 1);
        assert_eq!(retries.host_selection_retry_max_attempts, 5);
        assert_eq!(port("80/http").protocol, Protocol::Http);
    }
}
