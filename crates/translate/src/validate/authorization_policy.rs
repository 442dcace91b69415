//! AuthorizationPolicy.

use super::targets;
use crate::parse::{ip, subnet};
use crate::report::{At, Report, Translated, object_key};
use k8s_api::authorization_policy as api;
use model::Kind;

const DRY_RUN: &str = "istio.io/dry-run";

/// Checks an AuthorizationPolicy.
pub(super) fn check(object: &api::AuthorizationPolicy) -> Translated<()> {
    let report = Report::new(object_key(Kind::AuthorizationPolicy, &object.metadata));
    let (spec, at) = (&object.spec, report.at("spec"));
    targets::check(&at, spec.selector.as_ref(), spec.target_ref.as_ref(), &spec.target_refs);
    let action = spec.action.clone().unwrap_or_default();
    let is_custom = action == api::Action::Custom;
    match action {
        api::Action::Custom => {
            if spec.provider.as_ref().is_none_or(|provider| provider.name.is_empty()) {
                at.field("provider").field("name").reject("is required for CUSTOM");
            }
            if spec.rules.is_empty() {
                at.field("rules").reject("are required for CUSTOM: without any it would never be asked");
            }
        }
        api::Action::Deny if spec.rules.is_empty() => {
            at.field("rules")
                .reject("are required for DENY: without any nothing is denied, {} denies everything");
        }
        api::Action::Other(value) => {
            at.field("action").reject(format!("{value:?} is none of {}", api::Action::VALUES.join(", ")));
        }
        _ => {}
    }
    if !is_custom && spec.provider.is_some() {
        at.field("provider").reject("is only for CUSTOM");
    }
    check_dry_run(&report, object);
    let is_deny = spec.action == Some(api::Action::Deny);
    for (index, rule) in spec.rules.iter().enumerate() {
        let at = at.field("rules");
        let at = at.index(index);
        check_rule(&at, rule, is_custom);
        if is_deny && denies_all_of_tcp(rule) {
            at.warn(
                "has only attributes of HTTP, so that on ports of TCP everything is denied: say which ports are meant",
            );
        }
    }
    report.all_or_nothing(())
}

fn check_dry_run(report: &Report, object: &api::AuthorizationPolicy) {
    let annotations = object.metadata.annotations.as_ref();
    let given = annotations.and_then(|annotations| annotations.get(DRY_RUN));
    let known = ["1", "t", "T", "true", "TRUE", "True", "0", "f", "F", "false", "FALSE", "False"];
    if let Some(given) = given.filter(|given| !known.contains(&given.as_str())) {
        let at = report.at("metadata");
        let at = at.field("annotations");
        at.key(DRY_RUN).reject(format!("{given:?} is neither true nor false"));
    }
}

fn check_rule(at: &At<'_>, rule: &api::Rule, is_custom: bool) {
    for (index, from) in rule.from.iter().enumerate() {
        let at = at.field("from");
        let at = at.index(index);
        let at = at.field("source");
        match &from.source {
            None => at.reject("is required"),
            Some(source) if *source == api::Source::default() => at.reject("must not be empty"),
            Some(source) => check_source(&at, source, is_custom),
        }
    }
    for (index, to) in rule.to.iter().enumerate() {
        let at = at.field("to");
        let at = at.index(index);
        let at = at.field("operation");
        match &to.operation {
            None => at.reject("is required"),
            Some(operation) if *operation == api::Operation::default() => at.reject("must not be empty"),
            Some(operation) => check_operation(&at, operation),
        }
    }
    for (index, condition) in rule.when.iter().enumerate() {
        let at = at.field("when");
        check_condition(&at.index(index), condition, is_custom);
    }
}

fn check_source(at: &At<'_>, source: &api::Source, is_custom: bool) {
    let of_peer = [
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
    ];
    for (field, values) in of_peer {
        let at = at.field(field);
        if is_custom && !values.is_empty() {
            at.reject("cannot be used with CUSTOM");
        }
        not_empty(&at, values);
    }
    for (field, values) in [
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
    ] {
        not_empty(&at.field(field), values);
    }
    for (field, values) in [
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ] {
        addresses(&at.field(field), values);
    }
    let accounts = !source.service_accounts.is_empty() || !source.not_service_accounts.is_empty();
    if accounts && of_peer[..4].iter().any(|(_, values)| !values.is_empty()) {
        at.field("serviceAccounts").reject("cannot be combined with namespaces or principals");
    }
}

