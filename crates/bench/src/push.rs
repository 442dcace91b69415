//! The benchmark of the whole: how long it takes from a change to the last proxy, and what it costs the server.

use crate::envoy::Dangling;
use crate::fleet::{Fleet, Probe, Traffic};
use crate::mesh::{File, Mesh};
use crate::stats::{Spread, mib, short};
use crate::target::Target;
use crate::usage::Memory;
use anyhow::Context;
use proto::resource::ResourceType;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long nothing may be received before a step counts as over.
const QUIET: Duration = Duration::from_millis(200);

/// What is measured, and on what.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The mesh.
    pub mesh: Mesh,
    /// Simulated proxies.
    pub streams: usize,
    /// Edits of each kind.
    pub edits: usize,
    /// The kinds.
    pub kinds: Vec<Kind>,
    /// Whom to measure.
    pub server: Server,
    /// How long any step may take.
    pub limit: Duration,
}

/// A kind of edit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An endpoint becomes ready or not.
    Endpoint,
    /// The weights of a route change.
    Weight,
    /// A subset gets another name, in its DestinationRule and its VirtualService.
    Rename,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Endpoint, Self::Weight, Self::Rename];
}

/// The server to be measured.
#[derive(Clone, Debug)]
pub enum Server {
    /// weftd, started by us on an API server of our own.
    Weftd,
    /// weftd, started by us on a directory of our own.
    WeftdOnFiles,
    /// Any ADS server that serves [`Mesh::files`] already.
    Address {
        /// Where it is.
        address: SocketAddr,
        /// Its process, if it is on this machine.
        pid: Option<u32>,
        /// What makes a changed manifest known to it: a shell command, to which file names are added. Without one
        /// nothing is edited.
        edit: Option<String>,
    },
}

/// What edits of one kind led to.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// What was edited.
    pub name: &'static str,
    /// From the edit to each proxy's acknowledgement, over all edits.
    pub each: Spread,
    /// From each edit to the last acknowledgement.
    pub last: Spread,
    /// The server's CPU time for one edit.
    pub cpu: Option<Duration>,
    /// What the proxies received for one edit.
    pub traffic: Traffic,
    /// How long acknowledged routes named clusters that could not be used, over all edits and proxies.
    pub dangling: Dangling,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Report {
    /// The plan.
    pub plan: Plan,
    /// Clusters, assignments, listeners and routes of one proxy.
    pub resources: [usize; 4],
    /// From the first connection to the moment at which each proxy had everything.
    pub connect: Step,
    /// The edits.
    pub steps: Vec<Step>,
    /// The server's memory without proxies, with all of them, and after all edits.
    pub memory: Option<[Memory; 3]>,
    /// The server's CPU time in a second in which nothing happens, all proxies being connected.
    pub idle_cpu: Option<Duration>,
    /// Proxies that had everything in the end.
    pub converged: usize,
}

/// Runs the benchmark.
///
/// # Errors
///
/// If the server cannot be started or reached, or does not bring a change to every proxy in time.
pub async fn run(plan: Plan) -> anyhow::Result<Report> {
    let mut target = Target::start(&plan).await?;
    let memory_idle = target.memory()?;
    let nodes = (0..plan.streams).map(|index| plan.mesh.node(index)).collect();
    let before = target.cpu()?;
    let (mut fleet, times) = Fleet::connect(target.address, nodes, plan.limit).await?;
    fleet.settle(QUIET).await?;
    let connect = Step {
        name: "connect",
        last: [times.max()].into_iter().collect(),
        each: times,
        cpu: target.cpu_since(before)?,
        traffic: fleet.traffic(),
        dangling: fleet.dangling(),
    };
    let memory_connected = target.memory()?;
    let before = target.cpu()?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle_cpu = target.cpu_since(before)?.map(|used| used / 2);

    let mut steps = Vec::new();
    if target.can_edit() {
        let scene = Scene { mesh: plan.mesh, edits: plan.edits, limit: plan.limit };
        for kind in &plan.kinds {
            let step = match kind {
                Kind::Endpoint => scene.flips(&mut fleet, &mut target).await,
                Kind::Weight => scene.weights(&mut fleet, &mut target).await,
                Kind::Rename => scene.renames(&mut fleet, &mut target).await,
            };
            steps.push(step.with_context(|| format!("{kind:?}"))?);
        }
    }
    let memory = match (memory_idle, memory_connected, target.memory()?) {
        (Some(idle), Some(connected), Some(end)) => Some([idle, connected, end]),
        _ => None,
    };
    let (resources, converged) = (fleet.counts(), fleet.converged());
    Ok(Report { plan, resources, connect, steps, memory, idle_cpu, converged })
}

