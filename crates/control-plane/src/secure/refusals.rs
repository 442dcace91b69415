//! Secrets of Kubernetes that somebody asks for and may not have: nothing is sent, and people are told.
//!
//! What is said is the same whether there is such a Secret or not.

use identity::Metrics;
use model::SpiffeId;
use proto::resource::ResourceSet;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tracing::warn;

/// So many refusals of one stream are logged; all are counted.
const MAX_LOGGED: usize = 10;

/// Returns whether somebody may be refused a secret of this name.
pub(super) fn is_judged(name: &str) -> bool {
    compile::secret::namespace_of(name, "").is_some()
}

/// What a stream was refused.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    now: BTreeMap<Arc<str>, Reason>,
    logged: usize,
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// It is of another namespace, and no Gateway of the caller may use it.
    Namespace,
    /// The caller's service account may not list Secrets.
    Permission,
}

impl Reason {
    fn label(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Permission => "permission",
        }
    }

    fn explain(self) -> &'static str {
        match self {
            Self::Namespace => {
                "it is of another namespace, and no ReferenceGrant there lets a Gateway of this proxy use it"
            }
            Self::Permission => "its service account may not list Secrets in its namespace",
        }
    }
}

impl Refusals {
    /// Tells of what `caller` has begun to be refused, of the `wanted`: `there` is what it may have as far as namespaces
    /// go, and `permitted` says whether it may have any, if that is known yet.
    pub(super) fn look(
        &mut self,
        caller: &SpiffeId,
        metrics: &Metrics,
        wanted: &BTreeSet<Arc<str>>,
        there: &ResourceSet,
        permitted: Option<bool>,
    ) {
        if wanted.is_empty() && self.now.is_empty() {
            return;
        }
        let own = caller.namespace().as_str();
        let mut now = BTreeMap::new();
        for name in wanted {
            let reason = match there.contains_key(name) {
                true if permitted == Some(false) => Reason::Permission,
                false if compile::secret::namespace_of(name, own) != Some(own) => Reason::Namespace,
                _ => continue,
            };
            now.insert(name.clone(), reason);
            if self.now.get(name) == Some(&reason) {
                continue;
            }
            metrics.secret_refused(reason.label());
            if self.logged < MAX_LOGGED {
                self.logged += 1;
                warn!(%caller, secret = ?name, reason = reason.explain(), "a secret is refused");
            }
        }
        self.now = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use identity::Metrics;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;
    use proto::resource::{Body, Needs, Resource, ResourceType};

    fn counted(metrics: &Metrics) -> [u64; 2] {
        let mut registry = Registry::default();
        registry.register("refused", "", metrics.secrets_refused.clone());
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        ["namespace", "permission"].map(|reason| {
            let line = format!("refused{{reason=\"{reason}\"}} ");
            text.lines().find_map(|found| found.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
        })
    }

    #[test]
    fn each_refusal_is_told_once_and_again_after_it_was_over() {
        let caller: SpiffeId = "spiffe://cluster.local/ns/shop/sa/edge".parse().unwrap();
        let names = [
            "kubernetes://tls",
            "kubernetes://shop/tls",
            "kubernetes://bank/tls",
            "kubernetes-gateway://bank/tls",
            "kubernetes-gateway://bank/tls-cacert",
            "kubernetes://nothing-of-the-kind",
        ];
        let wanted: BTreeSet<Arc<str>> = names.iter().map(|name| Arc::from(*name)).collect();
        assert!(names.iter().all(|name| is_judged(name)));
        for other in
            ["default", "ROOTCA", "configmap://bank/ca", "kubernetes://", "kubernetes-gateway://x", "a/b/c"]
        {
            assert!(!is_judged(other), "{other}");
        }
        let resource = |name: &str| {
            let body = Body::Whole(Vec::new().into());
            let resource = Resource::new(ResourceType::Secret, name, body, Needs::default());
            (resource.name().clone(), Arc::new(resource))
        };
        let own: ResourceSet = names[..2].iter().map(|name| resource(name)).collect();
        let (mut refusals, metrics) = (Refusals::default(), Metrics::default());
        // Whether it may have its own is not known yet.
        refusals.look(&caller, &metrics, &wanted, &own, None);
        assert_eq!(counted(&metrics), [3, 0]);
        for _ in 0..3 {
            refusals.look(&caller, &metrics, &wanted, &own, Some(false));
            assert_eq!(counted(&metrics), [3, 2]);
        }
        refusals.look(&caller, &metrics, &wanted, &own, Some(true));
        assert_eq!(counted(&metrics), [3, 2]);
        // A grant makes one of them served, and is taken back.
        let granted: ResourceSet = names[..4]
            .iter()
            .filter(|name| !name.starts_with("kubernetes://bank"))
            .map(|name| resource(name))
            .collect();
        refusals.look(&caller, &metrics, &wanted, &granted, Some(true));
        refusals.look(&caller, &metrics, &wanted, &own, Some(true));
        assert_eq!(counted(&metrics), [4, 2]);
    }
}
