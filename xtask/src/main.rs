//! The project's chores, run as `cargo xtask COMMAND`.
//!
//! Each command is a module with `pub(crate) struct Args` and `pub(crate) fn run(args) -> anyhow::Result<()>`, one
//! line in [`Command`] and one in `run`. An error is printed with its causes and ends the process with status 1.

mod bench;
mod codegen;
mod conformance;
mod deny;
mod e2e;
mod images;
mod process;
mod system;
mod test;
mod tidy;
mod tools;
mod workspace;

use std::fmt;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's chores.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show Weft at work: bookinfo behind a real Envoy, a 90/10 split that shifts as a file is edited (`--check`: do so
    /// without you)
    Demo(e2e::Args),
    /// Make random edits while requests flow, and count those that fail (`--edits N --seed S`)
    Hitless(e2e::Args),
    /// Run one end-to-end test and show what it says (`identity`: mutual TLS with agents, real Envoys and an API server, while
    /// certificates and the root are replaced; `workloads`: the same in network namespaces whose traffic is captured;
    /// `capture`: what is captured; `install`: charts, injection, a gateway and bookinfo, run by a node of the rig)
    E2e(e2e::TestArgs),
    /// Measure what things cost, on release builds (`push`: simulated proxies against weftd)
    Bench(bench::Args),
    /// Lay out the container images, each in a folder beside its Dockerfile, and say how to build them
    Images(images::Args),
    /// Install the real parts that tests run against, each pinned, and print their versions
    Tools(tools::Args),
    /// Run everything from a clean clone: tools, build, all tests, comparisons
    Test(test::Args),
    /// Check the workspace's own rules: layers, lints, file sizes
    Tidy(tidy::Args),
    /// Check licences, bans and sources of all dependencies
    Deny(deny::Args),
    /// Run a conformance corpus, inputs and outcomes that others wrote
    Conformance(conformance::Args),
    /// Write the generated files that are checked in, or check them
    Codegen(codegen::Args),
}

/// A command failed and has said so; nothing may follow its last line, `N passed, N failed`.
#[derive(Debug)]
struct AlreadyReported;

impl fmt::Display for AlreadyReported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failed, as reported above")
    }
}

impl std::error::Error for AlreadyReported {}

/// A program that was run in our place has failed and has said why: its exit status is ours.
#[derive(Debug)]
struct Ended(u8);

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ended with status {}, as reported above", self.0)
    }
}

impl std::error::Error for Ended {}

/// The command was called in a way that makes no sense.
#[derive(Debug)]
struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

fn main() -> ExitCode {
    let Err(error) = run(Cli::parse().command) else { return ExitCode::SUCCESS };
    if let Some(Ended(status)) = error.downcast_ref() {
        return ExitCode::from(*status);
    }
    if !error.is::<AlreadyReported>() {
        eprintln!("error: {error:#}");
    }
    if error.is::<Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Demo(args) => e2e::run("demo", &args),
        Command::Hitless(args) => e2e::run("hitless", &args),
        Command::E2e(args) => e2e::test(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Images(args) => images::run(&args),
        Command::Tools(args) => tools::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Tidy(args) => tidy::run(&args),
        Command::Deny(args) => deny::run(&args),
        Command::Codegen(args) => codegen::run(&args),
        Command::Conformance(args) => conformance::run(&args),
    }
}
