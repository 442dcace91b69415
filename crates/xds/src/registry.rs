//! Who is connected, and how far each is: what status, `/debug/syncz` and `/debug/config_dump` are made of.

use crate::server::Reading;
use crate::session::{Distance, Protocol, Session, SessionStatus};
use crate::source::PeerInfo;
use parking_lot::Mutex;
use proto::envoy::config::core::v3::Node;
use proto::resource::Snapshot;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// The sessions of a server. Cloning shares them. Reading waits for no client: a session is in use only for as long as
/// it takes to decide what to send next.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    entries: Arc<Mutex<BTreeMap<u64, Arc<Entry>>>>,
}

/// A session at one moment.
#[derive(Clone, Debug)]
pub struct SessionView {
    /// The stream's number: later streams have higher ones.
    pub stream: u64,
    /// The node that the client described itself as.
    pub node: Arc<Node>,
    /// What else is known of it.
    pub peer: PeerInfo,
    /// Which protocol it speaks.
    pub protocol: Protocol,
    /// Since when.
    pub connected_at: SystemTime,
    /// When its state last changed.
    pub updated_at: SystemTime,
    /// How far it is.
    pub status: SessionStatus,
}

/// How far a client is on its way to what it should have.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The stream's number.
    pub stream: u64,
    /// The node that the client described itself as.
    pub node: Arc<Node>,
    /// What it should have, as of the moment at which it was asked.
    pub desired: Arc<Snapshot>,
    /// What is between that and what it has acknowledged.
    pub distance: Distance,
}

/// Who comes.
pub(crate) struct Client {
    pub(crate) stream: u64,
    pub(crate) node: Node,
    pub(crate) peer: PeerInfo,
    /// What it should have, if anybody asks how far it is.
    pub(crate) desired: Option<watch::Receiver<Arc<Snapshot>>>,
}

#[derive(Debug)]
struct Entry {
    stream: u64,
    node: Arc<Node>,
    peer: PeerInfo,
    desired: Option<watch::Receiver<Arc<Snapshot>>>,
    protocol: Protocol,
    connected_at: SystemTime,
    updated_at: Mutex<SystemTime>,
    session: Arc<Mutex<Session>>,
    reading: Arc<Reading>,
}

impl Registry {
    /// Returns all sessions, oldest first.
    pub fn sessions(&self) -> Vec<SessionView> {
        let entries: Vec<Arc<Entry>> = self.entries.lock().values().cloned().collect();
        entries.iter().map(|entry| entry.view()).collect()
    }

    /// Returns the newest session of the proxy with this node id.
    pub fn session(&self, node_id: &str) -> Option<SessionView> {
        let newest = {
            let entries = self.entries.lock();
            entries.values().rev().find(|entry| entry.node.id == node_id).cloned()
        };
        newest.map(|entry| entry.view())
    }

    /// Returns how far those clients are of which the source knows what they should have, oldest first.
    pub fn progress(&self) -> Vec<Progress> {
        let entries: Vec<Arc<Entry>> = self.entries.lock().values().cloned().collect();
        entries.iter().filter_map(|entry| entry.progress()).collect()
    }

    /// Returns how many sessions there are.
    pub fn len(&self) -> usize {
        self.entries.lock().len()
    }

    /// Returns whether nobody is connected.
    pub fn is_empty(&self) -> bool {
        self.entries.lock().is_empty()
    }

    /// Closes the connections of clients that have not read for as long as `patience`, and returns their nodes' ids.
    pub(crate) fn close_blocked(&self, patience: Duration) -> Vec<String> {
        let entries = self.entries.lock();
        let blocked = entries.values().filter(|entry| entry.reading.close_if_blocked(patience));
        blocked.map(|entry| entry.node.id.clone()).collect()
    }

    pub(crate) fn enter(
        &self,
        client: Client,
        protocol: Protocol,
        session: Arc<Mutex<Session>>,
        reading: Arc<Reading>,
    ) -> Registration {
        let Client { stream, node, peer, desired } = client;
        let now = SystemTime::now();
        let entry = Arc::new(Entry {
            stream,
            node: Arc::new(node),
            peer,
            desired,
            protocol,
            connected_at: now,
            updated_at: Mutex::new(now),
            session,
            reading,
        });
        self.entries.lock().insert(stream, entry.clone());
        Registration { registry: self.clone(), entry }
    }
}

impl Entry {
    fn progress(&self) -> Option<Progress> {
        // Before the session is looked at: what it has taken up since only brings it nearer to something newer.
        let desired = self.desired.as_ref()?.borrow().clone();
        let distance = self.session.lock().distance(&desired);
        Some(Progress { stream: self.stream, node: self.node.clone(), desired, distance })
    }

    fn view(&self) -> SessionView {
        SessionView {
            stream: self.stream,
            node: self.node.clone(),
            peer: self.peer.clone(),
            protocol: self.protocol,
            connected_at: self.connected_at,
            updated_at: *self.updated_at.lock(),
            status: self.session.lock().status(),
        }
    }
}

/// A session's place in the registry, until it is dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    registry: Registry,
    entry: Arc<Entry>,
}

impl Registration {
    pub(crate) fn update(&self) {
        *self.entry.updated_at.lock() = SystemTime::now();
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.entries.lock().remove(&self.entry.stream);
    }
}
