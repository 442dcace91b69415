//! The Kubernetes kinds that a mesh reads, with only the fields that it needs: a Pod takes a twentieth of the memory of the full type.
//!
//! They implement [`kube_core::Resource`], so `kube::Api<Pod>` and `watcher` work, and decode from plain JSON or YAML. They cannot be
//! serialised: a slim value that is written back would delete every field it does not carry.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::ByteString;
use serde::{Deserialize, Deserializer};

pub use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::wire::{slim_kind, slim_type};

slim_kind! {
    /// A service: names, addresses, ports, and which pods are behind it.
    pub struct Service: k8s_openapi::api::core::v1::Service {
        /// What the user asks for.
        pub spec: ServiceSpec,
        /// What load balancers report.
        pub status: ServiceStatus,
    }
}

slim_kind! {
    /// A part of a service's endpoints.
    pub struct EndpointSlice: k8s_openapi::api::discovery::v1::EndpointSlice {
        /// `IPv4`, `IPv6` or `FQDN`.
        pub address_type: String,
        /// The endpoints.
        pub endpoints: Vec<Endpoint>,
        /// The ports, the same for each endpoint.
        pub ports: Vec<EndpointPort>,
    }
}

slim_kind! {
    /// A running workload.
    pub struct Pod: k8s_openapi::api::core::v1::Pod {
        /// What the user asks for.
        pub spec: PodSpec,
        /// What the kubelet reports.
        pub status: PodStatus,
    }
}

slim_kind! {
    /// A machine; its labels say in which region and zone it is.
    pub struct Node: k8s_openapi::api::core::v1::Node {
        /// What the kubelet reports.
        pub status: NodeStatus,
    }
}

slim_kind! {
    /// A namespace with its labels.
    pub struct Namespace: k8s_openapi::api::core::v1::Namespace {
        /// Its phase.
        pub status: NamespaceStatus,
    }
}

slim_kind! {
    /// An account of workloads: that it is there, and its unique id, is all that matters.
    pub struct ServiceAccount: k8s_openapi::api::core::v1::ServiceAccount {}
}

slim_kind! {
    /// Certificates and keys. [`fmt::Debug`] never prints values.
    pub struct Secret: k8s_openapi::api::core::v1::Secret {
        /// What kind of data it is, such as `kubernetes.io/tls`.
        #[serde(rename = "type")]
        pub type_: String,
        /// Values by key, base64 on the wire.
        pub data: BTreeMap<String, SecretBytes>,
        /// Values by key as plain text, which win over `data`; only in files, the API server merges them.
        pub string_data: BTreeMap<String, SecretText>,
    }
}

slim_kind! {
    /// Text by key.
    pub struct ConfigMap: k8s_openapi::api::core::v1::ConfigMap {
        /// The text.
        pub data: BTreeMap<String, String>,
    }
}

