//! What is known of proxies' certificates and roots: the evidence that a root can be replaced.
//!
//! A proxy is known from its certificate on, or from its stream. Both find each other by the pod that the token was
//! bound to; a proxy whose token is bound to none, and one that was certified before weftd started, is known by its
//! identity and address. Neither can be made up: a caller that claims many names is one proxy.

use ca::rotation::{BundleLog, LeafReport, ProxyReport, Seen};
use ca::{BundleHash, IssuedChain, TrustBundle, UnixTime};
use identity::{Caller, Clock, Recorder};
use model::{SpiffeId, Str, WorkloadId};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How many versions of the roots are remembered.
const MAX_VERSIONS: usize = 64;

/// What proxies have shown.
pub(crate) struct Proxies {
    table: Mutex<Table>,
    clock: Clock,
    since: UnixTime,
    /// The longest life of a certificate that was issued, in seconds.
    longest_ttl: AtomicU64,
}

#[derive(Default)]
struct Table {
    known: BTreeMap<Key, Known>,
    streams: u64,
    /// The versions of the secret with roots, and what they stand for.
    versions: VecDeque<(Arc<str>, BundleHash)>,
    log: BundleLog,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// A pod that a token was bound to.
    Pod { id: SpiffeId, name: Str },
    /// Whoever has this identity at this address.
    At { id: SpiffeId, address: Option<IpAddr> },
}

#[derive(Default)]
struct Known {
    /// Its streams that ask for roots.
    streams: BTreeMap<u64, Held>,
    /// Its streams that do not.
    others: usize,
    /// What the last stream that asked for roots left it with, and what came with certificates since.
    last: Held,
    leaves: Vec<Leaf>,
    seen: Option<UnixTime>,
    /// The pod that it says it is, which only a token would prove.
    claims: Option<Str>,
}

/// The roots that a proxy may use.
#[derive(Clone, Default)]
struct Held {
    acked: Option<BundleHash>,
    unanswered: Vec<BundleHash>,
}

struct Leaf {
    serial: Vec<u8>,
    report: LeafReport,
}

/// A certificate that a proxy presents.
pub(crate) struct Presented {
    /// Its serial number.
    pub(crate) serial: Vec<u8>,
    /// What it is, if nobody here has issued it.
    pub(crate) report: Option<LeafReport>,
}

impl Proxies {
    /// Returns a table of nobody.
    pub(crate) fn new(clock: Clock) -> Self {
        let since = UnixTime::from(clock());
        Self { table: Mutex::default(), clock, since, longest_ttl: AtomicU64::new(0) }
    }

    fn now(&self) -> UnixTime {
        UnixTime::from((self.clock)())
    }

    /// Returns since when everybody is known who comes.
    pub(crate) fn since(&self) -> UnixTime {
        self.since
    }

    /// Returns the longest life of a certificate that was issued.
    pub(crate) fn longest_ttl(&self) -> Duration {
        Duration::from_secs(self.longest_ttl.load(Ordering::Relaxed))
    }

    /// Notes that somebody has issued certificates that live so long.
    pub(crate) fn note_ttl(&self, ttl: Duration) {
        self.longest_ttl.fetch_max(ttl.as_secs(), Ordering::Relaxed);
    }

    /// Notes roots that are about to be served, and the version of the secret that they are served as.
    pub(crate) fn note_bundle(&self, bundle: &TrustBundle, version: &Arc<str>) {
        let mut table = self.table.lock();
        table.log.note(bundle);
        table.versions.retain(|(known, _)| known != version);
        table.versions.push_back((version.clone(), bundle.hash()));
        if table.versions.len() > MAX_VERSIONS {
            table.versions.pop_front();
        }
    }

    /// Returns what is known, and what the bundles in it are. Forgets whoever was silent for longer than `lifetime`.
    pub(crate) fn reports(&self, lifetime: Duration) -> (Vec<Seen>, BundleLog) {
        let now = self.now();
        let mut table = self.table.lock();
        table.known.retain(|_, known| known.is_alive(lifetime, now));
        let reports = table
            .known
            .iter()
            .map(|(key, known)| Seen {
                report: known.report(key, now),
                asks: !known.streams.is_empty(),
                alias: known.alias(key),
            })
            .collect();
        (reports, table.log.clone())
    }

    /// Lets the stream of a proxy in, which presents a certificate or none.
    pub(crate) fn enter(
        self: &Arc<Self>,
        caller: &Caller,
        address: Option<IpAddr>,
        workload: &WorkloadId,
        presented: Option<Presented>,
    ) -> Tracker {
        let now = self.now();
        let mut table = self.table.lock();
        table.streams += 1;
        let stream = table.streams;
        let address = address.map(|address| address.to_canonical());
        let bound = caller.pod.as_ref().map(|pod| pod.name.clone());
        let pod = Key::Pod { id: caller.id.clone(), name: bound.unwrap_or_else(|| workload.name.clone()) };
        let key = match caller.pod.is_some() || table.known.contains_key(&pod) {
            true => pod,
            false => Key::At { id: caller.id.clone(), address },
        };
        let known = table.known.entry(key.clone()).or_default();
        known.seen = Some(now);
        known.others += 1;
        known.claims = Some(workload.name.clone());
        if let Some(presented) = presented {
            known.present(presented);
        }
        drop(table);
        Tracker { proxies: self.clone(), key, stream, asks: false }
    }
}

