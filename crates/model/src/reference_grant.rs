//! What of a namespace others may refer to.

use crate::{Namespace, ObjectKey, Str};
use std::collections::BTreeSet;

/// Lets Gateways of other namespaces use Secrets of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceGrant {
    /// The object.
    pub key: ObjectKey,
    /// The namespaces whose Gateways may.
    pub gateways_in: BTreeSet<Namespace>,
    /// The Secrets that they may use.
    pub secrets: Granted,
}

/// Which objects of a kind are granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Granted {
    /// All of the namespace.
    All,
    /// Those with these names.
    Named(BTreeSet<Str>),
}

impl ReferenceGrant {
    /// Returns whether Gateways of `namespace` may use the Secret called `name`.
    pub fn lets_gateways_use(&self, namespace: &Namespace, name: &str) -> bool {
        let is_granted = match &self.secrets {
            Granted::All => true,
            Granted::Named(names) => names.contains(name),
        };
        is_granted && self.gateways_in.contains(namespace)
    }
}
