//! A directory of manifests as a source of the mesh.
//!
//! **Invariant:** this crate knows files, not meshes: it hands on objects with the file and line they came from,
//! and what is wrong with those that it could not read. What an object means is decided by others.
//!
//! ```text
//! inotify ─▶ watch ─▶ scan (only files that changed are read) ─▶ objects + problems
//! ```

mod scan;
mod watch;

pub use scan::{Kept, Problem, Scan, ScanError, Scanner};
pub use watch::{WatchError, watch};
