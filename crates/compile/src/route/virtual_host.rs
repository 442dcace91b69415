//! Virtual hosts, put together from shared routes and encoded on their own.

use crate::wire;
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use proto::envoy::config::route::v3::route::Action;
use proto::envoy::config::route::v3::route_action::ClusterSpecifier;
use proto::envoy::config::route::v3::{Route, RouteConfiguration, VirtualHost};
use proto::resource::{Body, Needs, Resource, ResourceType, VirtualHostFragment};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

/// A virtual host whose routes may be shared with others.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    /// Everything but the routes.
    pub(super) host: VirtualHost,
    /// The routes, in order.
    pub(super) routes: Vec<Rc<Route>>,
}

impl Draft {
    /// Returns a virtual host with these names and routes.
    pub(super) fn new(name: String, domains: Vec<String>, routes: Vec<Rc<Route>>) -> Self {
        let host =
            VirtualHost { name, domains, include_request_attempt_count: true, ..VirtualHost::default() };
        Self { host, routes }
    }

    /// Returns the message.
    pub(super) fn into_message(self) -> VirtualHost {
        let routes = self.routes.iter().map(|route| Route::clone(route)).collect();
        VirtualHost { routes, ..self.host }
    }

    /// Returns the encoded virtual host with the clusters that it names.
    fn fragment(&self) -> VirtualHostFragment {
        const ROUTES: u8 = 3 << 3 | 2;
        const VIRTUAL_HOSTS: u8 = 2 << 3 | 2;
        let delimited = |len: usize| 1 + prost::length_delimiter_len(len) + len;
        let lens: Vec<usize> = self.routes.iter().map(|route| route.encoded_len()).collect();
        let len = self.host.encoded_len() + lens.iter().map(|len| delimited(*len)).sum::<usize>();
        let mut field = BytesMut::with_capacity(delimited(len));
        field.put_u8(VIRTUAL_HOSTS);
        // The buffer grows, so none of these can fail.
        let _ = prost::encode_length_delimiter(len, &mut field);
        let _ = self.host.encode(&mut field);
        for (route, len) in self.routes.iter().zip(lens) {
            field.put_u8(ROUTES);
            let _ = prost::encode_length_delimiter(len, &mut field);
            let _ = route.encode(&mut field);
        }
        let mut clusters = BTreeSet::new();
        for route in &self.routes {
            add_clusters(route, &mut clusters);
        }
        VirtualHostFragment {
            name: self.host.name.as_str().into(),
            domains: self.host.domains.iter().map(|domain| domain.as_str().into()).collect(),
            field: field.freeze(),
            clusters,
        }
    }
}

/// Adds the clusters that a route may send requests to, mirrors included.
fn add_clusters(route: &Route, clusters: &mut BTreeSet<Arc<str>>) {
    let Some(Action::Route(action)) = &route.action else { return };
    let mut add = |name: &str| {
        if !clusters.contains(name) {
            clusters.insert(name.into());
        }
    };
    match &action.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => add(name),
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            weighted.clusters.iter().for_each(|cluster| add(&cluster.name));
        }
        _ => {}
    }
    action.request_mirror_policies.iter().for_each(|mirror| add(&mirror.cluster));
}

/// Returns the resource of `rest`, which has no virtual hosts yet, with these.
pub(super) fn resource(rest: &RouteConfiguration, virtual_hosts: &[Draft]) -> Resource {
    let fragments = virtual_hosts.iter().map(Draft::fragment).collect();
    let body = Body::Fragments { rest: encode(rest), virtual_hosts: fragments };
    Resource::new(ResourceType::RouteConfiguration, rest.name.as_str(), body, Needs::default())
}

/// Returns a route configuration without virtual hosts, as Istio has them: what names no cluster that exists yet is
/// not refused, and a request's port is no part of its host.
pub(super) fn configuration(name: &str) -> RouteConfiguration {
    /// The most that a fixed answer may hold.
    const MAX_DIRECT_RESPONSE_BODY: u32 = 1024 * 1024;
    RouteConfiguration {
        name: name.to_owned(),
        validate_clusters: wire::bool_value(false),
        max_direct_response_body_size_bytes: wire::u32_value(MAX_DIRECT_RESPONSE_BODY),
        ignore_port_in_host_matching: true,
        ..RouteConfiguration::default()
    }
}

fn encode(message: &RouteConfiguration) -> Bytes {
    message.encode_to_vec().into()
}
