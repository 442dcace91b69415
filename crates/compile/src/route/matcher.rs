//! What a request must look like for a rule to apply.

use crate::wire;
use model::route::{StringMatch, ValueMatch};
use model::virtual_service::HttpMatch;
use proto::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use proto::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use proto::envoy::config::route::v3::route_match::PathSpecifier;
use proto::envoy::config::route::v3::{HeaderMatcher, QueryParameterMatcher, RouteMatch};
use proto::envoy::r#type::matcher::v3::metadata_matcher::{PathSegment, path_segment};
use proto::envoy::r#type::matcher::v3::{
    ListMatcher, MetadataMatcher, OrMatcher, ValueMatcher, list_matcher, value_matcher,
};

/// The filter whose metadata has the claims of a verified token.
const JWT_FILTER: &str = "envoy.filters.http.jwt_authn";
/// The key of that metadata under which the claims are.
const JWT_PAYLOAD: &str = "payload";
/// Header names that begin with this stand for claims.
const CLAIMS: &str = "@request.auth.claims";

/// Returns the matcher of every request.
pub(super) fn everything() -> RouteMatch {
    RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..RouteMatch::default() }
}

/// Returns the matcher of what `conditions` say about the request itself. Where they apply (port, gateways, source)
/// has been decided before.
pub(super) fn request(conditions: &HttpMatch) -> RouteMatch {
    let mut matcher = everything();
    if let Some(uri) = &conditions.uri {
        matcher.path_specifier = Some(path(uri));
    }
    matcher.case_sensitive = wire::bool_value(!conditions.ignore_uri_case);
    let wanted = conditions.headers.iter().map(|(name, value)| (name, value, false));
    let unwanted = conditions.without_headers.iter().map(|(name, value)| (name, value, true));
    for (name, value, invert) in wanted.chain(unwanted) {
        match claim_path(name) {
            Some(claim) => matcher.dynamic_metadata.push(claim_matcher(&claim, value, invert)),
            None => matcher.headers.push(header(name, value, invert)),
        }
    }
    matcher.headers.sort_by(|a, b| a.name.cmp(&b.name));
    let pseudo = [
        (":method", &conditions.method),
        (":authority", &conditions.authority),
        (":scheme", &conditions.scheme),
    ];
    for (name, value) in pseudo {
        if let Some(value) = value {
            matcher.headers.push(header(name, &ValueMatch::Value(value.clone()), false));
        }
    }
    matcher.query_parameters =
        conditions.query_params.iter().map(|(name, value)| query_parameter(name, value)).collect();
    matcher
}

/// Returns whether no later rule can ever apply: every path, and no other condition.
pub(super) fn is_catch_all(matcher: &RouteMatch) -> bool {
    let any_path = match &matcher.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => prefix == "/",
        Some(PathSpecifier::SafeRegex(expression)) => expression.regex == ".*",
        _ => false,
    };
    any_path
        && matcher.headers.is_empty()
        && matcher.query_parameters.is_empty()
        && matcher.dynamic_metadata.is_empty()
}

fn path(uri: &StringMatch) -> PathSpecifier {
    match uri {
        StringMatch::Exact(path) => PathSpecifier::Path(path.to_string()),
        StringMatch::Prefix(prefix) => PathSpecifier::Prefix(prefix.to_string()),
        StringMatch::Regex(expression) => PathSpecifier::SafeRegex(wire::regex(expression.as_ref())),
    }
}

fn header(name: &str, value: &ValueMatch, invert: bool) -> HeaderMatcher {
    let (specifier, missing_is_empty) = match value {
        ValueMatch::Present => (HeaderMatchSpecifier::PresentMatch(true), false),
        // A request without the header does not have this value either, so it passes the inverted condition.
        ValueMatch::Value(value) => (HeaderMatchSpecifier::StringMatch(wire::string_matcher(value)), invert),
    };
    HeaderMatcher {
        name: name.to_owned(),
        invert_match: invert,
        treat_missing_header_as_empty: missing_is_empty,
        header_match_specifier: Some(specifier),
    }
}

