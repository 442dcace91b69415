//! TCP proxies, and the rules of VirtualServices for connections that are not opened.

use super::chain::{Chain, Condition, Filters};
use super::{Context, access_log};
use crate::audience::OutboundAudience;
use crate::cluster;
use crate::destination_rule::{self, MergedRule};
use crate::names;
use crate::scope::Scope;
use crate::tls;
use crate::wire;
use ipnet::IpNet;
use model::destination_rule::{Algorithm, HashKey, Tunnel};
use model::service::Resolution;
use model::view::ServiceRow;
use model::virtual_service::{Destination, GatewayRef, L4Destination};
use model::{Hostname, Labels, Mesh, Namespace, ObjectKey, Protocol, ServiceKey, VirtualService};
use proto::envoy::config::listener::v3::Filter;
use proto::envoy::extensions::filters::network::mongo_proxy::v3::MongoProxy;
use proto::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3 as dynamic;
use proto::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use proto::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::weighted_cluster::ClusterWeight;
use proto::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, TunnelingConfig, WeightedCluster,
};
use proto::envoy::r#type::v3::{HashPolicy, hash_policy};
use proto::resource::Needs;
use std::sync::Arc;
use std::time::Duration;

/// Returns the filters of a chain whose bytes all go to `cluster`, as `virtualInbound` and the fixed chains do.
pub(super) fn to_cluster(
    context: &Context<'_>,
    cluster: &str,
    stat_prefix: &str,
    protocol: Protocol,
) -> Filters {
    let proxy = TcpProxy { access_log: access_log::requests(context.config), ..proxy(context, stat_prefix) };
    stack(proxy, Target::One(cluster.to_owned()), protocol)
}

/// Returns the filters of a chain that refuses connections, which is not worth a log line.
pub(super) fn to_black_hole() -> Filters {
    let proxy = TcpProxy { stat_prefix: names::BLACK_HOLE_CLUSTER.to_owned(), ..TcpProxy::default() };
    stack(proxy, Target::One(names::BLACK_HOLE_CLUSTER.to_owned()), Protocol::Tcp)
}

fn proxy(context: &Context<'_>, stat_prefix: &str) -> TcpProxy {
    TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        idle_timeout: context
            .switches
            .idle_timeout
            .and_then(|nanos| wire::duration(Duration::from_nanos(nanos))),
        ..TcpProxy::default()
    }
}

/// Where a TCP proxy sends connections.
enum Target {
    /// To one cluster.
    One(String),
    /// To several by weight.
    Weighted(Vec<(String, u32)>),
}

/// Puts the filter of the protocol, if it has one, in front of `proxy`.
fn stack(mut proxy: TcpProxy, target: Target, protocol: Protocol) -> Filters {
    let mut needs = Needs::default();
    proxy.cluster_specifier = Some(match target {
        Target::One(cluster) => {
            needs.clusters.insert(cluster.as_str().into());
            ClusterSpecifier::Cluster(cluster)
        }
        Target::Weighted(clusters) => {
            needs.clusters.extend(clusters.iter().map(|(name, _)| Arc::from(name.as_str())));
            let weight = |(name, weight)| ClusterWeight { name, weight, ..ClusterWeight::default() };
            ClusterSpecifier::WeightedClusters(WeightedCluster {
                clusters: clusters.into_iter().map(weight).collect(),
            })
        }
    });
    let mut filters: Vec<Filter> = Vec::with_capacity(2);
    if protocol == Protocol::Mongo {
        let config = MongoProxy { stat_prefix: proxy.stat_prefix.clone(), ..MongoProxy::default() };
        filters.push(wire::network_filter("envoy.filters.network.mongo_proxy", &config));
    }
    filters.push(wire::network_filter("envoy.filters.network.tcp_proxy", &proxy));
    Filters { filters, needs }
}

/// Where the connections come from that rules are applied to.
#[derive(Clone, Copy)]
pub(super) struct L4<'a, 'm> {
    /// The settings.
    pub context: &'a Context<'a>,
    /// The mesh.
    pub mesh: &'a Mesh<'m>,
    /// What is visible.
    pub scope: &'a Scope,
    /// For whom.
    pub audience: &'a OutboundAudience,
}

