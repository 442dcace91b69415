//! What users are told about their objects, by two replicas of weftd, a real API server and a real Envoy.

use std::ffi::OsString;
use std::fs;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::network::Network;
use e2e::weftd::Weftd;
use e2e::{PATIENCE, eventually, proxy};
use serde_json::Value;
use testkit::rig::http::Request;
use testkit::rig::process::Scratch;
use testkit::rig::{ApiServer, Etcd};

const NAMESPACES: &str = "
apiVersion: v1
kind: Namespace
metadata: { name: istio-system }
---
apiVersion: v1
kind: Namespace
metadata: { name: shop }
";

const MESH: &str = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: front, namespace: shop }
spec:
  selector: { istio: ingressgateway }
  servers:
  - { port: { number: 8088, name: http, protocol: HTTP }, bind: ADDRESS, hosts: ['*'] }
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: api, namespace: shop }
spec:
  hosts: [api.test]
  addresses: [240.0.0.1]
  ports: [{ name: http, number: 80, protocol: HTTP }]
  resolution: STATIC
  location: MESH_INTERNAL
  endpoints: [{ address: 10.9.8.7 }]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: named, namespace: shop }
spec:
  hosts: [a.named.test, b.named.test]
  ports: [{ name: tcp, number: 9000, protocol: TCP }]
  resolution: DNS
";

const RULE: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: NAME, namespace: shop }
spec:
  hosts: [NAME.test]
  gateways: [front]
  http:
  - match: [{ uri: { regex: 'REGEX' } }]
    route: [{ destination: { host: api.test } }]
";

const UNSUPPORTED: &str = "
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: { name: filter, namespace: shop }
spec: {}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: policy, namespace: shop }
spec: {}
";

/// What a cluster makes of a Service and its pods.
const SLICE: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: istiod-NUMBER, namespace: istio-system, labels: { kubernetes.io/service-name: istiod } }
addressType: IPv4
ports: [{ name: https-dns, port: PORT, protocol: TCP }]
endpoints: [{ addresses: [ADDRESS], conditions: { ready: true } }]
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
        let cluster = Self { api, network: Network::claim()?, folder: Scratch::new("status")?, _etcd: etcd };
        cluster.apply(NAMESPACES)?;
        Ok(cluster)
    }

    fn apply(&self, manifest: &str) -> Result<()> {
        let path = self.folder.path().join("manifest.yaml");
        fs::write(&path, manifest)?;
        self.api.kubectl(&["apply", "-f", &path.display().to_string()])?;
        Ok(())
    }

    fn rule(&self, name: &str, regex: &str) -> Result<()> {
        self.apply(&RULE.replace("NAME", name).replace("REGEX", regex))
    }

    /// Starts a replica, and lets its Service have it as an endpoint.
    fn weftd(&self, number: u8) -> Result<Weftd> {
        let at = |port| self.network.socket(255, number, port);
        let secure = address()?;
        let slice = SLICE.replace("NUMBER", &number.to_string()).replace("PORT", &secure.port().to_string());
        self.apply(&slice.replace("ADDRESS", &secure.ip().to_string()))?;
        let arguments: Vec<OsString> = vec![
            "--kubeconfig".into(),
            self.api.kubeconfig().into(),
            "--secure-grpc-addr".into(),
            secure.to_string().into(),
            "--https-addr".into(),
            at(15017).to_string().into(),
            "--write".into(),
            "status,addresses".into(),
            "--pod-name".into(),
            format!("weftd-{number}").into(),
        ];
        Weftd::start_at([at(15010), at(8080), at(15014)], &arguments)
    }

    fn wait_for(&self, object: &str, condition: &str) -> Result<()> {
        let arguments =
            ["wait", object, "-n", "shop", &format!("--for=condition={condition}"), "--timeout=60s"];
        let waited = self.api.kubectl(&arguments).map(drop);
        waited.with_context(|| format!("{:?}", self.status(object)))
    }

    fn status(&self, object: &str) -> Result<Value> {
        let text = self.api.kubectl(&["get", object, "-n", "shop", "-o", "json"])?;
        let object: Value = serde_json::from_str(&text)?;
        Ok(object["status"].clone())
    }

    /// Returns status, reason and message of a condition, once it is about the newest generation.
    fn condition(&self, object: &str, kind: &str) -> Result<[String; 3]> {
        let text = self.api.kubectl(&["get", object, "-n", "shop", "-o", "json"])?;
        let object: Value = serde_json::from_str(&text)?;
        let conditions = object["status"]["conditions"].as_array().context("there are conditions")?;
        let condition =
            conditions.iter().find(|condition| condition["type"] == kind).context("the condition")?;
        ensure!(condition["observedGeneration"] == object["metadata"]["generation"], "{condition} is old");
        Ok(["status", "reason", "message"]
            .map(|field| condition[field].as_str().unwrap_or_default().to_owned()))
    }

    fn until(&self, object: &str, kind: &str, expected: [&str; 3]) -> Result<()> {
        eventually("a condition", PATIENCE, || {
            let found = self.condition(object, kind)?;
            let is_it = found[0] == expected[0] && found[1] == expected[1] && found[2].contains(expected[2]);
            ensure!(is_it, "{object}: {found:?}, not {expected:?}");
            Ok(())
        })
    }
}

/// Returns a free address of this machine that is not loopback: an EndpointSlice may have no other.
fn address() -> Result<SocketAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // Nothing is sent: it shows which address would be used.
    socket.connect("192.0.2.1:9").context("this test needs an address that is not loopback")?;
    Ok(TcpListener::bind((socket.local_addr()?.ip(), 0))?.local_addr()?)
}