/// The edits, one kind after the other.
struct Scene {
    mesh: Mesh,
    edits: usize,
    limit: Duration,
}

impl Scene {
    /// One endpoint of a service becomes ready or not.
    async fn flips(&self, fleet: &mut Fleet, target: &mut Target) -> anyhow::Result<Step> {
        let mut recorder = Recorder::start("endpoint flip", fleet);
        for edit in 0..self.edits {
            // Not the first, which has subsets; twice the same, down and up again.
            let service = (edit / 2 * 7 + 1) % self.mesh.services;
            let is_down = edit % 2 == 0;
            let (name, address) = (self.mesh.cluster(service, ""), self.mesh.address(service, 0).to_string());
            let file = self.mesh.endpoints(service, is_down.then_some(0));
            let expect = move |fleet: &Fleet| {
                fleet.expect(ResourceType::ClusterLoadAssignment, move |facts| {
                    *facts.name == *name && facts.addresses.contains(&address) != is_down
                })
            };
            recorder.edit(fleet, target, vec![file], expect, self.limit).await?;
        }
        Ok(recorder.finish(fleet))
    }

    /// The weights of one route change.
    async fn weights(&self, fleet: &mut Fleet, target: &mut Target) -> anyhow::Result<Step> {
        let mut recorder = Recorder::start("route weight", fleet);
        for edit in 0..self.edits {
            let percent = 10 + u32::try_from(edit % 80).unwrap_or_default();
            let name = self.mesh.cluster(0, "v1");
            let file = self.mesh.route(0, percent, "v2");
            let expect = move |fleet: &Fleet| {
                fleet.expect(ResourceType::RouteConfiguration, move |facts| {
                    facts.clusters.get(name.as_str()) == Some(&percent)
                })
            };
            recorder.edit(fleet, target, vec![file], expect, self.limit).await?;
        }
        Ok(recorder.finish(fleet))
    }

    /// A subset gets another name, in the VirtualService and the DestinationRule at once.
    async fn renames(&self, fleet: &mut Fleet, target: &mut Target) -> anyhow::Result<Step> {
        let mut recorder = Recorder::start("subset renamed", fleet);
        for edit in 0..self.edits {
            let subset = format!("v2-{edit}");
            let name = self.mesh.cluster(0, &subset);
            // In the order in which a careless hand saves them.
            let files = vec![self.mesh.subsets(0, &subset), self.mesh.route(0, 50, &subset)];
            let expect = move |fleet: &Fleet| {
                fleet.expect(ResourceType::RouteConfiguration, move |facts| {
                    facts.clusters.contains_key(name.as_str())
                })
            };
            recorder.edit(fleet, target, files, expect, self.limit).await?;
        }
        Ok(recorder.finish(fleet))
    }
}

/// Measures edits of one kind.
struct Recorder {
    name: &'static str,
    each: Vec<Duration>,
    last: Vec<Duration>,
    cpu: Option<Duration>,
    traffic: Traffic,
    dangling: Dangling,
}

