//! A certificate with its key, checked before anybody gets it.

use super::key::PrivateKey;
use ca::{TrustBundle, UnixTime, Validity};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The answer has no roots behind the chain.
    #[error("the answer has {0} parts: a certificate and the roots are the least")]
    Incomplete(usize),
    /// Not a certificate.
    #[error("the certificate is malformed")]
    Malformed,
    /// The certificate is of another key.
    #[error("the certificate is not of our key")]
    OtherKey,
    /// Not a private key, or one of an unknown kind.
    #[error("the private key cannot be used: {0}")]
    Key(String),
    /// Its time is over.
    #[error("the certificate ended at {0}")]
    Expired(UnixTime),
    /// The roots are malformed.
    #[error("the roots cannot be used")]
    Roots(#[source] ca::certificate::CertificatesError),
    /// There are no roots.
    #[error("there are no roots")]
    NoRoots,
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Identity {
    /// The chain in PEM: the leaf, then the intermediates.
    pub chain: Vec<u8>,
    /// The key.
    pub key: PrivateKey,
    /// When it is valid.
    pub validity: Validity,
}

impl Identity {
    /// Takes the answer of an authority: the chain, one certificate an element, then all roots in one.
    pub fn issued(
        mut parts: Vec<String>,
        key: PrivateKey,
        public: &[u8],
        now: UnixTime,
    ) -> Result<(Self, TrustBundle), IdentityError> {
        let count = parts.len();
        let roots = parts.pop().filter(|_| count > 1).ok_or(IdentityError::Incomplete(count))?;
        let mut chain = String::new();
        for part in &parts {
            chain.push_str(part.trim_end());
            chain.push('\n');
        }
        let identity = Self::new(chain.into_bytes(), key, now)?;
        if identity.public_key()? != public {
            return Err(IdentityError::OtherKey);
        }
        Ok((identity, roots_from_pem(roots.as_bytes())?))
    }

    /// Takes a chain and a key in PEM, which must belong together.
    pub fn new(chain: Vec<u8>, key: PrivateKey, now: UnixTime) -> Result<Self, IdentityError> {
        let certificates = certificates(&chain)?;
        let leaf = certificates.first().ok_or(IdentityError::Malformed)?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| IdentityError::Malformed)?;
        let validity = Validity {
            not_before: UnixTime::from_seconds(parsed.validity().not_before.timestamp()),
            not_after: UnixTime::from_seconds(parsed.validity().not_after.timestamp()),
        };
        if validity.not_after < now {
            return Err(IdentityError::Expired(validity.not_after));
        }
        let invalid = |error: &dyn ToString| IdentityError::Key(error.to_string());
        let der = PrivateKeyDer::from_pem_slice(key.pem()).map_err(|error| invalid(&error))?;
        let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der);
        let signing = signing.map_err(|error| invalid(&error))?;
        let certified = rustls::sign::CertifiedKey::new(certificates, signing);
        certified.keys_match().map_err(|_| IdentityError::OtherKey)?;
        Ok(Self { chain, key, validity })
    }

    /// Returns the chain.
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        certificates(&self.chain)
    }

    fn public_key(&self) -> Result<Vec<u8>, IdentityError> {
        let certificates = self.certificates()?;
        let leaf = certificates.first().ok_or(IdentityError::Malformed)?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| IdentityError::Malformed)?;
        Ok(parsed.public_key().raw.to_vec())
    }
}

/// Reads roots, of which there must be one.
pub fn roots_from_pem(pem: &[u8]) -> Result<TrustBundle, IdentityError> {
    let roots = TrustBundle::from_pem(pem).map_err(IdentityError::Roots)?;
    if roots.is_empty() { Err(IdentityError::NoRoots) } else { Ok(roots) }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    all.map_err(|_| IdentityError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::super::key::NewKey;
    use super::*;
    use crate::config::KeyKind;
    use testkit::rig::pki::Authority;

    fn now() -> UnixTime {
        std::time::SystemTime::now().into()
    }

    #[test]
    fn a_chain_must_be_of_its_key_and_in_time() {
        let authority = Authority::new("root");
        let one = authority.issue("one", &["spiffe://a/ns/b/sa/c"]);
        let other = authority.issue("other", &["spiffe://a/ns/b/sa/c"]);
        let key = |text: &str| PrivateKey::from_pem(text.as_bytes().to_vec());
        let chain = || one.certificate_pem.clone().into_bytes();
        let identity = Identity::new(chain(), key(&one.key_pem), now()).unwrap();
        assert!(identity.validity.contains(now()));

        let check = |chain, key, now| Identity::new(chain, key, now).unwrap_err().to_string();
        assert_eq!(check(chain(), key(&other.key_pem), now()), "the certificate is not of our key");
        let later = identity.validity.not_after.after(std::time::Duration::from_secs(1));
        assert!(check(chain(), key(&one.key_pem), later).starts_with("the certificate ended at"));
        assert_eq!(check(Vec::new(), key(&one.key_pem), now()), "the certificate is malformed");
        assert!(check(chain(), key("none"), now()).starts_with("the private key cannot be used"));
    }

    #[test]
    fn an_answer_needs_roots_and_our_key() {
        let authority = Authority::new("root");
        let issued = authority.issue("one", &["spiffe://a/ns/b/sa/c"]);
        let key = || PrivateKey::from_pem(issued.key_pem.clone().into_bytes());
        let leaf = issued.certificate_pem.clone();
        let public = Identity::new(leaf.clone().into_bytes(), key(), now()).unwrap().public_key().unwrap();
        let answer = vec![leaf.clone(), authority.certificate_pem()];
        let (identity, roots) = Identity::issued(answer.clone(), key(), &public, now()).unwrap();
        assert_eq!((identity.certificates().unwrap().len(), roots.len()), (1, 1));

        let other = NewKey::generate(KeyKind::EcdsaP256, "spiffe://a/ns/b/sa/c").unwrap();
        assert!(matches!(
            Identity::issued(answer, key(), &other.public, now()),
            Err(IdentityError::OtherKey)
        ));
        for parts in [vec![], vec![leaf.clone()]] {
            let count = parts.len();
            let error = Identity::issued(parts, key(), &public, now()).unwrap_err();
            assert!(matches!(error, IdentityError::Incomplete(found) if found == count));
        }
        let error = Identity::issued(vec![leaf, String::new()], key(), &public, now()).unwrap_err();
        assert!(matches!(error, IdentityError::NoRoots));
    }
}
