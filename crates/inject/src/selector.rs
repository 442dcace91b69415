//! Label selectors of the injector's settings.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A label selector of Kubernetes. All of its parts must match; an empty one matches nothing here, as in Istio.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Labels with their values.
    pub match_labels: BTreeMap<String, String>,
    /// Conditions on labels.
    pub match_expressions: Vec<Requirement>,
}

/// One condition on a label.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// What is demanded of it.
    pub operator: Operator,
    /// The values that `In` and `NotIn` compare with.
    #[serde(default)]
    pub values: Vec<String>,
}

/// What can be demanded of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Operator {
    /// It has one of the values.
    In,
    /// It is absent or has none of the values.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl Selector {
    /// Returns whether the labels match.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let is_empty = self.match_labels.is_empty() && self.match_expressions.is_empty();
        !is_empty
            && self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(selector: serde_json::Value, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        serde_json::from_value::<Selector>(selector).unwrap().matches(&labels)
    }

    #[test]
    fn every_operator_means_what_kubernetes_says() {
        let of = |operator: &str| json!({"matchExpressions": [{"key": "a", "operator": operator, "values": ["1"]}]});
        for (operator, absent, one, two) in [
            ("In", false, true, false),
            ("NotIn", true, false, true),
            ("Exists", false, true, true),
            ("DoesNotExist", true, false, false),
        ] {
            assert_eq!(check(of(operator), &[]), absent, "{operator}");
            assert_eq!(check(of(operator), &[("a", "1")]), one, "{operator}");
            assert_eq!(check(of(operator), &[("a", "2")]), two, "{operator}");
        }
    }

    #[test]
    fn all_parts_must_match_and_nothing_matches_nothing() {
        let both =
            json!({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]});
        assert!(!check(both.clone(), &[("a", "1")]));
        assert!(check(both, &[("a", "1"), ("b", "")]));
        assert!(!check(json!({}), &[("a", "1")]));
    }

    #[test]
    fn a_misspelt_operator_is_refused() {
        let selector = json!({"matchExpressions": [{"key": "a", "operator": "Exist"}]});
        assert!(serde_json::from_value::<Selector>(selector).is_err());
    }
}
