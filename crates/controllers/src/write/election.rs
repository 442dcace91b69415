//! Who may write: a lease, as a state machine without I/O.
//!
//! Clocks of machines are never compared. A lease is over when it has not changed for its duration on the clock of
//! whoever wants it; its holder stops to believe in it earlier than that, counted from before it asked for it. So two
//! never lead at once, however wrong their clocks are and however long a process was stopped.

use std::time::Duration;
use tokio::time::Instant;

/// How a lease is held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// How long others leave it alone.
    pub(crate) duration: Duration,
    /// How long its holder believes in it. What is left of the duration is for a request that is under way.
    pub(crate) belief: Duration,
    /// How often its holder renews it.
    pub(crate) renewal: Duration,
    /// How often others look at it, and how long to wait after a failure.
    pub(crate) retry: Duration,
}

impl Pace {
    pub(crate) const STANDARD: Self = Self {
        duration: Duration::from_secs(15),
        belief: Duration::from_secs(10),
        renewal: Duration::from_secs(3),
        retry: Duration::from_secs(1),
    };
}

/// A lease as the API server has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    /// Whose it is; empty if it was given back.
    pub(crate) holder: String,
    /// How long it lasts from one renewal to the next.
    pub(crate) duration: Duration,
    /// How often its holder was another one than before.
    pub(crate) transitions: u32,
    /// When it came to its holder, in the holder's words.
    pub(crate) acquired: Option<String>,
    /// What tells this state of it from others.
    pub(crate) version: String,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Look at the lease.
    Look,
    /// Write oneself into it.
    Claim(Claim),
    /// Nothing until then.
    Wait(Instant),
}

/// What is written into a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The state of it that this replaces; nothing if there is none.
    pub(crate) replaces: Option<String>,
    /// How often its holder was another one than before.
    pub(crate) transitions: u32,
    /// When it came to this holder before; nothing if it does so now.
    pub(crate) acquired: Option<String>,
}

/// What is known of a lease.
#[derive(Debug)]
pub(crate) struct Election {
    me: String,
    pace: Pace,
    /// The lease, and since when it is like that; nothing if it has to be looked at.
    seen: Option<(Option<Record>, Instant)>,
    /// It is looked at, or renewed, then.
    next: Option<Instant>,
    until: Option<Instant>,
}

impl Election {
    /// Returns what one knows who has not looked yet. Nobody else may be called `me`.
    pub(crate) fn new(me: String, pace: Pace) -> Self {
        Self { me, pace, seen: None, next: None, until: None }
    }

