//! Acknowledgements and rejections.

use super::channel::{Channel, Sent};
use super::{Answer, Event, Protocol, Session};
use proto::resource::{Resource, ResourceType};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

impl Session {
    /// An answer settles the response that it names and all earlier ones of that type: Envoy does not answer a
    /// response that another one overtook.
    pub(super) fn on_answer(&mut self, kind: ResourceType, answer: &Answer, now: Instant) {
        let Some(seq) = self.seq_of(&answer.nonce) else {
            self.events.push(Event::UnknownNonce { kind });
            return;
        };
        let settled = self.channel_mut(kind).settle(seq);
        match &answer.error {
            None if settled.is_empty() => {} // a change of subscription, which repeats the last nonce
            None => self.accept(kind, seq, settled, now),
            Some(message) => self.reject(kind, &settled, message),
        }
    }

    fn accept(&mut self, kind: ResourceType, seq: u64, settled: Vec<Sent>, now: Instant) {
        let took = settled.first().map(|sent| now.saturating_duration_since(sent.at));
        let snapshot = self.snapshot.clone();
        let (channel, set) = (self.channel_mut(kind), snapshot.of(kind));
        let whole = channel.accept_first(&settled, set) || channel.accept_updates(&settled, set);
        for sent in &settled {
            if !whole {
                for (name, change) in &sent.changes {
                    self.take_up(kind, name, change.as_ref());
                }
            }
            if kind == ResourceType::ClusterLoadAssignment {
                self.warmth.assigned(&sent.changes, sent.seq);
            }
        }
        let channel = self.channel_mut(kind);
        // What still has to be sent again stays in doubt.
        let (still, doubtful): (Vec<_>, Vec<_>) =
            std::mem::take(&mut channel.doubtful).into_iter().partition(|resource| {
                channel.owed.contains(resource.name()) || channel.perhaps.contains(resource.name())
            });
        channel.doubtful = still;
        if kind == ResourceType::Listener {
            // What was in doubt has been replaced or removed now, if the client had it.
            for listener in doubtful {
                let newest = self.channel(kind).acked.get(listener.name()).cloned();
                if newest.as_ref().is_none_or(|newest| newest.version() != listener.version()) {
                    self.replaced(listener);
                }
            }
        }
        let channel = self.channel_mut(kind);
        channel.error = None;
        channel.acked_seq = seq;
        if let Some(last) = settled.last() {
            channel.acked_version.clone_from(&last.version);
        }
        if kind == ResourceType::Cluster && self.initialised {
            self.warmth.warmed_up_to(seq);
        }
        self.warmth.weigh(&self.channels[ResourceType::Secret as usize].acked);
        let changes = settled.into_iter().map(|sent| sent.changes).reduce(|mut changes, mut later| {
            changes.append(&mut later);
            changes
        });
        self.events.push(Event::Acked { kind, changes: changes.unwrap_or_default(), took });
    }

    /// Notes that the client has a form of a resource, or none.
    fn take_up(&mut self, kind: ResourceType, name: &Arc<str>, change: Option<&Arc<Resource>>) {
        let channel = self.channel_mut(kind);
        let unknown = channel.claimed.remove(name).is_some();
        channel.perhaps.remove(name);
        if !channel.subscribes(name) {
            return;
        }
        let old = match change {
            Some(resource) => {
                channel.acquit(resource);
                channel.acked.insert(name.clone(), resource.clone())
            }
            None => channel.acked.remove(name),
        };
        if kind != ResourceType::Listener {
            return;
        }
        if unknown {
            self.listeners_warm_since = None;
        }
        if let Some(old) = old
            && change.is_none_or(|new| new.version() != old.version())
        {
            self.replaced(old);
        }
    }

    /// Envoy takes up what it can of a response that it rejects. Until the next acknowledgement each resource of it
    /// may be in use in either form.
    fn reject(&mut self, kind: ResourceType, settled: &[Sent], message: &str) {
        let sent: Vec<(Arc<str>, Option<Arc<Resource>>)> =
            settled.iter().flat_map(|sent| sent.changes.clone()).collect();
        if kind == ResourceType::Cluster
            && self.initialised
            && let Some(first) = settled.first()
        {
            // Like an acknowledgement, a rejection comes when nothing is warming any more.
            self.warmth.warmed_up_to(first.seq - 1);
        }
        // One that a client rejects although it only removes would be rejected again.
        let removed_only = sent.iter().all(|(_, change)| change.is_none());
        for (name, change) in &sent {
            let channel = &mut self.channels[kind as usize];
            if let Some(resource) = change {
                channel.doubtful.push(resource.clone());
                continue;
            }
            // Removals are taken up whatever happens to the rest.
            if channel.claimed.remove(name).is_some() && kind == ResourceType::Listener {
                // What it names is not known, and it drains from now on.
                self.listeners_warm_since = None;
            }
            if self.protocol == Protocol::Delta && !removed_only {
                channel.removed_again.insert(name.clone());
            }
            if let Some(old) = channel.acked.remove(name)
                && kind == ResourceType::Listener
            {
                self.replaced(old);
            }
        }
        let newest = self.seq;
        let complete = self.complete(kind);
        let first = settled.first().map_or(newest, |sent| sent.seq);
        let channel = self.channel_mut(kind);
        channel.error = Some(message.to_owned());
        let suspects = suspects(channel, settled);
        // A SotW response that holds everything also holds what was rejected since it was sent.
        let known = complete && channel.any_quarantined_since(first);
        let blamed = blamed(message, &suspects, known);
        let (mut culprits, mut words) = (Vec::new(), None);
        for Suspect { resource, earlier } in suspects {
            let name = resource.name().clone();
            channel.dirty.insert(name.clone());
            let is_blamed = blamed.contains(&name);
            // A form that is quarantined by now may have been part of what is rejected.
            let explained = channel.quarantined_since(&name, first)
                || earlier.iter().any(|earlier| channel.is_quarantined(&name, earlier.version()));
            if is_blamed && earlier.is_empty() && !explained {
                let words: &mut Arc<str> = words.get_or_insert_with(|| message.into());
                channel.quarantine(&resource, newest, words.clone());
                let other_form =
                    |known: &Arc<Resource>| *known.name() == name && known.version() != resource.version();
                if !channel.doubtful.iter().any(other_form) {
                    channel.perhaps.remove(&name);
                }
                culprits.push(resource);
                continue;
            }
            // It may have been taken up: whatever should be there is sent, even if that is what was there before.
            channel.owed.insert(name.clone());
            if !channel.acked.contains_key(&name) && !channel.claimed.contains_key(&name) {
                channel.perhaps.insert(name.clone());
            }
            if (is_blamed && !explained) || (blamed.is_empty() && !known) {
                channel.suspects.insert(name);
            }
        }
        if kind == ResourceType::Cluster {
            for culprit in &culprits {
                if !self.channels[kind as usize].has(culprit.name()) {
                    self.warmth.forget(culprit.name());
                }
            }
        }
        self.events.push(Event::Nacked { kind, message: message.to_owned(), culprits });
    }
}

