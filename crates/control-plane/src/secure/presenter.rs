//! The certificate of the webhooks' port. API servers are told by the `caBundle` of a webhook's configuration whom to trust.
//!
//! A certificate of a new root is presented only once every configuration has that root, and a root that was replaced
//! stays in the bundle for as long as another replica may still present a certificate of it. So no handshake fails,
//! whatever an API server hears of first.

use super::authority::Held;
use ca::{CaCertificate, Fingerprint, TrustBundle};
use controllers::Bundles;
use identity::{Clock, Identity, TlsError};
use rustls::ServerConfig;
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

/// How long to wait after a failure, and the least time between two renewals.
const RETRY: Duration = Duration::from_secs(10);

/// How patient it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// For how long another replica may present certificates of a root that was replaced.
    lag: Duration,
    /// How long API servers take until they act by what is in a configuration.
    settling: Duration,
    /// How long configurations that lack the new root hold up its certificate.
    patience: Duration,
}

impl Pace {
    /// Replicas look at their Secrets once in half of the lag.
    pub(super) const STANDARD: Self = Self {
        lag: Duration::from_secs(60),
        settling: Duration::from_secs(2),
        patience: Duration::from_secs(30),
    };
}

/// Keeps a certificate.
pub(super) struct Presenter {
    pub(super) held: watch::Receiver<Option<Held>>,
    pub(super) names: Vec<ServerName<'static>>,
    pub(super) clock: Clock,
    pub(super) pace: Pace,
    /// What configurations have.
    pub(super) bundles: watch::Receiver<Bundles>,
    /// What they should have.
    pub(super) wanted: watch::Sender<Option<Arc<str>>>,
    /// The roots of now.
    pub(super) roots: watch::Sender<Option<Arc<str>>>,
    /// What is presented.
    pub(super) tls: watch::Sender<Option<Arc<ServerConfig>>>,
}

/// What is presented, and what was.
#[derive(Default)]
struct Presented {
    root: Option<Arc<CaCertificate>>,
    renew_at: Option<SystemTime>,
    /// The bundle of now.
    bundle: TrustBundle,
    /// Roots that were in it, and when nobody presents certificates of theirs any more.
    retired: Vec<(Arc<CaCertificate>, Instant)>,
    /// Since when configurations lack the root that is to be presented, and since when none does.
    lacking_since: Option<Instant>,
    complete_since: Option<Instant>,
}

