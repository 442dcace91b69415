//! Keys: the public ones that certificates are issued for, and the private ones that sign them.

use crate::der::{self, Malformed, Reader, Signed, Writer};
use crate::pem;
use rcgen::{PublicKeyData as _, SigningKey as _};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivateKeyDer, SignatureVerificationAlgorithm};
use std::fmt;
use webpki::aws_lc_rs as algorithms;

/// `1.2.840.113549.1.1.1` with the parameters that go with it.
const RSA_ENCRYPTION: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
/// The fewest bits of an RSA key that is taken.
const MIN_RSA_BITS: usize = 2048;
/// The most bits: larger keys only make those work who check them.
const MAX_RSA_BITS: usize = 8192;

/// How signatures are checked. Weak hashes are missing on purpose.
static VERIFICATION: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P256_SHA512,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA512,
    algorithms::ECDSA_P521_SHA256,
    algorithms::ECDSA_P521_SHA384,
    algorithms::ECDSA_P521_SHA512,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
    algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// Returns the algorithms that certificates are checked with.
pub(crate) fn verification_algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    VERIFICATION
}

/// Why a signature does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// A combination of key and algorithm that is not taken, such as SHA-1.
    #[error("signed by an algorithm that is not supported with this key")]
    Unsupported,
    /// The key and the signature do not belong together.
    #[error("the signature does not verify")]
    Invalid,
}

/// A `SubjectPublicKeyInfo`, taken apart.
pub(crate) struct RawPublicKey<'a> {
    /// The content of its `AlgorithmIdentifier`.
    pub(crate) algorithm: &'a [u8],
    pub(crate) key: &'a [u8],
}

impl<'a> RawPublicKey<'a> {
    /// Reads the content of a `SubjectPublicKeyInfo`.
    pub(crate) fn parse(content: &'a [u8]) -> Result<Self, Malformed> {
        let mut parts = Reader::new(content);
        let algorithm = parts.expect(der::SEQUENCE)?.content;
        let key = parts.bit_string()?;
        parts.finish()?;
        Ok(Self { algorithm, key })
    }

    /// Checks that this key signed `signed`.
    pub(crate) fn verify(&self, signed: &Signed<'_>) -> Result<(), SignatureError> {
        VERIFICATION
            .iter()
            .find(|known| {
                known.public_key_alg_id().as_ref() == self.algorithm
                    && known.signature_alg_id().as_ref() == signed.algorithm
            })
            .ok_or(SignatureError::Unsupported)?
            .verify_signature(self.key, signed.message.whole, signed.signature)
            .map_err(|_| SignatureError::Invalid)
    }
}

/// The kind of a key that certificates are issued for: those that Envoy takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// ECDSA on the curve P-256.
    EcdsaP256,
    /// ECDSA on the curve P-384.
    EcdsaP384,
    /// RSA of that many bits.
    Rsa(usize),
}

/// A public key that a certificate may be issued for.
///
/// It is held in the one encoding that there is for it: a certificate repeats nothing of the bytes that a stranger
/// chose but the numbers of the key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PublicKey {
    kind: KeyKind,
    spki: Vec<u8>,
    /// Where the key itself begins in `spki`.
    key_start: usize,
}

impl PublicKey {
    /// Returns the public half of `key`.
    pub fn of(key: &SigningKeyPair) -> Result<Self, PublicKeyError> {
        Self::from_spki(&key.spki())
    }

    /// Reads a `SubjectPublicKeyInfo`.
    pub fn from_spki(der: &[u8]) -> Result<Self, PublicKeyError> {
        let mut outer = Reader::new(der);
        let content = outer.expect(der::SEQUENCE)?.content;
        outer.finish()?;
        Self::from_raw(&RawPublicKey::parse(content)?)
    }

    pub(crate) fn from_raw(raw: &RawPublicKey<'_>) -> Result<Self, PublicKeyError> {
        let p256 = algorithms::ECDSA_P256_SHA256.public_key_alg_id();
        let p384 = algorithms::ECDSA_P384_SHA384.public_key_alg_id();
        let kind = if raw.algorithm == p256.as_ref() {
            check_point(raw.key, 32)?;
            KeyKind::EcdsaP256
        } else if raw.algorithm == p384.as_ref() {
            check_point(raw.key, 48)?;
            KeyKind::EcdsaP384
        } else if raw.algorithm == RSA_ENCRYPTION {
            KeyKind::Rsa(check_rsa(raw.key)?)
        } else {
            return Err(PublicKeyError::Unsupported(name_of(raw.algorithm)));
        };
        let mut writer = Writer::with_capacity(raw.key.len() + 32);
        writer.nested(der::SEQUENCE, |spki| {
            spki.element(der::SEQUENCE, raw.algorithm);
            spki.bit_string(raw.key);
        });
        let spki = writer.into_bytes();
        let key_start = spki.len() - raw.key.len();
        Ok(Self { kind, spki, key_start })
    }

