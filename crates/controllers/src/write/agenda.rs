//! When which object is written: within a budget, and with patience where somebody else writes it too. No I/O.

use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How many writes there may be at once, and in a second after that.
const BURST: u32 = 20;
const PER_SECOND: u32 = 20;
/// The first wait after a failure, which doubles up to the longest.
const FAILURE: Duration = Duration::from_millis(250);
const LONGEST_FAILURE: Duration = Duration::from_secs(30);
/// The wait before the second correction of what somebody else changes again and again; it doubles up to the longest.
const FIGHT: Duration = Duration::from_secs(60);
const LONGEST_FIGHT: Duration = Duration::from_secs(960);
/// Who has left an object alone for so long does not fight for it.
const PEACE: Duration = Duration::from_secs(3600);

/// The objects of one controller.
#[derive(Debug)]
pub(crate) struct Agenda<K> {
    items: BTreeMap<K, Item>,
    /// When the budget would be full again, had nothing been spent until now.
    full_at: Instant,
}

#[derive(Debug, Default)]
struct Item {
    /// When it is to be written, and with what.
    due: Option<(Instant, u64)>,
    /// What was written last.
    wrote: Option<u64>,
    failures: u32,
    corrections: u32,
    corrected: Option<Instant>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next<K> {
    /// Write this.
    Write(K),
    /// Nothing until then; if there is no time, until something happens.
    Wait(Option<Instant>),
}

impl<K: Ord + Clone> Agenda<K> {
    pub(crate) fn new(now: Instant) -> Self {
        Self { items: BTreeMap::new(), full_at: now }
    }

    /// The object is not what it should be, which `want` stands for. Returns whether somebody else has undone what was
    /// written.
    pub(crate) fn differs(&mut self, key: &K, want: u64, now: Instant) -> bool {
        let item = self.items.entry(key.clone()).or_default();
        if item.due.is_some_and(|(_, known)| known == want) {
            return false;
        }
        if item.wrote != Some(want) {
            item.due = Some((now, want));
            return false;
        }
        if item.corrected.is_none_or(|at| now.duration_since(at) >= PEACE) {
            item.corrections = 0;
        }
        let pause = match item.corrections {
            0 => Duration::ZERO,
            before => (FIGHT * 2_u32.pow((before - 1).min(8))).min(LONGEST_FIGHT),
        };
        item.corrections += 1;
        item.corrected = Some(now + pause);
        item.due = Some((now + pause, want));
        true
    }

    /// The object is what it should be.
    pub(crate) fn agrees(&mut self, key: &K) {
        if let Some(item) = self.items.get_mut(key) {
            item.due = None;
            item.failures = 0;
        }
    }

    /// Returns what to do now. What is to be written is spent from the budget.
    pub(crate) fn next(&mut self, now: Instant) -> Next<K> {
        let due = self.items.iter().filter_map(|(key, item)| Some((item.due?.0, key)));
        let Some((at, key)) = due.min_by(|a, b| a.cmp(b)) else { return Next::Wait(None) };
        let cost = Duration::from_secs(1) / PER_SECOND;
        // The budget is there when no more than a burst is spent and not refilled.
        let affordable = (self.full_at + cost).checked_sub(cost * BURST).unwrap_or(now);
        if at.max(affordable) > now {
            return Next::Wait(Some(at.max(affordable)));
        }
        let key = key.clone();
        self.full_at = self.full_at.max(now) + cost;
        Next::Write(key)
    }

    /// The object was written.
    pub(crate) fn wrote(&mut self, key: &K, want: u64) {
        let item = self.items.entry(key.clone()).or_default();
        item.due = None;
        item.wrote = Some(want);
        item.failures = 0;
    }

    /// The object could not be written.
    pub(crate) fn failed(&mut self, key: &K, now: Instant) {
        let item = self.items.entry(key.clone()).or_default();
        let pause = (FAILURE * 2_u32.pow(item.failures.min(8))).min(LONGEST_FAILURE);
        item.failures = item.failures.saturating_add(1);
        if let Some((at, _)) = &mut item.due {
            *at = now + pause;
        }
    }

