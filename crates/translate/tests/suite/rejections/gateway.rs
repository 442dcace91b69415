//! Gateway.

const API: &str = "networking.istio.io/v1";
const KIND: &str = "Gateway";

/// Checks a server beside a good one: only the server at fault may go.
fn check_servers(cases: &[super::Case<'_>]) {
    for (server, fields) in cases {
        let server = server.replace("PORT", "port: {number: 80, name: http, protocol: HTTP}");
        let server = server.replace("SECURE", "port: {number: 443, name: https, protocol: HTTPS}");
        let good = "{hosts: [good.example.org], port: {number: 8080, name: good, protocol: HTTP}}";
        let outcome = super::translate(API, KIND, &format!("{{servers: [{server}, {good}]}}"));
        let refused: Vec<&str> =
            outcome.rejections.iter().map(|rejection| rejection.field.as_str()).collect();
        let fields: Vec<String> = fields.iter().map(|field| format!("spec.servers[0]{field}")).collect();
        assert_eq!(refused, fields, "{server}: {:#?}", outcome.rejections);
        let value = outcome.value.expect("the good server is used");
        assert!(value.contains("good.example.org"));
        assert_eq!(value.contains("index: 0,"), fields.is_empty(), "{server}");
    }
}

#[test]
fn hosts_and_ports() {
    check_servers(&[
        ("{hosts: ['*', '*.a.b', ns/a.b, ./a.b, '*/a.b', 10.1.2.3], PORT}", &[]),
        ("{}", &[".hosts", ".port"]),
        ("{hosts: [a], PORT}", &[".hosts[0]"]),
        ("{hosts: ['*a.b', a.*.b], PORT}", &[".hosts[0]", ".hosts[1]"]),
        ("{hosts: ['~/a.b', /a.b, n_s/a.b], PORT}", &[".hosts[0]", ".hosts[1]", ".hosts[2]"]),
        ("{hosts: ['*'], port: {}}", &[".port.protocol", ".port.name", ".port.number"]),
        ("{hosts: ['*'], port: {number: 66000, name: a, protocol: HTTP}}", &[".port.number"]),
        ("{hosts: ['*'], port: {number: 80, name: a, protocol: KAFKA}}", &[".port.protocol"]),
        ("{hosts: ['*'], port: {number: 80, name: a, protocol: HTTP, targetPort: 1}}", &[".port.targetPort"]),
        ("{hosts: ['*'], port: {number: 0, name: a, protocol: HTTP}, bind: 'unix:///a/b'}", &[]),
        ("{hosts: ['*'], PORT, bind: 'unix:///a/b'}", &[".port.number"]),
        ("{hosts: ['*'], PORT, bind: a.b}", &[".bind"]),
        ("{hosts: ['*'], PORT, bind: '::1'}", &[]),
    ]);
}

#[test]
fn tls_and_protocol_go_together() {
    check_servers(&[
        ("{hosts: ['*'], PORT, tls: {httpsRedirect: true}}", &[]),
        ("{hosts: ['*'], PORT, tls: {}}", &[".tls"]),
        ("{hosts: ['*'], SECURE}", &[".tls"]),
        ("{hosts: ['*'], SECURE, tls: {}}", &[]),
        ("{hosts: ['*'], SECURE, tls: {mode: STRICT}}", &[".tls.mode"]),
        ("{hosts: ['*'], SECURE, tls: {minProtocolVersion: SSL3}}", &[".tls.minProtocolVersion"]),
    ]);
}

#[test]
fn certificates() {
    check_servers(&[
        ("{hosts: ['*'], SECURE, tls: {mode: SIMPLE, credentialName: a}}", &[]),
        ("{hosts: ['*'], SECURE, tls: {mode: SIMPLE, serverCertificate: a, privateKey: b}}", &[]),
        ("{hosts: ['*'], SECURE, tls: {mode: SIMPLE}}", &[".tls.serverCertificate", ".tls.privateKey"]),
        (
            "{hosts: ['*'], SECURE, tls: {mode: SIMPLE, serverCertificate: a, privateKey: b, caCrl: c}}",
            &[".tls.caCrl"],
        ),
        (
            "{hosts: ['*'], SECURE, tls: {mode: MUTUAL, serverCertificate: a, privateKey: b}}",
            &[".tls.caCertificates"],
        ),
        (
            "{hosts: ['*'], SECURE, tls: {mode: MUTUAL, serverCertificate: a, privateKey: b, caCertCredentialName: c}}",
            &[],
        ),
        (
            "{hosts: ['*'], SECURE, tls: {mode: SIMPLE, credentialName: a, credentialNames: [b]}}",
            &[".tls.credentialNames"],
        ),
        (
            "{hosts: ['*'], SECURE, tls: {mode: SIMPLE, credentialName: a, serverCertificate: b, privateKey: c}}",
            &[".tls.serverCertificate"],
        ),
        (
            "{hosts: ['*'], SECURE, tls: {mode: SIMPLE, credentialNames: [a, b, c]}}",
            &[".tls.credentialNames"],
        ),
        (
            "{hosts: ['*'], SECURE, tls: {mode: SIMPLE, tlsCertificates: [{serverCertificate: a}]}}",
            &[".tls.tlsCertificates[0].privateKey"],
        ),
        ("{hosts: ['*'], SECURE, tls: {mode: ISTIO_MUTUAL, credentialName: a}}", &[".tls.credentialName"]),
    ]);
}

#[test]
fn a_gateway_without_a_good_server_keeps_its_last_good_form() {
    super::check(
        API,
        KIND,
        &[
            ("{}", &["spec.servers"]),
            (
                "{servers: [{hosts: ['*'], port: {number: 80, name: a, protocol: X}}]}",
                &["spec.servers[0].port.protocol"],
            ),
        ],
    );
}

#[test]
fn names_of_ports_are_unique() {
    let server = "{hosts: ['*'], port: {number: 80, name: a, protocol: HTTP}}";
    let outcome = super::translate(API, KIND, &format!("{{servers: [{server}, {server}]}}"));
    assert_eq!(outcome.rejections[0].field, "spec.servers[1].port.name");
    assert!(outcome.value.unwrap().contains("index: 0,"));
}

#[test]
fn what_has_no_effect_is_warned_of() {
    for (tls, field) in [
        ("{mode: PASSTHROUGH, credentialName: a}", "spec.servers[0].tls"),
        ("{mode: SIMPLE, credentialName: a, cipherSuites: [NOPE]}", "spec.servers[0].tls.cipherSuites[0]"),
        (
            "{mode: SIMPLE, credentialName: a, cipherSuites: [AES128-SHA, AES128-SHA]}",
            "spec.servers[0].tls.cipherSuites[1]",
        ),
    ] {
        let spec = format!(
            "{{servers: [{{hosts: ['*'], port: {{number: 443, name: a, protocol: HTTPS}}, tls: {tls}}}]}}"
        );
        assert_eq!(super::warned(API, KIND, &spec), [field]);
    }
}
