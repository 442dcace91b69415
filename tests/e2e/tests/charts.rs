//! The Helm charts, linted and installed into a real API server.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};
use e2e::network::Network;
use e2e::weftd::Weftd;
use e2e::{PATIENCE, eventually, repository};
use serde_json::{Value, json};
use testkit::rig::process::Scratch;
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

    server.wait_for_definitions().unwrap();
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

#[test]
fn the_chart_is_linted_and_rendered_in_all_profiles_and_says_what_it_does_not_know() {
    let chart = repository().join("charts/weft");
    let chart = chart.to_str().unwrap();
    helm(&["lint", "--strict", chart]).unwrap();
    let render = |more: &[&str]| helm(&[&["template", "weft", chart, "-n", "istio-system"], more].concat());
    let all = ["--set", "networkPolicy.enabled=true,serviceMonitor.enabled=true,prometheusRule.enabled=true"];
    for (profile, scaled, disruptions) in [("demo", 0, 0), ("default", 1, 1), ("ha", 1, 1)] {
        let text = render(&[&all[..], &["--set", &format!("profile={profile}")]].concat()).unwrap();
        let count = |kind: &str| text.lines().filter(|line| *line == format!("kind: {kind}")).count();
        assert_eq!(count("HorizontalPodAutoscaler"), scaled, "{profile}");
        assert_eq!(count("PodDisruptionBudget"), disruptions, "{profile}");
        for kind in ["Deployment", "Service", "NetworkPolicy", "ServiceMonitor", "PrometheusRule"] {
            assert_eq!(count(kind), 1, "{profile}: {kind}");
        }
        assert_eq!(text.contains("system-cluster-critical"), profile == "ha");
    }
    let digest = format!("image.registry=r.example,image.tag=x,image.digest=sha256:{}", "a".repeat(64));
    let text = render(&["--set", &digest]).unwrap();
    assert!(text.contains(&format!("image: \"r.example/weft/weftd@sha256:{}\"", "a".repeat(64))), "{text}");
    // The mesh configuration is passed on as it is.
    let text =
        render(&["--set", "meshConfig.defaultConfig.concurrency=3,meshConfig.trustDomain=corp"]).unwrap();
    for line in [
        "      concurrency: 3",
        "      discoveryAddress: istiod.istio-system.svc:15012",
        "    trustDomain: corp",
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is not in {text}");
    }
    for (values, part) in [
        ("replica=2", "replica"),
        ("profile=huge", "profile"),
        ("image.digest=abc", "digest"),
        ("webhooks.url=http://plain", "url"),
        ("autoscale.min=9,autoscale.max=2", "autoscale.min (9) is more than autoscale.max (2)"),
        ("revision=Upper", "revision"),
    ] {
        let refused = render(&["--set", values]).unwrap_err();
        assert!(refused.contains(part), "{values}: {refused}");
    }
}

#[test]
fn the_chart_of_gateways_is_rendered_with_what_scales_it_and_refuses_what_it_does_not_know() {
    let chart = repository().join("charts/weft-gateway");
    let chart = chart.to_str().unwrap();
    helm(&["lint", "--strict", chart]).unwrap();
    let render =
        |values: &str| helm(&["template", "istio-ingressgateway", chart, "-n", "ingress", "--set", values]);
    for (values, scaled, disruptions) in [
        ("networkPolicy.enabled=true", 1, 0),
        ("networkPolicy.enabled=true,autoscale.min=2", 1, 1),
        ("networkPolicy.enabled=true,replicas=3", 0, 1),
        ("networkPolicy.enabled=true,autoscale.enabled=false", 0, 0),
    ] {
        let text = render(values).unwrap();
        let count = |kind: &str| text.lines().filter(|line| *line == format!("kind: {kind}")).count();
        assert_eq!(count("HorizontalPodAutoscaler"), scaled, "{values}");
        assert_eq!(count("PodDisruptionBudget"), disruptions, "{values}");
        for kind in ["Deployment", "Service", "ServiceAccount", "Role", "RoleBinding", "NetworkPolicy"] {
            assert_eq!(count(kind), 1, "{values}: {kind}");
        }
        // What Gateways of Istio's samples select by.
        assert!(text.contains("istio: ingressgateway\n"), "{text}");
    }
    assert!(!render("service.type=None").unwrap().contains("kind: Service\n"));
    for (values, part) in [
        ("replica=2", "replica"),
        ("service.type=Cluster", "type"),
        ("service.ports[0].port=0", "port"),
        ("autoscale.min=9,autoscale.max=2", "autoscale.min (9) is more than autoscale.max (2)"),
    ] {
        let refused = render(values).unwrap_err();
        assert!(refused.contains(part), "{values}: {refused}");
    }
}

