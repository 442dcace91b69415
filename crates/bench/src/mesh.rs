//! The mesh that the simulated proxies are in: ordinary manifests, made by number.

use proto::envoy::config::core::v3::node::UserAgentVersionType;
use proto::envoy::config::core::v3::{BuildVersion, Extension, Locality, Node};
use proto::envoy::r#type::v3::SemanticVersion;
use proto::google::protobuf::value::Kind;
use proto::google::protobuf::{Struct, Value};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// The port of every service.
pub const PORT: u16 = 8080;

/// Every so many services one has a VirtualService and a DestinationRule.
const ROUTED: usize = 10;

/// How many extensions an Envoy lists in its first request.
const EXTENSIONS: usize = 200;

/// How large a mesh is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// Services, each with one HTTP port.
    pub services: usize,
    /// Pods behind each.
    pub endpoints: usize,
    /// Namespaces that the services are spread over.
    pub namespaces: usize,
    /// Zones that the pods are spread over.
    pub zones: usize,
}

/// A manifest: a file name and its text.
pub type File = (String, String);

impl Mesh {
    /// Returns all manifests.
    pub fn files(&self) -> Vec<File> {
        let mut files = vec![("nodes.yaml".to_owned(), self.nodes())];
        for service in 0..self.services {
            files.push((format!("service-{service}.yaml"), self.service(service)));
            files.push(self.endpoints(service, None));
            if service % ROUTED == 0 {
                files.push(self.route(service, 90, "v2"));
                files.push(self.subsets(service, "v2"));
            }
        }
        files
    }

    fn nodes(&self) -> String {
        let mut text = String::new();
        for zone in 0..self.zones {
            let _ = write!(
                text,
                "apiVersion: v1\nkind: Node\nmetadata:\n  name: node-{zone}\n  labels:\n    topology.kubernetes.io/region: \
                 region\n    topology.kubernetes.io/zone: zone-{zone}\n---\n"
            );
        }
        text
    }

    /// Returns the host name of a service.
    pub fn host(&self, service: usize) -> String {
        format!("service-{service}.{}.svc.cluster.local", self.namespace(service))
    }

    /// Returns the name of the cluster of a service, or of one of its subsets.
    pub fn cluster(&self, service: usize, subset: &str) -> String {
        format!("outbound|{PORT}|{subset}|{}", self.host(service))
    }

    fn namespace(&self, service: usize) -> String {
        format!("bench-{}", service % self.namespaces)
    }

