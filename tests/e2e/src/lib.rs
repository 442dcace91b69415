//! The whole of Weft with real parts: weftd on a directory of manifests, stock Envoys, and stand-in apps on loopback.
//!
//! ```text
//! client ──▶ Envoy ──▶ apps          all on loopback addresses of one network of their own
//!              ▲ xDS
//!            weftd ◀── a temporary directory of manifests, edited while traffic flows
//! ```
//!
//! **Invariant:** weftd is the program that users run, started with flags and talked to over its ports; nothing here
//! links the code that is under test.

pub mod app;
pub mod client;
pub mod config;
pub mod edits;
pub mod identity;
pub mod kubelet;
pub mod network;
pub mod proxy;
pub mod weftd;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

/// How long a change may take to arrive on a busy machine before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Says what went wrong, if anything did, and returns the status for it.
pub fn exit(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Asks `probe` every 20 ms until it succeeds. After `limit` its last error is returned.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() >= limit => {
                return Err(error).with_context(|| format!("waited {limit:?} for {what}"));
            }
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}
