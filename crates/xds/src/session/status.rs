//! What can be told about a session while it runs.

use super::Session;
use imbl::ordmap::DiffItem;
use proto::resource::{ResourceSet, ResourceType, Snapshot};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Whether a client is up to date in one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelState {
    /// Not asked for, or nothing was sent.
    NotSent,
    /// All that was sent is acknowledged.
    Synced,
    /// Something that was sent is not acknowledged.
    Stale,
    /// The last answer was a rejection.
    Error,
}

impl ChannelState {
    /// Returns Istio's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "NOT SENT",
            Self::Synced => "SYNCED",
            Self::Stale => "STALE",
            Self::Error => "ERROR",
        }
    }
}

/// A version of a resource that the client rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// The resource's name.
    pub name: Arc<str>,
    /// The rejected version.
    pub version: Arc<str>,
}

/// One resource type of a session.
#[derive(Clone, Debug)]
pub struct ChannelStatus {
    /// The type.
    pub kind: ResourceType,
    /// Whether the client is up to date.
    pub state: ChannelState,
    /// Everything is wanted.
    pub wildcard: bool,
    /// How many names are wanted one by one.
    pub names: usize,
    /// The last nonce that was sent; empty if none.
    pub nonce_sent: String,
    /// The last nonce that was acknowledged; empty if none.
    pub nonce_acked: String,
    /// The version of the last response.
    pub version_sent: String,
    /// The version of the last response that was acknowledged.
    pub version_acked: String,
    /// The client's words, if its last answer was a rejection.
    pub error: Option<String>,
    /// What it has acknowledged.
    pub acked: ResourceSet,
    /// What it has rejected, as far as the newest snapshot still has it.
    pub quarantined: Vec<Quarantined>,
    /// How many resources the client has not yet been sent in their newest form.
    pub behind: usize,
}

/// What is between what a client has acknowledged and what it should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distance {
    /// There is nothing to send and no answer to wait for. What the client has rejected is left alone, so it does not
    /// count.
    pub is_settled: bool,
    /// What is to be sent, or not answered yet. May be empty although it is not settled: if the session has not seen the
    /// newest snapshot.
    pub unsettled: Vec<(ResourceType, Arc<str>)>,
    /// What it should have and has rejected, with the client's words.
    pub rejected: Vec<(ResourceType, Quarantined, Arc<str>)>,
}

/// A session at one moment.
#[derive(Clone, Debug)]
pub struct SessionStatus {
    /// By type, in the order of [`ResourceType::ALL`].
    pub channels: Vec<ChannelStatus>,
    /// Clusters that keep the client from answering.
    pub stuck: Vec<Arc<str>>,
}

impl Session {
    /// Returns what can be told about the session now.
    pub fn status(&self) -> SessionStatus {
        SessionStatus {
            channels: ResourceType::ALL.into_iter().map(|kind| self.channel_status(kind)).collect(),
            stuck: self.warmth.stuck(),
        }
    }

    /// Returns what is between what the client has acknowledged and `desired`. Nothing is compared that is the same.
    pub fn distance(&self, desired: &Snapshot) -> Distance {
        let mut distance = Distance { is_settled: true, ..Distance::default() };
        for kind in ResourceType::ALL {
            let channel = self.channel(kind);
            // Secrets come from elsewhere too.
            let knows = kind == ResourceType::Secret || same_set(self.snapshot.of(kind), desired.of(kind));
            let waits =
                !channel.dirty.is_empty() || !channel.owed.is_empty() || !channel.outstanding.is_empty();
            if waits {
                let sent = channel.outstanding.iter().flat_map(|sent| sent.changes.keys());
                let names: BTreeSet<&Arc<str>> = sent.chain(&channel.dirty).chain(&channel.owed).collect();
                distance.unsettled.extend(names.into_iter().map(|name| (kind, name.clone())));
            }
            distance.is_settled &= knows && !waits;
            if !channel.quarantine.is_empty() {
                distance
                    .rejected
                    .extend(self.rejected(kind).map(|(rejected, words)| (kind, rejected, words)));
            }
        }
        distance
    }

    /// Returns what the client has rejected, as far as the newest snapshot still has it, and its words.
    fn rejected(&self, kind: ResourceType) -> impl Iterator<Item = (Quarantined, Arc<str>)> {
        let snapshot = self.snapshot.of(kind);
        self.channel(kind).quarantine.iter().filter_map(|(name, rejected)| {
            let version = snapshot.get(name)?.version();
            let known = rejected.iter().find(|known| known.version == *version)?;
            Some((Quarantined { name: name.clone(), version: version.clone() }, known.words.clone()))
        })
    }

    /// Returns how many clusters keep the client from answering.
    pub fn stuck_count(&self) -> usize {
        self.warmth.stuck_count()
    }

    fn channel_status(&self, kind: ResourceType) -> ChannelStatus {
        let channel = self.channel(kind);
        let state = match &channel.error {
            Some(_) => ChannelState::Error,
            None if !channel.outstanding.is_empty() => ChannelState::Stale,
            None if channel.sent_seq > 0 || !channel.acked.is_empty() => ChannelState::Synced,
            None => ChannelState::NotSent,
        };
        let nonce = |seq| if seq == 0 { String::new() } else { self.nonce(seq) };
        ChannelStatus {
            kind,
            state,
            wildcard: channel.wildcard,
            names: channel.names.len(),
            nonce_sent: nonce(channel.sent_seq),
            nonce_acked: nonce(channel.acked_seq),
            version_sent: channel.sent_version.clone(),
            version_acked: channel.acked_version.clone(),
            error: channel.error.clone(),
            acked: channel.acked.clone(),
            quarantined: self.rejected(kind).map(|(rejected, _)| rejected).collect(),
            behind: channel.dirty.len(),
        }
    }
}

/// Returns whether the sets hold the same. What they share is not looked at.
fn same_set(a: &ResourceSet, b: &ResourceSet) -> bool {
    let same = |difference| match difference {
        DiffItem::Update { old: (_, old), new: (_, new) } => old == new,
        DiffItem::Add(..) | DiffItem::Remove(..) => false,
    };
    a.ptr_eq(b) || (a.len() == b.len() && a.diff(b).all(same))
}