impl<'m> L4<'_, 'm> {
    /// Returns the row of the service that `host` stands for.
    fn row(self, host: &Hostname) -> Option<&'m ServiceRow> {
        self.mesh.service_row(self.scope.service(host)?).map(AsRef::as_ref)
    }

    /// Returns the cluster of `destination` for a listener on `port`, and the service's key.
    fn cluster(self, destination: &Destination, port: u16) -> (String, Hostname, u16, Option<Namespace>) {
        let row = self.row(&destination.host);
        let only = row.and_then(|row| match row.ports.as_slice() {
            [only] => Some(only.port),
            _ => None,
        });
        let port = destination.port.or(only).unwrap_or(port);
        let host = row.and_then(|row| row.alias.as_ref()).unwrap_or(&destination.host).clone();
        let subset = destination.subset.as_deref().unwrap_or_default();
        let name = names::outbound_cluster(port, subset, host.as_str());
        (name, host, port, row.map(|row| row.key.namespace.clone()))
    }

    /// Returns the name of the cluster of `destination`, for which no listener has a port.
    pub(super) fn cluster_name(self, destination: &Destination) -> String {
        self.cluster(destination, 0).0
    }

    fn rule(self, host: &Hostname, namespace: &Namespace) -> Option<Arc<MergedRule>> {
        destination_rule::lookup(self.mesh, self.audience, host, namespace)
    }

    /// Returns the filters of a chain that leads to a service's own cluster.
    pub(super) fn to_service(self, service: &ServiceKey, port: u16, listen: Protocol) -> Filters {
        let cluster = names::outbound_cluster(port, "", service.host.as_str());
        let rule = self.rule(&service.host, &service.namespace);
        let proxy = self.proxy(&cluster, rule.as_deref(), port, "");
        let mut filters = stack(proxy, Target::One(cluster), listen);
        self.say_what_is_inside(&mut filters, self.is_sniffed(&service.host, port));
        let dynamic = self.row(&service.host).is_some_and(|row| row.resolution == Resolution::DynamicDns);
        if dynamic && listen.is_tls() {
            filters.filters.insert(0, self.resolve_server_name(service, port));
        }
        filters
    }

    /// Returns the filter that resolves the name that a TLS client asks for.
    fn resolve_server_name(self, service: &ServiceKey, port: u16) -> Filter {
        let config = dynamic::FilterConfig {
            dns_cache_config: Some(cluster::dns_cache(self.audience, service.host.as_str())),
            port_specifier: Some(dynamic::filter_config::PortSpecifier::PortValue(port.into())),
            ..dynamic::FilterConfig::default()
        };
        wire::network_filter("envoy.filters.network.sni_dynamic_forward_proxy", &config)
    }

    /// Returns the filters of a chain for a rule's destinations, or nothing if none of them has a weight.
    pub(super) fn to_destinations(
        self,
        routes: &[L4Destination],
        from: &VirtualService,
        port: u16,
        listen: Protocol,
    ) -> Option<Filters> {
        if let [only] = routes {
            let (cluster, host, port, namespace) = self.cluster(&only.destination, port);
            let subset = only.destination.subset.as_deref().unwrap_or_default();
            let rule = namespace.and_then(|namespace| self.rule(&host, &namespace));
            let proxy = self.proxy(&cluster, rule.as_deref(), port, subset);
            let mut filters = stack(proxy, Target::One(cluster), listen);
            self.say_what_is_inside(&mut filters, self.is_sniffed(&host, port));
            return Some(filters);
        }
        let sniffed = routes.iter().filter(|route| route.weight > 0).any(|route| {
            let (_, host, port, _) = self.cluster(&route.destination, port);
            self.is_sniffed(&host, port)
        });
        let weighted: Vec<(String, u32)> = routes
            .iter()
            .filter(|route| route.weight > 0)
            .map(|route| (self.cluster(&route.destination, port).0, route.weight))
            .collect();
        if weighted.is_empty() {
            return None;
        }
        // One policy serves all: the first destination's, without regard to subsets.
        let (_, host, port, namespace) = self.cluster(&routes.first()?.destination, port);
        let rule = namespace.and_then(|namespace| self.rule(&host, &namespace));
        let key = &from.meta.key;
        let proxy = self.proxy(&format!("{}.{}", key.name, key.namespace), rule.as_deref(), port, "");
        let mut filters = stack(proxy, Target::Weighted(weighted), listen);
        self.say_what_is_inside(&mut filters, sniffed);
        Some(filters)
    }

    /// Whether it could be HTTP that is spoken on a port.
    fn is_sniffed(self, host: &Hostname, port: u16) -> bool {
        let port = self.row(host).and_then(|row| row.ports.iter().find(|known| known.port == port));
        port.is_some_and(|port| port.protocol.is_unsupported())
    }

    /// Where the cluster says HTTP to servers, says that it is not.
    fn say_what_is_inside(self, filters: &mut Filters, sniffed: bool) {
        if sniffed && self.audience.has_identity {
            let exchanges_metadata = tls::exchanges_metadata(self.context.switches);
            filters.filters.insert(0, tls::says_bytes(exchanges_metadata));
        }
    }

    fn proxy(self, stat_prefix: &str, rule: Option<&MergedRule>, port: u16, subset: &str) -> TcpProxy {
        let mut proxy = TcpProxy {
            access_log: access_log::requests(self.context.config),
            ..proxy(self.context, stat_prefix)
        };
        let blocks = rule.map(|rule| rule.port_policy(port, subset)).unwrap_or_default();
        if let Some(pool) = blocks.connection_pool.and_then(|pool| pool.tcp.as_ref()) {
            if let Some(idle_timeout) = pool.idle_timeout {
                proxy.idle_timeout = wire::duration(idle_timeout);
            }
            proxy.max_downstream_connection_duration = pool.max_connection_duration.and_then(wire::duration);
        }
        if rule.is_some_and(|rule| hashes_source(rule, subset)) {
            proxy.hash_policy = vec![HashPolicy {
                policy_specifier: Some(hash_policy::PolicySpecifier::SourceIp(hash_policy::SourceIp {})),
            }];
        }
        proxy.tunneling_config = rule.and_then(|rule| tunnel(rule, subset)).map(|tunnel| TunnelingConfig {
            hostname: names::host_port(&tunnel.target_host, tunnel.target_port),
            use_post: tunnel.post,
            ..TunnelingConfig::default()
        });
        proxy
    }
}

