//! The mesh's vocabulary: what every other crate means by a service, a route rule or a proxy.
//!
//! **Invariant:** this crate knows neither Kubernetes nor xDS. Its values are parsed, immutable and cheap to
//! share; whoever holds one never checks it again. Translation (Kubernetes to here) reports what it could not
//! parse; compilation (here to xDS) is total.
//!
//! ```text
//! translate ──▶ VirtualService, DestinationRule, … ──▶ index ══▶ MeshView ──▶ Mesh (recording) ──▶ compile
//! ```

pub mod cause;
pub mod destination_rule;
pub mod gateway;
pub mod host;
pub mod identity;
pub mod labels;
pub mod mesh_config;
pub mod meta;
pub mod peer_authentication;
pub mod protocol;
pub mod proxy;
pub mod proxy_settings;
pub mod reference_grant;
pub mod route;
pub mod secret;
pub mod service;
pub mod sidecar;
pub mod view;
pub mod virtual_service;
pub mod workload;

pub use destination_rule::DestinationRule;
pub use gateway::Gateway;
pub use host::Hostname;
pub use identity::{SpiffeId, TrustDomain};
pub use labels::Labels;
pub use mesh_config::MeshConfig;
pub use meta::{ExportTo, Kind, Meta, Namespace, ObjectKey, Origin, Rejection};
pub use peer_authentication::{MtlsMode, PeerAuthentication};
pub use protocol::Protocol;
pub use proxy::Proxy;
pub use proxy_settings::ProxySettings;
pub use reference_grant::ReferenceGrant;
pub use secret::Secret;
pub use service::{Endpoint, Locality, Service, ServiceKey, ServicePort};
pub use sidecar::Sidecar;
pub use view::{ChangeSet, Key, Mesh, MeshView, MeshViewBuilder};
pub use virtual_service::VirtualService;
pub use workload::{Workload, WorkloadId};

/// A shared, immutable string: names and hosts are cloned into many values.
pub type Str = std::sync::Arc<str>;
