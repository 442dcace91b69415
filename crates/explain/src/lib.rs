//! What Envoy would do with a call, read off the resources it was sent.
//!
//! **Invariant:** only resources are looked at, never the mesh they were made from, so an explanation is one of
//! what a proxy has and not of what it should have. Nothing here does I/O.
//!
//! The rules are those of Envoy's documentation: the listener by address, the filter chain by destination,
//! server name, transport and application protocol, the virtual host by the most specific domain, the first
//! route that matches.

mod filter_chain;
mod routing;

use prost::Message;
use proto::envoy::config::core::v3::SocketAddress;
use proto::envoy::config::core::v3::address::Address;
use proto::envoy::config::listener::v3::listener_filter::ConfigType as ListenerFilterConfig;
use proto::envoy::config::listener::v3::listener_filter_chain_match_predicate::Rule;
use proto::envoy::config::listener::v3::{FilterChain, Listener, ListenerFilterChainMatchPredicate, filter};
use proto::envoy::config::route::v3::virtual_host::TlsRequirementType;
use proto::envoy::config::route::v3::{RouteConfiguration, route, route_action};
use proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use proto::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use proto::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;

/// How a call reaches the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Straight to the port of a gateway.
    #[default]
    Gateway,
    /// Captured on its way out of a workload.
    Outbound,
    /// Captured on its way into a workload.
    Inbound,
}

/// What is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http,
    /// HTTP/2.
    Http2,
    /// Bytes.
    Tcp,
}

/// How the connection is secured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// Not at all.
    #[default]
    Plaintext,
    /// TLS without a client certificate.
    Tls,
    /// TLS with a client certificate of the mesh.
    Mutual,
}

/// A call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// How it reaches the proxy.
    pub mode: Mode,
    /// The address it was sent to; none for whatever the listener binds.
    pub address: Option<IpAddr>,
    /// The port it was sent to.
    pub port: u16,
    /// What is spoken.
    pub protocol: Protocol,
    /// How the connection is secured.
    pub tls: Tls,
    /// The application protocol that the TLS client offers.
    pub alpn: Option<String>,
    /// The server name that the client asks for, as the TLS inspector of a listener reads it.
    pub sni: Option<String>,
    /// The authority of the request.
    pub host: String,
    /// The path of the request, query included.
    pub path: String,
    /// The method of the request.
    pub method: String,
    /// Further headers, by lower-case name.
    pub headers: BTreeMap<String, String>,
    /// The name of the secret that a listener which takes mutual TLS of the mesh serves.
    pub mesh_secret: String,
}

impl Default for Call {
    fn default() -> Self {
        Self {
            mode: Mode::Gateway,
            address: None,
            port: 80,
            protocol: Protocol::Http,
            tls: Tls::Plaintext,
            alpn: None,
            sni: None,
            host: String::new(),
            path: "/".to_owned(),
            method: "GET".to_owned(),
            headers: BTreeMap::new(),
            mesh_secret: "default".to_owned(),
        }
    }
}

/// Why a call does not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Failure {
    NoListener,
    NoFilterChain,
    SeveralFilterChains,
    NoVirtualHost,
    NoRoute,
    TlsRequired,
    Protocol,
    Tls,
    MutualTls,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoListener => "no listener matched",
            Self::NoFilterChain => "no filter chains matched",
            Self::SeveralFilterChains => "multiple filter chains matched",
            Self::NoVirtualHost => "no virtual host matched",
            Self::NoRoute => "no route matched",
            Self::TlsRequired => "tls required, sending 301",
            Self::Protocol => "protocol error",
            Self::Tls => "invalid TLS",
            Self::MutualTls => "invalid mTLS",
        })
    }
}

/// How far a call gets. What it did not reach is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The listener.
    pub listener: String,
    /// The filter chain.
    pub filter_chain: String,
    /// The route configuration.
    pub route_configuration: String,
    /// The virtual host.
    pub virtual_host: String,
    /// The route.
    pub route: String,
    /// The cluster, if there is only one that it can be.
    pub cluster: String,
    /// The clusters by weight, if there are several.
    pub weighted_clusters: Vec<(String, u32)>,
    /// Why it does not arrive.
    pub failure: Option<Failure>,
}

/// What a proxy has.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    /// Its listeners.
    pub listeners: Vec<Listener>,
    /// Its route configurations, by name.
    pub routes: HashMap<String, RouteConfiguration>,
}

/// Follows `call` through `resources`.
pub fn explain(resources: &Resources, call: &Call) -> Outcome {
    let mut outcome = Outcome::default();
    outcome.failure = follow(resources, call, &mut outcome).err();
    outcome
}

