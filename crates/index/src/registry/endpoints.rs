//! What a service leads to: endpoints of slices, of selected workloads and of entries.

use super::{Named, Registry};
use crate::workloads::{self, Member};
use k8s_api::core::{EndpointSlice, IntOrString, Service};
use k8s_api::object::Object;
use k8s_api::workload_entry::WorkloadEntrySpec;
use model::service::{Address, Health};
use model::{Endpoint, Labels, Locality, Str};
use std::collections::BTreeMap;
use std::net::IpAddr;

impl Registry {
    /// Returns the endpoints of a Kubernetes Service: those of its slices, in the order of the slices' names, then
    /// the WorkloadEntries that it selects.
    pub(super) fn service_endpoints(&self, named: &Named, service: &Service, cluster: &Str) -> Vec<Endpoint> {
        let slices = self.slices.get(named).into_iter().flat_map(BTreeMap::values);
        let mut endpoints = Vec::new();
        for object in slices {
            if let Object::EndpointSlice(slice) = object.as_ref() {
                self.slice_endpoints(&named.0, slice, None, cluster, &mut endpoints);
            }
        }
        if !service.is_external_name() {
            for slice in self.doubts.kept(named) {
                self.slice_endpoints(&named.0, slice, Some(service), cluster, &mut endpoints);
            }
        }
        if service.spec.selector.is_empty() {
            return endpoints;
        }
        let selector: Labels = workloads::labels(Some(&service.spec.selector));
        let entries = self.workload_entries.iter().filter(|((namespace, _), (_, member))| {
            *namespace == named.0 && selector.selects(&member.workload.labels)
        });
        for (_, (object, member)) in entries {
            let Object::WorkloadEntry(entry) = object.as_ref() else { continue };
            let Ok(ip) = entry.spec.address.parse::<IpAddr>() else { continue };
            for port in &service.spec.ports {
                let own = member.workload.named_ports.iter().find(|(name, _)| **name == *port.name);
                let number = own.map(|(_, number)| *number).or(match &port.target_port {
                    Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
                    Some(IntOrString::String(_)) => None,
                    None => Some(port.port),
                });
                if let Some(number) = number {
                    let weight = entry.spec.weight.filter(|weight| *weight > 0);
                    let endpoint = endpoint(Address::Ip(ip), number, &port.name, member, cluster);
                    endpoints.push(Endpoint { weight, ..endpoint });
                }
            }
        }
        endpoints
    }

    /// Adds the endpoints of a slice. Of one that is gone, given the Service that it was of, only those are left which
    /// nothing else says have stopped.
    fn slice_endpoints(
        &self,
        namespace: &str,
        slice: &EndpointSlice,
        gone: Option<&Service>,
        cluster: &Str,
        all: &mut Vec<Endpoint>,
    ) {
        if slice.address_type == "FQDN" {
            return;
        }
        for listed in &slice.endpoints {
            let conditions = &listed.conditions;
            let health = match conditions.is_ready() {
                true => Health::Healthy,
                // Of an endpoint that is not ready it must be known that it is not going away.
                false if conditions.terminating == Some(false) => Health::Unhealthy,
                false => continue,
            };
            let ips: Vec<IpAddr> =
                listed.addresses.iter().filter_map(|address| address.parse().ok()).collect();
            let Some((ip, additional)) = ips.split_first() else { continue };
            let pod = match &listed.target_ref {
                Some(target) if target.kind == "Pod" => {
                    let of = if target.namespace.is_empty() { namespace } else { &target.namespace };
                    // Without its pod nobody can tell whose it is: it waits for the pod.
                    match self.pods.get(&(of.to_owned(), target.name.clone())) {
                        Some(pod) => Some(pod),
                        None => continue,
                    }
                }
                _ => self.pod_by_ip.get(ip).and_then(|named| self.pods.get(named)),
            };
            if let (Some(service), Some((object, member))) = (gone, pod)
                && !may_serve(object, member, *ip, service)
            {
                continue;
            }
            let member = pod.map(|(_, member)| member);
            for port in &slice.ports {
                let Some(number) = port.port else { continue };
                if port.protocol == "UDP" {
                    continue;
                }
                let address = Address::Ip(*ip);
                let base = match member {
                    Some(member) => {
                        let node = member.workload.node.clone();
                        let node = node.or_else(|| listed.node_name.as_deref().map(Str::from));
                        Endpoint { node, ..endpoint(address, number, &port.name, member, cluster) }
                    }
                    None => {
                        nameless(address, number, &port.name, namespace, listed.node_name.as_deref(), cluster)
                    }
                };
                all.push(Endpoint { health, additional_addresses: additional.to_vec(), ..base });
            }
        }
    }

