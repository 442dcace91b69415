//! Each row is a server's TLS and what its context must say at some place of its JSON form.

use super::*;
use crate::fixtures::{self, expect};
use model::gateway::FilePair;
use prost::Message;
use serde_json::{Value, json};

fn with_agent() -> Identity<'static> {
    Identity {
        present: true,
        exchanges_metadata: false,
        client_files: None,
        server_files: None,
        defaults: None,
    }
}

fn bare() -> Identity<'static> {
    Identity { present: false, ..with_agent() }
}

fn json_of(context: &DownstreamTlsContext) -> Value {
    let url = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    proto::json::to_json(url, &context.encode_to_vec()).unwrap()
}

fn server_tls(mode: ServerTlsMode, change: impl FnOnce(&mut ServerTls)) -> ServerTls {
    let mut tls = fixtures::server_tls(mode);
    change(&mut tls);
    tls
}

#[test]
#[rustfmt::skip]
fn gateways_open_tls() {
    use ServerTlsMode::{IstioMutual, Mutual, OptionalMutual, Simple};
    let credential = |tls: &mut ServerTls| tls.credential_name = Some("web".into());
    let files = |tls: &mut ServerTls| {
        tls.server_certificate = Some("/c".into());
        tls.private_key = Some("/k".into());
        tls.ca_certificates = Some("/ca".into());
    };
    let two_files = |tls: &mut ServerTls| tls.tls_certificates = vec![
        FilePair { certificate: "/rsa".into(), private_key: "/rk".into() },
        FilePair { certificate: "/ec".into(), private_key: "/ek".into() },
    ];
    let plain = |_: &mut ServerTls| {};
    let certificate = "/commonTlsContext/tlsCertificateSdsSecretConfigs/0/name";
    let second = "/commonTlsContext/tlsCertificateSdsSecretConfigs/1/name";
    let roots = "/commonTlsContext/combinedValidationContext/validationContextSdsSecretConfig/name";
    let accepted = "/commonTlsContext/combinedValidationContext/defaultValidationContext";
    let rows: Vec<(&str, ServerTls, Identity<'_>, &str, Value)> = vec![
        ("SIMPLE", server_tls(Simple, credential), with_agent(), certificate, json!("kubernetes://web")),
        ("SIMPLE asks for no certificate", server_tls(Simple, credential), with_agent(), "/requireClientCertificate", json!(false)),
        ("HTTP is negotiated", server_tls(Simple, credential), with_agent(), "/commonTlsContext/alpnProtocols", json!(["h2", "http/1.1"])),
        ("versions are Envoy's", server_tls(Simple, credential), with_agent(), "/commonTlsContext/tlsParams", Value::Null),
        ("another namespace", server_tls(Simple, |tls| tls.credential_name = Some("a/b".into())), with_agent(), certificate, json!("kubernetes://a/b")),
        ("a full name", server_tls(Simple, |tls| tls.credential_name = Some("kubernetes-gateway://a/b".into())), with_agent(), certificate, json!("kubernetes-gateway://a/b")),
        ("names on SIMPLE, which nothing could vouch for", server_tls(Simple, |tls| { credential(tls); tls.subject_alt_names = vec!["c".into()]; }), with_agent(), "/commonTlsContext/validationContext", json!(null)),
        ("MUTUAL", server_tls(Mutual, credential), with_agent(), "/requireClientCertificate", json!(true)),
        ("MUTUAL's authorities", server_tls(Mutual, credential), with_agent(), roots, json!("kubernetes://web-cacert")),
        ("authorities apart", server_tls(Mutual, |tls| { credential(tls); tls.ca_cert_credential_name = Some("ca".into()); }), with_agent(), roots, json!("kubernetes://ca")),
        ("pins", server_tls(Mutual, |tls| { credential(tls); tls.verify_certificate_spki = vec!["s".into()]; tls.verify_certificate_hash = vec!["h".into()]; }), with_agent(), accepted, json!({"verifyCertificateSpki": ["s"], "verifyCertificateHash": ["h"]})),
        ("OPTIONAL_MUTUAL", server_tls(OptionalMutual, credential), with_agent(), "/requireClientCertificate", json!(false)),
        ("untrusted ones are accepted", server_tls(OptionalMutual, |tls| { credential(tls); tls.insecure_skip_verify = true; }), with_agent(), accepted, json!({"trustChainVerification": "ACCEPT_UNTRUSTED"})),
        ("two secrets", server_tls(Mutual, |tls| tls.credential_names = vec!["ec".into(), "rsa".into()]), with_agent(), second, json!("kubernetes://rsa")),
        ("authorities of the first", server_tls(Mutual, |tls| tls.credential_names = vec!["ec".into(), "rsa".into()]), with_agent(), roots, json!("kubernetes://ec-cacert")),
        ("files", server_tls(Mutual, files), with_agent(), certificate, json!("file-cert:/c~/k")),
        ("file of authorities", server_tls(Mutual, files), with_agent(), roots, json!("file-root:/ca")),
        ("file of revocations", server_tls(Mutual, |tls| { files(tls); tls.ca_crl = Some("/crl".into()); }), with_agent(), accepted, json!({"crl": {"filename": "/crl"}})),
        ("two pairs of files", server_tls(Simple, two_files), with_agent(), second, json!("file-cert:/ec~/ek")),
        ("no agent: files", server_tls(Mutual, files), bare(), "/commonTlsContext/tlsCertificates", json!([{"certificateChain": {"filename": "/c"}, "privateKey": {"filename": "/k"}}])),
        ("no agent: file of authorities", server_tls(Mutual, files), bare(), "/commonTlsContext/validationContext", json!({"trustedCa": {"filename": "/ca"}})),
        ("no agent: secrets are Weft's", server_tls(Simple, credential), bare(), certificate, json!("kubernetes://web")),
        ("parameters", server_tls(Simple, |tls| { credential(tls); tls.min_version = TlsVersion::V1_2; tls.cipher_suites = vec!["A".into()]; tls.ecdh_curves = vec!["P-256".into()]; }), with_agent(), "/commonTlsContext/tlsParams", json!({"tlsMinimumProtocolVersion": "TLSv1_2", "cipherSuites": ["A"], "ecdhCurves": ["P-256"]})),
        ("ISTIO_MUTUAL", server_tls(IstioMutual, plain), with_agent(), certificate, json!("default")),
        ("ISTIO_MUTUAL's authorities", server_tls(IstioMutual, plain), with_agent(), roots, json!("ROOTCA")),
        ("its parameters do not count", server_tls(IstioMutual, |tls| tls.min_version = TlsVersion::V1_3), with_agent(), "/commonTlsContext/tlsParams", Value::Null),
    ];
    for (case, tls, identity, path, expected) in rows {
        let opened = server(identity, &tls, Application::Http).expect(case);
        expect(case, &json_of(&opened.context), path, &expected);
    }
}

