//! A client that does what a real Envoy 1.40 was seen to do.
//!
//! - Until it asks for listeners, it acknowledges clusters whether or not they are warm. Afterwards it withholds both
//!   ACK and NACK of clusters until none is warming. Then delta answers all withheld responses in order; SotW only
//!   the last, with the error of an earlier one if there was one.
//! - On a new stream it does not ask for clusters while one is warming. A response that comes nevertheless is taken.
//! - It drops what it is not subscribed to. In SotW, a type that it never asked for is answered with an empty type.
//! - It takes up what it can of a response that it rejects, removals included, but in delta remembers no version of
//!   it.
//! - A changed cluster warms beside the old one, which serves until then, and needs endpoints sent after it.
//! - It acknowledges listeners that are warming. A replaced listener drains, and keeps its routes meanwhile.
//! - It rejects a listener on an address that another one has, unless the same response removes that one.

use super::world::{ClusterSpec, Content, Kind, ListenerSpec, Quality, RouteSpec, read};
use prost::Message as _;
use proto::envoy::config::core::v3::Node;
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use proto::google::rpc::Status;
use proto::resource::ResourceType;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use xds::codec::Message as _;
use xds::encode::Frame;
use xds::session::{Protocol, Request};

const ENDPOINTS: ResourceType = ResourceType::ClusterLoadAssignment;
const ROUTES: ResourceType = ResourceType::RouteConfiguration;

/// How long an initialising client waits for what it asked for.
const INITIAL_FETCH_TIMEOUT: u64 = 15_000;

/// What makes one client differ from another.
#[derive(Clone, Debug)]
pub struct Character {
    pub protocol: Protocol,
    /// Listeners asked for by name, as gRPC does; Envoy asks for all.
    pub by_name: Option<BTreeSet<String>>,
    /// Types that it never answers.
    pub silent: BTreeSet<ResourceType>,
    /// Whether names resolve.
    pub resolves: bool,
    pub drain: u64,
}

/// A form of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub spec: ClusterSpec,
    pub endpoints: bool,
}

#[derive(Clone, Debug, Default)]
struct TypeState {
    asked: bool,
    nonce: String,
    subscribed: BTreeSet<String>,
}

#[derive(Clone, Debug)]
struct Withheld {
    nonce: String,
    error: Option<String>,
}

/// A response in the client's terms.
struct Received {
    kind: ResourceType,
    nonce: String,
    version: String,
    resources: Vec<(Content, String)>,
    removed: Vec<String>,
}

#[derive(Debug)]
pub struct Envoy {
    pub character: Character,
    pub now: u64,
    pub initialised: bool,
    initialising_since: Option<u64>,
    pub clusters: BTreeMap<String, Instance>,
    pub warming: BTreeMap<String, Instance>,
    pub listeners: BTreeMap<String, ListenerSpec>,
    pub warming_listeners: BTreeMap<String, ListenerSpec>,
    pub draining: Vec<(ListenerSpec, u64)>,
    pub routes: BTreeMap<String, RouteSpec>,
    pub secrets: BTreeMap<String, u8>,
    pub endpoints: BTreeMap<String, u8>,
    versions: [BTreeMap<String, String>; 5],
    set_versions: [String; 5],
    /// Names taken up from a rejected response: what the client claims of them is out of date.
    pub tainted: BTreeSet<(ResourceType, String)>,
    /// Those of an earlier stream: nobody can know that the client has them.
    orphaned: BTreeSet<(ResourceType, String)>,
    types: [TypeState; 5],
    withheld: Vec<Withheld>,
    out: VecDeque<Outgoing>,
}

/// A request on its way.
#[derive(Clone, Debug)]
pub enum Outgoing {
    Sotw(DiscoveryRequest),
    Delta(DeltaDiscoveryRequest),
}

impl Outgoing {
    pub fn into_request(self) -> Option<Request> {
        match self {
            Self::Sotw(request) => request.into_request(),
            Self::Delta(request) => request.into_request(),
        }
    }
}

impl Envoy {
    pub fn new(character: Character) -> Self {
        Self {
            character,
            now: 0,
            initialised: false,
            initialising_since: None,
            clusters: BTreeMap::new(),
            warming: BTreeMap::new(),
            listeners: BTreeMap::new(),
            warming_listeners: BTreeMap::new(),
            draining: Vec::new(),
            routes: BTreeMap::new(),
            secrets: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            versions: Default::default(),
            set_versions: Default::default(),
            tainted: BTreeSet::new(),
            orphaned: BTreeSet::new(),
            types: Default::default(),
            withheld: Vec::new(),
            out: VecDeque::new(),
        }
    }

