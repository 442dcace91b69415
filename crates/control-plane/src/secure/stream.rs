//! Secrets on streams of callers who have proved who they are: the roots, a key for those who have no agent, and the
//! Kubernetes Secrets of gateways; and the end of streams whose proof has ended.
//!
//! ```text
//! engine ══ Snapshot ══▶ ┐
//! authority ═ roots ═══▶ ├▶ Stream (a task) ══ Snapshot ══▶ session
//! key of its own ──────▶ │      ▲ wanted
//! permission ══════════▶ ┘      └── Observer ◀── session
//! ```

use super::authority::{Held, WORKLOAD_ROOTS};
use super::permissions::Permissions;
use super::proxies::{Presented, Proxies, Tracker};
use super::refusals::{self, Refusals};
use ca::UnixTime;
use ca::rotation::LeafReport;
use identity::{Caller, Clock, Metrics, Proof, WorkloadIndex, WorkloadKey, WorkloadKeys};
use model::WorkloadId;
use proto::resource::{Body, Needs, Resource, ResourceSet, ResourceType, Snapshot};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use xds::PeerInfo;
use xds::session::Event;

/// The name of the secret with the workload's certificate and key.
const WORKLOAD_CERTIFICATE: &str = "default";
/// After how long it is tried again to make a key.
const RETRY: Duration = Duration::from_secs(1);
/// The longest sleep: the clock of the system may jump, and that of sleeps does not.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// What secrets on streams are made of.
#[derive(Clone)]
pub(crate) struct Secrets {
    pub(super) held: watch::Receiver<Option<Held>>,
    pub(super) keys: WorkloadKeys,
    pub(super) index: Arc<dyn WorkloadIndex>,
    pub(super) permissions: Permissions,
    pub(super) proxies: Arc<Proxies>,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
}

/// What a stream is to serve besides.
pub(crate) struct Served {
    /// Everything.
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    /// What comes when it is asked for.
    pub(crate) on_demand: &'static [&'static str],
    /// Must be told what happens on the stream.
    pub(crate) observer: SecretObserver,
}

impl Secrets {
    /// Adds secrets to what `caller` is served: to `snapshots`, or to nothing else.
    pub(crate) fn serve(
        &self,
        caller: &Caller,
        peer: &PeerInfo,
        workload: &WorkloadId,
        snapshots: Option<watch::Receiver<Arc<Snapshot>>>,
    ) -> Served {
        let connection = peer.extensions.get::<serve::Peer>();
        let address = peer.address.map(|address| address.ip());
        let presented = connection.and_then(|peer| self.presented(peer));
        let tracker = self.proxies.enter(caller, address, workload, presented);
        let has_key = self.may_have_key(caller);
        let (wants, wanted) = watch::channel(Wanted::default());
        let mut snapshots = snapshots;
        let first = snapshots.as_mut().map(|snapshots| snapshots.borrow_and_update().clone());
        let first = without_secrets(&first.unwrap_or_default());
        let (sender, receiver) = watch::channel(first);
        let tracker = Arc::new(parking_lot::Mutex::new(tracker));
        let stream = Stream {
            secrets: self.clone(),
            caller: caller.clone(),
            snapshots,
            permitted: Permitted::Unasked,
            wanted,
            tracker: tracker.clone(),
            sender,
            drain: connection.map(serve::Peer::draining),
            has_key,
            key: None,
            refusals: Refusals::default(),
        };
        tokio::spawn(stream.run());
        let on_demand: &[_] = match has_key {
            true => &[WORKLOAD_CERTIFICATE, WORKLOAD_ROOTS],
            false => &[WORKLOAD_ROOTS],
        };
        Served { snapshots: receiver, on_demand, observer: SecretObserver { wants, tracker } }
    }

    /// A key of weftd's making comes with a new certificate, so it takes what the certificate service asks for. A
    /// stolen certificate would be good for ever otherwise.
    fn may_have_key(&self, caller: &Caller) -> bool {
        match caller.proof {
            Proof::Token => true,
            Proof::Certificate => self.index.is_machine(&caller.id),
        }
    }

