//! A mesh written down: one object a name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::Target;
use super::mesh::{Host, Mesh, PODS, Pod, SERVICES, Service, VERSIONS, mark};

/// What the name of every EndpointSlice starts with.
const SLICE: &str = "endpoints-";

/// Returns the manifests of a mesh, by name.
pub fn manifests(mesh: &Mesh, target: &impl Target) -> BTreeMap<String, String> {
    let mut manifests = BTreeMap::from([("gateway".to_owned(), target.network().bind_gateways(GATEWAY))]);
    for (number, service) in &mesh.services {
        manifests.insert(format!("service-{number}"), service_manifest(*number, service));
        for (name, pods) in slices(service, target) {
            let manifest = slice_manifest(*number, service, &name, &pods, target);
            manifests.insert(format!("{SLICE}{name}"), manifest);
        }
    }
    for (number, service) in mesh.services.iter().chain(&mesh.gone) {
        manifests.insert(format!("rule-{number}"), rule_manifest(*number, service));
    }
    for (number, host) in (0..SERVICES).zip(&mesh.hosts) {
        manifests.insert(format!("routes-{number}"), routes_manifest(mesh, number, host));
    }
    manifests
}

/// Whether the manifest of this name is an EndpointSlice.
pub(super) fn is_slice(name: &str) -> bool {
    name.starts_with(SLICE)
}

/// Returns the manifest of all pods that there may ever be. A pod that no EndpointSlice refers to has no part in the mesh.
pub fn all_pods() -> String {
    let mut text = String::new();
    for service in 0..SERVICES {
        for version in 0..VERSIONS {
            for number in 0..PODS {
                let pod = Pod { service, version, number };
                let _ = writeln!(
                    text,
                    "---
apiVersion: v1
kind: Pod
metadata: {{name: {}, namespace: default, labels: {{app: s{service}, version: v{version}}}}}
spec: {{containers: [{{name: app, image: none}}]}}",
                    pod.name()
                );
            }
        }
    }
    text
}

/// Returns the pods of a service by the EndpointSlice that they are in.
fn slices(service: &Service, target: &impl Target) -> BTreeMap<String, BTreeSet<Pod>> {
    let mut slices: BTreeMap<String, BTreeSet<Pod>> = BTreeMap::new();
    for pod in &service.pods {
        slices.entry(target.slice(*pod)).or_default().insert(*pod);
    }
    slices
}

fn service_manifest(number: u8, service: &Service) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: s{number}, namespace: default}}
spec:
  selector: {{app: s{number}}}
  ports: [{{name: http, port: {}, targetPort: {}}}]
",
        service.port,
        8080 + service.target_port
    )
}

fn slice_manifest(
    number: u8,
    service: &Service,
    name: &str,
    pods: &BTreeSet<Pod>,
    target: &impl Target,
) -> String {
    let port = pods.first().map(|pod| target.address(*pod, service.target_port).port()).unwrap_or_default();
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, namespace: default, labels: {{kubernetes.io/service-name: s{number}}}}}
addressType: IPv4
ports: [{{name: http, port: {port}}}]
endpoints:
"
    );
    for pod in pods {
        let _ = writeln!(
            text,
            "- addresses: [{}]\n  conditions: {{ready: true}}\n  targetRef: {{kind: Pod, name: {}, namespace: default}}",
            target.address(*pod, service.target_port).ip(),
            pod.name()
        );
    }
    text
}

fn rule_manifest(number: u8, service: &Service) -> String {
    let mut text = format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: s{number}, namespace: default}}
spec:
  host: s{number}
  trafficPolicy:
    connectionPool: {{tcp: {{connectTimeout: {}ms}}}}
    loadBalancer: {{simple: {}}}
  subsets:
",
        5000 + service.policy,
        if service.policy.is_multiple_of(2) { "ROUND_ROBIN" } else { "LEAST_REQUEST" }
    );
    for (version, name) in service.subsets.iter().enumerate() {
        let _ = writeln!(text, "  - {{name: {name}, labels: {{version: v{version}}}}}");
    }
    text
}

fn routes_manifest(mesh: &Mesh, number: u8, host: &Host) -> String {
    let mut text = format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: host{number}, namespace: default}}
spec:
  hosts: [{}]
  gateways: [gateway]
  http:
  - name: {}
    route:
",
        Mesh::host_name(number),
        mark(number.into(), host.generation)
    );
    for destination in &host.destinations {
        let service = mesh.service(destination.service);
        let subset = destination
            .version
            .map(|version| format!(", subset: {}", service.subsets[usize::from(version)]))
            .unwrap_or_default();
        let _ = writeln!(
            text,
            "    - destination: {{host: s{}, port: {{number: {}}}{subset}}}\n      weight: {}",
            destination.service, service.port, destination.weight
        );
    }
    text
}

const GATEWAY: &str = "apiVersion: networking.istio.io/v1
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
";
