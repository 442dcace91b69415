//! What a proxy sees: the services and rules that its Sidecar (or the absence of one) leaves visible.

use model::sidecar::{CaptureMode, OutboundTrafficPolicy, SidecarPort};
use model::{Hostname, Namespace, ObjectKey, ServiceKey, Str};
use std::collections::BTreeMap;

/// Identifies a scope: proxies with equal keys see the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScopeKey {
    /// The proxies' namespace.
    pub namespace: Namespace,
    /// The Sidecar that applies to them; none for the default scope (everything exported to the namespace).
    pub sidecar: Option<ObjectKey>,
    /// Whether they are gateways, which take no Sidecar.
    pub gateway: bool,
}

/// What is visible in a scope. Holds identities only: whoever wants contents reads them from the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The scope's key.
    pub key: ScopeKey,
    /// The outbound listeners, in the Sidecar's order with the one without a port last. A default scope has a
    /// single one without a port. VirtualServices that gateways use are in a gateway's scope as well.
    pub egress: Vec<EgressScope>,
    /// Every visible service by host, over all listeners, those pulled in by VirtualServices included.
    pub services: BTreeMap<Hostname, ScopedService>,
    /// The services of `services`, in order of age (the order in which conflicts are settled).
    pub service_order: Vec<ServiceKey>,
    /// What happens to traffic that no service claims.
    pub outbound_traffic_policy: OutboundTrafficPolicy,
}

impl Scope {
    /// Returns the service that `host` stands for in this scope.
    pub fn service(&self, host: &Hostname) -> Option<&ServiceKey> {
        self.services.get(host).map(|service| &service.key)
    }
}

/// A visible service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopedService {
    /// Which one: the same host may exist in several namespaces.
    pub key: ServiceKey,
    /// The only ports that are visible; none for all.
    pub ports: Option<Vec<u16>>,
}

/// An outbound listener of a scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressScope {
    /// Its port; none for all ports.
    pub port: Option<SidecarPort>,
    /// The address it binds.
    pub bind: Option<Str>,
    /// How traffic reaches it.
    pub capture_mode: CaptureMode,
    /// The services behind it, oldest first.
    pub services: Vec<ScopedService>,
    /// The VirtualServices that apply behind it, in order of precedence: the proxies' own namespace's first
    /// where Istio says so, then by age.
    pub virtual_services: Vec<ObjectKey>,
}
