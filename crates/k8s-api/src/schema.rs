//! Pieces of OpenAPI schema that the types attach to their fields: Istio's CEL rules, formats and oneof groups.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// The rule of every duration that Istio checks in the API server.
pub(crate) const DURATION: (&str, &str) =
    ("duration(self) >= duration('1ms')", "must be a valid duration greater than 1ms");
pub(crate) const PORT: (&str, &str) = ("0 < self && self <= 65535", "port must be between 1-65535");
pub(crate) const SELECTOR_VALUE: (&str, &str) =
    ("!self.contains(\"*\")", "wildcard is not supported in selector");

/// Policies that attach to one kind of target at most.
pub(crate) const ONE_TARGET: (&str, &str) = (
    "(has(self.selector) ? 1 : 0) + (has(self.targetRef) ? 1 : 0) + (has(self.targetRefs) ? 1 : 0) <= 1",
    "only one of targetRefs or selector can be set",
);
/// Where a plugin comes from.
pub(crate) const PLUGIN_URL: (&str, &str) = (
    "isURL(self) ? (url(self).getScheme() in [\"\", \"http\", \"https\", \"oci\", \"file\"]) : (isURL(\"http://\" + self) && url(\"http://\" + self).getScheme() in [\"\", \"http\", \"https\", \"oci\", \"file\"])",
    "url must have schema one of [http, https, file, oci]",
);

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

/// A signed wrapper, for which Istio allows `null`.
pub(crate) fn nullable_i32(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int32", "nullable": true })
}

/// A signed number that must not be negative.
pub(crate) fn natural_i32(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int32", "minimum": 0 })
}

/// A list of texts that are not empty.
pub(crate) fn texts(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": { "type": "string", "minLength": 1 } })
}

/// A message that the API server does not look into.
pub(crate) fn anything(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
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
