//! Which clusters a client can use: the evidence that each has warmed, and the patience with those that have not.
//!
//! Only clusters without evidence are kept here. Whatever else was sent is usable.

use super::Options;
use super::channel::Changes;
use proto::resource::{Resource, ResourceSet, Warming};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A cluster that was sent and is not known to have warmed.
#[derive(Debug)]
pub(crate) struct Cold {
    pub(crate) cluster: Arc<Resource>,
    /// The response that carried its newest form.
    pub(crate) seq: u64,
    /// When its name was first sent. A later form does not start the grace again: a cluster that changes all the time
    /// must not hold back its routes for ever.
    pub(crate) since: Instant,
    /// Which of its assignments were sent after it and acknowledged, by their place among what it needs.
    assigned: u64,
    /// Its grace is over: routes no longer wait for it.
    pub(crate) released: bool,
    /// It was reported as stuck.
    pub(crate) stuck: bool,
}

/// A grace that ended without evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Released {
    pub(crate) cluster: Arc<str>,
    pub(crate) warming: Warming,
}

/// The clusters of a client that are not known to have warmed.
#[derive(Debug, Default)]
pub(crate) struct Warmth {
    /// In the order of their names. All clusters of a thousand clients are here for a moment after they connect: so this is
    /// one allocation, and gone when it is empty.
    cold: Vec<Cold>,
}

impl Cold {
    fn name(&self) -> &Arc<str> {
        self.cluster.name()
    }

    /// Whether it has all its assignments. One is what a cluster needs; beyond the 64th none is waited for.
    fn is_assigned(&self) -> bool {
        self.cluster
            .needs()
            .assignments
            .iter()
            .take(64)
            .enumerate()
            .all(|(place, _)| self.assigned & (1 << place) != 0)
    }
}

impl Warmth {
    /// Notes that a form of a cluster was sent. `usable` says that an earlier form serves while this one warms.
    pub(crate) fn sent(&mut self, cluster: &Arc<Resource>, seq: u64, since: Instant, usable: bool) {
        match self.place(cluster.name()) {
            Ok(place) => {
                let cold = &mut self.cold[place];
                cold.cluster = cluster.clone();
                cold.seq = seq;
                cold.assigned = 0;
            }
            Err(_) if usable => {}
            Err(place) => {
                let cold =
                    Cold { cluster: cluster.clone(), seq, since, assigned: 0, released: false, stuck: false };
                self.cold.insert(place, cold);
            }
        }
    }

    /// Prepares for so many clusters, in the order of their names.
    pub(crate) fn reserve(&mut self, clusters: usize) {
        self.cold.reserve_exact(clusters);
    }

    fn place(&self, name: &str) -> Result<usize, usize> {
        // Those of one response come in order.
        if self.cold.last().is_none_or(|last| **last.name() < *name) {
            return Err(self.cold.len());
        }
        self.cold.binary_search_by(|cold| (**cold.name()).cmp(name))
    }

    fn keep(&mut self, keep: impl FnMut(&mut Cold) -> bool) {
        self.cold.retain_mut(keep);
        if self.cold.is_empty() {
            self.cold = Vec::new();
        }
    }

    pub(crate) fn forget(&mut self, name: &str) {
        if let Ok(place) = self.place(name) {
            self.cold.remove(place);
        }
    }

    /// Whether routes have to wait for the cluster.
    pub(crate) fn holds_back(&self, name: &str) -> bool {
        self.place(name).is_ok_and(|place| !self.cold[place].released)
    }

    /// Whether routes have to wait for any cluster.
    pub(crate) fn holds_back_any(&self) -> bool {
        self.cold.iter().any(|cold| !cold.released)
    }

    /// Everything sent up to `seq` has warmed.
    pub(crate) fn warmed_up_to(&mut self, seq: u64) {
        self.keep(|cold| cold.seq > seq);
    }

    /// The client finished initialising: what it had accepted by then has warmed, except for names that it resolves
    /// in the background. Nothing was served before that a wait could protect, so those are released.
    pub(crate) fn initialised(&mut self, accepted: u64) -> Vec<Released> {
        let mut released = Vec::new();
        self.keep(|cold| {
            let covered = cold.seq <= accepted;
            let resolving = cold.cluster.warming() == Warming::Dns && cold.seq > 0;
            if covered && resolving && !cold.released {
                cold.released = true;
                released.push(Released { cluster: cold.name().clone(), warming: Warming::Dns });
            }
            !covered || resolving
        });
        released
    }

    /// Notes the assignments of a response that was sent as `seq` and acknowledged. A client that starts acknowledges all
    /// at once, so both sides are gone through in order: a cluster is mostly named like its assignment.
    pub(crate) fn assigned(&mut self, changes: &Changes, seq: u64) {
        let mut named =
            changes.iter().filter(|(_, change)| change.is_some()).map(|(name, _)| name).peekable();
        for cold in self.cold.iter_mut().filter(|cold| cold.seq < seq) {
            let cluster = cold.cluster.name();
            while named.next_if(|name| *name < cluster).is_some() {}
            let same = named.next_if(|name| *name == cluster);
            for (place, wanted) in cold.cluster.needs().assignments.iter().take(64).enumerate() {
                let has = same == Some(wanted)
                    || (wanted != cluster && changes.get(wanted).is_some_and(Option::is_some));
                cold.assigned |= u64::from(has) << place;
            }
        }
    }

    /// Drops the clusters that have all that they need.
    pub(crate) fn weigh(&mut self, secrets: &ResourceSet) {
        self.keep(|cold| {
            let needs = cold.cluster.needs();
            cold.cluster.warming() != Warming::Assignment
                || !cold.is_assigned()
                || !needs.secrets.iter().all(|secret| secrets.contains_key(secret))
        });
    }

    /// Ends the graces that are over.
    pub(crate) fn expire(&mut self, now: Instant, options: &Options) -> Vec<Released> {
        let mut released = Vec::new();
        for cold in &mut self.cold {
            let warming = cold.cluster.warming();
            if !cold.released && now >= cold.since + grace(warming, options) {
                cold.released = true;
                released.push(Released { cluster: cold.name().clone(), warming });
            }
        }
        released
    }

    /// Marks the clusters that were sent up to `seq` as stuck, and returns those that were not marked yet.
    pub(crate) fn mark_stuck(&mut self, seq: u64) -> Vec<Arc<str>> {
        let unmarked = self.cold.iter_mut().filter(|cold| !cold.stuck && cold.seq <= seq);
        unmarked
            .map(|cold| {
                cold.stuck = true;
                cold.name().clone()
            })
            .collect()
    }

    /// Returns the clusters that were reported as stuck and still are.
    pub(crate) fn stuck(&self) -> Vec<Arc<str>> {
        self.cold.iter().filter(|cold| cold.stuck).map(|cold| cold.name().clone()).collect()
    }

    /// Returns how many of them there are.
    pub(crate) fn stuck_count(&self) -> usize {
        self.cold.iter().filter(|cold| cold.stuck).count()
    }

    /// Returns when the next grace ends.
    pub(crate) fn deadlines<'a>(&'a self, options: &'a Options) -> impl Iterator<Item = Instant> + 'a {
        let waiting = self.cold.iter().filter(|cold| !cold.released);
        waiting.map(|cold| cold.since + grace(cold.cluster.warming(), options))
    }
}

fn grace(warming: Warming, options: &Options) -> Duration {
    match warming {
        Warming::Dns => options.dns_grace,
        Warming::Assignment | Warming::Nothing => options.grace,
    }
}
