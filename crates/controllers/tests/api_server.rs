//! The sources against a real API server: CRDs that come and go, and a server that dies.

use controllers::{Config, SOURCES, States, connect, run};
use index::{Change, Reset, Sourced};
use k8s_api::object::ObjectKey;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use testkit::rig::http::Request;
use testkit::rig::{ApiServer, Etcd};
use tokio::sync::{mpsc, watch};

/// A busy machine starts an API server in less.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the sources have told, taken in as an index does it.
#[derive(Default)]
struct Told {
    objects: BTreeMap<String, Sourced>,
    /// Every object that was taken away, by what.
    removed: Vec<String>,
    synced: BTreeSet<&'static str>,
    trust_domain: String,
    revisions: BTreeSet<String>,
}

impl Told {
    fn take_in(&mut self, change: Change) {
        match change {
            Change::Reset(reset, objects) => {
                let Reset::Kind(kind) = reset else { panic!("a source knows one kind") };
                let new: BTreeMap<String, Sourced> =
                    objects.into_iter().map(|o| (o.object.key().to_string(), o)).collect();
                let is_gone =
                    |label: &String| label.starts_with(&format!("{kind} ")) && !new.contains_key(label);
                let gone: Vec<String> = self.objects.keys().filter(|label| is_gone(label)).cloned().collect();
                for label in gone {
                    self.objects.remove(&label);
                    self.removed.push(format!("reset: {label}"));
                }
                self.objects.extend(new);
            }
            Change::Apply(object) => drop(self.objects.insert(object.object.key().to_string(), object)),
            Change::Delete(key) => self.delete(&key),
            Change::MeshConfig(config) => self.trust_domain = config.trust_domain,
            Change::CatchingUp => {}
            Change::Revisions(names) => self.revisions = names,
            Change::Synced(source) => assert!(self.synced.insert(source), "{source} is synced twice"),
        }
    }

    fn delete(&mut self, key: &ObjectKey) {
        assert!(self.objects.remove(&key.to_string()).is_some(), "{key} is not known");
        self.removed.push(format!("delete: {key}"));
    }

    fn label(&self, object: &str) -> Option<String> {
        let metadata = self.objects.get(object)?.object.metadata()?;
        metadata.labels.as_ref()?.get("v").cloned()
    }
}

struct Cluster {
    server: ApiServer,
    folder: tempfile::TempDir,
    told: Arc<Mutex<Told>>,
    states: watch::Receiver<States>,
}

impl Cluster {
    async fn start(etcd: &Etcd) -> Self {
        // Another test may have installed it already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let server = ApiServer::start(etcd).unwrap();
        let config = Config {
            kubeconfig: Some(server.kubeconfig().to_owned()),
            namespace: "istio-system".to_owned(),
            revision: "default".to_owned(),
            mesh_config_map: "istio".to_owned(),
            base_mesh_config: json!({ "trustDomain": "base" }),
            last_good_mesh_config: None,
        };
        let client = connect(&config).await.unwrap();
        let (sender, mut receiver) = mpsc::channel(64);
        let (states_sender, states) = watch::channel(States::new());
        tokio::spawn(run(client, config, sender, states_sender));
        let told = Arc::new(Mutex::new(Told::default()));
        let notes = Arc::clone(&told);
        tokio::spawn(async move {
            while let Some(change) = receiver.recv().await {
                notes.lock().unwrap().take_in(change);
            }
        });
        Self { server, folder: tempfile::tempdir().unwrap(), told, states }
    }

    /// Creates or changes objects.
    fn apply(&self, objects: &[Value]) {
        let path = self.folder.path().join("objects.json");
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        std::fs::write(&path, list.to_string()).unwrap();
        self.server.kubectl(&["apply", "-f", &path.display().to_string()]).unwrap();
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Told, &States) -> bool) {
        let begin = Instant::now();
        while !is_so(&self.told.lock().unwrap(), &self.states.borrow()) {
            let told = || {
                let told = self.told.lock().unwrap();
                let objects: Vec<&String> = told.objects.keys().collect();
                format!(
                    "{objects:?}, removed {:?}, synced {:?}, {:#?}",
                    told.removed,
                    told.synced,
                    self.states.borrow()
                )
            };
            assert!(begin.elapsed() < PATIENCE, "{what}: {}", told());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn service(v: u32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": "default", "name": "shop", "labels": { "v": v.to_string() } },
        "spec": { "ports": [{ "port": 80 }] },
    })
}

