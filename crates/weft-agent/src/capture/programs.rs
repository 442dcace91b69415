//! Runs the programs that know how to speak to the kernel, and says what it means when they fail.

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

/// Why a program did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProgramError {
    /// It is not there.
    #[error("{0} is not installed")]
    Missing(String),
    /// It could not be run.
    #[error("cannot run {program}: {source}")]
    NotRun {
        /// Which one.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// We may not.
    #[error(
        "{program} is not allowed to: capture needs the capability NET_ADMIN, and iptables NET_RAW as well ({said})"
    )]
    NotAllowed {
        /// Which one.
        program: String,
        /// What it said.
        said: String,
    },
    /// The kernel cannot.
    #[error("the kernel lacks what {program} needs, perhaps the modules {modules}: {said}")]
    Kernel {
        /// Which one.
        program: String,
        /// What it may lack.
        modules: &'static str,
        /// What it said.
        said: String,
    },
    /// Anything else.
    #[error("{program} has failed with {status}: {said}")]
    Failed {
        /// Which one.
        program: String,
        /// How it ended.
        status: String,
        /// What it said.
        said: String,
    },
}

/// Runs a program to its end and returns what it printed.
pub(super) fn run(
    program: &str,
    arguments: &[&str],
    input: &str,
    modules: &'static str,
) -> Result<String, ProgramError> {
    let not_run = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ProgramError::Missing(program.to_owned()),
        _ => ProgramError::NotRun { program: program.to_owned(), source },
    };
    let mut child = Command::new(program)
        .args(arguments.iter().map(OsStr::new))
        // Its messages are recognized below.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(not_run)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends early says why in its status.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(not_run)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(explain(program, &output.status.to_string(), &String::from_utf8_lossy(&output.stderr), modules))
}

fn explain(program: &str, status: &str, stderr: &str, modules: &'static str) -> ProgramError {
    let program = program.to_owned();
    let said = summary(stderr);
    let has = |parts: &[&str]| parts.iter().any(|part| stderr.contains(part));
    if has(&["Operation not permitted", "Permission denied", "you must be root"]) {
        return ProgramError::NotAllowed { program, said };
    }
    if has(&[
        "not supported",
        "No such file or directory",
        "Table does not exist",
        "No chain/target/match by that name",
        "Couldn't load",
        "Failed to initialize nft",
        "RULE_APPEND failed",
    ]) {
        return ProgramError::Kernel { program, modules, said };
    }
    ProgramError::Failed { program, status: status.to_owned(), said }
}

/// The first lines that say something, as one.
fn summary(stderr: &str) -> String {
    let lines = stderr.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('^'));
    let text = lines.take(3).collect::<Vec<_>>().join("; ");
    if text.is_empty() { "it says nothing".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let error = run("weft-no-such-program", &[], "", "none").unwrap_err();
        assert_eq!(error.to_string(), "weft-no-such-program is not installed");
        let said = "Error: Could not process rule: Operation not supported\nadd table ip weft\n^^^^^\n";
        let error = explain("nft", "exit status: 1", said, "nf_tables").to_string();
        assert!(error.contains("perhaps the modules nf_tables: Error: Could not process rule"), "{error}");
        let said = "iptables-restore: Permission denied (you must be root)\n";
        assert!(explain("iptables-restore", "exit status: 4", said, "").to_string().contains("NET_ADMIN"));
        let error = explain("nft", "exit status: 1", "syntax error\n", "").to_string();
        assert_eq!(error, "nft has failed with exit status: 1: syntax error");
    }
}
