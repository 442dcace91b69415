//! Whether a pod gets a proxy: the selectors of the webhooks, and then the pod itself.
//!
//! | namespace `istio-injection` | namespace `istio.io/rev` | pod `sidecar.istio.io/inject` | pod `istio.io/rev` | injected by |
//! |---|---|---|---|---|
//! | `enabled` | any | not `false` | any | the default revision |
//! | anything else | any | any | any | nobody |
//! | none | R | not `false` | any | R |
//! | none | none | not `false` | R | R |
//! | none | none | `true` | none | the default revision |
//! | none | none | none | none | the default revision, if it injects namespaces by default |
//!
//! What the webhook is asked about is then refused a proxy if it uses the host's network or lives in a namespace of
//! Kubernetes itself; otherwise the pod's label decides, then its annotation, then the selectors, then the policy.

use crate::pod;
use crate::settings::{ControlPlane, Policy, Settings};
use serde_json::Value;
use std::collections::BTreeMap;

/// Namespaces whose pods must start before, or without, a mesh.
pub const SYSTEM_NAMESPACES: [&str; 4] =
    ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

const INJECT: &str = "sidecar.istio.io/inject";
const REVISION: &str = "istio.io/rev";
const NAMESPACE_INJECTION: &str = "istio-injection";

/// The namespace of a pod.
#[derive(Clone, Copy, Debug)]
pub struct Namespace<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
}

/// Which webhook of the configuration asks for a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Webhook {
    /// `namespace.`: the namespace is labelled `istio-injection: enabled`.
    Namespace,
    /// `rev.namespace.`: the namespace is labelled with a revision.
    RevisionNamespace,
    /// `object.`: the pod is labelled `sidecar.istio.io/inject: "true"`.
    Object,
    /// `rev.object.`: the pod is labelled with a revision.
    RevisionObject,
    /// `auto.`: nothing is labelled.
    Auto,
}

/// Why a pod gets no proxy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    /// The namespace is labelled `istio-injection` with something else than `enabled`.
    #[error("the namespace is labelled istio-injection: {0}")]
    NamespaceDisabled(String),
    /// Another revision is responsible.
    #[error("revision {0} is responsible, not this control plane")]
    OtherRevision(String),
    /// Nothing asks for a proxy.
    #[error("neither the namespace nor the pod is labelled for injection")]
    NotLabelled,
    /// The host's network must not be captured.
    #[error("it uses the network of its host")]
    HostNetwork,
    /// The namespace is Kubernetes' own.
    #[error("namespace {0} is never injected")]
    SystemNamespace(String),
    /// The pod's label says no.
    #[error("the pod is labelled sidecar.istio.io/inject: \"false\"")]
    Label,
    /// The pod's annotation says no.
    #[error("the pod is annotated sidecar.istio.io/inject: \"false\"")]
    Annotation,
    /// A selector of the settings says no.
    #[error("a selector of neverInjectSelector matches the pod's labels")]
    NeverSelector,
    /// The policy says no, and the pod says nothing.
    #[error("the injection policy is disabled, and the pod does not ask for a proxy")]
    Policy,
    /// The policy is not understood.
    #[error("the injection policy {0:?} is neither enabled nor disabled")]
    UnknownPolicy(String),
}

/// Whether a pod gets a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It does.
    Inject,
    /// It does not.
    Skip(SkipReason),
}

impl Decision {
    /// Returns whether the pod gets a proxy.
    pub fn injects(&self) -> bool {
        matches!(self, Self::Inject)
    }
}

/// Decides about a pod: which webhook asks for it, if any does, and what it says itself.
pub fn decide(settings: &Settings, namespace: Namespace<'_>, pod: &Value) -> (Option<Webhook>, Decision) {
    match webhook(&settings.control_plane, namespace, pod) {
        Ok(webhook) => (Some(webhook), decide_pod(settings, namespace.name, pod)),
        Err(reason) => (None, Decision::Skip(reason)),
    }
}

