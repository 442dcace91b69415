//! One client on one ADS stream: what it has, what it should have, and the order in which it gets there.
//!
//! **Invariant:** nothing here does I/O or reads a clock. Requests, snapshots and times go in; responses, events and
//! the time at which to be called again come out.
//!
//! ```text
//!            Make                      Switch                          Break
//! clusters ────────▶ (warm) ──▶ listeners ──▶ routes ──▶ (acked) ──▶ clusters that nobody names any more
//!     └─▶ endpoints, secrets: whenever asked for, and after every cluster update
//! ```
//!
//! SotW and delta differ in what a request says about subscriptions and in whether a response of clusters or
//! listeners holds all of them or only the changes. All else is one state machine.

mod absence;
mod answer;
mod channel;
mod leaving;
mod make;
mod status;
mod subscribe;
mod switch;
mod wanted;
mod warmth;

pub use status::{ChannelState, ChannelStatus, Distance, Quarantined, SessionStatus};

use crate::encode::{Encoder, Frame, Head, set_version};
use absence::Absences;
use channel::{Changes, Channel, Sent};
use leaving::Waiting;
use proto::resource::{Resource, ResourceType, Snapshot, Warming};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
pub(crate) use wanted::Lists;
use warmth::{Released, Warmth};

/// A client that comes with clusters and does not ask for listeners for so long has none that could use them.
const LISTENERS_EXPECTED: Duration = Duration::from_secs(600);

/// The two forms of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// State of the world: `StreamAggregatedResources`.
    Sotw,
    /// Incremental: `DeltaAggregatedResources`.
    Delta,
}

/// How patient a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long routes wait for a cluster that resolves a name.
    pub dns_grace: Duration,
    /// How long routes wait for any other cluster.
    pub grace: Duration,
    /// How long a destination may be missing before that is believed: routes do not switch to it and it is not taken
    /// away from them.
    pub absence_grace: Duration,
    /// How long endpoints wait for routes that are to leave their cluster.
    pub endpoint_grace: Duration,
    /// After how long an unanswered response no longer holds anything back.
    pub answer_timeout: Duration,
    /// How long the client keeps replaced listeners alive.
    pub drain_time: Duration,
    /// Secrets that are made when somebody asks for them: one that a snapshot lacks may still come.
    pub on_demand: &'static [&'static str],
}

impl Options {
    /// Two seconds for DNS and for endpoints, five for what does not exist, fifteen for all else, and Envoy's drain time as Istio sets
    /// it.
    pub const STANDARD: Self = Self {
        dns_grace: Duration::from_secs(2),
        grace: Duration::from_secs(15),
        absence_grace: Duration::from_secs(5),
        endpoint_grace: Duration::from_secs(2),
        answer_timeout: Duration::from_secs(15),
        drain_time: Duration::from_secs(45),
        on_demand: &[],
    };
}

/// A discovery request, whichever protocol it came by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The type asked for.
    pub kind: ResourceType,
    /// What is subscribed to.
    pub names: Names,
    /// What the client brought along from an earlier stream. Only the first request of a type may say so.
    pub held: Held,
    /// The response that this answers.
    pub answer: Option<Answer>,
}

/// The subscription part of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    /// All names wanted (SotW).
    All(Vec<String>),
    /// The difference from what was wanted before (delta).
    Change {
        /// Names wanted in addition, or again.
        subscribe: Vec<String>,
        /// Names no longer wanted.
        unsubscribe: Vec<String>,
    },
}

/// What a client says it has when a stream begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nothing.
    Nothing,
    /// The set with this version (SotW).
    Set(String),
    /// These versions by name (delta).
    Each(BTreeMap<String, String>),
}

/// The answer part of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The nonce of the response.
    pub nonce: String,
    /// Why it was rejected; `None` is an acknowledgement.
    pub error: Option<String>,
}

