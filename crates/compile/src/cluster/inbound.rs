//! The clusters of a workload's own ports.

use super::draft::{Draft, Protocol};
use super::outbound::{registry_name, services_metadata};
use super::{bind_to_either_loopback, bind_to_loopback, passthrough};
use crate::audience::InboundAudience;
use crate::destination_rule::lookup_inbound;
use crate::names::{self, INBOUND_PASSTHROUGH_CLUSTER, StatParts};
use crate::scope::Scope;
use crate::wire;
use model::destination_rule::ConnectionPool;
use model::proxy::Interception;
use model::sidecar::{IngressEndpoint, IngressListener};
use model::{Mesh, MeshConfig, Service, ServicePort, Sidecar};
use proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
use proto::envoy::config::core::v3::Address;
use proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use proto::google::protobuf;
use proto::resource::Resource;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Never, in Envoy's terms: idle destinations of inbound clusters are few and need no cleaning up.
const NO_CLEANUP: protobuf::Duration = protobuf::Duration { seconds: 9_223_372_035, nanos: 0 };

/// Returns the clusters of the workload's ports and the one for all other ports.
pub fn inbound(mesh: &Mesh<'_>, _scope: &Scope, audience: &InboundAudience) -> Vec<Resource> {
    let context = Context { mesh, config: mesh.config(), audience };
    let sidecar = context.sidecar();
    let listeners = sidecar.map_or(&[][..], |sidecar| &sidecar.ingress[..]);
    let own = || sidecar.and_then(|sidecar| sidecar.inbound_connection_pool.as_ref());
    let mut resources: Vec<Resource> = if !listeners.is_empty() {
        listeners.iter().filter_map(|listener| context.ingress(listener, own())).collect()
    } else if audience.interception == Interception::None {
        // The workload itself listens on its ports: only a Sidecar can say where else to listen.
        Vec::new()
    } else {
        context.ports().into_iter().map(|port| context.port(&port, own())).collect()
    };
    let mut others = passthrough(context.config, INBOUND_PASSTHROUGH_CLUSTER);
    others.http.preserve_case = context.audience.switches.proxy.headers.preserve_case;
    others.cluster.upstream_bind_config = Some(bind_to_either_loopback(audience.families));
    resources.push(others.finish());
    resources
}

/// A port of the workload and the services that lead to it, oldest first.
struct Port<'a> {
    number: u16,
    services: Vec<(&'a Arc<Service>, &'a ServicePort)>,
}

struct Context<'m, 'a> {
    mesh: &'m Mesh<'a>,
    config: &'a MeshConfig,
    audience: &'m InboundAudience,
}

