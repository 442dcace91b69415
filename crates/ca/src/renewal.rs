//! When a certificate is to be replaced.

use crate::time::{UnixTime, Validity};
use std::time::Duration;

/// How much of a certificate's life is left when it is replaced.
///
/// The default is a half, give or take a hundredth, so that certificates issued at once are not replaced at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RenewalPolicy {
    grace_ratio: f64,
    jitter: f64,
}

impl RenewalPolicy {
    /// Returns a policy; both parts are limited to what lies between 0 and 1.
    pub fn new(grace_ratio: f64, jitter: f64) -> Self {
        let fraction = |value: f64| if value.is_finite() { value.clamp(0.0, 1.0) } else { 0.0 };
        Self { grace_ratio: fraction(grace_ratio), jitter: fraction(jitter) }
    }

    /// Returns when a certificate that was received at `received` should be replaced; `random` is from 0 to 1.
    ///
    /// It is never before `received`, and never after the certificate's end. That the certificate is backdated does
    /// not matter: its life is what was left of it when it was received.
    pub fn renew_at(&self, validity: Validity, received: UnixTime, random: f64) -> UnixTime {
        let random = if random.is_finite() { random.clamp(0.0, 1.0) } else { 0.5 };
        let grace = (self.grace_ratio + (2.0 * random - 1.0) * self.jitter).clamp(0.0, 1.0);
        let received = received.max(validity.not_before).min(validity.not_after);
        let lifetime = validity.not_after.since(received);
        validity.not_after.before(Duration::from_secs_f64(lifetime.as_secs_f64() * grace))
    }
}

impl Default for RenewalPolicy {
    fn default() -> Self {
        Self { grace_ratio: 0.5, jitter: 0.01 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn validity(from: i64, to: i64) -> Validity {
        Validity { not_before: UnixTime::from_seconds(from), not_after: UnixTime::from_seconds(to) }
    }

    #[test]
    fn half_of_the_life_is_used_give_or_take_a_hundredth() {
        let day = validity(-120, 86_400);
        let at =
            |random| RenewalPolicy::default().renew_at(day, UnixTime::from_seconds(0), random).as_seconds();
        assert_eq!((at(0.0), at(0.5), at(1.0)), (44_064, 43_200, 42_336));
    }

    #[test]
    fn strange_settings_do_no_harm() {
        let short = validity(0, 100);
        for (ratio, jitter, random) in
            [(f64::NAN, f64::INFINITY, f64::NAN), (7.0, -3.0, 9.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)]
        {
            let at = RenewalPolicy::new(ratio, jitter).renew_at(short, UnixTime::from_seconds(10), random);
            assert!((10..=100).contains(&at.as_seconds()), "{ratio} {jitter} {random}: {at}");
        }
    }

    proptest! {
        #[test]
        fn renewal_lies_within_the_life(
            from in -1_000_000_i64..1_000_000, life in 0_i64..100_000_000, offset in -1_000_000_i64..100_000_000,
            ratio in 0.0..1.0, jitter in 0.0..1.0, random in 0.0..=1.0,
        ) {
            let validity = validity(from, from + life);
            let received = UnixTime::from_seconds(from + offset);
            let at = RenewalPolicy::new(ratio, jitter).renew_at(validity, received, random);
            prop_assert!(at <= validity.not_after);
            prop_assert!(at >= received.max(validity.not_before).min(validity.not_after));
        }
    }
}
