//! Roots of our own.

use crate::certificate::{CaCertificate, CertificateError};
use crate::issue::{self, Serial, Subject};
use crate::key::SigningKeyPair;
use crate::time::{UnixTime, Validity};
use model::TrustDomain;
use std::time::Duration;

/// How long a root of our own is valid: ten years.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// Returns a root certificate for `key`, valid for [`ROOT_LIFETIME`] from shortly before `now`.
///
/// Its organisation is the trust domain, and its only name the SPIFFE id of the domain. It is of the type of `key`:
/// ECDSA P-256 unless there is a reason for RSA.
pub fn self_signed(
    key: &SigningKeyPair,
    trust_domain: &TrustDomain,
    now: UnixTime,
    serial: Serial,
) -> Result<CaCertificate, RootError> {
    let validity = Validity { not_before: now.before(issue::BACKDATE), not_after: now.after(ROOT_LIFETIME) };
    let der = issue::root(key, trust_domain, validity, serial).map_err(RootError::Signing)?;
    Ok(CaCertificate::from_der(&der)?)
}

/// Returns whether a self-signed root should be replaced: a fifth of its life is left, or less.
pub fn is_due(validity: Validity, now: UnixTime) -> bool {
    now >= validity.not_after.before(validity.lifetime() / 5)
}

/// Why there is no new root.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The key did not sign.
    #[error("cannot sign the new root")]
    Signing(#[source] rcgen::Error),
    /// We would not take it ourselves.
    #[error("the new root is not usable")]
    Certificate(#[from] CertificateError),
}

impl Subject {
    /// Returns the name of a root: `O=TRUST_DOMAIN`.
    pub(crate) fn organisation(trust_domain: &TrustDomain) -> Self {
        Self::Organisation(trust_domain.as_str().to_owned())
    }
}
