//! How connections to endpoints are encrypted.

use super::*;
use crate::audience::CertificateFiles;
use crate::fixtures::{external, peer_authentication, router, sidecar};
use model::destination_rule::ProxyProtocol;
use model::service::Resolution;
use model::{Endpoint, MtlsMode};
use serde_json::json;

fn nobody() -> OutboundAudience {
    OutboundAudience { has_identity: false, ..sidecar() }
}

#[test]
#[rustfmt::skip]
fn mutual_tls_is_automatic() {
    let rows = [
        ("/transportSocketMatches/0/match", json!({"tlsMode": "istio"})),
        ("/transportSocketMatches/1/name", json!("tlsMode-disabled")),
        ("@marked/sni", json!("outbound_.80_._.cart.app.svc.cluster.local")),
        ("@marked/commonTlsContext/alpnProtocols", json!(["istio", "h2"])),
        ("@marked/commonTlsContext/tlsCertificateSdsSecretConfigs/0/name", json!("default")),
        ("@marked/commonTlsContext/tlsCertificateSdsSecretConfigs/0/sdsConfig/initialFetchTimeout", json!("0s")),
        ("@marked/commonTlsContext/combinedValidationContext/validationContextSdsSecretConfig/name", json!("ROOTCA")),
        ("@marked/commonTlsContext/combinedValidationContext/defaultValidationContext/matchSubjectAltNames", json!([{"exact": "spiffe://cluster.local/ns/app/sa/cart"}])),
    ];
    let cluster = &compile(&world(&cart(Protocol::Grpc)), &sidecar())[CLUSTER];
    for (path, expected) in rows {
        expect("automatic", cluster, path, &expected);
    }
}

#[test]
#[rustfmt::skip]
fn mutual_tls_depends_on_both_sides() {
    let cart = cart(Protocol::Grpc);
    let headless = Service { resolution: Resolution::Passthrough, ..cart.clone() };
    let mixed = [endpoint("10.0.0.1", 80), Endpoint { mtls: false, ..endpoint("10.0.0.2", 80) }];
    let outside = external(HOST, Resolution::ClientSide, &[(80, Protocol::Grpc)]);
    let mut exchanging = sidecar();
    exchanging.switches.extensions.insert("istio.metadata_exchange".into());
    let refused = |namespace| peer_authentication(namespace, MtlsMode::Disable);
    let disabled = cart_rule(encrypted(client_tls(ClientTlsMode::Disable)));
    let marked = "/transportSocketMatches/0/name";
    let rows = [
        ("the mesh has it off", world(&cart).config(|config| config.enable_auto_mtls = false), sidecar(), marked, Value::Null),
        ("no identity", world(&cart), nobody(), marked, Value::Null),
        ("outside the mesh", world(&outside), sidecar(), marked, Value::Null),
        ("the namespace refuses it", world(&cart).peer_authentication(refused("app")), sidecar(), marked, Value::Null),
        ("the mesh refuses it", world(&cart).peer_authentication(refused("istio-system")), sidecar(), marked, Value::Null),
        ("the namespace knows better", world(&cart).peer_authentication(refused("istio-system")).peer_authentication(peer_authentication("app", MtlsMode::Strict)), sidecar(), marked, json!("tlsMode-istio")),
        ("the rule says no", world(&cart).rule(disabled), sidecar(), marked, Value::Null),
        ("headless, all capable", world(&headless), sidecar(), "/transportSocket/name", json!("envoy.transport_sockets.tls")),
        ("headless, one not", World::new().service(&headless).endpoints(&headless, &mixed), sidecar(), "/transportSocket", Value::Null),
        ("headless, nobody", World::new().service(&headless), sidecar(), "/transportSocket", Value::Null),
        ("what is not declared is said to be HTTP", world(&super::cart(Protocol::Unsupported)), sidecar(), "@marked/commonTlsContext/alpnProtocols", json!(["istio-http/1.1", "istio"])),
        ("what is declared to be bytes is not", world(&super::cart(Protocol::Tcp)), sidecar(), "@marked/commonTlsContext/alpnProtocols", json!(["istio"])),
        ("with the filter that swaps metadata", world(&cart), exchanging.clone(), "/filters/0/name", json!("istio.metadata_exchange")),
        ("and its ALPN", world(&cart), exchanging, "@marked/commonTlsContext/alpnProtocols", json!(["istio-peer-exchange", "istio", "h2"])),
    ];
    for (case, world, audience, path, expected) in rows {
        expect(case, compile(&world, &audience).values().next().expect(case), path, &expected);
    }
}

