//! The push engine: recompiles exactly what a change of the mesh affects, and hands each session its newest
//! snapshot.
//!
//! **Invariant:** this crate decides *when* something is compiled and *who* is told; what a resource holds is
//! decided in `compile`, and how it reaches a client in `xds`.

pub mod engine;
pub mod memo;
pub mod service;

pub use engine::{Applied, Engine, Resting, SessionId};
pub use service::{Connected, Push, Stats, Stopped};
