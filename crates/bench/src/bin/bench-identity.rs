//! `cargo xtask bench identity`: what certificates and mutual TLS cost.

use anyhow::Context;
use bench::identity::{self, Plan};
use bench::mesh::Mesh;
use clap::Parser;
use std::process::ExitCode;
use std::time::Duration;

/// Measures what certificates and mutual TLS cost weftd, which is started on a directory of manifests.
///
/// Callers have tokens of their own, which weftd verifies with a key from a file, and ask for certificates over TLS; then
/// simulated proxies connect with such certificates. They share the machine with weftd.
#[derive(Parser)]
#[command(name = "cargo xtask bench identity")]
struct Args {
    /// Callers of the certificate service
    #[arg(long, default_value_t = 500, value_parser = positive)]
    callers: usize,
    /// Certificates for each
    #[arg(long, default_value_t = 20, value_parser = positive)]
    requests: usize,
    /// Simulated proxies, a connection each
    #[arg(long, default_value_t = 1000, value_parser = positive)]
    streams: usize,
    /// Services
    #[arg(long, default_value_t = 200, value_parser = positive)]
    services: usize,
    /// Endpoints of each
    #[arg(long, default_value_t = 10, value_parser = positive)]
    endpoints: usize,
    /// How many seconds any step may take
    #[arg(long, default_value_t = 120)]
    limit: u64,
}

fn main() -> ExitCode {
    e2e::exit(run(&Args::parse()))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let Args { callers, requests, streams, services, endpoints, limit } = *args;
    let mesh = Mesh { services, endpoints, namespaces: 5, zones: 3 };
    let plan = Plan { mesh, callers, requests, streams, limit: Duration::from_secs(limit) };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime")?;
    println!("{}", runtime.block_on(identity::run(plan))?);
    Ok(())
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| format!("{text:?} is no number from 1 up"))
}
