//! The small values that routing rules are made of.

use crate::Str;
use std::collections::BTreeMap;

/// How a text is matched.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StringMatch {
    /// The whole text.
    Exact(Str),
    /// The beginning of the text.
    Prefix(Str),
    /// An RE2 expression that matches the whole text; its syntax has been checked.
    Regex(Str),
}

/// How a header or query parameter is matched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ValueMatch {
    /// It is there, with whatever value.
    Present,
    /// Its value matches.
    Value(StringMatch),
}

/// A share of requests, as a fraction with one of Envoy's denominators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Percent {
    /// How many of `denominator`.
    pub numerator: u32,
    /// Out of how many.
    pub denominator: Denominator,
}

/// Envoy's denominators that Istio uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Denominator {
    /// Deprecated integer percentages.
    Hundred,
    /// Fractional percentages.
    Million,
}

/// What is done to the headers of a request or a response. Pseudo headers and `host` are not here: see
/// [`crate::virtual_service::HttpRule::authority_from_headers`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderOperations {
    /// Overwritten.
    pub set: BTreeMap<Str, Str>,
    /// Appended to.
    pub add: BTreeMap<Str, Str>,
    /// Removed.
    pub remove: Vec<Str>,
}

impl HeaderOperations {
    /// Returns whether nothing is done.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

/// Operations on both directions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// On the way to the service.
    pub request: HeaderOperations,
    /// On the way back.
    pub response: HeaderOperations,
}
