//! The requests of one connection, all on the task of the connection.
//!
//! A task for each request would be woken by the connection's for every message that comes, and wake it for every message
//! that goes, mostly on another processor. A stream lives for days here, there is one on a connection, and its messages
//! are few and small: what a change costs is the waking.

use crate::seldom::Seldom;
use futures::FutureExt as _;
use parking_lot::Mutex;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Takes the requests that a connection begins.
#[derive(Clone, Default)]
pub(crate) struct Executor(Arc<Mutex<Vec<Stream>>>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Executor {
    fn execute(&self, stream: F) {
        self.0.lock().push(Box::pin(stream));
    }
}

/// The requests of a connection. Those that have not ended when it is dropped are abandoned.
#[derive(Default)]
pub(crate) struct Streams {
    begun: Executor,
    /// There are mostly one or two, and never more than a connection may have.
    running: Vec<Seldom<Stream>>,
}

impl Streams {
    /// Returns where the connection puts the requests that it begins.
    pub(crate) fn executor(&self) -> Executor {
        self.begun.clone()
    }

    /// Runs the connection and its requests until the connection ends. Dropping the future loses nothing.
    pub(crate) async fn drive<C: Future>(&mut self, mut connection: Pin<&mut C>) -> C::Output {
        poll_fn(|cx| {
            // What requests have written first, so that the connection sends it at once; then what came for them.
            self.run(cx);
            if let Poll::Ready(output) = connection.as_mut().poll(cx) {
                return Poll::Ready(output);
            }
            self.running.extend(self.begun.0.lock().drain(..).map(Seldom::new));
            self.run(cx);
            Poll::Pending
        })
        .await
    }

    fn run(&mut self, cx: &mut std::task::Context<'_>) {
        self.running.retain_mut(|stream| stream.poll_unpin(cx).is_pending());
    }
}
