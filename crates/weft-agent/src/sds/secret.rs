//! A secret as Envoy is sent it.

use crate::identity::{Identity, PrivateKey};
use bytes::Bytes;
use ca::Fingerprint;
use prost::{Message as _, Name as _};
use proto::envoy::config::core::v3::DataSource;
use proto::envoy::config::core::v3::data_source::Specifier;
use proto::envoy::extensions::transport_sockets::tls::v3::{
    self as tls, CertificateValidationContext, TlsCertificate, secret,
};
use proto::google::protobuf::Any;
use std::fmt;
use std::sync::Arc;
use zeroize::Zeroizing;

/// A secret: encoded once, and wiped when nobody holds it any more.
#[derive(Clone)]
pub struct Secret {
    /// Tells contents apart: a hash of what is public. A key is never replaced without its certificate.
    pub version: Arc<str>,
    bytes: Bytes,
}

impl Secret {
    /// A certificate with its key.
    pub fn certificate(name: &str, identity: &Identity) -> Self {
        let certificate = TlsCertificate {
            certificate_chain: Some(inline(Bytes::copy_from_slice(&identity.chain))),
            private_key: Some(inline(PrivateKey::to_bytes(&identity.key))),
            ..TlsCertificate::default()
        };
        Self::new(name, &identity.chain, secret::Type::TlsCertificate(certificate))
    }

    /// Roots, in PEM.
    pub fn roots(name: &str, pem: &[u8]) -> Self {
        let context = CertificateValidationContext {
            trusted_ca: Some(inline(Bytes::copy_from_slice(pem))),
            ..CertificateValidationContext::default()
        };
        Self::new(name, pem, secret::Type::ValidationContext(context))
    }

    fn new(name: &str, told_apart_by: &[u8], content: secret::Type) -> Self {
        let message = tls::Secret { name: name.to_owned(), r#type: Some(content) };
        let bytes = Zeroizing::new(message.encode_to_vec());
        Self { version: Fingerprint::of(told_apart_by).to_string().into(), bytes: Bytes::from_owner(bytes) }
    }

    /// Returns the resource.
    pub fn any(&self) -> Any {
        Any { type_url: type_url(), value: self.bytes.clone() }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("version", &self.version).finish_non_exhaustive()
    }
}

/// Returns the type of secrets.
pub fn type_url() -> String {
    tls::Secret::type_url()
}

fn inline(bytes: Bytes) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes)), ..DataSource::default() }
}
