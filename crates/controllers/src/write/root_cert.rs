//! The ConfigMap `istio-ca-root-cert`, by which pods know weftd.

use super::RootCertificates;
use super::keeper::{Apply, Domain, is_older, stands_for};
use crate::tap::Seen;
use k8s_api::core::ConfigMap;
use serde_json::json;
use std::collections::BTreeMap;

/// The name of the ConfigMap, and the key in it: Istio's.
pub(super) const NAME: &str = "istio-ca-root-cert";
const KEY: &str = "root-cert.pem";

/// The ConfigMaps, by namespace.
#[derive(Default)]
pub(super) struct RootCerts {
    known: BTreeMap<String, Known>,
    wanted: Option<RootCertificates>,
}

struct Known {
    version: String,
    pem: String,
}

impl RootCerts {
    fn see(&mut self, mut object: ConfigMap) -> Option<String> {
        if object.metadata.name.as_deref() != Some(NAME) {
            return None;
        }
        let namespace = object.metadata.namespace?;
        let version = object.metadata.resource_version.unwrap_or_default();
        if self.known.get(&namespace).is_some_and(|known| is_older(&version, &known.version)) {
            return None;
        }
        let pem = object.data.remove(KEY).unwrap_or_default();
        self.known.insert(namespace.clone(), Known { version, pem });
        Some(namespace)
    }
}

impl Domain for RootCerts {
    type Key = String;
    type Object = ConfigMap;
    type Wanted = Option<RootCertificates>;

    fn take_in(&mut self, seen: Seen<ConfigMap>) -> Option<Vec<String>> {
        match seen {
            Seen::All(all) => {
                self.known.clear();
                for object in all {
                    self.see(object);
                }
                None
            }
            Seen::Is(object) => Some(self.see(object).into_iter().collect()),
            Seen::Gone((namespace, name)) => {
                if name != NAME {
                    return Some(Vec::new());
                }
                self.known.remove(&namespace);
                Some(vec![namespace])
            }
        }
    }

    fn want(&mut self, wanted: Self::Wanted) {
        self.wanted = wanted;
    }

    fn keys(&self) -> Vec<String> {
        let wanted = self.wanted.iter().flat_map(|wanted| wanted.namespaces.iter());
        let mut keys: Vec<String> = self.known.keys().chain(wanted).cloned().collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    fn has(&self, namespace: &String) -> bool {
        let is_wanted = |wanted: &RootCertificates| wanted.namespaces.contains(namespace);
        self.known.contains_key(namespace) || self.wanted.as_ref().is_some_and(is_wanted)
    }

    fn difference(&self, namespace: &String) -> Option<Apply> {
        let wanted = self.wanted.as_ref().filter(|wanted| wanted.namespaces.contains(namespace))?;
        let known = self.known.get(namespace);
        if known.is_some_and(|known| known.pem == *wanted.pem) {
            return None;
        }
        Some(Apply {
            path: format!("/api/v1/namespaces/{namespace}/configmaps/{NAME}"),
            body: json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {
                    "name": NAME, "namespace": namespace, "labels": { "istio.io/config": "true" },
                    "resourceVersion": known.map(|known| &known.version),
                },
                "data": { KEY: &*wanted.pem },
            }),
            want: stands_for(&wanted.pem),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::Arc;

    fn object(namespace: &str, version: u32, pem: &str) -> ConfigMap {
        serde_json::from_value(json!({
            "metadata": {"namespace": namespace, "name": NAME, "resourceVersion": version.to_string()},
            "data": {KEY: pem},
        }))
        .unwrap()
    }

    fn wanted(pem: &str, namespaces: &[&str]) -> Option<RootCertificates> {
        let namespaces: BTreeSet<String> = namespaces.iter().map(|name| (*name).to_owned()).collect();
        Some(RootCertificates { pem: pem.into(), namespaces: Arc::new(namespaces) })
    }

    #[test]
    fn every_namespace_of_the_mesh_gets_the_roots_and_others_are_left_alone() {
        let mut certs = RootCerts::default();
        certs.take_in(Seen::All(vec![object("shop", 1, "old"), object("other", 1, "theirs")]));
        let differences = |certs: &RootCerts| -> Vec<String> {
            certs.keys().into_iter().filter(|key| certs.difference(key).is_some()).collect()
        };
        assert!(differences(&certs).is_empty(), "nothing is wanted yet");
        certs.want(wanted("PEM", &["shop", "new"]));
        assert_eq!(differences(&certs), ["new", "shop"]);
        let apply = certs.difference(&"shop".to_owned()).unwrap();
        assert_eq!(apply.path, "/api/v1/namespaces/shop/configmaps/istio-ca-root-cert");
        assert_eq!(apply.body["metadata"]["resourceVersion"], "1");
        assert_eq!(apply.body["data"], json!({"root-cert.pem": "PEM"}));
        assert!(certs.difference(&"new".to_owned()).unwrap().body["metadata"]["resourceVersion"].is_null());

        certs.take_in(Seen::Is(object("shop", 2, "PEM")));
        certs.take_in(Seen::Is(object("shop", 1, "old")));
        certs.take_in(Seen::Is(object("new", 3, "PEM")));
        assert!(differences(&certs).is_empty());
        certs.take_in(Seen::Gone(("new".to_owned(), "else".to_owned())));
        assert!(differences(&certs).is_empty());
        certs.take_in(Seen::Gone(("new".to_owned(), NAME.to_owned())));
        assert_eq!(differences(&certs), ["new"]);
        certs.want(wanted("PEM", &["shop"]));
        assert!(differences(&certs).is_empty());
    }
}
