//! The kinds that are watched, and how they differ.

use k8s_api::core::{ConfigMap, EndpointSlice, Namespace, Node, Pod, Secret, Service};
use k8s_api::destination_rule::DestinationRule;
use k8s_api::gateway::Gateway;
use k8s_api::object::Object;
use k8s_api::peer_authentication::PeerAuthentication;
use k8s_api::reference_grant::ReferenceGrant;
use k8s_api::service_entry::ServiceEntry;
use k8s_api::sidecar::Sidecar;
use k8s_api::virtual_service::VirtualService;
use k8s_api::workload_entry::WorkloadEntry;
use kube::Resource;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// An object that can be watched.
pub(crate) trait Watched:
    Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
}

impl<K> Watched for K where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
}

/// Which answers to the first list stand for an empty one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absence {
    /// None: without this kind there is no mesh.
    Never,
    /// That the kind is not served: its CRD is not installed.
    NotServed,
    /// That it may not be listed: a mesh may do without. Right after an API server's start this may be a lie, so it
    /// has to be said for a while.
    Forbidden,
}

/// A kind whose objects are handed on.
pub(crate) trait Kind: Watched {
    /// The kind's name, which is also the source's.
    const NAME: &'static str;
    /// Which objects the API server leaves out.
    const FIELDS: Option<&'static str> = None;
    /// Whether a mesh can do without.
    const ABSENCE: Absence;

    /// Returns the object as others take it, or nothing if it is of no use to a mesh.
    fn into_object(self) -> Option<Object>;
}

macro_rules! kinds {
    ($absence:expr, $($kind:ident),+ => $prepare:expr) => {$(
        impl Kind for $kind {
            const NAME: &'static str = stringify!($kind);
            const ABSENCE: Absence = $absence;

            fn into_object(mut self) -> Option<Object> {
                let prepare: fn(&mut k8s_api::meta::ObjectMeta) = $prepare;
                prepare(&mut self.metadata);
                Some(Object::$kind(Box::new(self)))
            }
        }
    )+};
}

// Without its version, a Pod or Node whose status changed in a field that no mesh looks at equals what is known.
kinds!(Absence::Never, Service, EndpointSlice, Pod, Node, Namespace => |metadata| metadata.resource_version = None);
// Whoever reports on these writes to the version that was seen.
kinds!(Absence::NotServed, VirtualService, DestinationRule, Gateway, ServiceEntry, WorkloadEntry, Sidecar,
    PeerAuthentication, ReferenceGrant => |_metadata| ());

impl Kind for Secret {
    const NAME: &'static str = "Secret";
    /// Types that never hold a gateway's certificates. There is no "or" in selectors.
    const FIELDS: Option<&'static str> = Some(
        "type!=helm.sh/release.v1,type!=kubernetes.io/service-account-token,\
         type!=kubernetes.io/dockercfg,type!=kubernetes.io/dockerconfigjson,\
         type!=kubernetes.io/basic-auth,type!=kubernetes.io/ssh-auth,type!=bootstrap.kubernetes.io/token",
    );
    const ABSENCE: Absence = Absence::Forbidden;

    fn into_object(mut self) -> Option<Object> {
        const CERTIFICATES: &[&str] = &["tls.crt", "cert", "ca.crt", "cacert"];
        const OTHERS: &[&str] = &["tls.key", "key", "ca.crl", "crl", "tls.ocsp-staple"];
        if !CERTIFICATES.iter().any(|name| self.data.contains_key(*name)) {
            return None;
        }
        // What is not needed is not kept in memory.
        self.data.retain(|name, _| CERTIFICATES.contains(&name.as_str()) || OTHERS.contains(&name.as_str()));
        self.metadata.resource_version = None;
        Some(Object::Secret(Box::new(self)))
    }
}

impl Kind for ConfigMap {
    const NAME: &'static str = "ConfigMap";
    /// Those that are in every namespace, for pods to mount: nobody refers to them.
    const FIELDS: Option<&'static str> =
        Some("metadata.name!=kube-root-ca.crt,metadata.name!=istio-ca-root-cert");
    const ABSENCE: Absence = Absence::Forbidden;

    fn into_object(mut self) -> Option<Object> {
        const AUTHORITIES: &[&str] = &["ca.crt", "cacert", "ca.crl", "crl"];
        self.data.retain(|name, _| AUTHORITIES.contains(&name.as_str()));
        if !self.data.contains_key("ca.crt") && !self.data.contains_key("cacert") {
            return None;
        }
        self.metadata.resource_version = None;
        Some(Object::ConfigMap(Box::new(self)))
    }
}
