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

use crate::service::{Address, Endpoints, Registry, Resolution};
use crate::virtual_service::{Destination, GatewayRef};
use crate::{
    DestinationRule, Endpoint, ExportTo, Gateway, Hostname, Kind, Labels, MeshConfig, Namespace, ObjectKey,
    PeerAuthentication, Secret, Service, ServiceKey, ServicePort, Sidecar, Str, VirtualService, Workload,
    WorkloadId,
};
use imbl::OrdMap;
use std::cell::RefCell;
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

    /// Returns whether this secret is in use.
    pub fn has_secret(&self, key: &ObjectKey) -> bool {
        self.secrets.contains_key(key)
    }

    /// Returns the number of services.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// Returns every service with its endpoints, for debug pages.
    pub fn registry(&self) -> impl Iterator<Item = (&Arc<Service>, Endpoints)> {
        self.services.iter().map(|(key, entry)| {
            let endpoints = self.endpoints.get(key).map_or_else(|| Arc::from([]), |(all, _)| all.clone());
            (&entry.value, endpoints)
        })
    }
}

/// A reader of a [`MeshView`] that records what it was asked.
#[derive(Debug)]
pub struct Mesh<'a> {
    view: &'a MeshView,
    reads: RefCell<BTreeSet<Key>>,
}

impl<'a> Mesh<'a> {
    /// Starts a recording.
    pub fn new(view: &'a MeshView) -> Self {
        Self { view, reads: RefCell::default() }
    }

    /// Ends the recording and returns everything that was read, found or not.
    pub fn into_reads(self) -> BTreeSet<Key> {
        self.reads.into_inner()
    }

    fn record(&self, key: Key) {
        self.reads.borrow_mut().insert(key);
    }

