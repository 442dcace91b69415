//! Services and their endpoints, which several objects make together.
//!
//! Every Service and ServiceEntry *contributes* to one or more hosts: the service as it describes it, and the
//! endpoints that it leads to. The contributions to one host of one namespace are joined. What an object's
//! contributions rest on (slices, pods, nodes, WorkloadEntries) only marks it dirty; [`Index::registry_settle`]
//! works out the dirty ones, each once, however many events there were.

mod endpoints;

use crate::doubt::{Doubts, Verdict};
use crate::store::Index;
use crate::workloads::{self, Member};
use endpoints::entry_member_endpoints;
use k8s_api::core::{EndpointSlice, Namespace, Pod};
use k8s_api::object::Object;
use k8s_api::service_entry::{Resolution as EntryResolution, ServiceEntry};
use k8s_api::workload_entry::{WorkloadEntry, WorkloadEntrySpec};
use model::service::Registry as Source;
use model::{Endpoint, Kind, Labels, Locality, ObjectKey, Origin, ServiceKey, Workload, WorkloadId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// Namespace and name.
pub(crate) type Named = (String, String);

/// What services are made of.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    services: BTreeMap<Named, (Arc<Object>, Origin)>,
    entries: BTreeMap<Named, (Arc<Object>, Origin)>,
    slices: BTreeMap<Named, BTreeMap<String, Arc<Object>>>,
    /// The Service of each slice.
    slice_service: BTreeMap<Named, Named>,
    /// The Services with slices that name a pod.
    pod_services: BTreeMap<Named, BTreeSet<Named>>,
    /// The Services with slices that name an address and nobody who has it.
    address_services: BTreeMap<IpAddr, BTreeSet<Named>>,
    pods: BTreeMap<Named, (Arc<Object>, Member)>,
    pod_by_ip: BTreeMap<IpAddr, Named>,
    nodes: BTreeMap<String, Locality>,
    workload_entries: BTreeMap<Named, (Arc<Object>, Member)>,
    namespaces: BTreeMap<String, Arc<Object>>,
    contributions: BTreeMap<ServiceKey, BTreeMap<ObjectKey, Contribution>>,
    contributed: BTreeMap<ObjectKey, BTreeSet<ServiceKey>>,
    pub(crate) dirty: BTreeSet<ObjectKey>,
    pub(crate) doubts: Doubts,
}

#[derive(Clone, Debug)]
struct Contribution {
    service: model::Service,
    endpoints: Vec<Endpoint>,
}

pub(crate) fn service_object(named: &Named) -> ObjectKey {
    ObjectKey::new(Kind::Service, named.0.as_str(), named.1.as_str())
}

fn entry_object(named: &Named) -> ObjectKey {
    ObjectKey::new(Kind::ServiceEntry, named.0.as_str(), named.1.as_str())
}

impl Index {
    /// Takes in an object that services are made of. Returns whether it is one.
    pub(crate) fn registry_apply(&mut self, object: &Arc<Object>, origin: &Origin) -> bool {
        let key = object.key();
        let named: Named = (key.namespace, key.name);
        match object.as_ref() {
            Object::Service(_) => {
                self.registry.dirty.insert(service_object(&named));
                if !self.registry.services.contains_key(&named) {
                    self.registry.doubts.reappeared(&named);
                }
                self.registry.services.insert(named, (object.clone(), origin.clone()));
            }
            Object::ServiceEntry(_) => {
                self.registry.dirty.insert(entry_object(&named));
                self.registry.entries.insert(named, (object.clone(), origin.clone()));
            }
            Object::EndpointSlice(slice) => self.registry.set_slice(named, object, slice),
            Object::Pod(pod) => self.set_pod(named, object, pod),
            Object::Node(node) => {
                let locality = workloads::node_locality(node);
                if self.registry.nodes.get(&named.1) != Some(&locality) {
                    self.registry.nodes.insert(named.1.clone(), locality);
                    self.refresh_pods_on(&named.1);
                }
            }
            Object::WorkloadEntry(entry) => self.set_workload_entry(named, object, entry, origin),
            Object::Namespace(_) => {
                self.registry.namespaces.insert(named.1.clone(), object.clone());
                self.registry.touch_namespace(&named.1);
            }
            _ => return false,
        }
        true
    }

