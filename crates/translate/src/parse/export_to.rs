//! Who may see an object.

use super::is_dns_label;
use crate::report::At;
use model::{ExportTo, Namespace, Str};
use std::collections::BTreeSet;

/// What a kind allows in its `exportTo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExportRules {
    /// Namespaces, `.` and `*`.
    Usual,
    /// `~` as well: only ServiceEntries may hide from everybody.
    AllowsNobody,
    /// Only the object's own namespace: its rules are for some of that namespace's workloads.
    OwnOnly,
}

/// Parses `exportTo`, applying the mesh's default if it is empty.
pub(crate) fn export_to(
    at: &At<'_>,
    given: &[String],
    own: &str,
    default: &[Str],
    rules: ExportRules,
) -> ExportTo {
    if given.is_empty() {
        return resolve(default.iter().map(AsRef::as_ref), own);
    }
    let mut seen = BTreeSet::new();
    for (i, entry) in given.iter().enumerate() {
        let at = at.index(i);
        let resolved = if entry == "." { own } else { entry.as_str() };
        if !seen.insert(resolved) {
            at.reject(format!(
                "{entry:?} is a duplicate: each namespace may be listed once, and `.` is {own:?}"
            ));
        } else if entry == "~" && rules != ExportRules::AllowsNobody {
            at.reject("`~` is for ServiceEntries only: list namespaces, `.` or `*`");
        } else if !matches!(resolved, "*" | "~") && entry != "." && !is_dns_label(resolved) {
            at.reject(format!("{entry:?} is not a namespace, `.` or `*`"));
        }
    }
    if rules == ExportRules::OwnOnly && (seen.len() > 1 || !seen.contains(own)) {
        at.reject("must be `.` only: a rule with a workload selector cannot be seen from other namespaces");
    }
    for alone in ["*", "~"] {
        if seen.contains(alone) && given.len() > 1 {
            at.reject(format!("`{alone}` must stand alone"));
        }
    }
    resolve(given.iter().map(String::as_str), own)
}

/// Parses an annotation that lists namespaces, applying the mesh's default if it is absent or empty.
pub(crate) fn export_to_annotation(given: Option<&str>, own: &str, default: &[Str]) -> ExportTo {
    match given.filter(|text| !text.trim().is_empty()) {
        Some(text) => resolve(text.split(','), own),
        None => resolve(default.iter().map(AsRef::as_ref), own),
    }
}

/// Applies `exportTo` as it stands. An empty list means everybody.
fn resolve<'a>(entries: impl Iterator<Item = &'a str>, own: &str) -> ExportTo {
    let entries: Vec<&str> = entries.map(str::trim).filter(|entry| !entry.is_empty()).collect();
    if entries.is_empty() || entries.contains(&"*") {
        return ExportTo::All;
    }
    if entries.contains(&"~") {
        return ExportTo::Nobody;
    }
    let namespaces = entries.into_iter().map(|entry| Namespace::new(if entry == "." { own } else { entry }));
    ExportTo::Namespaces(namespaces.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;
    use model::{Kind, ObjectKey};

    fn parse(given: &[&str], rules: ExportRules) -> (ExportTo, Vec<String>) {
        let given: Vec<String> = given.iter().map(|&entry| entry.to_owned()).collect();
        let report = Report::new(ObjectKey::new(Kind::VirtualService, "shop", "x"));
        let value = export_to(&report.at("exportTo"), &given, "shop", &[".".into()], rules);
        (value, report.with(Some(())).rejections.into_iter().map(|rejection| rejection.field).collect())
    }

    fn only(namespaces: &[&str]) -> ExportTo {
        ExportTo::Namespaces(namespaces.iter().map(|&namespace| Namespace::new(namespace)).collect())
    }

    #[test]
    fn visibility_is_resolved() {
        assert_eq!(parse(&[], ExportRules::Usual), (only(&["shop"]), vec![]));
        assert_eq!(parse(&["*"], ExportRules::Usual), (ExportTo::All, vec![]));
        assert_eq!(parse(&[".", "a"], ExportRules::Usual), (only(&["a", "shop"]), vec![]));
        assert_eq!(parse(&["~"], ExportRules::AllowsNobody), (ExportTo::Nobody, vec![]));
        assert_eq!(parse(&["shop"], ExportRules::OwnOnly), (only(&["shop"]), vec![]));
    }

    #[test]
    fn contradictions_are_refused() {
        for (given, rules, field) in [
            (&["a", "a"][..], ExportRules::Usual, "exportTo[1]"),
            (&[".", "shop"], ExportRules::Usual, "exportTo[1]"),
            (&["*", "a"], ExportRules::Usual, "exportTo"),
            (&["~"], ExportRules::Usual, "exportTo[0]"),
            (&["~", "a"], ExportRules::AllowsNobody, "exportTo"),
            (&["a b"], ExportRules::Usual, "exportTo[0]"),
            (&[".", "a"], ExportRules::OwnOnly, "exportTo"),
            (&["a"], ExportRules::OwnOnly, "exportTo"),
        ] {
            assert_eq!(parse(given, rules).1, [field], "{given:?}");
        }
    }
}