/// A response to be written to the stream.
#[derive(Clone, Debug)]
pub struct Response {
    /// The type of its resources.
    pub kind: ResourceType,
    /// Its nonce.
    pub nonce: String,
    /// How many resources it holds.
    pub resources: usize,
    /// How many it removes.
    pub removed: usize,
    /// The encoded message.
    pub frame: Frame,
}

/// Something that others want to know: the source of snapshots, status and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The subscription changed. A snapshot whose `covers` is at least `revision` has taken it into account.
    Subscribed {
        /// The type.
        kind: ResourceType,
        /// The number of this change.
        revision: u64,
        /// Whether everything is wanted.
        wildcard: bool,
        /// Names newly wanted.
        added: Vec<Arc<str>>,
        /// Names no longer wanted.
        removed: Vec<Arc<str>>,
    },
    /// The client has taken up resources: it acknowledged them, or brought them along from an earlier stream.
    Acked {
        /// The type.
        kind: ResourceType,
        /// Their new forms by name; `None` is a removal.
        changes: BTreeMap<Arc<str>, Option<Arc<Resource>>>,
        /// How long the oldest of the settled responses had been under way. None if they were brought along.
        took: Option<Duration>,
    },
    /// A response was rejected.
    Nacked {
        /// The type.
        kind: ResourceType,
        /// The client's words.
        message: String,
        /// What is to blame, and is quarantined. Empty if that is still to be found out.
        culprits: Vec<Arc<Resource>>,
    },
    /// Routes and listeners no longer wait for a cluster, although nothing shows that it has warmed.
    GraceExpired {
        /// The cluster.
        cluster: Arc<str>,
        /// What it waits for.
        warming: Warming,
    },
    /// Routes or listeners name a cluster that has been missing for as long as that is doubted. They are sent as they
    /// are, and the client loses the cluster if it still has it.
    Absent {
        /// The cluster.
        cluster: Arc<str>,
    },
    /// Clusters without evidence in a response that was not answered in time.
    Stuck {
        /// The clusters.
        clusters: Vec<Arc<str>>,
    },
    /// A request carried a nonce that this stream never sent.
    UnknownNonce {
        /// The type.
        kind: ResourceType,
    },
}

/// A listener that was replaced or removed and may still serve.
#[derive(Debug)]
struct Draining {
    listener: Arc<Resource>,
    /// When it is gone; unknown while its successor warms.
    until: Option<Instant>,
}

/// The protocol state of one client on one stream.
#[derive(Debug)]
pub struct Session {
    protocol: Protocol,
    options: Options,
    encoder: Arc<Encoder>,
    /// Makes nonces of different streams differ.
    stream: u64,
    snapshot: Arc<Snapshot>,
    started: Instant,
    now: Instant,
    seq: u64,
    revision: u64,
    channels: [Channel; 5],
    warmth: Warmth,
    absences: Absences,
    waiting: Waiting,
    /// The client asked for listeners: from here on a CDS acknowledgement means that its clusters are warm.
    initialised: bool,
    /// When the client asked for listeners, if it did so before asking for clusters.
    clusters_missed_since: Option<Instant>,
    /// The number of the first response with listeners; 0 before it is sent.
    first_listeners: u64,
    draining: Vec<Draining>,
    /// The client had state when it came: it may use clusters that nothing known here names.
    reconnected: bool,
    /// Since when all listeners can serve that the client brought along, or that took the place of unknown ones. Until
    /// then, unknown ones before them do.
    listeners_warm_since: Option<Instant>,
    /// Claims may have become comparable with the snapshot.
    claims_due: bool,
    responses: Vec<Response>,
    events: Vec<Event>,
}