    /// Removes an object that services are made of. Returns whether it is one.
    pub(crate) fn registry_remove(&mut self, object: &Object) -> bool {
        let key = object.key();
        let named: Named = (key.namespace, key.name);
        match object {
            Object::Service(_) => {
                self.registry.services.remove(&named);
                self.registry.dirty.insert(service_object(&named));
            }
            Object::ServiceEntry(_) => {
                self.registry.entries.remove(&named);
                self.registry.dirty.insert(entry_object(&named));
            }
            Object::EndpointSlice(_) => self.registry.remove_slice(&named),
            Object::Pod(_) => self.remove_pod(&named),
            Object::Node(_) => {
                self.registry.nodes.remove(&named.1);
                self.refresh_pods_on(&named.1);
            }
            Object::WorkloadEntry(_) => {
                if let Some((_, member)) = self.registry.workload_entries.remove(&named) {
                    self.registry.touch_selecting(&named.0, &member.workload.labels, true);
                    self.remove_workload(&named);
                }
            }
            Object::Namespace(_) => {
                self.registry.namespaces.remove(&named.1);
                self.registry.touch_namespace(&named.1);
            }
            _ => return false,
        }
        true
    }

    fn set_pod(&mut self, named: Named, object: &Arc<Object>, pod: &Pod) {
        self.registry.touch_doubted();
        if pod.is_finished() {
            // Its address may be somebody else's by now.
            self.remove_pod(&named);
            return;
        }
        let trust_domain = self.builder.view().config().trust_domain.clone();
        let member = workloads::of_pod(pod, &self.registry.nodes, &trust_domain, &self.context.cluster);
        let old = self.registry.pods.get(&named).map(|(_, member)| member.clone());
        if old.as_ref() == Some(&member) {
            self.registry.pods.insert(named, (object.clone(), member));
            return;
        }
        if let Some(old) = &old {
            self.registry.forget_pod_addresses(&named, old);
            self.registry.touch_selecting(&named.0, &old.workload.labels, false);
        }
        self.registry.touch_selecting(&named.0, &member.workload.labels, false);
        self.registry.touch_pod(&named, &member);
        if !pod.spec.host_network {
            for ip in &member.workload.ips {
                self.registry.pod_by_ip.insert(*ip, named.clone());
            }
        }
        self.builder.set_workload(member.workload.clone());
        self.registry.pods.insert(named, (object.clone(), member));
    }

    fn remove_pod(&mut self, named: &Named) {
        self.registry.touch_doubted();
        if let Some((_, member)) = self.registry.pods.remove(named) {
            self.registry.forget_pod_addresses(named, &member);
            self.registry.touch_pod(named, &member);
            self.registry.touch_selecting(&named.0, &member.workload.labels, false);
            self.remove_workload(named);
        }
    }

    /// Removes a workload unless another object of the same name still stands for it.
    fn remove_workload(&mut self, named: &Named) {
        let pod = self.registry.pods.get(named).map(|(_, member)| member);
        match pod.or_else(|| self.registry.workload_entries.get(named).map(|(_, member)| member)) {
            Some(member) => self.builder.set_workload(member.workload.clone()),
            None => self.builder.remove_workload(&WorkloadId {
                namespace: model::Namespace::new(named.0.as_str()),
                name: named.1.as_str().into(),
            }),
        }
    }

