//! What a resource says that matters to a proxy: the other resources it names.
//!
//! Proxies of one process are sent the same resources, so each is decoded once for all of them.

use crate::wire;
use parking_lot::RwLock;
use prost::Message;
use proto::envoy::config::cluster::v3::Cluster;
use proto::envoy::config::cluster::v3::cluster::ClusterDiscoveryType;
use proto::envoy::config::cluster::v3::cluster::DiscoveryType;
use proto::envoy::config::core::v3::HealthStatus;
use proto::envoy::config::core::v3::address::Address;
use proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use proto::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use proto::envoy::config::listener::v3::filter::ConfigType;
use proto::envoy::config::listener::v3::{Filter, Listener};
use proto::envoy::config::route::v3::RouteConfiguration;
use proto::envoy::config::route::v3::route::Action;
use proto::envoy::config::route::v3::route_action::ClusterSpecifier;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use proto::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use proto::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy;
use proto::resource::ResourceType;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// What a resource says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: Arc<str>,
    /// The assignment that a cluster asks for.
    pub assignment: Option<Arc<str>>,
    /// The clusters that a route or listener sends traffic to, each with the sum of its weights.
    pub clusters: BTreeMap<Arc<str>, u32>,
    /// The route configurations that a listener asks for.
    pub routes: BTreeSet<Arc<str>>,
    /// The healthy addresses of an assignment.
    pub addresses: BTreeSet<String>,
}

/// The facts of all resources that were met, by what they hold.
#[derive(Debug, Default)]
pub struct Library {
    known: RwLock<HashMap<u128, Arc<Facts>>>,
}

impl Library {
    /// Returns what an encoded `Resource` envelope says.
    pub fn read(&self, kind: ResourceType, envelope: &[u8]) -> Arc<Facts> {
        let hash = xxhash_rust::xxh3::xxh3_128(envelope);
        if let Some(facts) = self.known.read().get(&hash) {
            return facts.clone();
        }
        let (name, message) = wire::envelope(envelope);
        let facts = Arc::new(Facts { name: name.into(), ..decode(kind, message) });
        self.known.write().entry(hash).or_insert(facts).clone()
    }
}

/// A message that does not decode names nothing; the proxies would reject it, which shows as a lack of convergence.
fn decode(kind: ResourceType, message: &[u8]) -> Facts {
    match kind {
        ResourceType::Cluster => Cluster::decode(message).map(|cluster| of_cluster(&cluster)),
        ResourceType::ClusterLoadAssignment => {
            ClusterLoadAssignment::decode(message).map(|assignment| of_assignment(&assignment))
        }
        ResourceType::Listener => Listener::decode(message).map(|listener| of_listener(&listener)),
        ResourceType::RouteConfiguration => RouteConfiguration::decode(message)
            .map(|route| Facts { clusters: clusters_of(&route), ..Facts::default() }),
        ResourceType::Secret => Ok(Facts::default()),
    }
    .unwrap_or_default()
}

fn of_cluster(cluster: &Cluster) -> Facts {
    let is_eds = matches!(
        cluster.cluster_discovery_type,
        Some(ClusterDiscoveryType::Type(kind)) if kind == DiscoveryType::Eds as i32
    );
    let service = cluster.eds_cluster_config.as_ref().map(|eds| eds.service_name.as_str());
    let name = service.filter(|name| !name.is_empty()).unwrap_or(&cluster.name);
    Facts { assignment: is_eds.then(|| name.into()), ..Facts::default() }
}

fn of_assignment(assignment: &ClusterLoadAssignment) -> Facts {
    let healthy = |status: i32| {
        matches!(HealthStatus::try_from(status), Ok(HealthStatus::Unknown | HealthStatus::Healthy))
    };
    let endpoints = assignment.endpoints.iter().flat_map(|locality| &locality.lb_endpoints);
    let addresses = endpoints
        .filter(|endpoint| healthy(endpoint.health_status))
        .filter_map(|endpoint| match &endpoint.host_identifier {
            Some(HostIdentifier::Endpoint(endpoint)) => endpoint.address.as_ref()?.address.as_ref(),
            _ => None,
        })
        .filter_map(|address| match address {
            Address::SocketAddress(socket) => Some(socket.address.clone()),
            _ => None,
        });
    Facts { addresses: addresses.collect(), ..Facts::default() }
}

fn of_listener(listener: &Listener) -> Facts {
    let mut facts = Facts::default();
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    for filter in chains.flat_map(|chain| &chain.filters) {
        of_filter(filter, &mut facts);
    }
    facts
}

fn of_filter(filter: &Filter, facts: &mut Facts) {
    let Some(ConfigType::TypedConfig(config)) = &filter.config_type else { return };
    if config.type_url.ends_with(".HttpConnectionManager") {
        match HttpConnectionManager::decode(config.value.clone())
            .ok()
            .and_then(|manager| manager.route_specifier)
        {
            Some(RouteSpecifier::Rds(rds)) => drop(facts.routes.insert(rds.route_config_name.into())),
            Some(RouteSpecifier::RouteConfig(route)) => facts.clusters.extend(clusters_of(&route)),
            _ => {}
        }
    } else if config.type_url.ends_with(".TcpProxy") {
        let Ok(proxy) = TcpProxy::decode(config.value.clone()) else { return };
        match proxy.cluster_specifier {
            Some(tcp_proxy::ClusterSpecifier::Cluster(name)) => {
                facts.clusters.insert(name.into(), 1);
            }
            Some(tcp_proxy::ClusterSpecifier::WeightedClusters(weighted)) => {
                facts.clusters.extend(weighted.clusters.into_iter().map(|one| (one.name.into(), one.weight)));
            }
            _ => {}
        }
    }
}

fn clusters_of(route: &RouteConfiguration) -> BTreeMap<Arc<str>, u32> {
    let mut clusters = BTreeMap::new();
    let mut add = |name: &str, weight: u32| *clusters.entry(Arc::from(name)).or_default() += weight;
    let actions =
        route.virtual_hosts.iter().flat_map(|host| &host.routes).filter_map(|route| match &route.action {
            Some(Action::Route(action)) => Some(action),
            _ => None,
        });
    for action in actions {
        match &action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) => add(name, 1),
            Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                for cluster in &weighted.clusters {
                    add(&cluster.name, cluster.weight.map_or(0, |weight| weight.value));
                }
            }
            _ => {}
        }
        for mirror in action.request_mirror_policies.iter().filter(|mirror| !mirror.cluster.is_empty()) {
            add(&mirror.cluster, 0);
        }
    }
    clusters
}
