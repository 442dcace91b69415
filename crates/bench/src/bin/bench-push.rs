//! `cargo xtask bench push`: simulated proxies against weftd, or against any ADS server.

use anyhow::Context;
use bench::mesh::Mesh;
use bench::push::{self, Kind, Plan, Server};
use clap::{Parser, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Measures how long changes take to reach simulated proxies, and what they cost the server.
///
/// By default that is weftd, started on a real API server that holds the mesh. Times are from the request to change an
/// object to the acknowledgement of the last proxy; proxies, servers and the API server share the machine.
#[derive(Parser)]
#[command(name = "cargo xtask bench push")]
struct Args {
    /// Services
    #[arg(long, default_value_t = 200, value_parser = positive)]
    services: usize,
    /// Endpoints of each
    #[arg(long, default_value_t = 10, value_parser = positive)]
    endpoints: usize,
    /// Namespaces that they are spread over
    #[arg(long, default_value_t = 5, value_parser = positive)]
    namespaces: usize,
    /// Zones that they are spread over
    #[arg(long, default_value_t = 3, value_parser = positive)]
    zones: usize,
    /// Simulated proxies, a connection each
    #[arg(long, default_value_t = 1000)]
    streams: usize,
    /// Edits of each kind
    #[arg(long, default_value_t = 20)]
    edits: usize,
    /// Which kinds
    #[arg(long, value_enum, value_delimiter = ',', default_value = "endpoint,weight,rename")]
    kinds: Vec<KindArg>,
    /// Let weftd read the mesh from a directory, without an API server; times are then from the write of a file, and
    /// 20 ms of them are the wait for more files
    #[arg(long, conflicts_with = "address")]
    files: bool,
    /// Measure the ADS server (delta, plain text) at this address, which serves the mesh of --write-mesh
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<SocketAddr>,
    /// The process of that server, for CPU and memory
    #[arg(long, requires = "address")]
    pid: Option<u32>,
    /// How that server is told of changed manifests: a shell command, to which their paths are added, such as
    /// `kubectl apply -f`. Without it nothing is edited
    #[arg(long, requires = "address", value_name = "COMMAND")]
    edit_command: Option<String>,
    /// Only write the mesh's manifests into this directory
    #[arg(long, value_name = "DIR")]
    write_mesh: Option<PathBuf>,
    /// How many seconds any step may take
    #[arg(long, default_value_t = 120)]
    limit: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KindArg {
    /// An endpoint becomes ready or not
    Endpoint,
    /// The weights of a route change
    Weight,
    /// A subset gets another name
    Rename,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Endpoint => Self::Endpoint,
            KindArg::Weight => Self::Weight,
            KindArg::Rename => Self::Rename,
        }
    }
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| format!("{text:?} is no number from 1 up"))
}

fn main() -> ExitCode {
    e2e::exit(run(&Args::parse()))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let Args { services, endpoints, namespaces, zones, streams, edits, .. } = *args;
    let mesh = Mesh { services, endpoints, namespaces, zones };
    if let Some(directory) = &args.write_mesh {
        return push::write_mesh(&mesh, directory);
    }
    let server = match args.address {
        Some(address) => Server::Address { address, pid: args.pid, edit: args.edit_command.clone() },
        None if args.files => Server::WeftdOnFiles,
        None => Server::Weftd,
    };
    let kinds = args.kinds.iter().copied().map(Kind::from).collect();
    let plan = Plan { mesh, streams, edits, kinds, server, limit: Duration::from_secs(args.limit) };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime")?;
    println!("{}", runtime.block_on(push::run(plan))?);
    Ok(())
}
