//! Putting the rules of other VirtualServices in the place of those that delegate to them.

use model::route::{StringMatch, ValueMatch};
use model::virtual_service::{GatewayRef, HttpAction, HttpMatch, HttpRule};
use model::{Kind, ObjectKey, Rejection, Str, VirtualService};
use std::collections::{BTreeMap, BTreeSet};

/// A root with the rules of its delegates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The root, none of whose rules delegates any more.
    pub value: VirtualService,
    /// Every delegate that the root names, found or not: when one of them comes, goes or changes, merge again.
    pub delegates: BTreeSet<ObjectKey>,
    /// Rules that are left out, and why. The fields are the root's.
    pub rejections: Vec<Rejection>,
}

/// Replaces every rule of `root` that delegates by the rules of its delegate, which `find` looks up.
///
/// The matches of both are joined with "and"; a rule whose matches contradict its root's is left out, and so is a rule
/// whose delegate is not there or not visible. What a delegate's rule does not say, it inherits.
pub fn merge<'a>(root: &VirtualService, find: &dyn Fn(&ObjectKey) -> Option<&'a VirtualService>) -> Merged {
    let mut merged = Merged { value: root.clone(), delegates: BTreeSet::new(), rejections: Vec::new() };
    let mut rules = Vec::with_capacity(root.http.len());
    for (i, rule) in root.http.iter().enumerate() {
        let HttpAction::Delegate { namespace, name } = &rule.action else {
            rules.push(rule.clone());
            continue;
        };
        let key = ObjectKey { kind: Kind::VirtualService, namespace: namespace.clone(), name: name.clone() };
        let field = format!("spec.http[{i}].delegate");
        let mut reject = |field: String, reason: String| {
            merged.rejections.push(Rejection { object: root.meta.key.clone(), field, reason });
        };
        match find(&key) {
            None => reject(field, format!("{key} does not exist")),
            Some(delegate) if !delegate.hosts.is_empty() => {
                reject(field, format!("{key} has hosts of its own, so it cannot be delegated to"));
            }
            Some(delegate) if !delegate.export_to.includes(&root.meta.key.namespace) => {
                reject(field, format!("{key} is not exported to namespace {}", root.meta.key.namespace));
            }
            Some(delegate) => {
                for (j, leaf) in delegate.http.iter().enumerate() {
                    match merge_rule(rule, leaf) {
                        Some(rule) => rules.push(rule),
                        None => reject(
                            format!("spec.http[{i}]"),
                            format!("leaves out spec.http[{j}] of {key}, whose matches contradict these"),
                        ),
                    }
                }
            }
        }
        merged.delegates.insert(key);
    }
    merged.value.http = rules;
    merged
}

fn merge_rule(root: &HttpRule, leaf: &HttpRule) -> Option<HttpRule> {
    let mut merged = leaf.clone();
    merged.matches = merge_matches(&root.matches, &leaf.matches)?;
    merged.name = join_names(root.name.as_ref(), leaf.name.as_ref());
    merged.rewrite = leaf.rewrite.clone().or_else(|| root.rewrite.clone());
    merged.timeout = leaf.timeout.or(root.timeout);
    merged.retries = leaf.retries.clone().or_else(|| root.retries.clone());
    merged.fault = leaf.fault.clone().or_else(|| root.fault.clone());
    merged.cors = leaf.cors.clone().or_else(|| root.cors.clone());
    // Inherited only as a whole, the authority that they set included.
    if leaf.headers == model::route::Headers::default() && leaf.authority_from_headers.is_none() {
        merged.headers = root.headers.clone();
        merged.authority_from_headers = root.authority_from_headers.clone();
    }
    merged.mirror_percentage = leaf.mirror_percentage.or(root.mirror_percentage);
    if leaf.mirrors.is_empty() {
        merged.mirrors = root.mirrors.clone();
        if let Some(own) = leaf.mirror_percentage
            && let [single] = merged.mirrors.as_mut_slice()
            && single.percentage == root.mirror_percentage
        {
            single.percentage = Some(own);
        }
    }
    for mirror in merged.mirrors.iter_mut().filter(|mirror| mirror.percentage.is_none()) {
        mirror.percentage = merged.mirror_percentage;
    }
    Some(merged)
}

/// Joins alternatives with alternatives. None if one of the leaf's fits none of the root's.
fn merge_matches(root: &[HttpMatch], leaf: &[HttpMatch]) -> Option<Vec<HttpMatch>> {
    if root.is_empty() {
        return Some(leaf.to_vec());
    }
    if leaf.is_empty() {
        return Some(root.to_vec());
    }
    let mut merged = Vec::new();
    for leaf in leaf {
        let before = merged.len();
        merged.extend(root.iter().filter(|root| !conflicts(root, leaf)).map(|root| merge_match(root, leaf)));
        if merged.len() == before {
            return None;
        }
    }
    Some(merged)
}