fn virtual_service(v: u32) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": { "namespace": "default", "name": "shop", "labels": { "v": v.to_string() } },
        "spec": { "hosts": ["shop"], "http": [{ "route": [{ "destination": { "host": "shop" } }] }] },
    })
}

/// The sources whose kinds come from CRDs.
const CUSTOM: [&str; 8] = [
    "DestinationRule",
    "Gateway",
    "PeerAuthentication",
    "ReferenceGrant",
    "ServiceEntry",
    "Sidecar",
    "VirtualService",
    "WorkloadEntry",
];

const SERVICE: &str = "Service default/shop";
const VIRTUAL_SERVICE: &str = "VirtualService default/shop";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crds_come_and_go_and_the_server_dies_without_losing_anything() {
    let etcd = Etcd::start().unwrap();
    let mut cluster = Cluster::start(&etcd).await;

    // Without CRDs: synced all the same, with what there is.
    cluster.until("synced", |told, _| told.synced.len() == SOURCES.len()).await;
    let absent = |_: &Told, states: &States| {
        states.iter().all(|(kind, state)| state.is_absent == CUSTOM.contains(kind))
    };
    cluster.until("absent", absent).await;
    assert_eq!(cluster.told.lock().unwrap().trust_domain, "base");
    let namespace =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "istio-system" } });
    let config_map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "namespace": "istio-system", "name": "istio" },
        "data": { "mesh": "trustDomain: mine" },
    });
    cluster.apply(&[namespace, config_map, service(1)]);
    cluster.until("service", |told, _| told.label(SERVICE).as_deref() == Some("1")).await;
    cluster.until("mesh config", |told, _| told.trust_domain == "mine").await;

    // CRDs are installed.
    cluster.server.install_definitions().unwrap();
    cluster.apply(&[virtual_service(1)]);
    cluster.until("virtual service", |told, _| told.label(VIRTUAL_SERVICE).as_deref() == Some("1")).await;
    // The Gateway API's kinds are not among our CRDs: nobody has installed them here.
    let present = |_: &Told, states: &States| {
        states.iter().all(|(kind, state)| state.is_absent == (*kind == "ReferenceGrant"))
    };
    cluster.until("present", present).await;

    // The server is killed.
    for v in 2..4 {
        cluster.server.kill();
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.server.resume().unwrap();
        cluster.apply(&[service(v), virtual_service(v)]);
        let v = v.to_string();
        cluster
            .until("changes after a restart", |told, _| {
                [SERVICE, VIRTUAL_SERVICE].iter().all(|object| told.label(object).as_ref() == Some(&v))
            })
            .await;
        assert_eq!(cluster.told.lock().unwrap().removed, Vec::<String>::new());
    }

    // A CRD is removed, and its objects with it.
    cluster.server.kubectl(&["delete", "crd", "virtualservices.networking.istio.io"]).unwrap();
    cluster.until("gone", |told, _| told.label(VIRTUAL_SERVICE).is_none()).await;
    cluster.until("absent again", |_, states| states["VirtualService"].is_absent).await;
    let removed = cluster.told.lock().unwrap().removed.clone();
    assert_eq!(removed, ["delete: VirtualService default/shop"]);
    assert_eq!(cluster.told.lock().unwrap().label(SERVICE).as_deref(), Some("3"));

    // What the sources rely on where they cannot have seen it: the answer names what is not there.
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/virtualservices.networking.istio.io";
    let answer = cluster.server.request(&Request::get(path)).unwrap();
    let status: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(
        (answer.status, &status["details"]["name"]),
        (404, &json!("virtualservices.networking.istio.io"))
    );
}
