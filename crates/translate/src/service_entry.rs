//! ServiceEntry.

use crate::context::Context;
use crate::parse::{
    ExportRules, Invalid, domain, export_to, is_dns_label, not_partial_wildcard, port, selector, subnet,
    wildcard_domain,
};
use crate::report::{At, Report, Translated, labels, meta};
use crate::service::traffic_distribution;
use crate::virtual_service::unknown;
use crate::workload_entry;
use k8s_api::service_entry as api;
use model::service::{Registry, Resolution, TargetPort, Vip};
use model::{
    ExportTo, Hostname, Kind, Labels, Meta, Namespace, Protocol, Service, ServiceKey, ServicePort, Str,
};
use std::collections::BTreeSet;
use std::net::IpAddr;

const DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
const AUTO_ALLOCATE: &str = "networking.istio.io/enable-autoallocate-ip";

/// Translates a ServiceEntry to one service for each of its hosts: all of it, or nothing if any part is refused. Its
/// endpoints are not a part of the services.
pub fn service_entry(context: &Context, object: &api::ServiceEntry) -> Translated<Vec<Service>> {
    let meta = meta(Kind::ServiceEntry, &object.metadata);
    let report = Report::new(meta.key.clone());
    let spec = &object.spec;
    let at = report.at("spec");
    let resolution = resolution(&at.field("resolution"), spec);
    check_hosts(&at, spec, resolution);
    let addresses = addresses(&at.field("addresses"), &spec.addresses, resolution);
    let ports = ports(&at.field("ports"), &spec.ports, resolution);
    let selector = workload_selector(&at, spec, resolution);
    check_endpoints(&at.field("endpoints"), spec, resolution);
    check_ambiguity(&at, object, resolution);
    let exports = &context.default_export_to.service;
    let own = meta.key.namespace.as_str();
    let export_to =
        export_to(&at.field("exportTo"), &spec.export_to, own, exports, ExportRules::AllowsNobody);
    let export_to = if context.private_service_entries { own_at_most(&export_to, own) } else { export_to };
    let mesh_external = match &spec.location {
        None | Some(api::Location::MeshExternal) => true,
        Some(api::Location::MeshInternal) => false,
        Some(api::Location::Other(value)) => {
            unknown(&at.field("location"), value, api::Location::VALUES);
            true
        }
    };
    let common = Common { meta: &meta, resolution, ports, export_to, selector, mesh_external };
    let mut seen = BTreeSet::new();
    let hosts = spec.hosts.iter().filter(|host| seen.insert(host.as_str()));
    let services = hosts.map(|host| {
        let vips = if addresses.is_empty() { allocated(object, host) } else { addresses.clone() };
        common.service(object, host, vips)
    });
    let services = services.collect();
    report.all_or_nothing(services)
}

/// Returns whether addresses are to be allocated for the entry's hosts that are no patterns: it has none of its own,
/// could use some, and does not opt out.
pub fn is_auto_allocated(object: &api::ServiceEntry) -> bool {
    let opts_out =
        object.metadata.labels.iter().flatten().any(|(key, value)| key == AUTO_ALLOCATE && value == "false");
    let can_use = matches!(
        object.spec.resolution,
        Some(api::Resolution::Static | api::Resolution::Dns | api::Resolution::DnsRoundRobin)
    );
    object.spec.addresses.is_empty() && can_use && !opts_out
}

/// Leaves at most the entry's own namespace.
fn own_at_most(export_to: &ExportTo, own: &str) -> ExportTo {
    let own = Namespace::new(own);
    match export_to.includes(&own) {
        true => ExportTo::Namespaces([own].into()),
        false => ExportTo::Nobody,
    }
}

/// What the services of all hosts share.
struct Common<'a> {
    meta: &'a Meta,
    resolution: Resolution,
    ports: Vec<ServicePort>,
    export_to: ExportTo,
    selector: Labels,
    mesh_external: bool,
}

impl Common<'_> {
    fn service(&self, object: &api::ServiceEntry, host: &str, vips: Vec<Vip>) -> Service {
        let meta = self.meta;
        Service {
            key: ServiceKey { host: Hostname::new(host), namespace: meta.key.namespace.clone() },
            object: meta.key.clone(),
            created: meta.created,
            labels: meta.labels.clone(),
            annotations: meta.annotations.clone(),
            vips,
            ports: self.ports.clone(),
            resolution: self.resolution,
            registry: Registry::External,
            mesh_external: self.mesh_external,
            export_to: self.export_to.clone(),
            alias: None,
            selector: self.selector.clone(),
            subject_alt_names: object
                .spec
                .subject_alt_names
                .iter()
                .map(|name| Str::from(name.as_str()))
                .collect(),
            node_local: false,
            traffic_distribution: meta
                .annotations
                .get(DISTRIBUTION)
                .map(traffic_distribution)
                .unwrap_or_default(),
            publish_not_ready: false,
        }
    }
}

