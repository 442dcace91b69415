//! The difference of two JSON documents, as a JSON patch.
//!
//! Lists of named things, such as containers, are compared by name: what is gone is removed, what is new is added where
//! it belongs, and what is in another place is moved. Comparing by position would rewrite every container behind one that
//! is put first.

use json_patch::jsonptr::{PointerBuf, Token};
use json_patch::{AddOperation, MoveOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation};
use serde_json::{Map, Value};

/// Fields that name the entries of a list in Kubernetes' objects, the more telling first: two mounts of one volume
/// have the same name.
const KEYS: [&str; 3] = ["mountPath", "name", "containerPort"];

/// Returns the operations that make `to` of `from`.
pub fn diff(from: &Value, to: &Value) -> Patch {
    let mut operations = Vec::new();
    values(&PointerBuf::root(), from, to, &mut operations);
    Patch(operations)
}

fn values(path: &PointerBuf, from: &Value, to: &Value, operations: &mut Vec<PatchOperation>) {
    match (from, to) {
        _ if from == to => {}
        (Value::Object(from), Value::Object(to)) => objects(path, from, to, operations),
        (Value::Array(from), Value::Array(to)) => {
            if let Some(key) = KEYS.into_iter().find(|key| names(from, key) && names(to, key)) {
                lists(path, key, (from, to), operations);
            } else {
                replace(path, &Value::Array(to.clone()), operations);
            }
        }
        _ => replace(path, to, operations),
    }
}

fn replace(path: &PointerBuf, value: &Value, operations: &mut Vec<PatchOperation>) {
    let replace = ReplaceOperation { path: path.clone(), value: value.clone() };
    operations.push(PatchOperation::Replace(replace));
}

fn child(path: &PointerBuf, token: impl Into<Token<'static>>) -> PointerBuf {
    let mut path = path.clone();
    path.push_back(token);
    path
}

fn objects(
    path: &PointerBuf,
    from: &Map<String, Value>,
    to: &Map<String, Value>,
    operations: &mut Vec<PatchOperation>,
) {
    for key in from.keys().filter(|key| !to.contains_key(*key)) {
        let path = child(path, Token::new(key.clone()));
        operations.push(PatchOperation::Remove(RemoveOperation { path }));
    }
    for (key, value) in to {
        let path = child(path, Token::new(key.clone()));
        match from.get(key) {
            Some(before) => values(&path, before, value, operations),
            None => operations.push(PatchOperation::Add(AddOperation { path, value: value.clone() })),
        }
    }
}

/// Whether a field names all entries of a list, each differently.
fn names(list: &[Value], key: &str) -> bool {
    list.iter().enumerate().all(|(index, entry)| {
        entry.get(key).is_some() && list[..index].iter().all(|earlier| earlier.get(key) != entry.get(key))
    })
}

fn lists(
    path: &PointerBuf,
    key: &str,
    (from, to): (&[Value], &[Value]),
    operations: &mut Vec<PatchOperation>,
) {
    let same = |a: &Value, b: &Value| a.get(key) == b.get(key);
    let mut current: Vec<&Value> = from.iter().collect();
    for index in (0..current.len()).rev() {
        if !to.iter().any(|entry| same(entry, current[index])) {
            let path = child(path, index);
            operations.push(PatchOperation::Remove(RemoveOperation { path }));
            current.remove(index);
        }
    }
    for (index, entry) in to.iter().enumerate() {
        let at = child(path, index);
        match current[index.min(current.len())..].iter().position(|other| same(other, entry)) {
            Some(0) => {}
            Some(further) => {
                let from = child(path, index + further);
                operations.push(PatchOperation::Move(MoveOperation { from, path: at }));
                let moved = current.remove(index + further);
                current.insert(index, moved);
            }
            None => {
                operations.push(PatchOperation::Add(AddOperation { path: at, value: entry.clone() }));
                current.insert(index, entry);
            }
        }
    }
    for (index, (before, after)) in current.iter().zip(to).enumerate() {
        values(&child(path, index), before, after, operations);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn check(from: &Value, to: &Value) -> Value {
        let patch = diff(from, to);
        let mut patched = from.clone();
        json_patch::patch(&mut patched, &patch).unwrap();
        assert_eq!(patched, *to, "{patch}");
        serde_json::to_value(&patch).unwrap()
    }

    #[test]
    fn equal_documents_need_nothing() {
        let pod = json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(check(&pod, &pod), json!([]));
    }

    #[test]
    fn a_container_that_is_put_first_leaves_the_others_alone() {
        let from = json!({"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]});
        let to =
            json!({"containers": [{"name": "p"}, {"name": "a", "image": "x"}, {"name": "b", "image": "z"}]});
        let expected = json!([
            {"op": "add", "path": "/containers/0", "value": {"name": "p"}},
            {"op": "replace", "path": "/containers/2/image", "value": "z"},
        ]);
        assert_eq!(check(&from, &to), expected);
    }

    #[test]
    fn what_changes_places_is_moved() {
        let from = json!([{"name": "a"}, {"name": "b"}, {"name": "p"}]);
        let to = json!([{"name": "p"}, {"name": "a"}, {"name": "c"}]);
        let expected = json!([
            {"op": "remove", "path": "/1"},
            {"op": "move", "from": "/1", "path": "/0"},
            {"op": "add", "path": "/2", "value": {"name": "c"}},
        ]);
        assert_eq!(check(&from, &to), expected);
    }

    #[test]
    fn mounts_are_known_by_their_paths() {
        let from = json!([{"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/b"}]);
        let to = json!([{"name": "v", "mountPath": "/b"}]);
        assert_eq!(check(&from, &to), json!([{"op": "remove", "path": "/0"}]));
    }

    #[test]
    fn names_with_slashes_and_tildes_are_escaped() {
        let from = json!({"annotations": {"a~b/c": "1"}});
        let to = json!({"annotations": {"a~b/c": "2", "d/e": "3"}});
        let expected = json!([
            {"op": "replace", "path": "/annotations/a~0b~1c", "value": "2"},
            {"op": "add", "path": "/annotations/d~1e", "value": "3"},
        ]);
        assert_eq!(check(&from, &to), expected);
    }

    fn document() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3i32).prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[ab/~]{1,2}", inner.clone(), 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
                prop::collection::vec(("[a-e]", inner), 0..5).prop_map(|entries| entries
                    .into_iter()
                    .map(|(name, value)| json!({"name": name, "value": value}))
                    .collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn applying_the_difference_gives_the_second(from in document(), to in document()) {
            check(&from, &to);
        }
    }
}
