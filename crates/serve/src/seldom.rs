//! Futures that are polled only when they have something to say.

use futures::task::AtomicWaker;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// A future that is one of several of a task, and of which most wakes of the task are no concern: it is polled for the first
/// time and after it was woken itself. A look at it otherwise costs two atomic operations, while polling a timer, a
/// cancellation or a channel takes a lock each. A connection has a dozen of those, and every message wakes it.
pub struct Seldom<F> {
    future: F,
    flag: Arc<Flag>,
}

struct Flag {
    woken: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<F> Seldom<F> {
    /// Wraps a future.
    pub fn new(future: F) -> Self {
        Self { future, flag: Arc::new(Flag { woken: AtomicBool::new(true), task: AtomicWaker::new() }) }
    }
}

impl<F> Seldom<F> {
    /// Changes the future, which is polled again then. To be done with one that is over before it is awaited again.
    pub fn renew(&mut self, change: impl FnOnce(&mut F)) {
        change(&mut self.future);
        self.flag.woken.store(true, Ordering::Release);
    }
}

impl<F: Future + Unpin> Future for Seldom<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // Before the flag is looked at: who sets it afterwards wakes this task.
        self.flag.task.register(cx.waker());
        if !self.flag.woken.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        let waker = Waker::from(self.flag.clone());
        Pin::new(&mut self.future).poll(&mut Context::from_waker(&waker))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::channel::mpsc;
    use futures::task::noop_waker;
    use futures::{FutureExt as _, StreamExt as _};
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn it_is_polled_first_and_when_it_was_woken() {
        let polls = Arc::new(AtomicUsize::new(0));
        let (news, mut new) = mpsc::unbounded::<u8>();
        let counted = {
            let polls = polls.clone();
            poll_fn(move |cx| {
                polls.fetch_add(1, Ordering::Relaxed);
                new.poll_next_unpin(cx)
            })
        };
        let mut seldom = Seldom::new(counted);
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        for _ in 0..3 {
            assert!(seldom.poll_unpin(&mut cx).is_pending());
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        news.unbounded_send(7).unwrap();
        assert_eq!(seldom.poll_unpin(&mut cx), Poll::Ready(Some(7)));
        assert_eq!(polls.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn it_wakes_whoever_polled_it_last() {
        let (news, mut new) = mpsc::unbounded::<u8>();
        let mut seldom = Seldom::new(Box::pin(async move { new.next().await }));
        assert!(seldom.poll_unpin(&mut Context::from_waker(&noop_waker())).is_pending());
        let waiting = tokio::spawn(seldom);
        tokio::task::yield_now().await;
        news.unbounded_send(7).unwrap();
        assert_eq!(waiting.await.unwrap(), Some(7));
    }

    #[tokio::test]
    async fn one_that_is_renewed_is_polled_again() {
        let mut seldom = Seldom::new(std::future::ready(1));
        assert_eq!((&mut seldom).await, 1);
        seldom.renew(|future| *future = std::future::ready(2));
        assert_eq!(seldom.await, 2);
    }

    #[tokio::test]
    async fn one_that_wakes_itself_is_polled_again() {
        let seldom = Seldom::new(Box::pin(async {
            tokio::task::yield_now().await;
            7
        }));
        assert_eq!(seldom.await, 7);
    }
}
