//! How long to wait after an error.

use backon::{BackoffBuilder, ExponentialBuilder};
use std::time::Duration;
use tokio::time::Instant;

/// The first wait is this long, or up to twice as long: sources that fail together do not return together.
const SHORTEST: Duration = Duration::from_millis(200);
/// Half of the longest wait, for the same reason.
const LONGEST: Duration = Duration::from_secs(5);
/// After this much time without an error the next one is waited for as if it were the first. Success alone is not
/// enough: a watch that ends right after each list would make lists follow each other without a pause.
const QUIET: Duration = Duration::from_secs(30);

/// Waits that grow from error to error, up to ten seconds.
pub(crate) struct Backoff {
    delays: <ExponentialBuilder as BackoffBuilder>::Backoff,
    quiet_at: Option<Instant>,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { delays: delays(), quiet_at: None }
    }

    /// Returns how long to wait after an error that happened now.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let now = Instant::now();
        if self.quiet_at.is_some_and(|quiet_at| now >= quiet_at) {
            self.delays = delays();
        }
        let delay = self.delays.next().unwrap_or(LONGEST);
        self.quiet_at = Some(now + delay + QUIET);
        delay
    }
}

fn delays() -> <ExponentialBuilder as BackoffBuilder>::Backoff {
    let builder = ExponentialBuilder::new().with_min_delay(SHORTEST).with_max_delay(LONGEST);
    builder.with_factor(2.0).with_jitter().without_max_times().build()
}

#[cfg(test)]
mod tests {
    use super::{Backoff, Duration, LONGEST, SHORTEST};

    #[tokio::test(start_paused = true)]
    async fn waits_grow_to_ten_seconds_and_start_again_after_quiet() {
        let mut backoff = Backoff::new();
        let first = backoff.next_delay();
        assert!(first >= SHORTEST && first <= 2 * SHORTEST, "{first:?}");
        for _ in 0..100 {
            let delay = backoff.next_delay();
            assert!(delay <= Duration::from_secs(10), "{delay:?}");
            tokio::time::sleep(delay).await;
        }
        assert!(backoff.next_delay() >= LONGEST);

        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(backoff.next_delay() <= 2 * SHORTEST);
    }
}
