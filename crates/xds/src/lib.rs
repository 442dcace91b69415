//! The xDS protocol: a state machine per client, and the ADS server that drives it.
//!
//! **Invariant:** this crate never decodes a resource and never knows what a mesh is. What a client should have comes
//! as a [`Snapshot`](proto::resource::Snapshot); in which order it gets there safely is decided here.

pub mod codec;
pub mod encode;
pub mod metrics;
pub mod registry;
pub mod server;
pub mod session;
pub mod source;

pub use metrics::Metrics;
pub use registry::Registry;
pub use server::{Config, Server};
pub use source::{ConnectError, Connection, Observer, PeerInfo, SnapshotSource};
