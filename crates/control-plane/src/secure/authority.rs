//! What certificates are signed with: followed, and replaced when everybody is ready for it.

use super::proxies::Proxies;
use super::replicas::Replicas;
use super::rotation::{self, Change, Decision, Roots, State, decide};
use super::store::{Documents, Files, Store};
use anyhow::{Context as _, Result};
use ca::rotation::{Evidence, Progress, Replica, ReplicaReport, Settings, Together, together};
use ca::{Authority, CaCertificate, Fingerprint, Loaded, Policy, Rotation, TrustBundle, UnixTime};
use identity::{Clock, Metrics, Trust, roots_secret};
use proto::resource::{Body, Needs, Resource, ResourceType};
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject as _;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// How often a directory is looked at: a mounted Secret changes by links, whose notices differ by file system. And how
/// often anything is while a root is being replaced, or while there is no authority at all.
const POLL_SOON: Duration = Duration::from_secs(2);
/// How often Secrets are looked at.
const POLL_SECRET: Duration = Duration::from_secs(30);
/// For how long another replica may act by what was replaced: it looks at its Secrets once in that time.
const SECRET_LAG: Duration = Duration::from_secs(60);
/// How often other replicas are told what is known here, while a root is being replaced.
const TELL_AGAIN: Duration = Duration::from_secs(5);
/// Times have no fractions.
const DIRECTORY_LAG: Duration = Duration::from_secs(1);

/// The name of the secret with the roots.
pub(crate) const WORKLOAD_ROOTS: &str = "ROOTCA";

/// An authority, whose certificates are not good any more, and what goes with it.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) authority: Authority,
    pub(crate) revocations: Arc<[CertificateRevocationListDer<'static>]>,
    /// The roots as a secret.
    pub(crate) roots: Arc<Resource>,
    /// What takes the certificates of each root alone.
    pub(crate) by_root: Arc<[(Fingerprint, Trust)]>,
}

/// Keeps `held` up to date.
pub(super) struct Keeper {
    pub(super) store: Store,
    pub(super) policy: Policy,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) proxies: Arc<Proxies>,
    /// Where replicas tell each other what they know; nothing if there is only one.
    pub(super) replicas: Option<Replicas>,
    /// weftd is about to end.
    pub(super) stopping: CancellationToken,
    pub(super) held: watch::Sender<Option<Held>>,
    /// How far a rotation is, for people.
    pub(super) progress: watch::Sender<String>,
}

/// What was taken in last.
#[derive(Default)]
struct Known {
    documents: Option<Documents>,
    /// A rotation is under way.
    is_rotating: bool,
    problem: Option<String>,
    /// What is wrong with the authority that is to take over.
    bad_next: Option<String>,
    read_at: Option<Instant>,
    /// What was told to other replicas last, and when.
    told: Option<(ReplicaReport, Instant)>,
    /// Why other replicas are not heard of.
    deaf: Option<String>,
    /// Whether there are others.
    has_others: bool,
    /// The generation of the rotation that this replica acts by, and how long certificates live.
    generation: u64,
    lifetime: Duration,
}

impl Keeper {
    /// Goes on for as long as the future lives. What cannot be used changes nothing.
    pub(super) async fn keep(self) {
        let mut known = Known::default();
        loop {
            if let Err(failure) = self.look(&mut known).await {
                self.report(&mut known.problem, &failure);
            }
            self.tell(&mut known, false).await;
            self.stop_signing_blindly(&known);
            let has_one = self.held.borrow().is_some();
            let pause = match self.store {
                Store::Secret { .. } if has_one && !known.is_rotating => POLL_SECRET,
                _ => POLL_SOON,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stopping.cancelled() => {
                    self.tell(&mut known, true).await;
                    return std::future::pending().await;
                }
            }
        }
    }

    async fn look(&self, known: &mut Known) -> Result<()> {
        let documents = self.store.read(&self.policy.trust_domain, &self.clock).await?;
        known.read_at = Some(Instant::now());
        let is_news = known.documents.as_ref() != Some(&documents);
        // A chain that is not valid yet may be so soon, without any change to it.
        let has_none = self.held.borrow().is_none();
        if is_news || known.is_rotating || has_none || self.longest_is_news(&documents) {
            let taken = self.take_in(&documents, is_news || has_none, known).await;
            // Also what is bad: it is complained about once, and looked at again when it changes.
            known.documents = Some(documents);
            taken?;
            known.problem = None;
        }
        self.warn_of_age(&mut known.problem);
        Ok(())
    }