/// Returns the addresses that a control plane has allocated for a host.
fn allocated(object: &api::ServiceEntry, host: &str) -> Vec<Vip> {
    if !is_auto_allocated(object) || host.starts_with('*') {
        return Vec::new();
    }
    let addresses = object.status.iter().flat_map(|status| &status.addresses);
    let own = addresses.filter(|address| address.host == host);
    own.filter_map(|address| address.value.parse().ok()).map(Vip::Ip).collect()
}

fn resolution(at: &At<'_>, spec: &api::ServiceEntrySpec) -> Resolution {
    match &spec.resolution {
        None | Some(api::Resolution::None) => Resolution::Passthrough,
        Some(api::Resolution::Static) => Resolution::ClientSide,
        Some(api::Resolution::Dns) => Resolution::Dns,
        Some(api::Resolution::DnsRoundRobin) => Resolution::DnsRoundRobin,
        Some(api::Resolution::DynamicDns) => Resolution::DynamicDns,
        Some(api::Resolution::Other(value)) => {
            unknown(at, value, api::Resolution::VALUES);
            Resolution::Passthrough
        }
    }
}

fn check_hosts(at: &At<'_>, spec: &api::ServiceEntrySpec, resolution: Resolution) {
    let at = at.field("hosts");
    if spec.hosts.is_empty() {
        at.reject("at least one host is required");
    }
    let resolves_itself = matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin)
        && spec.endpoints.is_empty()
        && spec.workload_selector.is_none();
    for (i, host) in spec.hosts.iter().enumerate() {
        let at = at.index(i);
        if host == "*" {
            at.reject("`*` is not a host: name domains, such as *.example.org");
        } else if at.check(wildcard_domain(host)).is_none() {
        } else if resolves_itself && domain(host).is_err() {
            at.reject(format!(
                "{host:?} cannot be resolved: without endpoints it must be a full domain name"
            ));
        } else if resolution == Resolution::DynamicDns && !host.starts_with('*') {
            at.reject(format!(
                "{host:?} must be a wildcard for resolution DYNAMIC_DNS: use DNS for a single name"
            ));
        } else if let Err(error) = not_partial_wildcard(host) {
            at.warn(error.to_string());
        }
        if spec.hosts[..i].contains(host) {
            at.warn(format!("{host:?} is a duplicate"));
        }
    }
}

fn addresses(at: &At<'_>, given: &[String], resolution: Resolution) -> Vec<Vip> {
    if !given.is_empty() && resolution == Resolution::DynamicDns {
        at.reject("must be empty for resolution DYNAMIC_DNS: traffic is told apart by host");
    }
    let address = |(i, text): (usize, &String)| {
        let at = at.index(i);
        let net = at.check(subnet(text))?;
        if !text.contains('/') {
            return text.parse::<IpAddr>().ok().map(Vip::Ip);
        }
        if !matches!(resolution, Resolution::Passthrough | Resolution::ClientSide) {
            at.reject(format!("{text:?} is a range, which needs resolution NONE or STATIC"));
        }
        Some(Vip::Cidr(net))
    };
    given.iter().enumerate().filter_map(address).collect()
}

fn ports(at: &At<'_>, given: &[api::ServicePort], resolution: Resolution) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::with_capacity(given.len());
    for (i, given) in given.iter().enumerate() {
        let at = at.index(i);
        let at_name = at.field("name");
        if !is_dns_label(&given.name) {
            at_name.reject(format!(
                "{:?} is not the name of a port: letters, digits and inner hyphens",
                given.name
            ));
        } else if ports.iter().any(|port| *port.name == *given.name) {
            at_name.reject(format!("{:?} is a duplicate", given.name));
        }
        let at_number = at.field("number");
        let Some(number) = at_number.check(port(given.number.unwrap_or_default())) else { continue };
        if ports.iter().any(|port| port.port == number) {
            at_number.reject(format!("{number} is a duplicate"));
        }
        let at_target = at.field("targetPort");
        let target =
            given.target_port.filter(|target| *target > 0).and_then(|target| at_target.check(port(target)));
        if resolution == Resolution::Passthrough && target.is_some_and(|target| target != number) {
            at_target.warn("has no effect with resolution NONE: connections go where they were going");
        }
        let protocol = protocol(&at.field("protocol"), &given.protocol, resolution);
        let target = TargetPort::Number(target.unwrap_or(number));
        ports.push(ServicePort {
            name: given.name.as_str().into(),
            port: number,
            protocol,
            target,
            node_port: None,
        });
    }
    ports
}

