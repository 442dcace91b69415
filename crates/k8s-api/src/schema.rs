//! Pieces of OpenAPI schema that the types attach to their fields: Istio's CEL rules, formats and oneof groups.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// The rule of every duration that Istio checks in the API server.
pub(crate) const DURATION: (&str, &str) =
    ("duration(self) >= duration('1ms')", "must be a valid duration greater than 1ms");
pub(crate) const PORT: (&str, &str) = ("0 < self && self <= 65535", "port must be between 1-65535");
pub(crate) const SELECTOR_VALUE: (&str, &str) =
    ("!self.contains(\"*\")", "wildcard is not supported in selector");

/// Returns an `x-kubernetes-validations` list of (rule, message).
pub(crate) fn cel(rules: &[(&str, &str)]) -> Value {
    rules.iter().map(|(rule, message)| json!({ "message": message, "rule": rule })).collect()
}

/// A duration string of at least a millisecond.
pub(crate) fn duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "x-kubernetes-validations": cel(&[DURATION]) })
}

/// A boolean wrapper, for which Istio allows `null`.
pub(crate) fn nullable_bool(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "boolean", "nullable": true })
}

/// A 32-bit unsigned wrapper, for which Istio allows `null`.
pub(crate) fn nullable_u32(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "minimum": 0, "maximum": u32::MAX, "nullable": true })
}

/// A percentage wrapper.
pub(crate) fn nullable_percent(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "number", "format": "double", "minimum": 0, "maximum": 100, "nullable": true })
}

/// A port number that the API server checks.
pub(crate) fn port(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "integer",
        "minimum": 0,
        "maximum": u32::MAX,
        "x-kubernetes-validations": cel(&[PORT]),
    })
}

/// A protobuf oneof: none of the fields, or exactly one. Plain fields keep `{}` and unknown keys decodable.
pub(crate) fn one_of(names: &'static [&'static str]) -> impl Fn(&mut Schema) + Clone {
    move |schema| {
        schema.insert("oneOf".into(), alternatives(names));
    }
}

/// Two independent oneofs in one message.
pub(crate) fn two_one_ofs(
    first: &'static [&'static str],
    second: &'static [&'static str],
) -> impl Fn(&mut Schema) + Clone {
    move |schema| {
        let groups = json!([{ "oneOf": alternatives(first) }, { "oneOf": alternatives(second) }]);
        schema.insert("allOf".into(), groups);
    }
}

fn alternatives(names: &[&str]) -> Value {
    let single: Vec<Value> = names.iter().map(|name| json!({ "required": [name] })).collect();
    let mut all = vec![json!({ "not": { "anyOf": single.clone() } })];
    all.extend(single);
    Value::Array(all)
}
