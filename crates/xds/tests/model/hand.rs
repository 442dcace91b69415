//! A session whose client is a test that writes every message itself.

use super::world::{Content, snapshot};
use prost::Message;
use proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use proto::resource::{ResourceType, Snapshot};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use xds::encode::Encoder;
use xds::session::{Answer, Held, Names, Options, Protocol, Request, Response, Session};

const CDS: ResourceType = ResourceType::Cluster;
const EDS: ResourceType = ResourceType::ClusterLoadAssignment;
const LDS: ResourceType = ResourceType::Listener;
const RDS: ResourceType = ResourceType::RouteConfiguration;
const SDS: ResourceType = ResourceType::Secret;

/// A session at the hands of a test that writes every message itself.
pub struct Hand {
    pub session: Session,
    protocol: Protocol,
    pub now: Instant,
    /// What a SotW client lists in every request.
    listed: BTreeMap<ResourceType, Vec<String>>,
}

impl Hand {
    pub fn new(protocol: Protocol, contents: &[Content]) -> Self {
        Self::with(protocol, snapshot(contents))
    }

    pub fn with(protocol: Protocol, snapshot: Arc<Snapshot>) -> Self {
        let encoder = Arc::new(Encoder::new("", 0));
        let now = Instant::now();
        Self {
            session: Session::new(protocol, Options::STANDARD, encoder, 1, snapshot, now),
            protocol,
            now,
            listed: BTreeMap::new(),
        }
    }

    /// A delta client that has everything of `contents`, acknowledged and warm.
    pub fn settled(contents: &[Content]) -> Self {
        Self::settled_with(Protocol::Delta, contents)
    }

    /// As [`Hand::settled`], with another protocol.
    pub fn settled_with(protocol: Protocol, contents: &[Content]) -> Self {
        let mut hand = Self::new(protocol, contents);
        hand.subscribe(CDS, &[]);
        for kind in [EDS, SDS] {
            let names: Vec<String> = names_of(contents, kind);
            if !names.is_empty() {
                hand.subscribe(kind, &names.iter().map(String::as_str).collect::<Vec<_>>());
            }
        }
        hand.ack_all();
        hand.subscribe(LDS, &[]);
        let routes = names_of(contents, RDS);
        if !routes.is_empty() {
            hand.subscribe(RDS, &routes.iter().map(String::as_str).collect::<Vec<_>>());
        }
        hand.ack_all();
        hand.session.take_events();
        hand
    }

    pub fn request(&mut self, kind: ResourceType, names: Names, held: Held, answer: Option<Answer>) {
        if let Names::All(names) = &names {
            self.listed.insert(kind, names.clone());
        }
        self.session.on_request(Request { kind, names, held, answer }, self.now);
    }

    pub fn names(&self, names: &[&str]) -> Names {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        match self.protocol {
            Protocol::Sotw => Names::All(names),
            Protocol::Delta => Names::Change { subscribe: names, unsubscribe: Vec::new() },
        }
    }

    pub fn subscribe(&mut self, kind: ResourceType, names: &[&str]) {
        self.request(kind, self.names(names), Held::Nothing, None);
    }

    pub fn unsubscribe(&mut self, kind: ResourceType, names: &[&str]) {
        let unsubscribe = names.iter().map(|name| (*name).to_owned()).collect();
        self.request(kind, Names::Change { subscribe: Vec::new(), unsubscribe }, Held::Nothing, None);
    }

    pub fn claim(&mut self, kind: ResourceType, names: &[&str], versions: &[(&str, &str)]) {
        let held = versions.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned()));
        self.request(kind, self.names(names), Held::Each(held.collect()), None);
    }

    pub fn answer(&mut self, response: &Response, error: Option<&str>) {
        let answer = Answer { nonce: response.nonce.clone(), error: error.map(str::to_owned) };
        let names = match self.protocol {
            Protocol::Sotw => Names::All(self.listed[&response.kind].clone()),
            Protocol::Delta => self.names(&[]),
        };
        self.request(response.kind, names, Held::Nothing, Some(answer));
    }

    pub fn publish(&mut self, contents: &[Content]) {
        self.session.on_snapshot(snapshot(contents), self.now);
    }

    pub fn wait(&mut self, time: Duration) {
        self.now += time;
        self.session.on_timer(self.now);
    }

    pub fn take(&mut self) -> Vec<Response> {
        self.session.take_responses()
    }

    /// Returns the one response there is.
    #[track_caller]
    pub fn one(&mut self) -> Response {
        let mut responses = self.take();
        assert_eq!(responses.len(), 1, "{responses:?}");
        responses.remove(0)
    }

    pub fn ack_all(&mut self) {
        loop {
            let responses = self.take();
            if responses.is_empty() {
                return;
            }
            for response in &responses {
                self.answer(response, None);
            }
        }
    }

    /// Returns what the responses say: type, names sent, names removed.
    pub fn summary(&mut self) -> Vec<(ResourceType, Vec<String>, Vec<String>)> {
        self.take().iter().map(|response| said(self.protocol, response)).collect()
    }
}

fn names_of(contents: &[Content], kind: ResourceType) -> Vec<String> {
    snapshot(contents).of(kind).keys().map(|name| name.to_string()).collect()
}

pub fn said(protocol: Protocol, response: &Response) -> (ResourceType, Vec<String>, Vec<String>) {
    let message = response.frame.message();
    match protocol {
        Protocol::Delta => {
            let message = DeltaDiscoveryResponse::decode(message).unwrap();
            let names = message.resources.into_iter().map(|resource| resource.name);
            (response.kind, names.collect(), message.removed_resources)
        }
        Protocol::Sotw => {
            let message = DiscoveryResponse::decode(message).unwrap();
            let names = message.resources.iter().map(|any| match super::world::read(&any.value) {
                Content::Cluster(spec) => spec.name,
                Content::Listener(spec) => spec.name,
                Content::Route(spec) => spec.name,
                Content::Assignment(name, _) | Content::Secret(name, _) => name,
            });
            (response.kind, names.collect(), Vec::new())
        }
    }
}

pub fn sent(kind: ResourceType, names: &[&str]) -> (ResourceType, Vec<String>, Vec<String>) {
    (kind, names.iter().map(|name| (*name).to_owned()).collect(), Vec::new())
}

pub fn removed(kind: ResourceType, names: &[&str]) -> (ResourceType, Vec<String>, Vec<String>) {
    (kind, Vec::new(), names.iter().map(|name| (*name).to_owned()).collect())
}

pub fn hosts(response: &Response) -> Vec<String> {
    let message = DeltaDiscoveryResponse::decode(response.frame.message()).unwrap();
    match super::world::read(&message.resources[0].resource.as_ref().unwrap().value) {
        Content::Route(route) => {
            route.hosts.into_iter().map(|host| format!("{}->{:?}", host.name, host.clusters)).collect()
        }
        other => panic!("not a route: {other:?}"),
    }
}
