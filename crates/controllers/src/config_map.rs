//! One ConfigMap, followed.

use crate::kinds::Absence;
use crate::tap::{Seen, Selection, tap};
use k8s_api::core::ConfigMap;
use kube::{Api, Client};
use std::collections::BTreeMap;
use tokio::sync::{mpsc, watch};

/// Text by key; empty if there is no such ConfigMap.
pub type ConfigMapData = BTreeMap<String, String>;

/// Keeps `data` equal to what is in a ConfigMap, for as long as the future lives; it stays nothing until that is known.
pub async fn follow_config_map(
    client: Client,
    namespace: &str,
    name: &str,
    data: watch::Sender<Option<ConfigMapData>>,
) {
    let selection = Selection {
        name: "ConfigMap",
        fields: Some(format!("metadata.name={name}")),
        labels: None,
        absence: Absence::Forbidden,
    };
    let (sender, mut seen) = mpsc::unbounded_channel();
    let api = Api::namespaced(client.clone(), namespace);
    let take_in = async {
        while let Some(seen) = seen.recv().await {
            let now = content(name, seen);
            let Some(now) = now else { continue };
            data.send_if_modified(|known| {
                let is_news = known.as_ref() != Some(&now);
                *known = Some(now);
                is_news
            });
        }
    };
    tokio::join!(tap::<ConfigMap>(client, api, selection, sender), take_in);
}

/// Returns what is in it now; nothing if another one was seen.
fn content(name: &str, seen: Seen<ConfigMap>) -> Option<ConfigMapData> {
    let is_it = |object: &ConfigMap| object.metadata.name.as_deref() == Some(name);
    match seen {
        Seen::All(all) => {
            let found = all.into_iter().find(is_it);
            Some(found.map(|object| object.data).unwrap_or_default())
        }
        Seen::Is(object) => is_it(&object).then_some(object.data),
        Seen::Gone((_, gone)) => (gone == name).then(ConfigMapData::new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_one_that_is_meant_counts() {
        let object = |name: &str| -> ConfigMap {
            serde_json::from_value(json!({"metadata": {"name": name}, "data": {"values": name}})).unwrap()
        };
        let data = |name: &str| Some(ConfigMapData::from([("values".to_owned(), name.to_owned())]));
        assert_eq!(content("a", Seen::All(vec![object("b"), object("a")])), data("a"));
        assert_eq!(content("a", Seen::All(vec![object("b")])), Some(ConfigMapData::new()));
        assert_eq!(content("a", Seen::Is(object("a"))), data("a"));
        assert_eq!(content("a", Seen::Is(object("b"))), None);
        assert_eq!(content("a", Seen::Gone(("x".to_owned(), "a".to_owned()))), Some(ConfigMapData::new()));
    }
}
