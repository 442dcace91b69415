//! The one writer of the mesh: takes in what sources tell, and publishes.
//!
//! Nothing is published before every source has told its whole state once, so a proxy never sees a mesh that is
//! smaller than the truth because weftd has just started.

use crate::admission::Facts;
use crate::status::Feed;
use index::{Change, Doubt, Findings, Held, Index, Settings};
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
    /// How often the endpoints of Services were doubted.
    pub(crate) doubts: DoubtCounts,
}

/// How often it was doubted that a Service has no EndpointSlice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DoubtCounts {
    /// The endpoints of the last slices stayed in use.
    pub(crate) kept: u64,
    /// A new Service was not used yet.
    pub(crate) awaited: u64,
    /// No slice came in time.
    pub(crate) believed: u64,
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
    /// The mesh configuration that another process used, for a first one that is refused.
    pub(crate) restored_mesh: Option<Arc<MeshConfig>>,
    /// The mesh configuration that is in use; nothing while it is the default.
    pub(crate) accepted_mesh: watch::Sender<Option<Arc<MeshConfig>>>,
    /// What admission asks about the cluster.
    pub(crate) facts: watch::Sender<Arc<Facts>>,
    /// Where the compiler takes its views from.
    pub(crate) push: Push,
    /// What others may know.
    pub(crate) state: watch::Sender<WriterState>,
    /// Where changes are noted for those who report on objects; nowhere if nobody does.
    pub(crate) feed: Option<Feed>,
    /// Objects that are in use in an older form; nothing until every source is synced.
    pub(crate) held: watch::Sender<Option<Vec<Held>>>,
}

