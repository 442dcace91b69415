//! The HTTP rules of a VirtualService as routes.

use super::action;
use super::destination::{DefaultPort, Destinations};
use super::matcher;
use crate::names::{self, OutboundName};
use crate::wire;
use model::ServiceKey;
use model::virtual_service::{
    GatewayRef, HttpAction, HttpDestination, HttpMatch, HttpRule, Mirror, VirtualService,
};
use proto::envoy::config::core::v3::HeaderValueOption;
use proto::envoy::config::route::v3::route::Action;
use proto::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HostRewriteSpecifier, RequestMirrorPolicy,
};
use proto::envoy::config::route::v3::route_match::PathSpecifier;
use proto::envoy::config::route::v3::weighted_cluster::{ClusterWeight, cluster_weight};
use proto::envoy::config::route::v3::{
    Decorator, DirectResponseAction, Route, RouteAction, RouteMatch, WeightedCluster,
};

/// The name of routes that no rule made.
const DEFAULT_ROUTE: &str = "default";

/// Where rules are translated for.
#[derive(Clone, Copy)]
pub(super) struct Place<'p> {
    /// The port that requests arrive at, as its users know it; 0 if it is a Unix socket or serves every port.
    pub(super) port: u16,
    /// The port of destinations that have none, where it is not `port`.
    pub(super) destination_port: u16,
    /// The gateway, or the mesh.
    pub(super) gateway: &'p GatewayRef,
    /// Whether requests arrive over TLS.
    pub(super) tls: bool,
}

impl Destinations<'_, '_> {
    /// Returns the routes of the rules that apply at `place`, up to the first that nothing escapes. None if no rule
    /// applies.
    pub(super) fn routes(self, service: &VirtualService, place: Place<'_>) -> Vec<Route> {
        let mut routes = Vec::with_capacity(service.http.len());
        for rule in &service.http {
            if rule.matches.is_empty() {
                routes.push(self.route(service, rule, None, place));
                return routes;
            }
            for conditions in &rule.matches {
                if !self.applies(conditions, place) {
                    continue;
                }
                let route = self.route(service, rule, Some(conditions), place);
                let last = route.r#match.as_ref().is_some_and(matcher::is_catch_all);
                routes.push(route);
                if last {
                    return routes;
                }
            }
        }
        routes
    }

    /// Returns whether conditions that are settled before any request hold: the port, and the gateway or the source.
    /// A list of gateways makes the source irrelevant.
    fn applies(self, conditions: &HttpMatch, place: Place<'_>) -> bool {
        if conditions.port.is_some_and(|port| port != place.port) {
            return false;
        }
        if !conditions.gateways.is_empty() {
            return conditions.gateways.contains(place.gateway);
        }
        let labels = &conditions.source_labels;
        let namespace = conditions.source_namespace.as_ref();
        (labels.is_empty() || self.audience.sources.contains(labels))
            && namespace.is_none_or(|namespace| *namespace == self.audience.namespace)
    }

    fn route(
        self,
        service: &VirtualService,
        rule: &HttpRule,
        conditions: Option<&HttpMatch>,
        place: Place<'_>,
    ) -> Route {
        let mut route = Route {
            name: route_name(rule, conditions),
            r#match: Some(conditions.map_or_else(matcher::everything, matcher::request)),
            metadata: Some(wire::config_metadata(&service.meta.key)),
            stat_prefix: conditions
                .and_then(|conditions| conditions.stat_prefix.as_deref())
                .unwrap_or_default()
                .to_owned(),
            request_headers_to_add: action::added_headers(&rule.headers.request),
            request_headers_to_remove: action::removed_headers(&rule.headers.request),
            response_headers_to_add: action::added_headers(&rule.headers.response),
            response_headers_to_remove: action::removed_headers(&rule.headers.response),
            ..Route::default()
        };
        self.set_action(&mut route, service, rule, place);
        route.decorator = Some(Decorator {
            operation: operation(&route, &service.meta.key.name, place.port),
            ..Decorator::default()
        });
        if let Some(fault) = rule.fault.as_ref().and_then(action::fault) {
            route.typed_per_filter_config.insert(action::FAULT_FILTER.to_owned(), proto::any(&fault));
        }
        if let Some(cors) = &rule.cors {
            route
                .typed_per_filter_config
                .insert(action::CORS_FILTER.to_owned(), proto::any(&action::cors(cors)));
        }
        route
    }

