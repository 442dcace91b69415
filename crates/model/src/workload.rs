//! Workloads: pods and the machines that stand in for them.

use crate::{Labels, Locality, Namespace, Str};
use std::fmt;
use std::net::IpAddr;

/// The identity under which a proxy runs: the `name.namespace` of its node id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadId {
    /// The namespace.
    pub namespace: Namespace,
    /// The pod's (or WorkloadEntry's) name.
    pub name: Str,
}

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

/// A pod or WorkloadEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its identity.
    pub id: WorkloadId,
    /// What tells a pod from others that had or will have its name; none for a machine.
    pub uid: Option<Str>,
    /// Its addresses, the primary one first.
    pub ips: Vec<IpAddr>,
    /// Its labels.
    pub labels: Labels,
    /// Its service account.
    pub service_account: Str,
    /// The node it runs on.
    pub node: Option<Str>,
    /// Where it runs, from its own label or its node.
    pub locality: Locality,
    /// Its network; empty for the default one.
    pub network: Str,
    /// The name of the controller that owns it, or its own.
    pub workload_name: Str,
    /// Named ports: container ports of a pod, the port map of a WorkloadEntry.
    pub named_ports: Vec<(Str, u16)>,
}
