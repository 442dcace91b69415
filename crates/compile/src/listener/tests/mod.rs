//! Tables: a mesh and an audience, and the listeners that they give, in a form that fits on a few lines.

mod gateway;
mod inbound;
mod outbound;

use model::service::Vip;
use model::virtual_service::{Destination, GatewayRef, L4Destination, L4Match, TcpRule, TlsMatch, TlsRule};
use model::{ExportTo, Kind, Labels, Service, VirtualService};
use prost::Message;
use proto::envoy::config::core::v3::{Address, address, socket_address};
use proto::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use proto::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use proto::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use proto::resource::Resource;

pub(super) fn decode(resource: &Resource) -> Listener {
    Listener::decode(resource.bytes().clone()).unwrap()
}

/// Every listener as `name address [listener filters]` and below it its chains as `condition > target`, where `*` is
/// the default chain and `tls` before the target means that TLS is terminated.
pub(super) fn described(resources: &[Resource]) -> String {
    let mut text = String::from("\n");
    for resource in resources {
        let listener = decode(resource);
        assert_eq!(resource.name().as_ref(), listener.name);
        check_needs(resource, &listener);
        let mut bind = address_text(listener.address.as_ref().unwrap());
        for additional in &listener.additional_addresses {
            bind = bind + "+" + &address_text(additional.address.as_ref().unwrap());
        }
        let filters: Vec<&str> =
            listener.listener_filters.iter().map(|filter| filter.name.rsplit('.').next().unwrap()).collect();
        let bound = if listener.bind_to_port == Some(false.into()) { "" } else { " bound" };
        text += &format!("{} {bind}{bound} [{}]\n", listener.name, filters.join(" "));
        for chain in &listener.filter_chains {
            text += &format!("  {} > {}\n", condition(chain), target(chain));
        }
        if let Some(chain) = &listener.default_filter_chain {
            text += &format!("  * > {}\n", target(chain));
        }
    }
    text
}

/// What a chain sends traffic to must be among what the resource needs.
fn check_needs(resource: &Resource, listener: &Listener) {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    for filter in chains.flat_map(|chain| &chain.filters) {
        match decoded(filter) {
            Decoded::Http(manager) => {
                if let Some(RouteSpecifier::Rds(rds)) = manager.route_specifier {
                    assert!(resource.needs().routes.contains(rds.route_config_name.as_str()));
                }
            }
            Decoded::Tcp(proxy) => match proxy.cluster_specifier.unwrap() {
                ClusterSpecifier::Cluster(cluster) => {
                    assert!(resource.needs().clusters.contains(cluster.as_str()));
                }
                ClusterSpecifier::WeightedClusters(weighted) => {
                    for cluster in weighted.clusters {
                        assert!(resource.needs().clusters.contains(cluster.name.as_str()));
                    }
                }
            },
            Decoded::Other(_) => {}
        }
    }
}

fn address_text(address: &Address) -> String {
    match address.address.as_ref().unwrap() {
        address::Address::SocketAddress(socket) => match socket.port_specifier.as_ref().unwrap() {
            socket_address::PortSpecifier::PortValue(port) => format!("{}:{port}", socket.address),
            other => panic!("{other:?}"),
        },
        address::Address::Pipe(pipe) => pipe.path.clone(),
        other => panic!("{other:?}"),
    }
}

fn condition(chain: &FilterChain) -> String {
    let Some(matched) = &chain.filter_chain_match else { return "-".to_owned() };
    let mut words = Vec::new();
    if let Some(port) = &matched.destination_port {
        words.push(format!(":{}", port.value));
    }
    for range in &matched.prefix_ranges {
        words.push(format!("{}/{}", range.address_prefix, range.prefix_len.unwrap().value));
    }
    if !matched.server_names.is_empty() {
        words.push(format!("sni={}", matched.server_names.join(",")));
    }
    if !matched.transport_protocol.is_empty() {
        words.push(matched.transport_protocol.clone());
    }
    if !matched.application_protocols.is_empty() {
        words.push(matched.application_protocols.join(","));
    }
    words.join(" ")
}

enum Decoded {
    Http(Box<HttpConnectionManager>),
    Tcp(Box<TcpProxy>),
    Other(String),
}

