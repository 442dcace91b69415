//! One scenario in real Envoys: every proxy of a conformance case is started as a stock Envoy that weftd configures,
//! and has to take all of it.
//!
//! ```text
//! weftd ◀── the scenario's objects, and the Secrets that its gateways ask for
//!   │ delta ADS
//!   ▼
//! Envoy ◀── sds-grpc ── a stand-in agent with `default`, `ROOTCA` and files
//! ```
//!
//! All of it runs in a network of its own, so listeners are bound where they say.

mod evidence;
mod material;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use e2e::proxy;
use e2e::weftd::{self, Weftd};
use evidence::Expected;
use material::Files;
use serde_json::{Value, json};
use testkit::rig::envoy::EnvoyOptions;
use testkit::rig::pki::Authority;
use testkit::rig::process::Scratch;
use testkit::rig::{Envoy, SecretServer, isolation, loopback};

/// How long an Envoy may take. Its own patience with a secret that does not come is 15 seconds, and so is weftd's with
/// a cluster that does not warm: a proxy that is late for one of these reasons is told apart from one that hangs.
const LIMIT: Duration = Duration::from_secs(25);

/// How long to wait for more complaints after the first.
const COMPLAINTS: Duration = Duration::from_secs(1);

/// Starts a stock Envoy for every proxy of a scenario and says whether it took all that weftd has for it.
#[derive(Debug, Parser)]
#[command(name = "scenario")]
struct Args {
    /// The folder with `objects.yaml` and `case.yaml`
    folder: PathBuf,
    /// The network is our own already
    #[arg(long, hide = true)]
    isolated: bool,
    /// Keep the Envoys' logs at this level, and show the end of them for each proxy that fails
    #[arg(long, default_value = "warning")]
    log_level: String,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = if args.isolated { run(&args) } else { isolate(&args) };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("FAIL {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs ourselves again in a network of our own.
fn isolate(args: &Args) -> anyhow::Result<bool> {
    let scratch = Scratch::new("isolation")?;
    let folders = Files::named_by(&compile(&args.folder)?).folders();
    let program = env::current_exe().context("where is this program?")?;
    let mut command = isolation::command(&program, &folders, scratch.path())?;
    command.arg(&args.folder).arg("--isolated").args(["--log-level", &args.log_level]);
    let status = command.status().context("could not run unshare")?;
    Ok(status.success())
}

fn run(args: &Args) -> anyhow::Result<bool> {
    let scenario = Scenario::start(&args.folder)?;
    let nodes = scenario.nodes["nodes"].as_object().context("weftctl prints no nodes")?;
    ensure!(!nodes.is_empty(), "the case has no proxies");
    let mut passed = true;
    for (name, node) in nodes {
        if let Some(reason) = not_an_envoy(node) {
            println!("skipped {name}: {reason}");
            continue;
        }
        let started = Instant::now();
        match scenario.check(name, node, &args.log_level) {
            Ok(()) => println!("ok {name} ({:.1} s)", started.elapsed().as_secs_f64()),
            Err(error) => {
                passed = false;
                println!("FAIL {name}: {error:#}");
            }
        }
    }
    Ok(passed)
}

/// Returns what a proxy is, if not an Envoy.
fn not_an_envoy(node: &Value) -> Option<&'static str> {
    (node["metadata"]["GENERATOR"] == "grpc").then_some("it is a gRPC client")
}

/// weftd and an agent for the proxies of a scenario.
struct Scenario {
    weftd: Weftd,
    agent: SecretServer,
    /// What weftctl says of the proxies, and what it compiles for them.
    nodes: Value,
    compiled: Value,
    /// Outlives weftd, which watches it.
    _config: Scratch,
}

impl Scenario {
    fn start(folder: &Path) -> anyhow::Result<Self> {
        let nodes = weftctl("nodes", &[OsString::from("--case"), folder.join("case.yaml").into()])?;
        let compiled = compile(folder)?;

        let config = Scratch::new("scenario")?;
        let manifests = config.path().join("manifests");
        fs::create_dir(&manifests)?;
        fs::copy(folder.join("objects.yaml"), manifests.join("objects.yaml"))
            .context("the scenario has no objects.yaml")?;
        let authority = Authority::new("scenario");
        let identity = authority.issue("workload", &["spiffe://cluster.local/ns/default/sa/default"]);
        let secrets = material::secrets(&nodes["nodes"], &compiled, &authority, &identity);
        // Read first, so that they win over placeholders that the scenario has.
        fs::write(manifests.join("a-secrets.yaml"), secrets)?;
        Files::named_by(&compiled).write(&authority, &identity)?;
        let mesh_config = config.path().join("mesh.yaml");
        fs::write(&mesh_config, nodes["meshConfig"].to_string())?;

        let mut arguments = vec![OsString::from("--config"), manifests.into()];
        if nodes["meshConfig"].is_object() {
            arguments.extend([OsString::from("--mesh-config"), mesh_config.into()]);
        }
        let free = || loopback::socket();
        let weftd = Weftd::start_at([free()?, free()?, free()?], &arguments)?;
        let agent = SecretServer::start(free()?, &authority, &identity)?;
        Ok(Self { weftd, agent, nodes, compiled, _config: config })
    }

