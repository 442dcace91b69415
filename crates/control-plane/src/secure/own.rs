//! Who weftd itself is towards its replicas: a workload of its own mesh, with certificates that it makes for itself.

use super::authority::Held;
use anyhow::{Context as _, Result};
use ca::BundleHash;
use identity::{Clock, Identity};
use model::{Namespace, SpiffeId};
use parking_lot::Mutex;
use rustls::ClientConfig;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// How long a certificate is good. It is renewed when half of that is over.
const TTL: Duration = Duration::from_secs(3600);

/// The identity of weftd. Cloning shares it.
#[derive(Clone)]
pub(crate) struct OwnIdentity {
    pub(super) held: watch::Receiver<Option<Held>>,
    pub(super) clock: Clock,
    pub(super) namespace: Namespace,
    pub(super) account: String,
    pub(super) made: Arc<Mutex<Option<Made>>>,
}

/// A certificate, and what it rests on.
pub(super) struct Made {
    config: Arc<ClientConfig>,
    bundle: BundleHash,
    renew_at: SystemTime,
}

impl OwnIdentity {
    /// Returns who that is; nobody until there is an authority.
    pub(crate) fn id(&self) -> Option<SpiffeId> {
        let held = self.held.borrow();
        let domain = &held.as_ref()?.authority.policy().trust_domain;
        SpiffeId::new(domain, &self.namespace, &self.account).ok()
    }

    /// Returns the TLS of a client that proves it, and trusts servers of this mesh.
    ///
    /// # Errors
    ///
    /// If there is no authority, or it cannot make a certificate.
    pub(crate) fn client_config(&self) -> Result<Arc<ClientConfig>> {
        let id = self.id().context("there is no authority yet")?;
        let authority = {
            let held = self.held.borrow();
            held.as_ref().map(|held| held.authority.clone()).context("there is no authority yet")?
        };
        let (now, bundle) = ((self.clock)(), authority.bundle().hash());
        let mut made = self.made.lock();
        if let Some(made) = made.as_ref().filter(|made| made.bundle == bundle && now < made.renew_at) {
            return Ok(made.config.clone());
        }
        let identity = Identity::issue_workload(&authority, &id, Some(TTL), now)?;
        let roots = authority.bundle().iter().map(|root| root.der().clone());
        let config = Arc::new(identity.for_client(roots, &[b"h2"])?);
        *made = Some(Made { config: config.clone(), bundle, renew_at: identity.renew_at() });
        Ok(config)
    }
}
