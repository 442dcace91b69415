//! The loop that accepts.

use crate::accept::{Accept, Backoff, Failure};
use crate::config::Config;
use crate::connection::{self, Shared};
use crate::metrics::{ListenerMetrics, Metrics};
use crate::peer::{Handle, Slot};
use crate::table::Table;
use arc_swap::ArcSwap;
use hyper::body::Incoming;
use parking_lot::Mutex;
use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

/// What lies between TCP and HTTP/2.
#[derive(Clone)]
pub enum Transport {
    /// Nothing: whoever sends a request is settled.
    Plain,
    /// TLS, with what is configured when a connection begins. The service settles its clients.
    Tls(Arc<ArcSwap<rustls::ServerConfig>>),
}

/// Accepts connections and passes their requests to `service`, with a [`Peer`](crate::Peer) in the extensions of each,
/// until `shutdown` completes. Then clients are asked to go elsewhere, and it waits until they have gone or
/// [`Config::drain_grace`] is over.
pub async fn serve<A, S, B>(
    listener: A,
    transport: Transport,
    service: S,
    config: Config,
    metrics: &Metrics,
    shutdown: impl Future<Output = ()>,
) where
    A: Accept,
    S: tower_service::Service<http::Request<Incoming>, Response = http::Response<B>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let metrics = metrics.of(config.name);
    let table = Arc::new(Mutex::new(Table::new(config.limits)));
    let mut acceptor = Acceptor {
        listener,
        table,
        metrics: metrics.clone(),
        name: config.name,
        drain: CancellationToken::new(),
        backoff: Backoff::new(),
        accepted: 0,
    };
    let shared = Arc::new(Shared { config, transport, service, metrics });
    let tasks = TaskTracker::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = acceptor.next() => accepted,
        };
        tasks.spawn(connection::run(shared.clone(), accepted));
    }
    acceptor.drain.cancel();
    // Whoever connects now has to find another replica, not a queue that nobody reads.
    drop(acceptor);
    tasks.close();
    tasks.wait().await;
}

/// A connection that was let in.
pub(crate) struct Accepted<I> {
    pub(crate) io: I,
    pub(crate) address: SocketAddr,
    pub(crate) id: u64,
    pub(crate) handle: Handle,
    pub(crate) slot: Slot,
}

struct Acceptor<A> {
    listener: A,
    table: Arc<Mutex<Table<Handle>>>,
    metrics: ListenerMetrics,
    name: &'static str,
    drain: CancellationToken,
    backoff: Backoff,
    accepted: u64,
}

impl<A: Accept> Acceptor<A> {
    /// Waits for the next connection that is let in.
    async fn next(&mut self) -> Accepted<A::Io> {
        loop {
            match self.listener.accept().await {
                Ok((io, address)) => {
                    self.backoff.reset();
                    if let Some(accepted) = self.admit(io, address) {
                        return accepted;
                    }
                }
                Err(error) => self.failed(&error).await,
            }
        }
    }

    fn admit(&mut self, io: A::Io, address: SocketAddr) -> Option<Accepted<A::Io>> {
        self.accepted += 1;
        self.metrics.accepted.inc();
        let id = self.accepted;
        let handle = Handle { drain: self.drain.child_token(), close: CancellationToken::new() };
        let admitted = {
            let mut table = self.table.lock();
            let admitted = table.admit(id, address.ip(), handle.clone());
            self.metrics.count(&table);
            admitted
        };
        match admitted {
            Ok(evicted) => {
                if let Some((stranger, reason)) = evicted {
                    self.metrics.ended(reason.as_str());
                    stranger.close.cancel();
                }
                let slot = Slot::new(id, self.table.clone(), self.metrics.clone());
                Some(Accepted { io, address, id, handle, slot })
            }
            Err(reason) => {
                self.metrics.ended(reason.as_str());
                None
            }
        }
    }

    async fn failed(&mut self, error: &io::Error) {
        if Failure::of(error) == Failure::Client {
            return;
        }
        // A stranger's descriptor is better used for whoever is waiting.
        let stranger = {
            let mut table = self.table.lock();
            let stranger = table.evict_stranger();
            self.metrics.count(&table);
            stranger
        };
        if let Some(stranger) = stranger {
            stranger.close.cancel();
        }
        self.metrics.ended(crate::table::Reason::Exhausted.as_str());
        let wait = self.backoff.next();
        warn!(listener = self.name, %error, ?wait, "cannot accept connections");
        tokio::time::sleep(wait).await;
    }
}