/// Returns the webhook that asks for a pod. Its selectors say the same in the API server.
fn webhook(
    control_plane: &ControlPlane,
    namespace: Namespace<'_>,
    pod: &Value,
) -> Result<Webhook, SkipReason> {
    let wanted = pod::label(pod, INJECT);
    let not_refused = |webhook| if wanted == Some("false") { Err(SkipReason::Label) } else { Ok(webhook) };
    let ours = |revision: &str, webhook| {
        if control_plane.serves(revision) {
            not_refused(webhook)
        } else {
            Err(SkipReason::OtherRevision(revision.to_owned()))
        }
    };
    match namespace.labels.get(NAMESPACE_INJECTION).map(String::as_str) {
        Some("enabled") => return ours("default", Webhook::Namespace),
        Some(other) => return Err(SkipReason::NamespaceDisabled(other.to_owned())),
        None => {}
    }
    if let Some(revision) = namespace.labels.get(REVISION) {
        return ours(revision, Webhook::RevisionNamespace);
    }
    match (pod::label(pod, REVISION), wanted) {
        (Some(revision), _) => ours(revision, Webhook::RevisionObject),
        (None, Some("true")) => ours("default", Webhook::Object),
        (None, Some("false")) => Err(SkipReason::Label),
        (None, None)
            if control_plane.namespaces_by_default && !SYSTEM_NAMESPACES.contains(&namespace.name) =>
        {
            ours("default", Webhook::Auto)
        }
        (None, _) => Err(SkipReason::NotLabelled),
    }
}

/// Decides about a pod that the control plane was asked about.
pub fn decide_pod(settings: &Settings, namespace: &str, pod: &Value) -> Decision {
    match refused(settings, namespace, pod) {
        Some(reason) => Decision::Skip(reason),
        None => Decision::Inject,
    }
}

