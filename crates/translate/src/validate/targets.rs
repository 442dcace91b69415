//! What policies are attached to.

use crate::parse::selector;
use crate::report::At;
use k8s_api::meta::{LabelSelector, PolicyTargetReference};

const KINDS: [(&str, &str); 4] = [
    ("", "Service"),
    ("networking.istio.io", "ServiceEntry"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
];

/// Checks how a policy selects workloads: by labels or by targets, not by both.
pub(super) fn check(
    at: &At<'_>,
    labels: Option<&LabelSelector>,
    target: Option<&PolicyTargetReference>,
    targets: &[PolicyTargetReference],
) {
    let ways =
        usize::from(labels.is_some()) + usize::from(target.is_some()) + usize::from(!targets.is_empty());
    if ways > 1 {
        at.reject("only one of selector, targetRef and targetRefs can be set");
    }
    check_labels(at, labels);
    if let Some(target) = target {
        check_target(&at.field("targetRef"), target);
    }
    for (index, target) in targets.iter().enumerate() {
        check_target(&at.field("targetRefs").index(index), target);
    }
}

/// Checks a selector of labels.
pub(super) fn check_labels(at: &At<'_>, labels: Option<&LabelSelector>) {
    let Some(given) = labels else { return };
    let at = at.field("selector");
    if given.match_labels.is_empty() {
        at.warn("has no labels, so it is for the whole namespace");
    }
    selector(&at.field("matchLabels"), &given.match_labels);
}

fn check_target(at: &At<'_>, target: &PolicyTargetReference) {
    let group = if target.group == "core" { "" } else { target.group.as_str() };
    if target.name.is_empty() {
        at.field("name").reject("is required");
    }
    if !target.namespace.is_empty() {
        at.field("namespace").reject("must be empty: the target is in the policy's namespace");
    }
    if !KINDS.contains(&(group, target.kind.as_str())) {
        let (kind, group) = (&target.kind, &target.group);
        at.field("kind").reject(format!(
            "{kind:?} of group {group:?} cannot be a target, only Service, ServiceEntry, Gateway and GatewayClass"
        ));
    }
}

/// Checks the name of a header that is written as it stands: one of the wire, not of HTTP/2's own.
pub(super) fn plain_header_name(at: &At<'_>, name: &str) {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_plain) {
        at.reject(format!("{name:?} is not the name of a header: letters, digits, `-` and `_`"));
    }
}
