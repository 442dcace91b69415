//! The tags that stand for a revision: as in Istio, configurations of webhooks with a label for the tag and one for the
//! revision.

use crate::objects::Follower;
use crate::tap::name_of;
use index::Change;
use k8s_api::admission::MutatingWebhookConfiguration;
use kube::core::DeserializeGuard;
use kube::{Resource, ResourceExt as _};
use std::collections::{BTreeMap, BTreeSet};

/// The label by which objects belong to a revision.
pub(crate) const REVISION: &str = "istio.io/rev";
/// The label that names the tag.
const TAG: &str = "istio.io/tag";

/// Follows the tags of one revision.
pub(crate) struct RevisionTags {
    revision: String,
    /// The tags, by the objects that say so.
    tags: BTreeMap<String, String>,
    told: Option<BTreeSet<String>>,
    /// There is nothing in them that has to be decoded.
    undecodable: BTreeMap<String, String>,
}

impl RevisionTags {
    pub(crate) fn new(revision: &str) -> Self {
        Self {
            revision: revision.to_owned(),
            tags: BTreeMap::new(),
            told: None,
            undecodable: BTreeMap::new(),
        }
    }

    /// Returns which objects are of interest.
    pub(crate) fn selector(revision: &str) -> String {
        format!("{TAG},{REVISION}={revision}")
    }

    fn see(&mut self, object: &impl Resource) {
        let (name, labels) = (name_of(object).1, object.labels());
        let is_ours = labels.get(REVISION) == Some(&self.revision);
        match labels.get(TAG).filter(|_| is_ours) {
            Some(tag) => drop(self.tags.insert(name, tag.clone())),
            None => drop(self.tags.remove(&name)),
        }
    }

    fn tell(&mut self) -> Option<Change> {
        let names: BTreeSet<String> = self.tags.values().chain([&self.revision]).cloned().collect();
        if self.told.as_ref() == Some(&names) {
            return None;
        }
        if self.told.is_some() {
            tracing::info!(revision = self.revision, ?names, "the revision is known by other names");
        }
        self.told = Some(names.clone());
        Some(Change::Revisions(names))
    }
}

impl Follower for RevisionTags {
    type Object = MutatingWebhookConfiguration;

    fn replace(&mut self, objects: Vec<DeserializeGuard<Self::Object>>) -> Option<Change> {
        self.tags.clear();
        for object in &objects {
            self.see(object);
        }
        self.tell()
    }

    fn apply(&mut self, object: DeserializeGuard<Self::Object>) -> Option<Change> {
        self.see(&object);
        self.tell()
    }

    fn delete(&mut self, object: &DeserializeGuard<Self::Object>) -> Option<Change> {
        self.tags.remove(&name_of(object).1);
        self.tell()
    }

    fn len(&self) -> usize {
        self.tags.len()
    }

    fn undecodable(&self) -> &BTreeMap<String, String> {
        &self.undecodable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(name: &str, labels: &[(&str, &str)]) -> DeserializeGuard<MutatingWebhookConfiguration> {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels } })).unwrap()
    }

    fn names(change: Option<Change>) -> Vec<String> {
        match change {
            Some(Change::Revisions(names)) => names.into_iter().collect(),
            None => Vec::new(),
            Some(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_revision_is_known_by_its_name_and_its_tags() {
        let mut tags = RevisionTags::new("canary");
        assert_eq!(names(tags.replace(Vec::new())), ["canary"]);
        assert_eq!(names(tags.replace(Vec::new())), [""; 0], "the same is no news");
        let prod = object("istio-revision-tag-prod", &[("istio.io/tag", "prod"), ("istio.io/rev", "canary")]);
        assert_eq!(names(tags.apply(prod)), ["canary", "prod"]);
        let injector = object("istio-sidecar-injector-canary", &[("istio.io/rev", "canary")]);
        assert_eq!(names(tags.apply(injector)), [""; 0], "which is no tag");
        // The tag moves on to another revision, and comes back.
        let moved = object("istio-revision-tag-prod", &[("istio.io/tag", "prod"), ("istio.io/rev", "next")]);
        assert_eq!(names(tags.apply(moved)), ["canary"]);
        let prod =
            || object("istio-revision-tag-prod", &[("istio.io/tag", "prod"), ("istio.io/rev", "canary")]);
        assert_eq!(names(tags.apply(prod())), ["canary", "prod"]);
        assert_eq!(names(tags.delete(&prod())), ["canary"]);
    }
}
