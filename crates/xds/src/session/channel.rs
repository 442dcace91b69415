//! What one client has, was sent and asks for, of one resource type.

use proto::resource::{Resource, ResourceSet, ResourceType, Snapshot};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::wanted::{Lists, Wanted};

/// New forms of resources by name; `None` is a removal.
pub(crate) type Changes = BTreeMap<Arc<str>, Option<Arc<Resource>>>;

/// From here on the oldest unanswered responses are counted as one, so that a client that never answers does not
/// make its session grow.
const MAX_OUTSTANDING: usize = 8;

/// How many rejected versions of one resource are remembered.
const MAX_QUARANTINED: usize = 8;

/// A response that was not answered yet.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) seq: u64,
    pub(crate) at: Instant,
    pub(crate) version: String,
    /// It carries one suspect, to find out about it.
    pub(crate) alone: bool,
    pub(crate) changes: Changes,
}

/// A version that a client rejected.
#[derive(Debug)]
pub(crate) struct Rejected {
    pub(crate) version: Arc<str>,
    /// The last response that had been sent by then.
    at: u64,
    /// The client's words.
    pub(crate) words: Arc<str>,
}

/// What a client should have under a name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Desired<'a> {
    /// This.
    Is(&'a Arc<Resource>),
    /// Whatever it has: the newest form was rejected.
    Keep,
    /// Nothing.
    Absent,
}

/// The state of one resource type on one stream.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) kind: ResourceType,
    /// Names that are made when somebody asks for them.
    pub(crate) on_demand: &'static [&'static str],
    /// The client asked for this type on this stream.
    pub(crate) requested: bool,
    /// Everything is wanted.
    pub(crate) wildcard: bool,
    /// Names or `*` were given, so that an empty list no longer means everything.
    pub(crate) explicit: bool,
    /// The names wanted.
    pub(crate) names: Wanted,
    /// What the client has acknowledged.
    pub(crate) acked: ResourceSet,
    /// What was sent since, oldest first.
    pub(crate) outstanding: VecDeque<Sent>,
    /// What was part of a rejected response, until the next acknowledgement.
    pub(crate) doubtful: Vec<Arc<Resource>>,
    /// Names of `doubtful` that the client had nothing under before.
    pub(crate) perhaps: BTreeSet<Arc<str>>,
    /// Versions of unknown content that the client brought along from an earlier stream.
    pub(crate) claimed: BTreeMap<Arc<str>, Arc<str>>,
    /// The version of everything it has, that a SotW client brought along.
    pub(crate) claimed_set: Option<String>,
    /// Names whose newest form may differ from what was sent.
    pub(crate) dirty: BTreeSet<Arc<str>>,
    /// Names that are owed an answer even if nothing changed.
    pub(crate) owed: BTreeSet<Arc<str>>,
    /// The subscription is owed an answer even if it holds nothing.
    pub(crate) answer_due: bool,
    /// The versions that this client rejected, by name.
    pub(crate) quarantine: BTreeMap<Arc<str>, Vec<Rejected>>,
    /// Names one of which made a response be rejected: they are sent one at a time.
    pub(crate) suspects: BTreeSet<Arc<str>>,
    /// The response being made carries one suspect.
    pub(crate) alone: bool,
    /// Names that the response being made takes back, to be sent again later.
    pub(crate) retry: BTreeSet<Arc<str>>,
    /// Names whose removal was part of a rejected response: gone, but a delta client goes on to claim them until they
    /// are removed by a response that it accepts.
    pub(crate) removed_again: BTreeSet<Arc<str>>,
    /// The last nonce sent and the last one answered with an acknowledgement.
    pub(crate) sent_seq: u64,
    pub(crate) acked_seq: u64,
    /// The version of the last response, and of the last one acknowledged.
    pub(crate) sent_version: String,
    pub(crate) acked_version: String,
    /// Why the last answer was a rejection.
    pub(crate) error: Option<String>,
}