    /// Starts an Envoy as `node` and waits until it has taken all that weftd has for it.
    fn check(&self, name: &str, node: &Value, log_level: &str) -> anyhow::Result<()> {
        let mut node = node.clone();
        node["cluster"] = json!("scenario");
        let mut options = EnvoyOptions::new(bootstrap(&node, self.weftd.grpc(), self.agent.address())?);
        options.concurrency = 1;
        options.log_level = log_level.to_owned();
        let envoy = Envoy::start_with(&options)?;
        let expected = Expected::new(&node, &self.compiled[name])?;

        let started = Instant::now();
        let mut rejected = None;
        loop {
            // An Envoy that has ended says why.
            envoy.wait_until("nothing", Duration::ZERO, |_| Some(()))?;
            let complaints = evidence::look(&envoy, self.weftd.monitoring(), &expected)?;
            if complaints.is_empty() {
                break;
            }
            let has_rejected = complaints.iter().any(|complaint| complaint.is_final);
            let since = *rejected.get_or_insert_with(Instant::now);
            if !has_rejected {
                rejected = None;
            }
            if started.elapsed() > LIMIT || has_rejected && since.elapsed() > COMPLAINTS {
                let words: Vec<&str> = complaints.iter().map(|complaint| complaint.text.as_str()).collect();
                bail!("{}{}", words.join("\n    "), rejections(&envoy));
            }
            thread::sleep(Duration::from_millis(30));
        }
        let refused = self.agent.rejections();
        ensure!(refused.is_empty(), "secrets of the agent were rejected: {}", refused.join(", "));
        Ok(())
    }
}

/// Returns the bootstrap of the samples with the agent's cluster.
fn bootstrap(node: &Value, weftd: SocketAddr, agent: SocketAddr) -> anyhow::Result<String> {
    let text = proxy::bootstrap(node, weftd)?;
    let address = |socket: SocketAddr| json!({ "socket_address": { "address": socket.ip().to_string(), "port_value": socket.port() } });
    let cluster = json!({
        "name": "sds-grpc",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": "sds-grpc",
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(agent) } }] }],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        },
    });
    let marker = "static_resources:\n  clusters:\n";
    ensure!(text.contains(marker), "the sample bootstrap has no static clusters");
    Ok(text.replace(marker, &format!("{marker}  - {cluster}\n")))
}

/// Returns what Envoy's log says of configuration that it has rejected.
fn rejections(envoy: &Envoy) -> String {
    let log = fs::read(envoy.log_path()).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let mut said = String::new();
    for line in log.lines().filter(|line| line.contains("rejected") || line.contains("[critical]")) {
        if !said.contains(line) {
            said.push_str("\n    envoy: ");
            said.push_str(line);
        }
    }
    said
}

/// Returns what weftctl compiles for the proxies of a scenario.
fn compile(folder: &Path) -> anyhow::Result<Value> {
    let files = [("--objects", "objects.yaml"), ("--case", "case.yaml")];
    let arguments = files.map(|(flag, file)| [OsString::from(flag), folder.join(file).into()]);
    weftctl("translate", arguments.as_flattened())
}

/// Runs weftctl and returns the JSON that it prints. What it says of objects is no concern of ours.
fn weftctl(command: &str, arguments: &[OsString]) -> anyhow::Result<Value> {
    let output = Command::new(weftd::weftctl()?)
        .arg(command)
        .args(arguments)
        .output()
        .context("cannot run weftctl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "weftctl {command}: {said}");
    Ok(serde_json::from_slice(&output.stdout)?)
}
