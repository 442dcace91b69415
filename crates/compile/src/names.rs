//! The names that resources refer to each other by: written and read back in one place.
//!
//! Users' tools (dashboards, EnvoyFilters, access logs) know these names from Istio, so their form is an interface.
//!
//! ```text
//! outbound|<service port>|<subset>|<host>      a cluster of a service, and its load assignment
//! outbound_.<service port>_.<subset>_.<host>   the SNI of mutual TLS to it, and the cluster that AUTO_PASSTHROUGH
//!                                              gateways have for that SNI
//! inbound|<workload port>||                    a workload's own port
//! <address>_<port>                             a listener
//! <port>, <host>:<port>, http.<port>, https.…  route configurations
//! ```

use model::gateway::Server;
use model::{ObjectKey, Str};
use std::fmt::Write as _;

/// The cluster of traffic that must not go anywhere.
pub const BLACK_HOLE_CLUSTER: &str = "BlackHoleCluster";
/// The cluster of traffic that goes where it was going.
pub const PASSTHROUGH_CLUSTER: &str = "PassthroughCluster";
/// The same for traffic that arrives at a workload on a port no service has.
pub const INBOUND_PASSTHROUGH_CLUSTER: &str = "InboundPassthroughCluster";
/// The cluster of requests that go to whatever their host resolves to.
pub const DYNAMIC_DNS_CLUSTER: &str = "AllowAnyDynamicDNSCluster";
/// The cache of the names that it has resolved.
pub const DYNAMIC_DNS_CACHE: &str = "allow_any_dfp_dns_cache";

/// The listener of captured outbound connections.
pub const VIRTUAL_OUTBOUND: &str = "virtualOutbound";
/// The listener of captured inbound connections.
pub const VIRTUAL_INBOUND: &str = "virtualInbound";
/// The filter chain of `virtualOutbound` that refuses connections to the listener's own port.
pub const VIRTUAL_OUTBOUND_BLACK_HOLE: &str = "virtualOutbound-blackhole";
/// The filter chain of `virtualOutbound` for what no service claims.
pub const VIRTUAL_OUTBOUND_CATCH_ALL: &str = "virtualOutbound-catchall-tcp";
/// The same for HTTP, where hosts are resolved as requests come.
pub const VIRTUAL_OUTBOUND_CATCH_ALL_HTTP: &str = "virtualOutbound-catchall-tcp-http";
/// The filter chain of `virtualInbound` that refuses connections to the listener's own port.
pub const VIRTUAL_INBOUND_BLACK_HOLE: &str = "virtualInbound-blackhole";
/// The filter chains of `virtualInbound` for bytes on a port that no service has.
pub const VIRTUAL_INBOUND_CATCH_ALL_TCP: &str = "virtualInbound";
/// The filter chains of `virtualInbound` for HTTP on a port that no service has.
pub const VIRTUAL_INBOUND_CATCH_ALL_HTTP: &str = "virtualInbound-catchall-http";
/// The default filter chain of the listeners that services share a port on.
pub const PASSTHROUGH_FILTER_CHAIN: &str = "PassthroughFilterChain";

/// The explicit HTTP proxy's route configuration.
pub const HTTP_PROXY_ROUTE: &str = "http_proxy";
/// The virtual host of unknown destinations that are let through.
pub const ALLOW_ANY: &str = "allow_any";
/// The virtual host and route configuration of unknown destinations whose hosts are resolved.
pub const ALLOW_ANY_DYNAMIC_DNS: &str = "allow_any_dynamic_dns";
/// The virtual host of unknown destinations that are refused.
pub const BLOCK_ALL: &str = "block_all";

/// A part of a service: what an outbound cluster is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OutboundName<'a> {
    /// The service port.
    pub port: u16,
    /// The subset; empty for all of the service.
    pub subset: &'a str,
    /// The service's host, or what a rule calls by that name.
    pub host: &'a str,
}

impl<'a> OutboundName<'a> {
    /// Returns the name of the cluster, which is the load assignment's as well.
    pub fn cluster(self) -> String {
        self.joined("outbound|", "|")
    }

    /// Returns the server name of mutual TLS, which is also the name of the cluster that AUTO_PASSTHROUGH gateways
    /// have for it.
    pub fn sni(self) -> String {
        self.joined("outbound_.", "_.")
    }

    /// Reads a cluster's name back.
    pub fn parse_cluster(name: &'a str) -> Option<Self> {
        Self::parts(name.strip_prefix("outbound|")?, "|")
    }

