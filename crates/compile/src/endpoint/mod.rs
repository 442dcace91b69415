//! Load assignments: which endpoints a cluster has, in which order of preference.
//!
//! [`select`] decides everything that an assignment depends on and puts it into an [`AssignmentKey`];
//! [`assignment`] reads nothing but the key, the service's endpoints and the policies of the namespaces that these
//! are in. So clients that differ in nothing that matters share one assignment, and an endpoint that comes or goes
//! costs one assignment for all of them.

mod locality;
#[cfg(test)]
mod tests;

pub(crate) use locality::weighs_localities;

use crate::audience::OutboundAudience;
use crate::cluster::{Discovery, discovery};
use crate::destination_rule::{Blocks, MergedRule, lookup};
use crate::names::OutboundName;
use crate::scope::Scope;
use crate::select::inbound_mtls;
use crate::wire;
use model::destination_rule::ClientTlsMode;
use model::service::{Address, Health};
use model::{
    Endpoint, Labels, Locality, Mesh, MeshConfig, MtlsMode, Namespace, Service, ServiceKey, ServicePort, Str,
};
use prost::Message;
use proto::envoy::config::core::v3::{HealthStatus, Metadata};
use proto::envoy::config::endpoint::v3::{
    self as endpoint, ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use proto::resource::{Body, Needs, Resource, ResourceType};
use std::collections::{BTreeMap, BTreeSet};

use locality::{Group, Spread, spread, spread_out};

/// Everything that a load assignment depends on, endpoints and policies aside.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AssignmentKey {
    cluster: Str,
    service: ServiceKey,
    /// The name of the service port.
    port: Str,
    subset: Labels,
    marking: Marking,
    spread: Spread,
    /// The only networks whose endpoints are wanted; empty for all.
    networks: BTreeSet<Str>,
    /// The only node whose endpoints are wanted.
    node: NodeFilter,
    /// The only cluster whose endpoints are wanted.
    only_cluster: Option<Str>,
    /// Whether unready endpoints are sent, for Envoy to know of them.
    unhealthy: bool,
    /// Whether only endpoints that take mutual TLS are wanted.
    mtls_only: bool,
}

impl AssignmentKey {
    /// Returns the name of the cluster.
    pub fn cluster(&self) -> &Str {
        &self.cluster
    }

    /// Returns the service.
    pub fn service(&self) -> &ServiceKey {
        &self.service
    }
}

impl AssignmentKey {
    /// Returns the key for a cluster that holds its endpoints itself: Istio does not rank those by labels.
    pub(crate) fn without_ranks_by_labels(mut self) -> Self {
        if let Spread::Failover { labels, closeness } = &mut self.spread {
            labels.clear();
            if closeness.is_none() {
                self.spread = Spread::Even;
            }
        }
        self
    }
}

/// Which endpoints are marked as taking mutual TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Marking {
    /// Those that have a sidecar, unless a PeerAuthentication turns it off.
    Capable,
    /// Those that have a sidecar, whatever policies say: a DestinationRule says `ISTIO_MUTUAL`.
    Always,
    /// None: a DestinationRule says something else.
    None,
}

/// Which nodes' endpoints are wanted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum NodeFilter {
    Any,
    /// The client's; a client that does not say where it runs has none.
    Only(Option<Str>),
}

/// A cluster for whose endpoints a key is wanted.
pub(crate) struct Of<'a> {
    pub(crate) cluster: &'a str,
    pub(crate) service: &'a Service,
    pub(crate) port: &'a ServicePort,
    pub(crate) rule: Option<&'a MergedRule>,
    pub(crate) subset: &'a str,
    pub(crate) blocks: Blocks<'a>,
    /// Whether it is a cluster of an AUTO_PASSTHROUGH gateway.
    pub(crate) sni_dnat: bool,
}

/// Returns the share of healthy endpoints, in percent, below which Envoy uses them all; 0 for never.
///
/// In a panic traffic would go to endpoints that are known not to be ready, so there is none where these are sent.
/// They are withheld where a rule gives a share, but not from a service with a traffic distribution, which falls over
/// by them.
pub(crate) fn panic_threshold(blocks: Blocks<'_>, service: &Service) -> u32 {
    let given = blocks.outlier_detection.map_or(0, |outlier| outlier.min_health_percent);
    if service.traffic_distribution.labels().is_empty() { given } else { 0 }
}

