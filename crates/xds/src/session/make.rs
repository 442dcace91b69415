//! Make and Break: clusters, and the endpoints and secrets that they warm with.

use super::channel::{Changes, Desired, subtract};
use super::{Protocol, Session};
use proto::resource::ResourceType;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

impl Session {
    /// Sends clusters that are new or changed, and removes those that nothing names any more.
    pub(super) fn push_clusters(&mut self, now: Instant) {
        let kind = ResourceType::Cluster;
        let channel = self.channel(kind);
        let due = channel.answer_due || !channel.dirty.is_empty() || !channel.owed.is_empty();
        if !due || self.waits_for_answer(kind, now) || self.set_incomplete(kind) {
            return;
        }
        let mut changes = channel.first_changes(&self.snapshot.clusters).unwrap_or_default();
        let mut removals = Changes::new();
        let mut candidates = self.candidates(kind);
        subtract(&mut candidates, &changes);
        let (mut settled, mut absent) = (Vec::new(), Vec::new());
        for name in candidates {
            match channel.desired(&self.snapshot, &name) {
                Desired::Is(cluster) if channel.differs(cluster) => {
                    changes.insert(name, Some(cluster.clone()));
                }
                Desired::Absent if channel.may_have(&name) => match self.use_of(&name, now) {
                    Use::None => drop(removals.insert(name, None)),
                    Use::AsTheSnapshotSays if self.absences.is_accepted(&name) => {
                        removals.insert(name, None);
                    }
                    Use::AsTheSnapshotSays => absent.push(name),
                    Use::Until => {}
                },
                Desired::Absent if self.denies(kind, &name) => {
                    removals.insert(name, None);
                }
                _ => settled.push(name),
            }
        }
        for name in absent {
            self.absences.wait_for(name, now);
        }
        let mut changes = self.isolate(kind, changes, now);
        self.settle_names(kind, settled);
        // A delta client that rejects a response removes what it says, but goes on to claim that it has it. So
        // removals travel in a response of their own, which nobody rejects.
        if self.protocol == Protocol::Sotw {
            changes.append(&mut removals);
        }
        self.note_clusters(&changes, now);
        self.send_changes(kind, changes, now);
        self.note_clusters(&removals, now);
        self.send_changes(kind, removals, now);
    }

    /// Starts to wait for the clusters of a response, and owes their endpoints to a client that already asked for
    /// them: Envoy warms an updated cluster only with endpoints sent after it, even unchanged ones.
    fn note_clusters(&mut self, changes: &Changes, now: Instant) {
        let seq = self.seq + 1;
        let assumed = !self.channel(ResourceType::Cluster).requested;
        let since = if assumed { self.started } else { now };
        self.warmth.reserve(changes.len());
        for (name, change) in changes {
            let Some(cluster) = change else {
                self.warmth.forget(name);
                continue;
            };
            let usable = self.channel(ResourceType::Cluster).has(name);
            self.warmth.sent(cluster, seq, since, usable);
            let endpoints = self.channel_mut(ResourceType::ClusterLoadAssignment);
            for assignment in &cluster.needs().assignments {
                if endpoints.subscribes(assignment) {
                    endpoints.owed.insert(assignment.clone());
                }
            }
        }
    }

    /// Sends endpoints or secrets: those owed at once, changed ones as fast as the client answers.
    pub(super) fn push_named(&mut self, kind: ResourceType, now: Instant) {
        let channel = self.channel(kind);
        if channel.owed.is_empty() && channel.dirty.is_empty() && !channel.answer_due {
            return;
        }
        let blocked = channel.blocked(now, self.options.answer_timeout);
        let waiting = match kind {
            ResourceType::ClusterLoadAssignment => self.endpoints_that_wait(now),
            _ => BTreeSet::new(),
        };
        let channel = self.channel(kind);
        let mut changes = channel.first_changes(self.snapshot.of(kind)).unwrap_or_default();
        let mut settled = Vec::new();
        let mut candidates = self.candidates(kind);
        subtract(&mut candidates, &changes);
        for name in candidates {
            if (blocked || waiting.contains(&name)) && !channel.owed.contains(&name) {
                continue;
            }
            if !channel.subscribes(&name) {
                settled.push(name);
                continue;
            }
            match channel.desired(&self.snapshot, &name) {
                Desired::Is(resource) if channel.differs(resource) => {
                    changes.insert(name, Some(resource.clone()));
                }
                Desired::Keep if channel.owed.contains(&name) && channel.acked.contains_key(&name) => {
                    changes.insert(name.clone(), channel.acked.get(&name).cloned());
                }
                Desired::Absent if self.denies(kind, &name) => {
                    changes.insert(name, None);
                }
                Desired::Absent if channel.awaits(&self.snapshot, &name) => {}
                _ => settled.push(name),
            }
        }
        let changes = self.isolate(kind, changes, now);
        self.settle_names(kind, settled);
        self.send_changes(kind, changes, now);
    }

