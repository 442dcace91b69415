//! weftd: sources, compiler, push engine and xDS server in one process.
//!
//! **Invariant:** everything is wired here and nothing is decided: no other crate knows of flags, of the
//! environment or of the process.
//!
//! ```text
//! directory or Kubernetes ─▶ writer (index) ─▶ push engine ─▶ xds server ─▶ proxies
//!                               ├─▶ admin: /ready /metrics /debug/…  ◀─┘
//!                               └─▶ admission: /inject /validate ◀─ API server
//! ```

mod admin;
mod admission;
mod app;
mod args;
mod directory;
mod mesh_file;
mod secure;
mod source;
mod sources;
mod state_dir;
mod status;
mod writer;

pub use app::run;
pub use args::Args;
