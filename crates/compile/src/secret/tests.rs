//! Who gets what by which name.

use super::*;
use crate::fixtures;
use model::reference_grant::Granted;
use model::{MeshViewBuilder, ReferenceGrant};

fn set(builder: &mut MeshViewBuilder, kind: Kind, namespace: &str, name: &str, has_key: bool, has_ca: bool) {
    let bytes = |what: &str| format!("{what} of {namespace}/{name}").into_bytes();
    builder.set_secret(model::Secret {
        key: ObjectKey::new(kind, namespace, name),
        certificate_chain: if has_key { bytes("chain") } else { Vec::new() },
        private_key: if has_key { bytes("key") } else { Vec::new() },
        ocsp_staple: None,
        ca: has_ca.then(|| bytes("roots")),
        crl: None,
        not_after: None,
    });
}

fn grant(from: &str, name: Option<&str>) -> ReferenceGrant {
    ReferenceGrant {
        key: ObjectKey::new(Kind::ReferenceGrant, "vault", "grant"),
        gateways_in: [Namespace::new(from)].into(),
        secrets: name.map_or(Granted::All, |name| Granted::Named([name.into()].into())),
    }
}

/// Returns the text of what a proxy in `app` gets.
fn text(builder: &mut MeshViewBuilder, name: &str) -> Option<String> {
    builder.publish();
    let view = builder.view().clone();
    let audience = fixtures::router();
    let resource = secret(&Mesh::new(&view), &audience, name)?;
    assert_eq!(&**resource.name(), name);
    let message = Secret::decode(resource.bytes().clone()).unwrap();
    let source = match message.r#type.unwrap() {
        secret::Type::TlsCertificate(certificate) => certificate.private_key,
        secret::Type::ValidationContext(context) => context.trusted_ca,
        other => panic!("{other:?}"),
    };
    let Some(Specifier::InlineBytes(bytes)) = source.unwrap().specifier else { panic!("not inline") };
    Some(String::from_utf8(bytes.to_vec()).unwrap())
}

#[test]
fn names_lead_to_what_is_ones_own_granted_or_public() {
    let mut builder = MeshViewBuilder::default();
    set(&mut builder, Kind::Secret, "app", "tls", true, true);
    set(&mut builder, Kind::Secret, "app", "two", true, true);
    set(&mut builder, Kind::Secret, "app", "two-cacert", false, true);
    set(&mut builder, Kind::Secret, "vault", "tls", true, true);
    set(&mut builder, Kind::Secret, "vault", "tls-cacert", false, true);
    set(&mut builder, Kind::ConfigMap, "vault", "roots", false, true);
    set(&mut builder, Kind::ConfigMap, "vault", "keyed", true, false);
    let own = [
        ("kubernetes://tls", Some("key of app/tls")),
        ("kubernetes://app/tls", Some("key of app/tls")),
        ("kubernetes-gateway://app/tls", Some("key of app/tls")),
        ("kubernetes://tls-cacert", Some("roots of app/tls")),
        ("kubernetes://two-cacert", Some("roots of app/two-cacert")),
        ("kubernetes-gateway://app/two-cacert", Some("roots of app/two-cacert")),
        ("kubernetes://two-cacert-cacert", Some("roots of app/two-cacert")),
        ("configmap://vault/roots", Some("roots of vault/roots")),
        ("configmap://vault/roots-cacert", Some("roots of vault/roots")),
        ("configmap://vault/keyed", None),
        ("configmap://vault/tls", None),
        ("configmap://roots", None),
        ("kubernetes://roots", None),
        ("kubernetes://vault/tls", None),
        ("kubernetes://app/none", None),
        ("kubernetes://app/../vault/tls", None),
        ("kubernetes:///tls", None),
        ("kubernetes-gateway://tls", None),
        ("kubernetes-gateway:///tls", None),
        ("tls", None),
    ];
    for (name, expected) in own {
        assert_eq!(text(&mut builder, name).as_deref(), expected, "{name}");
    }
    let foreign =
        ["kubernetes-gateway://vault/tls", "kubernetes-gateway://vault/tls-cacert", "kubernetes://vault/tls"];
    for (grant, expected) in [
        (None, [None, None, None]),
        (Some(grant("other", None)), [None, None, None]),
        (Some(grant("app", None)), [Some("key of vault/tls"), Some("roots of vault/tls-cacert"), None]),
        // The authorities apart are another Secret, which is not granted: those beside the certificate are.
        (Some(grant("app", Some("tls"))), [Some("key of vault/tls"), Some("roots of vault/tls"), None]),
        (Some(grant("app", Some("tls-cacert"))), [None, Some("roots of vault/tls-cacert"), None]),
        (Some(grant("app", Some("else"))), [None, None, None]),
        (None, [None, None, None]),
    ] {
        match grant {
            Some(grant) => builder.set_reference_grant(grant),
            None => builder.remove_reference_grant(&ObjectKey::new(Kind::ReferenceGrant, "vault", "grant")),
        }
        for (name, expected) in foreign.iter().zip(expected) {
            assert_eq!(text(&mut builder, name).as_deref(), expected, "{name}");
        }
    }
}