fn query_parameter(name: &str, value: &ValueMatch) -> QueryParameterMatcher {
    let specifier = match value {
        ValueMatch::Present => QueryParameterMatchSpecifier::PresentMatch(true),
        ValueMatch::Value(value) => QueryParameterMatchSpecifier::StringMatch(wire::string_matcher(value)),
    };
    QueryParameterMatcher { name: name.to_owned(), query_parameter_match_specifier: Some(specifier) }
}

/// Returns the path of the claim that a header name stands for: `@request.auth.claims.a.b`, or
/// `@request.auth.claims[a][b]` for keys that hold dots.
fn claim_path(name: &str) -> Option<Vec<&str>> {
    let prefix = name.get(..CLAIMS.len())?;
    if !prefix.eq_ignore_ascii_case(CLAIMS) {
        return None;
    }
    let rest = &name[CLAIMS.len()..];
    if let Some(keys) = rest.strip_prefix('.') {
        return (!keys.is_empty()).then(|| keys.split('.').collect());
    }
    let keys = rest.strip_prefix('[')?.strip_suffix(']')?;
    (!keys.is_empty()).then(|| keys.split("][").collect())
}

/// Returns the matcher of a claim that is the value or a list that holds it.
fn claim_matcher(claim: &[&str], value: &ValueMatch, invert: bool) -> MetadataMatcher {
    let path = std::iter::once(JWT_PAYLOAD).chain(claim.iter().copied());
    let pattern = match value {
        // Istio sends a text matcher without a pattern here, which Envoy refuses together with all other routes.
        ValueMatch::Present => value_matcher::MatchPattern::PresentMatch(true),
        ValueMatch::Value(value) => {
            let is = value_matcher_of(value_matcher::MatchPattern::StringMatch(wire::string_matcher(value)));
            let list =
                ListMatcher { match_pattern: Some(list_matcher::MatchPattern::OneOf(Box::new(is.clone()))) };
            let holds = value_matcher_of(value_matcher::MatchPattern::ListMatch(Box::new(list)));
            value_matcher::MatchPattern::OrMatch(OrMatcher { value_matchers: vec![holds, is] })
        }
    };
    MetadataMatcher {
        filter: JWT_FILTER.to_owned(),
        path: path.map(segment).collect(),
        value: Some(value_matcher_of(pattern)),
        invert,
    }
}

fn segment(key: &str) -> PathSegment {
    PathSegment { segment: Some(path_segment::Segment::Key(key.to_owned())) }
}

