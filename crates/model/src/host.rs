//! Host names and the wildcard patterns that stand for many of them.

use crate::Str;
use std::cmp::Ordering;
use std::fmt;

/// A host name, or a wildcard pattern: `*`, `*.example.org` or `*-old.example.org`.
///
/// Comparison for equality is exact. Whether names that differ in case are the same host is for the caller,
/// since Istio lower-cases some fields and not others.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hostname(Str);

impl Hostname {
    /// Wraps `host` as it stands.
    pub fn new(host: impl Into<Str>) -> Self {
        Self(host.into())
    }

    /// Returns the host as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the shared text.
    pub fn shared(&self) -> Str {
        self.0.clone()
    }

    /// Returns whether this is a pattern, which begins with `*`.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with('*')
    }

    /// Returns whether some host is matched by both `self` and `other`.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self.0.strip_prefix('*'), other.0.strip_prefix('*')) {
            (Some(a), Some(b)) => a.ends_with(b) || b.ends_with(a),
            (Some(suffix), None) => has_proper_suffix(&other.0, suffix),
            (None, Some(suffix)) => has_proper_suffix(&self.0, suffix),
            (None, None) => self == other,
        }
    }

    /// Returns whether every host matched by `self` is matched by `other`.
    pub fn is_within(&self, other: &Self) -> bool {
        match (self.0.strip_prefix('*'), other.0.strip_prefix('*')) {
            (Some(mine), Some(theirs)) => mine.ends_with(theirs),
            (None, Some(suffix)) => has_proper_suffix(&self.0, suffix),
            (Some(_), None) => false,
            (None, None) => self == other,
        }
    }

    /// Orders the more specific host first: exact names before patterns, longer before shorter, then by text.
    pub fn by_specificity(&self, other: &Self) -> Ordering {
        self.is_wildcard()
            .cmp(&other.is_wildcard())
            .then_with(|| other.0.len().cmp(&self.0.len()))
            .then_with(|| self.0.cmp(&other.0))
    }
}

/// `*.example.org` stands for at least one character in place of `*`.
fn has_proper_suffix(host: &str, suffix: &str) -> bool {
    suffix.is_empty() || (host.len() > suffix.len() && host.ends_with(suffix))
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl From<&str> for Hostname {
    fn from(host: &str) -> Self {
        Self::new(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Hostname {
        Hostname::new(text)
    }

    #[test]
    fn patterns_contain_hosts_and_narrower_patterns() {
        assert!(host("a.example.org").is_within(&host("*.example.org")));
        assert!(host("*.a.example.org").is_within(&host("*.example.org")));
        assert!(!host("*.example.org").is_within(&host("*.a.example.org")));
        assert!(!host(".example.org").is_within(&host("*.example.org")));
        assert!(host("anything").is_within(&host("*")));
        assert!(host("*.a.example.org").overlaps(&host("*.example.org")));
        assert!(!host("a.example.org").overlaps(&host("b.example.org")));
    }

    #[test]
    fn specific_hosts_sort_first() {
        let mut hosts = ["*", "*.org", "*.example.org", "b.org", "a.org", "long.example.org"].map(host);
        hosts.sort_by(Hostname::by_specificity);
        assert_eq!(hosts, ["long.example.org", "a.org", "b.org", "*.example.org", "*.org", "*"].map(host));
    }
}
