//! WorkloadEntry, and the endpoints of a ServiceEntry, which have the same form.

use crate::parse::{ip_or_fqdn, is_dns_label, port, selector, unix_path};
use crate::report::{At, Report, Translated, object_key};
use k8s_api::workload_entry as api;
use model::Kind;

/// Checks a WorkloadEntry. The value says only that it can be used: what it becomes depends on who selects it.
pub fn workload_entry(object: &api::WorkloadEntry) -> Translated<()> {
    let report = Report::new(object_key(Kind::WorkloadEntry, &object.metadata));
    check(&report.at("spec"), &object.spec);
    report.all_or_nothing(())
}

/// Checks an endpoint.
pub(crate) fn check(at: &At<'_>, spec: &api::WorkloadEntrySpec) {
    let at_address = at.field("address");
    if let Some(path) = spec.address.strip_prefix("unix://") {
        at_address.check(unix_path(path));
        if !spec.ports.is_empty() {
            at.field("ports").reject("must be empty for a Unix socket");
        }
    } else if !spec.address.is_empty() {
        at_address.check(ip_or_fqdn(&spec.address));
    } else if spec.network.is_empty() {
        at_address.reject("is required: an IP address, a domain name or unix:///path");
    } else {
        at_address.warn(format!(
            "is not set, so the endpoint can be reached only through a gateway of network {:?}",
            spec.network
        ));
    }
    let at_ports = at.field("ports");
    for (name, number) in &spec.ports {
        let at = at_ports.key(name);
        if !is_dns_label(name) {
            at.reject(format!("{name:?} is not the name of a port: letters, digits and inner hyphens"));
        }
        at.check(port(*number));
    }
    selector(&at.field("labels"), &spec.labels);
}
