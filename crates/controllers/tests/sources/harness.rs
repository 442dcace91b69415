//! Runs the sources and notes what they tell.

use crate::fake::Fake;
use controllers::{Config, RunError, SourceState, States, run};
use index::{Change, Reset, Sourced};
use k8s_api::mesh_config::MeshConfig;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub(crate) struct Harness {
    told: Arc<Mutex<Vec<Change>>>,
    states: watch::Receiver<States>,
    task: JoinHandle<Result<(), RunError>>,
    collector: JoinHandle<()>,
}

pub(crate) fn config(base: Value) -> Config {
    Config {
        kubeconfig: None,
        namespace: "istio-system".to_owned(),
        revision: "default".to_owned(),
        mesh_config_map: "istio".to_owned(),
        base_mesh_config: base,
        last_good_mesh_config: None,
    }
}

/// An object whose version of the contents is `v`.
pub(crate) fn object(name: &str, v: u32) -> Value {
    json!({ "metadata": { "namespace": "shop", "name": name, "labels": { "v": v.to_string() } } })
}

impl Harness {
    pub(crate) fn start(fake: &Fake) -> Self {
        Self::start_with(fake, Value::Null)
    }

    pub(crate) fn start_with(fake: &Fake, base: Value) -> Self {
        let (sender, mut receiver) = mpsc::channel(4);
        let (states_sender, states) = watch::channel(States::new());
        let told = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&told);
        let task = tokio::spawn(run(fake.client(), config(base), sender, states_sender));
        let collector = tokio::spawn(async move {
            while let Some(change) = receiver.recv().await {
                notes.lock().unwrap().push(change);
            }
        });
        Self { told, states, task, collector }
    }

    /// Lets time pass, in which everything that can happen happens.
    pub(crate) async fn wait(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    /// Returns what was told of a kind since the last call.
    pub(crate) fn told(&self, kind: &str) -> Vec<String> {
        let mut told = self.told.lock().unwrap();
        let (ours, others) = told.drain(..).partition(|change| kind_of(change) == kind);
        *told = others;
        ours.iter().map(render).collect()
    }

    /// Returns the mesh configurations told since the last call.
    pub(crate) fn mesh_configs(&self) -> Vec<MeshConfig> {
        let mut told = self.told.lock().unwrap();
        let configs = told.extract_if(.., |change| matches!(change, Change::MeshConfig(_)));
        let unwrapped = configs.map(|change| match change {
            Change::MeshConfig(config) => *config,
            other => panic!("{other:?}"),
        });
        unwrapped.collect()
    }

    pub(crate) fn drain(&self) -> Vec<Change> {
        std::mem::take(&mut *self.told.lock().unwrap())
    }

    pub(crate) fn state(&self, source: &str) -> SourceState {
        self.states.borrow()[source].clone()
    }

    /// Stops to listen, and returns how the sources end.
    pub(crate) async fn stop(self) -> Result<(), RunError> {
        self.collector.abort();
        tokio::time::timeout(Duration::from_secs(1), self.task).await.unwrap().unwrap()
    }
}

/// Returns the source that told of a change.
pub(crate) fn kind_of(change: &Change) -> String {
    match change {
        Change::Reset(Reset::Kind(kind), _) | Change::Synced(kind) => (*kind).to_owned(),
        Change::Reset(Reset::Everything, _) => panic!("a source knows one kind"),
        Change::Apply(sourced) => sourced.object.key().kind.into_owned(),
        Change::Delete(key) => key.kind.clone().into_owned(),
        Change::MeshConfig(_) => "MeshConfig".to_owned(),
        Change::CatchingUp => "of all sources".to_owned(),
        Change::Revisions(_) => "RevisionTag".to_owned(),
    }
}

/// Returns name and version of the contents; `?` if they cannot be read.
pub(crate) fn named(sourced: &Sourced) -> (String, String) {
    let metadata = sourced.object.metadata();
    let labels = metadata.map(|metadata| metadata.labels.clone().unwrap_or_default());
    let version =
        labels.map_or_else(|| "?".to_owned(), |labels| labels.get("v").cloned().unwrap_or_default());
    (sourced.object.key().name, version)
}

fn render(change: &Change) -> String {
    let text = |sourced: &Sourced| {
        let (name, v) = named(sourced);
        let unread = if sourced.unread.is_some() { "!" } else { "" };
        format!(" {name}@{v}{unread}")
    };
    match change {
        Change::Reset(_, objects) => format!("reset{}", objects.iter().map(text).collect::<String>()),
        Change::Apply(object) => format!("apply{}", text(object)),
        Change::Delete(key) => format!("delete {}", key.name),
        Change::MeshConfig(_) => "mesh config".to_owned(),
        Change::Synced(_) => "synced".to_owned(),
        Change::CatchingUp => "catching up".to_owned(),
        Change::Revisions(names) => format!("revisions {}", Vec::from_iter(names.clone()).join(" ")),
    }
}
