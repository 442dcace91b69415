//! VirtualService.

use crate::context::Context;
use crate::http_route::http_rules;
use crate::l4_route::{tcp_rules, tls_rules};
use crate::overlap;
use crate::parse::{
    ExportRules, Invalid, domain, export_to, gateway_ref, is_dns_label, port, wildcard_domain,
};
use crate::report::{At, Report, Translated, meta};
use k8s_api::virtual_service as api;
use model::virtual_service::{Destination, GatewayRef};
use model::{Hostname, Kind, VirtualService};
use std::net::IpAddr;

/// What the rules of a VirtualService depend on besides themselves.
#[derive(Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub(crate) context: &'a Context,
    pub(crate) namespace: &'a str,
    /// Whether others delegate to it, because it has no hosts of its own.
    pub(crate) is_delegate: bool,
    /// Whether a gateway, which can check tokens, is among its gateways.
    pub(crate) has_gateway: bool,
    /// Its hosts as they are written.
    pub(crate) hosts: &'a [String],
}

/// Translates a VirtualService: all of it, or nothing if any part is refused.
pub fn virtual_service(context: &Context, object: &api::VirtualService) -> Translated<VirtualService> {
    let meta = meta(Kind::VirtualService, &object.metadata);
    let report = Report::new(meta.key.clone());
    let spec = &object.spec;
    let at = report.at("spec");

    let gateways = gateways(&at.field("gateways"), &spec.gateways, meta.key.namespace.as_str());
    let is_mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|gateway| gateway == "mesh");
    let namespace = meta.key.namespace.clone();
    let scope = Scope {
        context,
        namespace: namespace.as_str(),
        is_delegate: spec.hosts.is_empty(),
        has_gateway: spec.gateways.iter().any(|gateway| gateway != "mesh"),
        hosts: &spec.hosts,
    };
    if scope.is_delegate {
        check_delegate(&at, spec);
    }
    overlap::check(&at.field("http"), &spec.http);
    if spec.http.is_empty() && spec.tls.is_empty() && spec.tcp.is_empty() {
        at.reject("must have rules: at least one of http, tls and tcp");
    }
    let exports = &context.default_export_to.virtual_service;
    let value = VirtualService {
        hosts: hosts(&at.field("hosts"), &scope, is_mesh),
        gateways: if gateways.is_empty() { vec![GatewayRef::Mesh] } else { gateways },
        export_to: export_to(
            &at.field("exportTo"),
            &spec.export_to,
            scope.namespace,
            exports,
            ExportRules::Usual,
        ),
        http: http_rules(&at.field("http"), &scope, &spec.http),
        tls: tls_rules(&at.field("tls"), &scope, &spec.tls),
        tcp: tcp_rules(&at.field("tcp"), &scope, &spec.tcp),
        meta,
    };
    report.all_or_nothing(value)
}

fn check_delegate(at: &At<'_>, spec: &api::VirtualServiceSpec) {
    for (field, is_used) in [
        ("gateways", !spec.gateways.is_empty()),
        ("tls", !spec.tls.is_empty()),
        ("tcp", !spec.tcp.is_empty()),
    ] {
        if is_used {
            at.field(field).reject("must be empty without hosts: those who delegate to these rules decide");
        }
    }
}

fn hosts(at: &At<'_>, scope: &Scope<'_>, is_mesh: bool) -> Vec<Hostname> {
    let before = at.rejected_so_far();
    for (i, host) in scope.hosts.iter().enumerate() {
        match wildcard_domain(host) {
            Err(_) if host.parse::<IpAddr>().is_ok() || (scope.has_gateway && is_sni_cluster(host)) => {}
            Err(error) => at.index(i).reject(error.to_string()),
            Ok(()) if is_mesh && host == "*" => {
                at.index(i).reject("`*` is for gateways only: rules for sidecars need narrower hosts");
            }
            Ok(()) => {}
        }
    }
    let written: Vec<Hostname> = scope.hosts.iter().map(|host| Hostname::new(host.as_str())).collect();
    if at.rejected_so_far() == before {
        for (i, host) in written.iter().enumerate() {
            if let Some(other) = written[..i].iter().find(|other| other.overlaps(host)) {
                at.index(i).reject(format!("{host} overlaps with {other}: each host may be listed once"));
            }
        }
    }
    let complete = |host: &String| scope.context.complete_host(host, scope.namespace);
    scope.hosts.iter().map(complete).map(|host| Hostname::new(host.as_str().to_lowercase())).collect()
}

/// Returns whether a host is a server name that encodes a service, such as `outbound_.80_.v1_.cart.shop`: how traffic
/// between networks is routed.
pub(crate) fn is_sni_cluster(host: &str) -> bool {
    let mut parts = host.splitn(4, '.');
    let mut part = || parts.next().unwrap_or_default();
    let (direction, port, subset, name) = (part(), part(), part(), part());
    let port = port.strip_suffix('_').unwrap_or_default();
    let subset = subset.strip_suffix('_');
    direction == "outbound_"
        && port.parse::<u16>().is_ok()
        && subset.is_some_and(|subset| subset.is_empty() || is_dns_label(subset))
        && domain(name).is_ok()
}

/// Parses names of gateways.
pub(crate) fn gateways(at: &At<'_>, names: &[String], namespace: &str) -> Vec<GatewayRef> {
    names.iter().enumerate().filter_map(|(i, name)| gateway_ref(&at.index(i), name, namespace)).collect()
}

/// Parses where traffic goes.
pub(crate) fn destination(at: &At<'_>, scope: &Scope<'_>, given: Option<&api::Destination>) -> Destination {
    let Some(given) = given else {
        at.reject("a destination is required");
        return Destination { host: Hostname::new(""), subset: None, port: None };
    };
    at.field("host").check(destination_host(&given.host));
    if !given.subset.is_empty() && !is_dns_label(&given.subset) {
        at.field("subset")
            .reject(format!("{:?} is not a subset's name: letters, digits and inner hyphens", given.subset));
    }
    let at_port = at.field("port");
    let number = given
        .port
        .as_ref()
        .and_then(|selector| at_port.field("number").check(port(selector.number.unwrap_or_default())));
    Destination {
        host: scope.context.complete_host(&given.host, scope.namespace),
        subset: (!given.subset.is_empty()).then(|| given.subset.as_str().into()),
        port: number,
    }
}

fn destination_host(host: &str) -> Result<(), Invalid> {
    if host == "*" {
        return Err(Invalid::new("`*` is not a destination: name a service"));
    }
    if host.parse::<IpAddr>().is_ok() || host.starts_with('*') {
        return wildcard_domain(host);
    }
    domain(host)
}

/// Checks weights: none negative, and several must not all be zero.
pub(crate) fn weights(at: &At<'_>, weights: &[Option<i32>]) -> Vec<u32> {
    let all: Vec<i32> = weights.iter().map(|weight| weight.unwrap_or_default()).collect();
    for (i, weight) in all.iter().enumerate().filter(|(_, weight)| **weight < 0) {
        let at = at.index(i);
        at.field("weight").reject(format!("{weight} is not a weight: it must not be negative"));
    }
    if all.len() > 1 && all.iter().all(|weight| *weight == 0) {
        at.reject("the weights must not all be zero");
    }
    all.into_iter().map(|weight| u32::try_from(weight).unwrap_or_default()).collect()
}

/// Rejects a value of an enum that this version does not know.
pub(crate) fn unknown(at: &At<'_>, value: &str, known: &[&str]) {
    at.reject(format!("{value:?} is not known: it must be one of {}", known.join(", ")));
}
