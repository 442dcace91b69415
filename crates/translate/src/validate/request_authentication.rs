//! RequestAuthentication.

use super::targets;
use crate::report::{At, Report, Translated, object_key};
use k8s_api::request_authentication as api;
use model::Kind;
use serde_json::Value;

/// Checks a RequestAuthentication.
pub(super) fn check(object: &api::RequestAuthentication) -> Translated<()> {
    let report = Report::new(object_key(Kind::RequestAuthentication, &object.metadata));
    let (spec, at) = (&object.spec, report.at("spec"));
    targets::check(&at, spec.selector.as_ref(), spec.target_ref.as_ref(), &spec.target_refs);
    if object.metadata.annotations.as_ref().is_some_and(|all| all.contains_key("istio.io/dry-run")) {
        let at = report.at("metadata");
        at.field("annotations").key("istio.io/dry-run").reject("is not for this kind");
    }
    for (index, rule) in spec.jwt_rules.iter().enumerate() {
        let at = at.field("jwtRules");
        check_rule(&at.index(index), rule);
    }
    report.all_or_nothing(())
}

fn check_rule(at: &At<'_>, rule: &api::JwtRule) {
    let (field, url) =
        if rule.jwks_uri.is_empty() { ("jwks_uri", &rule.jwks_uri_old) } else { ("jwksUri", &rule.jwks_uri) };
    if rule.issuer.is_empty() && url.is_empty() {
        at.field("issuer").reject("is required, or jwksUri");
    }
    if !url.is_empty() {
        check_url(&at.field(field), url);
        if !rule.jwks.is_empty() {
            at.field("jwks").reject("cannot be combined with jwksUri");
        }
    }
    if !rule.jwks.is_empty() {
        check_keys(&at.field("jwks"), &rule.jwks);
    }
    for (field, values) in [
        ("audiences", &rule.audiences),
        ("fromParams", &rule.from_params),
        ("fromCookies", &rule.from_cookies),
    ] {
        let at = at.field(field);
        for (index, _) in values.iter().enumerate().filter(|(_, value)| value.is_empty()) {
            at.index(index).reject("must not be empty");
        }
    }
    for (index, header) in rule.from_headers.iter().enumerate() {
        let at = at.field("fromHeaders");
        if header.name.is_empty() {
            at.index(index).field("name").reject("must not be empty");
        }
    }
    for (index, output) in rule.output_claim_to_headers.iter().enumerate() {
        let at = at.field("outputClaimToHeaders");
        let at = at.index(index);
        if output.claim.is_empty() {
            at.field("claim").reject("must not be empty");
        }
        targets::plain_header_name(&at.field("header"), &output.header);
    }
    if let Some(timeout) = &rule.timeout {
        at.field("timeout").check(crate::parse::duration(timeout));
    }
}

fn check_url(at: &At<'_>, url: &str) {
    let host = ["http://", "https://"].into_iter().find_map(|scheme| url.strip_prefix(scheme));
    let is_host = |rest: &str| !rest.is_empty() && !rest.starts_with('/');
    if !host.is_some_and(is_host) || url.contains(|c: char| c.is_control() || c.is_whitespace()) {
        at.reject(format!("{url:?} is not a URL with http:// or https:// and a host"));
    }
}

/// Checks a set of keys. Private parts have no place in it: whoever reads the object has them.
fn check_keys(at: &At<'_>, text: &str) {
    let parsed: Result<Value, _> = serde_json::from_str(text);
    let keys = match &parsed {
        Ok(set) => set["keys"].as_array(),
        Err(error) => return at.reject(format!("is not JSON: {error}")),
    };
    let Some(keys) = keys else { return at.reject("has no list of keys") };
    for (index, key) in keys.iter().enumerate() {
        if !key["kty"].is_string() {
            at.field("keys").index(index).reject("has no kty");
        }
        if key.get("d").is_some() || key["kty"] == "oct" {
            at.field("keys")
                .index(index)
                .warn("holds a private key, which everybody who reads this object has");
        }
    }
}
