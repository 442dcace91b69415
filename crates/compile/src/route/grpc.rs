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
use crate::names::{self, OutboundName, OutboundRoute};
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

/// Returns the route configuration of a service for gRPC libraries, by its name: that of the service's cluster, or
/// `host:port`. Its one virtual host answers to every form of the authority that leads to the service. Nothing if
/// there is no such service.
pub fn grpc(mesh: &Mesh<'_>, scope: &Scope, audience: &OutboundAudience, name: &str) -> Option<Resource> {
    let (host, port) = match (OutboundName::parse_cluster(name), OutboundRoute::parse(name)) {
        (Some(OutboundName { host, port, .. }), _) => (host, port),
        (None, Some(OutboundRoute::Service { host, port })) => (host, port),
        _ => return None,
    };
    let wanted = Wanted::Service(host, port);
    let listener = scope.egress.iter().find(|listener| {
        listener.port.as_ref().is_none_or(|at| at.number == port)
            && listener.services.iter().any(|service| service.key.host.as_str() == host)
    })?;
    let destinations = Destinations { mesh, scope, audience };
    let builder = Builder { destinations, listener, wanted };
    let mut virtual_hosts = builder.virtual_hosts();
    let own = names::host_port(host, port);
    for draft in &mut virtual_hosts {
        let service = listener.services.iter().map(|service| &service.key);
        let service = service.clone().find(|key| key.host.as_str() == host)?;
        draft.host.domains = authorities(mesh, audience, service, port);
        draft.host.include_request_attempt_count = false;
        draft.routes = simplified(draft, &own);
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
        retry_policy: action.retry_policy.as_ref().and_then(simplify_retries),
        hash_policy: action.hash_policy.into_iter().filter_map(simplify_hash).collect(),
        ..RouteAction::default()
    }
}