    /// Returns the mesh-wide settings.
    pub fn config(&self) -> &'a MeshConfig {
        self.record(Key::MeshConfig);
        &self.view.config
    }

    /// Returns the rows of all services, by host and then by namespace.
    pub fn services(&self) -> impl Iterator<Item = &'a Arc<ServiceRow>> + use<'a> {
        self.record(Key::Services);
        self.view.services.values().map(|entry| &entry.row)
    }

    /// Returns the rows of the services of `namespace`, by host.
    pub fn services_in(&self, namespace: &Namespace) -> impl Iterator<Item = &'a Arc<ServiceRow>> + use<'a> {
        self.record(Key::ServicesIn(namespace.clone()));
        self.view.services_in.get(namespace).into_iter().flat_map(OrdMap::values)
    }

    /// Returns the row of a service.
    pub fn service_row(&self, key: &ServiceKey) -> Option<&'a Arc<ServiceRow>> {
        self.record(Key::ServicesIn(key.namespace.clone()));
        self.view.services.get(key).map(|entry| &entry.row)
    }

    /// Returns a service.
    pub fn service(&self, key: &ServiceKey) -> Option<&'a Arc<Service>> {
        self.record(Key::Service(key.clone()));
        self.view.services.get(key).map(|entry| &entry.value)
    }

    /// Returns the endpoints of a service, over all its ports; none if there are none.
    pub fn endpoints(&self, key: &ServiceKey) -> &'a [Endpoint] {
        self.record(Key::Endpoints(key.clone()));
        self.view.endpoints.get(key).map_or(&[], |(endpoints, _)| endpoints)
    }

    /// Returns the service accounts of a service's endpoints (`ns/name` forms are not resolved).
    pub fn service_accounts(&self, key: &ServiceKey) -> Option<&'a BTreeSet<Str>> {
        self.record(Key::ServiceAccounts(key.clone()));
        self.view.endpoints.get(key).map(|(_, accounts)| accounts.as_ref())
    }

    /// Returns whether any service treats clients differently by their node.
    pub fn node_matters(&self) -> bool {
        self.record(Key::NodeMatters);
        !self.view.node_dependent.is_empty()
    }

    /// Returns the external services (ServiceEntries) that have an endpoint at `ip`.
    pub fn services_at(&self, ip: IpAddr) -> impl Iterator<Item = &'a ServiceKey> + use<'a> {
        self.record(Key::ServicesAt(ip));
        self.view.services_at.get(&ip).into_iter().flatten()
    }

    /// Returns the rows of all VirtualServices, by namespace and then by name. Those without hosts, to which
    /// others delegate, are not among them.
    pub fn virtual_services(&self) -> impl Iterator<Item = &'a Arc<VirtualServiceRow>> + use<'a> {
        self.record(Key::VirtualServices);
        self.view.virtual_services.values().map(|entry| &entry.row)
    }

    /// Returns the row of a VirtualService.
    pub fn virtual_service_row(&self, key: &ObjectKey) -> Option<&'a Arc<VirtualServiceRow>> {
        self.record(Key::VirtualServices);
        self.view.virtual_services.get(key).map(|entry| &entry.row)
    }

    /// Returns a VirtualService, with the rules that it delegates to in place.
    pub fn virtual_service(&self, key: &ObjectKey) -> Option<&'a Arc<VirtualService>> {
        self.record(Key::Object(key.clone()));
        self.view.virtual_services.get(key).map(|entry| &entry.value)
    }

    /// Returns the rows of the DestinationRules of `namespace`, by name.
    pub fn destination_rules(
        &self,
        namespace: &Namespace,
    ) -> impl Iterator<Item = &'a Arc<DestinationRuleRow>> + use<'a> {
        self.record(Key::DestinationRules(namespace.clone()));
        self.view
            .destination_rules
            .get(namespace)
            .into_iter()
            .flat_map(OrdMap::values)
            .map(|entry| &entry.row)
    }

    /// Returns the rows of the DestinationRules of `namespace` that are for `host`: those for exactly this host, and
    /// those for patterns that it is within, each by name.
    pub fn destination_rules_for(
        &self,
        namespace: &Namespace,
        host: &Hostname,
    ) -> impl Iterator<Item = &'a Arc<DestinationRuleRow>> + use<'a> {
        self.record(Key::DestinationRulesFor(namespace.clone(), host.clone()));
        self.record(Key::WildcardDestinationRules(namespace.clone()));
        let hosts = self.view.destination_rule_hosts.get(namespace);
        let (exact, needle) = (host.clone(), host.clone());
        // Sorts before every key that an object can have.
        let first = (host.clone(), ObjectKey::new(Kind::Service, "", ""));
        let exact = hosts
            .into_iter()
            .flat_map(move |hosts| hosts.range(first.clone()..))
            .take_while(move |((host, _), _)| *host == exact);
        // Patterns begin with `*`, which sorts before everything that a host may begin with.
        let wildcards = hosts
            .into_iter()
            .flat_map(OrdMap::iter)
            .take_while(|((host, _), _)| host.is_wildcard())
            .filter(move |((host, _), _)| *host != needle && needle.is_within(host));
        exact.chain(wildcards).map(|(_, row)| row)
    }

    /// Returns a DestinationRule.
    pub fn destination_rule(&self, key: &ObjectKey) -> Option<&'a Arc<DestinationRule>> {
        self.record(Key::Object(key.clone()));
        self.view.destination_rules.get(&key.namespace)?.get(key).map(|entry| &entry.value)
    }

    /// Returns the rows of all Gateways, by namespace and then by name.
    pub fn gateways(&self) -> impl Iterator<Item = &'a Arc<GatewayRow>> + use<'a> {
        self.record(Key::Gateways);
        self.view.gateways.values().map(|entry| &entry.row)
    }

    /// Returns a Gateway.
    pub fn gateway(&self, key: &ObjectKey) -> Option<&'a Arc<Gateway>> {
        self.record(Key::Object(key.clone()));
        self.view.gateways.get(key).map(|entry| &entry.value)
    }

    /// Returns the Sidecars of `namespace`, by name.
    pub fn sidecars(&self, namespace: &Namespace) -> impl Iterator<Item = &'a Arc<Sidecar>> + use<'a> {
        self.record(Key::Sidecars(namespace.clone()));
        self.view.sidecars.get(namespace).into_iter().flat_map(OrdMap::values)
    }

    /// Returns the PeerAuthentications of `namespace`, by name.
    pub fn peer_authentications(
        &self,
        namespace: &Namespace,
    ) -> impl Iterator<Item = &'a Arc<PeerAuthentication>> + use<'a> {
        self.record(Key::PeerAuthentications(namespace.clone()));
        self.view.peer_authentications.get(namespace).into_iter().flat_map(OrdMap::values)
    }

    /// Returns the distinct selectors of client labels in all VirtualServices.
    pub fn source_selectors(&self) -> impl Iterator<Item = &'a Labels> + use<'a> {
        self.record(Key::SourceSelectors);
        self.view.source_selectors.keys()
    }

    /// Returns the names of the labels by which some DestinationRule or service ranks endpoints against its
    /// client's.
    pub fn failover_labels(&self) -> impl Iterator<Item = &'a Str> + use<'a> {
        self.record(Key::FailoverLabels);
        self.view.failover_labels.keys()
    }

    /// Returns a workload.
    pub fn workload(&self, id: &WorkloadId) -> Option<&'a Arc<Workload>> {
        self.record(Key::Workload(id.clone()));
        self.view.workloads.get(id)
    }

    /// Returns a secret that gateways may serve.
    pub fn secret(&self, key: &ObjectKey) -> Option<&'a Arc<Secret>> {
        self.record(Key::Object(key.clone()));
        self.view.secrets.get(key)
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

