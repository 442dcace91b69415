//! Two revisions of weftd side by side at one real API server: each has its objects, and neither undoes what the other
//! writes.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::network::Network;
use e2e::weftd::Weftd;
use e2e::{PATIENCE, eventually};
use serde_json::Value;
use testkit::rig::http::Request;
use testkit::rig::process::Scratch;
use testkit::rig::{ApiServer, Etcd};

/// For so long nobody may write what another one has written.
const PEACE: Duration = Duration::from_secs(5);

const NAMESPACES: &str = "
apiVersion: v1
kind: Namespace
metadata: { name: istio-system }
---
apiVersion: v1
kind: Namespace
metadata: { name: shop, labels: { istio.io/rev: canary } }
";

const ENTRY: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: NAME, namespace: shop, labels: { LABELS } }
spec:
  hosts: [NAME.test]
  ports: [{ name: http, number: 80, protocol: HTTP }]
  resolution: NONE
---
";

const WEBHOOKS: &str = "
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: { name: injector-REVISION, labels: { istio.io/rev: REVISION } }
webhooks:
- name: rev.namespace.sidecar-injector.istio.io
  clientConfig: { service: { name: istiod-REVISION, namespace: istio-system } }
  sideEffects: None
  admissionReviewVersions: [v1]
  failurePolicy: Ignore
---
";

/// As `istioctl tag set` makes it.
const TAG: &str = "
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: { name: istio-revision-tag-prod, labels: { istio.io/rev: REVISION, istio.io/tag: prod } }
webhooks: []
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
        Ok(Self { api, network: Network::claim()?, folder: Scratch::new("revisions")?, _etcd: etcd })
    }

    fn apply(&self, manifest: &str) -> Result<()> {
        let path = self.folder.path().join("manifest.yaml");
        fs::write(&path, manifest)?;
        self.api.kubectl(&["apply", "-f", &path.display().to_string()])?;
        Ok(())
    }

    fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.api.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
        Ok(serde_json::from_str(&text)?)
    }

    fn weftd(&self, number: u8, revision: &str) -> Result<Weftd> {
        let at = |port| self.network.socket(255, number, port);
        let arguments: Vec<OsString> = vec![
            "--kubeconfig".into(),
            self.api.kubeconfig().into(),
            "--revision".into(),
            revision.into(),
            "--secure-grpc-addr".into(),
            at(15012).to_string().into(),
            "--https-addr".into(),
            at(15017).to_string().into(),
            "--write".into(),
            "webhooks,root-certificates".into(),
            "--pod-name".into(),
            revision.into(),
        ];
        Weftd::start_at([at(15010), at(8080), at(15014)], &arguments)
    }

    /// Returns the versions of all that both may write.
    fn versions(&self) -> Result<Vec<String>> {
        let mut versions = Vec::new();
        for kind in ["mutatingwebhookconfigurations", "configmaps"] {
            let all = self.get(&[kind, "--all-namespaces"])?;
            for object in all["items"].as_array().context("a list")? {
                versions.push(format!(
                    "{} {}",
                    object["metadata"]["name"], object["metadata"]["resourceVersion"]
                ));
            }
        }
        Ok(versions)
    }
}

fn services(monitoring: SocketAddr) -> Result<BTreeSet<String>> {
    let answer = Request::get("/debug/registryz").send(monitoring)?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    Ok(["all", "old", "new", "tagged"]
        .into_iter()
        .filter(|name| text.contains(&format!("{name}.test")))
        .map(str::to_owned)
        .collect())
}

#[test]
fn two_revisions_share_an_api_server_without_fighting() {
    let cluster = Cluster::start().unwrap();
    cluster.apply(NAMESPACES).unwrap();
    let entry = |name: &str, labels: &str| ENTRY.replace("NAME", name).replace("LABELS", labels);
    cluster
        .apply(
            &[
                entry("all", ""),
                entry("old", "istio.io/rev: default"),
                entry("new", "istio.io/rev: canary"),
                entry("tagged", "istio.io/rev: prod"),
            ]
            .concat(),
        )
        .unwrap();
    cluster
        .apply(&["default", "canary"].map(|revision| WEBHOOKS.replace("REVISION", revision)).concat())
        .unwrap();
    cluster.apply(&TAG.replace("REVISION", "default")).unwrap();
    let (old, new) = (cluster.weftd(1, "default").unwrap(), cluster.weftd(2, "canary").unwrap());
    let outcome = side_by_side(&cluster, [&old, &new]);
    outcome.unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", old.log(), new.log()));
}

fn side_by_side(cluster: &Cluster, [old, new]: [&Weftd; 2]) -> Result<()> {
    let served = |of_old: &[&str], of_new: &[&str]| {
        eventually("the objects of each", PATIENCE, || {
            for (weftd, expected) in [(old, of_old), (new, of_new)] {
                let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
                let found = services(weftd.monitoring())?;
                ensure!(found == expected, "{found:?}, not {expected:?}");
            }
            Ok(())
        })
    };
    served(&["all", "old", "tagged"], &["all", "new"])?;
    // The tag moves on, and back.
    cluster.apply(&TAG.replace("REVISION", "canary"))?;
    served(&["all", "old"], &["all", "new", "tagged"])?;
    cluster.apply(&TAG.replace("REVISION", "default"))?;
    served(&["all", "old", "tagged"], &["all", "new"])?;

    eventually("what both write", PATIENCE, || {
        for revision in ["default", "canary"] {
            let name = format!("injector-{revision}");
            let webhook = cluster.get(&["mutatingwebhookconfiguration", &name])?;
            let bundle = webhook["webhooks"][0]["clientConfig"]["caBundle"].as_str();
            ensure!(bundle.is_some_and(|bundle| bundle.len() > 100), "{webhook}");
            let lease = cluster.get(&["lease", &format!("weft-leader-{revision}"), "-n", "istio-system"])?;
            let holder = lease["spec"]["holderIdentity"].as_str().context("a holder")?;
            ensure!(holder.starts_with(revision), "{holder} holds it");
        }
        cluster.get(&["lease", "weft-leader", "-n", "istio-system"])?;
        cluster.get(&["configmap", "istio-ca-root-cert", "-n", "shop"]).map(drop)
    })?;
    let before = cluster.versions()?;
    thread::sleep(PEACE);
    let after = cluster.versions()?;
    ensure!(before == after, "somebody goes on writing: {before:?} {after:?}");
    for weftd in [old, new] {
        let metrics = String::from_utf8(Request::get("/metrics").send(weftd.monitoring())?.body.to_vec())?;
        let corrections = metrics.lines().filter(|line| line.starts_with("weft_write_corrections_total"));
        for line in corrections {
            ensure!(line.ends_with(" 0"), "{line}");
        }
    }
    Ok(())
}
