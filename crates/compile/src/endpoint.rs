//! Load assignments: which endpoints a cluster has, in which order of preference.
//!
//! [`select`] decides everything that an assignment depends on and puts it into an [`AssignmentKey`];
//! [`assignment`] reads nothing but the key, the service's endpoints and the policies of the namespaces that these
//! are in. So clients that differ in nothing that matters share one assignment, and an endpoint that comes or goes
//! costs one assignment for all of them.

use crate::audience::OutboundAudience;
use crate::cluster::{Discovery, discovery};
use crate::destination_rule::{Blocks, MergedRule, lookup};
use crate::names::OutboundName;
use crate::scope::Scope;
use crate::select::inbound_mtls;
use crate::wire;
use model::destination_rule::{ClientTlsMode, LocalityLb};
use model::service::{Address, Health};
use model::{
    Endpoint, Labels, Locality, Mesh, MeshConfig, MtlsMode, Namespace, Service, ServiceKey, ServicePort, Str,
};
use prost::Message;
use proto::envoy::config::core::v3::{self as core, HealthStatus, Metadata};
use proto::envoy::config::endpoint::v3::{
    self as endpoint, ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
};
use proto::resource::{Body, Needs, Resource, ResourceType};
use std::collections::{BTreeMap, BTreeSet};

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
    /// All: a DestinationRule says `ISTIO_MUTUAL`.
    All,
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

/// How traffic is spread over localities, as far as it depends on the client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Spread {
    /// By the number of endpoints.
    Even,
    /// By given shares of localities.
    Shares(Vec<(Str, u32)>),
    /// By preference.
    Failover {
        /// Labels that rank endpoints, with the client's values, the most important first.
        labels: Vec<(Str, Str)>,
        /// Whether closeness ranks them as well.
        closeness: Option<Closeness>,
    },
}

/// Ranking of localities against the client's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Closeness {
    client: Locality,
    /// The region to fall back to before all other ones.
    failover: Option<Str>,
}

/// A locality policy that applies to a cluster.
#[derive(Clone, Copy, Debug)]
enum LocalityPolicy<'a> {
    /// The rule's or the mesh's.
    Given(&'a LocalityLb),
    /// A service's traffic distribution: ranking by labels, failing over even without ejection.
    Distribution(&'static [&'static str]),
}

/// Returns the locality policy of a cluster: the rule's, the service's or the mesh's.
fn locality_policy<'a>(
    config: &'a MeshConfig,
    blocks: Blocks<'a>,
    service: &Service,
) -> Option<LocalityPolicy<'a>> {
    let enabled = |policy: &&LocalityLb| policy.enabled != Some(false);
    if let Some(policy) = blocks.load_balancer.and_then(|balancer| balancer.locality.as_ref()) {
        return Some(policy).filter(enabled).map(LocalityPolicy::Given);
    }
    match service.traffic_distribution.labels() {
        [] => Some(&config.locality_lb).filter(enabled).map(LocalityPolicy::Given),
        labels => Some(LocalityPolicy::Distribution(labels)),
    }
}

/// Returns whether a cluster weighs its localities: where weights or ranks of them are given, and act.
pub(crate) fn weighs_localities(config: &MeshConfig, blocks: Blocks<'_>, service: &Service) -> bool {
    match locality_policy(config, blocks, service) {
        None => false,
        Some(LocalityPolicy::Distribution(_)) => true,
        Some(LocalityPolicy::Given(policy)) => {
            let ranked = !policy.failover.is_empty() || !policy.failover_priority.is_empty();
            !policy.distribute.is_empty() || (ranked && blocks.outlier_detection.is_some())
        }
    }
}