/// Returns whether connections are balanced by the client's address: of a rule's keys, the only one that bytes have.
/// Settings for single ports do not count here, only in the cluster.
fn hashes_source(rule: &MergedRule, subset: &str) -> bool {
    let of_subset = rule.subset(subset).and_then(|subset| subset.policy.as_ref());
    let balancer = of_subset
        .and_then(|policy| policy.base.load_balancer.as_ref())
        .or_else(|| rule.policy().and_then(|policy| policy.base.load_balancer.as_ref()));
    match balancer.map(|balancer| &balancer.algorithm) {
        Some(Algorithm::ConsistentHash(hash)) => hash.key == Some(HashKey::SourceIp(true)),
        _ => false,
    }
}

fn tunnel<'r>(rule: &'r MergedRule, subset: &str) -> Option<&'r Tunnel> {
    let of_subset = rule.subset(subset).and_then(|subset| subset.policy.as_ref());
    of_subset
        .and_then(|policy| policy.tunnel.as_ref())
        .or_else(|| rule.policy().and_then(|policy| policy.tunnel.as_ref()))
}

/// What the static conditions of a match are compared with; what is left is for Envoy to compare.
struct Static<'a> {
    gateways: &'a [GatewayRef],
    port: Option<u16>,
    labels: &'a Labels,
    namespace: Option<&'a Namespace>,
}

impl L4<'_, '_> {
    /// Returns whether a match with these conditions can apply to a sidecar's listener on `port`.
    fn applies(self, condition: &Static<'_>, port: u16) -> bool {
        (condition.gateways.is_empty() || condition.gateways.contains(&GatewayRef::Mesh))
            && (condition.labels.is_empty() || self.audience.sources.contains(condition.labels))
            && condition.port.is_none_or(|wanted| wanted == port)
            && condition.namespace.is_none_or(|wanted| *wanted == self.audience.namespace)
    }

    /// Returns the chains of a sidecar's listener on `port` for `service`: those that VirtualServices ask for, then, if
    /// they leave anything, the service's own.
    pub(super) fn chains(self, of: &ServiceListener<'_>) -> Vec<Chain> {
        let rules: Vec<&VirtualService> =
            of.rules.iter().filter_map(|key| self.mesh.virtual_service(key).map(AsRef::as_ref)).collect();
        match of.protocol.is_tls() {
            true => self.tls_chains(of, &rules),
            false => self.tcp_chains(of, &rules),
        }
    }

