//! Nothing that can be decoded makes translation panic, and what it returns keeps its promises.

use crate::common::{context, translate_object};
use k8s_api::object::Object;
use proptest::collection::{btree_map, vec};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// Field names of all kinds: trees made of them reach deep into the specs.
const FIELDS: &[&str] = &[
    "hosts",
    "gateways",
    "exportTo",
    "http",
    "tls",
    "tcp",
    "match",
    "route",
    "destination",
    "host",
    "port",
    "number",
    "name",
    "subset",
    "weight",
    "uri",
    "exact",
    "prefix",
    "regex",
    "headers",
    "request",
    "response",
    "set",
    "add",
    "remove",
    "withoutHeaders",
    "queryParams",
    "redirect",
    "redirectCode",
    "prefixRewrite",
    "authority",
    "directResponse",
    "status",
    "body",
    "string",
    "bytes",
    "rewrite",
    "uriRegexRewrite",
    "timeout",
    "retries",
    "attempts",
    "perTryTimeout",
    "retryOn",
    "fault",
    "delay",
    "abort",
    "fixedDelay",
    "percentage",
    "value",
    "httpStatus",
    "grpcStatus",
    "mirror",
    "mirrors",
    "mirrorPercent",
    "corsPolicy",
    "allowOrigins",
    "maxAge",
    "sniHosts",
    "destinationSubnets",
    "sourceLabels",
    "delegate",
    "namespace",
    "trafficPolicy",
    "subsets",
    "labels",
    "loadBalancer",
    "simple",
    "consistentHash",
    "maglev",
    "tableSize",
    "httpCookie",
    "ttl",
    "localityLbSetting",
    "distribute",
    "from",
    "to",
    "failover",
    "connectionPool",
    "maxConnections",
    "connectTimeout",
    "outlierDetection",
    "interval",
    "maxEjectionPercent",
    "portLevelSettings",
    "mode",
    "warmup",
    "duration",
    "aggression",
    "tunnel",
    "targetHost",
    "targetPort",
    "workloadSelector",
    "matchLabels",
    "servers",
    "protocol",
    "bind",
    "cipherSuites",
    "credentialName",
    "selector",
    "ingress",
    "egress",
    "defaultEndpoint",
    "captureMode",
    "outboundTrafficPolicy",
    "egressProxy",
    "mtls",
    "portLevelMtls",
    "addresses",
    "ports",
    "location",
    "resolution",
    "endpoints",
    "address",
    "network",
    "clusterIP",
    "externalName",
    "type",
    "trafficDistribution",
    "appProtocol",
];

/// Texts that some parser takes an interest in.
const TEXTS: &[&str] = &[
    "",
    "*",
    "~",
    ".",
    "a",
    "a.b",
    "*.a.b",
    "ns/a.b",
    "./*",
    "10.0.0.1",
    "10.0.0.0/8",
    "::1",
    "unix:///a",
    "unix://",
    "1s",
    "-1s",
    "1.5h3",
    "0",
    "9999999999h",
    "[",
    "(?i)a",
    "{1,",
    "\\Q",
    "\\p{",
    "\\",
    "[[:",
    "%A%",
    "%",
    "STATIC",
    "DNS",
    "NONE",
    "SIMPLE",
    "HTTP",
    "HTTPS",
    "127.0.0.1:80",
    ":80",
    "[::]:0",
    "eu/*",
    "//",
    "aGk=",
    "é",
    "µs",
    "1µs",
    "mesh",
    "@request.auth.claims.a",
    "outbound_.80_._.a.b",
    "@",
    "DYNAMIC_DNS",
    "DNS_ROUND_ROBIN",
    "ISTIO_MUTUAL",
    "ALLOW_ANY",
    "%PREFIX()%",
];

fn text() -> impl Strategy<Value = String> {
    prop_oneof![8 => proptest::sample::select(TEXTS).prop_map(str::to_owned), 1 => "\\PC{0,12}"]
}

fn tree() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        4 => text().prop_map(Value::from),
        2 => any::<i32>().prop_map(Value::from),
        2 => proptest::sample::select(&[0, 1, 80, 200, 301, 304, 503, 65535, 65536][..]).prop_map(|n: i32| Value::from(n)),
        1 => proptest::sample::select(&[-1.0, 0.5, 50.0, 100.0, 1e300][..]).prop_map(|n: f64| Value::from(n)),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
    ];
    leaf.prop_recursive(9, 120, 6, |inner| {
        let keys = prop_oneof![6 => proptest::sample::select(FIELDS).prop_map(str::to_owned), 1 => text()];
        prop_oneof![
            3 => btree_map(keys, inner.clone(), 0..7).prop_map(|map| Value::Object(map.into_iter().collect())),
            2 => vec(inner, 0..4).prop_map(Value::Array),
        ]
    })
}

