//! All that runs while edits are made.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use testkit::rig::{EndpointWatch, Envoy};

use super::load::{History, Load};
use super::manifests::{is_slice, manifests};
use super::mesh::{Edit, Mesh, Pod, TARGET_PORTS};
use super::{Change, Random, Target};
use crate::app::{Answer, App};
use crate::weftd::Weftd;
use crate::{eventually, proxy};

/// How edits and load are made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decides which edits are made; the same seed makes the same.
    pub seed: u64,
    /// How many clients send requests.
    pub clients: u32,
}

/// weftd, Envoy, pods and clients, and a mesh that is edited.
#[derive(Debug)]
pub struct Rollout<T> {
    target: T,
    random: Random,
    mesh: Arc<Mesh>,
    history: Arc<History>,
    load: Load,
    envoy: Arc<Envoy>,
    weftd: Weftd,
    /// By pod: one for each port that a pod may be asked on.
    apps: BTreeMap<Pod, Vec<App>>,
    /// Pods that are no longer part of the mesh, since when Envoy has none of them.
    leaving: VecDeque<(Pod, Option<Instant>)>,
    settling: Vec<Duration>,
}

impl<T: Target> Rollout<T> {
    /// Writes a first mesh, starts everything, and waits until requests are answered by it.
    ///
    /// # Errors
    ///
    /// If something does not start.
    pub fn start(target: T, options: &Options) -> anyhow::Result<Self> {
        let mut random = Random::new(options.seed);
        let mesh = Arc::new(Mesh::new(&mut random));
        let apps: anyhow::Result<_> =
            mesh.pods().into_iter().map(|pod| Ok((pod, start_pod(&target, pod)?))).collect();
        let all = manifests(&mesh, &target).into_iter();
        let all: Vec<Change> = all.map(|(name, manifest)| Change { name, manifest, delete: false }).collect();
        target.change(&all, &mut random)?;
        let weftd = Weftd::start_with(target.network(), &target.weftd_arguments())?;
        let envoy = Arc::new(proxy::start_gateway(weftd.grpc())?);
        let history = Arc::new(History::new(mesh.clone()));
        let load = Load::new(target.network().gateway(8080), history.clone());
        let mut rollout = Self {
            target,
            random,
            mesh,
            history,
            load,
            envoy,
            weftd,
            apps: apps?,
            leaving: VecDeque::new(),
            settling: Vec::new(),
        };
        rollout.settle().context("before the first edit")?;
        rollout.load.start(options.clients, options.seed);
        Ok(rollout)
    }

