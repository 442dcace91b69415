//! Signing, off the threads that move messages, by no more threads than there are processors.

use std::sync::Arc;
use tokio::sync::Semaphore;

/// Runs what takes a processor's time, a bounded number at once, with a bounded number waiting.
#[derive(Clone, Debug)]
pub struct SigningPool {
    places: Arc<Semaphore>,
    workers: Arc<Semaphore>,
}

/// Too many wait already: the caller should try again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests wait to be signed")]
pub(crate) struct Overloaded;

impl SigningPool {
    /// Makes a pool of `workers` with room for `waiting` besides.
    pub fn new(workers: usize, waiting: usize) -> Self {
        let limit = |count: usize| Arc::new(Semaphore::new(count.clamp(1, Semaphore::MAX_PERMITS)));
        Self { places: limit(workers.saturating_add(waiting)), workers: limit(workers) }
    }

    /// Makes a pool for the processors of this machine. What waits is done within a fraction of a second: what would
    /// take longer is better tried again by its caller, perhaps with another replica.
    pub fn for_this_machine() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self::new(processors, 2048 * processors)
    }

    /// Runs `work`, or says at once that there is no room for it.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Overloaded> {
        let _place = self.places.try_acquire().map_err(|_| Overloaded)?;
        // The pool never closes its semaphores, so what cannot be acquired cannot be run either.
        let worker = self.workers.clone().acquire_owned().await.map_err(|_| Overloaded)?;
        let work = tokio::task::spawn_blocking(move || {
            // Given back by the thread: when a caller goes away its work still takes a processor.
            let _worker = worker;
            work()
        });
        match work.await {
            Ok(result) => Ok(result),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is being shut down.
                Err(_cancelled) => Err(Overloaded),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn work_beyond_the_limit_is_turned_away_at_once() {
        let pool = SigningPool::new(1, 1);
        let (release, released) = mpsc::channel::<()>();
        let first = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(move || released.recv().is_ok()).await }
        });
        while pool.workers.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let second = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(|| 2).await }
        });
        while pool.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.run(|| 3).await, Err(Overloaded));
        release.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Ok(true));
        assert_eq!(second.await.unwrap(), Ok(2));
        assert_eq!(pool.run(|| 3).await, Ok(3));
    }
}