/// A real API server, the chart in it, and a weftd that may do what the chart lets it do and nothing else.
struct Installed {
    server: ApiServer,
    network: Network,
    folder: Scratch,
    _etcd: Etcd,
}

impl Installed {
    fn start() -> Result<Self> {
        let etcd = Etcd::start()?;
        let server = ApiServer::start(&etcd)?;
        let installed =
            Self { server, network: Network::claim()?, folder: Scratch::new("chart")?, _etcd: etcd };
        installed.server.kubectl(&["create", "namespace", "istio-system"])?;
        installed.server.kubectl(&["create", "namespace", "shop"])?;
        installed.helm("weft-crds", "weft-crds", "")?;
        installed.server.wait_for_definitions()?;
        Ok(installed)
    }

    /// Installs a chart, or upgrades it.
    fn helm(&self, release: &str, chart: &str, values: &str) -> Result<String> {
        let chart = repository().join("charts").join(chart).display().to_string();
        let kubeconfig = self.server.kubeconfig().display().to_string();
        let url = format!("webhooks.url=https://{}", self.network.socket(255, 1, 15017));
        let mut arguments = vec!["upgrade", "--install", release, &chart, "--kubeconfig", &kubeconfig];
        arguments.extend(["-n", "istio-system"]);
        if release != "weft-crds" {
            arguments.extend(["--set", &url]);
        }
        if !values.is_empty() {
            arguments.extend(["--set", values]);
        }
        helm(&arguments).map_err(anyhow::Error::msg)
    }

    /// Starts weftd as the pod of the Deployment would: with its service account and its flags.
    fn weftd(&self) -> Result<Weftd> {
        let token = self.server.kubectl(&["-n", "istio-system", "create", "token", "istiod"])?;
        let authority = self.folder.path().join("ca.crt");
        fs::write(&authority, self.server.authority_pem())?;
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "rig",
            "clusters": [{ "name": "rig", "cluster": { "server": self.server.url(), "certificate-authority": authority } }],
            "users": [{ "name": "istiod", "user": { "token": token.trim() } }],
            "contexts": [{ "name": "rig", "context": { "cluster": "rig", "user": "istiod" } }],
        });
        let path = self.folder.path().join("kubeconfig");
        fs::write(&path, kubeconfig.to_string())?;
        let deployment = self.get("deployment", "istiod")?;
        let flags = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array().cloned();
        let flags = flags.unwrap_or_default().into_iter().filter_map(|flag| {
            let flag = flag.as_str()?.to_owned();
            // These are about the container that this is not.
            let is_of_container = ["--state-dir", "--log-"].iter().any(|start| flag.starts_with(start));
            (!is_of_container).then(|| OsString::from(flag))
        });
        let at = |port| self.network.socket(255, 1, port);
        let mut arguments: Vec<OsString> = flags.collect();
        arguments.extend(["--kubeconfig".into(), path.into()]);
        arguments.extend(["--secure-name".into(), at(0).ip().to_string().into()]);
        arguments.extend(["--https-addr".into(), at(15017).to_string().into()]);
        Weftd::start_at([at(15010), at(8080), at(15014)], &arguments)
    }

    fn get(&self, kind: &str, name: &str) -> Result<Value> {
        let text = self.server.kubectl(&["get", kind, name, "-n", "istio-system", "-o", "json"])?;
        Ok(serde_json::from_str(&text)?)
    }

    fn bundle(&self) -> Result<String> {
        let all = self.get("mutatingwebhookconfiguration", "istio-sidecar-injector")?;
        let bundle = all["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap_or_default().to_owned();
        ensure!(bundle.len() > 100, "there is no bundle yet");
        Ok(bundle)
    }
}

