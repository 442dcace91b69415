//! `cargo xtask bench`: what things cost, measured on release builds.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use anyhow::{Context, bail};

use crate::e2e::in_our_place;
use crate::{tidy, workspace};

/// What `cargo xtask bench` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Simulated proxies against weftd, or against any ADS server: times to the last acknowledgement, CPU, memory
    Push(Flags),
    /// What certificates and mutual TLS cost: callers of the certificate service, and proxies that connect
    Identity(Flags),
    /// Single steps, cold: objects to a view, a view to encoded resources; beside istiod's figures where they are
    Micro(Flags),
}

/// What the program takes; its own `--help` explains it.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
struct Flags {
    /// Flags of the program
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
    flags: Vec<OsString>,
}

/// Builds and runs a benchmark.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.what {
        What::Push(Flags { flags }) => simulated("bench-push", flags),
        What::Identity(Flags { flags }) => simulated("bench-identity", flags),
        What::Micro(Flags { flags }) => {
            let program = build("weft-bench", "bench-micro", &[])?;
            in_our_place(Command::new(program).current_dir(workspace::root()).args(flags), "the benchmark")
        }
    }
}

fn simulated(program: &str, flags: &[OsString]) -> anyhow::Result<()> {
    // Each by itself, so that weftd has the features of its dependencies that it is shipped with.
    let program = build("weft-bench", program, &["--no-default-features"])?;
    let mut command = Command::new(program);
    if env::var_os("WEFTD").is_none() {
        command.env("WEFTD", build("weft-control-plane", "weftd", &[])?);
    }
    in_our_place(command.args(flags), "the benchmark")
}

fn build(package: &str, program: &str, flags: &[&str]) -> anyhow::Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.current_dir(workspace::root());
    command.args(["build", "--quiet", "--release", "--package", package, "--bin", program]).args(flags);
    succeed(&mut command, "the build")?;
    Ok(tidy::metadata()?.target_directory.into_std_path_buf().join("release").join(program))
}

fn succeed(command: &mut Command, what: &str) -> anyhow::Result<()> {
    let status: ExitStatus = command.status().with_context(|| format!("could not run {what}"))?;
    if !status.success() {
        bail!("{what}: {status}");
    }
    Ok(())
}
