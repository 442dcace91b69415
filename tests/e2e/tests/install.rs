//! From charts to traffic: Weft is installed into a real API server by helm, and everything that it makes of a namespace and of
//! bookinfo is run by a node as its pods say. Nobody but helm and kubectl changes anything.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::client::{Answer, Client};
use e2e::kubelet::{self, Cluster};
use e2e::{eventually, repository};
use serde_json::Value;
use testkit::rig::http::Request;
use testkit::rig::netns::{Node, on_a_node};

/// A dozen proxies start at once, on a machine that may be busy with something else for minutes.
const PATIENCE: Duration = Duration::from_secs(600);
const LIMIT: Duration = Duration::from_secs(10);
/// The tag may be moved to each revision.
const VALUES: &str =
    "--set profile=demo --set global.hub=weft --set global.tag=dev --set rbac.movedTags={prod}";
const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: default, namespace: istio-system }
spec: { mtls: { mode: STRICT } }
";

#[test]
fn bookinfo_is_in_the_mesh_after_helm_install() {
    on_a_node("bookinfo_is_in_the_mesh_after_helm_install", |node| {
        let stand_in = Path::new(env!("CARGO_BIN_EXE_bookinfo"));
        let outcome = kubelet::with_cluster(node, stand_in, |cluster| {
            let world = World { cluster, node };
            world.everything().map_err(|error| world.explain(&error))
        });
        outcome.unwrap_or_else(|error| panic!("{error:?}"));
    });
}

struct World<'a> {
    cluster: &'a Cluster<'a>,
    node: &'a Node,
}

