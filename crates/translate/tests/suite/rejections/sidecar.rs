//! Sidecar.

const API: &str = "networking.istio.io/v1";
const KIND: &str = "Sidecar";

#[test]
fn the_whole() {
    super::check(
        API,
        KIND,
        &[
            ("{}", &["spec"]),
            ("{workloadSelector: {labels: {a: b}}}", &["spec"]),
            ("{outboundTrafficPolicy: {}}", &[]),
            ("{outboundTrafficPolicy: {mode: SOME}}", &["spec.outboundTrafficPolicy.mode"]),
            (
                "{outboundTrafficPolicy: {egressProxy: {host: a}}}",
                &["spec.outboundTrafficPolicy.egressProxy"],
            ),
            (
                "{outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: a*b}}}",
                &["spec.outboundTrafficPolicy.egressProxy.host"],
            ),
            ("{inboundConnectionPool: {}}", &["spec.inboundConnectionPool"]),
            (
                "{workloadSelector: {labels: {a: '*'}}, egress: [{hosts: ['*/*']}]}",
                &["spec.workloadSelector.labels[a]"],
            ),
        ],
    );
}

#[test]
fn egress() {
    let port = "port: {number: 80, name: a, protocol: HTTP}";
    for (egress, fields) in [
        ("{hosts: ['*/*', ./a.b, '~/*', ns/*.b]}", &[][..]),
        ("{}", &["spec.egress[0].hosts"]),
        ("{hosts: [a.b]}", &["spec.egress[0].hosts[0]"]),
        ("{hosts: [ns/a]}", &["spec.egress[0].hosts[0]"]),
        ("{hosts: ['*/*a.b']}", &["spec.egress[0].hosts[0]"]),
        ("{hosts: ['~x/*']}", &["spec.egress[0].hosts[0]"]),
        ("{hosts: ['*/*']}, {hosts: ['*/*']}", &["spec.egress[0].port"]),
        ("{PORT, hosts: ['*/*']}, {PORT, hosts: ['*/*']}", &["spec.egress[1].port.number"]),
        ("{port: {number: 80, protocol: SOAP}, hosts: ['*/*']}", &["spec.egress[0].port.protocol"]),
        ("{port: {protocol: HTTP}, hosts: ['*/*']}", &["spec.egress[0].port.number"]),
        ("{port: {protocol: HTTP}, bind: 'unix:///a', hosts: ['*/*']}", &[]),
        ("{PORT, bind: 'unix:///a', hosts: ['*/*']}", &["spec.egress[0].port.number"]),
        (
            "{port: {protocol: HTTP}, bind: 'unix:///a', captureMode: IPTABLES, hosts: ['*/*']}",
            &["spec.egress[0].bind"],
        ),
        ("{bind: 'unix:///a', hosts: ['*/*']}", &["spec.egress[0].bind"]),
        ("{PORT, bind: a, hosts: ['*/*']}", &["spec.egress[0].bind"]),
        ("{PORT, captureMode: ALL, hosts: ['*/*']}", &["spec.egress[0].captureMode"]),
    ] {
        super::check(API, KIND, &[(&format!("{{egress: [{}]}}", egress.replace("PORT", port)), fields)]);
    }
}

#[test]
fn ingress() {
    let port = "port: {number: 80, name: a, protocol: HTTP}";
    let secure = "port: {number: 443, name: a, protocol: HTTPS}";
    for (ingress, fields) in [
        ("{PORT, defaultEndpoint: '127.0.0.1:80'}", &[][..]),
        ("{PORT, defaultEndpoint: '[::]:80'}", &[]),
        ("{PORT, defaultEndpoint: 'unix:///a'}", &[]),
        ("{PORT, defaultEndpoint: ''}", &[]),
        ("{}", &["spec.ingress[0].port"]),
        ("{PORT}, {PORT}", &["spec.ingress[1].port.number"]),
        ("{port: {number: 80, protocol: HTTP, targetPort: 1}}", &["spec.ingress[0].port.targetPort"]),
        ("{PORT, bind: 'unix:///a'}", &["spec.ingress[0].bind"]),
        ("{PORT, defaultEndpoint: '10.0.0.1:80'}", &["spec.ingress[0].defaultEndpoint"]),
        ("{PORT, defaultEndpoint: '127.0.0.1:0'}", &["spec.ingress[0].defaultEndpoint"]),
        ("{PORT, defaultEndpoint: 'unix:///'}", &["spec.ingress[0].defaultEndpoint"]),
        ("{PORT, connectionPool: {}}", &["spec.ingress[0].connectionPool"]),
        ("{SECURE, tls: {mode: SIMPLE, serverCertificate: a, privateKey: b}}", &[]),
        ("{PORT, tls: {mode: SIMPLE, serverCertificate: a, privateKey: b}}", &["spec.ingress[0].tls"]),
        ("{SECURE, tls: {mode: SIMPLE, credentialName: a}}", &["spec.ingress[0].tls.credentialName"]),
        ("{SECURE, tls: {mode: ISTIO_MUTUAL}}", &["spec.ingress[0].tls.mode"]),
        ("{SECURE, tls: {httpsRedirect: true}}", &["spec.ingress[0].tls.httpsRedirect"]),
    ] {
        let ingress = ingress.replace("PORT", port).replace("SECURE", secure);
        super::check(API, KIND, &[(&format!("{{ingress: [{ingress}]}}"), fields)]);
    }
}

#[test]
fn what_has_no_effect_is_warned_of() {
    let ingress = "{ingress: [{port: {number: 80, protocol: TCP}, connectionPool: {http: {}}}]}";
    assert_eq!(super::warned(API, KIND, ingress), ["spec.ingress[0].connectionPool.http"]);
    assert_eq!(super::warned(API, KIND, "{egress: [{hosts: [a/*, a/b.c]}]}"), ["spec.egress[0].hosts[1]"]);
    let selector = "{workloadSelector: {}, egress: [{hosts: ['*/*']}]}";
    assert_eq!(super::warned(API, KIND, selector), ["spec.workloadSelector"]);
}
