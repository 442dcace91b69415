//! Secrets that gateways ask for over ADS: Kubernetes Secrets by name.

use crate::audience::OutboundAudience;
use model::{Kind, Mesh, ObjectKey};
use prost::Message;
use proto::envoy::config::core::v3::DataSource;
use proto::envoy::config::core::v3::data_source::Specifier;
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use proto::resource::{Body, Needs, Resource, ResourceType};

/// Names of secrets begin with this: `kubernetes://name`, or `kubernetes://namespace/name`.
pub const KUBERNETES_SCHEME: &str = "kubernetes://";

/// A name with this suffix stands for the authorities of a secret instead of its certificate.
pub const CA_SUFFIX: &str = "-cacert";

/// Returns the secret called `name`, or nothing if there is none, if it has no part of the kind asked for, or if
/// it is in another namespace than the audience: nobody is served what is not theirs.
pub fn secret(mesh: &Mesh<'_>, audience: &OutboundAudience, name: &str) -> Option<Resource> {
    let path = name.strip_prefix(KUBERNETES_SCHEME)?;
    let (namespace, object) = path.split_once('/').unwrap_or((audience.namespace.as_str(), path));
    if namespace != audience.namespace.as_str() {
        return None;
    }
    let named = |object: &str| mesh.secret(&ObjectKey::new(Kind::Secret, namespace, object));
    let content = match object.strip_suffix(CA_SUFFIX) {
        // The authorities are in a secret of exactly this name, or beside the certificate.
        Some(base) => authorities(named(object).or_else(|| named(base))?)?,
        None => certificate(named(object)?)?,
    };
    let message = Secret { name: name.to_owned(), r#type: Some(content) };
    let body = Body::Whole(message.encode_to_vec().into());
    Some(Resource::new(ResourceType::Secret, name, body, Needs::default()))
}

fn certificate(source: &model::Secret) -> Option<secret::Type> {
    if source.certificate_chain.is_empty() || source.private_key.is_empty() {
        return None;
    }
    Some(secret::Type::TlsCertificate(TlsCertificate {
        certificate_chain: Some(inline(&source.certificate_chain)),
        private_key: Some(inline(&source.private_key)),
        ocsp_staple: source.ocsp_staple.as_ref().map(|staple| inline(staple)),
        ..TlsCertificate::default()
    }))
}

fn authorities(source: &model::Secret) -> Option<secret::Type> {
    Some(secret::Type::ValidationContext(CertificateValidationContext {
        trusted_ca: Some(inline(source.ca.as_ref()?)),
        crl: source.crl.as_ref().map(|crl| inline(crl)),
        ..CertificateValidationContext::default()
    }))
}

fn inline(bytes: &[u8]) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes.to_vec().into())), ..DataSource::default() }
}