/// Returns the key of a cluster's endpoints.
pub(crate) fn key(config: &MeshConfig, audience: &OutboundAudience, of: &Of<'_>) -> AssignmentKey {
    let Of { service, port, .. } = *of;
    let subset = of.rule.and_then(|rule| rule.subset(of.subset));
    let marking = match of.rule.and_then(|rule| rule.marking_mode(port.port, of.subset)) {
        None => Marking::Capable,
        Some(ClientTlsMode::IstioMutual) => Marking::Always,
        Some(ClientTlsMode::Disable | ClientTlsMode::Simple | ClientTlsMode::Mutual) => Marking::None,
    };
    AssignmentKey {
        cluster: of.cluster.into(),
        service: service.key.clone(),
        port: port.name.clone(),
        subset: subset.map(|subset| subset.labels.clone()).unwrap_or_default(),
        marking,
        spread: spread(config, audience, of.blocks, service),
        networks: audience.switches.network_view.clone(),
        node: match service.node_local {
            true => NodeFilter::Only(audience.node.clone()),
            false => NodeFilter::Any,
        },
        only_cluster: config.is_cluster_local(&service.key.host).then(|| audience.cluster.clone()),
        unhealthy: panic_threshold(of.blocks, service) == 0,
        mtls_only: of.sni_dnat,
    }
}

/// Returns the key of the assignment called `cluster`; nothing if the name is of no cluster that `audience` is given
/// with endpoints from the control plane.
pub fn select(
    mesh: &Mesh<'_>,
    scope: &Scope,
    audience: &OutboundAudience,
    cluster: &str,
) -> Option<AssignmentKey> {
    let (name, sni_dnat) = match OutboundName::parse_cluster(cluster) {
        Some(name) => (name, false),
        None => (OutboundName::parse_sni(cluster)?, true),
    };
    let host = name.host.into();
    let service = mesh.service(scope.service(&host)?)?;
    let port = service.port(name.port)?;
    let rule = lookup(mesh, audience, &host, &service.key.namespace);
    let rule = rule.as_deref();
    if !name.subset.is_empty() {
        rule.and_then(|rule| rule.subset(name.subset))?;
    }
    let config = mesh.config();
    let blocks =
        rule.map(|rule| rule.port_policy(name.port, name.subset)).unwrap_or_default().or_mesh(config);
    if discovery(audience, service, blocks) != Some(Discovery::Eds) {
        return None;
    }
    let of = Of { cluster, service, port, rule, subset: name.subset, blocks, sni_dnat };
    Some(key(config, audience, &of))
}

/// Returns the load assignment for `key`, which may be empty.
pub fn assignment(mesh: &Mesh<'_>, key: &AssignmentKey) -> Resource {
    let message = ClusterLoadAssignment {
        cluster_name: key.cluster.as_ref().to_owned(),
        endpoints: groups(mesh, key, false),
        ..ClusterLoadAssignment::default()
    };
    let body = Body::Whole(message.encode_to_vec().into());
    Resource::new(ResourceType::ClusterLoadAssignment, key.cluster.clone(), body, Needs::default())
}

/// Returns the endpoints for `key` by locality. Names are for clusters that resolve them (`resolves`): elsewhere Envoy
/// refuses the whole assignment for one of them.
pub(crate) fn groups(mesh: &Mesh<'_>, key: &AssignmentKey, resolves: bool) -> Vec<LocalityLbEndpoints> {
    let mut policies = Policies::new(mesh);
    let mut by_locality: BTreeMap<&Locality, Vec<Member<'_>>> = BTreeMap::new();
    for endpoint in mesh.endpoints(&key.service) {
        if !key.wants(endpoint) || (!resolves && matches!(endpoint.address, Address::Dns(_))) {
            continue;
        }
        let mtls = match key.marking {
            Marking::Capable => endpoint.mtls && policies.allow(endpoint),
            Marking::Always => endpoint.mtls,
            Marking::None => false,
        };
        let members = by_locality.entry(&endpoint.locality).or_default();
        // Whatever is behind a gateway that passes TLS through is reached by mutual TLS or not at all.
        if mtls || !key.mtls_only {
            members.push(Member { endpoint, mtls });
        }
    }
    let groups: Vec<Group<'_>> =
        by_locality.into_iter().map(|(locality, members)| Group::new(locality, members, 0)).collect();
    spread_out(&key.spread, groups).into_iter().map(Group::into_message).collect()
}

