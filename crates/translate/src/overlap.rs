//! Matches of HTTP rules that can never decide, because an earlier one takes all that they would.

use crate::report::At;
use k8s_api::virtual_service::{HttpMatchRequest, HttpRoute};

/// Warns of each match whose prefix begins with that of an earlier match which asks for nothing else.
pub(crate) fn check(at: &At<'_>, rules: &[HttpRoute]) {
    let mut earlier: Vec<(usize, usize, &str)> = Vec::new();
    for (rule, given) in rules.iter().enumerate() {
        for (place, request) in given.matches.iter().enumerate() {
            let Some(prefix) = prefix(request) else { continue };
            let taken = earlier.iter().find(|(_, _, other)| prefix.starts_with(other));
            if let Some((other_rule, other_place, other)) = taken {
                let at = at.index(rule);
                let at = at.field("match");
                at.index(place).warn(format!(
                    "is never used: http[{other_rule}].match[{other_place}] with prefix {other:?} takes all of {prefix:?}"
                ));
            } else if asks_for_nothing_else(request) {
                earlier.push((rule, place, prefix));
            }
        }
    }
}

/// Returns the prefix of a match, unless its case does not matter: then it is not told by its text what it takes.
fn prefix(request: &HttpMatchRequest) -> Option<&str> {
    if request.ignore_uri_case {
        return None;
    }
    request.uri.as_ref()?.prefix.as_deref().filter(|prefix| !prefix.is_empty())
}

/// Whether a match takes every request whose path has its prefix.
fn asks_for_nothing_else(request: &HttpMatchRequest) -> bool {
    let path_only = HttpMatchRequest {
        uri: request.uri.clone(),
        // These change names of what is reported only.
        name: request.name.clone(),
        stat_prefix: request.stat_prefix.clone(),
        ..HttpMatchRequest::default()
    };
    *request == path_only
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;
    use model::{Kind, ObjectKey};
    use serde_json::{Value, json};

    fn warnings(rules: Value) -> Vec<String> {
        let report = Report::new(ObjectKey::new(Kind::VirtualService, "app", "v"));
        let rules: Vec<HttpRoute> = serde_json::from_value(rules).unwrap();
        check(&report.at("http"), &rules);
        report.with(Some(())).warnings.into_iter().map(|warning| warning.field).collect()
    }

    #[test]
    fn a_longer_prefix_after_a_shorter_one_is_never_used() {
        let short = json!({"uri": {"prefix": "/a"}});
        let long = json!({"uri": {"prefix": "/ab"}, "method": {"exact": "GET"}});
        assert_eq!(warnings(json!([{"match": [short, long]}])), ["http[0].match[1]"]);
        assert_eq!(warnings(json!([{"match": [short]}, {"match": [long]}])), ["http[1].match[0]"]);
        assert_eq!(warnings(json!([{"match": [long]}, {"match": [short]}])), Vec::<String>::new());
    }

    #[test]
    fn a_match_that_asks_for_more_takes_nothing_from_others() {
        for more in
            [json!({"port": 80}), json!({"headers": {"x": {"exact": "1"}}}), json!({"gateways": ["g"]})]
        {
            let mut first = more;
            first["uri"] = json!({"prefix": "/a"});
            assert_eq!(
                warnings(json!([{"match": [first]}, {"match": [{"uri": {"prefix": "/ab"}}]}])),
                Vec::<String>::new()
            );
        }
    }
}
