//! Two workloads with agents, a real API server that vouches for them, and weftd between: everything that mutual TLS
//! takes.
//!
//! ```text
//! load ─▶ Envoy of client-1 ══ mutual TLS ══▶ Envoy of server-1 ─▶ app
//!            │ agent                              │ agent
//!            └──────── weftd :15012 ──────────────┘
//!                        ▲ tokens, pods
//!                    API server
//! ```

mod agent;
mod mesh;
mod pods;

pub use agent::{Agent, Identity, for_everybody};
pub use mesh::{BYTES_PORT, HTTP_PORT, IMPOSTOR_PORT, Kept, Mesh};
pub use pods::{Cluster, InPod, Workload};