    fn refresh_pods_on(&mut self, node: &str) {
        let on_node = |member: &Member| member.workload.node.as_deref() == Some(node);
        let pods: Vec<(Named, Arc<Object>)> = self
            .registry
            .pods
            .iter()
            .filter(|(_, (_, member))| on_node(member))
            .map(|(named, (object, _))| (named.clone(), object.clone()))
            .collect();
        for (named, object) in pods {
            if let Object::Pod(pod) = object.as_ref() {
                self.set_pod(named, &object, pod);
            }
        }
    }

    fn set_workload_entry(
        &mut self,
        named: Named,
        object: &Arc<Object>,
        entry: &WorkloadEntry,
        origin: &Origin,
    ) {
        let trust_domain = self.builder.view().config().trust_domain.clone();
        let member = workloads::of_entry(entry, &trust_domain, &self.context.cluster);
        let key = ObjectKey::new(Kind::WorkloadEntry, named.0.as_str(), named.1.as_str());
        let checked = translate::workload_entry(entry);
        let is_known = self.registry.workload_entries.contains_key(&named);
        let is_refused = checked.value.is_none();
        self.note(&key, origin, &checked.rejections, &checked.warnings, is_refused && is_known);
        if is_refused {
            return;
        }
        self.accepted.insert(object.key(), object.clone());
        if let Some((_, old)) = self.registry.workload_entries.get(&named) {
            let labels = old.workload.labels.clone();
            self.registry.touch_selecting(&named.0, &labels, true);
        }
        self.registry.touch_selecting(&named.0, &member.workload.labels, true);
        if !self.registry.pods.contains_key(&named) {
            self.builder.set_workload(member.workload.clone());
        }
        self.registry.workload_entries.insert(named, (object.clone(), member));
    }

    /// Works out everything that has become dirty.
    pub(crate) fn registry_settle(&mut self) {
        let mut hosts = BTreeSet::new();
        for object in std::mem::take(&mut self.registry.dirty) {
            let contributions = self.contributions_of(&object);
            let now: BTreeSet<ServiceKey> =
                contributions.iter().map(|contribution| contribution.service.key.clone()).collect();
            let before = self.registry.contributed.remove(&object).unwrap_or_default();
            for key in before.difference(&now) {
                if let Some(of_host) = self.registry.contributions.get_mut(key) {
                    of_host.remove(&object);
                }
            }
            hosts.extend(before);
            hosts.extend(now.iter().cloned());
            for contribution in contributions {
                let of_host =
                    self.registry.contributions.entry(contribution.service.key.clone()).or_default();
                of_host.insert(object.clone(), contribution);
            }
            if !now.is_empty() {
                self.registry.contributed.insert(object, now);
            }
        }
        for host in hosts {
            self.join(&host);
        }
    }

    /// Joins the contributions to a host: Kubernetes' first, then the oldest.
    fn join(&mut self, key: &ServiceKey) {
        let contributions = self.registry.contributions.get(key);
        let mut all: Vec<&Contribution> = contributions.into_iter().flat_map(BTreeMap::values).collect();
        all.sort_by_key(|contribution| {
            let service = &contribution.service;
            (service.registry != Source::Kubernetes, service.created, service.object.clone())
        });
        let Some((first, others)) = all.split_first() else {
            self.registry.contributions.remove(key);
            self.builder.remove_service(key);
            return;
        };
        let mut service = first.service.clone();
        let mut endpoints = first.endpoints.clone();
        for other in others {
            for port in &other.service.ports {
                if service.port(port.port).is_none() {
                    service.ports.push(port.clone());
                }
            }
            for vip in &other.service.vips {
                if other.service.registry == service.registry && !service.vips.contains(vip) {
                    service.vips.push(*vip);
                }
            }
            // Endpoints go by the names of ports, which the first definition may call otherwise.
            endpoints.extend(other.endpoints.iter().filter_map(|endpoint| {
                let number = other.service.port_named(&endpoint.service_port)?.port;
                let name = service.port(number)?.name.clone();
                Some(Endpoint { service_port: name, ..endpoint.clone() })
            }));
        }
        let mut seen = BTreeSet::new();
        endpoints.retain(|endpoint| {
            seen.insert((endpoint.service_port.clone(), endpoint.address.clone(), endpoint.port))
        });
        self.builder.set_service(service);
        self.builder.set_endpoints(key, Arc::from(endpoints));
    }

