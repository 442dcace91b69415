//! What the Gateways of one workload come to together: which servers are bound where, and which lose a conflict.
//!
//! Listeners and routes are made from the same [`merge`], so that a listener never asks for a route configuration
//! that is not made, nor the other way round. Older Gateways come first, and what came first stays:
//!
//! - plain-text HTTP servers on one port share a listener and a route configuration,
//! - servers with TLS share a listener and are told apart by SNI, so a host can be claimed once per port and bind,
//! - plain text after TLS becomes a filter chain of its own beside the TLS ones; TLS after plain text is refused.

use crate::audience::GatewayAudience;
use crate::names;
use model::gateway::{Gateway, HostNamespace, Server, ServerHost, ServerTlsMode};
use model::view::GatewayRow;
use model::{Mesh, ObjectKey, Protocol, Rejection, Str};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// A server on a port that is really bound.
#[derive(Clone, Debug)]
pub struct BoundServer<'a> {
    /// The Gateway.
    pub gateway: &'a Gateway,
    /// The server.
    pub server: &'a Server,
    /// The bound port; the server's own is the declared one.
    pub port: u16,
    /// The route configuration, for servers whose requests are routed.
    pub route: Option<Str>,
}

impl BoundServer<'_> {
    /// Returns whether bytes arrive encrypted here, whoever opens them.
    pub fn is_tls(&self) -> bool {
        is_tls(self.server)
    }

    /// Returns whether requests are routed here: HTTP, or HTTPS that is terminated.
    pub fn is_http(&self) -> bool {
        is_http(self.server)
    }
}

/// An address that servers share.
#[derive(Clone, Debug)]
pub struct BoundListener<'a> {
    /// The port; 0 for a Unix socket.
    pub port: u16,
    /// The address or `unix://` path instead of the wildcard.
    pub bind: Option<Str>,
    /// The servers in order of precedence; never empty.
    pub servers: Vec<BoundServer<'a>>,
}

/// Returns whether requests are routed at `server`: HTTP, or HTTPS that is terminated.
pub fn is_http(server: &Server) -> bool {
    server.protocol.is_http()
        || (server.protocol == Protocol::Https && server.tls.is_some() && !passes_through(server))
}

/// Returns whether connections to `server` are encrypted. Plain-text HTTP that only redirects is not.
pub fn is_tls(server: &Server) -> bool {
    server.tls.is_some() && !server.protocol.is_http()
}

/// Returns whether `server` leaves TLS closed.
pub fn passes_through(server: &Server) -> bool {
    server
        .tls
        .as_ref()
        .is_some_and(|tls| matches!(tls.mode, ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough))
}

/// Returns what the audience's Gateways bind, in the order in which addresses were first claimed.
pub fn merge<'a>(mesh: &Mesh<'a>, audience: &GatewayAudience) -> Vec<BoundListener<'a>> {
    merge_all(mesh, audience).listeners
}

/// Returns which servers lose a conflict wherever their Gateways are bound, with the reason. Gateways meet at least at
/// the workloads that the most specific of their selectors picks, or at those of the same services.
pub fn conflicts(mesh: &Mesh<'_>) -> Vec<Rejection> {
    let mut rows: Vec<&GatewayRow> = mesh.gateways().map(AsRef::as_ref).collect();
    rows.sort_by_key(|row| (row.created, &row.key.name, &row.key.namespace));
    let mut groups: BTreeSet<Vec<&ObjectKey>> = BTreeSet::new();
    for row in &rows {
        let meets = |other: &&&GatewayRow| match (&row.services, &other.services) {
            (None, None) => other.selector.selects(&row.selector),
            (Some(own), Some(others)) => row.key.namespace == other.key.namespace && own == others,
            _ => false,
        };
        groups.insert(rows.iter().filter(meets).map(|row| &row.key).collect());
    }
    let mut rejections = BTreeSet::new();
    for group in groups {
        // Ports are taken as declared: what they are translated to is not known without a workload.
        let gateways = group.into_iter().cloned().collect();
        let merged = merge_all(mesh, &GatewayAudience { gateways, ..GatewayAudience::default() });
        rejections.extend(merged.refused);
    }
    rejections.into_iter().collect()
}

