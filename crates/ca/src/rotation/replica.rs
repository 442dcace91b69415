//! What several replicas of a control plane know together.
//!
//! Each replica writes down what it knows ([`ReplicaReport`]) and reads what the others have written. A proxy may have
//! streams to several of them, and moves from one to another, so what is known of it is put together again:
//!
//! - Where it has streams that ask for roots, these count, and nothing that was known before.
//! - Otherwise it may use whatever any replica has last known it to use.
//! - It may present any certificate that any replica has last known it to have.
//!
//! That errs on the side of waiting. A replica that is silent blocks every step until it has been silent for so long that
//! it has stopped signing and whatever it has signed has expired ([`Replica::counts`]).

use super::evidence::{BundleLog, LeafReport, ProxyReport, Settings};
use crate::bundle::BundleHash;
use crate::certificate::Fingerprint;
use crate::time::UnixTime;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// The version of the format.
const VERSION: u32 = 1;
/// The largest report that is written: an object of Kubernetes has less than a MiB.
const MAX_SIZE: usize = 900 << 10;

/// A replica, as far as steps have to wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Its name.
    pub name: Arc<str>,
    /// When it last wrote.
    pub written: UnixTime,
    /// The generation of the rotation that it acts by.
    pub generation: u64,
}

impl Replica {
    /// Returns whether it has written lately.
    pub fn is_present(&self, replica_lag: Duration, now: UnixTime) -> bool {
        now <= self.written.after(replica_lag)
    }

    /// Returns whether it may still sign, or somebody may have something that it has signed. One that cannot read how
    /// far the rotation is stops after the life of a certificate; what it has signed last lives as long.
    pub fn counts(&self, settings: &Settings, now: UnixTime) -> bool {
        let end = self.written.after(settings.leaf_lifetime).after(settings.leaf_lifetime);
        now <= end.after(settings.replica_lag)
    }
}

/// A proxy as one replica knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What is known of it.
    pub report: ProxyReport,
    /// Whether it has a stream to this replica that asks for roots.
    pub asks: bool,
    /// The name that it says it has, if this replica cannot tell. Where another one knows somebody of that name, it is the same.
    pub alias: Option<Arc<str>>,
}

/// What one replica knows, as it is written for the others.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReplicaReport {
    version: u32,
    /// When it was written.
    pub written: UnixTime,
    /// Since when the replica knows everybody that comes to it.
    pub since: UnixTime,
    /// The generation of the rotation that it acts by.
    pub generation: u64,
    /// The longest life of a certificate that it has issued, in seconds.
    pub longest_ttl_seconds: u64,
    /// It has stopped in order: nobody waits for it any more.
    pub has_left: bool,
    /// Whether all that it knows is here: it does not say it while no root is being replaced.
    pub is_complete: bool,
    bundles: Vec<(BundleHash, BTreeSet<Fingerprint>)>,
    roots: Vec<Fingerprint>,
    proxies: Vec<SharedProxy>,
}

/// A proxy in few bytes: bundles and roots by their number.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct SharedProxy {
    n: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    asks: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alias: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    acked: Option<usize>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sent: Vec<usize>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    leaves: Vec<(usize, UnixTime)>,
    seen: UnixTime,
}

/// A report is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// It is not JSON of this format.
    #[error("is not what a replica writes")]
    Malformed(#[from] serde_json::Error),
    /// Another version wrote it.
    #[error("has version {0}, this is version {VERSION}")]
    Version(u32),
    /// It refers to what is not there.
    #[error("refers to a bundle or root that it does not have")]
    Dangling,
    /// There are too many proxies.
    #[error(
        "has {size} bytes for {proxies} proxies, more than {MAX_SIZE}: have more replicas, or order the step"
    )]
    TooLarge {
        /// Its size.
        size: usize,
        /// How many proxies it is about.
        proxies: usize,
    },
}

