//! Virtual host and route of a request.

use crate::{Call, Tls};
use proto::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use proto::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use proto::envoy::config::route::v3::route_match::PathSpecifier;
use proto::envoy::config::route::v3::{
    HeaderMatcher, QueryParameterMatcher, Route, RouteConfiguration, RouteMatch, VirtualHost,
};
use proto::envoy::r#type::matcher::v3::StringMatcher;
use proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use proto::google::protobuf::BoolValue;
use regex::Regex;

/// Returns the virtual host for an authority: by exact domain, longest suffix (`*.a.org`), longest prefix
/// (`a.*`), then `*`.
pub(crate) fn virtual_host<'a>(
    configuration: &'a RouteConfiguration,
    authority: &str,
) -> Option<&'a VirtualHost> {
    let authority = match configuration.ignore_port_in_host_matching {
        true => without_port(authority),
        false => authority,
    };
    let authority = authority.to_ascii_lowercase();
    let ranked = configuration.virtual_hosts.iter().filter_map(|host| {
        let ranks =
            host.domains.iter().filter_map(|domain| domain_rank(&domain.to_ascii_lowercase(), &authority));
        Some((ranks.max()?, host))
    });
    // The first of equals; Envoy refuses configurations that have some.
    ranked.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, host)| host)
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !host.ends_with(':') => host,
        _ => authority,
    }
}

fn domain_rank(domain: &str, authority: &str) -> Option<(u8, usize)> {
    if domain == "*" {
        return Some((0, 0));
    }
    if domain == authority {
        return Some((3, 0));
    }
    if let Some(suffix) = domain.strip_prefix('*') {
        return (authority.len() > suffix.len() && authority.ends_with(suffix)).then_some((2, suffix.len()));
    }
    let prefix = domain.strip_suffix('*')?;
    (authority.len() > prefix.len() && authority.starts_with(prefix)).then_some((1, prefix.len()))
}

/// Returns whether a route takes the request of a call.
pub(crate) fn matches(route: &Route, call: &Call) -> bool {
    let Some(criteria) = &route.r#match else { return false };
    let (path, query) = call.path.split_once('?').unwrap_or((&call.path, ""));
    path_matches(criteria, path)
        && criteria.headers.iter().all(|matcher| header_matches(matcher, call))
        && criteria.query_parameters.iter().all(|matcher| parameter_matches(matcher, query))
}

fn path_matches(criteria: &RouteMatch, path: &str) -> bool {
    let fold = |text: &str| match criteria.case_sensitive {
        Some(BoolValue { value: false }) => text.to_ascii_lowercase(),
        _ => text.to_owned(),
    };
    let path = fold(path);
    match &criteria.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => path.starts_with(&fold(prefix)),
        Some(PathSpecifier::Path(exact)) => path == fold(exact),
        Some(PathSpecifier::SafeRegex(regex)) => full_match(&regex.regex, &path),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            path.strip_prefix(&fold(prefix)).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        _ => false,
    }
}

/// Expressions were checked by whoever sent them; one that does not compile matches nothing.
fn full_match(expression: &str, text: &str) -> bool {
    Regex::new(&format!("^(?:{expression})$")).is_ok_and(|regex| regex.is_match(text))
}

fn header<'a>(call: &'a Call, name: &str) -> Option<&'a str> {
    match name {
        ":method" => Some(&call.method),
        ":path" => Some(&call.path),
        ":authority" | "host" => Some(&call.host),
        ":scheme" => Some(if call.tls == Tls::Plaintext { "http" } else { "https" }),
        _ => call.headers.get(name).map(String::as_str),
    }
}

fn header_matches(matcher: &HeaderMatcher, call: &Call) -> bool {
    let found = header(call, &matcher.name.to_ascii_lowercase());
    let value = match found {
        None if matcher.treat_missing_header_as_empty => Some(""),
        other => other,
    };
    let matched = match (&matcher.header_match_specifier, value) {
        (Some(HeaderMatchSpecifier::PresentMatch(present)), _) => found.is_some() == *present,
        (None, _) => found.is_some(),
        // A missing header matches no value, nor does it match the opposite.
        (Some(_), None) => return false,
        (Some(HeaderMatchSpecifier::StringMatch(matcher)), Some(value)) => string_matches(matcher, value),
        (Some(HeaderMatchSpecifier::RangeMatch(range)), Some(value)) => {
            value.parse::<i64>().is_ok_and(|number| (range.start..range.end).contains(&number))
        }
        // The deprecated forms, which Weft does not send.
        (Some(_), Some(_)) => false,
    };
    matched != matcher.invert_match
}