    /// Makes an edit, and in half of the cases waits until Envoy follows it: in the other half the next edit comes
    /// while this one is being rolled out.
    ///
    /// # Errors
    ///
    /// If it cannot be made, or Envoy does not follow.
    pub fn edit(&mut self) -> anyhow::Result<Edit> {
        let (mesh, edit) = self.mesh.edit(&mut self.random);
        let mesh = Arc::new(mesh);
        // A pod is there before anybody is told of it.
        for pod in mesh.pods() {
            self.leaving.retain(|(leaving, _)| *leaving != pod);
            if !self.apps.contains_key(&pod) {
                self.apps.insert(pod, start_pod(&self.target, pod)?);
            }
        }
        let changes = self.changes(&mesh);
        self.history.push(mesh.clone(), edit.what.clone());
        self.target.change(&changes, &mut self.random)?;
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

    /// Returns what has to be changed, in an order of its own each time.
    fn changes(&mut self, mesh: &Mesh) -> Vec<Change> {
        let before = manifests(&self.mesh, &self.target);
        let mut after = manifests(mesh, &self.target);
        after.retain(|name, manifest| before.get(name) != Some(manifest));
        let kept = manifests(mesh, &self.target);
        let deleted = before.iter().filter(|(name, _)| !kept.contains_key(*name));
        let deleted = deleted.map(|(name, manifest)| (name.clone(), manifest.clone(), true));
        let written = after.into_iter().map(|(name, manifest)| (name, manifest, false));
        let mut changes: Vec<Change> = written
            .chain(deleted)
            .map(|(name, manifest, delete)| Change { name, manifest, delete })
            .collect();
        self.random.shuffle(&mut changes);
        // See the module: endpoints come first and go last, everything else in any order.
        changes.sort_by_key(|change| match (is_slice(&change.name), change.delete) {
            (true, false) if !before.contains_key(&change.name) => 0,
            (true, true) => 2,
            _ => 1,
        });
        changes
    }

    /// Waits until Envoy does what the newest configuration says.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        let index = self.history.newest();
        let wanted: BTreeMap<String, Option<BTreeSet<String>>> = self
            .mesh
            .clusters(&self.target)
            .into_iter()
            .map(|(name, addresses)| {
                (name, addresses.map(|all| all.iter().map(ToString::to_string).collect()))
            })
            .collect();
        let marks = self.mesh.marks();
        eventually("Envoy to follow", Duration::from_secs(60), || {
            let hosts = proxy::hosts(&self.envoy)?;
            for (name, addresses) in &wanted {
                let got = hosts.get(name);
                ensure!(got == addresses.as_ref(), "{name} has {got:?}, not {addresses:?}");
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
        let known: BTreeSet<&String> = hosts.values().flatten().collect();
        let mut ended = Vec::new();
        for (pod, unknown_since) in &mut self.leaving {
            let is_known =
                (0..TARGET_PORTS).any(|port| known.contains(&self.target.address(*pod, port).to_string()));
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
    ///
    /// # Errors
    ///
    /// If it has some after a minute.
    pub fn ensure_nothing_is_left(&self) -> anyhow::Result<()> {
        let wanted = self.mesh.all_clusters();
        eventually("Envoy to forget", Duration::from_secs(60), || {
            let hosts = proxy::hosts(&self.envoy)?;
            for name in hosts.keys().filter(|name| Mesh::is_own_cluster(name)) {
                ensure!(wanted.contains(name), "{name} is still there");
            }
            Ok(())
        })
    }

    /// Checks that a weftd and an Envoy that have just started come to what these have come to by edits.
    ///
    /// # Errors
    ///
    /// If they differ.
    pub fn ensure_same_from_scratch(&self, other: &Envoy) -> anyhow::Result<()> {
        let outbound = |envoy: &Envoy| -> anyhow::Result<BTreeMap<String, BTreeSet<String>>> {
            let mut hosts = proxy::hosts(envoy)?;
            hosts.retain(|name, _| name.starts_with("outbound|"));
            Ok(hosts)
        };
        eventually("the same from scratch", Duration::from_secs(30), || {
            let (ours, theirs) = (outbound(&self.envoy)?, outbound(other)?);
            ensure!(!ours.is_empty() && ours == theirs, "endpoints differ: {ours:?} and {theirs:?}");
            for (what, key) in
                [("dynamic_active_clusters", "cluster"), ("dynamic_route_configs", "route_config")]
            {
                let (ours, theirs) = (dump(&self.envoy, what, key)?, dump(other, what, key)?);
                ensure!(!ours.is_empty() && ours == theirs, "{what} differ: {ours:?} and {theirs:?}");
            }
            Ok(())
        })
    }

    /// Returns a probe that fails if Envoy lacks the endpoints of a cluster that every configuration in flight has
    /// endpoints for. It may be called from another thread.
    pub fn never_empty(&self) -> impl Fn() -> anyhow::Result<()> + Send + use<T> {
        let (history, envoy) = (self.history.clone(), self.envoy.clone());
        move || {
            let oldest = history.oldest();
            let hosts = proxy::hosts(&envoy)?;
            let mut wanted: Option<BTreeSet<String>> = None;
            for mesh in history.since(oldest) {
                let named = mesh.clusters_with_endpoints();
                wanted = Some(wanted.map_or(named.clone(), |wanted| &wanted & &named));
            }
            for name in wanted.unwrap_or_default() {
                let got = hosts.get(&name).with_context(|| format!("no cluster {name}"))?;
                ensure!(!got.is_empty(), "{name} is empty; {}", history.recent());
            }
            Ok(())
        }
    }

    /// Starts a client of weftd that looks at every response about endpoints: none may leave a cluster without any, since
    /// every service of every configuration has endpoints in each of its subsets.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn watch_responses(&self) -> anyhow::Result<ResponseWatch> {
        let (history, started) = (self.history.clone(), Instant::now());
        let empties: Arc<Mutex<Vec<String>>> = Arc::default();
        let found = empties.clone();
        let watch = EndpointWatch::start(self.weftd.grpc(), &proxy::gateway_node(), move |seen| {
            if seen.endpoints == 0 && Mesh::is_own_cluster(&seen.name) {
                let after = seen.at.duration_since(started);
                let what = format!(
                    "{} is empty in version {:?} of response {}, {after:?} after the start; {}",
                    seen.name,
                    seen.version,
                    seen.nonce,
                    history.recent()
                );
                found.lock().unwrap_or_else(PoisonError::into_inner).push(what);
            }
        })?;
        let wanted = self.mesh.clusters_with_endpoints();
        eventually("endpoints of all clusters", crate::PATIENCE, || {
            ensure!(
                wanted.is_subset(&watch.names()),
                "{:?} of {wanted:?}; {:?}",
                watch.names(),
                watch.ended()
            );
            Ok(())
        })?;
        Ok(ResponseWatch { watch, empties })
    }

    /// Returns how many requests were sent.
    pub fn requests(&self) -> u64 {
        self.load.requests()
    }

    /// Returns which requests have failed, and why.
    pub fn failures(&self) -> Vec<String> {
        self.load.failures()
    }

    /// Returns what weftd has logged.
    pub fn log(&self) -> String {
        self.weftd.log()
    }

    /// Returns where the edits go.
    pub fn target(&self) -> &T {
        &self.target
    }

    /// Returns a number below `limit`, as random as the edits.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.random.below(limit)
    }

    /// Returns which requests have failed, and what weftd had to say.
    pub fn report(&self) -> String {
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

    /// Returns how long it took until Envoy followed.
    pub fn settling(&self) -> String {
        let mut times = self.settling.clone();
        times.sort();
        let at = |percent: usize| {
            times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default()
        };
        format!(
            "from the last object written to Envoy: p50 {} ms, p99 {} ms, at most {} ms",
            at(50).as_millis(),
            at(99).as_millis(),
            at(100).as_millis()
        )
    }
}

/// A client that looks at every response about endpoints.
#[derive(Debug)]
pub struct ResponseWatch {
    watch: EndpointWatch,
    empties: Arc<Mutex<Vec<String>>>,
}

impl ResponseWatch {
    /// Returns how many responses about endpoints it has seen.
    ///
    /// # Errors
    ///
    /// If one of them had a cluster without endpoints, or its stream has ended.
    pub fn check(&self) -> anyhow::Result<u64> {
        let empties = self.empties.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(empties.is_empty(), "{} responses without endpoints:\n{}", empties.len(), empties.join("\n"));
        ensure!(self.watch.ended().is_none(), "{:?}", self.watch.ended());
        Ok(self.watch.responses())
    }
}

/// Starts the process of a pod: it answers who it is.
fn start_pod(target: &impl Target, pod: Pod) -> anyhow::Result<Vec<App>> {
    let start = |port| App::http(target.address(pod, port), move |_| Answer::ok(pod.to_string()));
    (0..TARGET_PORTS).map(start).collect()
}

/// Returns what Envoy uses of one kind, as text.
fn dump(envoy: &Envoy, what: &str, key: &str) -> anyhow::Result<BTreeSet<String>> {
    let dump = envoy.admin_get(&format!("/config_dump?resource={what}"))?.json()?;
    let configs = dump["configs"].as_array().cloned().unwrap_or_default();
    Ok(configs.iter().map(|config| config[key].to_string()).collect())
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
