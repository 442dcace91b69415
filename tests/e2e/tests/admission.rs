//! A real API server that asks weftd about pods and objects, and what weftd writes into it.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::network::Network;
use e2e::weftd::Weftd;
use e2e::{PATIENCE, eventually, repository};
use serde_json::Value;
use testkit::rig::process::Scratch;
use testkit::rig::{ApiServer, Etcd};

/// A lease that nobody gives back lasts fifteen seconds; the machine may be busy.
const TAKEOVER: Duration = Duration::from_secs(60);

const NAMESPACES: &str = "
apiVersion: v1
kind: Namespace
metadata: { name: istio-system }
---
apiVersion: v1
kind: Namespace
metadata: { name: shop, labels: { istio-injection: enabled } }
---
apiVersion: v1
kind: Namespace
metadata: { name: plain }
---
apiVersion: v1
kind: ConfigMap
metadata: { name: istio-sidecar-injector, namespace: istio-system }
data:
  values: '{\"global\": {\"hub\": \"registry.example/weft\", \"tag\": \"1.2.3\"}}'
";

const BAD: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: cart, namespace: shop }
spec:
  hosts: [cart]
  http:
  - match: [{ uri: { regex: '(' } }]
    route: [{ destination: { host: cart } }]
";

const SUSPICIOUS: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: cart, namespace: shop }
spec:
  hosts: [cart]
  http:
  - match: [{ uri: { prefix: / } }]
    route: [{ destination: { host: cart } }]
  - match: [{ uri: { prefix: /never } }]
    route: [{ destination: { host: cart } }]
";

struct Cluster {
    api: ApiServer,
    network: Network,
    folder: Scratch,
    _etcd: Etcd,
}

impl Cluster {
    fn start() -> Result<Self> {
        let etcd = Etcd::start()?;
        let api = ApiServer::start(&etcd)?;
        api.install_definitions()?;
        let cluster =
            Self { api, network: Network::claim()?, folder: Scratch::new("admission")?, _etcd: etcd };
        cluster.apply("namespaces", NAMESPACES)?;
        Ok(cluster)
    }

    /// Returns what kubectl said, warnings included.
    fn apply(&self, name: &str, manifest: &str) -> Result<String> {
        let path = self.file(name, manifest)?;
        Ok(self.api.kubectl_of_admin().run_with_warnings(&["apply", "-f", &path.display().to_string()])?)
    }

    fn file(&self, name: &str, manifest: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(format!("{name}.yaml"));
        fs::write(&path, manifest)?;
        Ok(path)
    }

    fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.api.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Starts a weftd with all its ports on an address of its own.
    fn weftd(&self, number: u8) -> Result<Weftd> {
        let at = |port| self.network.socket(255, number, port);
        let secure = [at(15012), self.webhooks(number)].map(|address| address.to_string());
        let arguments: Vec<OsString> = vec![
            "--kubeconfig".into(),
            self.api.kubeconfig().into(),
            "--secure-grpc-addr".into(),
            secure[0].clone().into(),
            "--https-addr".into(),
            secure[1].clone().into(),
            "--secure-name".into(),
            at(0).ip().to_string().into(),
            "--write".into(),
            "webhooks,root-certificates".into(),
            "--pod-name".into(),
            format!("weftd-{number}").into(),
        ];
        Weftd::start_at([at(15010), at(8080), at(15014)], &arguments)
    }

    fn webhooks(&self, number: u8) -> SocketAddr {
        self.network.socket(255, number, 15017)
    }

    /// Lets the API server ask the weftd of this number, as the chart does it but for the URL.
    fn configure(&self, number: u8) -> Result<()> {
        let address = self.webhooks(number);
        let chart = repository().join("charts/weft").display().to_string();
        let url = format!("webhooks.url=https://{address}");
        let mut helm = Command::new(testkit::tools::helm()?);
        helm.args(["template", "weft", &chart, "--namespace", "istio-system", "--set", &url]);
        helm.args(["--show-only", "templates/webhooks.yaml"]);
        let output = helm.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.apply("webhooks", &String::from_utf8(output.stdout)?)?;
        Ok(())
    }

