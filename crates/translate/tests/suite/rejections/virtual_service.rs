//! VirtualService.

const API: &str = "networking.istio.io/v1";
const KIND: &str = "VirtualService";

/// Checks rules, which have a destination unless they say something else.
fn check_rules(cases: &[super::Case<'_>]) {
    for (rule, fields) in cases {
        let rule = rule.replace("…", "route: [{destination: {host: b}}]");
        super::check(API, KIND, &[(&format!("{{hosts: [a], http: [{rule}]}}"), fields)]);
    }
}

#[test]
fn hosts_and_gateways() {
    let rules = "http: [{route: [{destination: {host: b}}]}]";
    for (spec, fields) in [
        ("hosts: [a, a.b, '*.c', '*-d.e', 10.1.2.3, '2001:db8::1']", &[][..]),
        ("hosts: ['*'], gateways: [g]", &[]),
        ("hosts: ['*']", &["spec.hosts[0]"]),
        ("hosts: ['*'], gateways: [g, mesh]", &["spec.hosts[0]"]),
        ("hosts: [a_b, '', a..b]", &["spec.hosts[0]", "spec.hosts[1]", "spec.hosts[2]"]),
        ("hosts: [a.b, a.b]", &["spec.hosts[1]"]),
        ("hosts: ['*.b', a.b]", &["spec.hosts[1]"]),
        ("hosts: ['*.a.b', '*.b']", &["spec.hosts[1]"]),
        ("hosts: [outbound_.80_._.a.b], gateways: [g]", &[]),
        ("hosts: [outbound_.80_._.a.b]", &["spec.hosts[0]"]),
        ("hosts: [outbound_.x_._.a.b], gateways: [g]", &["spec.hosts[0]"]),
        ("hosts: [a], gateways: [mesh, g, n/g, g.n]", &[]),
        ("hosts: [a], gateways: [./g, n/, _]", &["spec.gateways[0]", "spec.gateways[1]", "spec.gateways[2]"]),
        ("hosts: [a], exportTo: ['*']", &[]),
        ("hosts: [a], exportTo: ['*', b]", &["spec.exportTo"]),
        ("hosts: [a], exportTo: ['~']", &["spec.exportTo[0]"]),
    ] {
        super::check(API, KIND, &[(&format!("{{{spec}, {rules}}}"), fields)]);
    }
}

#[test]
fn there_must_be_rules_and_delegates_have_only_those_for_http() {
    super::check(
        API,
        KIND,
        &[
            ("{hosts: [a]}", &["spec"]),
            ("{}", &["spec"]),
            ("{http: [{route: [{destination: {host: b}}]}]}", &[]),
            ("{gateways: [g], http: [{route: [{destination: {host: b}}]}]}", &["spec.gateways"]),
            ("{tcp: [{route: [{destination: {host: b}}]}]}", &["spec.tcp"]),
            (
                "{tls: [{match: [{sniHosts: [a.b]}], route: [{destination: {host: b}}]}]}",
                &["spec.tls", "spec.tls[0].match[0].sniHosts[0]"],
            ),
            ("{http: [{delegate: {name: b}}]}", &["spec.http[0].delegate", "spec.http[0]"]),
        ],
    );
}

#[test]
fn a_rule_does_one_thing() {
    check_rules(&[
        ("{…}", &[]),
        ("{}", &["spec.http[0]"]),
        ("{delegate: {name: b}}", &[]),
        ("{delegate: {name: b}, …}", &["spec.http[0].route"]),
        ("{delegate: {name: b}, redirect: {uri: /}}", &["spec.http[0].redirect"]),
        ("{redirect: {uri: /}, …}", &["spec.http[0].route"]),
        ("{redirect: {uri: /}, fault: {abort: {httpStatus: 500}}}", &["spec.http[0].fault"]),
        ("{redirect: {uri: /}, rewrite: {uri: /}}", &["spec.http[0].rewrite"]),
        ("{redirect: {uri: /}, directResponse: {status: 200}}", &["spec.http[0].directResponse"]),
        ("{directResponse: {status: 200}, …}", &["spec.http[0].route"]),
        ("{directResponse: {status: 200}, fault: {abort: {httpStatus: 500}}}", &["spec.http[0].fault"]),
        ("{directResponse: {status: 200}, rewrite: {uri: /}}", &["spec.http[0].rewrite"]),
        ("{mirror: {host: c}, mirrors: [{destination: {host: c}}], …}", &["spec.http[0].mirrors"]),
    ]);
}

#[test]
fn matches() {
    check_rules(&[
        ("{match: [{uri: {prefix: ''}, headers: {x: {}}, withoutHeaders: {x: {regex: '*'}}}], …}", &[]),
        ("{match: [{}, {uri: {exact: /, prefix: /}}], …}", &["spec.http[0].match[1].uri"]),
        ("{match: [{uri: {regex: ''}}], …}", &["spec.http[0].match[0].uri.regex"]),
        ("{match: [{uri: {regex: '['}}], …}", &["spec.http[0].match[0].uri.regex"]),
        ("{match: [{method: {prefix: ''}}], …}", &["spec.http[0].match[0].method.prefix"]),
        ("{match: [{headers: {x: {regex: '*'}}}], …}", &["spec.http[0].match[0].headers[x].regex"]),
        ("{match: [{headers: {'': {exact: a}}}], …}", &["spec.http[0].match[0].headers[]"]),
        (
            "{match: [{withoutHeaders: {x: {regex: '('}}}], …}",
            &["spec.http[0].match[0].withoutHeaders[x].regex"],
        ),
        ("{match: [{queryParams: {q: {prefix: ''}}}], …}", &["spec.http[0].match[0].queryParams[q].prefix"]),
        ("{match: [{port: 70000}], …}", &["spec.http[0].match[0].port"]),
        ("{match: [{gateways: [./g]}], …}", &["spec.http[0].match[0].gateways[0]"]),
        ("{match: [{sourceLabels: {app: 'a*'}}], …}", &["spec.http[0].match[0].sourceLabels[app]"]),
        (
            "{match: [{headers: {'@request.auth.claims.x': {exact: a}}}], …}",
            &["spec.http[0].match[0].headers[@request.auth.claims.x]"],
        ),
    ]);
    let claims = |name| {
        format!(
            "{{hosts: [a], gateways: [g], http: [{{match: [{{headers: {{'{name}': {{}}}}}}], route: [{{destination: {{host: b}}}}]}}]}}"
        )
    };
    for good in ["@request.auth.claims.x", "@request.auth.claims[x][y]", "@request.auth.claims.x.y"] {
        super::check(API, KIND, &[(&claims(good), &[])]);
    }
    for bad in ["@request.auth.claims", "@request.auth.claims.", "@request.auth.principal"] {
        super::check(API, KIND, &[(&claims(bad), &[&format!("spec.http[0].match[0].headers[{bad}]")])]);
    }
}

#[test]
fn destinations_and_weights() {
    check_rules(&[
        ("{route: [{destination: {host: b, subset: v1, port: {number: 80}}, weight: 0}]}", &[]),
        ("{route: [{}]}", &["spec.http[0].route[0].destination"]),
        ("{route: [{destination: {host: ''}}]}", &["spec.http[0].route[0].destination.host"]),
        ("{route: [{destination: {host: '*'}}]}", &["spec.http[0].route[0].destination.host"]),
        ("{route: [{destination: {host: b, subset: v_1}}]}", &["spec.http[0].route[0].destination.subset"]),
        ("{route: [{destination: {host: b, port: {}}}]}", &["spec.http[0].route[0].destination.port.number"]),
        ("{route: [{destination: {host: b}, weight: -1}]}", &["spec.http[0].route[0].weight"]),
        ("{route: [{destination: {host: b}}, {destination: {host: c}}]}", &["spec.http[0].route"]),
        ("{mirror: {host: a_b}, …}", &["spec.http[0].mirror.host"]),
        ("{mirrors: [{}], …}", &["spec.http[0].mirrors[0].destination"]),
        (
            "{mirrors: [{destination: {host: c}, percentage: {value: 101}}], …}",
            &["spec.http[0].mirrors[0].percentage.value"],
        ),
        ("{mirror: {host: c}, mirrorPercentage: {value: -1}, …}", &["spec.http[0].mirrorPercentage.value"]),
        ("{mirror: {host: c}, mirrorPercent: 101, …}", &["spec.http[0].mirrorPercent"]),
    ]);
}

#[test]
fn headers() {
    check_rules(&[
        ("{headers: {request: {set: {host: c, x: '%HOSTNAME% 100%%'}, remove: [y]}}, …}", &[]),
        ("{headers: {request: {set: {'': c}}}, …}", &["spec.http[0].headers.request.set[]"]),
        ("{headers: {request: {add: {':path': c}}}, …}", &["spec.http[0].headers.request.add[:path]"]),
        ("{headers: {request: {add: {x: '50%'}}}, …}", &["spec.http[0].headers.request.add[x]"]),
        (
            "{headers: {request: {set: {host: c, ':authority': d}}}, …}",
            &["spec.http[0].headers.request.set[host]"],
        ),
        ("{headers: {request: {remove: [host]}}, …}", &["spec.http[0].headers.request.remove[0]"]),
        ("{headers: {response: {set: {host: c}}}, …}", &["spec.http[0].headers.response.set[host]"]),
        (
            "{rewrite: {authority: c}, headers: {request: {set: {host: d}}}, …}",
            &["spec.http[0].headers.request"],
        ),
        (
            "{route: [{destination: {host: b}, headers: {response: {remove: ['']}}}]}",
            &["spec.http[0].route[0].headers.response.remove[0]"],
        ),
    ]);
}

#[test]
fn redirects_and_direct_responses() {
    check_rules(&[
        (
            "{redirect: {prefixRewrite: /x, authority: c, derivePort: FROM_REQUEST_PORT, redirectCode: 308}}",
            &[],
        ),
        ("{redirect: {}}", &["spec.http[0].redirect"]),
        ("{redirect: {uri: /, redirectCode: 299}}", &["spec.http[0].redirect.redirectCode"]),
        ("{redirect: {uri: /, prefixRewrite: /}}", &["spec.http[0].redirect.prefixRewrite"]),
        ("{redirect: {port: 0}}", &["spec.http[0].redirect.port", "spec.http[0].redirect"]),
        ("{redirect: {port: 80, derivePort: FROM_REQUEST_PORT}}", &["spec.http[0].redirect.derivePort"]),
        ("{redirect: {uri: /, derivePort: GUESS}}", &["spec.http[0].redirect.derivePort"]),
        ("{directResponse: {status: 599, body: {bytes: aGk=}}}", &[]),
        ("{directResponse: {}}", &["spec.http[0].directResponse.status"]),
        ("{directResponse: {status: 600}}", &["spec.http[0].directResponse.status"]),
        ("{directResponse: {status: 200, body: {bytes: '?'}}}", &["spec.http[0].directResponse.body.bytes"]),
        (
            "{directResponse: {status: 200, body: {bytes: aGk=, string: hi}}}",
            &["spec.http[0].directResponse.body"],
        ),
    ]);
    let large = "x".repeat(1024 * 1024 + 1);
    check_rules(&[(
        &format!("{{directResponse: {{status: 200, body: {{string: {large}}}}}}}"),
        &["spec.http[0].directResponse.body"],
    )]);
}

#[test]
fn a_code_without_location_is_answered_as_such() {
    let outcome =
        super::translate(API, KIND, "{hosts: [a], http: [{redirect: {uri: /x, redirectCode: 304}}]}");
    assert_eq!(outcome.rejections, []);
    assert_eq!(outcome.warnings[0].field, "spec.http[0].redirect.redirectCode");
    assert!(outcome.value.unwrap().contains("DirectResponse {\n                    status: 304"));
}

#[test]
fn rewriting_and_times() {
    check_rules(&[
        ("{rewrite: {uriRegexRewrite: {match: '^/a/(.*)', rewrite: '/\\1'}}, timeout: 1.5s, …}", &[]),
        ("{rewrite: {}, …}", &["spec.http[0].rewrite"]),
        (
            "{rewrite: {uri: /, uriRegexRewrite: {match: a, rewrite: b}}, …}",
            &["spec.http[0].rewrite.uriRegexRewrite"],
        ),
        ("{rewrite: {uriRegexRewrite: {match: a}}, …}", &["spec.http[0].rewrite.uriRegexRewrite"]),
        (
            "{rewrite: {uriRegexRewrite: {match: '[', rewrite: b}}, …}",
            &["spec.http[0].rewrite.uriRegexRewrite.match"],
        ),
        ("{timeout: 0s, …}", &["spec.http[0].timeout"]),
        ("{timeout: '5', …}", &["spec.http[0].timeout"]),
        ("{timeout: 1.0001s, …}", &["spec.http[0].timeout"]),
    ]);
}

#[test]
fn retries() {
    check_rules(&[
        ("{retries: {}, …}", &[]),
        ("{retries: {attempts: 3, retryOn: '5xx, 503,reset', perTryTimeout: 1s, backoff: 10ms}, …}", &[]),
        ("{retries: {attempts: -1}, …}", &["spec.http[0].retries.attempts"]),
        ("{retries: {attempts: 0, retryOn: 5xx}, …}", &["spec.http[0].retries.attempts"]),
        ("{retries: {attempts: 1, retryOn: 'sometimes,5xx'}, …}", &["spec.http[0].retries.retryOn"]),
        ("{retries: {attempts: 1, perTryTimeout: 0s}, …}", &["spec.http[0].retries.perTryTimeout"]),
        ("{retries: {attempts: 1, backoff: x}, …}", &["spec.http[0].retries.backoff"]),
    ]);
}

#[test]
fn faults() {
    check_rules(&[
        ("{fault: {delay: {fixedDelay: 1s, percent: 5}, abort: {grpcStatus: UNAVAILABLE}}, …}", &[]),
        ("{fault: {}, …}", &["spec.http[0].fault"]),
        ("{fault: {abort: {httpStatus: 199}}, …}", &["spec.http[0].fault.abort.httpStatus"]),
        ("{fault: {abort: {grpcStatus: '14'}}, …}", &["spec.http[0].fault.abort.grpcStatus"]),
        ("{fault: {abort: {http2Error: X}}, …}", &["spec.http[0].fault.abort.http2Error"]),
        ("{fault: {abort: {httpStatus: 500, grpcStatus: OK}}, …}", &["spec.http[0].fault.abort"]),
        (
            "{fault: {abort: {httpStatus: 500, percentage: {value: 0.00001}}}, …}",
            &["spec.http[0].fault.abort.percentage.value"],
        ),
        ("{fault: {delay: {exponentialDelay: 1s}}, …}", &["spec.http[0].fault.delay.exponentialDelay"]),
        ("{fault: {delay: {fixedDelay: 0s}}, …}", &["spec.http[0].fault.delay.fixedDelay"]),
        ("{fault: {delay: {fixedDelay: 1s, percent: 101}}, …}", &["spec.http[0].fault.delay.percent"]),
    ]);
}

#[test]
fn cross_origin() {
    check_rules(&[
        (
            "{corsPolicy: {allowOrigins: [{exact: a}, {regex: 'b.*'}], allowMethods: [GET], maxAge: 1h}, …}",
            &[],
        ),
        ("{corsPolicy: {allowOrigins: [{exact: ''}]}, …}", &["spec.http[0].corsPolicy.allowOrigins[0]"]),
        (
            "{corsPolicy: {allowOrigins: [{regex: '('}]}, …}",
            &["spec.http[0].corsPolicy.allowOrigins[0].regex"],
        ),
        ("{corsPolicy: {allowMethods: [GET, FETCH]}, …}", &["spec.http[0].corsPolicy.allowMethods[1]"]),
        ("{corsPolicy: {allowHeaders: ['']}, …}", &["spec.http[0].corsPolicy.allowHeaders[0]"]),
        ("{corsPolicy: {exposeHeaders: ['']}, …}", &["spec.http[0].corsPolicy.exposeHeaders[0]"]),
        ("{corsPolicy: {maxAge: 1.5s}, …}", &["spec.http[0].corsPolicy.maxAge"]),
        ("{corsPolicy: {maxAge: 0s}, …}", &["spec.http[0].corsPolicy.maxAge"]),
        ("{corsPolicy: {unmatchedPreflights: DROP}, …}", &["spec.http[0].corsPolicy.unmatchedPreflights"]),
    ]);
}

#[test]
fn tls_and_tcp() {
    let route = "route: [{destination: {host: b}}]";
    for (rule, fields) in [
        ("match: [{sniHosts: [x.a.b, '*.a.b'], destinationSubnets: [10.0.0.0/8], port: 443}], …", &[][..]),
        ("…", &["spec.tls[0].match"]),
        ("match: [{}], …", &["spec.tls[0].match[0].sniHosts"]),
        ("match: [{sniHosts: [x.c]}], …", &["spec.tls[0].match[0].sniHosts[0]"]),
        ("match: [{sniHosts: [x.*.b]}], …", &["spec.tls[0].match[0].sniHosts[0]"]),
        (
            "match: [{sniHosts: [a.b], destinationSubnets: [x]}], …",
            &["spec.tls[0].match[0].destinationSubnets[0]"],
        ),
        ("match: [{sniHosts: [a.b], port: 65536}], …", &["spec.tls[0].match[0].port"]),
        ("match: [{sniHosts: [a.b]}]", &["spec.tls[0].route"]),
    ] {
        let rule = rule.replace("…", route);
        super::check(
            API,
            KIND,
            &[(
                &format!("{{hosts: ['*.a.b', a.b], tls: [{{{rule}}}]}}").replace("'*.a.b', a.b", "'*.b'"),
                fields,
            )],
        );
    }
    for (rule, fields) in [
        ("match: [{destinationSubnets: [10.1.2.3], sourceSubnet: 10.0.0.0/8}], …", &[][..]),
        ("…", &[]),
        ("match: [{destinationSubnets: [10.0.0.0/64]}], …", &["spec.tcp[0].match[0].destinationSubnets[0]"]),
        ("match: [{sourceSubnet: x}], …", &["spec.tcp[0].match[0].sourceSubnet"]),
        ("match: [{gateways: [a/b/c]}], …", &["spec.tcp[0].match[0].gateways[0]"]),
        ("match: [{}]", &["spec.tcp[0].route"]),
        ("route: [{destination: {host: b}, weight: -1}]", &["spec.tcp[0].route[0].weight"]),
    ] {
        let rule = rule.replace("…", route);
        super::check(API, KIND, &[(&format!("{{hosts: [a.b], tcp: [{{{rule}}}]}}"), fields)]);
    }
}

#[test]
fn what_has_no_effect_is_warned_of() {
    for (rule, field) in [
        ("{mirror: {host: c}, mirrorPercent: 5, …}", "spec.http[0].mirrorPercent"),
        ("{fault: {abort: {}}, …}", "spec.http[0].fault.abort"),
        ("{fault: {delay: {}}, …}", "spec.http[0].fault.delay"),
        ("{corsPolicy: {allowOrigin: [a]}, …}", "spec.http[0].corsPolicy.allowOrigin"),
        ("{delegate: {name: b}, directResponse: {status: 200}}", "spec.http[0].directResponse"),
    ] {
        let rule = rule.replace("…", "route: [{destination: {host: b}}]");
        assert_eq!(super::warned(API, KIND, &format!("{{hosts: [a], http: [{rule}]}}")), [field], "{rule}");
    }
}
