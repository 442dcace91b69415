//! `cargo xtask demo` and `cargo xtask hitless`: programs of the package `weft-e2e`.
//!
//! They are built when they are asked for, so that the chores themselves stay quick to build.

use std::env;
use std::ffi::OsString;
use std::process::{Command, ExitStatus};

use anyhow::{Context, bail};

use crate::workspace;

/// What the program takes; its own `--help` explains it.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Flags of the program
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
    flags: Vec<OsString>,
}

/// Builds the program and runs it in our place: it is interrupted as we are, and its exit status is ours.
pub(crate) fn run(program: &str, args: &Args) -> anyhow::Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.current_dir(workspace::root());
    command.args(["run", "--quiet", "--package", "weft-e2e", "--bin", program, "--"]).args(&args.flags);
    let status: ExitStatus = command.status().with_context(|| format!("could not run {program}"))?;
    if !status.success() {
        bail!("{program}: {status}");
    }
    Ok(())
}
