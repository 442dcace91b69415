//! The policies of DestinationRules, some of which Sidecars and MeshConfig have too.

mod load_balancer;
mod pool;
mod tls;

pub(crate) use load_balancer::locality_lb;
pub(crate) use pool::{connection_pool, outlier_detection, tcp_keepalive};
pub(crate) use tls::client_tls;

use crate::parse::{domain, port, positive_duration};
use crate::report::At;
use crate::virtual_service::unknown;
use k8s_api::destination_rule as api;
use model::destination_rule::{PortPolicy, ProxyProtocol, RetryBudget, TrafficPolicy, Tunnel};
use std::net::IpAddr;
use std::time::Duration;

/// Parses a policy of a host or subset.
pub(crate) fn traffic_policy(at: &At<'_>, given: &api::TrafficPolicy) -> TrafficPolicy {
    if *given == api::TrafficPolicy::default() {
        at.reject("must have at least one field");
    }
    let base = PortPolicy {
        load_balancer: given.load_balancer.as_ref().map(|lb| {
            load_balancer::load_balancer(&at.field("loadBalancer"), lb, given.outlier_detection.is_some())
        }),
        connection_pool: given
            .connection_pool
            .as_ref()
            .map(|pool| connection_pool(&at.field("connectionPool"), pool)),
        outlier_detection: given
            .outlier_detection
            .as_ref()
            .map(|outlier| outlier_detection(&at.field("outlierDetection"), outlier)),
        tls: given.tls.as_ref().map(|tls| client_tls(&at.field("tls"), tls)),
        proxy_protocol: given
            .proxy_protocol
            .as_ref()
            .map(|version| proxy_protocol(&at.field("proxyProtocol"), version)),
        retry_budget: given
            .retry_budget
            .as_ref()
            .map(|budget| retry_budget(&at.field("retryBudget"), budget)),
    };
    TrafficPolicy {
        base,
        port_level: port_level(&at.field("portLevelSettings"), &given.port_level_settings),
        tunnel: given.tunnel.as_ref().map(|given| tunnel(&at.field("tunnel"), given)),
    }
}

fn port_level(at: &At<'_>, given: &[api::PortTrafficPolicy]) -> Vec<(u16, PortPolicy)> {
    let mut policies: Vec<(u16, PortPolicy)> = Vec::with_capacity(given.len());
    for (i, given) in given.iter().enumerate() {
        let at = at.index(i);
        let at_port = at.field("port");
        let number = given.port.as_ref().map_or_else(
            || {
                at_port.reject("is required: say which port the settings are for");
                None
            },
            |selector| at_port.field("number").check(port(selector.number.unwrap_or_default())),
        );
        if (api::PortTrafficPolicy { port: given.port.clone(), ..Default::default() }) == *given {
            at.reject("must have at least one field besides port");
        }
        let policy = PortPolicy {
            load_balancer: given.load_balancer.as_ref().map(|lb| {
                load_balancer::load_balancer(&at.field("loadBalancer"), lb, given.outlier_detection.is_some())
            }),
            connection_pool: given
                .connection_pool
                .as_ref()
                .map(|pool| connection_pool(&at.field("connectionPool"), pool)),
            outlier_detection: given
                .outlier_detection
                .as_ref()
                .map(|outlier| outlier_detection(&at.field("outlierDetection"), outlier)),
            tls: given.tls.as_ref().map(|tls| client_tls(&at.field("tls"), tls)),
            proxy_protocol: None,
            retry_budget: None,
        };
        let Some(number) = number else { continue };
        if policies.iter().any(|(other, _)| *other == number) {
            at_port.warn(format!("port {number} is a duplicate: its first settings are used"));
        }
        policies.push((number, policy));
    }
    policies
}

fn proxy_protocol(at: &At<'_>, given: &api::ProxyProtocol) -> ProxyProtocol {
    match &given.version {
        None | Some(api::ProxyProtocolVersion::V1) => ProxyProtocol::V1,
        Some(api::ProxyProtocolVersion::V2) => ProxyProtocol::V2,
        Some(api::ProxyProtocolVersion::Other(value)) => {
            unknown(&at.field("version"), value, api::ProxyProtocolVersion::VALUES);
            ProxyProtocol::V1
        }
    }
}

fn retry_budget(at: &At<'_>, given: &api::RetryBudget) -> RetryBudget {
    let percent = given.percent.unwrap_or(20.0);
    if !(0.0..=100.0).contains(&percent) {
        at.field("percent").reject(format!("{percent} is not a percentage: it must be in the range 0..100"));
    }
    RetryBudget {
        percent,
        min_retry_concurrency: given.min_retry_concurrency.unwrap_or_default(),
        budget_interval: time(at, "budgetInterval", given.budget_interval.as_ref()),
    }
}

fn tunnel(at: &At<'_>, given: &api::TunnelSettings) -> Tunnel {
    let at_protocol = at.field("protocol");
    if !matches!(given.protocol.as_str(), "" | "CONNECT" | "POST") {
        unknown(&at_protocol, &given.protocol, &["CONNECT", "POST"]);
    }
    if given.target_host.parse::<IpAddr>().is_err() {
        at.field("targetHost").check(domain(&given.target_host));
    }
    Tunnel {
        post: given.protocol == "POST",
        target_host: given.target_host.as_str().into(),
        target_port: at
            .field("targetPort")
            .check(port(given.target_port.unwrap_or_default()))
            .unwrap_or_default(),
    }
}

/// Parses a time of at least a millisecond.
fn time(at: &At<'_>, field: &str, given: Option<&String>) -> Option<Duration> {
    given.and_then(|given| at.field(field).check(positive_duration(given)))
}
