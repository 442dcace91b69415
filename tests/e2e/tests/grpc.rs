//! gRPC's own xDS client, in Python: no Envoy between client and servers.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, ensure};
use e2e::config::Config;
use e2e::network::Network;
use e2e::weftd::Weftd;
use e2e::{PATIENCE, eventually, repository};
use serde_json::json;
use testkit::tools;

const SERVICE: &str = "greeter.grpc-demo.svc.cluster.local";

#[test]
fn a_grpc_client_resolves_and_calls_and_follows_edits() {
    let network = Network::claim().unwrap();
    let config = Config::new().unwrap();
    config.write("greeter.yaml", &manifests(&network)).unwrap();
    config.write("routes.yaml", &routes(100, 0)).unwrap();
    let weftd = Weftd::start(config.path(), &network).unwrap();
    let mut client = Client::start(&network, &weftd).unwrap();

    let expect = |client: &mut Client, what: &str, names: &[&str]| {
        eventually(what, PATIENCE, || {
            let seen = client.call(40)?;
            let got: Vec<&str> = seen.keys().map(String::as_str).collect();
            ensure!(got == names, "{seen:?}");
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", weftd.log()));
    };
    expect(&mut client, "v1 alone", &["v1"]);
    // While edits arrive, no call fails.
    config.write("routes.yaml", &routes(50, 50)).unwrap();
    expect(&mut client, "both", &["v1", "v2"]);
    config.write("routes.yaml", &routes(0, 100)).unwrap();
    expect(&mut client, "v2 alone", &["v2"]);
    assert_eq!(client.failures, BTreeMap::new());
}

fn manifests(network: &Network) -> String {
    let (v1, v2) = (network.ip(40, 1), network.ip(40, 2));
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: greeter, namespace: grpc-demo}}
spec:
  selector: {{app: greeter}}
  ports: [{{name: grpc, port: 7070}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: greeter-1, namespace: grpc-demo, labels: {{kubernetes.io/service-name: greeter}}}}
addressType: IPv4
ports: [{{name: grpc, port: 7070}}]
endpoints:
- addresses: [{v1}]
  targetRef: {{kind: Pod, name: greeter-v1, namespace: grpc-demo}}
- addresses: [{v2}]
  targetRef: {{kind: Pod, name: greeter-v2, namespace: grpc-demo}}
---
apiVersion: v1
kind: Pod
metadata: {{name: greeter-v1, namespace: grpc-demo, labels: {{app: greeter, version: v1}}}}
status: {{podIP: {v1}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: greeter-v2, namespace: grpc-demo, labels: {{app: greeter, version: v2}}}}
status: {{podIP: {v2}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: greeter, namespace: grpc-demo}}
spec:
  host: {SERVICE}
  subsets:
  - {{name: v1, labels: {{version: v1}}}}
  - {{name: v2, labels: {{version: v2}}}}
"
    )
}

fn routes(v1: u32, v2: u32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: greeter, namespace: grpc-demo}}
spec:
  hosts: [{SERVICE}]
  http:
  # Not for these calls, but a client that took offence at any of it would take no more routes.
  - match:
    - uri: {{prefix: /demo.}}
      method: {{exact: POST}}
      headers: {{x-user: {{regex: 'a.+'}}, x-kind: {{prefix: b}}}}
      withoutHeaders: {{x-none: {{exact: c}}}}
    fault: {{abort: {{grpcStatus: UNAVAILABLE, percentage: {{value: 100}}}}}}
    timeout: 3s
    retries: {{attempts: 2, retryOn: 'unavailable,5xx', backoff: 30ms}}
    corsPolicy: {{allowOrigins: [{{exact: 'https://example.org'}}]}}
    rewrite: {{uri: /other}}
    headers: {{request: {{set: {{x-by: weft}}}}}}
    mirror: {{host: {SERVICE}, subset: v1}}
    route: [{{destination: {{host: {SERVICE}, subset: v1}}}}]
  - match: [{{queryParams: {{q: {{exact: d}}}}}}]
    redirect: {{uri: /elsewhere}}
  - match: [{{headers: {{x-answer: {{exact: e}}}}}}]
    directResponse: {{status: 503}}
  - route:
    - {{destination: {{host: {SERVICE}, subset: v1}}, weight: {v1}}}
    - {{destination: {{host: {SERVICE}, subset: v2}}, weight: {v2}}}
"
    )
}

/// The Python process.
struct Client {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Calls that failed after the first that did not.
    failures: BTreeMap<String, u64>,
    has_worked: bool,
}

impl Client {
    fn start(network: &Network, weftd: &Weftd) -> anyhow::Result<Self> {
        let bootstrap = json!({
            "xds_servers": [{
                "server_uri": weftd.grpc().to_string(),
                "channel_creds": [{ "type": "insecure" }],
                "server_features": ["xds_v3"],
            }],
            "node": { "id": "grpc-client", "metadata": { "NAMESPACE": "grpc-demo", "GENERATOR": "grpc" } },
        });
        let mut command = Command::new(tools::python()?);
        command.arg(repository().join("tests/e2e/python/xds_client.py"));
        command.args([&format!("xds:///{SERVICE}:7070"), "/demo.Greeter/Greet"]);
        for (name, fourth) in [("v1", 1), ("v2", 2)] {
            command.arg(format!("{name}={}", network.socket(40, fourth, 7070)));
        }
        command.env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("stdin is piped")?;
        let output = BufReader::new(child.stdout.take().context("stdout is piped")?);
        Ok(Self { child, input, output, failures: BTreeMap::new(), has_worked: false })
    }

    /// Calls so many times and returns how often each server answered.
    fn call(&mut self, count: u32) -> anyhow::Result<BTreeMap<String, u64>> {
        writeln!(self.input, "{count}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let seen: BTreeMap<String, u64> = serde_json::from_str(&line).with_context(|| format!("{line:?}"))?;
        if self.has_worked {
            self.failures.extend(seen.clone().into_iter().filter(|(name, _)| !name.starts_with('v')));
        }
        self.has_worked |= seen.keys().any(|name| name.starts_with('v'));
        Ok(seen)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
