//! What discovery services hand out.

use crate::envoy::config::cluster::v3::Cluster;
use crate::envoy::config::core::v3::TypedExtensionConfig;
use crate::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::envoy::config::listener::v3::Listener;
use crate::envoy::config::route::v3::{RouteConfiguration, ScopedRouteConfiguration, VirtualHost};
use crate::envoy::extensions::transport_sockets::tls::v3::Secret;
use crate::type_url;

/// A message that a discovery service hands out by name.
pub trait DiscoveryMessage: prost::Name + Default + Clone + PartialEq {
    /// The type URL of the message.
    const TYPE_URL: &'static str;

    /// Returns the name under which the resource is asked for.
    fn resource_name(&self) -> &str;
}

macro_rules! resources {
    ($($message:ty, $type_url:ident, $name:ident;)*) => {
        $(impl DiscoveryMessage for $message {
            const TYPE_URL: &'static str = type_url::$type_url;

            fn resource_name(&self) -> &str {
                &self.$name
            }
        })*
    };
}

resources! {
    Cluster, CLUSTER, name;
    ClusterLoadAssignment, ENDPOINT, cluster_name;
    Listener, LISTENER, name;
    RouteConfiguration, ROUTE, name;
    ScopedRouteConfiguration, SCOPED_ROUTE, name;
    VirtualHost, VIRTUAL_HOST, name;
    Secret, SECRET, name;
    TypedExtensionConfig, EXTENSION_CONFIG, name;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agrees<R: DiscoveryMessage>() {
        assert_eq!(R::TYPE_URL, R::type_url());
    }

    #[test]
    fn type_urls_agree_with_the_generated_names() {
        agrees::<Cluster>();
        agrees::<ClusterLoadAssignment>();
        agrees::<Listener>();
        agrees::<RouteConfiguration>();
        agrees::<ScopedRouteConfiguration>();
        agrees::<VirtualHost>();
        agrees::<Secret>();
        agrees::<TypedExtensionConfig>();
    }
}