    /// Returns the public half of an authority's key, which may be of a kind that no workload may have. Only for the
    /// certificate that an authority checks itself with.
    pub(crate) fn of_authority(key: &SigningKeyPair) -> Self {
        let spki = key.spki();
        Self { kind: KeyKind::EcdsaP384, key_start: spki.len() - key.bits().len(), spki }
    }

    /// Returns what kind of key it is.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// Returns the `SubjectPublicKeyInfo`.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// Returns the key without its algorithm, which key identifiers are hashes of.
    pub(crate) fn bits(&self) -> &[u8] {
        &self.spki[self.key_start..]
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicKey").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Why no certificate is issued for a public key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    /// It cannot be read.
    #[error("the public key is malformed")]
    Malformed,
    /// Envoy would not take it.
    #[error("keys of type {0} are not supported: use ECDSA P-256, ECDSA P-384 or RSA")]
    Unsupported(String),
    /// It is too easy to break, or too much work to check.
    #[error("an RSA key of {0} bits: at least {MIN_RSA_BITS} and at most {MAX_RSA_BITS} are allowed")]
    RsaSize(usize),
}

impl From<Malformed> for PublicKeyError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// Checks that `point` is written out in full. Whether it is on the curve is known once it verified a signature.
fn check_point(point: &[u8], field_bytes: usize) -> Result<(), PublicKeyError> {
    let whole = point.first() == Some(&4) && point.len() == 1 + 2 * field_bytes;
    if whole { Ok(()) } else { Err(PublicKeyError::Malformed) }
}

/// Returns how many bits the modulus has.
fn check_rsa(key: &[u8]) -> Result<usize, PublicKeyError> {
    let mut outer = Reader::new(key);
    let mut numbers = Reader::new(outer.expect(der::SEQUENCE)?.content);
    outer.finish()?;
    let modulus = numbers.positive()?;
    let exponent = numbers.positive()?;
    numbers.finish()?;
    let bits = modulus.len() * 8 - modulus.first().map_or(0, |first| first.leading_zeros() as usize);
    if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) {
        return Err(PublicKeyError::RsaSize(bits));
    }
    let odd = |number: &[u8]| number.last().is_some_and(|digit| digit & 1 == 1);
    // An exponent of one would make every message its own signature; those beyond 32 bits are refused by TLS
    // libraries.
    if !odd(modulus) || !odd(exponent) || exponent == [1] || exponent.len() > 4 {
        return Err(PublicKeyError::Malformed);
    }
    Ok(bits)
}

/// Names the algorithms that people are likely to try.
fn name_of(algorithm: &[u8]) -> String {
    const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    let mut parts = Reader::new(algorithm);
    let Ok(oid) = parts.expect(der::OID) else { return "unknown".to_owned() };
    let known = match oid.content {
        EC if algorithm == algorithms::ECDSA_P521_SHA512.public_key_alg_id().as_ref() => "ECDSA P-521",
        EC => "ECDSA on another curve",
        [0x2b, 0x65, 0x6e] => "X25519",
        [0x2b, 0x65, 0x70] => "Ed25519",
        [0x2b, 0x65, 0x71] => "Ed448",
        [0x2a, 0x86, 0x48, 0xce, 0x38, 0x04, 0x01] => "DSA",
        [prefix @ .., 10] if prefix == RSA => "RSA-PSS",
        [prefix @ .., 1] if prefix == RSA => "RSA with unusual parameters",
        _ => "unknown",
    };
    known.to_owned()
}

/// A private key that signs certificates, and how it signs.
pub struct SigningKeyPair {
    key: rcgen::KeyPair,
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    /// What its encoding is called in PEM.
    label: &'static str,
}

const PKCS8_LABEL: &str = "PRIVATE KEY";

impl SigningKeyPair {
    /// Wraps a key, which the caller may have generated: this crate makes no random choices.
    pub fn new(key: rcgen::KeyPair) -> Result<Self, SigningKeyError> {
        let algorithm = [
            (&rcgen::PKCS_ECDSA_P256_SHA256, algorithms::ECDSA_P256_SHA256),
            (&rcgen::PKCS_ECDSA_P384_SHA384, algorithms::ECDSA_P384_SHA384),
            (&rcgen::PKCS_ECDSA_P521_SHA512, algorithms::ECDSA_P521_SHA512),
            (&rcgen::PKCS_RSA_SHA256, algorithms::RSA_PKCS1_2048_8192_SHA256),
        ]
        .into_iter()
        .find_map(|(known, algorithm)| (key.algorithm() == known).then_some(algorithm))
        .ok_or(SigningKeyError::Unsupported)?;
        Ok(Self { key, algorithm, label: PKCS8_LABEL })
    }

