//! Serving over HTTPS, within bounds, with a certificate that can change at any time.

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How much strangers may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once. An API server needs one or two.
    pub connections: usize,
    /// How long a handshake, and reading the head of a request, may take.
    pub handshake: Duration,
    /// How long a connection may live. API servers connect anew.
    pub connection: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 256, handshake: Duration::from_secs(5), connection: Duration::from_secs(600) }
    }
}

/// Serves until `stop` is cancelled, and then finishes what has begun. Each connection takes the newest of `tls`, so that a
/// new certificate needs no restart and ends no connection.
pub async fn serve(
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: others have to end first.
                tracing::warn!(%error, "the webhook cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(limit = limits.connections, "the webhook has too many connections; one is closed");
            continue;
        };
        let config = tls.borrow().clone();
        let (router, stop) = (router.clone(), stop.clone());
        connections.spawn(async move {
            let _place = place;
            connection(stream, config, router, limits, stop).await;
        });
    }
    connections.close();
    connections.wait().await;
}

async fn connection(
    stream: TcpStream,
    tls: Arc<ServerConfig>,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    let handshake = TlsAcceptor::from(tls).accept(stream);
    let stream = match tokio::time::timeout(limits.handshake, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake with the webhook failed"),
        Err(_) => return tracing::debug!("a TLS handshake with the webhook took too long"),
    };
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(limits.handshake);
    server.http2().timer(TokioTimer::new()).max_concurrent_streams(64);
    let served = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(served);
    let ends = async {
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(limits.connection) => {}
        }
    };
    let outcome = tokio::select! {
        outcome = served.as_mut() => Some(outcome),
        () = ends => None,
    };
    let outcome = match outcome {
        Some(outcome) => outcome,
        None => {
            // What was asked is answered, nothing new is taken.
            served.as_mut().graceful_shutdown();
            match tokio::time::timeout(limits.handshake, served).await {
                Ok(outcome) => outcome,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection to the webhook ended");
    }
}
