//! What the injector writes into a pod is what the agent understands.

use agent::args::{Args, Command};
use agent::config::{Config, Environment};
use clap::Parser as _;
use inject::{Request, Settings};
use k8s_api::mesh_config::MeshConfig;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

fn inject(annotations: &Value, values: Value) -> Value {
    let container = json!({
        "name": "web", "ports": [{"containerPort": 80, "name": "http"}],
        "livenessProbe": {"httpGet": {"port": "http"}}, "readinessProbe": {"grpc": {"port": 90}},
    });
    let pod = json!({
        "metadata": {"name": "web", "labels": {"app": "web"}, "annotations": annotations},
        "spec": {"containers": [container]},
    });
    let mesh = json!({"defaultConfig": {"concurrency": 2, "tracing": {}}});
    let settings = Settings::new(values, MeshConfig::merge([&mesh]).unwrap()).unwrap();
    let none = BTreeMap::new();
    let request = Request {
        pod: &pod,
        namespace: "shop",
        namespace_annotations: &none,
        workload: None,
        proxy_config: &[],
        native_sidecar: true,
        environment: &none,
    };
    inject::inject(&settings, &request).unwrap().pod
}

fn proxy(pod: &Value) -> &Value {
    let lists = ["initContainers", "containers"].into_iter().filter_map(|list| pod["spec"][list].as_array());
    lists.flatten().find(|container| container["name"] == "istio-proxy").unwrap()
}

/// Fills in what Kubernetes does, and loads it as the agent does.
fn load(pod: &Value) -> Config {
    let proxy = proxy(pod);
    let words = proxy["args"]
        .as_array()
        .unwrap()
        .iter()
        .map(|word| word.as_str().unwrap().replace("$(POD_NAMESPACE)", "shop"));
    let args = Args::try_parse_from(std::iter::once("weft-agent".to_owned()).chain(words)).unwrap();
    let Command::Proxy(args) = args.command else { panic!("not the proxy command") };
    let variables = proxy["env"].as_array().unwrap().iter().map(|variable| {
        let field = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
        let value = match field {
            Some("metadata.namespace") => "shop",
            Some("status.podIP" | "status.hostIP") => "10.0.0.7",
            Some(_) => "web",
            None if variable["valueFrom"]["resourceFieldRef"].is_object() => "2",
            None => variable["value"].as_str().unwrap(),
        };
        (variable["name"].as_str().unwrap(), value)
    });
    let annotations: String = pod["metadata"]["annotations"]
        .as_object()
        .unwrap()
        .iter()
        .fold(String::new(), |text, (key, value)| format!("{text}{key}={value}\n"));
    let read = |path: &Path| match path.to_str() {
        Some("./etc/istio/pod/annotations") => Ok(annotations.clone()),
        Some("./etc/istio/pod/labels") => Ok("app=\"web\"\n".to_owned()),
        _ => Err(std::io::ErrorKind::NotFound.into()),
    };
    Config::load(&args, &variables.collect::<Environment>(), &read).unwrap()
}

#[test]
fn a_sidecar_is_understood_without_a_warning() {
    let annotations = json!({
        "prometheus.io/port": "9090", "status.sidecar.istio.io/port": "15999",
        "sidecar.istio.io/agentLogLevel": "default:debug", "sidecar.istio.io/logLevel": "debug",
        "proxy.istio.io/config": "terminationDrainDuration: 7s",
    });
    let config = load(&inject(&annotations, Value::Null));
    assert_eq!(config.warnings, Vec::<String>::new());
    assert_eq!(config.ports.status, 15999);
    assert_eq!(config.probes.keys().collect::<Vec<_>>(), ["/app-health/web/livez", "/app-health/web/readyz"]);
    assert_eq!(config.scrape.unwrap().port, 9090);
    assert_eq!(config.drain.termination.as_secs(), 7);
    assert_eq!(config.envoy.concurrency, Some(2));
}

#[test]
fn a_gateway_is_understood_without_a_warning() {
    let config = load(&inject(&json!({"inject.istio.io/templates": "gateway"}), Value::Null));
    assert_eq!(config.role.as_str(), "router");
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn hooks_are_commands_of_the_agent() {
    let native = inject(&json!({}), Value::Null);
    let classic = json!({"sidecar.istio.io/nativeSidecar": "false"});
    let holds = json!({"global": {"logAsJson": true, "proxy": {"holdApplicationUntilProxyStarts": true}}});
    let classic = inject(&classic, holds);
    for hook in [&proxy(&native)["lifecycle"]["preStop"], &proxy(&classic)["lifecycle"]["postStart"]] {
        let words = hook["exec"]["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
        assert!(Args::try_parse_from(words.clone()).is_ok(), "{hook}");
    }
    assert_eq!(load(&classic).warnings, Vec::<String>::new());
}
