//! Switch: listeners, then routes, each held back until the clusters it names can be used.

use super::channel::{Changes, Desired};
use super::{Draining, Session};
use proto::resource::{Resource, ResourceType, VirtualHostFragment};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

/// What the client has in the place of something that names clusters.
#[derive(Clone, Copy)]
enum Before<'a> {
    /// Nothing that it could lose.
    Nothing,
    /// A form that names these.
    Names(&'a BTreeSet<Arc<str>>),
    /// Something else that takes its requests.
    Others,
}

impl Before<'_> {
    /// Whether to name the cluster changes nothing.
    fn names(self, cluster: &Arc<str>) -> bool {
        match self {
            Self::Nothing => true,
            Self::Names(known) => known.contains(cluster),
            Self::Others => false,
        }
    }
}

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
        let (mut held, mut absent) = (false, Vec::new());
        for name in self.candidates(kind) {
            match channel.desired(&self.snapshot, &name) {
                Desired::Is(listener) if !channel.differs(listener) => settled.push(name),
                Desired::Is(listener) if self.listener_ready(listener, &mut absent) => {
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
        self.wait_for_absent(absent, now);
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
    fn listener_ready(&self, listener: &Resource, absent: &mut Vec<Arc<str>>) -> bool {
        if !self.gated() {
            return true;
        }
        let channel = self.channel(ResourceType::Listener);
        let starting =
            channel.acked.is_empty() && channel.outstanding.is_empty() && channel.claimed.is_empty();
        let before = match channel.acked.get(listener.name()) {
            _ if starting => Before::Nothing,
            Some(before) => Before::Names(&before.needs().clusters),
            None => Before::Others,
        };
        if !self.unit_ready(&listener.needs().clusters, before, absent) {
            return false;
        }
        let routes = self.channel(ResourceType::RouteConfiguration);
        let new = listener.needs().routes.iter().filter(|name| !routes.subscribes(name));
        let mut new = new.filter_map(|name| self.snapshot.routes.get(name));
        starting || new.all(|route| self.unit_ready(&route.needs().clusters, Before::Others, absent))
    }

    pub(super) fn push_routes(&mut self, now: Instant) {
        let kind = ResourceType::RouteConfiguration;
        let channel = self.channel(kind);
        if channel.owed.is_empty() && channel.dirty.is_empty() && !channel.answer_due {
            return;
        }
        let blocked = channel.blocked(now, self.options.answer_timeout);
        let mut changes = Changes::new();
        let (mut settled, mut partial, mut absent) = (Vec::new(), BTreeSet::new(), Vec::new());
        for name in self.candidates(kind) {
            if blocked && !channel.owed.contains(&name) {
                continue;
            }
            if !channel.subscribes(&name) {
                settled.push(name);
                continue;
            }
            match channel.desired(&self.snapshot, &name) {
                Desired::Is(route) => match self.route_form(route, &mut absent) {
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
        self.wait_for_absent(absent, now);
        let changes = self.isolate(kind, changes, now);
        self.settle_names(kind, settled);
        let unfinished: Vec<Arc<str>> =
            changes.keys().filter(|name| partial.contains(*name)).cloned().collect();
        self.send_changes(kind, changes, now);
        self.channel_mut(kind).dirty.extend(unfinished);
    }

    /// Returns the form of a route configuration that can be sent: its newest, except for virtual hosts that name
    /// clusters which cannot be used yet.
    fn route_form(&self, route: &Arc<Resource>, absent: &mut Vec<Arc<str>>) -> Form {
        let needed = &route.needs().clusters;
        let clusters = self.channel(ResourceType::Cluster);
        // The rule: it has what the snapshot has, and all of it is warm. Then there is no need to look at each.
        let settled = clusters.outstanding.is_empty()
            && clusters.acked.ptr_eq(&self.snapshot.clusters)
            && !self.warmth.holds_back_any();
        let ready = |cluster| {
            (settled && self.snapshot.clusters.contains_key(cluster)) || self.cluster_ready(cluster)
        };
        let all_ready = || needed.iter().all(ready);
        if !self.gated() || (!self.endpoints_are_owed() && all_ready()) {
            return Form::Send(route.clone());
        }
        let channel = self.channel(ResourceType::RouteConfiguration);
        let name = route.name();
        let acked = channel.acked.get(name);
        let Some(acked) = acked else {
            let ready = self.unit_ready(needed, Before::Nothing, absent);
            return match (ready, channel.claimed.contains_key(name)) {
                (true, _) => Form::Send(route.clone()),
                (false, true) => Form::Hold,
                (false, false) => self.mixed_form(route, None, absent),
            };
        };
        if acked.virtual_hosts().is_some() {
            return self.mixed_form(route, Some(acked), absent);
        }
        match self.unit_ready(needed, Before::Names(&acked.needs().clusters), absent) {
            true => Form::Send(route.clone()),
            false => Form::Hold,
        }
    }

    /// Returns the virtual hosts of a route configuration that are ready, with those of `acked` in place of the others.
    fn mixed_form(
        &self,
        route: &Arc<Resource>,
        acked: Option<&Arc<Resource>>,
        absent: &mut Vec<Arc<str>>,
    ) -> Form {
        let before = acked.and_then(|acked| acked.virtual_hosts()).unwrap_or_default();
        let shared: BTreeSet<Arc<str>> = route.shared_clusters().cloned().collect();
        let shared_before = acked.map_or(Before::Nothing, |acked| Before::Names(&acked.needs().clusters));
        let shared_ready = self.unit_ready(&shared, shared_before, absent);
        let hosts = route.virtual_hosts().unwrap_or_default();
        let (mut held, mut mixed) = (Vec::new(), Vec::new());
        for (index, host) in hosts.iter().enumerate() {
            // Mostly in the same place.
            let same = |before: &&VirtualHostFragment| before.name == host.name;
            let earlier = before.get(index).filter(same).or_else(|| before.iter().find(same));
            let names = match earlier {
                _ if acked.is_none() => Before::Nothing,
                Some(earlier) => Before::Names(&earlier.clusters),
                None => Before::Others,
            };
            if self.unit_ready(&host.clusters, names, absent) {
                mixed.push(host);
            } else {
                held.push(host);
                mixed.extend(earlier);
            }
        }
        if shared_ready && held.is_empty() {
            return Form::Send(route.clone());
        }
        if !shared_ready || held.iter().any(|host| shares_domain(host, hosts, before)) {
            return Form::Hold;
        }
        // In the order of the new form: one that changes nothing but what is held back is equal to the one before.
        let names: Vec<&str> = held.iter().map(|host| &*host.name).collect();
        let form = self.encoder.held_back(route, acked, &names, || {
            route.with_virtual_hosts(mixed.into_iter().cloned().collect())
        });
        if self.channel(ResourceType::RouteConfiguration).is_quarantined(route.name(), form.version()) {
            return Form::Hold;
        }
        Form::Send(form)
    }

    fn wait_for_absent(&mut self, absent: Vec<Arc<str>>, now: Instant) {
        for cluster in absent {
            self.absences.wait_for(cluster, now);
        }
    }

    /// Whether routes may name the cluster: it can be used, or there is none to wait for.
    fn cluster_ready(&self, name: &Arc<str>) -> bool {
        let channel = self.channel(ResourceType::Cluster);
        match channel.desired(&self.snapshot, name) {
            Desired::Absent if self.snapshot.clusters.contains_key(name) => true,
            Desired::Absent => self.absences.is_accepted(name),
            Desired::Keep if !channel.has(name) => true,
            Desired::Is(_) | Desired::Keep => channel.has(name) && !self.warmth.holds_back(name),
        }
    }

    /// Whether what names `clusters` can be sent. One that the snapshot lacks is added to `absent` and holds it back,
    /// unless that protects nothing: the client does not have it either, and `before` names it already, or there is
    /// nothing before.
    fn unit_ready(
        &self,
        clusters: &BTreeSet<Arc<str>>,
        before: Before<'_>,
        absent: &mut Vec<Arc<str>>,
    ) -> bool {
        let mut ready = true;
        for cluster in clusters {
            if self.cluster_ready(cluster) {
                ready &= before.names(cluster) || !self.owes_endpoints(cluster);
                continue;
            }
            if !self.snapshot.clusters.contains_key(cluster) {
                match before {
                    Before::Nothing => continue,
                    _ if before.names(cluster) && !self.channel(ResourceType::Cluster).has(cluster) => {
                        continue;
                    }
                    _ => absent.push(cluster.clone()),
                }
            }
            ready = false;
        }
        ready
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