    fn longest_is_news(&self, documents: &Documents) -> bool {
        let kept = State::read(documents).map_or(u64::MAX, |(state, _)| state.longest_ttl_seconds);
        let longest = self.proxies.longest_ttl();
        longest > State::default().leaf_lifetime(self.policy.default_ttl, self.policy.max_ttl)
            && longest.as_secs() > kept
    }

    async fn take_in(&self, documents: &Documents, is_news: bool, known: &mut Known) -> Result<()> {
        let now = UnixTime::from((self.clock)());
        let current = Side::load(&documents.current, now)?;
        let (state, rotation) = State::read(documents)?;
        let next = self.load_next(documents, rotation.as_ref(), &current, known, now)?;

        let lifetime = state.leaf_lifetime(self.policy.default_ttl, self.policy.max_ttl);
        let lifetime = lifetime.max(self.proxies.longest_ttl());
        let settings = rotation::settings(lifetime, self.lag());
        known.lifetime = lifetime;
        let all = self.together(rotation.as_ref(), &settings, known, now).await;
        let evidence = Evidence {
            proxies: &all.proxies,
            complete_since: all.complete_since,
            bundles: &all.bundles,
            replicas: &all.replicas,
        };
        let roots = Roots { current: &current.root, next: next.as_ref().map(|side| &side.root) };
        let order = documents.order.as_deref();
        let declined = state.declined.as_deref();
        let decision = decide(rotation.as_ref(), declined, &roots, order, &evidence, &settings, now)?;

        let mut in_force = rotation;
        let mut changed = is_news;
        match decision {
            Decision::Wait(progress) => self.show(progress.as_deref(), in_force.as_ref()),
            Decision::Refuse(reason) => {
                error!(reason, order, "the order about the root cannot be carried out");
                self.store.drop_order(documents).await?;
            }
            Decision::Change(change) => {
                let Change { rotation, why, declined } = *change;
                // Kept before anybody acts on it: whoever dies now finds what to do.
                let text = state.with(Some(&rotation), declined, lifetime)?;
                if !self.store.save(documents, &text).await? {
                    return Ok(());
                }
                info!(phase = %rotation.phase(), signer = %rotation.signer(), why, "the root is being replaced");
                self.progress.send_replace(format!("{}\n", rotation.phase()));
                in_force = Some(rotation);
                changed = true;
            }
        }
        if in_force.is_none() && self.longest_is_news(documents) {
            let text = state.with(None, state.declined.clone(), self.proxies.longest_ttl())?;
            self.store.save(documents, &text).await?;
        }
        known.is_rotating =
            in_force.as_ref().is_some_and(|rotation| rotation.phase() != ca::rotation::Phase::Stable);
        if changed {
            self.act(current, next, in_force.as_ref(), now)?;
        }
        // From here on, which others may rely on.
        known.generation = in_force.as_ref().map_or(0, Rotation::generation);
        Ok(())
    }

    /// Returns the authority that is to take over. While none has begun to, one that cannot be used is only reported: it
    /// must not be in the way of the one that signs.
    fn load_next(
        &self,
        documents: &Documents,
        rotation: Option<&Rotation>,
        current: &Side,
        known: &mut Known,
        now: UnixTime,
    ) -> Result<Option<Side>> {
        let next = documents.next.as_ref().map(|files| Side::load(files, now)).transpose();
        let is_needed = rotation.is_some_and(|rotation| {
            rotation.phase() != ca::rotation::Phase::Stable || rotation.signer() != current.root.fingerprint()
        });
        match next.context("the next authority") {
            Err(failure) if !is_needed => {
                let text = format!("{failure:#}");
                if known.bad_next.as_ref() != Some(&text) {
                    error!(reason = text, "the authority that is to take over cannot be used; it does not");
                    known.bad_next = Some(text);
                }
                Ok(None)
            }
            Err(failure) => Err(failure),
            Ok(next) => {
                known.bad_next = None;
                Ok(next)
            }
        }
    }

