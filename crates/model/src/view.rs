//! The mesh at one moment, and the reader that remembers what was read.
//!
//! A [`MeshView`] is immutable and shares structure with its predecessor. Generators do not see it; they get a
//! [`Mesh`], which records the [`Key`] of everything that they look at. The same keys make up the [`ChangeSet`]
//! that [`MeshViewBuilder`] reports, so what was computed from something that changed can be found and nothing
//! else need be looked at.
//!
//! Most kinds have two keys: one for the *rows* (who exists, with the few attributes by which objects are
//! chosen) and one for each object's content. A generator that goes through all rows is not disturbed by a
//! change of an object's content that leaves its row as it was.

mod builder;
mod reader;
#[cfg(test)]
mod tests;

pub use builder::MeshViewBuilder;
pub use reader::Mesh;

use crate::service::{Endpoints, Registry, Resolution};
use crate::virtual_service::{Destination, GatewayRef};
use crate::{
    DestinationRule, ExportTo, Gateway, Hostname, Labels, MeshConfig, Namespace, ObjectKey,
    PeerAuthentication, ReferenceGrant, Secret, Service, ServiceKey, ServicePort, Sidecar, Str,
    VirtualService, Workload, WorkloadId,
};
use imbl::OrdMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// Something that can be read, and so can change.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// The mesh-wide settings.
    MeshConfig,
    /// The rows of all services.
    Services,
    /// The rows of the services of a namespace.
    ServicesIn(Namespace),
    /// A service's content.
    Service(ServiceKey),
    /// A service's endpoints.
    Endpoints(ServiceKey),
    /// The set of service accounts behind a service.
    ServiceAccounts(ServiceKey),
    /// The rows of all VirtualServices.
    VirtualServices,
    /// The rows of the DestinationRules of a namespace.
    DestinationRules(Namespace),
    /// The rows of the DestinationRules of a namespace for exactly this host.
    DestinationRulesFor(Namespace, Hostname),
    /// The rows of the DestinationRules of a namespace for hosts that are patterns.
    WildcardDestinationRules(Namespace),
    /// The rows of all Gateways.
    Gateways,
    /// The Sidecars of a namespace.
    Sidecars(Namespace),
    /// The PeerAuthentications of a namespace.
    PeerAuthentications(Namespace),
    /// The ReferenceGrants of a namespace.
    ReferenceGrants(Namespace),
    /// The selectors of client labels in all VirtualServices.
    SourceSelectors,
    /// The names of the labels by which anything ranks endpoints.
    FailoverLabels,
    /// Whether any service treats clients differently by their node.
    NodeMatters,
    /// The external services that have an endpoint at an address.
    ServicesAt(IpAddr),
    /// The content of a configuration object.
    Object(ObjectKey),
    /// A workload.
    Workload(WorkloadId),
}

/// By what services are chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRow {
    /// The service.
    pub key: ServiceKey,
    /// The object that defines it.
    pub object: ObjectKey,
    /// Its age.
    pub created: i64,
    /// Who may see it.
    pub export_to: ExportTo,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Who defined it.
    pub registry: Registry,
    /// How its endpoints are found.
    pub resolution: Resolution,
    /// The host that it stands for, if it is an alias.
    pub alias: Option<Hostname>,
    /// The workloads behind it; empty if it has no selector.
    pub selector: Labels,
}

impl ServiceRow {
    fn new(service: &Service) -> Self {
        Self {
            key: service.key.clone(),
            object: service.object.clone(),
            created: service.created,
            export_to: service.export_to.clone(),
            ports: service.ports.clone(),
            registry: service.registry,
            resolution: service.resolution,
            alias: service.alias.clone(),
            selector: service.selector.clone(),
        }
    }
}

/// By what VirtualServices are chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServiceRow {
    /// The object.
    pub key: ObjectKey,
    /// Its age.
    pub created: i64,
    /// Its hosts.
    pub hosts: Vec<Hostname>,
    /// Where it applies.
    pub gateways: Vec<GatewayRef>,
    /// Who may see it.
    pub export_to: ExportTo,
    /// Every host and port that it may send traffic to, in order and without duplicates; subsets are left out.
    pub destinations: Vec<(Hostname, Option<u16>)>,
    /// Its annotations (`internal.istio.io/…` among them change how it is used).
    pub annotations: Labels,
}

impl VirtualServiceRow {
    fn new(rule: &VirtualService) -> Self {
        let destinations: BTreeSet<_> =
            rule.destinations().map(|Destination { host, port, .. }| (host.clone(), *port)).collect();
        Self {
            key: rule.meta.key.clone(),
            created: rule.meta.created,
            hosts: rule.hosts.clone(),
            gateways: rule.gateways.clone(),
            export_to: rule.export_to.clone(),
            destinations: destinations.into_iter().collect(),
            annotations: rule.meta.annotations.clone(),
        }
    }
}

/// By what DestinationRules are chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationRuleRow {
    /// The object.
    pub key: ObjectKey,
    /// Its age.
    pub created: i64,
    /// Its host.
    pub host: Hostname,
    /// Who may see it.
    pub export_to: ExportTo,
    /// The clients that it is limited to.
    pub workload_selector: Option<Labels>,
}

