//! An encoded xDS resource, and named sets of them that share structure.
//!
//! A resource is encoded once, by whoever compiled it, and is never decoded on its way to a client: what the
//! protocol must know of its content (which other resources it names) travels beside the bytes.

use crate::google::protobuf::Any;
use bytes::{BufMut, Bytes, BytesMut};
use imbl::OrdMap;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// The kinds of resource that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each variant is the xDS resource of the same name")]
pub enum ResourceType {
    Cluster,
    ClusterLoadAssignment,
    Listener,
    RouteConfiguration,
    Secret,
}

impl ResourceType {
    /// Every type, in the order in which a proxy is made ready.
    pub const ALL: [Self; 5] =
        [Self::Cluster, Self::ClusterLoadAssignment, Self::Listener, Self::RouteConfiguration, Self::Secret];

    /// Returns the type URL.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::ClusterLoadAssignment => {
                "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
            }
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::RouteConfiguration => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        }
    }

    /// Returns the type with this URL.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|candidate| candidate.type_url() == url)
    }

    /// Returns the short name used in metrics and debug pages (`CDS`, `EDS`, …).
    pub fn short_name(self) -> &'static str {
        match self {
            Self::Cluster => "CDS",
            Self::ClusterLoadAssignment => "EDS",
            Self::Listener => "LDS",
            Self::RouteConfiguration => "RDS",
            Self::Secret => "SDS",
        }
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short_name())
    }
}

/// The names of other resources that a resource mentions. Kept sorted and without duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Clusters that traffic may be sent to.
    pub clusters: BTreeSet<Arc<str>>,
    /// Load assignments that a cluster asks for over ADS.
    pub assignments: BTreeSet<Arc<str>>,
    /// Route configurations that a listener asks for over ADS.
    pub routes: BTreeSet<Arc<str>>,
    /// Secrets that are asked for over ADS (not those of an agent's own SDS server).
    pub secrets: BTreeSet<Arc<str>>,
}

/// A virtual host of a route configuration: the unit that can be held back on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualHostFragment {
    /// Its name.
    pub name: Arc<str>,
    /// Its domains. No two virtual hosts of one route configuration may share one.
    pub domains: BTreeSet<Arc<str>>,
    /// The `virtual_hosts` field of the route configuration, tag and length included.
    pub field: Bytes,
    /// The clusters that its routes name.
    pub clusters: BTreeSet<Arc<str>>,
}

/// What a cluster waits for before it can take traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Warming {
    /// For its assignment, which the client asks for by name.
    Assignment,
    /// For a name to be resolved.
    Dns,
    /// For nothing but, perhaps, secrets.
    Nothing,
}

/// How a resource's bytes are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The encoded message.
    Whole(Bytes),
    /// A route configuration: the encoding of everything but its virtual hosts, then the virtual hosts. The
    /// concatenation of all of these is the encoded message (protobuf fields may come in any order).
    Fragments {
        /// Everything else.
        rest: Bytes,
        /// The virtual hosts in order.
        virtual_hosts: Vec<VirtualHostFragment>,
    },
}

/// An encoded resource. Two resources with equal versions have equal bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Resource {
    kind: ResourceType,
    name: Arc<str>,
    version: Arc<str>,
    bytes: Bytes,
    fragments: Option<Arc<[VirtualHostFragment]>>,
    rest: Bytes,
    needs: Arc<Needs>,
    warming: Warming,
}

impl Resource {
    /// Makes a resource from its encoded parts.
    pub fn new(kind: ResourceType, name: impl Into<Arc<str>>, body: Body, mut needs: Needs) -> Self {
        let (bytes, rest, fragments) = match body {
            Body::Whole(bytes) => (bytes.clone(), bytes, None),
            Body::Fragments { rest, virtual_hosts } => {
                let len = rest.len() + virtual_hosts.iter().map(|host| host.field.len()).sum::<usize>();
                let mut bytes = BytesMut::with_capacity(len);
                bytes.put_slice(&rest);
                for host in &virtual_hosts {
                    bytes.put_slice(&host.field);
                    needs.clusters.extend(host.clusters.iter().cloned());
                }
                (bytes.freeze(), rest, Some(Arc::from(virtual_hosts)))
            }
        };
        let version = version_of(&bytes);
        let warming = if kind == ResourceType::Cluster && !needs.assignments.is_empty() {
            Warming::Assignment
        } else {
            Warming::Nothing
        };
        Self { kind, name: name.into(), version, bytes, fragments, rest, needs: Arc::new(needs), warming }
    }

    /// Returns this cluster as one that warms by resolving a name (STRICT_DNS, LOGICAL_DNS).
    #[must_use]
    pub fn resolving_dns(mut self) -> Self {
        self.warming = Warming::Dns;
        self
    }

    /// Returns the type.
    pub fn kind(&self) -> ResourceType {
        self.kind
    }

    /// Returns the name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Returns the version: a hash of the bytes, equal on every replica and after every restart.
    pub fn version(&self) -> &Arc<str> {
        &self.version
    }

    /// Returns the encoded message.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns what the message names.
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// Returns what a cluster waits for before it can take traffic. [`Resource::new`] says `Assignment` for a cluster
    /// that needs one; other resources wait for nothing.
    pub fn warming(&self) -> Warming {
        self.warming
    }

    /// Returns the virtual hosts of a route configuration that was made of fragments.
    pub fn virtual_hosts(&self) -> Option<&[VirtualHostFragment]> {
        self.fragments.as_deref()
    }