impl World<'_> {
    fn everything(&self) -> Result<()> {
        self.weft_is_installed()?;
        self.weft_is_tested_by_helm()?;
        self.bookinfo_comes_up_injected()?;
        let gateway = self.a_gateway_is_installed()?;
        self.the_page_is_served(gateway)?;
        self.containers_may_do_no_more_than_they_need()?;
        self.strict_mutual_tls_keeps_strangers_out(gateway)?;
        self.a_canary_by_kubectl(gateway)?;
        self.nothing_fails_while_weftd_is_replaced(gateway)?;
        self.traffic_goes_on_without_weftd(gateway)?;
        self.a_tag_moves_to_another_revision_and_back(gateway)?;
        self.a_proxy_beside_its_application_serves_as_well(gateway)?;
        self.weftd_has_all_rights_that_it_needs()
    }

    /// Adds what the pods are doing, and what the control plane and one of the proxies have said last.
    fn explain(&self, error: &anyhow::Error) -> anyhow::Error {
        let pods = self.cluster.kubectl(&["get", "pods", "-A", "-o", "wide"]).unwrap_or_default();
        let mut said = format!("{error:?}\n{pods}");
        for (namespace, label, container) in [
            ("istio-system", "app=istiod", "discovery"),
            ("istio-ingress", "istio=ingressgateway", "istio-proxy"),
            ("default", "app=productpage", "istio-proxy"),
            ("default", "app=productpage", "istio-init"),
            ("default", "app=productpage", "productpage"),
        ] {
            let log = self
                .pods(namespace, label)
                .and_then(|pods| self.cluster.log(namespace, pods.first().context("no pod")?, container))
                .unwrap_or_else(|error| error.to_string());
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(25)..].join("\n");
            said.push_str(&format!("\n== {label} {container}\n{tail}\n"));
        }
        anyhow::anyhow!(said)
    }

    fn kubectl(&self, line: &str) -> Result<String> {
        self.cluster.kubectl(&line.split_whitespace().collect::<Vec<_>>())
    }

    fn helm(&self, line: &str) -> Result<String> {
        self.cluster.helm(&line.split_whitespace().collect::<Vec<_>>())
    }

    fn apply(&self, manifest: &str) -> Result<()> {
        let path = self.cluster.folder().join("manifest.yaml");
        std::fs::write(&path, manifest)?;
        self.kubectl(&format!("apply -f {}", path.display())).map(drop)
    }

    fn pods(&self, namespace: &str, label: &str) -> Result<Vec<String>> {
        let names = self.kubectl(&format!("get pods -n {namespace} -l {label} -o name"))?;
        Ok(names.lines().map(|name| name.trim_start_matches("pod/").to_owned()).collect())
    }

    fn pod(&self, namespace: &str, label: &str) -> Result<String> {
        self.pods(namespace, label)?.into_iter().next().with_context(|| format!("no pod {label}"))
    }

    /// Waits for a rollout, and fails early with what a pod complains about.
    fn rolled_out(&self, namespace: &str, deployment: &str) -> Result<()> {
        self.kubectl(&format!(
            "-n {namespace} rollout status deployment/{deployment} --timeout={}s",
            PATIENCE.as_secs()
        ))
        .map(drop)
    }

    fn weft_is_installed(&self) -> Result<()> {
        let charts = repository().join("charts");
        let charts = charts.display();
        self.helm(&format!("install weft-crds {charts}/weft-crds -n istio-system --create-namespace"))?;
        self.cluster.api.wait_for_definitions()?;
        self.helm(&format!("install weft {charts}/weft -n istio-system {VALUES}"))?;
        self.rolled_out("istio-system", "istiod")
    }

    fn weft_is_tested_by_helm(&self) -> Result<()> {
        self.helm("test weft -n istio-system --timeout 600s").map(drop).or_else(|error| {
            let said = self.cluster.log("istio-system", "istiod-check", "check");
            Err(error).with_context(|| said.unwrap_or_else(|error| error.to_string()))
        })?;
        let said = self.cluster.log("istio-system", "istiod-check", "check")?;
        for part in ["weftd is ready", "weftd serves xDS", "objects are validated", "pods are injected"] {
            ensure!(said.contains(part), "{part:?} is not in {said}");
        }
        // It fails if something does not work.
        self.kubectl("label namespace istio-system istio-injection=disabled")?;
        let failed = self.helm("test weft -n istio-system --timeout 600s");
        ensure!(failed.is_err(), "no webhook is asked about pods, and the test has passed");
        let said = self.cluster.log("istio-system", "istiod-check", "check")?;
        ensure!(said.contains("error: injection: the pod has no proxy"), "{said}");
        self.kubectl("label namespace istio-system istio-injection-").map(drop)
    }

    fn bookinfo_comes_up_injected(&self) -> Result<()> {
        self.kubectl("label namespace default istio-injection=enabled")?;
        let sample = repository().join("samples/bookinfo");
        self.kubectl(&format!("apply -f {}", sample.display()))?;
        let names = ["productpage-v1", "details-v1", "ratings-v1", "reviews-v1", "reviews-v2", "reviews-v3"];
        for name in names {
            self.rolled_out("default", name)?;
        }
        let pods = self.kubectl("get pods -o json")?;
        let pods: Value = serde_json::from_str(&pods)?;
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        ensure!(pods.len() == names.len(), "{} pods", pods.len());
        for pod in pods {
            let name = &pod["metadata"]["name"];
            let initial = pod["spec"]["initContainers"].as_array().cloned().unwrap_or_default();
            let has = |wanted: &str| initial.iter().any(|container| container["name"] == wanted);
            // Kubelets are new enough for native sidecars.
            ensure!(has("istio-init") && has("istio-proxy"), "{name} is not injected: {initial:?}");
        }
        Ok(())
    }

    fn a_gateway_is_installed(&self) -> Result<SocketAddr> {
        let chart = repository().join("charts/weft-gateway");
        self.helm(&format!(
            "install istio-ingressgateway {} -n istio-ingress --create-namespace --set autoscale.enabled=false",
            chart.display()
        ))?;
        self.rolled_out("istio-ingress", "istio-ingressgateway")?;
        let path = "-o jsonpath={.spec.clusterIP}";
        let address = self.kubectl(&format!("get service istio-ingressgateway -n istio-ingress {path}"))?;
        let address: Ipv4Addr = address.trim().parse()?;
        Ok((address, 80).into())
    }

    /// Each proxy knows who its client is: the identities of all four service accounts are on the page.
    fn the_page_is_served(&self, gateway: SocketAddr) -> Result<()> {
        let page = eventually("the product page", PATIENCE, || {
            let answer = Client::new(gateway, LIMIT).get("bookinfo.example", "/productpage")?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(answer.body)
        })?;
        println!("curl http://{gateway}/productpage\n{page}");
        for part in [
            "details v1: 200 pages, paperback <- URI=spiffe://cluster.local/ns/default/sa/bookinfo-productpage",
            "<- URI=spiffe://cluster.local/ns/istio-ingress/sa/istio-ingressgateway",
        ] {
            ensure!(page.contains(part), "{part:?} is not on the page:\n{page}");
        }
        let nowhere = Client::new(gateway, LIMIT).get("bookinfo.example", "/nowhere")?;
        ensure!(nowhere.status == 404, "{nowhere:?}");
        Ok(())
    }

    /// Not root, no capabilities and no way to get any, and nothing to write to but volumes.
    fn containers_may_do_no_more_than_they_need(&self) -> Result<()> {
        for (namespace, label, container, user) in [
            ("istio-system", "app=istiod", "discovery", 65532),
            ("istio-ingress", "istio=ingressgateway", "istio-proxy", 1337),
            ("default", "app=productpage", "istio-proxy", 1337),
        ] {
            let process = self.cluster.process(namespace, &self.pod(namespace, label)?, container)?;
            let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                line.unwrap_or_default().split_whitespace().next().unwrap_or_default().to_owned()
            };
            ensure!(field("Uid") == user.to_string() && field("Gid") == user.to_string(), "{status}");
            ensure!(field("CapEff").trim_matches('0').is_empty(), "{container}: {}", field("CapEff"));
            ensure!(field("CapBnd").trim_matches('0').is_empty(), "{container}: {}", field("CapBnd"));
            ensure!(field("NoNewPrivs") == "1", "{container} may get privileges");
            let mounts = std::fs::read_to_string(format!("/proc/{process}/mounts"))?;
            let root = mounts.lines().rfind(|line| line.split(' ').nth(1) == Some("/")).unwrap_or_default();
            let options = root.split(' ').nth(3).unwrap_or_default();
            ensure!(
                options.split(',').any(|option| option == "ro"),
                "{container} may write to its root: {root}"
            );
        }
        Ok(())
    }

    fn strict_mutual_tls_keeps_strangers_out(&self, gateway: SocketAddr) -> Result<()> {
        let details = self.cluster.network("default", &self.pod("default", "app=details")?)?;
        let at = SocketAddr::from((details.address(), 9080));
        let stranger = self.node.pod("stranger")?;
        let ask = || stranger.run(|| Request::get("/").header("host", "details:9080").limit(LIMIT).send(at));
        // PERMISSIVE, unless somebody says otherwise.
        let before = ask()?;
        ensure!(before.status == 200, "{}: {}", before.status, before.text());
        self.apply(STRICT)?;
        eventually("strangers to be refused", PATIENCE, || match ask() {
            Ok(answer) => bail!("plain text is answered: {}", answer.status),
            Err(_) => Ok(()),
        })?;
        self.the_page_is_served(gateway)
    }

    /// Moves all readers from one version to another and back, while they read.
    fn a_canary_by_kubectl(&self, gateway: SocketAddr) -> Result<()> {
        let load = Load::default();
        load.during("the canary", gateway, || {
            for (v1, v2) in [(50, 50), (0, 100), (90, 10)] {
                let patch = format!(
                    r#"[{{"op":"replace","path":"/spec/http/0/route/0/weight","value":{v1}}},{{"op":"replace","path":"/spec/http/0/route/1/weight","value":{v2}}}]"#
                );
                self.kubectl(&format!("patch virtualservice reviews --type=json -p {patch}"))?;
                self.kubectl("wait --for=condition=Programmed virtualservice/reviews --timeout=600s")?;
                eventually(&format!("weights {v1}/{v2}"), PATIENCE, || {
                    let seen = load.next(200);
                    let of = |version: &str| seen.get(version).copied().unwrap_or_default();
                    let share = 100.0 * of("v1") / (of("v1") + of("v2")).max(1.0);
                    // Four standard deviations of a sample of 200.
                    let tolerance = 4.0 * (f64::from(v1) * f64::from(100 - v1) / 200.0).sqrt() + 0.01;
                    ensure!((share - f64::from(v1)).abs() <= tolerance, "{share:.1} % for v1: {seen:?}");
                    ensure!(of("v3") == 0.0, "v3 has no weight: {seen:?}");
                    Ok(())
                })?;
            }
            Ok(())
        })
    }

    /// Another weftd takes over: neither requests of clients nor questions of the API server fail meanwhile, and each proxy is
    /// connected to the new one.
    fn nothing_fails_while_weftd_is_replaced(&self, gateway: SocketAddr) -> Result<()> {
        let old = self.pod("istio-system", "app=istiod")?;
        let route = repository().join("samples/bookinfo/virtual-services.yaml");
        let route = std::fs::read_to_string(route)?.replace("name: details", "name: load");
        let path = self.cluster.folder().join("load.yaml");
        std::fs::write(&path, route)?;
        let stop = AtomicBool::new(false);
        let ask = || -> Result<u64> {
            let mut asked = 0;
            while !stop.load(Ordering::Relaxed) {
                self.kubectl(&format!("create --dry-run=server -f {}", path.display())).or_else(|error| {
                    // The other object of the file is there already.
                    if format!("{error:#}").contains("AlreadyExists") {
                        Ok(String::new())
                    } else {
                        Err(error)
                    }
                })?;
                let pod = self.kubectl("run load --image=load --dry-run=server -o json")?;
                ensure!(pod.contains("istio-proxy"), "a pod is not injected: {pod}");
                asked += 2;
            }
            Ok(asked)
        };
        Load::default().during("weftd replaced", gateway, || {
            let asked = thread::scope(|scope| -> Result<u64> {
                let asking = scope.spawn(ask);
                let done = self.replace_weftd(&old);
                stop.store(true, Ordering::Relaxed);
                let asked = asking.join().map_err(|_| anyhow::anyhow!("the load has panicked"))?;
                done?;
                asked
            })?;
            println!("weftd replaced: {asked} questions of the API server, 0 failed");
            ensure!(asked >= 4, "{asked} questions are no load");
            Ok(())
        })
    }

    fn replace_weftd(&self, old: &str) -> Result<()> {
        self.kubectl("rollout restart deployment/istiod -n istio-system")?;
        self.rolled_out("istio-system", "istiod")?;
        eventually("the old weftd to be gone", PATIENCE, || {
            let pods = self.pods("istio-system", "app=istiod")?;
            ensure!(pods.len() == 1 && pods[0] != old, "{pods:?}");
            Ok(())
        })?;
        let new = self.pod("istio-system", "app=istiod")?;
        eventually("all proxies to be with the new weftd", PATIENCE, || {
            let connected = self.connected(&new)?;
            ensure!(connected == 7, "{connected} of 7 are connected");
            Ok(())
        })
    }

    /// Proxies keep what they have, and get nothing anew that has not changed when weftd is back.
    fn traffic_goes_on_without_weftd(&self, gateway: SocketAddr) -> Result<()> {
        let all_connected = |weftd: &str| {
            let (connected, expected) = (self.connected(weftd)?, 7);
            ensure!(connected == expected, "{connected} of {expected} are connected and have everything");
            Ok(())
        };
        let weftd = self.pod("istio-system", "app=istiod")?;
        // A route that names what is not there is held back for a while: the port 80 of reviews.
        eventually("all proxies to have everything", PATIENCE, || all_connected(&weftd))?;
        let before = self.when_updated()?;
        ensure!(before.len() > 20, "only {} resources: {before:?}", before.len());
        let load = Load::default();
        load.during("weftd killed and started again", gateway, || {
            self.cluster.kill("istio-system", &weftd, "discovery")?;
            eventually("weftd to be gone", PATIENCE, || {
                ensure!(!self.is_ready(&weftd)?, "it is ready");
                Ok(())
            })?;
            let started = Instant::now();
            load.next(100);
            ensure!(started.elapsed() < kubelet::BACK_OFF * 4, "requests are slow without weftd");
            eventually("weftd to be back", PATIENCE, || {
                ensure!(self.is_ready(&weftd)?, "it is not ready");
                Ok(())
            })?;
            eventually("all proxies to be back", PATIENCE, || all_connected(&weftd))?;
            load.next(100);
            Ok(())
        })?;
        let after = self.when_updated()?;
        let changed: Vec<String> = before
            .iter()
            .filter(|(name, was)| after.get(*name) != Some(*was))
            .map(|(name, was)| format!("{name}: {was:?}, now {:?}", after.get(name)))
            .collect();
        ensure!(changed.is_empty(), "sent again although nothing has changed:\n{}", changed.join("\n"));
        ensure!(after.len() == before.len(), "{} resources became {}", before.len(), after.len());
        println!("{} resources of two proxies were not sent again", before.len());
        Ok(())
    }

    /// Another revision is installed beside the first one, and pods of a namespace with the tag come to it, and back.
    fn a_tag_moves_to_another_revision_and_back(&self, gateway: SocketAddr) -> Result<()> {
        let chart = repository().join("charts/weft");
        let chart = chart.display();
        self.helm(&format!("install weft-canary {chart} -n istio-system {VALUES} --set revision=canary"))?;
        self.rolled_out("istio-system", "istiod-canary")?;
        Load::default().during("a tag moved there and back", gateway, || {
            for (turn, revision) in ["default", "canary", "default"].into_iter().enumerate() {
                let values = format!("--set revision={revision} --set revisionTags={{prod}}");
                let tag = self.helm(&format!(
                    "template {revision} {chart} -n istio-system -s templates/revision-tags.yaml {values}"
                ))?;
                self.apply(&tag)?;
                if turn == 0 {
                    eventually("the tag's bundle", PATIENCE, || {
                        let path = "jsonpath={.webhooks[*].clientConfig.caBundle}";
                        let name = "mutatingwebhookconfiguration/istio-revision-tag-prod";
                        let bundles = self.kubectl(&format!("get {name} -o {path}"))?;
                        ensure!(bundles.len() > 200, "{bundles:?}");
                        Ok(())
                    })?;
                    self.kubectl("label namespace default istio-injection- istio.io/rev=prod")?;
                }
                self.details_are_with(revision)?;
            }
            Ok(())
        })
    }

    /// As on clusters without native sidecars; the application waits until its proxy can be used.
    fn a_proxy_beside_its_application_serves_as_well(&self, gateway: SocketAddr) -> Result<()> {
        let annotations = r#"{"sidecar.istio.io/nativeSidecar":"false","proxy.istio.io/config":"holdApplicationUntilProxyStarts:\u0020true"}"#;
        let patch = format!(r#"{{"spec":{{"template":{{"metadata":{{"annotations":{annotations}}}}}}}}}"#);
        let old = self.pods("default", "app=details")?;
        self.kubectl(&format!("patch deployment details-v1 --type=merge -p {patch}"))?;
        self.rolled_out("default", "details-v1")?;
        let new = self.pods("default", "app=details")?.into_iter().find(|pod| !old.contains(pod));
        let new = new.context("no new pod")?;
        let names = self.kubectl(&format!("get pod {new} -o jsonpath={{.spec.containers[*].name}}"))?;
        ensure!(names == "istio-proxy details", "{names}");
        self.the_page_is_served(gateway)
    }

    fn weftd_has_all_rights_that_it_needs(&self) -> Result<()> {
        for weftd in self.pods("istio-system", "app=istiod")? {
            let log = self.cluster.log("istio-system", &weftd, "discovery")?;
            let refused = log.lines().find(|line| line.to_lowercase().contains("forbidden"));
            ensure!(refused.is_none(), "{weftd}: {}", refused.unwrap_or_default());
        }
        Ok(())
    }

    fn details_are_with(&self, revision: &str) -> Result<()> {
        let old = self.pods("default", "app=details")?;
        self.kubectl("rollout restart deployment/details-v1")?;
        self.rolled_out("default", "details-v1")?;
        let new = self.pods("default", "app=details")?.into_iter().find(|pod| !old.contains(pod));
        let new = new.context("no new pod")?;
        let path = r"jsonpath={.metadata.annotations.istio\.io/rev}";
        let injected_by = self.kubectl(&format!("get pod {new} -o {path}"))?;
        ensure!(injected_by == revision, "{new} is injected by {injected_by:?}, not {revision}");
        let weftd = self.pod("istio-system", &format!("app=istiod,istio.io/rev={revision}"))?;
        eventually("the pod to be with its weftd", PATIENCE, || {
            let network = self.cluster.network("istio-system", &weftd)?;
            let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 15014));
            let proxies = network.run(|| Request::get("/debug/syncz").send(local))?.text();
            ensure!(proxies.contains(&new), "{new} is not connected to {weftd}");
            Ok(())
        })
    }

    fn is_ready(&self, weftd: &str) -> Result<bool> {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        Ok(self.kubectl(&format!("get pod -n istio-system {weftd} -o {path}"))? == "True")
    }

    /// Returns how many proxies are connected and have what they are to have.
    fn connected(&self, weftd: &str) -> Result<usize> {
        let network = self.cluster.network("istio-system", weftd)?;
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 15014));
        let proxies = network.run(|| Request::get("/debug/syncz").send(local))?.json()?;
        let synced = |proxy: &&Value| {
            let is = |kind: &&str| {
                proxy[format!("{kind}_status")] == "SYNCED" && proxy[format!("{kind}_behind")] == 0
            };
            ["cluster", "listener", "route", "endpoint"].iter().all(is)
        };
        Ok(proxies.as_array().into_iter().flatten().filter(synced).count())
    }

    /// Returns when Envoy was given each of its clusters, listeners and routes, and what it was given, for the gateway and the
    /// product page.
    fn when_updated(&self) -> Result<BTreeMap<String, (String, String)>> {
        let mut all = BTreeMap::new();
        for (namespace, label) in [("istio-ingress", "istio=ingressgateway"), ("default", "app=productpage")]
        {
            let network = self.cluster.network(namespace, &self.pod(namespace, label)?)?;
            let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, 15000));
            let dump = network.run(|| Request::get("/config_dump").limit(LIMIT).send(admin))?.json()?;
            for part in dump["configs"].as_array().into_iter().flatten() {
                for (list, inner) in [
                    ("dynamic_active_clusters", "cluster"),
                    ("dynamic_route_configs", "route_config"),
                    ("dynamic_listeners", "active_state"),
                ] {
                    for entry in part[list].as_array().into_iter().flatten() {
                        let is_listener = list == "dynamic_listeners";
                        let (named, dated) =
                            if is_listener { (entry, &entry[inner]) } else { (&entry[inner], entry) };
                        let name = named["name"].as_str().context("a resource without a name")?;
                        let at = dated["last_updated"].as_str().context("without a time")?;
                        let given = (at.to_owned(), named.to_string());
                        all.insert(format!("{label} {inner} {name}"), given);
                    }
                }
            }
        }
        Ok(all)
    }
}