/// By what Gateways are chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayRow {
    /// The object.
    pub key: ObjectKey,
    /// Its age.
    pub created: i64,
    /// The labels of its workloads.
    pub selector: Labels,
    /// The services whose workloads it is for instead.
    pub services: Option<BTreeSet<Hostname>>,
}

#[derive(Clone, Debug)]
struct Entry<T, R> {
    value: Arc<T>,
    row: Arc<R>,
}

/// The whole mesh at one moment. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct MeshView {
    generation: u64,
    config: Arc<MeshConfig>,
    services: OrdMap<ServiceKey, Entry<Service, ServiceRow>>,
    services_in: OrdMap<Namespace, OrdMap<ServiceKey, Arc<ServiceRow>>>,
    endpoints: OrdMap<ServiceKey, (Endpoints, Arc<BTreeSet<Str>>)>,
    virtual_services: OrdMap<ObjectKey, Entry<VirtualService, VirtualServiceRow>>,
    destination_rules: OrdMap<Namespace, OrdMap<ObjectKey, Entry<DestinationRule, DestinationRuleRow>>>,
    destination_rule_hosts: OrdMap<Namespace, OrdMap<(Hostname, ObjectKey), Arc<DestinationRuleRow>>>,
    gateways: OrdMap<ObjectKey, Entry<Gateway, GatewayRow>>,
    sidecars: OrdMap<Namespace, OrdMap<ObjectKey, Arc<Sidecar>>>,
    peer_authentications: OrdMap<Namespace, OrdMap<ObjectKey, Arc<PeerAuthentication>>>,
    reference_grants: OrdMap<Namespace, OrdMap<ObjectKey, Arc<ReferenceGrant>>>,
    source_selectors: OrdMap<Labels, usize>,
    failover_labels: OrdMap<Str, usize>,
    node_dependent: OrdMap<ServiceKey, ()>,
    services_at: OrdMap<IpAddr, BTreeSet<ServiceKey>>,
    workloads: OrdMap<WorkloadId, Arc<Workload>>,
    secrets: OrdMap<ObjectKey, Arc<Secret>>,
}

impl MeshView {
    /// Returns how many changes led to this view; larger is newer.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns the mesh-wide settings.
    pub fn config(&self) -> &MeshConfig {
        &self.config
    }

    /// Returns whether this DestinationRule is in use.
    pub fn has_destination_rule(&self, key: &ObjectKey) -> bool {
        self.destination_rules.get(&key.namespace).is_some_and(|rules| rules.contains_key(key))
    }

    /// Returns whether this Gateway is in use.
    pub fn has_gateway(&self, key: &ObjectKey) -> bool {
        self.gateways.contains_key(key)
    }

    /// Returns whether this Sidecar is in use.
    pub fn has_sidecar(&self, key: &ObjectKey) -> bool {
        self.sidecars.get(&key.namespace).is_some_and(|sidecars| sidecars.contains_key(key))
    }

    /// Returns whether this PeerAuthentication is in use.
    pub fn has_peer_authentication(&self, key: &ObjectKey) -> bool {
        self.peer_authentications.get(&key.namespace).is_some_and(|policies| policies.contains_key(key))
    }

    /// Returns whether this ReferenceGrant is in use.
    pub fn has_reference_grant(&self, key: &ObjectKey) -> bool {
        self.reference_grants.get(&key.namespace).is_some_and(|grants| grants.contains_key(key))
    }

    /// Returns whether this secret is in use.
    pub fn has_secret(&self, key: &ObjectKey) -> bool {
        self.secrets.contains_key(key)
    }

    /// Returns the number of services.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// Returns a workload, for those who compile nothing from it.
    pub fn find_workload(&self, id: &WorkloadId) -> Option<&Arc<Workload>> {
        self.workloads.get(id)
    }

    /// Returns the workloads of a namespace, for those who compile nothing from them.
    pub fn workloads_in<'a>(&'a self, namespace: &'a Namespace) -> impl Iterator<Item = &'a Arc<Workload>> {
        let first = WorkloadId { namespace: namespace.clone(), name: "".into() };
        let workloads = self.workloads.range(first..);
        workloads.take_while(move |(id, _)| id.namespace == *namespace).map(|(_, workload)| workload)
    }

    /// Returns every service with its endpoints, for debug pages.
    pub fn registry(&self) -> impl Iterator<Item = (&Arc<Service>, Endpoints)> {
        self.services.iter().map(|(key, entry)| {
            let endpoints = self.endpoints.get(key).map_or_else(|| Arc::from([]), |(all, _)| all.clone());
            (&entry.value, endpoints)
        })
    }
}

/// What changed between two views.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeSet {
    /// The keys that read differently now.
    pub keys: BTreeSet<Key>,
    /// The objects that caused it, for logs.
    pub causes: BTreeSet<ObjectKey>,
}

impl ChangeSet {
    /// Returns whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Adds what changed later.
    pub fn merge(&mut self, later: Self) {
        self.keys.extend(later.keys);
        self.causes.extend(later.causes);
    }
}
