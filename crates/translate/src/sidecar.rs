//! Sidecar.

use crate::context::Context;
use crate::parse::{Invalid, ip, is_dns_label, namespaced_host, port, selector, unix_path};
use crate::report::{At, Report, Translated, meta};
use crate::server_tls::{mode_name, server_tls};
use crate::traffic_policy::connection_pool;
use crate::virtual_service::{Scope, destination, unknown};
use k8s_api::gateway as gateway_api;
use k8s_api::sidecar as api;
use model::gateway::{ServerTls, ServerTlsMode};
use model::sidecar::{
    CaptureMode, EgressHost, EgressListener, EgressNamespace, IngressEndpoint, IngressListener, OutboundMode,
    OutboundTrafficPolicy, SidecarPort,
};
use model::{Hostname, Kind, Namespace, Protocol, Sidecar, Str};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// Translates a Sidecar: all of it, or nothing if any part is refused.
pub fn sidecar(context: &Context, object: &api::Sidecar) -> Translated<Sidecar> {
    let meta = meta(Kind::Sidecar, &object.metadata);
    let report = Report::new(meta.key.clone());
    let spec = &object.spec;
    let at = report.at("spec");
    if spec.ingress.is_empty()
        && spec.egress.is_empty()
        && spec.outbound_traffic_policy.is_none()
        && spec.inbound_connection_pool.is_none()
    {
        at.reject(
            "must have something in it: ingress, egress, outboundTrafficPolicy or inboundConnectionPool",
        );
    }
    let at_selector = at.field("workloadSelector");
    let given = spec.workload_selector.as_ref().map(|given| &given.labels);
    if given.is_some_and(std::collections::BTreeMap::is_empty) {
        at_selector.warn("has no labels, so the Sidecar is for the whole namespace");
    }
    let selector = given.map(|labels| selector(&at_selector.field("labels"), labels));
    let namespace = meta.key.namespace.clone();
    let scope =
        Scope { context, namespace: namespace.as_str(), is_delegate: false, has_gateway: false, hosts: &[] };
    let value = Sidecar {
        selector: selector.filter(|selector| !selector.is_empty()),
        ingress: ingress(&at.field("ingress"), &spec.ingress),
        egress: egress(&at.field("egress"), &spec.egress),
        outbound_traffic_policy: spec
            .outbound_traffic_policy
            .as_ref()
            .map(|policy| outbound_policy(&at.field("outboundTrafficPolicy"), &scope, policy)),
        inbound_connection_pool: spec
            .inbound_connection_pool
            .as_ref()
            .map(|pool| connection_pool(&at.field("inboundConnectionPool"), pool)),
        meta,
    };
    report.all_or_nothing(value)
}

fn ingress(at: &At<'_>, given: &[api::IstioIngressListener]) -> Vec<IngressListener> {
    let mut numbers = BTreeSet::new();
    let listener = |(i, given): (usize, &api::IstioIngressListener)| {
        let at = at.index(i);
        let at_port = at.field("port");
        let Some(given_port) = &given.port else {
            at_port.reject("is required");
            return None;
        };
        if given_port.target_port.is_some_and(|port| port > 0) {
            at_port.field("targetPort").reject("has no effect on Sidecars: leave it out");
        }
        let number =
            at_port.field("number").check(port(given_port.number.unwrap_or_default())).unwrap_or_default();
        if !numbers.insert(number) {
            at_port
                .field("number")
                .reject(format!("{number} is a duplicate: each port may have one listener"));
        }
        if !given.bind.is_empty() {
            at.field("bind").check(ip(&given.bind));
        }
        let protocol = protocol(&at_port, given_port);
        let connection_pool =
            given.connection_pool.as_ref().map(|pool| connection_pool(&at.field("connectionPool"), pool));
        if connection_pool.as_ref().is_some_and(|pool| pool.http.is_some()) && !protocol.is_http() {
            let at = at.field("connectionPool");
            at.field("http").warn(format!("has no effect on protocol {protocol}: only tcp is used"));
        }
        Some(IngressListener {
            port: SidecarPort { number, protocol, name: given_port.name.as_str().into() },
            bind: (!given.bind.is_empty()).then(|| given.bind.as_str().into()),
            capture_mode: capture_mode(&at.field("captureMode"), given.capture_mode.as_ref()),
            default_endpoint: at
                .field("defaultEndpoint")
                .check(default_endpoint(&given.default_endpoint))
                .unwrap_or(IngressEndpoint::OriginalDestination),
            tls: given.tls.as_ref().map(|tls| ingress_tls(&at.field("tls"), tls, protocol)),
            connection_pool,
        })
    };
    given.iter().enumerate().filter_map(listener).collect()
}