    /// Returns until when this is the leader, if nothing else happens; nothing if it is not.
    pub(crate) fn leads_until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }

    /// Returns what to do now.
    pub(crate) fn step(&self, now: Instant) -> Step {
        if let Some(next) = self.next.filter(|next| *next > now) {
            return Step::Wait(next);
        }
        let Some((record, since)) = &self.seen else { return Step::Look };
        let Some(record) = record else {
            return Step::Claim(Claim { replaces: None, transitions: 0, acquired: None });
        };
        let replaces = Some(record.version.clone());
        if record.holder == self.me {
            let acquired = record.acquired.clone();
            return Step::Claim(Claim { replaces, transitions: record.transitions, acquired });
        }
        if record.holder.is_empty() || now.duration_since(*since) >= record.duration {
            let transitions = record.transitions.saturating_add(1);
            return Step::Claim(Claim { replaces, transitions, acquired: None });
        }
        Step::Look
    }

    /// Takes in what the API server has; nothing if it has no lease.
    pub(crate) fn saw(&mut self, record: Option<Record>, now: Instant) {
        let is_mine = record.as_ref().is_some_and(|record| record.holder == self.me);
        if !is_mine {
            // Somebody has taken it away.
            self.until = None;
        }
        let since = match &self.seen {
            Some((known, since)) if *known == record => *since,
            _ => now,
        };
        let is_taken = record.as_ref().is_some_and(|record| !is_mine && !record.holder.is_empty());
        let is_over = record.as_ref().is_some_and(|record| now.duration_since(since) >= record.duration);
        self.next = (is_taken && !is_over).then(|| now + self.pace.retry);
        self.seen = Some((record, since));
    }

    /// A claim that was made at `asked` has succeeded.
    pub(crate) fn won(&mut self, record: Record, asked: Instant, now: Instant) {
        self.seen = Some((Some(record), now));
        self.until = Some(asked + self.pace.belief);
        self.next = Some(asked + self.pace.renewal);
    }

    /// Somebody else has changed the lease meanwhile.
    pub(crate) fn lost(&mut self) {
        // What it is like now has to be seen, and is news then.
        self.seen = None;
        self.next = None;
    }

    /// Nobody has answered. What is known stays so, and leadership ends by itself.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.next = Some(now + self.pace.retry);
        // It may have succeeded all the same: what is written next must not rest on what was before.
        if let Some((Some(record), _)) = &self.seen
            && record.holder == self.me
        {
            self.seen = None;
        }
    }

    /// Returns the state of the lease that is given back; nothing if it is not held.
    pub(crate) fn release(&mut self, now: Instant) -> Option<Record> {
        self.leads_until(now)?;
        self.until = None;
        self.seen.take()?.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lease as the API server keeps it, and a clock.
    struct World {
        now: Instant,
        lease: Option<Record>,
        versions: u32,
    }

    impl World {
        fn new() -> Self {
            Self { now: Instant::now(), lease: None, versions: 0 }
        }

        /// Lets a candidate take its next step, with a request that takes so long. Returns whether it wrote.
        fn step(&mut self, candidate: &mut Election, latency: Duration) -> bool {
            let asked = self.now;
            match candidate.step(self.now) {
                Step::Wait(_) => false,
                Step::Look => {
                    self.now += latency;
                    candidate.saw(self.lease.clone(), self.now);
                    false
                }
                Step::Claim(claim) => {
                    self.now += latency;
                    if claim.replaces.as_ref() != self.lease.as_ref().map(|lease| &lease.version) {
                        candidate.lost();
                        return false;
                    }
                    self.versions += 1;
                    let record = Record {
                        holder: candidate.me.clone(),
                        duration: candidate.pace.duration,
                        transitions: claim.transitions,
                        acquired: None,
                        version: self.versions.to_string(),
                    };
                    self.lease = Some(record.clone());
                    candidate.won(record, asked, self.now);
                    true
                }
            }
        }
    }

    fn candidates() -> [Election; 2] {
        ["a", "b"].map(|name| Election::new(name.to_owned(), Pace::STANDARD))
    }

    const QUICK: Duration = Duration::from_millis(10);

    #[test]
    fn one_leads_and_goes_on_and_the_other_waits() {
        let (mut world, [mut a, mut b]) = (World::new(), candidates());
        for _ in 0..1000 {
            world.step(&mut a, QUICK);
            world.step(&mut b, QUICK);
            assert!(b.leads_until(world.now).is_none());
            world.now += Duration::from_millis(100);
        }
        assert!(a.leads_until(world.now).is_some());
        let lease = world.lease.unwrap();
        assert_eq!((lease.holder.as_str(), lease.transitions), ("a", 0));
        assert!((30..60).contains(&world.versions), "{} writes in 120 s", world.versions);
    }

    #[test]
    fn what_is_given_back_is_taken_within_two_seconds_and_what_is_left_behind_within_its_duration() {
        let (mut world, [mut a, mut b]) = (World::new(), candidates());
        while !world.step(&mut a, QUICK) {}
        world.step(&mut b, QUICK);
        let mut held = a.release(world.now).unwrap();
        held.holder.clear();
        held.version = "given back".to_owned();
        world.lease = Some(held);
        assert!(a.leads_until(world.now).is_none());
        let began = world.now;
        while !world.step(&mut b, QUICK) {
            world.now += Duration::from_millis(100);
        }
        assert!(world.now - began <= Duration::from_secs(2));
        assert_eq!(world.lease.as_ref().unwrap().transitions, 1);
        // And then it is killed.
        let (began, mut c) = (world.now, Election::new("c".to_owned(), Pace::STANDARD));
        while !world.step(&mut c, QUICK) {
            world.now += Duration::from_millis(100);
        }
        let took = world.now - began;
        assert!(took >= Pace::STANDARD.duration && took <= Duration::from_secs(30), "{took:?}");
    }

    #[test]
    fn one_that_was_stopped_does_not_lead_when_it_goes_on() {
        let (mut world, [mut a, mut b]) = (World::new(), candidates());
        while !world.step(&mut a, QUICK) {}
        // For a minute nothing of `a` runs.
        for _ in 0..600 {
            world.step(&mut b, QUICK);
            world.now += Duration::from_millis(100);
        }
        assert!(a.leads_until(world.now).is_none());
        assert!(b.leads_until(world.now).is_some());
        assert!(!world.step(&mut a, QUICK), "its claim rests on what was before");
        world.step(&mut a, QUICK);
        assert!(a.leads_until(world.now).is_none() && matches!(a.step(world.now), Step::Wait(_)));
    }

    #[test]
    fn without_an_api_server_leadership_ends_before_the_lease_does() {
        let (mut world, [mut a, _]) = (World::new(), candidates());
        while !world.step(&mut a, QUICK) {}
        let began = world.now;
        while a.leads_until(world.now).is_some() {
            if !matches!(a.step(world.now), Step::Wait(_)) {
                world.now += Duration::from_secs(2);
                a.failed(world.now);
            }
            world.now += Duration::from_millis(100);
        }
        assert!(world.now - began < Pace::STANDARD.duration);
        // It is back, and nobody has taken the lease meanwhile.
        while !world.step(&mut a, QUICK) {
            world.now += Duration::from_millis(100);
        }
        assert!(a.leads_until(world.now).is_some());
    }

    /// Leaders that die, pause, and cannot reach the API server, in every order: never two at once.
    #[test]
    fn two_never_lead_at_once() {
        for seed in 0..200_u64 {
            let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            let mut next = |below: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % below
            };
            let mut world = World::new();
            let mut all: Vec<Election> =
                (0..3).map(|name| Election::new(name.to_string(), Pace::STANDARD)).collect();
            let mut asleep = [world.now; 3];
            let mut terms = 0;
            for _ in 0..2000 {
                let one = next(3) as usize;
                if world.now >= asleep[one] {
                    match next(40) {
                        0 => asleep[one] = world.now + Duration::from_millis(next(60_000)),
                        1 => all[one] = Election::new(format!("{one}-{}", next(1 << 30)), Pace::STANDARD),
                        2 => all[one].failed(world.now),
                        _ => terms += u32::from(world.step(&mut all[one], Duration::from_millis(next(500)))),
                    }
                }
                world.now += Duration::from_millis(next(400));
                let leaders = all.iter().filter(|one| one.leads_until(world.now).is_some()).count();
                assert!(leaders <= 1, "seed {seed}");
            }
            assert!(terms > 10, "seed {seed}: {terms}");
        }
    }
}
