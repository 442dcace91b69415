//! From a token to a caller.

use super::cache::{Cache, Fingerprint, fingerprint};
use super::claims::{Binding, Claims};
use super::jws::Jws;
use super::keys::{KeyRing, KeySource, Verified};
use super::review::{Reviews, TokenReviewer};
use super::{Standing, WorkloadIndex};
use crate::caller::{AuthError, Authenticator, Caller, Clock, Credentials, Proof, Rejection};
use crate::metrics::Metrics;
use futures::future::BoxFuture;
use model::{SpiffeId, Str, TrustDomain};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How many tokens are remembered.
const REMEMBERED: usize = 50_000;
/// For how long what the API server said is believed. It remembers as long itself.
const BELIEVE_REVIEW: Duration = Duration::from_secs(10);
/// For how long a token that was rejected is not looked at again.
const REMEMBER_REJECTION: Duration = Duration::from_secs(10);

/// Whose tokens are taken, and who knows about them.
pub struct TokenConfig {
    /// The trust domain of the identities.
    pub trust_domain: TrustDomain,
    /// Whom tokens must be meant for: one of these. Istio's is `istio-ca`.
    pub audiences: Vec<String>,
    /// Where the keys come from; without it every token is asked about.
    pub keys: Option<Arc<dyn KeySource>>,
    /// Who is asked when nothing else can tell; without it such tokens are rejected.
    pub reviewer: Option<Arc<dyn TokenReviewer>>,
    /// What there is in the cluster.
    pub index: Arc<dyn WorkloadIndex>,
    /// What time it is.
    pub clock: Clock,
}

/// Takes tokens of service accounts.
pub struct TokenAuthenticator {
    trust_domain: TrustDomain,
    audiences: Vec<String>,
    keys: KeyRing,
    reviews: Reviews,
    index: Arc<dyn WorkloadIndex>,
    clock: Clock,
    /// Tokens whose signature and claims are good.
    verified: Cache<Arc<Known>>,
    /// Tokens that the API server vouched for a moment ago.
    confirmed: Cache<Arc<Known>>,
    rejected: Cache<Rejection>,
    metrics: Metrics,
}

/// What is known of a token.
struct Known {
    id: SpiffeId,
    binding: Binding,
    node: Option<Str>,
    expires: SystemTime,
}

impl Known {
    fn caller(&self) -> Caller {
        Caller {
            id: self.id.clone(),
            proof: Proof::Token,
            pod: self.binding.pod.clone(),
            node: self.node.clone(),
            expires: self.expires,
        }
    }
}

/// What verifying a token without the API server came to.
enum Offline {
    /// It is good, if what it is bound to is there.
    Good(Arc<Known>),
    /// Nothing can be said, except that it ends then.
    Undecided,
}

impl TokenAuthenticator {
    /// Makes an authenticator that has no keys yet: the first token has them fetched.
    pub fn new(config: TokenConfig, metrics: Metrics) -> Self {
        Self {
            trust_domain: config.trust_domain,
            keys: KeyRing::new(config.keys, metrics.clone()),
            reviews: Reviews::new(config.reviewer, config.audiences.clone(), metrics.clone()),
            audiences: config.audiences,
            index: config.index,
            clock: config.clock,
            verified: Cache::new(REMEMBERED),
            confirmed: Cache::new(REMEMBERED),
            rejected: Cache::new(REMEMBERED),
            metrics,
        }
    }

    async fn check(&self, token: &str) -> Result<Caller, AuthError> {
        let (now, key) = ((self.clock)(), fingerprint(token));
        if let Some(rejection) = self.rejected.get(&key, now) {
            return Err(rejection.into());
        }
        let offline = match self.verified.get(&key, now) {
            Some(known) => Offline::Good(known),
            None => self.verify(token, key, now).await?,
        };
        if let Offline::Good(known) = &offline
            && self.index.standing(&known.binding) == Standing::Good
        {
            self.metrics.tokens_offline.inc();
            return Ok(known.caller());
        }
        if let Some(known) = self.confirmed.get(&key, now) {
            return Ok(known.caller());
        }
        self.review(token, key, now, &offline).await
    }

    /// Verifies a token with the cluster's keys.
    async fn verify(&self, token: &str, key: Fingerprint, now: SystemTime) -> Result<Offline, AuthError> {
        let jws = Jws::parse(token)?;
        let (keys, payload) = match self.keys.verify(&jws).await {
            Ok(Verified::Signed(keys, payload)) => (keys, payload),
            Ok(Verified::NoKeys) => return Ok(Offline::Undecided),
            Err(rejection) => {
                // An unknown key may become known at any time; a signature that is wrong stays so.
                if rejection == Rejection::Signature {
                    self.rejected.insert(key, rejection, now + REMEMBER_REJECTION);
                }
                return Err(rejection.into());
            }
        };
        let claims = Claims::parse(&payload)?;
        claims.check(now, &self.audiences)?;
        let id = claims.id(&self.trust_domain)?;
        if claims.issuer != keys.issuer {
            // An API server may have had other names, and vouches for tokens of those. Its key has signed this one,
            // so it is not from just anybody.
            return Ok(Offline::Undecided);
        }
        let Claims { binding, node, expires, .. } = claims;
        let known = Arc::new(Known { id, binding, node, expires });
        self.verified.insert(key, known.clone(), expires);
        Ok(Offline::Good(known))
    }

    /// Lets the API server decide.
    async fn review(
        &self,
        token: &str,
        key: Fingerprint,
        now: SystemTime,
        offline: &Offline,
    ) -> Result<Caller, AuthError> {
        let reviewed = match self.reviews.ask(token).await {
            Ok(reviewed) => reviewed,
            Err(AuthError::Rejected(rejection)) => {
                self.rejected.insert(key, rejection, now + REMEMBER_REJECTION);
                return Err(rejection.into());
            }
            Err(error) => return Err(error),
        };
        let namespace = model::Namespace::new(reviewed.binding.namespace.clone());
        let id = SpiffeId::new(&self.trust_domain, &namespace, &reviewed.binding.service_account)
            .map_err(|_| Rejection::Subject)?;
        let expires = match offline {
            // Two who know the same token differently: one of them is wrong.
            Offline::Good(known) if known.id != id => return Err(Rejection::Subject.into()),
            Offline::Good(known) => known.expires,
            Offline::Undecided => now + BELIEVE_REVIEW,
        };
        let known = Arc::new(Known { id, binding: reviewed.binding, node: reviewed.node, expires });
        self.confirmed.insert(key, known.clone(), now + BELIEVE_REVIEW);
        Ok(known.caller())
    }
}

impl Authenticator for TokenAuthenticator {
    fn authenticate<'a>(
        &'a self,
        credentials: Credentials<'a>,
    ) -> BoxFuture<'a, Result<Option<Caller>, AuthError>> {
        Box::pin(async move {
            let Some(token) = credentials.token()? else { return Ok(None) };
            self.check(token).await.map(Some)
        })
    }
}
