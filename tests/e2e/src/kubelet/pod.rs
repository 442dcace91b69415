//! A pod's life, from its networks and volumes to the end of its last container.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::rig::netns::{Node, Pod};

use super::api::Api;
use super::container::{self, Container, Ground};
use super::environment::Values;
use super::images::Images;
use super::probes::{self, Probe, Verdict};
use super::text;
use super::volumes::Volumes;

/// How often containers are looked after.
const PERIOD: Duration = Duration::from_millis(100);
/// How long a container that has ended is left alone before it is started again.
pub(super) const BACK_OFF: Duration = Duration::from_secs(5);

/// What the node and the thread of a pod both know.
#[derive(Debug)]
pub(super) struct Shared {
    /// The newest form of the pod.
    latest: Mutex<Value>,
    /// Whether the API server has it no more.
    gone: AtomicBool,
    /// Its network, once it has one.
    network: Mutex<Option<Pod>>,
    /// The first processes of its containers.
    processes: Mutex<BTreeMap<String, u32>>,
    /// Where its files are.
    pub(super) folder: PathBuf,
}

impl Shared {
    pub(super) fn new(pod: Value, folder: PathBuf) -> Self {
        Self {
            latest: Mutex::new(pod),
            gone: AtomicBool::new(false),
            network: Mutex::default(),
            processes: Mutex::default(),
            folder,
        }
    }