impl Session {
    /// Starts a session on stream number `stream`, with the first snapshot.
    pub fn new(
        protocol: Protocol,
        options: Options,
        encoder: Arc<Encoder>,
        stream: u64,
        snapshot: Arc<Snapshot>,
        now: Instant,
    ) -> Self {
        Self {
            protocol,
            options,
            encoder,
            stream,
            snapshot,
            started: now,
            now,
            seq: 0,
            revision: 0,
            channels: ResourceType::ALL.map(|kind| Channel::new(kind, options.on_demand)),
            warmth: Warmth::default(),
            absences: Absences::default(),
            waiting: Waiting::default(),
            initialised: false,
            clusters_missed_since: None,
            first_listeners: 0,
            draining: Vec::new(),
            reconnected: false,
            listeners_warm_since: None,
            claims_due: false,
            responses: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Takes a request of the client.
    pub fn on_request(&mut self, request: Request, now: Instant) {
        let Request { kind, names, held, answer } = request;
        if let Some(answer) = answer {
            self.on_answer(kind, &answer, now);
        }
        self.on_subscription(kind, names, held, now);
        self.pump(now);
    }

    /// Takes a new snapshot. Only the newest one counts: what was not sent of an earlier one never will be.
    pub fn on_snapshot(&mut self, snapshot: Arc<Snapshot>, now: Instant) {
        let previous = std::mem::replace(&mut self.snapshot, snapshot);
        let mut references_changed = false;
        for channel in &mut self.channels {
            let (old, new) = (previous.of(channel.kind), self.snapshot.of(channel.kind));
            if old.ptr_eq(new) {
                continue;
            }
            for difference in old.diff(new) {
                let (name, removed) = match difference {
                    imbl::ordmap::DiffItem::Add(name, _) => (name, false),
                    imbl::ordmap::DiffItem::Update { new: (name, _), .. } => (name, false),
                    imbl::ordmap::DiffItem::Remove(name, _) => (name, true),
                };
                match channel.kind {
                    ResourceType::Cluster if !removed => self.absences.end(name),
                    ResourceType::Listener | ResourceType::RouteConfiguration => references_changed = true,
                    _ => {}
                }
                // Endpoints, routes and secrets end by the client's unsubscribing.
                let ends = matches!(channel.kind, ResourceType::Cluster | ResourceType::Listener);
                if channel.subscribes(name) && (ends || !removed) {
                    channel.dirty.insert(name.clone());
                }
            }
        }
        if references_changed && !self.absences.is_empty() {
            let snapshot = self.snapshot.clone();
            self.absences.retain(|cluster| is_named(&snapshot, cluster));
        }
        self.claims_due = true;
        self.pump(now);
    }

    /// Lets time pass. To be called at [`next_deadline`](Self::next_deadline), and harmless at any other time.
    pub fn on_timer(&mut self, now: Instant) {
        self.pump(now);
    }

    /// Returns when [`on_timer`](Self::on_timer) has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        let mut next = None;
        // What was due by the last call has been dealt with.
        let mut consider = |deadline: Instant| {
            if deadline > self.now && next.is_none_or(|next| deadline < next) {
                next = Some(deadline);
            }
        };
        self.warmth.deadlines(&self.options).for_each(&mut consider);
        self.absences.deadlines(self.options.absence_grace).for_each(&mut consider);
        self.waiting.deadlines(self.options.endpoint_grace).for_each(&mut consider);
        for channel in &self.channels {
            let waits = !channel.dirty.is_empty() || !channel.suspects.is_empty() || channel.answer_due;
            if (waits || channel.kind == ResourceType::Cluster)
                && let Some(sent) = channel.outstanding.back()
            {
                consider(sent.at + self.options.answer_timeout);
            }
        }
        if !self.channel(ResourceType::Cluster).dirty.is_empty() {
            self.draining.iter().filter_map(|draining| draining.until).for_each(&mut consider);
            if self.reconnected {
                consider(self.started + LISTENERS_EXPECTED);
                if let Some(since) = self.listeners_warm_since {
                    consider(since + self.options.drain_time);
                }
            }
        }
        if let Some(since) = self.clusters_missed_since {
            consider(since + self.options.answer_timeout);
        }
        next
    }

    /// Takes the responses to be written, in order.
    pub fn take_responses(&mut self) -> Vec<Response> {
        std::mem::take(&mut self.responses)
    }

    /// Takes what happened since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    fn channel(&self, kind: ResourceType) -> &Channel {
        &self.channels[kind as usize]
    }