/// Keeps what `T` takes, field by field: most random trees have some field of the wrong type.
fn decode<T: DeserializeOwned>(kind: &str, spec: &Value) -> Option<T> {
    let object =
        |spec: Value| json!({ "metadata": { "name": "x", "namespace": "shop" }, "kind": kind, "spec": spec });
    let mut pruned = Value::Object(Map::new());
    graft(&mut pruned, spec, &|candidate| serde_json::from_value::<T>(object(candidate.clone())).is_ok());
    serde_json::from_value(object(pruned)).ok()
}

/// Copies fields and elements for as long as the whole can be decoded.
fn graft(target: &mut Value, source: &Value, accepts: &dyn Fn(&Value) -> bool) {
    let Value::Object(fields) = source else { return };
    for (key, value) in fields {
        let mut candidate = target.clone();
        candidate[key] = value.clone();
        if accepts(&candidate) {
            *target = candidate;
            continue;
        }
        let shape = match value {
            Value::Object(_) => Value::Object(Map::new()),
            Value::Array(_) => Value::Array(Vec::new()),
            _ => continue,
        };
        candidate[key] = shape;
        if !accepts(&candidate) {
            continue;
        }
        *target = candidate;
        let context = target.clone();
        let within = |part: &Value| {
            let mut candidate = context.clone();
            candidate[key] = part.clone();
            accepts(&candidate)
        };
        match value {
            Value::Object(_) => graft(&mut target[key], value, &within),
            Value::Array(items) => {
                for item in items {
                    let mut list = target[key].as_array().cloned().unwrap_or_default();
                    list.push(item.clone());
                    if within(&Value::Array(list.clone())) {
                        target[key] = Value::Array(list);
                    }
                }
            }
            _ => {}
        }
    }
}

fn check(object: &Object) {
    let first = translate_object(&context(), object);
    let second = translate_object(&context(), object);
    assert_eq!(format!("{first:?}"), format!("{second:?}"), "translation is a function of its arguments");
    let whole = !matches!(object, Object::Gateway(_) | Object::Service(_));
    if whole {
        assert_eq!(first.value.is_none(), !first.rejections.is_empty(), "{first:#?}");
    }
    for finding in first.rejections.iter().chain(&first.warnings) {
        assert!(!finding.field.is_empty() && !finding.reason.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_tree_is_translated(spec in tree()) {
        if let Some(object) = decode("VirtualService", &spec) { check(&Object::VirtualService(Box::new(object))); }
        if let Some(object) = decode("DestinationRule", &spec) { check(&Object::DestinationRule(Box::new(object))); }
        if let Some(object) = decode("Gateway", &spec) { check(&Object::Gateway(Box::new(object))); }
        if let Some(object) = decode("Sidecar", &spec) { check(&Object::Sidecar(Box::new(object))); }
        if let Some(object) = decode("ServiceEntry", &spec) { check(&Object::ServiceEntry(Box::new(object))); }
        if let Some(object) = decode("WorkloadEntry", &spec) { check(&Object::WorkloadEntry(Box::new(object))); }
        if let Some(object) = decode("PeerAuthentication", &spec) { check(&Object::PeerAuthentication(Box::new(object))); }
        if let Some(object) = decode("Service", &spec) { check(&Object::Service(Box::new(object))); }
    }

    #[test]
    fn parsers_take_any_text(given in text(), random in "\\PC*") {
        for text in [given, random] {
            let rule = json!({
                "hosts": [text], "gateways": [text], "exportTo": [text],
                "http": [{
                    "match": [{ "uri": { "regex": text }, "headers": { text.as_str(): { "exact": text } } }],
                    "route": [{ "destination": { "host": text, "subset": text } }],
                    "timeout": text,
                    "retries": { "attempts": 1, "retryOn": text },
                    "headers": { "request": { "set": { text.as_str(): text } } },
                    "directResponse": { "status": 200, "body": { "bytes": text } },
                }],
                "tcp": [{ "match": [{ "destinationSubnets": [text] }] }],
            });
            check(&Object::VirtualService(Box::new(decode("VirtualService", &rule).unwrap())));
            let sidecar = json!({
                "ingress": [{ "port": { "number": 1 }, "defaultEndpoint": text, "bind": text }],
                "egress": [{ "hosts": [text], "bind": text }],
            });
            check(&Object::Sidecar(Box::new(decode("Sidecar", &sidecar).unwrap())));
        }
    }
}