    fn tls_chains(self, of: &ServiceListener<'_>, rules: &[&VirtualService]) -> Vec<Chain> {
        let mut chains: Vec<Chain> = Vec::new();
        let mut seen: Vec<(Vec<String>, Vec<IpNet>)> = Vec::new();
        let mut matched = false;
        // The ranges of one match stay in force for those after it that have none.
        let mut ranges: Vec<IpNet> = of.range.into_iter().collect();
        let all = rules.iter().flat_map(|vs| vs.tls.iter().map(move |rule| (*vs, rule)));
        for (vs, rule, condition) in
            all.flat_map(|(vs, rule)| rule.matches.iter().map(move |condition| (vs, rule, condition)))
        {
            let given = Static {
                gateways: &condition.gateways,
                port: condition.port,
                labels: &condition.source_labels,
                namespace: condition.source_namespace.as_ref(),
            };
            if !self.applies(&given, of.port) {
                continue;
            }
            if !condition.destination_subnets.is_empty() {
                ranges = truncated(&condition.destination_subnets);
            }
            let mut key = (sorted(&condition.sni_hosts), truncated(&condition.destination_subnets));
            key.1.sort();
            if seen.contains(&key) {
                continue;
            }
            seen.push(key);
            let Some(server_names) = server_names(&condition.sni_hosts) else { continue };
            let Some(filters) = self.to_destinations(&rule.route, vs, of.port, of.protocol) else { continue };
            let condition = Condition { server_names, ranges: ranges.clone(), ..Condition::default() };
            let mut chain = Chain::new(condition, filters).with_handshake_limit();
            chain.metadata = Some(wire::config_metadata(&vs.meta.key));
            chains.push(chain);
            matched = true;
        }
        if !matched {
            // Where several services share the address, only the server name tells them apart.
            let server_names = match of.shares_address || of.range.is_some() {
                true => server_names(std::slice::from_ref(&of.service.host)),
                false => Some(Vec::new()),
            };
            if let Some(server_names) = server_names {
                let condition = Condition { server_names, ranges, ..Condition::default() };
                let filters = self.to_service(of.service, of.own_port, of.protocol);
                chains.push(Chain::new(condition, filters).with_handshake_limit());
            }
        }
        chains
    }

    fn tcp_chains(self, of: &ServiceListener<'_>, rules: &[&VirtualService]) -> Vec<Chain> {
        let mut chains: Vec<Chain> = Vec::new();
        let own: Vec<IpNet> = of.range.into_iter().collect();
        let ranged = |ranges: &[IpNet]| Condition { ranges: ranges.to_vec(), ..Condition::default() };
        for (vs, rule) in rules.iter().flat_map(|vs| vs.tcp.iter().map(move |rule| (*vs, rule))) {
            let applicable: Vec<_> = rule
                .matches
                .iter()
                .filter(|condition| {
                    let given = Static {
                        gateways: &condition.gateways,
                        port: condition.port,
                        labels: &condition.source_labels,
                        namespace: condition.source_namespace.as_ref(),
                    };
                    self.applies(&given, of.port)
                })
                .collect();
            let whole = rule.matches.is_empty()
                || applicable.iter().any(|condition| condition.destination_subnets.is_empty());
            if !whole && applicable.is_empty() {
                continue;
            }
            let Some(filters) = self.to_destinations(&rule.route, vs, of.port, of.protocol) else { continue };
            if whole {
                let mut chain = Chain::new(ranged(&own), filters).with_handshake_limit();
                chain.metadata = Some(wire::config_metadata(&vs.meta.key));
                chains.push(chain);
                return chains;
            }
            let mut subnets: Vec<IpNet> =
                applicable.iter().flat_map(|condition| truncated(&condition.destination_subnets)).collect();
            chains.push(Chain::new(ranged(&subnets), filters).with_handshake_limit());
            subnets.sort();
            if subnets == own {
                return chains;
            }
        }
        let filters = self.to_service(of.service, of.own_port, of.protocol);
        chains.push(Chain::new(ranged(&own), filters).with_handshake_limit());
        chains
    }
}

/// A service's port as a sidecar listens for it.
pub(super) struct ServiceListener<'a> {
    /// The service.
    pub service: &'a ServiceKey,
    /// The port that is listened on, which rules name.
    pub port: u16,
    /// The service's port behind it.
    pub own_port: u16,
    /// What is spoken there.
    pub protocol: Protocol,
    /// The range of addresses that is the service's.
    pub range: Option<IpNet>,
    /// Whether the listener's address says nothing about the service.
    pub shares_address: bool,
    /// The VirtualServices that may apply, in order of precedence.
    pub rules: &'a [ObjectKey],
}

fn truncated(ranges: &[IpNet]) -> Vec<IpNet> {
    ranges.iter().map(IpNet::trunc).collect()
}

fn sorted(hosts: &[Hostname]) -> Vec<String> {
    let mut names: Vec<String> = hosts.iter().map(|host| host.as_str().to_owned()).collect();
    names.sort();
    names
}

/// Returns the server names that a chain can match, sorted; empty if there is a `*` among `hosts`, which takes every
/// name. Nothing is returned if no name is left: Envoy knows wildcards only for whole labels.
pub(super) fn server_names(hosts: &[Hostname]) -> Option<Vec<String>> {
    if hosts.iter().any(|host| host.as_str() == "*") {
        return Some(Vec::new());
    }
    let mut names = sorted(hosts);
    names.dedup();
    names.retain(|name| !name.starts_with('*') || name.starts_with("*."));
    (!names.is_empty()).then_some(names)
}
