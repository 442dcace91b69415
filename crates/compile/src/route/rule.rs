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
        let mut action = RouteAction {
            append_x_forwarded_host: self.audience.switches.proxy.headers.forwarded_host,
            ..RouteAction::default()
        };
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
            clusters.push(ClusterWeight {
                name: self.cluster(&target.destination, default),
                weight: wire::u32_value(target.weight),
                request_headers_to_add: action::added_headers(request),
                request_headers_to_remove: action::removed_headers(request),
                response_headers_to_add: action::added_headers(response),
                response_headers_to_remove: action::removed_headers(response),
                host_rewrite_specifier: target.authority_from_headers.as_ref().map(|authority| {
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
mod tests;
