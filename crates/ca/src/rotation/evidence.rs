//! What is known about the proxies of a mesh.

use super::replica::Replica;
use crate::bundle::{BundleHash, TrustBundle};
use crate::certificate::Fingerprint;
use crate::time::UnixTime;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// The most bundles that a log remembers.
const MAX_BUNDLES: usize = 64;

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The longest life of certificates that are issued. A proxy that was not seen for so long has none that is valid,
    /// and stops counting.
    pub leaf_lifetime: Duration,
    /// How long a replica may go on acting by a state that another one has replaced. One that cannot read the state
    /// for so long must stop issuing certificates.
    pub replica_lag: Duration,
    /// What is waited for before a root is dropped.
    pub retire: RetireWhen,
}

/// When nobody can present a certificate of a root any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetireWhen {
    /// When all that were issued have expired. Right if certificates go to others than proxies that report.
    Expired,
    /// When every proxy that counts was seen with another one, which is sooner; or when all have expired.
    Replaced,
}

/// What is known about the mesh.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Everybody that a certificate was issued to, or that asked for configuration, since `complete_since`.
    pub proxies: &'a [ProxyReport],
    /// Since when nobody is missing from `proxies`: when the youngest of the replicas started, unless the list
    /// outlives them.
    pub complete_since: UnixTime,
    /// What the hashes in `proxies` stand for.
    pub bundles: &'a BundleLog,
    /// The other replicas that may be at work: each has to act by the present state, and to say so.
    pub replicas: &'a [Replica],
}

/// What is known about a proxy.
///
/// Whoever was given a certificate has a report from then on, connected or not. An agent takes its roots from its
/// stream; those that come with a certificate it takes only if it had no valid certificate before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyReport {
    /// Its name, for people.
    pub name: Arc<str>,
    /// The bundle that it acknowledged last on its present stream, or on the last one if it is not connected; nothing
    /// if it has not acknowledged any on its present stream. An agent acknowledges when its Envoy did.
    pub acked: Option<BundleHash>,
    /// The bundles that it was sent after that, on a stream or with a certificate: it may use any of them.
    pub unanswered: Vec<BundleHash>,
    /// The certificates that it may present: the one that it was last seen with, and those issued to it after that.
    /// Nothing if neither is known.
    pub leaves: Vec<LeafReport>,
    /// When it was last connected or given a certificate; now, if it is connected.
    pub last_seen: UnixTime,
}

/// What is known about a certificate of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafReport {
    /// The root that it leads to.
    pub root: Fingerprint,
    /// When it expires.
    pub not_after: UnixTime,
}

impl ProxyReport {
    /// Returns whether it may still have a valid certificate.
    pub(super) fn counts(&self, settings: &Settings, now: UnixTime) -> bool {
        self.leaves.iter().any(|leaf| leaf.not_after >= now)
            || now <= self.last_seen.after(settings.leaf_lifetime)
    }

    /// Returns all bundles that it may use.
    pub(super) fn may_use(&self) -> impl Iterator<Item = &BundleHash> {
        self.acked.iter().chain(&self.unanswered)
    }
}

/// What the bundles that were published lately consist of.
///
/// It need not be stored: a proxy that acknowledged a bundle which nobody remembers is sent the present one anyway.
#[derive(Clone, Debug, Default)]
pub struct BundleLog {
    bundles: VecDeque<(BundleHash, BTreeSet<Fingerprint>)>,
}

impl BundleLog {
    /// Returns a log of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that `bundle` is published; the oldest one is forgotten if there are too many.
    pub fn note(&mut self, bundle: &TrustBundle) {
        let hash = bundle.hash();
        self.bundles.retain(|(known, _)| *known != hash);
        self.bundles.push_back((hash, bundle.fingerprints().clone()));
        if self.bundles.len() > MAX_BUNDLES {
            self.bundles.pop_front();
        }
    }

    /// Notes what a bundle consists of that somebody else has published.
    pub(super) fn note_roots(&mut self, hash: BundleHash, roots: &BTreeSet<Fingerprint>) {
        if roots.is_empty() || self.get(&hash).is_some() {
            return;
        }
        self.bundles.push_front((hash, roots.clone()));
    }

    /// Returns all bundles that are remembered.
    pub(super) fn entries(&self) -> impl Iterator<Item = &(BundleHash, BTreeSet<Fingerprint>)> {
        self.bundles.iter()
    }

    /// Returns the roots of a bundle, if it is remembered.
    pub fn get(&self, hash: &BundleHash) -> Option<&BTreeSet<Fingerprint>> {
        self.bundles.iter().rev().find(|(known, _)| known == hash).map(|(_, roots)| roots)
    }
}