fn spread(config: &MeshConfig, audience: &OutboundAudience, blocks: Blocks<'_>, service: &Service) -> Spread {
    let value = |name: &str| Str::from(audience.failover_labels.get(name).unwrap_or_default());
    let policy = match locality_policy(config, blocks, service) {
        None => return Spread::Even,
        Some(LocalityPolicy::Distribution(labels)) => {
            let labels = labels.iter().map(|&name| (name.into(), value(name))).collect();
            return Spread::Failover { labels, closeness: None };
        }
        Some(LocalityPolicy::Given(policy)) => policy,
    };
    if !policy.distribute.is_empty() {
        let applies =
            policy.distribute.iter().find(|entry| matches_locality(&audience.locality, &entry.from));
        return applies.map_or(Spread::Even, |entry| Spread::Shares(entry.to.clone()));
    }
    // Without ejection Envoy never finds out that a locality is down, and would never leave it.
    if blocks.outlier_detection.is_none() {
        return Spread::Even;
    }
    let labels: Vec<(Str, Str)> = policy
        .failover_priority
        .iter()
        .map(|entry| match entry.split_once('=') {
            Some((name, value)) => (name.into(), value.into()),
            None => (entry.clone(), value(entry)),
        })
        .collect();
    let by_closeness = labels.is_empty() || !policy.failover.is_empty();
    let closeness = by_closeness.then(|| Closeness {
        client: audience.locality.clone(),
        failover: policy
            .failover
            .iter()
            .find(|(from, _)| *from == audience.locality.region)
            .map(|(_, to)| to.clone()),
    });
    Spread::Failover { labels, closeness }
}

/// Whether `locality` is among those that `pattern` (`region/zone/subzone`, `*` for any) stands for.
fn matches_locality(locality: &Locality, pattern: &str) -> bool {
    let mut parts = pattern.splitn(3, '/');
    let region = parts.next().unwrap_or_default();
    let mut narrower = |actual: &Str| match parts.next() {
        None | Some("" | "*") => true,
        Some(part) => part == &**actual,
    };
    (region == "*" || region == &*locality.region) && narrower(&locality.zone) && narrower(&locality.subzone)
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

/// Returns the key of a cluster's endpoints.
pub(crate) fn key(config: &MeshConfig, audience: &OutboundAudience, of: &Of<'_>) -> AssignmentKey {
    let Of { service, port, .. } = *of;
    let subset = of.rule.and_then(|rule| rule.subset(of.subset));
    let marking = match of.rule.and_then(|rule| rule.marking_mode(port.port, of.subset)) {
        None => Marking::Capable,
        Some(ClientTlsMode::IstioMutual) => Marking::All,
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
        unhealthy: of.blocks.outlier_detection.is_none_or(|outlier| outlier.min_health_percent == 0),
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
            Marking::All => true,
            Marking::None => false,
        };
        // Whatever is behind a gateway that passes TLS through is reached by mutual TLS or not at all.
        if key.mtls_only && !mtls {
            continue;
        }
        by_locality.entry(&endpoint.locality).or_default().push(Member { endpoint, mtls });
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

/// The endpoints of one locality and priority.
struct Group<'a> {
    locality: &'a Locality,
    members: Vec<Member<'a>>,
    weight: u32,
    priority: u32,
}

impl<'a> Group<'a> {
    fn new(locality: &'a Locality, members: Vec<Member<'a>>, priority: u32) -> Self {
        let weight = members.iter().fold(0_u32, |sum, member| sum.saturating_add(member.weight()));
        Self { locality, members, weight, priority }
    }

    fn into_message(self) -> LocalityLbEndpoints {
        let Locality { region, zone, subzone } = self.locality;
        LocalityLbEndpoints {
            locality: Some(core::Locality {
                region: region.as_ref().to_owned(),
                zone: zone.as_ref().to_owned(),
                sub_zone: subzone.as_ref().to_owned(),
            }),
            lb_endpoints: self.members.into_iter().map(Member::into_message).collect(),
            load_balancing_weight: wire::u32_value(self.weight),
            priority: self.priority,
            ..LocalityLbEndpoints::default()
        }
    }
}

fn spread_out<'a>(spread: &Spread, mut groups: Vec<Group<'a>>) -> Vec<Group<'a>> {
    match spread {
        Spread::Even => {}
        Spread::Shares(shares) => share_out(shares, &mut groups),
        Spread::Failover { labels, closeness } => {
            if !labels.is_empty() {
                groups = groups.into_iter().flat_map(|group| rank_by_labels(labels, group)).collect();
            }
            if let Some(closeness) = closeness {
                for group in &mut groups {
                    // There are five ranks of closeness inside each rank by labels.
                    group.priority = group.priority * 5 + closeness.rank(group.locality);
                }
            }
            close_gaps(&mut groups);
        }
    }
    groups
}

