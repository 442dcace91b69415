//! The compiler: what a proxy gets, as a function of the mesh and of its audience.
//!
//! **Invariant:** nothing here does I/O, reads a clock or keeps state, and no generator sees a proxy: it sees an
//! audience, which carries outcomes of selection only. Everything read from the mesh goes through the recording
//! [`model::Mesh`]. Generators are total: what cannot be expressed is left out, and was reported by `translate`.

pub mod audience;
pub mod cluster;
pub mod destination_rule;
pub mod endpoint;
#[cfg(test)]
mod fixtures;
pub mod gateway;
pub mod grpc;
pub mod listener;
pub mod names;
pub mod node;
pub mod query;
pub mod route;
pub mod scope;
pub mod secret;
pub mod select;
pub mod shared;
pub mod tls;
pub mod wire;

pub use shared::Shared;
