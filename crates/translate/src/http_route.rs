//! Rules of a VirtualService for HTTP.

mod action;
mod matching;
mod policy;

pub(crate) use policy::retries;

use crate::parse::{Invalid, header_name, header_value, is_authority, is_internal};
use crate::report::At;
use crate::virtual_service::Scope;
use k8s_api::virtual_service as api;
use model::Str;
use model::route::{HeaderOperations, Headers};
use model::virtual_service::HttpRule;
use std::collections::BTreeMap;

/// Parses the rules in order.
pub(crate) fn http_rules(at: &At<'_>, scope: &Scope<'_>, rules: &[api::HttpRoute]) -> Vec<HttpRule> {
    rules.iter().enumerate().map(|(i, rule)| http_rule(&at.index(i), scope, rule)).collect()
}

fn http_rule(at: &At<'_>, scope: &Scope<'_>, rule: &api::HttpRoute) -> HttpRule {
    action::check_conflicts(at, scope, rule);
    let at_headers = at.field("headers");
    let (headers, authority_from_headers) = headers(&at_headers, rule.headers.as_ref());
    let rewrite = rule.rewrite.as_ref().map(|rewrite| policy::rewrite(&at.field("rewrite"), rewrite));
    if let Some(header) = &authority_from_headers
        && let Some(authority) = rewrite.as_ref().and_then(|rewrite| rewrite.authority.as_ref())
    {
        at_headers.field("request").reject(format!(
            "sets the authority to {header:?}, but rewrite.authority already sets it to {authority:?}"
        ));
    }
    let mirror_percentage = policy::mirror_percentage(at, rule);
    let matches = at.field("match");
    HttpRule {
        name: text(&rule.name),
        matches: rule
            .matches
            .iter()
            .enumerate()
            .map(|(i, given)| matching::http_match(&matches.index(i), scope, given))
            .collect(),
        action: action::action(at, scope, rule),
        rewrite,
        timeout: rule
            .timeout
            .as_ref()
            .and_then(|given| at.field("timeout").check(crate::parse::positive_duration(given))),
        retries: rule.retries.as_ref().map(|retries| policy::retries(&at.field("retries"), retries)),
        fault: rule.fault.as_ref().map(|fault| policy::fault(&at.field("fault"), fault)),
        mirrors: policy::mirrors(at, scope, rule, mirror_percentage),
        mirror_percentage,
        cors: rule.cors_policy.as_ref().map(|cors| policy::cors(&at.field("corsPolicy"), cors)),
        headers,
        authority_from_headers,
    }
}

/// Parses operations on headers, and apart from them the authority that they set.
fn headers(at: &At<'_>, given: Option<&api::Headers>) -> (Headers, Option<Str>) {
    let Some(given) = given else { return (Headers::default(), None) };
    let at_request = at.field("request");
    let at_response = at.field("response");
    let mut authority = None;
    let request = given.request.as_ref().map(|request| {
        for (field, values) in [("set", &request.set), ("add", &request.add)] {
            let at = at_request.field(field);
            for (name, value) in values.iter().filter(|(name, _)| is_authority(name)) {
                if let Some(other) = authority.replace(Str::from(value.as_str())) {
                    at.key(name).reject(format!(
                        "sets the authority to {value:?}, but it is already set to {other:?}"
                    ));
                }
            }
        }
        operations(&at_request, request, is_authority)
    });
    let response = given.response.as_ref().map(|response| operations(&at_response, response, |_| false));
    let headers = Headers { request: request.unwrap_or_default(), response: response.unwrap_or_default() };
    (headers, authority)
}

fn operations(at: &At<'_>, given: &api::HeaderOperations, is_apart: fn(&str) -> bool) -> HeaderOperations {
    let values = |field, given: &BTreeMap<String, String>| {
        let at = at.field(field);
        let mut values = BTreeMap::new();
        for (name, value) in given {
            let at = at.key(name);
            at.check(header_value(value));
            if !is_apart(name) && at.check(changeable(name)).is_some() {
                values.insert(Str::from(name.as_str()), Str::from(value.as_str()));
            }
        }
        values
    };
    let at_remove = at.field("remove");
    let remove = given.remove.iter().enumerate().filter_map(|(i, name)| {
        at_remove.index(i).check(changeable(name))?;
        Some(Str::from(name.as_str()))
    });
    HeaderOperations {
        set: values("set", &given.set),
        add: values("add", &given.add),
        remove: remove.collect(),
    }
}

fn changeable(name: &str) -> Result<(), Invalid> {
    header_name(name)?;
    if is_internal(name) {
        return Err(Invalid::new(format!(
            "{name:?} cannot be changed here: pseudo headers and `host` are not headers"
        )));
    }
    Ok(())
}

/// Takes over a text in which empty means absent.
fn text(given: &str) -> Option<Str> {
    (!given.is_empty()).then(|| given.into())
}