    fn channel_mut(&mut self, kind: ResourceType) -> &mut Channel {
        &mut self.channels[kind as usize]
    }

    /// Whether the client gets its clusters without asking for each: then routes wait for them. A client that asks
    /// for all listeners before it asks for any cluster is Envoy on a new stream with clusters still warming.
    fn gated(&self) -> bool {
        let clusters = self.channel(ResourceType::Cluster);
        clusters.wildcard || (!clusters.requested && self.channel(ResourceType::Listener).wildcard)
    }

    /// Sends whatever can be sent now, in make-before-break order.
    fn pump(&mut self, now: Instant) {
        self.now = self.now.max(now);
        let now = self.now;
        self.expire(now);
        self.resolve_claims();
        let listeners_known = self.initialised || now >= self.started + LISTENERS_EXPECTED;
        if self.reconnected && listeners_known && self.listeners_warm_since.is_none() && self.listeners_warm()
        {
            self.listeners_warm_since = Some(now);
        }
        self.push_clusters(now);
        self.push_named(ResourceType::ClusterLoadAssignment, now);
        self.push_named(ResourceType::Secret, now);
        self.push_listeners(now);
        self.push_routes(now);
        for channel in &mut self.channels {
            channel.adopt(&self.snapshot, self.encoder.lists());
        }
    }

    fn expire(&mut self, now: Instant) {
        if let Some(oldest) = self.channel(ResourceType::Cluster).outstanding.front()
            && now >= oldest.at + self.options.answer_timeout
        {
            let seq = oldest.seq;
            let clusters = self.warmth.mark_stuck(seq);
            if !clusters.is_empty() {
                self.events.push(Event::Stuck { clusters });
            }
        }
        let released = self.warmth.expire(now, &self.options);
        self.report_released(released);
        let absent = self.absences.expire(now, self.options.absence_grace);
        self.events.extend(absent.into_iter().map(|cluster| Event::Absent { cluster }));
        self.expire_draining(now);
        if let Some(since) = self.clusters_missed_since
            && now >= since + self.options.answer_timeout
        {
            self.assume_clusters();
        }
    }

    fn report_released(&mut self, released: Vec<Released>) {
        self.events.extend(
            released
                .into_iter()
                .map(|Released { cluster, warming }| Event::GraceExpired { cluster, warming }),
        );
    }