fn ingress_tls(at: &At<'_>, given: &gateway_api::ServerTlsSettings, protocol: Protocol) -> ServerTls {
    let unsupported = [
        ("subjectAltNames", !given.subject_alt_names.is_empty()),
        ("httpsRedirect", given.https_redirect),
        ("credentialName", !given.credential_name.is_empty()),
        ("credentialNames", !given.credential_names.is_empty()),
        ("tlsCertificates", !given.tls_certificates.is_empty()),
    ];
    for (field, _) in unsupported.into_iter().filter(|(_, is_set)| *is_set) {
        at.field(field).reject("is not supported in a Sidecar: use serverCertificate and privateKey");
    }
    if !protocol.is_tls() {
        at.reject(format!("needs a port with protocol HTTPS or TLS, not {protocol}"));
    }
    let tls = server_tls(at, given);
    if matches!(tls.mode, ServerTlsMode::IstioMutual | ServerTlsMode::AutoPassthrough) {
        at.field("mode")
            .reject(format!("{} is not supported in a Sidecar: use SIMPLE or MUTUAL", mode_name(tls.mode)));
    }
    tls
}

/// Parses where the application is. A port without an address, such as `:8080`, counts as nothing said.
fn default_endpoint(text: &str) -> Result<IngressEndpoint, Invalid> {
    if text.is_empty() {
        return Ok(IngressEndpoint::OriginalDestination);
    }
    if let Some(path) = text.strip_prefix("unix://") {
        unix_path(path)?;
        return Ok(IngressEndpoint::Unix(path.into()));
    }
    let invalid = || {
        Invalid::new(format!(
            "{text:?} is not an endpoint: it must be 127.0.0.1:port, 0.0.0.0:port, [::1]:port, [::]:port or unix:///path"
        ))
    };
    let address: SocketAddr = text.parse().map_err(|_| invalid())?;
    let number = port(address.port().into())?;
    match address.ip() {
        ip if ip == IpAddr::from([127, 0, 0, 1]) || ip == IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]) => {
            Ok(IngressEndpoint::Localhost(number))
        }
        ip if ip.is_unspecified() => Ok(IngressEndpoint::Instance(number)),
        _ => Err(invalid()),
    }
}

fn egress(at: &At<'_>, given: &[api::IstioEgressListener]) -> Vec<EgressListener> {
    let mut numbers = BTreeSet::new();
    let mut sockets = BTreeSet::new();
    let last = given.len().saturating_sub(1);
    let listeners = given.iter().enumerate().map(|(i, given)| {
        let at = at.index(i);
        let at_port = at.field("port");
        if given.port.is_none() && i != last {
            at_port.reject("may be left out only in the last listener, which takes every other port");
        }
        let capture_mode = capture_mode(&at.field("captureMode"), given.capture_mode.as_ref());
        let path = given.bind.strip_prefix("unix://");
        let place = given.port.as_ref().map(|given_port| {
            let protocol = protocol(&at_port, given_port);
            let number = given_port.number.unwrap_or_default();
            let at_number = at_port.field("number");
            let number = match path {
                Some(_) if number == 0 => 0,
                Some(_) => {
                    at_number.reject("must be 0 for a Unix socket");
                    0
                }
                None => at_number.check(port(number)).unwrap_or_default(),
            };
            if path.is_none() && !numbers.insert(number) {
                at_number.reject(format!("{number} is a duplicate: each port may have one listener"));
            }
            SidecarPort { number, protocol, name: given_port.name.as_str().into() }
        });
        egress_bind(&at.field("bind"), given, capture_mode);
        if let Some(path) = path
            && !sockets.insert(path)
        {
            at.field("bind").reject(format!("{path:?} is a duplicate: each socket may have one listener"));
        }
        EgressListener {
            port: place,
            bind: (!given.bind.is_empty()).then(|| Str::from(given.bind.as_str())),
            capture_mode,
            hosts: egress_hosts(&at.field("hosts"), &given.hosts),
        }
    });
    listeners.collect()
}