    /// Returns which certificate a client presents, and which root it leads to.
    fn presented(&self, peer: &serve::Peer) -> Option<Presented> {
        let chain = peer.certificates();
        let (serial, not_after) = identity::serial_and_end(chain.first()?)?;
        let now = (self.clock)();
        let held = self.held.borrow().clone()?;
        let root = match &*held.by_root {
            // It is not trusted for another.
            [(only, _)] => Some(*only),
            several => several.iter().find(|(_, trust)| trust.takes(chain, now)).map(|(root, _)| *root),
        };
        let report = root.map(|root| LeafReport { root, not_after: UnixTime::from(not_after) });
        Some(Presented { serial, report })
    }
}

/// Which secrets the client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// Its own.
    key: bool,
    roots: bool,
    /// Those of Kubernetes.
    named: Arc<BTreeSet<Arc<str>>>,
}

/// Learns from a session what its client wants and has.
pub(crate) struct SecretObserver {
    wants: watch::Sender<Wanted>,
    tracker: Arc<parking_lot::Mutex<Tracker>>,
}

impl SecretObserver {
    /// Takes an event of the session.
    pub(crate) fn observe(&mut self, event: &Event) {
        match event {
            Event::Subscribed { kind: ResourceType::Secret, added, removed, .. } => {
                let changed = |before: bool, name: &str| {
                    let is = |names: &[Arc<str>]| names.iter().any(|known| **known == *name);
                    (before || is(added)) && !is(removed)
                };
                let mut wanted = self.wants.borrow().clone();
                wanted.key = changed(wanted.key, WORKLOAD_CERTIFICATE);
                wanted.roots = changed(wanted.roots, WORKLOAD_ROOTS);
                let named = Arc::make_mut(&mut wanted.named);
                named.retain(|name| !removed.contains(name));
                named.extend(added.iter().filter(|name| refusals::is_judged(name)).cloned());
                self.tracker.lock().asks_for_roots(wanted.roots);
                self.wants.send_if_modified(|known| {
                    let is_news = *known != wanted;
                    *known = wanted;
                    is_news
                });
            }
            Event::Acked { kind: ResourceType::Secret, changes, .. } => {
                if let Some(Some(roots)) = changes.get(WORKLOAD_ROOTS) {
                    self.tracker.lock().acked(roots.version());
                }
            }
            _ => {}
        }
    }
}

/// A key and when it is replaced.
struct Key {
    made: WorkloadKey,
    resource: Arc<Resource>,
    renew_at: SystemTime,
}

/// Whether the caller may have Kubernetes Secrets.
enum Permitted {
    /// There were none yet.
    Unasked,
    Always,
    /// What the API server says, once it has.
    Asked(watch::Receiver<Option<bool>>),
}

struct Stream {
    secrets: Secrets,
    caller: Caller,
    /// What the engine compiles; nothing if the stream is about secrets alone.
    snapshots: Option<watch::Receiver<Arc<Snapshot>>>,
    permitted: Permitted,
    wanted: watch::Receiver<Wanted>,
    tracker: Arc<parking_lot::Mutex<Tracker>>,
    sender: watch::Sender<Arc<Snapshot>>,
    drain: Option<CancellationToken>,
    has_key: bool,
    key: Option<Key>,
    refusals: Refusals,
}

impl Stream {
    async fn run(mut self) {
        let mut held = self.secrets.held.clone();
        let mut failed = false;
        // Certificates are good for all of their last second.
        let expires = self.caller.expires + Duration::from_secs(1);
        loop {
            let now = (self.secrets.clock)();
            if expires <= now {
                return self.end().await;
            }
            let wanted = self.wanted.borrow_and_update().clone();
            let current = held.borrow_and_update().clone();
            let made = self.keep_key(wanted.key, current.as_ref()).await;
            if let Err(error) = &made
                && !std::mem::replace(&mut failed, true)
            {
                warn!(caller = %self.caller.id, %error, "no key for a client without an agent; trying on");
            }
            failed &= made.is_err();
            self.send(&wanted, current.as_ref());
            let until = |at: SystemTime| at.duration_since(now).unwrap_or_default().min(LONGEST_SLEEP);
            let renewal = match (&self.key, made.is_err()) {
                (_, true) => RETRY,
                (Some(key), false) => until(key.renew_at),
                (None, false) => LONGEST_SLEEP,
            };
            tokio::select! {
                ok = changed(self.snapshots.as_mut()) => if !ok { return },
                () = self.permitted.changed() => {}
                changed = self.wanted.changed() => if changed.is_err() { return },
                // The authority is there as long as weftd.
                changed = held.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(renewal) => {}
                () = tokio::time::sleep(until(expires)) => {}
                () = self.sender.closed() => return,
            }
        }
    }

