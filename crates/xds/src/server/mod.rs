//! The ADS server: gRPC around sessions.
//!
//! ```text
//! connection ─▶ stream ─▶ driver (one task) ─▶ Session
//!                           ▲   ▲      └─▶ FrameBody (shared bytes), Registry, Metrics, Observer
//!               requests ───┘   └─── SnapshotSource
//! ```

mod body;
mod driver;
mod incoming;
mod service;

pub use service::AdsService;

use crate::encode::Encoder;
use crate::metrics::{Metrics, ReasonLabel};
use crate::registry::Registry;
use crate::session::Options;
use crate::source::SnapshotSource;
use prost_reflect::{DescriptorPool, FileDescriptor};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// How a server treats its clients.
#[derive(Clone, Debug)]
pub struct Config {
    /// How patient sessions are.
    pub session: Options,
    /// What every response says its control plane is.
    pub identifier: String,
    /// How many bytes of encoded responses are kept for clients that are sent the same next.
    pub cache_bytes: usize,
    /// The largest request that is read.
    pub max_request_bytes: usize,
    /// How many streams there may be in all.
    pub max_streams: usize,
    /// How many connections there may be in all.
    pub max_connections: usize,
    /// How many streams a connection may have.
    pub max_streams_per_connection: u32,
    /// How often an idle connection is checked, and how long the check may take.
    pub keepalive_interval: Duration,
    /// See `keepalive_interval`.
    pub keepalive_timeout: Duration,
    /// For how long a client may not read before its stream is ended.
    pub send_timeout: Duration,
    /// How long a new stream may take to send its first request.
    pub first_request_timeout: Duration,
    /// After how long a stream is ended, so that clients spread over replicas. Shortened by up to a tenth, by chance.
    pub max_stream_age: Option<Duration>,
}

impl Config {
    /// Istio's limits, and a minute's patience with clients that do not read.
    pub fn standard(identifier: impl Into<String>) -> Self {
        Self {
            session: Options::STANDARD,
            identifier: identifier.into(),
            cache_bytes: 32 << 20,
            max_request_bytes: 4 << 20,
            max_streams: 100_000,
            max_connections: 100_000,
            max_streams_per_connection: 100_000,
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            send_timeout: Duration::from_secs(60),
            first_request_timeout: Duration::from_secs(30),
            max_stream_age: None,
        }
    }
}

/// Why serving ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The gRPC server failed.
    #[error("xds server failed")]
    Transport(#[from] tonic::transport::Error),
    /// The descriptions of the services could not be offered.
    #[error("cannot describe the xds services")]
    Reflection(#[source] tonic_reflection::server::Error),
}

/// What the streams of a server share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) source: Arc<dyn SnapshotSource>,
    pub(crate) encoder: Arc<Encoder>,
    pub(crate) registry: Registry,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: watch::Receiver<bool>,
    streams: AtomicU64,
    permits: Arc<Semaphore>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn next_stream(&self) -> u64 {
        self.streams.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn admit(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }
}

/// An ADS server that several listeners may share.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    shutdown: watch::Sender<bool>,
}

impl Server {
    /// Makes a server that serves what `source` has.
    pub fn new(source: Arc<dyn SnapshotSource>, config: Config, metrics: Metrics) -> Self {
        let (shutdown, ends) = watch::channel(false);
        let shared = Arc::new(Shared {
            source,
            encoder: Arc::new(Encoder::new(&config.identifier, config.cache_bytes)),
            registry: Registry::default(),
            metrics,
            shutdown: ends,
            streams: AtomicU64::new(0),
            permits: Arc::new(Semaphore::new(config.max_streams.min(Semaphore::MAX_PERMITS))),
            config,
        });
        Self { shared, shutdown }
    }

    /// Returns the service itself, to be added to another gRPC server.
    pub fn service(&self) -> AdsService {
        AdsService::new(self.shared.clone())
    }

    /// Returns who is connected.
    pub fn registry(&self) -> Registry {
        self.shared.registry.clone()
    }

    /// Ends all streams, so that the clients go elsewhere.
    pub fn end_streams(&self) {
        self.shutdown.send_replace(true);
    }

    /// Serves plaintext connections of `listener`, with health checks and reflection, until `shutdown` completes and
    /// all streams have ended.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        let config = &self.shared.config;
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<AdsService>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        let descriptors = service_descriptors();
        let reflection = reflection
            .register_encoded_file_descriptor_set(&descriptors)
            .build_v1()
            .map_err(ServeError::Reflection)?;

        let refused = self.shared.metrics.refused.get_or_create_owned(&ReasonLabel { reason: "connections" });
        let incoming = incoming::limited(listener, config.max_connections, refused);
        let ended = async {
            shutdown.await;
            health.set_not_serving::<AdsService>().await;
            self.end_streams();
        };
        tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(config.keepalive_interval))
            .http2_keepalive_timeout(Some(config.keepalive_timeout))
            .max_concurrent_streams(config.max_streams_per_connection)
            .add_service(self.service())
            .add_service(health_service)
            .add_service(reflection)
            .serve_with_incoming_shutdown(incoming, ended)
            .await?;
        Ok(())
    }
}

/// Serves `source` on `listener` until `shutdown` completes: [`Server`] for those who need no more.
pub async fn serve(
    listener: TcpListener,
    source: Arc<dyn SnapshotSource>,
    config: Config,
    metrics: Metrics,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    Server::new(source, config, metrics).serve(listener, shutdown).await
}

/// Returns the encoded descriptors of the discovery service and all that they refer to. The whole Envoy API would
/// take a hundred times the memory.
fn service_descriptors() -> Vec<u8> {
    fn collect(file: &FileDescriptor, files: &mut BTreeMap<String, FileDescriptor>) {
        if files.insert(file.name().to_owned(), file.clone()).is_none() {
            for dependency in file.dependencies() {
                collect(&dependency, files);
            }
        }
    }
    let mut files = BTreeMap::new();
    let name = <AdsService as tonic::server::NamedService>::NAME;
    if let Some(service) = proto::pool().get_service_by_name(name) {
        collect(&service.parent_file(), &mut files);
    }
    let mut pool = DescriptorPool::new();
    let protos = files.values().map(|file| file.file_descriptor_proto().clone());
    match pool.add_file_descriptor_protos(protos) {
        Ok(()) => pool.encode_to_vec(),
        Err(error) => {
            tracing::error!(%error, "the discovery service cannot be described");
            Vec::new()
        }
    }
}
