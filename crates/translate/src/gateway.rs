//! Gateway (Istio's kind).

use crate::context::Context;
use crate::parse::{ip, is_dns_label, namespaced_host, port, required, unix_path};
use crate::report::{At, Report, Translated, labels, meta};
use crate::server_tls::server_tls;
use k8s_api::gateway as api;
use model::gateway::{HostNamespace, Server, ServerHost};
use model::{Gateway, Hostname, Kind, Namespace, Protocol};
use std::collections::BTreeSet;

/// Names the services, by host and separated by commas, whose workloads a Gateway is for instead of a selector's.
const SERVICES: &str = "internal.istio.io/gateway-service";

/// Translates a Gateway. A server of which any part is refused is left out; without any good server there is no value.
pub fn gateway(_: &Context, object: &api::Gateway) -> Translated<Gateway> {
    let meta = meta(Kind::Gateway, &object.metadata);
    let report = Report::new(meta.key.clone());
    let spec = &object.spec;
    let name_is_good = is_dns_label(&meta.key.name);
    if !name_is_good {
        let at = report.at("metadata");
        at.field("name")
            .reject(format!("{:?} must be a DNS label: letters, digits and inner hyphens", &*meta.key.name));
    }
    let at = report.at("spec");
    let at = at.field("servers");
    if spec.servers.is_empty() {
        at.reject("at least one server is required");
    }
    let own = meta.key.namespace.as_str();
    let mut names = BTreeSet::new();
    let servers = spec.servers.iter().enumerate().filter_map(|(i, given)| {
        let at = at.index(i);
        let before = at.rejected_so_far();
        let server = server(&at, own, i, given);
        if !server.port_name.is_empty() && !names.insert(given.port.as_ref().map_or("", |port| &port.name)) {
            let at_port = at.field("port");
            at_port
                .field("name")
                .reject(format!("{:?} is a duplicate: names of ports must be unique", &*server.port_name));
        }
        (at.rejected_so_far() == before).then_some(server)
    });
    let servers: Vec<Server> = servers.collect();
    let is_usable = name_is_good && !servers.is_empty();
    let services = meta.annotations.get(SERVICES).map(|hosts| hosts.split(',').map(Hostname::new).collect());
    let value = Gateway { selector: labels(&spec.selector), services, servers, meta };
    report.with(is_usable.then_some(value))
}

fn server(at: &At<'_>, own: &str, index: usize, given: &api::Server) -> Server {
    let hosts = hosts(&at.field("hosts"), own, &given.hosts);
    let at_port = at.field("port");
    let default = api::Port::default();
    let given_port = given.port.as_ref().unwrap_or_else(|| {
        at_port.reject("is required");
        &default
    });
    let (number, protocol) = match &given.port {
        Some(given_port) => {
            (server_port(&at_port, given_port, &given.bind), Protocol::parse(&given_port.protocol))
        }
        None => (0, Protocol::Unsupported),
    };
    let bind = bind(&at.field("bind"), &given.bind);
    if !given.default_endpoint.is_empty() {
        at.field("defaultEndpoint").warn("has no effect, as in Istio");
    }
    let at_tls = at.field("tls");
    let tls = given.tls.as_ref().map(|tls| server_tls(&at_tls, tls));
    match &tls {
        None if protocol.is_tls() => at_tls.reject(format!("is required for protocol {protocol}")),
        Some(tls) if protocol.is_http() && !tls.https_redirect => {
            at_tls.reject(format!(
                "protocol {protocol} is plain text: only httpsRedirect can be used, or protocol HTTPS"
            ));
        }
        _ => {}
    }
    Server {
        index,
        name: (!given.name.is_empty()).then(|| given.name.as_str().into()),
        port: number,
        port_name: given_port.name.as_str().into(),
        protocol,
        bind,
        hosts,
        tls,
    }
}

fn server_port(at: &At<'_>, given: &api::Port, bind: &str) -> u16 {
    if Protocol::parse(&given.protocol) == Protocol::Unsupported {
        at.field("protocol").reject(format!(
            "{:?} is not a protocol of gateways: use HTTP, HTTP2, HTTPS, GRPC, GRPC-WEB, TCP, TLS, MONGO, REDIS or MYSQL",
            given.protocol
        ));
    }
    required(&at.field("name"), &given.name, "the port's name");
    if given.target_port.is_some_and(|port| port > 0) {
        at.field("targetPort").reject("has no effect on gateways: leave it out");
    }
    let at_number = at.field("number");
    let number = given.number.unwrap_or_default();
    if !bind.starts_with("unix://") {
        return at_number.check(port(number)).unwrap_or_default();
    }
    if number != 0 {
        at_number.reject("must be 0 for a Unix socket");
    }
    0
}

/// Parses an address to bind, which can be a Unix socket.
fn bind(at: &At<'_>, given: &str) -> Option<model::Str> {
    if let Some(path) = given.strip_prefix("unix://") {
        at.check(unix_path(path));
    } else if !given.is_empty() {
        at.check(ip(given));
    }
    (!given.is_empty()).then(|| given.into())
}

fn hosts(at: &At<'_>, own: &str, given: &[String]) -> Vec<ServerHost> {
    if given.is_empty() {
        at.reject("at least one host is required");
    }
    let host = |(i, given): (usize, &String)| {
        let at = at.index(i);
        let (namespace, host) = at.check(namespaced_host(given, true))?;
        let namespace = match namespace {
            None | Some("*") => HostNamespace::Any,
            Some(".") => HostNamespace::Only(Namespace::new(own)),
            Some(name) if is_dns_label(name) => HostNamespace::Only(Namespace::new(name)),
            Some(name) => {
                at.reject(format!("{name:?} is not a namespace, `.` or `*`"));
                return None;
            }
        };
        Some(ServerHost { namespace, host: Hostname::new(host) })
    };
    given.iter().enumerate().filter_map(host).collect()
}
