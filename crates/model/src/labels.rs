//! Kubernetes labels and the equality selectors that the mesh APIs use.

use crate::Str;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Labels of nodes, endpoints and clients that say where they are.
pub mod topology {
    /// The region.
    pub const REGION: &str = "topology.kubernetes.io/region";
    /// The zone.
    pub const ZONE: &str = "topology.kubernetes.io/zone";
    /// The sub-zone.
    pub const SUBZONE: &str = "topology.istio.io/subzone";
    /// The cluster.
    pub const CLUSTER: &str = "topology.istio.io/cluster";
    /// The network.
    pub const NETWORK: &str = "topology.istio.io/network";
    /// The node.
    pub const HOSTNAME: &str = "kubernetes.io/hostname";
}

/// A set of labels, or an equality selector over one: both are maps from key to value. Cloning shares it: a workload's
/// labels are those of each of its endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(Arc<BTreeMap<Str, Str>>);

impl Labels {
    /// Returns the empty set, which as a selector selects everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(AsRef::as_ref)
    }

    /// Sets `key` to `value`.
    pub fn insert(&mut self, key: impl Into<Str>, value: impl Into<Str>) {
        Arc::make_mut(&mut self.0).insert(key.into(), value.into());
    }

    /// Returns whether every label of `self`, read as a selector, is in `labels` with the same value.
    pub fn selects(&self, labels: &Self) -> bool {
        self.0.iter().all(|(key, value)| labels.0.get(key) == Some(value))
    }

    /// Returns whether there is no label.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number of labels.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the labels in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_ref(), value.as_ref()))
    }
}

impl<K: Into<Str>, V: Into<Str>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        Self(Arc::new(labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect()))
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (key, value)) in self.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_needs_every_label_and_the_empty_one_selects_all() {
        let pod: Labels = [("app", "cart"), ("version", "v1")].into_iter().collect();
        let by_app: Labels = [("app", "cart")].into_iter().collect();
        let by_other: Labels = [("app", "cart"), ("tier", "web")].into_iter().collect();
        assert!(by_app.selects(&pod));
        assert!(!by_other.selects(&pod));
        assert!(Labels::new().selects(&Labels::new()));
    }
}
