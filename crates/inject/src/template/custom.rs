//! Templates of the user's: parts of a pod as YAML, with variables.
//!
//! ```yaml
//! metadata:
//!   annotations:
//!     team: ${label:team|nobody}
//! spec:
//!   containers:
//!   - name: "*"                 # every container of the application
//!     env:
//!     - { name: WORKLOAD, value: "${namespace}/${workload.name}/${container.name}" }
//! ```
//!
//! Variables are `namespace`, `pod.name`, `workload.name`, `workload.kind`, `container.name`, `revision`, `cluster`,
//! `network`, `trustDomain`, `label:KEY`, `annotation:KEY` and `value:PATH` of the chart's values. After `|` stands what
//! is used where there is none; without it, that is an error. `$${` is a literal `${`. A text that is one variable only
//! keeps its type.

use super::Context;
use crate::pod;
use k8s_api::yaml::parse_value;
use serde_json::{Map, Value, json};

/// The name that stands for every container of the application.
const EVERY: &str = "*";

/// A template of the user's.
#[derive(Clone, Debug, PartialEq)]
pub struct Custom(Value);

impl Custom {
    /// Reads a template: YAML, or text that holds YAML.
    ///
    /// # Errors
    /// Why it cannot be used, for every pod.
    pub fn parse(written: &Value) -> Result<Self, String> {
        let patch = match written {
            Value::String(text) if text.contains("{{") => {
                return Err("Go templates are not supported: write a patch with ${...} variables".to_owned());
            }
            Value::String(text) => parse_value::<Value>(text, "template").map_err(|e| e.to_string())?.json,
            other => other.clone(),
        };
        let Value::Object(parts) = &patch else {
            return Err("is not a part of a pod".to_owned());
        };
        if let Some(part) = parts.keys().find(|part| !["metadata", "spec"].contains(&part.as_str())) {
            return Err(format!("{part}: only metadata and spec can be changed"));
        }
        check(&patch)?;
        Ok(Self(patch))
    }

    /// Returns what the template adds to a pod.
    pub(crate) fn render(&self, context: &Context<'_>) -> Result<Value, String> {
        let mut patch = self.0.clone();
        for list in pod::LISTS {
            let Some(entries) = pod::containers_mut(&mut patch, list) else { continue };
            let mut all = Vec::with_capacity(entries.len());
            for entry in entries.drain(..) {
                if pod::name(&entry) != EVERY {
                    all.push(fill(&entry, context, None)?);
                    continue;
                }
                let written = pod::containers(context.pod, list).iter().map(pod::name);
                for name in written.filter(|name| *name != crate::PROXY) {
                    let mut container = fill(&entry, context, Some(name))?;
                    container["name"] = json!(name);
                    all.push(container);
                }
            }
            *entries = all;
        }
        fill(&patch, context, None)
    }
}

/// A piece of a text.
enum Piece<'a> {
    Text(&'a str),
    Variable { name: &'a str, default: Option<&'a str> },
}

/// Splits a text at its variables.
fn pieces(text: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            pieces.push(Piece::Text(&rest[..at - 1]));
            pieces.push(Piece::Text("${"));
            rest = &rest[at + 2..];
            continue;
        }
        pieces.push(Piece::Text(&rest[..at]));
        let end = rest[at..].find('}').ok_or_else(|| format!("{text:?}: a variable does not end"))?;
        let inner = &rest[at + 2..at + end];
        let (name, default) = match inner.split_once('|') {
            Some((name, default)) => (name, Some(default)),
            None => (inner, None),
        };
        pieces.push(Piece::Variable { name: name.trim(), default });
        rest = &rest[at + end + 1..];
    }
    pieces.push(Piece::Text(rest));
    Ok(pieces)
}

/// Checks all variables of a patch, so that a misspelt one refuses the template and not a pod.
fn check(value: &Value) -> Result<(), String> {
    match value {
        Value::String(text) => pieces(text)?.iter().try_for_each(|piece| match piece {
            Piece::Variable { name, .. } if !is_known(name) => Err(format!("there is no variable {name:?}")),
            _ => Ok(()),
        }),
        Value::Array(values) => values.iter().try_for_each(check),
        Value::Object(fields) => fields.values().try_for_each(check),
        _ => Ok(()),
    }
}