#[test]
fn not_every_server_opens_tls() {
    use ServerTlsMode::{AutoPassthrough, IstioMutual, Passthrough};
    let rows = [(Passthrough, with_agent()), (AutoPassthrough, with_agent()), (IstioMutual, bare())];
    for (mode, identity) in rows {
        let opened = server(identity, &server_tls(mode, |_| {}), Application::Http);
        assert_eq!(opened, None, "{mode:?}");
    }
}

#[test]
fn only_secrets_over_ads_are_needed() {
    let mutual = server_tls(ServerTlsMode::Mutual, |tls| tls.credential_name = Some("web".into()));
    let secrets = server(with_agent(), &mutual, Application::Http).unwrap().secrets;
    assert_eq!(secrets, BTreeSet::from(["kubernetes://web".into(), "kubernetes://web-cacert".into()]));
    let own = server_tls(ServerTlsMode::IstioMutual, |_| {});
    assert!(server(with_agent(), &own, Application::Http).unwrap().secrets.is_empty());
}

#[test]
#[rustfmt::skip]
fn workloads_take_mutual_tls() {
    let config = MeshConfig { trust_domain_aliases: vec!["old.example".into()], ..MeshConfig::default() };
    let files = CertificateFiles { certificate: "/c".into(), private_key: "/k".into(), root: "/r".into() };
    let exchanging = Identity { exchanges_metadata: true, ..with_agent() };
    let with_files = Identity { server_files: Some(&files), ..with_agent() };
    let certificate = "/commonTlsContext/tlsCertificateSdsSecretConfigs/0/name";
    let validation = "/commonTlsContext/combinedValidationContext";
    let alpn = "/commonTlsContext/alpnProtocols";
    let rows = [
        ("certificate", with_agent(), Application::Http, certificate, json!("default")),
        ("required", with_agent(), Application::Http, "/requireClientCertificate", json!(true)),
        ("trust domains", with_agent(), Application::Http, &format!("{validation}/defaultValidationContext/matchSubjectAltNames"), json!([{"prefix": "spiffe://cluster.local/"}, {"prefix": "spiffe://old.example/"}])),
        ("ciphers", with_agent(), Application::Http, "/commonTlsContext/tlsParams/cipherSuites/5", json!("AES128-GCM-SHA256")),
        ("HTTP", exchanging, Application::Http, alpn, json!(["h2", "http/1.1"])),
        ("bytes, with metadata", exchanging, Application::Tcp, alpn, json!(["istio-peer-exchange", "h2", "http/1.1"])),
        ("bytes", with_agent(), Application::Tcp, alpn, json!(["h2", "http/1.1"])),
        ("files", with_files, Application::Http, certificate, json!("file-cert:/c~/k")),
        ("file of authorities", with_files, Application::Http, &format!("{validation}/validationContextSdsSecretConfig/name"), json!("file-root:/r")),
    ];
    for (case, identity, application, path, expected) in rows {
        let opened = mesh_server(&config, identity, application).expect(case);
        expect(case, &json_of(&opened.context), path, &expected);
    }
    assert_eq!(mesh_server(&config, bare(), Application::Http), None);
}

