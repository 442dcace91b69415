//! A node of a cluster: runs the pods of a real API server as processes, exactly as their specs say.
//!
//! ```text
//! API server ◀── controller manager             Deployments to Pods, Services to EndpointSlices
//!     ▲ ▼
//!    node ──▶ pod ──▶ network namespace          10.244.0.x, with names and addresses of Services
//!               ├──▶ volumes                     tokens, ConfigMaps, Secrets, the downward API
//!               └──▶ containers                  init containers, sidecars, others; hooks, probes, restarts
//! ```
//!
//! It is scheduler, kubelet, container runtime, kube-proxy and name server of a cluster with one node. A container has the
//! root folder of its image, read-only if it says so, its mounts, user, groups and capabilities, and sees no processes but its own. It asks
//! the API server ten times a second instead of watching it, since there are a dozen pods. What a spec says that the node
//! does not understand is an error in the pod's status, never left out: host networks, `envFrom`, probes by gRPC and HTTPS.
//! Limits of resources are told to containers and not enforced, and what is mounted stays as it was when the pod began.

mod api;
mod container;
mod environment;
mod images;
mod pod;
mod probes;
mod services;
mod volumes;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::rig::netns::{Node, Pod};
use testkit::rig::process::Scratch;
use testkit::rig::{ApiServer, ApiServerOptions, ControllerManager, Etcd};

use api::Api;
pub use images::{Image, Images};
use pod::{Life, Shared};
use services::Services;

/// How often the API server is asked.
const PERIOD: Duration = Duration::from_millis(100);
/// The name of the node.
const NAME: &str = "rig";
/// What the node says that its kubelet is: the version of the API server that tests run against.
const VERSION: &str = "v1.36.1";

/// Returns a string, or an empty one where there is none.
fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A cluster with one node.
#[derive(Debug)]
pub struct Cluster<'n> {
    /// The API server.
    pub api: ApiServer,
    images: Images,
    node: &'n Node,
    pods: Mutex<BTreeMap<String, Arc<Shared>>>,
    services: Services,
    stop: AtomicBool,
    folder: Scratch,
    _controllers: ControllerManager,
    _etcd: Etcd,
}

/// Starts a cluster on `node`, does `work` with it, and ends it. Images that are not Weft's are `stand_in`.
///
/// # Errors
///
/// If a part does not start, and those of `work`.
pub fn with_cluster<T>(
    node: &Node,
    stand_in: &Path,
    work: impl FnOnce(&Cluster<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let cluster = Cluster::start(node, stand_in)?;
    thread::scope(|scope| {
        let names = scope.spawn(|| cluster.services.answer(&cluster.stop));
        let node = scope.spawn(|| cluster.run(scope));
        let stop = StopOnDrop(&cluster);
        let done = work(&cluster);
        drop(stop);
        for thread in [names, node] {
            thread.join().map_err(|_| anyhow::anyhow!("the node has panicked"))??;
        }
        done
    })
}

/// Lets the node's threads end even if a test panics.
struct StopOnDrop<'a, 'n>(&'a Cluster<'n>);

impl Drop for StopOnDrop<'_, '_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
        for shared in self.0.pods().values() {
            shared.remove();
        }
    }
}

impl<'n> Cluster<'n> {
    fn start(node: &'n Node, stand_in: &Path) -> anyhow::Result<Self> {
        let folder = Scratch::new("cluster")?;
        let images = Images::lay_out(&folder.path().join("images"), stand_in)?;
        let etcd = Etcd::start()?;
        let arguments = [
            // Pods reach it by its Service.
            "--bind-address=0.0.0.0".to_owned(),
            format!("--advertise-address={}", Node::ADDRESS),
            "--endpoint-reconciler-type=lease".to_owned(),
        ];
        let options = ApiServerOptions {
            service_account_admission: true,
            arguments: arguments.into(),
            ..ApiServerOptions::default()
        };
        let api = ApiServer::start_with(&etcd, options)?;
        // Nobody says that the node is alive but the node being there.
        let controllers =
            ControllerManager::start_with(&api, &["--controllers=*,-node-lifecycle-controller"])?;
        let cluster = Self {
            api,
            images,
            node,
            pods: Mutex::default(),
            services: Services::default(),
            stop: AtomicBool::new(false),
            folder,
            _controllers: controllers,
            _etcd: etcd,
        };
        Services::prepare()?;
        cluster.register()?;
        Ok(cluster)
    }

