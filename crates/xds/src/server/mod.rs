//! The ADS server: gRPC around sessions.
//!
//! ```text
//! serve ─▶ FrameBody (shared bytes) ─▶ driver ─▶ Session
//!                                      ▲   ▲  └─▶ Registry, Metrics, Observer
//!                          requests ───┘   └─── SnapshotSource
//! ```

mod body;
mod driver;
mod requests;
mod secrets;
mod service;

pub(crate) use body::Reading;
pub use secrets::SecretService;
pub use service::AdsService;

use crate::encode::Encoder;
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::session::Options;
use crate::source::SnapshotSource;
use proto::resource::ResourceType;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once, Weak};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

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
    /// For how long a client may not read before its connection is closed.
    pub send_timeout: Duration,
    /// How long a new stream may take to send its first request.
    pub first_request_timeout: Duration,
    /// The only type that is served; all, if there is none.
    pub only: Option<ResourceType>,
}

impl Config {
    /// Istio's limits, and a minute's patience with clients that do not read.
    pub fn standard(identifier: impl Into<String>) -> Self {
        Self {
            session: Options::STANDARD,
            identifier: identifier.into(),
            cache_bytes: 8 << 20,
            max_request_bytes: 4 << 20,
            max_streams: 100_000,
            send_timeout: Duration::from_secs(60),
            first_request_timeout: Duration::from_secs(30),
            only: None,
        }
    }
}

/// The descriptions of the services cannot be offered.
#[derive(Debug, thiserror::Error)]
#[error("cannot describe the xds services")]
pub struct DescribeError(#[source] tonic_reflection::server::Error);

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
    /// The task that looks for clients that do not read runs.
    watched: Once,
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

    /// Starts to look for clients that do not read, if nobody does so yet.
    pub(crate) fn watch_readers(self: &Arc<Self>) {
        self.watched.call_once(|| {
            tokio::spawn(watch_readers(Arc::downgrade(self)));
        });
    }

    pub(crate) fn admit(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }
}

/// Closes the connections of clients that do not read, for as long as the server exists.
async fn watch_readers(server: Weak<Shared>) {
    while let Some(shared) = server.upgrade() {
        let patience = shared.config.send_timeout;
        for node in shared.registry.close_blocked(patience) {
            shared.metrics.write_timeouts.inc();
            tracing::warn!(proxy = node, "proxy does not read: closing its connection");
        }
        drop(shared);
        tokio::time::sleep(patience / 4).await;
    }
}

/// An ADS server that several listeners may share.
pub struct Server {
    shared: Arc<Shared>,
    shutdown: watch::Sender<bool>,
    health: HealthReporter,
    health_service: HealthService,
}

type HealthService = tonic_health::pb::health_server::HealthServer<tonic_health::server::HealthService>;

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("shared", &self.shared).finish_non_exhaustive()
    }
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
            watched: Once::new(),
            config,
        });
        let health = HealthReporter::new();
        let health_service =
            HealthService::new(tonic_health::server::HealthService::from_health_reporter(health.clone()));
        Self { shared, shutdown, health, health_service }
    }

    /// Returns the service itself, to be added to another gRPC server.
    pub fn service(&self) -> AdsService {
        AdsService::new(self.shared.clone())
    }

    /// Returns the service of secrets alone, for a server whose [`Config::only`] says so.
    pub fn secret_service(&self) -> SecretService {
        SecretService::new(self.service())
    }

    /// Returns who is connected.
    pub fn registry(&self) -> Registry {
        self.shared.registry.clone()
    }

    /// Ends all streams, so that the clients go elsewhere, and reports that there is no service any more.
    pub async fn stop(&self) {
        self.health.set_not_serving::<AdsService>().await;
        self.shutdown.send_replace(true);
    }

    /// Returns the services of this server: discovery, health and reflection. Whoever serves them to strangers puts
    /// a gate in front.
    ///
    /// # Errors
    ///
    /// If the descriptors that reflection offers do not fit together.
    pub async fn routes(&self) -> Result<Routes, DescribeError> {
        self.health.set_serving::<AdsService>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        let descriptors = proto::descriptors_of(<AdsService as tonic::server::NamedService>::NAME);
        let reflection = reflection
            .register_encoded_file_descriptor_set(&descriptors)
            .build_v1()
            .map_err(DescribeError)?;
        Ok(Routes::new(self.service()).add_service(self.health_service.clone()).add_service(reflection))
    }

    /// Serves plaintext connections of `listener` until `shutdown` completes and all streams have ended.
    ///
    /// # Errors
    ///
    /// See [`Server::routes`].
    pub async fn serve(
        &self,
        listener: impl serve::Accept,
        config: serve::Config,
        metrics: &serve::Metrics,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), DescribeError> {
        let routes = self.routes().await?;
        let stopped = async {
            shutdown.await;
            self.stop().await;
        };
        serve::serve(listener, serve::Transport::Plain, routes, config, metrics, stopped).await;
        Ok(())
    }
}