    /// Reads a server name back.
    pub fn parse_sni(name: &'a str) -> Option<Self> {
        Self::parts(name.strip_prefix("outbound_.")?, "_.")
    }

    fn joined(self, prefix: &str, separator: &str) -> String {
        let Self { port, subset, host } = self;
        let mut name =
            String::with_capacity(prefix.len() + 5 + 2 * separator.len() + subset.len() + host.len());
        name.push_str(prefix);
        push_port(&mut name, port);
        for part in [subset, host] {
            name.push_str(separator);
            name.push_str(part);
        }
        name
    }

    fn parts(text: &'a str, separator: &str) -> Option<Self> {
        let (port, rest) = text.split_once(separator)?;
        let (subset, host) = rest.split_once(separator)?;
        Some(Self { port: port.parse().ok()?, subset, host })
    }
}

/// Returns the name of the cluster of a service's port; `subset` is empty for all of the service.
pub fn outbound_cluster(port: u16, subset: &str, host: &str) -> String {
    OutboundName { port, subset, host }.cluster()
}

/// Returns the server name of mutual TLS to a service's port; `subset` is empty for all of the service.
pub fn sni(port: u16, subset: &str, host: &str) -> String {
    OutboundName { port, subset, host }.sni()
}

/// Returns the name of the cluster of a workload's own port, which is also that of the inline route configuration
/// of the port.
pub fn inbound_cluster(workload_port: u16) -> String {
    let mut name = String::with_capacity(16);
    name.push_str("inbound|");
    push_port(&mut name, workload_port);
    name.push_str("||");
    name
}

/// Reads the workload port from an inbound cluster's name.
pub fn parse_inbound_cluster(name: &str) -> Option<u16> {
    name.strip_prefix("inbound|")?.strip_suffix("||")?.parse().ok()
}

/// Returns the name of the virtual host of an inbound port.
pub fn inbound_virtual_host(service_port: u16) -> String {
    format!("inbound|http|{service_port}")
}

/// Returns the name of a listener on `bind` and `port`, which is also that of a service's filter chain in
/// `virtualInbound`. A Unix socket has port 0.
pub fn listener(bind: &str, port: u16) -> String {
    let mut name = String::with_capacity(bind.len() + 6);
    name.push_str(bind);
    name.push('_');
    push_port(&mut name, port);
    name
}

/// Returns `host:port`: a virtual host's name, and the route configuration of a sniffed service that has its own
/// listener.
pub fn host_port(host: &str, port: u16) -> String {
    let mut name = String::with_capacity(host.len() + 6);
    name.push_str(host);
    name.push(':');
    push_port(&mut name, port);
    name
}

/// Returns the name of the virtual host that answers for a gateway's port without routes.
pub fn gateway_black_hole(port: u16) -> String {
    host_port("blackhole", port)
}

/// A sidecar's outbound route configuration, as read from its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboundRoute<'a> {
    /// `<port>`: all HTTP services on a port.
    Port(u16),
    /// `<host>:<port>`: a sniffed service that has its own listener.
    Service {
        /// The service's host.
        host: &'a str,
        /// The service's port.
        port: u16,
    },
    /// A Unix socket of a Sidecar's egress listener: its path.
    Unix(&'a str),
    /// The explicit HTTP proxy's.
    HttpProxy,
}

impl<'a> OutboundRoute<'a> {
    /// Reads a route configuration's name.
    pub fn parse(name: &'a str) -> Option<Self> {
        if name == HTTP_PROXY_ROUTE {
            return Some(Self::HttpProxy);
        }
        if name.starts_with("unix://") || name.starts_with('/') || name.starts_with('@') {
            return Some(Self::Unix(name));
        }
        if let Ok(port) = name.parse() {
            return Some(Self::Port(port));
        }
        let (host, port) = name.rsplit_once(':')?;
        Some(Self::Service { host, port: port.parse().ok()? })
    }
}

/// Returns the name of the route configuration of a gateway's plain-text port, as really bound.
pub fn gateway_http_route(port: u16, bind: Option<&str>) -> String {
    let mut name = String::from("http.");
    push_port(&mut name, port);
    push_bind(&mut name, bind);
    name
}

/// Returns the name of the route configuration of a gateway's server that terminates TLS. The port in it is the
/// declared one, whatever port is really bound.
pub fn gateway_https_route(gateway: &ObjectKey, server: &Server) -> String {
    let mut name = String::from("https.");
    push_port(&mut name, server.port);
    for part in [&*server.port_name, &*gateway.name, gateway.namespace.as_str()] {
        name.push('.');
        name.push_str(part);
    }
    push_bind(&mut name, server.bind.as_deref());
    name
}