/// Returns a number of the metrics.
fn metric(monitoring: SocketAddr, name: &str) -> Result<u64> {
    let text = String::from_utf8(Request::get("/metrics").send(monitoring)?.body.to_vec())?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("{name} is not in {text}"))?.parse()?)
}

#[test]
fn users_are_told_what_is_in_force_and_what_is_not() {
    let cluster = Cluster::start().unwrap();
    let first = cluster.weftd(1).unwrap();
    let second = cluster.weftd(2).unwrap();
    let outcome = the_whole_story(&cluster, &first, second);
    outcome.unwrap_or_else(|error| panic!("{error:#}\n{}", first.log()));
}

/// A ServiceEntry without addresses gets some, which stay beside its conditions and are used.
fn addresses(cluster: &Cluster, monitoring: SocketAddr) -> Result<()> {
    cluster.wait_for("serviceentry/named", "Programmed")?;
    let allocated = eventually("addresses", PATIENCE, || {
        let status = cluster.status("serviceentry/named")?;
        let all = status["addresses"].as_array().context("addresses")?.clone();
        ensure!(
            all.len() == 4 && status["conditions"].as_array().is_some_and(|all| all.len() == 2),
            "{status}"
        );
        Ok(all)
    })?;
    let distinct: std::collections::BTreeSet<&str> =
        allocated.iter().filter_map(|address| address["value"].as_str()).collect();
    ensure!(distinct.len() == 4, "{allocated:?}");
    eventually("the addresses to be used", PATIENCE, || {
        let registry = Request::get("/debug/registryz").send(monitoring)?;
        let registry = String::from_utf8_lossy(&registry.body).into_owned();
        ensure!(distinct.iter().all(|address| registry.contains(address)), "{registry}");
        Ok(())
    })?;
    // Another generation of it leaves them alone.
    cluster.apply("{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: named, namespace: shop}, spec: {hosts: [a.named.test, b.named.test], ports: [{name: tcp, number: 9001, protocol: TCP}], resolution: DNS}}")?;
    cluster.until("serviceentry/named", "Programmed", ["True", "Programmed", ""])?;
    let status = cluster.status("serviceentry/named")?;
    ensure!(status["addresses"].as_array() == Some(&allocated), "{status}");
    Ok(())
}

fn the_whole_story(cluster: &Cluster, first: &Weftd, mut second: Weftd) -> Result<()> {
    let address = cluster.network.ip(253, 1).to_string();
    // Its proxy is at the other replica, which does not write.
    let envoy = proxy::start_gateway(second.grpc())?;
    cluster.apply(&MESH.replace("ADDRESS", &address))?;
    cluster.rule("good", "/a.*")?;
    for object in ["gateway.networking.istio.io/front", "serviceentry/api", "virtualservice/good"] {
        cluster.wait_for(object, "Accepted")?;
        cluster.wait_for(object, "Programmed")?;
    }
    let said = cluster.condition("virtualservice/good", "Programmed")?;
    ensure!(said[2] == "acknowledged by the one proxy that uses it", "{said:?}");
    let dump = envoy.config_dump()?.to_string();
    ensure!(dump.contains("good.test"), "it says so and it is not: {dump}");

    addresses(cluster, second.monitoring())?;

    // What weftd writes leads to nothing.
    let generation = metric(second.monitoring(), "weft_mesh_generation")?;
    let evaluations = metric(second.monitoring(), "weft_push_evaluations_total")?;
    let change = r#"[{"op":"replace","path":"/status/conditions","value":[]}]"#;
    let patch = [
        "patch",
        "virtualservice",
        "good",
        "-n",
        "shop",
        "--subresource=status",
        "--type=json",
        "-p",
        change,
    ];
    cluster.api.kubectl(&patch)?;
    cluster.wait_for("virtualservice/good", "Programmed")?;
    thread::sleep(Duration::from_secs(1));
    ensure!(
        metric(second.monitoring(), "weft_mesh_generation")? == generation,
        "a status makes another mesh"
    );
    ensure!(
        metric(second.monitoring(), "weft_push_evaluations_total")? == evaluations,
        "a status is compiled"
    );

    // One that is bad from the beginning, and one that becomes bad.
    cluster.rule("bad", "(")?;
    cluster.until(
        "virtualservice/bad",
        "Accepted",
        ["False", "Invalid", "spec.http[0].match[0].uri.regex: "],
    )?;
    cluster.until("virtualservice/bad", "Programmed", ["False", "Invalid", ""])?;
    cluster.rule("good", "(")?;
    cluster.until(
        "virtualservice/good",
        "Accepted",
        ["False", "Invalid", "the last good form stays in use"],
    )?;
    cluster.rule("good", "/b.*")?;
    cluster.until("virtualservice/good", "Programmed", ["True", "Programmed", "the one proxy"])?;

    // What nothing comes of says so.
    cluster.apply(UNSUPPORTED)?;
    cluster.until("envoyfilter/filter", "Accepted", ["False", "NotSupported", "does not act on"])?;
    cluster.until(
        "authorizationpolicy/policy",
        "Accepted",
        ["False", "NotEnforced", "as if it were not there"],
    )?;

    // A replica that is silent may have proxies that nobody knows of.
    second.kill();
    cluster.rule("good", "/c.*")?;
    cluster.until("virtualservice/good", "Programmed", ["Unknown", "ReplicaSilent", "no answer from"])?;
    cluster.api.kubectl(&["delete", "endpointslice", "istiod-2", "-n", "istio-system"])?;
    cluster.until("virtualservice/good", "Programmed", ["True", "Programmed", ""])?;
    ensure!(
        metric(first.monitoring(), "weft_write_corrections_total{writer=\"Status\"}")? <= 1,
        "somebody fights"
    );
    Ok(())
}
