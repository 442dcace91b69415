//! Whole injections: what the user wrote survives, a second time changes nothing, and the patch makes the pod.

use inject::{Injected, Platform, Request, Settings};
use k8s_api::mesh_config::MeshConfig;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// An injection as most tests need it.
struct Case {
    settings: Settings,
    native: bool,
    namespace_annotations: BTreeMap<String, String>,
    environment: BTreeMap<String, String>,
}

impl Case {
    fn new(values: Value, mesh: &Value) -> Self {
        let mesh = MeshConfig::merge([mesh]).unwrap();
        let settings = Settings::new(values, mesh).unwrap();
        Self { settings, native: true, namespace_annotations: BTreeMap::new(), environment: BTreeMap::new() }
    }

    fn default() -> Self {
        Self::new(Value::Null, &Value::Null)
    }

    fn try_inject(&self, pod: &Value) -> Result<Injected, inject::InjectError> {
        let request = Request {
            pod,
            namespace: "app",
            namespace_annotations: &self.namespace_annotations,
            workload: None,
            proxy_config: &[],
            native_sidecar: self.native,
            environment: &self.environment,
        };
        inject::inject(&self.settings, &request)
    }

    /// Injects, and checks what holds of every injection.
    fn inject(&self, pod: &Value) -> Value {
        let injected = self.try_inject(pod).unwrap();
        let mut patched = pod.clone();
        json_patch::patch(&mut patched, &injected.patch).unwrap();
        assert_eq!(patched, injected.pod, "the patch makes another pod");
        let again = self.try_inject(&injected.pod).unwrap();
        assert!(again.patch.0.is_empty(), "a second time changes something: {}", again.patch);
        injected.pod
    }
}

fn pod(containers: &Value) -> Value {
    json!({"metadata": {"name": "web", "labels": {"app": "web"}}, "spec": {"containers": containers}})
}

fn web() -> Value {
    json!({"name": "web", "image": "web:1"})
}

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let found = list.as_array().into_iter().flatten().find(|entry| entry["name"] == name);
    found.unwrap_or(&Value::Null)
}

fn proxy(pod: &Value) -> &Value {
    let native = named(&pod["spec"]["initContainers"], "istio-proxy");
    if native.is_null() { named(&pod["spec"]["containers"], "istio-proxy") } else { native }
}

