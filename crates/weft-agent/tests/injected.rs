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

/// As Kubernetes would start it.
fn capture(pod: &Value) -> agent::capture::Request {
    let containers = pod["spec"]["initContainers"].as_array().unwrap();
    let container = containers
        .iter()
        .find(|container| ["istio-init", "istio-validation"].iter().any(|name| container["name"] == *name));
    let words = container.unwrap()["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
    let args = Args::try_parse_from(std::iter::once("weft-agent").chain(words)).unwrap();
    let Command::Capture(args) = args.command else { panic!("not the capture command") };
    let variables = container.unwrap()["env"].as_array().cloned().unwrap_or_default();
    let variables = variables
        .iter()
        .map(|variable| (variable["name"].as_str().unwrap(), variable["value"].as_str().unwrap_or_default()));
    let read = |_: &Path| Err(std::io::ErrorKind::NotFound.into());
    agent::capture::Request::load(&args, &variables.collect::<Environment>(), &read).unwrap()
}

#[test]
fn capture_is_what_annotations_say() {
    use capture::{InboundPorts, Mode, OutboundRanges};
    let request = capture(&inject(&json!({}), Value::Null));
    assert_eq!(request.settings.inbound, InboundPorts::AllBut(vec![15090, 15021, 15020]));
    assert_eq!(request.settings.outbound, OutboundRanges::All);
    assert_eq!((request.settings.users, request.settings.groups), (vec![1337], vec![1337]));
    assert!(request.applies && !request.validates && request.warnings.is_empty());

    let annotations = json!({
        "sidecar.istio.io/interceptionMode": "TPROXY",
        "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8,fd00::/8",
        "traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.1.0.0/16",
        "traffic.sidecar.istio.io/includeInboundPorts": "80,81",
        "traffic.sidecar.istio.io/includeOutboundPorts": "9000",
        "traffic.sidecar.istio.io/excludeOutboundPorts": "5432,5433",
        "traffic.sidecar.istio.io/excludeInterfaces": "net1",
        "traffic.sidecar.istio.io/kubevirtInterfaces": "vm0",
    });
    let settings = capture(&inject(&annotations, Value::Null)).settings;
    assert_eq!(settings.mode, Mode::Tproxy);
    let ranges = |list: &[&str]| list.iter().map(|range| range.parse().unwrap()).collect::<Vec<_>>();
    assert_eq!(settings.outbound, OutboundRanges::Only(ranges(&["10.0.0.0/8", "fd00::/8"])));
    assert_eq!(settings.outbound_except, ranges(&["10.1.0.0/16"]));
    assert_eq!(settings.inbound, InboundPorts::Only(vec![80, 81]));
    assert_eq!((settings.outbound_ports, settings.outbound_ports_except), (vec![9000], vec![5432, 5433]));
    assert_eq!(settings.except_interfaces[0].name(), "net1");
    assert_eq!(settings.virtual_interfaces[0].name(), "vm0");
}

#[test]
fn with_a_plugin_capture_is_only_tried_out() {
    let request = capture(&inject(&json!({}), json!({"pilot": {"cni": {"enabled": true}}})));
    assert!(request.validates && !request.applies);
}
