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
    routes: Vec<Rc<Route>>,
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
            for name in names {
                let host = hosts.entry(name).or_insert_with(|| Host::new(bound.server));
                host.routes.extend(routes.iter().cloned());
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

/// Returns the hosts that a server and a VirtualService have in common: of two that overlap, the narrower.
fn shared_hosts(server: &Server, row: &VirtualServiceRow) -> Vec<Hostname> {
    let mut shared: Vec<Hostname> = Vec::new();
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
            if !shared.contains(common) {
                shared.push(common.clone());
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
        let routes = catch_alls_last(host.routes);
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
