//! Virtual hosts of gateways: the hosts of servers, with the rules that are bound to them.

use super::destination::Destinations;
use super::matcher;
use super::rule::Place;
use super::virtual_host::Draft;
use crate::gateway::BoundServer;
use crate::names;
use model::gateway::{HostNamespace, Server};
use model::view::VirtualServiceRow;
use model::virtual_service::GatewayRef;
use model::{Hostname, Namespace, ObjectKey};
use proto::envoy::config::route::v3::Route;
use proto::envoy::config::route::v3::virtual_host::TlsRequirementType;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// A host with what is known of it so far.
struct Host {
    /// The declared port of the first server that brought it.
    port: u16,
    /// Each with whether its rules are for every host (`*`): these come after all others, whatever their age.
    routes: Vec<(bool, Rc<Route>)>,
    /// Whether plain text is answered by a redirect.
    redirect: bool,
}

/// Returns the virtual hosts of the servers behind one route configuration, by name.
pub(super) fn virtual_hosts(destinations: Destinations<'_, '_>, servers: &[&BoundServer<'_>]) -> Vec<Draft> {
    let mut hosts: BTreeMap<Hostname, Host> = BTreeMap::new();
    let mut known: HashMap<(GatewayRef, &ObjectKey), Vec<Rc<Route>>> = HashMap::new();
    let rows = bound_rules(destinations);
    for bound in servers {
        let key = &bound.gateway.meta.key;
        let gateway = GatewayRef::Gateway(key.namespace.clone(), key.name.clone());
        for row in rows.iter().filter(|row| row.gateways.contains(&gateway)) {
            let names = shared_hosts(bound.server, row);
            if names.is_empty() {
                continue;
            }
            let routes = known.entry((gateway.clone(), &row.key)).or_insert_with(|| {
                let Some(rules) = destinations.mesh.virtual_service(&row.key) else { return Vec::new() };
                let port = bound.server.port;
                let tls = bound.server.tls.is_some();
                let place = Place { port, destination_port: port, gateway: &gateway, tls };
                destinations.routes(rules, place).into_iter().map(Rc::new).collect()
            });
            if routes.is_empty() {
                continue;
            }
            for (name, for_all) in names {
                let host = hosts.entry(name).or_insert_with(|| Host::new(bound.server));
                host.routes.extend(routes.iter().map(|route| (for_all, route.clone())));
                host.redirect |= redirects(bound.server);
            }
        }
        if redirects(bound.server) {
            for host in &bound.server.hosts {
                hosts.entry(lower_case(&host.host)).or_insert_with(|| Host::new(bound.server)).redirect =
                    true;
            }
        }
    }
    match servers.first() {
        Some(first) if hosts.is_empty() => vec![black_hole(first.server.port)],
        _ => merge_equal(hosts),
    }
}

/// Returns the VirtualServices of the scope, in order of precedence.
fn bound_rules<'a>(destinations: Destinations<'_, 'a>) -> Vec<&'a VirtualServiceRow> {
    destinations
        .scope
        .egress
        .iter()
        .flat_map(|listener| &listener.virtual_services)
        .filter_map(|key| destinations.mesh.virtual_service_row(key))
        .map(AsRef::as_ref)
        .collect()
}

impl Host {
    fn new(server: &Server) -> Self {
        Self { port: server.port, routes: Vec::new(), redirect: false }
    }
}

fn redirects(server: &Server) -> bool {
    server.tls.as_ref().is_some_and(|tls| tls.https_redirect)
}

/// Returns the hosts that a server and a VirtualService have in common: of two that overlap, the narrower. Each with whether
/// the VirtualService is for every host.
fn shared_hosts(server: &Server, row: &VirtualServiceRow) -> Vec<(Hostname, bool)> {
    let mut shared: Vec<(Hostname, bool)> = Vec::new();
    for host in &server.hosts {
        if !may_bind(&host.namespace, &row.key.namespace) {
            continue;
        }
        let mine = lower_case(&host.host);
        for theirs in &row.hosts {
            let common = if mine.is_within(theirs) {
                &mine
            } else if theirs.is_within(&mine) {
                theirs
            } else {
                continue;
            };
            if !shared.iter().any(|(known, _)| known == common) {
                shared.push((common.clone(), theirs.as_str() == "*"));
            }
        }
    }
    shared
}

fn may_bind(host: &HostNamespace, namespace: &Namespace) -> bool {
    match host {
        HostNamespace::Any => true,
        HostNamespace::Only(only) => only == namespace,
        HostNamespace::Nobody => false,
    }
}

fn lower_case(host: &Hostname) -> Hostname {
    if host.as_str().bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Hostname::new(host.as_str().to_ascii_lowercase());
    }
    host.clone()
}

