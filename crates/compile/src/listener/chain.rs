//! Filter chains on their way to a listener: what they match, what they do, and what they need.

use crate::wire;
use ipnet::IpNet;
use proto::envoy::config::core::v3::{CidrRange, Metadata, TransportSocket};
use proto::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch};
use proto::resource::Needs;
use std::time::Duration;

/// How long a client may take for its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// What HTTP without TLS is recognised by, once the HTTP inspector has seen its first bytes.
pub(super) const PLAIN_HTTP: &[&str] = &["http/1.1", "h2c"];
/// Every ALPN that a client of the mesh may offer.
pub(super) const MESH: &[&str] =
    &["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// Those that say that HTTP is inside.
pub(super) const MESH_HTTP: &[&str] = &["istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// Those that leave it open.
pub(super) const MESH_TCP: &[&str] = &["istio-peer-exchange", "istio"];

/// The transport of a connection, as the TLS inspector sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Transport {
    /// Either.
    #[default]
    Any,
    /// No TLS.
    Raw,
    /// TLS.
    Tls,
}

/// What a connection must be like for a chain to take it. The default takes all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Condition {
    /// The port that it was sent to.
    pub port: Option<u16>,
    /// Ranges of addresses that it was sent to.
    pub ranges: Vec<IpNet>,
    /// Server names.
    pub server_names: Vec<String>,
    /// The transport.
    pub transport: Transport,
    /// Application protocols.
    pub alpn: &'static [&'static str],
}

impl Condition {
    /// Takes plain HTTP.
    pub(super) fn plain_http() -> Self {
        Self { transport: Transport::Raw, alpn: PLAIN_HTTP, ..Self::default() }
    }

    /// Returns whether every connection is taken.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether the TLS inspector is needed to decide.
    pub(super) fn needs_tls_inspector(&self) -> bool {
        !self.server_names.is_empty() || self.transport == Transport::Tls
    }

    /// Returns whether the HTTP inspector is needed to decide.
    pub(super) fn needs_http_inspector(&self) -> bool {
        self.alpn.contains(&"h2c")
    }

    /// Returns whether Envoy would find both to match the same connection equally well, and refuse the listener.
    pub(super) fn collides_with(&self, other: &Self) -> bool {
        let share = |a: &[String], b: &[String]| {
            (a.is_empty() && b.is_empty()) || a.iter().any(|name| b.contains(name))
        };
        let ranges = |a: &[IpNet], b: &[IpNet]| {
            (a.is_empty() && b.is_empty()) || a.iter().any(|range| b.contains(range))
        };
        let alpn = (self.alpn.is_empty() && other.alpn.is_empty())
            || self.alpn.iter().any(|protocol| other.alpn.contains(protocol));
        self.port == other.port
            && self.transport == other.transport
            && alpn
            && ranges(&self.ranges, &other.ranges)
            && share(&self.server_names, &other.server_names)
    }

    fn message(&self) -> FilterChainMatch {
        FilterChainMatch {
            destination_port: self.port.and_then(|port| wire::u32_value(port.into())),
            prefix_ranges: self.ranges.iter().map(cidr).collect(),
            server_names: self.server_names.clone(),
            transport_protocol: match self.transport {
                Transport::Any => "",
                Transport::Raw => "raw_buffer",
                Transport::Tls => "tls",
            }
            .to_owned(),
            application_protocols: self.alpn.iter().map(|&protocol| protocol.to_owned()).collect(),
            ..FilterChainMatch::default()
        }
    }
}

fn cidr(range: &IpNet) -> CidrRange {
    CidrRange {
        address_prefix: range.network().to_string(),
        prefix_len: wire::u32_value(range.prefix_len().into()),
    }
}

/// Filters, and what they need.
#[derive(Clone, Debug, Default)]
pub(super) struct Filters {
    /// The filters in order.
    pub filters: Vec<Filter>,
    /// The resources that they name.
    pub needs: Needs,
}

/// A filter chain.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    /// Its name; may be empty.
    pub name: String,
    /// What it takes.
    pub condition: Condition,
    /// What it does.
    pub filters: Filters,
    /// TLS towards the client.
    pub socket: Option<TransportSocket>,
    /// Where it comes from.
    pub metadata: Option<Metadata>,
    /// Whether the client's handshake has a time limit.
    pub limits_handshake: bool,
}

impl Chain {
    /// Makes a chain without a name.
    pub(super) fn new(condition: Condition, filters: Filters) -> Self {
        Self {
            name: String::new(),
            condition,
            filters,
            socket: None,
            metadata: None,
            limits_handshake: false,
        }
    }

    /// Makes a chain with a name.
    pub(super) fn named(name: impl Into<String>, condition: Condition, filters: Filters) -> Self {
        Self { name: name.into(), ..Self::new(condition, filters) }
    }

    /// Sets the time limit for handshakes.
    pub(super) fn with_handshake_limit(mut self) -> Self {
        self.limits_handshake = true;
        self
    }

    /// Returns the message; what the chain needs is added to `needs`.
    pub(super) fn into_message(self, needs: &mut Needs) -> FilterChain {
        let filter_chain_match = (!self.condition.is_empty()).then(|| self.condition.message());
        let mut own = self.filters.needs;
        needs.clusters.append(&mut own.clusters);
        needs.routes.append(&mut own.routes);
        needs.secrets.append(&mut own.secrets);
        FilterChain {
            name: self.name,
            filter_chain_match,
            filters: self.filters.filters,
            transport_socket: self.socket,
            metadata: self.metadata,
            transport_socket_connect_timeout: self
                .limits_handshake
                .then(|| wire::duration(HANDSHAKE_TIMEOUT))
                .flatten(),
            ..FilterChain::default()
        }
    }
}
