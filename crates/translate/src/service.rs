//! Kubernetes' Service.

use crate::context::Context;
use crate::parse::{export_to_annotation, is_dns_label};
use crate::protocol::port_protocol;
use crate::report::{At, Report, Translated, created, labels, object_key};
use k8s_api::core::{self as api, IntOrString};
use model::service::{Registry, Resolution, TargetPort, TrafficDistribution, Vip};
use model::{Hostname, Kind, Service, ServiceKey, ServicePort, Str};
use std::net::IpAddr;

const EXPORT_TO: &str = "networking.istio.io/exportTo";
const DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
const CANONICAL_ACCOUNTS: &str = "alpha.istio.io/canonical-serviceaccounts";
const KUBERNETES_ACCOUNTS: &str = "alpha.istio.io/kubernetes-serviceaccounts";

/// Translates a Service, usually to one. A port that is refused is left out.
pub fn service(context: &Context, object: &api::Service) -> Translated<Vec<Service>> {
    let key = object_key(Kind::Service, &object.metadata);
    let report = Report::new(key.clone());
    let spec = &object.spec;
    let at = report.at("spec");
    let annotations = labels(object.metadata.annotations.iter().flatten());
    let namespace = key.namespace.clone();
    let host = format!("{}.{namespace}.svc.{}", key.name, context.domain);

    let alias = object.is_external_name().then(|| Hostname::new(spec.external_name.as_str()));
    if alias.is_some() && spec.external_name.is_empty() {
        at.field("externalName").reject("is required for type ExternalName");
        return report.with(None);
    }
    let resolution = match (&alias, object.is_headless()) {
        (Some(_), _) => Resolution::Alias,
        (None, true) => Resolution::Passthrough,
        (None, false) => Resolution::ClientSide,
    };
    let distribution = match spec.traffic_distribution.as_str() {
        "" => annotations.get(DISTRIBUTION).map(traffic_distribution).unwrap_or_default(),
        text => traffic_distribution(text),
    };
    let default = &context.default_export_to.service;
    let value = Service {
        key: ServiceKey { host: Hostname::new(host), namespace },
        created: created(&object.metadata),
        labels: labels(object.metadata.labels.iter().flatten()),
        vips: vips(&at, object),
        ports: ports(&at.field("ports"), &spec.ports),
        resolution,
        registry: Registry::Kubernetes,
        mesh_external: false,
        export_to: export_to_annotation(annotations.get(EXPORT_TO), key.namespace.as_str(), default),
        alias,
        selector: labels(&spec.selector),
        subject_alt_names: accounts(context, &key.namespace, &annotations),
        node_local: spec.internal_traffic_policy == "Local",
        traffic_distribution: distribution,
        publish_not_ready: spec.publish_not_ready_addresses,
        annotations,
        object: key,
    };
    report.with(Some(vec![value]))
}

/// Parses which endpoints clients prefer, ignoring case as annotations need it. Unknown texts mean no preference.
pub fn traffic_distribution(text: &str) -> TrafficDistribution {
    match text.to_ascii_lowercase().as_str() {
        "preferclose" | "prefersamezone" => TrafficDistribution::PreferSameZone,
        "prefersamenode" => TrafficDistribution::PreferSameNode,
        _ => TrafficDistribution::Any,
    }
}

fn vips(at: &At<'_>, object: &api::Service) -> Vec<Vip> {
    let address = |text: &str| {
        let parsed = text.parse::<IpAddr>();
        if parsed.is_err() {
            at.field("clusterIP").reject(format!("{text:?} is not an IP address"));
        }
        parsed.ok().map(Vip::Ip)
    };
    object.cluster_ips().filter_map(address).collect()
}

fn ports(at: &At<'_>, given: &[api::ServicePort]) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::with_capacity(given.len());
    for (i, given) in given.iter().enumerate() {
        let at = at.index(i);
        if given.port == 0 {
            at.field("port").reject("must be in the range 1..65535");
            continue;
        }
        if !given.name.is_empty() && !is_dns_label(&given.name) {
            let at = at.field("name");
            at.reject(format!(
                "{:?} is not the name of a port: letters, digits and inner hyphens",
                given.name
            ));
            continue;
        }
        let target = match &given.target_port {
            None | Some(IntOrString::Int(0)) => TargetPort::Number(given.port),
            Some(IntOrString::String(name)) if name.is_empty() => TargetPort::Number(given.port),
            Some(IntOrString::String(name)) => TargetPort::Name(name.as_str().into()),
            Some(IntOrString::Int(number)) => match u16::try_from(*number) {
                Ok(number) => TargetPort::Number(number),
                Err(_) => {
                    at.field("targetPort").reject(format!("port {number} must be in the range 1..65535"));
                    continue;
                }
            },
        };
        let protocol = port_protocol(given.port, &given.name, &given.protocol, given.app_protocol.as_deref());
        ports.push(ServicePort {
            name: given.name.as_str().into(),
            port: given.port,
            protocol,
            target,
            node_port: given.node_port.filter(|port| *port > 0),
        });
    }
    ports
}

/// Returns the identities that two old annotations give to the service's workloads.
fn accounts(context: &Context, namespace: &model::Namespace, annotations: &model::Labels) -> Vec<Str> {
    let listed = |name| {
        annotations
            .get(name)
            .into_iter()
            .flat_map(|list: &str| list.split(','))
            .filter(|item| !item.is_empty())
    };
    let canonical = listed(CANONICAL_ACCOUNTS).map(Str::from);
    let kubernetes = listed(KUBERNETES_ACCOUNTS)
        .map(|account| format!("spiffe://{}/ns/{namespace}/sa/{account}", context.trust_domain).into());
    canonical.chain(kubernetes).collect()
}