#[test]
fn what_the_user_wrote_about_the_proxy_survives_a_second_injection() {
    let written = json!({
        "name": "istio-proxy", "image": "auto", "args": ["mine"], "securityContext": {"runAsUser": 1234},
        "env": [{"name": "MINE", "value": "1"}],
    });
    for mode in ["REDIRECT", "TPROXY"] {
        for native in [true, false] {
            let mut case = Case::new(Value::Null, &json!({"defaultConfig": {"interceptionMode": mode}}));
            case.native = native;
            let injected = case.inject(&pod(&json!([web(), written])));
            let proxy = proxy(&injected);
            assert_eq!(proxy["args"], json!(["mine"]), "{mode}");
            assert_eq!(named(&proxy["env"], "MINE")["value"], "1");
            assert_eq!(proxy["restartPolicy"], if native { json!("Always") } else { Value::Null });
            let user = if mode == "TPROXY" { 0 } else { 1234 };
            assert_eq!(proxy["securityContext"]["runAsUser"], user);
            let init = named(&injected["spec"]["initContainers"], "istio-init");
            let arguments: Vec<&str> =
                init["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            assert!(arguments.windows(2).any(|pair| pair == ["-u", "1234"]), "{arguments:?}");
            let kept = injected["metadata"]["annotations"]["proxy.istio.io/overrides"].as_str().unwrap();
            assert!(kept.contains("\"mine\"") && !kept.contains("auto"), "{kept}");
        }
    }
}

#[test]
fn a_cluster_that_becomes_new_enough_moves_the_proxy() {
    let mut case = Case::default();
    case.native = false;
    let classic = case.inject(&pod(&json!([web()])));
    assert!(!named(&classic["spec"]["containers"], "istio-proxy").is_null());
    case.native = true;
    let moved = case.try_inject(&classic).unwrap().pod;
    assert!(named(&moved["spec"]["containers"], "istio-proxy").is_null());
    assert_eq!(named(&moved["spec"]["initContainers"], "istio-proxy")["restartPolicy"], "Always");
    case.native = false;
    let back = case.try_inject(&moved).unwrap().pod;
    assert!(named(&back["spec"]["initContainers"], "istio-proxy").is_null());
    assert_eq!(named(&back["spec"]["containers"], "istio-proxy")["restartPolicy"], Value::Null);
}

#[test]
fn fields_that_nobody_here_knows_survive() {
    let mut container = web();
    container["aFieldOfTomorrow"] = json!({"x": [1]});
    let mut pod = pod(&json!([container]));
    pod["spec"]["anotherOne"] = json!(true);
    let injected = Case::default().inject(&pod);
    assert_eq!(named(&injected["spec"]["containers"], "web")["aFieldOfTomorrow"], json!({"x": [1]}));
    assert_eq!(injected["spec"]["anotherOne"], true);
}

#[test]
fn the_application_waits_for_a_proxy_that_is_no_native_sidecar() {
    let mut case =
        Case::new(json!({"global": {"proxy": {"holdApplicationUntilProxyStarts": true}}}), &Value::Null);
    case.native = false;
    let injected = case.inject(&pod(&json!([web()])));
    assert_eq!(injected["spec"]["containers"][0]["name"], "istio-proxy");
    let start = &proxy(&injected)["lifecycle"]["postStart"]["exec"]["command"];
    assert_eq!(start, &json!(["weft-agent", "wait"]));
}

#[test]
fn another_clusters_webhook_says_which_cluster_and_network_it_is() {
    let mut case = Case::default();
    case.environment = inject::environment_of_path("/inject/cluster/remote1/net/n2/istiod_san/x.example");
    let injected = case.inject(&pod(&json!([web()])));
    let env = &proxy(&injected)["env"];
    assert_eq!(named(env, "ISTIO_META_CLUSTER_ID")["value"], "remote1");
    assert_eq!(named(env, "ISTIO_META_NETWORK")["value"], "n2");
    assert_eq!(named(env, "ISTIOD_SAN")["value"], "x.example");
    assert_eq!(injected["metadata"]["labels"]["topology.istio.io/network"], "n2");
}

#[test]
fn a_revision_has_an_authority_of_its_own() {
    let case = Case::new(json!({"revision": "canary"}), &Value::Null);
    let injected = case.inject(&pod(&json!([web()])));
    let authority = &named(&proxy(&injected)["env"], "CA_ADDR")["value"];
    assert_eq!(authority, "istiod-canary.istio-system.svc:15012");
    assert_eq!(injected["metadata"]["annotations"]["istio.io/rev"], "canary");
}

#[test]
fn openshift_decides_who_the_proxy_runs_as() {
    let mut case = Case::default();
    case.settings.platform = Platform::OpenShift;
    let range = ("openshift.io/sa.scc.uid-range".to_owned(), "1000/10".to_owned());
    case.namespace_annotations = BTreeMap::from([range]);
    let injected = case.inject(&pod(&json!([web()])));
    assert_eq!(proxy(&injected)["securityContext"]["runAsUser"], 1009);
}

#[test]
fn an_application_that_asks_for_its_own_status_port_is_probed_there() {
    let mut container = web();
    container["livenessProbe"] = json!({"httpGet": {"port": 80}});
    let mut pod = pod(&json!([container]));
    pod["metadata"]["annotations"] = json!({"status.sidecar.istio.io/port": "15999"});
    let injected = Case::default().inject(&pod);
    let probe = &named(&injected["spec"]["containers"], "web")["livenessProbe"]["httpGet"];
    assert_eq!(probe["port"], 15999);
    assert_eq!(injected["metadata"]["annotations"]["prometheus.io/port"], "15999");
}

#[test]
fn templates_are_chosen_by_name_alias_and_default() {
    let team = json!({"metadata": {"annotations": {"team": "${label:team|nobody}", "where": "${namespace}/${workload.name}"}}});
    let values = json!({"sidecarInjectorWebhook": {
        "templates": {"team": team}, "aliases": {"both": ["sidecar", "team"]}, "defaultTemplates": ["both"],
    }});
    let case = Case::new(values, &Value::Null);
    let injected = case.inject(&pod(&json!([web()])));
    assert_eq!(injected["metadata"]["annotations"]["team"], "nobody");
    assert_eq!(injected["metadata"]["annotations"]["where"], "app/web");
    assert!(!proxy(&injected).is_null());

    let mut other = pod(&json!([web()]));
    other["metadata"]["annotations"] = json!({"inject.istio.io/templates": "team"});
    assert!(proxy(&case.inject(&other)).is_null());
    other["metadata"]["annotations"] = json!({"inject.istio.io/templates": "sidecar,teem"});
    let error = case.try_inject(&other).unwrap_err().to_string();
    assert_eq!(
        error,
        "annotation inject.istio.io/templates: there is no template \"teem\", only sidecar, gateway, grpc-agent, grpc-simple, team"
    );
}

#[test]
fn what_weft_agent_cannot_do_is_said() {
    let mesh = json!({"defaultConfig": {"proxyMetadata": {"ISTIO_META_DNS_CAPTURE": "true"}}});
    let warnings = Case::new(Value::Null, &mesh).try_inject(&pod(&json!([web()]))).unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].starts_with("ISTIO_META_DNS_CAPTURE is set"), "{warnings:?}");
    let mut grpc = pod(&json!([web()]));
    grpc["metadata"]["annotations"] = json!({"inject.istio.io/templates": "grpc-agent"});
    let warnings = Case::default().try_inject(&grpc).unwrap().warnings;
    assert!(warnings.iter().any(|warning| warning.starts_with("DISABLE_ENVOY is set")), "{warnings:?}");
}

