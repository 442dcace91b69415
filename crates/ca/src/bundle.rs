//! The certificates that peers are checked against.

use crate::certificate::{CaCertificate, CertificatesError, Fingerprint};
use crate::time::UnixTime;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// The most roots that a bundle may have: more than any public list has.
const MAX_ROOTS: usize = 512;

/// Identifies what a bundle trusts: two bundles with the same roots have the same hash, whatever their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct BundleHash(Fingerprint);

impl fmt::Display for BundleHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for BundleHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Trusted roots: each one once, in the order in which they were added.
#[derive(Clone, Debug, Default)]
pub struct TrustBundle {
    roots: Vec<Arc<CaCertificate>>,
    known: BTreeSet<Fingerprint>,
}

impl TrustBundle {
    /// Returns a bundle that trusts nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads all certificates in `pem`. All must be of authorities; there may be none.
    pub fn from_pem(pem: &[u8]) -> Result<Self, CertificatesError> {
        Ok(CaCertificate::all_from_pem(pem, MAX_ROOTS)?.into_iter().collect())
    }

    /// Adds a root; returns false if it was there.
    pub fn insert(&mut self, root: impl Into<Arc<CaCertificate>>) -> bool {
        let root = root.into();
        let new = self.known.insert(root.fingerprint());
        if new {
            self.roots.push(root);
        }
        new
    }

    /// Returns this bundle and, after it, what only `other` has.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.roots.iter().chain(&other.roots).cloned().collect()
    }

    /// Returns this bundle without a root.
    #[must_use]
    pub fn without(&self, root: &Fingerprint) -> Self {
        self.roots.iter().filter(|known| known.fingerprint() != *root).cloned().collect()
    }

    /// Returns whether it has a root.
    pub fn contains(&self, root: &Fingerprint) -> bool {
        self.known.contains(root)
    }

    /// Returns a root.
    pub fn get(&self, root: &Fingerprint) -> Option<&Arc<CaCertificate>> {
        self.roots.iter().find(|known| known.fingerprint() == *root)
    }

    /// Returns the roots.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<CaCertificate>> + Clone {
        self.roots.iter()
    }

    /// Returns what its roots are known by.
    pub fn fingerprints(&self) -> &BTreeSet<Fingerprint> {
        &self.known
    }

    /// Returns how many roots there are.
    pub fn len(&self) -> usize {
        self.roots.len()
    }

    /// Returns whether it trusts nobody.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// Returns the roots that are not valid at `now`, which are of no use to anybody.
    pub fn invalid_at(&self, now: UnixTime) -> impl Iterator<Item = &Arc<CaCertificate>> {
        self.roots.iter().filter(move |root| !root.validity().contains(now))
    }

    /// Returns all roots in PEM, with a newline after each.
    pub fn to_pem(&self) -> String {
        self.roots.iter().map(|root| root.to_pem()).collect()
    }

    /// Returns what identifies the set of its roots.
    pub fn hash(&self) -> BundleHash {
        let all: Vec<u8> = self.known.iter().flat_map(|root| root.as_bytes()).copied().collect();
        BundleHash(Fingerprint::of(&all))
    }
}

impl PartialEq for TrustBundle {
    /// Compares what is trusted, not the order.
    fn eq(&self, other: &Self) -> bool {
        self.known == other.known
    }
}

impl Eq for TrustBundle {}

impl<C: Into<Arc<CaCertificate>>> FromIterator<C> for TrustBundle {
    fn from_iter<I: IntoIterator<Item = C>>(roots: I) -> Self {
        let mut bundle = Self::new();
        bundle.extend(roots);
        bundle
    }
}

impl<C: Into<Arc<CaCertificate>>> Extend<C> for TrustBundle {
    fn extend<I: IntoIterator<Item = C>>(&mut self, roots: I) {
        for root in roots {
            self.insert(root);
        }
    }
}
