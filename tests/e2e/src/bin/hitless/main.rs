//! Edits under load: random valid changes to a directory of manifests while requests flow through a real Envoy.
//!
//! A request fails if its answer is allowed by neither the configuration before nor any of those after it that were
//! being rolled out while it was under way. A pod's process ends only after Envoy has dropped its address and its
//! requests have ended. The files of one edit are written one right after the other, in any order: what the directory
//! looks like between two of them is not a configuration that anybody asked for, so nothing may show it.

mod load;
mod mesh;

use std::collections::{BTreeMap, VecDeque};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use e2e::app::{Answer, App};
use e2e::config::Config;
use e2e::network::Network;
use e2e::weftd::Weftd;
use e2e::{eventually, proxy};
use load::{History, Load};
use mesh::{Edit, Mesh, Random, TARGET_PORTS};
use testkit::rig::Envoy;

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
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let mut world = World::start(args)?;
    let started = Instant::now();
    let mut counts: BTreeMap<&'static str, u32> = BTreeMap::new();
    for number in 1..=args.edits {
        let edit = world.edit().with_context(|| format!("edit {number} of seed {}", args.seed))?;
        *counts.entry(edit.kind).or_default() += 1;
        if args.verbose {
            println!("{number}: {}", edit.what);
        }
        if number.is_multiple_of(100) {
            println!(
                "{number} edits, {} requests, {} failed",
                world.load.requests(),
                world.load.failures().len()
            );
        }
        ensure!(world.load.failures().len() < 20, "{}", world.report());
    }
    world.settle().context("after the last edit")?;
    world.ensure_nothing_is_left().context("after the last edit")?;
    let failures = world.load.failures().len();
    ensure!(failures == 0, "{}", world.report());
    let kinds: Vec<String> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    println!("{}", kinds.join(", "));
    println!("{}", world.settled_line());
    let (edits, requests) = (args.edits, world.load.requests());
    println!("{edits} edits, {requests} requests, 0 failed in {:.0} s", started.elapsed().as_secs_f32());
    Ok(())
}

/// All that runs.
struct World {
    network: Network,
    config: Config,
    random: Random,
    mesh: Arc<Mesh>,
    history: Arc<History>,
    load: Load,
    envoy: Envoy,
    weftd: Weftd,
    /// By pod: one for each port that a pod may be asked on.
    apps: BTreeMap<mesh::Pod, Vec<App>>,
    /// Pods that are no longer part of the mesh, since when Envoy has none of them.
    leaving: VecDeque<(mesh::Pod, Option<Instant>)>,
    settling: Vec<Duration>,
}

impl World {
    fn start(args: &Args) -> anyhow::Result<Self> {
        let network = Network::claim()?;
        let config = Config::new()?;
        let mut random = Random::new(args.seed);
        let mesh = Arc::new(Mesh::new(&mut random));
        for (name, text) in mesh.files() {
            config.write(&name, &network.localize(&text))?;
        }
        let apps: anyhow::Result<_> =
            mesh.pods().into_iter().map(|pod| Ok((pod, start_pod(&network, pod)?))).collect();
        let weftd = Weftd::start(config.path(), &network)?;
        let envoy = proxy::start_gateway(weftd.grpc())?;
        let history = Arc::new(History::new(mesh.clone()));
        let mut world = Self {
            load: Load::new(network.gateway(8080), history.clone()),
            network,
            config,
            random,
            mesh,
            history,
            envoy,
            weftd,
            apps: apps?,
            leaving: VecDeque::new(),
            settling: Vec::new(),
        };
        world.settle().context("before the first edit")?;
        world.load.start(args.clients, args.seed);
        Ok(world)
    }

    /// Makes an edit, and in half of the cases waits until Envoy follows it: in the other half the next edit comes
    /// while this one is being rolled out.
    fn edit(&mut self) -> anyhow::Result<Edit> {
        let (mesh, edit) = self.mesh.edit(&mut self.random);
        let mesh = Arc::new(mesh);
        // A pod is there before anybody is told of it.
        for pod in mesh.pods() {
            self.leaving.retain(|(leaving, _)| *leaving != pod);
            if !self.apps.contains_key(&pod) {
                self.apps.insert(pod, start_pod(&self.network, pod)?);
            }
        }
        let before = self.mesh.files();
        let after = mesh.files();
        let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
        names.sort();
        names.dedup();
        names.retain(|name| before.get(*name) != after.get(*name));
        self.random.shuffle(&mut names);
        // Rules come in any order. What they lead to is there before and after them: pods that are routed to are
        // deleted by nobody, and their endpoints do not end before their Service.
        names.sort_by_key(|name| {
            let (is_service, is_endpoints) = (name.starts_with("service-"), name.starts_with("endpoints-"));
            match (before.contains_key(*name), after.contains_key(*name)) {
                (false, true) if is_service || is_endpoints => 0,
                (true, false) if is_service => 2,
                (true, false) if is_endpoints => 3,
                _ => 1,
            }
        });
        self.history.push(mesh.clone(), edit.what.clone());
        let files: Vec<(&str, Option<String>)> = names
            .into_iter()
            .map(|name| (name.as_str(), after.get(name).map(|text| self.network.localize(text))))
            .collect();
        self.config.change(&files)?;
        for pod in self.mesh.pods().difference(&mesh.pods()) {
            self.leaving.push_back((*pod, None));
        }
        self.mesh = mesh;
        if self.random.one_in(2) {
            self.settle()?;
        } else {
            thread::sleep(Duration::from_millis(self.random.below(20)));
        }
        self.stop_pods()?;
        Ok(edit)
    }