/// Returns the virtual host of a port that no rule is bound to: every request is answered with 404.
fn black_hole(port: u16) -> Draft {
    let mut draft = Draft::new(names::gateway_black_hole(port), vec!["*".to_owned()], Vec::new());
    draft.host.include_request_attempt_count = false;
    draft
}

/// Returns one virtual host for hosts that have the very same routes, so that a VirtualService of a thousand hosts is
/// sent once. It is named by the most specific host.
fn merge_equal(hosts: BTreeMap<Hostname, Host>) -> Vec<Draft> {
    let mut hosts: Vec<(Hostname, Host)> = hosts.into_iter().collect();
    hosts.sort_by(|(a, _), (b, _)| a.by_specificity(b));
    let mut drafts: Vec<Draft> = Vec::with_capacity(hosts.len());
    // By the identity of the routes: the last virtual host that was made of them.
    let mut latest: HashMap<Vec<*const Route>, usize> = HashMap::new();
    for (name, host) in hosts {
        let mut routes = host.routes;
        routes.sort_by_key(|(for_all, _)| *for_all);
        let routes = catch_alls_last(routes.into_iter().map(|(_, route)| route).collect());
        let require_tls = match host.redirect {
            true => TlsRequirementType::All.into(),
            false => TlsRequirementType::None.into(),
        };
        let identity: Vec<*const Route> = routes.iter().map(Rc::as_ptr).collect();
        let same = latest.get(&identity).copied();
        match same.filter(|&index| drafts[index].host.require_tls == require_tls) {
            Some(index) => drafts[index].host.domains.push(name.to_string()),
            None => {
                latest.insert(identity, drafts.len());
                let domains = vec![name.to_string()];
                let mut draft = Draft::new(names::host_port(name.as_str(), host.port), domains, routes);
                draft.host.require_tls = require_tls;
                drafts.push(draft);
            }
        }
    }
    drafts.sort_by(|a, b| a.host.name.cmp(&b.host.name));
    drafts
}

