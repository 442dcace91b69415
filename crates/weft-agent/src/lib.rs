//! The agent beside an Envoy: gives it an identity, a bootstrap and a good end.
//!
//! **Invariant:** private keys are made here, go to Envoy over a Unix socket, and nowhere else: neither into a file nor
//! into a log.

pub mod args;
pub mod bootstrap;
pub mod config;
mod logging;
pub mod names;
mod run;

pub use args::Args;
pub use run::run;
