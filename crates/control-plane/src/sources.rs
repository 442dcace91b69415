//! The sources of the mesh: which there are, how they are started, and how they are doing.

use crate::args::Args;
use crate::directory::{self, DirectoryState};
use crate::mesh_file;
use crate::state_dir::Saved;
use anyhow::{Context as _, Result};
use index::Change;
use k8s_api::mesh_config::MeshConfig;
use serde_json::{Value, json};
use source_dir::{Kept, Scanner};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// How the sources are doing.
#[derive(Clone, Debug)]
pub(crate) enum Sources {
    /// A directory of manifests.
    Directory(watch::Receiver<DirectoryState>),
    /// A source for each kind of the Kubernetes API.
    Kubernetes(watch::Receiver<controllers::States>),
}

/// What was started.
pub(crate) struct Started {
    /// The names of those that must be synced before anything is served.
    pub(crate) names: &'static [&'static str],
    /// How they are doing.
    pub(crate) sources: Sources,
    /// Manifests in use whose files cannot be read.
    pub(crate) kept: watch::Receiver<Vec<Kept>>,
}

impl Sources {
    /// Starts the sources that the flags ask for.
    ///
    /// # Errors
    ///
    /// If the API server cannot be reached.
    pub(crate) async fn start(
        args: &Args,
        base: Option<(Value, MeshConfig)>,
        saved: &Saved,
        changes: &mpsc::Sender<Change>,
        tasks: &mut JoinSet<Result<()>>,
    ) -> Result<Started> {
        let (kept_sender, kept) = watch::channel(Vec::new());
        let changes = changes.clone();
        let Some(directory) = args.source.config.clone() else {
            let config = controllers::Config {
                kubeconfig: args.source.kubeconfig.clone(),
                namespace: args.source.namespace.clone(),
                revision: args.mesh.revision.clone(),
                mesh_config_map: revisioned("istio", &args.mesh.revision),
                base_mesh_config: base.map_or_else(|| json!({}), |(values, _)| values),
                last_good_mesh_config: saved.mesh.clone(),
            };
            let client = controllers::connect(&config).await?;
            let (states, receiver) = watch::channel(controllers::States::new());
            tasks.spawn(async move { Ok(controllers::run(client, config, changes, states).await?) });
            return Ok(Started { names: controllers::SOURCES, sources: Self::Kubernetes(receiver), kept });
        };
        std::fs::metadata(&directory)
            .with_context(|| format!("cannot read {} (--config)", directory.display()))?;
        if let Some((_, config)) = base {
            // The channel is empty: nobody has written to it yet.
            changes.send(Change::MeshConfig(Box::new(config))).await.context("the writer has ended")?;
        }
        if let Some(file) = args.mesh.mesh_config.clone() {
            let changes = changes.clone();
            tasks.spawn(async move {
                mesh_file::follow(file, changes).await;
                Ok(())
            });
        }
        let (state, receiver) = watch::channel(DirectoryState::default());
        let restored = saved.kept.clone();
        let scanner =
            Scanner::new(directory).allow_unenforced_policies(args.source.allow_unenforced_policies);
        tasks.spawn(
            async move { Ok(directory::follow(scanner, restored, changes, kept_sender, state).await?) },
        );
        Ok(Started { names: &[directory::SOURCE], sources: Self::Directory(receiver), kept })
    }

    /// Returns the name of a source that is waited for, and why it may take so long.
    pub(crate) fn explain(&self, name: &str) -> String {
        let Self::Kubernetes(states) = self else { return name.to_owned() };
        match states.borrow().get(name).and_then(|state| state.last_error.as_ref()) {
            Some(error) => format!("{name} ({})", error.message),
            None => name.to_owned(),
        }
    }

    /// Returns the state of every source.
    pub(crate) fn states(&self) -> Value {
        match self {
            Self::Directory(state) => {
                let state = state.borrow();
                let problems: Vec<Value> = state
                    .problems
                    .iter()
                    .map(|problem| {
                        json!({
                            "file": problem.path,
                            "line": problem.line,
                            "message": problem.message,
                            "error": problem.is_error,
                        })
                    })
                    .collect();
                json!({ directory::SOURCE: {
                    "synced": state.scans > 0,
                    "objects": state.objects,
                    "scans": state.scans,
                    "problems": problems,
                }})
            }
            Self::Kubernetes(states) => {
                let states = states.borrow();
                let of = |state: &controllers::SourceState| {
                    json!({
                        "synced": state.is_synced,
                        "absent": state.is_absent,
                        "objects": state.objects,
                        "lists": state.lists,
                        "errors": state.errors,
                        "lastError": state.last_error.as_ref().map(|error| json!({
                            "message": error.message,
                            "secondsAgo": age(error.at).as_secs(),
                            "at": error.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
                        })),
                        "undecodable": state.undecodable,
                    })
                };
                states.iter().map(|(name, state)| ((*name).to_owned(), of(state))).collect()
            }
        }
    }
}

/// Returns what an object is called that there is once for a revision: as in Istio.
pub(crate) fn revisioned(name: &str, revision: &str) -> String {
    if revision == "default" { name.to_owned() } else { format!("{name}-{revision}") }
}

fn age(at: SystemTime) -> Duration {
    at.elapsed().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use controllers::{SourceError, SourceState, States};

    #[test]
    fn who_is_waited_for_says_why() {
        let failing = SourceState {
            last_error: Some(SourceError { message: "cannot list: no".to_owned(), at: SystemTime::now() }),
            errors: 3,
            ..SourceState::default()
        };
        let states = States::from([("Pod", failing), ("Node", SourceState::default())]);
        let (_sender, receiver) = watch::channel(states);
        let sources = Sources::Kubernetes(receiver);
        assert_eq!(sources.explain("Pod"), "Pod (cannot list: no)");
        assert_eq!(sources.explain("Node"), "Node");
        let states = sources.states();
        assert_eq!(states["Pod"]["lastError"]["message"], "cannot list: no");
        assert_eq!(states["Pod"]["errors"], 3);
        assert_eq!(states["Node"]["lastError"], Value::Null);
    }
}
