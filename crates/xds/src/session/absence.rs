//! Clusters that the snapshot's routes or listeners name and that it does not have: the patience with them.
//!
//! What belongs together does not always arrive together: a Service may be deleted a moment before the route that
//! names it is changed, or a route changed a moment before the Service or subset that it newly names is made. For a
//! short time such a snapshot is therefore taken for one half of a change. The client keeps the cluster that is gone,
//! and virtual hosts keep the form that does not name the cluster yet to come. After that the snapshot is believed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The clusters that the snapshot lacks, as far as anything waits for them or has done so.
#[derive(Debug, Default)]
pub(crate) struct Absences(BTreeMap<Arc<str>, Absence>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absence {
    /// Waited for since then.
    Since(Instant),
    /// It was waited for long enough.
    Accepted,
}

impl Absences {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the absence is to be believed.
    pub(crate) fn is_accepted(&self, name: &str) -> bool {
        self.0.get(name) == Some(&Absence::Accepted)
    }

    /// Starts to wait for a cluster, unless that was done before.
    pub(crate) fn wait_for(&mut self, name: Arc<str>, now: Instant) {
        self.0.entry(name).or_insert(Absence::Since(now));
    }

    /// Notes that the snapshot has the cluster.
    pub(crate) fn end(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Forgets the clusters that the snapshot no longer names.
    pub(crate) fn retain(&mut self, named: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| named(name));
    }

    /// Ends the graces that are over, and returns their clusters.
    pub(crate) fn expire(&mut self, now: Instant, grace: Duration) -> Vec<Arc<str>> {
        let mut expired = Vec::new();
        for (name, absence) in &mut self.0 {
            if let Absence::Since(since) = absence
                && now >= *since + grace
            {
                *absence = Absence::Accepted;
                expired.push(name.clone());
            }
        }
        expired
    }

    /// Returns when graces end.
    pub(crate) fn deadlines(&self, grace: Duration) -> impl Iterator<Item = Instant> + '_ {
        self.0.values().filter_map(move |absence| match absence {
            Absence::Since(since) => Some(*since + grace),
            Absence::Accepted => None,
        })
    }
}
