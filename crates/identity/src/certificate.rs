//! Identities proved by a certificate of ours.

use crate::caller::{AuthError, Authenticator, Caller, Clock, Credentials, Proof, Rejection};
use crate::tls::Trust;
use crate::token::WorkloadIndex;
use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use model::{SpiffeId, TrustDomain};
use rustls::pki_types::{CertificateDer, UnixTime};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The trust domain of the mesh, and those that are the same mesh by another name.
#[derive(Clone, Debug)]
pub struct TrustDomains {
    /// The one that we certify.
    pub own: TrustDomain,
    /// Names that it had, or has elsewhere.
    pub aliases: Vec<TrustDomain>,
}

impl TrustDomains {
    /// Returns whether identities of `domain` are of this mesh.
    pub fn contains(&self, domain: &TrustDomain) -> bool {
        self.own == *domain || self.aliases.contains(domain)
    }
}

/// What a certificate is to prove.
#[derive(Clone)]
pub enum Purpose {
    /// Who a proxy is.
    Identity,
    /// That a workload may have another certificate. Only those may that have no token: machines with a live
    /// WorkloadEntry. Anybody else could go on for ever with one stolen certificate.
    Renewal(Arc<dyn WorkloadIndex>),
}

/// Takes certificates of ours: verified against what is trusted now, at the time of now, with exactly one URI.
///
/// TLS has verified them when the connection was made. Since then an authority may have been taken out of the bundle,
/// a certificate may have been revoked or have expired, and connections live long.
pub struct CertificateAuthenticator {
    trust: Arc<ArcSwap<Trust>>,
    domains: TrustDomains,
    purpose: Purpose,
    clock: Clock,
}

impl CertificateAuthenticator {
    /// Makes an authenticator that trusts what is in `trust` at the time.
    pub fn new(trust: Arc<ArcSwap<Trust>>, domains: TrustDomains, purpose: Purpose, clock: Clock) -> Self {
        Self { trust, domains, purpose, clock }
    }

    fn check(&self, chain: &[CertificateDer<'static>]) -> Result<Option<Caller>, AuthError> {
        let Some((leaf, intermediates)) = chain.split_first() else { return Ok(None) };
        let now = (self.clock)();
        let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let verifier = self.trust.load();
        verifier
            .verifier()
            .verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(since))
            .map_err(|error| rejection_of(&error))?;
        let Identity { id, expires } = Identity::of(leaf)?;
        if !self.domains.contains(id.trust_domain()) {
            return Err(Rejection::TrustDomain.into());
        }
        if let Purpose::Renewal(index) = &self.purpose
            && !index.is_machine(&id)
        {
            return Err(Rejection::NotFresh.into());
        }
        Ok(Some(Caller { id, proof: Proof::Certificate, pod: None, node: None, expires }))
    }
}

fn rejection_of(error: &rustls::Error) -> Rejection {
    use rustls::{CertificateError as Problem, Error};
    match error {
        Error::InvalidCertificate(Problem::Expired | Problem::ExpiredContext { .. }) => Rejection::Expired,
        Error::InvalidCertificate(Problem::NotValidYet | Problem::NotValidYetContext { .. }) => {
            Rejection::NotYetValid
        }
        Error::InvalidCertificate(Problem::BadEncoding) => Rejection::Malformed,
        _ => Rejection::Untrusted,
    }
}

impl Authenticator for CertificateAuthenticator {
    fn authenticate<'a>(
        &'a self,
        credentials: Credentials<'a>,
    ) -> BoxFuture<'a, Result<Option<Caller>, AuthError>> {
        Box::pin(std::future::ready(self.check(credentials.certificates)))
    }
}

/// Returns the serial number of a certificate, and the last moment at which it is valid: nothing if it is none.
pub fn serial_and_end(certificate: &CertificateDer<'_>) -> Option<(Vec<u8>, SystemTime)> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    Some((parsed.raw_serial().to_vec(), UNIX_EPOCH + Duration::from_secs(seconds)))
}

/// What a certificate says.
struct Identity {
    id: SpiffeId,
    expires: SystemTime,
}

impl Identity {
    /// Reads a certificate whose signature is known to be good. The SPIFFE standard asks for exactly one URI.
    fn of(leaf: &CertificateDer<'_>) -> Result<Self, AuthError> {
        let malformed = |_| AuthError::from(Rejection::Malformed);
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| Rejection::Malformed)?;
        let names = parsed.subject_alternative_name().map_err(malformed)?.ok_or(Rejection::Subject)?;
        let mut uris = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let uri = uris.next().ok_or(Rejection::Subject)?;
        if uris.next().is_some() {
            return Err(Rejection::Subject.into());
        }
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Self {
            id: uri.parse().map_err(|_| Rejection::Subject)?,
            expires: UNIX_EPOCH + Duration::from_secs(seconds),
        })
    }
}
