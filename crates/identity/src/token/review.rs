//! Asking the API server about a token, where nothing else can tell.

use super::claims::{Binding, parse_username};
use crate::caller::{AuthError, Pod, Rejection};
use crate::metrics::Metrics;
use futures::future::BoxFuture;
use model::Str;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// How many reviews may be under way.
const AT_ONCE: usize = 16;
/// How many may be asked for in a second, on average.
const PER_SECOND: f64 = 50.0;
/// How many may be asked for before the average counts.
const BURST: f64 = 100.0;
/// How long a review may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What the API server says about a token: the status of a TokenReview.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Review {
    /// Whether it is a good token of somebody.
    pub authenticated: bool,
    /// Whose token it is.
    pub username: String,
    /// The unique id of its service account.
    pub uid: String,
    /// Whom it is meant for, of those that were asked for.
    pub audiences: Vec<String>,
    /// The pod that it is bound to.
    pub pod: Option<Pod>,
    /// The node that it was issued for.
    pub node: Option<Str>,
}

/// The API server cannot be asked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ReviewError(pub String);

/// Asks the API server about tokens.
pub trait TokenReviewer: Send + Sync + 'static {
    /// Returns what the API server says about `token`, which is to be meant for one of `audiences`.
    fn review<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Review, ReviewError>>;
}

/// Asks, but not too often: the API server has other work, and everybody can make tokens that have to be asked about.
pub(crate) struct Reviews {
    reviewer: Option<Arc<dyn TokenReviewer>>,
    audiences: Vec<String>,
    places: Semaphore,
    allowance: parking_lot::Mutex<Allowance>,
    metrics: Metrics,
}

/// What a review found.
#[derive(Clone, Debug)]
pub(crate) struct Reviewed {
    pub(crate) binding: Binding,
    pub(crate) node: Option<Str>,
}

impl Reviews {
    pub(crate) fn new(
        reviewer: Option<Arc<dyn TokenReviewer>>,
        audiences: Vec<String>,
        metrics: Metrics,
    ) -> Self {
        let allowance = parking_lot::Mutex::new(Allowance { left: BURST, at: Instant::now() });
        Self { reviewer, audiences, places: Semaphore::new(AT_ONCE), allowance, metrics }
    }

    pub(crate) async fn ask(&self, token: &str) -> Result<Reviewed, AuthError> {
        let Some(reviewer) = &self.reviewer else { return Err(Rejection::Review.into()) };
        if !self.allowance.lock().take(Instant::now()) {
            self.metrics.reviewed("shed");
            return Err(AuthError::Unavailable("too many tokens to ask the API server about"));
        }
        let asked = tokio::time::timeout(TIMEOUT, async {
            // Never closed; if it were, asking without a place does no harm.
            let _place = self.places.acquire().await;
            reviewer.review(token, &self.audiences).await
        });
        match asked.await {
            Ok(Ok(review)) => {
                let result = self.judge(review);
                self.metrics.reviewed(if result.is_ok() { "confirmed" } else { "denied" });
                Ok(result?)
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot ask the API server about a token");
                self.metrics.reviewed("failed");
                Err(AuthError::Unavailable("the API server does not answer"))
            }
            Err(_elapsed) => {
                self.metrics.reviewed("timeout");
                Err(AuthError::Unavailable("the API server does not answer in time"))
            }
        }
    }

    fn judge(&self, review: Review) -> Result<Reviewed, Rejection> {
        if !review.authenticated {
            return Err(Rejection::Review);
        }
        // An API server that knows nothing of audiences confirms tokens for anybody and answers with none.
        if !review.audiences.iter().any(|audience| self.audiences.contains(audience)) {
            return Err(Rejection::Audience);
        }
        let (namespace, account) = parse_username(&review.username).ok_or(Rejection::Subject)?;
        let binding = Binding {
            namespace: namespace.into(),
            service_account: account.into(),
            service_account_uid: (!review.uid.is_empty()).then(|| review.uid.as_str().into()),
            pod: review.pod,
        };
        Ok(Reviewed { binding, node: review.node })
    }
}

/// How many reviews may be asked for now.
struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    fn take(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * PER_SECOND;
        self.left = (self.left + earned).min(BURST);
        self.at = now;
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}
