//! Istio's types: what the wire tells apart, leniency, and the shape of the CustomResourceDefinitions.

use std::collections::BTreeSet;

use k8s_api::core::{Pod, Service};
use k8s_api::crd::{definitions, files};
use k8s_api::destination_rule::{ClientTlsMode, DestinationRule, SimpleLb};
use k8s_api::gateway::Gateway;
use k8s_api::meta::Generation;
use k8s_api::peer_authentication::PeerAuthentication;
use k8s_api::sidecar::Sidecar;
use k8s_api::virtual_service::{StringMatchKind, VirtualService};
use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn decode<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[test]
fn absent_and_empty_are_told_apart() {
    let service: VirtualService = decode(
        json!({ "spec": { "http": [{ "retries": {}, "fault": { "abort": { "percentage": {} } } }, {}] } }),
    );
    let [first, second] = service.spec.http.as_slice() else { panic!("two rules") };
    assert_eq!(first.retries, Some(Default::default()));
    assert_eq!(second.retries, None);
    let abort = first.fault.as_ref().unwrap().abort.as_ref().unwrap();
    assert_eq!(abort.percentage.as_ref().unwrap().value, None);

    let sidecar: Sidecar = decode(json!({ "spec": { "outboundTrafficPolicy": {} } }));
    assert_eq!(sidecar.spec.outbound_traffic_policy.unwrap().mode, None);
    let gateway: Gateway = decode(json!({ "spec": { "servers": [{ "tls": {} }, {}] } }));
    assert_eq!(gateway.spec.servers[0].tls.as_ref().unwrap().mode, None);
    assert_eq!(gateway.spec.servers[1].tls, None);
    let rule: DestinationRule =
        decode(json!({ "spec": { "trafficPolicy": { "outlierDetection": { "minHealthPercent": 0 } } } }));
    assert_eq!(rule.spec.traffic_policy.unwrap().outlier_detection.unwrap().min_health_percent, Some(0));
}

#[test]
fn present_but_empty_survives_being_written() {
    let value = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": { "name": "a" },
        "spec": { "http": [{ "retries": {}, "match": [{ "headers": { "x": {} } }], "mirror_percent": 0 }] },
    });
    let service: VirtualService = decode(value.clone());
    assert_eq!(serde_json::to_value(&service).unwrap(), value);
    assert_eq!(service.spec.http[0].mirror_percent(), Some(0));
    assert_eq!(service.spec.http[0].matches[0].headers["x"].kind(), None);
}

#[test]
fn unknown_enum_values_and_fields_decode() {
    let rule: DestinationRule = decode(json!({ "spec": { "host": "a", "new": 1, "trafficPolicy": {
        "loadBalancer": { "simple": "QUANTUM" }, "tls": { "mode": "ISTIO_MUTUAL", "more": {} },
    } } }));
    let policy = rule.spec.traffic_policy.unwrap();
    let simple = policy.load_balancer.unwrap().simple.unwrap();
    assert_eq!((simple.clone(), simple.as_str()), (SimpleLb::Other("QUANTUM".to_owned()), "QUANTUM"));
    assert_eq!(policy.tls.unwrap().mode, Some(ClientTlsMode::IstioMutual));
}

#[test]
fn objects_without_spec_decode() {
    let policy: PeerAuthentication = decode(json!({ "metadata": { "name": "default" } }));
    assert_eq!(policy.spec, Default::default());
    let policy: PeerAuthentication = decode(json!({ "metadata": null, "spec": null, "status": null }));
    assert_eq!(policy, PeerAuthentication::default());
}

#[test]
fn string_match_has_one_kind() {
    let service: VirtualService =
        decode(json!({ "spec": { "http": [{ "match": [{ "uri": { "prefix": "/a" } }] }] } }));
    assert_eq!(
        service.spec.http[0].matches[0].uri.as_ref().unwrap().kind(),
        Some(StringMatchKind::Prefix("/a"))
    );
}

#[test]
fn generations_are_read_from_numbers_and_strings() {
    let service: VirtualService = decode(
        json!({ "status": { "observedGeneration": "7", "conditions": [{ "observedGeneration": 8 }] } }),
    );
    let status = service.status.unwrap();
    assert_eq!(
        (status.observed_generation, status.conditions[0].observed_generation),
        (Some(Generation(7)), Some(Generation(8)))
    );
    assert_eq!(serde_json::to_value(status.observed_generation).unwrap(), json!(7));
}

