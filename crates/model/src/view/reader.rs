//! Reading a view, and remembering what was read.

use super::{DestinationRuleRow, GatewayRow, Key, MeshView, ServiceRow, VirtualServiceRow};
use crate::{
    DestinationRule, Endpoint, Gateway, Hostname, Kind, Labels, MeshConfig, Namespace, ObjectKey,
    PeerAuthentication, ReferenceGrant, Secret, Service, ServiceKey, Sidecar, Str, VirtualService, Workload,
    WorkloadId,
};
use imbl::OrdMap;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

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

    /// Returns the ReferenceGrants of `namespace`, by name.
    pub fn reference_grants(
        &self,
        namespace: &Namespace,
    ) -> impl Iterator<Item = &'a Arc<ReferenceGrant>> + use<'a> {
        self.record(Key::ReferenceGrants(namespace.clone()));
        self.view.reference_grants.get(namespace).into_iter().flat_map(OrdMap::values)
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
