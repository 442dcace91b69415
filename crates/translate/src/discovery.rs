//! Which namespaces are a part of the mesh (`discoverySelectors`).

use crate::report::At;
use k8s_api::mesh_config as api;
use model::{Labels, Str};
use std::collections::BTreeSet;

/// A selector of namespaces: all requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceSelector {
    labels: Labels,
    requirements: Vec<Requirement>,
}

/// A requirement on the value of one label.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: Str,
    operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    In(BTreeSet<Str>),
    NotIn(BTreeSet<Str>),
    Exists,
    DoesNotExist,
}

impl NamespaceSelector {
    /// Returns whether a namespace with these labels is selected.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.labels.selects(labels) && self.requirements.iter().all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            // As in Kubernetes, a label that is not there has none of the values.
            Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// Parses the selectors, any of which is enough. A namespace that a selector means and does not name could be any, so one
/// that is wrong is refused.
pub(crate) fn selectors(at: &At<'_>, given: &[api::DiscoverySelector]) -> Vec<NamespaceSelector> {
    given.iter().enumerate().map(|(i, given)| selector(&at.index(i), given)).collect()
}

fn selector(at: &At<'_>, given: &api::DiscoverySelector) -> NamespaceSelector {
    let at_all = at.field("matchExpressions");
    let requirement = |(i, given): (usize, &api::SelectorRequirement)| {
        let at = at_all.index(i);
        if given.key.is_empty() {
            at.field("key").reject("is required");
        }
        let values: BTreeSet<Str> = given.values.iter().map(|value| Str::from(value.as_str())).collect();
        let operator = match (given.operator.as_str(), values.is_empty()) {
            ("In", false) => Operator::In(values),
            ("NotIn", false) => Operator::NotIn(values),
            ("Exists", true) => Operator::Exists,
            ("DoesNotExist", true) => Operator::DoesNotExist,
            (operator @ ("In" | "NotIn"), true) => {
                at.field("values").reject(format!("are required for operator {operator}"));
                return None;
            }
            (operator @ ("Exists" | "DoesNotExist"), false) => {
                at.field("values").reject(format!("must be empty for operator {operator}"));
                return None;
            }
            (other, _) => {
                at.field("operator")
                    .reject(format!("{other:?} is none of In, NotIn, Exists and DoesNotExist"));
                return None;
            }
        };
        Some(Requirement { key: given.key.as_str().into(), operator })
    };
    NamespaceSelector {
        labels: given.match_labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
        requirements: given.match_expressions.iter().enumerate().filter_map(requirement).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;
    use k8s_api::mesh_config::MeshConfig;
    use model::{Kind, ObjectKey};

    fn parse(yaml: &str) -> (Vec<NamespaceSelector>, Vec<String>) {
        let config = MeshConfig::parse(&[("test", &format!("discoverySelectors: {yaml}"))]).unwrap().config;
        let report = Report::new(ObjectKey::new(Kind::ConfigMap, "istio-system", "istio"));
        let parsed = selectors(&report.at("discoverySelectors"), &config.discovery_selectors);
        let fields = report.with(Some(())).rejections.into_iter().map(|rejection| rejection.field);
        (parsed, fields.collect())
    }

    #[test]
    fn all_requirements_of_a_selector_must_hold() {
        let yaml = "[{matchLabels: {mesh: 'on'}, matchExpressions: [{key: phase, operator: DoesNotExist},
                    {key: team, operator: In, values: [a, b]}, {key: zone, operator: NotIn, values: [z]},
                    {key: owner, operator: Exists}]}]";
        let (parsed, rejected) = parse(yaml);
        assert_eq!(rejected, [""; 0]);
        let good = [("mesh", "on"), ("team", "b"), ("owner", "")];
        let selects = |labels: &[(&str, &str)]| parsed[0].selects(&labels.iter().copied().collect());
        assert!(selects(&good));
        let with = |label: (&'static str, &'static str)| {
            let others = good.iter().copied().filter(|(key, _)| *key != label.0);
            selects(&others.chain([label]).collect::<Vec<_>>())
        };
        assert!(with(("zone", "y")));
        for bad in [("mesh", "off"), ("phase", ""), ("team", "c"), ("zone", "z")] {
            assert!(!with(bad), "{bad:?}");
        }
        assert!(!selects(&good[..2]), "owner must be there");
    }

    #[test]
    fn requirements_that_cannot_be_meant_are_refused() {
        for (expression, field) in [
            ("{key: a, operator: Like, values: [b]}", "operator"),
            ("{key: a, operator: In}", "values"),
            ("{key: a, operator: Exists, values: [b]}", "values"),
            ("{operator: Exists}", "key"),
        ] {
            let (_, rejected) = parse(&format!("[{{}}, {{matchExpressions: [{expression}]}}]"));
            assert_eq!(rejected, [format!("discoverySelectors[1].matchExpressions[0].{field}")]);
        }
    }
}
