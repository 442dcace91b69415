//! Which objects there are and since which view, and up to which view each proxy has acknowledged. No I/O.

use super::feed::{Noted, Told};
use controllers::Reported;
use k8s_api::object::{Object, ObjectKey};
use model::Key;
use proto::resource::{ResourceType, Snapshot};
use push::Resting;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use xds::registry::Progress;

/// A proxy that has not settled for so long is looked at more closely: it may be stuck on something else.
const STUCK_AFTER: Duration = Duration::from_secs(15);
/// Of more resources nobody looks whether a proxy has one: every proxy counts.
const MANY: usize = 512;

/// A resource in one version.
pub(crate) type Version = (ResourceType, Arc<str>, Arc<str>);

/// An object that is reported on.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// What there is to know of it for a report.
    pub(crate) reported: Reported,
    /// The object; nothing if it cannot be read.
    pub(crate) object: Option<Arc<Object>>,
    /// The first view with this generation of it.
    pub(crate) since: u64,
}

/// How far the proxies of one replica are with one generation of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Proxies that use it.
    pub(crate) total: usize,
    /// Those that have acknowledged it.
    pub(crate) acked: usize,
    /// Those of which that cannot be said yet, whether they use it or not.
    pub(crate) waiting: usize,
    /// One of those.
    pub(crate) waits_for: Option<String>,
}

/// A proxy's refusal of something that an object went into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// How many proxies refuse.
    pub(crate) proxies: usize,
    /// Which one, what, and in which words.
    pub(crate) words: String,
}

#[derive(Debug, Default)]
struct Session {
    node: Arc<str>,
    /// It has acknowledged everything of this view.
    confirmed: u64,
    unsettled_since: Option<Instant>,
    unsettled: BTreeSet<(ResourceType, Arc<str>)>,
    desired: Arc<Snapshot>,
    /// What it refuses, the view that it had acknowledged before, and its words.
    refused: BTreeMap<Version, (u64, Arc<str>)>,
}

/// What this replica knows.
#[derive(Debug, Default)]
pub(crate) struct Board {
    objects: BTreeMap<ObjectKey, Entry>,
    /// Those of kinds that nobody acts on.
    unsupported: BTreeMap<ObjectKey, Reported>,
    revisions: BTreeSet<String>,
    replicas: BTreeMap<String, BTreeSet<SocketAddr>>,
    sessions: HashMap<u64, Session>,
    /// Which objects went into what is refused.
    blamed: BTreeMap<Version, BTreeSet<model::ObjectKey>>,
}

impl Board {
    /// Takes in what has happened to objects. Returns the forms of those that are different now.
    pub(crate) fn take_in(&mut self, told: Told) -> Vec<Reported> {
        let mut news = Vec::new();
        for noted in told.noted {
            match noted {
                Noted::Is(object) => news.extend(self.put(object, told.generation)),
                Noted::Gone(key) => news.extend(self.remove(&key)),
                Noted::All(kind, objects) => {
                    let present: BTreeSet<ObjectKey> = objects.iter().map(|object| object.key()).collect();
                    let of_kind = self.objects.keys().filter(|key| key.kind == kind);
                    let gone: Vec<ObjectKey> =
                        of_kind.filter(|key| !present.contains(key)).cloned().collect();
                    news.extend(gone.iter().filter_map(|key| self.remove(key)));
                    news.extend(objects.into_iter().filter_map(|object| self.put(object, told.generation)));
                }
                Noted::Revisions(names) => self.revisions = names,
                Noted::Replicas(slice, addresses) => match addresses.is_empty() {
                    true => drop(self.replicas.remove(&slice)),
                    false => drop(self.replicas.insert(slice, addresses)),
                },
                Noted::AllReplicas(slices) => self.replicas.retain(|slice, _| slices.contains(slice)),
            }
        }
        news
    }

