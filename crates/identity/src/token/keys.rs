//! The keys that tokens are signed with: fetched when they are needed, and not more often than that.

use super::jws::{Jws, KeySet};
use crate::caller::Rejection;
use crate::metrics::Metrics;
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// At most one attempt to fetch keys in this time, whatever tokens come.
const MIN_INTERVAL: Duration = Duration::from_secs(10);
/// After this time keys are fetched again even if they have served: one may have been taken back.
const REFRESH: Duration = Duration::from_secs(300);
/// After this time without a fetch that succeeded they are not used any more.
const MAX_AGE: Duration = Duration::from_secs(12 * 3600);
/// How long a fetch may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The largest set that is read.
const MAX_BYTES: usize = 1 << 20;

/// What the issuer of tokens publishes.
#[derive(Clone, Debug)]
pub struct PublishedKeys {
    /// The `iss` of its tokens.
    pub issuer: String,
    /// A JSON Web Key Set.
    pub jwks: Bytes,
}

impl PublishedKeys {
    /// Checks that tokens can be verified with these.
    ///
    /// # Errors
    ///
    /// If this is no set of keys, or has none for signatures that are taken.
    pub fn check(&self) -> Result<(), KeySourceError> {
        parse(self).map(drop).map_err(KeySourceError)
    }
}

/// Keys cannot be fetched.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KeySourceError(pub String);

/// Fetches keys: from the API server that signs the tokens, never from a URL that a token names.
pub trait KeySource: Send + Sync + 'static {
    /// Fetches what is published now.
    fn fetch(&self) -> BoxFuture<'_, Result<PublishedKeys, KeySourceError>>;
}

/// Keys with their issuer.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) issuer: String,
    set: KeySet,
    fetched: Instant,
}

/// What came of verifying a token.
pub(crate) enum Verified {
    /// It was signed by one of these keys; the payload.
    Signed(Arc<Keys>, Vec<u8>),
    /// There are no keys to say.
    NoKeys,
}

/// The keys of a cluster, kept up to date.
pub(crate) struct KeyRing {
    source: Option<Arc<dyn KeySource>>,
    current: ArcSwapOption<Keys>,
    /// When keys were last asked for. Held during a fetch, so that there is only one.
    attempted: Mutex<Option<Instant>>,
    metrics: Metrics,
}

impl KeyRing {
    pub(crate) fn new(source: Option<Arc<dyn KeySource>>, metrics: Metrics) -> Self {
        Self { source, current: ArcSwapOption::empty(), attempted: Mutex::new(None), metrics }
    }

    /// Verifies the signature of `token`.
    pub(crate) async fn verify(&self, token: &Jws<'_>) -> Result<Verified, Rejection> {
        let id = token.key_id.as_deref();
        let now = Instant::now();
        let usable = |keys: &Arc<Keys>| now.duration_since(keys.fetched) < MAX_AGE;
        let mut keys = self.current.load_full().filter(usable);
        let has_key =
            |keys: &Option<Arc<Keys>>| keys.as_ref().is_some_and(|keys| keys.set.find(id).is_some());
        if !has_key(&keys) {
            // A key that is not there may be new.
            self.fetch(keys.as_ref().map(|keys| keys.fetched)).await;
            keys = self.current.load_full().filter(usable);
        } else if keys.as_ref().is_some_and(|keys| now.duration_since(keys.fetched) >= REFRESH)
            && let Ok(attempted) = self.attempted.try_lock()
        {
            // Only one of many callers waits for this, and for a key that it might do without.
            self.fetch_locked(attempted).await;
            keys = self.current.load_full().filter(usable);
        }
        let Some(keys) = keys else { return Ok(Verified::NoKeys) };
        let key = keys.set.find(id).ok_or(Rejection::UnknownKey)?;
        let payload = token.verify(key)?;
        Ok(Verified::Signed(keys, payload))
    }

    /// Fetches keys, unless somebody else has since `known`.
    async fn fetch(&self, known: Option<Instant>) {
        let attempted = self.attempted.lock().await;
        if self.current.load().as_ref().map(|keys| keys.fetched) != known {
            return;
        }
        self.fetch_locked(attempted).await;
    }

    async fn fetch_locked(&self, mut attempted: tokio::sync::MutexGuard<'_, Option<Instant>>) {
        let Some(source) = &self.source else { return };
        if attempted.is_some_and(|at| at.elapsed() < MIN_INTERVAL) {
            return;
        }
        *attempted = Some(Instant::now());
        let result = match tokio::time::timeout(TIMEOUT, source.fetch()).await {
            Ok(Ok(published)) => parse(&published),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_elapsed) => Err(format!("no answer in {TIMEOUT:?}")),
        };
        match result {
            Ok(keys) => {
                self.metrics.fetched("fetched");
                self.current.store(Some(Arc::new(keys)));
            }
            Err(reason) => {
                self.metrics.fetched("failed");
                tracing::warn!(reason, "cannot fetch the keys that tokens are signed with");
            }
        }
    }
}

fn parse(published: &PublishedKeys) -> Result<Keys, String> {
    if published.jwks.len() > MAX_BYTES {
        return Err(format!("{} bytes of keys: at most {MAX_BYTES} are read", published.jwks.len()));
    }
    let set = KeySet::parse(&published.jwks)?;
    Ok(Keys { issuer: published.issuer.clone(), set, fetched: Instant::now() })
}
