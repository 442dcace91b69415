//! Kubernetes and Istio objects as values of `model`, and what is wrong with them by field.
//!
//! **Invariant:** this crate knows neither a cluster nor a proxy. Every function is pure and total: one object goes
//! in, and what is good in it comes out beside a [`Rejection`] for each part that is not, with the path of the
//! field. No input makes it fail or panic.
//!
//! # What stays in use of a bad object
//!
//! A bad part harms only itself, unless leaving it out would send traffic where it must not go. So:
//!
//! | kind | a rejection takes away |
//! | --- | --- |
//! | VirtualService, DestinationRule, Sidecar, PeerAuthentication, ReferenceGrant, ServiceEntry, MeshConfig | the whole object: without one rule its traffic would fall to a later catch-all, without one policy it would lose its TLS. The index keeps the last good version |
//! | Gateway | the server; without any good one, the whole object as above |
//! | Service | the port |
//! | Secret, ConfigMap | the part (certificate and key, authorities, revocation list). The index keeps the last form of which nothing was rejected |
//!
//! A warning takes nothing away: it is about something that is accepted and has no effect, or not the one that its
//! author may expect.
//!
//! ```text
//! k8s_api::VirtualService ──▶ virtual_service() ──▶ Translated { value, rejections, warnings }
//!                                                      │ root and delegates
//!                                                      ▼
//!                                               delegate::merge()
//! ```

pub mod delegate;
pub mod parse;

mod context;
mod credential;
mod destination_rule;
mod discovery;
mod gateway;
mod http_route;
mod l4_route;
mod mesh_config;
mod overlap;
mod peer_authentication;
mod protocol;
mod reference_grant;
mod report;
mod secret;
mod server_tls;
mod service;
mod service_entry;
mod sidecar;
mod traffic_policy;
mod validate;
mod virtual_service;
mod workload_entry;

pub use context::{Context, DefaultExportTo};
pub use destination_rule::destination_rule;
pub use discovery::NamespaceSelector;
pub use gateway::gateway;
pub use mesh_config::{Mesh, mesh_config};
pub use peer_authentication::peer_authentication;
pub use protocol::port_protocol;
pub use reference_grant::reference_grant;
pub use report::Translated;
pub use secret::{ca_secret_names, config_map, is_optional, secret};
pub use service::{service, traffic_distribution};
pub use service_entry::{is_auto_allocated, service_entry};
pub use sidecar::sidecar;
pub use validate::{Verdict, validate};
pub use virtual_service::virtual_service;
pub use workload_entry::workload_entry;

pub use model::Rejection;
