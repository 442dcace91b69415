//! TLS of servers: of gateways, and of Sidecars' inbound listeners.

use crate::report::At;
use crate::virtual_service::unknown;
use k8s_api::gateway as api;
use model::Str;
use model::gateway::{FilePair, ServerTls, ServerTlsMode, TlsVersion};
use std::collections::BTreeSet;

const CIPHER_SUITES: [&str; 15] = [
    "AES128-GCM-SHA256",
    "AES128-SHA",
    "AES256-GCM-SHA384",
    "AES256-SHA",
    "DES-CBC3-SHA",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-SHA",
    "ECDHE-RSA-CHACHA20-POLY1305",
];

/// Parses TLS of a server.
pub(crate) fn server_tls(at: &At<'_>, given: &api::ServerTlsSettings) -> ServerTls {
    let mode = mode(&at.field("mode"), given.mode.as_ref());
    match mode {
        ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => {
            if certificate_fields(given).into_iter().any(|(_, is_set)| is_set) {
                at.warn(format!("{} does not use certificates: they have no effect", mode_name(mode)));
            }
        }
        ServerTlsMode::IstioMutual => {
            for (field, _) in certificate_fields(given).into_iter().filter(|(_, is_set)| *is_set) {
                at.field(field)
                    .reject("cannot be combined with ISTIO_MUTUAL, which uses the workload's certificate");
            }
        }
        ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual => {
            check_certificates(at, mode, given)
        }
    }
    let text = |given: &str| (!given.is_empty()).then(|| Str::from(given));
    let list = |given: &[String]| given.iter().map(|item| Str::from(item.as_str())).collect::<Vec<_>>();
    ServerTls {
        https_redirect: given.https_redirect,
        mode,
        server_certificate: text(&given.server_certificate),
        private_key: text(&given.private_key),
        ca_certificates: text(&given.ca_certificates),
        ca_crl: text(&given.ca_crl),
        credential_name: text(&given.credential_name),
        credential_names: list(&given.credential_names),
        tls_certificates: given
            .tls_certificates
            .iter()
            .map(|pair| FilePair {
                certificate: pair.server_certificate.as_str().into(),
                private_key: pair.private_key.as_str().into(),
            })
            .collect(),
        ca_cert_credential_name: text(&given.ca_cert_credential_name),
        subject_alt_names: list(&given.subject_alt_names),
        verify_certificate_spki: list(&given.verify_certificate_spki),
        verify_certificate_hash: list(&given.verify_certificate_hash),
        min_version: version(&at.field("minProtocolVersion"), given.min_protocol_version.as_ref()),
        max_version: version(&at.field("maxProtocolVersion"), given.max_protocol_version.as_ref()),
        cipher_suites: cipher_suites(&at.field("cipherSuites"), &given.cipher_suites),
        ecdh_curves: list(&given.ecdh_curves),
        insecure_skip_verify: given.insecure_skip_verify.unwrap_or_default(),
    }
}

