//! Builds the workspace's test programs and runs them.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use cargo_metadata::{Message, Metadata, PackageId, Target};

use super::outcome::{Reader, Tests};
use crate::{process, tidy, workspace};

const BUILD_LIMIT: Duration = Duration::from_secs(40 * 60);
const TEST_LIMIT: Duration = Duration::from_secs(10 * 60);
/// Real Envoys under load, a real API server restarted twenty times.
const END_TO_END_LIMIT: Duration = Duration::from_secs(30 * 60);
/// The package of the end-to-end tests.
const END_TO_END: &str = "weft-e2e";

/// A test program.
pub(super) struct Program {
    /// Such as `weft-compile lib` or `weft-k8s-api yaml`.
    pub(super) name: String,
    package: String,
    folder: PathBuf,
    executable: PathBuf,
}

/// Builds the binaries and every test program; those that take longest to fail come last.
pub(super) fn build() -> anyhow::Result<Vec<Program>> {
    // End-to-end tests start the binaries as users do.
    process::run(cargo().args(["build", "--workspace", "--bins"]), BUILD_LIMIT)?;
    let format = "--message-format=json-render-diagnostics";
    let messages = process::output(cargo().args(["test", "--workspace", "--no-run", format]), BUILD_LIMIT)?;

    let metadata = tidy::metadata()?;
    let mut programs = Vec::new();
    for message in Message::parse_stream(messages.as_bytes()) {
        if let Message::CompilerArtifact(artifact) =
            message.context("cargo's messages are not as expected")?
            && artifact.profile.test
            && let Some(executable) = artifact.executable
        {
            let executable = executable.into_std_path_buf();
            programs.push(Program::new(&metadata, &artifact.package_id, &artifact.target, executable)?);
        }
    }
    if programs.is_empty() {
        bail!("cargo built no test program");
    }
    programs.sort_by_key(|program| (program.package == END_TO_END, program.name.clone()));
    Ok(programs)
}

/// Runs the examples in the documentation.
pub(super) fn doc_tests() -> Tests {
    run(cargo().args(["test", "--workspace", "--doc", "--no-fail-fast"]), BUILD_LIMIT)
}

impl Program {
    fn new(
        metadata: &Metadata,
        package: &PackageId,
        target: &Target,
        executable: PathBuf,
    ) -> anyhow::Result<Self> {
        let package = metadata.packages.iter().find(|candidate| candidate.id == *package);
        let package = package.context("cargo built a package that is not in the workspace")?;
        let kind = if target.is_lib() { "lib" } else { &target.name };
        let folder = package.manifest_path.parent().context("a manifest lies in a folder")?;
        Ok(Self {
            name: format!("{} {kind}", package.name),
            package: package.name.to_string(),
            folder: folder.into(),
            executable,
        })
    }

    /// Runs it as cargo would: in its package's folder.
    pub(super) fn run(&self) -> Tests {
        let mut command = process::command(&self.executable);
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        let limit = if self.package == END_TO_END { END_TO_END_LIMIT } else { TEST_LIMIT };
        run(&mut command, limit)
    }
}

fn cargo() -> Command {
    let mut cargo = process::command(env!("CARGO"));
    cargo.current_dir(workspace::root());
    cargo
}

/// Runs a command that prints as libtest does, and passes on what it prints.
fn run(command: &mut Command, limit: Duration) -> Tests {
    let mut reader = Reader::default();
    let ended = process::lines(command, limit, |line| {
        println!("{line}");
        reader.line(line);
    });
    reader.end(ended)
}
