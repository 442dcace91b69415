//! One connection, from its handshake to its end.

use crate::config::Config;
use crate::metrics::ListenerMetrics;
use crate::peer::{Handle, Peer, Slot};
use crate::seldom::Seldom;
use crate::server::{Accepted, Transport};
use crate::streams::{Executor, Streams};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::debug;

/// How much of a stream's data may wait to be written to the connection. What has to be kept for that stays allocated for as
/// long as the connection lives, and more would only be older than what could be sent instead.
const SEND_BUFFER: usize = 64 << 10;

/// What the connections of a listener share.
pub(crate) struct Shared<S> {
    pub(crate) config: Config,
    pub(crate) transport: Transport,
    pub(crate) service: S,
    pub(crate) metrics: ListenerMetrics,
}

/// Serves a connection to its end.
pub(crate) async fn run<I, S, B>(shared: Arc<Shared<S>>, accepted: Accepted<I>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: tower_service::Service<http::Request<Incoming>, Response = http::Response<B>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let Accepted { io, address, id, handle, slot } = accepted;
    let connection = Connection { shared, address, id, handle, slot, started: Instant::now() };
    match connection.shared.transport.clone() {
        Transport::Plain => connection.http2(io, false, Vec::new()).await,
        Transport::Tls(configs) => {
            let acceptor = TlsAcceptor::from(configs.load_full());
            let Some(stream) = connection.handshake(acceptor, io).await else { return };
            let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let certificates =
                certificates.iter().map(|certificate| certificate.clone().into_owned()).collect();
            connection.http2(stream, true, certificates).await;
        }
    }
}

struct Connection<S> {
    shared: Arc<Shared<S>>,
    address: SocketAddr,
    id: u64,
    handle: Handle,
    slot: Slot,
    started: Instant,
}

impl<S> Connection<S> {
    async fn handshake<I>(&self, acceptor: TlsAcceptor, io: I) -> Option<TlsStream<I>>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let metrics = &self.shared.metrics;
        let deadline = self.started + self.shared.config.handshake_timeout;
        // On the heap, so that the state of a handshake is not kept for the life of the connection.
        let handshake = Box::pin(timeout_at(deadline, acceptor.accept(io)));
        let result: Result<io::Result<TlsStream<I>>, _> = tokio::select! {
            result = handshake => result,
            // The closer has counted it.
            () = self.handle.close.cancelled() => return None,
            () = self.handle.drain.cancelled() => return None,
        };
        match result {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                metrics.ended("handshake");
                debug!(address = %self.address, %error, "TLS handshake failed");
                None
            }
            Err(_elapsed) => {
                metrics.ended("handshake-timeout");
                None
            }
        }
    }

    async fn http2<I, B>(
        self,
        io: I,
        encrypted: bool,
        certificates: Vec<rustls::pki_types::CertificateDer<'static>>,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: tower_service::Service<http::Request<Incoming>, Response = http::Response<B>, Error = Infallible>,
        S: Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let Self { shared, address, id, handle, slot, started } = self;
        let config = &shared.config;
        let peer = Peer::new(address, encrypted, certificates, handle.clone(), slot);
        let service = {
            let (service, peer) = (shared.service.clone(), peer.clone());
            hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
                if !encrypted {
                    peer.settle(None);
                }
                request.extensions_mut().insert(peer.clone());
                service.clone().oneshot(request)
            })
        };
        let mut streams = Streams::default();
        let builder = builder(config, streams.executor());
        let mut served = Box::pin(builder.serve_connection(TokioIo::new(io), service));

        let deadlines = Deadlines {
            settle_by: started + config.settle_timeout,
            expires: config.max_age.map(|age| started + spread(age, id)),
            peer,
            drain: handle.drain.clone(),
            close: handle.close.clone(),
            metrics: shared.metrics.clone(),
        };
        let mut ends = Seldom::new(Box::pin(deadlines.watch()));
        tokio::select! {
            biased;
            result = streams.drive(served.as_mut()) => return ended(address, result),
            end = &mut ends => match end {
                End::Now => return,
                End::Drained => {
                    served.as_mut().graceful_shutdown();
                    streams.touch();
                }
            }
        }
        tokio::select! {
            result = streams.drive(served.as_mut()) => ended(address, result),
            () = handle.close.cancelled() => {}
            () = sleep(config.drain_grace) => shared.metrics.ended("grace"),
        }
    }
}

fn ended(address: SocketAddr, result: Result<(), hyper::Error>) {
    if let Err(error) = result {
        debug!(%address, %error, "connection ended");
    }
}

/// How a connection is to end, other than by the client.
enum End {
    /// At once.
    Now,
    /// After its requests.
    Drained,
}

/// What ends a connection from this side.
struct Deadlines {
    /// When a stranger has to go.
    settle_by: Instant,
    /// When anybody has to.
    expires: Option<Instant>,
    peer: Peer,
    drain: CancellationToken,
    close: CancellationToken,
    metrics: ListenerMetrics,
}

impl Deadlines {
    /// Waits for one of the limits, and counts it.
    async fn watch(self) -> End {
        let settle_by = sleep_until(self.settle_by);
        let expired = sleep_until(self.expires.unwrap_or(self.settle_by));
        tokio::pin!(settle_by, expired);
        let (mut settle_timer, mut age_timer) = (true, self.expires.is_some());
        loop {
            tokio::select! {
                () = self.close.cancelled() => return End::Now,
                () = self.drain.cancelled() => return End::Drained,
                () = &mut settle_by, if settle_timer => {
                    settle_timer = false;
                    if !self.peer.is_settled() {
                        self.metrics.ended("unproved");
                        return End::Now;
                    }
                }
                () = &mut expired, if age_timer => {
                    age_timer = false;
                    self.metrics.ended("age");
                    self.drain.cancel();
                }
            }
        }
    }
}

fn builder(config: &Config, executor: Executor) -> http2::Builder<Executor> {
    let mut builder = http2::Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(config.keepalive_interval)
        .keep_alive_timeout(config.keepalive_timeout)
        .max_concurrent_streams(config.max_streams)
        .max_header_list_size(config.max_header_bytes)
        .max_send_buf_size(SEND_BUFFER);
    builder
}

/// Spreads the ends of connections that began together over a fifth of their age limit. The golden ratio spreads
/// consecutive numbers evenly.
fn spread(age: Duration, id: u64) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "only the fraction matters")]
    let fraction = (id as f64 * 0.618_033_988_75).fract();
    age.mul_f64(1.0 - 0.2 * fraction)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn connections_that_came_together_do_not_go_together() {
        let age = Duration::from_secs(1800);
        let ends: BTreeSet<u64> = (0..100).map(|id| spread(age, id).as_secs()).collect();
        assert!(ends.len() > 90, "{ends:?}");
        assert!(ends.iter().all(|end| (1440..=1800).contains(end)), "{ends:?}");
    }
}