/// Returns the retries that libraries make by themselves; nothing if none of the conditions is a gRPC status.
fn simplify_retries(policy: &RetryPolicy) -> Option<RetryPolicy> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::fixture::{World, hashed, host, hosts, routes, rule, rule_of, under, weighted, when};
    use model::destination_rule::{HashKey, TrafficPolicy};
    use model::route::{StringMatch, ValueMatch};
    use model::virtual_service::{
        AbortStatus, Fault, FaultAbort, HttpAction, HttpMatch, HttpRule, Mirror, Retries,
    };
    use std::time::Duration as StdDuration;

    const CART: &str = "cart.shop.svc.cluster.local:80";

    fn built(rules: Vec<HttpRule>) -> Vec<Route> {
        let world = World::new().service("shop/cart", "80/grpc").rules(
            "shop/rules",
            &["cart.shop.svc.cluster.local"],
            rules,
            |_| {},
        );
        host(&world.grpc("shop", CART).unwrap(), CART).routes.clone()
    }

    fn action_of(route: &Route) -> &RouteAction {
        match &route.action {
            Some(Action::Route(action)) => action,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_virtual_host_answers_to_every_authority() {
        let world = World::new().service("shop/cart", "80/grpc 90/grpc");
        for name in [CART, "outbound|80||cart.shop.svc.cluster.local"] {
            let got = world.grpc("shop", name).unwrap();
            assert_eq!(got.name, name);
            assert_eq!(
                hosts(&got),
                ["cart.shop.svc.cluster.local:80 = cart.shop.svc.cluster.local:80 \
                  cart.shop.svc.cluster.local cart.shop.svc.cluster.local.:80 cart.shop.svc.cluster.local. \
                  cart:80 cart cart.shop.svc:80 cart.shop.svc cart.shop:80 cart.shop 10.0.0.1:80 10.0.0.1"]
            );
            assert_eq!(routes(&got, CART), ["/* -> 80||cart.shop"]);
        }
        for name in ["gone.shop.svc.cluster.local:80", "cart.shop.svc.cluster.local:81", "80", "x"] {
            assert!(world.grpc("shop", name).is_none(), "{name}");
        }
    }

    #[test]
    fn a_default_route_retries_what_libraries_can() {
        let got = built(Vec::new());
        let expected = RetryPolicy {
            retry_on: "unavailable,cancelled".to_owned(),
            num_retries: Some(2.into()),
            ..RetryPolicy::default()
        };
        assert_eq!(action_of(&got[0]).retry_policy, Some(expected));
        let only = |conditions: &str| {
            let retries = Retries { attempts: 1, retry_on: Some(conditions.into()), ..Retries::default() };
            action_of(&built(vec![HttpRule { retries: Some(retries), ..rule("cart") }])[0])
                .retry_policy
                .clone()
        };
        assert_eq!(only("5xx,reset"), None);
        assert_eq!(only("5xx,internal").map(|policy| policy.retry_on), Some("internal".to_owned()));
    }

    #[test]
    fn only_what_libraries_understand_is_left() {
        let mut a = weighted("cart|a", 1);
        a.headers.request.set.insert("x".into(), "y".into());
        let got = built(vec![HttpRule {
            timeout: Some(StdDuration::from_secs(3)),
            rewrite: Some(model::virtual_service::Rewrite { uri: Some("/new".into()), ..Default::default() }),
            mirrors: vec![Mirror { destination: weighted("cart|m", 0).destination, percentage: None }],
            cors: Some(Default::default()),
            fault: Some(Fault {
                delay: None,
                abort: Some(FaultAbort { status: AbortStatus::Grpc(14), percentage: None }),
            }),
            ..rule_of(HttpAction::Route(vec![a, weighted("cart|b", 3)]))
        }]);
        let action = action_of(&got[0]);
        let deadline = action.max_stream_duration.as_ref().and_then(|limits| limits.max_stream_duration);
        assert_eq!(deadline, Some(StdDuration::from_secs(3).into()));
        assert_eq!((action.timeout, action.prefix_rewrite.as_str()), (None, ""));
        assert!(action.request_mirror_policies.is_empty());
        assert_eq!(got[0].typed_per_filter_config.keys().collect::<Vec<_>>(), ["envoy.filters.http.fault"]);
        assert!(got[0].metadata.is_none() && got[0].decorator.is_none());
        let Some(ClusterSpecifier::WeightedClusters(weighted)) = &action.cluster_specifier else { panic!() };
        assert!(weighted.clusters.iter().all(|cluster| cluster.request_headers_to_add.is_empty()));
        assert_eq!(weighted.clusters.len(), 2);
    }

    #[test]
    fn conditions_are_kept_settled_or_make_a_rule_impossible() {
        let exact = |text: &str| StringMatch::Exact(text.into());
        let value = |name: &str, matched| [(name.into(), ValueMatch::Value(matched))].into_iter().collect();
        let none = HttpMatch::default;
        // Whether a rule with this condition is there, and how many headers it still looks at.
        let cases = [
            (under("/pkg."), Some(0)),
            (HttpMatch { headers: value("X-A", exact("1")), ..none() }, Some(1)),
            (HttpMatch { without_headers: value("x-a", exact("1")), ..none() }, Some(1)),
            (HttpMatch { method: Some(exact("POST")), ..none() }, Some(0)),
            (HttpMatch { method: Some(exact("GET")), ..none() }, None),
            (HttpMatch { authority: Some(StringMatch::Prefix("cart.shop".into())), ..none() }, Some(0)),
            (HttpMatch { authority: Some(exact("other")), ..none() }, None),
            (HttpMatch { authority: Some(StringMatch::Regex("c.*".into())), ..none() }, None),
            (HttpMatch { query_params: value("q", exact("1")), ..none() }, None),
            (HttpMatch { headers: value("@request.auth.claims.a", exact("1")), ..none() }, None),
            (HttpMatch { without_headers: value("@request.auth.claims.a", exact("1")), ..none() }, Some(0)),
        ];
        for (conditions, expected) in cases {
            let got = built(vec![when(vec![conditions.clone()], rule("cart|yes")), rule("cart|no")]);
            let first = (got.len() == 2).then(|| got[0].r#match.as_ref().unwrap());
            assert_eq!(first.map(|matched| matched.headers.len()), expected, "{conditions:?}");
        }
    }

    #[test]
    #[expect(deprecated, reason = "older libraries do not know the newer form")]
    fn headers_are_matched_in_the_form_that_all_versions_read() {
        let header = |matched| HttpMatch {
            headers: [("X-A".into(), matched)].into_iter().collect(),
            ..HttpMatch::default()
        };
        let cases = [
            (ValueMatch::Present, HeaderMatchSpecifier::PresentMatch(true)),
            (
                ValueMatch::Value(StringMatch::Exact("1".into())),
                HeaderMatchSpecifier::ExactMatch("1".to_owned()),
            ),
            (
                ValueMatch::Value(StringMatch::Prefix("1".into())),
                HeaderMatchSpecifier::PrefixMatch("1".to_owned()),
            ),
            (
                ValueMatch::Value(StringMatch::Regex("1+".into())),
                HeaderMatchSpecifier::SafeRegexMatch(crate::wire::regex("1+")),
            ),
        ];
        for (matched, expected) in cases {
            let got = built(vec![when(vec![header(matched)], rule("cart"))]);
            let headers = &got[0].r#match.as_ref().unwrap().headers;
            assert_eq!(headers[0].name, "x-a");
            assert_eq!(headers[0].header_match_specifier, Some(expected));
        }
    }

    #[test]
    fn hashing_is_by_header_or_by_client() {
        let cases = [
            (HashKey::Header("x".into()), 1),
            (HashKey::SourceIp(true), 1),
            (HashKey::SourceIp(false), 0),
            (HashKey::QueryParameter("q".into()), 0),
        ];
        for (key, count) in cases {
            let policy = TrafficPolicy { base: hashed(key.clone()), ..TrafficPolicy::default() };
            let world = World::new().service("shop/cart", "80/grpc").policy(
                "shop/cart",
                "cart.shop.svc.cluster.local",
                policy,
                Vec::new(),
            );
            let got = world.grpc("shop", CART).unwrap();
            assert_eq!(action_of(&host(&got, CART).routes[0]).hash_policy.len(), count, "{key:?}");
        }
    }
}