impl AssignmentKey {
    fn wants(&self, endpoint: &Endpoint) -> bool {
        endpoint.service_port == self.port
            && self.subset.selects(&endpoint.labels)
            && (self.unhealthy || endpoint.health != Health::Unhealthy)
            && self.only_cluster.as_ref().is_none_or(|only| *only == endpoint.cluster)
            && (self.networks.is_empty() || self.networks.contains(&endpoint.network))
            && match &self.node {
                NodeFilter::Any => true,
                NodeFilter::Only(node) => node.is_some() && *node == endpoint.node,
            }
    }
}

/// Whether PeerAuthentications let an endpoint take mutual TLS.
struct Policies<'m, 'a> {
    mesh: &'m Mesh<'a>,
    /// Whether any policy that may apply in a namespace turns mutual TLS off anywhere.
    turned_off: BTreeMap<Namespace, bool>,
}

impl<'m, 'a> Policies<'m, 'a> {
    fn new(mesh: &'m Mesh<'a>) -> Self {
        Self { mesh, turned_off: BTreeMap::new() }
    }

    fn allow(&mut self, endpoint: &Endpoint) -> bool {
        let turned_off = match self.turned_off.get(&endpoint.namespace) {
            Some(turned_off) => *turned_off,
            None => {
                let turned_off = self.any_turns_off(&endpoint.namespace);
                self.turned_off.insert(endpoint.namespace.clone(), turned_off);
                turned_off
            }
        };
        !turned_off
            || inbound_mtls(self.mesh, &endpoint.namespace, &endpoint.labels).of(endpoint.port)
                != MtlsMode::Disable
    }

    fn any_turns_off(&self, namespace: &Namespace) -> bool {
        let off = |mode: &Option<MtlsMode>| *mode == Some(MtlsMode::Disable);
        [namespace, &self.mesh.config().root_namespace].into_iter().any(|namespace| {
            self.mesh
                .peer_authentications(namespace)
                .any(|policy| off(&policy.mode) || policy.port_level.values().any(off))
        })
    }
}

/// An endpoint and whether it takes mutual TLS.
struct Member<'a> {
    endpoint: &'a Endpoint,
    mtls: bool,
}

impl Member<'_> {
    fn weight(&self) -> u32 {
        self.endpoint.weight.unwrap_or(1)
    }

    fn into_message(self) -> LbEndpoint {
        let Endpoint { address, port, health, .. } = self.endpoint;
        let address = match address {
            Address::Ip(ip) => wire::socket_address(*ip, *port),
            Address::Dns(name) => wire::named_address(name.as_str(), *port),
            Address::Unix(path) => wire::pipe(path),
        };
        let health = match health {
            Health::Healthy => HealthStatus::Healthy,
            Health::Unhealthy => HealthStatus::Unhealthy,
            Health::Draining => HealthStatus::Draining,
        };
        LbEndpoint {
            health_status: health as i32,
            load_balancing_weight: wire::u32_value(self.weight()),
            metadata: Some(self.metadata()),
            host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
                address: Some(address),
                ..endpoint::Endpoint::default()
            })),
        }
    }

    fn metadata(&self) -> Metadata {
        let workload = wire::structure([("workload", workload_text(self.endpoint).into())]);
        let mut metadata = wire::metadata(wire::ISTIO_METADATA, workload);
        if self.mtls {
            let mark = wire::structure([("tlsMode", "istio".into())]);
            metadata.filter_metadata.insert("envoy.transport_socket_match".to_owned(), mark);
        }
        metadata
    }
}

/// Returns `workload;namespace;service;revision;cluster`, where the service and its revision are the canonical ones and
/// the revision `latest` is left out.
fn workload_text(endpoint: &Endpoint) -> String {
    let label = |names: &[&str]| names.iter().find_map(|name| endpoint.labels.get(name));
    let service = label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"])
        .unwrap_or(&endpoint.workload);
    let revision = label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"])
        .filter(|revision| *revision != "latest")
        .unwrap_or_default();
    let parts = [&endpoint.workload, endpoint.namespace.as_str(), service, revision, &endpoint.cluster];
    parts.join(";")
}