fn refused(settings: &Settings, namespace: &str, pod: &Value) -> Option<SkipReason> {
    if pod["spec"]["hostNetwork"] == true {
        return Some(SkipReason::HostNetwork);
    }
    if SYSTEM_NAMESPACES.contains(&namespace) {
        return Some(SkipReason::SystemNamespace(namespace.to_owned()));
    }
    if let Policy::Unknown(policy) = &settings.policy {
        return Some(SkipReason::UnknownPolicy(policy.clone()));
    }
    let (said, by_label) = match pod::label(pod, INJECT) {
        Some(label) => (Some(label), true),
        None => (pod::annotation(pod, INJECT), false),
    };
    match said.map(str::to_ascii_lowercase).as_deref() {
        Some("true") => return None,
        Some("false") if by_label => return Some(SkipReason::Label),
        Some("false") => return Some(SkipReason::Annotation),
        _ => {}
    }
    let labels = pod::strings(pod, "labels");
    if settings.never_inject.iter().any(|selector| selector.matches(&labels)) {
        return Some(SkipReason::NeverSelector);
    }
    let always = settings.always_inject.iter().any(|selector| selector.matches(&labels));
    (!always && settings.policy == Policy::Disabled).then_some(SkipReason::Policy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn labels(pairs: &[(&str, Option<&str>)]) -> BTreeMap<String, String> {
        let set = pairs.iter().filter_map(|(key, value)| Some(((*key).to_owned(), (*value)?.to_owned())));
        set.collect()
    }

    fn control_plane(revision: &str, tags: &[&str], by_default: bool) -> Settings {
        let control_plane = ControlPlane {
            revision: revision.to_owned(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            namespaces_by_default: by_default,
        };
        Settings { control_plane, ..Settings::default() }
    }

    /// The four labels of the table, in its order.
    type Labels<'a> = [Option<&'a str>; 4];

    fn asked(settings: &Settings, [injection, ns_rev, inject, pod_rev]: Labels<'_>) -> Option<Webhook> {
        let namespace = labels(&[("istio-injection", injection), ("istio.io/rev", ns_rev)]);
        let pod_labels = labels(&[("sidecar.istio.io/inject", inject), ("istio.io/rev", pod_rev)]);
        let pod = json!({"metadata": {"labels": pod_labels}, "spec": {}});
        decide(settings, Namespace { name: "app", labels: &namespace }, &pod).0
    }

    #[test]
    fn the_whole_table_of_labels() {
        let default = control_plane("default", &[], false);
        let tagged = control_plane("blue", &["default", "stable"], false);
        let other = control_plane("canary", &[], false);
        let auto = control_plane("default", &[], true);
        let mut checked = 0;
        for injection in [None, Some("enabled"), Some("disabled"), Some("yes")] {
            for ns_rev in [None, Some("default"), Some("blue"), Some("stable"), Some("canary")] {
                for inject in [None, Some("true"), Some("false"), Some("maybe")] {
                    for pod_rev in [None, Some("default"), Some("blue"), Some("canary")] {
                        let row = [injection, ns_rev, inject, pod_rev];
                        for (settings, names) in [
                            (&default, &["default"][..]),
                            (&tagged, &["blue", "default", "stable"]),
                            (&other, &["canary"]),
                            (&auto, &["default"]),
                        ] {
                            let by_default = settings.control_plane.namespaces_by_default;
                            let expected = expected(row, names, by_default);
                            assert_eq!(asked(settings, row), expected, "{row:?} asked of {names:?}");
                            checked += 1;
                        }
                    }
                }
            }
        }
        assert_eq!(checked, 4 * 5 * 4 * 4 * 4);
    }

    /// The selectors of the webhooks, as the chart writes them.
    fn expected(row: Labels<'_>, names: &[&str], by_default: bool) -> Option<Webhook> {
        let [injection, ns_rev, inject, pod_rev] = row;
        let served = |revision: Option<&str>| revision.is_some_and(|revision| names.contains(&revision));
        let is_default = names.contains(&"default");
        let not_false = inject != Some("false");
        let rows = [
            (injection == Some("enabled") && not_false && is_default, Webhook::Namespace),
            (injection.is_none() && served(ns_rev) && not_false, Webhook::RevisionNamespace),
            (
                injection.is_none() && ns_rev.is_none() && not_false && served(pod_rev),
                Webhook::RevisionObject,
            ),
            (
                injection.is_none()
                    && ns_rev.is_none()
                    && pod_rev.is_none()
                    && inject == Some("true")
                    && is_default,
                Webhook::Object,
            ),
            (
                by_default
                    && injection.is_none()
                    && ns_rev.is_none()
                    && pod_rev.is_none()
                    && inject.is_none()
                    && is_default,
                Webhook::Auto,
            ),
        ];
        let matching: Vec<Webhook> =
            rows.into_iter().filter(|(matches, _)| *matches).map(|(_, webhook)| webhook).collect();
        assert!(matching.len() <= 1, "two webhooks ask for {row:?}: {matching:?}");
        matching.first().copied()
    }

    #[test]
    fn namespaces_of_kubernetes_are_not_injected_by_default() {
        let settings = control_plane("default", &[], true);
        let none = BTreeMap::new();
        let pod = json!({"metadata": {}, "spec": {}});
        for name in SYSTEM_NAMESPACES {
            let (webhook, decision) = decide(&settings, Namespace { name, labels: &none }, &pod);
            assert_eq!((webhook, decision), (None, Decision::Skip(SkipReason::NotLabelled)), "{name}");
        }
        let (webhook, decision) = decide(&settings, Namespace { name: "app", labels: &none }, &pod);
        assert_eq!((webhook, decision), (Some(Webhook::Auto), Decision::Inject));
    }

    #[test]
    fn the_whole_table_of_what_a_pod_says() {
        let selector = |key: &str| {
            serde_json::from_value(json!({"matchExpressions": [{"key": key, "operator": "Exists"}]})).unwrap()
        };
        for policy in [Policy::Enabled, Policy::Disabled] {
            for label in [None, Some("true"), Some("false"), Some("TRUE"), Some("random"), Some("")] {
                for annotation in [None, Some("true"), Some("false"), Some("yes")] {
                    for (never, always) in [(false, false), (true, false), (false, true), (true, true)] {
                        let settings = Settings {
                            policy: policy.clone(),
                            never_inject: vec![selector("never")],
                            always_inject: vec![selector("always")],
                            ..Settings::default()
                        };
                        let pod_labels = labels(&[
                            (INJECT, label),
                            ("never", never.then_some("")),
                            ("always", always.then_some("")),
                        ]);
                        let metadata =
                            json!({"labels": pod_labels, "annotations": labels(&[(INJECT, annotation)])});
                        let pod = json!({"metadata": metadata, "spec": {}});
                        let expected = match label.or(annotation) {
                            Some("true" | "TRUE") => true,
                            Some("false") => false,
                            _ if never => false,
                            _ if always => true,
                            _ => policy == Policy::Enabled,
                        };
                        let decision = decide_pod(&settings, "app", &pod);
                        assert_eq!(decision.injects(), expected, "{policy:?} {metadata}");
                    }
                }
            }
        }
    }

    #[test]
    fn some_pods_never_get_a_proxy() {
        let settings = Settings::default();
        let label = json!({"labels": {INJECT: "true"}});
        let host = json!({"metadata": label, "spec": {"hostNetwork": true}});
        assert_eq!(decide_pod(&settings, "app", &host), Decision::Skip(SkipReason::HostNetwork));
        let pod = json!({"metadata": label, "spec": {"hostNetwork": false}});
        for name in SYSTEM_NAMESPACES {
            let expected = Decision::Skip(SkipReason::SystemNamespace(name.to_owned()));
            assert_eq!(decide_pod(&settings, name, &pod), expected);
        }
        let unknown = Settings { policy: Policy::Unknown("on".to_owned()), ..Settings::default() };
        let expected = Decision::Skip(SkipReason::UnknownPolicy("on".to_owned()));
        assert_eq!(decide_pod(&unknown, "app", &pod), expected);
    }
}
