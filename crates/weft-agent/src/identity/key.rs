//! Private keys. They are wiped when they are dropped, and no form of them is ever printed.
//!
//! What Envoy is sent is wiped as well once it is sent; the buffers of the connection to it, which belong to the
//! HTTP/2 library, are not.

use crate::config::KeyKind;
use bytes::Bytes;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, RsaKeySize, SanType};
use std::fmt;
use zeroize::{Zeroize as _, Zeroizing};

/// A private key in PEM.
#[derive(Clone)]
pub struct PrivateKey(Zeroizing<Vec<u8>>);

impl PrivateKey {
    /// Takes a key in PEM.
    pub fn from_pem(pem: Vec<u8>) -> Self {
        Self(Zeroizing::new(pem))
    }

    /// Returns the key in PEM.
    pub fn pem(&self) -> &[u8] {
        &self.0
    }

    /// Returns the key as shared bytes, which are wiped when the last one that holds them lets go.
    pub fn to_bytes(&self) -> Bytes {
        Bytes::from_owner(self.0.clone())
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// No key could be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a key or a request for a certificate")]
pub struct KeyError(#[from] rcgen::Error);

/// A new key, with a request for a certificate of it.
#[derive(Debug)]
pub struct NewKey {
    /// The key.
    pub key: PrivateKey,
    /// The `SubjectPublicKeyInfo` of its public half.
    pub public: Vec<u8>,
    /// The request (PKCS#10) in PEM.
    pub request: String,
}

impl NewKey {
    /// Makes a key, and a request that names `spiffe_id` and nothing else.
    pub fn generate(kind: KeyKind, spiffe_id: &str) -> Result<Self, KeyError> {
        let mut pair = match kind {
            KeyKind::EcdsaP256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?,
            KeyKind::EcdsaP384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384)?,
            KeyKind::Rsa(bits) => {
                let size = match bits {
                    ..=2048 => RsaKeySize::_2048,
                    2049..=3072 => RsaKeySize::_3072,
                    3073.. => RsaKeySize::_4096,
                };
                KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size)?
            }
        };
        let made = Self::of(&pair, spiffe_id);
        pair.zeroize();
        made
    }

    fn of(pair: &KeyPair, spiffe_id: &str) -> Result<Self, KeyError> {
        let mut params = CertificateParams::default();
        // An empty subject, as SPIFFE has it.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(spiffe_id.try_into()?)];
        let request = params.serialize_request(pair)?.pem()?;
        let key = PrivateKey::from_pem(pair.serialize_pem().into_bytes());
        Ok(Self { key, public: rcgen::PublicKeyData::subject_public_key_info(pair), request })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_prove_their_key() {
        for kind in [KeyKind::EcdsaP256, KeyKind::EcdsaP384, KeyKind::Rsa(2048)] {
            let new = NewKey::generate(kind, "spiffe://cluster.local/ns/app/sa/web").unwrap();
            // Reading a request checks its signature.
            let request = ca::Csr::from_pem(&new.request).unwrap();
            assert_eq!(request.public_key().spki(), new.public, "{kind:?}");
            assert!(new.key.pem().starts_with(b"-----BEGIN PRIVATE KEY-----"));
            assert_eq!(new.key.to_bytes(), new.key.pem());
        }
    }

    #[test]
    fn every_key_is_another() {
        let make = || NewKey::generate(KeyKind::EcdsaP256, "spiffe://a/ns/b/sa/c").unwrap();
        assert_ne!(make().public, make().public);
    }

    #[test]
    fn no_form_of_a_key_is_printed() {
        let new = NewKey::generate(KeyKind::EcdsaP256, "spiffe://a/ns/b/sa/c").unwrap();
        let secret = String::from_utf8(new.key.pem().to_vec()).unwrap();
        let body = secret.lines().nth(1).unwrap();
        let printed = format!("{new:?} {:#?}", new.key);
        assert!(!printed.contains(body) && !printed.contains("BEGIN PRIVATE"), "{printed}");
        let digits: Vec<String> = new.key.pem()[28..36].iter().map(u8::to_string).collect();
        assert!(!printed.contains(&digits.join(", ")), "{printed}");
    }
}
