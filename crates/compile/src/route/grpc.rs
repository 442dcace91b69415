//! Routes for gRPC libraries without a proxy. They read the same messages but know only a part of them: paths,
//! headers, weighted clusters, retries on gRPC's status codes (gRFC A28, A31, A44), hashing (A42) and faults (A33).
//!
//! Conditions that they do not know are settled here where a gRPC call leaves no doubt (it is a POST without query
//! parameters, to the authority that was asked for); a rule with any other unknown condition is left out, since
//! a library would apply it to every call.

use super::action;
use super::destination::Destinations;
use super::domains::{self, Client};
use super::sidecar::{Builder, Wanted};
use super::virtual_host::{self, Draft};
use crate::audience::OutboundAudience;
use crate::names::{self, OutboundRoute};
use crate::scope::Scope;
use model::{Mesh, ServiceKey};
use proto::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use proto::envoy::config::route::v3::route::Action;
use proto::envoy::config::route::v3::route_action::hash_policy::{FilterState, PolicySpecifier};
use proto::envoy::config::route::v3::route_action::{ClusterSpecifier, HashPolicy, MaxStreamDuration};
use proto::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use proto::envoy::config::route::v3::{
    HeaderMatcher, RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch,
};
use proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use proto::google::protobuf::Duration;
use proto::resource::Resource;
use std::rc::Rc;

/// The status codes that gRPC libraries retry on.
const RETRIABLE: [&str; 5] =
    ["cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"];
/// What stands for the client's own channel in hash policies.
const CHANNEL_ID: &str = "io.grpc.channel_id";

/// Returns the route configuration of a service for gRPC libraries, by its name `host:port`. Its one virtual host
/// answers to every form of the authority that leads to the service. Nothing if there is no such service.
pub fn grpc(mesh: &Mesh<'_>, scope: &Scope, audience: &OutboundAudience, name: &str) -> Option<Resource> {
    let OutboundRoute::Service { host, port } = OutboundRoute::parse(name)? else { return None };
    let wanted = Wanted::Service(host, port);
    let listener = scope.egress.iter().find(|listener| {
        listener.port.as_ref().is_none_or(|at| at.number == port)
            && listener.services.iter().any(|service| service.key.host.as_str() == host)
    })?;
    let destinations = Destinations { mesh, scope, audience };
    let builder = Builder { destinations, listener, wanted };
    let mut virtual_hosts = builder.virtual_hosts();
    virtual_hosts.retain(|draft| draft.host.name == name);
    for draft in &mut virtual_hosts {
        let service = listener.services.iter().map(|service| &service.key);
        let service = service.clone().find(|key| key.host.as_str() == host)?;
        draft.host.domains = authorities(mesh, audience, service, port);
        draft.host.include_request_attempt_count = false;
        draft.routes = simplified(draft, name);
    }
    if virtual_hosts.is_empty() {
        return None;
    }
    let rest = RouteConfiguration { name: name.to_owned(), ..RouteConfiguration::default() };
    Some(virtual_host::resource(&rest, &virtual_hosts))
}

/// Returns every authority by which a service may be called: its names, with and without the port.
fn authorities(mesh: &Mesh<'_>, audience: &OutboundAudience, service: &ServiceKey, port: u16) -> Vec<String> {
    let client = Client { dns_domain: &audience.dns_domain, families: audience.families };
    let names = match mesh.service(service) {
        Some(service) => domains::of_service(client, service, &[]),
        None => Vec::new(),
    };
    let names = names.into_iter().map(|domain| domain.name).filter(|name| !name.contains('/'));
    names.flat_map(|name| [names::host_port(&name, port), name]).collect()
}

/// Returns the routes as gRPC libraries understand them.
fn simplified(draft: &Draft, authority: &str) -> Vec<Rc<Route>> {
    let routes = draft.routes.iter().filter_map(|route| simplify(route, authority));
    routes.map(Rc::new).collect()
}