impl<'a> Context<'_, 'a> {
    fn sidecar(&self) -> Option<&'a Arc<Sidecar>> {
        let key = self.audience.scope.sidecar.as_ref()?;
        self.mesh.sidecars(&key.namespace).find(|sidecar| sidecar.meta.key == *key)
    }

    /// Returns the ports that services lead to, in the order in which they are first mentioned.
    fn ports(&self) -> Vec<Port<'a>> {
        let mut ports: Vec<Port<'a>> = Vec::new();
        for target in &self.audience.targets {
            let Some(service) = self.mesh.service(&target.service) else { continue };
            for &(port, number) in &target.ports {
                let Some(port) = service.port(port) else { continue };
                // A named port that the workload lacks is 0: nothing listens there.
                if number == 0 || port.protocol == model::Protocol::Udp {
                    continue;
                }
                match ports.iter_mut().find(|known| known.number == number) {
                    Some(known) => known.services.push((service, port)),
                    None => ports.push(Port { number, services: vec![(service, port)] }),
                }
            }
        }
        ports
    }

    /// Returns the cluster of a port that services lead to. The oldest service decides.
    fn port(&self, port: &Port<'a>, own_pool: Option<&ConnectionPool>) -> Resource {
        let name = names::inbound_cluster(port.number);
        let mut draft = Draft::new(&name, DiscoveryType::OriginalDst);
        if self.config.inbound_passthrough {
            self.keep_destination(&mut draft);
        } else {
            self.send_to(&mut draft, wire::socket_address(self.loopback(), port.number));
        }
        let first = port.services.first();
        self.describe(&mut draft, &port.services, port.number);
        let protocol = first.map_or(model::Protocol::Tcp, |(_, port)| port.protocol);
        self.limit(&mut draft, protocol, first.map(|(service, port)| (&***service, *port)), own_pool);
        draft.finish()
    }

    /// Returns the cluster of a listener of a Sidecar; nothing if it leads to the workload's address and that is not
    /// known.
    fn ingress(&self, listener: &IngressListener, own_pool: Option<&ConnectionPool>) -> Option<Resource> {
        let number = listener.port.number;
        let name = names::inbound_cluster(number);
        let mut draft = Draft::new(&name, DiscoveryType::OriginalDst);
        match &listener.default_endpoint {
            IngressEndpoint::OriginalDestination => self.keep_destination(&mut draft),
            IngressEndpoint::Localhost(port) => {
                self.send_to(&mut draft, wire::socket_address(self.loopback(), *port));
            }
            IngressEndpoint::Instance(port) => {
                self.send_to(&mut draft, wire::socket_address(self.audience.instance_ip?, *port));
                draft.cluster.upstream_bind_config = Some(bind_to_loopback(self.audience.families));
            }
            IngressEndpoint::Address(ip, port) => {
                self.send_to(&mut draft, wire::socket_address(*ip, *port));
                if !ip.is_loopback() {
                    draft.cluster.upstream_bind_config = Some(bind_to_loopback(self.audience.families));
                }
            }
            IngressEndpoint::Unix(path) => {
                self.send_to(&mut draft, wire::pipe(path));
                draft.cluster.upstream_bind_config = Some(bind_to_loopback(self.audience.families));
            }
        }
        let services = self.ports().into_iter().find(|port| port.number == number);
        let services = services.map(|port| port.services).unwrap_or_default();
        self.describe(&mut draft, &services, number);
        let pool = listener.connection_pool.as_ref().or(own_pool);
        let first = services.first().map(|(service, port)| (&***service, *port));
        self.limit(&mut draft, listener.port.protocol, first, pool);
        Some(draft.finish())
    }

    fn loopback(&self) -> IpAddr {
        match self.audience.families.v4 {
            true => Ipv4Addr::LOCALHOST.into(),
            false => Ipv6Addr::LOCALHOST.into(),
        }
    }

    fn keep_destination(&self, draft: &mut Draft) {
        draft.cluster.lb_policy = LbPolicy::ClusterProvided as i32;
        draft.cluster.cleanup_interval = Some(NO_CLEANUP);
        draft.cluster.upstream_bind_config = Some(bind_to_loopback(self.audience.families));
    }

    fn send_to(&self, draft: &mut Draft, address: Address) {
        let endpoint = Endpoint { address: Some(address), ..Endpoint::default() };
        let endpoint = LbEndpoint {
            host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)),
            ..LbEndpoint::default()
        };
        let group = LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..LocalityLbEndpoints::default() };
        draft.cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32));
        draft.cluster.load_assignment = Some(ClusterLoadAssignment {
            cluster_name: draft.cluster.name.clone(),
            endpoints: vec![group],
            ..ClusterLoadAssignment::default()
        });
    }

    fn describe(&self, draft: &mut Draft, services: &[(&'a Arc<Service>, &'a ServicePort)], number: u16) {
        let pattern = &self.config.inbound_cluster_stat_name;
        let name = draft.cluster.name.clone();
        draft.cluster.alt_stat_name = match services.first() {
            Some((service, port)) => {
                let parts = StatParts {
                    host: service.key.host.as_str(),
                    namespace: service.key.namespace.as_str(),
                    name: registry_name(service),
                    port: port.port,
                    port_name: &port.name,
                    target_port: number,
                    subset: "",
                };
                names::stat_name(pattern, &name, &parts)
            }
            None => format!("{name};"),
        };
        if !services.is_empty() {
            let services = services.iter().map(|(service, _)| service.as_ref());
            draft.annotate("services", services_metadata(services));
        }
    }

    /// Sets protocol and limits: a Sidecar's own, else those of the rule for the service.
    fn limit(
        &self,
        draft: &mut Draft,
        protocol: model::Protocol,
        service: Option<(&Service, &ServicePort)>,
        own_pool: Option<&ConnectionPool>,
    ) {
        if protocol.is_http2() {
            draft.http.protocol = Protocol::Http2(Box::default());
        } else if protocol.is_unsupported() {
            draft.http.protocol = Protocol::Downstream;
        }
        let may_be_http = protocol.is_http() || protocol.is_unsupported();
        draft.http.preserve_case = may_be_http && self.audience.switches.proxy.headers.preserve_case;
        let rule = match (own_pool, service) {
            (None, Some((service, _))) => {
                let key = &service.key;
                lookup_inbound(self.mesh, &self.audience.namespace, &key.host, &key.namespace)
            }
            _ => None,
        };
        let by_rule = rule
            .as_ref()
            .zip(service)
            .and_then(|(rule, (_, port))| rule.port_policy(port.port, "").connection_pool);
        let pool = own_pool.or(by_rule).or(self.config.default_connection_pool.as_ref());
        draft.apply_connection_pool(self.config, pool, None);
        draft.apply_http2_limits(pool);
    }
}