fn merge_all<'a>(mesh: &Mesh<'a>, audience: &GatewayAudience) -> Merge<'a> {
    let mut merge = Merge::default();
    for key in &audience.gateways {
        let Some(gateway) = mesh.gateway(key) else { continue };
        for server in &gateway.servers {
            for port in bound_ports(audience, key, server) {
                merge.add(gateway, server, port);
            }
        }
    }
    merge
}

/// Returns the servers behind the route configuration `name`, in order of precedence.
pub fn servers_of_route<'l, 'a>(listeners: &'l [BoundListener<'a>], name: &str) -> Vec<&'l BoundServer<'a>> {
    listeners
        .iter()
        .flat_map(|listener| &listener.servers)
        .filter(|server| server.route.as_deref() == Some(name))
        .collect()
}

/// Returns the ports that a server's declared port is bound to.
fn bound_ports(audience: &GatewayAudience, gateway: &ObjectKey, server: &Server) -> Vec<u16> {
    if let Some(ports) = audience.service_ports.get(gateway) {
        return ports.get(&server.port).into_iter().flatten().copied().collect();
    }
    match audience.port_map.get(&server.port) {
        Some(ports) => ports.iter().copied().collect(),
        None => vec![server.port],
    }
}

fn route_name(gateway: &ObjectKey, server: &Server, port: u16) -> Option<Str> {
    if server.protocol.is_http() {
        return Some(names::gateway_http_route(port, server.bind.as_deref()).into());
    }
    is_http(server).then(|| names::gateway_https_route(gateway, server).into())
}

/// The merge so far.
#[derive(Default)]
struct Merge<'a> {
    listeners: Vec<BoundListener<'a>>,
    /// The first server of a port, if it is plain text: its protocol and bind.
    plain: BTreeMap<u16, (Protocol, Option<Str>)>,
    /// Ports that something is bound to, and the Gateway that was first.
    ports: BTreeMap<u16, &'a ObjectKey>,
    /// Addresses of ports whose first server has TLS, as later servers claimed them.
    beside_tls: BTreeSet<(u16, Option<Str>)>,
    /// Hosts that are taken, by port and bind.
    hosts: BTreeMap<(u16, Option<Str>, String), &'a ObjectKey>,
    /// Route configurations that are taken.
    routes: BTreeSet<Str>,
    /// Servers that lost.
    refused: Vec<Rejection>,
}

impl<'a> Merge<'a> {
    fn add(&mut self, gateway: &'a Gateway, server: &'a Server, port: u16) {
        if server.tls.is_some()
            && let Err(reason) = self.claim_hosts(&gateway.meta.key, server, port)
        {
            return self.refuse(gateway, server, "hosts", reason);
        }
        let route = route_name(&gateway.meta.key, server, port);
        let fits = match self.plain.get(&port) {
            Some((protocol, bind)) => {
                let both_http = server.protocol.is_http() && protocol.is_http();
                *bind != server.bind || (both_http && route.is_some())
            }
            None if self.ports.contains_key(&port) => self.fits_beside_tls(server, port, route.as_ref()),
            None => {
                if !is_tls(server) {
                    self.plain.insert(port, (server.protocol, server.bind.clone()));
                }
                true
            }
        };
        if !fits {
            let owner = self.ports.get(&port).copied().unwrap_or(&gateway.meta.key);
            let spoken = match self.plain.get(&port) {
                Some((protocol, _)) => format!("{protocol} in plain text"),
                None => "TLS".to_owned(),
            };
            let declared = server.port;
            let reason = format!("port {declared} is taken: {owner} is older and speaks {spoken} there");
            return self.refuse(gateway, server, "port", reason);
        }
        self.ports.entry(port).or_insert(&gateway.meta.key);
        self.routes.extend(route.clone());
        let bound = BoundServer { gateway, server, port, route };
        match self.listeners.iter_mut().find(|listener| listener.port == port && listener.bind == server.bind)
        {
            Some(listener) => listener.servers.push(bound),
            None => {
                self.listeners.push(BoundListener { port, bind: server.bind.clone(), servers: vec![bound] })
            }
        }
    }