fn decoded(filter: &Filter) -> Decoded {
    let Some(filter::ConfigType::TypedConfig(config)) = &filter.config_type else { panic!("{filter:?}") };
    let config = config.value.clone();
    match filter.name.rsplit('.').next().unwrap() {
        "http_connection_manager" => Decoded::Http(Box::new(HttpConnectionManager::decode(config).unwrap())),
        "tcp_proxy" => Decoded::Tcp(Box::new(TcpProxy::decode(config).unwrap())),
        other => Decoded::Other(other.to_owned()),
    }
}

fn target(chain: &FilterChain) -> String {
    let mut words: Vec<String> = chain.transport_socket.iter().map(|_| "tls".to_owned()).collect();
    for filter in &chain.filters {
        words.push(match decoded(filter) {
            Decoded::Http(manager) => match manager.route_specifier.unwrap() {
                RouteSpecifier::Rds(rds) => format!("http {}", rds.route_config_name),
                RouteSpecifier::RouteConfig(routes) => format!("http {}", routes.name),
                other => panic!("{other:?}"),
            },
            Decoded::Tcp(proxy) => match proxy.cluster_specifier.unwrap() {
                ClusterSpecifier::Cluster(cluster) => cluster,
                ClusterSpecifier::WeightedClusters(weighted) => {
                    let shares = weighted.clusters.iter();
                    shares
                        .map(|share| format!("{}={}", share.name, share.weight))
                        .collect::<Vec<_>>()
                        .join(" ")
                }
            },
            Decoded::Other(name) => name,
        });
    }
    words.join(" ")
}

/// The connection managers of a listener.
pub(super) fn managers(resource: &Resource) -> Vec<HttpConnectionManager> {
    let listener = decode(resource);
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    chains
        .flat_map(|chain| &chain.filters)
        .filter_map(|filter| match decoded(filter) {
            Decoded::Http(manager) => Some(*manager),
            _ => None,
        })
        .collect()
}

/// The TCP proxies of a listener.
pub(super) fn proxies(resource: &Resource) -> Vec<TcpProxy> {
    let listener = decode(resource);
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    chains
        .flat_map(|chain| &chain.filters)
        .filter_map(|filter| match decoded(filter) {
            Decoded::Tcp(proxy) => Some(*proxy),
            _ => None,
        })
        .collect()
}

/// A service at these addresses, which may be ranges.
pub(super) fn at(mut service: Service, addresses: &[&str]) -> Service {
    service.vips = addresses
        .iter()
        .map(|address| match address.parse() {
            Ok(ip) => Vip::Ip(ip),
            Err(_) => Vip::Cidr(address.parse().unwrap()),
        })
        .collect();
    service
}

pub(super) fn virtual_service(name: &str, hosts: &[&str]) -> VirtualService {
    VirtualService {
        meta: crate::fixtures::meta(Kind::VirtualService, "app", name),
        hosts: hosts.iter().map(|&host| host.into()).collect(),
        gateways: vec![GatewayRef::Mesh],
        export_to: ExportTo::All,
        http: Vec::new(),
        tls: Vec::new(),
        tcp: Vec::new(),
    }
}

/// Destinations as `host`, `host:port` or `host:port=weight`.
pub(super) fn routes(texts: &[&str]) -> Vec<L4Destination> {
    let route = |text: &&str| {
        let (place, weight) = text.split_once('=').map_or((*text, 0), |(a, b)| (a, b.parse().unwrap()));
        let (host, port) =
            place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port.parse().unwrap())));
        L4Destination { destination: Destination { host: host.into(), subset: None, port }, weight }
    };
    texts.iter().map(route).collect()
}

pub(super) fn tls_rule(sni: &[&str], change: impl FnOnce(&mut TlsMatch), to: &[&str]) -> TlsRule {
    let sni_hosts = sni.iter().map(|&host| host.into()).collect();
    let mut matched = TlsMatch { sni_hosts, ..TlsMatch::default() };
    change(&mut matched);
    TlsRule { matches: vec![matched], route: routes(to) }
}

pub(super) fn tcp_rule(matches: &[L4Match], to: &[&str]) -> TcpRule {
    TcpRule { matches: matches.to_vec(), route: routes(to) }
}

pub(super) fn label(key: &str, value: &str) -> Labels {
    [(key, value)].into_iter().collect()
}
