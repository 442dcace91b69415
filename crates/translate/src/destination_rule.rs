//! DestinationRule.

use crate::context::Context;
use crate::parse::{ExportRules, export_to, is_dns_label, required, selector, wildcard_domain};
use crate::report::{At, Report, Translated, meta};
use crate::traffic_policy::traffic_policy;
use k8s_api::destination_rule as api;
use model::destination_rule::Subset;
use model::{DestinationRule, Kind, Labels};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Translates a DestinationRule: all of it, or nothing if any part is refused.
pub fn destination_rule(context: &Context, object: &api::DestinationRule) -> Translated<DestinationRule> {
    let meta = meta(Kind::DestinationRule, &object.metadata);
    let namespace = meta.key.namespace.as_str().to_owned();
    let report = Report::new(meta.key.clone());
    let spec = &object.spec;
    let at = report.at("spec");

    if spec.host.parse::<IpAddr>().is_err() {
        at.field("host").check(wildcard_domain(&spec.host));
    }
    let exports = &context.default_export_to.destination_rule;
    let rules = if spec.workload_selector.is_some() { ExportRules::OwnOnly } else { ExportRules::Usual };
    let value = DestinationRule {
        host: context.complete_host(&spec.host, &namespace),
        export_to: export_to(&at.field("exportTo"), &spec.export_to, &namespace, exports, rules),
        workload_selector: workload_selector(&at, object),
        policy: spec.traffic_policy.as_ref().map(|policy| traffic_policy(&at.field("trafficPolicy"), policy)),
        subsets: subsets(&at.field("subsets"), &spec.subsets),
        meta,
    };
    report.all_or_nothing(value)
}

fn workload_selector(at: &At<'_>, object: &api::DestinationRule) -> Option<Labels> {
    let given = object.spec.workload_selector.as_ref()?;
    let at = at.field("workloadSelector");
    if given.match_labels.is_empty() {
        at.warn("has no labels, so the rule is for every workload of the namespace");
    }
    Some(selector(&at.field("matchLabels"), &given.match_labels))
}

fn subsets(at: &At<'_>, given: &[api::Subset]) -> Vec<Subset> {
    let mut names = BTreeSet::new();
    let subsets = given.iter().enumerate().map(|(i, given)| {
        let at = at.index(i);
        let at_name = at.field("name");
        required(&at_name, &given.name, "the name that routes refer to");
        if !given.name.is_empty() && !is_dns_label(&given.name) {
            at_name.reject(format!(
                "{:?} is not a subset's name: letters, digits and inner hyphens",
                given.name
            ));
        }
        if !names.insert(given.name.as_str()) {
            at_name.warn(format!("{:?} is a duplicate: the first subset of that name is used", given.name));
        }
        Subset {
            name: given.name.as_str().into(),
            labels: selector(&at.field("labels"), &given.labels),
            policy: given
                .traffic_policy
                .as_ref()
                .map(|policy| traffic_policy(&at.field("trafficPolicy"), policy)),
        }
    });
    subsets.collect()
}
