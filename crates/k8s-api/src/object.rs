//! One decoded object of any kind that Weft reads, and how objects are named.

use std::borrow::Cow;
use std::fmt;

use kube_core::Resource;

use crate::core::{ConfigMap, EndpointSlice, Namespace, Node, Pod, Secret, Service};
use crate::destination_rule::DestinationRule;
use crate::gateway::Gateway;
use crate::meta::ObjectMeta;
use crate::peer_authentication::PeerAuthentication;
use crate::reference_grant::ReferenceGrant;
use crate::service_entry::ServiceEntry;
use crate::sidecar::Sidecar;
use crate::virtual_service::VirtualService;
use crate::workload_entry::WorkloadEntry;

/// An object of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// Istio's VirtualService.
    VirtualService(Box<VirtualService>),
    /// Istio's DestinationRule.
    DestinationRule(Box<DestinationRule>),
    /// Istio's Gateway.
    Gateway(Box<Gateway>),
    /// Istio's ServiceEntry.
    ServiceEntry(Box<ServiceEntry>),
    /// Istio's WorkloadEntry.
    WorkloadEntry(Box<WorkloadEntry>),
    /// Istio's Sidecar.
    Sidecar(Box<Sidecar>),
    /// Istio's PeerAuthentication.
    PeerAuthentication(Box<PeerAuthentication>),
    /// The Gateway API's ReferenceGrant.
    ReferenceGrant(Box<ReferenceGrant>),
    /// Kubernetes' Service.
    Service(Box<Service>),
    /// Kubernetes' EndpointSlice.
    EndpointSlice(Box<EndpointSlice>),
    /// Kubernetes' Pod.
    Pod(Box<Pod>),
    /// Kubernetes' Node.
    Node(Box<Node>),
    /// Kubernetes' Namespace.
    Namespace(Box<Namespace>),
    /// Kubernetes' Secret.
    Secret(Box<Secret>),
    /// Kubernetes' ConfigMap.
    ConfigMap(Box<ConfigMap>),
    /// A kind that is not read, such as a Deployment.
    Other(ObjectKey),
}

/// Names an object among all objects. The version is not a part of it: an object is the same in all versions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The API group; empty for Kubernetes' core.
    pub group: Cow<'static, str>,
    /// The kind.
    pub kind: Cow<'static, str>,
    /// The namespace; empty for kinds without.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ObjectKey {
    /// Returns the key of an object of a kind known at compile time.
    pub fn of<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        let meta = object.meta();
        Self {
            group: K::group(&()).into_owned().into(),
            kind: K::kind(&()).into_owned().into(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name, .. } = self;
        match namespace.as_str() {
            "" => write!(f, "{kind} {name}"),
            namespace => write!(f, "{kind} {namespace}/{name}"),
        }
    }
}

macro_rules! for_each_kind {
    ($object:expr, $bound:ident => $body:expr, other $key:ident => $other:expr) => {
        match $object {
            Object::VirtualService($bound) => $body,
            Object::DestinationRule($bound) => $body,
            Object::Gateway($bound) => $body,
            Object::ServiceEntry($bound) => $body,
            Object::WorkloadEntry($bound) => $body,
            Object::Sidecar($bound) => $body,
            Object::PeerAuthentication($bound) => $body,
            Object::ReferenceGrant($bound) => $body,
            Object::Service($bound) => $body,
            Object::EndpointSlice($bound) => $body,
            Object::Pod($bound) => $body,
            Object::Node($bound) => $body,
            Object::Namespace($bound) => $body,
            Object::Secret($bound) => $body,
            Object::ConfigMap($bound) => $body,
            Object::Other($key) => $other,
        }
    };
}

impl Object {
    /// Returns the object's key.
    pub fn key(&self) -> ObjectKey {
        for_each_kind!(self, object => ObjectKey::of(object.as_ref()), other key => key.clone())
    }

    /// Returns the object's metadata, unless it is of a kind that is not read.
    pub fn metadata(&self) -> Option<&ObjectMeta> {
        for_each_kind!(self, object => Some(&object.metadata), other _key => None)
    }

    /// Returns the object as a JSON manifest, which [`crate::yaml`] reads back. Nothing is returned for Kubernetes' own
    /// kinds, of which only a part is known.
    pub fn manifest(&self) -> Option<String> {
        match self {
            Self::VirtualService(object) => serde_json::to_string(object).ok(),
            Self::DestinationRule(object) => serde_json::to_string(object).ok(),
            Self::Gateway(object) => serde_json::to_string(object).ok(),
            Self::ServiceEntry(object) => serde_json::to_string(object).ok(),
            Self::WorkloadEntry(object) => serde_json::to_string(object).ok(),
            Self::Sidecar(object) => serde_json::to_string(object).ok(),
            Self::PeerAuthentication(object) => serde_json::to_string(object).ok(),
            Self::ReferenceGrant(object) => serde_json::to_string(object).ok(),
            _ => None,
        }
    }

    pub(crate) fn metadata_mut(&mut self) -> Option<&mut ObjectMeta> {
        for_each_kind!(self, object => Some(&mut object.metadata), other _key => None)
    }
}
