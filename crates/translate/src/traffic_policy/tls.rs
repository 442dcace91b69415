//! TLS towards endpoints.

use crate::report::At;
use crate::virtual_service::unknown;
use k8s_api::destination_rule as api;
use model::Str;
use model::destination_rule::{ClientTls, ClientTlsMode};

pub(crate) fn client_tls(at: &At<'_>, given: &api::ClientTlsSettings) -> ClientTls {
    let mode = match given.mode.as_ref() {
        None | Some(api::ClientTlsMode::Disable) => ClientTlsMode::Disable,
        Some(api::ClientTlsMode::Simple) => ClientTlsMode::Simple,
        Some(api::ClientTlsMode::Mutual) => ClientTlsMode::Mutual,
        Some(api::ClientTlsMode::IstioMutual) => ClientTlsMode::IstioMutual,
        Some(api::ClientTlsMode::Other(value)) => {
            unknown(&at.field("mode"), value, api::ClientTlsMode::VALUES);
            ClientTlsMode::Disable
        }
    };
    check_unverified(at, mode, given);
    check_credentials(at, mode, given);
    let text = |given: &str| (!given.is_empty()).then(|| Str::from(given));
    ClientTls {
        mode,
        client_certificate: text(&given.client_certificate),
        private_key: text(&given.private_key),
        ca_certificates: text(&given.ca_certificates),
        credential_name: text(&given.credential_name),
        subject_alt_names: given.subject_alt_names.iter().map(|name| Str::from(name.as_str())).collect(),
        sni: text(&given.sni),
        insecure_skip_verify: given.insecure_skip_verify,
        ca_crl: text(&given.ca_crl),
    }
}

fn check_unverified(at: &At<'_>, mode: ClientTlsMode, given: &api::ClientTlsSettings) {
    if given.insecure_skip_verify != Some(true)
        || !matches!(mode, ClientTlsMode::Simple | ClientTlsMode::Mutual)
    {
        return;
    }
    let contradictions = [
        ("caCertificates", !given.ca_certificates.is_empty()),
        ("credentialName", mode == ClientTlsMode::Simple && !given.credential_name.is_empty()),
        ("subjectAltNames", !given.subject_alt_names.is_empty()),
    ];
    for (field, _) in contradictions.into_iter().filter(|(_, is_set)| *is_set) {
        at.field(field).reject("cannot be combined with insecureSkipVerify: nothing is checked");
    }
}

fn check_credentials(at: &At<'_>, mode: ClientTlsMode, given: &api::ClientTlsSettings) {
    if !matches!(mode, ClientTlsMode::Simple | ClientTlsMode::Mutual) {
        return;
    }
    let files = [
        ("clientCertificate", &given.client_certificate),
        ("privateKey", &given.private_key),
        ("caCertificates", &given.ca_certificates),
        ("caCrl", &given.ca_crl),
    ];
    if !given.credential_name.is_empty() {
        for (field, _) in files.into_iter().filter(|(_, file)| !file.is_empty()) {
            at.field(field).reject("cannot be combined with credentialName, which brings it");
        }
        check_config_map(at, &given.credential_name);
    } else if mode == ClientTlsMode::Mutual {
        for (field, _) in files[..2].iter().filter(|(_, file)| file.is_empty()) {
            at.field(field).reject("is required for mode MUTUAL");
        }
    }
}

fn check_config_map(at: &At<'_>, name: &str) {
    let Some(reference) = name.strip_prefix("configmap://") else { return };
    let is_complete =
        reference.split_once('/').is_some_and(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
    if !is_complete {
        at.field("credentialName").reject(format!("{name:?} must be configmap://namespace/name"));
    }
}
