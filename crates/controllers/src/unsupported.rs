//! Objects of kinds that Weft does not act on: they are watched so that their authors are told.

use crate::kinds::{Absence, Watched};
use crate::source::everywhere;
use crate::tap::{Name, Seen, Selection, name_of, tap};
use crate::write::Reported;
use k8s_api::authorization_policy::AuthorizationPolicy;
use k8s_api::envoy_filter::EnvoyFilter;
use k8s_api::extension::{TrafficExtension, WasmPlugin};
use k8s_api::meta::IstioStatus;
use k8s_api::request_authentication::RequestAuthentication;
use k8s_api::telemetry::Telemetry;
use k8s_api::workload_group::WorkloadGroup;
use kube::Client;
use std::collections::BTreeMap;
use tokio::sync::mpsc;

/// A kind that is watched only to say that nothing comes of it.
trait Unsupported: Watched {
    const NAME: &'static str;

    fn status(&self) -> Option<&IstioStatus>;
}

macro_rules! unsupported {
    ($($kind:ident),+) => {
        $(impl Unsupported for $kind {
            const NAME: &'static str = stringify!($kind);

            fn status(&self) -> Option<&IstioStatus> {
                self.status.as_ref()
            }
        })+

        /// Tells of all objects of kinds that Weft does not act on, for as long as the future lives.
        pub async fn follow_unsupported(client: Client, sender: mpsc::UnboundedSender<Reported>) {
            tokio::join!($(follow::<$kind>(client.clone(), sender.clone())),+);
        }
    };
}

unsupported!(
    AuthorizationPolicy,
    RequestAuthentication,
    Telemetry,
    EnvoyFilter,
    WorkloadGroup,
    WasmPlugin,
    TrafficExtension
);

async fn follow<K: Unsupported>(client: Client, told: mpsc::UnboundedSender<Reported>) {
    let selection = Selection { name: K::NAME, fields: None, labels: None, absence: Absence::NotServed };
    let (sender, mut seen) = mpsc::unbounded_channel();
    let api = everywhere::<K>(&client);
    let mut known = BTreeMap::new();
    let take_in = async {
        while let Some(seen) = seen.recv().await {
            for object in take_in(&mut known, seen) {
                // Nobody listens any more only when weftd ends.
                let _ = told.send(object);
            }
        }
    };
    tokio::join!(tap(client.clone(), api, selection, sender), take_in);
}

/// Returns the objects that are different now.
fn take_in<K: Unsupported>(known: &mut BTreeMap<Name, Reported>, seen: Seen<K>) -> Vec<Reported> {
    let gone = |object: Reported| Reported { is_gone: true, ..object };
    match seen {
        Seen::All(all) => {
            let now: BTreeMap<Name, Reported> =
                all.iter().map(|object| (name_of(object), Reported::of(object, object.status()))).collect();
            let before = std::mem::replace(known, now);
            let lost = before.into_iter().filter(|(name, _)| !known.contains_key(name));
            lost.map(|(_, object)| gone(object)).chain(known.values().cloned()).collect()
        }
        Seen::Is(object) => {
            let reported = Reported::of(&object, object.status());
            known.insert(name_of(&object), reported.clone());
            vec![reported]
        }
        Seen::Gone(name) => known.remove(&name).map(gone).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn filter(name: &str, generation: u32) -> EnvoyFilter {
        let metadata = json!({"namespace": "shop", "name": name, "generation": generation});
        serde_json::from_value(json!({ "metadata": metadata, "spec": {} })).unwrap()
    }

    #[test]
    fn what_is_new_and_what_is_gone_is_told() {
        let mut known = BTreeMap::new();
        let mut told = |seen| -> Vec<(String, i64, bool)> {
            let news = take_in::<EnvoyFilter>(&mut known, seen).into_iter();
            news.map(|object| (object.key.name.clone(), object.generation, object.is_gone)).collect()
        };
        let is = |name: &str, generation| (name.to_owned(), generation, false);
        let gone = |name: &str, generation| (name.to_owned(), generation, true);
        assert_eq!(told(Seen::All(vec![filter("a", 1), filter("b", 1)])), [is("a", 1), is("b", 1)]);
        assert_eq!(told(Seen::Is(filter("a", 2))), [is("a", 2)]);
        assert_eq!(told(Seen::All(vec![filter("b", 1)])), [gone("a", 2), is("b", 1)]);
        assert_eq!(told(Seen::Gone(("shop".to_owned(), "b".to_owned()))), [gone("b", 1)]);
        assert!(told(Seen::Gone(("shop".to_owned(), "b".to_owned()))).is_empty());
    }
}
