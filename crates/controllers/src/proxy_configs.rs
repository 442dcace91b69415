//! The ProxyConfigs of a cluster, for those who make proxies.

use crate::kinds::Absence;
use crate::revision_tags::REVISION;
use crate::source::everywhere;
use crate::tap::{Name, Seen, Selection, name_of, tap};
use k8s_api::proxy_config::{ProxyConfig, ProxyConfigSpec};
use kube::Client;
use parking_lot::RwLock;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use tokio::sync::mpsc;

/// The ProxyConfigs of a cluster. Cloning shares them; empty until they have been listed.
#[derive(Clone, Debug, Default)]
pub struct ProxyConfigs(Arc<RwLock<HashMap<Name, ProxyConfig>>>);

impl ProxyConfigs {
    /// Follows those of a cluster, for as long as the future lives.
    pub async fn follow(self, client: Client) {
        let selection =
            Selection { name: "ProxyConfig", fields: None, labels: None, absence: Absence::NotServed };
        let (sender, mut seen) = mpsc::unbounded_channel();
        let api = everywhere(&client);
        let take_in = async {
            while let Some(seen) = seen.recv().await {
                self.take_in(seen);
            }
        };
        tokio::join!(tap(client, api, selection, sender), take_in);
    }

    fn take_in(&self, seen: Seen<ProxyConfig>) {
        let mut known = self.0.write();
        match seen {
            Seen::All(all) => *known = all.into_iter().map(|object| (name_of(&object), object)).collect(),
            Seen::Is(object) => drop(known.insert(name_of(&object), object)),
            Seen::Gone(name) => drop(known.remove(&name)),
        }
    }

    /// Returns what applies to a pod, the most general first, in the fields of MeshConfig's `defaultConfig`: that of the
    /// mesh, which is in the root namespace, of the pod's namespace, and of those that select the pod. Where several say
    /// something at one level, the oldest counts. Those of other revisions than `revisions` do not.
    pub fn layers(
        &self,
        revisions: &BTreeSet<String>,
        root: &str,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Vec<Value> {
        let known = self.0.read();
        let is_ours = |object: &ProxyConfig| {
            let revision = object.metadata.labels.iter().flatten().find(|(key, _)| *key == REVISION);
            revision.is_none_or(|(_, revision)| revisions.contains(revision))
        };
        let oldest = |namespace: &str, is_meant: &dyn Fn(&ProxyConfigSpec) -> bool| {
            let meant = known
                .iter()
                .filter(|((of, _), object)| of == namespace && is_ours(object) && is_meant(&object.spec));
            let oldest = meant.min_by_key(|((_, name), object)| {
                (object.metadata.creation_timestamp.as_ref().map(|time| time.0), name.clone())
            });
            oldest.map(|(_, object)| layer(&object.spec))
        };
        let is_for_all = |spec: &ProxyConfigSpec| {
            spec.selector.as_ref().is_none_or(|selector| selector.match_labels.is_empty())
        };
        let selects = |spec: &ProxyConfigSpec| {
            !is_for_all(spec)
                && spec.selector.as_ref().is_some_and(|selector| {
                    selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
                })
        };
        let of_mesh = (root != namespace).then(|| oldest(root, &is_for_all)).flatten();
        [of_mesh, oldest(namespace, &is_for_all), oldest(namespace, &selects)].into_iter().flatten().collect()
    }
}

fn layer(spec: &ProxyConfigSpec) -> Value {
    let mut fields = Map::new();
    if let Some(concurrency) = spec.concurrency {
        fields.insert("concurrency".to_owned(), json!(concurrency));
    }
    if !spec.environment_variables.is_empty() {
        fields.insert("proxyMetadata".to_owned(), json!(spec.environment_variables));
    }
    if let Some(image) = spec.image.as_ref().filter(|image| !image.image_type.is_empty()) {
        fields.insert("image".to_owned(), json!({ "imageType": image.image_type }));
    }
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(namespace: &str, name: &str, age: u32, spec: &Value) -> ProxyConfig {
        let created = format!("2026-01-01T00:00:{:02}Z", 59 - age);
        serde_json::from_value(json!({
            "metadata": {"namespace": namespace, "name": name, "creationTimestamp": created}, "spec": spec,
        }))
        .unwrap()
    }

    #[test]
    fn what_is_nearer_to_the_pod_comes_later_and_the_oldest_counts() {
        let known = ProxyConfigs::default();
        let mesh = json!({"concurrency": 1, "environmentVariables": {"A": "mesh"}});
        let selecting =
            json!({"selector": {"matchLabels": {"app": "cart"}}, "image": {"imageType": "debug"}});
        known.take_in(Seen::All(vec![
            object("root", "all", 0, &mesh),
            object("root", "some", 9, &selecting),
            object("shop", "young", 1, &json!({"concurrency": 7})),
            object("shop", "old", 5, &json!({"concurrency": 3})),
            object("shop", "cart", 0, &selecting),
        ]));
        let ours = BTreeSet::from(["default".to_owned()]);
        let labels = |app: &str| BTreeMap::from([("app".to_owned(), app.to_owned())]);
        let of_mesh = json!({"concurrency": 1, "proxyMetadata": {"A": "mesh"}});
        assert_eq!(
            known.layers(&ours, "root", "shop", &labels("cart")),
            [of_mesh.clone(), json!({"concurrency": 3}), json!({"image": {"imageType": "debug"}})]
        );
        assert_eq!(known.layers(&ours, "root", "shop", &labels("till"))[1..], [json!({"concurrency": 3})]);
        assert_eq!(known.layers(&ours, "root", "other", &labels("cart")), std::slice::from_ref(&of_mesh));
        assert_eq!(known.layers(&ours, "root", "root", &BTreeMap::new()), [of_mesh]);
        let mut of_another = object("shop", "old", 5, &json!({"concurrency": 3}));
        of_another.metadata.labels = Some(BTreeMap::from([(REVISION.to_owned(), "canary".to_owned())]));
        known.take_in(Seen::Is(of_another));
        assert_eq!(known.layers(&ours, "x", "shop", &BTreeMap::new()), [json!({"concurrency": 7})]);
        known.take_in(Seen::Gone(("shop".to_owned(), "old".to_owned())));
        assert_eq!(known.layers(&ours, "x", "shop", &BTreeMap::new()), [json!({"concurrency": 7})]);
    }
}