fn is_known(name: &str) -> bool {
    const NAMES: [&str; 9] = [
        "namespace",
        "pod.name",
        "workload.name",
        "workload.kind",
        "container.name",
        "revision",
        "cluster",
        "network",
        "trustDomain",
    ];
    let keyed = ["label:", "annotation:", "value:"];
    NAMES.contains(&name)
        || keyed.iter().any(|prefix| name.strip_prefix(prefix).is_some_and(|key| !key.is_empty()))
}

fn fill(value: &Value, context: &Context<'_>, container: Option<&str>) -> Result<Value, String> {
    Ok(match value {
        Value::String(text) => fill_text(text, context, container)?,
        Value::Array(values) => {
            let filled: Result<Vec<Value>, String> =
                values.iter().map(|value| fill(value, context, container)).collect();
            Value::Array(filled?)
        }
        Value::Object(fields) => {
            let filled: Result<Map<String, Value>, String> = fields
                .iter()
                .map(|(key, value)| Ok((key.clone(), fill(value, context, container)?)))
                .collect();
            Value::Object(filled?)
        }
        other => other.clone(),
    })
}

fn fill_text(text: &str, context: &Context<'_>, container: Option<&str>) -> Result<Value, String> {
    let pieces = pieces(text)?;
    let lookup = |name: &str, default: Option<&str>| {
        let found = variable(name, context, container);
        let found = found.or_else(|| default.map(|default| Value::String(default.to_owned())));
        found.ok_or_else(|| format!("{text:?}: {name} has no value here, and no default is given"))
    };
    if let [Piece::Text(""), Piece::Variable { name, default }, Piece::Text("")] = pieces[..] {
        return lookup(name, default);
    }
    let mut filled = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => filled.push_str(text),
            Piece::Variable { name, default } => match lookup(name, default)? {
                Value::String(value) => filled.push_str(&value),
                other => filled.push_str(&other.to_string()),
            },
        }
    }
    Ok(Value::String(filled))
}

fn variable(name: &str, context: &Context<'_>, container: Option<&str>) -> Option<Value> {
    let text = |text: &str| (!text.is_empty()).then(|| Value::String(text.to_owned()));
    match name {
        "namespace" => text(context.namespace),
        "pod.name" => text(context.pod["metadata"]["name"].as_str()?),
        "workload.name" => text(&context.workload.name),
        "workload.kind" => text(&context.workload.kind),
        "container.name" => text(container?),
        "revision" => text(&context.settings.control_plane.revision),
        "cluster" => text(context.cluster),
        "network" => text(context.network?),
        "trustDomain" => text(&context.settings.mesh.trust_domain),
        _ => match name.split_once(':')? {
            ("label", key) => text(pod::label(context.pod, key)?),
            ("annotation", key) => text(pod::annotation(context.pod, key)?),
            (_, path) => {
                let step = |value: &'_ Value, key: &str| value.get(key).cloned();
                let mut value = context.settings.written.clone();
                for key in path.split('.') {
                    value = step(&value, key)?;
                }
                (!value.is_null()).then_some(value)
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_that_cannot_work_are_refused_when_they_are_read() {
        for (written, expected) in [
            (json!([]), "part of a pod"),
            (json!({"status": {}}), "status: only metadata and spec"),
            (json!({"metadata": {"labels": {"a": "${pod.nam}"}}}), "no variable \"pod.nam\""),
            (json!({"metadata": {"labels": {"a": "${label:}"}}}), "no variable"),
            (json!({"metadata": {"labels": {"a": "${pod.name"}}}), "does not end"),
            (json!("{{ .Values.x }}"), "Go templates"),
            (json!("a: ["), "template"),
        ] {
            let error = Custom::parse(&written).unwrap_err();
            assert!(error.contains(expected), "{written}: {error}");
        }
        assert!(Custom::parse(&json!("metadata:\n  labels: {a: '$${x}'}\n")).is_ok());
    }
}
