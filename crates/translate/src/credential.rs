//! Whether a certificate and a key belong together.

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, SubjectPublicKeyInfo, X509Certificate};

/// What is wrong, and with which of the two.
pub(crate) enum Mistake {
    /// With the certificate.
    Certificate(String),
    /// With the key.
    Key(String),
}

/// Returns until when the first certificate of `chain` is good, in seconds since 1970, if `key` is the key of it.
///
/// Only that is checked: who issued it and for whom, and in which version of X.509, is the business of its clients.
pub(crate) fn check(chain: &[u8], key: &[u8]) -> Result<i64, Mistake> {
    let leaf = CertificateDer::from_pem_slice(chain)
        .map_err(|error| Mistake::Certificate(format!("is not PEM: {error}")))?;
    let (_, leaf) = X509Certificate::from_der(&leaf)
        .map_err(|error| Mistake::Certificate(format!("is not an X.509 certificate: {error}")))?;
    let text = String::from_utf8_lossy(key);
    if text.contains("ENCRYPTED") {
        return Err(Mistake::Key("is encrypted, and nobody says how".to_owned()));
    }
    let key =
        PrivateKeyDer::from_pem_slice(key).map_err(|error| Mistake::Key(format!("is not PEM: {error}")))?;
    let key = any_supported_type(&key).map_err(|_| {
        Mistake::Key("is neither an RSA key of 2048 bits or more nor one that proxies take".to_owned())
    })?;
    // One of which the public half is not known cannot be compared.
    let public = key.public_key();
    let public = public.as_ref().and_then(|public| SubjectPublicKeyInfo::from_der(public).ok());
    let belongs = public.is_none_or(|(_, public)| {
        public.subject_public_key.data == leaf.public_key().subject_public_key.data
    });
    match belongs {
        true => Ok(leaf.validity().not_after.timestamp()),
        false => Err(Mistake::Key("is not the key of the certificate".to_owned())),
    }
}
