//! The push engine as the xDS server's source of snapshots.

use crate::secure::SecretReaders;
use crate::sources::Sources;
use crate::writer::WriterState;
use identity::Caller;
use proto::envoy::config::core::v3::Node;
use proto::resource::{ResourceSet, Snapshot};
use push::{Connected, Push};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{info, warn};
use xds::session::Event;
use xds::{ConnectError, Connection, Observer, PeerInfo, SnapshotSource};

/// How often it is asked anew whether a client may have Secrets.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Serves what the engine compiles: on the secure port to whom the client has proved to be, on the plaintext port,
/// which authenticates nobody, to whoever the node says it is.
pub(crate) struct EngineSource {
    pub(crate) push: Push,
    pub(crate) state: watch::Receiver<WriterState>,
    pub(crate) sources: Sources,
    pub(crate) domain: String,
    /// Whether private keys may go anywhere in plain text.
    pub(crate) secrets_anywhere: bool,
    /// Who may have them encrypted.
    pub(crate) secret_readers: SecretReaders,
}

impl SnapshotSource for EngineSource {
    fn connect(&self, node: &Node, peer: &PeerInfo) -> Result<Connection, ConnectError> {
        let waiting_for = self.state.borrow().waiting_for.clone();
        if !waiting_for.is_empty() {
            let names: Vec<String> = waiting_for.into_iter().map(|name| self.sources.explain(name)).collect();
            return Err(ConnectError::NotReady(format!("waiting for {}", names.join(", "))));
        }
        let proxy = compile::node::parse(node, &self.domain)
            .map_err(|error| ConnectError::InvalidNode(error.to_string()))?;
        let caller = peer.extensions.get::<Caller>();
        match caller {
            Some(caller) => identity::authorize(caller, &proxy).map_err(|error| {
                warn!(caller = %caller.id, proxy = %proxy.node_id, %error, "proxy is not who it says");
                ConnectError::PermissionDenied(error.to_string())
            })?,
            // The gate lets nobody through without one.
            None if peer.encrypted => return Err(ConnectError::Unauthenticated("no identity".to_owned())),
            None => {}
        }
        let drain_time = drain_time(&proxy);
        info!(proxy = %proxy.node_id, role = ?proxy.role, namespace = %proxy.namespace, "proxy connected");
        let node_id = proxy.node_id.clone();
        // Compiling for a proxy of a new kind takes a moment, in which this thread's other tasks move elsewhere.
        let connected = tokio::task::block_in_place(|| self.push.connect(proxy))
            .map_err(|error| ConnectError::NotReady(error.to_string()))?;
        let snapshots = connected.snapshots.clone();
        let snapshots = match caller {
            Some(caller) => {
                while_permitted(snapshots, permission(self.secret_readers.clone(), caller.clone()))
            }
            None if self.secrets_anywhere || peer.address.is_some_and(is_local) => snapshots,
            None => while_permitted(snapshots, watch::channel(false).1),
        };
        let observer = Box::new(SessionObserver { node_id, _connected: connected });
        Ok(Connection { snapshots, drain_time, observer })
    }
}

fn is_local(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// The proxy's drain time, as Istio's agents and people who start Envoy by hand say it.
fn drain_time(proxy: &model::Proxy) -> Option<Duration> {
    let text = proxy.metadata.get("DRAIN_DURATION_SECONDS")?;
    text.parse().ok().map(Duration::from_secs)
}

/// Leaves the secrets out for as long as they are not permitted: nobody may see private keys that are not meant for
/// them, and nobody at all in plain text.
fn while_permitted(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    mut permitted: watch::Receiver<bool>,
) -> watch::Receiver<Arc<Snapshot>> {
    let strip = |snapshot: &Arc<Snapshot>, permitted: bool| {
        if permitted || snapshot.secrets.is_empty() {
            return snapshot.clone();
        }
        Arc::new(Snapshot { secrets: ResourceSet::new(), ..Snapshot::clone(snapshot) })
    };
    let first = strip(&snapshots.borrow_and_update(), *permitted.borrow_and_update());
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        let mut may_change = true;
        loop {
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return },
                changed = permitted.changed(), if may_change => may_change = changed.is_ok(),
                () = sender.closed() => return,
            }
            let snapshot = strip(&snapshots.borrow_and_update(), *permitted.borrow_and_update());
            if sender.send(snapshot).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Asks whether `caller` may have Secrets, and goes on asking while anybody wants to know. Until there is an answer it
/// may not; while there is none, the last one holds.
fn permission(readers: SecretReaders, caller: Caller) -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(matches!(readers, SecretReaders::Everybody));
    if matches!(readers, SecretReaders::Ask(_)) {
        tokio::spawn(async move {
            loop {
                if let Some(permitted) = readers.may_read(&caller).await {
                    sender.send_if_modified(|known| std::mem::replace(known, permitted) != permitted);
                }
                tokio::select! {
                    () = tokio::time::sleep(ASK_AGAIN) => {}
                    () = sender.closed() => return,
                }
            }
        });
    }
    receiver
}

/// Keeps a proxy's place in the engine, and logs what goes wrong.
struct SessionObserver {
    node_id: model::Str,
    _connected: Connected,
}

impl Observer for SessionObserver {
    fn observe(&mut self, event: &Event) {
        let proxy = &self.node_id;
        match event {
            Event::Nacked { kind, message, culprits } => {
                warn!(%proxy, r#type = %kind, reason = message, ?culprits, "proxy rejected resources");
            }
            Event::Stuck { clusters } => warn!(%proxy, ?clusters, "clusters do not become ready"),
            Event::GraceExpired { cluster, warming } => {
                warn!(%proxy, %cluster, ?warming, "routes no longer wait for a cluster that is not ready");
            }
            Event::Absent { cluster } => {
                warn!(%proxy, %cluster, "routes name a destination that does not exist")
            }
            _ => tracing::debug!(%proxy, ?event, "session"),
        }
    }
}

impl Drop for SessionObserver {
    fn drop(&mut self) {
        info!(proxy = %self.node_id, "proxy disconnected");
    }
}