    /// Returns what is known here and what other replicas have written.
    async fn together(
        &self,
        rotation: Option<&Rotation>,
        settings: &Settings,
        known: &mut Known,
        now: UnixTime,
    ) -> Together {
        let (seen, log) = self.proxies.reports(settings.leaf_lifetime);
        let mut others = BTreeMap::new();
        let mut unheard = None;
        if let Some(replicas) = &self.replicas {
            match replicas.others().await {
                Ok(found) => {
                    known.deaf = None;
                    known.has_others = !found.is_empty();
                    replicas.tidy(&found, settings, now).await;
                    others = found;
                }
                Err(error) => {
                    let reason = format!("{error:#}");
                    if known.deaf.as_ref() != Some(&reason) {
                        error!(
                            reason,
                            "what other replicas know cannot be read: no root is replaced meanwhile"
                        );
                    }
                    known.deaf = Some(reason);
                    // Somebody may be there who is in the way.
                    unheard =
                        Some(Replica { name: "(any other)".into(), written: now, generation: u64::MAX });
                }
            }
        }
        let longest = others.values().map(|report| report.longest_ttl_seconds).max().unwrap_or_default();
        self.proxies.note_ttl(Duration::from_secs(longest));
        let mut all = together(seen, self.proxies.since(), &log, &others, settings, now);
        all.replicas.extend(unheard.filter(|_| rotation.is_some()));
        all
    }

    /// Tells other replicas what is known here: everything while a root is being replaced, else only that this one is
    /// there.
    async fn tell(&self, known: &mut Known, has_left: bool) {
        let Some(replicas) = &self.replicas else { return };
        let now = UnixTime::from((self.clock)());
        let longest = self.proxies.longest_ttl();
        let mut report = ReplicaReport::alive(now, self.proxies.since(), known.generation, longest);
        report.has_left = has_left;
        if known.is_rotating || has_left {
            let (seen, log) = self.proxies.reports(known.lifetime);
            report = report.with(&seen, &log);
        }
        let pause = if known.is_rotating { TELL_AGAIN } else { Duration::ZERO };
        let is_news = known.told.as_ref().is_none_or(|(told, at)| {
            at.elapsed() >= pause || told.generation != report.generation || has_left
        });
        if !is_news {
            return;
        }
        match replicas.write(&report).await {
            Ok(()) => known.told = Some((report, Instant::now())),
            Err(error) => {
                let reason = format!("{error:#}");
                if known.deaf.as_ref() != Some(&reason) {
                    error!(
                        reason,
                        "other replicas are not told what is known here: no root is replaced meanwhile"
                    );
                }
                known.deaf = Some(reason);
            }
        }
    }

    /// Signs and is trusted as `rotation` says.
    fn act(
        &self,
        current: Side,
        next: Option<Side>,
        rotation: Option<&Rotation>,
        now: UnixTime,
    ) -> Result<()> {
        let signer = rotation::signer(rotation, current.root.fingerprint());
        let own = [Some(&current), next.as_ref()].into_iter().flatten().map(|side| side.root.fingerprint());
        let own: Vec<Fingerprint> = own.collect();
        let bundle = match rotation {
            None => current.loaded.roots.clone(),
            Some(rotation) => {
                let mut others = current.loaded.roots.clone();
                others = next.as_ref().map_or(others.clone(), |next| others.union(&next.loaded.roots));
                rotation.bundle(&own.iter().fold(others, |others, root| others.without(root)))
            }
        };
        let side = match next {
            Some(next) if next.root.fingerprint() == signer => next,
            _ => current,
        };
        let before = self.held.borrow().clone();
        let held = assemble(side.loaded, bundle, &self.policy, before.as_ref(), now)?;
        self.proxies.note_bundle(held.authority.bundle(), held.roots.version());
        self.announce(&held, before.is_some());
        self.held.send_replace(Some(held));
        Ok(())
    }

    fn lag(&self) -> Duration {
        match self.store {
            Store::Secret { .. } => SECRET_LAG,
            Store::Directory(_) | Store::Nowhere => DIRECTORY_LAG,
        }
    }

    /// Another replica may have gone on meanwhile: whoever cannot see that must not sign with what it knew.
    fn stop_signing_blindly(&self, known: &Known) {
        let blind = known.read_at.map_or(Duration::ZERO, |at| at.elapsed());
        // Others wait so long for one that does not know that there is something to know.
        let is_blind = blind >= SECRET_LAG && known.is_rotating
            || known.has_others && !known.lifetime.is_zero() && blind >= known.lifetime;
        if is_blind && matches!(self.store, Store::Secret { .. }) {
            let stopped = self.held.send_if_modified(|held| held.take().is_some());
            if stopped {
                error!(
                    "the root may be being replaced, and how far that is cannot be read: nothing is signed"
                );
            }
        }
    }

