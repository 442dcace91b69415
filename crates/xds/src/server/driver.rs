//! Moves messages between one stream and its session. All decisions are the session's.

use super::Shared;
use super::body::{Outbox, Reading};
use super::requests::Requests;
use crate::codec::Message;
use crate::metrics::{VersionLabel, type_label, warming_label};
use crate::registry::{Client, Registration};
use crate::session::{Event, Options, Response, Session};
use crate::source::{ConnectError, Connection, Observer, PeerInfo};
use parking_lot::Mutex;
use proto::envoy::config::core::v3::Node;
use proto::google::protobuf::value::Kind;
use proto::resource::Snapshot;
use serve::{ReasonLabel, Seldom};
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, ReusableBoxFuture};
use tonic::Status;
use tracing::{debug, info, warn};

/// Why a stream ends, other than by the client closing it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("the first request has no node id")]
    NoNode,
    #[error("no request came in {0:?}")]
    Silent(Duration),
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("the connection is about to be closed: connect again")]
    Draining,
    #[error("the source of configuration is gone")]
    NoSource,
    #[error("{0}")]
    Request(Status),
}

impl From<StreamError> for Status {
    fn from(error: StreamError) -> Self {
        let message = error.to_string();
        match error {
            StreamError::Connect(ConnectError::InvalidNode(_)) | StreamError::NoNode => {
                Self::invalid_argument(message)
            }
            StreamError::Connect(ConnectError::Unauthenticated(_)) => Self::unauthenticated(message),
            StreamError::Connect(ConnectError::PermissionDenied(_)) => Self::permission_denied(message),
            StreamError::Connect(ConnectError::NotReady(_))
            | StreamError::ShuttingDown
            | StreamError::Draining
            | StreamError::NoSource => Self::unavailable(message),
            StreamError::Silent(_) => Self::deadline_exceeded(message),
            StreamError::Request(status) => status,
        }
    }
}

/// Where a driver writes, and what shows whether that is read.
pub(crate) struct Outgoing {
    pub(crate) outbox: Outbox,
    pub(crate) reading: Arc<Reading>,
}

/// Serves one stream to its end, and returns its status.
pub(crate) async fn run<M: Message>(
    shared: Arc<Shared>,
    peer: PeerInfo,
    draining: CancellationToken,
    requests: Requests<M>,
    outgoing: Outgoing,
) -> Status {
    let mut stopped = Seldom::new(Box::pin(stopped(shared.shutdown.clone(), draining)));
    let result = tokio::select! {
        biased;
        result = serve(&shared, peer, requests, outgoing) => result,
        error = &mut stopped => Err(error),
    };
    match result {
        Ok(()) => Status::ok(""),
        Err(error) => {
            debug!(%error, "stream ended");
            error.into()
        }
    }
}

async fn serve<M: Message>(
    shared: &Arc<Shared>,
    peer: PeerInfo,
    mut requests: Requests<M>,
    outgoing: Outgoing,
) -> Result<(), StreamError> {
    // On the heap: what a client's beginning takes is not kept for the life of the stream.
    match Box::pin(begin(shared, peer, &mut requests, outgoing)).await? {
        Some(mut driver) => driver.run(&mut requests).await,
        None => Ok(()),
    }
}

/// Takes the first request, which says who the client is, and answers it. Nothing if the client closes the stream before.
async fn begin<M: Message>(
    shared: &Arc<Shared>,
    peer: PeerInfo,
    requests: &mut Requests<M>,
    outgoing: Outgoing,
) -> Result<Option<Driver>, StreamError> {
    let patience = shared.config.first_request_timeout;
    let first = tokio::time::timeout(patience, requests.message()).await;
    let Some(mut first) = first.map_err(|_| StreamError::Silent(patience))?.map_err(StreamError::Request)?
    else {
        return Ok(None);
    };
    let mut node = first.take_node().filter(|node| !node.id.is_empty()).ok_or(StreamError::NoNode)?;
    let connecting = shared.source.connect(&node, &peer);
    // Every Envoy lists some hundred. The source has looked at them; nobody asks for them again.
    node.extensions = Vec::new();
    let connection = connecting.await?;
    let mut driver = Driver::start::<M>(shared.clone(), node, peer, connection, outgoing);
    driver.on_message(first);
    Ok(Some(driver))
}

