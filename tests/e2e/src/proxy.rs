//! Stock Envoys with the bootstrap that the samples have for everybody.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::rig::Envoy;
use testkit::rig::envoy::EnvoyOptions;

use crate::network::Network;
use crate::repository;

/// Returns how the gateway of all samples describes itself.
pub fn gateway_node() -> Value {
    json!({
        "id": "gateway",
        "cluster": "gateway",
        "metadata": {
            "PROXY_TYPE": "router", "NAMESPACE": "istio-system", "LABELS": { "istio": "ingressgateway" },
        },
    })
}

/// Returns how a sidecar describes itself whose listeners are bound, since nothing captures its traffic.
pub fn sidecar_node(name: &str, namespace: &str, ip: &str) -> Value {
    json!({
        "id": name,
        "cluster": name,
        "metadata": {
            "PROXY_TYPE": "sidecar", "NAME": name, "NAMESPACE": namespace, "LABELS": { "app": name },
            "INSTANCE_IPS": ip, "INTERCEPTION_MODE": "NONE",
        },
    })
}

/// Returns the bootstrap of the samples for another node and another address of weftd.
///
/// # Errors
///
/// If the sample is not what it was.
pub fn bootstrap(node: &Value, weftd: SocketAddr) -> anyhow::Result<String> {
    let path = repository().join("samples/envoy-bootstrap.yaml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let (_, rest) = text.split_once("\ndynamic_resources:").context("the sample lacks dynamic_resources")?;
    let address = "address: 127.0.0.1\n                port_value: 15010";
    ensure!(rest.contains(address), "the sample does not point at 127.0.0.1:15010");
    let ours = format!("address: {}\n                port_value: {}", weftd.ip(), weftd.port());
    Ok(format!("node: {node}\ndynamic_resources:{}", rest.replace(address, &ours)))
}

/// Starts an Envoy that gets all it does from weftd, and waits until it is live.
///
/// # Errors
///
/// If it does not become live.
pub fn start(node: &Value, weftd: SocketAddr) -> anyhow::Result<Envoy> {
    let mut options = EnvoyOptions::new(bootstrap(node, weftd)?);
    options.log_level = std::env::var("ENVOY_LOG").unwrap_or_else(|_| "info".to_owned());
    let envoy = Envoy::start_with(&options)?;
    envoy.wait_ready(crate::PATIENCE)?;
    Ok(envoy)
}

/// Starts the gateway of all samples.
///
/// # Errors
///
/// If it does not become live.
pub fn start_gateway(weftd: SocketAddr) -> anyhow::Result<Envoy> {
    start(&gateway_node(), weftd)
}

/// Returns the manifest that gives sidecars in `namespace` listeners of their own on `127.N.253.1`, one a port and
/// protocol. In a cluster iptables redirect to Envoy what an app sends; here apps are told where their sidecar listens.
pub fn bound_sidecar(namespace: &str, ports: &[(u16, &str)], network: &Network) -> String {
    let bind = network.ip(253, 1);
    let mut manifest = format!(
        "apiVersion: networking.istio.io/v1
kind: Sidecar
metadata:
  name: bound
  namespace: {namespace}
spec:
  egress:
"
    );
    for (port, protocol) in ports {
        manifest.push_str(&format!(
            "  - bind: {bind}
    captureMode: NONE
    port:
      number: {port}
      name: port-{port}
      protocol: {protocol}
    hosts:
    - \"*/*\"
"
        ));
    }
    manifest
}

/// Returns the addresses that Envoy has for each of its clusters. An Envoy that is told of a cluster without
/// endpoints has the cluster with none.
///
/// # Errors
///
/// If Envoy cannot be asked.
pub fn hosts(envoy: &Envoy) -> anyhow::Result<BTreeMap<String, BTreeSet<String>>> {
    let clusters = envoy.admin_get("/clusters?format=json")?.json()?;
    let mut hosts = BTreeMap::new();
    for cluster in clusters["cluster_statuses"].as_array().into_iter().flatten() {
        let name = cluster["name"].as_str().unwrap_or_default().to_owned();
        let addresses = cluster["host_statuses"].as_array().into_iter().flatten().filter_map(|host| {
            let socket = &host["address"]["socket_address"];
            Some(format!("{}:{}", socket["address"].as_str()?, socket["port_value"]))
        });
        hosts.insert(name, addresses.collect());
    }
    Ok(hosts)
}