/// Makes the next [`MeshView`] and notes what is different in it. Writing what is there already changes nothing.
#[derive(Debug, Default)]
pub struct MeshViewBuilder {
    view: MeshView,
    changes: ChangeSet,
}

impl MeshViewBuilder {
    /// Starts from `view`.
    pub fn new(view: MeshView) -> Self {
        Self { view, changes: ChangeSet::default() }
    }

    /// Returns what has been built so far.
    pub fn view(&self) -> &MeshView {
        &self.view
    }

    /// Notes an object that is the reason for the changes, for logs.
    pub fn cause(&mut self, object: ObjectKey) {
        self.changes.causes.insert(object);
    }

    /// Returns the new view and the changes since the last call, or nothing if it reads the same. A cause
    /// without a change is forgotten.
    pub fn publish(&mut self) -> Option<(MeshView, ChangeSet)> {
        let changes = std::mem::take(&mut self.changes);
        if changes.is_empty() {
            return None;
        }
        self.view.generation += 1;
        Some((self.view.clone(), changes))
    }

    fn changed(&mut self, key: Key) {
        self.changes.keys.insert(key);
    }

    /// Replaces the mesh-wide settings.
    pub fn set_config(&mut self, config: MeshConfig) {
        if *self.view.config != config {
            self.view.config = Arc::new(config);
            self.changed(Key::MeshConfig);
        }
    }

    /// Adds or replaces a service.
    pub fn set_service(&mut self, service: Service) {
        let key = service.key.clone();
        let row = ServiceRow::new(&service);
        let old = self.view.services.get(&key);
        if old.is_some_and(|old| *old.value == service) {
            return;
        }
        let same_row = old.filter(|old| *old.row == row).map(|old| old.row.clone());
        let row_changed = same_row.is_none();
        let row = same_row.unwrap_or_else(|| Arc::new(row));
        let ranks = ranks_of_service(old.map(|old| old.value.as_ref()));
        self.replace_failover_labels(&ranks, &ranks_of_service(Some(&service)));
        self.set_node_dependent(&key, service.node_local);
        self.view.services.insert(key.clone(), Entry { value: Arc::new(service), row: row.clone() });
        if row_changed {
            self.view.services_in.entry(key.namespace.clone()).or_default().insert(key.clone(), row);
            self.changed(Key::Services);
            self.changed(Key::ServicesIn(key.namespace.clone()));
        }
        self.changed(Key::Service(key));
    }

    fn set_node_dependent(&mut self, key: &ServiceKey, dependent: bool) {
        let before = self.view.node_dependent.is_empty();
        if dependent {
            self.view.node_dependent.insert(key.clone(), ());
        } else {
            self.view.node_dependent.remove(key);
        }
        if self.view.node_dependent.is_empty() != before {
            self.changed(Key::NodeMatters);
        }
    }

