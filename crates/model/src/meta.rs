//! What identifies an object, where it came from, who may see it, and why it was refused.

use crate::{Labels, Str};
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;

/// A Kubernetes namespace.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(Str);

impl Namespace {
    /// Wraps `name`.
    pub fn new(name: impl Into<Str>) -> Self {
        Self(name.into())
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Namespace {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The kinds of object that Weft reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each variant is the Kubernetes kind of the same name")]
pub enum Kind {
    Service,
    EndpointSlice,
    Pod,
    Node,
    Namespace,
    Secret,
    ConfigMap,
    VirtualService,
    DestinationRule,
    Gateway,
    ServiceEntry,
    WorkloadEntry,
    Sidecar,
    PeerAuthentication,
    ReferenceGrant,
    AuthorizationPolicy,
    RequestAuthentication,
    Telemetry,
    EnvoyFilter,
    WorkloadGroup,
    ProxyConfig,
    WasmPlugin,
    TrafficExtension,
}

impl Kind {
    /// Returns the kind as it is written in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
            Self::Node => "Node",
            Self::Namespace => "Namespace",
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::Gateway => "Gateway",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::Sidecar => "Sidecar",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::Telemetry => "Telemetry",
            Self::EnvoyFilter => "EnvoyFilter",
            Self::WorkloadGroup => "WorkloadGroup",
            Self::ProxyConfig => "ProxyConfig",
            Self::WasmPlugin => "WasmPlugin",
            Self::TrafficExtension => "TrafficExtension",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Identifies an object. Cluster-scoped kinds have the empty namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The object's kind.
    pub kind: Kind,
    /// Its namespace; empty for cluster-scoped kinds.
    pub namespace: Namespace,
    /// Its name.
    pub name: Str,
}

impl ObjectKey {
    /// Names an object of `kind`.
    pub fn new(kind: Kind, namespace: impl Into<Str>, name: impl Into<Str>) -> Self {
        Self { kind, namespace: Namespace::new(namespace), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.as_str().is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// Where an object was read, for messages: a file and line, or the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The Kubernetes API.
    #[default]
    Api,
    /// A manifest.
    File {
        /// The file's path as it was given or found.
        path: Str,
        /// The document's first line, from 1.
        line: u32,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api => f.write_str("kubernetes"),
            Self::File { path, line } => write!(f, "{path}:{line}"),
        }
    }
}

/// The metadata that every configuration object carries into the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Which object this is.
    pub key: ObjectKey,
    /// Its creation time in seconds since the epoch; 0 if unknown, which counts as the oldest.
    pub created: i64,
    /// Its labels.
    pub labels: Labels,
    /// Its annotations.
    pub annotations: Labels,
}

impl Meta {
    /// Orders the older object first; ties go by name, then by namespace. Most conflicts are won by the oldest.
    pub fn by_age(&self, other: &Self) -> Ordering {
        self.created
            .cmp(&other.created)
            .then_with(|| self.key.name.cmp(&other.key.name))
            .then_with(|| self.key.namespace.cmp(&other.key.namespace))
    }
}

/// Who may see an object: the `exportTo` of the mesh APIs, with the default of the mesh applied.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ExportTo {
    /// Every namespace (`*`).
    All,
    /// Nobody (`~`).
    Nobody,
    /// These namespaces only (`.` is resolved to the object's own).
    Namespaces(BTreeSet<Namespace>),
}

impl ExportTo {
    /// Returns whether a proxy in `namespace` may see the object.
    pub fn includes(&self, namespace: &Namespace) -> bool {
        match self {
            Self::All => true,
            Self::Nobody => false,
            Self::Namespaces(namespaces) => namespaces.contains(namespace),
        }
    }
}

/// A part of an object that is not used, and why. Displays as `VirtualService default/reviews:
/// spec.http[1].route[0].destination.port: required when the service has several ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{object}: {field}: {reason}")]
pub struct Rejection {
    /// The object at fault.
    pub object: ObjectKey,
    /// The path of the field, such as `spec.http[0].match[2].uri.regex`; `spec` if the whole object is refused.
    pub field: String,
    /// What is wrong and what would be right: lower case, no full stop.
    pub reason: String,
}