#[test]
fn slim_kinds_drop_what_no_mesh_reads() {
    let pod: Pod = decode(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "p", "managedFields": [{ "manager": "x" }], "deletionTimestamp": "2024-01-01T00:00:00Z",
            "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}", "keep": "1" },
        },
        "spec": {
            "containers": [{ "name": "app", "env": [], "ports": [{ "name": "http", "containerPort": 8080 }] }],
            "initContainers": [
                { "name": "init", "ports": [{ "name": "once", "containerPort": 1 }] },
                { "name": "proxy", "restartPolicy": "Always", "ports": [{ "name": "mesh", "containerPort": 2, "protocol": "TCP" }] },
            ],
            "volumes": [{}],
        },
        "status": {
            "phase": "Running", "podIP": "1.1.1.1", "podIPs": [{ "ip": "1.1.1.1" }, { "ip": "::1" }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    }));
    assert_eq!(pod.metadata.managed_fields, None);
    assert_eq!(pod.metadata.annotations.as_ref().unwrap().len(), 1);
    assert!(pod.is_ready() && pod.is_terminating() && !pod.is_finished());
    assert_eq!(pod.ips().collect::<Vec<_>>(), ["1.1.1.1", "::1"]);
    assert_eq!(pod.service_account(), "default");
    let port = |name| pod.container_port(name, "");
    assert_eq!((port("http"), port("once"), port("mesh"), port("none")), (Some(8080), None, Some(2), None));
}

#[test]
fn kinds_fit_kube_clients() {
    /// What `kube::Api<K>` and `watcher` ask of a kind.
    fn url<
        K: kube_core::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
    >() -> String {
        format!("{}/{}", K::api_version(&()), K::plural(&()))
    }
    assert_eq!(url::<VirtualService>(), "networking.istio.io/v1/virtualservices");
    assert_eq!(url::<PeerAuthentication>(), "security.istio.io/v1/peerauthentications");
    assert_eq!(url::<k8s_api::telemetry::Telemetry>(), "telemetry.istio.io/v1/telemetries");
    assert_eq!(url::<k8s_api::envoy_filter::EnvoyFilter>(), "networking.istio.io/v1alpha3/envoyfilters");
    assert_eq!(url::<k8s_api::proxy_config::ProxyConfig>(), "networking.istio.io/v1beta1/proxyconfigs");
    assert_eq!(url::<Service>(), "v1/services");
    assert_eq!(url::<k8s_api::core::EndpointSlice>(), "discovery.k8s.io/v1/endpointslices");
}

#[test]
fn services_know_their_virtual_addresses() {
    let service: Service = decode(
        json!({ "spec": { "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"], "ports": null } }),
    );
    assert_eq!(service.cluster_ips().collect::<Vec<_>>(), ["10.0.0.1", "fd00::1"]);
    let headless: Service = decode(json!({ "spec": { "clusterIP": "None", "clusterIPs": ["None"] } }));
    assert!(headless.is_headless() && headless.cluster_ips().next().is_none());
}

/// Walks a structural schema and collects what the API server would refuse.
fn structural_problems(node: &Value, path: &str, problems: &mut Vec<String>) {
    let object = node.as_object().unwrap();
    let typed = node["type"].is_string() || node["x-kubernetes-int-or-string"] == true;
    if !typed {
        problems.push(format!("{path}: no type"));
    }
    for key in ["$ref", "$defs", "default", "title", "const", "definitions", "$schema", "patternProperties"] {
        if object.contains_key(key) {
            problems.push(format!("{path}: {key}"));
        }
    }
    if object.contains_key("properties") && object.contains_key("additionalProperties") {
        problems.push(format!("{path}: properties beside additionalProperties"));
    }
    if let Some(format) = node["format"].as_str()
        && !["int32", "int64", "double", "byte", "date-time"].contains(&format)
    {
        problems.push(format!("{path}: format {format}"));
    }
    for rule in node["x-kubernetes-validations"].as_array().into_iter().flatten() {
        if rule["rule"].as_str().is_none_or(str::is_empty)
            || rule["message"].as_str().is_none_or(str::is_empty)
        {
            problems.push(format!("{path}: a CEL rule without text or message"));
        }
    }
    let properties: BTreeSet<&String> =
        node["properties"].as_object().into_iter().flatten().map(|(name, _)| name).collect();
    for required in node["required"].as_array().into_iter().flatten() {
        if !properties.contains(&required.as_str().unwrap().to_owned()) {
            problems.push(format!("{path}: requires {required}, which it does not have"));
        }
    }
    for group in ["oneOf", "anyOf", "allOf"] {
        for branch in node[group].as_array().into_iter().flatten() {
            logic_problems(branch, &properties, &format!("{path}<{group}>"), problems);
        }
    }
    for (name, property) in node["properties"].as_object().into_iter().flatten() {
        structural_problems(property, &format!("{path}.{name}"), problems);
    }
    for key in ["items", "additionalProperties"] {
        match &node[key] {
            Value::Null => {}
            schema @ Value::Object(_) => structural_problems(schema, &format!("{path}[]"), problems),
            _ => problems.push(format!("{path}: {key} is no schema")),
        }
    }
}

