//! What an HTTP rule matches.

use super::text;
use crate::l4_route::{match_port, source_namespace};
use crate::parse::{Invalid, header_name, regex, selector};
use crate::report::At;
use crate::virtual_service::{Scope, gateways};
use k8s_api::virtual_service as api;
use model::Str;
use model::route::{StringMatch, ValueMatch};
use model::virtual_service::HttpMatch;
use std::collections::BTreeMap;

const CLAIMS: &str = "@request.auth.claims";

/// Parses one alternative of a rule.
pub(super) fn http_match(at: &At<'_>, scope: &Scope<'_>, given: &api::HttpMatchRequest) -> HttpMatch {
    let plain = |name, given: &Option<api::StringMatch>| {
        let given = given.as_ref()?;
        let at = at.field(name);
        string_match(&at, given, name == "uri")
    };
    let at_headers = at.field("headers");
    let at_without = at.field("withoutHeaders");
    for (place, headers) in [(&at_headers, &given.headers), (&at_without, &given.without_headers)] {
        for name in headers.keys() {
            place.key(name).check(matchable(name, scope));
        }
    }
    HttpMatch {
        name: text(&given.name),
        uri: plain("uri", &given.uri),
        ignore_uri_case: given.ignore_uri_case,
        scheme: plain("scheme", &given.scheme),
        method: plain("method", &given.method),
        authority: plain("authority", &given.authority),
        headers: values(&at_headers, &given.headers, false),
        without_headers: values(&at_without, &given.without_headers, true),
        query_params: values(&at.field("queryParams"), &given.query_params, false),
        port: match_port(&at.field("port"), given.port),
        source_labels: selector(&at.field("sourceLabels"), &given.source_labels),
        source_namespace: source_namespace(&given.source_namespace),
        gateways: gateways(&at.field("gateways"), &given.gateways, scope.namespace),
        stat_prefix: text(&given.stat_prefix),
    }
}

fn values(
    at: &At<'_>,
    given: &BTreeMap<String, api::StringMatch>,
    allows_star: bool,
) -> BTreeMap<Str, ValueMatch> {
    let value = |(name, given): (&String, &api::StringMatch)| {
        // `*` is no expression, but has always meant that the header is there.
        let is_star = allows_star && given.regex.as_deref() == Some("*");
        let value = if is_star { None } else { string_match(&at.key(name), given, false) };
        (Str::from(name.as_str()), value.map_or(ValueMatch::Present, ValueMatch::Value))
    };
    given.iter().map(value).collect()
}

/// Parses a comparison; none if it says nothing, which matches everything.
pub(super) fn string_match(
    at: &At<'_>,
    given: &api::StringMatch,
    allows_empty_prefix: bool,
) -> Option<StringMatch> {
    let set = [given.exact.is_some(), given.prefix.is_some(), given.regex.is_some()];
    if set.into_iter().filter(|is_set| *is_set).count() > 1 {
        at.reject("only one of exact, prefix and regex can be set");
        return None;
    }
    match given.kind()? {
        api::StringMatchKind::Exact(text) => Some(StringMatch::Exact(text.into())),
        api::StringMatchKind::Prefix("") if !allows_empty_prefix => {
            at.field("prefix").reject("must not be empty: leave the match out to match everything");
            None
        }
        api::StringMatchKind::Prefix(text) => Some(StringMatch::Prefix(text.into())),
        api::StringMatchKind::Regex("") => {
            at.field("regex").reject("must not be empty: leave the match out to match everything");
            None
        }
        api::StringMatchKind::Regex(text) => {
            at.field("regex").check(regex(text))?;
            Some(StringMatch::Regex(text.into()))
        }
    }
}

/// Checks the name of a header to match, which can also be a claim of a token that a gateway has checked.
fn matchable(name: &str, scope: &Scope<'_>) -> Result<(), Invalid> {
    header_name(name)?;
    if !name.starts_with("@request.auth.") {
        return Ok(());
    }
    let path = name.strip_prefix(CLAIMS).unwrap_or_default();
    let is_dotted = path.strip_prefix('.').is_some_and(|path| path.split('.').all(|part| !part.is_empty()));
    let is_bracketed =
        path.strip_prefix('[').and_then(|path| path.strip_suffix(']')).is_some_and(|path| !path.is_empty());
    if !is_dotted && !is_bracketed {
        return Err(Invalid::new(format!(
            "{name:?} is not a claim: write `{CLAIMS}.name` or `{CLAIMS}[name]`"
        )));
    }
    if !scope.has_gateway && !scope.is_delegate {
        return Err(Invalid::new("matching by claims works at gateways only, and none is listed"));
    }
    Ok(())
}
