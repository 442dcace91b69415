//! What a sidecar sees and serves: Istio's Sidecar, parsed.

use crate::destination_rule::ConnectionPool;
use crate::gateway::ServerTls;
use crate::virtual_service::Destination;
use crate::{Hostname, Labels, Meta, Namespace, Protocol, Str};
use std::net::IpAddr;

/// Scope and listeners of some sidecars of a namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct Sidecar {
    /// The object.
    pub meta: Meta,
    /// The workloads it is for; none for the whole namespace (in the root namespace: the whole mesh).
    pub selector: Option<Labels>,
    /// Inbound listeners that replace those derived from services.
    pub ingress: Vec<IngressListener>,
    /// Outbound listeners; empty for everything in the mesh.
    pub egress: Vec<EgressListener>,
    /// What happens to traffic that no service claims; none for the mesh's policy.
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    /// Limits on inbound connections.
    pub inbound_connection_pool: Option<ConnectionPool>,
}

/// Traffic to destinations that no service claims.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OutboundTrafficPolicy {
    /// What is done.
    pub mode: OutboundMode,
    /// Where unknown traffic goes instead of its destination.
    pub egress_proxy: Option<Destination>,
}

/// Modes of [`OutboundTrafficPolicy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutboundMode {
    /// Refused.
    RegistryOnly,
    /// Let through.
    AllowAny,
    /// Let through; plain HTTP goes to whatever its host resolves to, not to the address it was sent to.
    AllowAnyDynamicDns,
}

/// The port of a Sidecar listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SidecarPort {
    /// The number; 0 for a Unix socket.
    pub number: u16,
    /// What is spoken.
    pub protocol: Protocol,
    /// The name.
    pub name: Str,
}

/// How traffic reaches a Sidecar listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CaptureMode {
    /// As the workload captures.
    #[default]
    Default,
    /// By iptables.
    Iptables,
    /// The application dials the listener itself.
    None,
}

/// An inbound listener.
#[derive(Clone, Debug, PartialEq)]
pub struct IngressListener {
    /// Its port.
    pub port: SidecarPort,
    /// The address it binds.
    pub bind: Option<Str>,
    /// How traffic reaches it.
    pub capture_mode: CaptureMode,
    /// Where the application is.
    pub default_endpoint: IngressEndpoint,
    /// TLS, where that is switched on.
    pub tls: Option<ServerTls>,
    /// Limits on connections, over the Sidecar's.
    pub connection_pool: Option<ConnectionPool>,
}

/// Where an inbound listener sends its traffic.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum IngressEndpoint {
    /// Where it was going.
    OriginalDestination,
    /// This port on the loopback address.
    Localhost(u16),
    /// This port on the workload's address.
    Instance(u16),
    /// A specific address and port.
    Address(IpAddr, u16),
    /// A Unix domain socket.
    Unix(Str),
}

/// An outbound listener and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressListener {
    /// Its port; none for every port.
    pub port: Option<SidecarPort>,
    /// The address it binds.
    pub bind: Option<Str>,
    /// How traffic reaches it.
    pub capture_mode: CaptureMode,
    /// What may be reached.
    pub hosts: Vec<EgressHost>,
}

/// `namespace/host` of an egress listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EgressHost {
    /// Which namespaces (`.` is resolved to the Sidecar's own, or for the mesh-wide one, left open).
    pub namespace: EgressNamespace,
    /// Which hosts.
    pub host: Hostname,
}

/// The namespace part of an [`EgressHost`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EgressNamespace {
    /// `*`.
    Any,
    /// `.`: the namespace of the workload that the Sidecar is applied to.
    Own,
    /// That namespace.
    Only(Namespace),
    /// `~`: none.
    Nobody,
}