    /// Opens a stream and asks for everything that is wanted.
    pub fn connect(&mut self) {
        self.orphaned.clone_from(&self.tainted);
        self.types = Default::default();
        self.withheld.clear();
        self.out.clear();
        self.follow_up();
    }

    pub fn take_request(&mut self) -> Option<Outgoing> {
        self.out.pop_front()
    }

    pub fn has_requests(&self) -> bool {
        !self.out.is_empty()
    }

    pub fn advance(&mut self, millis: u64) {
        self.now += millis;
        let now = self.now;
        self.draining.retain(|(_, until)| *until > now);
        self.follow_up();
    }

    /// Returns whether every form of the cluster that may serve is there: what a route that names it needs.
    pub fn serves(&self, cluster: &str) -> bool {
        self.clusters.contains_key(cluster)
    }

    /// Returns what the listeners in use and the routes that they use name, as far as anyone can know of them.
    pub fn references(&self) -> BTreeSet<(String, String)> {
        let mut references = BTreeSet::new();
        let draining = self.draining.iter().map(|(listener, _)| listener);
        let orphaned = |kind, name: &String| self.orphaned.contains(&(kind, name.clone()));
        for listener in self.listeners.values().chain(draining) {
            if orphaned(ResourceType::Listener, &listener.name) {
                continue;
            }
            for cluster in &listener.clusters {
                references.insert((format!("{listener:?}"), cluster.clone()));
            }
            for route in listener.routes.iter().filter_map(|name| self.routes.get(name)) {
                if orphaned(ROUTES, &route.name) {
                    continue;
                }
                for host in &route.hosts {
                    for cluster in &host.clusters {
                        references.insert((format!("{host:?}"), cluster.clone()));
                    }
                }
            }
        }
        references
    }

    pub fn on_frame(&mut self, frame: &Frame) {
        let Some(received) = self.decode(frame) else { return };
        let kind = received.kind;
        if !self.wants(kind) {
            if self.character.protocol == Protocol::Sotw {
                self.out.push_back(Outgoing::Sotw(DiscoveryRequest::default()));
            }
            return;
        }
        self.types[kind as usize].nonce.clone_from(&received.nonce);
        let (nonce, version) = (received.nonce.clone(), received.version.clone());
        let mut versions: Vec<(String, Option<String>)> = received
            .resources
            .iter()
            .map(|(content, version)| (name_of(content), Some(version.clone())))
            .collect();
        versions.extend(received.removed.iter().map(|name| (name.clone(), None)));
        versions.retain(|(name, _)| self.wants_name(kind, name));
        let errors = self.apply(received);
        let error = describe(&errors);
        if error.is_some() {
            self.tainted.extend(versions.iter().map(|(name, _)| (kind, name.clone())));
        } else {
            for (name, version) in versions {
                self.tainted.remove(&(kind, name.clone()));
                self.orphaned.remove(&(kind, name.clone()));
                match version {
                    Some(version) => self.versions[kind as usize].insert(name, version),
                    None => self.versions[kind as usize].remove(&name),
                };
            }
            self.set_versions[kind as usize] = version;
        }
        self.emit_subscriptions();
        let withheld = Withheld { nonce, error };
        if kind == ResourceType::Cluster {
            self.withheld.push(withheld);
        } else {
            self.answer(kind, withheld);
        }
        self.follow_up();
    }

    fn decode(&self, frame: &Frame) -> Option<Received> {
        Some(match self.character.protocol {
            Protocol::Sotw => {
                let response = DiscoveryResponse::decode(frame.message()).expect("a valid response");
                let kind = ResourceType::from_type_url(&response.type_url)?;
                let resources: Vec<_> = response
                    .resources
                    .iter()
                    .map(|any| (read(&any.value), response.version_info.clone()))
                    .collect();
                // Clusters and listeners that a response does not hold are gone.
                let complete = matches!(kind, ResourceType::Cluster | ResourceType::Listener);
                let kept: BTreeSet<String> = resources.iter().map(|(content, _)| name_of(content)).collect();
                let held = if complete { self.held(kind) } else { BTreeSet::new() };
                let removed = held.difference(&kept).cloned().collect();
                Received { kind, nonce: response.nonce, version: response.version_info, resources, removed }
            }
            Protocol::Delta => {
                let response = DeltaDiscoveryResponse::decode(frame.message()).expect("a valid response");
                let kind = ResourceType::from_type_url(&response.type_url)?;
                let resources = response.resources.iter().map(|resource| {
                    let content = read(&resource.resource.as_ref().expect("a resource").value);
                    assert_eq!(name_of(&content), resource.name);
                    (content, resource.version.clone())
                });
                Received {
                    kind,
                    nonce: response.nonce,
                    version: response.system_version_info,
                    resources: resources.collect(),
                    removed: response.removed_resources,
                }
            }
        })
    }

