//! Endpoints as a cluster makes them: the real controllers, a Service that is made again and again, and a pod that stops.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::app::{Answer, App};
use e2e::client::Client;
use e2e::network::{Network, machine_address};
use e2e::weftd::Weftd;
use e2e::{PATIENCE, eventually, proxy};
use serde_json::json;
use testkit::rig::http::Request;
use testkit::rig::{ApiServer, ControllerManager, EndpointWatch, Etcd};

const HOST: &str = "web.endpoints.example";
const CLUSTER: &str = "outbound|80||web.default.svc.cluster.local";
const ROUNDS: usize = 6;

/// A cluster with one pod behind one Service, and weftd and a gateway in front of it.
struct World {
    weftd: Weftd,
    _gateway: testkit::rig::Envoy,
    _controllers: ControllerManager,
    server: ApiServer,
    _etcd: Etcd,
    network: Network,
    manifests: tempfile::TempDir,
    _app: App,
}

impl World {
    fn start() -> anyhow::Result<Self> {
        let app = App::http((machine_address()?, 0).into(), |_| Answer::ok("web"))?;
        let etcd = Etcd::start()?;
        let server = ApiServer::start(&etcd)?;
        server.install_definitions()?;
        // weftd keeps its authority there, and is not ready without.
        server.kubectl(&["create", "namespace", "istio-system"])?;
        // There is no kubelet, and pods of a node that nobody hears of would be told not to be ready.
        let controllers =
            ControllerManager::start_with(&server, &["--controllers=*,-node-lifecycle-controller"])?;
        let network = Network::claim()?;
        let manifests = tempfile::tempdir()?;
        let service = manifests.path().join("service.yaml");
        std::fs::write(&service, service_manifest(app.address()))?;
        let rest = manifests.path().join("rest.yaml");
        std::fs::write(&rest, network.bind_gateways(REST))?;
        for file in [&service, &rest] {
            server.kubectl(&["apply", "-f", &file.display().to_string()])?;
        }
        let arguments = ["--kubeconfig".into(), server.kubeconfig().into()];
        let weftd = Weftd::start_with(&network, &arguments)?;
        let gateway = proxy::start_gateway(weftd.grpc())?;
        let world = Self {
            weftd,
            _gateway: gateway,
            _controllers: controllers,
            server,
            _etcd: etcd,
            network,
            manifests,
            _app: app,
        };
        world.set_ready(true)?;
        world.wait_for(200)?;
        Ok(world)
    }

    /// Says of the pod what a kubelet would.
    fn set_ready(&self, ready: bool) -> anyhow::Result<()> {
        let ip = machine_address()?.to_string();
        let ready = if ready { "True" } else { "False" };
        let status = json!({ "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
            "conditions": [{ "type": "Ready", "status": ready }],
        }});
        self.server.kubectl(&["patch", "pod", "web", "--subresource=status", "-p", &status.to_string()])?;
        Ok(())
    }

    fn wait_for(&self, status: u16) -> anyhow::Result<()> {
        let request = Request::get("/").header("host", HOST);
        eventually(&format!("{status}"), PATIENCE, || {
            let got = request.send(self.network.gateway(8080))?.status;
            ensure!(got == status, "{got}");
            Ok(())
        })
        .with_context(|| {
            let slices = self.server.kubectl(&["get", "endpointslices,pods,events", "-o", "yaml"]);
            format!("{}\n{}", self.weftd.log(), slices.unwrap_or_default())
        })
    }

    /// Returns the names of the slices that list the pod.
    fn slices(&self) -> anyhow::Result<BTreeSet<String>> {
        let listed = "{range .items[?(@.endpoints[0].conditions.ready==true)]}{.metadata.name}{\"\\n\"}{end}";
        let format = format!("jsonpath={listed}");
        let label = "kubernetes.io/service-name=web";
        let text = self.server.kubectl(&["get", "endpointslices", "-l", label, "-o", &format])?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Takes the slices away, with their Service or without, and waits until the controllers have made others.
    fn remake(&self, with_service: bool) -> anyhow::Result<()> {
        let before = self.slices()?;
        if with_service {
            let manifest = self.manifests.path().join("service.yaml").display().to_string();
            self.server.kubectl(&["replace", "--force", "-f", &manifest])?;
        } else {
            let label = "kubernetes.io/service-name=web";
            self.server.kubectl(&["delete", "endpointslices", "-l", label])?;
        }
        eventually("other slices", PATIENCE, || {
            let now = self.slices()?;
            ensure!(!now.is_empty() && now.is_disjoint(&before), "{before:?}, {now:?}");
            Ok(())
        })
    }

    fn metric(&self, name: &str) -> anyhow::Result<u64> {
        let text = Request::get("/metrics").send(self.weftd.monitoring())?.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("no {name}"))?.trim().parse()?)
    }
}

