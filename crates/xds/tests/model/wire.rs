//! A session and a client, with messages between them that arrive in order but whenever the test says so.

use super::envoy::{Character, Envoy};
use super::world::{Content, Quality, read, successor};
use prost::Message;
use proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use proto::resource::{ResourceType, Snapshot};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use xds::encode::Encoder;
use xds::session::{Event, Names, Options, Protocol, Request, Response, Session};

/// The drain time of the model, shorter than the standard so that tests see the end of it.
pub const DRAIN: u64 = 20_000;

pub struct Wire {
    pub client: Envoy,
    pub session: Session,
    pub snapshot: Arc<Snapshot>,
    pub events: Vec<Event>,
    /// Clusters that were released without evidence, on any stream.
    pub released: BTreeSet<String>,
    /// Clusters whose absence was believed.
    pub absent: BTreeSet<String>,
    /// Pairs of a host or listener and a cluster that nobody had when the client was first sent something there.
    pub dangling: BTreeSet<(String, String)>,
    /// Responses on their way.
    pub responses: VecDeque<Response>,
    pub sent: usize,
    /// Whether references are checked.
    pub strict: bool,
    encoder: Arc<Encoder>,
    start: Instant,
    now: Instant,
    streams: u64,
    /// The clusters that the client has once it has read everything.
    held: BTreeSet<String>,
    /// What the server knows to be subscribed to.
    assignments: BTreeSet<String>,
}

impl Wire {
    pub fn new(character: Character, snapshot: Arc<Snapshot>) -> Self {
        let encoder = Arc::new(Encoder::new("test", 1 << 20));
        let start = Instant::now();
        let session =
            Session::new(character.protocol, options(), encoder.clone(), 1, snapshot.clone(), start);
        let mut wire = Self {
            client: Envoy::new(character),
            session,
            snapshot,
            events: Vec::new(),
            released: BTreeSet::new(),
            absent: BTreeSet::new(),
            dangling: BTreeSet::new(),
            responses: VecDeque::new(),
            sent: 0,
            strict: true,
            encoder,
            start,
            now: start,
            streams: 1,
            held: BTreeSet::new(),
            assignments: BTreeSet::new(),
        };
        wire.client.connect();
        wire
    }

    pub fn publish(&mut self, snapshot: &Snapshot) {
        self.snapshot = successor(&self.snapshot, snapshot);
        self.session.on_snapshot(self.snapshot.clone(), self.now);
        self.collect();
    }

    /// Breaks the stream: what is on its way is lost, and the client connects again.
    pub fn reconnect(&mut self) {
        self.streams += 1;
        self.responses.clear();
        self.assignments.clear();
        self.held = self.client.clusters.keys().cloned().collect();
        self.session = Session::new(
            self.client.character.protocol,
            options(),
            self.encoder.clone(),
            self.streams,
            self.snapshot.clone(),
            self.now,
        );
        self.client.connect();
    }

    /// Delivers the client's oldest request.
    pub fn deliver_request(&mut self) -> bool {
        let Some(message) = self.client.take_request() else { return false };
        if let Some(request) = message.into_request() {
            if std::env::var_os("XDS_TRACE").is_some() {
                eprintln!("<- {request:?}");
            }
            self.note_subscription(&request);
            self.session.on_request(request, self.now);
            self.collect();
        }
        true
    }

    /// Delivers the server's oldest response.
    pub fn deliver_response(&mut self) -> bool {
        let Some(response) = self.responses.pop_front() else { return false };
        self.client.on_frame(&response.frame);
        true
    }

    /// Lets time pass, and calls the session whenever it wants to be called.
    pub fn advance(&mut self, millis: u64) {
        let end = self.now + Duration::from_millis(millis);
        while let Some(deadline) = self.session.next_deadline().filter(|deadline| *deadline <= end) {
            assert!(deadline > self.now, "a deadline in the past would make the driver spin");
            let passed = deadline - self.now;
            self.now = deadline;
            self.client.advance(u64::try_from(passed.as_millis()).expect("a short time"));
            self.session.on_timer(self.now);
            self.collect();
        }
        self.client.advance(u64::try_from((end - self.now).as_millis()).expect("a short time"));
        self.now = end;
    }