    /// Returns whether `server` can stand beside the servers with TLS that were first on its port.
    fn fits_beside_tls(&mut self, server: &Server, port: u16, route: Option<&Str>) -> bool {
        if route.is_some_and(|route| self.routes.contains(route)) {
            return false;
        }
        let new = self.beside_tls.insert((port, server.bind.clone()));
        server.tls.is_some() || new
    }

    fn refuse(&mut self, gateway: &Gateway, server: &Server, field: &str, reason: String) {
        let field = format!("spec.servers[{}].{field}", server.index);
        self.refused.push(Rejection { object: gateway.meta.key.clone(), field, reason });
    }

    /// Claims the hosts of a server with TLS. Returns why it cannot if one is taken: two filter chains for one SNI would
    /// make Envoy refuse the listener. The hosts of a server that is refused stay claimed.
    fn claim_hosts(&mut self, gateway: &'a ObjectKey, server: &Server, port: u16) -> Result<(), String> {
        // A host may be there for several namespaces.
        let names: BTreeSet<String> = server.hosts.iter().map(|host| claimed_name(server, host)).collect();
        let mut taken = None;
        for name in names {
            match self.hosts.entry((port, server.bind.clone(), name)) {
                Entry::Vacant(free) => drop(free.insert(gateway)),
                Entry::Occupied(other) => {
                    let name = &other.key().2;
                    let reason =
                        || format!("{name:?} is taken on port {}: {} is older", server.port, other.get());
                    taken = taken.or_else(|| Some(reason()));
                }
            }
        }
        taken.map_or(Ok(()), Err)
    }
}