fn merge_match(root: &HttpMatch, leaf: &HttpMatch) -> HttpMatch {
    let either =
        |leaf: &Option<StringMatch>, root: &Option<StringMatch>| leaf.clone().or_else(|| root.clone());
    let mut source_labels = root.source_labels.clone();
    for (key, value) in leaf.source_labels.iter() {
        source_labels.insert(key, value);
    }
    HttpMatch {
        name: join_names(root.name.as_ref(), leaf.name.as_ref()),
        uri: either(&leaf.uri, &root.uri),
        ignore_uri_case: leaf.ignore_uri_case,
        scheme: either(&leaf.scheme, &root.scheme),
        method: either(&leaf.method, &root.method),
        authority: either(&leaf.authority, &root.authority),
        headers: merge_values(&root.headers, &leaf.headers),
        without_headers: merge_values(&root.without_headers, &leaf.without_headers),
        query_params: merge_values(&root.query_params, &leaf.query_params),
        port: leaf.port.or(root.port),
        source_labels,
        source_namespace: leaf.source_namespace.clone().or_else(|| root.source_namespace.clone()),
        gateways: if leaf.gateways.is_empty() { root.gateways.clone() } else { leaf.gateways.clone() },
        stat_prefix: leaf.stat_prefix.clone().or_else(|| root.stat_prefix.clone()),
    }
}

fn merge_values(
    root: &BTreeMap<Str, ValueMatch>,
    leaf: &BTreeMap<Str, ValueMatch>,
) -> BTreeMap<Str, ValueMatch> {
    let mut merged = root.clone();
    merged.extend(leaf.iter().map(|(key, value)| (key.clone(), value.clone())));
    merged
}

fn join_names(root: Option<&Str>, leaf: Option<&Str>) -> Option<Str> {
    match (root, leaf) {
        (Some(root), Some(leaf)) => Some(format!("{root}-{leaf}").into()),
        (root, leaf) => leaf.or(root).cloned(),
    }
}

fn conflicts(root: &HttpMatch, leaf: &HttpMatch) -> bool {
    let texts = [
        (&root.uri, &leaf.uri),
        (&root.scheme, &leaf.scheme),
        (&root.method, &leaf.method),
        (&root.authority, &leaf.authority),
    ];
    let values = [
        (&root.headers, &leaf.headers),
        (&root.without_headers, &leaf.without_headers),
        (&root.query_params, &leaf.query_params),
    ];
    let texts_conflict = texts
        .into_iter()
        .any(|(root, leaf)| matches!((root, leaf), (Some(root), Some(leaf)) if text_conflicts(root, leaf)));
    let values_conflict = values.into_iter().any(|(root, leaf)| {
        leaf.iter().any(|(name, leaf)| root.get(name).is_some_and(|root| value_conflicts(root, leaf)))
    });
    let labels_conflict = leaf
        .source_labels
        .iter()
        .any(|(key, value)| root.source_labels.get(key).is_some_and(|other| other != value));
    texts_conflict
        || values_conflict
        || labels_conflict
        || root.ignore_uri_case != leaf.ignore_uri_case
        || matches!((root.port, leaf.port), (Some(root), Some(leaf)) if root != leaf)
        // Unlike labels and ports, a namespace must be said again.
        || (root.source_namespace.is_some() && root.source_namespace != leaf.source_namespace)
        || gateways_conflict(&root.gateways, &leaf.gateways)
}

fn gateways_conflict(root: &[GatewayRef], leaf: &[GatewayRef]) -> bool {
    !root.is_empty() && (leaf.len() > root.len() || leaf.iter().any(|gateway| !root.contains(gateway)))
}

fn value_conflicts(root: &ValueMatch, leaf: &ValueMatch) -> bool {
    match (root, leaf) {
        (ValueMatch::Value(root), ValueMatch::Value(leaf)) => text_conflicts(root, leaf),
        // To be there and to have a value go together: the leaf's word is used.
        (ValueMatch::Present, _) | (_, ValueMatch::Present) => false,
    }
}

/// Whether the leaf's text is not within the root's. Nothing can be said about expressions, so they always conflict.
fn text_conflicts(root: &StringMatch, leaf: &StringMatch) -> bool {
    match (root, leaf) {
        (StringMatch::Exact(root), StringMatch::Exact(leaf)) => root != leaf,
        (StringMatch::Prefix(root), StringMatch::Exact(leaf) | StringMatch::Prefix(leaf)) => {
            !leaf.starts_with(&**root)
        }
        (StringMatch::Exact(_), StringMatch::Prefix(_))
        | (StringMatch::Regex(_), _)
        | (_, StringMatch::Regex(_)) => true,
    }
}