fn string_matches(matcher: &StringMatcher, value: &str) -> bool {
    let fold = |text: &str| if matcher.ignore_case { text.to_ascii_lowercase() } else { text.to_owned() };
    let value = fold(value);
    match &matcher.match_pattern {
        Some(MatchPattern::Exact(exact)) => value == fold(exact),
        Some(MatchPattern::Prefix(prefix)) => value.starts_with(&fold(prefix)),
        Some(MatchPattern::Suffix(suffix)) => value.ends_with(&fold(suffix)),
        Some(MatchPattern::Contains(part)) => value.contains(&fold(part)),
        Some(MatchPattern::SafeRegex(regex)) => full_match(&regex.regex, &value),
        _ => false,
    }
}

fn parameter_matches(matcher: &QueryParameterMatcher, query: &str) -> bool {
    let mut parameters = query.split('&').filter(|pair| !pair.is_empty());
    let found = parameters.find_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name == matcher.name).then_some(value)
    });
    match (&matcher.query_parameter_match_specifier, found) {
        (Some(QueryParameterMatchSpecifier::StringMatch(matcher)), Some(value)) => {
            string_matches(matcher, value)
        }
        (Some(QueryParameterMatchSpecifier::PresentMatch(present)), found) => found.is_some() == *present,
        (Some(QueryParameterMatchSpecifier::StringMatch(_)), None) => false,
        (None, found) => found.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(domains: &[&[&str]]) -> RouteConfiguration {
        let host = |domains: &&[&str]| VirtualHost {
            name: domains[0].to_owned(),
            domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
            ..VirtualHost::default()
        };
        RouteConfiguration {
            virtual_hosts: domains.iter().map(host).collect(),
            ignore_port_in_host_matching: true,
            ..RouteConfiguration::default()
        }
    }

    #[test]
    fn the_most_specific_domain_wins() {
        let configuration = configuration(&[&["*"], &["*.org"], &["*.a.org"], &["b.*"], &["b.a.org", "B"]]);
        for (authority, expected) in [
            ("b.a.org", "b.a.org"),
            ("b:8080", "b.a.org"),
            ("c.a.org", "*.a.org"),
            ("a.org:80", "*.org"),
            ("b.com", "b.*"),
            ("com", "*"),
        ] {
            let host = virtual_host(&configuration, authority).expect("there is a catch-all");
            assert_eq!(host.name, expected, "{authority}");
        }
    }

    #[test]
    fn a_route_needs_path_headers_and_parameters() {
        let matcher = |pattern| StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() };
        let route = Route {
            r#match: Some(RouteMatch {
                path_specifier: Some(PathSpecifier::Prefix("/api".to_owned())),
                headers: vec![HeaderMatcher {
                    name: "X-User".to_owned(),
                    header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(matcher(
                        MatchPattern::Exact("me".to_owned()),
                    ))),
                    ..HeaderMatcher::default()
                }],
                query_parameters: vec![QueryParameterMatcher {
                    name: "v".to_owned(),
                    query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(
                        matcher(MatchPattern::Prefix("1".to_owned())),
                    )),
                }],
                ..RouteMatch::default()
            }),
            ..Route::default()
        };
        let call = |path: &str, user: &str| Call {
            path: path.to_owned(),
            headers: [("x-user".to_owned(), user.to_owned())].into(),
            ..Call::default()
        };
        assert!(matches(&route, &call("/api/x?a=b&v=12", "me")));
        assert!(!matches(&route, &call("/api/x?v=2", "me")));
        assert!(!matches(&route, &call("/api/x?v=1", "you")));
        assert!(!matches(&route, &call("/other?v=1", "me")));
    }

    #[test]
    fn an_inverted_match_does_not_hold_for_a_missing_header_unless_it_counts_as_empty() {
        let exact = StringMatcher {
            match_pattern: Some(MatchPattern::Exact("me".to_owned())),
            ..StringMatcher::default()
        };
        let matcher = HeaderMatcher {
            name: "x-user".to_owned(),
            header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(exact)),
            invert_match: true,
            ..HeaderMatcher::default()
        };
        assert!(!header_matches(&matcher, &Call::default()));
        let lenient = HeaderMatcher { treat_missing_header_as_empty: true, ..matcher };
        assert!(header_matches(&lenient, &Call::default()));
    }
}