    /// Returns this route configuration with other virtual hosts in place of its own. For resources that are not
    /// made of fragments that is the resource itself.
    pub fn with_virtual_hosts(&self, virtual_hosts: Vec<VirtualHostFragment>) -> Self {
        if self.fragments.is_none() {
            return self.clone();
        }
        let needs = Needs { clusters: self.shared_clusters().cloned().collect(), ..(*self.needs).clone() };
        let body = Body::Fragments { rest: self.rest.clone(), virtual_hosts };
        Self::new(self.kind, self.name.clone(), body, needs)
    }

    /// Returns the clusters that the resource names outside of its virtual hosts.
    pub fn shared_clusters(&self) -> impl Iterator<Item = &Arc<str>> {
        let fragments = self.virtual_hosts().unwrap_or_default();
        self.needs.clusters.iter().filter(|name| !fragments.iter().any(|host| host.clusters.contains(*name)))
    }

    /// Returns the message as an `Any`.
    pub fn to_any(&self) -> Any {
        Any { type_url: self.kind.type_url().to_owned(), value: self.bytes.clone() }
    }
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}@{}", self.kind, self.name, self.version)
    }
}

fn version_of(bytes: &[u8]) -> Arc<str> {
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(bytes)).into()
}

/// Resources of one type by name. Cloning is cheap, and a set made from another by few changes shares the rest
/// with it, so that comparing the two costs no more than the difference.
pub type ResourceSet = OrdMap<Arc<str>, Arc<Resource>>;

/// Everything that a client may be sent, by type. Clients with equal audiences share the sets.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Clusters.
    pub clusters: ResourceSet,
    /// Load assignments.
    pub assignments: ResourceSet,
    /// Listeners.
    pub listeners: ResourceSet,
    /// Route configurations.
    pub routes: ResourceSet,
    /// Secrets.
    pub secrets: ResourceSet,
    /// The last change of the client's subscriptions that was taken into account. A name subscribed to later that is
    /// missing here may still come; one subscribed to earlier does not exist. `u64::MAX`, the default, says that
    /// everything is here whether or not it is subscribed to.
    pub covers: u64,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            clusters: ResourceSet::new(),
            assignments: ResourceSet::new(),
            listeners: ResourceSet::new(),
            routes: ResourceSet::new(),
            secrets: ResourceSet::new(),
            covers: u64::MAX,
        }
    }
}

impl Snapshot {
    /// Returns the resources of type `kind`.
    pub fn of(&self, kind: ResourceType) -> &ResourceSet {
        match kind {
            ResourceType::Cluster => &self.clusters,
            ResourceType::ClusterLoadAssignment => &self.assignments,
            ResourceType::Listener => &self.listeners,
            ResourceType::RouteConfiguration => &self.routes,
            ResourceType::Secret => &self.secrets,
        }
    }

    /// Returns the resources of type `kind`, to change them.
    pub fn of_mut(&mut self, kind: ResourceType) -> &mut ResourceSet {
        match kind {
            ResourceType::Cluster => &mut self.clusters,
            ResourceType::ClusterLoadAssignment => &mut self.assignments,
            ResourceType::Listener => &mut self.listeners,
            ResourceType::RouteConfiguration => &mut self.routes,
            ResourceType::Secret => &mut self.secrets,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
    use prost::Message;

    fn fragment(name: &str, cluster: &str) -> VirtualHostFragment {
        let host = VirtualHost { name: name.to_owned(), ..VirtualHost::default() };
        let configuration = RouteConfiguration { virtual_hosts: vec![host], ..RouteConfiguration::default() };
        VirtualHostFragment {
            name: name.into(),
            domains: BTreeSet::from([name.into()]),
            field: configuration.encode_to_vec().into(),
            clusters: BTreeSet::from([cluster.into()]),
        }
    }

    #[test]
    fn fragments_make_up_the_message_and_its_needs() {
        let rest = RouteConfiguration { name: "80".to_owned(), ..RouteConfiguration::default() };
        let body = Body::Fragments {
            rest: rest.encode_to_vec().into(),
            virtual_hosts: vec![fragment("a", "one"), fragment("b", "two")],
        };
        let route = Resource::new(ResourceType::RouteConfiguration, "80", body, Needs::default());
        let message = RouteConfiguration::decode(route.bytes().clone()).expect("valid encoding");
        assert_eq!(message.name, "80");
        assert_eq!(message.virtual_hosts.len(), 2);
        assert_eq!(route.needs().clusters, BTreeSet::from(["one".into(), "two".into()]));

        let held_back = route.with_virtual_hosts(vec![fragment("a", "one")]);
        assert_eq!(held_back.needs().clusters, BTreeSet::from(["one".into()]));
        assert_ne!(held_back.version(), route.version());
        let back = held_back.with_virtual_hosts(route.virtual_hosts().expect("made of fragments").to_vec());
        assert_eq!(back, route);
    }

    #[test]
    fn a_version_says_what_the_bytes_are() {
        let make = |bytes: &'static [u8]| {
            Resource::new(
                ResourceType::Cluster,
                "a",
                Body::Whole(Bytes::from_static(bytes)),
                Needs::default(),
            )
        };
        assert_eq!(make(b"x").version(), make(b"x").version());
        assert_ne!(make(b"x").version(), make(b"y").version());
    }
}