    pub(super) fn update(&self, pod: Value) {
        *lock(&self.latest) = pod;
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    pub(super) fn remove(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    pub(super) fn network(&self) -> Option<Pod> {
        lock(&self.network).clone()
    }

    pub(super) fn latest(&self) -> Value {
        lock(&self.latest).clone()
    }

    /// Returns the first process of a container.
    pub(super) fn process(&self, container: &str) -> anyhow::Result<u32> {
        let process = lock(&self.processes).get(container).copied();
        process.with_context(|| format!("{container} does not run"))
    }

    /// Kills the first process of a container.
    pub(super) fn kill(&self, container: &str) -> anyhow::Result<()> {
        container::send(self.process(container)?, Signal::KILL);
        Ok(())
    }

    fn is_deleted(&self) -> bool {
        self.is_gone() || lock(&self.latest)["metadata"]["deletionTimestamp"].is_string()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A container and how it is doing.
#[derive(Debug)]
struct Running {
    spec: Value,
    is_initial: bool,
    container: Option<Container>,
    /// When it ended, and with which status.
    ended: Option<(Instant, i32)>,
    restarts: u64,
    startup: Option<Probe>,
    readiness: Option<Probe>,
    liveness: Option<Probe>,
}

impl Running {
    fn is_started(&self) -> bool {
        self.container.is_some() && self.startup.as_ref().is_none_or(Probe::is_passed)
    }

    fn is_ready(&self) -> bool {
        self.is_started() && self.readiness.as_ref().is_none_or(Probe::is_passed)
    }

    fn is_sidecar(&self) -> bool {
        self.is_initial && self.spec["restartPolicy"] == "Always"
    }

    fn status(&self) -> Value {
        let state = match (&self.container, self.ended) {
            (Some(_), _) => json!({ "running": {} }),
            (None, Some((_, code))) => {
                json!({ "terminated": { "exitCode": code, "reason": if code == 0 { "Completed" } else { "Error" } } })
            }
            (None, None) => json!({ "waiting": { "reason": "PodInitializing" } }),
        };
        let is_done = self.is_initial && !self.is_sidecar() && matches!(self.ended, Some((_, 0)));
        json!({
            "name": self.spec["name"], "image": self.spec["image"], "imageID": self.spec["image"],
            "restartCount": self.restarts, "state": state, "started": self.is_started(),
            "ready": self.is_ready() || is_done,
        })
    }
}

/// A pod and all that it takes to run it.
pub(super) struct Life<'a> {
    api: Api<'a>,
    node: &'a Node,
    images: &'a Images,
    shared: &'a Shared,
    pod: Value,
    network: Option<Pod>,
    volumes: Volumes,
    containers: Vec<Running>,
    /// Why it does not run yet.
    waiting: String,
    reported: Value,
}

impl<'a> Life<'a> {
    pub(super) fn new(api: Api<'a>, node: &'a Node, images: &'a Images, shared: &'a Shared) -> Self {
        Self {
            api,
            node,
            images,
            shared,
            pod: shared.latest(),
            network: None,
            volumes: Volumes::default(),
            containers: Vec::new(),
            waiting: String::new(),
            reported: Value::Null,
        }
    }

    /// Lives it to its end.
    pub(super) fn run(mut self) {
        let outcome = self.live();
        if let Err(error) = outcome {
            // Shown by `kubectl describe`, and in the node's log.
            self.waiting = format!("{error:#}");
            println!("{}: {}", self.name(), self.waiting);
            self.report("Failed");
            while !self.shared.is_deleted() {
                thread::sleep(PERIOD);
            }
        }
        self.end();
    }

    fn name(&self) -> String {
        let metadata = &self.pod["metadata"];
        format!("{}/{}", text(&metadata["namespace"]), text(&metadata["name"]))
    }

    fn live(&mut self) -> anyhow::Result<()> {
        let Some(()) = self.prepare()? else { return Ok(()) };
        for (field, is_initial) in [("initContainers", true), ("containers", false)] {
            for spec in self.pod["spec"][field].as_array().cloned().unwrap_or_default() {
                let probe = |name| Probe::new(&spec, name);
                let (startup, readiness, liveness) =
                    (probe("startupProbe"), probe("readinessProbe"), probe("livenessProbe"));
                self.containers.push(Running {
                    spec,
                    is_initial,
                    container: None,
                    ended: None,
                    restarts: 0,
                    startup,
                    readiness,
                    liveness,
                });
            }
        }
        let initial = self.containers.iter().filter(|one| one.is_initial).count();
        for index in 0..initial {
            if !self.initialise(index)? {
                return Ok(());
            }
        }
        for index in initial..self.containers.len() {
            self.start(index)?;
        }
        while !self.shared.is_deleted() {
            self.look_after(initial)?;
            if self.is_over(initial) {
                return self.finish(initial);
            }
            self.report("Running");
            thread::sleep(PERIOD);
        }
        Ok(())
    }

    /// Makes its network and volumes; nothing if it was deleted before that was possible.
    fn prepare(&mut self) -> anyhow::Result<Option<()>> {
        let spec = &self.pod["spec"];
        if spec["hostNetwork"] == Value::Bool(true) {
            bail!("pods in the node's own network are not run here");
        }
        let place = self.node.pod(&self.name().replace('/', "."))?;
        for sysctl in spec["securityContext"]["sysctls"].as_array().into_iter().flatten() {
            let path = format!("/proc/sys/{}", text(&sysctl["name"]).replace('.', "/"));
            place.run(|| fs::write(&path, text(&sysctl["value"]))).with_context(|| path.clone())?;
        }
        let address = place.address().to_string();
        self.pod["status"]["podIP"] = address.into();
        self.pod["status"]["hostIP"] = Node::ADDRESS.to_string().into();
        fs::create_dir_all(&self.shared.folder)?;
        let namespace = text(&self.pod["metadata"]["namespace"]).to_owned();
        let servers = format!(
            "nameserver {}\nsearch {namespace}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
            Node::ADDRESS
        );
        fs::write(self.shared.folder.join("resolv.conf"), servers)?;
        let name = text(&self.pod["metadata"]["name"]);
        let hosts = format!("127.0.0.1 localhost\n::1 localhost\n{} {name}\n", place.address());
        fs::write(self.shared.folder.join("hosts"), hosts)?;
        *lock(&self.shared.network) = Some(place.clone());
        self.network = Some(place);
        loop {
            // What a pod mounts may be made after it.
            match Volumes::make(&self.api, &self.pod, &self.shared.folder) {
                Ok(volumes) => {
                    self.volumes = volumes;
                    return Ok(Some(()));
                }
                Err(error) => self.waiting = format!("{error:#}"),
            }
            self.report("Pending");
            if self.shared.is_deleted() {
                return Ok(None);
            }
            thread::sleep(PERIOD * 5);
        }
    }

    /// Runs an init container: to its end, or, if it is a sidecar, until it has started. False if the pod was deleted
    /// meanwhile.
    fn initialise(&mut self, index: usize) -> anyhow::Result<bool> {
        self.start(index)?;
        loop {
            self.report("Pending");
            if self.shared.is_deleted() {
                return Ok(false);
            }
            self.check(index)?;
            let one = &self.containers[index];
            let is_over = matches!(one.ended, Some((_, 0))) && one.container.is_none();
            if if one.is_sidecar() { one.is_started() } else { is_over } {
                return Ok(true);
            }
            if one.ended.is_some() && self.pod["spec"]["restartPolicy"] == "Never" && !one.is_sidecar() {
                bail!("the init container {} has failed", text(&one.spec["name"]));
            }
            self.restart(index)?;
            thread::sleep(PERIOD);
        }
    }

    fn start(&mut self, index: usize) -> anyhow::Result<()> {
        let network = self.network.as_ref().context("a pod that runs has a network")?;
        let ground = Ground { pod: &self.pod, network, volumes: &self.volumes, folder: &self.shared.folder };
        let one = &mut self.containers[index];
        let spec = one.spec.clone();
        let name = text(&spec["name"]);
        let image = self.images.find(text(&spec["image"]))?;
        let values = Values { api: &self.api, pod: &self.pod };
        let container = Container::start(ground, &spec, &image, &values)
            .with_context(|| format!("the container {name}"))?;
        let first = crate::eventually("the first process", crate::PATIENCE, || {
            if container.ended()?.is_some() { Ok(None) } else { container.first_process().map(Some) }
        })?;
        if let Some(first) = first {
            lock(&self.shared.processes).insert(name.to_owned(), first);
        }
        let hook = &spec["lifecycle"]["postStart"];
        if !hook.is_null() {
            let outcome = probes::hook(hook, &container, &spec, network, crate::PATIENCE);
            outcome.with_context(|| format!("the postStart hook of {name}"))?;
        }
        (one.container, one.ended) = (Some(container), None);
        let probe = |name| Probe::new(&spec, name);
        (one.startup, one.readiness, one.liveness) =
            (probe("startupProbe"), probe("readinessProbe"), probe("livenessProbe"));
        Ok(())
    }

    /// Notes whether a container has ended, and how its probes go.
    fn check(&mut self, index: usize) -> anyhow::Result<()> {
        let network = self.network.as_ref().context("a pod that runs has a network")?;
        let one = &mut self.containers[index];
        let Some(container) = &one.container else { return Ok(()) };
        if let Some(code) = container.ended()? {
            lock(&self.shared.processes).remove(text(&one.spec["name"]));
            (one.container, one.ended) = (None, Some((Instant::now(), code)));
            return Ok(());
        }
        let ask = |probe: &mut Option<Probe>| {
            probe.as_mut().map_or(Verdict::Passed, |probe| probe.ask(container, &one.spec, network))
        };
        let mut verdict = Verdict::Passed;
        if one.startup.as_ref().is_some_and(|startup| !startup.is_passed()) {
            verdict = ask(&mut one.startup);
        } else {
            ask(&mut one.readiness);
            if ask(&mut one.liveness) == Verdict::Failed {
                verdict = Verdict::Failed;
            }
        }
        if verdict == Verdict::Failed {
            println!("{}: a probe of {} has failed", text(&self.pod["metadata"]["name"]), one.spec["name"]);
            container.terminate();
            self.shared.kill(text(&one.spec["name"]))?;
        }
        Ok(())
    }

    fn look_after(&mut self, initial: usize) -> anyhow::Result<()> {
        for index in 0..self.containers.len() {
            if index >= initial || self.containers[index].is_sidecar() {
                self.check(index)?;
                self.restart(index)?;
            }
        }
        Ok(())
    }

    /// Starts a container again that has ended a while ago, if it is to run.
    fn restart(&mut self, index: usize) -> anyhow::Result<()> {
        let one = &self.containers[index];
        let Some((at, code)) = one.ended else { return Ok(()) };
        let policy = text(&self.pod["spec"]["restartPolicy"]);
        let is_wanted = one.is_sidecar()
            || if one.is_initial {
                code != 0
            } else {
                policy == "Always" || policy == "OnFailure" && code != 0
            };
        if !is_wanted || at.elapsed() < BACK_OFF {
            return Ok(());
        }
        self.start(index)?;
        self.containers[index].restarts += 1;
        Ok(())
    }

    /// Whether all containers have done what they had to do.
    fn is_over(&self, initial: usize) -> bool {
        let policy = text(&self.pod["spec"]["restartPolicy"]);
        let done = |one: &Running| {
            one.ended.is_some_and(|(_, code)| policy == "Never" || policy == "OnFailure" && code == 0)
        };
        self.containers[initial..].iter().all(done)
    }

    /// Ends sidecars and says how it went, until the pod is deleted.
    fn finish(&mut self, initial: usize) -> anyhow::Result<()> {
        let failed = self.containers[initial..].iter().any(|one| !matches!(one.ended, Some((_, 0))));
        self.terminate(Duration::from_secs(30));
        self.report(if failed { "Failed" } else { "Succeeded" });
        while !self.shared.is_deleted() {
            thread::sleep(PERIOD);
        }
        Ok(())
    }

    /// Ends what runs: the application first, and sidecars after it, the last one first.
    fn terminate(&mut self, grace: Duration) {
        let until = Instant::now() + grace;
        let (sidecars, mut mains): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.containers).into_iter().partition(|one| one.is_initial);
        let Some(network) = self.network.clone() else { return };
        thread::scope(|scope| {
            for one in &mut mains {
                let network = &network;
                scope.spawn(move || end(one, network, until));
            }
        });
        for mut one in sidecars.into_iter().rev() {
            end(&mut one, &network, until);
        }
    }

    fn end(mut self) {
        let latest = self.shared.latest();
        let grace = latest["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or_default();
        self.terminate(Duration::from_secs(if self.shared.is_gone() { 0 } else { grace }));
        if let Some(network) = self.network.take() {
            self.node.remove(&network);
        }
        let metadata = &self.pod["metadata"];
        let path = path(metadata);
        let options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
            "preconditions": { "uid": metadata["uid"] },
        });
        if !self.shared.is_gone() {
            // It may be gone meanwhile.
            let _ = self.api.send("DELETE", &path, &options);
        }
    }

    /// Writes the pod's status, if it is another than before.
    fn report(&mut self, phase: &str) {
        let statuses = |is_initial| {
            let all = self.containers.iter().filter(|one| one.is_initial == is_initial);
            all.map(Running::status).collect::<Vec<_>>()
        };
        let is_initialised = matches!(phase, "Running" | "Succeeded");
        let counted = |one: &&Running| !one.is_initial || one.is_sidecar();
        let is_ready = phase == "Running" && self.containers.iter().filter(counted).all(Running::is_ready);
        let condition =
            |kind: &str, is: bool| json!({ "type": kind, "status": if is { "True" } else { "False" } });
        let address = &self.pod["status"]["podIP"];
        let addresses = address.as_str().map(|address| vec![json!({ "ip": address })]).unwrap_or_default();
        let status = json!({
            "phase": phase, "message": self.waiting, "podIP": address, "podIPs": addresses,
            "hostIP": Node::ADDRESS,
            "conditions": [
                condition("PodScheduled", true), condition("Initialized", is_initialised),
                condition("ContainersReady", is_ready), condition("Ready", is_ready),
            ],
            "initContainerStatuses": statuses(true), "containerStatuses": statuses(false),
        });
        if status == self.reported || self.shared.is_gone() {
            return;
        }
        let path = format!("{}/status", path(&self.pod["metadata"]));
        match self.api.send("PATCH", &path, &json!({ "status": status })) {
            Ok(_) => self.reported = status,
            // The API server may be away, or the pod gone: the next round shows.
            Err(error) => println!("{}: its status cannot be written: {error:#}", self.name()),
        }
    }
}

fn path(metadata: &Value) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", text(&metadata["namespace"]), text(&metadata["name"]))
}

/// Ends a container as the kubelet does: its hook, a word to its first process, and its end after the grace period.
fn end(one: &mut Running, network: &Pod, until: Instant) {
    let Some(container) = one.container.take() else { return };
    let left = || until.saturating_duration_since(Instant::now());
    let hook = &one.spec["lifecycle"]["preStop"];
    if !hook.is_null()
        && let Err(error) = probes::hook(hook, &container, &one.spec, network, left())
    {
        println!("the preStop hook of {}: {error:#}", one.spec["name"]);
    }
    container.terminate();
    while matches!(container.ended(), Ok(None)) && !left().is_zero() {
        thread::sleep(Duration::from_millis(20));
    }
    let code = container.ended().ok().flatten().unwrap_or(137);
    one.ended = Some((Instant::now(), code));
}
