//! Acknowledgements and rejections.

use super::channel::{Changes, Channel, Sent};
use super::{Answer, Event, Session};
use proto::resource::{Resource, ResourceType};
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
            Some(message) => self.reject(kind, settled, message),
        }
    }

    fn accept(&mut self, kind: ResourceType, seq: u64, settled: Vec<Sent>, now: Instant) {
        let took = settled.first().map(|sent| now.saturating_duration_since(sent.at));
        for sent in &settled {
            for (name, change) in &sent.changes {
                self.take_up(kind, name, change.as_ref(), now);
                if kind == ResourceType::ClusterLoadAssignment && change.is_some() {
                    self.warmth.assigned(name, sent.seq);
                }
            }
        }
        let channel = self.channel_mut(kind);
        channel.doubtful.clear();
        channel.error = None;
        channel.acked_seq = seq;
        if let Some(last) = settled.last() {
            channel.acked_version.clone_from(&last.version);
        }
        if kind == ResourceType::Cluster && self.initialised {
            self.warmth.warmed_up_to(seq);
        }
        self.warmth.weigh(&self.channels[ResourceType::Secret as usize].acked);
        let mut changes = Changes::new();
        for mut sent in settled {
            changes.append(&mut sent.changes);
        }
        self.events.push(Event::Acked { kind, changes, took });
    }

    /// Notes that the client has a form of a resource, or none.
    fn take_up(&mut self, kind: ResourceType, name: &Arc<str>, change: Option<&Arc<Resource>>, now: Instant) {
        let drain_time = self.options.drain_time;
        let channel = self.channel_mut(kind);
        let unknown = channel.claimed.remove(name).is_some();
        if !channel.subscribes(name) {
            return;
        }
        let old = match change {
            Some(resource) => channel.acked.insert(name.clone(), resource.clone()),
            None => channel.acked.remove(name),
        };
        if kind != ResourceType::Listener {
            return;
        }
        if unknown {
            self.unknown_listeners_until = Some(now + drain_time);
        }
        if let Some(old) = old
            && change.is_none_or(|new| new.version() != old.version())
        {
            self.replaced(old, change);
        }
    }

    /// Envoy takes up what it can of a response that it rejects. Until the next acknowledgement each resource of it
    /// may be in use in either form.
    fn reject(&mut self, kind: ResourceType, settled: Vec<Sent>, message: &str) {
        let sent: Vec<(Arc<str>, Option<Arc<Resource>>)> =
            settled.iter().flat_map(|sent| sent.changes.clone()).collect();
        if kind == ResourceType::Cluster
            && self.initialised
            && let Some(first) = settled.first()
        {
            // Like an acknowledgement, a rejection comes when nothing is warming any more.
            self.warmth.warmed_up_to(first.seq - 1);
        }
        for (name, change) in &sent {
            let channel = self.channel_mut(kind);
            if let Some(resource) = change {
                channel.doubtful.push(resource.clone());
                continue;
            }
            // Removals are taken up whatever happens to the rest.
            channel.claimed.remove(name);
            if let Some(old) = channel.acked.remove(name)
                && kind == ResourceType::Listener
            {
                self.replaced(old, None);
            }
        }
        let channel = self.channel_mut(kind);
        channel.error = Some(message.to_owned());
        let suspects = suspects(channel, sent);
        let named: Vec<Arc<Resource>> =
            suspects.iter().filter(|resource| names(message, resource.name(), &suspects)).cloned().collect();
        let culprits = if named.is_empty() && suspects.len() == 1 { suspects.clone() } else { named };

        for culprit in &culprits {
            channel.quarantine(culprit);
        }
        for suspect in &suspects {
            channel.dirty.insert(suspect.name().clone());
            if culprits.is_empty() {
                channel.suspects.insert(suspect.name().clone());
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

/// Returns what may be to blame for the rejection of `sent`: what the client had not accepted before.
fn suspects(channel: &Channel, sent: Vec<(Arc<str>, Option<Arc<Resource>>)>) -> Vec<Arc<Resource>> {
    let mut newest = std::collections::BTreeMap::new();
    for (name, change) in sent {
        newest.insert(name, change);
    }
    let resources: Vec<Arc<Resource>> = newest.into_values().flatten().collect();
    let changed: Vec<Arc<Resource>> = resources
        .iter()
        .filter(|resource| {
            channel.acked.get(resource.name()).is_none_or(|acked| acked.version() != resource.version())
        })
        .cloned()
        .collect();
    if changed.is_empty() { resources } else { changed }
}

/// Whether `message` mentions `name` as such: not as a part of a longer word, nor of the longer name of another
/// suspect.
fn names(message: &str, name: &str, suspects: &[Arc<Resource>]) -> bool {
    if name.is_empty() {
        return false;
    }
    let longer: Vec<&str> = suspects
        .iter()
        .map(|resource| &**resource.name())
        .filter(|other| other.len() > name.len() && other.contains(name))
        .collect();
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
    use proto::resource::{Body, Needs};

    fn cluster(name: &str) -> Arc<Resource> {
        let body = Body::Whole(bytes::Bytes::from(name.to_owned()));
        Arc::new(Resource::new(ResourceType::Cluster, name, body, Needs::default()))
    }

    fn culprits<'a>(message: &str, names_of: &'a [&'a str]) -> Vec<&'a str> {
        let suspects: Vec<_> = names_of.iter().map(|name| cluster(name)).collect();
        names_of.iter().copied().filter(|name| names(message, name, &suspects)).collect()
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
