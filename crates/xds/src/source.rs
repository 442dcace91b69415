//! Where snapshots come from: the seam between the protocol and whoever compiles.

use crate::session::Event;
use futures::future::BoxFuture;
use proto::envoy::config::core::v3::Node;
use proto::resource::Snapshot;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// What is known of a client besides what it says.
#[derive(Clone, Debug, Default)]
pub struct PeerInfo {
    /// Its address.
    pub address: Option<SocketAddr>,
    /// Whether nobody else can read what is sent to it.
    pub encrypted: bool,
    /// What those in front of the server found out about its request: who it is, above all. A source knows what to
    /// look for.
    pub extensions: Arc<http::Extensions>,
}

/// Knows what each client should have.
pub trait SnapshotSource: Send + Sync + 'static {
    /// Finds what is needed to serve a client, or why it is not served. The client is gone if the future is dropped before.
    /// It does not hold on to the node, which says much that nobody needs for long: thousands may be waiting at once.
    fn connect(&self, node: &Node, peer: &PeerInfo) -> BoxFuture<'_, Result<Connection, ConnectError>>;
}

/// One client, seen from its source.
pub struct Connection {
    /// What the client should have. The first value must be there already; when the sender is dropped, the stream
    /// ends and the client may try another replica.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// How long the client keeps replaced listeners alive; `None` if it does not say.
    pub drain_time: Option<Duration>,
    /// Secrets that are made when the client asks for them: one that is missing in `snapshots` may still come.
    pub on_demand: &'static [&'static str],
    /// Is told what happens on the stream.
    pub observer: Box<dyn Observer>,
}

/// Is told what happens on a stream. Dropped when the stream ends.
pub trait Observer: Send {
    /// Takes an event. Called on the stream's own task, so it must not block.
    fn observe(&mut self, event: &Event);

    /// Returns what the client should have, as whoever compiles it says so; nothing if nobody asks how far the client is
    /// on its way there. Asked once, when the stream begins.
    fn desired(&self) -> Option<watch::Receiver<Arc<Snapshot>>> {
        None
    }
}

/// An observer that does not care.
#[derive(Clone, Copy, Debug)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn observe(&mut self, _event: &Event) {}
}

/// Why a client is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Its node says something that cannot be.
    #[error("invalid node: {0}")]
    InvalidNode(String),
    /// It did not say who it is, or not credibly.
    #[error("not authenticated: {0}")]
    Unauthenticated(String),
    /// It claims to be someone else.
    #[error("not permitted: {0}")]
    PermissionDenied(String),
    /// Nothing can be served yet.
    #[error("not ready: {0}")]
    NotReady(String),
}