#[test]
fn names_of_certificates_are_known_in_every_trust_domain() {
    let names = vec!["old/cart".into(), "cart@example.org".into()];
    let cart = Service { subject_alt_names: names, ..cart(Protocol::Http) };
    let world = world(&cart).config(|config| config.trust_domain_aliases = vec!["old.example".into()]);
    let expected = [
        "cart@example.org",
        "spiffe://cluster.local/ns/app/sa/cart",
        "spiffe://cluster.local/ns/old/sa/cart",
        "spiffe://old.example/ns/app/sa/cart",
        "spiffe://old.example/ns/old/sa/cart",
    ];
    let expected = expected.map(|name| json!({"exact": name})).into_iter().collect();
    let accepted = "@marked/commonTlsContext/combinedValidationContext/defaultValidationContext";
    let path = format!("{accepted}/matchSubjectAltNames");
    expect("names", &compile(&world, &sidecar())[CLUSTER], &path, &expected);
}

#[test]
#[rustfmt::skip]
fn rules_ask_for_tls() {
    let simple = client_tls(ClientTlsMode::Simple);
    let istio = client_tls(ClientTlsMode::IstioMutual);
    let mutual = ClientTls { client_certificate: Some("/c".into()), private_key: Some("/k".into()), ca_certificates: Some("/ca".into()), ..client_tls(ClientTlsMode::Mutual) };
    let named = ClientTls { subject_alt_names: vec!["a.org".into()], sni: Some("b.org".into()), ca_crl: Some("/crl".into()), ..mutual.clone() };
    let skipping = ClientTls { insecure_skip_verify: Some(true), ..simple.clone() };
    let credential = ClientTls { credential_name: Some("bank".into()), ..client_tls(ClientTlsMode::Mutual) };
    let config_map = ClientTls { credential_name: Some("configmap://app/roots".into()), ..simple.clone() };
    let mut with_files = sidecar();
    with_files.switches.client_certificates = Some(CertificateFiles { certificate: "/fc".into(), private_key: "/fk".into(), root: "/fr".into() });

    let auto = "@http/upstreamHttpProtocolOptions";
    let certificate = "@socket/commonTlsContext/tlsCertificateSdsSecretConfigs/0/name";
    let roots = "@socket/commonTlsContext/combinedValidationContext/validationContextSdsSecretConfig/name";
    let accepted = "@socket/commonTlsContext/combinedValidationContext/defaultValidationContext";
    let rows: Vec<(&str, &ClientTls, OutboundAudience, &str, Value)> = vec![
        ("the system's roots", &simple, sidecar(), roots, json!("file-root:system")),
        ("names by request", &simple, sidecar(), auto, json!({"autoSni": true, "autoSanValidation": true})),
        ("versions", &simple, sidecar(), "@socket/commonTlsContext/tlsParams", json!({"tlsMinimumProtocolVersion": "TLSv1_2", "tlsMaximumProtocolVersion": "TLSv1_3"})),
        ("no ALPN for HTTP/1.1", &simple, sidecar(), "@socket/commonTlsContext/alpnProtocols", Value::Null),
        ("ALPNs are left alone", &simple, sidecar(), "/metadata/filterMetadata/istio/alpn_override", json!("false")),
        ("files over the agent", &mutual, sidecar(), certificate, json!("file-cert:/c~/k")),
        ("roots over the agent", &mutual, sidecar(), roots, json!("file-root:/ca")),
        ("given names", &named, sidecar(), accepted, json!({"matchSubjectAltNames": [{"exact": "a.org"}], "crl": {"filename": "/crl"}})),
        ("a given SNI", &named, sidecar(), "@socket/sni", json!("b.org")),
        ("a given SNI is not replaced", &named, sidecar(), auto, Value::Null),
        ("nothing is verified", &skipping, sidecar(), "@socket/commonTlsContext/combinedValidationContext", Value::Null),
        ("nothing at all", &skipping, sidecar(), "@socket/commonTlsContext/validationContext", json!({})),
        ("nothing is verified, SNI by request", &skipping, sidecar(), auto, json!({"autoSni": true})),
        ("a secret is withheld from sidecars", &credential, sidecar(), "/transportSocket", Value::Null),
        ("a secret on a gateway", &credential, router(), certificate, json!("kubernetes://bank")),
        ("its authorities", &credential, router(), roots, json!("kubernetes://bank-cacert")),
        ("over ADS", &credential, router(), "@socket/commonTlsContext/tlsCertificateSdsSecretConfigs/0/sdsConfig", json!({"ads": {}, "resourceApiVersion": "V3"})),
        ("ConfigMaps are open", &config_map, sidecar(), roots, json!("configmap://app/roots-cacert")),
        ("no agent: files", &mutual, nobody(), "@socket/commonTlsContext/tlsCertificates/0", json!({"certificateChain": {"filename": "/c"}, "privateKey": {"filename": "/k"}})),
        ("no agent: roots", &mutual, nobody(), "@socket/commonTlsContext/validationContext/trustedCa/filename", json!("/ca")),
        ("no agent: the system's roots", &simple, nobody(), "@socket/commonTlsContext/validationContext/trustedCa/filename", json!("/etc/ssl/certs/ca-certificates.crt")),
        ("mutual TLS everywhere", &istio, sidecar(), certificate, json!("default")),
        ("its SNI", &istio, sidecar(), "@socket/sni", json!("outbound_.80_._.cart.app.svc.cluster.local")),
        ("its names", &istio, sidecar(), accepted, json!({"matchSubjectAltNames": [{"exact": "spiffe://cluster.local/ns/app/sa/cart"}]})),
        ("without an identity it fails", &istio, nobody(), "@socket/commonTlsContext/validationContext/verifyCertificateHash/0", json!("0".repeat(64))),
        ("files stand in", &istio, with_files, certificate, json!("file-cert:/fc~/fk")),
    ];
    for (case, tls, audience, path, expected) in rows {
        expect(case, &under(Protocol::Http, encrypted(tls.clone()), &audience), path, &expected);
    }
    let cluster = under(Protocol::Http2, encrypted(simple), &sidecar());
    expect("HTTP/2", &cluster, "@socket/commonTlsContext/alpnProtocols", &json!(["h2"]));
}