impl ReplicaReport {
    /// Returns the report of a replica of which nothing is known but that it is there.
    pub fn alive(written: UnixTime, since: UnixTime, generation: u64, longest_ttl: Duration) -> Self {
        Self {
            version: VERSION,
            written,
            since,
            generation,
            longest_ttl_seconds: longest_ttl.as_secs(),
            has_left: false,
            is_complete: false,
            bundles: Vec::new(),
            roots: Vec::new(),
            proxies: Vec::new(),
        }
    }

    /// Adds all that the replica knows.
    #[must_use]
    pub fn with(mut self, seen: &[Seen], log: &BundleLog) -> Self {
        self.is_complete = true;
        self.bundles = log.entries().map(|(hash, roots)| (*hash, roots.clone())).collect();
        let mut numbers: BTreeMap<BundleHash, usize> =
            self.bundles.iter().enumerate().map(|(number, (hash, _))| (*hash, number)).collect();
        let mut roots = BTreeMap::new();
        for Seen { report, asks, alias } in seen {
            let mut number = |hash: &BundleHash| {
                let next = numbers.len();
                let number = *numbers.entry(*hash).or_insert(next);
                if number == self.bundles.len() {
                    // Nobody remembers what it was: it has no root that anybody could rely on.
                    self.bundles.push((*hash, BTreeSet::new()));
                }
                number
            };
            let acked = report.acked.as_ref().map(&mut number);
            let sent = report.unanswered.iter().map(&mut number).collect();
            let leaves = report.leaves.iter().map(|leaf| {
                let next = roots.len();
                let number = *roots.entry(leaf.root).or_insert(next);
                if number == self.roots.len() {
                    self.roots.push(leaf.root);
                }
                (number, leaf.not_after)
            });
            let leaves = leaves.collect();
            let (n, seen) = (report.name.to_string(), report.last_seen);
            self.proxies.push(SharedProxy {
                n,
                asks: *asks,
                alias: alias.as_deref().map(str::to_owned),
                acked,
                sent,
                leaves,
                seen,
            });
        }
        self
    }

    /// Returns it as JSON.
    ///
    /// # Errors
    ///
    /// If it is too large to be kept.
    pub fn to_json(&self) -> Result<String, ReplicaError> {
        let text = serde_json::to_string(self)?;
        if text.len() > MAX_SIZE {
            return Err(ReplicaError::TooLarge { size: text.len(), proxies: self.proxies.len() });
        }
        Ok(text)
    }

    /// Reads it.
    ///
    /// # Errors
    ///
    /// If it is none.
    pub fn from_json(text: &str) -> Result<Self, ReplicaError> {
        #[derive(serde::Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_str(text)?;
        if version != VERSION {
            return Err(ReplicaError::Version(version));
        }
        let report: Self = serde_json::from_str(text)?;
        let (bundles, roots) = (report.bundles.len(), report.roots.len());
        let is_whole = report.proxies.iter().all(|proxy| {
            proxy.acked.iter().chain(&proxy.sent).all(|number| *number < bundles)
                && proxy.leaves.iter().all(|(number, _)| *number < roots)
        });
        is_whole.then_some(report).ok_or(ReplicaError::Dangling)
    }

    /// Returns whether it may still matter.
    pub fn counts(&self, settings: &Settings, now: UnixTime) -> bool {
        Replica { name: "".into(), written: self.written, generation: self.generation }.counts(settings, now)
    }

    fn seen(&self, is_present: bool) -> impl Iterator<Item = Seen> {
        self.proxies.iter().map(move |proxy| Seen {
            report: ProxyReport {
                name: proxy.n.as_str().into(),
                acked: proxy.acked.map(|number| self.bundles[number].0),
                unanswered: proxy.sent.iter().map(|number| self.bundles[*number].0).collect(),
                leaves: proxy
                    .leaves
                    .iter()
                    .map(|(number, not_after)| LeafReport {
                        root: self.roots[*number],
                        not_after: *not_after,
                    })
                    .collect(),
                last_seen: proxy.seen,
            },
            // The streams of one that is gone are gone.
            asks: proxy.asks && is_present,
            alias: proxy.alias.as_deref().map(Arc::from),
        })
    }
}