    /// Waits until Envoy does what the newest configuration says.
    fn settle(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        let index = self.history.newest();
        let wanted = self.mesh.clusters();
        let wanted: BTreeMap<String, _> = wanted
            .into_iter()
            .map(|(name, addresses)| {
                (name, addresses.into_iter().map(|address| self.network.localize(&address)).collect())
            })
            .collect();
        let marks = self.mesh.marks();
        eventually("Envoy to follow", Duration::from_secs(40), || {
            let hosts = proxy::hosts(&self.envoy)?;
            for (name, addresses) in &wanted {
                let got = hosts.get(name).with_context(|| format!("no cluster {name}"))?;
                ensure!(got == addresses, "{name} has {got:?}, not {addresses:?}");
            }
            let routes = self.envoy.admin_get("/config_dump?resource=dynamic_route_configs")?.text();
            for mark in &marks {
                ensure!(routes.contains(mark), "no route has {mark}");
            }
            Ok(())
        })
        .with_context(|| {
            format!("{}\nweftd's log ends with:\n{}", self.history.recent(), tail(&self.weftd.log()))
        })?;
        self.settling.push(started.elapsed());
        // Workers hear of what the main thread has a moment later.
        self.history.settled_in(index, Duration::from_millis(50));
        Ok(())
    }

    /// Ends pods that have left, once nobody sends them anything.
    fn stop_pods(&mut self) -> anyhow::Result<()> {
        if self.leaving.is_empty() {
            return Ok(());
        }
        let hosts = proxy::hosts(&self.envoy)?;
        let known: std::collections::BTreeSet<&String> = hosts.values().flatten().collect();
        let mut ended = Vec::new();
        for (pod, unknown_since) in &mut self.leaving {
            let is_known = TARGET_PORTS
                .iter()
                .any(|port| known.contains(&self.network.localize(&format!("{}:{port}", pod.ip()))));
            let is_busy = self.apps.get(pod).is_some_and(|apps| apps.iter().any(|app| app.active() > 0));
            if is_known || is_busy {
                *unknown_since = None;
            } else if unknown_since.get_or_insert_with(Instant::now).elapsed() > Duration::from_millis(250) {
                ended.push(*pod);
            }
        }
        self.leaving.retain(|(pod, _)| !ended.contains(pod));
        for pod in ended {
            self.apps.remove(&pod);
        }
        Ok(())
    }

    /// Checks that Envoy ends up without clusters that nobody asked for.
    fn ensure_nothing_is_left(&self) -> anyhow::Result<()> {
        let wanted = self.mesh.all_clusters();
        eventually("Envoy to forget", Duration::from_secs(60), || {
            for name in proxy::hosts(&self.envoy)?.keys().filter(|name| name.starts_with("outbound|")) {
                ensure!(wanted.contains(name), "{name} is still there");
            }
            Ok(())
        })
    }

    fn report(&self) -> String {
        let failures = self.load.failures();
        let requests = self.load.requests();
        let first: Vec<&str> = failures.iter().take(10).map(String::as_str).collect();
        let log = tail(&self.weftd.log());
        format!(
            "{} of {requests} requests failed:\n{}\nweftd's log ends with:\n{log}",
            failures.len(),
            first.join("\n")
        )
    }

    fn settled_line(&self) -> String {
        let mut times = self.settling.clone();
        times.sort();
        let at = |percent: usize| {
            times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default()
        };
        format!(
            "from the last file written to Envoy: p50 {} ms, p99 {} ms, at most {} ms",
            at(50).as_millis(),
            at(99).as_millis(),
            at(100).as_millis()
        )
    }
}

/// Starts the process of a pod: it answers who it is.
fn start_pod(network: &Network, pod: mesh::Pod) -> anyhow::Result<Vec<App>> {
    let start = |port: &u16| {
        let address = format!("{}:{port}", pod.ip());
        App::http(network.localize(&address).parse()?, move |_| Answer::ok(pod.to_string()))
    };
    TARGET_PORTS.iter().map(start).collect()
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
