//! Which clusters a client can use: the evidence that each has warmed, and the patience with those that have not.
//!
//! Only clusters without evidence are kept here. Whatever else was sent is usable.

use super::Options;
use super::channel::Changes;
use proto::resource::{Resource, ResourceSet, Warming};
use std::collections::BTreeMap;
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
    /// Those of its assignments that were sent after it and acknowledged.
    assignments: Vec<Arc<str>>,
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
    cold: BTreeMap<Arc<str>, Cold>,
}

impl Warmth {
    /// Notes that a form of a cluster was sent. `usable` says that an earlier form serves while this one warms.
    pub(crate) fn sent(&mut self, cluster: &Arc<Resource>, seq: u64, since: Instant, usable: bool) {
        if usable && !self.cold.contains_key(cluster.name()) {
            return;
        }
        let entry = self.cold.entry(cluster.name().clone()).or_insert_with(|| Cold {
            cluster: cluster.clone(),
            seq,
            since,
            assignments: Vec::new(),
            released: false,
            stuck: false,
        });
        entry.cluster = cluster.clone();
        entry.seq = seq;
        entry.assignments.clear();
    }

    pub(crate) fn forget(&mut self, name: &str) {
        self.cold.remove(name);
    }

    /// Whether routes have to wait for the cluster.
    pub(crate) fn holds_back(&self, name: &str) -> bool {
        self.cold.get(name).is_some_and(|cold| !cold.released)
    }

    /// Whether routes have to wait for any cluster.
    pub(crate) fn holds_back_any(&self) -> bool {
        self.cold.values().any(|cold| !cold.released)
    }

    /// Everything sent up to `seq` has warmed.
    pub(crate) fn warmed_up_to(&mut self, seq: u64) {
        self.cold.retain(|_, cold| cold.seq > seq);
    }

    /// The client finished initialising: what it had accepted by then has warmed, except for names that it resolves
    /// in the background. Nothing was served before that a wait could protect, so those are released.
    pub(crate) fn initialised(&mut self, accepted: u64) -> Vec<Released> {
        let mut released = Vec::new();
        self.cold.retain(|name, cold| {
            let covered = cold.seq <= accepted;
            let resolving = cold.cluster.warming() == Warming::Dns && cold.seq > 0;
            if covered && resolving && !cold.released {
                cold.released = true;
                released.push(Released { cluster: name.clone(), warming: Warming::Dns });
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
        for (cluster, cold) in self.cold.iter_mut().filter(|(_, cold)| cold.seq < seq) {
            while named.next_if(|name| *name < cluster).is_some() {}
            let same = named.next_if(|name| *name == cluster);
            for wanted in &cold.cluster.needs().assignments {
                let has = same == Some(wanted)
                    || (wanted != cluster && changes.get(wanted).is_some_and(Option::is_some));
                if has && !cold.assignments.contains(wanted) {
                    cold.assignments.push(wanted.clone());
                }
            }
        }
    }

    /// Drops the clusters that have all that they need.
    pub(crate) fn weigh(&mut self, secrets: &ResourceSet) {
        self.cold.retain(|_, cold| {
            let needs = cold.cluster.needs();
            cold.cluster.warming() != Warming::Assignment
                || !needs.assignments.iter().all(|name| cold.assignments.contains(name))
                || !needs.secrets.iter().all(|secret| secrets.contains_key(secret))
        });
    }

    /// Ends the graces that are over.
    pub(crate) fn expire(&mut self, now: Instant, options: &Options) -> Vec<Released> {
        let mut released = Vec::new();
        for (name, cold) in &mut self.cold {
            let warming = cold.cluster.warming();
            if !cold.released && now >= cold.since + grace(warming, options) {
                cold.released = true;
                released.push(Released { cluster: name.clone(), warming });
            }
        }
        released
    }

    /// Marks the clusters that were sent up to `seq` as stuck, and returns those that were not marked yet.
    pub(crate) fn mark_stuck(&mut self, seq: u64) -> Vec<Arc<str>> {
        let unmarked = self.cold.iter_mut().filter(|(_, cold)| !cold.stuck && cold.seq <= seq);
        unmarked
            .map(|(name, cold)| {
                cold.stuck = true;
                name.clone()
            })
            .collect()
    }

    /// Returns the clusters that were reported as stuck and still are.
    pub(crate) fn stuck(&self) -> Vec<Arc<str>> {
        self.cold.iter().filter(|(_, cold)| cold.stuck).map(|(name, _)| name.clone()).collect()
    }

    /// Returns how many of them there are.
    pub(crate) fn stuck_count(&self) -> usize {
        self.cold.values().filter(|cold| cold.stuck).count()
    }

    /// Returns when the next grace ends.
    pub(crate) fn deadlines<'a>(&'a self, options: &'a Options) -> impl Iterator<Item = Instant> + 'a {
        let waiting = self.cold.values().filter(|cold| !cold.released);
        waiting.map(|cold| cold.since + grace(cold.cluster.warming(), options))
    }
}

fn grace(warming: Warming, options: &Options) -> Duration {
    match warming {
        Warming::Dns => options.dns_grace,
        Warming::Assignment | Warming::Nothing => options.grace,
    }
}