    fn show(&self, progress: Option<&Progress>, rotation: Option<&Rotation>) {
        let text = match (progress, rotation) {
            (Some(progress), _) => progress.to_string(),
            (None, Some(rotation)) => format!("{}, signed by {}", rotation.phase(), rotation.signer()),
            (None, None) => "no root was ever replaced".to_owned(),
        };
        let is_news = self.progress.send_if_modified(|known| {
            let text = format!("{text}\n");
            let is_news = *known != text;
            *known = text;
            is_news
        });
        if is_news && progress.is_some() {
            info!(progress = text, "the root is being replaced");
        }
    }

    /// Says once what is wrong.
    fn report(&self, problem: &mut Option<String>, failure: &anyhow::Error) {
        let text = format!("{failure:#}");
        if problem.as_ref() != Some(&text) {
            let has_one = self.held.borrow().is_some();
            let consequence =
                if has_one { "the one before stays in use" } else { "no certificates are issued" };
            error!(reason = text, "the certificate authority cannot be used; {consequence}");
            *problem = Some(text);
        }
    }

    fn announce(&self, held: &Held, replaced: bool) {
        let chain = held.authority.validity_of_chain();
        let roots = held.authority.bundle();
        let signing = roots.get(&held.authority.material().root());
        self.metrics.chain_expiry.set(chain.not_after.as_seconds());
        self.metrics.root_expiry.set(signing.map_or(0, |root| root.validity().not_after.as_seconds()));
        info!(
            root = %held.authority.material().root(), roots = roots.len(), until = %chain.not_after, replaced,
            "the certificate authority is ready",
        );
    }

    fn warn_of_age(&self, problem: &mut Option<String>) {
        let Some(chain) = self.held.borrow().as_ref().map(|held| held.authority.validity_of_chain()) else {
            return;
        };
        if ca::root::is_due(chain, UnixTime::from((self.clock)())) && problem.is_none() {
            let text = format!("its chain ends at {}", chain.not_after);
            warn!(reason = text, "the certificate authority should be replaced");
            *problem = Some(text);
        }
    }
}

/// An authority as its files say it, with something to sign with.
struct Side {
    loaded: Loaded,
    root: CaCertificate,
}

impl Side {
    fn load(files: &Files, now: UnixTime) -> Result<Self> {
        let loaded = ca::material::load(files, now)?;
        let material = loaded.material.as_ref().context("there are only roots, and nothing to sign with")?;
        let root = loaded.roots.get(&material.root()).context("its own root is not among its roots")?;
        let root = CaCertificate::clone(root);
        Ok(Self { loaded, root })
    }
}

pub(super) fn assemble(
    loaded: Loaded,
    bundle: TrustBundle,
    policy: &Policy,
    before: Option<&Held>,
    now: UnixTime,
) -> Result<Held> {
    for warning in &loaded.warnings {
        warn!(file = warning.file, "{}", warning.text);
    }
    let material = loaded.material.context("there are only roots, and nothing to sign with")?;
    let authority = Authority::new(material, bundle, policy.clone(), now)?;
    let revocations: Arc<[_]> = match loaded.revocations {
        None => Arc::default(),
        Some(Ok(lists)) => {
            let lists: Result<Vec<_>, _> =
                CertificateRevocationListDer::pem_slice_iter(lists.to_pem().as_bytes()).collect();
            lists.context("revocation lists that were read cannot be read again")?.into()
        }
        Some(Err(reason)) => {
            error!(%reason, "the revocation lists cannot be used; those before stay in use");
            before.map(|held| held.revocations.clone()).unwrap_or_default()
        }
    };
    let body = Body::Whole(roots_secret(WORKLOAD_ROOTS, authority.bundle()));
    let roots = Resource::new(ResourceType::Secret, WORKLOAD_ROOTS, body, Needs::default());
    let by_root: Result<Vec<_>, _> = authority
        .bundle()
        .iter()
        .map(|root| Ok((root.fingerprint(), Trust::new([root.der().clone()], Vec::new())?)))
        .collect::<Result<_, identity::TlsError>>();
    Ok(Held { authority, revocations, roots: Arc::new(roots), by_root: by_root?.into() })
}

#[cfg(test)]
mod tests;
