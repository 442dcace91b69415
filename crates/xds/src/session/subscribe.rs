//! Subscriptions, and what a client brings along from an earlier stream.

use super::{Event, Held, Names, Protocol, Session};
use crate::encode::set_version;
use proto::resource::{Resource, ResourceType};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

const WILDCARD: &str = "*";

impl Session {
    pub(super) fn on_subscription(&mut self, kind: ResourceType, names: Names, held: Held, now: Instant) {
        let first = !std::mem::replace(&mut self.channel_mut(kind).requested, true);
        let was_wildcard = self.channel(kind).wildcard;
        let (added, removed) = match names {
            Names::All(names) => self.replace(kind, names),
            Names::Change { subscribe, unsubscribe } => self.change(kind, first, subscribe, &unsubscribe),
        };
        self.subscribe(kind, was_wildcard, &added, &removed);
        if first {
            self.on_first_request(kind, held, now);
        }
        let wildcard = self.channel(kind).wildcard;
        if !added.is_empty() || !removed.is_empty() || wildcard != was_wildcard {
            self.events.push(Event::Subscribed { kind, revision: self.revision, wildcard, added, removed });
        }
    }

    /// SotW: the request lists all names. An empty list means everything, but only for clusters and listeners and
    /// only if no name was ever given.
    fn replace(&mut self, kind: ResourceType, names: Vec<String>) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
        let legacy = matches!(kind, ResourceType::Cluster | ResourceType::Listener);
        let wanted: BTreeSet<String> = names.into_iter().collect();
        let channel = self.channel_mut(kind);
        if wanted.is_empty() {
            channel.wildcard = legacy && !channel.explicit;
        } else {
            channel.explicit = true;
            channel.wildcard = wanted.contains(WILDCARD);
        }
        let removed: Vec<Arc<str>> =
            channel.names.iter().filter(|name| !wanted.contains(&***name)).cloned().collect();
        let added: Vec<String> =
            wanted.into_iter().filter(|name| name != WILDCARD && !channel.names.contains(name)).collect();
        (self.intern(kind, added), removed)
    }

    /// Delta: the request lists names that come and go. A first request that lists none means everything.
    fn change(
        &mut self,
        kind: ResourceType,
        first: bool,
        subscribe: Vec<String>,
        unsubscribe: &[String],
    ) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
        let legacy = matches!(kind, ResourceType::Cluster | ResourceType::Listener);
        let channel = self.channel_mut(kind);
        if first && legacy && subscribe.is_empty() {
            channel.wildcard = true;
        }
        if unsubscribe.iter().any(|name| name == WILDCARD) {
            channel.wildcard = false;
        }
        if !subscribe.is_empty() {
            channel.explicit = true;
            channel.wildcard |= subscribe.iter().any(|name| name == WILDCARD);
        }
        let removed: Vec<Arc<str>> =
            unsubscribe.iter().filter_map(|name| channel.names.get(name).cloned()).collect();
        let added = subscribe.into_iter().filter(|name| name != WILDCARD).collect();
        (self.intern(kind, added), removed)
    }

    /// Uses the snapshot's copy of each name, so that a thousand clients do not each keep their own.
    fn intern(&self, kind: ResourceType, names: Vec<String>) -> Vec<Arc<str>> {
        let set = self.snapshot.of(kind);
        names
            .into_iter()
            .map(|name| {
                set.get_key_value(name.as_str())
                    .map_or_else(|| name.as_str().into(), |(name, _)| name.clone())
            })
            .collect()
    }

    fn subscribe(
        &mut self,
        kind: ResourceType,
        was_wildcard: bool,
        added: &[Arc<str>],
        removed: &[Arc<str>],
    ) {
        let complete =
            self.protocol == Protocol::Sotw && matches!(kind, ResourceType::Cluster | ResourceType::Listener);
        if !added.is_empty() || !removed.is_empty() || self.channel(kind).wildcard != was_wildcard {
            self.revision += 1;
        }
        let revision = self.revision;
        let snapshot = self.snapshot.clone();
        let channel = self.channel_mut(kind);
        for name in removed {
            channel.names.remove(name);
            if channel.wildcard {
                // It stays part of everything; the client, which dropped it, has to be told again.
                channel.owed.insert(name.clone());
            } else {
                channel.forget(name);
            }
        }
        channel.answer_due |= complete && !added.is_empty();
        channel.names.add(added, revision);
        if channel.owed.is_empty() {
            // Of a sorted list, a set is made at once.
            channel.owed = added.iter().cloned().collect();
        } else {
            channel.owed.extend(added.iter().cloned());
        }
        if channel.wildcard && !was_wildcard {
            let mut all: BTreeSet<Arc<str>> = snapshot.of(kind).keys().cloned().collect();
            all.append(&mut channel.dirty);
            channel.dirty = all;
            channel.answer_due = true;
        }
        if was_wildcard && !channel.wildcard {
            let held = channel.sent_set();
            let dropped: Vec<&Arc<str>> = held.keys().filter(|name| !channel.names.contains(name)).collect();
            for name in dropped {
                channel.forget(name);
            }
            let names = &channel.names;
            channel.dirty.retain(|name| names.contains(name));
        }
        if kind == ResourceType::Cluster {
            for name in removed {
                if !self.channel(kind).subscribes(name) {
                    self.warmth.forget(name);
                }
            }
        }
    }

    fn on_first_request(&mut self, kind: ResourceType, held: Held, now: Instant) {
        self.claim(kind, held);
        match kind {
            ResourceType::Cluster => self.clusters_missed_since = None,
            ResourceType::Listener => {
                self.initialised = true;
                let accepted = self.channel(ResourceType::Cluster).acked_seq;
                // What the client brought along has warmed by now: its claims are compared first.
                self.resolve_claims();
                let released = self.warmth.initialised(accepted);
                self.report_released(released);
                let clusters = self.channel(ResourceType::Cluster);
                if !clusters.requested && self.channel(ResourceType::Listener).wildcard {
                    self.clusters_missed_since = Some(now);
                }
            }
            _ => {}
        }
    }

    /// Notes what the client says it has. Endpoints are answered whatever it says: a cluster that was warming when
    /// the last stream broke waits for them.
    fn claim(&mut self, kind: ResourceType, held: Held) {
        let snapshot = self.snapshot.clone();
        match held {
            Held::Nothing => {}
            Held::Set(version) => {
                self.reconnected = true;
                let channel = self.channel_mut(kind);
                if channel.wildcard {
                    channel.claimed_set = Some(version);
                } else {
                    // The version does not say of which names it is. One that was dropped and is wanted again may
                    // be missing although the version is right, so everything is sent.
                    channel.claimed.extend(channel.names.iter().map(|name| (name.clone(), "".into())));
                }
            }
            Held::Each(versions) if versions.is_empty() => {}
            Held::Each(versions) => {
                self.reconnected = true;
                let channel = self.channel_mut(kind);
                if kind == ResourceType::ClusterLoadAssignment {
                    return;
                }
                for (name, version) in versions {
                    // The request may follow responses of this stream, which say more exactly what the client has.
                    if !channel.subscribes(&name) || channel.acked.contains_key(name.as_str()) {
                        continue;
                    }
                    if channel.pending(&name).is_some() {
                        continue;
                    }
                    let name = snapshot
                        .of(kind)
                        .get_key_value(name.as_str())
                        .map_or_else(|| name.as_str().into(), |(name, _)| name.clone());
                    channel.owed.remove(&name);
                    channel.dirty.insert(name.clone());
                    channel.claimed.insert(name, version.into());
                }
                channel.answer_due = false;
            }
        }
        self.claims_due = true;
    }

    /// Compares what clients brought along with the snapshot: equal versions need not be sent.
    pub(super) fn resolve_claims(&mut self) {
        if !std::mem::take(&mut self.claims_due) {
            return;
        }
        for kind in ResourceType::ALL {
            self.resolve_claimed_set(kind);
            let snapshot = self.snapshot.clone();
            let channel = self.channel_mut(kind);
            let equal: Vec<Arc<Resource>> = channel
                .claimed
                .iter()
                .filter(|(name, _)| channel.pending(name).is_none())
                .filter_map(|(name, version)| {
                    snapshot.of(kind).get(name).filter(|known| known.version() == version)
                })
                .cloned()
                .collect();
            self.adopt_claims(kind, equal);
        }
    }

    fn resolve_claimed_set(&mut self, kind: ResourceType) {
        let snapshot = self.snapshot.clone();
        let channel = self.channel_mut(kind);
        let Some(version) = channel.claimed_set.take() else { return };
        if set_version(snapshot.of(kind).values()) == version {
            channel.owed.clear();
            channel.answer_due = false;
            self.adopt_claims(kind, snapshot.of(kind).values().cloned().collect());
        }
    }

    fn adopt_claims(&mut self, kind: ResourceType, resources: Vec<Arc<Resource>>) {
        if resources.is_empty() {
            return;
        }
        if kind == ResourceType::Listener {
            self.listeners_warm_since = None;
        }
        let mut changes = BTreeMap::new();
        for resource in resources {
            if kind == ResourceType::Cluster && !self.initialised {
                // As old as the stream: warm as soon as the client asks for listeners.
                self.warmth.sent(&resource, 0, self.started, false);
            }
            let name = resource.name().clone();
            let channel = self.channel_mut(kind);
            channel.claimed.remove(&name);
            channel.dirty.remove(&name);
            channel.acked.insert(name.clone(), resource.clone());
            changes.insert(name, Some(resource));
        }
        self.events.push(Event::Acked { kind, changes, took: None });
    }

    /// Envoy does not ask for clusters on a new stream while one of them is warming. If that lasts, one of them is
    /// stuck, and only a further response can release it: the client is taken to want all clusters.
    pub(super) fn assume_clusters(&mut self) {
        self.clusters_missed_since = None;
        let names: Vec<Arc<str>> = self.snapshot.clusters.keys().cloned().collect();
        let clusters = self.channel_mut(ResourceType::Cluster);
        clusters.wildcard = true;
        clusters.answer_due = true;
        clusters.dirty.extend(names);
    }
}