impl Presenter {
    /// Goes on for as long as the future lives.
    pub(super) async fn keep(mut self) {
        let mut presented = Presented::default();
        let mut is_news = true;
        loop {
            let held = {
                let newest = self.held.borrow_and_update();
                // It may have come with what ended the wait, or since.
                is_news |= newest.has_changed();
                newest.clone()
            };
            let bundles = self.bundles.borrow_and_update().clone();
            let mut pause = RETRY;
            if let Some(held) = held {
                let now = Instant::now();
                presented.retire(held.authority.bundle(), now + self.pace.lag, now);
                if presented.is_due(&held, is_news, (self.clock)())
                    && presented.may_present(&held, &bundles, &self.pace, now)
                {
                    match self.present(&mut presented, &held) {
                        Ok(()) => is_news = false,
                        Err(error) => {
                            error!(%error, "cannot renew the certificate of the webhooks; the one before stays in use");
                        }
                    }
                }
                publish(&self.wanted, &presented.wanted());
                publish(&self.roots, &presented.bundle);
                pause = presented.pause((self.clock)(), &self.pace, now);
            }
            tokio::select! {
                changed = self.held.changed() => match changed {
                    Ok(()) => is_news = true,
                    // Only when weftd ends.
                    Err(_) => return std::future::pending().await,
                },
                // Without anybody who looks there is nothing to wait for.
                Ok(()) = self.bundles.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn present(&self, presented: &mut Presented, held: &Held) -> Result<(), TlsError> {
        let identity = Identity::issue(&held.authority, &self.names, None, (self.clock)())?;
        let config = identity.for_anonymous_clients(&[b"h2", b"http/1.1"])?;
        self.tls.send_replace(Some(Arc::new(config)));
        let root = root_of(held);
        if let (Some(before), Some(now)) = (&presented.root, &root)
            && before.fingerprint() != now.fingerprint()
        {
            info!(root = %now.fingerprint(), "the certificate of the webhooks comes from another root now");
        }
        presented.root = root;
        presented.renew_at = Some(identity.renew_at());
        (presented.lacking_since, presented.complete_since) = (None, None);
        Ok(())
    }
}

fn publish(sender: &watch::Sender<Option<Arc<str>>>, bundle: &TrustBundle) {
    let pem: Arc<str> = bundle.to_pem().into();
    sender.send_if_modified(|known| {
        let is_news = known.as_ref() != Some(&pem);
        *known = Some(pem);
        is_news
    });
}

fn root_of(held: &Held) -> Option<Arc<CaCertificate>> {
    held.authority.bundle().get(&held.authority.material().root()).cloned()
}

impl Presented {
    /// Takes a new bundle in: roots that are not in it any more stay until then.
    fn retire(&mut self, bundle: &TrustBundle, until: Instant, now: Instant) {
        for root in self.bundle.iter().filter(|root| !bundle.contains(&root.fingerprint())) {
            self.retired.push((root.clone(), until));
        }
        self.bundle = bundle.clone();
        self.retired.retain(|(root, until)| *until > now && !bundle.contains(&root.fingerprint()));
    }

    /// Returns what configurations should have.
    fn wanted(&self) -> TrustBundle {
        let mut wanted = self.bundle.clone();
        for root in self.retired.iter().map(|(root, _)| root).chain(&self.root) {
            wanted.insert(root.clone());
        }
        wanted
    }

    fn is_from(&self, root: &Fingerprint) -> bool {
        self.root.as_ref().is_some_and(|current| current.fingerprint() == *root)
    }

    /// Returns whether it is time for another certificate.
    fn is_due(&self, held: &Held, is_news: bool, clock: SystemTime) -> bool {
        let is_old = self.renew_at.is_none_or(|at| clock >= at);
        is_news || is_old || !self.is_from(&held.authority.material().root())
    }

    /// Returns whether clients are ready for a certificate of now.
    fn may_present(&mut self, held: &Held, bundles: &Bundles, pace: &Pace, now: Instant) -> bool {
        let signer = held.authority.material().root();
        if self.root.is_none() || self.is_from(&signer) {
            return true;
        }
        // Where nobody looks, nobody would say so.
        let Some(bundles) = bundles else { return true };
        if bundles.iter().all(|bundle| trusts(bundle, &signer)) {
            let since = *self.complete_since.get_or_insert(now);
            return now.duration_since(since) >= pace.settling;
        }
        self.complete_since = None;
        let since = *self.lacking_since.get_or_insert(now);
        let is_over = now.duration_since(since) >= pace.patience;
        if is_over {
            warn!(
                "a webhook's configuration does not have the new root; the certificate is replaced all the same"
            );
        }
        is_over
    }

    /// Returns when to look again, although nothing happens.
    fn pause(&self, clock: SystemTime, pace: &Pace, now: Instant) -> Duration {
        let renewal = self.renew_at.map(|at| at.duration_since(clock).unwrap_or_default().max(RETRY));
        let retirement = self.retired.iter().map(|(_, until)| until.duration_since(now)).min();
        let patience = self.lacking_since.map(|since| (since + pace.patience).duration_since(now));
        let settled = self.complete_since.map(|since| (since + pace.settling).duration_since(now));
        let all = [renewal, retirement, patience, settled];
        // In steps, since the clock of the system may jump and this one does not.
        all.into_iter().flatten().min().unwrap_or(RETRY).min(Duration::from_secs(3600))
    }
}

fn trusts(bundle: &[u8], root: &Fingerprint) -> bool {
    TrustBundle::from_pem(bundle).is_ok_and(|bundle| bundle.contains(root))
}

#[cfg(test)]
mod tests;