/// Something that may be to blame for a rejection.
struct Suspect {
    /// Its newest form that was sent.
    resource: Arc<Resource>,
    /// Other forms in earlier responses that the same answer settles.
    earlier: Vec<Arc<Resource>>,
}

/// Returns what may be to blame for the rejection of `settled`: what the client had not accepted before.
///
/// In SotW the rejection of a response may come on the nonce of a later one. If the last response carried one thing
/// that was new, it did so to find out about it, and the others were taken back.
fn suspects(channel: &Channel, settled: &[Sent]) -> Vec<Suspect> {
    let new = |sent: &Sent| -> Vec<Arc<Resource>> {
        let resources = sent.changes.values().flatten();
        let new = resources.filter(|resource| {
            channel.acked.get(resource.name()).is_none_or(|acked| acked.version() != resource.version())
        });
        new.cloned().collect()
    };
    let alone = settled.last().filter(|last| last.alone).map(new).filter(|new| new.len() == 1);
    let mut resources = alone.unwrap_or_else(|| settled.iter().flat_map(new).collect());
    if resources.is_empty() {
        resources = settled.iter().flat_map(|sent| sent.changes.values().flatten()).cloned().collect();
    }
    let mut suspects: BTreeMap<Arc<str>, Suspect> = BTreeMap::new();
    for resource in resources {
        match suspects.entry(resource.name().clone()) {
            Entry::Vacant(entry) => drop(entry.insert(Suspect { resource, earlier: Vec::new() })),
            Entry::Occupied(mut entry) if entry.get().resource.version() != resource.version() => {
                let earlier = std::mem::replace(&mut entry.get_mut().resource, resource);
                entry.get_mut().earlier.push(earlier);
            }
            Entry::Occupied(_) => {}
        }
    }
    suspects.into_values().collect()
}

/// Returns the names to blame: those that the message mentions, or the only one there is unless something else is
/// known to be to blame.
fn blamed(message: &str, suspects: &[Suspect], known: bool) -> BTreeSet<Arc<str>> {
    let all: Vec<&str> = suspects.iter().map(|suspect| &**suspect.resource.name()).collect();
    let name = |suspect: &Suspect| suspect.resource.name().clone();
    let named: BTreeSet<Arc<str>> =
        suspects.iter().filter(|suspect| names(message, suspect.resource.name(), &all)).map(name).collect();
    match suspects {
        [only] if named.is_empty() && !known => BTreeSet::from([name(only)]),
        _ => named,
    }
}

/// Whether `message` mentions `name` as such: not as a part of a longer word, nor of the longer name of another
/// suspect.
fn names(message: &str, name: &str, suspects: &[&str]) -> bool {
    if name.is_empty() {
        return false;
    }
    let longer: Vec<&str> =
        suspects.iter().copied().filter(|other| other.len() > name.len() && other.contains(name)).collect();
    message.match_indices(name).any(|(start, _)| {
        let end = start + name.len();
        let before = message[..start].chars().next_back();
        let after = message[end..].chars().next();
        let part_of_word = |neighbour: Option<char>| {
            neighbour.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '|'))
        };
        !part_of_word(before)
            && !part_of_word(after)
            && !longer.iter().any(|other| {
                message
                    .match_indices(other)
                    .any(|(other_start, _)| other_start <= start && end <= other_start + other.len())
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn culprits<'a>(message: &str, suspects: &[&'a str]) -> Vec<&'a str> {
        suspects.iter().copied().filter(|name| names(message, name, suspects)).collect()
    }

    #[test]
    fn a_message_names_a_resource_as_a_whole_word() {
        let message = "Error adding/updating cluster(s) outbound|80||a.b: no such option";
        assert_eq!(culprits(message, &["outbound|80||a", "outbound|80||a.b", "80"]), ["outbound|80||a.b"]);
        assert_eq!(culprits(message, &["adding", "b"]), ["adding", "b"]);
        assert_eq!(culprits("listener l1b: bad", &["l1", "l"]), Vec::<&str>::new());
        assert_eq!(culprits("bad", &[""]), Vec::<&str>::new());
    }

    #[test]
    fn a_message_may_name_several() {
        assert_eq!(culprits("cluster(s) x: bad, y: worse", &["w", "x", "y"]), ["x", "y"]);
    }
}
