//! Deterministic encoding of dynamic messages.
//!
//! `DynamicMessage` keeps maps in hash maps, so its own encoding differs from one run to the next.

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage, Value};

/// Returns the encoding of `message` with fields in the order of their numbers and maps in the order of their keys.
///
/// Extensions and unknown fields are left out; what was read from JSON has none.
pub(super) fn encode(message: &DynamicMessage) -> Vec<u8> {
    let mut fields: Vec<(FieldDescriptor, &Value)> = message.fields().collect();
    fields.sort_by_key(|(field, _)| field.number());

    let mut out = Vec::new();
    for (field, value) in fields {
        match value {
            Value::Map(entries) => {
                let mut entries: Vec<(&MapKey, &Value)> = entries.iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                for (key, value) in entries {
                    nested(&field, &entry(&field, key, value), &mut out);
                }
            }
            Value::List(values) if matches!(field.kind(), Kind::Message(_)) => {
                for value in values {
                    nested(&field, &value.as_message().map(encode).unwrap_or_default(), &mut out);
                }
            }
            Value::Message(value) => nested(&field, &encode(value), &mut out),
            // Scalars have one encoding: let the library write the message that has only this field.
            scalar => {
                let mut only = DynamicMessage::new(message.descriptor());
                only.set_field(&field, scalar.clone());
                out.extend(only.encode_to_vec());
            }
        }
    }
    out
}

/// Returns the encoding of one entry of a map, which is a message with a key and a value.
fn entry(field: &FieldDescriptor, key: &MapKey, value: &Value) -> Vec<u8> {
    let kind = field.kind();
    let descriptor = kind.as_message().expect("the elements of a map field are messages");
    let value_field = descriptor.map_entry_value_field();
    let mut entry = DynamicMessage::new(descriptor.clone());
    entry.set_field(&descriptor.map_entry_key_field(), key.clone().into());
    match value {
        Value::Message(value) => {
            let mut out = entry.encode_to_vec();
            let value = encode(value);
            // An empty value is left out, as the generated code does.
            if !value.is_empty() {
                nested(&value_field, &value, &mut out);
            }
            out
        }
        scalar => {
            entry.set_field(&value_field, scalar.clone());
            entry.encode_to_vec()
        }
    }
}

fn nested(field: &FieldDescriptor, encoded: &[u8], out: &mut Vec<u8>) {
    encode_key(field.number(), WireType::LengthDelimited, out);
    encode_varint(encoded.len() as u64, out);
    out.extend_from_slice(encoded);
}