impl Channel {
    pub(crate) fn new(kind: ResourceType, secrets: &'static [&'static str]) -> Self {
        Self {
            kind,
            on_demand: if kind == ResourceType::Secret { secrets } else { &[] },
            requested: false,
            wildcard: false,
            explicit: false,
            names: Wanted::default(),
            acked: ResourceSet::new(),
            outstanding: VecDeque::new(),
            doubtful: Vec::new(),
            perhaps: BTreeSet::new(),
            claimed: BTreeMap::new(),
            claimed_set: None,
            dirty: BTreeSet::new(),
            owed: BTreeSet::new(),
            answer_due: false,
            quarantine: BTreeMap::new(),
            suspects: BTreeSet::new(),
            alone: false,
            retry: BTreeSet::new(),
            removed_again: BTreeSet::new(),
            sent_seq: 0,
            acked_seq: 0,
            sent_version: String::new(),
            acked_version: String::new(),
            error: None,
        }
    }

    pub(crate) fn subscribes(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// Whether a name is not in `snapshot` only because the subscription is too new for it, or because it is still
    /// being made.
    pub(crate) fn awaits(&self, snapshot: &Snapshot, name: &str) -> bool {
        let making = self.on_demand.contains(&name) && self.names.contains(name);
        (making || self.names.is_newer(name, snapshot.covers)) && !snapshot.of(self.kind).contains_key(name)
    }

    /// Returns what was sent last under `name` and not answered.
    pub(crate) fn pending(&self, name: &str) -> Option<Option<&Arc<Resource>>> {
        self.outstanding.iter().rev().find_map(|sent| sent.changes.get(name)).map(Option::as_ref)
    }

    /// Returns what the client has under `name` once it has read everything that was sent.
    pub(crate) fn sent(&self, name: &str) -> Option<&Arc<Resource>> {
        self.pending(name).unwrap_or_else(|| self.acked.get(name))
    }

    /// Whether the client has something under `name`, whatever it is.
    pub(crate) fn has(&self, name: &str) -> bool {
        match self.pending(name) {
            Some(sent) => sent.is_some(),
            None => self.acked.contains_key(name) || self.claimed.contains_key(name),
        }
    }

    /// Whether the client may have something under `name`.
    pub(crate) fn may_have(&self, name: &str) -> bool {
        self.has(name) || (self.pending(name).is_none() && self.perhaps.contains(name))
    }

    /// Returns everything that the client has once it has read what was sent.
    pub(crate) fn sent_set(&self) -> ResourceSet {
        let mut set = self.acked.clone();
        for sent in &self.outstanding {
            apply(&mut set, &sent.changes);
        }
        set
    }

    pub(crate) fn is_quarantined(&self, name: &str, version: &str) -> bool {
        self.quarantine
            .get(name)
            .is_some_and(|rejected| rejected.iter().any(|known| *known.version == *version))
    }

    /// Whether a form of `name` was quarantined when the response `seq` had already been sent.
    pub(crate) fn quarantined_since(&self, name: &str, seq: u64) -> bool {
        self.quarantine.get(name).is_some_and(|rejected| rejected.iter().any(|known| known.at >= seq))
    }

    /// Whether anything was quarantined when the response `seq` had already been sent.
    pub(crate) fn any_quarantined_since(&self, seq: u64) -> bool {
        self.quarantine.keys().any(|name| self.quarantined_since(name, seq))
    }

    /// Notes that the client rejected a resource in these words, when `at` was the last response sent.
    pub(crate) fn quarantine(&mut self, resource: &Resource, at: u64, words: Arc<str>) {
        let rejected = self.quarantine.entry(resource.name().clone()).or_default();
        rejected.retain(|known| known.version != *resource.version());
        if rejected.len() >= MAX_QUARANTINED {
            rejected.remove(0);
        }
        rejected.push(Rejected { version: resource.version().clone(), at, words });
    }

    /// Notes that the client accepted a resource after all.
    pub(crate) fn acquit(&mut self, resource: &Resource) {
        if let Some(rejected) = self.quarantine.get_mut(resource.name()) {
            rejected.retain(|known| known.version != *resource.version());
            if rejected.is_empty() {
                self.quarantine.remove(resource.name());
            }
        }
    }

    pub(crate) fn desired<'a>(&self, snapshot: &'a Snapshot, name: &str) -> Desired<'a> {
        match snapshot.of(self.kind).get(name) {
            None => Desired::Absent,
            Some(resource) if self.is_quarantined(name, resource.version()) => {
                let ends = matches!(self.kind, ResourceType::Cluster | ResourceType::Listener);
                // New, and perhaps there in a form that was never acknowledged: better absent than unknown.
                match ends && !self.acked.contains_key(name) && self.perhaps.contains(name) {
                    true => Desired::Absent,
                    false => Desired::Keep,
                }
            }
            Some(resource) => Desired::Is(resource),
        }
    }

    /// Whether sending `resource` would tell the client something new, or something that it is owed.
    pub(crate) fn differs(&self, resource: &Resource) -> bool {
        self.owed.contains(resource.name())
            || self.sent(resource.name()).is_none_or(|sent| sent.version() != resource.version())
    }

    /// Whether changes wait for an answer. A response that stays unanswered blocks nothing any longer.
    pub(crate) fn blocked(&self, now: Instant, timeout: Duration) -> bool {
        self.outstanding.back().is_some_and(|sent| now < sent.at + timeout)
    }

    /// Whether the client can have nothing of this type: it neither brought anything along nor was sent anything that
    /// still counts.
    fn is_untouched(&self) -> bool {
        self.acked.is_empty()
            && self.outstanding.is_empty()
            && self.claimed.is_empty()
            && self.quarantine.is_empty()
            && self.perhaps.is_empty()
            && self.suspects.is_empty()
            && self.doubtful.is_empty()
    }

    /// Returns what a client that has nothing is to be sent first: everything that it wants and `set` has. Nothing if
    /// each name has to be looked at. A thousand clients that start at once are what this is for.
    pub(crate) fn first_changes(&self, set: &ResourceSet) -> Option<Changes> {
        if !self.is_untouched() {
            return None;
        }
        let change = |(name, resource): (&Arc<str>, &Arc<Resource>)| (name.clone(), Some(resource.clone()));
        if self.wildcard {
            return self.owed.is_empty().then(|| set.iter().map(change).collect());
        }
        let wanted = &self.owed;
        if wanted.len() * 4 < set.len() || !self.dirty.is_subset(wanted) {
            return None;
        }
        // Both are sorted.
        let mut wanted = wanted.iter().peekable();
        let is_wanted = |(name, _): &(&Arc<str>, &Arc<Resource>)| {
            while wanted.next_if(|wanted| wanted < name).is_some() {}
            wanted.next_if(|wanted| wanted == name).is_some()
        };
        Some(set.iter().filter(is_wanted).map(change).collect())
    }

    /// Takes up the first response that the client acknowledges, if that makes it have exactly what `set` has. Returns
    /// whether it did; otherwise each name has to be looked at.
    pub(crate) fn accept_first(&mut self, settled: &[Sent], set: &ResourceSet) -> bool {
        let [Sent { changes, .. }] = settled else { return false };
        let is_whole = self.is_untouched()
            && changes.len() == set.len()
            && changes.iter().zip(set).all(|((name, change), (known, resource))| {
                name == known && change.as_ref().is_some_and(|change| Arc::ptr_eq(change, resource))
            })
            && (self.wildcard
                || (self.names.len() == set.len() && self.names.iter().all(|name| set.contains_key(name))));
        if is_whole {
            self.acked = set.clone();
        }
        is_whole
    }

    /// Takes up new forms of resources, if with these the client has exactly what `set` has. Returns whether it did;
    /// otherwise each name has to be looked at. `set` differs from what the client had in little, which costs no more.
    pub(crate) fn accept_updates(&mut self, settled: &[Sent], set: &ResourceSet) -> bool {
        let [Sent { changes, .. }] = settled else { return false };
        let is_plain = self.kind != ResourceType::Listener
            && self.acked.len() == set.len()
            && self.claimed.is_empty()
            && self.perhaps.is_empty()
            && self.quarantine.is_empty();
        if !is_plain {
            return false;
        }
        let mut updates = 0;
        for difference in self.acked.diff(set) {
            let imbl::ordmap::DiffItem::Update { new: (name, resource), .. } = difference else {
                return false;
            };
            let change = changes.get(name).and_then(Option::as_ref);
            if !change.is_some_and(|change| Arc::ptr_eq(change, resource)) {
                return false;
            }
            updates += 1;
        }
        if updates != changes.len() {
            return false;
        }
        self.acked = set.clone();
        true
    }

    pub(crate) fn record(&mut self, sent: Sent) {
        subtract(&mut self.owed, &sent.changes);
        subtract(&mut self.suspects, &sent.changes);
        self.answer_due = false;
        self.sent_seq = sent.seq;
        self.sent_version.clone_from(&sent.version);
        self.outstanding.push_back(sent);
        if self.outstanding.len() > MAX_OUTSTANDING
            && let Some(mut oldest) = self.outstanding.pop_front()
            && let Some(next) = self.outstanding.front_mut()
        {
            oldest.changes.append(&mut next.changes);
            next.changes = oldest.changes;
        }
    }

    /// Takes the responses that an answer to `seq` settles: that one and all before it.
    pub(crate) fn settle(&mut self, seq: u64) -> Vec<Sent> {
        let count = self.outstanding.iter().take_while(|sent| sent.seq <= seq).count();
        self.outstanding.drain(..count).collect()
    }

    /// Forgets a name that the client unsubscribed from, and with it drops what it had.
    pub(crate) fn forget(&mut self, name: &str) {
        self.acked.remove(name);
        self.claimed.remove(name);
        self.dirty.remove(name);
        self.owed.remove(name);
        self.suspects.remove(name);
        self.doubtful.retain(|resource| **resource.name() != *name);
        self.perhaps.remove(name);
        self.removed_again.remove(name);
        for sent in &mut self.outstanding {
            sent.changes.remove(name);
        }
    }

    /// Returns every resource that the client may be using: acknowledged, sent since, or in doubt.
    pub(crate) fn in_use(&self) -> impl Iterator<Item = &Arc<Resource>> {
        let sent = self.outstanding.iter().flat_map(|sent| sent.changes.values().flatten());
        self.acked.values().chain(sent).chain(&self.doubtful)
    }

    /// Lets a client that has exactly the snapshot's resources share the snapshot's map, and clients that want the same
    /// names their list.
    pub(crate) fn adopt(&mut self, snapshot: &Snapshot, lists: &Lists) {
        self.names.share(lists, snapshot.covers);
        let set = snapshot.of(self.kind);
        let settled = self.outstanding.is_empty() && self.dirty.is_empty() && self.owed.is_empty();
        if settled
            && self.acked.len() == set.len()
            && !self.acked.ptr_eq(set)
            && self.acked.diff(set).next().is_none()
        {
            self.acked = set.clone();
        }
    }
}

/// Removes the names of `changes` from `names`.
pub(crate) fn subtract(names: &mut BTreeSet<Arc<str>>, changes: &Changes) {
    if names.len() == changes.len() && names.iter().eq(changes.keys()) {
        names.clear();
    } else if !names.is_empty() {
        for name in changes.keys() {
            names.remove(name);
        }
    }
}

pub(crate) fn apply(set: &mut ResourceSet, changes: &Changes) {
    for (name, change) in changes {
        match change {
            Some(resource) => set.insert(name.clone(), resource.clone()),
            None => set.remove(name),
        };
    }
}
