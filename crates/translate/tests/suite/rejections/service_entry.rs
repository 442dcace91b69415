//! ServiceEntry and WorkloadEntry.

const API: &str = "networking.istio.io/v1";
const KIND: &str = "ServiceEntry";

fn check(cases: &[super::Case<'_>]) {
    for (spec, fields) in cases {
        let spec = spec.replace("WEB", "ports: [{number: 80, name: http, protocol: HTTP}]");
        super::check(API, KIND, &[(&spec, fields)]);
    }
}

#[test]
fn hosts_and_addresses() {
    check(&[
        ("{hosts: [a.b, '*.c'], WEB, addresses: [10.0.0.1, 10.1.0.0/16], exportTo: ['~']}", &[]),
        ("{WEB}", &["spec.hosts"]),
        ("{hosts: ['*'], WEB}", &["spec.hosts[0]"]),
        ("{hosts: [a_b], WEB}", &["spec.hosts[0]"]),
        ("{hosts: ['*.b'], WEB, resolution: DNS}", &["spec.hosts[0]"]),
        ("{hosts: ['*.b'], WEB, resolution: DNS, endpoints: [{address: c.d}]}", &[]),
        ("{hosts: [a.b], WEB, resolution: DYNAMIC_DNS}", &["spec.hosts[0]"]),
        ("{hosts: ['*.b'], WEB, resolution: DYNAMIC_DNS}", &[]),
        ("{hosts: ['*.b'], WEB, resolution: DYNAMIC_DNS, addresses: [10.0.0.1]}", &["spec.addresses"]),
        ("{hosts: [a.b], WEB, addresses: [x]}", &["spec.addresses[0]"]),
        ("{hosts: [a.b], WEB, addresses: [10.0.0.0/8], resolution: DNS}", &["spec.addresses[0]"]),
        ("{hosts: [a.b], WEB, exportTo: ['~', x]}", &["spec.exportTo"]),
        ("{hosts: [a.b], WEB, resolution: MAGIC}", &["spec.resolution"]),
        ("{hosts: [a.b], WEB, location: NEAR}", &["spec.location"]),
    ]);
}

#[test]
fn ports() {
    check(&[
        ("{hosts: [a.b], ports: [{name: a}]}", &["spec.ports[0].number"]),
        ("{hosts: [a.b], ports: [{number: 1}]}", &["spec.ports[0].name"]),
        (
            "{hosts: [a.b], addresses: [10.0.0.1], ports: [{number: 1, name: a}, {number: 1, name: a}]}",
            &["spec.ports[1].name", "spec.ports[1].number"],
        ),
        (
            "{hosts: [a.b], ports: [{number: 1, name: a, targetPort: 65536, protocol: HTTP2}]}",
            &["spec.ports[0].targetPort"],
        ),
        ("{hosts: [a.b], ports: [{number: 1, name: a, protocol: SOAP}]}", &["spec.ports[0].protocol"]),
        (
            "{hosts: ['*.b'], resolution: DYNAMIC_DNS, ports: [{number: 1, name: a, protocol: TCP}]}",
            &["spec.ports[0].protocol"],
        ),
    ]);
}

#[test]
fn endpoints_and_selectors() {
    check(&[
        (
            "{hosts: [a.b], WEB, resolution: STATIC, endpoints: [{address: 10.0.0.1, ports: {http: 8080}}]}",
            &[],
        ),
        ("{hosts: [a.b], WEB, resolution: STATIC, endpoints: [{address: 'unix:///a'}]}", &[]),
        ("{hosts: [a.b], WEB, endpoints: [{address: 10.0.0.1}]}", &["spec.endpoints"]),
        (
            "{hosts: [a.b], WEB, resolution: STATIC, endpoints: [{address: c.d}]}",
            &["spec.endpoints[0].address"],
        ),
        (
            "{hosts: [a.b], WEB, resolution: DNS, endpoints: [{address: '*.d'}]}",
            &["spec.endpoints[0].address"],
        ),
        (
            "{hosts: [a.b], WEB, resolution: DNS, endpoints: [{address: 'unix:///a'}]}",
            &["spec.endpoints[0].address"],
        ),
        (
            "{hosts: [a.b], WEB, resolution: DNS, endpoints: [{address: c, ports: {x: 1}}]}",
            &["spec.endpoints[0].ports[x]"],
        ),
        (
            "{hosts: [a.b], WEB, resolution: DNS_ROUND_ROBIN, endpoints: [{address: c}, {address: d}]}",
            &["spec.endpoints"],
        ),
        (
            "{hosts: [a.b], WEB, resolution: STATIC, endpoints: [{address: 10.0.0.1}], workloadSelector: {labels: {a: b}}}",
            &["spec.workloadSelector"],
        ),
        (
            "{hosts: [a.b], WEB, resolution: STATIC, workloadSelector: {labels: {a: '*'}}}",
            &["spec.workloadSelector.labels[a]"],
        ),
    ]);
}

#[test]
fn workload_entries() {
    super::check(
        API,
        "WorkloadEntry",
        &[
            ("{address: 10.0.0.1, ports: {http: 80}, labels: {a: b}}", &[]),
            ("{address: a.b}", &[]),
            ("{network: n}", &[]),
            ("{}", &["spec.address"]),
            ("{address: 'a.b:80'}", &["spec.address"]),
            ("{address: 'unix://a'}", &["spec.address"]),
            ("{address: 'unix:///a', ports: {http: 80}}", &["spec.ports"]),
            ("{address: 10.0.0.1, ports: {http: 0}}", &["spec.ports[http]"]),
            ("{address: 10.0.0.1, ports: {h_t: 1}}", &["spec.ports[h_t]"]),
            ("{address: 10.0.0.1, labels: {a: 'b c'}}", &["spec.labels[a]"]),
        ],
    );
}

#[test]
fn what_may_not_do_what_is_meant_is_warned_of() {
    let http = "ports: [{number: 80, name: http, protocol: HTTP}]";
    let tcp = "ports: [{number: 80, name: tcp, protocol: TCP}]";
    for (spec, field) in [
        (format!("{{hosts: ['*a.b'], {http}}}"), "spec.hosts[0]"),
        (format!("{{hosts: [a.b, a.b], {http}}}"), "spec.hosts[1]"),
        (format!("{{hosts: [a.b, c.d], {tcp}, addresses: [10.0.0.1], resolution: DNS}}"), "spec.hosts"),
        (format!("{{hosts: [a.b], {tcp}}}"), "spec.addresses"),
        (
            format!("{{hosts: [a.b], {http}, workloadSelector: {{labels: {{a: b}}}}}}"),
            "spec.workloadSelector",
        ),
        (
            format!("{{hosts: [a.b], {http}, resolution: STATIC, workloadSelector: {{}}}}"),
            "spec.workloadSelector",
        ),
        (
            "{hosts: [a.b], ports: [{number: 80, name: a, protocol: HTTP, targetPort: 81}]}".into(),
            "spec.ports[0].targetPort",
        ),
        (
            format!("{{hosts: [a.b], {http}, resolution: STATIC, endpoints: [{{network: n}}]}}"),
            "spec.endpoints[0].address",
        ),
    ] {
        assert_eq!(super::warned(API, KIND, &spec), [field], "{spec}");
    }
}