/// Gives every locality its share. A share of several localities is divided by their weights and rounded up. Localities
/// without a share stay, without endpoints.
fn share_out(shares: &[(Str, u32)], groups: &mut [Group<'_>]) {
    let mut open: Vec<usize> = (0..groups.len()).collect();
    for (pattern, share) in shares {
        let (mine, rest): (Vec<usize>, Vec<usize>) =
            open.into_iter().partition(|&index| matches_locality(groups[index].locality, pattern));
        open = rest;
        let total: u64 = mine.iter().map(|&index| u64::from(groups[index].weight)).sum();
        for index in mine {
            let part = u64::from(groups[index].weight) * u64::from(*share);
            let part = part.div_ceil(total.max(1));
            // A share of zero leaves the weight as it was.
            if part > 0 {
                groups[index].weight = u32::try_from(part).unwrap_or(u32::MAX);
            }
        }
    }
    for index in open {
        groups[index].members.clear();
    }
}

/// Splits a group by how many leading labels its endpoints share with the client.
fn rank_by_labels<'a>(labels: &[(Str, Str)], group: Group<'a>) -> Vec<Group<'a>> {
    let mut by_rank: BTreeMap<usize, Vec<Member<'a>>> = BTreeMap::new();
    for member in group.members {
        let differs = |(name, value): &(Str, Str)| {
            member.endpoint.labels.get(name).unwrap_or_default() != value.as_ref()
        };
        let rank = labels.iter().position(differs).map_or(0, |first| labels.len() - first);
        by_rank.entry(rank).or_default().push(member);
    }
    let group_of =
        |(rank, members)| Group::new(group.locality, members, u32::try_from(rank).unwrap_or(u32::MAX));
    by_rank.into_iter().map(group_of).collect()
}

impl Closeness {
    fn rank(&self, locality: &Locality) -> u32 {
        let Locality { region, zone, subzone } = &self.client;
        if *region != locality.region {
            let is_preferred = self.failover.as_ref().is_none_or(|preferred| *preferred == locality.region);
            return if is_preferred { 3 } else { 4 };
        }
        match (*zone == locality.zone, *subzone == locality.subzone) {
            (true, true) => 0,
            (true, false) => 1,
            (false, _) => 2,
        }
    }
}