    /// Removes a service and its endpoints.
    pub fn remove_service(&mut self, key: &ServiceKey) {
        self.set_endpoints(key, Arc::from([]));
        if let Some(old) = self.view.services.remove(key) {
            self.replace_failover_labels(&ranks_of_service(Some(&old.value)), &BTreeSet::new());
            remove_nested(&mut self.view.services_in, &key.namespace, key);
            self.set_node_dependent(key, false);
            self.changed(Key::Services);
            self.changed(Key::ServicesIn(key.namespace.clone()));
            self.changed(Key::Service(key.clone()));
        }
    }

    /// Replaces the endpoints of a service, which must be there.
    pub fn set_endpoints(&mut self, key: &ServiceKey, endpoints: Endpoints) {
        let accounts: BTreeSet<Str> =
            endpoints.iter().filter_map(|endpoint| endpoint.service_account.clone()).collect();
        let (same, same_accounts) = match self.view.endpoints.get(key) {
            Some((old, old_accounts)) => (*old == endpoints, **old_accounts == accounts),
            None => (endpoints.is_empty(), accounts.is_empty()),
        };
        if same {
            return;
        }
        if self.view.services.get(key).is_some_and(|entry| entry.value.registry == Registry::External) {
            self.replace_addresses(key, &endpoints);
        }
        if endpoints.is_empty() {
            self.view.endpoints.remove(key);
        } else {
            self.view.endpoints.insert(key.clone(), (endpoints, Arc::new(accounts)));
        }
        self.changed(Key::Endpoints(key.clone()));
        if !same_accounts {
            self.changed(Key::ServiceAccounts(key.clone()));
        }
    }

    fn replace_addresses(&mut self, key: &ServiceKey, endpoints: &[Endpoint]) {
        let addresses = |endpoints: &[Endpoint]| -> BTreeSet<IpAddr> {
            let primary = endpoints.iter().filter_map(|endpoint| match endpoint.address {
                Address::Ip(ip) => Some(ip),
                Address::Dns(_) | Address::Unix(_) => None,
            });
            primary.chain(endpoints.iter().flat_map(|e| e.additional_addresses.iter().copied())).collect()
        };
        let before = self.view.endpoints.get(key).map(|(old, _)| addresses(old)).unwrap_or_default();
        let after = addresses(endpoints);
        for gone in before.difference(&after) {
            if let Some(services) = self.view.services_at.get_mut(gone) {
                services.remove(key);
                if services.is_empty() {
                    self.view.services_at.remove(gone);
                }
            }
            self.changed(Key::ServicesAt(*gone));
        }
        for added in after.difference(&before) {
            self.view.services_at.entry(*added).or_default().insert(key.clone());
            self.changed(Key::ServicesAt(*added));
        }
    }

    /// Adds or replaces a VirtualService, whose delegates have been put in place.
    pub fn set_virtual_service(&mut self, rule: VirtualService) {
        let key = rule.meta.key.clone();
        let row = VirtualServiceRow::new(&rule);
        let old = self.view.virtual_services.get(&key).cloned();
        if old.as_ref().is_some_and(|old| *old.value == rule) {
            return;
        }
        self.replace_selectors(old.as_ref().map(|old| old.value.as_ref()), Some(&rule));
        if old.is_none_or(|old| *old.row != row) {
            self.changed(Key::VirtualServices);
        }
        let entry = Entry { value: Arc::new(rule), row: Arc::new(row) };
        self.view.virtual_services.insert(key.clone(), entry);
        self.changed(Key::Object(key));
    }

    /// Removes a VirtualService.
    pub fn remove_virtual_service(&mut self, key: &ObjectKey) {
        if let Some(old) = self.view.virtual_services.remove(key) {
            self.replace_selectors(Some(&old.value), None);
            self.changed(Key::VirtualServices);
            self.changed(Key::Object(key.clone()));
        }
    }

    fn replace_selectors(&mut self, old: Option<&VirtualService>, new: Option<&VirtualService>) {
        let (before, after) = (selectors_of(old), selectors_of(new));
        if recount(&mut self.view.source_selectors, &before, &after) {
            self.changed(Key::SourceSelectors);
        }
    }

