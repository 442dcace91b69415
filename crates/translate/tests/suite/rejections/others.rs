//! PeerAuthentication, Services, credentials and MeshConfig.

use crate::common::{context, objects, translate_object};
use k8s_api::mesh_config::MeshConfig;

#[test]
fn peer_authentications() {
    const API: &str = "security.istio.io/v1";
    const KIND: &str = "PeerAuthentication";
    super::check(
        API,
        KIND,
        &[
            ("{}", &[]),
            ("{mtls: {mode: STRICT}}", &[]),
            ("{selector: {matchLabels: {a: b}}, portLevelMtls: {8080: {mode: UNSET}}}", &[]),
            ("{mtls: {mode: LOOSE}}", &["spec.mtls.mode"]),
            ("{portLevelMtls: {8080: {mode: STRICT}}}", &["spec.portLevelMtls"]),
            ("{selector: {}, portLevelMtls: {0: {}}}", &["spec.portLevelMtls", "spec.portLevelMtls[0]"]),
            ("{selector: {matchLabels: {a: '*'}}}", &["spec.selector.matchLabels[a]"]),
        ],
    );
    assert_eq!(super::warned(API, KIND, "{selector: {}, mtls: {mode: STRICT}}"), ["spec.selector"]);
}

/// Services with bad ports keep the others.
#[test]
fn services() {
    for (spec, fields) in [
        ("{ports: [{port: 0}, {port: 9}]}", &["spec.ports[0].port"][..]),
        ("{ports: [{port: 80, name: a_b}, {port: 9}]}", &["spec.ports[0].name"]),
        ("{ports: [{port: 80, targetPort: 70000}, {port: 9}]}", &["spec.ports[0].targetPort"]),
        ("{clusterIP: x, ports: [{port: 9}]}", &["spec.clusterIP"]),
        ("{clusterIP: None, ports: [{port: 9, targetPort: web}]}", &[]),
    ] {
        let outcome = super::translate("v1", "Service", spec);
        let refused: Vec<&str> =
            outcome.rejections.iter().map(|rejection| rejection.field.as_str()).collect();
        assert_eq!(refused, fields, "{spec}");
        assert!(outcome.value.unwrap().contains("port: 9,"), "{spec}");
    }
    super::check("v1", "Service", &[("{type: ExternalName}", &["spec.externalName"])]);
}

#[test]
fn credentials() {
    let pair = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let name = "a.test".to_owned();
        let certificate = rcgen::CertificateParams::new([name]).unwrap().self_signed(&key).unwrap();
        [certificate.pem(), key.serialize_pem()].map(|pem| format!("{pem:?}"))
    };
    let ([cert, key], [_, other]) = (pair(), pair());
    let sealed = key
        .replace("BEGIN PRIVATE", "BEGIN ENCRYPTED PRIVATE")
        .replace("END PRIVATE", "END ENCRYPTED PRIVATE");
    let hello = "\"-----BEGIN CERTIFICATE-----\\naGVsbG8=\\n-----END CERTIFICATE-----\\n\"";
    for (kind, data, fields, is_used) in [
        ("Secret", format!("tls.crt: {cert}, tls.key: {key}, ca.crt: {cert}"), &[][..], true),
        ("Secret", format!("cert: {cert}, key: {key}"), &[], true),
        ("Secret", format!("cacert: {cert}"), &[], true),
        ("Secret", format!("tls.crt: {cert}"), &["data"], false),
        ("Secret", "tls.crt: '', tls.key: ''".to_owned(), &["data"], false),
        ("Secret", format!("tls.crt: {key}, tls.key: {key}"), &["data[tls.crt]"], false),
        ("Secret", format!("tls.crt: {cert}, tls.key: {other}"), &["data[tls.key]"], false),
        ("Secret", format!("tls.crt: {cert}, tls.key: {other}, ca.crt: {cert}"), &["data[tls.key]"], true),
        ("Secret", format!("tls.crt: {cert}, tls.key: {sealed}"), &["data[tls.key]"], false),
        ("Secret", format!("tls.crt: {hello}, tls.key: {key}"), &["data[tls.crt]"], false),
        ("Secret", format!("tls.crt: {cert}, tls.key: {cert}"), &["data[tls.key]"], false),
        ("Secret", format!("tls.crt: {cert}, tls.key: rubbish, ca.crt: {cert}"), &["data[tls.key]"], true),
        ("Secret", format!("tls.crt: {cert}, tls.key: {key}, ca.crl: x"), &["data[ca.crl]"], true),
        ("Secret", "ca.crt: '-----BEGIN CERTIFICATE-----'".to_owned(), &["data[ca.crt]"], false),
        ("ConfigMap", format!("ca.crt: {cert}"), &[], true),
        ("ConfigMap", format!("tls.crt: {cert}, tls.key: {key}"), &[], false),
        ("ConfigMap", format!("ca.crt: {key}"), &["data[ca.crt]"], false),
    ] {
        let field = if kind == "Secret" { "stringData" } else { "data" };
        let yaml = format!(
            "apiVersion: v1\nkind: {kind}\nmetadata: {{name: x, namespace: shop}}\n{field}: {{{data}}}\n"
        );
        let outcome = translate_object(&context(), &objects(&yaml)[0]);
        let refused: Vec<&str> =
            outcome.rejections.iter().map(|rejection| rejection.field.as_str()).collect();
        assert_eq!(refused, fields, "{yaml}");
        assert_eq!(outcome.value.is_some(), is_used, "{yaml}");
        assert!(!format!("{outcome:?}").contains("-----BEGIN"), "bytes of a credential must not be printed");
    }
}