#[test]
fn the_mesh_says_what_servers_and_clients_do_not() {
    use model::mesh_config::TlsDefaults;
    let config = MeshConfig {
        tls_defaults: TlsDefaults {
            min_version: TlsVersion::V1_3,
            cipher_suites: vec!["AES128-SHA".into()],
            ecdh_curves: vec!["P-384".into()],
        },
        mesh_tls: TlsDefaults { min_version: TlsVersion::V1_3, ..TlsDefaults::default() },
        ..MeshConfig::default()
    };
    let own = ServerTls {
        credential_name: Some("c".into()),
        min_version: TlsVersion::V1_2,
        cipher_suites: vec!["AES256-SHA".into()],
        ..crate::fixtures::server_tls(ServerTlsMode::Simple)
    };
    let none = ServerTls { min_version: TlsVersion::Auto, cipher_suites: Vec::new(), ..own.clone() };
    let parameters = |tls: &ServerTls| {
        let context = server(with_agent().under(&config), tls, Application::Http).unwrap().context;
        context.common_tls_context.unwrap().tls_params.unwrap()
    };
    let (own, none) = (parameters(&own), parameters(&none));
    assert_eq!(
        (own.tls_minimum_protocol_version, own.cipher_suites),
        (TlsProtocol::TlSv12 as i32, vec!["AES256-SHA".to_owned()])
    );
    assert_eq!(own.ecdh_curves, ["P-384"]);
    assert_eq!(
        (none.tls_minimum_protocol_version, none.cipher_suites),
        (TlsProtocol::TlSv13 as i32, vec!["AES128-SHA".to_owned()])
    );
    let mesh = mesh_server(&config, with_agent(), Application::Http).unwrap().context;
    let mesh = mesh.common_tls_context.unwrap().tls_params.unwrap();
    assert_eq!(mesh.tls_minimum_protocol_version, TlsProtocol::TlSv13 as i32);
    assert_eq!(mesh.cipher_suites.len(), MESH_CIPHERS.len());
}