    fn put(&mut self, object: Arc<Object>, generation: u64) -> Option<Reported> {
        let reported = reported(&object)?;
        let known = self.objects.get(&reported.key);
        let is_same = known.is_some_and(|known| known.reported.generation == reported.generation);
        let since = known.filter(|_| is_same).map_or(generation, |known| known.since);
        let entry = Entry { reported: reported.clone(), object: Some(object), since };
        self.objects.insert(reported.key.clone(), entry);
        Some(reported)
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Reported> {
        let entry = self.objects.remove(key)?;
        Some(Reported { is_gone: true, ..entry.reported })
    }

    /// Takes in an object of a kind that nobody acts on.
    pub(crate) fn take_in_unsupported(&mut self, object: Reported) {
        match object.is_gone {
            true => drop(self.unsupported.remove(&object.key)),
            false => drop(self.unsupported.insert(object.key.clone(), object)),
        }
    }

    /// As [`Board::ours`], of kinds that nobody acts on.
    pub(crate) fn unsupported(&self) -> impl Iterator<Item = &Reported> {
        self.unsupported.values().filter(|object| self.is_ours(object))
    }

    /// Returns where replicas listen, this one among them.
    pub(crate) fn replicas(&self) -> BTreeSet<SocketAddr> {
        self.replicas.values().flatten().copied().collect()
    }

    /// Returns the objects that weftd of this revision reports on: its own, and those without a revision if it is the
    /// default one.
    pub(crate) fn ours(&self) -> impl Iterator<Item = &Entry> {
        self.objects.values().filter(|entry| self.is_ours(&entry.reported))
    }

    fn is_ours(&self, object: &Reported) -> bool {
        self.revisions.contains(object.revision.as_deref().unwrap_or("default"))
    }

    /// Returns an object in this generation.
    pub(crate) fn entry(&self, key: &ObjectKey, generation: i64) -> Option<&Entry> {
        self.objects.get(key).filter(|entry| entry.reported.generation == generation)
    }

    /// Takes in how far proxies are. All of `progress` was asked for when the compiler had told proxies of everything up
    /// to the view `generation`. Returns what is refused now and was not looked into yet.
    pub(crate) fn observe(&mut self, progress: Vec<Progress>, generation: u64, now: Instant) -> Vec<Version> {
        let mut before = std::mem::take(&mut self.sessions);
        for Progress { stream, node, desired, distance } in progress {
            let mut session = before.remove(&stream).unwrap_or_default();
            if session.node.is_empty() {
                session.node = node.id.as_str().into();
            }
            let mut refused = BTreeMap::new();
            for (kind, resource, words) in distance.rejected {
                let version = (kind, resource.name, resource.version);
                let known = session.refused.get(&version).cloned();
                refused.insert(version, known.unwrap_or((session.confirmed, words)));
            }
            session.refused = refused;
            session.desired = desired;
            if distance.is_settled {
                session.confirmed = session.confirmed.max(generation);
                session.unsettled_since = None;
                session.unsettled.clear();
            } else {
                session.unsettled_since.get_or_insert(now);
                session.unsettled = distance.unsettled.into_iter().collect();
            }
            self.sessions.insert(stream, session);
        }
        let refused: BTreeSet<&Version> =
            self.sessions.values().flat_map(|session| session.refused.keys()).collect();
        self.blamed.retain(|version, _| refused.contains(version));
        refused.into_iter().filter(|version| !self.blamed.contains_key(*version)).cloned().collect()
    }

    /// Notes which objects went into something that is refused.
    pub(crate) fn blame(&mut self, version: Version, objects: BTreeSet<model::ObjectKey>) {
        self.blamed.insert(version, objects);
    }

    /// Returns the objects that are not in force everywhere because a proxy refuses what came of them: those that the
    /// proxy had not acknowledged before.
    pub(crate) fn refusals(&self) -> BTreeMap<ObjectKey, Refusal> {
        let mut refusals: BTreeMap<ObjectKey, Refusal> = BTreeMap::new();
        for session in self.sessions.values() {
            let mut of_session = BTreeMap::new();
            for (version, (confirmed, words)) in &session.refused {
                for object in self.blamed.get(version).into_iter().flatten() {
                    let Some(entry) = self.objects.get(&api_key(object)) else { continue };
                    if entry.since > *confirmed {
                        let (kind, name, _) = version;
                        let words = format!("{} refuses {kind} {name}: {words}", session.node);
                        of_session.entry(entry.reported.key.clone()).or_insert(words);
                    }
                }
            }
            for (key, words) in of_session {
                let refusal = refusals.entry(key).or_insert(Refusal { proxies: 0, words });
                refusal.proxies += 1;
            }
        }
        refusals
    }

    /// Returns how far proxies are with an object that is a part of views from `since` on, and that went into `resting`.
    pub(crate) fn counts(&self, since: u64, resting: &Resting, now: Instant) -> Counts {
        let mut counts = Counts::default();
        for session in self.sessions.values() {
            let uses = resting.len() > MANY || uses(&session.desired, resting);
            let is_stuck =
                session.unsettled_since.is_some_and(|since| now.duration_since(since) >= STUCK_AFTER)
                    && !session.unsettled.is_empty()
                    && !session.unsettled.iter().any(|name| resting.contains_key(name));
            let has = session.confirmed >= since || is_stuck;
            counts.total += usize::from(uses);
            counts.acked += usize::from(uses && has);
            if !has {
                counts.waiting += 1;
                counts.waits_for.get_or_insert_with(|| session.node.to_string());
            }
        }
        counts
    }
}

/// Returns whether a snapshot has any of these resources.
fn uses(snapshot: &Snapshot, resting: &Resting) -> bool {
    resting.iter().any(|((kind, name), versions)| {
        snapshot.of(*kind).get(name).is_some_and(|resource| versions.contains(resource.version()))
    })
}

/// Returns the keys by which the compiler reads an object.
pub(crate) fn keys_of(object: &Object) -> Vec<Key> {
    let key = object.key();
    let of_kind = |kind| Key::Object(model::ObjectKey::new(kind, key.namespace.as_str(), key.name.as_str()));
    let namespace = model::Namespace::new(key.namespace.as_str());
    match object {
        Object::VirtualService(_) => vec![of_kind(model::Kind::VirtualService)],
        Object::DestinationRule(_) => vec![of_kind(model::Kind::DestinationRule)],
        Object::Gateway(_) => vec![of_kind(model::Kind::Gateway)],
        Object::Sidecar(_) => vec![Key::Sidecars(namespace)],
        Object::PeerAuthentication(_) => vec![Key::PeerAuthentications(namespace)],
        Object::ServiceEntry(entry) => {
            let services = entry.spec.hosts.iter().map(|host| {
                let host = model::Hostname::from(host.to_lowercase().as_str());
                model::ServiceKey { host, namespace: namespace.clone() }
            });
            services.flat_map(|service| [Key::Service(service.clone()), Key::Endpoints(service)]).collect()
        }
        // It is one of the endpoints of services, which have many: it is enough that everybody is up to date.
        _ => Vec::new(),
    }
}

/// Returns what is reported on of an object.
fn reported(object: &Object) -> Option<Reported> {
    Some(match object {
        Object::VirtualService(object) => Reported::of(object.as_ref(), object.status.as_ref()),
        Object::DestinationRule(object) => Reported::of(object.as_ref(), object.status.as_ref()),
        Object::Gateway(object) => Reported::of(object.as_ref(), object.status.as_ref()),
        Object::ServiceEntry(object) => Reported::of(object.as_ref(), object.status.as_ref()),
        Object::WorkloadEntry(object) => Reported::of(object.as_ref(), object.status.as_ref()),
        Object::Sidecar(object) => Reported::of(object.as_ref(), object.status.as_ref()),
        Object::PeerAuthentication(object) => Reported::of(object.as_ref(), object.status.as_ref()),
        _ => return None,
    })
}

/// Returns the key of an object of the API.
pub(crate) fn api_key(key: &model::ObjectKey) -> ObjectKey {
    let group = match key.kind {
        model::Kind::PeerAuthentication => "security.istio.io",
        _ => "networking.istio.io",
    };
    ObjectKey {
        group: group.into(),
        kind: key.kind.as_str().into(),
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
    }
}

#[cfg(test)]
mod tests;