/// A gateway's route configuration, as read from its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayRoute<'a> {
    /// `http.<port>[.<bind>]`: every plain-text server on a bound port.
    Http {
        /// The bound port.
        port: u16,
        /// The address, if it is not the wildcard.
        bind: Option<&'a str>,
    },
    /// `https.…`: a single server. Gateway names may hold dots, so the parts are not told apart: look for the server
    /// whose [`gateway_https_route`] is equal. The declared port is certain and narrows the search.
    Https {
        /// The declared port.
        port: u16,
    },
}

impl<'a> GatewayRoute<'a> {
    /// Reads a route configuration's name.
    pub fn parse(name: &'a str) -> Option<Self> {
        if let Some(rest) = name.strip_prefix("http.") {
            let (port, bind) = match rest.split_once('.') {
                Some((port, bind)) => (port, Some(bind)),
                None => (rest, None),
            };
            return Some(Self::Http { port: port.parse().ok()?, bind });
        }
        let (port, _) = name.strip_prefix("https.")?.split_once('.')?;
        Some(Self::Https { port: port.parse().ok()? })
    }
}

/// Returns the statistics name of a cluster: its own, or what the mesh's `pattern` (`outboundClusterStatName`) makes of
/// it, ended by the delimiter that agents' statistics rules look for.
pub fn stat_name(pattern: &str, cluster: &str, parts: &StatParts<'_>) -> String {
    let mut name = if pattern.is_empty() { cluster.to_owned() } else { parts.fill(pattern) };
    name.push(';');
    name
}

/// What the variables of a statistics pattern stand for.
#[derive(Clone, Copy, Debug)]
pub struct StatParts<'a> {
    /// The service's host.
    pub host: &'a str,
    /// The service's namespace.
    pub namespace: &'a str,
    /// The service's name in the registry.
    pub name: &'a str,
    /// The service port.
    pub port: u16,
    /// The service port's name.
    pub port_name: &'a str,
    /// The workload's port; 0 outbound.
    pub target_port: u16,
    /// The subset; empty for all of the service.
    pub subset: &'a str,
}

impl StatParts<'_> {
    fn fill(&self, pattern: &str) -> String {
        let mut name = pattern
            .replace("%SERVICE%", &self.short_service())
            .replace("%SERVICE_NAME%", self.name)
            .replace("%SERVICE_FQDN%", self.host);
        for (variable, number) in [("%SERVICE_PORT%", self.port), ("%TARGET_PORT%", self.target_port)] {
            if name.contains(variable) {
                let mut digits = String::with_capacity(5);
                push_port(&mut digits, number);
                name = name.replace(variable, &digits);
            }
        }
        name.replace("%SERVICE_PORT_NAME%", self.port_name).replace("%SUBSET_NAME%", self.subset)
    }

    /// Returns `name.namespace` for a Kubernetes Service, the host for anything else.
    fn short_service(&self) -> String {
        match self.host.strip_prefix(self.name).and_then(|rest| rest.strip_prefix('.')) {
            Some(rest) if rest.strip_prefix(self.namespace).is_some_and(|rest| rest.starts_with(".svc.")) => {
                format!("{}.{}", self.name, self.namespace)
            }
            _ => self.host.to_owned(),
        }
    }
}

/// Returns the path that Istio's metadata has for a configuration object, such as
/// `/apis/networking.istio.io/v1/namespaces/default/virtual-service/reviews`.
pub fn config_path(object: &ObjectKey) -> String {
    let mut path = format!("/apis/networking.istio.io/v1/namespaces/{}/", object.namespace);
    for (i, letter) in object.kind.as_str().chars().enumerate() {
        if i > 0 && letter.is_ascii_uppercase() {
            path.push('-');
        }
        path.push(letter.to_ascii_lowercase());
    }
    path.push('/');
    path.push_str(&object.name);
    path
}

/// Returns the name of the secret with the authorities of a credential.
pub fn ca_secret(credential: &str) -> Str {
    format!("{credential}-cacert").into()
}

fn push_port(name: &mut String, port: u16) {
    // Writing to a String cannot fail.
    let _ = write!(name, "{port}");
}

