//! Random valid edits of a directory of manifests while requests flow through a real Envoy; see [`e2e::edits`] for what
//! makes a request fail.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Parser;
use e2e::edits::{Directory, Options, Rollout};

/// Makes random valid edits while requests flow through a real Envoy, and counts the requests that fail.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask hitless")]
struct Args {
    /// How many edits
    #[arg(long, default_value_t = 1000)]
    edits: u32,
    /// What decides which; the same seed makes the same edits
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many clients
    #[arg(long, default_value_t = 4)]
    clients: u32,
    /// Print every edit
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    e2e::exit(run(&Args::parse()))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let options = Options { seed: args.seed, clients: args.clients };
    let mut rollout = Rollout::start(Directory::new()?, &options)?;
    let started = Instant::now();
    let (mut counts, mut told) = (BTreeMap::<&'static str, u32>::new(), 0);
    for number in 1..=args.edits {
        let edit = rollout.edit().with_context(|| format!("edit {number} of seed {}", args.seed))?;
        *counts.entry(edit.kind).or_default() += 1;
        if args.verbose {
            println!("{number}: {}", edit.what);
        }
        let failures = rollout.failures();
        for failure in &failures[told..] {
            println!("{number}: failed: {failure}");
        }
        told = failures.len();
        if number.is_multiple_of(100) {
            println!("{number} edits, {} requests, {told} failed", rollout.requests());
        }
        ensure!(told < 20, "{}", rollout.report());
    }
    rollout.settle().context("after the last edit")?;
    rollout.ensure_nothing_is_left().context("after the last edit")?;
    ensure!(rollout.failures().is_empty(), "{}", rollout.report());
    let kinds: Vec<String> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    println!("{}", kinds.join(", "));
    println!("{}", rollout.settling());
    let (edits, requests) = (args.edits, rollout.requests());
    println!("{edits} edits, {requests} requests, 0 failed in {:.0} s", started.elapsed().as_secs_f32());
    Ok(())
}