    fn bundles(&self) -> Result<Vec<String>> {
        let mut bundles = Vec::new();
        for kind in ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"] {
            let all = self.get(&[kind, "-l", "istio.io/rev=default"])?;
            for webhook in all["items"]
                .as_array()
                .into_iter()
                .flatten()
                .flat_map(|item| item["webhooks"].as_array().cloned().unwrap_or_default())
            {
                bundles.push(webhook["clientConfig"]["caBundle"].as_str().unwrap_or_default().to_owned());
            }
        }
        ensure!(bundles.len() > 3, "there are only {} webhooks", bundles.len());
        Ok(bundles)
    }

    fn wait_for_bundles(&self) -> Result<()> {
        eventually("the bundles", PATIENCE, || {
            let bundles = self.bundles()?;
            ensure!(bundles.iter().all(|bundle| bundle.len() > 100), "{bundles:?}");
            Ok(())
        })
    }

    fn root_certificate(&self, namespace: &str) -> Result<String> {
        let object = self.get(&["configmap", "istio-ca-root-cert", "-n", namespace])?;
        Ok(object["data"]["root-cert.pem"].as_str().context("a root")?.to_owned())
    }

    fn leader(&self) -> Result<String> {
        let lease = self.get(&["lease", "weft-leader-default", "-n", "istio-system"])?;
        Ok(lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned())
    }

    fn wait_for_leader(&self, name: &str) -> Result<()> {
        eventually("another leader", TAKEOVER, || {
            let leader = self.leader()?;
            ensure!(leader.starts_with(&format!("{name}_")), "{leader:?} leads");
            Ok(())
        })
    }
}

fn pod(name: &str, namespace: &str, more: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}{more}}},
          spec: {{serviceAccountName: default, containers: [{{name: app, image: app}}]}}}}"
    )
}

fn containers(pod: &Value) -> Vec<String> {
    let lists = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array().cloned());
    let all = lists.into_iter().flatten().flatten();
    all.filter_map(|container| Some(container["name"].as_str()?.to_owned())).collect()
}

#[test]
fn pods_are_injected_and_bad_objects_refused_and_another_weftd_takes_over() {
    let cluster = Cluster::start().unwrap();
    let weftd = cluster.weftd(1).unwrap();
    let outcome = the_whole_story(&cluster, weftd);
    outcome.unwrap_or_else(|error| panic!("{error:#}"));
}

fn the_whole_story(cluster: &Cluster, weftd: Weftd) -> Result<()> {
    let logged = |error: anyhow::Error, weftd: &Weftd| error.context(weftd.log());
    admission(cluster).map_err(|error| logged(error, &weftd))?;
    writers(cluster).map_err(|error| logged(error, &weftd))?;

    // A second one waits, and takes over from one that is killed.
    cluster.wait_for_leader("weftd-1")?;
    let second = cluster.weftd(2)?;
    cluster.configure(2)?;
    cluster.apply("before", &pod("before", "shop", "")).map_err(|error| logged(error, &second))?;
    ensure!(cluster.leader()?.starts_with("weftd-1_"), "the first one still leads");
    drop(weftd);
    cluster.wait_for_leader("weftd-2").map_err(|error| logged(error, &second))?;
    cluster.api.kubectl(&["delete", "configmap", "istio-ca-root-cert", "-n", "shop"])?;
    eventually("the ConfigMap again", TAKEOVER, || cluster.root_certificate("shop").map(drop))
        .map_err(|error| logged(error, &second))?;

    // And one that is stopped gives its lease back.
    let third = cluster.weftd(3)?;
    cluster.configure(3)?;
    second.stop()?;
    cluster.wait_for_leader("weftd-3").map_err(|error| logged(error, &third))?;
    cluster.apply("after", &pod("after", "shop", "")).map_err(|error| logged(error, &third))?;
    Ok(())
}