fn egress_bind(at: &At<'_>, given: &api::IstioEgressListener, capture_mode: CaptureMode) {
    if let Some(path) = given.bind.strip_prefix("unix://") {
        at.check(unix_path(path));
        if given.port.is_none() {
            at.reject("needs a port, with number 0 and a protocol");
        }
        if capture_mode == CaptureMode::Iptables {
            at.reject("a Unix socket cannot be captured by IPTABLES: use captureMode NONE or DEFAULT");
        }
    } else if !given.bind.is_empty() {
        at.check(ip(&given.bind));
    }
}

fn egress_hosts(at: &At<'_>, given: &[String]) -> Vec<EgressHost> {
    if given.is_empty() {
        at.reject("at least one host is required: `*/*` means all, `~/*` none");
    }
    let mut seen: Vec<EgressHost> = Vec::new();
    let hosts = given.iter().enumerate().filter_map(|(i, text)| {
        let at = at.index(i);
        if !text.contains('/') {
            at.reject(format!("{text:?} must have the form namespace/host"));
            return None;
        }
        let (namespace, host) = at.check(namespaced_host(text, false))?;
        let namespace = match namespace.unwrap_or_default() {
            "*" => EgressNamespace::Any,
            "." => EgressNamespace::Own,
            "~" => EgressNamespace::Nobody,
            name if is_dns_label(name) => EgressNamespace::Only(Namespace::new(name)),
            name => {
                at.reject(format!("{name:?} is not a namespace, `.`, `*` or `~`"));
                return None;
            }
        };
        let parsed = EgressHost { namespace, host: Hostname::new(host) };
        if seen.iter().any(|other| other.namespace == parsed.namespace && parsed.host.is_within(&other.host))
        {
            at.warn(format!("{text:?} is a duplicate: an earlier host includes it"));
        }
        seen.push(parsed.clone());
        Some(parsed)
    });
    hosts.collect()
}

fn outbound_policy(
    at: &At<'_>,
    scope: &Scope<'_>,
    given: &api::OutboundTrafficPolicy,
) -> OutboundTrafficPolicy {
    let mode = match &given.mode {
        // An empty policy is the strict one.
        None | Some(api::OutboundTrafficPolicyMode::RegistryOnly) => OutboundMode::RegistryOnly,
        Some(api::OutboundTrafficPolicyMode::AllowAny) => OutboundMode::AllowAny,
        Some(api::OutboundTrafficPolicyMode::Other(value)) => {
            unknown(&at.field("mode"), value, api::OutboundTrafficPolicyMode::VALUES);
            OutboundMode::RegistryOnly
        }
    };
    let at_proxy = at.field("egressProxy");
    let egress_proxy = given.egress_proxy.as_ref().map(|proxy| {
        if mode != OutboundMode::AllowAny {
            at_proxy.reject("needs mode ALLOW_ANY");
        }
        destination(&at_proxy, scope, Some(proxy))
    });
    OutboundTrafficPolicy { mode, egress_proxy }
}

fn protocol(at: &At<'_>, given: &gateway_api::Port) -> Protocol {
    let protocol = Protocol::parse(&given.protocol);
    // Left empty, the protocol is found out by sniffing.
    if protocol == Protocol::Unsupported && !given.protocol.is_empty() {
        at.field("protocol").reject(format!(
            "{:?} is not a protocol: use HTTP, HTTP2, HTTPS, GRPC, GRPC-WEB, TCP, TLS, MONGO, REDIS or MYSQL",
            given.protocol
        ));
    }
    protocol
}

fn capture_mode(at: &At<'_>, given: Option<&api::CaptureMode>) -> CaptureMode {
    match given {
        None | Some(api::CaptureMode::Default) => CaptureMode::Default,
        Some(api::CaptureMode::Iptables) => CaptureMode::Iptables,
        Some(api::CaptureMode::None) => CaptureMode::None,
        Some(api::CaptureMode::Other(value)) => {
            unknown(at, value, api::CaptureMode::VALUES);
            CaptureMode::Default
        }
    }
}
