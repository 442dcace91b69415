//! Switch: listeners, then routes, each held back until the clusters it names can be used.

use super::channel::{Changes, Desired};
use super::{Draining, Session};
use proto::resource::{Resource, ResourceType, VirtualHostFragment};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

/// What can be sent of a resource.
enum Form {
    /// This.
    Send(Arc<Resource>),
    /// Nothing: the client keeps what it has.
    Hold,
}

impl Session {
    pub(super) fn push_listeners(&mut self, now: Instant) {
        let kind = ResourceType::Listener;
        let channel = self.channel(kind);
        let due = channel.answer_due
            || !channel.dirty.is_empty()
            || !channel.owed.is_empty()
            || !channel.removed_again.is_empty();
        if !due || self.waits_for_answer(kind, now) || self.set_incomplete(kind) {
            return;
        }
        let (mut changes, mut removals) = (Changes::new(), Changes::new());
        let mut settled = Vec::new();
        let mut held = false;
        for name in self.candidates(kind) {
            match channel.desired(&self.snapshot, &name) {
                Desired::Is(listener) if !channel.differs(listener) => settled.push(name),
                Desired::Is(listener) if self.listener_ready(listener) => {
                    changes.insert(name, Some(listener.clone()));
                }
                Desired::Is(_) => held = true,
                Desired::Absent if channel.may_have(&name) || self.denies(kind, &name) => {
                    removals.insert(name, None);
                }
                _ => settled.push(name),
            }
        }
        // A new listener may take the address of one that goes. Envoy accepts that only in one response.
        if held && !removals.is_empty() {
            changes.retain(|name, _| channel.has(name));
            removals.clear();
        }
        let mut changes = self.isolate(kind, changes, now);
        changes.append(&mut removals);
        let again = std::mem::take(&mut self.channel_mut(kind).removed_again);
        for name in again {
            if !changes.contains_key(&name) {
                changes.insert(name.clone(), None);
                self.channel_mut(kind).retry.insert(name);
            }
        }
        self.settle_names(kind, settled);
        self.send_changes(kind, changes, now);
    }

    /// Whether a listener can be sent. One that asks for routes it never asked for before waits for their clusters
    /// too: with virtual hosts held back it would answer for hosts that the listener before it still serves. A
    /// client without listeners serves nothing yet, and need not wait for that.
    fn listener_ready(&self, listener: &Resource) -> bool {
        if !self.gated() {
            return true;
        }
        let channel = self.channel(ResourceType::Listener);
        let starting =
            channel.acked.is_empty() && channel.outstanding.is_empty() && channel.claimed.is_empty();
        let routes = self.channel(ResourceType::RouteConfiguration);
        self.all_ready(&listener.needs().clusters)
            && (starting
                || listener
                    .needs()
                    .routes
                    .iter()
                    .filter(|name| !routes.subscribes(name))
                    .filter_map(|name| self.snapshot.routes.get(name))
                    .all(|route| self.all_ready(&route.needs().clusters)))
    }

    pub(super) fn push_routes(&mut self, now: Instant) {
        let kind = ResourceType::RouteConfiguration;
        let channel = self.channel(kind);
        if channel.owed.is_empty() && channel.dirty.is_empty() && !channel.answer_due {
            return;
        }
        let blocked = channel.blocked(now, self.options.answer_timeout);
        let mut changes = Changes::new();
        let (mut settled, mut partial) = (Vec::new(), BTreeSet::new());
        for name in self.candidates(kind) {
            if blocked && !channel.owed.contains(&name) {
                continue;
            }
            if !channel.subscribes(&name) {
                settled.push(name);
                continue;
            }
            match channel.desired(&self.snapshot, &name) {
                Desired::Is(route) => match self.route_form(route) {
                    Form::Send(form) => {
                        let whole = form.version() == route.version();
                        if !whole {
                            partial.insert(name.clone());
                        }
                        if channel.differs(&form) {
                            changes.insert(name, Some(form));
                        } else if whole {
                            settled.push(name);
                        }
                    }
                    Form::Hold => {}
                },
                Desired::Keep if channel.owed.contains(&name) && channel.acked.contains_key(&name) => {
                    changes.insert(name.clone(), channel.acked.get(&name).cloned());
                }
                Desired::Absent if self.denies(kind, &name) => {
                    changes.insert(name, None);
                }
                Desired::Absent if channel.awaits(&self.snapshot, &name) => {}
                _ => settled.push(name),
            }
        }
        let changes = self.isolate(kind, changes, now);
        self.settle_names(kind, settled);
        let unfinished: Vec<Arc<str>> =
            changes.keys().filter(|name| partial.contains(*name)).cloned().collect();
        self.send_changes(kind, changes, now);
        self.channel_mut(kind).dirty.extend(unfinished);
    }