/// Envoy wants priorities without gaps, from 0.
fn close_gaps(groups: &mut [Group<'_>]) {
    let ranks: BTreeSet<u32> = groups.iter().map(|group| group.priority).collect();
    for group in groups {
        let position = ranks.iter().position(|rank| *rank == group.priority).unwrap_or_default();
        group.priority = u32::try_from(position).unwrap_or(u32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{
        World, endpoint, json, peer_authentication, policy, rule, scope_of, service, sidecar, subset,
    };
    use model::PeerAuthentication;
    use model::destination_rule::{
        ClientTls, DestinationRule, Distribute, LoadBalancer, OutlierDetection, PortPolicy,
    };
    use model::labels::topology;
    use model::service::TrafficDistribution;
    use serde_json::Value;

    const HOST: &str = "cart.app.svc.cluster.local";
    const CLUSTER: &str = "outbound|80||cart.app.svc.cluster.local";

    fn cart() -> Service {
        service(HOST, &[(80, model::Protocol::Http)])
    }

    fn at(ip: &str, locality: &str) -> Endpoint {
        let locality = Locality::parse(locality);
        let labels = [(topology::REGION, &locality.region), (topology::ZONE, &locality.zone)]
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| (name, value.clone()))
            .collect();
        Endpoint { labels, locality, ..endpoint(ip, 80) }
    }

    fn client_at(locality: &str) -> OutboundAudience {
        let locality = Locality::parse(locality);
        let failover_labels = [(topology::REGION, &locality.region), (topology::ZONE, &locality.zone)]
            .into_iter()
            .map(|(name, value)| (name, value.clone()))
            .collect();
        OutboundAudience { locality, failover_labels, ..sidecar() }
    }

    /// Returns one line a group: `region/zone p<priority> w<weight>: addresses`, where `!` marks unready endpoints and
    /// `*` those that take mutual TLS.
    fn lines(world: &World, audience: &OutboundAudience, cluster: &str) -> Vec<String> {
        let mesh = Mesh::new(world.view());
        let scope = scope_of(&mesh, audience);
        let key = select(&mesh, &scope, audience, cluster).expect("the cluster has an assignment");
        let message = json(&assignment(&mesh, &key));
        assert_eq!(message["clusterName"], cluster);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        message["endpoints"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|group| {
                let members = group["lbEndpoints"].as_array().into_iter().flatten().map(|member| {
                    let address = text(&member["endpoint"]["address"]["socketAddress"]["address"]);
                    let unready = if member["healthStatus"] == "UNHEALTHY" { "!" } else { "" };
                    let mark =
                        &member["metadata"]["filterMetadata"]["envoy.transport_socket_match"]["tlsMode"];
                    let mark = if mark == "istio" { "*" } else { "" };
                    format!(" {address}{unready}{mark}")
                });
                let place = [&group["locality"]["region"], &group["locality"]["zone"]].map(text).join("/");
                let priority = group["priority"].as_u64().unwrap_or_default();
                let weight = group["loadBalancingWeight"].as_u64().unwrap_or_default();
                format!("{place} p{priority} w{weight}:{}", members.collect::<String>())
            })
            .collect()
    }

    fn locality_rule(locality: LocalityLb, ejects: bool) -> DestinationRule {
        DestinationRule {
            policy: Some(policy(PortPolicy {
                load_balancer: Some(LoadBalancer { locality: Some(locality), ..LoadBalancer::default() }),
                outlier_detection: ejects.then(OutlierDetection::default),
                ..PortPolicy::default()
            })),
            ..rule("app", "cart", HOST)
        }
    }

    #[test]
    fn localities_are_weighed_and_ranked() {
        let three = [at("10.0.0.1", "west/a"), at("10.0.0.2", "west/b"), at("10.0.0.3", "east/a")];
        let plain = ["east/a p0 w1: 10.0.0.3*", "west/a p0 w1: 10.0.0.1*", "west/b p0 w1: 10.0.0.2*"];
        let region_first = ["east/a p2 w1: 10.0.0.3*", "west/a p0 w1: 10.0.0.1*", "west/b p1 w1: 10.0.0.2*"];
        let shares = |to: &[(&str, u32)]| LocalityLb {
            distribute: vec![Distribute {
                from: "west/*".into(),
                to: to.iter().map(|&(pattern, share)| (pattern.into(), share)).collect(),
            }],
            ..LocalityLb::default()
        };
        let failover =
            LocalityLb { failover: vec![("west".into(), "north".into())], ..LocalityLb::default() };
        let by_labels = |labels: &[&str]| LocalityLb {
            failover_priority: labels.iter().map(|&label| label.into()).collect(),
            ..LocalityLb::default()
        };
        let off = LocalityLb { enabled: Some(false), ..failover.clone() };
        let cases: &[(&str, Option<(LocalityLb, bool)>, &str, &[&str])] = &[
            ("no rule", None, "west/a", &plain),
            (
                "closeness without ejection does nothing",
                Some((LocalityLb::default(), false)),
                "west/a",
                &plain,
            ),
            ("closeness", Some((LocalityLb::default(), true)), "west/a", &region_first),
            ("switched off", Some((off, true)), "west/a", &plain),
            (
                "the named region is preferred to others",
                Some((failover.clone(), true)),
                "west/b",
                &["east/a p2 w1: 10.0.0.3*", "west/a p1 w1: 10.0.0.1*", "west/b p0 w1: 10.0.0.2*"],
            ),
            (
                "shares, rounded up; others stay without endpoints",
                Some((shares(&[("west/*", 75)]), false)),
                "west/a",
                &["east/a p0 w1:", "west/a p0 w38: 10.0.0.1*", "west/b p0 w38: 10.0.0.2*"],
            ),
            ("shares of another client", Some((shares(&[("west/*", 75)]), false)), "north/a", &plain),
            (
                "labels",
                Some((by_labels(&[topology::REGION, topology::ZONE]), true)),
                "east/b",
                &["east/a p0 w1: 10.0.0.3*", "west/a p1 w1: 10.0.0.1*", "west/b p1 w1: 10.0.0.2*"],
            ),
            (
                "a label with a value is not compared with the client's",
                Some((by_labels(&["topology.kubernetes.io/zone=b"]), true)),
                "west/a",
                &["east/a p1 w1: 10.0.0.3*", "west/a p1 w1: 10.0.0.1*", "west/b p0 w1: 10.0.0.2*"],
            ),
        ];
        for (case, given, client, expected) in cases {
            let cart = cart();
            let mut world = World::new().service(&cart).endpoints(&cart, &three);
            if let Some((locality, ejects)) = given {
                world = world.rule(locality_rule(locality.clone(), *ejects));
            }
            assert_eq!(lines(&world, &client_at(client), CLUSTER), *expected, "{case}");
        }
    }

    #[test]
    fn traffic_distribution_needs_no_ejection_and_yields_to_a_rule() {
        let near = Service { traffic_distribution: TrafficDistribution::PreferSameZone, ..cart() };
        let three = [at("10.0.0.1", "west/a"), at("10.0.0.2", "west/b"), at("10.0.0.3", "east/a")];
        let world = World::new().service(&near).endpoints(&near, &three);
        let ranked = ["east/a p2 w1: 10.0.0.3*", "west/a p0 w1: 10.0.0.1*", "west/b p1 w1: 10.0.0.2*"];
        assert_eq!(lines(&world, &client_at("west/a"), CLUSTER), ranked);
        let world = world.rule(locality_rule(LocalityLb::default(), false));
        let even = ["east/a p0 w1: 10.0.0.3*", "west/a p0 w1: 10.0.0.1*", "west/b p0 w1: 10.0.0.2*"];
        assert_eq!(lines(&world, &client_at("west/a"), CLUSTER), even);
    }

    #[test]
    fn endpoints_are_chosen() {
        let cart = cart();
        let labelled =
            Endpoint { labels: [("version", "v1")].into_iter().collect(), ..endpoint("10.0.0.1", 80) };
        let all = [
            labelled,
            Endpoint { weight: Some(5), ..endpoint("10.0.0.2", 80) },
            Endpoint { health: Health::Unhealthy, ..endpoint("10.0.0.3", 80) },
            Endpoint { service_port: "other".into(), ..endpoint("10.0.0.4", 80) },
            Endpoint { network: "far".into(), node: Some("n1".into()), ..endpoint("10.0.0.5", 80) },
            Endpoint { address: Address::Dns("a.org".into()), ..endpoint("10.0.0.6", 80) },
        ];
        let strict = PortPolicy {
            outlier_detection: Some(OutlierDetection {
                min_health_percent: 10,
                ..OutlierDetection::default()
            }),
            ..PortPolicy::default()
        };
        let world = |service: &Service| {
            World::new().service(service).endpoints(service, &all).rule(DestinationRule {
                subsets: vec![
                    subset("v1", None),
                    model::destination_rule::Subset {
                        labels: Labels::new(),
                        ..subset("strict", Some(policy(strict.clone())))
                    },
                ],
                ..rule("app", "cart", HOST)
            })
        };
        let local = Service { node_local: true, ..cart.clone() };
        let on = |node: Option<&str>| OutboundAudience { node: node.map(Into::into), ..sidecar() };
        let mut near = sidecar();
        near.switches.network_view.insert("far".into());
        let everything = ["/ p0 w8: 10.0.0.1* 10.0.0.2* 10.0.0.3!* 10.0.0.5*"];
        let cases: &[(&str, &Service, OutboundAudience, &str, &[&str])] = &[
            ("all of the port, unready ones included", &cart, sidecar(), "", &everything),
            ("a subset", &cart, sidecar(), "v1", &["/ p0 w1: 10.0.0.1*"]),
            (
                "a share of ready ones leaves others out",
                &cart,
                sidecar(),
                "strict",
                &["/ p0 w7: 10.0.0.1* 10.0.0.2* 10.0.0.5*"],
            ),
            ("a network", &cart, near, "", &["/ p0 w1: 10.0.0.5*"]),
            ("the client's node", &local, on(Some("n1")), "", &["/ p0 w1: 10.0.0.5*"]),
            ("a client that does not say where it is", &local, on(None), "", &[]),
        ];
        for (case, service, audience, subset, expected) in cases {
            let cluster = format!("outbound|80|{subset}|{HOST}");
            assert_eq!(lines(&world(service), audience, &cluster), *expected, "{case}");
        }
    }

    #[test]
    fn marks_follow_labels_policies_and_rules() {
        let cart = cart();
        let both = [endpoint("10.0.0.1", 80), Endpoint { mtls: false, ..endpoint("10.0.0.2", 80) }];
        let tls = |mode| {
            let tls = ClientTls {
                mode,
                client_certificate: None,
                private_key: None,
                ca_certificates: None,
                credential_name: None,
                subject_alt_names: Vec::new(),
                sni: None,
                insecure_skip_verify: None,
                ca_crl: None,
            };
            DestinationRule {
                policy: Some(policy(PortPolicy { tls: Some(tls), ..PortPolicy::default() })),
                ..rule("app", "cart", HOST)
            }
        };
        let world = || World::new().service(&cart).endpoints(&cart, &both);
        let disable = peer_authentication("istio-system", MtlsMode::Disable);
        let by_port = PeerAuthentication {
            selector: Some(Labels::new()),
            mode: None,
            port_level: [(80, Some(MtlsMode::Disable))].into_iter().collect(),
            ..peer_authentication("app", MtlsMode::Strict)
        };
        let cases = [
            ("capable", world(), "/ p0 w2: 10.0.0.1* 10.0.0.2"),
            ("mesh says no", world().peer_authentication(disable.clone()), "/ p0 w2: 10.0.0.1 10.0.0.2"),
            (
                "namespace says yes",
                world()
                    .peer_authentication(disable)
                    .peer_authentication(peer_authentication("app", MtlsMode::Strict)),
                "/ p0 w2: 10.0.0.1* 10.0.0.2",
            ),
            ("port says no", world().peer_authentication(by_port), "/ p0 w2: 10.0.0.1 10.0.0.2"),
            (
                "rule: ISTIO_MUTUAL",
                world().rule(tls(ClientTlsMode::IstioMutual)),
                "/ p0 w2: 10.0.0.1* 10.0.0.2*",
            ),
            ("rule: SIMPLE", world().rule(tls(ClientTlsMode::Simple)), "/ p0 w2: 10.0.0.1 10.0.0.2"),
        ];
        for (case, world, expected) in cases {
            assert_eq!(lines(&world, &sidecar(), CLUSTER), [expected], "{case}");
        }
    }

    #[test]
    fn clients_that_differ_in_nothing_that_matters_share_a_key() {
        let cart = cart();
        let world = World::new().service(&cart).endpoints(&cart, &[endpoint("10.0.0.1", 80)]);
        let mesh = Mesh::new(world.view());
        let key = |audience: &OutboundAudience| {
            select(&mesh, &scope_of(&mesh, audience), audience, CLUSTER).unwrap()
        };
        let east = OutboundAudience { has_identity: false, ..client_at("east/a") };
        assert_eq!(key(&client_at("west/a")), key(&east));
    }

    #[test]
    fn an_assignment_reads_its_service_and_the_policies_only() {
        let cart = cart();
        let world = World::new().service(&cart).endpoints(&cart, &[endpoint("10.0.0.1", 80)]);
        let mesh = Mesh::new(world.view());
        let audience = sidecar();
        let key = select(&mesh, &scope_of(&mesh, &audience), &audience, CLUSTER).unwrap();
        let mesh = Mesh::new(world.view());
        assignment(&mesh, &key);
        let expected = BTreeSet::from([
            model::Key::Endpoints(cart.key.clone()),
            model::Key::MeshConfig,
            model::Key::PeerAuthentications("app".into()),
            model::Key::PeerAuthentications("istio-system".into()),
        ]);
        assert_eq!(mesh.into_reads(), expected);
    }

    #[test]
    fn names_without_an_assignment_have_no_key() {
        let cart = cart();
        let named = crate::fixtures::external(
            "a.org",
            model::service::Resolution::Dns,
            &[(80, model::Protocol::Http)],
        );
        let world = World::new().service(&cart).service(&named);
        let mesh = Mesh::new(world.view());
        let audience = sidecar();
        let scope = scope_of(&mesh, &audience);
        for name in [
            "outbound|81||cart.app.svc.cluster.local",
            "outbound|80|v9|cart.app.svc.cluster.local",
            "outbound|80||a.org",
            "outbound|80||x",
            "inbound|80||",
        ] {
            assert_eq!(select(&mesh, &scope, &audience, name), None, "{name}");
        }
    }

    #[test]
    fn workloads_are_named_by_their_canonical_service() {
        let labels = |labels: &[(&'static str, &'static str)]| labels.iter().copied().collect::<Labels>();
        let cases = [
            (labels(&[]), "cart-1;app;cart-1;;Kubernetes"),
            (labels(&[("app", "cart"), ("version", "v1")]), "cart-1;app;cart;v1;Kubernetes"),
            (
                labels(&[("app.kubernetes.io/name", "c"), ("app", "cart"), ("version", "latest")]),
                "cart-1;app;c;;Kubernetes",
            ),
        ];
        for (labels, expected) in cases {
            assert_eq!(workload_text(&Endpoint { labels, ..endpoint("10.0.0.1", 80) }), expected);
        }
    }
}