fn follow(resources: &Resources, call: &Call, outcome: &mut Outcome) -> Result<(), Failure> {
    let listener = find_listener(&resources.listeners, call).ok_or(Failure::NoListener)?;
    outcome.listener.clone_from(&listener.name);
    let seen = inspect(listener, call);
    let chain = filter_chain::find(listener, &seen)?;
    outcome.filter_chain.clone_from(&chain.name);
    check_tls(chain, call)?;
    let Some(manager) = network_filter::<HttpConnectionManager>(chain) else {
        if let Some(proxy) = network_filter::<TcpProxy>(chain) {
            forward(&proxy, outcome);
        }
        return Ok(());
    };
    let is_opened = chain.transport_socket.is_some();
    if (call.tls != Tls::Plaintext && !is_opened) || call.protocol == Protocol::Tcp {
        return Err(Failure::Protocol);
    }
    let inline;
    let configuration = match &manager.route_specifier {
        Some(RouteSpecifier::RouteConfig(configuration)) => {
            inline = configuration;
            Some(inline)
        }
        Some(RouteSpecifier::Rds(rds)) => {
            outcome.route_configuration.clone_from(&rds.route_config_name);
            resources.routes.get(&rds.route_config_name)
        }
        _ => None,
    };
    let configuration = configuration.ok_or(Failure::NoVirtualHost)?;
    outcome.route_configuration.clone_from(&configuration.name);
    route_request(configuration, call, outcome)
}

fn route_request(
    configuration: &RouteConfiguration,
    call: &Call,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    let host = routing::virtual_host(configuration, &call.host).ok_or(Failure::NoVirtualHost)?;
    outcome.virtual_host.clone_from(&host.name);
    if host.require_tls == TlsRequirementType::All as i32 && call.tls == Tls::Plaintext {
        return Err(Failure::TlsRequired);
    }
    let route = host.routes.iter().find(|route| routing::matches(route, call)).ok_or(Failure::NoRoute)?;
    outcome.route.clone_from(&route.name);
    if let Some(route::Action::Route(action)) = &route.action {
        match &action.cluster_specifier {
            Some(route_action::ClusterSpecifier::Cluster(cluster)) => outcome.cluster.clone_from(cluster),
            Some(route_action::ClusterSpecifier::WeightedClusters(weighted)) => {
                let clusters = weighted.clusters.iter();
                outcome.weighted_clusters = clusters
                    .map(|c| (c.name.clone(), c.weight.as_ref().map_or(0, |weight| weight.value)))
                    .collect();
            }
            _ => {}
        }
    }
    Ok(())
}

fn forward(proxy: &TcpProxy, outcome: &mut Outcome) {
    match &proxy.cluster_specifier {
        Some(tcp_proxy::ClusterSpecifier::Cluster(cluster)) => outcome.cluster.clone_from(cluster),
        Some(tcp_proxy::ClusterSpecifier::WeightedClusters(weighted)) => {
            outcome.weighted_clusters =
                weighted.clusters.iter().map(|c| (c.name.clone(), c.weight)).collect();
        }
        None => {}
    }
}

/// The exact address wins over the wildcard; captured connections that nobody claims stay with the listener that
/// they were captured by.
fn find_listener<'a>(listeners: &'a [Listener], call: &Call) -> Option<&'a Listener> {
    let bound = |wanted: &dyn Fn(IpAddr) -> bool| {
        let is_it = |(ip, port)| port == call.port && wanted(ip);
        listeners.iter().find(|listener| socket(listener).is_some_and(is_it))
    };
    let named = |name: &str| listeners.iter().find(|listener| listener.name == name);
    if call.mode == Mode::Inbound {
        return named("virtualInbound");
    }
    let exact = call.address.and_then(|address| bound(&|ip| ip == address));
    // What captures connections is bound as well, so a call to its own port finds it by address. Gateways have no
    // such listener.
    exact.or_else(|| bound(&|ip| ip.is_unspecified())).or_else(|| named("virtualOutbound"))
}

fn socket(listener: &Listener) -> Option<(IpAddr, u16)> {
    use proto::envoy::config::core::v3::socket_address::PortSpecifier;
    let Some(Address::SocketAddress(SocketAddress { address, port_specifier, .. })) =
        &listener.address.as_ref()?.address
    else {
        return None;
    };
    let Some(PortSpecifier::PortValue(port)) = port_specifier else { return None };
    Some((address.parse().ok()?, u16::try_from(*port).ok()?))
}

/// What a listener's filters find out about a connection.
struct Seen<'a> {
    address: Option<IpAddr>,
    port: u16,
    server_name: Option<&'a str>,
    transport: &'static str,
    application: Option<&'a str>,
}

fn inspect<'a>(listener: &Listener, call: &'a Call) -> Seen<'a> {
    let sees_tls = has_filter(listener, "envoy.filters.listener.tls_inspector", call.port);
    let sees_http = has_filter(listener, "envoy.filters.listener.http_inspector", call.port);
    let is_tls = sees_tls && call.tls != Tls::Plaintext;
    let application = match call.protocol {
        _ if is_tls => call.alpn.as_deref(),
        _ if call.tls != Tls::Plaintext || !sees_http => None,
        Protocol::Http => Some("http/1.1"),
        Protocol::Http2 => Some("h2c"),
        Protocol::Tcp => None,
    };
    Seen {
        address: call.address,
        port: call.port,
        // A call that names a server counts as one whose name was seen, whatever its transport is said to be.
        server_name: call.sni.as_deref().filter(|_| sees_tls),
        transport: if is_tls { "tls" } else { "raw_buffer" },
        application,
    }
}

