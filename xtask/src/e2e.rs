//! `cargo xtask demo` and `cargo xtask hitless`: programs of the package `weft-e2e`. `cargo xtask e2e`: one of its tests.
//!
//! They are built when they are asked for, so that the chores themselves stay quick to build, and so is the Envoy that
//! they run.

use std::env;
use std::ffi::OsString;
use std::process::{Command, ExitStatus};

use anyhow::{Context, bail};

use toolbox::Tool;

use crate::{Ended, system, tidy, tools, workspace};

/// What the program takes; its own `--help` explains it.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Flags of the program
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
    flags: Vec<OsString>,
}

/// Installs Envoy if it is missing, builds the program with weftd, and runs it in our place: it is interrupted as we are,
/// and its exit status is ours.
pub(crate) fn run(program: &str, args: &Args) -> anyhow::Result<()> {
    tools::install(&[Tool::Python, Tool::Envoy])?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut build = Command::new(cargo);
    // Of the whole workspace, so that dependencies are those of every other build.
    build.current_dir(workspace::root()).args([
        "build",
        "--quiet",
        "--workspace",
        "--bin",
        "weftd",
        "--bin",
        program,
    ]);
    succeed(&mut build, "the build")?;

    let folder = tidy::metadata()?.target_directory.into_std_path_buf().join("debug");
    let mut command = Command::new(folder.join(program));
    if env::var_os("WEFTD").is_none() {
        command.env("WEFTD", folder.join("weftd"));
    }
    in_our_place(command.args(&args.flags), program)
}

/// Runs a program that says itself what is wrong, and whose exit status is to be ours.
pub(crate) fn in_our_place(command: &mut Command, what: &str) -> anyhow::Result<()> {
    let status: ExitStatus = command.status().with_context(|| format!("could not run {what}"))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(Ended(u8::try_from(code).unwrap_or(1)).into()),
        None => bail!("{what}: {status}"),
    }
}

/// What `cargo xtask e2e` takes.
#[derive(clap::Args)]
pub(crate) struct TestArgs {
    /// Which one
    #[arg(value_enum)]
    test: Test,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Test {
    Identity,
    Capture,
    Workloads,
    Install,
}

/// Installs what the tests need, and runs one of them: as `cargo xtask test` does, but with all that it says.
pub(crate) fn test(args: &TestArgs) -> anyhow::Result<()> {
    tools::install(&Tool::ALL)?;
    system::install()?;
    let programs: &[&str] = match args.test {
        Test::Identity => &["mutual_tls", "replicas", "agentless", "orders"],
        Test::Capture => &["capture"],
        Test::Workloads => &["workloads"],
        Test::Install => &["install"],
    };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut test = Command::new(cargo);
    test.current_dir(workspace::root()).args(["test", "--workspace"]);
    test.args(programs.iter().flat_map(|program| ["--test", program])).args(["--", "--nocapture"]);
    succeed(&mut test, "end-to-end test")
}

fn succeed(command: &mut Command, what: &str) -> anyhow::Result<()> {
    let status: ExitStatus = command.status().with_context(|| format!("could not run {what}"))?;
    if !status.success() {
        bail!("{what}: {status}");
    }
    Ok(())
}
