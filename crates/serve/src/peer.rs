//! The other end of a connection, as services see it.

use crate::metrics::ListenerMetrics;
use crate::table::Table;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio_util::sync::CancellationToken;

/// What it takes to end a connection.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    /// Asks the client to go elsewhere, and streams to end.
    pub(crate) drain: CancellationToken,
    /// Ends it now.
    pub(crate) close: CancellationToken,
}

/// A connection's place in the table, until it is dropped.
pub(crate) struct Slot {
    id: u64,
    table: Arc<Mutex<Table<Handle>>>,
    metrics: ListenerMetrics,
}

impl Slot {
    pub(crate) fn new(id: u64, table: Arc<Mutex<Table<Handle>>>, metrics: ListenerMetrics) -> Self {
        Self { id, table, metrics }
    }

    fn settle(&self, identity: Option<&str>) {
        let surplus = {
            let mut table = self.table.lock();
            let surplus = table.settle(self.id, identity);
            self.metrics.count(&table);
            surplus
        };
        if let Some(oldest) = surplus {
            self.metrics.ended("identity");
            tracing::warn!(identity, "too many connections of one identity: draining the oldest");
            oldest.drain.cancel();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        table.remove(self.id);
        self.metrics.count(&table);
    }
}

/// The other end of a connection. In the extensions of each of its requests; cloning is cheap.
#[derive(Clone)]
pub struct Peer(Arc<Inner>);

struct Inner {
    address: SocketAddr,
    encrypted: bool,
    certificates: Vec<CertificateDer<'static>>,
    handle: Handle,
    settled: AtomicBool,
    slot: Option<Slot>,
}

impl Peer {
    pub(crate) fn new(
        address: SocketAddr,
        encrypted: bool,
        certificates: Vec<CertificateDer<'static>>,
        handle: Handle,
        slot: Slot,
    ) -> Self {
        let settled = AtomicBool::new(false);
        Self(Arc::new(Inner { address, encrypted, certificates, handle, settled, slot: Some(slot) }))
    }

    /// Returns a peer that no listener knows, for services that are called without one.
    pub fn detached(
        address: SocketAddr,
        encrypted: bool,
        certificates: Vec<CertificateDer<'static>>,
    ) -> Self {
        let settled = AtomicBool::new(false);
        let handle = Handle { drain: CancellationToken::new(), close: CancellationToken::new() };
        Self(Arc::new(Inner { address, encrypted, certificates, handle, settled, slot: None }))
    }

    /// Returns its address.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Returns whether nobody else can read what is sent to it.
    pub fn is_encrypted(&self) -> bool {
        self.0.encrypted
    }

    /// Returns the certificates that it presented, the leaf first; none if it did not. They were verified when the
    /// connection was made, against what was trusted then.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0.certificates
    }

    /// Notes that it may be here: it is no stranger any more. With an identity it counts against the limit of that
    /// identity.
    pub fn settle(&self, identity: Option<&str>) {
        self.0.settled.store(true, Ordering::Relaxed);
        if let Some(slot) = &self.0.slot {
            slot.settle(identity);
        }
    }

    /// Returns whether it may be here.
    pub fn is_settled(&self) -> bool {
        self.0.settled.load(Ordering::Relaxed)
    }

    /// Returns a token that is cancelled when the client should go elsewhere. Streams that never end by themselves
    /// have to end then, with a status that says so; what is left after a grace period is cut.
    pub fn draining(&self) -> CancellationToken {
        self.0.handle.drain.clone()
    }

    /// Closes the connection at once, without a word: for a client that would not hear it.
    pub fn close(&self) {
        self.0.handle.close.cancel();
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("address", &self.0.address)
            .field("encrypted", &self.0.encrypted)
            .field("certificates", &self.0.certificates.len())
            .finish_non_exhaustive()
    }
}
