//! What the agent knows: the workload's certificate, roots, and files that Envoy asked for, as the secrets that Envoy
//! is served; and which of them every Envoy has taken.

use crate::identity::Identity;
use crate::names;
use crate::roots::Sources;
use crate::sds::board::{Board, Progress, SubscriberId};
use crate::sds::secret::Secret;
use ca::TrustBundle;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::watch;

/// The secrets, shared by all parts of the agent.
#[derive(Debug)]
pub struct Store {
    inner: Mutex<Inner>,
    /// Counts changes: of secrets, and of what Envoy has taken.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    identity: Option<Arc<Identity>>,
    sources: Sources,
    secrets: BTreeMap<String, Secret>,
    /// Secrets in files that somebody asked for.
    wanted: BTreeSet<String>,
    board: Board,
}

impl Store {
    /// Returns a store without secrets. With `mounted_only` nobody but the mounted file says who the control plane is.
    pub fn new(mounted_only: bool) -> Self {
        let inner = Inner {
            identity: None,
            sources: Sources::new(mounted_only),
            secrets: BTreeMap::new(),
            wanted: BTreeSet::new(),
            board: Board::default(),
        };
        Self { inner: Mutex::new(inner), changes: watch::channel(0).0 }
    }

    /// Returns a receiver that is told of changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Returns the workload's certificate.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.inner.lock().identity.clone()
    }

    /// Takes a new certificate of the workload.
    pub fn set_identity(&self, identity: Identity) {
        let secret = Secret::certificate(names::WORKLOAD_CERTIFICATE, &identity);
        let mut inner = self.inner.lock();
        inner.identity = Some(Arc::new(identity));
        inner.secrets.insert(names::WORKLOAD_CERTIFICATE.to_owned(), secret);
        drop(inner);
        self.changed();
    }

    /// Returns the roots of workload certificates.
    pub fn workload_roots(&self) -> Option<TrustBundle> {
        self.inner.lock().sources.workload().cloned()
    }

    /// Takes the roots that came with a certificate.
    pub fn set_authority_roots(&self, roots: TrustBundle) {
        self.update_roots(|sources| sources.set_authority(roots));
    }

    /// Takes the roots that the control plane sent on the agent's own stream.
    pub fn set_stream_roots(&self, roots: TrustBundle) {
        self.update_roots(|sources| sources.set_stream(roots));
    }

    /// Notes that the agent's own stream has ended.
    pub fn stream_ended(&self) {
        self.update_roots(Sources::stream_ended);
    }

    /// Takes the mounted roots of the control plane.
    pub fn set_mounted_roots(&self, roots: TrustBundle) {
        self.update_roots(|sources| sources.set_mounted(roots));
    }

    fn update_roots(&self, update: impl FnOnce(&mut Sources)) {
        let mut inner = self.inner.lock();
        update(&mut inner.sources);
        let roots = [
            (names::WORKLOAD_ROOTS, inner.sources.workload().map(TrustBundle::to_pem)),
            (names::CONTROL_PLANE_ROOTS, inner.sources.control_plane().map(|bundle| bundle.to_pem())),
        ];
        let mut changed = false;
        for (name, pem) in roots {
            let Some(secret) = pem.map(|pem| Secret::roots(name, pem.as_bytes())) else { continue };
            if inner.secrets.get(name).is_none_or(|known| known.version != secret.version) {
                inner.secrets.insert(name.to_owned(), secret);
                changed = true;
            }
        }
        drop(inner);
        if changed {
            self.changed();
        }
    }

    /// Returns a secret, if it is there (yet).
    pub fn secret(&self, name: &str) -> Option<Secret> {
        self.inner.lock().secrets.get(name).cloned()
    }

    /// Returns the names of secrets in files that somebody asked for.
    pub fn wanted(&self) -> Vec<String> {
        self.inner.lock().wanted.iter().cloned().collect()
    }

    /// Takes the content of files.
    pub fn set_file(&self, name: &str, secret: Secret) {
        let mut inner = self.inner.lock();
        if inner.secrets.get(name).is_some_and(|known| known.version == secret.version) {
            return;
        }
        inner.secrets.insert(name.to_owned(), secret);
        drop(inner);
        self.changed();
    }

    /// Lets somebody in who asks for secrets.
    pub fn join(&self) -> SubscriberId {
        self.inner.lock().board.join()
    }

    /// Notes that somebody asks for a secret.
    pub fn subscribed(&self, id: SubscriberId, name: &str) {
        let mut inner = self.inner.lock();
        inner.board.subscribe(id, name);
        if !inner.wanted.contains(name)
            && (name.starts_with(names::FILE_CERTIFICATE) || name.starts_with(names::FILE_ROOTS))
        {
            inner.wanted.insert(name.to_owned());
            drop(inner);
            self.changed();
        }
    }

    /// Notes that somebody does not ask for a secret any more.
    pub fn unsubscribed(&self, id: SubscriberId, name: &str) {
        self.inner.lock().board.unsubscribe(id, name);
        self.changed();
    }

    /// Notes that somebody has taken a version of a secret.
    pub fn acknowledged(&self, id: SubscriberId, name: &str, version: &str) {
        self.inner.lock().board.acknowledge(id, name, version);
        self.changed();
    }

    /// Notes that somebody has refused a version of a secret.
    pub fn refused(&self, id: SubscriberId, name: &str, version: &str, reason: &str) {
        self.inner.lock().board.refuse(id, name, version, reason);
        self.changed();
    }

    /// Notes that somebody has gone.
    pub fn leave(&self, id: SubscriberId) {
        self.inner.lock().board.leave(id);
        self.changed();
    }

    /// Returns whether everybody who asks for roots has taken those that are there now.
    pub fn roots_progress(&self) -> Progress {
        let inner = self.inner.lock();
        let of = |name: &str| match inner.secrets.get(name) {
            Some(secret) => inner.board.progress(name, &secret.version),
            None => Progress::Settled,
        };
        of(names::WORKLOAD_ROOTS).and(of(names::CONTROL_PLANE_ROOTS))
    }
}
