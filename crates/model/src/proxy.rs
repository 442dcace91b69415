//! A data-plane client: who it says it is and what it can take.

use crate::{Labels, Locality, Namespace, ProxySettings, Str, WorkloadId};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// What a proxy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProxyRole {
    /// Beside an application, whose traffic it captures.
    Sidecar,
    /// A gateway.
    Router,
    /// A gRPC library without a proxy.
    Grpc,
}

/// How traffic is captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Interception {
    /// `REDIRECT`.
    #[default]
    Redirect,
    /// `TPROXY`.
    Tproxy,
    /// `NONE`: listeners bind their ports.
    None,
}

/// A proxy as its `Node` describes it. `compile` parses it, and derives the audiences that generators see: no
/// generator reads a `Proxy`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proxy {
    /// What it is for.
    pub role: ProxyRole,
    /// The node id as it was sent.
    pub node_id: Str,
    /// Its pod's name and namespace.
    pub workload: WorkloadId,
    /// The namespace whose configuration it sees.
    pub namespace: Namespace,
    /// Its addresses, the primary one first.
    pub ips: Vec<IpAddr>,
    /// The DNS domain of its namespace, such as `default.svc.cluster.local`.
    pub dns_domain: Str,
    /// Labels from its metadata; the registry's are preferred.
    pub labels: Labels,
    /// Locality from its `Node`; the registry's is preferred.
    pub locality: Locality,
    /// Its cluster; empty if it does not say.
    pub cluster: Str,
    /// Its network; empty for the default one.
    pub network: Str,
    /// The node it runs on.
    pub node: Option<Str>,
    /// How its traffic is captured.
    pub interception: Interception,
    /// Whether it has a workload certificate, so that clusters and listeners may wait for one.
    pub has_identity: bool,
    /// Further metadata that changes what it is sent, by its name in `Node.metadata`.
    pub metadata: BTreeMap<Str, Str>,
    /// Its own settings, if it brings any: they replace the mesh's altogether.
    pub settings: Option<Arc<ProxySettings>>,
    /// Names of the extensions that it lists and stock Envoy lacks. If it lists stock ones only, one of these; if it lists
    /// none, empty.
    pub extensions: Vec<Str>,
}