/// Branches of a logical group may only constrain: no descriptions, defaults or further properties.
fn logic_problems(branch: &Value, properties: &BTreeSet<&String>, path: &str, problems: &mut Vec<String>) {
    for (key, value) in branch.as_object().unwrap() {
        match key.as_str() {
            "required" => {
                for name in value.as_array().unwrap() {
                    if !properties.contains(&name.as_str().unwrap().to_owned()) {
                        problems.push(format!("{path}: names {name}, which does not exist"));
                    }
                }
            }
            "not" => logic_problems(value, properties, path, problems),
            "anyOf" | "oneOf" => {
                value
                    .as_array()
                    .unwrap()
                    .iter()
                    .for_each(|branch| logic_problems(branch, properties, path, problems));
            }
            // The two alternatives of int-or-string.
            "type" if properties.is_empty() => {}
            other => problems.push(format!("{path}: {other}")),
        }
    }
}

#[test]
fn schemas_are_structural() {
    let mut problems = Vec::new();
    let definitions = definitions();
    assert_eq!(definitions.len(), 15);
    for definition in &definitions {
        for version in definition["spec"]["versions"].as_array().unwrap() {
            let path = format!("{} {}", definition["metadata"]["name"], version["name"]);
            structural_problems(&version["schema"]["openAPIV3Schema"], &path, &mut problems);
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn one_version_is_stored_and_all_have_the_same_schema() {
    for definition in definitions() {
        let versions = definition["spec"]["versions"].as_array().unwrap();
        let stored: Vec<&Value> = versions
            .iter()
            .filter(|version| version["storage"] == true)
            .map(|version| &version["name"])
            .collect();
        let name = definition["metadata"]["name"].as_str().unwrap();
        // Those that Istio does not serve as v1, and one that it stores in the older version.
        let expected = match name.split_once('.').unwrap().0 {
            "envoyfilters" => "v1alpha3",
            "proxyconfigs" => "v1beta1",
            "telemetries" | "trafficextensions" | "wasmplugins" => "v1alpha1",
            _ => "v1",
        };
        assert_eq!(stored, [expected], "{name}");
        assert!(
            versions
                .iter()
                .all(|version| version["schema"] == versions[0]["schema"] && version["served"] == true)
        );
    }
}

#[test]
fn every_field_is_described() {
    fn walk(node: &Value, path: &str, missing: &mut Vec<String>) {
        for (name, property) in node["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            if !path.ends_with(".spec")
                && !path.ends_with(".status")
                && property["description"].as_str().is_none_or(str::is_empty)
            {
                missing.push(path.clone());
            }
            walk(property, &path, missing);
        }
        for key in ["items", "additionalProperties"] {
            if node[key].is_object() {
                walk(&node[key], &format!("{path}[]"), missing);
            }
        }
    }
    let mut missing = Vec::new();
    for definition in definitions() {
        walk(&definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "", &mut missing);
    }
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn files_are_the_definitions() {
    for (file, definition) in files().unwrap().iter().zip(definitions()) {
        let parsed = k8s_api::yaml::parse_value::<Value>(&file.yaml, &file.name).unwrap();
        assert_eq!(parsed.json, definition, "{}", file.name);
    }
}

fn json_values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        "[a-z*./]{0,8}".prop_map(Value::from),
        Just(json!({})),
        Just(json!([])),
    ];
    let key = prop_oneof![
        Just("http".to_owned()),
        Just("match".to_owned()),
        Just("route".to_owned()),
        Just("destination".to_owned()),
        Just("host".to_owned()),
        Just("retries".to_owned()),
        Just("weight".to_owned()),
        Just("headers".to_owned()),
        Just("exact".to_owned()),
        Just("uri".to_owned()),
        "[a-z]{1,6}",
    ];
    leaf.prop_recursive(5, 40, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map(key.clone(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// What decodes is written and read again without a change.
fn stable<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(value: &Value) -> Option<(T, T)> {
    let first: T = serde_json::from_value(value.clone()).ok()?;
    let second = serde_json::from_value(serde_json::to_value(&first).unwrap()).unwrap();
    Some((first, second))
}

proptest! {
    #[test]
    fn whatever_decodes_survives_being_written(http in json_values(), seed in json_values()) {
        for value in [json!({ "spec": { "http": [http] } }), json!({ "spec": seed })] {
            if let Some((first, second)) = stable::<VirtualService>(&value) {
                prop_assert_eq!(first, second);
            }
            if let Some((first, second)) = stable::<DestinationRule>(&value) {
                prop_assert_eq!(first, second);
            }
        }
    }
}