/// Requests that flow all the time, of which none may fail.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    requests: AtomicU64,
    versions: Mutex<BTreeMap<String, f64>>,
    failures: Mutex<Vec<String>>,
}

impl Load {
    fn make(&self, gateway: SocketAddr) {
        let mut client = Client::new(gateway, LIMIT);
        while !self.stop.load(Ordering::Relaxed) {
            let failure = match client.get("bookinfo.example", "/productpage") {
                Ok(Answer { status: 200, body, .. }) => {
                    let version = body.split("reviews ").nth(1).and_then(|rest| rest.split(':').next());
                    let version = version.unwrap_or("none").to_owned();
                    *self.versions.lock().unwrap().entry(version).or_default() += 1.0;
                    None
                }
                Ok(answer) => Some(format!("{answer:?}")),
                Err(error) => Some(error.to_string()),
            };
            self.requests.fetch_add(1, Ordering::Relaxed);
            self.failures.lock().unwrap().extend(failure);
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn during(&self, what: &str, gateway: SocketAddr, work: impl FnOnce() -> Result<()>) -> Result<()> {
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| self.make(gateway));
            }
            let done = work();
            self.stop.store(true, Ordering::Relaxed);
            done
        })?;
        let (failures, requests) = (self.failures.lock().unwrap(), self.requests.load(Ordering::Relaxed));
        println!("{what}: {requests} requests, {} failed", failures.len());
        ensure!(failures.is_empty(), "{what}: {} failed: {:?}", failures.len(), failures.first());
        Ok(())
    }

    /// Waits for so many more requests and returns which versions of reviews have answered them.
    fn next(&self, count: u64) -> BTreeMap<String, f64> {
        self.versions.lock().unwrap().clear();
        let until = self.requests.load(Ordering::Relaxed) + count;
        while self.requests.load(Ordering::Relaxed) < until {
            thread::sleep(Duration::from_millis(10));
        }
        self.versions.lock().unwrap().clone()
    }
}
