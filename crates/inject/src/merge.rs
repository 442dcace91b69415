//! Kubernetes' strategic merge, for pods.
//!
//! Maps are merged key by key and `null` removes a key. Lists whose entries have a name are merged by it; others are
//! replaced. `$patch: delete` removes an entry or empties a map, `$patch: replace` replaces it.

use serde_json::{Map, Value};

const DIRECTIVE: &str = "$patch";

/// Returns the field that names the entries of a list, by the name of the list.
fn merge_key(list: &str) -> Option<&'static str> {
    Some(match list {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "env"
        | "volumes"
        | "imagePullSecrets"
        | "resourceClaims"
        | "schedulingGates" => "name",
        "ports" => "containerPort",
        "volumeMounts" => "mountPath",
        "volumeDevices" => "devicePath",
        "hostAliases" => "ip",
        "topologySpreadConstraints" => "topologyKey",
        "ownerReferences" => "uid",
        _ => return None,
    })
}

/// Merges `patch` over `target`.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    value(None, target, patch);
}

fn value(field: Option<&str>, target: &mut Value, patch: &Value) {
    match (&mut *target, patch) {
        (Value::Object(into), Value::Object(from)) => match from.get(DIRECTIVE).and_then(Value::as_str) {
            Some("replace") => *into = without_directive(from),
            Some("delete") => into.clear(),
            _ => objects(into, from),
        },
        (Value::Array(into), Value::Array(from)) => match field.and_then(merge_key) {
            Some(key) => lists(key, into, from),
            None => into.clone_from(from),
        },
        (_, Value::Object(from)) => {
            let mut fresh = Map::new();
            objects(&mut fresh, &without_directive(from));
            *target = Value::Object(fresh);
        }
        (_, Value::Array(from)) => {
            let mut fresh = Vec::new();
            match field.and_then(merge_key) {
                Some(key) => lists(key, &mut fresh, from),
                None => fresh.clone_from(from),
            }
            *target = Value::Array(fresh);
        }
        _ => patch.clone_into(target),
    }
}

fn without_directive(from: &Map<String, Value>) -> Map<String, Value> {
    from.iter()
        .filter(|(key, _)| *key != DIRECTIVE)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn objects(into: &mut Map<String, Value>, from: &Map<String, Value>) {
    for (key, patch) in from {
        if patch.is_null() {
            into.remove(key);
        } else {
            value(Some(key), into.entry(key.clone()).or_insert(Value::Null), patch);
        }
    }
}

/// Merges entries by name. The order is Kubernetes': entries of the patch come before others, as far as the order in the
/// target allows it.
fn lists(key: &str, into: &mut Vec<Value>, from: &[Value]) {
    let index = |list: &[Value], entry: &Value| list.iter().position(|other| other[key] == entry[key]);
    let before: Vec<Value> = into.iter().map(|entry| serde_json::json!({ key: entry[key] })).collect();
    let mut merged: Vec<Value> = Vec::with_capacity(from.len());
    for patch in from {
        let old = index(into, patch).map(|at| into.remove(at));
        if patch.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") {
            continue;
        }
        let mut entry =
            old.or_else(|| index(&merged, patch).map(|at| merged.remove(at))).unwrap_or(Value::Null);
        value(None, &mut entry, patch);
        merged.push(entry);
    }
    let mut others = std::mem::take(into).into_iter().peekable();
    for entry in merged {
        if let Some(place) = index(&before, &entry) {
            while let Some(other) = others.next_if(|other| index(&before, other).is_some_and(|at| at < place))
            {
                into.push(other);
            }
        }
        into.push(entry);
    }
    into.extend(others);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(mut target: Value, patch: &Value) -> Value {
        merge(&mut target, patch);
        target
    }

    #[test]
    fn maps_are_merged_and_null_removes() {
        let merged =
            check(json!({"a": {"b": 1, "c": 2}, "d": 3}), &json!({"a": {"b": 4, "c": null}, "e": [5]}));
        assert_eq!(merged, json!({"a": {"b": 4}, "d": 3, "e": [5]}));
    }

    #[test]
    fn entries_with_names_are_merged_and_those_of_the_patch_come_first() {
        let merged = check(
            json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}]}]}),
            &json!({"containers": [{"name": "p"}, {"name": "a", "env": [{"name": "Y", "value": "2"}], "image": "i"}]}),
        );
        let a = json!({"name": "a", "image": "i", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "1"}]});
        assert_eq!(merged, json!({"containers": [{"name": "p"}, a]}));
    }

    #[test]
    fn the_order_of_what_was_there_is_kept() {
        let list = |names: &[&str]| json!({"volumes": names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>()});
        assert_eq!(check(list(&["a", "b", "c"]), &list(&["n", "b"])), list(&["n", "a", "b", "c"]));
        assert_eq!(check(list(&["a", "b"]), &list(&["b", "n"])), list(&["a", "b", "n"]));
    }

    #[test]
    fn lists_without_names_are_replaced() {
        assert_eq!(check(json!({"args": ["a", "b"]}), &json!({"args": ["c"]})), json!({"args": ["c"]}));
    }

    #[test]
    fn directives_delete_and_replace() {
        let target =
            json!({"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}], "x": {"y": 1}});
        let patch = json!({"env": [{"name": "A", "$patch": "delete"}], "x": {"$patch": "replace", "z": 2}});
        assert_eq!(check(target, &patch), json!({"env": [{"name": "B", "value": "2"}], "x": {"z": 2}}));
    }

    #[test]
    fn the_last_of_two_equal_names_in_a_patch_wins() {
        let patch = json!({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]});
        assert_eq!(check(json!({}), &patch), json!({"env": [{"name": "A", "value": "2"}]}));
    }
}