    /// Reads a private key in PEM: PKCS#8, PKCS#1 (RSA) or SEC 1 (ECDSA).
    pub fn from_pem(pem: &[u8]) -> Result<Self, SigningKeyError> {
        let text = std::str::from_utf8(pem).map_err(|_| SigningKeyError::NotPem)?;
        // "Proc-Type: 4,ENCRYPTED" is the older form.
        if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("4,ENCRYPTED") {
            return Err(SigningKeyError::Encrypted);
        }
        if !text.contains("PRIVATE KEY-----") {
            return Err(SigningKeyError::NotPem);
        }
        // The first private key counts: parameters of the curve may stand before it.
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| SigningKeyError::Malformed)?;
        let label = match &der {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => PKCS8_LABEL,
        };
        let key = rcgen::KeyPair::try_from(&der).map_err(|_| SigningKeyError::Malformed)?;
        Ok(Self { label, ..Self::new(key)? })
    }

    /// Returns the `SubjectPublicKeyInfo` of its public half.
    pub fn spki(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }

    /// Returns the private key in PEM, in the encoding that it was read in, for the Secret or file that keeps it.
    pub fn to_secret_pem(&self) -> String {
        pem::encode(self.label, self.key.serialized_der())
    }

    /// Returns the public key without its algorithm.
    pub(crate) fn bits(&self) -> &[u8] {
        self.key.der_bytes()
    }

    /// Returns the content of the `AlgorithmIdentifier` of its signatures.
    pub(crate) fn signature_algorithm(&self) -> rustls_pki_types::AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.key.sign(message)
    }
}

// Written by hand: a private key must never reach a log.
impl fmt::Debug for SigningKeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKeyPair").field("algorithm", &self.key.algorithm()).finish_non_exhaustive()
    }
}

/// Why a private key cannot sign certificates.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SigningKeyError {
    /// No private key in it.
    #[error("holds no private key in PEM")]
    NotPem,
    /// Nobody is there to type a passphrase.
    #[error("the private key is encrypted; store it without a passphrase")]
    Encrypted,
    /// A key that cannot be read, or is too small.
    #[error("the private key is malformed, or of a type or size that is not supported")]
    Malformed,
    /// A key that Envoy may not take in a chain.
    #[error("keys of this type do not sign certificates here: use ECDSA P-256, P-384, P-521 or RSA")]
    Unsupported,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_key_is_not_shown() {
        let key = SigningKeyPair::new(rcgen::KeyPair::generate().unwrap()).unwrap();
        let shown = format!("{key:?}");
        assert!(shown.len() < 200 && shown.contains("SigningKeyPair"), "{shown}");
    }

    #[test]
    fn a_private_key_is_kept_as_it_is() {
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        assert_eq!(SigningKeyPair::from_pem(pem.as_bytes()).unwrap().to_secret_pem(), pem);
    }

    #[test]
    fn a_public_key_is_its_private_ones() {
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384] {
            let key = SigningKeyPair::new(rcgen::KeyPair::generate_for(algorithm).unwrap()).unwrap();
            let public = PublicKey::of(&key).unwrap();
            assert_eq!(public.spki(), key.spki());
            assert_eq!(public.bits(), key.bits());
        }
    }

    #[test]
    fn unusable_keys_are_named() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let error = PublicKey::from_spki(&key.subject_public_key_info()).unwrap_err();
        assert_eq!(error, PublicKeyError::Unsupported("Ed25519".to_owned()));
        assert_eq!(SigningKeyPair::new(key).unwrap_err(), SigningKeyError::Unsupported);
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        let error = PublicKey::from_spki(&key.subject_public_key_info()).unwrap_err();
        assert_eq!(error, PublicKeyError::Unsupported("ECDSA P-521".to_owned()));
    }

    #[test]
    fn what_is_no_private_key_is_refused_with_the_reason() {
        for (text, error) in [
            ("", SigningKeyError::NotPem),
            ("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", SigningKeyError::NotPem),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----\n", SigningKeyError::Encrypted),
            ("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n", SigningKeyError::Encrypted),
            ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", SigningKeyError::Malformed),
        ] {
            assert_eq!(SigningKeyPair::from_pem(text.as_bytes()).unwrap_err(), error, "{text}");
        }
    }
}