impl Recorder for Proxies {
    fn issued(&self, caller: &Caller, address: Option<IpAddr>, issued: &IssuedChain) {
        let now = self.now();
        let ttl = issued.not_after().since(now).as_secs();
        self.longest_ttl.fetch_max(ttl, Ordering::Relaxed);
        let mut table = self.table.lock();
        let at = Key::At { id: caller.id.clone(), address: address.map(|address| address.to_canonical()) };
        let key = match &caller.pod {
            Some(pod) => Key::Pod { id: caller.id.clone(), name: pod.name.clone() },
            None => at.clone(),
        };
        // One that came before weftd knew its pod: it is the same.
        if key != at
            && !table.known.contains_key(&key)
            && table.known.get(&at).is_some_and(|known| !known.is_connected())
            && let Some(known) = table.known.remove(&at)
        {
            table.known.insert(key.clone(), known);
        }
        let known = table.known.entry(key).or_default();
        known.seen = Some(now);
        known.leaves.retain(|leaf| leaf.report.not_after >= now);
        let report = LeafReport { root: issued.root(), not_after: issued.not_after() };
        known.leaves.push(Leaf { serial: issued.serial().as_bytes().to_vec(), report });
        if known.streams.is_empty() {
            // Without a stream it takes the roots that come with the certificate.
            known.last.unanswered(issued.bundle().hash());
        }
    }
}

impl Held {
    fn unanswered(&mut self, hash: BundleHash) {
        if self.unanswered.last() != Some(&hash) {
            self.unanswered.retain(|known| *known != hash);
            self.unanswered.push(hash);
        }
    }

    fn acked(&mut self, hash: BundleHash) {
        // What was sent before is answered too, what was sent after is not.
        let answered = self.unanswered.iter().position(|known| *known == hash);
        self.unanswered.drain(..answered.map_or(0, |at| at + 1));
        self.acked = Some(hash);
    }
}

impl Known {
    /// Returns the name that it would have if it were the pod that it says it is.
    fn alias(&self, key: &Key) -> Option<Str> {
        let (Key::At { id, .. }, Some(name)) = (key, &self.claims) else { return None };
        Some(Key::Pod { id: id.clone(), name: name.clone() }.to_string().into())
    }

    fn is_connected(&self) -> bool {
        self.others > 0 || !self.streams.is_empty()
    }

    fn is_alive(&self, lifetime: Duration, now: UnixTime) -> bool {
        self.is_connected()
            || self.leaves.iter().any(|leaf| leaf.report.not_after >= now)
            || self.seen.is_some_and(|seen| now <= seen.after(lifetime))
    }

    /// Notes which certificate is presented: those that were issued before it are not in use any more.
    fn present(&mut self, presented: Presented) {
        let Presented { serial, report } = presented;
        match self.leaves.iter().position(|leaf| leaf.serial == serial) {
            Some(at) => drop(self.leaves.drain(..at)),
            None => {
                if let Some(report) = report {
                    self.leaves.insert(0, Leaf { serial, report });
                }
            }
        }
    }

    fn report(&self, key: &Key, now: UnixTime) -> ProxyReport {
        let mut held = Held::default();
        match self.streams.is_empty() {
            true => held = self.last.clone(),
            false => {
                let everybody = self.streams.values().all(|stream| stream.acked.is_some());
                for stream in self.streams.values() {
                    held.unanswered.extend(stream.acked.iter().chain(&stream.unanswered).copied());
                }
                held.acked = everybody.then(|| held.unanswered.first().copied()).flatten();
            }
        }
        ProxyReport {
            name: key.to_string().into(),
            acked: held.acked,
            unanswered: held.unanswered,
            leaves: self.leaves.iter().map(|leaf| leaf.report).collect(),
            last_seen: if self.is_connected() { now } else { self.seen.unwrap_or(now) },
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod { id, name } => write!(f, "{name}.{}", id.namespace()),
            Self::At { id, address: Some(address) } => write!(f, "{} at {address}", id.principal()),
            Self::At { id, address: None } => f.write_str(id.principal()),
        }
    }
}

/// A stream's place in the table, until it is dropped.
pub(crate) struct Tracker {
    proxies: Arc<Proxies>,
    key: Key,
    stream: u64,
    asks: bool,
}

impl Tracker {
    /// Notes that the stream asks for roots, or does not any more.
    pub(crate) fn asks_for_roots(&mut self, asks: bool) {
        if std::mem::replace(&mut self.asks, asks) == asks {
            return;
        }
        let stream = self.stream;
        self.update(|known| match asks {
            true => {
                known.others -= 1;
                known.streams.insert(stream, Held::default());
            }
            false => {
                known.others += 1;
                known.last = known.streams.remove(&stream).unwrap_or_default();
            }
        });
    }

    /// Notes that roots are about to be sent.
    pub(crate) fn sends(&self, hash: BundleHash) {
        self.update(|known| {
            if let Some(held) = known.streams.get_mut(&self.stream) {
                held.unanswered(hash);
            }
        });
    }

    /// Notes that the secret with roots was acknowledged in this version.
    pub(crate) fn acked(&self, version: &str) {
        let hash = {
            let table = self.proxies.table.lock();
            table.versions.iter().find(|(known, _)| &**known == version).map(|(_, hash)| *hash)
        };
        let Some(hash) = hash else { return };
        self.update(|known| {
            if let Some(held) = known.streams.get_mut(&self.stream) {
                held.acked(hash);
            }
        });
    }

    fn update(&self, update: impl FnOnce(&mut Known)) {
        if let Some(known) = self.proxies.table.lock().known.get_mut(&self.key) {
            update(known);
        }
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.asks_for_roots(false);
        let now = self.proxies.now();
        self.update(|known| {
            known.others -= 1;
            known.seen = Some(now);
        });
    }
}