fn protocol(at: &At<'_>, given: &str, resolution: Resolution) -> Protocol {
    let protocol = Protocol::parse(given);
    if protocol == Protocol::Unsupported && !given.is_empty() {
        at.reject(format!(
            "{given:?} is not a protocol: use HTTP, HTTPS, HTTP2, GRPC, GRPC-WEB, TCP, TLS, MONGO, REDIS, MYSQL or UDP"
        ));
    }
    let is_dynamic = matches!(
        protocol,
        Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::Tls | Protocol::Https
    );
    if resolution == Resolution::DynamicDns && !is_dynamic {
        at.reject(
            "must be HTTP, HTTP2, GRPC or TLS for resolution DYNAMIC_DNS: other protocols do not name a host",
        );
    }
    protocol
}

fn workload_selector(at: &At<'_>, spec: &api::ServiceEntrySpec, resolution: Resolution) -> Labels {
    let at_selector = at.field("workloadSelector");
    let Some(given) = &spec.workload_selector else { return Labels::new() };
    if given.labels.is_empty() {
        at_selector.warn("has no labels, so every workload of the namespace is selected");
    }
    if !spec.endpoints.is_empty() {
        at_selector.reject("cannot be combined with endpoints");
    }
    if resolution == Resolution::Passthrough {
        at_selector.warn("has no effect with resolution NONE: connections go where they were going");
    }
    selector(&at_selector.field("labels"), &given.labels);
    labels(&given.labels)
}

fn check_endpoints(at: &At<'_>, spec: &api::ServiceEntrySpec, resolution: Resolution) {
    match resolution {
        Resolution::Passthrough if !spec.endpoints.is_empty() => {
            at.reject("must be empty for resolution NONE: connections go where they were going");
        }
        Resolution::DynamicDns if !spec.endpoints.is_empty() => {
            at.reject("must be empty for resolution DYNAMIC_DNS: hosts are resolved by name");
        }
        Resolution::DnsRoundRobin if spec.endpoints.len() > 1 => {
            at.reject("at most one endpoint is allowed for resolution DNS_ROUND_ROBIN");
        }
        _ => {}
    }
    for (i, endpoint) in spec.endpoints.iter().enumerate() {
        let at = at.index(i);
        workload_entry::check(&at, endpoint);
        let at_address = at.field("address");
        let address = endpoint.address.as_str();
        let is_socket = address.starts_with("unix://");
        match resolution {
            Resolution::ClientSide
                if !address.is_empty() && !is_socket && address.parse::<IpAddr>().is_err() =>
            {
                at_address.reject(format!(
                    "{address:?} must be an IP address or unix:///path for resolution STATIC"
                ));
            }
            Resolution::Dns | Resolution::DnsRoundRobin if is_socket => {
                at_address
                    .reject(format!("{address:?} cannot be resolved: use resolution STATIC for sockets"));
            }
            _ => {}
        }
        let at_ports = at.field("ports");
        for name in endpoint.ports.keys() {
            at_ports.key(name).check(defined(name, &spec.ports));
        }
    }
}

fn defined(name: &str, ports: &[api::ServicePort]) -> Result<(), Invalid> {
    match ports.iter().any(|port| port.name == name) {
        true => Ok(()),
        false => Err(Invalid::new(format!("{name:?} is not the name of one of the entry's ports"))),
    }
}

/// Warns where several hosts cannot be told apart, or where a port is shared with everybody.
fn check_ambiguity(at: &At<'_>, object: &api::ServiceEntry, resolution: Resolution) {
    let spec = &object.spec;
    let port = |is_meant: fn(Protocol) -> bool| {
        spec.ports
            .iter()
            .find(|port| is_meant(Protocol::parse(&port.protocol)))
            .map(|port| port.name.as_str())
    };
    if let Some(name) = port(Protocol::is_tcp)
        && spec.hosts.len() > 1
        && !spec.addresses.is_empty()
        && matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin)
    {
        at.field("hosts")
            .warn(format!("cannot be told apart by address on port {name:?}: they share the addresses"));
    }
    if let Some(name) = port(|protocol| !protocol.is_http() && !protocol.is_tls())
        && spec.addresses.is_empty()
        && !is_auto_allocated(object)
        && resolution != Resolution::DynamicDns
    {
        let at = at.field("addresses");
        at.warn(format!("are needed for port {name:?}, which otherwise takes all traffic to its number"));
    }
}
