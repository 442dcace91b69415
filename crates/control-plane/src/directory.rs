//! The directory of manifests as a source.

use index::{Change, Reset};
use source_dir::{Kept, Problem, Scan, Scanner, WatchError};
use std::collections::BTreeSet;
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

/// How the directory is.
#[derive(Clone, Debug, Default)]
pub(crate) struct DirectoryState {
    /// The number of objects that were told of.
    pub(crate) objects: usize,
    /// How often something may have changed.
    pub(crate) scans: u64,
    /// What is wrong with the files.
    pub(crate) problems: Vec<Problem>,
}

/// The name of the source.
pub(crate) const SOURCE: &str = "directory";

/// Tells the writer of the scanner's objects, now and whenever they change.
///
/// `restored` is what another process had kept of files that could not be read; what is kept now goes to `kept`.
pub(crate) async fn follow(
    mut scanner: Scanner,
    restored: Vec<Kept>,
    changes: mpsc::Sender<Change>,
    kept: watch::Sender<Vec<Kept>>,
    state: watch::Sender<DirectoryState>,
) -> Result<(), WatchError> {
    let mut known_problems = BTreeSet::new();
    let (sender, mut scans) = mpsc::channel::<Scan>(1);
    // Scans wait while the writer is busy: the newest state is read when there is somebody to take it.
    let forward = async {
        let mut is_first = true;
        while let Some(scan) = scans.recv().await {
            log_problems(&mut known_problems, &scan.problems);
            state.send_modify(|state| {
                state.objects = scan.objects.len();
                state.scans += 1;
                state.problems = scan.problems.clone();
            });
            kept.send_if_modified(|known| {
                let is_news = *known != scan.kept;
                *known = scan.kept;
                is_news
            });
            if changes.send(Change::Reset(Reset::Everything, scan.objects)).await.is_err() {
                return;
            }
            if std::mem::take(&mut is_first) && changes.send(Change::Synced(SOURCE)).await.is_err() {
                return;
            }
        }
    };
    scanner.restore(restored);
    let watch = source_dir::watch(scanner, sender);
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