    fn set_action(self, route: &mut Route, service: &VirtualService, rule: &HttpRule, place: Place<'_>) {
        let action = match &rule.action {
            HttpAction::Route(destinations) => {
                let action = self.forward(route, service, rule, destinations, place);
                Action::Route(action)
            }
            HttpAction::Redirect(redirect) => match action::redirect(redirect, place.port, place.tls) {
                Some(redirect) => Action::Redirect(redirect),
                None => Action::DirectResponse(failure()),
            },
            HttpAction::DirectResponse(response) => Action::DirectResponse(action::direct_response(response)),
            // The index has put the delegates' rules in place of these.
            HttpAction::Delegate { .. } => Action::DirectResponse(failure()),
        };
        route.action = Some(action);
    }

    fn forward(
        self,
        route: &mut Route,
        service: &VirtualService,
        rule: &HttpRule,
        destinations: &[HttpDestination],
        place: Place<'_>,
    ) -> RouteAction {
        let default = default_port(service, place);
        let mut action = RouteAction::default();
        super::set_timeout(&mut action, rule.timeout.unwrap_or_default());
        if let Some(rewrite) = &rule.rewrite {
            action::rewrite_path(&mut action, rewrite);
        }
        let authority = rule.rewrite.as_ref().and_then(|rewrite| rewrite.authority.as_ref());
        action.host_rewrite_specifier = authority
            .or(rule.authority_from_headers.as_ref())
            .map(|authority| HostRewriteSpecifier::HostRewriteLiteral(authority.to_string()));
        action.request_mirror_policies =
            rule.mirrors.iter().filter_map(|mirror| self.mirror(mirror, default)).collect();
        let hashed = match destinations {
            [single] => self.to_single(route, &mut action, single, default),
            several => {
                self.to_several(&mut action, several, default);
                false
            }
        };
        let retries = rule.retries.as_ref().or(self.mesh.config().default_http_retry.as_ref());
        action.retry_policy = action::retry_policy(retries, hashed);
        action
    }

    /// Sends everything to one destination, whatever its weight. Returns whether it is balanced by hash.
    fn to_single(
        self,
        route: &mut Route,
        action: &mut RouteAction,
        target: &HttpDestination,
        default: DefaultPort<'_>,
    ) -> bool {
        action.cluster_specifier =
            Some(ClusterSpecifier::Cluster(self.cluster(&target.destination, default)));
        let (request, response) = (&target.headers.request, &target.headers.response);
        append(&mut route.request_headers_to_add, action::added_headers(request));
        route.request_headers_to_remove.extend(action::removed_headers(request));
        append(&mut route.response_headers_to_add, action::added_headers(response));
        route.response_headers_to_remove.extend(action::removed_headers(response));
        if let (Some(authority), None) = (&target.authority_from_headers, &action.host_rewrite_specifier) {
            action.host_rewrite_specifier =
                Some(HostRewriteSpecifier::HostRewriteLiteral(authority.to_string()));
        }
        let hash = self.hash(&target.destination);
        let hashed = hash.is_some();
        action.hash_policy.extend(hash.and_then(|hash| hash.policy));
        hashed
    }

