//! The agent's status port: readiness, merged metrics, the application's probes, and being told to end.

mod merge;
mod probe;

use crate::args::Role;
use crate::config::{Config, ScrapeTarget, probes::Probe};
use crate::envoy_admin::{EnvoyAdmin, NotReady};
use crate::metrics::Metrics;
use crate::supervisor::Phase;
use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

/// Scrapes at once. More would only make each slower, and keep more answers in memory.
const SCRAPES: usize = 2;

/// What the status port needs.
pub struct Status {
    envoy: EnvoyAdmin,
    loopback: IpAddr,
    prometheus_port: u16,
    status_port: u16,
    probes: BTreeMap<String, Probe>,
    probe_address: IpAddr,
    application: Option<ScrapeTarget>,
    role: Role,
    metrics: Metrics,
    phase: watch::Sender<Phase>,
    /// Whether the last answer was that the proxy is ready, so that only changes are logged.
    was_ready: AtomicBool,
    ever_ready: AtomicBool,
    scrapes: Semaphore,
}

impl Status {
    /// Returns the status of a proxy.
    pub fn new(config: &Config, metrics: Metrics, phase: watch::Sender<Phase>) -> Self {
        let loopback = config.node.families.loopback();
        Self {
            envoy: EnvoyAdmin::new((loopback, config.ports.admin).into()),
            loopback,
            prometheus_port: config.ports.envoy_prometheus,
            status_port: config.ports.status,
            probes: config.probes.clone(),
            probe_address: config.probe_address,
            application: config.scrape.clone(),
            role: config.role,
            metrics,
            phase,
            was_ready: AtomicBool::new(false),
            ever_ready: AtomicBool::new(false),
            scrapes: Semaphore::new(SCRAPES),
        }
    }

    async fn ready(&self) -> Result<(), NotReady> {
        if *self.phase.borrow() != Phase::Running {
            return Err(NotReady::Draining);
        }
        self.envoy.ready().await
    }
}

/// Serves until the listener fails.
pub async fn serve(listener: TcpListener, status: Arc<Status>) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz/ready", get(ready))
        .route("/ready", get(ready))
        .route("/stats/prometheus", get(metrics))
        .route("/metrics", get(metrics))
        .route("/quitquitquit", any(quit))
        .route("/drain", any(drain))
        .route("/app-health/{container}/{probe}", any(application))
        .route("/app-lifecycle/{container}/{hook}", any(application))
        .with_state(status);
    axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await
}

async fn ready(State(status): State<Arc<Status>>) -> Response {
    let answer = status.ready().await;
    let is_ready = answer.is_ok();
    let was_ready = status.was_ready.swap(is_ready, Ordering::Relaxed);
    match answer {
        Ok(()) => {
            if !was_ready {
                tracing::info!("the proxy is ready");
            }
            if !status.ever_ready.swap(true, Ordering::Relaxed) {
                status.metrics.ready();
            }
            StatusCode::OK.into_response()
        }
        Err(reason) => {
            tracing::warn!(%reason, "the proxy is not ready");
            (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
        }
    }
}

async fn metrics(State(status): State<Arc<Status>>, uri: Uri, headers: HeaderMap) -> Response {
    let Ok(_permit) = status.scrapes.acquire().await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let sources = merge::Sources {
        envoy: SocketAddr::new(status.loopback, status.prometheus_port),
        // A gateway's status port can be reached from outside of the cluster: it shows only its own.
        application: status.application.as_ref().filter(|_| status.role == Role::Sidecar),
        loopback: status.loopback,
        metrics: &status.metrics,
    };
    let merged = merge::scrape(&sources, uri.query(), &headers).await;
    ([("content-type", merged.content_type)], merged.text).into_response()
}

/// Ends the proxy, as SIGTERM does: for jobs, whose pods end when all of their containers have.
async fn quit(
    State(status): State<Arc<Status>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    method: Method,
) -> Response {
    told(&status, peer, &method, Phase::Ending)
}

/// Drains listeners, and goes on.
async fn drain(
    State(status): State<Arc<Status>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    method: Method,
) -> Response {
    told(&status, peer, &method, Phase::DrainOnly)
}

fn told(status: &Status, peer: SocketAddr, method: &Method, phase: Phase) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        return (StatusCode::FORBIDDEN, "only for this host\n").into_response();
    }
    if *method != Method::POST {
        return (StatusCode::METHOD_NOT_ALLOWED, "only POST\n").into_response();
    }
    // Nothing that has begun is taken back.
    status.phase.send_if_modified(|current| {
        let later = phase > *current;
        *current = phase.max(*current);
        later
    });
    "OK".into_response()
}

async fn application(State(status): State<Arc<Status>>, uri: Uri, headers: HeaderMap) -> Response {
    let Some(probe) = status.probes.get(uri.path()) else {
        return (StatusCode::BAD_REQUEST, format!("no probe is known for {}\n", uri.path())).into_response();
    };
    probe::ask(probe, status.probe_address, status.status_port, &headers).await
}