#[test]
fn the_chart_installs_and_weftd_has_all_rights_that_it_needs() {
    let installed = Installed::start().unwrap();
    let notes = installed.helm("weft", "weft", "global.hub=registry.example").unwrap();
    assert!(notes.contains("kubectl label namespace default istio-injection=enabled"), "{notes}");
    // Tools find the control plane by these.
    let service = installed.get("service", "istiod").unwrap();
    assert_eq!(service["metadata"]["labels"]["app"], "istiod");
    assert_eq!(service["metadata"]["labels"]["istio.io/rev"], "default");
    let ports = service["spec"]["ports"].as_array().unwrap();
    let names: Vec<_> = ports.iter().filter_map(|port| port["name"].as_str()).collect();
    assert_eq!(names, ["grpc-xds", "https-dns", "https-webhook", "http-monitoring"]);
    a_pod_of_the_deployment_is_restricted(&installed).unwrap();

    let weftd = installed.weftd().unwrap();
    let outcome = works_with_its_own_rights(&installed);
    outcome.unwrap_or_else(|error| panic!("{error:#}\n{}", weftd.log()));
    let log = weftd.log();
    assert!(!log.to_lowercase().contains("forbidden"), "{log}");

    // Another revision beside it, and an upgrade: neither takes the bundle away.
    let before = installed.bundle().unwrap();
    installed.helm("weft-canary", "weft", "revision=canary,revisionTags={next}").unwrap();
    installed.get("service", "istiod-revision-tag-next").unwrap();
    installed.helm("weft", "weft", "global.hub=registry.example,global.tag=2").unwrap();
    assert_eq!(installed.bundle().unwrap(), before);
    let kubeconfig = installed.server.kubeconfig().display().to_string();
    helm(&["uninstall", "weft", "-n", "istio-system", "--kubeconfig", &kubeconfig]).unwrap();
    assert!(installed.bundle().is_err());
    installed.get("deployment", "istiod-canary").unwrap();
}

/// Whoever has the version before this one gets this one by `helm upgrade`, with all values as they were.
#[test]
fn the_chart_upgrades_the_version_before_it() {
    let installed = Installed::start().unwrap();
    let kubeconfig = installed.server.kubeconfig().display().to_string();
    let before = repository().join("tests/e2e/charts/weft-0.1.0.tgz").display().to_string();
    let install = ["install", "weft", &before, "--kubeconfig", &kubeconfig, "-n", "istio-system"];
    let values = "profile=ha,global.hub=registry.example,revisionTags={stable},meshConfig.trustDomain=corp";
    helm(&[&install[..], &["--set", values]].concat()).unwrap();
    let old = installed.get("deployment", "istiod").unwrap();
    installed.helm("weft", "weft", values).unwrap();
    let new = installed.get("deployment", "istiod").unwrap();
    let chart = |deployment: &Value| deployment["metadata"]["labels"]["helm.sh/chart"].clone();
    assert_eq!(chart(&old), "weft-0.1.0");
    assert_ne!(chart(&new), chart(&old));
    assert_eq!(new["metadata"]["uid"], old["metadata"]["uid"], "the same Deployment, in another form");
    let mesh = installed.get("configmap", "istio").unwrap();
    assert!(mesh["data"]["mesh"].as_str().unwrap().contains("trustDomain: corp"), "{mesh}");
    installed.get("service", "istiod-revision-tag-stable").unwrap();
    installed.get("poddisruptionbudget", "istiod").unwrap();
    // With all that is off by default.
    let all = "networkPolicy.enabled=true,serviceMonitor.enabled=true,prometheusRule.enabled=true";
    monitoring_kinds(&installed).unwrap();
    installed.helm("weft", "weft", &format!("{values},{all},rbac.movedTags={{prod}}")).unwrap();
    for kind in ["networkpolicy", "servicemonitor", "prometheusrule", "horizontalpodautoscaler"] {
        installed.get(kind, "istiod").unwrap();
    }
    // Whoever has a tag that is moved has its objects validated by all who may get it.
    let validator = installed.get("validatingwebhookconfiguration", "istio-validator-istio-system").unwrap();
    let expression = &validator["webhooks"][0]["objectSelector"]["matchExpressions"][0];
    assert_eq!(expression["values"], json!(["default", "stable", "prod"]));
    helm(&["rollback", "weft", "1", "-n", "istio-system", "--kubeconfig", &kubeconfig]).unwrap();
    assert_eq!(chart(&installed.get("deployment", "istiod").unwrap()), "weft-0.1.0");
}