/// Returns whether the listener has the filter, and has not switched it off for connections to `port`.
fn has_filter(listener: &Listener, name: &str, port: u16) -> bool {
    listener.listener_filters.iter().any(|filter| {
        let is_it = filter.name == name
            || matches!(&filter.config_type, Some(ListenerFilterConfig::TypedConfig(any)) if any.type_url.ends_with(
                match name.rsplit('.').next() {
                    Some("tls_inspector") => "TlsInspector",
                    _ => "HttpInspector",
                }
            ));
        is_it && !filter.filter_disabled.as_ref().is_some_and(|predicate| holds(predicate, port))
    })
}

fn holds(predicate: &ListenerFilterChainMatchPredicate, port: u16) -> bool {
    match &predicate.rule {
        Some(Rule::OrMatch(set)) => set.rules.iter().any(|rule| holds(rule, port)),
        Some(Rule::AndMatch(set)) => set.rules.iter().all(|rule| holds(rule, port)),
        Some(Rule::NotMatch(rule)) => !holds(rule, port),
        Some(Rule::AnyMatch(any)) => *any,
        Some(Rule::DestinationPortRange(range)) => (range.start..range.end).contains(&i32::from(port)),
        None => false,
    }
}

/// Plain text cannot be taken by a chain that opens TLS, and only mutual TLS by one that serves the mesh's
/// certificate.
fn check_tls(chain: &FilterChain, call: &Call) -> Result<(), Failure> {
    use proto::envoy::config::core::v3::transport_socket::ConfigType;
    let Some(socket) = &chain.transport_socket else { return Ok(()) };
    if call.tls == Tls::Plaintext {
        return Err(Failure::Tls);
    }
    let context = match &socket.config_type {
        Some(ConfigType::TypedConfig(any)) => {
            DownstreamTlsContext::decode(any.value.clone()).unwrap_or_default()
        }
        None => DownstreamTlsContext::default(),
    };
    let common = context.common_tls_context.unwrap_or_default();
    let is_mesh =
        common.tls_certificate_sds_secret_configs.iter().any(|secret| secret.name == call.mesh_secret);
    if is_mesh == (call.tls == Tls::Mutual) { Ok(()) } else { Err(Failure::MutualTls) }
}

fn network_filter<M: prost::Name + Default>(chain: &FilterChain) -> Option<M> {
    chain.filters.iter().find_map(|filter| match &filter.config_type {
        Some(filter::ConfigType::TypedConfig(any)) if any.type_url == M::type_url() => {
            M::decode(any.value.clone()).ok()
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::envoy::config::core::v3::socket_address::PortSpecifier;

    fn listener(name: &str, address: &str, port: u32) -> Listener {
        let address = SocketAddress {
            address: address.to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..SocketAddress::default()
        };
        let address = Address::SocketAddress(address);
        let address = Some(proto::envoy::config::core::v3::Address { address: Some(address) });
        Listener { name: name.to_owned(), address, ..Listener::default() }
    }

    #[test]
    fn listeners_are_found_by_address_then_port_then_capture() {
        let listeners = [
            listener("virtualOutbound", "0.0.0.0", 15001),
            listener("virtualInbound", "0.0.0.0", 15006),
            listener("0.0.0.0_80", "0.0.0.0", 80),
            listener("10.0.0.1_80", "10.0.0.1", 80),
        ];
        let find = |mode, address: &str, port| {
            let call = Call { mode, address: address.parse().ok(), port, ..Call::default() };
            find_listener(&listeners, &call).map(|listener| listener.name.as_str())
        };
        assert_eq!(find(Mode::Outbound, "10.0.0.1", 80), Some("10.0.0.1_80"));
        assert_eq!(find(Mode::Outbound, "10.0.0.2", 80), Some("0.0.0.0_80"));
        assert_eq!(find(Mode::Outbound, "10.0.0.1", 81), Some("virtualOutbound"));
        assert_eq!(find(Mode::Inbound, "10.0.0.1", 80), Some("virtualInbound"));
        assert_eq!(find(Mode::Gateway, "10.0.0.1", 15006), Some("virtualInbound"));
    }

    #[test]
    fn a_server_name_counts_where_something_reads_it() {
        let inspector = proto::envoy::config::listener::v3::ListenerFilter {
            name: "envoy.filters.listener.tls_inspector".to_owned(),
            ..Default::default()
        };
        let blind = listener("a", "0.0.0.0", 443);
        let reading = Listener { listener_filters: vec![inspector], ..blind.clone() };
        let call = Call { sni: Some("a.test".to_owned()), port: 443, ..Call::default() };
        assert_eq!(inspect(&reading, &call).server_name, Some("a.test"));
        assert_eq!(inspect(&blind, &call).server_name, None);
    }
}
