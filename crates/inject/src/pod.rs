//! Reading parts of a pod that is kept as JSON.

use crate::error::InjectError;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The lists of containers that a proxy can be in.
pub(crate) const LISTS: [&str; 2] = ["initContainers", "containers"];

/// Checks the shapes that everything else relies on, which the API server guarantees and a file does not.
pub(crate) fn check(pod: &Value) -> Result<(), InjectError> {
    let wrong = |path: String, reason: &str| InjectError::Pod { path, reason: reason.to_owned() };
    if !pod.is_object() {
        return Err(wrong("pod".to_owned(), "is not an object"));
    }
    for part in ["metadata", "spec"] {
        if !matches!(&pod[part], Value::Null | Value::Object(_)) {
            return Err(wrong(part.to_owned(), "is not an object"));
        }
    }
    for part in ["labels", "annotations"] {
        match &pod["metadata"][part] {
            Value::Null => {}
            Value::Object(entries) => {
                if let Some((key, _)) = entries.iter().find(|(_, value)| !value.is_string()) {
                    return Err(wrong(format!("metadata.{part}[{key:?}]"), "is not a string"));
                }
            }
            _ => return Err(wrong(format!("metadata.{part}"), "is not a map")),
        }
    }
    for list in LISTS {
        match &pod["spec"][list] {
            Value::Null => {}
            Value::Array(containers) => {
                if let Some(index) = containers.iter().position(|container| !container["name"].is_string()) {
                    return Err(wrong(format!("spec.{list}[{index}].name"), "is required"));
                }
            }
            _ => return Err(wrong(format!("spec.{list}"), "is not a list")),
        }
    }
    Ok(())
}

/// Returns `metadata.labels` or `metadata.annotations`.
pub(crate) fn strings(pod: &Value, part: &str) -> BTreeMap<String, String> {
    let entries = pod["metadata"][part].as_object();
    let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    entries.into_iter().flatten().filter_map(text).collect()
}

/// Returns a label.
pub(crate) fn label<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    pod["metadata"]["labels"][name].as_str()
}

/// Returns an annotation.
pub(crate) fn annotation<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    pod["metadata"]["annotations"][name].as_str()
}

/// Sets an entry of `metadata.labels` or `metadata.annotations`.
pub(crate) fn set(pod: &mut Value, part: &str, name: &str, value: impl Into<String>) {
    let metadata = object(&mut pod["metadata"]);
    let entries = object(metadata.entry(part).or_insert(Value::Null));
    entries.insert(name.to_owned(), Value::String(value.into()));
}

/// Removes an annotation.
pub(crate) fn remove_annotation(pod: &mut Value, name: &str) {
    if let Some(annotations) = pod.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(name);
    }
}

/// Returns a value as an object, which it becomes if it is none.
pub(crate) fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it is an object: made one above")
}

/// Returns the containers of a list; an absent one has none.
pub(crate) fn containers<'a>(pod: &'a Value, list: &str) -> &'a [Value] {
    pod["spec"][list].as_array().map_or(&[], Vec::as_slice)
}

/// Returns the containers of a list to change them.
pub(crate) fn containers_mut<'a>(pod: &'a mut Value, list: &str) -> Option<&'a mut Vec<Value>> {
    pod.get_mut("spec")?.get_mut(list)?.as_array_mut()
}

/// Returns a container's name.
pub(crate) fn name(container: &Value) -> &str {
    container["name"].as_str().unwrap_or_default()
}

/// Returns a container of a list.
pub(crate) fn find<'a>(pod: &'a Value, list: &str, wanted: &str) -> Option<&'a Value> {
    containers(pod, list).iter().find(|container| name(container) == wanted)
}

/// Returns a container of either list.
pub(crate) fn find_anywhere<'a>(pod: &'a Value, wanted: &str) -> Option<&'a Value> {
    ["containers", "initContainers"].iter().find_map(|list| find(pod, list, wanted))
}

/// Returns a container of either list to change it.
pub(crate) fn find_anywhere_mut<'a>(pod: &'a mut Value, wanted: &str) -> Option<&'a mut Value> {
    let list = ["containers", "initContainers"].into_iter().find(|list| find(pod, list, wanted).is_some())?;
    containers_mut(pod, list)?.iter_mut().find(|container| name(container) == wanted)
}

/// Takes a container out of a list.
pub(crate) fn take(pod: &mut Value, list: &str, wanted: &str) -> Option<Value> {
    let containers = containers_mut(pod, list)?;
    let index = containers.iter().position(|container| name(container) == wanted)?;
    Some(containers.remove(index))
}

/// Returns a variable of a container's environment.
pub(crate) fn variable<'a>(container: &'a Value, wanted: &str) -> Option<&'a str> {
    let variables = container["env"].as_array()?;
    variables.iter().find(|variable| variable["name"] == wanted)?["value"].as_str()
}

/// Sets a variable of a container's environment.
pub(crate) fn set_variable(container: &mut Value, wanted: &str, value: &str) {
    let entry = serde_json::json!({ "name": wanted, "value": value });
    match &mut container["env"] {
        Value::Array(variables) => match variables.iter_mut().find(|variable| variable["name"] == wanted) {
            Some(variable) => *variable = entry,
            None => variables.push(entry),
        },
        absent => *absent = Value::Array(vec![entry]),
    }
}
