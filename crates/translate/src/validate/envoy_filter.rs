//! EnvoyFilter. The messages of Envoy in it are not looked into.

use super::targets;
use crate::parse::{regex, selector};
use crate::report::{At, Report, Translated, object_key};
use k8s_api::envoy_filter as api;
use model::Kind;
use serde_json::Value;

const CONNECTION_MANAGERS: [&str; 2] =
    ["envoy.filters.network.http_connection_manager", "envoy.http_connection_manager"];
/// Longer expressions are not looked at.
const LONGEST: usize = 1024;

/// Checks an EnvoyFilter.
pub(super) fn check(object: &api::EnvoyFilter) -> Translated<()> {
    let report = Report::new(object_key(Kind::EnvoyFilter, &object.metadata));
    let (spec, at) = (&object.spec, report.at("spec"));
    at.warn("depends on how Envoy is configured, which may change with any version: prefer other kinds where they suffice");
    targets::check(&at, None, None, &spec.target_refs);
    if let Some(given) = &spec.workload_selector {
        let at = at.field("workloadSelector");
        if !spec.target_refs.is_empty() {
            at.reject("cannot be combined with targetRefs");
        }
        if given.labels.is_empty() {
            at.warn("has no labels, so it is for the whole namespace");
        }
        selector(&at.field("labels"), &given.labels);
    }
    for (index, patch) in spec.config_patches.iter().enumerate() {
        let at = at.field("configPatches");
        check_patch(&at.index(index), patch);
    }
    report.all_or_nothing(())
}

fn check_patch(at: &At<'_>, given: &api::EnvoyConfigObjectPatch) {
    let apply_to = match &given.apply_to {
        None | Some(api::ApplyTo::Invalid) => return at.field("applyTo").reject("is required"),
        Some(api::ApplyTo::Other(value)) => {
            return at
                .field("applyTo")
                .reject(format!("{value:?} is none of {}", api::ApplyTo::VALUES.join(", ")));
        }
        Some(apply_to) => apply_to,
    };
    let at_patch = at.field("patch");
    let Some(patch) = &given.patch else { return at_patch.reject("is required") };
    match &patch.operation {
        None | Some(api::PatchOperation::Invalid | api::PatchOperation::Other(_)) => {
            at_patch.field("operation").reject("is required");
        }
        Some(api::PatchOperation::Remove) => {}
        Some(_) if patch.value.is_none() => {
            at_patch.field("value").reject("is required unless something is removed")
        }
        Some(_) => {}
    }
    let has_old_type = patch.value.iter().flatten().any(|(_, value)| names_old_type(value));
    if has_old_type {
        at_patch.field("value").reject("names a type of Envoy's v2 API, which does not exist any more");
    }
    if let Some(given) = &given.match_ {
        check_match(&at.field("match"), apply_to, given);
    }
}

fn names_old_type(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.iter().any(|(key, value)| {
            let is_old = |name: &str| {
                name.starts_with("type.googleapis.com/envoy.") && name.split('.').any(|part| part == "v2")
            };
            key == "@type" && value.as_str().is_some_and(is_old) || names_old_type(value)
        }),
        Value::Array(values) => values.iter().any(names_old_type),
        _ => false,
    }
}

fn check_match(at: &At<'_>, apply_to: &api::ApplyTo, given: &api::EnvoyConfigObjectMatch) {
    use api::ApplyTo::{
        Cluster, FilterChain, HttpFilter, HttpRoute, Listener, ListenerFilter, NetworkFilter,
    };
    if let Some(proxy) = &given.proxy {
        let at = at.field("proxy");
        let at = at.field("proxyVersion");
        if proxy.proxy_version.len() > LONGEST {
            at.warn(format!("has more than {LONGEST} characters and is not looked at"));
        } else if !proxy.proxy_version.is_empty() {
            at.check(regex(&proxy.proxy_version));
        }
    }
    let is_waypoint = given.context == Some(api::PatchContext::Waypoint);
    if given.waypoint.is_some() && !is_waypoint {
        at.field("waypoint").reject("is only for the context WAYPOINT");
    }
    let (listener, route, cluster) =
        (given.listener.is_some(), given.route_configuration.is_some(), given.cluster.is_some());
    match apply_to {
        Listener | FilterChain | NetworkFilter | HttpFilter | ListenerFilter if route || cluster => {
            at.reject(format!("{} needs a match of a listener", apply_to.as_str()));
        }
        api::ApplyTo::RouteConfiguration | api::ApplyTo::VirtualHost | HttpRoute if listener || cluster => {
            at.reject(format!("{} needs a match of a route configuration", apply_to.as_str()));
        }
        Cluster if listener || route => at.reject("CLUSTER needs a match of a cluster"),
        _ => {}
    }
    let filter = given.listener.as_ref().and_then(|listener| listener.filter_chain.as_ref()?.filter.as_ref());
    if let Some(filter) = filter {
        let at = at.field("listener");
        let at = at.field("filterChain");
        check_filter(&at.field("filter"), filter);
    }
}

fn check_filter(at: &At<'_>, filter: &api::FilterMatch) {
    if filter.name.is_empty() {
        at.field("name").reject("is required");
    }
    let Some(inner) = &filter.sub_filter else { return };
    let at_inner = at.field("subFilter");
    if !CONNECTION_MANAGERS.contains(&filter.name.as_str()) {
        at_inner.reject(format!("is only for {}", CONNECTION_MANAGERS[0]));
    }
    if inner.name.is_empty() {
        at_inner.field("name").reject("is required");
    }
    if filter.name == CONNECTION_MANAGERS[1] {
        at.field("name").warn(format!("is an old name of {}", CONNECTION_MANAGERS[0]));
    }
}
