//! What translation depends on besides the object.

use crate::discovery::NamespaceSelector;
use model::{Hostname, Labels, MeshConfig, Namespace, Str};

/// What translation depends on besides the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The DNS domain of the cluster, such as `cluster.local`.
    pub domain: Str,
    /// What follows `name.namespace` where a name without dots is completed, such as `svc.cluster.local`; empty for
    /// nothing.
    pub short_name_suffix: Str,
    /// The namespace of mesh-wide objects.
    pub root_namespace: Namespace,
    /// The trust domain of workload identities.
    pub trust_domain: Str,
    /// The cluster that the objects are in.
    pub cluster: Str,
    /// Who sees objects that do not say it.
    pub default_export_to: DefaultExportTo,
    /// Selectors of the namespaces that are a part of the mesh; none for all.
    pub discovery: Vec<NamespaceSelector>,
    /// Whether a ServiceEntry is for its own namespace at most, whatever it says.
    pub private_service_entries: bool,
}

/// Who sees objects that do not say it, written as `exportTo` is. An empty list means everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DefaultExportTo {
    /// Services and ServiceEntries.
    pub service: Vec<Str>,
    /// VirtualServices.
    pub virtual_service: Vec<Str>,
    /// DestinationRules.
    pub destination_rule: Vec<Str>,
}

impl Context {
    /// Returns the context of a mesh in which objects are visible everywhere unless they say otherwise.
    pub fn new(mesh: &MeshConfig, cluster: impl Into<Str>) -> Self {
        Self {
            domain: mesh.domain.clone(),
            short_name_suffix: short_name_suffix(&mesh.domain),
            root_namespace: mesh.root_namespace.clone(),
            trust_domain: mesh.trust_domain.clone(),
            cluster: cluster.into(),
            default_export_to: DefaultExportTo::default(),
            discovery: Vec::new(),
            private_service_entries: false,
        }
    }

    /// Returns whether a namespace with these labels is a part of the mesh.
    pub fn discovers(&self, labels: &Labels) -> bool {
        self.discovery.is_empty() || self.discovery.iter().any(|selector| selector.selects(labels))
    }

    /// Completes a name without dots to the service of that name in `namespace`. Patterns, addresses and names with
    /// dots stand as they are, `name.namespace` included.
    pub(crate) fn complete_host(&self, host: &str, namespace: &str) -> Hostname {
        if host.is_empty() || host == "*" || host.contains('.') || host.parse::<std::net::IpAddr>().is_ok() {
            return Hostname::new(host);
        }
        match self.short_name_suffix.as_ref() {
            "" => Hostname::new(format!("{host}.{namespace}")),
            suffix => Hostname::new(format!("{host}.{namespace}.{suffix}")),
        }
    }
}

/// Returns what makes names of services in a cluster with this DNS domain whole.
pub(crate) fn short_name_suffix(domain: &str) -> Str {
    format!("svc.{domain}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_without_dots_are_completed() {
        let context = Context::new(&MeshConfig::default(), "c1");
        for (host, complete) in [
            ("cart", "cart.shop.svc.cluster.local"),
            ("cart.shop", "cart.shop"),
            ("*", "*"),
            ("*-old", "*-old.shop.svc.cluster.local"),
            ("2001:db8::1", "2001:db8::1"),
            ("", ""),
        ] {
            assert_eq!(context.complete_host(host, "shop").as_str(), complete);
        }
        let context = Context { short_name_suffix: "".into(), ..context };
        assert_eq!(context.complete_host("cart", "shop").as_str(), "cart.shop");
    }
}
