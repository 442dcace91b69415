//! Which cluster a destination stands for, and what is hashed on the way there.

use crate::audience::OutboundAudience;
use crate::destination_rule::{self, MergedRule};
use crate::names;
use crate::scope::Scope;
use model::destination_rule::{Algorithm, ConsistentHash, HashKey, LoadBalancer, TrafficPolicy};
use model::service::Resolution;
use model::virtual_service::Destination;
use model::{Hostname, Mesh, Namespace, Service, ServiceKey};
use proto::envoy::config::route::v3::route_action::HashPolicy;
use proto::envoy::config::route::v3::route_action::hash_policy::{
    ConnectionProperties, Cookie, CookieAttribute, Header, PolicySpecifier, QueryParameter,
};

/// How many aliases of aliases are followed.
const MAX_ALIASES: usize = 8;

/// Finds what destinations stand for.
#[derive(Clone, Copy)]
pub(super) struct Destinations<'m, 'a> {
    pub(super) mesh: &'m Mesh<'a>,
    pub(super) scope: &'m Scope,
    pub(super) audience: &'m OutboundAudience,
}

/// How a destination without a port gets one.
#[derive(Clone, Copy, Debug)]
pub(super) enum DefaultPort<'n> {
    /// The listener's, whatever ports the destination has: sidecars.
    Listener(u16),
    /// The destination's only port, else the listener's. The destination is preferably a service of the rule's own
    /// namespace: gateways.
    OnlyPort {
        /// The listener's port.
        listener: u16,
        /// The rule's namespace.
        namespace: &'n Namespace,
    },
}

impl<'a> Destinations<'_, 'a> {
    /// Returns the cluster of `destination`. A host that nobody knows still has a name.
    pub(super) fn cluster(self, destination: &Destination, default: DefaultPort<'_>) -> String {
        let (service, port) = match default {
            DefaultPort::Listener(port) => (self.visible(&destination.host), port),
            DefaultPort::OnlyPort { listener, namespace } => {
                let service = self.preferring(&destination.host, namespace);
                let only = service.and_then(|service| match service.ports.as_slice() {
                    [port] => Some(port.port),
                    _ => None,
                });
                (service, only.unwrap_or(listener))
            }
        };
        let host = service.map_or(&destination.host, |service| self.behind_alias(service));
        let subset = destination.subset.as_deref().unwrap_or_default();
        names::outbound_cluster(destination.port.unwrap_or(port), subset, host.as_str())
    }

    /// Returns the host that a service's traffic really goes to: its own, or the end of a chain of aliases.
    pub(super) fn behind_alias(self, service: &'a Service) -> &'a Hostname {
        let mut service = service;
        for _ in 0..MAX_ALIASES {
            let Some(target) = service.alias.as_ref().filter(|_| service.resolution == Resolution::Alias)
            else {
                break;
            };
            match self.visible(target) {
                Some(next) if next.resolution == Resolution::Alias => service = next,
                _ => return target,
            }
        }
        &service.key.host
    }

    fn visible(self, host: &Hostname) -> Option<&'a Service> {
        self.mesh.service(self.scope.service(host)?).map(AsRef::as_ref)
    }

    fn preferring(self, host: &Hostname, namespace: &Namespace) -> Option<&'a Service> {
        let own = ServiceKey { host: host.clone(), namespace: namespace.clone() };
        self.mesh.service(&own).map(AsRef::as_ref).or_else(|| self.visible(host))
    }

    /// Returns what is hashed for requests to `destination`, or nothing if balancing is not by hash.
    pub(super) fn hash(self, destination: &Destination) -> Option<Hashed> {
        let service = self.scope.service(&destination.host)?;
        let rule = self.rule(service)?;
        let subset = destination.subset.as_deref().and_then(|name| rule.subset(name));
        let subset = subset.and_then(|subset| subset.policy.as_ref());
        let of = |policy: &'_ TrafficPolicy| {
            let at_port = destination.port.and_then(|port| port_hash(policy, port));
            at_port.or_else(|| base_hash(policy)).map(Hashed::of)
        };
        subset.and_then(of).or_else(|| rule.policy().and_then(of))
    }

    /// Returns what is hashed for requests to `port` of a service that no rule is about.
    pub(super) fn service_hash(self, service: &ServiceKey, port: u16) -> Option<Hashed> {
        let rule = self.rule(service)?;
        let policy = rule.policy()?;
        port_hash(policy, port).or_else(|| base_hash(policy)).map(Hashed::of)
    }

    fn rule(self, service: &ServiceKey) -> Option<std::sync::Arc<MergedRule>> {
        destination_rule::lookup(self.mesh, self.audience, &service.host, &service.namespace)
    }
}

/// The hashing that a destination's policy asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Hashed {
    /// What is hashed; nothing if the policy does not say.
    pub(super) policy: Option<HashPolicy>,
}

impl Hashed {
    fn of(hash: &ConsistentHash) -> Self {
        Self { policy: hash.key.as_ref().map(hash_policy) }
    }
}

fn consistent_hash(load_balancer: Option<&LoadBalancer>) -> Option<&ConsistentHash> {
    match &load_balancer?.algorithm {
        Algorithm::ConsistentHash(hash) => Some(hash),
        _ => None,
    }
}

fn base_hash(policy: &TrafficPolicy) -> Option<&ConsistentHash> {
    consistent_hash(policy.base.load_balancer.as_ref())
}

fn port_hash(policy: &TrafficPolicy, port: u16) -> Option<&ConsistentHash> {
    let (_, entry) = policy.port_level.iter().find(|(number, _)| *number == port)?;
    consistent_hash(entry.load_balancer.as_ref())
}

fn hash_policy(key: &HashKey) -> HashPolicy {
    let specifier = match key {
        HashKey::Header(name) => {
            PolicySpecifier::Header(Header { header_name: name.to_string(), ..Header::default() })
        }
        HashKey::Cookie { name, path, ttl, attributes } => PolicySpecifier::Cookie(Cookie {
            name: name.to_string(),
            ttl: ttl.map(Into::into),
            path: path.as_deref().unwrap_or_default().to_owned(),
            attributes: attributes
                .iter()
                .map(|(name, value)| CookieAttribute { name: name.to_string(), value: value.to_string() })
                .collect(),
        }),
        HashKey::SourceIp(source_ip) => {
            PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: *source_ip })
        }
        HashKey::QueryParameter(name) => {
            PolicySpecifier::QueryParameter(QueryParameter { name: name.to_string() })
        }
    };
    HashPolicy { policy_specifier: Some(specifier), ..HashPolicy::default() }
}
