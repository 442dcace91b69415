//! One simulated proxy: what an Envoy asks for, and in which order, on a delta ADS stream.
//!
//! It wants all clusters, then the endpoints of each, then all listeners, then the routes that they name. It
//! acknowledges at once, but for one thing: once it has asked for listeners, it answers clusters only when all that it has
//! are warm. It serves nothing, but knows at any moment whether a route that it acknowledged
//! names a cluster that it could not send requests to.

use crate::facts::{Facts, Library};
use crate::wire::Response;
use proto::envoy::config::core::v3::Node;
use proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use proto::resource::ResourceType;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A cluster that the proxy has.
#[derive(Debug)]
struct Cluster {
    assignment: Option<Arc<str>>,
    /// It had endpoints once. An update keeps the old instance in service while the new one warms.
    warm: bool,
}

/// Something that is asked for by name.
#[derive(Debug, Default)]
struct Named {
    /// How many resources name it.
    users: u32,
    received: bool,
    facts: Option<Arc<Facts>>,
}

/// How long routes named clusters that could not be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dangling {
    /// How often that began.
    pub times: u32,
    /// How long it lasted in all.
    pub total: Duration,
    /// The longest.
    pub longest: Duration,
}

/// The state of one simulated proxy.
#[derive(Debug)]
pub struct Envoy {
    node: Node,
    library: Arc<Library>,
    clusters: HashMap<Arc<str>, Cluster>,
    assignments: HashMap<Arc<str>, Named>,
    listeners: HashMap<Arc<str>, Arc<Facts>>,
    routes: HashMap<Arc<str>, Named>,
    /// It has asked for listeners: its first clusters were warm.
    initialised: bool,
    listeners_received: bool,
    /// Assignments and routes that are missing still.
    awaited: usize,
    dangling_since: Option<Instant>,
    dangling: Dangling,
    /// The answer to the newest clusters, until all are warm.
    withheld: Option<DeltaDiscoveryRequest>,
}

/// What a response led to.
#[derive(Debug)]
pub struct Applied {
    /// What to say to the server, in this order.
    pub requests: Vec<DeltaDiscoveryRequest>,
    /// The type of the resources.
    pub kind: ResourceType,
    /// Those that came.
    pub resources: Vec<Arc<Facts>>,
    /// How many were removed.
    pub removed: usize,
}

impl Envoy {
    /// Makes a proxy that has just started.
    pub fn new(node: Node, library: Arc<Library>) -> Self {
        Self {
            node,
            library,
            clusters: HashMap::new(),
            assignments: HashMap::new(),
            listeners: HashMap::new(),
            routes: HashMap::new(),
            initialised: false,
            listeners_received: false,
            awaited: 0,
            dangling_since: None,
            dangling: Dangling::default(),
            withheld: None,
        }
    }