    /// Returns the address of a pod.
    pub fn address(&self, service: usize, endpoint: usize) -> Ipv4Addr {
        let number = u32::try_from(service * self.endpoints + endpoint)
            .expect("a mesh of millions of pods is too large");
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 64, 0, 1)) + number)
    }

    fn service(&self, service: usize) -> String {
        let namespace = self.namespace(service);
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: service-{service}\n  namespace: {namespace}\n  labels:\n    \
             app: service-{service}\nspec:\n  clusterIP: {}\n  selector:\n    app: service-{service}\n  ports:\n  - name: \
             http\n    port: {PORT}\n    targetPort: {PORT}\n",
            Ipv4Addr::from(
                u32::from(Ipv4Addr::new(10, 96, 1, 0)) + u32::try_from(service).unwrap_or_default()
            )
        );
        for endpoint in 0..self.endpoints {
            let _ = write!(
                text,
                "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {pod}\n  namespace: {namespace}\n  labels:\n    app: \
                 service-{service}\n    version: {version}\n    security.istio.io/tlsMode: istio\n    pod-template-hash: \
                 h{service}\nspec:\n  serviceAccountName: service-{service}\n  nodeName: node-{zone}\n  containers:\n  - \
                 name: app\n    image: app\n    ports:\n    - containerPort: {PORT}\nstatus:\n  phase: Running\n  podIP: \
                 {address}\n  podIPs:\n  - ip: {address}\n",
                pod = pod_name(service, endpoint),
                version = version(endpoint),
                zone = endpoint % self.zones,
                address = self.address(service, endpoint),
            );
        }
        text
    }

    /// Returns the endpoints of a service, with one of them not ready.
    pub fn endpoints(&self, service: usize, down: Option<usize>) -> File {
        let namespace = self.namespace(service);
        let mut text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: service-{service}-1\n  namespace: \
             {namespace}\n  labels:\n    kubernetes.io/service-name: service-{service}\naddressType: IPv4\nports:\n- name: \
             http\n  port: {PORT}\n  protocol: TCP\nendpoints:\n"
        );
        for endpoint in 0..self.endpoints {
            let _ = write!(
                text,
                "- addresses: [{address}]\n  conditions:\n    ready: {ready}\n  nodeName: node-{zone}\n  zone: \
                 zone-{zone}\n  targetRef:\n    kind: Pod\n    name: {pod}\n    namespace: {namespace}\n",
                address = self.address(service, endpoint),
                ready = down != Some(endpoint),
                zone = endpoint % self.zones,
                pod = pod_name(service, endpoint),
            );
        }
        (format!("endpoints-{service}.yaml"), text)
    }

    /// Returns the VirtualService of a service: so many percent to `v1`, the rest to `subset`.
    pub fn route(&self, service: usize, percent: u32, subset: &str) -> File {
        let (host, namespace) = (self.host(service), self.namespace(service));
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: service-{service}\n  namespace: \
             {namespace}\nspec:\n  hosts:\n  - {host}\n  http:\n  - route:\n    - destination:\n        host: {host}\n        \
             subset: v1\n      weight: {percent}\n    - destination:\n        host: {host}\n        subset: {subset}\n      \
             weight: {rest}\n",
            rest = 100 - percent,
        );
        (format!("route-{service}.yaml"), text)
    }

    /// Returns the DestinationRule of a service: `v1`, and version 2 by the name of `subset`.
    pub fn subsets(&self, service: usize, subset: &str) -> File {
        let (host, namespace) = (self.host(service), self.namespace(service));
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: service-{service}\n  namespace: \
             {namespace}\nspec:\n  host: {host}\n  subsets:\n  - name: v1\n    labels:\n      version: v1\n  - name: \
             {subset}\n    labels:\n      version: v2\n"
        );
        (format!("subsets-{service}.yaml"), text)
    }

    /// Returns what the sidecar of the pod number `index` says it is, as Istio's agents write it. Consecutive numbers
    /// are pods of different services.
    pub fn node(&self, index: usize) -> Node {
        let (service, endpoint) = (index % self.services, index / self.services % self.endpoints);
        let (namespace, pod, address) =
            (self.namespace(service), pod_name(service, endpoint), self.address(service, endpoint));
        let zone = endpoint % self.zones;
        let labels = [
            ("app", format!("service-{service}")),
            ("version", version(endpoint).to_owned()),
            ("security.istio.io/tlsMode", "istio".to_owned()),
            ("pod-template-hash", format!("h{service}")),
        ];
        let metadata = [
            ("NAME", text(&pod)),
            ("NAMESPACE", text(&namespace)),
            ("INSTANCE_IPS", text(&address.to_string())),
            ("CLUSTER_ID", text("Kubernetes")),
            ("INTERCEPTION_MODE", text("REDIRECT")),
            ("ISTIO_VERSION", text("1.30.0")),
            ("MESH_ID", text("cluster.local")),
            ("NODE_NAME", text(&format!("node-{zone}"))),
            ("SERVICE_ACCOUNT", text(&format!("service-{service}"))),
            ("WORKLOAD_NAME", text(&format!("service-{service}"))),
            ("LABELS", object(labels.map(|(name, value)| (name, text(&value))))),
        ];
        Node {
            id: format!("sidecar~{address}~{pod}.{namespace}~{namespace}.svc.cluster.local"),
            cluster: format!("service-{service}.{namespace}"),
            metadata: Some(Struct { fields: fields(metadata) }),
            locality: Some(Locality {
                region: "region".to_owned(),
                zone: format!("zone-{zone}"),
                sub_zone: String::new(),
            }),
            user_agent_name: "envoy".to_owned(),
            user_agent_version_type: Some(UserAgentVersionType::UserAgentBuildVersion(BuildVersion {
                version: Some(SemanticVersion { major_number: 1, minor_number: 40, patch: 0 }),
                ..BuildVersion::default()
            })),
            extensions: (0..EXTENSIONS).map(extension).collect(),
            ..Node::default()
        }
    }
}

fn pod_name(service: usize, endpoint: usize) -> String {
    format!("service-{service}-{endpoint}")
}

/// The first of five pods is of the second version.
fn version(endpoint: usize) -> &'static str {
    if endpoint.is_multiple_of(5) { "v2" } else { "v1" }
}

/// An Envoy lists everything that was compiled into it.
fn extension(number: usize) -> Extension {
    Extension {
        name: format!("envoy.filters.http.extension_{number}"),
        category: "envoy.filters.http".to_owned(),
        type_urls: vec![format!("envoy.extensions.filters.http.extension_{number}.v3.Configuration")],
        ..Extension::default()
    }
}

fn fields<const N: usize>(entries: [(&str, Value); N]) -> BTreeMap<String, Value> {
    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn object<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Value { kind: Some(Kind::StructValue(Struct { fields: fields(entries) })) }
}

fn text(value: &str) -> Value {
    Value { kind: Some(Kind::StringValue(value.to_owned())) }
}
