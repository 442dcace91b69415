//! Secrets that gateways ask for over ADS: Kubernetes Secrets by name, and authorities in ConfigMaps.

use crate::audience::OutboundAudience;
use model::{Kind, Mesh, Namespace, ObjectKey};
use prost::Message;
use proto::envoy::config::core::v3::DataSource;
use proto::envoy::config::core::v3::data_source::Specifier;
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use proto::resource::{Body, Needs, Resource, ResourceType};

/// Names of secrets begin with this: `kubernetes://name`, or `kubernetes://namespace/name`.
pub const KUBERNETES_SCHEME: &str = "kubernetes://";

/// As [`KUBERNETES_SCHEME`], with a namespace always: `kubernetes-gateway://namespace/name`.
pub const GATEWAY_SCHEME: &str = "kubernetes-gateway://";

/// Names of authorities in ConfigMaps begin with this: `configmap://namespace/name`.
pub const CONFIG_MAP_SCHEME: &str = "configmap://";

/// A name with this suffix stands for the authorities of a secret instead of its certificate.
pub const CA_SUFFIX: &str = "-cacert";

/// Returns whether what is called so is no secret: whom to trust may be known to everybody.
pub fn is_public(name: &str) -> bool {
    name.starts_with(CONFIG_MAP_SCHEME)
}

/// Returns the secret called `name`, or nothing if there is none, if it has no part of the kind asked for, or if
/// the audience may not have it: nobody is served what is not theirs.
///
/// | name | whose |
/// | --- | --- |
/// | `kubernetes://[namespace/]name` | of the audience's own namespace |
/// | `kubernetes-gateway://namespace/name` | as well, or if a ReferenceGrant there lets Gateways of the audience's namespace use it |
/// | `configmap://namespace/name` | anybody's: authorities alone |
pub fn secret(mesh: &Mesh<'_>, audience: &OutboundAudience, name: &str) -> Option<Resource> {
    let content = if let Some(path) = name.strip_prefix(CONFIG_MAP_SCHEME) {
        let (namespace, object) = split(path)?;
        let object = object.strip_suffix(CA_SUFFIX).unwrap_or(object);
        authorities(mesh.secret(&ObjectKey::new(Kind::ConfigMap, namespace, object))?)?
    } else {
        let own = audience.namespace.as_str();
        let is_gateways = name.starts_with(GATEWAY_SCHEME);
        let namespace = namespace_of(name, own)?;
        let object = name.rsplit('/').next()?;
        let may_have = |object: &str| {
            namespace == own || is_gateways && is_granted(mesh, audience, &Namespace::new(namespace), object)
        };
        let named = |object: &str| {
            // Asked first: what is not theirs is not even looked at.
            may_have(object).then(|| mesh.secret(&ObjectKey::new(Kind::Secret, namespace, object))).flatten()
        };
        match object.strip_suffix(CA_SUFFIX) {
            // The authorities are in a secret of exactly this name, or beside the certificate.
            Some(base) => authorities(named(object).or_else(|| named(base))?)?,
            None => certificate(named(object)?)?,
        }
    };
    let message = Secret { name: name.to_owned(), r#type: Some(content) };
    let body = Body::Whole(message.encode_to_vec().into());
    Some(Resource::new(ResourceType::Secret, name, body, Needs::default()))
}

/// Returns the namespace of the Kubernetes Secret that `name` stands for, to somebody in the namespace `own`; nothing if it
/// stands for none.
pub fn namespace_of<'a>(name: &'a str, own: &'a str) -> Option<&'a str> {
    if let Some(path) = name.strip_prefix(GATEWAY_SCHEME) {
        return split(path).map(|(namespace, _)| namespace);
    }
    match name.strip_prefix(KUBERNETES_SCHEME)? {
        "" => None,
        path if path.contains('/') => split(path).map(|(namespace, _)| namespace),
        _ => Some(own),
    }
}

/// Splits a namespace from a name; nothing if it is not exactly that.
fn split(path: &str) -> Option<(&str, &str)> {
    let (namespace, object) = path.split_once('/')?;
    (!namespace.is_empty() && !object.is_empty() && !object.contains('/')).then_some((namespace, object))
}

fn is_granted(mesh: &Mesh<'_>, audience: &OutboundAudience, namespace: &Namespace, object: &str) -> bool {
    mesh.reference_grants(namespace).any(|grant| grant.lets_gateways_use(&audience.namespace, object))
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

#[cfg(test)]
mod tests;
