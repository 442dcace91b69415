//! The `caBundle` of weftd's webhooks.

use super::Bundles;
use super::keeper::{Apply, Domain, is_older, stands_for};
use crate::kinds::Watched;
use crate::tap::Seen;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_api::admission::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration, Webhook};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;
use tokio::sync::watch;

/// What the names of our webhooks end with: Istio's. Others in the same configuration are left alone.
const OURS: [&str; 2] = ["sidecar-injector.istio.io", "validation.istio.io"];

/// A configuration of webhooks.
pub(super) trait Configuration: Watched {
    /// Its name in URLs.
    const PLURAL: &'static str;
    /// Its kind.
    const KIND: &'static str;

    /// Returns the webhooks.
    fn webhooks(&self) -> &[Webhook];
}

impl Configuration for MutatingWebhookConfiguration {
    const PLURAL: &'static str = "mutatingwebhookconfigurations";
    const KIND: &'static str = "MutatingWebhookConfiguration";

    fn webhooks(&self) -> &[Webhook] {
        &self.webhooks
    }
}

impl Configuration for ValidatingWebhookConfiguration {
    const PLURAL: &'static str = "validatingwebhookconfigurations";
    const KIND: &'static str = "ValidatingWebhookConfiguration";

    fn webhooks(&self) -> &[Webhook] {
        &self.webhooks
    }
}

/// The bundles of all webhooks of a kind.
type ByKind = BTreeMap<&'static str, Vec<Vec<u8>>>;

/// What configurations of all kinds have, told to whoever presents certificates.
#[derive(Clone)]
pub(super) struct Told {
    by_kind: Arc<Mutex<ByKind>>,
    /// As many kinds have to be known before anything is told.
    kinds: usize,
    sender: watch::Sender<Bundles>,
}

impl Told {
    pub(super) fn new(kinds: usize, sender: watch::Sender<Bundles>) -> Self {
        Self { by_kind: Arc::default(), kinds, sender }
    }

    fn tell(&self, kind: &'static str, bundles: Vec<Vec<u8>>) {
        let mut by_kind = self.by_kind.lock();
        by_kind.insert(kind, bundles);
        if by_kind.len() < self.kinds {
            return;
        }
        let all = Some(Arc::new(by_kind.values().flatten().cloned().collect()));
        self.sender.send_if_modified(|known| {
            let is_news = *known != all;
            *known = all;
            is_news
        });
    }
}

/// The configurations of one kind.
pub(super) struct Webhooks<K> {
    known: BTreeMap<String, Known>,
    bundle: Option<Arc<str>>,
    told: Told,
    kind: PhantomData<fn() -> K>,
}

struct Known {
    version: String,
    /// Our webhooks, and what they have.
    bundles: Vec<(String, Vec<u8>)>,
}

impl<K: Configuration> Webhooks<K> {
    pub(super) fn new(told: Told) -> Self {
        Self { known: BTreeMap::new(), bundle: None, told, kind: PhantomData }
    }

    fn see(&mut self, object: &K) -> Option<String> {
        let name = object.meta().name.clone()?;
        let version = object.meta().resource_version.clone().unwrap_or_default();
        if self.known.get(&name).is_some_and(|known| is_older(&version, &known.version)) {
            return None;
        }
        let ours = object.webhooks().iter().filter(|hook| OURS.iter().any(|end| hook.name.ends_with(end)));
        let bundles = ours.map(|hook| (hook.name.clone(), hook.client_config.ca_bundle.0.clone())).collect();
        self.known.insert(name.clone(), Known { version, bundles });
        Some(name)
    }
}

impl<K: Configuration> Domain for Webhooks<K> {
    type Key = String;
    type Object = K;
    type Wanted = Option<Arc<str>>;

