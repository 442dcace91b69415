//! Services and their endpoints, whichever registry they come from.

use crate::{ExportTo, Hostname, Labels, Namespace, ObjectKey, Protocol, Str};
use ipnet::IpNet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Identifies a service: the same host may be defined in several namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The fully qualified host, or a wildcard of a ServiceEntry.
    pub host: Hostname,
    /// The namespace of the object that defines it.
    pub namespace: Namespace,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.host)
    }
}

/// How a client finds the addresses of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// Endpoints come from the control plane (EDS).
    ClientSide,
    /// Envoy resolves the names and balances over every address (`STRICT_DNS`).
    Dns,
    /// Envoy resolves the name and uses one address at a time (`LOGICAL_DNS`).
    DnsRoundRobin,
    /// A wildcard host that Envoy resolves at request time (dynamic forward proxy).
    DynamicDns,
    /// Connections go where they were going (`ORIGINAL_DST`): headless Services, `resolution: NONE`.
    Passthrough,
    /// An ExternalName Service: another name for [`Service::alias`].
    Alias,
}

/// Which registry defined a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Registry {
    /// A Kubernetes Service.
    Kubernetes,
    /// A ServiceEntry.
    External,
}

/// The service's address as clients dial it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Vip {
    /// A single address.
    Ip(IpAddr),
    /// A range of addresses of a ServiceEntry.
    Cidr(IpNet),
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Cidr(net) => net.fmt(f),
        }
    }
}

/// The port on the workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TargetPort {
    /// A port number.
    Number(u16),
    /// The name of a container port.
    Name(Str),
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The name, empty for a single unnamed port.
    pub name: Str,
    /// The number that clients dial.
    pub port: u16,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Where the workload listens.
    pub target: TargetPort,
    /// The port on every node, for `NodePort` and `LoadBalancer` Services.
    pub node_port: Option<u16>,
}

/// A service: one host of a Kubernetes Service or ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its identity.
    pub key: ServiceKey,
    /// The object that defines it (`Service` or `ServiceEntry`).
    pub object: ObjectKey,
    /// The object's creation time, seconds since the epoch, 0 if unknown.
    pub created: i64,
    /// The object's labels.
    pub labels: Labels,
    /// The object's annotations.
    pub annotations: Labels,
    /// The addresses that clients dial: cluster IPs, or a ServiceEntry's addresses (given, or allocated in its
    /// status). Empty for headless Services and entries without address.
    pub vips: Vec<Vip>,
    /// The ports in the order of the object. UDP ports are included and never proxied.
    pub ports: Vec<ServicePort>,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// Who defined it.
    pub registry: Registry,
    /// Whether it is outside the mesh: no automatic mutual TLS.
    pub mesh_external: bool,
    /// Who may use it.
    pub export_to: ExportTo,
    /// For [`Resolution::Alias`]: the host that this one stands for.
    pub alias: Option<Hostname>,
    /// Labels of the pods behind a Kubernetes Service; empty if there is no selector.
    pub selector: Labels,
    /// Expected SPIFFE ids (a ServiceEntry's `subjectAltNames`).
    pub subject_alt_names: Vec<Str>,
    /// Only endpoints on the client's node may be used (`internalTrafficPolicy: Local`).
    pub node_local: bool,
    /// `spec.trafficDistribution` or its annotation.
    pub traffic_distribution: TrafficDistribution,
    /// Whether not-ready endpoints are to be treated as ready (`publishNotReadyAddresses`).
    pub publish_not_ready: bool,
}

impl Service {
    /// Returns the port with number `port`.
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|candidate| candidate.port == port)
    }

    /// Returns the port with this name.
    pub fn port_named(&self, name: &str) -> Option<&ServicePort> {
        self.ports.iter().find(|candidate| candidate.name.as_ref() == name)
    }

    /// Returns whether this is a Kubernetes Service without a cluster IP.
    pub fn is_headless(&self) -> bool {
        self.registry == Registry::Kubernetes && self.resolution == Resolution::Passthrough
    }
}

/// Which endpoints a client prefers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TrafficDistribution {
    /// No preference.
    #[default]
    Any,
    /// The same network, region and zone first (`PreferClose`, `PreferSameZone`).
    PreferSameZone,
    /// The same node first, then as [`TrafficDistribution::PreferSameZone`].
    PreferSameNode,
}

impl TrafficDistribution {
    /// Returns the labels by which endpoints are ranked against their client, the most important first.
    pub fn labels(self) -> &'static [&'static str] {
        use crate::labels::topology::{HOSTNAME, NETWORK, REGION, SUBZONE, ZONE};
        match self {
            Self::Any => &[],
            Self::PreferSameZone => &[NETWORK, REGION, ZONE],
            Self::PreferSameNode => &[NETWORK, REGION, ZONE, SUBZONE, HOSTNAME],
        }
    }
}

/// Region, zone and sub-zone. Unknown parts are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    /// The region.
    pub region: Str,
    /// The zone inside the region.
    pub zone: Str,
    /// The sub-zone inside the zone.
    pub subzone: Str,
}

impl Locality {
    /// Parses `region/zone/subzone`, of which the later parts may be missing.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(Str::from);
        let mut next = || parts.next().unwrap_or_default();
        Self { region: next(), zone: next(), subzone: next() }
    }

    /// Returns whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.region.is_empty() && self.zone.is_empty() && self.subzone.is_empty()
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.region)?;
        if !self.zone.is_empty() {
            write!(f, "/{}", self.zone)?;
        }
        if !self.subzone.is_empty() {
            write!(f, "/{}", self.subzone)?;
        }
        Ok(())
    }
}

/// Where an endpoint listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// An IP address.
    Ip(IpAddr),
    /// A name that Envoy resolves (DNS clusters).
    Dns(Hostname),
    /// The path of a Unix domain socket; the port is 0.
    Unix(Str),
}

/// Whether an endpoint takes traffic. Terminating endpoints are not kept at all, unless the service has
/// persistent sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Health {
    /// Ready.
    Healthy,
    /// Not ready: sent so that Envoy can fall back to it in a panic.
    Unhealthy,
    /// Terminating, kept for sessions that must end there.
    Draining,
}

/// One address of one port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Where it listens.
    pub address: Address,
    /// Further addresses of the same workload (dual stack).
    pub additional_addresses: Vec<IpAddr>,
    /// The workload's port; 0 for Unix sockets.
    pub port: u16,
    /// The name of the service port that it serves.
    pub service_port: Str,
    /// The workload's labels, topology labels included: subsets select by them.
    pub labels: Labels,
    /// The SPIFFE service account, if known.
    pub service_account: Option<Str>,
    /// The namespace of the workload.
    pub namespace: Namespace,
    /// The name of the workload (Deployment, or pod when there is no owner).
    pub workload: Str,
    /// Where it runs.
    pub locality: Locality,
    /// Its network; empty for the default one.
    pub network: Str,
    /// The cluster it is in.
    pub cluster: Str,
    /// The node it runs on.
    pub node: Option<Str>,
    /// Its weight among its siblings; none for the default of 1.
    pub weight: Option<u32>,
    /// Whether it takes traffic.
    pub health: Health,
    /// Whether the workload has a sidecar that accepts mutual TLS (label `security.istio.io/tlsMode: istio`).
    pub mtls: bool,
}

/// All endpoints of a service, over all its ports, in a stable order.
pub type Endpoints = Arc<[Endpoint]>;