struct Driver {
    shared: Arc<Shared>,
    node_id: String,
    version: VersionLabel,
    session: Arc<Mutex<Session>>,
    snapshots: Snapshots,
    alarm: Alarm,
    observer: Box<dyn Observer>,
    outbox: Outbox,
    registration: Registration,
    stuck: i64,
}

impl Driver {
    fn start<M: Message>(
        shared: Arc<Shared>,
        node: Node,
        peer: PeerInfo,
        connection: Connection,
        outgoing: Outgoing,
    ) -> Self {
        let Connection { mut snapshots, drain_time, on_demand, observer } = connection;
        let mut options: Options = shared.config.session;
        options.drain_time = drain_time.unwrap_or(options.drain_time);
        options.on_demand = on_demand;
        let stream = shared.next_stream();
        let now = Instant::now();
        let snapshot = snapshots.borrow_and_update().clone();
        let encoder = shared.encoder.clone();
        let session = Session::new(M::PROTOCOL, options, encoder, stream, snapshot, now.into_std());
        let session = Arc::new(Mutex::new(session));

        let version = VersionLabel { version: istio_version(&node) };
        shared.metrics.connected.get_or_create(&version).inc();
        info!(proxy = node.id, stream, protocol = ?M::PROTOCOL, "proxy connected");
        let node_id = node.id.clone();
        let client = Client { stream, node, peer, desired: observer.desired() };
        let registration = shared.registry.enter(client, M::PROTOCOL, session.clone(), outgoing.reading);
        let outbox = outgoing.outbox;
        let (snapshots, alarm) = (Snapshots::new(snapshots), Alarm::default());
        Self { shared, node_id, version, session, snapshots, alarm, observer, outbox, registration, stuck: 0 }
    }

    async fn run<M: Message>(&mut self, requests: &mut Requests<M>) -> Result<(), StreamError> {
        loop {
            let deadline = self.session.lock().next_deadline();
            self.alarm.set(deadline.map(Instant::from_std));
            // Requests first: an answer may make room for what a snapshot brings.
            tokio::select! {
                biased;
                message = requests.message() => match message.map_err(StreamError::Request)? {
                    Some(message) => self.on_message(message),
                    None => return Ok(()),
                },
                snapshot = self.snapshots.next() => {
                    let started = Instant::now();
                    self.session.lock().on_snapshot(snapshot?, started.into_std());
                    self.flush(started);
                }
                () = self.alarm.rung() => {
                    let started = Instant::now();
                    self.session.lock().on_timer(started.into_std());
                    self.flush(started);
                }
            }
        }
    }

    fn on_message<M: Message>(&mut self, message: M) {
        let started = Instant::now();
        let type_url = message.type_url().to_owned();
        let only = self.shared.config.only;
        match message.into_request().filter(|request| only.is_none_or(|kind| kind == request.kind)) {
            Some(request) => self.session.lock().on_request(request, started.into_std()),
            None => debug!(proxy = self.node_id, type_url, "request for a type that is not served"),
        }
        self.flush(started);
    }

    /// Writes what the session has to say, and tells the others.
    fn flush(&mut self, started: Instant) {
        let (responses, events, stuck) = {
            let mut session = self.session.lock();
            (session.take_responses(), session.take_events(), session.stuck_count())
        };
        for event in &events {
            self.report(event);
            self.observer.observe(event);
        }
        if !responses.is_empty() || !events.is_empty() {
            self.registration.update();
            let stuck = i64::try_from(stuck).unwrap_or(i64::MAX);
            self.shared.metrics.stuck_clusters.inc_by(stuck - self.stuck);
            self.stuck = stuck;
        }
        let prepared = started.elapsed();
        for response in responses {
            self.count(&response, prepared);
            self.outbox.put(response.frame);
        }
    }

