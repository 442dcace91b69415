//! Child processes: run one to its end, within a time limit, and say clearly what went wrong.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Starts a command line in a process group of its own, so that a time limit ends its children too.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.process_group(0).stdin(Stdio::null());
    command
}

/// Runs `command` to its end with our own standard output and error.
pub(crate) fn run(command: &mut Command, limit: Duration) -> anyhow::Result<()> {
    let shown = show(command);
    let mut child = command.spawn().with_context(|| format!("could not start `{shown}`"))?;
    finish(&mut child, &shown, limit)
}

/// Runs `command` to its end and returns what it wrote to standard output; standard error is ours.
pub(crate) fn output(command: &mut Command, limit: Duration) -> anyhow::Result<String> {
    let mut text = String::new();
    let outcome = lines(command.stderr(Stdio::inherit()), limit, |line| {
        text.push_str(line);
        text.push('\n');
    });
    outcome.map(|()| text)
}

/// Runs `command` to its end and gives every line of its standard output, and of its standard error if that is
/// piped, to `each` as soon as it is there.
pub(crate) fn lines(
    command: &mut Command,
    limit: Duration,
    mut each: impl FnMut(&str),
) -> anyhow::Result<()> {
    let shown = show(command);
    let started = Instant::now();
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("could not start `{shown}`"))?;

    let (sender, receiver) = mpsc::channel();
    if let Some(stderr) = child.stderr.take() {
        read_lines(stderr, sender.clone());
    }
    read_lines(child.stdout.take().expect("stdout is piped"), sender);

    loop {
        match receiver.recv_timeout(limit.saturating_sub(started.elapsed())) {
            Ok(line) => each(&line),
            // Both pipes are closed, so the command is at its end.
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => break,
        }
    }
    finish(&mut child, &shown, limit.saturating_sub(started.elapsed()))
}

fn read_lines(pipe: impl Read + Send + 'static, sender: mpsc::Sender<String>) {
    thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut bytes = Vec::new();
        while matches!(reader.read_until(b'\n', &mut bytes), Ok(1..)) {
            let line = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
            bytes.clear();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
}

fn finish(child: &mut Child, shown: &str, limit: Duration) -> anyhow::Result<()> {
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() >= limit {
            kill_group(child);
            bail!("`{shown}` took too long and was stopped");
        }
        thread::sleep(Duration::from_millis(20));
    };
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(())
}

/// Ends a child that [`command`] started, with its descendants.
fn kill_group(child: &mut Child) {
    // The standard library can end one process only, and its children (a linker, a test's Envoy) would live on.
    let group = format!("-{}", child.id());
    let killed = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
    if !killed.is_ok_and(|status| status.success()) {
        // Without `kill`, at least the child itself; an error means that it has just ended.
        let _ = child.kill();
    }
    let _ = child.wait();
}

/// Returns the command line as one would type it.
pub(crate) fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_arrive_in_order_and_success_is_ok() {
        let mut seen = Vec::new();
        let mut sh = command("sh");
        lines(sh.args(["-c", "echo one; echo two"]), Duration::from_secs(10), |line| {
            seen.push(line.to_owned())
        })
        .unwrap();
        assert_eq!(seen, ["one", "two"]);
    }

    #[test]
    fn a_failing_command_is_named_with_its_status() {
        let error = run(command("sh").args(["-c", "exit 3"]), Duration::from_secs(10)).unwrap_err();
        assert_eq!(error.to_string(), "`sh -c exit 3` failed: exit status: 3");
    }

    #[test]
    fn a_hanging_command_is_stopped_with_its_children() {
        let started = Instant::now();
        let mut sh = command("sh");
        let error =
            lines(sh.args(["-c", "sleep 60 & sleep 60"]), Duration::from_millis(200), |_| ()).unwrap_err();
        assert!(error.to_string().ends_with("took too long and was stopped"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}
