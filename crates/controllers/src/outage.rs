//! An API server that does not answer, and when it does again.
//!
//! Each source has a connection and a backoff of its own. After an outage they would find the API server again at
//! moments that lie as far apart as the longest backoff, and of two objects that were changed together one would be
//! known long before the other. So one of those that wait asks every half second, and the first answer ends all waits.

use index::Change;
use kube::{Client, Error};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, Notify, mpsc};

/// How often the API server is asked during an outage.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long it may take to answer.
const LIMIT: Duration = Duration::from_secs(2);

/// What the sources know together of the API server.
#[derive(Clone)]
pub(crate) struct Outage {
    client: Client,
    changes: mpsc::Sender<Change>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// The API server was asked and did not answer.
    away: AtomicBool,
    over: Notify,
    /// Held by the one that asks.
    asking: Mutex<()>,
}

impl Outage {
    pub(crate) fn new(client: Client, changes: mpsc::Sender<Change>) -> Self {
        Self { client, changes, shared: Arc::default() }
    }

    /// Waits until the API server answers again, but not longer than `limit`, and returns whether it does. If it answers
    /// all along, the error was not an outage, and to be refused on and on must not end the wait. What a server says of
    /// a kind while it starts, that there is none or that it may not be listed, is part of its outage.
    pub(crate) async fn wait(&self, limit: Duration) -> bool {
        let mut over = pin!(self.shared.over.notified());
        over.as_mut().enable();
        let ask = async {
            let asking = self.shared.asking.lock().await;
            while !self.is_answering().await {
                self.shared.away.store(true, Ordering::Relaxed);
                tokio::time::sleep(INTERVAL).await;
            }
            if !self.shared.away.swap(false, Ordering::Relaxed) {
                drop(asking);
                return std::future::pending().await;
            }
            // First, so that it is known before anything that a source tells. If nobody listens, the sources end too.
            let _ = self.changes.send(Change::CatchingUp).await;
            self.shared.over.notify_waiters();
        };
        tokio::select! {
            () = tokio::time::sleep(limit) => false,
            () = over => true,
            () = ask => true,
        }
    }

    async fn is_answering(&self) -> bool {
        let Ok(request) = http::Request::get("/readyz").body(Vec::new()) else { return false };
        match tokio::time::timeout(LIMIT, self.client.request_text(request)).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => !is_outage(&error),
            Err(_) => false,
        }
    }
}

/// Returns whether an error says nothing but that there is no API server, or none with time to answer.
fn is_outage(error: &Error) -> bool {
    match error {
        Error::Api(status) => status.code == 429 || status.code >= 500,
        Error::HyperError(_) | Error::Service(_) | Error::ReadEvents(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{Change, Client, Duration, Outage};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::mpsc;
    use tokio::time::Instant;

    /// Returns an API server that is away for its first answers.
    fn server(away: usize, asked: &Arc<AtomicUsize>) -> Client {
        let asked = asked.clone();
        let service = tower::service_fn(move |_: http::Request<kube::client::Body>| {
            let status = if asked.fetch_add(1, Ordering::Relaxed) < away { 503 } else { 200 };
            let answer = http::Response::builder().status(status).body(kube::client::Body::empty());
            std::future::ready(answer)
        });
        Client::new(service, "default")
    }

    #[tokio::test(start_paused = true)]
    async fn one_of_those_that_wait_asks_and_all_go_on_together() {
        let asked = Arc::new(AtomicUsize::new(0));
        let (changes, mut told) = mpsc::channel(8);
        let outage = Outage::new(server(3, &asked), changes);
        let started = Instant::now();
        let waits = (0..10).map(|_| outage.wait(Duration::from_secs(10)));
        futures::future::join_all(waits).await;
        assert_eq!(started.elapsed(), Duration::from_millis(1_500));
        assert_eq!(asked.load(Ordering::Relaxed), 4);
        assert!(matches!(told.try_recv(), Ok(Change::CatchingUp)));
        assert!(told.try_recv().is_err(), "it is told once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_although_nobody_answers_and_another_one_asks_then() {
        let asked = Arc::new(AtomicUsize::new(0));
        let outage = Outage::new(server(7, &asked), mpsc::channel(8).0);
        let started = Instant::now();
        let first = outage.wait(Duration::from_millis(1_250));
        let second = outage.wait(Duration::from_secs(10));
        let (first, second) = tokio::join!(async { (first.await, started.elapsed()) }, async {
            (second.await, started.elapsed())
        });
        assert_eq!(first, (false, Duration::from_millis(1_250)));
        assert_eq!(second, (true, Duration::from_millis(1_250 + 4 * 500)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_answers_all_along_ends_no_wait() {
        let asked = Arc::new(AtomicUsize::new(0));
        let (changes, mut told) = mpsc::channel(8);
        let outage = Outage::new(server(0, &asked), changes);
        let started = Instant::now();
        tokio::join!(outage.wait(Duration::from_secs(3)), outage.wait(Duration::from_secs(4)));
        assert_eq!(started.elapsed(), Duration::from_secs(4));
        assert!(asked.load(Ordering::Relaxed) <= 2);
        assert!(told.try_recv().is_err(), "there was no outage");
    }
}
