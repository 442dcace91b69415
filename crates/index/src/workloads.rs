//! Pods and WorkloadEntries as workloads, and what endpoints take over from them.

use k8s_api::core::{Node, Pod};
use k8s_api::workload_entry::WorkloadEntry;
use model::{Labels, Locality, Namespace, Str, Workload, WorkloadId};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const SUBZONE: &str = "topology.istio.io/subzone";
const OLD_REGION: &str = "failure-domain.beta.kubernetes.io/region";
const OLD_ZONE: &str = "failure-domain.beta.kubernetes.io/zone";
const NETWORK: &str = "topology.istio.io/network";
const CLUSTER: &str = "topology.istio.io/cluster";
const HOSTNAME: &str = "kubernetes.io/hostname";
const LOCALITY: &str = "topology.istio.io/locality";
const OLD_LOCALITY: &str = "istio-locality";
const TLS_MODE: &str = "security.istio.io/tlsMode";
const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// A workload with what its endpoints take over from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) workload: Arc<Workload>,
    /// The workload's labels and those of its place, by which subsets and priorities select.
    pub(crate) endpoint_labels: Labels,
    /// Its SPIFFE id, if its service account is known.
    pub(crate) identity: Option<Str>,
    /// Whether it takes mutual TLS.
    pub(crate) mtls: bool,
}

/// Returns the locality that the labels of a node say.
pub(crate) fn node_locality(node: &Node) -> Locality {
    let labels = node.metadata.labels.as_ref();
    let get = |names: &[&str]| {
        let found = names.iter().find_map(|name| labels?.get(*name));
        found.map(|value| Str::from(value.as_str())).unwrap_or_default()
    };
    Locality { region: get(&[REGION, OLD_REGION]), zone: get(&[ZONE, OLD_ZONE]), subzone: get(&[SUBZONE]) }
}

/// Returns the pod as a member of services.
pub(crate) fn of_pod(
    pod: &Pod,
    nodes: &BTreeMap<String, Locality>,
    trust_domain: &str,
    cluster: &Str,
) -> Member {
    let labels: Labels = labels(pod.metadata.labels.as_ref());
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let node = Some(pod.spec.node_name.as_str()).filter(|node| !node.is_empty());
    let locality =
        own_locality(&labels).or_else(|| node.and_then(|node| nodes.get(node).cloned())).unwrap_or_default();
    let sidecars = pod.spec.init_containers.iter().filter(|container| container.restart_policy == "Always");
    let ports = pod.spec.containers.iter().chain(sidecars).flat_map(|container| &container.ports);
    let workload = Workload {
        id: WorkloadId { namespace: Namespace::new(namespace), name: name.into() },
        uid: pod.metadata.uid.as_deref().map(Str::from),
        ips: pod.ips().filter_map(|ip| ip.parse().ok()).collect(),
        service_account: pod.service_account().into(),
        node: node.map(Str::from),
        locality,
        network: labels.get(NETWORK).unwrap_or_default().into(),
        workload_name: owner_name(pod, &labels).unwrap_or(name).into(),
        named_ports: ports
            .filter(|port| !port.name.is_empty())
            .map(|port| (port.name.as_str().into(), port.container_port))
            .collect(),
        labels,
    };
    member(workload, trust_domain, cluster)
}

/// Returns the WorkloadEntry as a member of services.
pub(crate) fn of_entry(entry: &WorkloadEntry, trust_domain: &str, cluster: &Str) -> Member {
    let spec = &entry.spec;
    let own: BTreeMap<String, String> = entry.metadata.labels.clone().unwrap_or_default();
    let labels: Labels =
        own.iter().chain(&spec.labels).map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let name = entry.metadata.name.as_deref().unwrap_or_default();
    let locality = match spec.locality.as_str() {
        "" => own_locality(&labels).unwrap_or_default(),
        text => Locality::parse(text),
    };
    let workload = Workload {
        id: WorkloadId {
            namespace: Namespace::new(entry.metadata.namespace.as_deref().unwrap_or_default()),
            name: name.into(),
        },
        uid: None,
        ips: spec.address.parse::<IpAddr>().into_iter().collect(),
        service_account: spec.service_account.as_str().into(),
        node: None,
        locality,
        network: match spec.network.as_str() {
            "" => labels.get(NETWORK).unwrap_or_default().into(),
            network => network.into(),
        },
        workload_name: name.into(),
        named_ports: spec
            .ports
            .iter()
            .filter_map(|(name, port)| Some((name.as_str().into(), u16::try_from(*port).ok()?)))
            .collect(),
        labels,
    };
    let says_nothing = workload.labels.get(TLS_MODE).is_none();
    let has_account = !workload.service_account.is_empty();
    let member = member(workload, trust_domain, cluster);
    // Nobody labels an entry by injection: a service account is how it says that it has a certificate.
    Member { mtls: member.mtls || (says_nothing && has_account), ..member }
}

/// Adds what endpoints need to a workload. Without a service account there is no identity.
pub(crate) fn member(workload: Workload, trust_domain: &str, cluster: &Str) -> Member {
    let account = &workload.service_account;
    let namespace = &workload.id.namespace;
    Member {
        endpoint_labels: with_topology(&workload.labels, &workload, cluster),
        identity: (!account.is_empty()).then(|| identity(trust_domain, namespace, account)),
        mtls: workload.labels.get(TLS_MODE) == Some("istio"),
        workload: Arc::new(workload),
    }
}

/// Returns the SPIFFE id of a service account.
pub(crate) fn identity(trust_domain: &str, namespace: &Namespace, account: &str) -> Str {
    format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}").into()
}

/// Converts the labels of an object's metadata.
pub(crate) fn labels(labels: Option<&BTreeMap<String, String>>) -> Labels {
    labels.into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

/// Adds the labels of a workload's place, which say more than its own.
fn with_topology(labels: &Labels, workload: &Workload, cluster: &Str) -> Labels {
    let mut all = labels.clone();
    let locality = &workload.locality;
    let topology = [
        (REGION, &locality.region),
        (ZONE, &locality.zone),
        (SUBZONE, &locality.subzone),
        (NETWORK, &workload.network),
        (CLUSTER, cluster),
    ];
    for (key, value) in topology {
        if !value.is_empty() {
            all.insert(key, value.clone());
        }
    }
    if let Some(node) = &workload.node {
        all.insert(HOSTNAME, node.clone());
    }
    all
}

/// Parses the label by which a workload says where it is; labels cannot hold slashes, so there are dots.
fn own_locality(labels: &Labels) -> Option<Locality> {
    let text = labels.get(LOCALITY).or_else(|| labels.get(OLD_LOCALITY)).filter(|text| !text.is_empty())?;
    Some(if text.contains('/') { Locality::parse(text) } else { Locality::parse(&text.replace('.', "/")) })
}

/// Returns the name of the workload that a pod belongs to: its Deployment, Job's CronJob, or whatever owns it.
fn owner_name<'a>(pod: &'a Pod, labels: &'a Labels) -> Option<&'a str> {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
    let name = owner.name.as_str();
    Some(match owner.kind.as_str() {
        "ReplicaSet" => labels
            .get(POD_TEMPLATE_HASH)
            .and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-'))
            .unwrap_or(name),
        // CronJobs append the minute at which a Job was due.
        "Job" => match name.rsplit_once('-') {
            Some((base, minute)) if minute.len() >= 8 && minute.bytes().all(|byte| byte.is_ascii_digit()) => {
                base
            }
            _ => name,
        },
        _ => name,
    })
}