fn admission(cluster: &Cluster) -> Result<()> {
    cluster.configure(1)?;
    cluster.wait_for_bundles()?;
    // The API server hears of a configuration a moment after we do.
    eventually("an injected pod", PATIENCE, || {
        cluster.apply("web", &pod("web", "shop", ""))?;
        let web = cluster.get(&["pod", "web", "-n", "shop"])?;
        if !containers(&web).contains(&"istio-proxy".to_owned()) {
            cluster.api.kubectl(&["delete", "pod", "web", "-n", "shop", "--grace-period=0", "--force"])?;
        }
        ensure!(containers(&web).contains(&"istio-proxy".to_owned()), "{web}");
        Ok(())
    })?;
    let web = cluster.get(&["pod", "web", "-n", "shop"])?;
    ensure!(web.to_string().contains("registry.example/weft/proxyv2:1.2.3"), "{web}");
    ensure!(web["metadata"]["labels"]["security.istio.io/tlsMode"] == "istio", "{web}");
    for (name, namespace, labels, is_injected) in [
        ("not", "shop", ", labels: {sidecar.istio.io/inject: 'false'}", false),
        ("plain", "plain", "", false),
        ("asks", "plain", ", labels: {sidecar.istio.io/inject: 'true'}", true),
        ("revision", "plain", ", labels: {istio.io/rev: default}", true),
        ("other", "plain", ", labels: {istio.io/rev: other}", false),
    ] {
        cluster.apply(name, &pod(name, namespace, labels))?;
        let pod = cluster.get(&["pod", name, "-n", namespace])?;
        ensure!(containers(&pod).contains(&"istio-proxy".to_owned()) == is_injected, "{name}: {pod}");
    }
    let refused = cluster
        .apply("annotated", &pod("annotated", "shop", ", annotations: {sidecar.istio.io/proxyCPU: much}"));
    let refused = format!("{:#}", refused.unwrap_err());
    ensure!(refused.contains("annotation sidecar.istio.io/proxyCPU: \"much\""), "{refused}");

    // The same words as in files.
    let path = cluster.file("bad", BAD)?;
    let mut weftctl = Command::new(e2e::weftd::weftctl()?);
    let said = weftctl.args(["validate", "--report", "--objects"]).arg(&path).output()?;
    let said: Value = serde_json::from_slice(&said.stdout)?;
    let reason = said[0]["rejections"][0]["reason"].as_str().context("weftctl refuses it too")?.to_owned();
    let refused = format!("{:#}", cluster.apply("bad", BAD).unwrap_err());
    ensure!(refused.contains(&reason), "{reason:?} is not in {refused}");
    let warned = cluster.apply("suspicious", SUSPICIOUS)?;
    ensure!(warned.contains("Warning: spec.http[1].match[0]: is never used"), "{warned}");
    Ok(())
}

fn writers(cluster: &Cluster) -> Result<()> {
    let roots = eventually("roots in every namespace", PATIENCE, || {
        Ok([cluster.root_certificate("shop")?, cluster.root_certificate("istio-system")?])
    })?;
    ensure!(roots[0] == roots[1] && roots[0].contains("BEGIN CERTIFICATE"), "{roots:?}");
    ensure!(cluster.root_certificate("kube-system").is_err(), "Kubernetes' own namespaces get none");
    cluster.api.kubectl(&["create", "namespace", "late"])?;
    eventually("roots in a new namespace", PATIENCE, || cluster.root_certificate("late"))?;
    let change = r#"{"data":{"root-cert.pem":"nonsense"}}"#;
    cluster.api.kubectl(&["patch", "configmap", "istio-ca-root-cert", "-n", "late", "-p", change])?;
    eventually("the roots again", PATIENCE, || {
        ensure!(cluster.root_certificate("late")? == roots[0], "somebody else's roots");
        Ok(())
    })?;

    // Somebody takes a bundle away: it comes back, and the owner of all other fields is who it was.
    let good = cluster.bundles()?;
    let name = "istio-sidecar-injector";
    let change = r#"[{"op":"replace","path":"/webhooks/0/clientConfig/caBundle","value":"bm9uc2Vuc2U="}]"#;
    let refused =
        cluster.api.kubectl(&["patch", "mutatingwebhookconfiguration", name, "--type=json", "-p", change]);
    // API servers check that a bundle holds certificates, so that nonsense may be refused; nothing at all is not.
    if refused.is_err() {
        let change = r#"[{"op":"remove","path":"/webhooks/0/clientConfig/caBundle"}]"#;
        cluster.api.kubectl(&["patch", "mutatingwebhookconfiguration", name, "--type=json", "-p", change])?;
    }
    eventually("the bundle again", PATIENCE, || {
        ensure!(cluster.bundles()? == good, "it is not what it was");
        Ok(())
    })?;
    let fields = cluster.api.kubectl(&[
        "get",
        "mutatingwebhookconfiguration",
        name,
        "-o",
        "json",
        "--show-managed-fields",
    ])?;
    let fields: Value = serde_json::from_str(&fields)?;
    let managers = fields["metadata"]["managedFields"].as_array().context("managers")?;
    let ours = managers.iter().find(|manager| manager["manager"] == "weft").context("weft is a manager")?;
    ensure!(ours["operation"] == "Apply" && !ours.to_string().contains("f:rules"), "{ours}");
    Ok(())
}