    /// Shares requests out by weight. Destinations of weight zero get none.
    fn to_several(self, action: &mut RouteAction, targets: &[HttpDestination], default: DefaultPort<'_>) {
        let mut clusters = Vec::with_capacity(targets.len());
        for target in targets.iter().filter(|target| target.weight > 0) {
            let (request, response) = (&target.headers.request, &target.headers.response);
            let authority = match &action.host_rewrite_specifier {
                Some(_) => None,
                None => target.authority_from_headers.as_ref(),
            };
            clusters.push(ClusterWeight {
                name: self.cluster(&target.destination, default),
                weight: wire::u32_value(target.weight),
                request_headers_to_add: action::added_headers(request),
                request_headers_to_remove: action::removed_headers(request),
                response_headers_to_add: action::added_headers(response),
                response_headers_to_remove: action::removed_headers(response),
                host_rewrite_specifier: authority.map(|authority| {
                    cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(authority.to_string())
                }),
                ..ClusterWeight::default()
            });
            let hash = self.hash(&target.destination);
            action.hash_policy.extend(hash.and_then(|hash| hash.policy));
        }
        action.cluster_specifier = Some(if clusters.is_empty() {
            // Envoy refuses weights that add up to nothing, and so does translation.
            ClusterSpecifier::Cluster(names::BLACK_HOLE_CLUSTER.to_owned())
        } else {
            ClusterSpecifier::WeightedClusters(WeightedCluster { clusters, ..WeightedCluster::default() })
        });
    }

    fn mirror(self, mirror: &Mirror, default: DefaultPort<'_>) -> Option<RequestMirrorPolicy> {
        let percentage = mirror.percentage.unwrap_or(wire::ALL);
        (percentage.numerator > 0).then(|| RequestMirrorPolicy {
            cluster: self.cluster(&mirror.destination, default),
            runtime_fraction: Some(wire::runtime_fraction(percentage)),
            trace_sampled: wire::bool_value(false),
            disable_shadow_host_suffix_append: true,
            ..RequestMirrorPolicy::default()
        })
    }

    /// Returns the route of a service that no rule is about.
    pub(super) fn default_route(self, service: &ServiceKey, port: u16) -> Route {
        let host = service.host.as_str();
        let mut action = RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(names::outbound_cluster(port, "", host))),
            retry_policy: action::retry_policy(self.mesh.config().default_http_retry.as_ref(), false),
            ..RouteAction::default()
        };
        super::set_timeout(&mut action, std::time::Duration::ZERO);
        let hash = self.service_hash(service, port);
        action.hash_policy.extend(hash.and_then(|hash| hash.policy));
        default_route_to(action, host, port)
    }
}

/// Returns a route of everything to where `action` says, traced as `host:port/*`.
pub(super) fn default_route_to(action: RouteAction, host: &str, port: u16) -> Route {
    Route {
        name: DEFAULT_ROUTE.to_owned(),
        r#match: Some(matcher::everything()),
        decorator: Some(Decorator { operation: format!("{host}:{port}/*"), ..Decorator::default() }),
        action: Some(Action::Route(action)),
        ..Route::default()
    }
}

fn default_port<'s>(service: &'s VirtualService, place: Place<'_>) -> DefaultPort<'s> {
    match place.gateway {
        GatewayRef::Mesh => DefaultPort::Listener(place.destination_port),
        GatewayRef::Gateway(..) => {
            DefaultPort::OnlyPort { listener: place.destination_port, namespace: &service.meta.key.namespace }
        }
    }
}

/// What is answered where a rule cannot be carried out. Translation has rejected such rules.
fn failure() -> DirectResponseAction {
    DirectResponseAction { status: 500, ..DirectResponseAction::default() }
}

/// Returns the rule's name, with the match's appended.
fn route_name(rule: &HttpRule, conditions: Option<&HttpMatch>) -> String {
    let mut name = rule.name.as_deref().unwrap_or_default().to_owned();
    let detail = conditions.and_then(|conditions| conditions.name.as_deref());
    if let Some(detail) = detail.filter(|detail| !detail.is_empty()) {
        name.push('.');
        name.push_str(detail);
    }
    name
}

fn append(headers: &mut Vec<HeaderValueOption>, mut more: Vec<HeaderValueOption>) {
    headers.append(&mut more);
}

