//! Endpoints and routes that change at the same time: no request meets a route of one configuration and endpoints of
//! another.
//!
//! Endpoints wait for routes that are to leave their cluster: the endpoints that come were never meant for these.
//! Routes wait for endpoints that were not sent yet: those that go are not meant for routes that come. The former is
//! bounded by a grace, since endpoints that are gone must not be asked for long because a cluster is stuck, or because
//! two hosts change places and wait for each other.

use super::Session;
use super::channel::Desired;
use proto::resource::ResourceType;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The assignments that wait for routes, or have waited long enough, with since when.
#[derive(Debug, Default)]
pub(crate) struct Waiting(BTreeMap<Arc<str>, Instant>);

impl Waiting {
    /// Forgets those whose routes have left.
    fn retain(&mut self, leaving: &BTreeSet<Arc<str>>) {
        self.0.retain(|name, _| leaving.contains(name));
    }

    /// Returns when graces end.
    pub(crate) fn deadlines(&self, grace: Duration) -> impl Iterator<Item = Instant> + '_ {
        self.0.values().map(move |since| *since + grace)
    }
}

impl Session {
    /// Returns the assignments that have to wait, out of those that have changed.
    pub(super) fn endpoints_that_wait(&mut self, now: Instant) -> BTreeSet<Arc<str>> {
        let endpoints = self.channel(ResourceType::ClusterLoadAssignment);
        let switching = [ResourceType::Listener, ResourceType::RouteConfiguration]
            .iter()
            .any(|kind| !self.channel(*kind).dirty.is_empty());
        if endpoints.dirty.is_empty() || !switching || !self.gated() {
            self.waiting.retain(&BTreeSet::new());
            return BTreeSet::new();
        }
        let left = self.assignments_to_be_left();
        let changed: Vec<Arc<str>> = endpoints.dirty.intersection(&left).cloned().collect();
        self.waiting.retain(&left);
        let grace = self.options.endpoint_grace;
        let mut since = |name: &Arc<str>| *self.waiting.0.entry(name.clone()).or_insert(now);
        changed.into_iter().filter(|name| now < since(name) + grace).collect()
    }

    /// Returns the assignments of clusters that the client's listeners and routes name, and those to be sent next do not.
    fn assignments_to_be_left(&self) -> BTreeSet<Arc<str>> {
        let mut left: BTreeSet<&Arc<str>> = BTreeSet::new();
        for kind in [ResourceType::Listener, ResourceType::RouteConfiguration] {
            let channel = self.channel(kind);
            for name in &channel.dirty {
                let (Some(sent), Desired::Is(newest)) =
                    (channel.sent(name), channel.desired(&self.snapshot, name))
                else {
                    continue;
                };
                if sent.version() == newest.version() {
                    continue;
                }
                left.extend(sent.needs().clusters.difference(&newest.needs().clusters));
                let hosts = newest.virtual_hosts().unwrap_or_default();
                for host in sent.virtual_hosts().unwrap_or_default() {
                    match hosts.iter().find(|newest| newest.name == host.name) {
                        Some(newest) => left.extend(host.clusters.difference(&newest.clusters)),
                        None => left.extend(&host.clusters),
                    }
                }
            }
        }
        let clusters = self.channel(ResourceType::Cluster);
        let left = left.into_iter().filter_map(|name| clusters.sent(name));
        left.flat_map(|cluster| cluster.needs().assignments.iter().cloned()).collect()
    }

    /// Whether there are changed endpoints that were not sent: earlier ones are not acknowledged, or they wait for routes.
    pub(super) fn endpoints_are_owed(&self) -> bool {
        let endpoints = self.channel(ResourceType::ClusterLoadAssignment);
        let blocked = endpoints.blocked(self.now, self.options.answer_timeout);
        !endpoints.dirty.is_empty() && (blocked || !self.waiting.0.is_empty())
    }

    /// Whether there are such endpoints of the cluster.
    pub(super) fn owes_endpoints(&self, cluster: &str) -> bool {
        let endpoints = self.channel(ResourceType::ClusterLoadAssignment);
        let blocked = endpoints.blocked(self.now, self.options.answer_timeout);
        let is_owed = |name: &Arc<str>| {
            endpoints.dirty.contains(name) && (blocked || self.waiting.0.contains_key(name))
        };
        let cluster = self.snapshot.clusters.get(cluster);
        cluster.is_some_and(|cluster| cluster.needs().assignments.iter().any(is_owed))
    }
}