fn certificate_fields(given: &api::ServerTlsSettings) -> [(&'static str, bool); 7] {
    [
        ("serverCertificate", !given.server_certificate.is_empty()),
        ("privateKey", !given.private_key.is_empty()),
        ("caCertificates", !given.ca_certificates.is_empty()),
        ("caCrl", !given.ca_crl.is_empty()),
        ("credentialName", !given.credential_name.is_empty()),
        ("credentialNames", !given.credential_names.is_empty()),
        ("tlsCertificates", !given.tls_certificates.is_empty()),
    ]
}

/// Checks that there is one certificate with its key, from one source, and what clients are checked against.
fn check_certificates(at: &At<'_>, mode: ServerTlsMode, given: &api::ServerTlsSettings) {
    let sources = [
        ("credentialName", !given.credential_name.is_empty()),
        ("credentialNames", !given.credential_names.is_empty()),
        ("serverCertificate", !given.server_certificate.is_empty() && !given.private_key.is_empty()),
        ("tlsCertificates", !given.tls_certificates.is_empty()),
    ];
    let mut set = sources.into_iter().filter(|(_, is_set)| *is_set).map(|(field, _)| field);
    if let Some(first) = set.next()
        && let Some(second) = set.next()
    {
        at.field(second)
            .reject(format!("cannot be combined with {first}: there must be one source of certificates"));
        return;
    }
    for (field, count) in
        [("credentialNames", given.credential_names.len()), ("tlsCertificates", given.tls_certificates.len())]
    {
        if count > 2 {
            at.field(field).reject("at most two are allowed: one RSA, one ECDSA");
        }
    }
    if !given.credential_name.is_empty() || !given.credential_names.is_empty() {
        return;
    }
    let missing = |field| {
        let at = at.field(field);
        at.reject(format!("is required for mode {}, or a credentialName", mode_name(mode)));
    };
    if given.tls_certificates.is_empty() {
        if given.server_certificate.is_empty() {
            missing("serverCertificate");
        }
        if given.private_key.is_empty() {
            missing("privateKey");
        }
    }
    let at_pairs = at.field("tlsCertificates");
    for (i, pair) in given.tls_certificates.iter().enumerate() {
        let at = at_pairs.index(i);
        for (field, file) in
            [("serverCertificate", &pair.server_certificate), ("privateKey", &pair.private_key)]
        {
            if file.is_empty() {
                at.field(field).reject("is required");
            }
        }
    }
    if mode == ServerTlsMode::Simple {
        if !given.ca_crl.is_empty() {
            at.field("caCrl").reject("cannot be combined with SIMPLE: clients have no certificates");
        }
    } else if given.ca_certificates.is_empty() && given.ca_cert_credential_name.is_empty() {
        missing("caCertificates");
    }
}

/// Returns the cipher suites that are known, each once.
pub(crate) fn cipher_suites(at: &At<'_>, given: &[String]) -> Vec<Str> {
    let mut seen = BTreeSet::new();
    let suites = given.iter().enumerate().filter_map(|(i, suite)| {
        let at = at.index(i);
        // `ALL`, and expressions of OpenSSL such as `-ALL` or `[A|B]`, are for Envoy to judge.
        let is_name = suite.starts_with(|c: char| c.is_alphanumeric());
        if is_name && suite != "ALL" && !CIPHER_SUITES.contains(&suite.as_str()) {
            at.warn(format!(
                "{suite:?} is not a cipher suite and has no effect: use {}",
                CIPHER_SUITES.join(", ")
            ));
            return None;
        }
        if !seen.insert(suite.as_str()) {
            at.warn(format!("{suite:?} is a duplicate and has no effect"));
            return None;
        }
        Some(Str::from(suite.as_str()))
    });
    suites.collect()
}

fn mode(at: &At<'_>, given: Option<&api::ServerTlsMode>) -> ServerTlsMode {
    match given {
        None | Some(api::ServerTlsMode::Passthrough) => ServerTlsMode::Passthrough,
        Some(api::ServerTlsMode::Simple) => ServerTlsMode::Simple,
        Some(api::ServerTlsMode::Mutual) => ServerTlsMode::Mutual,
        Some(api::ServerTlsMode::AutoPassthrough) => ServerTlsMode::AutoPassthrough,
        Some(api::ServerTlsMode::IstioMutual) => ServerTlsMode::IstioMutual,
        Some(api::ServerTlsMode::OptionalMutual) => ServerTlsMode::OptionalMutual,
        Some(api::ServerTlsMode::Other(value)) => {
            unknown(at, value, api::ServerTlsMode::VALUES);
            ServerTlsMode::Passthrough
        }
    }
}

/// Returns the mode as it is written in objects.
pub(crate) fn mode_name(mode: ServerTlsMode) -> &'static str {
    match mode {
        ServerTlsMode::Passthrough => "PASSTHROUGH",
        ServerTlsMode::Simple => "SIMPLE",
        ServerTlsMode::Mutual => "MUTUAL",
        ServerTlsMode::AutoPassthrough => "AUTO_PASSTHROUGH",
        ServerTlsMode::IstioMutual => "ISTIO_MUTUAL",
        ServerTlsMode::OptionalMutual => "OPTIONAL_MUTUAL",
    }
}

fn version(at: &At<'_>, given: Option<&api::TlsProtocol>) -> TlsVersion {
    match given {
        None | Some(api::TlsProtocol::Auto) => TlsVersion::Auto,
        Some(api::TlsProtocol::V1_0) => TlsVersion::V1_0,
        Some(api::TlsProtocol::V1_1) => TlsVersion::V1_1,
        Some(api::TlsProtocol::V1_2) => TlsVersion::V1_2,
        Some(api::TlsProtocol::V1_3) => TlsVersion::V1_3,
        Some(api::TlsProtocol::Other(value)) => {
            unknown(at, value, api::TlsProtocol::VALUES);
            TlsVersion::Auto
        }
    }
}