    fn replace_failover_labels(&mut self, before: &BTreeSet<Str>, after: &BTreeSet<Str>) {
        if recount(&mut self.view.failover_labels, before, after) {
            self.changed(Key::FailoverLabels);
        }
    }

    /// Adds or replaces a DestinationRule.
    pub fn set_destination_rule(&mut self, rule: DestinationRule) {
        let key = rule.meta.key.clone();
        let row = DestinationRuleRow {
            key: key.clone(),
            created: rule.meta.created,
            host: rule.host.clone(),
            export_to: rule.export_to.clone(),
            workload_selector: rule.workload_selector.clone(),
        };
        let rules = self.view.destination_rules.entry(key.namespace.clone()).or_default();
        let old = rules.get(&key);
        if old.is_some_and(|old| *old.value == rule) {
            return;
        }
        let ranks = ranks_of_rule(old.map(|old| old.value.as_ref()));
        let new_ranks = ranks_of_rule(Some(&rule));
        let old_row = old.map(|old| old.row.clone());
        let row = Arc::new(row);
        rules.insert(key.clone(), Entry { value: Arc::new(rule), row: row.clone() });
        self.replace_failover_labels(&ranks, &new_ranks);
        if old_row.as_ref().is_none_or(|old| *old != row) {
            self.replace_destination_rule_host(old_row.as_deref(), Some(row));
        }
        self.changed(Key::Object(key));
    }

    fn replace_destination_rule_host(
        &mut self,
        old: Option<&DestinationRuleRow>,
        new: Option<Arc<DestinationRuleRow>>,
    ) {
        for row in old.into_iter().chain(new.as_deref()) {
            let namespace = row.key.namespace.clone();
            self.changed(Key::DestinationRules(namespace.clone()));
            self.changed(match row.host.is_wildcard() {
                true => Key::WildcardDestinationRules(namespace.clone()),
                false => Key::DestinationRulesFor(namespace.clone(), row.host.clone()),
            });
        }
        if let Some(old) = old {
            let key = (old.host.clone(), old.key.clone());
            remove_nested(&mut self.view.destination_rule_hosts, &old.key.namespace, &key);
        }
        if let Some(new) = new {
            let hosts = self.view.destination_rule_hosts.entry(new.key.namespace.clone()).or_default();
            hosts.insert((new.host.clone(), new.key.clone()), new);
        }
    }

    /// Removes a DestinationRule.
    pub fn remove_destination_rule(&mut self, key: &ObjectKey) {
        let rules = self.view.destination_rules.get(&key.namespace);
        let Some(old) = rules.and_then(|rules| rules.get(key)).cloned() else { return };
        remove_nested(&mut self.view.destination_rules, &key.namespace, key);
        self.replace_failover_labels(&ranks_of_rule(Some(&old.value)), &BTreeSet::new());
        self.replace_destination_rule_host(Some(&old.row), None);
        self.changed(Key::Object(key.clone()));
    }

    /// Adds or replaces a Gateway.
    pub fn set_gateway(&mut self, gateway: Gateway) {
        let key = gateway.meta.key.clone();
        let row = GatewayRow {
            key: key.clone(),
            created: gateway.meta.created,
            selector: gateway.selector.clone(),
            services: gateway.services.clone(),
        };
        let old = self.view.gateways.get(&key);
        if old.is_some_and(|old| *old.value == gateway) {
            return;
        }
        let row_changed = old.is_none_or(|old| *old.row != row);
        self.view.gateways.insert(key.clone(), Entry { value: Arc::new(gateway), row: Arc::new(row) });
        if row_changed {
            self.changed(Key::Gateways);
        }
        self.changed(Key::Object(key));
    }

    /// Removes a Gateway.
    pub fn remove_gateway(&mut self, key: &ObjectKey) {
        if self.view.gateways.remove(key).is_some() {
            self.changed(Key::Gateways);
            self.changed(Key::Object(key.clone()));
        }
    }