slim_type! {
    /// A service's specification.
    pub struct ServiceSpec {
        /// The virtual IP; `None` for a headless service.
        #[serde(rename = "clusterIP")]
        pub cluster_ip: String,
        /// All virtual IPs, of which the first equals `clusterIP`.
        #[serde(rename = "clusterIPs")]
        pub cluster_ips: Vec<String>,
        /// Further addresses that lead to the service.
        #[serde(rename = "externalIPs")]
        pub external_ips: Vec<String>,
        /// The name that an `ExternalName` service stands for.
        pub external_name: String,
        /// `Cluster` or `Local`: which endpoints traffic from outside may reach.
        pub external_traffic_policy: String,
        /// `Cluster` or `Local`: which endpoints traffic from inside may reach.
        pub internal_traffic_policy: String,
        /// `IPv4`, `IPv6`, in order of preference.
        pub ip_families: Vec<String>,
        /// The ports.
        pub ports: Vec<ServicePort>,
        /// Whether endpoints that are not ready get traffic.
        pub publish_not_ready_addresses: bool,
        /// Labels of the pods; empty means that somebody else makes the EndpointSlices.
        pub selector: BTreeMap<String, String>,
        /// `PreferClose`, `PreferSameZone` or `PreferSameNode`.
        pub traffic_distribution: String,
        /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`.
        #[serde(rename = "type")]
        pub type_: String,
    }

    /// A port of a service.
    pub struct ServicePort {
        /// The application protocol, which wins over the name's prefix.
        pub app_protocol: Option<String>,
        /// Its name; empty only if it is the only port.
        pub name: String,
        /// The port on every node.
        pub node_port: Option<u16>,
        /// The number.
        pub port: u16,
        /// `TCP` (the default), `UDP` or `SCTP`.
        pub protocol: String,
        /// The port of the pods, by number or name; absent means the same number.
        pub target_port: Option<IntOrString>,
    }

    /// What load balancers report.
    pub struct ServiceStatus {
        /// The load balancer.
        pub load_balancer: LoadBalancerStatus,
    }

    /// The addresses of a load balancer.
    pub struct LoadBalancerStatus {
        /// The addresses.
        pub ingress: Vec<LoadBalancerIngress>,
    }

    /// One address of a load balancer.
    pub struct LoadBalancerIngress {
        /// A DNS name, if it has one.
        pub hostname: String,
        /// An IP address, if it has one.
        pub ip: String,
    }

    /// One endpoint of a slice.
    pub struct Endpoint {
        /// Its addresses, of which consumers use the first.
        pub addresses: Vec<String>,
        /// Whether it takes traffic.
        pub conditions: EndpointConditions,
        /// Where its traffic should come from.
        pub hints: EndpointHints,
        /// Its host name, for headless services.
        pub hostname: Option<String>,
        /// The node that it runs on.
        pub node_name: Option<String>,
        /// The object behind it, usually a Pod.
        pub target_ref: Option<ObjectReference>,
        /// The zone that it runs in.
        pub zone: Option<String>,
    }

    /// Whether an endpoint takes traffic. Absent values have the meaning of `discovery.k8s.io/v1`.
    pub struct EndpointConditions {
        /// Ready for traffic, and not terminating; absent means yes.
        pub ready: Option<bool>,
        /// As `ready`, also while terminating; absent means as `ready`.
        pub serving: Option<bool>,
        /// Being shut down; absent means no.
        pub terminating: Option<bool>,
    }

    /// Where an endpoint's traffic should come from.
    pub struct EndpointHints {
        /// Zones.
        pub for_zones: Vec<ForName>,
        /// Nodes.
        pub for_nodes: Vec<ForName>,
    }

    /// A zone or node by name.
    pub struct ForName {
        /// The name.
        pub name: String,
    }

    /// Names another object.
    pub struct ObjectReference {
        /// Its kind.
        pub kind: String,
        /// Its name.
        pub name: String,
        /// Its namespace.
        pub namespace: String,
        /// Its unique id.
        pub uid: String,
    }

    /// A port of a slice.
    pub struct EndpointPort {
        /// The application protocol.
        pub app_protocol: Option<String>,
        /// The name of the service's port.
        pub name: String,
        /// The number; absent means all ports.
        pub port: Option<u16>,
        /// `TCP` (the default), `UDP` or `SCTP`.
        pub protocol: String,
    }

    /// A pod's specification.
    pub struct PodSpec {
        /// The containers.
        pub containers: Vec<Container>,
        /// Whether the pod shares the node's network.
        pub host_network: bool,
        /// The pod's host name, if it is not its name.
        pub hostname: String,
        /// Containers that run first; those that are restarted always (native sidecars) have ports that count.
        pub init_containers: Vec<Container>,
        /// The node that it runs on.
        pub node_name: String,
        /// The service account of its identity.
        pub service_account_name: String,
        /// The headless service that gives it a DNS name.
        pub subdomain: String,
    }

    /// A container.
    pub struct Container {
        /// Its name.
        pub name: String,
        /// Its ports.
        pub ports: Vec<ContainerPort>,
        /// `Always` makes an init container a native sidecar.
        pub restart_policy: String,
    }

    /// A port of a container.
    pub struct ContainerPort {
        /// The number.
        pub container_port: u16,
        /// The name that services may refer to.
        pub name: String,
        /// `TCP` (the default), `UDP` or `SCTP`.
        pub protocol: String,
    }

    /// What the kubelet reports about a pod.
    pub struct PodStatus {
        /// The conditions.
        pub conditions: Vec<StatusCondition>,
        /// The node's address.
        #[serde(rename = "hostIP")]
        pub host_ip: String,
        /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
        pub phase: String,
        /// The first address.
        #[serde(rename = "podIP")]
        pub pod_ip: String,
        /// All addresses, of which the first equals `podIP`.
        #[serde(rename = "podIPs")]
        pub pod_ips: Vec<PodIp>,
    }

    /// An address of a pod.
    pub struct PodIp {
        /// The address.
        pub ip: String,
    }

    /// A condition by type, without the words around it.
    pub struct StatusCondition {
        /// `True`, `False` or `Unknown`.
        pub status: String,
        /// What it is about.
        #[serde(rename = "type")]
        pub type_: String,
    }

    /// What the kubelet reports about a node.
    pub struct NodeStatus {
        /// The addresses.
        pub addresses: Vec<NodeAddress>,
        /// What runs on it.
        pub node_info: NodeSystemInfo,
    }

    /// What runs on a node.
    pub struct NodeSystemInfo {
        /// The version of its kubelet, such as `v1.33.0`.
        pub kubelet_version: String,
    }

    /// An address of a node.
    pub struct NodeAddress {
        /// The address.
        pub address: String,
        /// `InternalIP`, `ExternalIP`, `Hostname` and so on.
        #[serde(rename = "type")]
        pub type_: String,
    }

    /// A namespace's status.
    pub struct NamespaceStatus {
        /// `Active` or `Terminating`.
        pub phase: String,
    }
}

impl EndpointConditions {
    /// Returns whether the endpoint is ready: an absent condition means yes.
    pub fn is_ready(&self) -> bool {
        self.ready.unwrap_or(true)
    }

    /// Returns whether the endpoint answers, be it terminating: an absent condition means as `ready`.
    pub fn is_serving(&self) -> bool {
        self.serving.unwrap_or_else(|| self.is_ready())
    }

    /// Returns whether the endpoint is being shut down.
    pub fn is_terminating(&self) -> bool {
        self.terminating.unwrap_or(false)
    }
}

impl Pod {
    /// Returns whether the pod's `Ready` condition is true.
    pub fn is_ready(&self) -> bool {
        self.status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
    }

    /// Returns whether the pod has a `Ready` condition and it is not true.
    pub fn is_known_not_ready(&self) -> bool {
        self.status.conditions.iter().any(|c| c.type_ == "Ready" && c.status != "True")
    }

    /// Returns whether the pod is being deleted.
    pub fn is_terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Returns whether the pod has ended and gives up its address.
    pub fn is_finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Returns the pod's addresses, the primary one first.
    pub fn ips(&self) -> impl Iterator<Item = &str> {
        let primary = Some(self.status.pod_ip.as_str()).filter(|ip| !ip.is_empty());
        let others = self.status.pod_ips.iter().map(|pod_ip| pod_ip.ip.as_str());
        primary.into_iter().chain(others.filter(move |ip| Some(*ip) != primary))
    }

    /// Returns the service account, `default` if none is set.
    pub fn service_account(&self) -> &str {
        match self.spec.service_account_name.as_str() {
            "" => "default",
            name => name,
        }
    }

    /// Returns the number of the container port with this name and protocol, for a service's `targetPort`.
    pub fn container_port(&self, name: &str, protocol: &str) -> Option<u16> {
        let protocol = tcp_if_empty(protocol);
        let sidecars = self.spec.init_containers.iter().filter(|c| c.restart_policy == "Always");
        let mut ports = self.spec.containers.iter().chain(sidecars).flat_map(|container| &container.ports);
        let port = ports.find(|port| port.name == name && tcp_if_empty(&port.protocol) == protocol)?;
        Some(port.container_port)
    }
}

impl Service {
    /// Returns the virtual IPs; none for a headless or `ExternalName` service.
    pub fn cluster_ips(&self) -> impl Iterator<Item = &str> {
        let first = Some(self.spec.cluster_ip.as_str());
        let others = self.spec.cluster_ips.iter().map(String::as_str);
        let distinct = first.into_iter().chain(others.filter(move |ip| Some(*ip) != first));
        distinct.filter(|ip| !ip.is_empty() && *ip != "None")
    }

    /// Returns whether clients get the endpoints' own addresses.
    pub fn is_headless(&self) -> bool {
        self.spec.cluster_ip == "None"
    }

    /// Returns whether the service is another name for `externalName`.
    pub fn is_external_name(&self) -> bool {
        self.spec.type_ == "ExternalName"
    }
}

impl Secret {
    /// Returns a value, from `stringData` or `data`.
    pub fn value(&self, key: &str) -> Option<&[u8]> {
        let text = self.string_data.get(key).map(|text| text.0.as_bytes());
        text.or_else(|| self.data.get(key).map(|bytes| bytes.0.as_slice()))
    }
}

/// Bytes of a Secret; [`fmt::Debug`] prints their number only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretBytes(pub Vec<u8>);

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

impl<'de> Deserialize<'de> for SecretBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: Option<ByteString> = Option::deserialize(deserializer)?;
        Ok(Self(bytes.unwrap_or_default().0))
    }
}

/// Text of a Secret; [`fmt::Debug`] prints its length only.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct SecretText(pub String);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

fn tcp_if_empty(protocol: &str) -> &str {
    if protocol.is_empty() { "TCP" } else { protocol }
}