    /// Sends a response with `changes`, and remembers it until it is answered.
    fn send(&mut self, kind: ResourceType, changes: Changes, now: Instant) {
        self.seq += 1;
        if kind == ResourceType::Listener && self.first_listeners == 0 {
            self.first_listeners = self.seq;
        }
        let nonce = self.nonce(self.seq);
        let channel = &self.channels[kind as usize];
        let complete = self.complete(kind);
        let mut changes = changes;
        if complete {
            // It would repeat what was rejected while further responses were on their way, and be rejected for that.
            let unanswered = channel.outstanding.iter().flat_map(|sent| sent.changes.values().flatten());
            let rejected = unanswered.filter(|form| channel.is_quarantined(form.name(), form.version()));
            for form in rejected.map(|form| form.name().clone()).collect::<BTreeSet<_>>() {
                let acked = channel.acked.get(&form).cloned();
                changes.entry(form).or_insert(acked);
            }
        }

        let set = if self.protocol == Protocol::Sotw {
            let mut set = channel.sent_set();
            channel::apply(&mut set, &changes);
            Some(set)
        } else {
            None
        };
        let changed: Vec<&Arc<Resource>> = changes.values().flatten().collect();
        let version = match &set {
            Some(set) => set_version(set.values()),
            None => set_version(changed.iter().copied()),
        };
        let resources: Vec<&Resource> = match &set {
            Some(set) if complete => set.values().map(Arc::as_ref).collect(),
            _ => changed.into_iter().map(Arc::as_ref).collect(),
        };
        let removed: Vec<&str> = match self.protocol {
            Protocol::Delta => {
                changes.iter().filter(|(_, change)| change.is_none()).map(|(name, _)| &**name).collect()
            }
            Protocol::Sotw => Vec::new(),
        };
        let head = Head { protocol: self.protocol, kind, version: &version, nonce: &nonce };
        let frame = self.encoder.frame(head, &resources, &removed);
        let (resources, removed) = (resources.len(), removed.len());
        self.responses.push(Response { kind, nonce, resources, removed, frame });

        let seq = self.seq;
        let channel = self.channel_mut(kind);
        if complete {
            // The response repeats what earlier ones said, and its answer is about all of it.
            let mut repeated = Changes::new();
            for sent in &channel.outstanding {
                repeated.extend(sent.changes.clone());
            }
            repeated.append(&mut changes);
            changes = repeated;
        }
        let alone = std::mem::take(&mut channel.alone);
        channel.record(Sent { seq, at: now, version, alone, changes });
        let retry = std::mem::take(&mut channel.retry);
        channel.dirty.extend(retry);
    }

    fn nonce(&self, seq: u64) -> String {
        format!("{:x}-{seq}", self.stream)
    }

    /// Returns the number of the response with this nonce, if this stream sent it.
    fn seq_of(&self, nonce: &str) -> Option<u64> {
        let (stream, seq) = nonce.split_once('-')?;
        let stream = u64::from_str_radix(stream, 16).ok()?;
        let seq = seq.parse().ok()?;
        (stream == self.stream && (1..=self.seq).contains(&seq)).then_some(seq)
    }

    /// Returns the names of `kind` that may have to be sent.
    fn candidates(&self, kind: ResourceType) -> BTreeSet<Arc<str>> {
        let channel = self.channel(kind);
        channel.dirty.union(&channel.owed).cloned().collect()
    }

    /// While the culprit of a rejection is searched, lets only one suspect through. A SotW response that holds
    /// everything takes back what was sent and not acknowledged: another suspect may be among it.
    fn isolate(&mut self, kind: ResourceType, mut changes: Changes, now: Instant) -> Changes {
        let complete = self.complete(kind);
        let timeout = self.options.answer_timeout;
        let channel = self.channel_mut(kind);
        if channel.blocked(now, timeout) {
            // Subscriptions are answered meanwhile, but to learn about a suspect takes an answer.
            changes.retain(|name, _| !channel.suspects.contains(name));
            return changes;
        }
        let Some((suspect, change)) = channel.suspects.iter().find_map(|name| changes.get_key_value(name))
        else {
            return changes;
        };
        channel.alone = true;
        let mut alone = Changes::from([(suspect.clone(), change.clone())]);
        if complete {
            let unanswered = channel.outstanding.iter().flat_map(|sent| sent.changes.keys());
            let unanswered: BTreeSet<Arc<str>> =
                unanswered.filter(|name| *name != suspect).cloned().collect();
            for name in unanswered {
                alone.insert(name.clone(), channel.acked.get(&name).cloned());
                channel.retry.insert(name);
            }
        }
        alone
    }

    /// Whether responses hold everything that is subscribed to.
    fn complete(&self, kind: ResourceType) -> bool {
        self.protocol == Protocol::Sotw && matches!(kind, ResourceType::Cluster | ResourceType::Listener)
    }
}

/// Whether a route or listener of `snapshot` names the cluster.
fn is_named(snapshot: &Snapshot, cluster: &str) -> bool {
    let mut users = snapshot.listeners.values().chain(snapshot.routes.values());
    users.any(|user| user.needs().clusters.contains(cluster))
}