    /// Makes a key if one is wanted and there is none, or none that will do for long.
    async fn keep_key(&mut self, wanted: bool, held: Option<&Held>) -> Result<(), identity::KeyError> {
        if !wanted || !self.has_key {
            self.key = None;
            return Ok(());
        }
        let now = (self.secrets.clock)();
        let signer = held.map(|held| held.authority.material().root());
        let is_good = |key: &Key| now < key.renew_at && Some(key.made.issued.root()) == signer;
        if self.key.as_ref().is_some_and(is_good) {
            return Ok(());
        }
        let made = self.secrets.keys.make(WORKLOAD_CERTIFICATE, &self.caller.id).await?;
        let body = Body::Whole(made.secret.clone());
        let resource =
            Arc::new(Resource::new(ResourceType::Secret, WORKLOAD_CERTIFICATE, body, Needs::default()));
        let until = SystemTime::from(made.issued.not_after());
        let renew_at = now + until.duration_since(now).unwrap_or_default() / 2;
        self.key = Some(Key { made, resource, renew_at });
        Ok(())
    }

    fn send(&mut self, wanted: &Wanted, held: Option<&Held>) {
        let base = self.snapshots.as_mut().map(|snapshots| snapshots.borrow_and_update().clone());
        let base = base.unwrap_or_default();
        if !base.secrets.is_empty() && matches!(self.permitted, Permitted::Unasked) {
            let asked = self.secrets.permissions.of(&self.caller.id);
            self.permitted = asked.map_or(Permitted::Always, Permitted::Asked);
        }
        let permitted = match &mut self.permitted {
            Permitted::Unasked => None,
            Permitted::Always => Some(true),
            Permitted::Asked(permitted) => *permitted.borrow_and_update(),
        };
        self.refusals.look(&self.caller.id, &self.secrets.metrics, &wanted.named, &base.secrets, permitted);
        let mut own = Vec::with_capacity(2);
        if wanted.roots
            && let Some(held) = held
        {
            self.tracker.lock().sends(held.authority.bundle().hash());
            own.push(held.roots.clone());
        }
        own.extend(self.key.as_ref().map(|key| key.resource.clone()));
        let stripped = if permitted == Some(true) { base } else { without_secrets(&base) };
        let snapshot = match own.is_empty() {
            true => stripped,
            false => {
                let mut snapshot = Snapshot::clone(&stripped);
                snapshot.secrets.extend(own.into_iter().map(|secret| (secret.name().clone(), secret)));
                Arc::new(snapshot)
            }
        };
        self.sender.send_if_modified(|known| {
            let is_news = !Arc::ptr_eq(known, &snapshot);
            *known = snapshot;
            is_news
        });
    }

    /// Ends what rests on a proof that has ended: the whole connection, since its next stream would bring the same.
    async fn end(self) {
        info!(caller = %self.caller.id, "the proof of identity has expired: the client is told to connect again");
        if let Some(drain) = &self.drain {
            drain.cancel();
            // The end of snapshots would end the stream with another word.
            self.sender.closed().await;
        }
    }
}

impl Permitted {
    /// Waits for another answer; for ever if there will be none.
    async fn changed(&mut self) {
        if let Self::Asked(permitted) = self
            && permitted.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

/// Waits for a change; for ever if there is nothing that could change. Returns false if there will be none any more.
async fn changed<T>(receiver: Option<&mut watch::Receiver<T>>) -> bool {
    match receiver {
        Some(receiver) => receiver.changed().await.is_ok(),
        None => std::future::pending().await,
    }
}

/// Returns a snapshot without secrets. Whom to trust is none.
pub(crate) fn without_secrets(snapshot: &Arc<Snapshot>) -> Arc<Snapshot> {
    if snapshot.secrets.keys().all(|name| compile::secret::is_public(name)) {
        return snapshot.clone();
    }
    let public = snapshot.secrets.iter().filter(|(name, _)| compile::secret::is_public(name));
    let secrets: ResourceSet = public.map(|(name, secret)| (name.clone(), secret.clone())).collect();
    Arc::new(Snapshot { secrets, ..Snapshot::clone(snapshot) })
}

#[cfg(test)]
mod tests;
