//! The conditions of objects. Those of others are kept: lists of conditions are written as a whole where a definition does
//! not say that they are maps.

use super::keeper::{Apply, Domain, is_older, stands_for};
use crate::tap::Seen;
use k8s_api::meta::{Condition, Generation, IstioStatus, ObjectMeta};
use k8s_api::object::ObjectKey;
use kube::Resource;
use serde::{Deserialize, Deserializer};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is to be said about objects, by their keys.
pub type Statuses = BTreeMap<ObjectKey, Wish>;

/// What is to be said about one generation of an object: conditions of these types.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wish {
    /// The generation.
    pub generation: i64,
    /// Type, status, reason and message.
    pub conditions: Vec<[String; 4]>,
}

/// An object that may be reported on, as far as that takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Reported {
    /// The object.
    pub key: ObjectKey,
    /// Its API's group and version.
    pub api_version: String,
    /// What tells this state of it from others.
    pub version: String,
    /// The generation of its spec.
    pub generation: i64,
    /// Its label `istio.io/rev`.
    pub revision: Option<String>,
    /// What is said about it now.
    pub conditions: Vec<Condition>,
    /// Whether it is not there any more.
    pub is_gone: bool,
}

impl Reported {
    /// Returns what is known of an object.
    pub fn of<K: Resource<DynamicType = ()>>(object: &K, status: Option<&IstioStatus>) -> Self {
        Self::new(ObjectKey::of(object), K::api_version(&()).into_owned(), object.meta(), status)
    }

    fn new(key: ObjectKey, api_version: String, metadata: &ObjectMeta, status: Option<&IstioStatus>) -> Self {
        let labels = metadata.labels.as_ref();
        Self {
            key,
            api_version,
            version: metadata.resource_version.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            revision: labels.and_then(|labels| labels.get(crate::revision_tags::REVISION)).cloned(),
            conditions: status.map(|status| status.conditions.clone()).unwrap_or_default(),
            is_gone: false,
        }
    }

    /// Returns whether it says all this already.
    pub fn says(&self, wish: &Wish) -> bool {
        let says = |[kind, status, reason, message]: &[String; 4]| {
            self.conditions.iter().any(|condition| {
                condition.type_ == *kind
                    && condition.status == *status
                    && condition.reason == *reason
                    && condition.message == *message
                    && condition.observed_generation == Some(Generation(wish.generation))
            })
        };
        wish.conditions.iter().all(says)
    }

    /// Returns the conditions as they are to be: others' first, as they are.
    fn conditions(&self, wish: &Wish, now: &str) -> Vec<Condition> {
        let is_ours = |kind: &str| wish.conditions.iter().any(|[ours, ..]| ours == kind);
        let others = self.conditions.iter().filter(|condition| !is_ours(&condition.type_)).cloned();
        let ours = wish.conditions.iter().map(|[kind, status, reason, message]| {
            let before = self.conditions.iter().find(|condition| condition.type_ == *kind);
            let since = before.filter(|before| before.status == *status);
            let since = since.and_then(|before| before.last_transition_time.clone());
            Condition {
                last_transition_time: Some(since.unwrap_or_else(|| now.to_owned())),
                message: message.clone(),
                observed_generation: Some(Generation(wish.generation)),
                reason: reason.clone(),
                status: status.clone(),
                type_: kind.clone(),
                ..Condition::default()
            }
        });
        others.chain(ours).collect()
    }

    fn path(&self) -> String {
        let ObjectKey { kind, namespace, name, .. } = &self.key;
        format!("/apis/{}/namespaces/{namespace}/{}/{name}/status", self.api_version, plural(kind))
    }
}

impl<'de> Deserialize<'de> for Reported {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Any {
            api_version: String,
            kind: String,
            metadata: ObjectMeta,
            status: Option<IstioStatus>,
        }
        let Any { api_version, kind, metadata, status } = Any::deserialize(deserializer)?;
        let group = api_version.split_once('/').map_or("", |(group, _)| group).to_owned();
        let key = ObjectKey {
            group: group.into(),
            kind: kind.into(),
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        };
        Ok(Self::new(key, api_version, &metadata, status.as_ref()))
    }
}

/// Returns the name of a kind in URLs: all of Istio's are as regular as this.
fn plural(kind: &str) -> String {
    let kind = kind.to_lowercase();
    match kind.strip_suffix('y').filter(|stem| !stem.ends_with('a')) {
        Some(stem) => format!("{stem}ies"),
        None => format!("{kind}s"),
    }
}

/// The objects whose conditions are kept.
#[derive(Default)]
pub(super) struct StatusDomain {
    known: BTreeMap<ObjectKey, Reported>,
    wanted: Arc<Statuses>,
}

impl Domain for StatusDomain {
    type Key = ObjectKey;
    type Object = Reported;
    type Wanted = Arc<Statuses>;

