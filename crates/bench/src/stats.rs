//! Percentiles, and how they are written.

use std::fmt;
use std::time::Duration;

/// Durations in order.
#[derive(Clone, Debug, Default)]
pub struct Spread(Vec<Duration>);

impl Spread {
    /// Returns the duration that the given part of all do not exceed, by the nearest rank; zero if there are none.
    pub fn quantile(&self, part: f64) -> Duration {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rank within the list"
        )]
        let rank = (part * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.clamp(1, self.0.len().max(1)) - 1).copied().unwrap_or_default()
    }

    /// Returns the longest.
    pub fn max(&self) -> Duration {
        self.0.last().copied().unwrap_or_default()
    }

    /// Returns the shortest.
    pub fn min(&self) -> Duration {
        self.0.first().copied().unwrap_or_default()
    }
}

impl FromIterator<Duration> for Spread {
    fn from_iter<I: IntoIterator<Item = Duration>>(durations: I) -> Self {
        let mut durations: Vec<Duration> = durations.into_iter().collect();
        durations.sort_unstable();
        Self(durations)
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, max] = [self.quantile(0.5), self.quantile(0.99), self.max()].map(short);
        write!(f, "p50 {p50}, p99 {p99}, max {max}")
    }
}

/// Writes a duration with three digits.
pub fn short(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        s if s >= 100.0 => format!("{s:.0} s"),
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 0.1 => format!("{:.0} ms", s * 1e3),
        s if s >= 0.01 => format!("{:.1} ms", s * 1e3),
        s if s >= 0.001 => format!("{:.2} ms", s * 1e3),
        s if s >= 1e-6 => format!("{:.1} us", s * 1e6),
        s => format!("{:.0} ns", s * 1e9),
    }
}

/// Writes a size in mebibytes.
pub fn mib(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
    let mib = bytes as f64 / f64::from(1 << 20);
    format!("{mib:.1} MiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_durations_that_occurred() {
        let spread: Spread = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(spread.quantile(0.5), Duration::from_millis(50));
        assert_eq!(spread.quantile(0.99), Duration::from_millis(99));
        assert_eq!(spread.max(), Duration::from_millis(100));
        assert_eq!(Spread::default().quantile(0.5), Duration::ZERO);
        let one: Spread = [Duration::from_secs(1)].into_iter().collect();
        assert_eq!(one.quantile(0.0), one.quantile(1.0));
    }

    #[test]
    fn durations_are_short() {
        assert_eq!(short(Duration::from_micros(1234)), "1.23 ms");
        assert_eq!(short(Duration::from_millis(123)), "123 ms");
        assert_eq!(short(Duration::from_nanos(12)), "12 ns");
        assert_eq!(mib(3 << 19), "1.5 MiB");
    }
}
