//! Certificates of authorities, as they are plugged in or trusted.

use crate::der::{self, Malformed, Reader, Signed};
use crate::key::{RawPublicKey, SignatureError};
use crate::pem;
use crate::time::{UnixTime, Validity};
use rustls_pki_types::CertificateDer;
use std::fmt;
use std::str::FromStr;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The SHA-256 of a certificate: what it is known by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Returns the fingerprint of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
        Self(hash)
    }

    /// Returns the hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is not the 64 hexadecimal digits of a fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no fingerprint: 64 hexadecimal digits")]
pub struct FingerprintError(String);

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || FingerprintError(text.chars().take(80).collect());
        let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
        let digits = digits.filter(|digits| digits.len() == 64).ok_or_else(error)?;
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
            *byte = u8::try_from(pair[0] << 4 | pair[1]).map_err(|_| error())?;
        }
        Ok(Self(hash))
    }
}

impl serde::Serialize for Fingerprint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Fingerprint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A certificate of an authority: one that may sign others.
#[derive(Clone)]
pub struct CaCertificate {
    der: CertificateDer<'static>,
    fingerprint: Fingerprint,
    /// The subject as it is encoded, which issued certificates repeat byte by byte.
    subject: Vec<u8>,
    issuer: Vec<u8>,
    name: String,
    serial: Vec<u8>,
    validity: Validity,
    spki: Vec<u8>,
    key_id: Option<Vec<u8>>,
    path_len: Option<u32>,
    signs_crls: bool,
}

impl CaCertificate {
    /// Reads a certificate that must be one of an authority.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
        if !rest.is_empty() {
            return Err(CertificateError::Malformed);
        }
        // The parser is lenient where we must not be: the parts that are signed and checked are those read here.
        let signed = Signed::parse(der)?;
        let tbs = &parsed.tbs_certificate;
        let name = tbs.subject.to_string();
        let basic = tbs.basic_constraints().map_err(|_| CertificateError::Malformed)?;
        let Some(basic) = basic.filter(|basic| basic.value.ca) else {
            return Err(CertificateError::NotAnAuthority(name));
        };
        let usage = tbs.key_usage().map_err(|_| CertificateError::Malformed)?;
        if usage.as_ref().is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(CertificateError::MayNotSign(name));
        }
        if tbs.subject.as_raw() == EMPTY_NAME {
            return Err(CertificateError::NoSubject);
        }
        let inner = Reader::new(signed.message.content).any().map_err(CertificateError::from)?;
        if inner.tag != der::context_constructed(0) {
            return Err(CertificateError::Version(name));
        }
        let key_id = tbs.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        Ok(Self {
            der: CertificateDer::from(der.to_vec()),
            fingerprint: Fingerprint::of(der),
            subject: tbs.subject.as_raw().to_vec(),
            issuer: tbs.issuer.as_raw().to_vec(),
            serial: tbs.raw_serial().to_vec(),
            validity: Validity {
                not_before: UnixTime::from_seconds(tbs.validity.not_before.timestamp()),
                not_after: UnixTime::from_seconds(tbs.validity.not_after.timestamp()),
            },
            spki: tbs.subject_pki.raw.to_vec(),
            key_id,
            path_len: basic.value.path_len_constraint,
            signs_crls: usage.is_none_or(|usage| usage.value.crl_sign()),
            name,
        })
    }

    /// Reads all certificates in `pem`, in their order.
    pub(crate) fn all_from_pem(pem: &[u8], limit: usize) -> Result<Vec<Self>, CertificatesError> {
        pem::blocks(pem, pem::CERTIFICATE, limit)?
            .iter()
            .enumerate()
            .map(|(index, der)| {
                Self::from_der(der)
                    .map_err(|source| CertificatesError::Certificate { number: index + 1, source })
            })
            .collect()
    }

    /// Returns the certificate.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Returns the certificate in PEM, with a newline at its end.
    pub fn to_pem(&self) -> String {
        pem::encode(pem::CERTIFICATE, &self.der)
    }

    /// Returns what it is known by.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Returns its subject, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns when it is valid.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Returns whether its subject and issuer are the same.
    pub fn is_self_issued(&self) -> bool {
        self.subject == self.issuer
    }

    /// Returns whether it is its own issuer.
    pub fn is_self_signed(&self) -> bool {
        self.is_self_issued() && self.signature_on(self).is_ok()
    }

    pub(crate) fn subject(&self) -> &[u8] {
        &self.subject
    }

    pub(crate) fn issuer(&self) -> &[u8] {
        &self.issuer
    }

    pub(crate) fn serial(&self) -> &[u8] {
        &self.serial
    }

    pub(crate) fn spki(&self) -> &[u8] {
        &self.spki
    }

    pub(crate) fn key_id(&self) -> Option<&[u8]> {
        self.key_id.as_deref()
    }

    pub(crate) fn path_len(&self) -> Option<u32> {
        self.path_len
    }

    pub(crate) fn signs_crls(&self) -> bool {
        self.signs_crls
    }

    /// Checks that this one's key signed `other`.
    pub(crate) fn signature_on(&self, other: &Self) -> Result<(), SignatureError> {
        let signed = Signed::parse(&other.der).map_err(|_| SignatureError::Invalid)?;
        self.verify(&signed)
    }

    /// Checks that this one's key signed `signed`.
    pub(crate) fn verify(&self, signed: &Signed<'_>) -> Result<(), SignatureError> {
        let mut outer = Reader::new(&self.spki);
        let content = outer.expect(der::SEQUENCE).map_err(|_| SignatureError::Unsupported)?.content;
        RawPublicKey::parse(content).map_err(|_| SignatureError::Unsupported)?.verify(signed)
    }
}

/// A `Name` without any parts.
const EMPTY_NAME: &[u8] = &[der::SEQUENCE, 0];

impl PartialEq for CaCertificate {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for CaCertificate {}

impl fmt::Debug for CaCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaCertificate")
            .field("name", &self.name)
            .field("fingerprint", &self.fingerprint)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

/// Why a certificate is not one of an authority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It cannot be read.
    #[error("the certificate is malformed")]
    Malformed,
    /// Not version 3: it cannot say what it is for.
    #[error("\"{0}\" is of an old version of X.509 that has no extensions")]
    Version(String),
    /// `CA:TRUE` is missing.
    #[error("\"{0}\" is no certificate of an authority (basic constraints without CA)")]
    NotAnAuthority(String),
    /// It may not sign certificates.
    #[error("\"{0}\" may not sign certificates (key usage without keyCertSign)")]
    MayNotSign(String),
    /// Nothing that issued certificates could call their issuer.
    #[error("the certificate has no subject, so nothing can name it as its issuer")]
    NoSubject,
}

impl From<Malformed> for CertificateError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// Why a file with certificates is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificatesError {
    /// Not PEM, too large, or not certificates.
    #[error(transparent)]
    Pem(#[from] pem::PemError),
    /// One certificate is wrong.
    #[error("certificate {number}: {source}")]
    Certificate {
        /// Which one, counted from 1.
        number: usize,
        /// What is wrong with it.
        source: CertificateError,
    },
}
