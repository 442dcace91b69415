//! The one writer of the mesh: takes in what sources tell, and publishes.
//!
//! Nothing is published before every source has told its whole state once, so a proxy never sees a mesh that is
//! smaller than the truth because weftd has just started.

use index::{Change, Findings, Held, Index, Settings};
use k8s_api::mesh_config::MeshConfig;
use k8s_api::object::Object;
use model::{Key, Kind, Mesh, MeshView, ObjectKey, Rejection, Str};
use push::Push;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

/// How long nothing is published after an outage of the API server. Its watches come back one after the other, within a
/// second even on a machine that is busy; a route that is known before the endpoints it leads to would fail requests.
const CATCHING_UP: Duration = Duration::from_secs(2);

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
    /// What is to be said about objects.
    pub(crate) findings: Arc<BTreeMap<ObjectKey, Findings>>,
}

impl WriterState {
    /// Returns whether proxies can be served.
    pub(crate) fn is_ready(&self) -> bool {
        self.waiting_for.is_empty()
    }
}

/// What the writer starts with, and whom it tells.
pub(crate) struct Writer {
    /// What does not change.
    pub(crate) settings: Settings,
    /// The sources that must be synced first.
    pub(crate) sources: &'static [&'static str],
    /// Objects whose newest form another process had refused, in the form that it used.
    pub(crate) restored: Vec<Arc<Object>>,
    /// Where the compiler takes its views from.
    pub(crate) push: Push,
    /// What others may know.
    pub(crate) state: watch::Sender<WriterState>,
    /// Objects that are in use in an older form; nothing until every source is synced.
    pub(crate) held: watch::Sender<Option<Vec<Held>>>,
}

/// Takes in changes until there are no more sources.
pub(crate) async fn write(writer: Writer, mut changes: mpsc::Receiver<Change>) {
    let Writer { settings, sources, restored, push, state, held } = writer;
    let domain = settings.domain.clone();
    let cluster = settings.cluster.clone();
    let mut index = Index::new(settings);
    index.restore(restored);
    let mut waiting_for: BTreeSet<&'static str> = sources.iter().copied().collect();
    state.send_modify(|state| state.waiting_for.clone_from(&waiting_for));
    let mut batch = Vec::new();
    // All that has arrived is one change: there is no reason to compile for states that are history already.
    let mut hold = None;
    while take_in(&mut changes, &mut batch, &mut hold).await {
        for change in batch.drain(..) {
            match change {
                Change::Reset(reset, objects) => index.reset(&reset, objects),
                Change::Apply(sourced) => index.apply(sourced),
                Change::Delete(key) => index.delete(&key),
                Change::MeshConfig(config) => set_mesh_config(&mut index, &config, &domain, &cluster),
                Change::CatchingUp => hold = Some(Instant::now() + CATCHING_UP),
                Change::Synced(source) => {
                    if waiting_for.remove(source) {
                        info!(source, waiting_for = ?waiting_for, "source synced");
                    }
                }
            }
        }
        if !waiting_for.is_empty() {
            state.send_modify(|state| state.waiting_for.clone_from(&waiting_for));
            continue;
        }
        if hold.is_some() {
            continue;
        }
        if held.borrow().is_none() {
            index.forget_restored();
        }
        let published = index.publish();
        if let Some((view, changes)) = &published
            && changes.keys.iter().any(is_about_gateways)
        {
            index.set_conflicts(compile::gateway::conflicts(&Mesh::new(view)));
        }
        // Some of what is wrong shows only now.
        let fresh = index.take_fresh_findings();
        for (object, findings) in &fresh {
            log_findings(object, findings.as_ref());
        }
        let findings = (!fresh.is_empty()).then(|| Arc::new(index.findings().clone()));
        held.send_if_modified(|known| {
            // Which object is held cannot change without a finding, nor can its form: it is held because it does not.
            if known.is_some() && fresh.is_empty() {
                return false;
            }
            let now = Some(index.held());
            let is_news = *known != now;
            *known = now;
            is_news
        });
        state.send_modify(|state| {
            state.objects = index.len();
            state.waiting_for.clear();
            if let Some(findings) = findings {
                let is_rejected = |found: &&Findings| found.findings.iter().any(|finding| finding.is_error);
                state.rejected = findings.values().filter(is_rejected).count();
                state.findings = findings;
            }
            if let Some((view, _)) = &published {
                state.view = view.clone();
            }
        });
        if let Some((view, changes)) = published {
            push.publish(view, changes);
        }
    }
}

/// Waits for changes, or for the end of `hold`, after which there is something to publish although nothing has arrived.
/// Returns whether there is more to come.
async fn take_in(
    changes: &mut mpsc::Receiver<Change>,
    batch: &mut Vec<Change>,
    hold: &mut Option<Instant>,
) -> bool {
    let Some(until) = *hold else { return changes.recv_many(batch, 1024).await > 0 };
    tokio::select! {
        received = changes.recv_many(batch, 1024) => received > 0,
        () = tokio::time::sleep_until(until) => {
            *hold = None;
            true
        }
    }
}

fn is_about_gateways(key: &Key) -> bool {
    match key {
        Key::Gateways => true,
        Key::Object(object) => object.kind == Kind::Gateway,
        _ => false,
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

fn log_findings(object: &ObjectKey, findings: Option<&Findings>) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use index::Sourced;
    use k8s_api::yaml::parse_documents;

    fn service(name: &str) -> Change {
        let text = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, spec: {{clusterIP: 10.0.0.1, ports: [{{name: http, port: 80}}]}}}}"
        );
        let document = parse_documents(&text, "test").pop().unwrap().unwrap();
        Change::Apply(Sourced::from_api(document.object))
    }

    #[tokio::test(start_paused = true)]
    async fn what_sources_tell_while_they_catch_up_is_published_together() {
        let (changes, inbox) = mpsc::channel(16);
        let (state, mut seen) = watch::channel(WriterState::default());
        let writer = Writer {
            settings: Settings { domain: "cluster.local".into(), cluster: "Kubernetes".into() },
            sources: &["test"],
            restored: Vec::new(),
            push: Push::spawn(Arc::default()).unwrap(),
            state,
            held: watch::channel(None).0,
        };
        let writing = tokio::spawn(write(writer, inbox));
        changes.send(Change::Synced("test")).await.unwrap();
        changes.send(service("a")).await.unwrap();
        seen.wait_for(|state| state.view.service_count() == 1).await.unwrap();

        let started = Instant::now();
        changes.send(Change::CatchingUp).await.unwrap();
        changes.send(service("b")).await.unwrap();
        tokio::time::sleep(CATCHING_UP / 2).await;
        changes.send(service("c")).await.unwrap();
        let view = seen.wait_for(|state| state.view.service_count() > 1).await.unwrap().view.clone();
        assert_eq!((view.service_count(), started.elapsed()), (3, CATCHING_UP));

        // And then changes leave at once again.
        changes.send(service("d")).await.unwrap();
        seen.wait_for(|state| state.view.service_count() == 4).await.unwrap();
        assert_eq!(started.elapsed(), CATCHING_UP);
        drop(changes);
        writing.await.unwrap();
    }
}