    /// Adds or replaces a Sidecar.
    pub fn set_sidecar(&mut self, sidecar: Sidecar) {
        let key = sidecar.meta.key.clone();
        let sidecars = self.view.sidecars.entry(key.namespace.clone()).or_default();
        if sidecars.get(&key).is_none_or(|old| **old != sidecar) {
            sidecars.insert(key.clone(), Arc::new(sidecar));
            self.changed(Key::Sidecars(key.namespace));
        }
    }

    /// Removes a Sidecar.
    pub fn remove_sidecar(&mut self, key: &ObjectKey) {
        if remove_nested(&mut self.view.sidecars, &key.namespace, key) {
            self.changed(Key::Sidecars(key.namespace.clone()));
        }
    }

    /// Adds or replaces a PeerAuthentication.
    pub fn set_peer_authentication(&mut self, policy: PeerAuthentication) {
        let key = policy.meta.key.clone();
        let policies = self.view.peer_authentications.entry(key.namespace.clone()).or_default();
        if policies.get(&key).is_none_or(|old| **old != policy) {
            policies.insert(key.clone(), Arc::new(policy));
            self.changed(Key::PeerAuthentications(key.namespace));
        }
    }

    /// Removes a PeerAuthentication.
    pub fn remove_peer_authentication(&mut self, key: &ObjectKey) {
        if remove_nested(&mut self.view.peer_authentications, &key.namespace, key) {
            self.changed(Key::PeerAuthentications(key.namespace.clone()));
        }
    }

    /// Adds or replaces a workload.
    pub fn set_workload(&mut self, workload: Workload) {
        let id = workload.id.clone();
        if self.view.workloads.get(&id).is_none_or(|old| **old != workload) {
            self.view.workloads.insert(id.clone(), Arc::new(workload));
            self.changed(Key::Workload(id));
        }
    }

    /// Removes a workload.
    pub fn remove_workload(&mut self, id: &WorkloadId) {
        if self.view.workloads.remove(id).is_some() {
            self.changed(Key::Workload(id.clone()));
        }
    }

    /// Adds or replaces a secret.
    pub fn set_secret(&mut self, secret: Secret) {
        let key = secret.key.clone();
        if self.view.secrets.get(&key).is_none_or(|old| **old != secret) {
            self.view.secrets.insert(key.clone(), Arc::new(secret));
            self.changed(Key::Object(key));
        }
    }

    /// Removes a secret.
    pub fn remove_secret(&mut self, key: &ObjectKey) {
        if self.view.secrets.remove(key).is_some() {
            self.changed(Key::Object(key.clone()));
        }
    }

    /// Removes the configuration object, of whatever kind it is. Kinds that are made of several objects
    /// (services, workloads) are left alone.
    pub fn remove_object(&mut self, key: &ObjectKey) {
        match key.kind {
            Kind::VirtualService => self.remove_virtual_service(key),
            Kind::DestinationRule => self.remove_destination_rule(key),
            Kind::Gateway => self.remove_gateway(key),
            Kind::Sidecar => self.remove_sidecar(key),
            Kind::PeerAuthentication => self.remove_peer_authentication(key),
            Kind::Secret => self.remove_secret(key),
            _ => {}
        }
    }
}

/// Counts what holders of `before` hold now that it is `after`; returns whether something appeared or vanished.
fn recount<K: Ord + Clone>(counts: &mut OrdMap<K, usize>, before: &BTreeSet<K>, after: &BTreeSet<K>) -> bool {
    let mut changed = false;
    for gone in before.difference(after) {
        match counts.get(gone).copied() {
            Some(count) if count > 1 => {
                counts.insert(gone.clone(), count - 1);
            }
            _ => changed |= counts.remove(gone).is_some(),
        }
    }
    for added in after.difference(before) {
        let count = counts.get(added).copied().unwrap_or(0);
        counts.insert(added.clone(), count + 1);
        changed |= count == 0;
    }
    changed
}

fn ranks_of_rule(rule: Option<&DestinationRule>) -> BTreeSet<Str> {
    rule.into_iter().flat_map(DestinationRule::failover_labels).map(Str::from).collect()
}

fn ranks_of_service(service: Option<&Service>) -> BTreeSet<Str> {
    let labels = service.map_or(&[] as &[&str], |service| service.traffic_distribution.labels());
    labels.iter().map(|&label| label.into()).collect()
}