    /// Delivers everything until nothing moves, without letting time pass.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.deliver_request() && !self.deliver_response() {
                return;
            }
            self.check_references();
        }
        panic!("messages go back and forth without end");
    }

    /// Delivers everything, and lets pass all time that anything waits for.
    pub fn finish(&mut self) {
        for _ in 0..40 {
            self.settle();
            self.advance(5_000);
            self.check_references();
        }
        let before = self.sent;
        self.settle();
        self.advance(120_000);
        self.settle();
        assert!(self.sent <= before + 1, "responses are sent although nothing changes");
    }

    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// (a) What is in use names only clusters that serve, unless they had their grace, there or not, or the client had
    /// nothing that a wait could protect.
    pub fn check_references(&self) {
        if !self.strict {
            return;
        }
        for (user, cluster) in self.client.references() {
            if self.client.serves(&cluster)
                || self.released.contains(&cluster)
                || self.absent.contains(&cluster)
                || self.dangling.contains(&(user.clone(), cluster.clone()))
            {
                continue;
            }
            panic!("{user} names {cluster}, which cannot be used: {:#?}", self.client);
        }
    }

    fn note_subscription(&mut self, request: &Request) {
        if request.kind != ResourceType::ClusterLoadAssignment {
            return;
        }
        match &request.names {
            Names::All(names) => self.assignments = names.iter().cloned().collect(),
            Names::Change { subscribe, unsubscribe } => {
                for name in unsubscribe {
                    self.assignments.remove(name);
                }
                self.assignments.extend(subscribe.iter().cloned());
            }
        }
    }

    fn collect(&mut self) {
        let events = self.session.take_events();
        for event in &events {
            match event {
                Event::GraceExpired { cluster, .. } => drop(self.released.insert(cluster.to_string())),
                Event::Absent { cluster } => drop(self.absent.insert(cluster.to_string())),
                _ => {}
            }
        }
        self.events.extend(events);
        let responses = self.session.take_responses();
        self.sent += responses.len();
        if std::env::var_os("XDS_TRACE").is_some() {
            for response in &responses {
                eprintln!(
                    "-> {} {} {:?} removed {}",
                    response.kind,
                    response.nonce,
                    self.contents(response),
                    response.removed
                );
            }
        }
        self.note_held(&responses);
        self.note_dangling(&responses);
        self.check_endpoints(&responses);
        self.responses.extend(responses);
    }

    pub fn contents(&self, response: &Response) -> Vec<Content> {
        let message = response.frame.message();
        match self.client.character.protocol {
            Protocol::Sotw => {
                let response = DiscoveryResponse::decode(message).expect("a valid response");
                response.resources.iter().map(|any| read(&any.value)).collect()
            }
            Protocol::Delta => {
                let response = DeltaDiscoveryResponse::decode(message).expect("a valid response");
                let resources = response.resources.into_iter();
                resources.map(|resource| read(&resource.resource.expect("a resource").value)).collect()
            }
        }
    }

    fn note_held(&mut self, responses: &[Response]) {
        for response in responses.iter().filter(|response| response.kind == ResourceType::Cluster) {
            match self.client.character.protocol {
                Protocol::Sotw => self.held.clear(),
                Protocol::Delta => {
                    let message = response.frame.message();
                    let response = DeltaDiscoveryResponse::decode(message).expect("a valid response");
                    for name in &response.removed_resources {
                        self.held.remove(name);
                    }
                }
            }
            for content in self.contents(response) {
                if let Content::Cluster(cluster) = content
                    && cluster.quality == Quality::Good
                {
                    self.held.insert(cluster.name);
                }
            }
        }
    }

    /// A destination that does not exist anywhere is sent at once only to a client that has nothing there yet, or that
    /// names it already. One that the client rejected is sent as it is.
    fn note_dangling(&mut self, responses: &[Response]) {
        let status = self.session.status();
        let acked = |kind: ResourceType, name: &str| {
            status.channels[kind as usize].acked.get(name).map(|acked| read(acked.bytes()))
        };
        let mut dangling = Vec::new();
        for resource in self.snapshot.listeners.values().chain(self.snapshot.routes.values()) {
            if acked(resource.kind(), resource.name()).is_none() {
                let users = users(read(resource.bytes())).into_iter();
                dangling
                    .extend(users.filter(|(_, name)| !self.snapshot.clusters.contains_key(name.as_str())));
            }
        }
        for response in responses {
            for content in self.contents(response) {
                let name = match &content {
                    Content::Listener(listener) => &listener.name,
                    Content::Route(route) => &route.name,
                    _ => continue,
                };
                let known = acked(response.kind, name).map(named).unwrap_or_default();
                for (unit, user) in named(content.clone()).into_iter().zip(users(content)) {
                    let quarantined = &status.channels[ResourceType::Cluster as usize].quarantined;
                    let rejected = quarantined.iter().any(|rejected| *rejected.name == *unit.1);
                    if !self.held.contains(&unit.1) && (rejected || known.contains(&unit)) {
                        dangling.push(user);
                    }
                }
            }
        }
        self.dangling.extend(dangling);
    }

    /// (b) Every cluster that is sent is followed by its endpoints, if they are subscribed to.
    fn check_endpoints(&self, responses: &[Response]) {
        for (index, response) in responses.iter().enumerate() {
            if response.kind != ResourceType::Cluster || self.client.character.protocol == Protocol::Sotw {
                continue;
            }
            for content in self.contents(response) {
                let Content::Cluster(cluster) = content else { continue };
                if !self.assignments.contains(&cluster.name)
                    || !self.snapshot.assignments.contains_key(cluster.name.as_str())
                    || cluster.warming != super::world::Kind::Eds
                {
                    continue;
                }
                let followed = responses[index..].iter().any(|later| {
                    self.contents(later).iter().any(
                        |content| matches!(content, Content::Assignment(name, _) if *name == cluster.name),
                    )
                });
                assert!(followed, "{} is sent without its endpoints", cluster.name);
            }
        }
    }
}

/// Returns the names of what of a resource names clusters, with each cluster that it names, in the order of [`users`].
fn named(content: Content) -> Vec<(String, String)> {
    match content {
        Content::Listener(listener) => {
            listener.clusters.into_iter().map(|cluster| (listener.name.clone(), cluster)).collect()
        }
        Content::Route(route) => {
            let hosts = route.hosts.into_iter();
            hosts.flat_map(|host| host.clusters.into_iter().map(move |c| (host.name.clone(), c))).collect()
        }
        _ => Vec::new(),
    }
}

/// Returns what of a resource names clusters, with each cluster that it names.
fn users(content: Content) -> Vec<(String, String)> {
    let of = |user: String, clusters: BTreeSet<String>| {
        clusters.into_iter().map(move |cluster| (user.clone(), cluster)).collect::<Vec<_>>()
    };
    match content {
        Content::Listener(listener) => of(format!("{listener:?}"), listener.clusters),
        Content::Route(route) => {
            route.hosts.into_iter().flat_map(|host| of(format!("{host:?}"), host.clusters)).collect()
        }
        _ => Vec::new(),
    }
}

fn options() -> Options {
    Options { drain_time: Duration::from_millis(DRAIN), ..Options::STANDARD }
}
