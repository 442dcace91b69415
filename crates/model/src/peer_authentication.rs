//! Whether workloads take mutual TLS: Istio's PeerAuthentication, parsed.

use crate::{Labels, Meta};
use std::collections::BTreeMap;

/// A mutual TLS policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// The object.
    pub meta: Meta,
    /// The workloads it is for; none for the whole namespace (in the root namespace: the whole mesh).
    pub selector: Option<Labels>,
    /// The mode; none (`UNSET`) inherits.
    pub mode: Option<MtlsMode>,
    /// Modes by workload port; none inherits from `mode`. Only with a selector.
    pub port_level: BTreeMap<u16, Option<MtlsMode>>,
}

/// What a workload's port accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MtlsMode {
    /// Plain text only.
    Disable,
    /// Both.
    Permissive,
    /// Mutual TLS only.
    Strict,
}
