//! Connections, from `accept` to HTTP/2 requests, for servers that strangers can reach.
//!
//! **Invariant:** this crate knows neither what is served nor who anybody is. Whoever serves tells it, with
//! [`Peer::settle`], that a connection belongs to somebody who may be there.
//!
//! ```text
//! accept ─▶ Table: admitted? ─▶ TLS handshake ─▶ HTTP/2 ─▶ service, with a Peer in the extensions of each request
//!   ▲          │ evicts strangers     deadline      deadline       │
//!   └ back-off └──────────────────────────────────◀── settle ──────┘
//! ```
//!
//! Until it is settled a connection is a *stranger*. Strangers are few, short-lived, and the first to go when room
//! or descriptors run out, so that a flood of them costs little and delays nobody who is known.

mod accept;
mod config;
mod connection;
mod counter;
mod metrics;
mod peer;
mod seldom;
mod server;
mod streams;
mod table;

pub use accept::Accept;
pub use config::{Config, Limits};
pub use counter::{Counter, ReasonLabel};
pub use metrics::Metrics;
pub use peer::Peer;
pub use seldom::Seldom;
pub use server::{Transport, serve};
