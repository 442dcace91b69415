//! The directory of manifests as a source.

use index::{Change, Reset};
use source_dir::{Problem, Scan, Scanner, WatchError};
use std::collections::BTreeSet;
use std::path::PathBuf;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

/// The name of the source.
pub(crate) const SOURCE: &str = "directory";

/// Tells the writer of the directory's objects, now and whenever they change.
pub(crate) async fn follow(directory: PathBuf, changes: mpsc::Sender<Change>) -> Result<(), WatchError> {
    let mut known_problems = BTreeSet::new();
    let (sender, mut scans) = mpsc::channel::<Scan>(1);
    // Scans wait while the writer is busy: the newest state is read when there is somebody to take it.
    let forward = async {
        let mut is_first = true;
        while let Some(scan) = scans.recv().await {
            log_problems(&mut known_problems, &scan.problems);
            if changes.send(Change::Reset(Reset::Everything, scan.objects)).await.is_err() {
                return;
            }
            if std::mem::take(&mut is_first) && changes.send(Change::Synced(SOURCE)).await.is_err() {
                return;
            }
        }
    };
    let watch = source_dir::watch(Scanner::new(directory), sender);
    let (watched, ()) = tokio::join!(watch, forward);
    watched
}

/// Logs problems once, when they appear and when they are gone.
fn log_problems(known: &mut BTreeSet<Problem>, found: &[Problem]) {
    let found: BTreeSet<Problem> = found.iter().cloned().collect();
    for problem in found.difference(known) {
        let file = problem.path.display();
        let (line, message) = (problem.line, &problem.message);
        if problem.is_error {
            error!(%file, line, message, "not used; what was there before stays in use");
        } else {
            warn!(%file, line, message, "has no effect");
        }
    }
    for problem in known.difference(&found) {
        info!(file = %problem.path.display(), message = problem.message, "no longer a problem");
    }
    *known = found;
}