/// Moves the routes that nothing escapes behind the others: the rules of several objects are joined here.
fn catch_alls_last(routes: Vec<Rc<Route>>) -> Vec<Rc<Route>> {
    let (mut others, catch_alls): (Vec<_>, Vec<_>) =
        routes.into_iter().partition(|route| !route.r#match.as_ref().is_some_and(matcher::is_catch_all));
    others.extend(catch_alls);
    others
}

#[cfg(test)]
mod tests {
    use crate::route::fixture::{World, host, hosts, routes, rule, under, when};
    use model::virtual_service::{GatewayRef, HttpMatch, HttpRule, VirtualService};
    use model::{ExportTo, Namespace};
    use proto::envoy::config::route::v3::RouteConfiguration;
    use proto::envoy::config::route::v3::virtual_host::TlsRequirementType;

    fn public() -> GatewayRef {
        GatewayRef::Gateway(Namespace::new("edge"), "public".into())
    }

    fn bound(rules: &mut VirtualService) {
        rules.gateways = vec![public()];
    }

    /// Returns the virtual hosts that redirect.
    fn redirecting(configuration: &RouteConfiguration) -> Vec<&str> {
        let all = i32::from(TlsRequirementType::All);
        let hosts = configuration.virtual_hosts.iter().filter(|host| host.require_tls == all);
        hosts.map(|host| host.name.as_str()).collect()
    }

    fn world(servers: &[&str]) -> World {
        World::new().gateway("edge/public", servers).service("shop/cart", "80/http")
    }

    #[test]
    fn a_virtual_host_is_what_server_and_rules_have_in_common() {
        // Hosts of the server, hosts of the rules, domains.
        let cases: [(&str, &[&str], &[&str]); 7] = [
            ("a.com", &["a.com"], &["a.com"]),
            ("*.com", &["a.com", "b.org"], &["a.com"]),
            ("a.com,b.com", &["*.com"], &["a.com", "b.com"]),
            ("*.b.com", &["*.com"], &["*.b.com"]),
            ("*", &["*"], &["*"]),
            ("A.com", &["a.com"], &["a.com"]),
            ("a.com", &["b.com"], &["*"]),
        ];
        for (server, rules, domains) in cases {
            let world =
                world(&[&format!("80/HTTP/{server}")]).rules("shop/r", rules, vec![rule("cart")], bound);
            let got = world.at_gateway("http.80").unwrap();
            let all: Vec<&str> =
                got.virtual_hosts.iter().flat_map(|host| &host.domains).map(String::as_str).collect();
            assert_eq!(all, domains, "{server} {rules:?}");
        }
    }

    #[test]
    fn rules_for_every_host_come_last() {
        let world = world(&["80/HTTP/*.a.com"])
            .rules("shop/all", &["*"], vec![rule("cart|all")], bound)
            .rules("shop/wild", &["*.a.com"], vec![rule("cart|wild")], bound);
        assert_eq!(
            routes(&world.at_gateway("http.80").unwrap(), "*.a.com:80"),
            ["/* -> 80|wild|cart.shop", "/* -> 80|all|cart.shop"]
        );
    }

    #[test]
    fn namespaces_of_hosts_say_whose_rules_may_bind() {
        let world = world(&["80/HTTP/shop@a.com,other@b.com,~@c.com,d.com"]).rules(
            "shop/r",
            &["a.com", "b.com", "c.com", "d.com"],
            vec![rule("cart")],
            bound,
        );
        assert_eq!(hosts(&world.at_gateway("http.80").unwrap()), ["a.com:80 = a.com d.com"]);
    }

    #[test]
    fn rules_bind_by_gateway_port_and_export() {
        let at =
            |port| vec![when(vec![HttpMatch { port: Some(port), ..HttpMatch::default() }], rule("cart"))];
        let only = |namespace: &str| ExportTo::Namespaces([Namespace::new(namespace)].into());
        let world = world(&["80/HTTP/*"])
            .rules("shop/mesh", &["mesh.com"], vec![rule("cart")], |_| {})
            .rules("shop/port", &["port.com"], at(80), bound)
            .rules("shop/other-port", &["other-port.com"], at(81), bound)
            .rules("shop/hidden", &["hidden.com"], vec![rule("cart")], |rules| {
                bound(rules);
                rules.export_to = only("shop");
            })
            .rules("shop/shown", &["shown.com"], vec![rule("cart")], |rules| {
                bound(rules);
                rules.export_to = only("edge");
            });
        assert_eq!(
            hosts(&world.at_gateway("http.80").unwrap()),
            ["port.com:80 = port.com", "shown.com:80 = shown.com"]
        );
    }

    #[test]
    fn per_match_gateways_replace_the_source() {
        let on = |gateway| HttpMatch { gateways: vec![gateway], ..under("/") };
        let other = GatewayRef::Gateway(Namespace::new("edge"), "other".into());
        let world = world(&["80/HTTP/a.com"]).rules(
            "shop/r",
            &["a.com"],
            vec![
                when(vec![on(GatewayRef::Mesh), on(other)], rule("cart|no")),
                when(vec![on(public())], rule("cart|yes")),
            ],
            |rules| rules.gateways = vec![GatewayRef::Mesh, public()],
        );
        assert_eq!(routes(&world.at_gateway("http.80").unwrap(), "a.com:80"), ["/* -> 80|yes|cart.shop"]);
    }

    #[test]
    fn a_destinations_only_port_is_used_and_looked_for_in_the_rules_namespace_first() {
        let world = world(&["8000/HTTP/a.com"])
            .service("shop/one", "90/http")
            .service("shop/two", "90/http 91/http")
            .external("shop", "x.test", "70/http")
            .external("infra", "x.test", "71/http")
            .rules(
                "infra/r",
                &["a.com"],
                vec![
                    when(vec![under("/one")], rule("one")),
                    when(vec![under("/two")], rule("two")),
                    when(vec![under("/x")], rule("x.test")),
                    when(vec![under("/none")], rule("none.test")),
                    rule("one||99"),
                ],
                bound,
            );
        assert_eq!(
            routes(&world.at_gateway("http.8000").unwrap(), "a.com:8000"),
            [
                "/one* -> 90||one.shop",
                "/two* -> 8000||two.shop",
                "/x* -> 71||x.test",
                "/none* -> 8000||none.test",
                "/* -> 99||one.shop"
            ]
        );
    }

    #[test]
    fn rules_of_one_host_are_joined_with_catch_alls_last() {
        let world = world(&["80/HTTP/*.com"])
            .rules(
                "shop/old",
                &["a.com"],
                vec![when(vec![under("/a")], rule("cart|a")), rule("cart|z")],
                bound,
            )
            .rules("shop/wild", &["*.com"], vec![rule("cart|wild")], bound)
            .rules(
                "shop/new",
                &["a.com"],
                vec![when(vec![under("/b")], rule("cart|b")), rule("cart|y")],
                bound,
            );
        let got = world.at_gateway("http.80").unwrap();
        assert_eq!(hosts(&got), ["*.com:80 = *.com", "a.com:80 = a.com"]);
        assert_eq!(
            routes(&got, "a.com:80"),
            [
                "/a* -> 80|a|cart.shop",
                "/b* -> 80|b|cart.shop",
                "/* -> 80|z|cart.shop",
                "/* -> 80|y|cart.shop"
            ]
        );
    }

    #[test]
    fn a_specific_server_takes_wildcard_rules_too() {
        let world = world(&["443/HTTPS/a.com tls", "443/HTTPS/*.com tls"])
            .rules("shop/wild", &["*.com"], vec![rule("cart|wild")], bound)
            .rules("shop/a", &["a.com"], vec![rule("cart|a")], bound);
        let specific = world.at_gateway("https.443.https-0.public.edge").unwrap();
        assert_eq!(routes(&specific, "a.com:443"), ["/* -> 80|wild|cart.shop", "/* -> 80|a|cart.shop"]);
        let wild = world.at_gateway("https.443.https-1.public.edge").unwrap();
        assert_eq!(hosts(&wild), ["*.com:443 = *.com", "a.com:443 = a.com"]);
        assert_eq!(routes(&wild, "a.com:443"), ["/* -> 80|a|cart.shop"]);
    }

    #[test]
    fn hosts_with_the_same_routes_are_one_virtual_host() {
        let both: &[&str] = &["b.com", "aaa.com", "*.com"];
        let world = world(&["80/HTTP/*"]).rules("shop/r", both, vec![rule("cart")], bound).rules(
            "shop/s",
            &["c.com"],
            vec![rule("cart")],
            bound,
        );
        assert_eq!(
            hosts(&world.at_gateway("http.80").unwrap()),
            ["aaa.com:80 = aaa.com b.com *.com", "c.com:80 = c.com"]
        );
    }

    #[test]
    fn servers_that_redirect_answer_for_all_their_hosts() {
        let world = world(&["80/HTTP/a.com,Idle.com,*.wild.com redirect", "80/HTTP/open.com"]).rules(
            "shop/r",
            &["a.com", "open.com", "x.wild.com"],
            vec![rule("cart")],
            bound,
        );
        let got = world.at_gateway("http.80").unwrap();
        assert_eq!(
            hosts(&got),
            [
                "a.com:80 = a.com",
                "idle.com:80 = idle.com *.wild.com",
                "open.com:80 = open.com",
                "x.wild.com:80 = x.wild.com",
            ]
        );
        assert_eq!(redirecting(&got), ["a.com:80", "idle.com:80", "x.wild.com:80"]);
        assert!(host(&got, "idle.com:80").routes.is_empty());
    }

    #[test]
    fn a_redirect_wins_on_a_shared_host_in_either_order() {
        for servers in
            [["80/HTTP/a.com redirect", "80/HTTP/a.com"], ["80/HTTP/a.com", "80/HTTP/a.com redirect"]]
        {
            let world = world(&servers).rules("shop/r", &["a.com"], vec![rule("cart")], bound);
            let got = world.at_gateway("http.80").unwrap();
            assert_eq!(redirecting(&got), ["a.com:80"]);
            // Both servers bring the rules.
            assert_eq!(host(&got, "a.com:80").routes.len(), 2);
        }
    }

    #[test]
    fn a_host_of_one_namespace_redirects_under_its_own_name() {
        let world = world(&["80/HTTP/shop@a.com redirect"]);
        let got = world.at_gateway("http.80").unwrap();
        assert_eq!(hosts(&got), ["a.com:80 = a.com"]);
        assert_eq!(redirecting(&got), ["a.com:80"]);
    }

    #[test]
    fn a_port_without_rules_answers_404() {
        let got = world(&["80/HTTP/a.com"]).at_gateway("http.80").unwrap();
        assert_eq!(hosts(&got), ["blackhole:80 = *"]);
        assert!(got.virtual_hosts[0].routes.is_empty());
        assert!(!got.virtual_hosts[0].include_request_attempt_count);
    }

    #[test]
    fn virtual_hosts_are_named_by_the_declared_port() {
        let world = world(&["80/HTTP/a.com"]).rules("shop/r", &["a.com"], vec![rule("cart")], bound);
        let got = world.at_gateway_with("http.8080", &[(80, 8080)]).unwrap();
        assert_eq!(hosts(&got), ["a.com:80 = a.com"]);
        assert!(world.at_gateway_with("http.80", &[(80, 8080)]).is_none());
    }

    #[test]
    fn gateways_that_share_a_port_share_its_hosts() {
        let rules: Vec<HttpRule> = vec![rule("cart")];
        let world = world(&["80/HTTP/a.com"]).gateway("edge/second", &["80/HTTP/a.com,b.com"]).rules(
            "shop/r",
            &["a.com", "b.com"],
            rules,
            |rules| {
                bound(rules);
                rules.gateways.push(GatewayRef::Gateway(Namespace::new("edge"), "second".into()));
            },
        );
        let got = world.at_gateway("http.80").unwrap();
        assert_eq!(hosts(&got), ["a.com:80 = a.com", "b.com:80 = b.com"]);
        assert_eq!(host(&got, "a.com:80").routes.len(), 2);
        assert_eq!(host(&got, "b.com:80").routes.len(), 1);
    }
}