/// Returns what a request by this route is called in traces: the destination, or the rule's object if there are
/// several or none, then the path.
fn operation(route: &Route, name: &str, port: u16) -> String {
    let path = route.r#match.as_ref().map_or_else(|| "/*".to_owned(), path_of);
    let single = match &route.action {
        Some(Action::Route(action)) => match &action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(cluster)) => OutboundName::parse_cluster(cluster),
            _ => None,
        },
        _ => None,
    };
    match single {
        Some(OutboundName { host, port, .. }) => format!("{host}:{port}{path}"),
        None => format!("{name}:{port}{path}"),
    }
}

fn path_of(matched: &RouteMatch) -> String {
    match &matched.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => format!("{prefix}*"),
        Some(PathSpecifier::Path(path)) => path.clone(),
        Some(PathSpecifier::SafeRegex(expression)) => expression.regex.clone(),
        _ => "/*".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::fixture::{
        World, destination, hashed, host, routes, rule, rule_of, under, weighted, when,
    };
    use model::destination_rule::{HashKey, PortPolicy, Subset, TrafficPolicy};
    use model::route::{Denominator, HeaderOperations, Headers, Percent, StringMatch};
    use model::virtual_service::{DirectBody, DirectResponse, Fault, FaultDelay, Redirect, Retries, Rewrite};
    use model::{Labels, Namespace, Str};
    use std::time::Duration;

    const CART: &str = "cart.shop.svc.cluster.local:80";

    fn world(rules: Vec<HttpRule>) -> World {
        World::new().service("shop/cart", "80/http").rules(
            "shop/rules",
            &["cart.shop.svc.cluster.local"],
            rules,
            |_| {},
        )
    }

    /// Returns the routes of `rules` for the one service.
    fn built(rules: Vec<HttpRule>) -> Vec<Route> {
        host(&world(rules).outbound("shop", "80").unwrap(), CART).routes.clone()
    }

    fn action_of(route: &Route) -> &RouteAction {
        match &route.action {
            Some(Action::Route(action)) => action,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_match_is_a_route_and_nothing_follows_a_catch_all() {
        let got = world(vec![
            when(vec![under("/a"), under("/b")], rule("cart|ab")),
            when(vec![under("")], rule("cart|empty")),
            when(vec![under("/c"), under("/"), under("/never")], rule("cart|all")),
            rule("cart|never"),
        ]);
        assert_eq!(
            routes(&got.outbound("shop", "80").unwrap(), CART),
            [
                "/a* -> 80|ab|cart.shop",
                "/b* -> 80|ab|cart.shop",
                "* -> 80|empty|cart.shop",
                "/c* -> 80|all|cart.shop",
                "/* -> 80|all|cart.shop"
            ]
        );
    }

    #[test]
    fn matches_apply_by_port_gateway_and_source() {
        let at = |port| HttpMatch { port: Some(port), ..HttpMatch::default() };
        let from = |namespace: &str, app: Option<&str>| HttpMatch {
            source_namespace: Some(Namespace::new(namespace)),
            source_labels: app.map(|app| ("app", app)).into_iter().collect(),
            ..HttpMatch::default()
        };
        let on = |gateways: &[GatewayRef], app: &str| HttpMatch {
            gateways: gateways.to_vec(),
            source_labels: [("app", app)].into_iter().collect::<Labels>(),
            ..HttpMatch::default()
        };
        let edge = GatewayRef::Gateway(Namespace::new("edge"), "public".into());
        let cases = [
            (at(80), true),
            (at(81), false),
            (from("shop", None), true),
            (from("infra", None), false),
            (from("shop", Some("web")), true),
            (from("shop", Some("other")), false),
            (on(&[GatewayRef::Mesh], "other"), true),
            (on(&[edge.clone(), GatewayRef::Mesh], "web"), true),
            (on(&[edge], "web"), false),
        ];
        for (conditions, applies) in cases {
            let world = world(vec![when(vec![conditions.clone()], rule("cart|yes")), rule("cart|no")]);
            let got = world
                .outbound_for("shop", "80", |audience| {
                    audience.sources = [[("app", "web")].into_iter().collect()].into();
                })
                .unwrap();
            let expected = if applies { "/* -> 80|yes|cart.shop" } else { "/* -> 80|no|cart.shop" };
            assert_eq!(routes(&got, CART)[0], expected, "{conditions:?}");
        }
    }

    #[test]
    fn names_and_metadata_say_where_a_route_is_from() {
        let named = |name: Option<&str>| HttpMatch { name: name.map(Str::from), ..under("/a") };
        let with_name = |name: Option<&str>, rule: HttpRule| HttpRule { name: name.map(Str::from), ..rule };
        let got = built(vec![
            with_name(Some("r"), when(vec![named(Some("m")), named(None)], rule("cart"))),
            with_name(None, when(vec![named(Some("m")), named(None)], rule("cart"))),
        ]);
        let names: Vec<&str> = got.iter().map(|route| route.name.as_str()).collect();
        assert_eq!(names, ["r.m", "r", ".m", ""]);
        let metadata = got[0].metadata.as_ref().unwrap();
        let path = &metadata.filter_metadata["istio"].fields["config"];
        let expected = "/apis/networking.istio.io/v1/namespaces/shop/virtual-service/rules";
        assert_eq!(*path, expected.into());
    }

    #[test]
    fn traces_name_the_destination_or_the_rules() {
        let two = HttpAction::Route(vec![weighted("cart|a", 1), weighted("cart|b", 1)]);
        let exact = HttpMatch { uri: Some(StringMatch::Exact("/e".into())), ..HttpMatch::default() };
        let regex = HttpMatch { uri: Some(StringMatch::Regex("/r.+".into())), ..HttpMatch::default() };
        let got = built(vec![
            when(vec![under("/a")], rule("cart||8080")),
            when(vec![exact], rule_of(two)),
            when(vec![regex], rule("cart")),
            rule("cart"),
        ]);
        let operations: Vec<&str> =
            got.iter().map(|route| route.decorator.as_ref().unwrap().operation.as_str()).collect();
        assert_eq!(
            operations,
            [
                "cart.shop.svc.cluster.local:8080/a*",
                "rules:80/e",
                "cart.shop.svc.cluster.local:80/r.+",
                "cart.shop.svc.cluster.local:80/*"
            ]
        );
    }

    #[test]
    fn weights_share_out_what_is_not_zero() {
        let share = |targets: Vec<HttpDestination>| {
            let world = world(vec![rule_of(HttpAction::Route(targets))]);
            routes(&world.outbound("shop", "80").unwrap(), CART)[0].clone()
        };
        let cases = [
            (vec![weighted("cart|a", 0)], "/* -> 80|a|cart.shop"),
            (vec![weighted("cart|a", 7)], "/* -> 80|a|cart.shop"),
            (
                vec![weighted("cart|a", 90), weighted("cart|b", 10)],
                "/* -> 80|a|cart.shop*90 + 80|b|cart.shop*10",
            ),
            (vec![weighted("cart|a", 5), weighted("cart|b", 0)], "/* -> 80|a|cart.shop*5"),
            (vec![weighted("cart|a", 0), weighted("cart|b", 0)], "/* -> BlackHoleCluster"),
        ];
        for (targets, expected) in cases {
            assert_eq!(share(targets), expected);
        }
    }

    fn headers(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> HeaderOperations {
        let map = |entries: &[(&str, &str)]| {
            entries.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
        };
        HeaderOperations {
            set: map(set),
            add: map(add),
            remove: remove.iter().map(|name| (*name).into()).collect(),
        }
    }

    fn shown(options: &[HeaderValueOption]) -> Vec<String> {
        let one = |option: &HeaderValueOption| {
            let header = option.header.as_ref().unwrap();
            format!("{}{}{}", header.key, if option.append_action == 2 { "=" } else { "+" }, header.value)
        };
        options.iter().map(one).collect()
    }

    #[test]
    fn a_single_destinations_header_operations_join_the_rules() {
        let mut target = weighted("cart", 0);
        target.headers =
            Headers { request: headers(&[("a", "3")], &[], &["y"]), response: headers(&[], &[], &["z"]) };
        let mut rule = rule_of(HttpAction::Route(vec![target]));
        rule.headers = Headers {
            request: headers(&[("b", "1"), ("a", "1")], &[("d", "2"), ("c", "2")], &["x"]),
            response: headers(&[("e", "1")], &[], &[]),
        };
        let got = &built(vec![rule])[0];
        assert_eq!(shown(&got.request_headers_to_add), ["a=1", "b=1", "c+2", "d+2", "a=3"]);
        assert_eq!(got.request_headers_to_remove, ["x", "y"]);
        assert_eq!(shown(&got.response_headers_to_add), ["e=1"]);
        assert_eq!(got.response_headers_to_remove, ["z"]);
    }

    #[test]
    fn weighted_destinations_keep_their_header_operations() {
        let mut a = weighted("cart|a", 1);
        a.headers.request = headers(&[("v", "a")], &[], &["x"]);
        a.headers.response = headers(&[], &[("w", "a")], &["y"]);
        a.authority_from_headers = Some("a.host".into());
        let rule = rule_of(HttpAction::Route(vec![a, weighted("cart|b", 1)]));
        let weights = |rule: HttpRule| {
            let got = built(vec![rule]);
            match action_of(&got[0]).cluster_specifier.clone() {
                Some(ClusterSpecifier::WeightedClusters(weighted)) => weighted.clusters,
                other => panic!("{other:?}"),
            }
        };
        let got = weights(rule.clone());
        assert_eq!(shown(&got[0].request_headers_to_add), ["v=a"]);
        assert_eq!(shown(&got[0].response_headers_to_add), ["w+a"]);
        assert_eq!(got[0].request_headers_to_remove, ["x"]);
        assert_eq!(got[0].response_headers_to_remove, ["y"]);
        let literal =
            |name: &str| Some(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(name.to_owned()));
        assert_eq!(got[0].host_rewrite_specifier, literal("a.host"));
        // The rule's own rewriting wins over the destination's.
        let over = HttpRule { authority_from_headers: Some("rule.host".into()), ..rule };
        assert_eq!(weights(over)[0].host_rewrite_specifier, None);
    }

    #[test]
    fn the_authority_comes_from_the_rewrite_the_rules_headers_or_the_destination() {
        let make = |rewrite: Option<&str>, rules: Option<&str>, own: Option<&str>| {
            let mut target = weighted("cart", 0);
            target.authority_from_headers = own.map(Into::into);
            HttpRule {
                rewrite: rewrite
                    .map(|authority| Rewrite { authority: Some(authority.into()), ..Rewrite::default() }),
                authority_from_headers: rules.map(Into::into),
                ..rule_of(HttpAction::Route(vec![target]))
            }
        };
        let cases = [
            (make(Some("a"), Some("b"), Some("c")), Some("a")),
            (make(None, Some("b"), Some("c")), Some("b")),
            (make(None, None, Some("c")), Some("c")),
            (make(None, None, None), None),
        ];
        for (rule, expected) in cases {
            let got = built(vec![rule]);
            let expected = expected.map(|host| HostRewriteSpecifier::HostRewriteLiteral(host.to_owned()));
            assert_eq!(action_of(&got[0]).host_rewrite_specifier, expected);
        }
    }

    #[test]
    fn paths_are_rewritten_by_prefix_or_expression() {
        let with = |rewrite| HttpRule { rewrite: Some(rewrite), ..rule("cart") };
        let got = built(vec![with(Rewrite { uri: Some("/new".into()), ..Rewrite::default() })]);
        assert_eq!(action_of(&got[0]).prefix_rewrite, "/new");
        let got = built(vec![with(Rewrite {
            uri: Some("/ignored".into()),
            uri_regex: Some(("^/a(.*)".into(), "/b\\1".into())),
            ..Rewrite::default()
        })]);
        let action = action_of(&got[0]);
        assert_eq!(action.prefix_rewrite, "");
        let rewrite = action.regex_rewrite.as_ref().unwrap();
        assert_eq!(rewrite.pattern.as_ref().map(|pattern| pattern.regex.as_str()), Some("^/a(.*)"));
        assert_eq!(rewrite.substitution, "/b\\1");
    }

    #[test]
    #[expect(deprecated, reason = "the field is set on purpose")]
    fn the_deadline_bounds_grpc_too() {
        let got = built(vec![HttpRule { timeout: Some(Duration::from_millis(1500)), ..rule("cart") }]);
        let action = action_of(&got[0]);
        let expected = Some(Duration::from_millis(1500).into());
        assert_eq!((action.timeout, action.max_grpc_timeout), (expected, expected));
    }

    #[test]
    fn retries_come_from_the_rule_else_from_the_mesh() {
        let with = |retries: Option<Retries>, mesh: Option<Retries>| {
            let world = world(vec![HttpRule { retries, ..rule("cart") }])
                .config(|config| config.default_http_retry = mesh);
            let got = world.outbound("shop", "80").unwrap();
            let policy = action_of(&host(&got, CART).routes[0]).retry_policy.clone();
            policy.and_then(|policy| policy.num_retries).map(|number| number.value)
        };
        let times = |attempts| Some(Retries { attempts, ..Retries::default() });
        let cases = [
            (None, None, Some(2)),
            (times(3), None, Some(3)),
            (times(0), None, None),
            (None, times(4), Some(4)),
            (None, times(0), None),
            (times(3), times(4), Some(3)),
            (times(0), times(4), None),
        ];
        for (rule, mesh, expected) in cases {
            assert_eq!(with(rule.clone(), mesh.clone()), expected, "{rule:?} {mesh:?}");
        }
    }

    #[test]
    fn mirrors_are_sent_as_often_as_asked() {
        let mirror = |to: &str, percentage| Mirror { destination: destination(to), percentage };
        let percent = |numerator, denominator| Some(Percent { numerator, denominator });
        let got = built(vec![HttpRule {
            mirrors: vec![
                mirror("cart|a", None),
                mirror("cart|b", percent(50_000, Denominator::Million)),
                mirror("cart|c", percent(0, Denominator::Million)),
                mirror("cart|d|81", percent(5, Denominator::Hundred)),
            ],
            ..rule("cart")
        }]);
        let shown: Vec<(String, u32, i32)> = action_of(&got[0])
            .request_mirror_policies
            .iter()
            .map(|mirror| {
                assert!(mirror.disable_shadow_host_suffix_append);
                assert_eq!(mirror.trace_sampled.map(|sampled| sampled.value), Some(false));
                let share = mirror.runtime_fraction.as_ref().and_then(|fraction| fraction.default_value);
                let share = share.unwrap();
                (mirror.cluster.clone(), share.numerator, share.denominator)
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("outbound|80|a|cart.shop.svc.cluster.local".to_owned(), 100, 0),
                ("outbound|80|b|cart.shop.svc.cluster.local".to_owned(), 50_000, 2),
                ("outbound|81|d|cart.shop.svc.cluster.local".to_owned(), 5, 0),
            ]
        );
    }

    #[test]
    fn rules_without_destination_redirect_or_answer() {
        let redirect =
            Redirect { uri: Some("/to".into()), authority: None, port: None, scheme: None, code: 302 };
        let answer = DirectResponse { status: 418, body: Some(DirectBody::Text("no".into())) };
        let got = world(vec![
            when(vec![under("/r")], rule_of(HttpAction::Redirect(redirect.clone()))),
            when(vec![under("/n")], rule_of(HttpAction::Redirect(Redirect { code: 304, ..redirect }))),
            when(vec![under("/d")], rule_of(HttpAction::DirectResponse(answer))),
        ]);
        assert_eq!(
            routes(&got.outbound("shop", "80").unwrap(), CART),
            ["/r* -> redirect", "/n* -> 500", "/d* -> 418"]
        );
    }

    #[test]
    fn faults_and_cors_configure_their_filters() {
        let delay = FaultDelay { fixed: Duration::from_secs(1), percentage: None };
        let both = HttpRule {
            fault: Some(Fault { delay: Some(delay), abort: None }),
            cors: Some(model::virtual_service::Cors::default()),
            ..rule("cart")
        };
        let neither = HttpRule { fault: Some(Fault::default()), ..rule("cart") };
        let got = built(vec![when(vec![under("/a")], both), neither]);
        let filters = |route: &Route| route.typed_per_filter_config.keys().cloned().collect::<Vec<_>>();
        assert_eq!(filters(&got[0]), ["envoy.filters.http.cors", "envoy.filters.http.fault"]);
        assert!(filters(&got[1]).is_empty());
    }

    #[test]
    fn hashing_follows_the_destinations_policy() {
        let header = |name: &str| hashed(HashKey::Header(name.into()));
        let subset = |name: &str, policy: Option<TrafficPolicy>| Subset {
            name: name.into(),
            labels: Labels::new(),
            policy,
        };
        let own = TrafficPolicy {
            base: header("subset"),
            port_level: vec![(81, header("subset-port"))],
            tunnel: None,
        };
        let world = |rules| {
            world(rules).service("shop/plain", "80/http").policy(
                "shop/cart",
                "cart.shop.svc.cluster.local",
                TrafficPolicy {
                    base: header("top"),
                    port_level: vec![(80, header("port")), (82, PortPolicy::default())],
                    tunnel: None,
                },
                vec![subset("a", Some(own.clone())), subset("b", None)],
            )
        };
        let got = |rules: Vec<HttpRule>| {
            let got = world(rules).outbound("shop", "80").unwrap();
            let route = &host(&got, CART).routes[0];
            let action = action_of(route).clone();
            let keys: Vec<String> = action
                .hash_policy
                .iter()
                .map(|policy| match &policy.policy_specifier {
                    Some(
                        proto::envoy::config::route::v3::route_action::hash_policy::PolicySpecifier::Header(
                            header,
                        ),
                    ) => header.header_name.clone(),
                    other => panic!("{other:?}"),
                })
                .collect();
            (keys, action.retry_policy.unwrap().retry_host_predicate.is_empty())
        };
        // A destination, what is hashed, and whether retries may return to the same host.
        let cases: [(&str, &[&str], bool); 8] = [
            ("cart", &["top"], true),
            ("cart||80", &["port"], true),
            ("cart||82", &["top"], true),
            ("cart|a", &["subset"], true),
            ("cart|a|80", &["subset"], true),
            ("cart|a|81", &["subset-port"], true),
            ("cart|b|80", &["port"], true),
            ("plain", &[], false),
        ];
        for (to, keys, anywhere) in cases {
            let (got_keys, got_anywhere) = got(vec![rule(to)]);
            assert_eq!(got_keys, keys, "{to}");
            assert_eq!(got_anywhere, anywhere, "{to}");
        }
        // Several destinations hash by all of their keys and keep away from hosts that were tried.
        let several = vec![weighted("cart|a", 1), weighted("plain", 1), weighted("cart", 1)];
        let expected = (vec!["subset".to_owned(), "top".to_owned()], false);
        assert_eq!(got(vec![rule_of(HttpAction::Route(several))]), expected);
        // Without a rule the port's own key counts.
        let elsewhere = when(vec![HttpMatch { port: Some(99), ..HttpMatch::default() }], rule("cart"));
        assert_eq!(got(vec![elsewhere]), (vec!["port".to_owned()], false));
    }

    #[test]
    fn statistics_prefixes_are_the_matches() {
        let named = HttpMatch { stat_prefix: Some("beta".into()), ..under("/a") };
        let got = built(vec![when(vec![named, under("/b")], rule("cart"))]);
        let prefixes: Vec<&str> = got.iter().map(|route| route.stat_prefix.as_str()).collect();
        assert_eq!(prefixes, ["beta", ""]);
    }
}