    fn held(&self, kind: ResourceType) -> BTreeSet<String> {
        match kind {
            ResourceType::Cluster => self.clusters.keys().chain(self.warming.keys()).cloned().collect(),
            _ => self.listeners.keys().chain(self.warming_listeners.keys()).cloned().collect(),
        }
    }

    /// Takes up what can be, and returns what cannot.
    fn apply(&mut self, received: Received) -> Vec<(String, Quality)> {
        let mut errors = Vec::new();
        for name in &received.removed {
            self.remove(received.kind, name);
        }
        for (content, _) in received.resources {
            let name = name_of(&content);
            if !self.wants_name(received.kind, &name) {
                continue;
            }
            let quality = match content {
                Content::Cluster(spec) => self.take_cluster(spec),
                Content::Listener(spec) => self.take_listener(spec),
                Content::Route(spec) => self.take_route(spec),
                Content::Secret(name, version) => {
                    self.secrets.insert(name, version);
                    Quality::Good
                }
                Content::Assignment(name, version) => {
                    self.endpoints.insert(name.clone(), version);
                    self.fetched(&name);
                    Quality::Good
                }
            };
            if quality != Quality::Good {
                errors.push((name, quality));
            }
        }
        errors
    }

    fn remove(&mut self, kind: ResourceType, name: &str) {
        match kind {
            ResourceType::Cluster => {
                self.clusters.remove(name);
                self.warming.remove(name);
            }
            ResourceType::Listener => {
                self.warming_listeners.remove(name);
                if let Some(listener) = self.listeners.remove(name) {
                    self.draining.push((listener, self.now + self.character.drain));
                }
            }
            // Hosts are kept, but nothing waits any longer.
            ENDPOINTS => self.fetched(name),
            _ => {}
        }
    }

    fn fetched(&mut self, name: &str) {
        for instance in self.clusters.values_mut().chain(self.warming.values_mut()) {
            if instance.spec.name == name {
                instance.endpoints = true;
            }
        }
    }

    fn take_cluster(&mut self, spec: ClusterSpec) -> Quality {
        if spec.quality != Quality::Good {
            return spec.quality;
        }
        let newest = self.warming.get(&spec.name).or_else(|| self.clusters.get(&spec.name));
        if newest.is_some_and(|newest| newest.spec == spec) {
            return Quality::Good;
        }
        let instance = Instance { endpoints: spec.warming != Kind::Eds, spec };
        let name = instance.spec.name.clone();
        if self.initialised || self.character.by_name.is_some() {
            self.warming.insert(name, instance);
        } else {
            self.initialising_since.get_or_insert(self.now);
            self.clusters.insert(name, instance);
        }
        Quality::Good
    }

    fn take_listener(&mut self, spec: ListenerSpec) -> Quality {
        if spec.quality != Quality::Good {
            return spec.quality;
        }
        let newest = self.warming_listeners.get(&spec.name).or_else(|| self.listeners.get(&spec.name));
        if newest == Some(&spec) {
            return Quality::Good;
        }
        let others = self.listeners.values().chain(self.warming_listeners.values());
        if others.filter(|other| other.name != spec.name).any(|other| other.address == spec.address) {
            return Quality::Bad;
        }
        self.warming_listeners.insert(spec.name.clone(), spec);
        Quality::Good
    }

    fn take_route(&mut self, spec: RouteSpec) -> Quality {
        if spec.quality != Quality::Good {
            return spec.quality;
        }
        let mut domains = BTreeSet::new();
        if !spec.hosts.iter().flat_map(|host| &host.domains).all(|domain| domains.insert(domain)) {
            return Quality::BadUnnamed;
        }
        self.routes.insert(spec.name.clone(), spec);
        Quality::Good
    }