    /// Sends `changes` if there are any, or if the subscription is owed an answer.
    pub(super) fn send_changes(&mut self, kind: ResourceType, changes: Changes, now: Instant) {
        if changes.is_empty() && !self.channel(kind).answer_due {
            return;
        }
        subtract(&mut self.channel_mut(kind).dirty, &changes);
        self.send(kind, changes, now);
    }

    /// Forgets names that turned out to need nothing.
    pub(super) fn settle_names(&mut self, kind: ResourceType, names: Vec<Arc<str>>) {
        let snapshot = self.snapshot.clone();
        let channel = self.channel_mut(kind);
        for name in names {
            channel.dirty.remove(&name);
            channel.suspects.remove(&name);
            if !channel.awaits(&snapshot, &name) {
                channel.owed.remove(&name);
            }
        }
    }

    /// Whether changes of clusters or listeners wait for an answer. New subscriptions of clients that ask by name do not.
    pub(super) fn waits_for_answer(&self, kind: ResourceType, now: Instant) -> bool {
        let channel = self.channel(kind);
        let owed = channel.owed.iter().any(|name| !channel.suspects.contains(name));
        let asked = !self.gated() && (channel.answer_due || owed);
        channel.blocked(now, self.options.answer_timeout) && !asked
    }

    /// Whether the client has to be told that there is nothing under a name it asked for. Clients that get all
    /// clusters are told of secrets only, while they start: Envoy keeps anything else until it unsubscribes, and what
    /// replaces something in use may as well wait for its secret.
    pub(super) fn denies(&self, kind: ResourceType, name: &str) -> bool {
        let channel = self.channel(kind);
        self.protocol == Protocol::Delta
            && (!self.gated() || kind == ResourceType::Secret && self.delays_start(name))
            && channel.owed.contains(name)
            && !channel.awaits(&self.snapshot, name)
    }

    /// Whether a client that serves nothing yet waits for the secret: before it has asked for listeners, or with its
    /// first ones. A single missing certificate would keep a starting Envoy from serving anything for 15 seconds.
    fn delays_start(&self, secret: &str) -> bool {
        let listeners = self.channel(ResourceType::Listener);
        let first = listeners.sent_seq == self.first_listeners;
        let set = listeners.sent_set();
        let mut waiting = set.values().filter(|listener| listener.needs().secrets.contains(secret));
        !self.reconnected && (!self.initialised || first && waiting.next().is_some())
    }

    /// Whether a SotW response, which holds everything subscribed to, has to wait for names still being compiled: the
    /// client would take them for removed.
    pub(super) fn set_incomplete(&self, kind: ResourceType) -> bool {
        let channel = self.channel(kind);
        self.protocol == Protocol::Sotw
            && channel.names.iter().any(|name| channel.awaits(&self.snapshot, name))
    }

    /// Returns whether a route or listener that the client may be using names a cluster which the snapshot lacks.
    fn use_of(&self, cluster: &str, now: Instant) -> Use {
        let channels = [self.channel(ResourceType::Listener), self.channel(ResourceType::RouteConfiguration)];
        let unknown = self.reconnected
            && (self.listeners_warm_since.is_none_or(|since| now < since + self.options.drain_time)
                || channels
                    .iter()
                    .any(|channel| !channel.claimed.is_empty() || channel.claimed_set.is_some()));
        if unknown {
            return Use::Until;
        }
        let exists = self.snapshot.clusters.contains_key(cluster);
        let users = channels
            .iter()
            .flat_map(|channel| channel.in_use())
            .chain(self.draining.iter().map(|draining| &draining.listener))
            .filter(|resource| resource.needs().clusters.contains(cluster));
        let mut found = Use::None;
        for user in users {
            let newest = self.snapshot.of(user.kind()).get(user.name());
            if exists || newest.is_none_or(|newest| newest.version() != user.version()) {
                return Use::Until;
            }
            found = Use::AsTheSnapshotSays;
        }
        found
    }
}

/// Whether a cluster that is to be removed is still named.
enum Use {
    /// Nothing names it.
    None,
    /// Only what is as the snapshot says, which names a destination that it does not have.
    AsTheSnapshotSays,
    /// Something that the client will replace or drop, or that is not known.
    Until,
}