/// The kinds of the Prometheus operator, with fields that nobody checks here.
fn monitoring_kinds(installed: &Installed) -> Result<()> {
    let definitions = [("servicemonitors", "ServiceMonitor"), ("prometheusrules", "PrometheusRule")].map(|(plural, kind)| {
        let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": { "name": format!("{plural}.monitoring.coreos.com") },
            "spec": {
                "group": "monitoring.coreos.com", "scope": "Namespaced",
                "names": { "plural": plural, "singular": kind.to_lowercase(), "kind": kind },
                "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema } }],
            },
        })
    });
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": definitions });
    let path = installed.folder.path().join("monitoring.json");
    fs::write(&path, list.to_string())?;
    installed.server.kubectl(&["apply", "-f", &path.display().to_string()])?;
    installed.server.wait_for_definitions()?;
    Ok(())
}

/// A gateway that is installed has to be completed by the injector, in a namespace of the strictest standard too.
#[test]
fn a_gateway_is_installed_and_restricted() {
    let installed = Installed::start().unwrap();
    let chart = repository().join("charts/weft-gateway").display().to_string();
    let kubeconfig = installed.server.kubeconfig().display().to_string();
    let install = ["install", "ingress", &chart, "--kubeconfig", &kubeconfig, "-n", "shop"];
    let said =
        helm(&[&install[..], &["--set", "networkPolicy.enabled=true,autoscale.min=2"]].concat()).unwrap();
    assert!(said.contains(r#"selector: {"app":"ingress","istio":"ingress"}"#), "{said}");
    let text =
        installed.server.kubectl(&["get", "deployment", "ingress", "-n", "shop", "-o", "json"]).unwrap();
    let deployment: Value = serde_json::from_str(&text).unwrap();
    let enforce = ["label", "namespace", "shop", "pod-security.kubernetes.io/enforce=restricted"];
    installed.server.kubectl(&enforce).unwrap();
    let mut pod = deployment["spec"]["template"].clone();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = "gateway".into();
    pod["metadata"]["namespace"] = "shop".into();
    let path = installed.folder.path().join("gateway.json");
    fs::write(&path, pod.to_string()).unwrap();
    let path = path.display().to_string();
    installed.server.kubectl(&["create", "--dry-run=server", "-f", &path]).unwrap();
}

/// The namespace may enforce the strictest of Kubernetes' standards.
fn a_pod_of_the_deployment_is_restricted(installed: &Installed) -> Result<()> {
    let labels = ["pod-security.kubernetes.io/enforce=restricted", "istio-injection=enabled"];
    installed.server.kubectl(&[&["label", "namespace", "istio-system"], &labels[..]].concat())?;
    let deployment = installed.get("deployment", "istiod")?;
    let mut pod = deployment["spec"]["template"].clone();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = "weft-test".into();
    pod["metadata"]["namespace"] = "istio-system".into();
    let create = |pod: &Value| {
        let path = installed.folder.path().join("pod.json");
        fs::write(&path, pod.to_string())?;
        let path = path.display().to_string();
        // It is asked about although no weftd is there: its pods are exempt from its own webhooks.
        anyhow::Ok(installed.server.kubectl(&["create", "--dry-run=server", "-f", &path])?)
    };
    create(&pod)?;
    let mut privileged = pod.clone();
    privileged["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = true.into();
    ensure!(create(&privileged).is_err(), "the standard is not enforced");
    // Any other pod of a namespace with injection has to wait for a weftd.
    pod["metadata"]["labels"]["sidecar.istio.io/inject"] = "true".into();
    let refused = format!("{:#}", create(&pod).unwrap_err());
    ensure!(refused.contains("namespace.sidecar-injector.istio.io"), "{refused}");
    installed.server.kubectl(&["label", "namespace", "istio-system", "istio-injection-"])?;
    Ok(())
}

fn works_with_its_own_rights(installed: &Installed) -> Result<()> {
    eventually("the bundle", PATIENCE, || installed.bundle().map(drop))?;
    eventually("the roots", PATIENCE, || {
        Ok(installed.server.kubectl(&["get", "configmap", "istio-ca-root-cert", "-n", "shop"])?)
    })?;
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {sidecar.istio.io/inject: 'true'}},
                spec: {serviceAccountName: default, containers: [{name: app, image: app}]}}";
    let path = installed.folder.path().join("web.yaml");
    fs::write(&path, pod)?;
    let path = path.display().to_string();
    eventually("an injected pod", PATIENCE, || {
        let said = installed.server.kubectl(&["create", "--dry-run=server", "-o", "json", "-f", &path])?;
        ensure!(said.contains("registry.example/proxyv2"), "{said}");
        Ok(())
    })
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
