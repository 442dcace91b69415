//! Making the next view, and noting what is different in it.

use super::{ChangeSet, DestinationRuleRow, Entry, GatewayRow, Key, MeshView, ServiceRow, VirtualServiceRow};
use crate::service::{Address, Endpoints, Registry};
use crate::{
    DestinationRule, Endpoint, Gateway, Kind, Labels, MeshConfig, Namespace, ObjectKey, PeerAuthentication,
    ReferenceGrant, Secret, Service, ServiceKey, Sidecar, Str, VirtualService, Workload, WorkloadId,
};
use imbl::OrdMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

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

    /// Adds or replaces a ReferenceGrant.
    pub fn set_reference_grant(&mut self, grant: ReferenceGrant) {
        let key = grant.key.clone();
        let grants = self.view.reference_grants.entry(key.namespace.clone()).or_default();
        if grants.get(&key).is_none_or(|old| **old != grant) {
            grants.insert(key.clone(), Arc::new(grant));
            self.changed(Key::ReferenceGrants(key.namespace));
        }
    }

    /// Removes a ReferenceGrant.
    pub fn remove_reference_grant(&mut self, key: &ObjectKey) {
        if remove_nested(&mut self.view.reference_grants, &key.namespace, key) {
            self.changed(Key::ReferenceGrants(key.namespace.clone()));
        }
    }

    /// Adds or replaces a workload.
    pub fn set_workload(&mut self, workload: impl Into<Arc<Workload>>) {
        let workload = workload.into();
        let id = workload.id.clone();
        if self.view.workloads.get(&id).is_none_or(|old| *old != workload) {
            self.view.workloads.insert(id.clone(), workload);
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
            Kind::ReferenceGrant => self.remove_reference_grant(key),
            Kind::Secret | Kind::ConfigMap => self.remove_secret(key),
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