    fn take_in(&mut self, seen: Seen<Reported>) -> Option<Vec<ObjectKey>> {
        match seen {
            Seen::All(all) => {
                self.known = all.into_iter().map(|object| (object.key.clone(), object)).collect();
                None
            }
            Seen::Is(object) => {
                let key = object.key.clone();
                if object.is_gone {
                    self.known.remove(&key);
                    return Some(vec![key]);
                }
                let known = self.known.get(&key);
                if known.is_some_and(|known| is_older(&object.version, &known.version)) {
                    return Some(Vec::new());
                }
                self.known.insert(key.clone(), object);
                Some(vec![key])
            }
            // Which kind is meant is not said here, but by the object itself.
            Seen::Gone(_) => Some(Vec::new()),
        }
    }

    fn want(&mut self, wanted: Self::Wanted) {
        self.wanted = wanted;
    }

    fn keys(&self) -> Vec<ObjectKey> {
        self.known.keys().filter(|key| self.wanted.contains_key(key)).cloned().collect()
    }

    fn has(&self, key: &ObjectKey) -> bool {
        self.known.contains_key(key)
    }

    fn difference(&self, key: &ObjectKey) -> Option<Apply> {
        let (known, wish) = (self.known.get(key)?, self.wanted.get(key)?);
        // What is wanted is said about another generation: more will be known soon.
        if known.generation != wish.generation || known.says(wish) {
            return None;
        }
        let conditions = known.conditions(wish, &super::lease::now_in_seconds());
        Some(Apply {
            path: known.path(),
            body: json!({
                "apiVersion": known.api_version, "kind": key.kind,
                "metadata": { "name": key.name, "namespace": key.namespace, "resourceVersion": known.version },
                "status": { "conditions": conditions, "observedGeneration": wish.generation },
            }),
            want: stands_for(wish),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_api::authorization_policy::AuthorizationPolicy;
    use k8s_api::gateway::Gateway;
    use k8s_api::service_entry::ServiceEntry;
    use k8s_api::telemetry::Telemetry;
    use k8s_api::virtual_service::VirtualService;
    use serde_json::Value;

    fn object(version: u32, generation: u32, conditions: &Value) -> Reported {
        serde_json::from_value(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"namespace": "shop", "name": "a", "resourceVersion": version.to_string(), "generation": generation},
            "spec": {"hosts": []}, "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    fn wish(generation: i64, status: &str) -> Wish {
        let condition = ["Programmed", status, "Because", "text"].map(str::to_owned);
        Wish { generation, conditions: vec![condition] }
    }

    fn domain(object: Reported, wish: Wish) -> (StatusDomain, ObjectKey) {
        let (mut domain, key) = (StatusDomain::default(), object.key.clone());
        domain.take_in(Seen::Is(object));
        domain.want(Arc::new(BTreeMap::from([(key.clone(), wish)])));
        (domain, key)
    }

    #[test]
    fn conditions_of_others_stay_and_times_say_when_a_status_changed() {
        let theirs = json!({"type": "Reconciled", "status": "True", "message": "theirs"});
        let ours = json!({"type": "Programmed", "status": "True", "reason": "Because", "message": "text",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 3});
        let conditions = |domain: &StatusDomain, key: &ObjectKey| {
            domain.difference(key).map(|apply| apply.body["status"]["conditions"].clone())
        };
        let now = json!([ours, theirs]);
        let (domain_now, key) = domain(object(7, 3, &now), wish(3, "True"));
        assert_eq!(conditions(&domain_now, &key), None, "all is said");
        let (domain_now, key) = domain(object(7, 4, &now), wish(3, "False"));
        assert_eq!(conditions(&domain_now, &key), None, "nobody wants to know about the third generation");
        let (domain_now, key) = domain(object(7, 4, &now), wish(4, "True"));
        let written = conditions(&domain_now, &key).unwrap();
        assert_eq!(written[0]["type"], "Reconciled");
        assert_eq!(written[1]["observedGeneration"], 4);
        assert_eq!(written[1]["lastTransitionTime"], "2026-01-01T00:00:00Z", "it has been true since");
        let (domain_now, key) = domain(object(7, 3, &now), wish(3, "False"));
        let apply = domain_now.difference(&key).unwrap();
        assert_ne!(apply.body["status"]["conditions"][1]["lastTransitionTime"], "2026-01-01T00:00:00Z");
        assert_eq!(apply.body["metadata"]["resourceVersion"], "7");
        assert_eq!(apply.path, "/apis/networking.istio.io/v1/namespaces/shop/virtualservices/a/status");
    }

    #[test]
    fn what_is_older_is_no_news_and_what_is_gone_is_forgotten() {
        let (mut domain, key) = domain(object(7, 3, &json!([])), wish(3, "True"));
        domain.take_in(Seen::Is(object(6, 2, &json!([]))));
        assert!(domain.difference(&key).is_some());
        domain.take_in(Seen::Is(Reported { is_gone: true, ..object(8, 3, &json!([])) }));
        assert!(domain.difference(&key).is_none() && !domain.has(&key) && domain.keys().is_empty());
    }

    #[test]
    fn kinds_are_found_in_urls() {
        fn check<K: Resource<DynamicType = ()>>() {
            assert_eq!(plural(&K::kind(&())), K::plural(&()));
        }
        check::<VirtualService>();
        check::<Gateway>();
        check::<ServiceEntry>();
        check::<Telemetry>();
        check::<AuthorizationPolicy>();
    }
}
