//! Who a resource is made for: the outcomes of selection that it may depend on, and nothing else.
//!
//! Proxies with equal audiences share results, so an audience never holds a label, a node id or raw metadata;
//! it holds what was decided from them. A generator cannot read what its audience does not carry, which is why
//! a memo keyed by the audience cannot be keyed by too little.

use crate::scope::ScopeKey;
use crate::shared::Shared;
use model::proxy::{Interception, ProxyRole};
use model::{Labels, Locality, MtlsMode, Namespace, ObjectKey, ProxySettings, ServiceKey, Str};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Everything that was decided about a proxy, one audience a family of generators. Parts are shared so that
/// comparing and hashing them is cheap.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Selection {
    /// For outbound clusters, listeners and routes, and for assignments.
    pub outbound: Shared<OutboundAudience>,
    /// For inbound clusters and listeners; sidecars only.
    pub inbound: Option<Shared<InboundAudience>>,
    /// For the listeners and routes of gateways; routers only.
    pub gateway: Option<Shared<GatewayAudience>>,
}

/// For whom outbound resources are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OutboundAudience {
    /// Sidecar, router or gRPC client.
    pub role: ProxyRole,
    /// The namespace whose private configuration applies.
    pub namespace: Namespace,
    /// The suffix that makes short names of this namespace, such as `default.svc.cluster.local`.
    pub dns_domain: Str,
    /// What it sees.
    pub scope: ScopeKey,
    /// The selectors of client labels (`sourceLabels`) in VirtualServices that select it.
    pub sources: BTreeSet<Labels>,
    /// The DestinationRules with a workload selector that select it.
    pub selected_rules: BTreeSet<ObjectKey>,
    /// The address families it can use.
    pub families: IpFamilies,
    /// Whether it has a workload certificate: only then may anything wait for one.
    pub has_identity: bool,
    /// How its traffic is captured.
    pub interception: Interception,
    /// Where it is.
    pub locality: Locality,
    /// Its network; empty for the default one.
    pub network: Str,
    /// Its cluster.
    pub cluster: Str,
    /// Its node, if a service in the mesh has a policy that depends on it (`internalTrafficPolicy: Local`).
    pub node: Option<Str>,
    /// Its values of the labels by which anything in the mesh ranks endpoints (`failoverPriority`, a service's traffic
    /// distribution), topology labels included.
    pub failover_labels: Labels,
    /// Its own addresses that are endpoints of headless services, to which it makes no listener.
    pub own_headless: BTreeSet<IpAddr>,
    /// What its metadata switches.
    pub switches: Switches,
}

impl OutboundAudience {
    /// Returns this audience for a client of which nobody knows where it is. Its endpoints differ, and names that it
    /// resolves; clusters that ask for endpoints, listeners, routes and secrets are the same.
    pub fn anywhere(&self) -> Shared<Self> {
        Shared::new(Self {
            locality: Locality::default(),
            node: None,
            failover_labels: Labels::new(),
            ..self.clone()
        })
    }
}

/// Address families that a proxy's own addresses show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpFamilies {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

/// What node metadata switches on or off in generated resources, parsed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Switches {
    /// `HTTP10`: HTTP/1.0 is accepted.
    pub http10: bool,
    /// `HTTP_PROXY_PORT`, or the mesh's: the explicit proxy's port, 0 for none.
    pub http_proxy_port: u16,
    /// `IDLE_TIMEOUT`, in nanoseconds: idle time of TCP connections through gateways and sidecars.
    pub idle_timeout: Option<u64>,
    /// `INBOUND_LISTENER_EXACT_BALANCE`.
    pub inbound_exact_balance: bool,
    /// `OUTBOUND_LISTENER_EXACT_BALANCE`.
    pub outbound_exact_balance: bool,
    /// `DNS_PROXY_ADDR`, if the workload's DNS queries are captured (`DNS_CAPTURE`): who answers them.
    pub dns_proxy: Option<SocketAddr>,
    /// `ISTIO_DUAL_STACK`: what the workload is sent is captured in both families, if it has addresses of both.
    pub dual_stack: bool,
    /// `UNPRIVILEGED_POD`: ports below 1024 cannot be bound.
    pub unprivileged: bool,
    /// Ports that the bootstrap's own listeners use (status, metrics), which generated listeners must avoid.
    pub reserved_ports: BTreeSet<u16>,
    /// `TLS_CLIENT_CERT_CHAIN`, `TLS_CLIENT_KEY`, `TLS_CLIENT_ROOT_CERT`: certificates in files.
    pub client_certificates: Option<CertificateFiles>,
    /// `TLS_SERVER_CERT_CHAIN`, `TLS_SERVER_KEY`, `TLS_SERVER_ROOT_CERT`.
    pub server_certificates: Option<CertificateFiles>,
    /// Names of extensions that the proxy lists and that stock Envoy lacks (`istio.…`): only these may be sent
    /// beyond the stock ones.
    pub extensions: BTreeSet<Str>,
    /// `PROXY_CONFIG`, or the mesh's settings of proxies.
    pub proxy: Arc<ProxySettings>,
    /// `REQUESTED_NETWORK_VIEW`: the networks whose endpoints it may see; empty for all.
    pub network_view: BTreeSet<Str>,
}

/// Certificates that the proxy reads from its own files.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CertificateFiles {
    /// The chain.
    pub certificate: Str,
    /// The key.
    pub private_key: Str,
    /// The authorities.
    pub root: Str,
}

/// For whom inbound resources are: the workload's services and policies.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InboundAudience {
    /// The outbound audience's namespace.
    pub namespace: Namespace,
    /// The scope, whose Sidecar may define the inbound listeners.
    pub scope: ScopeKey,
    /// The services that the workload is behind, oldest first, with the workload's port for each service port.
    /// `None` in the map for a named target port that the workload lacks.
    pub targets: Vec<ServiceTarget>,
    /// What its ports accept.
    pub mtls: InboundMtls,
    /// The address families it can use.
    pub families: IpFamilies,
    /// Its primary address, where an ingress listener or a DNS name needs it; the unspecified address otherwise.
    pub instance_ip: Option<IpAddr>,
    /// Whether it has a workload certificate.
    pub has_identity: bool,
    /// How its traffic is captured.
    pub interception: Interception,
    /// What its metadata switches.
    pub switches: Switches,
}

/// A service that a workload is behind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceTarget {
    /// The service.
    pub service: ServiceKey,
    /// The workload's port for each service port, in the service's order. A named target port that cannot be
    /// resolved is 0.
    pub ports: Vec<(u16, u16)>,
}

/// What a workload's ports accept, from the PeerAuthentications that apply to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InboundMtls {
    /// Ports without an entry of their own.
    pub default: MtlsMode,
    /// By workload port.
    pub ports: BTreeMap<u16, MtlsMode>,
}

impl InboundMtls {
    /// Returns what `port` accepts.
    pub fn of(&self, port: u16) -> MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.default)
    }
}

/// For whom gateway resources are: the Gateways that select the workload and how its Service maps ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GatewayAudience {
    /// The Gateways that select the workload, oldest first.
    pub gateways: Vec<ObjectKey>,
    /// The ports that a declared server port is really bound to: by declared port, from the Services of the
    /// workload. A port that is not here is bound as declared. Named target ports without a pod give 0.
    pub port_map: BTreeMap<u16, BTreeSet<u16>>,
    /// The same for each Gateway that names services of the workload instead of selecting it by labels. A port that
    /// is not here is not bound.
    pub service_ports: BTreeMap<ObjectKey, BTreeMap<u16, BTreeSet<u16>>>,
}
