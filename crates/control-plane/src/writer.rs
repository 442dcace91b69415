//! The one writer of the mesh: takes in what sources tell, and publishes.
//!
//! Nothing is published before every source has told its whole state once, so a proxy never sees a mesh that is
//! smaller than the truth because weftd has just started.

use index::{Change, Findings, Index, Settings};
use k8s_api::mesh_config::MeshConfig;
use model::{MeshView, Rejection, Str};
use push::Push;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

/// What others may know of the writer.
#[derive(Clone, Debug, Default)]
pub(crate) struct WriterState {
    /// The sources that have not told their whole state yet.
    pub(crate) waiting_for: BTreeSet<&'static str>,
    /// The newest view that was published.
    pub(crate) view: Arc<MeshView>,
    /// How many objects there are.
    pub(crate) objects: usize,
    /// How many of them are not used, or not in their newest form.
    pub(crate) rejected: usize,
}

impl WriterState {
    /// Returns whether proxies can be served.
    pub(crate) fn is_ready(&self) -> bool {
        self.waiting_for.is_empty()
    }
}

/// Takes in changes until there are no more sources. `sources` are those that must be synced first.
pub(crate) async fn write(
    settings: Settings,
    sources: &[&'static str],
    mut changes: mpsc::Receiver<Change>,
    push: Push,
    state: watch::Sender<WriterState>,
) {
    let domain = settings.domain.clone();
    let cluster = settings.cluster.clone();
    let mut index = Index::new(settings);
    let mut waiting_for: BTreeSet<&'static str> = sources.iter().copied().collect();
    state.send_modify(|state| state.waiting_for.clone_from(&waiting_for));
    let mut batch = Vec::new();
    // All that has arrived is one change: there is no reason to compile for states that are history already.
    while changes.recv_many(&mut batch, 1024).await > 0 {
        for change in batch.drain(..) {
            match change {
                Change::Reset(reset, objects) => index.reset(&reset, objects),
                Change::Apply(sourced) => index.apply(sourced),
                Change::Delete(key) => index.delete(&key),
                Change::MeshConfig(config) => set_mesh_config(&mut index, &config, &domain, &cluster),
                Change::Synced(source) => {
                    if waiting_for.remove(source) {
                        info!(source, waiting_for = ?waiting_for, "source synced");
                    }
                }
            }
        }
        for (object, findings) in index.take_fresh_findings() {
            log_findings(&object, findings.as_ref());
        }
        if !waiting_for.is_empty() {
            state.send_modify(|state| state.waiting_for.clone_from(&waiting_for));
            continue;
        }
        let published = index.publish();
        let rejected = index.findings().values().filter(|f| f.findings.iter().any(|f| f.is_error)).count();
        state.send_modify(|state| {
            state.objects = index.len();
            state.rejected = rejected;
            state.waiting_for.clear();
            if let Some((view, _)) = &published {
                state.view = view.clone();
            }
        });
        if let Some((view, changes)) = published {
            push.publish(view, changes);
        }
    }
}

fn set_mesh_config(index: &mut Index, config: &MeshConfig, domain: &Str, cluster: &Str) {
    let translated = translate::mesh_config(domain, cluster, config);
    for Rejection { field, reason, .. } in translated.rejections.iter().chain(&translated.warnings) {
        warn!(field, reason, "mesh configuration");
    }
    match translated.value {
        Some(mesh) => index.set_mesh_config(mesh.config, mesh.context),
        None => warn!("the mesh configuration cannot be used; the last good one stays in use"),
    }
}

fn log_findings(object: &model::ObjectKey, findings: Option<&Findings>) {
    let Some(findings) = findings else {
        info!(%object, "object is fine now, or gone");
        return;
    };
    let origin = &findings.origin;
    for finding in &findings.findings {
        let Rejection { field, reason, .. } = &finding.rejection;
        match (finding.is_error, findings.serves_last_good) {
            (true, true) => {
                warn!(%object, %origin, field, reason, "rejected; the last good form stays in use")
            }
            (true, false) => warn!(%object, %origin, field, reason, "rejected"),
            (false, _) => warn!(%object, %origin, field, reason, "may not do what is expected"),
        }
    }
}
