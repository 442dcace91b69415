//! The Helm charts, linted and installed into a real API server.

use std::path::PathBuf;
use std::process::Command;

use e2e::repository;
use testkit::rig::{ApiServer, Etcd};
use testkit::tools;

#[test]
fn the_chart_of_definitions_installs_upgrades_and_leaves_objects_in_place() {
    let chart = repository().join("charts/weft-crds");
    let chart = chart.to_str().unwrap();
    helm(&["lint", "--strict", chart]).unwrap();

    let etcd = Etcd::start().unwrap();
    let server = ApiServer::start(&etcd).unwrap();
    let kubeconfig = server.kubeconfig().to_str().unwrap();
    let install = ["upgrade", "--install", "weft-crds", chart, "--kubeconfig", kubeconfig, "--wait"];
    helm(&[&install[..], &["--set", "excludedCRDs={sidecars.networking.istio.io}"]].concat()).unwrap();
    assert_eq!(definitions(&server).len(), generated().len() - 1);
    helm(&[&install[..], &["--set", "excludedCRDs=null"]].concat()).unwrap();
    assert_eq!(definitions(&server).len(), generated().len());

    let wait = ["wait", "crd", "--selector", "app.kubernetes.io/part-of=weft", "--for=condition=Established"];
    server.kubectl(&wait).unwrap();
    let sample = repository().join("samples/traffic-shifting");
    server.kubectl(&["apply", "-f", sample.to_str().unwrap()]).unwrap();
    let routes = || server.kubectl(&["get", "virtualservices", "--all-namespaces", "--output=name"]).unwrap();
    let before = routes();
    assert!(before.starts_with("virtualservice.networking.istio.io/"), "{before}");
    helm(&["uninstall", "weft-crds", "--kubeconfig", kubeconfig]).unwrap();
    assert_eq!(routes(), before);
}

#[test]
fn values_that_the_chart_of_definitions_does_not_know_are_refused() {
    let chart = repository().join("charts/weft-crds");
    let chart = chart.to_str().unwrap();
    let unknown = helm(&["template", "x", chart, "--set", "excludedCRDS={a}"]).unwrap_err();
    assert!(unknown.contains("excludedCRDS"), "{unknown}");
    let missing =
        helm(&["template", "x", chart, "--set", "excludedCRDs={gateway.networking.istio.io}"]).unwrap_err();
    assert!(missing.contains("there is no definition \"gateway.networking.istio.io\""), "{missing}");
}

/// Returns what helm printed, or what it complained about.
fn helm(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(tools::helm().unwrap()).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn definitions(server: &ApiServer) -> Vec<String> {
    let names = server
        .kubectl(&["get", "crd", "--selector", "app.kubernetes.io/part-of=weft", "--output=name"])
        .unwrap();
    names.lines().map(ToOwned::to_owned).collect()
}

fn generated() -> Vec<PathBuf> {
    let folder = repository().join("crds").read_dir().unwrap();
    folder.map(|entry| entry.unwrap().path()).collect()
}
