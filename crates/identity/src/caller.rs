//! Callers, and how they prove who they are.

use futures::future::BoxFuture;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use model::{SpiffeId, Str};
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;
use tonic::Status;

/// What time it is. Injected, so that expiry can be tested.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Returns the clock of the system.
pub fn system_clock() -> Clock {
    Arc::new(SystemTime::now)
}

/// A caller whose identity is proved. In the extensions of every request that has passed the [`Gate`](crate::Gate).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Who it is.
    pub id: SpiffeId,
    /// How it proved that.
    pub proof: Proof,
    /// The pod that its token is bound to.
    pub pod: Option<Pod>,
    /// The node that its token was issued for.
    pub node: Option<Str>,
    /// When the proof ends.
    pub expires: SystemTime,
}

/// How a caller proved its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// By a token of its service account.
    Token,
    /// By a certificate of ours.
    Certificate,
}

/// A pod that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: Str,
    /// Its unique id.
    pub uid: Str,
}

/// What came with a request.
#[derive(Clone, Copy, Debug)]
pub struct Credentials<'a> {
    /// The address of the client.
    pub address: SocketAddr,
    /// The certificates of its connection, the leaf first. Verified by TLS when the connection was made.
    pub certificates: &'a [CertificateDer<'static>],
    /// The headers of the request.
    pub headers: &'a HeaderMap,
}

/// The longest token that is looked at. Those of Kubernetes have about one KiB.
const MAX_TOKEN: usize = 16 << 10;

impl<'a> Credentials<'a> {
    /// Returns the bearer token, if the request has one. Istio's own prefix is understood as well.
    pub(crate) fn token(&self) -> Result<Option<&'a str>, AuthError> {
        let malformed = || AuthError::Rejected(Rejection::Malformed);
        let mut values = self.headers.get_all(AUTHORIZATION).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() || value.len() > MAX_TOKEN {
            return Err(malformed());
        }
        let value = value.to_str().map_err(|_| malformed())?;
        let (scheme, token) = value.split_once(' ').ok_or_else(malformed)?;
        if !scheme.eq_ignore_ascii_case("bearer") && scheme != "Istio" {
            return Err(malformed());
        }
        let token = token.trim();
        if token.is_empty() {
            return Err(malformed());
        }
        Ok(Some(token))
    }
}

/// Knows one way to prove an identity.
pub trait Authenticator: Send + Sync + 'static {
    /// Returns who the caller is, or `None` if it brought nothing of the kind that this authenticator looks at.
    fn authenticate<'a>(
        &'a self,
        credentials: Credentials<'a>,
    ) -> BoxFuture<'a, Result<Option<Caller>, AuthError>>;
}

/// Asks each of `authenticators` in turn. The first that knows the caller decides; what others rejected does not
/// matter then. If none does, the first problem is returned.
pub async fn authenticate(
    authenticators: &[Arc<dyn Authenticator>],
    credentials: Credentials<'_>,
) -> Result<Caller, AuthError> {
    let mut problem = None;
    for authenticator in authenticators {
        match authenticator.authenticate(credentials).await {
            Ok(Some(caller)) => return Ok(caller),
            Ok(None) => {}
            Err(error) => {
                problem.get_or_insert(error);
            }
        }
    }
    Err(problem.unwrap_or(AuthError::Missing))
}

/// Why a caller is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// It brought nothing.
    #[error("no credentials")]
    Missing,
    /// What it brought proves nothing.
    #[error("{0}")]
    Rejected(Rejection),
    /// What it brought cannot be judged now. It may try again.
    #[error("cannot be judged now: {0}")]
    Unavailable(&'static str),
}

/// Why a token or a certificate proves nothing. Each is a label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Rejection {
    /// Not of the right form.
    #[error("malformed")]
    Malformed,
    /// Signed in a way that is not taken.
    #[error("signed by an algorithm that is not taken")]
    Algorithm,
    /// Signed by a key that the cluster does not publish.
    #[error("signed by an unknown key")]
    UnknownKey,
    /// Not signed by whom it says.
    #[error("the signature does not verify")]
    Signature,
    /// Issued by somebody else.
    #[error("of a foreign issuer")]
    Issuer,
    /// Meant for somebody else.
    #[error("not meant for us")]
    Audience,
    /// Too old.
    #[error("expired")]
    Expired,
    /// Not valid yet.
    #[error("not valid yet")]
    NotYetValid,
    /// Not of a service account, or contradicting itself.
    #[error("not of a service account")]
    Subject,
    /// The API server does not vouch for it.
    #[error("not confirmed by the API server")]
    Review,
    /// Not of our trust domain.
    #[error("of a foreign trust domain")]
    TrustDomain,
    /// Not from an authority that we trust now, or revoked.
    #[error("not issued by a trusted authority")]
    Untrusted,
    /// A certificate, where only a token counts.
    #[error("a certificate is not enough for this")]
    NotFresh,
}

impl Rejection {
    /// Returns the label of the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown-key",
            Self::Signature => "signature",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
            Self::Subject => "subject",
            Self::Review => "review",
            Self::TrustDomain => "trust-domain",
            Self::Untrusted => "untrusted",
            Self::NotFresh => "not-fresh",
        }
    }
}

impl From<Rejection> for AuthError {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl AuthError {
    /// Returns the label of the metric.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Rejected(rejection) => rejection.as_str(),
            Self::Unavailable(_) => "unavailable",
        }
    }
}

impl From<AuthError> for Status {
    /// Istio's words. What exactly is wrong with a credential is for logs and metrics, not for whoever tries them.
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Missing | AuthError::Rejected(_) => {
                Self::unauthenticated("request authenticate failure")
            }
            AuthError::Unavailable(_) => Self::unavailable("cannot authenticate now: try again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn token(values: &[&[u8]]) -> Result<Option<String>, AuthError> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        }
        let address = SocketAddr::from(([10, 0, 0, 1], 1));
        let credentials = Credentials { address, certificates: &[], headers: &headers };
        credentials.token().map(|token| token.map(str::to_owned))
    }

    #[test]
    fn tokens_are_found() {
        assert_eq!(token(&[]), Ok(None));
        assert_eq!(token(&[b"Bearer abc"]), Ok(Some("abc".to_owned())));
        assert_eq!(token(&[b"bearer  abc"]), Ok(Some("abc".to_owned())));
        assert_eq!(token(&[b"Istio abc"]), Ok(Some("abc".to_owned())));
    }

    #[test]
    fn other_headers_prove_nothing() {
        let long = ["Bearer ", &"a".repeat(1 << 20)].concat();
        for values in [
            &[b"".as_slice()][..],
            &[b"Bearer"],
            &[b"Bearer "],
            &[b"Basic YTpi"],
            &[b"Bearer \xff\xfe"],
            &[long.as_bytes()],
            &[b"Bearer a", b"Bearer b"],
        ] {
            assert_eq!(token(values), Err(AuthError::Rejected(Rejection::Malformed)));
        }
    }
}
