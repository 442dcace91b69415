//! Signing, off the threads that move messages, by no more threads than there are processors.
//!
//! The threads are the pool's own and take what waits one after the other. A runtime's would be woken for each piece of work
//! and put to sleep after it, which costs half as much as a signature.

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread;
use tokio::sync::oneshot;

/// Runs what takes a processor's time, a bounded number at once, with a bounded number waiting.
///
/// Cloning shares the pool. Its threads end when the last clone is gone and what waits is done.
#[derive(Clone, Debug)]
pub struct SigningPool(Arc<Owner>);

type Work = Box<dyn FnOnce() + Send>;

#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// There is something to do, or nobody is left for whom.
    changed: Condvar,
    workers: usize,
    waiting: usize,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Work>,
    /// Threads that run, and those of them that wait for work.
    threads: usize,
    idle: usize,
    is_over: bool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("workers", &self.workers).field("waiting", &self.waiting).finish()
    }
}

/// Too many wait already: the caller should try again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests wait to be signed")]
pub(crate) struct Overloaded;

impl SigningPool {
    /// Makes a pool of `workers` with room for `waiting` besides. Threads are started when there is something to do.
    pub fn new(workers: usize, waiting: usize) -> Self {
        let (state, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { state, changed, workers: workers.max(1), waiting });
        Self(Arc::new(Owner { shared }))
    }

    /// Makes a pool for the processors of this machine. What waits is done within a fraction of a second: what would
    /// take longer is better tried again by its caller, perhaps with another replica.
    pub fn for_this_machine() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self::new(processors, 2048 * processors)
    }

    /// Runs `work`, or says at once that there is no room for it. What nobody waits for any more is not begun.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Overloaded> {
        let (sender, receiver) = oneshot::channel();
        self.0.shared.add(Box::new(move || {
            if !sender.is_closed() {
                // Whoever has gone away meanwhile has no use for it.
                let _ = sender.send(catch_unwind(AssertUnwindSafe(work)));
            }
        }))?;
        match receiver.await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(panic)) => resume_unwind(panic),
            // Work is dropped only with the pool, which is here.
            Err(_dropped) => Err(Overloaded),
        }
    }
}

impl Shared {
    fn add(self: &Arc<Self>, work: Work) -> Result<(), Overloaded> {
        let mut state = self.state.lock();
        let is_new = state.idle <= state.queue.len() && state.threads < self.workers;
        if is_new {
            let shared = self.clone();
            let started = thread::Builder::new().name("signing".to_owned()).spawn(move || shared.work());
            match started {
                Ok(_) => state.threads += 1,
                // The others will do, if there are any.
                Err(error) if state.threads > 0 => tracing::debug!(%error, "no thread for signing"),
                Err(error) => {
                    tracing::error!(%error, "no thread for signing");
                    return Err(Overloaded);
                }
            }
        }
        // Those who work now are beside the queue; those who are idle, or new, are about to take from it.
        let free = state.idle + usize::from(is_new);
        if state.queue.len() >= self.waiting + free {
            return Err(Overloaded);
        }
        state.queue.push_back(work);
        let is_wanted = state.idle > 0;
        drop(state);
        if is_wanted {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// What a thread does.
    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(work) = state.queue.pop_front() {
                drop(state);
                work();
                state = self.state.lock();
            } else if state.is_over {
                return;
            } else {
                state.idle += 1;
                self.changed.wait(&mut state);
                state.idle -= 1;
            }
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.state.lock().is_over = true;
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    fn queued(pool: &SigningPool) -> usize {
        pool.0.shared.state.lock().queue.len()
    }

    #[tokio::test]
    async fn work_beyond_the_limit_is_turned_away_at_once() {
        let pool = SigningPool::new(1, 1);
        let (release, released) = mpsc::channel::<()>();
        let (begun, begins) = oneshot::channel();
        let first = tokio::spawn({
            let pool = pool.clone();
            async move {
                let work = move || {
                    begun.send(()).unwrap();
                    released.recv().is_ok()
                };
                pool.run(work).await
            }
        });
        begins.await.unwrap();
        let second = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(|| 2).await }
        });
        while queued(&pool) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.run(|| 3).await, Err(Overloaded));
        release.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Ok(true));
        assert_eq!(second.await.unwrap(), Ok(2));
        assert_eq!(pool.run(|| 3).await, Ok(3));
    }

    #[tokio::test]
    async fn no_more_threads_than_workers_do_everything_that_is_asked() {
        let pool = SigningPool::new(3, 10_000);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..1_000_usize {
            let (pool, now, most) = (pool.clone(), now.clone(), most.clone());
            tasks.spawn(async move {
                let work = move || {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    thread::sleep(Duration::from_micros(100));
                    now.fetch_sub(1, Ordering::SeqCst);
                    number
                };
                pool.run(work).await.unwrap()
            });
        }
        assert_eq!(tasks.join_all().await.into_iter().sum::<usize>(), 999 * 500);
        let most = most.load(Ordering::SeqCst);
        assert!((1..=3).contains(&most), "{most} at once");
        assert!(pool.0.shared.state.lock().threads <= 3);
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_not_begun_and_a_panic_is_its_callers() {
        let pool = SigningPool::new(1, 10);
        let (release, released) = mpsc::channel::<()>();
        let busy = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(move || released.recv().is_ok()).await }
        });
        while pool.0.shared.state.lock().threads == 0 {
            tokio::task::yield_now().await;
        }
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let abandoned = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(move || counted.fetch_add(1, Ordering::SeqCst)).await }
        });
        while queued(&pool) == 0 {
            tokio::task::yield_now().await;
        }
        abandoned.abort();
        assert!(abandoned.await.unwrap_err().is_cancelled());
        release.send(()).unwrap();
        assert_eq!(busy.await.unwrap(), Ok(true));
        let panicked = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(|| -> usize { panic!("on purpose") }).await }
        });
        assert!(panicked.await.unwrap_err().is_panic());
        assert_eq!(pool.run(|| 1).await, Ok(1), "the thread goes on");
        assert_eq!(count.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn threads_end_with_the_pool() {
        let pool = SigningPool::new(2, 10);
        let shared = Arc::downgrade(&pool.0.shared);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(runtime.block_on(pool.run(|| 1)), Ok(1));
        drop(pool);
        let until = std::time::Instant::now() + Duration::from_secs(60);
        while shared.upgrade().is_some() {
            assert!(std::time::Instant::now() < until, "a thread is left");
            thread::sleep(Duration::from_millis(1));
        }
    }
}
