//! Starts and stops real parts for tests.
//!
//! ```text
//! Etcd ◀── ApiServer ◀── ControllerManager        Envoy ──▶ HttpEcho · TcpEcho        EndpointWatch
//! ```
//!
//! Every part has a loopback address of its own (see [`loopback`]), free ports, and a temporary folder for its data
//! and its log. Dropping a handle kills the part with all its children; if the test process itself is killed, a
//! watchdog does so. When a test panics, the end of each part's log is printed and its folder is kept.
//!
//! The calls block. In asynchronous tests use a multi-threaded runtime, or `spawn_blocking`, if what is waited for
//! runs in the test itself; the stand-in apps have a runtime of their own and are never starved.

pub mod echo;
pub mod endpoint_watch;
pub mod envoy;
pub mod http;
pub mod isolation;
pub mod kubernetes;
pub mod loopback;
pub mod netns;
pub mod pki;
pub mod process;
pub mod sds;
mod server;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

pub use echo::{HttpEcho, TcpEcho};
pub use endpoint_watch::EndpointWatch;
pub use envoy::Envoy;
pub use kubernetes::{ApiServer, ApiServerOptions, ControllerManager, Etcd, Kubectl};
pub use sds::SecretServer;

use crate::tools::MissingTool;

/// A part could not be started, or did not do what was waited for.
#[derive(thiserror::Error)]
pub enum RigError {
    /// A program is not installed.
    #[error(transparent)]
    Missing(#[from] MissingTool),
    /// A file, a process or a connection failed.
    #[error("{doing}")]
    Io {
        /// What was attempted.
        doing: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A part ended by itself.
    #[error("{part} ended with {status}; its log ends with:\n{log}")]
    Exited {
        /// The name of the part.
        part: String,
        /// Its exit status.
        status: String,
        /// The last lines of its log.
        log: String,
    },
    /// A part, or a condition on it, took too long.
    #[error("waited {limit:?} for {what}{log}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// The last lines of the log, if a part was waited for.
        log: String,
    },
    /// A command said no.
    #[error("{command} failed:\n{output}")]
    Command {
        /// The command line.
        command: String,
        /// What it printed.
        output: String,
    },
    /// An answer was not what it has to be.
    #[error("{what}: {answer}")]
    Answer {
        /// What was asked for.
        what: String,
        /// What came instead.
        answer: String,
    },
}

/// As `Display`, with the causes: what `unwrap` shows has to be readable, logs included.
impl fmt::Debug for RigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl RigError {
    fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing: doing.into(), source }
    }
}

/// Asks `probe` every 20 ms until it gives a value; after `limit` this is an error that names `what`.
pub fn poll<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T, RigError> {
    let started = Instant::now();
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        if started.elapsed() >= limit {
            return Err(RigError::Timeout { what: what.to_owned(), limit, log: String::new() });
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Writes `text` to `name` in `folder` and returns the path.
fn write_file(folder: &std::path::Path, name: &str, text: &str) -> Result<PathBuf, RigError> {
    let path = folder.join(name);
    std::fs::write(&path, text).map_err(RigError::io(format!("could not write {}", path.display())))?;
    Ok(path)
}