    fn contributions_of(&mut self, object: &ObjectKey) -> Vec<Contribution> {
        let named: Named = (object.namespace.to_string(), object.name.to_string());
        match object.kind {
            Kind::Service => self.service_contributions(object, &named),
            _ => self.entry_contributions(object, &named),
        }
    }

    fn service_contributions(&mut self, object: &ObjectKey, named: &Named) -> Vec<Contribution> {
        let Some((source, origin)) = self.registry.services.get(named).cloned() else {
            self.registry.doubts.service_gone(named);
            return Vec::new();
        };
        let Object::Service(service) = source.as_ref() else { return Vec::new() };
        let translated = translate::service(&self.context, service);
        self.note(object, &origin, &translated.rejections, &translated.warnings, false);
        let mut services = translated.value.unwrap_or_default();
        self.inherit_distribution(named, &mut services);
        let endpoints = self.registry.service_endpoints(named, service, &self.context.cluster);
        let is_known = services.is_empty() || self.registry.contributed.contains_key(object);
        let is_listed = service.is_external_name() || self.registry.slices.contains_key(named);
        if self.registry.doubts.judge(named, is_known, is_listed, !endpoints.is_empty()) == Verdict::Wait {
            return Vec::new();
        }
        services.into_iter().map(|service| Contribution { service, endpoints: endpoints.clone() }).collect()
    }

    /// A namespace's annotation counts for services that say nothing themselves.
    fn inherit_distribution(&self, named: &Named, services: &mut [model::Service]) {
        let Some(Object::Namespace(namespace)) = self.registry.namespaces.get(&named.0).map(AsRef::as_ref)
        else {
            return;
        };
        let Some(text) = annotation(namespace, TRAFFIC_DISTRIBUTION) else { return };
        for service in services {
            if service.traffic_distribution == model::service::TrafficDistribution::Any {
                service.traffic_distribution = translate::traffic_distribution(text);
            }
        }
    }

    fn entry_contributions(&mut self, object: &ObjectKey, named: &Named) -> Vec<Contribution> {
        let Some((source, origin)) = self.registry.entries.get(named).cloned() else { return Vec::new() };
        let Object::ServiceEntry(entry) = source.as_ref() else { return Vec::new() };
        let translated = translate::service_entry(&self.context, entry);
        let last = if translated.value.is_none() { self.accepted.get(&source.key()).cloned() } else { None };
        let (rejections, warnings) = (translated.rejections, translated.warnings);
        let (entry, services) = match (translated.value, last.as_deref()) {
            (Some(services), _) => {
                self.accepted.insert(source.key(), source.clone());
                (entry, Some(services))
            }
            // Its endpoints go on changing.
            (None, Some(Object::ServiceEntry(last))) => {
                (last, translate::service_entry(&self.context, last).value)
            }
            _ => (entry, None),
        };
        let before = if services.is_none() { self.registry.last_contributions(object) } else { Vec::new() };
        self.note(object, &origin, &rejections, &warnings, last.is_some() || !before.is_empty());
        let Some(mut services) = services else { return before };
        self.inherit_distribution(named, &mut services);
        services
            .into_iter()
            .map(|service| {
                let endpoints = self.entry_endpoints(named, entry, &service);
                Contribution { service, endpoints }
            })
            .collect()
    }

