//! The way from the certificate that signs to a trusted root.

use crate::bundle::TrustBundle;
use crate::certificate::{CaCertificate, Fingerprint};
use crate::key::SignatureError;
use crate::time::{UnixTime, Validity};

/// How many links are checked before a search is given up: certificates that all sign each other make it long.
const MAX_CHECKS: usize = 256;

/// A way from a signing certificate to a root.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    /// What is presented after the leaf: the signing certificate and the intermediates above it. Empty if the signing
    /// certificate is a root itself.
    pub(crate) presented: Vec<CaCertificate>,
    /// Where it ends.
    pub(crate) root: Fingerprint,
    /// When all of it, including the root, is valid.
    pub(crate) validity: Validity,
}

/// Why there is no way from a signing certificate to a root.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A certificate is not valid at this time.
    #[error("\"{name}\" is valid from {} to {}, not now, {now}", validity.not_before, validity.not_after)]
    NotValidNow {
        /// Its subject.
        name: String,
        /// When it is valid.
        validity: Validity,
        /// When it was needed.
        now: UnixTime,
    },
    /// Nobody of that name is known.
    #[error("the issuer of \"{name}\" is neither in the chain nor among the roots")]
    NoIssuer {
        /// Whose issuer is missing.
        name: String,
    },
    /// Somebody of that name is known, but did not sign it.
    #[error("\"{issuer}\" is named as the issuer of \"{name}\", but did not sign it: {source}")]
    NotSigned {
        /// The certificate.
        name: String,
        /// Who should have signed it.
        issuer: String,
        /// What is wrong.
        source: SignatureError,
    },
    /// An issuer may not have that many authorities below it.
    #[error("\"{name}\" allows {limit} intermediate authorities below it, and there are more")]
    PathTooLong {
        /// The issuer.
        name: String,
        /// How many it allows.
        limit: u32,
    },
    /// The search took too long.
    #[error("the certificates sign each other in too many ways")]
    TooComplex,
}

/// Finds the way from `signer` through `pool` to one of `roots`. Of several the one through more of `pool` is
/// preferred: an operator who adds a cross-signed root to the chain wants it to be presented.
pub(crate) fn build(
    signer: &CaCertificate,
    pool: &[CaCertificate],
    roots: &TrustBundle,
    now: UnixTime,
) -> Result<Chain, ChainError> {
    let mut search = Search { pool, roots, now, checks: 0, path: vec![signer], problem: None };
    search.check_time(signer)?;
    if roots.contains(&signer.fingerprint()) {
        return Ok(Chain { presented: Vec::new(), root: signer.fingerprint(), validity: signer.validity() });
    }
    match search.climb()? {
        Some(root) => {
            let links = || search.path.iter().copied().chain([root]).map(CaCertificate::validity);
            Ok(Chain {
                validity: Validity {
                    not_before: links().map(|link| link.not_before).max().unwrap_or(now),
                    not_after: links().map(|link| link.not_after).min().unwrap_or(now),
                },
                root: root.fingerprint(),
                presented: search.path.into_iter().cloned().collect(),
            })
        }
        None => {
            let missing = || ChainError::NoIssuer { name: signer.name().to_owned() };
            Err(search.problem.unwrap_or_else(missing))
        }
    }
}

struct Search<'a> {
    pool: &'a [CaCertificate],
    roots: &'a TrustBundle,
    now: UnixTime,
    checks: usize,
    path: Vec<&'a CaCertificate>,
    /// What was wrong first, which is nearest to the signing certificate.
    problem: Option<ChainError>,
}

impl<'a> Search<'a> {
    /// Extends the path until its end was issued by a root, and returns that.
    fn climb(&mut self) -> Result<Option<&'a CaCertificate>, ChainError> {
        let Some(&top) = self.path.last() else { return Ok(None) };
        let mut named = false;
        for candidate in self.pool {
            let used = self.path.contains(&candidate);
            // A root in the file of the chain is not presented: whoever trusts it has it.
            if candidate.subject() != top.issuer() || used || self.roots.contains(&candidate.fingerprint()) {
                continue;
            }
            named = true;
            if self.issued(candidate, top)? {
                self.path.push(candidate);
                if let Some(root) = self.climb()? {
                    return Ok(Some(root));
                }
                self.path.pop();
            }
        }
        let roots = self.roots;
        for root in roots.iter().map(AsRef::as_ref).filter(|root| root.subject() == top.issuer()) {
            named = true;
            if self.issued(root, top)? {
                return Ok(Some(root));
            }
        }
        if !named {
            self.note(ChainError::NoIssuer { name: top.name().to_owned() });
        }
        Ok(None)
    }

    /// Returns whether `issuer` issued the end of the path, and notes why not.
    fn issued(&mut self, issuer: &CaCertificate, top: &CaCertificate) -> Result<bool, ChainError> {
        self.checks += 1;
        if self.checks > MAX_CHECKS {
            return Err(ChainError::TooComplex);
        }
        let below = self.path.iter().filter(|link| !link.is_self_issued()).count();
        let result = self.check_time(issuer).and_then(|()| {
            issuer.signature_on(top).map_err(|source| ChainError::NotSigned {
                name: top.name().to_owned(),
                issuer: issuer.name().to_owned(),
                source,
            })?;
            match issuer.path_len() {
                Some(limit) if u32::try_from(below).is_ok_and(|below| below > limit) => {
                    Err(ChainError::PathTooLong { name: issuer.name().to_owned(), limit })
                }
                _ => Ok(()),
            }
        });
        match result {
            Ok(()) => Ok(true),
            Err(problem) => {
                self.note(problem);
                Ok(false)
            }
        }
    }

    fn note(&mut self, problem: ChainError) {
        self.problem.get_or_insert(problem);
    }

    fn check_time(&self, certificate: &CaCertificate) -> Result<(), ChainError> {
        if certificate.validity().contains(self.now) {
            return Ok(());
        }
        Err(ChainError::NotValidNow {
            name: certificate.name().to_owned(),
            validity: certificate.validity(),
            now: self.now,
        })
    }
}