impl Recorder {
    fn start(name: &'static str, fleet: &Fleet) -> Self {
        Self {
            name,
            each: Vec::new(),
            last: Vec::new(),
            cpu: None,
            traffic: fleet.traffic(),
            dangling: fleet.dangling(),
        }
    }

    async fn edit(
        &mut self,
        fleet: &mut Fleet,
        target: &mut Target,
        files: Vec<File>,
        expect: impl FnOnce(&Fleet) -> Arc<Probe>,
        limit: Duration,
    ) -> anyhow::Result<()> {
        let before = target.cpu()?;
        let probe = expect(fleet);
        target.edit(files).await?;
        let times = fleet.wait(&probe, limit).await?;
        fleet.settle(QUIET).await?;
        if let Some(cpu) = target.cpu_since(before)? {
            self.cpu = Some(self.cpu.unwrap_or_default() + cpu);
        }
        self.last.extend(times.iter().max());
        self.each.extend(times);
        Ok(())
    }

    fn finish(self, fleet: &Fleet) -> Step {
        let edits = self.last.len().max(1);
        let (traffic, dangling) = (fleet.traffic(), fleet.dangling());
        Step {
            name: self.name,
            each: self.each.into_iter().collect(),
            cpu: self.cpu.map(|cpu| cpu / u32::try_from(edits).unwrap_or(u32::MAX)),
            last: self.last.into_iter().collect(),
            traffic: Traffic {
                responses: (traffic.responses - self.traffic.responses) / edits as u64,
                bytes: (traffic.bytes - self.traffic.bytes) / edits as u64,
            },
            dangling: Dangling {
                times: dangling.times - self.dangling.times,
                total: dangling.total.saturating_sub(self.dangling.total),
                longest: dangling.longest,
            },
        }
    }
}

/// Writes the manifests of a mesh into a directory, for servers that are not ours.
///
/// # Errors
///
/// If they cannot be written.
pub fn write_mesh(mesh: &Mesh, directory: &std::path::Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for (name, text) in mesh.files() {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mesh { services, endpoints, namespaces, zones } = self.plan.mesh;
        writeln!(
            f,
            "{services} services x {endpoints} endpoints in {namespaces} namespaces and {zones} zones; {} streams",
            self.plan.streams
        )?;
        let [clusters, assignments, listeners, routes] = self.resources;
        writeln!(
            f,
            "each proxy has {clusters} clusters, {assignments} assignments, {listeners} listeners, {routes} routes"
        )?;
        writeln!(f)?;
        for step in std::iter::once(&self.connect).chain(&self.steps) {
            writeln!(f, "{step}")?;
        }
        if let Some([idle, connected, end]) = self.memory {
            let streams = (self.plan.streams as u64).max(1);
            writeln!(
                f,
                "memory: {} without proxies, {} with them ({:.1} KiB a stream), {} in the end, {} at most",
                mib(idle.now),
                mib(connected.now),
                kib(connected.now.saturating_sub(idle.now) / streams),
                mib(end.now),
                mib(end.peak),
            )?;
        }
        if let Some(idle) = self.idle_cpu {
            writeln!(f, "idle: {} CPU a second", short(idle))?;
        }
        write!(f, "{} of {} proxies have all that they asked for", self.converged, self.plan.streams)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, each, last, cpu, traffic, dangling } = self;
        let cpu = cpu.map_or_else(|| "unknown".to_owned(), short);
        write!(
            f,
            "{name:<16} last proxy {} (median), {} (best); proxies {each}; CPU {cpu}; {} responses, {}; ",
            short(last.quantile(0.5)),
            short(last.min()),
            traffic.responses,
            mib(traffic.bytes),
        )?;
        match dangling.times {
            0 => write!(f, "no dangling route"),
            times => write!(
                f,
                "{times} DANGLING ROUTES, for {} in all, {} at most",
                short(dangling.total),
                short(dangling.longest)
            ),
        }
    }
}

fn kib(bytes: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
    let kib = bytes as f64 / 1024.0;
    kib
}