fn value_matcher_of(pattern: value_matcher::MatchPattern) -> ValueMatcher {
    ValueMatcher { match_pattern: Some(pattern) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Str;
    use std::collections::BTreeMap;

    fn values(entries: &[(&str, ValueMatch)]) -> BTreeMap<Str, ValueMatch> {
        entries.iter().map(|(name, value)| ((*name).into(), value.clone())).collect()
    }

    fn exact(text: &str) -> ValueMatch {
        ValueMatch::Value(StringMatch::Exact(text.into()))
    }

    #[test]
    fn paths_keep_their_kind_and_case() {
        let cases = [
            (StringMatch::Exact("/a".into()), PathSpecifier::Path("/a".to_owned())),
            (StringMatch::Prefix("/a".into()), PathSpecifier::Prefix("/a".to_owned())),
            (StringMatch::Regex("/a.*".into()), PathSpecifier::SafeRegex(wire::regex("/a.*"))),
        ];
        for (uri, expected) in cases {
            for ignore_uri_case in [false, true] {
                let got =
                    request(&HttpMatch { uri: Some(uri.clone()), ignore_uri_case, ..HttpMatch::default() });
                assert_eq!(got.path_specifier, Some(expected.clone()));
                assert_eq!(got.case_sensitive, wire::bool_value(!ignore_uri_case));
            }
        }
    }

    #[test]
    fn headers_are_sorted_and_pseudo_headers_follow() {
        let got = request(&HttpMatch {
            headers: values(&[("x-b", exact("1")), ("X-a", ValueMatch::Present)]),
            without_headers: values(&[("x-a2", exact("2")), ("x-c", ValueMatch::Present)]),
            method: Some(StringMatch::Exact("GET".into())),
            authority: Some(StringMatch::Prefix("a.".into())),
            scheme: Some(StringMatch::Exact("https".into())),
            ..HttpMatch::default()
        });
        let seen: Vec<(&str, bool, bool)> = got
            .headers
            .iter()
            .map(|header| (header.name.as_str(), header.invert_match, header.treat_missing_header_as_empty))
            .collect();
        assert_eq!(
            seen,
            [
                ("X-a", false, false),
                ("x-a2", true, true),
                ("x-b", false, false),
                ("x-c", true, false),
                (":method", false, false),
                (":authority", false, false),
                (":scheme", false, false),
            ]
        );
        assert_eq!(got.headers[0].header_match_specifier, Some(HeaderMatchSpecifier::PresentMatch(true)));
    }

    #[test]
    fn query_parameters_match_by_value_or_presence() {
        let got = request(&HttpMatch {
            query_params: values(&[("q", ValueMatch::Present), ("page", exact("1"))]),
            ..HttpMatch::default()
        });
        let seen: Vec<_> = got
            .query_parameters
            .iter()
            .map(|parameter| (parameter.name.as_str(), parameter.query_parameter_match_specifier.clone()))
            .collect();
        assert_eq!(
            seen,
            [
                ("page", Some(QueryParameterMatchSpecifier::StringMatch(wire::exact("1")))),
                ("q", Some(QueryParameterMatchSpecifier::PresentMatch(true))),
            ]
        );
    }

    #[test]
    fn claims_are_named_in_two_ways() {
        let cases = [
            ("@request.auth.claims.groups", Some(vec!["groups"])),
            ("@REQUEST.auth.claims.realm.role", Some(vec!["realm", "role"])),
            ("@request.auth.claims[realm.v1][role]", Some(vec!["realm.v1", "role"])),
            ("@request.auth.claims", None),
            ("@request.auth.claims.", None),
            ("@request.auth.claims[]", None),
            ("@request.auth.claimsx", None),
            ("x-header", None),
        ];
        for (name, expected) in cases {
            assert_eq!(claim_path(name), expected, "{name}");
        }
    }

    #[test]
    fn claims_match_a_text_or_a_list_that_holds_it() {
        let got = request(&HttpMatch {
            headers: values(&[("@request.auth.claims.groups", exact("admins")), ("x", exact("y"))]),
            without_headers: values(&[("@request.auth.claims.banned", ValueMatch::Present)]),
            ..HttpMatch::default()
        });
        assert_eq!(got.headers.len(), 1);
        let [groups, banned] = &got.dynamic_metadata[..] else { panic!("{got:?}") };
        assert_eq!(groups.filter, JWT_FILTER);
        assert_eq!(groups.path, [segment("payload"), segment("groups")]);
        let Some(value_matcher::MatchPattern::OrMatch(either)) =
            groups.value.as_ref().and_then(|value| value.match_pattern.clone())
        else {
            panic!("{groups:?}")
        };
        assert_eq!(either.value_matchers.len(), 2);
        assert!(banned.invert);
        assert_eq!(
            banned.value.as_ref().and_then(|value| value.match_pattern.clone()),
            Some(value_matcher::MatchPattern::PresentMatch(true))
        );
    }

    #[test]
    fn only_conditions_that_nothing_escapes_end_a_list_of_rules() {
        let uri = |uri| HttpMatch { uri: Some(uri), ..HttpMatch::default() };
        let slash = StringMatch::Prefix("/".into());
        let cases = [
            (HttpMatch::default(), true),
            (uri(slash.clone()), true),
            (uri(StringMatch::Regex(".*".into())), true),
            (uri(StringMatch::Prefix("".into())), false),
            (uri(StringMatch::Exact("/".into())), false),
            (HttpMatch { headers: values(&[("x", ValueMatch::Present)]), ..uri(slash.clone()) }, false),
            (HttpMatch { query_params: values(&[("x", ValueMatch::Present)]), ..uri(slash.clone()) }, false),
            (HttpMatch { method: Some(StringMatch::Exact("GET".into())), ..uri(slash.clone()) }, false),
            (
                HttpMatch {
                    headers: values(&[("@request.auth.claims.a", ValueMatch::Present)]),
                    ..uri(slash)
                },
                false,
            ),
        ];
        for (conditions, expected) in cases {
            assert_eq!(is_catch_all(&request(&conditions)), expected, "{conditions:?}");
        }
        assert!(is_catch_all(&everything()));
    }
}