/// Returns the text that must be unique. Where an SNI decides, the namespace that may bind to a host makes no
/// difference. A plain-text server that redirects has no SNI: there only the very same entry is a duplicate.
fn claimed_name(server: &Server, host: &ServerHost) -> String {
    let name = host.host.as_str().to_ascii_lowercase();
    match &host.namespace {
        _ if is_tls(server) => name,
        HostNamespace::Any => name,
        HostNamespace::Only(namespace) => format!("{namespace}/{name}"),
        HostNamespace::Nobody => format!("~/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::server_tls;
    use model::gateway::ServerTls;
    use model::{Hostname, Kind, Labels, MeshView, MeshViewBuilder, Meta, Namespace};

    /// `port/protocol/hosts` with an optional ` tls MODE` and ` bind ADDRESS`.
    fn server(text: &str) -> Server {
        let mut words = text.split(' ');
        let mut spec = words.next().unwrap().split('/');
        let port: u16 = spec.next().unwrap().parse().unwrap();
        let protocol = spec.next().unwrap();
        let hosts = spec.next().unwrap().split(',').map(|host| match host.split_once('@') {
            Some((namespace, host)) => ServerHost {
                namespace: HostNamespace::Only(Namespace::new(namespace)),
                host: Hostname::new(host),
            },
            None => ServerHost { namespace: HostNamespace::Any, host: Hostname::new(host) },
        });
        let (mut tls, mut bind) = (None, None);
        while let Some(word) = words.next() {
            let value = words.next().unwrap();
            match word {
                "tls" => tls = Some(value),
                _ => bind = Some(value.into()),
            }
        }
        Server {
            index: 0,
            name: None,
            port,
            port_name: protocol.to_lowercase().into(),
            protocol: Protocol::parse(protocol),
            bind,
            hosts: hosts.collect(),
            tls: tls.map(tls_settings),
        }
    }

    fn tls_settings(mode: &str) -> ServerTls {
        ServerTls {
            https_redirect: mode == "redirect",
            mode: match mode {
                "passthrough" | "redirect" => ServerTlsMode::Passthrough,
                _ => ServerTlsMode::Simple,
            },
            ..server_tls(ServerTlsMode::Simple)
        }
    }

    fn view(gateways: &[(&str, &[&str])]) -> (MeshView, GatewayAudience) {
        let mut builder = MeshViewBuilder::new(MeshView::default());
        let mut keys = Vec::new();
        for (name, servers) in gateways {
            let key = ObjectKey::new(Kind::Gateway, "edge", *name);
            keys.push(key.clone());
            let meta = Meta { key, created: 0, labels: Labels::new(), annotations: Labels::new() };
            let numbered = servers.iter().enumerate();
            let servers = numbered.map(|(index, text)| Server { index, ..server(text) }).collect();
            builder.set_gateway(Gateway { meta, selector: Labels::new(), services: None, servers });
        }
        let audience = GatewayAudience { gateways: keys, ..GatewayAudience::default() };
        (builder.view().clone(), audience)
    }

    /// Each listener as `port[@bind]: gateway>route, …`.
    fn merged(gateways: &[(&str, &[&str])], port_map: &[(u16, &[u16])]) -> Vec<String> {
        let (view, mut audience) = view(gateways);
        audience.port_map =
            port_map.iter().map(|(port, bound)| (*port, bound.iter().copied().collect())).collect();
        let mesh = Mesh::new(&view);
        merge(&mesh, &audience)
            .iter()
            .map(|listener| {
                let bind = listener.bind.as_ref().map(|bind| format!("@{bind}")).unwrap_or_default();
                let servers: Vec<String> = listener
                    .servers
                    .iter()
                    .map(|bound| {
                        format!("{}>{}", bound.gateway.meta.key.name, bound.route.as_deref().unwrap_or("-"))
                    })
                    .collect();
                format!("{}{bind}: {}", listener.port, servers.join(", "))
            })
            .collect()
    }

    #[test]
    fn plain_http_servers_share_a_port_and_a_route() {
        let got = merged(&[("a", &["80/HTTP/x", "80/HTTP2/y"]), ("b", &["80/GRPC/z"])], &[]);
        assert_eq!(got, ["80: a>http.80, a>http.80, b>http.80"]);
    }

    #[test]
    fn other_protocols_lose_to_plain_http() {
        let got = merged(&[("a", &["80/HTTP/x", "80/TCP/*", "80/HTTPS/x tls simple"])], &[]);
        assert_eq!(got, ["80: a>http.80"]);
    }

    #[test]
    fn a_second_plain_tcp_server_on_a_port_is_refused_unless_bound_elsewhere() {
        let got = merged(&[("a", &["90/TCP/*", "90/TCP/*", "90/TCP/* bind 10.0.0.1"])], &[]);
        assert_eq!(got, ["90: a>-", "90@10.0.0.1: a>-"]);
    }

    #[test]
    fn tls_servers_share_a_port_as_long_as_hosts_differ() {
        let got = merged(
            &[
                ("a", &["443/HTTPS/x,y tls simple", "443/TLS/z tls passthrough"]),
                ("b", &["443/HTTPS/y,w tls simple", "443/HTTPS/ns@x tls simple", "443/HTTPS/v tls simple"]),
            ],
            &[],
        );
        assert_eq!(got, ["443: a>https.443.https.a.edge, a>-, b>https.443.https.b.edge"]);
    }

    #[test]
    fn hosts_may_repeat_on_another_bind() {
        let got = merged(&[("a", &["443/HTTPS/x tls simple", "443/HTTPS/x tls simple bind 10.0.0.1"])], &[]);
        assert_eq!(got, ["443: a>https.443.https.a.edge", "443@10.0.0.1: a>https.443.https.a.edge.10.0.0.1"]);
    }

    #[test]
    fn one_server_may_have_a_host_for_several_namespaces() {
        let got = merged(&[("a", &["443/HTTPS/one@x,two@x,x tls simple"])], &[]);
        assert_eq!(got, ["443: a>https.443.https.a.edge"]);
    }

    #[test]
    fn plain_text_after_tls_stands_beside_it_once() {
        let got = merged(&[("a", &["443/HTTPS/x tls simple", "443/HTTP/y", "443/HTTP/z", "443/TCP/*"])], &[]);
        assert_eq!(got, ["443: a>https.443.https.a.edge, a>http.443"]);
    }

    #[test]
    fn redirecting_servers_are_plain_text() {
        let got = merged(&[("a", &["80/HTTP/x tls redirect", "80/HTTP/y", "80/HTTP/x tls redirect"])], &[]);
        assert_eq!(got, ["80: a>http.80, a>http.80"]);
    }

    #[test]
    fn routes_are_named_by_the_bound_port_for_http_and_by_the_declared_one_for_https() {
        let got = merged(
            &[("a", &["80/HTTP/x", "443/HTTPS/x tls simple", "9000/TCP/*"])],
            &[(80, &[8080, 8081]), (443, &[8443])],
        );
        assert_eq!(
            got,
            ["8080: a>http.8080", "8081: a>http.8081", "8443: a>https.443.https.a.edge", "9000: a>-"]
        );
    }

    #[test]
    fn servers_that_lose_are_named_with_the_winner() {
        let (view, _) = view(&[
            ("a", &["443/HTTPS/x tls simple", "80/HTTP/x", "81/TCP/*"]),
            ("b", &["443/HTTPS/y,x tls simple", "80/HTTPS/z tls simple", "81/TCP/*", "443/HTTP/y"]),
        ]);
        let lost: Vec<String> = conflicts(&Mesh::new(&view)).iter().map(ToString::to_string).collect();
        assert_eq!(
            lost,
            [
                "Gateway edge/b: spec.servers[0].hosts: \"x\" is taken on port 443: Gateway edge/a is older",
                "Gateway edge/b: spec.servers[1].port: port 80 is taken: Gateway edge/a is older and speaks HTTP in plain text there",
                "Gateway edge/b: spec.servers[2].port: port 81 is taken: Gateway edge/a is older and speaks TCP in plain text there",
            ]
        );
    }

    #[test]
    fn gateways_that_never_meet_do_not_conflict() {
        let (view, _) = view(&[("a", &["443/HTTPS/x tls simple"]), ("b", &["443/HTTPS/x tls simple"])]);
        let mut builder = MeshViewBuilder::new(view);
        let select = |builder: &mut MeshViewBuilder, name: &str, labels: &[(&str, &str)]| {
            let key = ObjectKey::new(Kind::Gateway, "edge", name);
            let mut gateway = Gateway::clone(Mesh::new(builder.view()).gateway(&key).unwrap());
            gateway.selector = labels.iter().copied().collect();
            builder.set_gateway(gateway);
        };
        let count = |builder: &MeshViewBuilder| conflicts(&Mesh::new(builder.view())).len();
        assert_eq!(count(&builder), 1);
        select(&mut builder, "a", &[("app", "one")]);
        assert_eq!(count(&builder), 1, "the other one is for every workload");
        select(&mut builder, "b", &[("app", "two")]);
        assert_eq!(count(&builder), 0);
        select(&mut builder, "b", &[("app", "one"), ("zone", "z")]);
        assert_eq!(count(&builder), 1);
    }

    #[test]
    fn a_gateway_for_services_binds_their_ports_only() {
        let (view, mut audience) = view(&[("a", &["80/HTTP/x", "82/HTTP/x"])]);
        let ports = BTreeMap::from([(80, BTreeSet::from([8080, 8081]))]);
        audience.service_ports.insert(audience.gateways[0].clone(), ports);
        let bound: Vec<u16> =
            merge(&Mesh::new(&view), &audience).iter().map(|listener| listener.port).collect();
        assert_eq!(bound, [8080, 8081]);
    }

    #[test]
    fn a_route_has_the_servers_that_ask_for_it() {
        let (view, audience) = view(&[("a", &["80/HTTP/x", "81/HTTP/x"]), ("b", &["80/HTTP/y"])]);
        let mesh = Mesh::new(&view);
        let listeners = merge(&mesh, &audience);
        let names = |route| {
            servers_of_route(&listeners, route)
                .iter()
                .map(|bound| bound.gateway.meta.key.name.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(names("http.80"), ["a", "b"]);
        assert_eq!(names("http.81"), ["a"]);
        assert!(names("http.82").is_empty());
    }
}
