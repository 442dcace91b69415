//! The requests of one connection, all on the task of the connection.
//!
//! A task for each request would be woken by the connection's for every message that comes, and wake it for every message
//! that goes, mostly on another processor. A stream lives for days here, there is one on a connection, and its messages
//! are few and small: what a change costs is the waking.
//!
//! The connection and its requests wake each other all the time. While they are being polled that leads to another round
//! and not to a wake of the task, which would only find that all is done.

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// So many rounds of a connection and its requests are done before others get their turn.
const ROUNDS: usize = 16;

type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Takes the requests that a connection begins.
#[derive(Clone, Default)]
pub(crate) struct Executor(Arc<Mutex<Vec<Stream>>>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Executor {
    fn execute(&self, stream: F) {
        self.0.lock().push(Box::pin(stream));
    }
}

/// The task that polls everything.
#[derive(Default)]
struct Hub {
    /// It is at it now, and looks at every flag before it stops.
    polling: AtomicBool,
    task: AtomicWaker,
}

/// Whether a future has been woken.
struct Flag {
    woken: AtomicBool,
    hub: Arc<Hub>,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Sequentially consistent, with the other order in `Streams::drive`: one side always sees the other.
        if !self.woken.swap(true, Ordering::SeqCst) && !self.hub.polling.load(Ordering::SeqCst) {
            self.hub.task.wake();
        }
    }
}

/// What becomes of a future that is one of several.
struct Member {
    flag: Arc<Flag>,
    waker: Waker,
}

impl Member {
    fn new(hub: &Arc<Hub>) -> Self {
        let flag = Arc::new(Flag { woken: AtomicBool::new(true), hub: hub.clone() });
        Self { waker: Waker::from(flag.clone()), flag }
    }

    fn is_woken(&self) -> bool {
        self.flag.woken.load(Ordering::SeqCst)
    }

    /// Polls the future if it was woken.
    fn poll<T>(&self, poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        if !self.is_woken() {
            return Poll::Pending;
        }
        self.flag.woken.store(false, Ordering::SeqCst);
        poll(&mut Context::from_waker(&self.waker))
    }
}

/// The requests of a connection. Those that have not ended when it is dropped are abandoned.
pub(crate) struct Streams {
    hub: Arc<Hub>,
    begun: Executor,
    connection: Member,
    /// There are mostly one or two, and never more than a connection may have.
    running: Vec<(Member, Stream)>,
}

impl Default for Streams {
    fn default() -> Self {
        let hub = Arc::new(Hub::default());
        let connection = Member::new(&hub);
        Self { hub, begun: Executor::default(), connection, running: Vec::new() }
    }
}

impl Streams {
    /// Returns where the connection puts the requests that it begins.
    pub(crate) fn executor(&self) -> Executor {
        self.begun.clone()
    }

    /// Makes sure that the connection is polled next time: something about it has changed that it does not see itself.
    pub(crate) fn touch(&self) {
        self.connection.flag.woken.store(true, Ordering::SeqCst);
    }

    /// Runs the connection and its requests until the connection ends. Dropping the future loses nothing.
    pub(crate) async fn drive<C: Future>(&mut self, mut connection: Pin<&mut C>) -> C::Output {
        poll_fn(|cx| {
            self.hub.task.register(cx.waker());
            self.hub.polling.store(true, Ordering::SeqCst);
            let polled = self.rounds(connection.as_mut());
            self.hub.polling.store(false, Ordering::SeqCst);
            // Either there were too many rounds, or somebody saw that rounds were being done after the last one.
            if polled.is_pending() && self.has_woken() {
                cx.waker().wake_by_ref();
            }
            polled
        })
        .await
    }

    fn rounds<C: Future>(&mut self, mut connection: Pin<&mut C>) -> Poll<C::Output> {
        for _ in 0..ROUNDS {
            // What requests have written first, so that the connection sends it at once; then what came for them.
            self.running
                .retain_mut(|(member, stream)| member.poll(|cx| stream.as_mut().poll(cx)).is_pending());
            if let Poll::Ready(output) = self.connection.poll(|cx| connection.as_mut().poll(cx)) {
                return Poll::Ready(output);
            }
            let hub = &self.hub;
            self.running.extend(self.begun.0.lock().drain(..).map(|stream| (Member::new(hub), stream)));
            if !self.has_woken() {
                break;
            }
        }
        Poll::Pending
    }

    fn has_woken(&self) -> bool {
        self.connection.is_woken() || self.running.iter().any(|(member, _)| member.is_woken())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt as _;
    use futures::channel::mpsc;
    use hyper::rt::Executor as _;
    use std::sync::atomic::AtomicUsize;

    /// Counts how often the task is woken.
    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_request_and_its_connection_that_wake_each_other_do_not_wake_the_task() {
        let (to_request, mut from_connection) = mpsc::unbounded::<u8>();
        let (to_connection, mut from_request) = mpsc::unbounded::<u8>();
        let (news, mut new) = mpsc::unbounded::<u8>();
        let mut streams = Streams::default();
        streams.executor().execute(async move {
            while let Some(number) = from_connection.next().await {
                to_connection.unbounded_send(number + 1).unwrap();
            }
        });
        let mut connection = Box::pin(async move {
            loop {
                let number = new.next().await.unwrap();
                to_request.unbounded_send(number).unwrap();
                if from_request.next().await.unwrap() == 9 {
                    return "over";
                }
            }
        });
        let task = Arc::new(Task::default());
        let waker = Waker::from(task.clone());
        let mut cx = Context::from_waker(&waker);
        let mut drive = Box::pin(streams.drive(connection.as_mut()));
        assert!(drive.as_mut().poll(&mut cx).is_pending());
        for number in 1..4 {
            news.unbounded_send(number).unwrap();
            assert_eq!(task.0.load(Ordering::SeqCst), usize::from(number));
            assert!(drive.as_mut().poll(&mut cx).is_pending());
        }
        news.unbounded_send(8).unwrap();
        assert_eq!(drive.as_mut().poll(&mut cx), Poll::Ready("over"));
    }

    #[test]
    fn one_that_never_rests_lets_others_have_their_turn() {
        let mut streams = Streams::default();
        let mut restless = Box::pin(poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
        let task = Arc::new(Task::default());
        let waker = Waker::from(task.clone());
        let mut drive = Box::pin(streams.drive(restless.as_mut()));
        assert!(drive.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!(task.0.load(Ordering::SeqCst), 1);
    }
}
