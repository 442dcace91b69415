//! A child process with a folder, a log, and a certain end.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use super::RigError;

/// How much of a log is shown when something fails.
const TAIL_LINES: usize = 40;

/// A temporary folder that is kept when the test panics.
#[derive(Debug)]
pub struct Scratch {
    folder: Option<TempDir>,
}

impl Scratch {
    /// Makes a folder whose name says which part it belongs to.
    pub fn new(part: &str) -> Result<Self, RigError> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("weft-{part}-"))
            .tempdir()
            .map_err(RigError::io(format!("could not make a folder for {part}")))?;
        Ok(Self { folder: Some(folder) })
    }

    /// Returns the folder.
    pub fn path(&self) -> &Path {
        self.folder.as_ref().expect("it is taken by drop only").path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(folder) = self.folder.take()
            && thread::panicking()
        {
            eprintln!("kept: {}", folder.keep().display());
        }
    }
}

/// A running program.
#[derive(Debug)]
pub struct Process {
    part: String,
    /// Behind a lock because asking for the status needs it mutably, and handles are shared by probes.
    child: Mutex<Child>,
    id: u32,
    log: PathBuf,
}

impl Process {
    /// Starts `command` in a process group of its own; what it prints is appended to `log`.
    pub fn spawn(part: &str, mut command: Command, log: PathBuf) -> Result<Self, RigError> {
        let file = File::options().create(true).append(true).open(&log);
        let file = file.map_err(RigError::io(format!("could not write {}", log.display())))?;
        let errors = file.try_clone().map_err(RigError::io("could not share the log"))?;
        command.process_group(0).stdin(Stdio::null()).stdout(file).stderr(errors);
        let child = command.spawn().map_err(RigError::io(format!("could not start {part}")))?;
        let id = child.id();
        watch('+', id);
        Ok(Self { part: part.to_owned(), child: Mutex::new(child), id, log })
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Asks `probe` until it gives a value. Ends early if the process does.
    pub fn wait_until<T>(
        &self,
        what: &str,
        limit: Duration,
        mut probe: impl FnMut() -> Option<T>,
    ) -> Result<T, RigError> {
        let started = Instant::now();
        loop {
            if let Some(value) = probe() {
                return Ok(value);
            }
            if let Some(status) = self.status()? {
                let (part, log) = (self.part.clone(), self.log_tail());
                return Err(RigError::Exited { part, status: status.to_string(), log });
            }
            if started.elapsed() >= limit {
                let log = format!("; the log of {} ends with:\n{}", self.part, self.log_tail());
                return Err(RigError::Timeout { what: what.to_owned(), limit, log });
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Returns the exit status if the process has ended.
    pub fn status(&self) -> Result<Option<ExitStatus>, RigError> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.try_wait().map_err(RigError::io(format!("could not ask for the status of {}", self.part)))
    }

    /// Kills it, without a word, and waits until it is gone.
    pub fn kill(&mut self) {
        // One that has ended has no process id any more: somebody else may have it.
        if matches!(self.status(), Ok(None)) {
            self.signal(Signal::KILL);
        }
        let _ = self.child.get_mut().unwrap_or_else(PoisonError::into_inner).wait();
    }

    /// Asks the process to end, as Kubernetes does, and waits; kills it after `limit`.
    pub fn terminate(self, limit: Duration) -> Result<(), RigError> {
        self.signal(Signal::TERM);
        let started = Instant::now();
        while self.status()?.is_none() && started.elapsed() < limit {
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Returns the last lines of the log.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    fn signal(&self, signal: Signal) {
        let Some(group) = i32::try_from(self.id).ok().and_then(Pid::from_raw) else { return };
        // An error means that the whole group has ended already.
        let _ = kill_process_group(group, signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        watch('-', self.id);
        if thread::panicking() {
            eprintln!("--- {}: end of {}\n{}\n---", self.part, self.log.display(), self.log_tail());
        }
    }
}

/// Kills what is still running when this process is gone without having dropped its parts: by a signal, a timeout or
/// `exit`. It knows by the end of its input, which only we hold.
static WATCHDOG: LazyLock<io::Result<Mutex<ChildStdin>>> = LazyLock::new(|| {
    const SCRIPT: &str = "
        groups=
        while read -r change group; do
            case $change in
            +) groups=\"$groups $group\" ;;
            -) rest=; for other in $groups; do [ $other = $group ] || rest=\"$rest $other\"; done; groups=$rest ;;
            esac
        done
        for group in $groups; do kill -s KILL -- -$group; done";
    let mut shell = Command::new("sh");
    shell.args(["-c", SCRIPT]).process_group(0);
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    Ok(Mutex::new(shell.stdin.take().expect("stdin is piped")))
});

fn watch(change: char, group: u32) {
    // Without a shell there is no watchdog; drop still ends everything in an orderly run.
    let Ok(watchdog) = &*WATCHDOG else { return };
    let mut input = watchdog.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = writeln!(input, "{change} {group}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, scratch: &Scratch) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::spawn("sh", command, scratch.path().join("log")).unwrap()
    }

    fn is_alive(pid: &str) -> bool {
        // A zombie has ended; only its parent has not looked yet.
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
    }

    fn printed(scratch: &Scratch) -> Option<String> {
        let text = fs::read_to_string(scratch.path().join("log")).unwrap_or_default();
        text.ends_with('\n').then(|| text.trim().to_owned())
    }

    #[test]
    fn dropping_kills_the_children_too() {
        let scratch = Scratch::new("sh").unwrap();
        let process = sh("sleep 100 & echo $!; wait", &scratch);
        let sleep = process.wait_until("a line", Duration::from_secs(5), || printed(&scratch)).unwrap();
        assert!(is_alive(&sleep));
        drop(process);
        super::super::poll("the end", Duration::from_secs(5), || (!is_alive(&sleep)).then_some(())).unwrap();
    }

    #[test]
    fn an_early_end_is_reported_with_the_log() {
        let scratch = Scratch::new("sh").unwrap();
        let process = sh("echo bad flag; exit 3", &scratch);
        let error = process.wait_until("nothing", Duration::from_secs(5), || None::<()>).unwrap_err();
        assert_eq!(error.to_string(), "sh ended with exit status: 3; its log ends with:\nbad flag");
    }

    #[test]
    fn a_slow_start_is_reported_with_the_log() {
        let scratch = Scratch::new("sh").unwrap();
        let process = sh("echo still busy; sleep 100", &scratch);
        let ready = || None::<()>;
        let error = process.wait_until("readiness", Duration::from_millis(300), ready).unwrap_err();
        assert_eq!(error.to_string(), "waited 300ms for readiness; the log of sh ends with:\nstill busy");
    }

    /// Runs itself again as the process that is killed, since only a process of its own can end without its drops.
    #[test]
    fn the_watchdog_ends_what_a_killed_process_leaves() {
        const CHILD: &str = "WEFT_TESTKIT_KILLED_PROCESS";
        if let Some(folder) = std::env::var_os(CHILD) {
            let mut command = Command::new("sleep");
            command.arg("100");
            let process = Process::spawn("sleep", command, Path::new(&folder).join("log")).unwrap();
            fs::write(Path::new(&folder).join("pid"), format!("{}\n", process.id)).unwrap();
            std::process::abort();
        }
        let scratch = Scratch::new("killed").unwrap();
        let name = "rig::process::tests::the_watchdog_ends_what_a_killed_process_leaves";
        let mut itself = Command::new(std::env::current_exe().unwrap());
        itself.args(["--exact", name]).env(CHILD, scratch.path()).stdout(Stdio::null());
        assert!(!itself.status().unwrap().success());
        let sleep = fs::read_to_string(scratch.path().join("pid")).unwrap();
        let sleep = sleep.trim();
        super::super::poll("the end", Duration::from_secs(10), || (!is_alive(sleep)).then_some(())).unwrap();
    }
}
