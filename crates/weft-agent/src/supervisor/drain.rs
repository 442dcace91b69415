//! How long a drain takes, without a clock.

use crate::config::DrainSettings;
use std::time::Duration;

/// How often connections are counted.
pub(super) const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Wait.
    Wait(Duration),
    /// Ask how many connections are left.
    Ask,
    /// End Envoy.
    Stop(&'static str),
}

/// A drain.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    settings: DrainSettings,
}

impl Drain {
    /// Returns a drain that begins.
    pub fn new(settings: DrainSettings) -> Self {
        Self { settings }
    }

    /// Returns what to do when it has lasted for `elapsed`; `connections` are those that were counted last. Without a
    /// count, nothing is known of them, so they are waited for: the kubelet's patience is the limit.
    pub fn step(&self, elapsed: Duration, connections: Option<u64>) -> Step {
        let settings = &self.settings;
        let least = if settings.exit_on_zero_connections { settings.minimum } else { settings.termination };
        if let Some(left) = least.checked_sub(elapsed).filter(|left| !left.is_zero()) {
            return Step::Wait(left);
        }
        match (settings.exit_on_zero_connections, connections) {
            (false, _) => Step::Stop("its time is over"),
            (true, Some(0)) => Step::Stop("no connection is left"),
            (true, _) => Step::Ask,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(exit_on_zero_connections: bool) -> Drain {
        Drain::new(DrainSettings {
            termination: Duration::from_secs(20),
            exit_on_zero_connections,
            minimum: Duration::from_secs(5),
        })
    }

    #[test]
    fn a_drain_takes_its_time() {
        let drain = drain(false);
        assert_eq!(drain.step(Duration::ZERO, Some(0)), Step::Wait(Duration::from_secs(20)));
        assert_eq!(drain.step(Duration::from_secs(19), None), Step::Wait(Duration::from_secs(1)));
        assert_eq!(drain.step(Duration::from_secs(20), Some(7)), Step::Stop("its time is over"));
    }

    #[test]
    fn connections_are_waited_for_but_not_before_endpoints_are_withdrawn() {
        let drain = drain(true);
        assert_eq!(drain.step(Duration::from_secs(1), Some(0)), Step::Wait(Duration::from_secs(4)));
        assert_eq!(drain.step(Duration::from_secs(5), None), Step::Ask);
        assert_eq!(drain.step(Duration::from_secs(500), Some(3)), Step::Ask);
        assert_eq!(drain.step(Duration::from_secs(500), Some(0)), Step::Stop("no connection is left"));
    }
}