    /// Does everything that has become possible: warming, initialising, answering, asking.
    fn follow_up(&mut self) {
        loop {
            let warmed: Vec<String> = self
                .warming
                .values()
                .filter(|instance| self.character.by_name.is_some() || self.warm(instance))
                .map(|instance| instance.spec.name.clone())
                .collect();
            for name in &warmed {
                let instance = self.warming.remove(name).expect("it was warming");
                self.clusters.insert(name.clone(), instance);
            }
            let ready: Vec<String> = self
                .warming_listeners
                .values()
                .filter(|listener| listener.routes.iter().all(|route| self.routes.contains_key(route)))
                .map(|listener| listener.name.clone())
                .collect();
            for name in &ready {
                let listener = self.warming_listeners.remove(name).expect("it was warming");
                if let Some(old) = self.listeners.insert(name.clone(), listener) {
                    self.draining.push((old, self.now + self.character.drain));
                }
            }
            if warmed.is_empty() && ready.is_empty() {
                break;
            }
        }
        self.release_withheld();
        self.emit_subscriptions();
        self.initialise();
    }

    fn warm(&self, instance: &Instance) -> bool {
        instance.endpoints
            && (instance.spec.warming != Kind::Dns || self.character.resolves)
            && instance.spec.secret.as_ref().is_none_or(|secret| self.secrets.contains_key(secret))
    }

    /// Names that are resolved in the background do not delay a client's start.
    fn initialise(&mut self) {
        if self.initialised || self.character.by_name.is_some() || !self.withheld.is_empty() {
            return;
        }
        if !self.types[ResourceType::Cluster as usize].asked
            || self.types[ResourceType::Cluster as usize].nonce.is_empty() && self.clusters.is_empty()
        {
            return;
        }
        let timed_out =
            self.initialising_since.is_some_and(|since| self.now >= since + INITIAL_FETCH_TIMEOUT);
        let done =
            self.clusters.values().all(|instance| instance.spec.warming == Kind::Dns || self.warm(instance));
        if done || timed_out {
            self.initialised = true;
            self.emit_subscriptions();
        }
    }

    fn release_withheld(&mut self) {
        let waits = self.initialised && !self.warming.is_empty() && self.character.by_name.is_none();
        if waits || self.withheld.is_empty() {
            return;
        }
        let withheld = std::mem::take(&mut self.withheld);
        match self.character.protocol {
            Protocol::Delta => {
                for withheld in withheld {
                    self.answer(ResourceType::Cluster, withheld);
                }
            }
            Protocol::Sotw => {
                let error = withheld.iter().rev().find_map(|withheld| withheld.error.clone());
                if let Some(last) = withheld.into_iter().next_back() {
                    self.answer(ResourceType::Cluster, Withheld { error, ..last });
                }
            }
        }
    }

    fn answer(&mut self, kind: ResourceType, withheld: Withheld) {
        let Withheld { nonce, error } = withheld;
        if self.character.silent.contains(&kind) {
            return;
        }
        let error_detail = error.map(|message| Status { message, ..Status::default() });
        match self.character.protocol {
            Protocol::Delta => {
                let mut request = self.delta_request(kind, Vec::new(), Vec::new());
                request.response_nonce = nonce;
                request.error_detail = error_detail;
                self.out.push_back(Outgoing::Delta(request));
            }
            Protocol::Sotw => {
                let mut request = self.sotw_request(kind);
                request.response_nonce = nonce;
                request.error_detail = error_detail;
                self.out.push_back(Outgoing::Sotw(request));
            }
        }
    }

    fn wants(&self, kind: ResourceType) -> bool {
        match kind {
            ResourceType::Cluster | ResourceType::Listener if self.character.by_name.is_none() => {
                kind == ResourceType::Cluster || self.initialised
            }
            _ => !self.wanted(kind).is_empty(),
        }
    }

    fn wants_name(&self, kind: ResourceType, name: &str) -> bool {
        match kind {
            ResourceType::Cluster | ResourceType::Listener if self.character.by_name.is_none() => true,
            _ => self.wanted(kind).contains(name),
        }
    }