fn check_operation(at: &At<'_>, operation: &api::Operation) {
    for (field, values) in [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ] {
        not_empty(&at.field(field), values);
    }
    for (field, values) in [("paths", &operation.paths), ("notPaths", &operation.not_paths)] {
        let at = at.field(field);
        for (index, path) in values.iter().enumerate() {
            if let Err(reason) = path_template(path) {
                at.index(index).reject(format!("{path:?}: {reason}"));
            }
        }
    }
    ports(&at.field("ports"), &operation.ports);
    ports(&at.field("notPorts"), &operation.not_ports);
}

/// Checks a path with `{*}` for one segment, or `{**}` for the rest up to a literal end.
fn path_template(path: &str) -> Result<(), &'static str> {
    if !path.contains(['{', '}']) {
        return Ok(());
    }
    let mut found_rest = false;
    for segment in path.trim_start_matches('/').split('/') {
        let is_template = segment == "{*}" || segment == "{**}";
        if !is_template && segment.contains(['{', '}']) {
            return Err("a segment in braces is {*} or {**}");
        }
        if !is_template && segment.contains('*') {
            return Err("a path with templates has no other wildcards");
        }
        if found_rest && is_template {
            return Err("nothing but literals may follow {**}");
        }
        found_rest |= segment == "{**}";
    }
    Ok(())
}

fn check_condition(at: &At<'_>, condition: &api::RuleCondition, is_custom: bool) {
    let key = condition.key.as_str();
    let at_key = at.field("key");
    if key.is_empty() {
        return at_key.reject("is required");
    }
    if condition.values.is_empty() && condition.not_values.is_empty() {
        at.reject("needs values or notValues");
    }
    let of_peer = matches!(key, "source.namespace" | "source.principal" | "source.serviceAccount");
    if is_custom && (of_peer || key.starts_with("request.auth.")) {
        at_key.reject(format!("{key} cannot be used with CUSTOM"));
    }
    for (field, values) in [("values", &condition.values), ("notValues", &condition.not_values)] {
        let at = at.field(field);
        match key {
            "source.ip" | "remote.ip" | "destination.ip" => addresses(&at, values),
            "destination.port" => ports(&at, values),
            _ => not_empty(&at, values),
        }
    }
    if !is_known(key) {
        at_key.reject(format!("{key:?} is no attribute"));
    }
}

fn is_known(key: &str) -> bool {
    const PLAIN: [&str; 11] = [
        "source.ip",
        "remote.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "destination.ip",
        "destination.port",
        "connection.sni",
    ];
    let keyed = |prefix: &str| {
        key.strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with('[') && rest.ends_with(']') && rest.len() > 2)
    };
    PLAIN.contains(&key)
        || keyed("request.headers")
        || keyed("request.auth.claims")
        || key.strip_prefix("experimental.envoy.filters.").is_some_and(|rest| rest.ends_with(']'))
}

/// Whether a rule says something that only requests have, and no port. In a rule that denies, such a part is left out for
/// connections, which are then all denied.
fn denies_all_of_tcp(rule: &api::Rule) -> bool {
    let has_port =
        |operation: &api::Operation| !operation.ports.is_empty() || !operation.not_ports.is_empty();
    let of_http = |operation: &api::Operation| {
        let lists = [
            &operation.hosts,
            &operation.not_hosts,
            &operation.methods,
            &operation.not_methods,
            &operation.paths,
            &operation.not_paths,
        ];
        lists.iter().any(|list| !list.is_empty())
    };
    let operations = || rule.to.iter().filter_map(|to| to.operation.as_ref());
    if operations().any(has_port) || rule.when.iter().any(|condition| condition.key == "destination.port") {
        return false;
    }
    let by_source = rule
        .from
        .iter()
        .filter_map(|from| from.source.as_ref())
        .any(|source| !source.request_principals.is_empty() || !source.not_request_principals.is_empty());
    by_source
        || operations().any(of_http)
        || rule.when.iter().any(|condition| condition.key.starts_with("request."))
}

fn not_empty(at: &At<'_>, values: &[String]) {
    for (index, _) in values.iter().enumerate().filter(|(_, value)| value.is_empty()) {
        at.index(index).reject("must not be empty");
    }
}

fn addresses(at: &At<'_>, values: &[String]) {
    for (index, value) in values.iter().enumerate() {
        let valid = if value.contains('/') { subnet(value).is_ok() } else { ip(value).is_ok() };
        if !valid {
            at.index(index).reject(format!("{value:?} is neither an address nor a range of addresses"));
        }
    }
}

fn ports(at: &At<'_>, values: &[String]) {
    for (index, value) in values.iter().enumerate() {
        if !value.parse::<u16>().is_ok_and(|port| port > 0) {
            at.index(index).reject(format!("{value:?} is not a port"));
        }
    }
}