/// Takes in changes until there are no more sources.
pub(crate) async fn write(writer: Writer, mut changes: mpsc::Receiver<Change>) {
    let Writer {
        settings,
        sources,
        restored,
        mut restored_mesh,
        accepted_mesh,
        facts,
        push,
        state,
        mut feed,
        held,
    } = writer;
    let domain = settings.domain.clone();
    let cluster = settings.cluster.clone();
    let mut index = Index::new(settings);
    index.restore(restored);
    let mut waiting_for: BTreeSet<&'static str> = sources.iter().copied().collect();
    state.send_modify(|state| state.waiting_for.clone_from(&waiting_for));
    let mut batch = Vec::new();
    let mut generation = 0;
    // All that has arrived is one change: there is no reason to compile for states that are history already.
    let mut hold = None;
    while take_in(&mut changes, &mut batch, &mut hold, index.doubts_until()).await {
        note_facts(&facts, &batch);
        index.set_time(seconds_since_1970());
        for change in batch.drain(..) {
            if let Some(feed) = &mut feed {
                feed.note(&change);
            }
            match change {
                Change::Reset(reset, objects) => index.reset(&reset, objects),
                Change::Apply(sourced) => index.apply(sourced),
                Change::Delete(key) => index.delete(&key),
                Change::MeshConfig(config) => {
                    let config = Arc::from(config);
                    let last = restored_mesh.take();
                    if set_mesh_config(&mut index, &config, &domain, &cluster) {
                        accepted_mesh.send_replace(Some(config));
                    } else if let Some(last) = last {
                        warn!("the mesh configuration from before the restart is used");
                        if set_mesh_config(&mut index, &last, &domain, &cluster) {
                            accepted_mesh.send_replace(Some(last));
                        }
                    }
                }
                Change::Revisions(names) => index.set_revisions(names),
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
        let published = index.publish_at(Instant::now().into_std());
        let doubts = index.take_doubts();
        doubts.iter().for_each(log_doubt);
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
            state.doubts.add(&doubts);
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
            generation = view.generation();
            push.publish(view, changes);
        }
        if let Some(feed) = &mut feed {
            feed.published(generation);
        }
    }
}

fn seconds_since_1970() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// Waits for changes, or for the end of `hold` or of a doubt, after which there is something to publish although nothing
/// has arrived. Returns whether there is more to come.
async fn take_in(
    changes: &mut mpsc::Receiver<Change>,
    batch: &mut Vec<Change>,
    hold: &mut Option<Instant>,
    doubt: Option<std::time::Instant>,
) -> bool {
    // Nothing is published during a hold.
    let Some(until) = hold.or(doubt.map(Instant::from_std)) else {
        return changes.recv_many(batch, 1024).await > 0;
    };
    tokio::select! {
        received = changes.recv_many(batch, 1024) => received > 0,
        () = tokio::time::sleep_until(until) => {
            *hold = None;
            true
        }
    }
}

/// Takes in what admission asks about, which no hold keeps back: a webhook has to answer now.
fn note_facts(facts: &watch::Sender<Arc<Facts>>, batch: &[Change]) {
    facts.send_if_modified(|known| {
        let facts = Arc::make_mut(known);
        let mut is_news = false;
        for change in batch {
            is_news |= facts.take_in(change);
        }
        is_news
    });
}

impl DoubtCounts {
    fn add(&mut self, doubts: &[Doubt]) {
        for doubt in doubts {
            match doubt {
                Doubt::Kept(_) => self.kept += 1,
                Doubt::Awaited(_) => self.awaited += 1,
                Doubt::Believed(_) => self.believed += 1,
            }
        }
    }
}

fn log_doubt(doubt: &Doubt) {
    match doubt {
        Doubt::Kept(object) => {
            warn!(%object, "no EndpointSlice lists its endpoints any more; for a moment they stay in use");
        }
        Doubt::Awaited(object) => {
            info!(%object, "is used as soon as there is an EndpointSlice of it, or in a moment");
        }
        Doubt::Believed(object) => warn!(%object, "has no EndpointSlice, and so no endpoints"),
    }
}

fn is_about_gateways(key: &Key) -> bool {
    match key {
        Key::Gateways => true,
        Key::Object(object) => object.kind == Kind::Gateway,
        _ => false,
    }
}

/// Returns whether the configuration is in use now.
fn set_mesh_config(index: &mut Index, config: &MeshConfig, domain: &Str, cluster: &Str) -> bool {
    let translated = translate::mesh_config(domain, cluster, config);
    for Rejection { field, reason, .. } in translated.rejections.iter().chain(&translated.warnings) {
        warn!(field, reason, "mesh configuration");
    }
    match translated.value {
        Some(mesh) => {
            index.set_mesh_config(mesh.config, mesh.context);
            true
        }
        None => {
            warn!("the mesh configuration cannot be used; the last good one stays in use");
            false
        }
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

    fn apply(text: &str) -> Change {
        let document = parse_documents(text, "test").pop().unwrap().unwrap();
        Change::Apply(Sourced::from_api(document.object))
    }

    /// A name that is taken from elsewhere needs no endpoints.
    fn service(name: &str) -> Change {
        apply(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, spec: {{type: ExternalName, externalName: a.test, ports: [{{name: http, port: 80}}]}}}}"
        ))
    }

    type Started = (mpsc::Sender<Change>, watch::Receiver<WriterState>, tokio::task::JoinHandle<()>);

    /// Starts a writer that has published nothing but that it is ready.
    async fn start() -> Started {
        start_with(None).await
    }

    async fn start_with(restored_mesh: Option<Arc<MeshConfig>>) -> Started {
        let (changes, inbox) = mpsc::channel(16);
        let (state, seen) = watch::channel(WriterState::default());
        let writer = Writer {
            settings: Settings { domain: "cluster.local".into(), cluster: "Kubernetes".into() },
            sources: &["test"],
            restored: Vec::new(),
            restored_mesh,
            accepted_mesh: watch::channel(None).0,
            facts: watch::channel(Arc::default()).0,
            push: Push::spawn(Arc::default()).unwrap(),
            state,
            feed: None,
            held: watch::channel(None).0,
        };
        let writing = tokio::spawn(write(writer, inbox));
        changes.send(Change::Synced("test")).await.unwrap();
        (changes, seen, writing)
    }

    #[tokio::test(start_paused = true)]
    async fn endpoints_that_are_doubted_are_looked_at_again_although_nothing_happens() {
        let (changes, mut seen, writing) = start().await;
        let slice = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1, namespace: shop, labels: {kubernetes.io/service-name: a}}, addressType: IPv4, ports: [{name: http, port: 80}], endpoints: [{addresses: [10.0.0.2]}]}";
        let service = "{apiVersion: v1, kind: Service, metadata: {name: a, namespace: shop}, spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}]}}";
        let endpoints = |state: &WriterState| state.view.registry().map(|(_, all)| all.len()).sum::<usize>();
        changes.send(apply(slice)).await.unwrap();
        changes.send(apply(service)).await.unwrap();
        seen.wait_for(|state| endpoints(state) == 1).await.unwrap();

        let Change::Apply(gone) = apply(slice) else { unreachable!("it is applied") };
        changes.send(Change::Delete(gone.object.key())).await.unwrap();
        let began = Instant::now();
        seen.wait_for(|state| state.doubts.kept == 1).await.unwrap();
        assert_eq!(endpoints(&seen.borrow()), 1);
        let state = seen.wait_for(|state| endpoints(state) == 0).await.unwrap().clone();
        assert_eq!(began.elapsed(), index::ENDPOINT_DOUBT);
        assert_eq!(state.doubts, DoubtCounts { kept: 1, awaited: 0, believed: 1 });
        drop(changes);
        writing.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_mesh_configuration_of_before_stands_in_for_a_first_one_that_is_refused() {
        let config = |text: &str| MeshConfig::parse(&[("test", text)]).unwrap().config;
        let (changes, mut seen, writing) = start_with(Some(Arc::new(config("proxyListenPort: 1501")))).await;
        let mut ports = Vec::new();
        for text in ["proxyListenPort: 0", "proxyListenPort: 1502", "proxyListenPort: 0"] {
            changes.send(Change::MeshConfig(Box::new(config(text)))).await.unwrap();
            changes.send(service(&format!("s{}", ports.len()))).await.unwrap();
            let state = seen.wait_for(|state| state.view.service_count() > ports.len()).await.unwrap();
            ports.push(state.view.config().proxy_listen_port);
        }
        assert_eq!(ports, [1501, 1502, 1502]);
        drop(changes);
        writing.await.unwrap();
    }

    #[test]
    fn endpoints_are_doubted_as_long_as_destinations() {
        assert_eq!(index::ENDPOINT_DOUBT, xds::session::Options::STANDARD.absence_grace);
    }

    #[tokio::test(start_paused = true)]
    async fn what_sources_tell_while_they_catch_up_is_published_together() {
        let (changes, mut seen, writing) = start().await;
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