    /// Returns the names that the client's state needs.
    pub fn wanted(&self, kind: ResourceType) -> BTreeSet<String> {
        let instances = self.clusters.values().chain(self.warming.values());
        let draining = self.draining.iter().map(|(listener, _)| listener);
        let listeners = self.listeners.values().chain(self.warming_listeners.values()).chain(draining);
        let by_name = self.character.by_name.as_ref();
        match kind {
            ResourceType::Listener => by_name.cloned().unwrap_or_default(),
            ROUTES => listeners.flat_map(|listener| listener.routes.clone()).collect(),
            ResourceType::Cluster if by_name.is_some() => {
                let routes = self.wanted(ROUTES);
                let routes = routes.iter().filter_map(|name| self.routes.get(name));
                routes.flat_map(|route| &route.hosts).flat_map(|host| host.clusters.clone()).collect()
            }
            ResourceType::Cluster => BTreeSet::new(),
            ENDPOINTS => instances
                .filter(|instance| instance.spec.warming == Kind::Eds)
                .map(|instance| instance.spec.name.clone())
                .collect(),
            ResourceType::Secret => instances.filter_map(|instance| instance.spec.secret.clone()).collect(),
        }
    }

    /// Asks for what has come to be wanted, and unsubscribes from what no longer is.
    fn emit_subscriptions(&mut self) {
        for kind in [ResourceType::Cluster, ENDPOINTS, ResourceType::Secret, ResourceType::Listener, ROUTES] {
            let everything = self.character.by_name.is_none()
                && matches!(kind, ResourceType::Cluster | ResourceType::Listener);
            if !self.wants(kind) && self.types[kind as usize].subscribed.is_empty() {
                continue;
            }
            let paused = kind == ResourceType::Cluster && self.initialised && !self.warming.is_empty();
            let wanted = self.wanted(kind);
            let state = &mut self.types[kind as usize];
            let first = !state.asked;
            if (everything && (!first || paused)) || (!everything && state.subscribed == wanted) {
                continue;
            }
            state.asked = true;
            let before = std::mem::replace(&mut state.subscribed, wanted.clone());
            let added: Vec<String> = wanted.difference(&before).cloned().collect();
            let dropped: Vec<String> = before.difference(&wanted).cloned().collect();
            for name in &dropped {
                self.forget(kind, name);
            }
            match self.character.protocol {
                Protocol::Delta => {
                    let mut request = self.delta_request(kind, added, dropped);
                    if first {
                        request.initial_resource_versions = self.versions[kind as usize].clone();
                    }
                    self.out.push_back(Outgoing::Delta(request));
                }
                Protocol::Sotw => {
                    let mut request = self.sotw_request(kind);
                    request.response_nonce = self.types[kind as usize].nonce.clone();
                    self.out.push_back(Outgoing::Sotw(request));
                }
            }
        }
    }

    fn forget(&mut self, kind: ResourceType, name: &str) {
        self.versions[kind as usize].remove(name);
        match kind {
            ROUTES => drop(self.routes.remove(name)),
            ENDPOINTS => drop(self.endpoints.remove(name)),
            ResourceType::Secret => drop(self.secrets.remove(name)),
            ResourceType::Cluster => {
                self.clusters.remove(name);
                self.warming.remove(name);
            }
            ResourceType::Listener => {}
        }
    }

    fn delta_request(
        &self,
        kind: ResourceType,
        added: Vec<String>,
        dropped: Vec<String>,
    ) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            node: Some(Node { id: "model".to_owned(), ..Node::default() }),
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: added,
            resource_names_unsubscribe: dropped,
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn sotw_request(&self, kind: ResourceType) -> DiscoveryRequest {
        DiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            version_info: self.set_versions[kind as usize].clone(),
            resource_names: self.types[kind as usize].subscribed.iter().cloned().collect(),
            ..DiscoveryRequest::default()
        }
    }
}

fn name_of(content: &Content) -> String {
    match content {
        Content::Cluster(spec) => spec.name.clone(),
        Content::Listener(spec) => spec.name.clone(),
        Content::Route(spec) => spec.name.clone(),
        Content::Assignment(name, _) | Content::Secret(name, _) => name.clone(),
    }
}

fn describe(errors: &[(String, Quality)]) -> Option<String> {
    if errors.is_empty() {
        return None;
    }
    let named: Vec<&str> = errors
        .iter()
        .filter(|(_, quality)| *quality == Quality::Bad)
        .map(|(name, _)| name.as_str())
        .collect();
    Some(match named.is_empty() {
        true => "something is wrong".to_owned(),
        false => format!("Error adding/updating {}: no good", named.join(", ")),
    })
}
