//! Weft's command line: what a proxy would get, what would become of a call, and pods with proxies, from manifests alone; and
//! whether an installation works.

mod case;
mod check;
mod inject;
mod mesh;
mod nodes;
mod simulate;
mod translate;
mod validate;

use clap::{Parser, Subcommand};
use model::cause::one_line;
use std::process::ExitCode;

/// Compiles and explains mesh configuration without a cluster.
#[derive(Parser)]
#[command(name = "weftctl", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print what each proxy of a case gets, as {proxy: {clusters, listeners, routes, endpoints}} in protobuf JSON
    Translate(translate::Args),
    /// Print manifests with a proxy in every pod that should have one
    Inject(inject::Args),
    /// Print how each proxy of a case introduces itself, as {meshConfig, nodes: {proxy: node}}: what a bootstrap of
    /// Envoy and `weftd --mesh-config` take
    Nodes(nodes::Args),
    /// Print what becomes of each call of a case: listener, filter chain, route, cluster, or why it is refused
    Simulate(simulate::Args),
    /// Say whether an installation does what it is there for: readiness, xDS, validation and injection, tried out without
    /// leaving anything. Needs a kubeconfig or a pod's service account
    Check(check::Args),
    /// Say what is wrong with the objects of a file, as the webhook would; fail if one must be refused
    Validate(validate::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Translate(args) => translate::run(&args),
        Command::Inject(args) => inject::run(&args),
        Command::Nodes(args) => nodes::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Validate(args) => validate::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
