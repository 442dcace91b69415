//! Noticing that the directory has changed.
//!
//! The operating system's notices come first. They can be missed (a queue that overflows, a file system that
//! sends none, a link to another place), so the directory is also looked at every few seconds, which costs one
//! `stat` a file.

use crate::scan::{Scan, ScanError, Scanner};
use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecursiveMode, Watcher};
use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tracing::{error, info, warn};

/// How often the directory is looked at without a notice.
const POLL: Duration = Duration::from_secs(2);

/// Files that are written one right after the other are one change: this long there must be no further notice.
/// Somebody who renames a subset saves two files, and between the two nothing is as anybody wants it.
const QUIET: Duration = Duration::from_millis(20);

/// A scan during which, or so soon after which, a notice comes may have read half of a change, and is done again.
const DOUBT: Duration = Duration::from_millis(5);

/// After this long the result of a scan is used even if notices keep coming.
const LIMIT: Duration = Duration::from_millis(500);

/// The directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum WatchError {
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error("cannot watch {}", .path.display())]
    Notify {
        path: PathBuf,
        #[source]
        source: notify::Error,
    },
}

/// Scans the directory whenever it changes and sends each result, until nobody receives them any more. While
/// nobody does, nothing is read.
///
/// # Errors
///
/// If the directory cannot be read or watched at the start. Later failures are logged, and the last good state
/// stays.
pub async fn watch(mut scanner: Scanner, scans: mpsc::Sender<Scan>) -> Result<(), WatchError> {
    let (notices, mut inbox) = mpsc::unbounded_channel();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let closed = match event {
            Ok(event) if !is_worth_a_look(&event.kind) => return,
            Ok(event) if is_complete(&event.kind) => event.paths,
            _ => Vec::new(),
        };
        // The receiver is gone only when nobody wants to know any more.
        let _ = notices.send(closed);
    })
    .map_err(|source| WatchError::Notify { path: scanner.root().to_owned(), source })?;
    // Before the first scan, so that no change falls between the two.
    watcher
        .watch(scanner.root(), RecursiveMode::Recursive)
        .map_err(|source| WatchError::Notify { path: scanner.root().to_owned(), source })?;
    let mut scan;
    (scanner, scan) = scan_elsewhere(scanner, HashSet::new()).await;
    if scans.send(scan?).await.is_err() {
        return Ok(());
    }
    let mut missing = false;
    loop {
        // Both are reasons to look; how many notices there were does not matter.
        let mut closed = HashSet::new();
        match tokio::time::timeout(POLL, inbox.recv()).await {
            Ok(None) => return Ok(()),
            Ok(Some(paths)) => closed.extend(paths),
            Err(_elapsed) => {}
        }
        let limit = Instant::now() + LIMIT;
        loop {
            while let Ok(Some(paths)) = timeout_at(limit.min(Instant::now() + QUIET), inbox.recv()).await {
                closed.extend(paths);
            }
            (scanner, scan) = scan_elsewhere(scanner, std::mem::take(&mut closed)).await;
            match timeout_at(limit.min(Instant::now() + DOUBT), inbox.recv()).await {
                Ok(Some(paths)) => closed.extend(paths),
                Ok(None) | Err(_) => break,
            }
        }
        match scan {
            Ok(scan) => {
                if std::mem::take(&mut missing) {
                    info!(path = %scanner.root().display(), "the directory is back");
                    // It may be another directory of the same name.
                    if let Err(error) = watcher.watch(scanner.root(), RecursiveMode::Recursive) {
                        warn!(%error, "cannot watch the directory; it is looked at every two seconds instead");
                    }
                }
                if scans.send(scan).await.is_err() {
                    return Ok(());
                }
            }
            Err(failure) => {
                if !std::mem::replace(&mut missing, true) {
                    let reason = &failure.source;
                    error!(path = %failure.path.display(), %reason, "cannot read the directory; its last state stays in use");
                }
            }
        }
    }
}

/// Reading files blocks, so it is done on a thread that may.
async fn scan_elsewhere(
    mut scanner: Scanner,
    closed: HashSet<PathBuf>,
) -> (Scanner, Result<Scan, ScanError>) {
    let task = tokio::task::spawn_blocking(move || {
        let scan = scanner.scan(&closed);
        (scanner, scan)
    });
    match task.await {
        Ok(result) => result,
        Err(failure) => std::panic::resume_unwind(failure.into_panic()),
    }
}

/// Returns whether a notice may mean that something reads differently now. A file that is being written is
/// looked at when it is closed: before that it may be half of what it will be.
fn is_worth_a_look(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(access) => *access == AccessKind::Close(AccessMode::Write),
        EventKind::Modify(ModifyKind::Data(_)) => false,
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    }
}

/// Returns whether the files that the notice is about are completely written.
fn is_complete(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Access(_) | EventKind::Modify(ModifyKind::Name(_)))
}
