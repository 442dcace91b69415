//! What can be told about a session while it runs.

use super::Session;
use proto::resource::{ResourceSet, ResourceType};
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
        let snapshot = self.snapshot.of(kind);
        let rejected = channel
            .quarantine
            .keys()
            .filter_map(|name| snapshot.get(name))
            .filter(|resource| channel.is_quarantined(resource.name(), resource.version()));
        let quarantined = rejected.map(|resource| Quarantined {
            name: resource.name().clone(),
            version: resource.version().clone(),
        });
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
            quarantined: quarantined.collect(),
            behind: channel.dirty.len(),
        }
    }
}