    /// The object is nobody's business any more.
    pub(crate) fn forget(&mut self, key: &K) {
        self.items.remove(key);
    }

    /// Others have written since: what differs now is nobody's fault.
    pub(crate) fn begin_term(&mut self) {
        for item in self.items.values_mut() {
            item.wrote = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn what_somebody_else_undoes_is_corrected_once_and_then_with_growing_patience() {
        let start = Instant::now();
        let mut agenda = Agenda::new(start);
        agenda.differs(&"a", 1, start);
        let mut now = start;
        let mut writes = Vec::new();
        // Somebody undoes each write at once, for a day.
        while now < at(start, 86_400) {
            match agenda.next(now) {
                Next::Write(key) => {
                    writes.push((now - start).as_secs());
                    agenda.wrote(&key, 1);
                    assert!(agenda.differs(&key, 1, now));
                }
                Next::Wait(until) => now = until.unwrap(),
            }
        }
        assert_eq!(&writes[..5], [0, 0, 60, 180, 420]);
        assert!(writes.windows(2).skip(1).all(|pair| pair[1] - pair[0] >= 60));
        assert!(writes.len() < 100, "{} writes", writes.len());
        // What is to be written by our own will waits for nobody.
        assert!(!agenda.differs(&"a", 2, now));
        assert_eq!(agenda.next(now), Next::Write("a"));
        agenda.wrote(&"a", 2);
        // After an hour of peace a change is corrected at once again.
        let later = at(now, 8 * 3600);
        assert!(agenda.differs(&"a", 2, later));
        assert_eq!(agenda.next(later), Next::Write("a"));
    }

    #[test]
    fn a_thousand_objects_are_written_within_the_budget() {
        let start = Instant::now();
        let mut agenda = Agenda::new(start);
        for key in 0..1000 {
            agenda.differs(&key, 1, start);
        }
        let mut now = start;
        let mut times = Vec::new();
        loop {
            match agenda.next(now) {
                Next::Write(key) => {
                    times.push(now);
                    agenda.wrote(&key, 1);
                }
                Next::Wait(Some(until)) => {
                    assert!(until > now);
                    now = until;
                }
                Next::Wait(None) => break,
            }
        }
        assert_eq!(times.len(), 1000);
        assert_eq!(times.iter().filter(|time| **time == start).count() as u32, BURST);
        let took = (now - start).as_secs_f64();
        assert!((48.0..51.0).contains(&took), "{took}");
        // Some time later there is a burst again, and no more than one.
        let later = at(now, 3600);
        for key in 0..30 {
            agenda.differs(&key, 2, later);
        }
        let burst = std::iter::from_fn(|| match agenda.next(later) {
            Next::Write(key) => {
                agenda.wrote(&key, 2);
                Some(key)
            }
            Next::Wait(_) => None,
        });
        assert_eq!(burst.count() as u32, BURST);
    }

    #[test]
    fn failures_are_tried_again_ever_later_and_do_not_hold_up_others() {
        let start = Instant::now();
        let mut agenda = Agenda::new(start);
        agenda.differs(&"bad", 1, start);
        agenda.differs(&"good", 1, start);
        let (mut now, mut tries) = (start, 0);
        while now < at(start, 300) {
            match agenda.next(now) {
                Next::Write("bad") => {
                    tries += 1;
                    agenda.failed(&"bad", now);
                }
                Next::Write(good) => {
                    assert_eq!(now, start);
                    agenda.wrote(&good, 1);
                }
                Next::Wait(until) => now = until.unwrap(),
            }
        }
        assert!((10..25).contains(&tries), "{tries}");
        agenda.agrees(&"bad");
        assert_eq!(agenda.next(now), Next::Wait(None));
        agenda.wrote(&"good", 1);
        agenda.begin_term();
        assert!(!agenda.differs(&"good", 1, now), "what was written in another term is nobody's fault");
        agenda.forget(&"good");
        assert_eq!(agenda.next(now), Next::Wait(None));
    }
}