#[test]
fn only_secrets_over_ads_are_needed() {
    let credential = ClientTls { credential_name: Some("bank".into()), ..client_tls(ClientTlsMode::Mutual) };
    let rows = [
        (credential, router(), vec!["kubernetes://bank", "kubernetes://bank-cacert"]),
        (client_tls(ClientTlsMode::Simple), router(), vec![]),
        (client_tls(ClientTlsMode::IstioMutual), sidecar(), vec![]),
    ];
    for (tls, audience, expected) in rows {
        let world = world(&cart(Protocol::Http)).rule(cart_rule(encrypted(tls)));
        let mesh = Mesh::new(world.view());
        let scope = scope_of(&mesh, &audience);
        let clusters = outbound(&mesh, &scope, &audience, &cart(Protocol::Http).key);
        let secrets: Vec<&str> = clusters[0].needs().secrets.iter().map(|name| &**name).collect();
        assert_eq!(secrets, expected);
    }
}

#[test]
fn the_proxy_protocol_is_outermost() {
    let with = |tls: Option<ClientTls>| {
        let base = PortPolicy { proxy_protocol: Some(ProxyProtocol::V2), tls, ..PortPolicy::default() };
        under(Protocol::Http, base, &sidecar())
    };
    let automatic = with(None);
    for index in [0, 1] {
        let path = format!("/transportSocketMatches/{index}/transportSocket/typedConfig/config");
        expect("each socket", &automatic, &path, &json!({"version": "V2"}));
    }
    let plain = with(Some(client_tls(ClientTlsMode::Disable)));
    expect("plain text", &plain, "@socket/transportSocket/name", &json!("raw_buffer"));
    let tls = with(Some(client_tls(ClientTlsMode::Simple)));
    expect("TLS", &tls, "@socket/transportSocket/name", &json!("envoy.transport_sockets.tls"));
}
