//! Type URLs, by which discovery requests name the kind of resource they want.

/// What precedes the full name of a message in a type URL.
pub const PREFIX: &str = "type.googleapis.com/";

/// `envoy.config.cluster.v3.Cluster`, served by CDS.
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// `envoy.config.endpoint.v3.ClusterLoadAssignment`, served by EDS.
pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// `envoy.config.listener.v3.Listener`, served by LDS.
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// `envoy.config.route.v3.RouteConfiguration`, served by RDS.
pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// `envoy.config.route.v3.ScopedRouteConfiguration`, served by SRDS.
pub const SCOPED_ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration";
/// `envoy.config.route.v3.VirtualHost`, served by VHDS.
pub const VIRTUAL_HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
/// `envoy.extensions.transport_sockets.tls.v3.Secret`, served by SDS.
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// `envoy.config.core.v3.TypedExtensionConfig`, served by ECDS.
pub const EXTENSION_CONFIG: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
/// `istio.networking.nds.v1.NameTable`, the DNS table of a node.
pub const NAME_TABLE: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";
/// `istio.mesh.v1alpha1.ProxyConfig`. Has no Rust type here.
pub const PROXY_CONFIG: &str = "type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig";

/// Returns the full name of the message that `type_url` names: what follows the last slash.
pub fn message_name(type_url: &str) -> &str {
    type_url.rsplit_once('/').map_or(type_url, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool;

    #[test]
    fn message_name_is_what_follows_the_last_slash() {
        assert_eq!(message_name(CLUSTER), "envoy.config.cluster.v3.Cluster");
        assert_eq!(message_name("a/b/c.D"), "c.D");
        assert_eq!(message_name("c.D"), "c.D");
    }

    #[test]
    fn type_urls_name_messages_of_the_pool() {
        for url in [
            CLUSTER,
            ENDPOINT,
            LISTENER,
            ROUTE,
            SCOPED_ROUTE,
            VIRTUAL_HOST,
            SECRET,
            EXTENSION_CONFIG,
            NAME_TABLE,
        ] {
            assert!(url.starts_with(PREFIX), "{url}");
            assert!(pool().get_message_by_name(message_name(url)).is_some(), "{url}");
        }
    }
}