#[test]
fn a_service_that_is_made_again_keeps_its_endpoints_and_a_pod_that_stops_loses_its_traffic() {
    let world = World::start().unwrap();
    let empties: Arc<Mutex<Vec<String>>> = Arc::default();
    let found = empties.clone();
    let watch = EndpointWatch::start(world.weftd.grpc(), &proxy::gateway_node(), move |seen| {
        if seen.name == CLUSTER && seen.endpoints == 0 {
            found.lock().unwrap().push(format!("{seen:?}"));
        }
    })
    .unwrap();
    eventually("endpoints", PATIENCE, || {
        ensure!(watch.names().contains(CLUSTER), "{:?}; {:?}", watch.names(), watch.ended());
        Ok(())
    })
    .unwrap();

    let (requests, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let failures = thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut client = Client::new(world.network.gateway(8080), Duration::from_secs(10));
            let mut failures = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match client.get(HOST, "/") {
                    Ok(answer) if answer.status == 200 => {}
                    other => failures.push(format!("{other:?}")),
                }
                requests.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(2));
            }
            failures
        });
        let remade = (0..ROUNDS).try_for_each(|round| world.remake(round % 2 == 0));
        stop.store(true, Ordering::Relaxed);
        remade.unwrap();
        load.join().unwrap()
    });
    let log = world.weftd.log();
    assert!(failures.is_empty(), "{failures:?}\n{log}");
    assert_eq!(*empties.lock().unwrap(), [""; 0], "{log}");
    assert_eq!(watch.ended(), None);
    assert!(requests.load(Ordering::Relaxed) > 100);
    let kept = world.metric("weft_endpoints_kept_total").unwrap();
    assert!(kept > 0, "nothing was doubted\n{log}");
    assert_eq!(world.metric("weft_endpoints_believed_absent_total").unwrap(), 0, "{log}");

    // What is certain is not doubted.
    world.set_ready(false).unwrap();
    world.wait_for(503).unwrap();
    assert_eq!(world.metric("weft_endpoints_kept_total").unwrap(), kept);
    assert_eq!(empties.lock().unwrap().len(), 1);
    world.set_ready(true).unwrap();
    world.wait_for(200).unwrap();
}

fn service_manifest(app: SocketAddr) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec:
  selector: {{app: web}}
  ports: [{{name: http, port: 80, targetPort: {}}}]
",
        app.port()
    )
}

const REST: &str = "apiVersion: v1
kind: Node
metadata: {name: node}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default, labels: {app: web}}
spec: {nodeName: node, containers: [{name: app, image: none}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata:
  name: gateway
  namespace: default
spec:
  selector:
    istio: ingressgateway
  servers:
  - port:
      number: 8080
      name: http
      protocol: HTTP
    hosts: [\"*\"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: default}
spec:
  hosts: [web.endpoints.example]
  gateways: [gateway]
  http: [{route: [{destination: {host: web, port: {number: 80}}}]}]
";
