//! Patience with Services of which no EndpointSlice tells.
//!
//! A Service with pods, or without, has an EndpointSlice: one without endpoints at least. So a Service that has none
//! is one half of something: it was deleted and made again, its slice is being replaced by one of another name, or its
//! slices are on their way on another watch. An empty assignment would fail requests meanwhile. For [`ENDPOINT_DOUBT`]
//!
//! - the last slice of each address type, or the last ones if they go together, go on counting after they are gone, but
//!   for endpoints whose pods say that they have stopped;
//! - a Service that is new is not used yet. Routes that name it wait for it in the sessions (ADR 6).
//!
//! What a slice that is there says takes effect at once: endpoints that are not ready, terminating or no longer listed.

use crate::registry::{Named, service_object};
use k8s_api::core::EndpointSlice;
use k8s_api::object::Object;
use model::ObjectKey;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long it is doubted that a Service has no EndpointSlice: as long as sessions doubt a missing destination.
pub const ENDPOINT_DOUBT: Duration = Duration::from_secs(5);

/// Something that is doubted about the endpoints of a Service, or no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Its endpoints stay in use although no EndpointSlice lists them any more.
    Kept(ObjectKey),
    /// It is new and not used yet because it has no EndpointSlice.
    Awaited(ObjectKey),
    /// No EndpointSlice has come in time: it has no endpoints.
    Believed(ObjectKey),
}

/// What is to be done with a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is used.
    Use,
    /// It is not used yet.
    Wait,
}

/// The Services whose endpoints are doubted.
#[derive(Debug, Default)]
pub(crate) struct Doubts {
    /// Slices that have gone since the last publication.
    leaving: BTreeMap<Named, Vec<Arc<Object>>>,
    /// Slices that are gone, of Services that have none of their address type any more.
    departed: BTreeMap<Named, Departed>,
    /// Since when Services that are new have had no slice.
    awaited: BTreeMap<Named, Instant>,
    /// The time of what is being published, if anything is to be doubted.
    now: Option<Instant>,
    has_published: bool,
    events: Vec<Doubt>,
}

#[derive(Debug, Default)]
struct Departed {
    slices: Vec<Arc<Object>>,
    /// When this was first published.
    since: Option<Instant>,
    is_told: bool,
}

impl Doubts {
    /// A slice of a Service is there.
    pub(crate) fn listed(&mut self, service: &Named, slice: &EndpointSlice) {
        if let Some(leaving) = self.leaving.get_mut(service) {
            leaving.retain(|gone| address_type(gone) != Some(&slice.address_type));
        }
        let Some(departed) = self.departed.get_mut(service) else { return };
        departed.slices.retain(|gone| address_type(gone) != Some(&slice.address_type));
        if departed.slices.is_empty() {
            self.departed.remove(service);
        }
    }

    /// A slice is gone; perhaps the last one of its address type. Those that went with it, unseen by anybody, then count
    /// as it does: watches that begin anew tell of everything that has gone meanwhile in any order.
    pub(crate) fn gone(&mut self, service: &Named, slice: &Arc<Object>, is_last: bool) {
        let leaving = self.leaving.entry(service.clone()).or_default();
        leaving.push(slice.clone());
        if is_last {
            let same = leaving.extract_if(.., |gone| address_type(gone) == address_type(slice));
            self.departed.entry(service.clone()).or_default().slices.extend(same);
        }
    }

    /// A Service is there that was not: its slices are given time from now on.
    pub(crate) fn reappeared(&mut self, service: &Named) {
        if let Some(departed) = self.departed.get_mut(service) {
            departed.since = None;
        }
    }

    /// A Service is gone.
    pub(crate) fn service_gone(&mut self, service: &Named) {
        self.awaited.remove(service);
        if let Some(departed) = self.departed.get_mut(service) {
            departed.is_told = false;
        }
    }

    /// Returns the slices of a Service that are gone and count nevertheless.
    pub(crate) fn kept(&self, service: &Named) -> impl Iterator<Item = &EndpointSlice> {
        let slices = self.departed.get(service).into_iter().flat_map(|departed| &departed.slices);
        slices.filter_map(|object| match object.as_ref() {
            Object::EndpointSlice(slice) => Some(slice.as_ref()),
            _ => None,
        })
    }

    /// Returns the Services with slices that are gone and count nevertheless.
    pub(crate) fn kept_services(&self) -> impl Iterator<Item = &Named> {
        self.departed.keys()
    }

    /// Begins to publish: returns the Services about which there is no doubt any more. Without a time that is all.
    pub(crate) fn begin(&mut self, now: Option<Instant>) -> BTreeSet<Named> {
        self.now = now;
        let Some(now) = now else {
            let kept = std::mem::take(&mut self.departed).into_keys();
            return kept.chain(std::mem::take(&mut self.awaited).into_keys()).collect();
        };
        let mut decided = BTreeSet::new();
        self.departed.retain(|service, departed| {
            if now < *departed.since.get_or_insert(now) + ENDPOINT_DOUBT {
                return true;
            }
            if departed.is_told {
                self.events.push(Doubt::Believed(service_object(service)));
            }
            decided.insert(service.clone());
            false
        });
        // They are forgotten when they are looked at.
        let over = self.awaited.iter().filter(|(_, since)| now >= **since + ENDPOINT_DOUBT);
        decided.extend(over.map(|(service, _)| service.clone()));
        decided
    }

    /// Everything has been looked at.
    pub(crate) fn end(&mut self) {
        self.has_published = true;
        self.leaving.clear();
    }

    /// Decides about a Service: whether it is in use already, whether a slice tells of it, and whether it has endpoints,
    /// perhaps of slices that are gone.
    pub(crate) fn judge(
        &mut self,
        service: &Named,
        is_known: bool,
        is_listed: bool,
        has_endpoints: bool,
    ) -> Verdict {
        if let Some(departed) = self.departed.get_mut(service)
            && has_endpoints
            && !is_listed
            && !std::mem::replace(&mut departed.is_told, true)
        {
            self.events.push(Doubt::Kept(service_object(service)));
        }
        let Some(now) = self.now.filter(|_| self.has_published && !is_known && !is_listed && !has_endpoints)
        else {
            self.awaited.remove(service);
            return Verdict::Use;
        };
        match self.awaited.get(service) {
            None => {
                self.awaited.insert(service.clone(), now);
                self.events.push(Doubt::Awaited(service_object(service)));
                Verdict::Wait
            }
            Some(since) if now < *since + ENDPOINT_DOUBT => Verdict::Wait,
            Some(_) => {
                self.awaited.remove(service);
                self.events.push(Doubt::Believed(service_object(service)));
                Verdict::Use
            }
        }
    }

    /// Returns when the next doubt ends.
    pub(crate) fn until(&self) -> Option<Instant> {
        let departed = self.departed.values().filter_map(|departed| departed.since);
        departed.chain(self.awaited.values().copied()).min().map(|since| since + ENDPOINT_DOUBT)
    }

    pub(crate) fn take_events(&mut self) -> Vec<Doubt> {
        std::mem::take(&mut self.events)
    }
}

fn address_type(slice: &Object) -> Option<&String> {
    match slice {
        Object::EndpointSlice(slice) => Some(&slice.address_type),
        _ => None,
    }
}