    fn entry_endpoints(
        &self,
        named: &Named,
        entry: &ServiceEntry,
        service: &model::Service,
    ) -> Vec<Endpoint> {
        let trust_domain = &self.builder.view().config().trust_domain;
        let cluster = &self.context.cluster;
        let spec = &entry.spec;
        if let Some(selector) = &spec.workload_selector {
            let selector: Labels = workloads::labels(Some(&selector.labels));
            return self.registry.selected_endpoints(&named.0, &selector, service, cluster);
        }
        if !spec.endpoints.is_empty() {
            let inline = spec.endpoints.iter().enumerate().flat_map(|(index, endpoint)| {
                let mut entry = WorkloadEntry { spec: endpoint.clone(), ..WorkloadEntry::default() };
                entry.metadata.namespace = Some(named.0.clone());
                entry.metadata.name = Some(format!("{}-{index}", named.1));
                let member = workloads::of_entry(&entry, trust_domain, cluster);
                entry_member_endpoints(endpoint, &member, service, cluster)
            });
            return inline.collect();
        }
        match spec.resolution {
            Some(EntryResolution::Dns | EntryResolution::DnsRoundRobin)
                if !service.key.host.is_wildcard() =>
            {
                let host = WorkloadEntrySpec {
                    address: service.key.host.to_string(),
                    ..WorkloadEntrySpec::default()
                };
                let workload = Workload {
                    id: WorkloadId {
                        namespace: service.key.namespace.clone(),
                        name: named.1.as_str().into(),
                    },
                    uid: None,
                    ips: Vec::new(),
                    labels: Labels::new(),
                    service_account: "".into(),
                    node: None,
                    locality: Locality::default(),
                    network: "".into(),
                    workload_name: named.1.as_str().into(),
                    named_ports: Vec::new(),
                };
                let member = workloads::member(workload, trust_domain, cluster);
                entry_member_endpoints(&host, &member, service, cluster)
            }
            _ => Vec::new(),
        }
    }
}

impl Registry {
    fn set_slice(&mut self, named: Named, object: &Arc<Object>, slice: &EndpointSlice) {
        self.remove_slice(&named);
        let labels = slice.metadata.labels.as_ref();
        let Some(service) = labels.and_then(|labels| labels.get(SERVICE_NAME)) else { return };
        let service: Named = (named.0.clone(), service.clone());
        for pod in slice_pods(slice, &named.0) {
            self.pod_services.entry(pod).or_default().insert(service.clone());
        }
        for ip in slice_addresses(slice) {
            self.address_services.entry(ip).or_default().insert(service.clone());
        }
        self.slices.entry(service.clone()).or_default().insert(named.1.clone(), object.clone());
        self.doubts.listed(&service, slice);
        self.dirty.insert(service_object(&service));
        self.slice_service.insert(named, service);
    }

    fn remove_slice(&mut self, named: &Named) {
        let Some(service) = self.slice_service.remove(named) else { return };
        let Some(slices) = self.slices.get_mut(&service) else { return };
        let removed = slices.remove(&named.1);
        self.dirty.insert(service_object(&service));
        let Some(object) = removed else { return };
        let Object::EndpointSlice(slice) = object.as_ref() else { return };
        let rest = || {
            slices.values().filter_map(|object| match object.as_ref() {
                Object::EndpointSlice(slice) => Some(slice.as_ref()),
                _ => None,
            })
        };
        let is_last = !rest().any(|other| other.address_type == slice.address_type);
        self.doubts.gone(&service, &object, is_last);
        let pods: BTreeSet<Named> = rest().flat_map(|slice| slice_pods(slice, &named.0)).collect();
        for pod in slice_pods(slice, &named.0).filter(|pod| !pods.contains(pod)) {
            remove_from(&mut self.pod_services, &pod, &service);
        }
        let addresses: BTreeSet<IpAddr> = rest().flat_map(slice_addresses).collect();
        for ip in slice_addresses(slice).filter(|ip| !addresses.contains(ip)) {
            remove_from(&mut self.address_services, &ip, &service);
        }
        if slices.is_empty() {
            self.slices.remove(&service);
        }
    }