    /// Returns the form of a route configuration that can be sent: its newest, except for virtual hosts that name
    /// clusters which cannot be used yet.
    fn route_form(&self, route: &Arc<Resource>) -> Form {
        if !self.gated() || self.all_ready(&route.needs().clusters) {
            return Form::Send(route.clone());
        }
        let channel = self.channel(ResourceType::RouteConfiguration);
        let name = route.name();
        let (Some(hosts), false) = (route.virtual_hosts(), channel.claimed.contains_key(name)) else {
            return Form::Hold;
        };
        if route.shared_clusters().any(|cluster| !self.cluster_ready(cluster)) {
            return Form::Hold;
        }
        let before = match channel.acked.get(name) {
            Some(acked) => match acked.virtual_hosts() {
                Some(hosts) => hosts,
                None => return Form::Hold,
            },
            None => &[],
        };
        let (ready, held): (Vec<_>, Vec<_>) = hosts.iter().partition(|host| self.all_ready(&host.clusters));
        if held.iter().any(|host| shares_domain(host, hosts, before)) {
            return Form::Hold;
        }
        let kept = before.iter().filter(|host| held.iter().any(|held| held.name == host.name));
        let form = route.with_virtual_hosts(ready.into_iter().chain(kept).cloned().collect());
        if channel.is_quarantined(name, form.version()) {
            return Form::Hold;
        }
        Form::Send(self.encoder.intern(form))
    }

    fn all_ready(&self, clusters: &BTreeSet<Arc<str>>) -> bool {
        clusters.iter().all(|cluster| self.cluster_ready(cluster))
    }

    /// Whether routes may name the cluster: it can be used, or there is none to wait for.
    fn cluster_ready(&self, name: &Arc<str>) -> bool {
        let channel = self.channel(ResourceType::Cluster);
        match channel.desired(&self.snapshot, name) {
            Desired::Absent => true,
            Desired::Keep if !channel.has(name) => true,
            _ => channel.has(name) && !self.warmth.holds_back(name),
        }
    }

    /// Whether a listener that the client acknowledged has all that it needs to take over.
    fn listener_warm(&self, listener: &Resource) -> bool {
        let routes = &self.channel(ResourceType::RouteConfiguration).acked;
        let secrets = &self.channel(ResourceType::Secret).acked;
        listener.needs().routes.iter().all(|name| routes.contains_key(name))
            && listener.needs().secrets.iter().all(|name| secrets.contains_key(name))
    }

    pub(super) fn listeners_warm(&self) -> bool {
        self.channel(ResourceType::Listener).acked.values().all(|listener| self.listener_warm(listener))
    }

    /// Notes that a listener was removed or another took its place. It serves on until that one has warmed, and then
    /// drains.
    pub(super) fn replaced(&mut self, old: Arc<Resource>) {
        if !old.needs().clusters.is_empty() {
            self.draining.push(Draining { listener: old, until: None });
        }
    }

    /// Starts the drain time of listeners whose successor has all that it needs, and forgets those that are gone.
    pub(super) fn expire_draining(&mut self, now: Instant) {
        if self.draining.is_empty() {
            return;
        }
        let until = now + self.options.drain_time;
        let listeners = &self.channels[ResourceType::Listener as usize].acked;
        let warm: Vec<bool> = self
            .draining
            .iter()
            .map(|draining| {
                listeners.get(draining.listener.name()).is_none_or(|successor| self.listener_warm(successor))
            })
            .collect();
        for (draining, warm) in self.draining.iter_mut().zip(warm) {
            if warm && draining.until.is_none() {
                draining.until = Some(until);
            }
        }
        self.draining.retain(|draining| draining.until.is_none_or(|until| until > now));
    }
}

/// Whether a domain of a virtual host that is held back belongs to another virtual host before or after the change.
/// Then old and new forms cannot be mixed: the domain would be there twice, or not at all.
fn shares_domain(
    held: &VirtualHostFragment,
    after: &[VirtualHostFragment],
    before: &[VirtualHostFragment],
) -> bool {
    let own = |host: &&VirtualHostFragment| host.name == held.name;
    let domains: BTreeSet<&Arc<str>> =
        after.iter().chain(before).filter(own).flat_map(|host| &host.domains).collect();
    after
        .iter()
        .chain(before)
        .filter(|host| !own(host))
        .any(|host| host.domains.iter().any(|domain| domains.contains(domain)))
}
