//! What a control plane costs: simulated proxies by the thousand, the mesh that they are in, and the meters; and what
//! single steps of the compiler cost (`micro`).
//!
//! ```text
//! mesh ──▶ API server ──▶ weftd (a process of its own)    or a directory, or any ADS server by address
//!   ▲ edits                │ gRPC, one connection a proxy
//!   └──── push ◀── fleet ──┴─▶ stream ─▶ envoy (subscribes, acknowledges, checks)
//! ```
//!
//! **Invariant:** a simulated proxy knows nothing of the server but what it is sent, and looks at every response: what
//! is measured is what a real proxy would have waited for.

mod cluster;
pub mod envoy;
pub mod facts;
pub mod fleet;
pub mod identity;
pub mod mesh;
#[cfg(feature = "micro")]
pub mod micro;
pub mod push;
pub mod stats;
pub mod stream;
mod target;
pub mod usage;
mod wire;