#[test]
fn authorities_have_a_secret_of_their_own_or_share_one() {
    assert_eq!(translate::ca_secret_names("edge"), ["edge-cacert", "edge"]);
    assert_eq!(translate::ca_secret_names("edge-cacert"), ["edge-cacert", "edge"]);
}

#[test]
fn mesh_configs() {
    for (yaml, fields) in [
        ("{}", &[][..]),
        ("{connectTimeout: 0s}", &["mesh.connectTimeout"]),
        ("{protocolDetectionTimeout: soon}", &["mesh.protocolDetectionTimeout"]),
        ("{dnsRefreshRate: '5'}", &["mesh.dnsRefreshRate"]),
        ("{proxyListenPort: 0}", &["mesh.proxyListenPort"]),
        ("{outboundTrafficPolicy: {mode: SOME}}", &["mesh.outboundTrafficPolicy.mode"]),
        ("{inboundTrafficPolicy: {mode: SOME}}", &["mesh.inboundTrafficPolicy.mode"]),
        ("{h2UpgradePolicy: SOME}", &["mesh.h2UpgradePolicy"]),
        ("{accessLogEncoding: XML}", &["mesh.accessLogEncoding"]),
        ("{pathNormalization: {normalization: SOME}}", &["mesh.pathNormalization.normalization"]),
        ("{defaultHttpRetryPolicy: {attempts: -1}}", &["mesh.defaultHttpRetryPolicy.attempts"]),
        ("{defaultTrafficPolicy: {connectionPool: {}}}", &["mesh.defaultTrafficPolicy.connectionPool"]),
        ("{defaultConfig: {drainDuration: 0s}}", &["mesh.defaultConfig.drainDuration"]),
        (
            "{defaultConfig: {gatewayTopology: {forwardClientCertDetails: SOME}}}",
            &["mesh.defaultConfig.gatewayTopology.forwardClientCertDetails"],
        ),
    ] {
        let parsed = MeshConfig::parse(&[("test", yaml)]).unwrap();
        let outcome = translate::mesh_config(&"cluster.local".into(), &"c1".into(), &parsed.config);
        let refused: Vec<&str> =
            outcome.rejections.iter().map(|rejection| rejection.field.as_str()).collect();
        assert_eq!(refused, fields, "{yaml}");
        assert_eq!(outcome.value.is_some(), fields.is_empty(), "{yaml}");
    }
}

#[test]
fn tls_towards_unknown_hosts_needs_the_mode_that_resolves_them() {
    let translate = |yaml: &str| {
        let parsed = MeshConfig::parse(&[("test", yaml)]).unwrap();
        translate::mesh_config(&"cluster.local".into(), &"c1".into(), &parsed.config)
    };
    let good =
        translate("outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS, tls: {mode: SIMPLE, sni: a.test}}");
    let config = good.value.unwrap().config;
    assert_eq!(config.dynamic_dns_tls.unwrap().sni.as_deref(), Some("a.test"));
    assert!(good.warnings.is_empty(), "{:?}", good.warnings);

    let idle = translate("outboundTrafficPolicy: {mode: ALLOW_ANY, tls: {mode: SIMPLE}}");
    assert_eq!(idle.warnings[0].field, "mesh.outboundTrafficPolicy.tls");
    assert_eq!(idle.value.unwrap().config.dynamic_dns_tls, None);

    let unsent = translate(
        "outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS, egressProxy: {host: out.test, port: {number: 80}}}",
    );
    assert_eq!(unsent.warnings[0].field, "mesh.outboundTrafficPolicy.egressProxy");

    for (tls, field) in [
        ("{mode: ISTIO_MUTUAL}", "mesh.outboundTrafficPolicy.tls.mode"),
        ("{mode: SIMPLE, credentialName: x}", "mesh.outboundTrafficPolicy.tls.credentialName"),
    ] {
        let bad = translate(&format!("outboundTrafficPolicy: {{mode: ALLOW_ANY_DYNAMIC_DNS, tls: {tls}}}"));
        assert_eq!(bad.rejections[0].field, field);
        assert!(bad.value.is_none());
    }
}

#[test]
fn the_defaults_of_both_crates_are_the_same_and_set_fields_arrive() {
    let translate = |yaml: &str| {
        let parsed = MeshConfig::parse(&[("test", yaml)]).unwrap();
        translate::mesh_config(&"cluster.local".into(), &"c1".into(), &parsed.config).value.unwrap()
    };
    let default = model::MeshConfig { cluster: "c1".into(), ..model::MeshConfig::default() };
    assert_eq!(translate("{}").config, default);
    let mesh = translate(
        "{rootNamespace: mesh, defaultServiceExportTo: [.], outboundTrafficPolicy: {}, inboundTrafficPolicy: {mode: LOCALHOST},
          defaultConfig: {gatewayTopology: {numTrustedProxies: 2, proxyProtocol: {}}}, localityLbSetting: {enabled: false}}",
    );
    assert_eq!(mesh.context.root_namespace.as_str(), "mesh");
    assert_eq!(mesh.context.default_export_to.service, [".".into()]);
    let config = mesh.config;
    assert_eq!(config.outbound_traffic_policy.mode, model::sidecar::OutboundMode::RegistryOnly);
    assert!(!config.inbound_passthrough && config.proxy.proxy_protocol);
    assert_eq!((config.proxy.num_trusted_proxies, config.locality_lb.enabled), (2, Some(false)));
}
