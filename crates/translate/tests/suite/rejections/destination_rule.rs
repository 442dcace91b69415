//! DestinationRule.

const API: &str = "networking.istio.io/v1";
const KIND: &str = "DestinationRule";

fn check_policies(cases: &[super::Case<'_>]) {
    for (policy, fields) in cases {
        let fields: Vec<String> = fields.iter().map(|field| format!("spec.trafficPolicy{field}")).collect();
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        super::check(API, KIND, &[(&format!("{{host: a, trafficPolicy: {policy}}}"), &fields)]);
    }
}

#[test]
fn hosts_subsets_and_visibility() {
    super::check(
        API,
        KIND,
        &[
            ("{host: '*.a.b', subsets: [{name: v1, labels: {version: v1}}]}", &[]),
            ("{}", &["spec.host"]),
            ("{host: a_b}", &["spec.host"]),
            ("{host: a, subsets: [{labels: {a: b}}]}", &["spec.subsets[0].name"]),
            ("{host: a, subsets: [{name: v.1}]}", &["spec.subsets[0].name"]),
            ("{host: a, subsets: [{name: v1, labels: {a: '*'}}]}", &["spec.subsets[0].labels[a]"]),
            ("{host: a, subsets: [{name: v1, labels: {'': b}}]}", &["spec.subsets[0].labels[]"]),
            ("{host: a, subsets: [{name: v1, trafficPolicy: {}}]}", &["spec.subsets[0].trafficPolicy"]),
            ("{host: a, exportTo: [., shop]}", &["spec.exportTo[1]"]),
            ("{host: a, workloadSelector: {matchLabels: {a: b}}, exportTo: [.]}", &[]),
            ("{host: a, workloadSelector: {matchLabels: {a: b}}, exportTo: [other]}", &["spec.exportTo"]),
            (
                "{host: a, workloadSelector: {matchLabels: {a: '*'}}}",
                &["spec.workloadSelector.matchLabels[a]"],
            ),
        ],
    );
}

#[test]
fn policies_and_ports() {
    check_policies(&[
        ("{}", &[""]),
        ("{portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}", &[]),
        ("{portLevelSettings: [{tls: {mode: SIMPLE}}]}", &[".portLevelSettings[0].port"]),
        ("{portLevelSettings: [{port: {}, tls: {mode: SIMPLE}}]}", &[".portLevelSettings[0].port.number"]),
        ("{portLevelSettings: [{port: {number: 80}}]}", &[".portLevelSettings[0]"]),
        ("{proxyProtocol: {version: V3}}", &[".proxyProtocol.version"]),
        ("{retryBudget: {percent: 101}}", &[".retryBudget.percent"]),
        ("{tunnel: {targetHost: a.b, targetPort: 80, protocol: POST}}", &[]),
        ("{tunnel: {protocol: GET}}", &[".tunnel.protocol", ".tunnel.targetHost", ".tunnel.targetPort"]),
    ]);
}

#[test]
fn connection_pools() {
    check_policies(&[
        ("{connectionPool: {tcp: {idleTimeout: 0s, tcpKeepalive: {}}, http: {}}}", &[]),
        ("{connectionPool: {}}", &[".connectionPool"]),
        ("{connectionPool: {tcp: {maxConnections: -1}}}", &[".connectionPool.tcp.maxConnections"]),
        ("{connectionPool: {tcp: {connectTimeout: 0s}}}", &[".connectionPool.tcp.connectTimeout"]),
        (
            "{connectionPool: {tcp: {maxConnectionDuration: x}}}",
            &[".connectionPool.tcp.maxConnectionDuration"],
        ),
        ("{connectionPool: {tcp: {tcpKeepalive: {time: 1us}}}}", &[".connectionPool.tcp.tcpKeepalive.time"]),
        (
            "{connectionPool: {http: {http1MaxPendingRequests: -1}}}",
            &[".connectionPool.http.http1MaxPendingRequests"],
        ),
        ("{connectionPool: {http: {http2MaxRequests: -1}}}", &[".connectionPool.http.http2MaxRequests"]),
        (
            "{connectionPool: {http: {maxRequestsPerConnection: -1}}}",
            &[".connectionPool.http.maxRequestsPerConnection"],
        ),
        ("{connectionPool: {http: {maxRetries: -1}}}", &[".connectionPool.http.maxRetries"]),
        (
            "{connectionPool: {http: {maxConcurrentStreams: -1}}}",
            &[".connectionPool.http.maxConcurrentStreams"],
        ),
        ("{connectionPool: {http: {idleTimeout: 0s}}}", &[".connectionPool.http.idleTimeout"]),
        ("{connectionPool: {http: {h2UpgradePolicy: MAYBE}}}", &[".connectionPool.http.h2UpgradePolicy"]),
        (
            "{connectionPool: {http: {h2UpgradePolicy: UPGRADE, useClientProtocol: true}}}",
            &[".connectionPool.http.useClientProtocol"],
        ),
        (
            "{connectionPool: {http: {http2KeepAlive: {}}}}",
            &[".connectionPool.http.http2KeepAlive.interval", ".connectionPool.http.http2KeepAlive.timeout"],
        ),
    ]);
}

#[test]
fn outlier_detection() {
    check_policies(&[
        ("{outlierDetection: {}}", &[]),
        ("{outlierDetection: {maxEjectionPercent: 101}}", &[".outlierDetection.maxEjectionPercent"]),
        ("{outlierDetection: {minHealthPercent: -1}}", &[".outlierDetection.minHealthPercent"]),
        ("{outlierDetection: {interval: 0s}}", &[".outlierDetection.interval"]),
        ("{outlierDetection: {baseEjectionTime: x}}", &[".outlierDetection.baseEjectionTime"]),
        (
            "{outlierDetection: {consecutiveLocalOriginFailures: 1}}",
            &[".outlierDetection.consecutiveLocalOriginFailures"],
        ),
        (
            "{outlierDetection: {outlierDetectionHttpErrorCodes: [500, 99]}}",
            &[".outlierDetection.outlierDetectionHttpErrorCodes[1]"],
        ),
    ]);
}

#[test]
fn load_balancers() {
    check_policies(&[
        ("{loadBalancer: {simple: LEAST_CONN, warmup: {duration: 1s, aggression: 0.5}}}", &[]),
        ("{loadBalancer: {simple: FASTEST}}", &[".loadBalancer.simple"]),
        ("{loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}}", &[".loadBalancer"]),
        ("{loadBalancer: {consistentHash: {maglev: {tableSize: 13}, httpCookie: {name: a, ttl: 0s}}}}", &[]),
        (
            "{loadBalancer: {consistentHash: {maglev: {tableSize: 15}}}}",
            &[".loadBalancer.consistentHash.maglev.tableSize"],
        ),
        (
            "{loadBalancer: {consistentHash: {maglev: {}, ringHash: {}}}}",
            &[".loadBalancer.consistentHash.maglev"],
        ),
        (
            "{loadBalancer: {consistentHash: {useSourceIp: true, httpHeaderName: a}}}",
            &[".loadBalancer.consistentHash"],
        ),
        (
            "{loadBalancer: {consistentHash: {httpCookie: {}}}}",
            &[".loadBalancer.consistentHash.httpCookie.name"],
        ),
        (
            "{loadBalancer: {consistentHash: {httpCookie: {name: a, attributes: [{}]}}}}",
            &[".loadBalancer.consistentHash.httpCookie.attributes[0].name"],
        ),
        ("{loadBalancer: {warmup: {}}}", &[".loadBalancer.warmup.duration"]),
        (
            "{loadBalancer: {warmup: {duration: 1s, minimumPercent: 101}}}",
            &[".loadBalancer.warmup.minimumPercent"],
        ),
        ("{loadBalancer: {warmup: {duration: 1s, aggression: 0}}}", &[".loadBalancer.warmup.aggression"]),
        ("{loadBalancer: {warmupDurationSecs: 0s}}", &[".loadBalancer.warmupDurationSecs"]),
        (
            "{loadBalancer: {localityLbSetting: {}, zoneAwareLbSetting: {}}}",
            &[".loadBalancer.zoneAwareLbSetting"],
        ),
    ]);
}

#[test]
fn localities() {
    let policy = |locality: &str| {
        format!("{{outlierDetection: {{}}, loadBalancer: {{localityLbSetting: {{{locality}}}}}}}")
    };
    let at = |field: &str| format!(".loadBalancer.localityLbSetting.{field}");
    for (locality, field) in [
        ("distribute: [{from: a/*, to: {'a/x': 60, b: 40}}]", None),
        ("failover: [{from: a, to: b}], failoverPriority: [x]", None),
        ("distribute: [{from: a, to: {b: 100}}], failover: [{from: a, to: b}]", Some("failover")),
        ("distribute: [{from: a, to: {b: 99}}]", Some("distribute[0].to")),
        ("distribute: [{from: a, to: {b: 100, b/x: 0}}]", Some("distribute[0].to[b/x]")),
        ("distribute: [{from: a//b, to: {b: 100}}]", Some("distribute[0].from")),
        ("distribute: [{from: '*/b', to: {b: 100}}]", Some("distribute[0].from")),
        ("distribute: [{from: a, to: {b: 100}}, {from: a/b, to: {b: 100}}]", Some("distribute[1].from")),
        ("failover: [{from: a, to: a}]", Some("failover[0].to")),
        ("failover: [{from: a/b, to: c}]", Some("failover[0].from")),
    ] {
        let fields: Vec<String> = field.into_iter().map(at).collect();
        let outcome =
            super::translate(API, KIND, &format!("{{host: a, trafficPolicy: {}}}", policy(locality)));
        let refused: Vec<&str> = outcome
            .rejections
            .iter()
            .map(|rejection| &rejection.field["spec.trafficPolicy".len()..])
            .collect();
        match fields.first() {
            Some(field) => assert!(refused.contains(&field.as_str()), "{locality}: {refused:?}"),
            None => assert!(refused.is_empty(), "{locality}: {refused:?}"),
        }
    }
}

#[test]
fn tls() {
    check_policies(&[
        ("{tls: {}}", &[]),
        ("{tls: {mode: SIMPLE, credentialName: a}}", &[]),
        ("{tls: {mode: SIMPLE, insecureSkipVerify: true, sni: a.b}}", &[]),
        ("{tls: {mode: MUTUAL, clientCertificate: a, privateKey: b}}", &[]),
        ("{tls: {mode: SECURE}}", &[".tls.mode"]),
        ("{tls: {mode: MUTUAL}}", &[".tls.clientCertificate", ".tls.privateKey"]),
        ("{tls: {mode: SIMPLE, credentialName: a, caCertificates: b}}", &[".tls.caCertificates"]),
        ("{tls: {mode: SIMPLE, credentialName: 'configmap://a'}}", &[".tls.credentialName"]),
        ("{tls: {mode: SIMPLE, credentialName: 'configmap://a/b'}}", &[]),
        (
            "{tls: {mode: SIMPLE, insecureSkipVerify: true, caCertificates: a, subjectAltNames: [b]}}",
            &[".tls.caCertificates", ".tls.subjectAltNames"],
        ),
    ]);
}

#[test]
fn what_has_no_effect_is_warned_of() {
    for (policy, field) in [
        ("outlierDetection: {consecutiveErrors: 5}", "outlierDetection.consecutiveErrors"),
        ("loadBalancer: {zoneAwareLbSetting: {}}", "loadBalancer.zoneAwareLbSetting"),
        ("loadBalancer: {backendUtilization: {}}", "loadBalancer.backendUtilization"),
        ("loadBalancer: {localityLbSetting: {failover: [{from: a, to: b}]}}", "loadBalancer"),
        ("loadBalancer: {warmupDurationSecs: 1s, warmup: {duration: 1s}}", "loadBalancer.warmupDurationSecs"),
    ] {
        let spec = format!("{{host: a, trafficPolicy: {{{policy}}}}}");
        assert_eq!(super::warned(API, KIND, &spec), [format!("spec.trafficPolicy.{field}")]);
    }
    assert_eq!(super::warned(API, KIND, "{host: a, workloadSelector: {}}"), ["spec.workloadSelector"]);
    assert_eq!(
        super::warned(API, KIND, "{host: a, subsets: [{name: a}, {name: a}]}"),
        ["spec.subsets[1].name"]
    );
}
