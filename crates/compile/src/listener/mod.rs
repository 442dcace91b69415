//! Listeners: where a proxy takes connections, and what it does with each kind of them.
//!
//! ```text
//! captured ─▶ virtualOutbound ─▶ 10.96.1.1_5432, 0.0.0.0_80, … (one listener an address and port)   [outbound]
//!                            └─▶ what no service claims                                             [fixed]
//! captured ─▶ virtualInbound ──▶ a few filter chains for each port of the workload                  [inbound]
//! dialled  ─▶ 0.0.0.0_8443 ────▶ the servers of Gateways                                            [gateway]
//! ```
//!
//! **Invariant:** no two filter chains of a listener match alike: Envoy would refuse all of it. Of two that do, the
//! first stays, which is the older service's or the older Gateway's.

mod access_log;
mod chain;
mod fixed;
mod gateway;
mod http;
mod inbound;
mod inspector;
mod outbound;
mod plan;
mod tcp;

pub use fixed::fixed;
pub use gateway::gateway;
pub use inbound::inbound;
pub use outbound::outbound;
pub use plan::{ListenerKey, outbound_plan};

use crate::audience::{IpFamilies, Switches};
use crate::tls;
use crate::wire;
use model::MeshConfig;
use prost::Message;
use proto::envoy::config::core::v3::Address;
use proto::envoy::config::listener::v3::listener::ConnectionBalanceConfig;
use proto::envoy::config::listener::v3::listener::connection_balance_config::{BalanceType, ExactBalance};
use proto::envoy::config::listener::v3::{AdditionalAddress, Filter, Listener, ListenerFilter};
use proto::resource::{Body, Needs, Resource, ResourceType};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Connections that a worker accepts before it goes on with others, on listeners that are really bound.
const ACCEPTS_AT_ONCE: u32 = 1;

/// The settings that every listener of a proxy is made with.
#[derive(Clone, Copy)]
struct Context<'a> {
    config: &'a MeshConfig,
    switches: &'a Switches,
    families: IpFamilies,
}

impl Context<'_> {
    /// The address of all interfaces.
    fn wildcard(&self) -> IpAddr {
        match self.families.v4 {
            true => Ipv4Addr::UNSPECIFIED.into(),
            false => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// The same in the other family, for proxies with both.
    fn second_wildcard(&self) -> Option<IpAddr> {
        (self.families.v4 && self.families.v6).then(|| Ipv6Addr::UNSPECIFIED.into())
    }

    /// Where captured connections of the other family arrive: nowhere, unless the proxy says that it captures both. An
    /// Envoy that cannot listen there would have no listener at all.
    fn second_captured(&self, port: u16) -> Vec<AdditionalAddress> {
        let ip = self.second_wildcard().filter(|_| self.switches.dual_stack);
        ip.map(|ip| AdditionalAddress {
            address: Some(wire::socket_address(ip, port)),
            ..AdditionalAddress::default()
        })
        .into_iter()
        .collect()
    }

    /// The address of the workload itself, as it dials.
    fn loopback(&self) -> IpAddr {
        match self.families.v4 {
            true => Ipv4Addr::LOCALHOST.into(),
            false => Ipv6Addr::LOCALHOST.into(),
        }
    }
}

/// Returns the filter that answers a client which agreed to swap workload metadata. A chain whose TLS agrees to it must
/// begin with this filter, or the client's metadata would reach the application.
fn metadata_exchange(switches: &Switches) -> Option<Filter> {
    let config = tls::metadata_exchange();
    tls::exchanges_metadata(switches).then(|| wire::network_filter(tls::METADATA_EXCHANGE, &config))
}

/// Returns how long the filters of a listener may look at a connection; without any there is nothing to wait for.
fn inspection_timeout(
    config: &MeshConfig,
    filters: &[ListenerFilter],
) -> Option<proto::google::protobuf::Duration> {
    match filters.is_empty() {
        true => wire::no_timeout(),
        false => wire::duration(config.protocol_detection_timeout),
    }
}

/// Returns the address to bind: `bind` is an address, or the path of a Unix socket.
fn address(bind: &str, port: u16) -> Address {
    match bind.starts_with("unix://") || bind.starts_with('/') || bind.starts_with('@') {
        true => wire::pipe(bind),
        false => wire::named_address(bind, port),
    }
}

fn exact_balance(wanted: bool) -> Option<ConnectionBalanceConfig> {
    wanted.then(|| ConnectionBalanceConfig { balance_type: Some(BalanceType::ExactBalance(ExactBalance {})) })
}

fn resource(listener: &Listener, needs: Needs) -> Resource {
    let body = Body::Whole(listener.encode_to_vec().into());
    Resource::new(ResourceType::Listener, listener.name.as_str(), body, needs)
}

/// Drops every chain that matches like one before it.
fn without_collisions(chains: Vec<chain::Chain>) -> Vec<chain::Chain> {
    let mut kept: Vec<chain::Chain> = Vec::with_capacity(chains.len());
    for chain in chains {
        if !kept.iter().any(|other| other.condition.collides_with(&chain.condition)) {
            kept.push(chain);
        }
    }
    kept
}

#[cfg(test)]
mod tests;
