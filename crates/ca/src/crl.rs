//! Revocation lists, as they are plugged in beside an authority.

use crate::certificate::CaCertificate;
use crate::der::Signed;
use crate::key::SignatureError;
use crate::pem::{self, PemError};
use crate::time::UnixTime;
use std::collections::BTreeSet;
use std::fmt;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _};

/// The most lists in one file: one for each authority.
const MAX_LISTS: usize = 64;

/// Revocation lists that were each signed by an authority we know.
#[derive(Clone, PartialEq, Eq)]
pub struct RevocationLists {
    lists: Vec<List>,
    pem: String,
}

#[derive(Clone, PartialEq, Eq)]
struct List {
    issuer: Vec<u8>,
    name: String,
    next_update: Option<UnixTime>,
    revoked: BTreeSet<Vec<u8>>,
}

impl RevocationLists {
    /// Reads all lists in `pem`, each of which must be signed by one of `authorities`.
    pub fn from_pem(pem: &[u8], authorities: &[&CaCertificate]) -> Result<Self, CrlError> {
        let blocks = pem::blocks(pem, pem::CRL, MAX_LISTS)?;
        if blocks.is_empty() {
            return Err(CrlError::Pem(PemError::Empty(pem::CRL)));
        }
        let lists = blocks
            .iter()
            .enumerate()
            .map(|(index, der)| {
                let problem = |source| CrlError::List { number: index + 1, source };
                parse(der, authorities).map_err(problem)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { lists, pem: blocks.iter().map(|der| pem::encode(pem::CRL, der)).collect() })
    }

    /// Returns all lists in PEM.
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// Returns whether `certificate` is revoked.
    pub fn revokes(&self, certificate: &CaCertificate) -> bool {
        let serial = shortest(certificate.serial());
        self.lists.iter().any(|list| list.issuer == certificate.issuer() && list.revoked.contains(serial))
    }

    /// Returns the names of the authorities whose list should have been replaced by `now`.
    pub fn overdue(&self, now: UnixTime) -> impl Iterator<Item = &str> {
        self.lists
            .iter()
            .filter(move |list| list.next_update.is_some_and(|next| next < now))
            .map(|list| list.name.as_str())
    }

    /// Returns those of `authorities` that have no list here. Envoy, once it is given any list, refuses certificates
    /// of all authorities without one.
    pub fn missing<'a>(
        &self,
        authorities: impl IntoIterator<Item = &'a CaCertificate>,
    ) -> impl Iterator<Item = &'a CaCertificate> {
        authorities
            .into_iter()
            .filter(|authority| !self.lists.iter().any(|list| list.issuer == authority.subject()))
    }
}

impl fmt::Debug for RevocationLists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes = self.lists.iter().map(|list| (&list.name, list.revoked.len()));
        f.debug_map().entries(sizes).finish()
    }
}

fn parse(der: &[u8], authorities: &[&CaCertificate]) -> Result<List, CrlProblem> {
    let signed = Signed::parse(der).map_err(|_| CrlProblem::Malformed)?;
    let (_, parsed) = CertificateRevocationList::from_der(der).map_err(|_| CrlProblem::Malformed)?;
    let issuer = parsed.issuer().as_raw();
    let name = parsed.issuer().to_string();

    let mut reason = None;
    let signer = authorities.iter().filter(|authority| authority.subject() == issuer).find(|authority| {
        let verdict = if authority.signs_crls() {
            authority.verify(&signed).map_err(CrlProblem::Signature)
        } else {
            Err(CrlProblem::MayNotSign(authority.name().to_owned()))
        };
        verdict.map_err(|problem| reason = Some(problem)).is_ok()
    });
    if signer.is_none() {
        return Err(reason.unwrap_or(CrlProblem::UnknownIssuer(name)));
    }

    // A critical extension says that the list is about some certificates only, or only the changes of another one.
    if let Some(extension) = parsed.extensions().iter().find(|extension| extension.critical) {
        return Err(CrlProblem::Partial(extension.oid.to_id_string()));
    }
    let entries = || parsed.iter_revoked_certificates();
    if entries().any(|entry| entry.extensions().iter().any(|extension| extension.critical)) {
        return Err(CrlProblem::Partial("of an entry".to_owned()));
    }
    Ok(List {
        issuer: issuer.to_vec(),
        name,
        next_update: parsed.next_update().map(|next| UnixTime::from_seconds(next.timestamp())),
        revoked: entries().map(|entry| shortest(entry.raw_serial()).to_vec()).collect(),
    })
}

/// Returns a number without leading zeros.
fn shortest(serial: &[u8]) -> &[u8] {
    let leading = serial.iter().take_while(|digit| **digit == 0).count();
    &serial[leading..]
}

/// Why a file with revocation lists is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// Not PEM, too large, or not revocation lists.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// One list is wrong.
    #[error("revocation list {number}: {source}")]
    List {
        /// Which one, counted from 1.
        number: usize,
        /// What is wrong with it.
        source: CrlProblem,
    },
}

/// What is wrong with a revocation list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrlProblem {
    /// It cannot be read.
    #[error("malformed")]
    Malformed,
    /// We trust nobody of that name.
    #[error("its issuer \"{0}\" is neither in the chain nor among the roots")]
    UnknownIssuer(String),
    /// Its issuer did not sign it.
    #[error(transparent)]
    Signature(SignatureError),
    /// Its issuer's key is for something else.
    #[error("\"{0}\" may not sign revocation lists (key usage without cRLSign)")]
    MayNotSign(String),
    /// It does not cover all certificates of its issuer.
    #[error("has a critical extension ({0}), so it may not be complete")]
    Partial(String),
}
