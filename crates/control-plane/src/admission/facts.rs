//! What admission asks about a cluster and no mesh does.

use index::{Change, Reset, Sourced};
use k8s_api::core::{Namespace, Node};
use k8s_api::object::{Object, ObjectKey};
use model::Labels;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Namespaces and kubelets. It changes by the same changes as the index.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Facts {
    namespaces: BTreeMap<String, Arc<NamespaceFacts>>,
    /// The versions of kubelets by node.
    kubelets: BTreeMap<String, String>,
    /// The names of the revision that weftd is.
    revisions: Arc<BTreeSet<String>>,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct NamespaceFacts {
    /// Its labels.
    pub(crate) labels: Labels,
    /// Its annotations.
    pub(crate) annotations: BTreeMap<String, String>,
    /// Nothing can be made in it any more.
    pub(crate) is_ending: bool,
}

impl Facts {
    /// Takes a change in. Returns whether anything is different now.
    pub(crate) fn take_in(&mut self, change: &Change) -> bool {
        match change {
            Change::Reset(reset, objects) => {
                let (namespaces, nodes) = match reset {
                    Reset::Everything => (true, true),
                    Reset::Kind(kind) => (*kind == "Namespace", *kind == "Node"),
                };
                if !namespaces && !nodes {
                    return false;
                }
                let mut now = self.clone();
                if namespaces {
                    now.namespaces.clear();
                }
                if nodes {
                    now.kubelets.clear();
                }
                for object in objects {
                    now.apply(object);
                }
                let is_news = *self != now;
                *self = now;
                is_news
            }
            Change::Apply(object) => self.apply(object),
            Change::Delete(key) => self.delete(key),
            Change::Revisions(names) => {
                let names = Arc::new(names.clone());
                std::mem::replace(&mut self.revisions, names.clone()) != names
            }
            Change::MeshConfig(_) | Change::Synced(_) | Change::CatchingUp => false,
        }
    }

    fn apply(&mut self, sourced: &Sourced) -> bool {
        match sourced.object.as_ref() {
            Object::Namespace(namespace) => {
                let name = namespace.metadata.name.clone().unwrap_or_default();
                let facts = Arc::new(namespace_facts(&name, namespace));
                self.namespaces.insert(name, facts.clone()) != Some(facts)
            }
            Object::Node(node) => {
                let (name, version) = kubelet(node);
                self.kubelets.insert(name, version.clone()) != Some(version)
            }
            _ => false,
        }
    }

    fn delete(&mut self, key: &ObjectKey) -> bool {
        match (key.group.as_ref(), key.kind.as_ref()) {
            ("", "Namespace") => self.namespaces.remove(&key.name).is_some(),
            ("", "Node") => self.kubelets.remove(&key.name).is_some(),
            _ => false,
        }
    }

    /// Returns the names of the revision that weftd is.
    pub(crate) fn revisions(&self) -> Arc<BTreeSet<String>> {
        self.revisions.clone()
    }

    /// Returns the namespaces by name.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = (&String, &NamespaceFacts)> {
        self.namespaces.iter().map(|(name, facts)| (name, facts.as_ref()))
    }

    /// Returns a namespace, if it is known.
    pub(crate) fn namespace(&self, name: &str) -> Option<&NamespaceFacts> {
        self.namespaces.get(name).map(AsRef::as_ref)
    }

    /// Returns the versions of the kubelets that may run a pod: that of its node if it is known, else all.
    pub(crate) fn kubelets(&self, node: Option<&str>) -> Vec<String> {
        match node.filter(|node| !node.is_empty()) {
            Some(node) => self.kubelets.get(node).cloned().into_iter().collect(),
            None => self.kubelets.values().cloned().collect(),
        }
    }
}

fn namespace_facts(name: &str, namespace: &Namespace) -> NamespaceFacts {
    let labels = namespace.metadata.labels.iter().flatten();
    let labels = labels.map(|(key, value)| (key.as_str(), value.as_str()));
    // In files nobody else puts it on them.
    let own = ("kubernetes.io/metadata.name", name);
    NamespaceFacts {
        labels: labels.chain([own]).collect(),
        annotations: namespace.metadata.annotations.clone().unwrap_or_default(),
        is_ending: namespace.metadata.deletion_timestamp.is_some() || namespace.status.phase == "Terminating",
    }
}

fn kubelet(node: &Node) -> (String, String) {
    (node.metadata.name.clone().unwrap_or_default(), node.status.node_info.kubelet_version.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_api::yaml::parse_documents;

    fn object(text: &str) -> Sourced {
        Sourced::from_api(parse_documents(text, "test").pop().unwrap().unwrap().object)
    }

    fn node(name: &str, version: &str) -> Sourced {
        object(&format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}, status: {{nodeInfo: {{kubeletVersion: {version}}}}}}}"
        ))
    }

    #[test]
    fn namespaces_and_kubelets_are_known_by_the_changes_that_the_index_takes() {
        let mut facts = Facts::default();
        let text = "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: a}, annotations: {b: c}}}";
        assert!(facts.take_in(&Change::Reset(Reset::Kind("Namespace"), vec![object(text)])));
        assert!(!facts.take_in(&Change::Apply(object(text))), "the same is no news");
        assert!(!facts.take_in(&Change::Reset(Reset::Kind("Pod"), Vec::new())));
        let shop = facts.namespace("shop").unwrap();
        assert_eq!(shop.annotations["b"], "c");
        assert_eq!(shop.labels.get("kubernetes.io/metadata.name").map(AsRef::as_ref), Some("shop"));
        assert!(
            facts.take_in(&Change::Reset(
                Reset::Kind("Node"),
                vec![node("a", "v1.33.1"), node("b", "v1.30.0")]
            ))
        );
        assert_eq!(facts.kubelets(None), ["v1.33.1", "v1.30.0"]);
        assert_eq!(facts.kubelets(Some("a")), ["v1.33.1"]);
        assert_eq!(facts.kubelets(Some("")).len(), 2);
        assert!(facts.kubelets(Some("c")).is_empty());
        assert!(facts.take_in(&Change::Delete(node("b", "v").object.key())));
        assert!(!facts.take_in(&Change::Delete(node("b", "v").object.key())));
        assert_eq!(facts.kubelets(None), ["v1.33.1"]);
        let ending =
            "{apiVersion: v1, kind: Namespace, metadata: {name: shop}, status: {phase: Terminating}}";
        assert!(facts.take_in(&Change::Apply(object(ending))));
        assert!(facts.namespace("shop").unwrap().is_ending);
    }
}