    /// Returns the endpoints of a ServiceEntry with a selector.
    pub(super) fn selected_endpoints(
        &self,
        namespace: &str,
        selector: &Labels,
        service: &model::Service,
        cluster: &Str,
    ) -> Vec<Endpoint> {
        let mut endpoints = Vec::new();
        let entries = self
            .workload_entries
            .iter()
            .filter(|((of, _), (_, member))| of == namespace && selector.selects(&member.workload.labels));
        for (_, (object, member)) in entries {
            if let Object::WorkloadEntry(entry) = object.as_ref() {
                endpoints.extend(entry_member_endpoints(&entry.spec, member, service, cluster));
            }
        }
        let pods = self
            .pods
            .iter()
            .filter(|((of, _), (_, member))| of == namespace && selector.selects(&member.workload.labels));
        for (_, (object, member)) in pods {
            let Object::Pod(pod) = object.as_ref() else { continue };
            let Some(ip) = member.workload.ips.first().filter(|_| !pod.is_terminating()) else { continue };
            let health = if pod.is_ready() { Health::Healthy } else { Health::Unhealthy };
            for port in &service.ports {
                let Some(number) = target_number(port) else { continue };
                let base = endpoint(Address::Ip(*ip), number, &port.name, member, cluster);
                endpoints.push(Endpoint { health, ..base });
            }
        }
        endpoints
    }
}

/// Whether a pod that an EndpointSlice listed last may still serve at an address, as far as the pod itself says.
fn may_serve(object: &Object, member: &Member, ip: IpAddr, service: &Service) -> bool {
    let Object::Pod(pod) = object else { return true };
    let ips = &member.workload.ips;
    !pod.is_terminating()
        && (ips.is_empty() || ips.contains(&ip))
        && (service.spec.publish_not_ready_addresses || !pod.is_known_not_ready())
}

fn target_number(port: &model::ServicePort) -> Option<u16> {
    match &port.target {
        model::service::TargetPort::Number(number) => Some(*number),
        model::service::TargetPort::Name(_) => None,
    }
}

/// Returns the endpoints of a WorkloadEntry, or an inline endpoint, for every port of a ServiceEntry's service.
pub(super) fn entry_member_endpoints(
    spec: &WorkloadEntrySpec,
    member: &Member,
    service: &model::Service,
    cluster: &Str,
) -> Vec<Endpoint> {
    if spec.address.is_empty() {
        return Vec::new();
    }
    let address = match spec.address.strip_prefix("unix://") {
        Some(path) => Address::Unix(path.into()),
        None => match spec.address.parse::<IpAddr>() {
            Ok(ip) => Address::Ip(ip),
            Err(_) => Address::Dns(spec.address.as_str().into()),
        },
    };
    let of_port = |port: &model::ServicePort| {
        let own = spec.ports.get(port.name.as_ref()).and_then(|number| u16::try_from(*number).ok());
        let number = match address {
            Address::Unix(_) => 0,
            Address::Ip(_) | Address::Dns(_) => own.or_else(|| target_number(port)).unwrap_or(port.port),
        };
        let weight = spec.weight.filter(|weight| *weight > 0);
        Endpoint { weight, ..endpoint(address.clone(), number, &port.name, member, cluster) }
    };
    service.ports.iter().map(of_port).collect()
}

fn endpoint(address: Address, port: u16, service_port: &str, member: &Member, cluster: &Str) -> Endpoint {
    let workload = &member.workload;
    Endpoint {
        address,
        additional_addresses: Vec::new(),
        port,
        service_port: service_port.into(),
        labels: member.endpoint_labels.clone(),
        service_account: member.identity.clone(),
        namespace: workload.id.namespace.clone(),
        workload: workload.workload_name.clone(),
        locality: workload.locality.clone(),
        network: workload.network.clone(),
        cluster: cluster.clone(),
        node: workload.node.clone(),
        weight: None,
        health: Health::Healthy,
        mtls: member.mtls,
    }
}

/// An address that no pod is known to have.
fn nameless(
    address: Address,
    port: u16,
    service_port: &str,
    namespace: &str,
    node: Option<&str>,
    cluster: &Str,
) -> Endpoint {
    Endpoint {
        address,
        additional_addresses: Vec::new(),
        port,
        service_port: service_port.into(),
        labels: Labels::new(),
        service_account: None,
        namespace: model::Namespace::new(namespace),
        workload: "".into(),
        locality: Locality::default(),
        network: "".into(),
        cluster: cluster.clone(),
        node: node.map(Str::from),
        weight: None,
        health: Health::Healthy,
        mtls: false,
    }
}