fn push_bind(name: &mut String, bind: Option<&str>) {
    if let Some(bind) = bind.filter(|bind| !bind.is_empty()) {
        name.push('.');
        name.push_str(bind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Kind, Protocol};

    #[test]
    fn outbound_names_are_read_back() {
        let reviews = OutboundName { port: 9080, subset: "v1", host: "reviews.default.svc.cluster.local" };
        assert_eq!(reviews.cluster(), "outbound|9080|v1|reviews.default.svc.cluster.local");
        assert_eq!(reviews.sni(), "outbound_.9080_.v1_.reviews.default.svc.cluster.local");
        assert_eq!(OutboundName::parse_cluster(&reviews.cluster()), Some(reviews));
        assert_eq!(OutboundName::parse_sni(&reviews.sni()), Some(reviews));

        let whole = OutboundName { port: 443, subset: "", host: "*.example.org" };
        assert_eq!(OutboundName::parse_cluster("outbound|443||*.example.org"), Some(whole));
        assert_eq!(OutboundName::parse_sni("outbound_.443_._.*.example.org"), Some(whole));
        for other in ["inbound|80||", "outbound|http||a", "outbound|80|a", "outbound|65536||a", ""] {
            assert_eq!(OutboundName::parse_cluster(other), None, "{other}");
        }
    }

    #[test]
    fn inbound_names_are_read_back() {
        assert_eq!(inbound_cluster(8080), "inbound|8080||");
        assert_eq!(parse_inbound_cluster("inbound|8080||"), Some(8080));
        assert_eq!(parse_inbound_cluster("inbound|8080|http|a"), None);
    }

    #[test]
    fn outbound_routes_are_told_apart() {
        let cases = [
            ("80", Some(OutboundRoute::Port(80))),
            (
                "a.default.svc.cluster.local:70",
                Some(OutboundRoute::Service { host: "a.default.svc.cluster.local", port: 70 }),
            ),
            ("unix:///var/run/x:1", Some(OutboundRoute::Unix("unix:///var/run/x:1"))),
            ("http_proxy", Some(OutboundRoute::HttpProxy)),
            ("whatever", None),
            ("a:b", None),
        ];
        for (name, route) in cases {
            assert_eq!(OutboundRoute::parse(name), route, "{name}");
        }
    }

    #[test]
    fn gateway_routes_are_told_apart() {
        let gateway = ObjectKey::new(Kind::Gateway, "edge", "public");
        let server = Server {
            index: 0,
            name: None,
            port: 443,
            port_name: "https".into(),
            protocol: Protocol::Https,
            bind: Some("10.1.2.3".into()),
            hosts: Vec::new(),
            tls: None,
        };
        assert_eq!(gateway_https_route(&gateway, &server), "https.443.https.public.edge.10.1.2.3");
        assert_eq!(gateway_http_route(8080, None), "http.8080");
        let cases = [
            ("http.8080", Some(GatewayRoute::Http { port: 8080, bind: None })),
            ("http.80.10.1.2.3", Some(GatewayRoute::Http { port: 80, bind: Some("10.1.2.3") })),
            ("http.0.unix:///x", Some(GatewayRoute::Http { port: 0, bind: Some("unix:///x") })),
            ("https.443.https.public.edge", Some(GatewayRoute::Https { port: 443 })),
            ("8080", None),
            ("http.x", None),
        ];
        for (name, route) in cases {
            assert_eq!(GatewayRoute::parse(name), route, "{name}");
        }
    }

    #[test]
    fn stat_names_follow_the_pattern() {
        let parts = StatParts {
            host: "a.default.svc.cluster.local",
            namespace: "default",
            name: "a",
            port: 80,
            port_name: "http",
            target_port: 8080,
            subset: "v1",
        };
        let cluster = "outbound|80|v1|a.default.svc.cluster.local";
        let cases = [
            ("", "outbound|80|v1|a.default.svc.cluster.local;"),
            ("%SERVICE%", "a.default;"),
            ("%SERVICE_FQDN%_%SERVICE_PORT%", "a.default.svc.cluster.local_80;"),
            ("%SERVICE_NAME%|%SERVICE_PORT_NAME%|%SUBSET_NAME%|%TARGET_PORT%", "a|http|v1|8080;"),
        ];
        for (pattern, name) in cases {
            assert_eq!(stat_name(pattern, cluster, &parts), name, "{pattern}");
        }
        let entry = StatParts { host: "api.example.org", name: "api", ..parts };
        assert_eq!(stat_name("%SERVICE%", cluster, &entry), "api.example.org;");
    }

    #[test]
    fn config_paths_have_kinds_in_kebab_case() {
        let rule = ObjectKey::new(Kind::DestinationRule, "default", "reviews");
        assert_eq!(
            config_path(&rule),
            "/apis/networking.istio.io/v1/namespaces/default/destination-rule/reviews"
        );
    }
}