#[test]
fn a_pod_that_is_none_is_refused_with_the_field() {
    for (pod, expected) in [
        (json!([]), "pod: is not an object"),
        (json!({"metadata": {"labels": {"a": 1}}}), "metadata.labels[\"a\"]: is not a string"),
        (json!({"spec": {"containers": [{}]}}), "spec.containers[0].name: is required"),
        (json!({"spec": {"initContainers": {}}}), "spec.initContainers: is not a list"),
    ] {
        let error = Case::default().try_inject(&pod).unwrap_err().to_string();
        assert_eq!(error, expected);
    }
}

fn arbitrary_pod() -> impl Strategy<Value = Value> {
    let probe = prop_oneof![
        Just(json!({"httpGet": {"port": "http", "scheme": "HTTPS"}})),
        Just(json!({"httpGet": {"path": "/x", "port": 81}})),
        Just(json!({"tcpSocket": {"port": "nope"}})),
        Just(json!({"grpc": {"port": 90}})),
        Just(json!({"exec": {"command": ["true"]}})),
    ];
    let container =
        (prop::sample::select(vec!["a", "b", "istio-proxy", "c", "istio-init"]), prop::option::of(probe))
            .prop_map(|(name, probe)| {
                let mut container =
                    json!({"name": name, "image": "auto", "ports": [{"name": "http", "containerPort": 80}]});
                if let Some(probe) = probe {
                    container["readinessProbe"] = probe.clone();
                    container["lifecycle"] = json!({"preStop": probe});
                }
                container
            });
    let unique = |containers: Vec<Value>| {
        let mut seen = Vec::new();
        let mut kept = Vec::new();
        for container in containers {
            if !seen.contains(&container["name"]) {
                seen.push(container["name"].clone());
                kept.push(container);
            }
        }
        kept
    };
    let annotation = prop_oneof![
        Just(json!({})),
        Just(json!({"prometheus.io/port": "9090", "prometheus.io/scrape": "true"})),
        Just(json!({"sidecar.istio.io/interceptionMode": "NONE"})),
        Just(json!({"inject.istio.io/templates": "gateway"})),
        Just(json!({"inject.istio.io/templates": "grpc-agent"})),
        Just(json!({"inject.istio.io/templates": "grpc-simple"})),
        Just(json!({"sidecar.istio.io/nativeSidecar": "false"})),
        Just(json!({"proxy.istio.io/config": "holdApplicationUntilProxyStarts: true\nconcurrency: 1"})),
    ];
    let containers = prop::collection::vec(container.clone(), 0..4).prop_map(unique);
    let init = prop::collection::vec(container, 0..3).prop_map(unique);
    (containers, init, annotation).prop_filter_map(
        "a name is used once in a pod",
        |(containers, init, annotations)| {
            let twice = init.iter().any(|one| containers.iter().any(|other| other["name"] == one["name"]));
            let metadata = json!({"name": "web", "annotations": annotations});
            (!twice).then(
                || json!({"metadata": metadata, "spec": {"containers": containers, "initContainers": init}}),
            )
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_second_injection_changes_nothing_of_any_pod(pod in arbitrary_pod()) {
        for cni in [false, true] {
            Case::new(json!({"cni": {"enabled": cni, "provider": "multus"}}), &Value::Null).inject(&pod);
        }
    }
}
