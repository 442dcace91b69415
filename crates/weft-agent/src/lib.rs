//! The agent beside an Envoy: gives it an identity, a bootstrap and a good end.
//!
//! ```text
//! authority ◀─ request ── identity ─┐                       ┌─▶ status   readiness, probes, merged metrics
//! control plane ── roots ───────────┼▶ store ─▶ sds ─▶ Envoy ◀── supervisor   start, signals, drain
//! files ── sds::files ──────────────┘            ▲
//! environment ─▶ config ─▶ bootstrap ────────────┘
//! ```
//!
//! **Invariant:** private keys are made here, go to Envoy over a Unix socket, and nowhere else: neither into a file nor
//! into a log, unless the user names a directory for them.

pub mod args;
pub mod bootstrap;
pub mod capture;
pub mod config;
pub mod envoy_admin;
pub mod http;
pub mod identity;
mod logging;
pub mod metrics;
pub mod names;
pub mod roots;
mod run;
pub mod sds;
pub mod status;
pub mod store;
pub mod supervisor;
pub mod tls;

pub use args::Args;
pub use run::run;