    fn take_in(&mut self, seen: Seen<K>) -> Option<Vec<String>> {
        let concerned = match seen {
            Seen::All(all) => {
                self.known.clear();
                for object in &all {
                    self.see(object);
                }
                None
            }
            Seen::Is(object) => Some(self.see(&object).into_iter().collect()),
            Seen::Gone((_, name)) => {
                self.known.remove(&name);
                Some(vec![name])
            }
        };
        let bundles = self.known.values().flat_map(|known| &known.bundles);
        self.told.tell(K::KIND, bundles.map(|(_, bundle)| bundle.clone()).collect());
        concerned
    }

    fn want(&mut self, wanted: Self::Wanted) {
        self.bundle = wanted;
    }

    fn keys(&self) -> Vec<String> {
        self.known.keys().cloned().collect()
    }

    fn has(&self, key: &String) -> bool {
        self.known.contains_key(key)
    }

    fn difference(&self, key: &String) -> Option<Apply> {
        let (known, bundle) = (self.known.get(key)?, self.bundle.as_ref()?);
        if known.bundles.iter().all(|(_, has)| has.as_slice() == bundle.as_bytes()) {
            return None;
        }
        let encoded = STANDARD.encode(bundle.as_bytes());
        let hooks: Vec<_> = known
            .bundles
            .iter()
            .map(|(name, _)| json!({ "name": name, "clientConfig": { "caBundle": encoded } }))
            .collect();
        Some(Apply {
            path: format!("/apis/admissionregistration.k8s.io/v1/{}/{key}", K::PLURAL),
            body: json!({
                "apiVersion": "admissionregistration.k8s.io/v1", "kind": K::KIND,
                "metadata": { "name": key, "resourceVersion": known.version },
                "webhooks": hooks,
            }),
            want: stands_for(bundle),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, version: u32, hooks: &[(&str, &str)]) -> MutatingWebhookConfiguration {
        let hooks: Vec<_> = hooks
            .iter()
            .map(
                |(name, bundle)| json!({"name": name, "clientConfig": {"caBundle": STANDARD.encode(bundle)}}),
            )
            .collect();
        let metadata = json!({"name": name, "resourceVersion": version.to_string()});
        serde_json::from_value(json!({"metadata": metadata, "webhooks": hooks})).unwrap()
    }

    const OWN: &str = "rev.namespace.sidecar-injector.istio.io";

    #[test]
    fn our_webhooks_get_the_bundle_and_others_are_left_alone() {
        let (sender, told) = watch::channel(None);
        let mut webhooks = Webhooks::new(Told::new(1, sender));
        assert!(
            webhooks.take_in(Seen::All(vec![object("a", 1, &[(OWN, ""), ("x.example.com", "")])])).is_none()
        );
        assert_eq!(webhooks.difference(&"a".to_owned()), None, "there is no bundle yet");
        webhooks.want(Some("PEM".into()));
        let apply = webhooks.difference(&"a".to_owned()).unwrap();
        assert_eq!(apply.path, "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/a");
        assert_eq!(apply.body["metadata"], json!({"name": "a", "resourceVersion": "1"}));
        assert_eq!(apply.body["webhooks"], json!([{"name": OWN, "clientConfig": {"caBundle": "UEVN"}}]));

        assert_eq!(webhooks.take_in(Seen::Is(object("a", 3, &[(OWN, "PEM")]))).unwrap(), ["a"]);
        assert_eq!(webhooks.difference(&"a".to_owned()), None);
        assert_eq!(*told.borrow(), Some(Arc::new(vec![b"PEM".to_vec()])));
        // An event that was under way while we wrote.
        assert!(webhooks.take_in(Seen::Is(object("a", 2, &[(OWN, "")]))).unwrap().is_empty());
        assert_eq!(webhooks.difference(&"a".to_owned()), None);
        webhooks.take_in(Seen::Is(object("a", 4, &[(OWN, "other")])));
        assert_eq!(webhooks.difference(&"a".to_owned()).unwrap().want, apply.want);
        webhooks.take_in(Seen::Gone((String::new(), "a".to_owned())));
        assert!(webhooks.keys().is_empty() && webhooks.difference(&"a".to_owned()).is_none());
    }
}
