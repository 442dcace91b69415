//! In a container the agent is process 1, to which every orphan falls, such as what a `kubectl exec` left behind.
//! Nobody else waits for those, so they are waited for here; Envoy is not, since its end is somebody else's to learn.

use rustix::process::{Pid, WaitOptions, waitpid};
use std::fs;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

/// Ends the reaper when dropped.
pub(super) struct Reaper(Option<JoinHandle<()>>);

impl Drop for Reaper {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
    }
}

/// Starts to wait for orphans, if this is process 1.
pub(super) fn start(envoy: Option<u32>) -> Reaper {
    if std::process::id() != 1 {
        return Reaper(None);
    }
    let Ok(mut ends) = signal(SignalKind::child()) else { return Reaper(None) };
    Reaper(Some(tokio::spawn(async move {
        while ends.recv().await.is_some() {
            reap(envoy);
        }
    })))
}

/// Waits for every child that has ended but Envoy.
fn reap(envoy: Option<u32>) {
    let Ok(processes) = fs::read_dir("/proc") else { return };
    for process in processes.flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(process.path().join("stat")) else { continue };
        if Some(id) == envoy || !is_orphan(&stat) {
            continue;
        }
        if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
            // An error means that it is gone already.
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// Whether `/proc/<id>/stat` is that of a child of process 1 that has ended. The name in it may contain anything.
fn is_orphan(stat: &str) -> bool {
    let Some((_, rest)) = stat.rsplit_once(") ") else { return false };
    let mut words = rest.split(' ');
    (words.next(), words.next()) == (Some("Z"), Some("1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ended_children_of_process_1_are_orphans() {
        assert!(is_orphan("77 (sh) Z 1 77 77 0 -1"));
        assert!(is_orphan("77 (a) Z 2) b) Z 1 77"));
        assert!(!is_orphan("77 (sh) S 1 77"));
        assert!(!is_orphan("77 (sh) Z 12 77"));
        assert!(!is_orphan(""));
    }
}
