//! WorkloadGroup and ProxyConfig.

use super::targets;
use crate::parse::{ip_or_fqdn, is_dns_label, port, unix_path};
use crate::report::{At, Report, Translated, object_key};
use k8s_api::proxy_config::ProxyConfig;
use k8s_api::workload_group as api;
use model::Kind;
use std::collections::BTreeMap;

/// Checks a ProxyConfig.
pub(super) fn check_proxy_config(object: &ProxyConfig) -> Translated<()> {
    let report = Report::new(object_key(Kind::ProxyConfig, &object.metadata));
    let at = report.at("spec");
    targets::check_labels(&at, object.spec.selector.as_ref());
    if object.spec.concurrency.is_some_and(|count| count < 0) {
        at.field("concurrency").reject("must not be negative");
    }
    report.all_or_nothing(())
}

/// Checks a WorkloadGroup.
pub(super) fn check(object: &api::WorkloadGroup) -> Translated<()> {
    let report = Report::new(object_key(Kind::WorkloadGroup, &object.metadata));
    let (spec, at) = (&object.spec, report.at("spec"));
    if let Some(metadata) = &spec.metadata {
        labels(&at.field("metadata").field("labels"), &metadata.labels);
    }
    match &spec.template {
        None => at.field("template").reject("is required"),
        Some(template) => check_template(&at.field("template"), template),
    }
    if let Some(probe) = &spec.probe {
        check_probe(&at.field("probe"), probe);
    }
    report.all_or_nothing(())
}

fn check_template(at: &At<'_>, template: &api::WorkloadTemplate) {
    labels(&at.field("labels"), &template.labels);
    let at_address = at.field("address");
    if let Some(path) = template.address.strip_prefix("unix://") {
        at_address.check(unix_path(path));
        if !template.ports.is_empty() {
            at.field("ports").reject("must be empty for a Unix socket");
        }
    } else if !template.address.is_empty() {
        at_address.check(ip_or_fqdn(&template.address));
    }
    for (name, number) in &template.ports {
        let at = at.field("ports");
        let at = at.key(name);
        if !is_dns_label(name) {
            at.reject(format!("{name:?} is not the name of a port: letters, digits and inner hyphens"));
        }
        at.check(port(*number));
    }
}

fn check_probe(at: &At<'_>, probe: &api::ReadinessProbe) {
    for (field, number) in [
        ("failureThreshold", probe.failure_threshold),
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("timeoutSeconds", probe.timeout_seconds),
    ] {
        if number.is_some_and(|number| number < 0) {
            at.field(field).reject("must not be negative");
        }
    }
    let ways =
        [probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.exec.is_some(), probe.grpc.is_some()];
    if ways.into_iter().filter(|way| *way).count() != 1 {
        at.reject("exactly one of httpGet, tcpSocket, exec and grpc must be set");
    }
    if let Some(http) = &probe.http_get {
        let at = at.field("httpGet");
        at.field("port").check(port(http.port.unwrap_or_default()));
        if !["", "HTTP", "HTTPS"].contains(&http.scheme.as_str()) {
            at.field("scheme").reject(format!("{:?} is neither HTTP nor HTTPS", http.scheme));
        }
        for (index, header) in http.http_headers.iter().enumerate() {
            let at = at.field("httpHeaders");
            targets::plain_header_name(&at.index(index).field("name"), &header.name);
        }
    }
    if let Some(tcp) = &probe.tcp_socket {
        at.field("tcpSocket").field("port").check(port(tcp.port.unwrap_or_default()));
    }
    if let Some(grpc) = &probe.grpc {
        at.field("grpc").field("port").check(port(grpc.port.unwrap_or_default()));
    }
    if probe.exec.as_ref().is_some_and(|exec| exec.command.is_empty()) {
        at.field("exec").field("command").reject("is required");
    }
}

/// Checks labels as Kubernetes does.
fn labels(at: &At<'_>, labels: &BTreeMap<String, String>) {
    let is_word = |text: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let ends = [text.bytes().next(), text.bytes().last()];
        text.len() <= 63
            && text.bytes().all(inner)
            && ends.into_iter().flatten().all(|byte| byte.is_ascii_alphanumeric())
    };
    for (key, value) in labels {
        let name = key.rsplit_once('/').map_or(key.as_str(), |(_, name)| name);
        if name.is_empty() || !is_word(name) {
            at.key(key).reject(format!("{key:?} is not the name of a label"));
        }
        if !is_word(value) {
            at.key(key).reject(format!("{value:?} is not the value of a label"));
        }
    }
}
