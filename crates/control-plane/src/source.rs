//! The push engine as the xDS server's source of snapshots.

use crate::secure::{SecretObserver, Secrets, Served, without_secrets};
use crate::sources::Sources;
use crate::writer::WriterState;
use futures::future::BoxFuture;
use identity::Caller;
use proto::envoy::config::core::v3::Node;
use proto::resource::Snapshot;
use push::{Connected, Push};
use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{info, warn};
use xds::session::Event;
use xds::{ConnectError, Connection, Observer, PeerInfo, SnapshotSource};

/// What an agent says it is, on the stream of its own that it is sent roots on.
const AGENT: &str = "weft-agent";

/// Serves what the engine compiles: on the secure port to whom the client has proved to be, on the plaintext port,
/// which authenticates nobody, to whoever the node says it is.
pub(crate) struct EngineSource {
    pub(crate) push: Push,
    pub(crate) state: watch::Receiver<WriterState>,
    pub(crate) sources: Sources,
    pub(crate) domain: String,
    /// Whether private keys may go anywhere in plain text.
    pub(crate) secrets_anywhere: bool,
    /// Whether anybody asks how far proxies are.
    pub(crate) is_reported: bool,
    /// What those get who have proved who they are; nothing if nobody can.
    pub(crate) secrets: Option<Secrets>,
}

/// Whether a stream is that of an agent, and not of its proxy.
pub(crate) fn is_agent(node: &Node) -> bool {
    node.user_agent_name == AGENT
}

/// Returns the proxy that a client says it is, if it has proved that it may say so.
fn proved(node: &Node, domain: &str, caller: &Caller) -> Result<model::Proxy, ConnectError> {
    let proxy =
        compile::node::parse(node, domain).map_err(|error| ConnectError::InvalidNode(error.to_string()))?;
    identity::authorize(caller, &proxy).map_err(|error| {
        warn!(caller = %caller.id, proxy = %proxy.node_id, %error, "proxy is not who it says");
        ConnectError::PermissionDenied(error.to_string())
    })?;
    Ok(proxy)
}

/// Serves the secrets of workloads alone: their certificates and roots.
pub(crate) struct SecretSource {
    pub(crate) secrets: Secrets,
    pub(crate) domain: String,
}

impl SnapshotSource for SecretSource {
    fn connect(&self, node: &Node, peer: &PeerInfo) -> BoxFuture<'_, Result<Connection, ConnectError>> {
        Box::pin(ready(self.serve(node, peer)))
    }
}

impl SecretSource {
    fn serve(&self, node: &Node, peer: &PeerInfo) -> Result<Connection, ConnectError> {
        // The gate lets nobody through without one.
        let Some(caller) = peer.extensions.get::<Caller>() else {
            return Err(ConnectError::Unauthenticated("no identity".to_owned()));
        };
        let proxy = proved(node, &self.domain, caller)?;
        let Served { snapshots, on_demand, observer } =
            self.secrets.serve(caller, peer, &proxy.workload, None);
        let observer = Box::new(SessionObserver {
            node_id: proxy.node_id,
            secrets: Some(observer),
            connected: None,
            is_reported: false,
        });
        Ok(Connection { snapshots, drain_time: None, on_demand, observer })
    }
}

impl SnapshotSource for EngineSource {
    fn connect(&self, node: &Node, peer: &PeerInfo) -> BoxFuture<'_, Result<Connection, ConnectError>> {
        match self.admit(node, peer) {
            Ok(proxy) => Box::pin(self.serve(proxy, is_agent(node), peer.clone())),
            Err(error) => Box::pin(ready(Err(error))),
        }
    }
}

impl EngineSource {
    /// Returns who a client is, if it may be served.
    fn admit(&self, node: &Node, peer: &PeerInfo) -> Result<model::Proxy, ConnectError> {
        let waiting_for = self.state.borrow().waiting_for.clone();
        if !waiting_for.is_empty() {
            let names: Vec<String> = waiting_for.into_iter().map(|name| self.sources.explain(name)).collect();
            return Err(ConnectError::NotReady(format!("waiting for {}", names.join(", "))));
        }
        match peer.extensions.get::<Caller>() {
            Some(caller) => proved(node, &self.domain, caller),
            // The gate lets nobody through without one.
            None if peer.encrypted => Err(ConnectError::Unauthenticated("no identity".to_owned())),
            None => compile::node::parse(node, &self.domain)
                .map_err(|error| ConnectError::InvalidNode(error.to_string())),
        }
    }

    async fn serve(
        &self,
        proxy: model::Proxy,
        is_agent: bool,
        peer: PeerInfo,
    ) -> Result<Connection, ConnectError> {
        let caller = peer.extensions.get::<Caller>();
        if let (Some(caller), Some(secrets), true) = (caller, &self.secrets, is_agent) {
            let Served { snapshots, on_demand, observer } =
                secrets.serve(caller, &peer, &proxy.workload, None);
            let observer = Box::new(SessionObserver {
                node_id: proxy.node_id,
                secrets: Some(observer),
                connected: None,
                is_reported: false,
            });
            return Ok(Connection { snapshots, drain_time: None, on_demand, observer });
        }
        let drain_time = drain_time(&proxy);
        info!(proxy = %proxy.node_id, role = ?proxy.role, namespace = %proxy.namespace, "proxy connected");
        let (node_id, workload) = (proxy.node_id.clone(), proxy.workload.clone());
        let connected =
            self.push.connect(proxy).await.map_err(|error| ConnectError::NotReady(error.to_string()))?;
        let compiled = connected.snapshots.clone();
        let (mut on_demand, mut secrets): (&[_], _) = (&[], None);
        let snapshots = match (caller, &self.secrets) {
            (Some(caller), Some(own)) => {
                let served = own.serve(caller, &peer, &workload, Some(compiled));
                (on_demand, secrets) = (served.on_demand, Some(served.observer));
                served.snapshots
            }
            (None, _) if self.secrets_anywhere || peer.address.is_some_and(is_local) => compiled,
            _ => stripped(compiled),
        };
        let is_reported = self.is_reported;
        let observer =
            Box::new(SessionObserver { node_id, secrets, connected: Some(connected), is_reported });
        Ok(Connection { snapshots, drain_time, on_demand, observer })
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

/// Leaves the secrets out: nobody may see private keys in plain text.
fn stripped(mut snapshots: watch::Receiver<Arc<Snapshot>>) -> watch::Receiver<Arc<Snapshot>> {
    let (sender, receiver) = watch::channel(without_secrets(&snapshots.borrow_and_update()));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
            let snapshot = without_secrets(&snapshots.borrow_and_update());
            if sender.send(snapshot).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Keeps a proxy's place in the engine, and logs what goes wrong.
struct SessionObserver {
    node_id: model::Str,
    secrets: Option<SecretObserver>,
    connected: Option<Connected>,
    is_reported: bool,
}

impl Observer for SessionObserver {
    fn desired(&self) -> Option<watch::Receiver<Arc<Snapshot>>> {
        let connected = self.connected.as_ref().filter(|_| self.is_reported);
        connected.map(|connected| connected.snapshots.clone())
    }

    fn observe(&mut self, event: &Event) {
        if let Some(secrets) = &mut self.secrets {
            secrets.observe(event);
        }
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