    fn register(&self) -> anyhow::Result<()> {
        let api = Api(&self.api);
        let metadata = json!({ "name": NAME, "labels": { "kubernetes.io/hostname": NAME } });
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": metadata });
        api.send("POST", "/api/v1/nodes", &node)?;
        let status = json!({
            "addresses": [{ "type": "InternalIP", "address": Node::ADDRESS }],
            "conditions": [{ "type": "Ready", "status": "True", "reason": "Rig", "message": "" }],
            "nodeInfo": {
                "kubeletVersion": VERSION, "kubeProxyVersion": VERSION, "architecture": std::env::consts::ARCH,
                "bootID": "", "containerRuntimeVersion": "rig://0", "kernelVersion": "", "machineID": "",
                "operatingSystem": "linux", "osImage": "", "systemUUID": "",
            },
        });
        api.send("PATCH", &format!("/api/v1/nodes/{NAME}/status"), &json!({ "status": status }))?;
        Ok(())
    }

    /// Runs pods until the cluster ends.
    fn run<'s>(&'s self, scope: &'s Scope<'s, '_>) -> anyhow::Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            // It may be away for a while: then pods go on as they are.
            if let Err(error) = self.sync(scope) {
                println!("node: {error:#}");
            }
            thread::sleep(PERIOD);
        }
        Ok(())
    }

    fn sync<'s>(&'s self, scope: &'s Scope<'s, '_>) -> anyhow::Result<()> {
        let api = Api(&self.api);
        let mut known = self.pods().clone();
        for pod in api.list("/api/v1/pods")? {
            let uid = text(&pod["metadata"]["uid"]).to_owned();
            if let Some(shared) = known.remove(&uid) {
                shared.update(pod);
            } else if pod["spec"]["nodeName"].is_null() {
                bind(&api, &pod)?;
            } else if pod["spec"]["nodeName"] == NAME {
                let metadata = &pod["metadata"];
                let folder = self.folder.path().join("pods");
                let folder = folder.join(text(&metadata["namespace"])).join(text(&metadata["name"]));
                let shared = Arc::new(Shared::new(pod, folder));
                // Not after the end: nobody would tell it.
                let mut pods = self.pods();
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                pods.insert(uid, shared.clone());
                drop(pods);
                scope.spawn(move || Life::new(Api(&self.api), self.node, &self.images, &shared).run());
            }
        }
        for (uid, shared) in known {
            shared.remove();
            self.pods().remove(&uid);
        }
        self.services.sync(&api)
    }

    fn pods(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Shared>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, namespace: &str, name: &str) -> anyhow::Result<Arc<Shared>> {
        let pods = self.pods();
        let mut found = pods.values().filter(|shared| {
            let metadata = &shared.latest()["metadata"];
            metadata["namespace"] == namespace && metadata["name"] == name
        });
        found.next().cloned().with_context(|| format!("no pod {namespace}/{name} runs"))
    }

    /// Returns the network of a pod.
    ///
    /// # Errors
    ///
    /// If no pod of this name runs.
    pub fn network(&self, namespace: &str, name: &str) -> anyhow::Result<Pod> {
        self.find(namespace, name)?.network().context("it has no network yet")
    }

    /// Kills the first process of a container, as a lack of memory does. The node starts it again after [`BACK_OFF`].
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn kill(&self, namespace: &str, name: &str, container: &str) -> anyhow::Result<()> {
        self.find(namespace, name)?.kill(container)
    }

    /// Returns the process id of the first process of a container.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn process(&self, namespace: &str, name: &str, container: &str) -> anyhow::Result<u32> {
        self.find(namespace, name)?.process(container)
    }

    /// Returns what a container has printed.
    ///
    /// # Errors
    ///
    /// If there is no such pod or container.
    pub fn log(&self, namespace: &str, name: &str, container: &str) -> anyhow::Result<String> {
        let path = container::log(&self.find(namespace, name)?.folder, container);
        fs::read_to_string(&path).with_context(|| format!("{namespace}/{name} has no {container}"))
    }

    /// Returns a folder for files of the caller's.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs kubectl and returns what it prints.
    ///
    /// # Errors
    ///
    /// With what it complains about.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        Ok(self.api.kubectl(arguments)?)
    }

    /// Runs helm and returns what it prints.
    ///
    /// # Errors
    ///
    /// With what it complains about.
    pub fn helm(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut helm = std::process::Command::new(testkit::tools::helm()?);
        helm.arg("--kubeconfig").arg(self.api.kubeconfig()).args(arguments);
        let output = helm.output().context("cannot run helm")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "helm {}: {said}", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// How long a container that has ended is left alone before it is started again.
pub const BACK_OFF: Duration = pod::BACK_OFF;

fn bind(api: &Api<'_>, pod: &Value) -> anyhow::Result<()> {
    let metadata = &pod["metadata"];
    if !metadata["deletionTimestamp"].is_null() {
        return Ok(());
    }
    let path = format!(
        "/api/v1/namespaces/{}/pods/{}/binding",
        text(&metadata["namespace"]),
        text(&metadata["name"])
    );
    let target = json!({ "apiVersion": "v1", "kind": "Node", "name": NAME });
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": { "name": metadata["name"] }, "target": target,
    });
    api.send("POST", &path, &binding).map(drop)
}