    /// Marks the Services whose endpoints are in use although no slice lists them: what a pod says may end that.
    fn touch_doubted(&mut self) {
        self.dirty.extend(self.doubts.kept_services().map(service_object));
    }

    fn forget_pod_addresses(&mut self, named: &Named, member: &Member) {
        for ip in &member.workload.ips {
            if self.pod_by_ip.get(ip) == Some(named) {
                self.pod_by_ip.remove(ip);
            }
        }
    }

    /// Marks the Services whose slices lead to a pod, by name or by address.
    fn touch_pod(&mut self, named: &Named, member: &Member) {
        let by_name = self.pod_services.get(named).into_iter().flatten();
        let marked: Vec<ObjectKey> = by_name.map(service_object).collect();
        self.dirty.extend(marked);
        // Slices that were made by hand name addresses only.
        let by_address = member.workload.ips.iter().filter_map(|ip| self.address_services.get(ip)).flatten();
        let marked: Vec<ObjectKey> = by_address.map(service_object).collect();
        self.dirty.extend(marked);
    }

    /// Marks what selects workloads with these labels: ServiceEntries always, Services only WorkloadEntries.
    fn touch_selecting(&mut self, namespace: &str, labels: &Labels, services_too: bool) {
        let in_namespace = |named: &Named| named.0 == namespace;
        let mut marked = Vec::new();
        for (named, (object, _)) in self.entries.iter().filter(|(named, _)| in_namespace(named)) {
            if let Object::ServiceEntry(entry) = object.as_ref()
                && let Some(selector) = &entry.spec.workload_selector
                && workloads::labels(Some(&selector.labels)).selects(labels)
            {
                marked.push(entry_object(named));
            }
        }
        if services_too {
            for (named, (object, _)) in self.services.iter().filter(|(named, _)| in_namespace(named)) {
                if let Object::Service(service) = object.as_ref()
                    && !service.spec.selector.is_empty()
                    && workloads::labels(Some(&service.spec.selector)).selects(labels)
                {
                    marked.push(service_object(named));
                }
            }
        }
        self.dirty.extend(marked);
    }

    fn touch_namespace(&mut self, namespace: &str) {
        let services = self.services.keys().filter(|named| named.0 == namespace).map(service_object);
        let entries = self.entries.keys().filter(|named| named.0 == namespace).map(entry_object);
        let marked: Vec<ObjectKey> = services.chain(entries).collect();
        self.dirty.extend(marked);
    }

    fn last_contributions(&self, object: &ObjectKey) -> Vec<Contribution> {
        let keys = self.contributed.get(object).into_iter().flatten();
        keys.filter_map(|key| self.contributions.get(key)?.get(object).cloned()).collect()
    }
}

fn slice_pods<'a>(slice: &'a EndpointSlice, namespace: &'a str) -> impl Iterator<Item = Named> + 'a {
    slice
        .endpoints
        .iter()
        .filter_map(|endpoint| endpoint.target_ref.as_ref())
        .filter(|target| target.kind == "Pod")
        .map(move |target| {
            let of = if target.namespace.is_empty() { namespace } else { &target.namespace };
            (of.to_owned(), target.name.clone())
        })
}

/// Returns the addresses of endpoints that name no pod.
fn slice_addresses(slice: &EndpointSlice) -> impl Iterator<Item = IpAddr> + '_ {
    let nameless = slice.endpoints.iter().filter(|endpoint| endpoint.target_ref.is_none());
    nameless.flat_map(|endpoint| &endpoint.addresses).filter_map(|address| address.parse().ok())
}

fn remove_from<K: Ord>(services: &mut BTreeMap<K, BTreeSet<Named>>, key: &K, service: &Named) {
    if let Some(of_key) = services.get_mut(key) {
        of_key.remove(service);
        if of_key.is_empty() {
            services.remove(key);
        }
    }
}

fn annotation<'a>(namespace: &'a Namespace, name: &str) -> Option<&'a str> {
    namespace.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}