/// What all replicas know.
#[derive(Clone, Debug)]
pub struct Together {
    /// The proxies.
    pub proxies: Vec<ProxyReport>,
    /// Since when nobody is missing.
    pub complete_since: UnixTime,
    /// What bundles consist of.
    pub bundles: BundleLog,
    /// The other replicas that steps have to wait for.
    pub replicas: Vec<Replica>,
}

/// Puts together what a replica knows itself, since `since`, with what `others` have written, by their names.
pub fn together(
    own: Vec<Seen>,
    since: UnixTime,
    log: &BundleLog,
    others: &BTreeMap<String, ReplicaReport>,
    settings: &Settings,
    now: UnixTime,
) -> Together {
    let mut all =
        Together { proxies: Vec::new(), complete_since: since, bundles: log.clone(), replicas: Vec::new() };
    let mut by_name: BTreeMap<Arc<str>, Vec<Seen>> = BTreeMap::new();
    let mut add = |seen: Seen| by_name.entry(seen.report.name.clone()).or_default().push(seen);
    own.into_iter().for_each(&mut add);
    for (name, report) in others {
        let replica =
            Replica { name: name.as_str().into(), written: report.written, generation: report.generation };
        if !replica.counts(settings, now) {
            continue;
        }
        let is_present = !report.has_left && replica.is_present(settings.replica_lag, now);
        report.seen(is_present).for_each(&mut add);
        for (hash, roots) in &report.bundles {
            all.bundles.note_roots(*hash, roots);
        }
        // What one that is gone has not said, nobody knows.
        let known_since = if is_present || report.is_complete { report.since } else { report.written };
        all.complete_since = all.complete_since.max(known_since);
        if !report.has_left {
            all.replicas.push(replica);
        }
    }
    let aliased: Vec<(Arc<str>, Arc<str>)> = by_name
        .iter()
        .filter_map(|(name, seen)| {
            let alias = seen.iter().find_map(|seen| seen.alias.clone())?;
            (alias != *name && by_name.contains_key(&alias)).then(|| (name.clone(), alias))
        })
        .collect();
    for (name, alias) in aliased {
        let seen = by_name.remove(&name).unwrap_or_default();
        // The name that it is really known by comes first.
        by_name.entry(alias).or_default().extend(seen);
    }
    all.proxies = by_name.into_values().filter_map(|seen| united(&seen)).collect();
    all
}

/// Puts together what is known of one proxy; nothing if nobody has seen it.
fn united(seen: &[Seen]) -> Option<ProxyReport> {
    let (first, rest) = seen.split_first()?;
    if rest.is_empty() {
        return Some(first.report.clone());
    }
    let asking: Vec<&ProxyReport> = seen.iter().filter(|seen| seen.asks).map(|seen| &seen.report).collect();
    let known = |report: &&ProxyReport| report.acked.is_some() || !report.unanswered.is_empty();
    let about_roots: Vec<&ProxyReport> = match asking.is_empty() {
        false => asking,
        true => seen.iter().map(|seen| &seen.report).filter(known).collect(),
    };
    let has_answered = about_roots.iter().all(|report| report.acked.is_some());
    let mut unanswered: Vec<BundleHash> = Vec::new();
    for hash in about_roots.iter().flat_map(|report| report.may_use()) {
        if !unanswered.contains(hash) {
            unanswered.push(*hash);
        }
    }
    let mut leaves: Vec<LeafReport> = Vec::new();
    for leaf in seen.iter().flat_map(|seen| &seen.report.leaves) {
        if !leaves.contains(leaf) {
            leaves.push(*leaf);
        }
    }
    Some(ProxyReport {
        name: first.report.name.clone(),
        acked: has_answered.then(|| unanswered.first().copied()).flatten(),
        unanswered,
        leaves,
        last_seen: seen.iter().map(|seen| seen.report.last_seen).fold(first.report.last_seen, UnixTime::max),
    })
}