    /// Returns the first request of the stream.
    pub fn first_request(&self) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            node: Some(self.node.clone()),
            ..subscription(ResourceType::Cluster, Vec::new(), Vec::new())
        }
    }

    /// Whether it has everything that it asked for.
    pub fn is_converged(&self) -> bool {
        self.listeners_received && self.awaited == 0
    }

    /// Returns how many clusters, assignments, listeners and routes it has.
    pub fn counts(&self) -> [usize; 4] {
        let received =
            |named: &HashMap<Arc<str>, Named>| named.values().filter(|named| named.received).count();
        [self.clusters.len(), received(&self.assignments), self.listeners.len(), received(&self.routes)]
    }

    /// Returns for how long routes have named clusters that cannot be used, as of `now`.
    pub fn dangling(&self, now: Instant) -> Dangling {
        let mut dangling = self.dangling;
        if let Some(since) = self.dangling_since {
            dangling.end(now.saturating_duration_since(since));
        }
        dangling
    }

    /// Takes a response, an encoded `DeltaDiscoveryResponse`. `None` if it is of a type that was never asked for.
    pub fn on_response(&mut self, message: &[u8], now: Instant) -> Option<Applied> {
        let response = Response::read(message);
        let kind = ResourceType::from_type_url(response.type_url)?;
        let library = self.library.clone();
        let resources: Vec<Arc<Facts>> =
            response.resources.iter().map(|envelope| library.read(kind, envelope)).collect();
        let mut requests = vec![DeltaDiscoveryRequest {
            type_url: response.type_url.to_owned(),
            response_nonce: response.nonce.to_owned(),
            ..DeltaDiscoveryRequest::default()
        }];
        let may_dangle = self.dangling_since.is_some() || !response.removed.is_empty();
        match kind {
            ResourceType::Cluster => requests.extend(self.on_clusters(&resources, &response.removed)),
            ResourceType::ClusterLoadAssignment => self.on_assignments(&resources),
            ResourceType::Listener => requests.extend(self.on_listeners(&resources, &response.removed)),
            ResourceType::RouteConfiguration => self.on_routes(&resources),
            ResourceType::Secret => {}
        }
        if kind == ResourceType::Cluster && self.initialised {
            self.withheld = Some(requests.remove(0));
        }
        if self.withheld.is_some() && self.clusters.values().all(|cluster| cluster.warm) {
            requests.extend(self.withheld.take());
        }
        if !self.initialised && self.awaited == 0 && !self.clusters.is_empty() {
            self.initialised = true;
            requests.push(subscription(ResourceType::Listener, Vec::new(), Vec::new()));
        }
        let switches = matches!(kind, ResourceType::Listener | ResourceType::RouteConfiguration);
        if may_dangle || (switches && resources.iter().any(|facts| !self.can_use(facts))) {
            self.look_for_dangling(now);
        }
        Some(Applied { requests, kind, resources, removed: response.removed.len() })
    }

    fn on_clusters(&mut self, resources: &[Arc<Facts>], removed: &[&str]) -> Option<DeltaDiscoveryRequest> {
        let (mut wanted, mut dropped) = (Vec::new(), Vec::new());
        for facts in resources {
            let old = self.clusters.get(&facts.name);
            let warm = old.is_some_and(|old| old.warm) || facts.assignment.is_none();
            let old_assignment = old.and_then(|old| old.assignment.clone());
            if old_assignment != facts.assignment {
                wanted.extend(facts.assignment.iter().cloned());
                dropped.extend(old_assignment);
            }
            let cluster = Cluster { assignment: facts.assignment.clone(), warm };
            self.clusters.insert(facts.name.clone(), cluster);
        }
        dropped.extend(removed.iter().filter_map(|name| self.clusters.remove(*name)?.assignment));
        want(&mut self.assignments, &mut self.awaited, ResourceType::ClusterLoadAssignment, wanted, dropped)
    }

    fn on_assignments(&mut self, resources: &[Arc<Facts>]) {
        let mut came: HashSet<&Arc<str>> = HashSet::new();
        for facts in resources {
            let Some(named) = self.assignments.get_mut(&facts.name) else { continue };
            came.insert(&facts.name);
            if !std::mem::replace(&mut named.received, true) {
                self.awaited -= 1;
            }
        }
        // Most clusters are named like their assignment.
        for name in &came {
            if let Some(cluster) = self.clusters.get_mut(*name)
                && cluster.assignment.as_ref() == Some(name)
            {
                cluster.warm = true;
            }
        }
        if resources.iter().any(|facts| !self.clusters.contains_key(&facts.name)) {
            for cluster in self.clusters.values_mut() {
                cluster.warm |= cluster.assignment.as_ref().is_some_and(|name| came.contains(name));
            }
        }
    }

    fn on_listeners(&mut self, resources: &[Arc<Facts>], removed: &[&str]) -> Option<DeltaDiscoveryRequest> {
        self.listeners_received = true;
        let (mut wanted, mut dropped) = (Vec::new(), Vec::new());
        for facts in resources {
            wanted.extend(facts.routes.iter().cloned());
            if let Some(old) = self.listeners.insert(facts.name.clone(), facts.clone()) {
                dropped.extend(old.routes.iter().cloned());
            }
        }
        for name in removed {
            if let Some(old) = self.listeners.remove(*name) {
                dropped.extend(old.routes.iter().cloned());
            }
        }
        want(&mut self.routes, &mut self.awaited, ResourceType::RouteConfiguration, wanted, dropped)
    }

    fn on_routes(&mut self, resources: &[Arc<Facts>]) {
        for facts in resources {
            let Some(named) = self.routes.get_mut(&facts.name) else { continue };
            if !std::mem::replace(&mut named.received, true) {
                self.awaited -= 1;
            }
            named.facts = Some(facts.clone());
        }
    }

    fn can_use(&self, facts: &Facts) -> bool {
        facts.clusters.keys().all(|name| self.clusters.get(name).is_some_and(|cluster| cluster.warm))
    }

    fn look_for_dangling(&mut self, now: Instant) {
        let mut named =
            self.listeners.values().chain(self.routes.values().filter_map(|route| route.facts.as_ref()));
        let dangles = !named.all(|facts| self.can_use(facts));
        match self.dangling_since {
            None if dangles => self.dangling_since = Some(now),
            Some(since) if !dangles => {
                self.dangling_since = None;
                self.dangling.end(now.saturating_duration_since(since));
            }
            _ => {}
        }
    }
}

impl Dangling {
    fn end(&mut self, lasted: Duration) {
        self.times += 1;
        self.total += lasted;
        self.longest = self.longest.max(lasted);
    }
}

/// Counts users of names up and down, and returns the request that says what is new and what is no longer wanted.
fn want(
    known: &mut HashMap<Arc<str>, Named>,
    awaited: &mut usize,
    kind: ResourceType,
    wanted: Vec<Arc<str>>,
    dropped: Vec<Arc<str>>,
) -> Option<DeltaDiscoveryRequest> {
    let (mut subscribe, mut unsubscribe) = (Vec::new(), BTreeSet::new());
    for name in wanted {
        let named = known.entry(name.clone()).or_insert_with(|| {
            subscribe.push(name.to_string());
            *awaited += 1;
            Named::default()
        });
        named.users += 1;
    }
    for name in dropped {
        let Some(named) = known.get_mut(&name) else { continue };
        named.users -= 1;
        if named.users == 0 {
            *awaited -= usize::from(!named.received);
            known.remove(&name);
            unsubscribe.insert(name.to_string());
        }
    }
    let is_news = !subscribe.is_empty() || !unsubscribe.is_empty();
    is_news.then(|| subscription(kind, subscribe, unsubscribe.into_iter().collect()))
}

fn subscription(
    kind: ResourceType,
    subscribe: Vec<String>,
    unsubscribe: Vec<String>,
) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: subscribe,
        resource_names_unsubscribe: unsubscribe,
        ..DeltaDiscoveryRequest::default()
    }
}