fn selectors_of(rule: Option<&VirtualService>) -> BTreeSet<Labels> {
    rule.into_iter().flat_map(VirtualService::source_selectors).cloned().collect()
}

/// Removes `key` below `namespace`, and the namespace when it is empty.
fn remove_nested<K: Ord + Clone, V: Clone>(
    map: &mut OrdMap<Namespace, OrdMap<K, V>>,
    namespace: &Namespace,
    key: &K,
) -> bool {
    let Some(inner) = map.get_mut(namespace) else { return false };
    let removed = inner.remove(key).is_some();
    if inner.is_empty() {
        map.remove(namespace);
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Meta;
    use crate::service::TrafficDistribution;
    use crate::service::{Health, Locality, Vip};

    fn key(host: &str) -> ServiceKey {
        ServiceKey { host: host.into(), namespace: "app".into() }
    }

    fn service(host: &str, registry: Registry) -> Service {
        Service {
            key: key(host),
            object: ObjectKey::new(Kind::Service, "app", host),
            created: 0,
            labels: Labels::new(),
            annotations: Labels::new(),
            vips: Vec::new(),
            ports: Vec::new(),
            resolution: Resolution::ClientSide,
            registry,
            mesh_external: false,
            export_to: ExportTo::All,
            alias: None,
            selector: Labels::new(),
            subject_alt_names: Vec::new(),
            node_local: false,
            traffic_distribution: TrafficDistribution::Any,
            publish_not_ready: false,
        }
    }

    fn endpoint(ip: &str, account: &str) -> Endpoint {
        Endpoint {
            address: Address::Ip(ip.parse().unwrap()),
            additional_addresses: Vec::new(),
            port: 80,
            service_port: "http".into(),
            labels: Labels::new(),
            service_account: Some(account.into()),
            namespace: "app".into(),
            workload: "w".into(),
            locality: Locality::default(),
            network: "".into(),
            cluster: "".into(),
            node: None,
            weight: None,
            health: Health::Healthy,
            mtls: false,
        }
    }

    fn changes(builder: &mut MeshViewBuilder) -> BTreeSet<Key> {
        builder.publish().map(|(_, changes)| changes.keys).unwrap_or_default()
    }

    #[test]
    fn writing_what_is_there_publishes_nothing() {
        let mut builder = MeshViewBuilder::default();
        builder.set_service(service("a", Registry::Kubernetes));
        builder.set_endpoints(&key("a"), Arc::from([endpoint("10.0.0.1", "sa")]));
        assert!(builder.publish().is_some());
        builder.cause(ObjectKey::new(Kind::Service, "app", "a"));
        builder.set_service(service("a", Registry::Kubernetes));
        builder.set_endpoints(&key("a"), Arc::from([endpoint("10.0.0.1", "sa")]));
        assert!(builder.publish().is_none());
    }

    #[test]
    fn a_new_address_of_the_same_account_changes_the_endpoints_only() {
        let mut builder = MeshViewBuilder::default();
        builder.set_service(service("a", Registry::Kubernetes));
        builder.set_endpoints(&key("a"), Arc::from([endpoint("10.0.0.1", "sa")]));
        builder.publish();
        builder.set_endpoints(&key("a"), Arc::from([endpoint("10.0.0.2", "sa")]));
        assert_eq!(changes(&mut builder), BTreeSet::from([Key::Endpoints(key("a"))]));
        builder.set_endpoints(&key("a"), Arc::from([endpoint("10.0.0.2", "other")]));
        let expected = BTreeSet::from([Key::Endpoints(key("a")), Key::ServiceAccounts(key("a"))]);
        assert_eq!(changes(&mut builder), expected);
    }

    #[test]
    fn a_change_outside_the_row_leaves_the_rows_alone() {
        let mut builder = MeshViewBuilder::default();
        builder.set_service(service("a", Registry::Kubernetes));
        builder.publish();
        let moved = Service {
            vips: vec![Vip::Ip("10.96.0.1".parse().unwrap())],
            ..service("a", Registry::Kubernetes)
        };
        builder.set_service(moved);
        assert_eq!(changes(&mut builder), BTreeSet::from([Key::Service(key("a"))]));
    }

    #[test]
    fn external_services_are_found_by_the_addresses_of_their_endpoints() {
        let mut builder = MeshViewBuilder::default();
        builder.set_service(service("ext", Registry::External));
        builder.set_endpoints(&key("ext"), Arc::from([endpoint("10.0.0.1", "sa")]));
        let (view, _) = builder.publish().unwrap();
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let mesh = Mesh::new(&view);
        assert_eq!(mesh.services_at(ip).collect::<Vec<_>>(), [&key("ext")]);
        assert_eq!(mesh.into_reads(), BTreeSet::from([Key::ServicesAt(ip)]));
        builder.remove_service(&key("ext"));
        assert!(changes(&mut builder).contains(&Key::ServicesAt(ip)));
        assert_eq!(Mesh::new(builder.view()).services_at(ip).count(), 0);
    }

    #[test]
    fn destination_rules_are_found_by_host_and_pattern() {
        let rule = |name: &str, host: &str| DestinationRule {
            meta: Meta {
                key: ObjectKey::new(Kind::DestinationRule, "app", name),
                created: 0,
                labels: Labels::new(),
                annotations: Labels::new(),
            },
            host: host.into(),
            export_to: ExportTo::All,
            workload_selector: None,
            policy: None,
            subsets: Vec::new(),
        };
        let mut builder = MeshViewBuilder::default();
        for (name, host) in [("b", "b.org"), ("a2", "a.org"), ("a1", "a.org"), ("all", "*"), ("net", "*.net")]
        {
            builder.set_destination_rule(rule(name, host));
        }
        let (view, _) = builder.publish().unwrap();
        let mesh = Mesh::new(&view);
        let app = Namespace::new("app");
        let found = |host: &str| -> Vec<Str> {
            mesh.destination_rules_for(&app, &host.into()).map(|row| row.key.name.clone()).collect()
        };
        assert_eq!(found("a.org"), ["a1", "a2", "all"].map(Str::from));
        assert_eq!(found("x.net"), ["all", "net"].map(Str::from));
        assert_eq!(found("*.net"), ["net", "all"].map(Str::from));

        // Moving a rule to another host is a change for both, and nobody else's.
        builder.set_destination_rule(rule("b", "c.org"));
        let changed = changes(&mut builder);
        assert!(changed.contains(&Key::DestinationRulesFor(app.clone(), "b.org".into())));
        assert!(changed.contains(&Key::DestinationRulesFor(app.clone(), "c.org".into())));
        assert!(!changed.contains(&Key::WildcardDestinationRules(app.clone())));
        builder.remove_destination_rule(&ObjectKey::new(Kind::DestinationRule, "app", "all"));
        assert!(changes(&mut builder).contains(&Key::WildcardDestinationRules(app.clone())));
        assert_eq!(Mesh::new(builder.view()).destination_rules_for(&app, &"b.org".into()).count(), 0);
    }

    #[test]
    fn labels_that_rank_endpoints_are_counted() {
        let near = Service {
            traffic_distribution: TrafficDistribution::PreferSameZone,
            ..service("a", Registry::Kubernetes)
        };
        let mut builder = MeshViewBuilder::default();
        builder.set_service(near.clone());
        builder.set_service(Service { key: key("b"), ..near.clone() });
        assert!(changes(&mut builder).contains(&Key::FailoverLabels));
        assert_eq!(Mesh::new(builder.view()).failover_labels().count(), 3);
        builder.remove_service(&key("a"));
        assert!(!changes(&mut builder).contains(&Key::FailoverLabels));
        builder.set_service(Service { key: key("b"), ..service("b", Registry::Kubernetes) });
        assert!(changes(&mut builder).contains(&Key::FailoverLabels));
        assert_eq!(Mesh::new(builder.view()).failover_labels().count(), 0);
    }

    #[test]
    fn what_was_not_found_was_read_as_well() {
        let view = MeshView::default();
        let mesh = Mesh::new(&view);
        assert!(mesh.service(&key("a")).is_none());
        assert_eq!(mesh.into_reads(), BTreeSet::from([Key::Service(key("a"))]));
    }
}