    fn count(&self, response: &Response, prepared: Duration) {
        let metrics = self.shared.metrics.of(response.kind);
        metrics.pushes.inc();
        metrics.push_time.observe(prepared.as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
        let bytes = response.frame.message_len() as f64;
        metrics.config_size.observe(bytes);
        debug!(
            proxy = self.node_id,
            type_url = response.kind.type_url(),
            nonce = response.nonce,
            resources = response.resources,
            removed = response.removed,
            bytes,
            "push"
        );
    }

    fn report(&self, event: &Event) {
        let metrics = &self.shared.metrics;
        match event {
            Event::Subscribed { .. } => {}
            Event::Acked { kind, took, .. } => {
                if let Some(took) = took {
                    metrics.of(*kind).ack_time.observe(took.as_secs_f64());
                }
            }
            Event::Nacked { kind, message, culprits } => {
                metrics.rejects.get_or_create(&type_label(*kind)).inc();
                let culprits: BTreeSet<&str> = culprits.iter().map(|culprit| &**culprit.name()).collect();
                warn!(
                    proxy = self.node_id,
                    type_url = kind.type_url(),
                    ?culprits,
                    message,
                    "proxy rejects configuration"
                );
            }
            Event::GraceExpired { cluster, warming } => {
                metrics.grace_expirations.get_or_create(&warming_label(*warming)).inc();
                debug!(proxy = self.node_id, %cluster, ?warming, "no longer waiting for cluster");
            }
            Event::Absent { cluster } => {
                metrics.grace_expirations.get_or_create(&ReasonLabel { reason: "absent" }).inc();
                debug!(proxy = self.node_id, %cluster, "named by routes and does not exist");
            }
            Event::Stuck { clusters } => {
                warn!(proxy = self.node_id, ?clusters, "clusters keep the proxy from answering");
            }
            Event::UnknownNonce { kind } => {
                metrics.unknown_nonces.get_or_create(&type_label(*kind)).inc();
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.shared.metrics.connected.get_or_create(&self.version).dec();
        self.shared.metrics.stuck_clusters.dec_by(self.stuck);
        info!(proxy = self.node_id, "proxy disconnected");
    }
}

/// Counts a stream that is not let in.
pub(crate) fn refuse(shared: &Shared, reason: &'static str) {
    shared.metrics.refused.get_or_create(&ReasonLabel { reason }).inc();
}

/// Waits until the stream has to end from this side.
async fn stopped(mut shutdown: watch::Receiver<bool>, draining: CancellationToken) -> StreamError {
    tokio::select! {
        // If both happen at once, the client is told of the shutdown.
        biased;
        // A server that is dropped ends its streams too.
        _ = shutdown.wait_for(|ends| *ends) => StreamError::ShuttingDown,
        () = draining.cancelled() => StreamError::Draining,
    }
}

/// The snapshots that come after the first one.
struct Snapshots(Seldom<ReusableBoxFuture<'static, Result<watch::Receiver<Arc<Snapshot>>, StreamError>>>);

impl Snapshots {
    fn new(receiver: watch::Receiver<Arc<Snapshot>>) -> Self {
        Self(Seldom::new(ReusableBoxFuture::new(changed(receiver))))
    }

    /// Waits for the next one. Nothing is lost if the caller stops waiting.
    async fn next(&mut self) -> Result<Arc<Snapshot>, StreamError> {
        let mut receiver = (&mut self.0).await?;
        let snapshot = receiver.borrow_and_update().clone();
        self.0.renew(|future| future.set(changed(receiver)));
        Ok(snapshot)
    }
}

async fn changed(
    mut receiver: watch::Receiver<Arc<Snapshot>>,
) -> Result<watch::Receiver<Arc<Snapshot>>, StreamError> {
    receiver.changed().await.map_err(|_| StreamError::NoSource)?;
    Ok(receiver)
}

/// Rings when the session has something to do, or before. It is set with almost every message, mostly to a later time;
/// so it is left alone then, and rings in vain later.
#[derive(Default)]
struct Alarm(Option<(Instant, Seldom<Pin<Box<Sleep>>>)>);

impl Alarm {
    fn set(&mut self, deadline: Option<Instant>) {
        match (deadline, &mut self.0) {
            (Some(deadline), Some((at, sleep))) if deadline < *at => {
                *at = deadline;
                sleep.renew(|sleep| sleep.as_mut().reset(deadline));
            }
            (Some(deadline), unset @ None) => {
                *unset = Some((deadline, Seldom::new(Box::pin(tokio::time::sleep_until(deadline)))));
            }
            _ => {}
        }
    }

    /// Waits for it. Nothing is lost if the caller stops waiting.
    async fn rung(&mut self) {
        match &mut self.0 {
            Some((_, sleep)) => sleep.await,
            None => std::future::pending().await,
        }
        self.0 = None;
    }
}

fn istio_version(node: &Node) -> String {
    let field = node.metadata.as_ref().and_then(|metadata| metadata.fields.get("ISTIO_VERSION"));
    match field.and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(version)) => version.clone(),
        _ => String::from("unknown"),
    }
}