fn simplify(route: &Route, authority: &str) -> Option<Route> {
    let matched = simplify_match(route.r#match.as_ref()?, authority)?;
    let action = match route.action.clone()? {
        Action::Route(action) => Action::Route(simplify_action(action)),
        // A library fails calls that come to such a route, which is all that it can do about them.
        other => other,
    };
    let mut typed_per_filter_config = route.typed_per_filter_config.clone();
    typed_per_filter_config.retain(|filter, _| filter == action::FAULT_FILTER);
    Some(Route {
        name: route.name.clone(),
        r#match: Some(matched),
        action: Some(action),
        typed_per_filter_config,
        ..Route::default()
    })
}

/// Returns the part of a match that libraries know. Nothing if a call cannot meet the rest, or nobody can tell.
fn simplify_match(matched: &RouteMatch, authority: &str) -> Option<RouteMatch> {
    // Calls have neither query parameters nor verified claims.
    let claims = matched.dynamic_metadata.iter().all(|claim| claim.invert);
    if !matched.query_parameters.is_empty() || !claims {
        return None;
    }
    let mut headers = Vec::with_capacity(matched.headers.len());
    for header in &matched.headers {
        let known = match header.name.as_str() {
            ":method" => "POST",
            ":scheme" => "http",
            ":authority" => authority,
            _ => {
                headers.push(plain_header(header)?);
                continue;
            }
        };
        if !settled(header, known)? {
            return None;
        }
    }
    Some(RouteMatch {
        path_specifier: matched.path_specifier.clone(),
        case_sensitive: matched.case_sensitive,
        headers,
        ..RouteMatch::default()
    })
}

/// Returns whether a header with the value `known` matches, or nothing if that takes an expression to tell.
fn settled(header: &HeaderMatcher, known: &str) -> Option<bool> {
    let matches = match header.header_match_specifier.as_ref()? {
        HeaderMatchSpecifier::PresentMatch(_) => true,
        HeaderMatchSpecifier::StringMatch(text) => match text.match_pattern.as_ref()? {
            MatchPattern::Exact(exact) => exact.eq_ignore_ascii_case(known),
            MatchPattern::Prefix(prefix) => known.starts_with(prefix.as_str()),
            MatchPattern::SafeRegex(expression) if expression.regex == ".*" => true,
            _ => return None,
        },
        _ => return None,
    };
    Some(matches != header.invert_match)
}

/// Returns the matcher in the form that every version of the libraries reads.
#[expect(deprecated, reason = "older libraries do not know the newer form")]
fn plain_header(header: &HeaderMatcher) -> Option<HeaderMatcher> {
    let specifier = match header.header_match_specifier.clone()? {
        HeaderMatchSpecifier::StringMatch(text) => match text.match_pattern? {
            MatchPattern::Exact(exact) => HeaderMatchSpecifier::ExactMatch(exact),
            MatchPattern::Prefix(prefix) => HeaderMatchSpecifier::PrefixMatch(prefix),
            MatchPattern::SafeRegex(expression) => HeaderMatchSpecifier::SafeRegexMatch(expression),
            _ => return None,
        },
        other => other,
    };
    Some(HeaderMatcher {
        name: header.name.to_ascii_lowercase(),
        invert_match: header.invert_match,
        header_match_specifier: Some(specifier),
        ..HeaderMatcher::default()
    })
}

fn simplify_action(action: RouteAction) -> RouteAction {
    let deadline = action.timeout.filter(|timeout| *timeout != Duration::default());
    let mut cluster_specifier = action.cluster_specifier;
    if let Some(ClusterSpecifier::WeightedClusters(weighted)) = &mut cluster_specifier {
        for cluster in &mut weighted.clusters {
            *cluster = ClusterWeight {
                name: std::mem::take(&mut cluster.name),
                weight: cluster.weight,
                ..ClusterWeight::default()
            };
        }
    }
    RouteAction {
        cluster_specifier,
        max_stream_duration: deadline.map(|deadline| MaxStreamDuration {
            max_stream_duration: Some(deadline),
            ..MaxStreamDuration::default()
        }),
        retry_policy: action.retry_policy.and_then(simplify_retries),
        hash_policy: action.hash_policy.into_iter().filter_map(simplify_hash).collect(),
        ..RouteAction::default()
    }
}

/// Returns the retries that libraries make by themselves; nothing if none of the conditions is a gRPC status.
fn simplify_retries(policy: RetryPolicy) -> Option<RetryPolicy> {
    let known: Vec<&str> =
        policy.retry_on.split(',').map(str::trim).filter(|word| RETRIABLE.contains(word)).collect();
    if known.is_empty() {
        return None;
    }
    Some(RetryPolicy {
        retry_on: known.join(","),
        num_retries: policy.num_retries,
        retry_back_off: policy.retry_back_off,
        ..RetryPolicy::default()
    })
}

/// Headers are hashed as they are. A client's address becomes its channel: both stay with one host.
fn simplify_hash(policy: HashPolicy) -> Option<HashPolicy> {
    let specifier = match policy.policy_specifier? {
        header @ PolicySpecifier::Header(_) => header,
        PolicySpecifier::ConnectionProperties(connection) if connection.source_ip => {
            PolicySpecifier::FilterState(FilterState { key: CHANNEL_ID.to_owned() })
        }
        _ => return None,
    };
    Some(HashPolicy { policy_specifier: Some(specifier), terminal: policy.terminal })
}
