//! Rules of a VirtualService for TLS and TCP.

use crate::parse::{port, selector, subnet, wildcard_domain};
use crate::report::At;
use crate::virtual_service::{Scope, destination, gateways, is_sni_cluster, weights};
use ipnet::IpNet;
use k8s_api::virtual_service as api;
use model::virtual_service::{L4Destination, L4Match, TcpRule, TlsMatch, TlsRule};
use model::{Hostname, Namespace};
use std::net::IpAddr;

/// Parses rules for TLS that is passed through.
pub(crate) fn tls_rules(at: &At<'_>, scope: &Scope<'_>, rules: &[api::TlsRoute]) -> Vec<TlsRule> {
    let rule = |(i, rule): (usize, &api::TlsRoute)| {
        let at = at.index(i);
        if rule.matches.is_empty() {
            at.field("match").reject("at least one match is required, with its sniHosts");
        }
        let at_matches = at.field("match");
        let matches = rule.matches.iter().enumerate();
        TlsRule {
            matches: matches.map(|(j, given)| tls_match(&at_matches.index(j), scope, given)).collect(),
            route: routes(&at.field("route"), scope, &rule.route),
        }
    };
    rules.iter().enumerate().map(rule).collect()
}

/// Parses rules for TCP.
pub(crate) fn tcp_rules(at: &At<'_>, scope: &Scope<'_>, rules: &[api::TcpRoute]) -> Vec<TcpRule> {
    let rule = |(i, rule): (usize, &api::TcpRoute)| {
        let at = at.index(i);
        let at_matches = at.field("match");
        let matches = rule.matches.iter().enumerate();
        TcpRule {
            matches: matches.map(|(j, given)| tcp_match(&at_matches.index(j), scope, given)).collect(),
            route: routes(&at.field("route"), scope, &rule.route),
        }
    };
    rules.iter().enumerate().map(rule).collect()
}

fn tls_match(at: &At<'_>, scope: &Scope<'_>, given: &api::TlsMatchAttributes) -> TlsMatch {
    let at_hosts = at.field("sniHosts");
    if given.sni_hosts.is_empty() {
        at_hosts.reject("at least one server name is required");
    }
    for (i, host) in given.sni_hosts.iter().enumerate() {
        sni_host(&at_hosts.index(i), scope, host);
    }
    TlsMatch {
        sni_hosts: given.sni_hosts.iter().map(|host| Hostname::new(host.as_str())).collect(),
        destination_subnets: subnets(&at.field("destinationSubnets"), &given.destination_subnets),
        port: match_port(&at.field("port"), given.port),
        source_labels: selector(&at.field("sourceLabels"), &given.source_labels),
        gateways: gateways(&at.field("gateways"), &given.gateways, scope.namespace),
        source_namespace: source_namespace(&given.source_namespace),
    }
}

fn sni_host(at: &At<'_>, scope: &Scope<'_>, host: &str) {
    let is_special = host.parse::<IpAddr>().is_ok() || (scope.has_gateway && is_sni_cluster(host));
    if !is_special && at.check(wildcard_domain(host)).is_none() {
        return;
    }
    let name = Hostname::new(host);
    if !scope.hosts.iter().any(|of| name.is_within(&Hostname::new(of.as_str()))) {
        at.reject(format!("{host:?} is not within any of the hosts: {}", scope.hosts.join(", ")));
    }
}

fn tcp_match(at: &At<'_>, scope: &Scope<'_>, given: &api::L4MatchAttributes) -> L4Match {
    if !given.source_subnet.is_empty() {
        let at = at.field("sourceSubnet");
        if at.check(subnet(&given.source_subnet)).is_some() {
            at.warn("has no effect, as in Istio: match by sourceLabels or sourceNamespace");
        }
    }
    L4Match {
        destination_subnets: subnets(&at.field("destinationSubnets"), &given.destination_subnets),
        port: match_port(&at.field("port"), given.port),
        source_labels: selector(&at.field("sourceLabels"), &given.source_labels),
        gateways: gateways(&at.field("gateways"), &given.gateways, scope.namespace),
        source_namespace: source_namespace(&given.source_namespace),
    }
}

fn routes(at: &At<'_>, scope: &Scope<'_>, given: &[api::RouteDestination]) -> Vec<L4Destination> {
    if given.is_empty() {
        at.reject("at least one destination is required");
    }
    let shares = weights(at, &given.iter().map(|route| route.weight).collect::<Vec<_>>());
    let places = given.iter().enumerate().map(|(i, route)| {
        let at = at.index(i);
        destination(&at.field("destination"), scope, route.destination.as_ref())
    });
    places.zip(shares).map(|(destination, weight)| L4Destination { destination, weight }).collect()
}

fn subnets(at: &At<'_>, given: &[String]) -> Vec<IpNet> {
    given.iter().enumerate().filter_map(|(i, text)| at.index(i).check(subnet(text))).collect()
}

/// Parses the port of a match, where 0 means any.
pub(crate) fn match_port(at: &At<'_>, given: Option<u32>) -> Option<u16> {
    given.filter(|number| *number > 0).and_then(|number| at.check(port(number)))
}

/// Takes over the namespace of a match, where empty means any.
pub(crate) fn source_namespace(given: &str) -> Option<Namespace> {
    (!given.is_empty()).then(|| Namespace::new(given))
}
