//! JSON to message.

use std::collections::{HashMap, HashSet};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};
use serde_json::{Map, Value as Json};

use super::{JsonError, encode, has_own_form};
use crate::{pool, type_url};

/// Reads one document. Follows messages, lists, maps and `Any`s itself, so that errors have a path and unknown `Any`s
/// pass; leaves and well-known types are read by prost-reflect.
pub(super) struct Reader {
    /// From the root to the value that is being read: `.clusters`, `[2]`, …
    path: Vec<String>,
    /// The paths of fields that do not exist, if those are to be skipped.
    skipped: Option<Vec<String>>,
}

impl Reader {
    /// A field that does not exist is an error.
    pub(super) fn strict() -> Self {
        Self { path: Vec::new(), skipped: None }
    }

    /// Fields that do not exist are skipped and noted.
    pub(super) fn lenient() -> Self {
        Self { path: Vec::new(), skipped: Some(Vec::new()) }
    }

    /// Returns the paths of the fields that were skipped.
    pub(super) fn into_skipped(self) -> Vec<String> {
        self.skipped.unwrap_or_default()
    }

    pub(super) fn message(
        &mut self,
        descriptor: &MessageDescriptor,
        json: &Json,
    ) -> Result<DynamicMessage, JsonError> {
        match descriptor.full_name() {
            "google.protobuf.Any" => self.any(descriptor, json),
            name if has_own_form(name) => DynamicMessage::deserialize(descriptor.clone(), json)
                .map_err(|error| self.invalid(error.to_string())),
            name => {
                let object = json.as_object();
                let object = object.ok_or_else(|| self.invalid(format!("{name} must be an object")))?;
                self.fields(descriptor, object.iter())
            }
        }
    }

    fn fields<'a>(
        &mut self,
        descriptor: &MessageDescriptor,
        object: impl Iterator<Item = (&'a String, &'a Json)>,
    ) -> Result<DynamicMessage, JsonError> {
        let mut message = DynamicMessage::new(descriptor.clone());
        let mut set = HashSet::new();
        for (key, json) in object {
            self.path.push(format!(".{key}"));
            let field = descriptor.get_field_by_json_name(key).or_else(|| descriptor.get_field_by_name(key));
            match field {
                Some(field) if json.is_null() && !takes_null(&field) => {}
                Some(field) => {
                    let value = self.field(descriptor, &field, json)?;
                    let oneof = field.containing_oneof();
                    let slot =
                        oneof.map_or(field.full_name().to_owned(), |oneof| oneof.full_name().to_owned());
                    if !set.insert(slot.clone()) {
                        return Err(JsonError::Conflict { path: self.path(), other: slot });
                    }
                    message.set_field(&field, value);
                }
                None => self.unknown_field(descriptor)?,
            }
            self.path.pop();
        }
        Ok(message)
    }

    fn field(
        &mut self,
        message: &MessageDescriptor,
        field: &FieldDescriptor,
        json: &Json,
    ) -> Result<Value, JsonError> {
        match field.kind() {
            Kind::Message(entry) if field.is_map() => match entry.map_entry_value_field().kind() {
                Kind::Message(value) => self.map(&entry.map_entry_key_field().kind(), &value, json),
                _ => self.leaf(message, field, json),
            },
            Kind::Message(element) if field.is_list() => {
                let values = json.as_array().ok_or_else(|| self.invalid("must be a list"))?;
                let mut list = Vec::with_capacity(values.len());
                for (index, json) in values.iter().enumerate() {
                    self.path.push(format!("[{index}]"));
                    list.push(Value::Message(self.message(&element, json)?));
                    self.path.pop();
                }
                Ok(Value::List(list))
            }
            Kind::Message(descriptor) => Ok(Value::Message(self.message(&descriptor, json)?)),
            _ => self.leaf(message, field, json),
        }
    }

    fn map(&mut self, key: &Kind, value: &MessageDescriptor, json: &Json) -> Result<Value, JsonError> {
        let object = json.as_object().ok_or_else(|| self.invalid("must be an object"))?;
        let mut map = HashMap::with_capacity(object.len());
        for (name, json) in object {
            self.path.push(format!("[{name:?}]"));
            let key = map_key(key, name).ok_or_else(|| self.invalid("the key does not fit the map"))?;
            map.insert(key, Value::Message(self.message(value, json)?));
            self.path.pop();
        }
        Ok(Value::Map(map))
    }

    /// A scalar, or a list or map of scalars: the library reads the message that has only this field.
    fn leaf(
        &self,
        message: &MessageDescriptor,
        field: &FieldDescriptor,
        json: &Json,
    ) -> Result<Value, JsonError> {
        let only = Json::Object(Map::from_iter([(field.json_name().to_owned(), json.clone())]));
        let only = DynamicMessage::deserialize(message.clone(), only)
            .map_err(|error| self.invalid(error.to_string()))?;
        Ok(only.get_field(field).into_owned())
    }

    fn any(&mut self, descriptor: &MessageDescriptor, json: &Json) -> Result<DynamicMessage, JsonError> {
        let object = json.as_object().ok_or_else(|| self.invalid("google.protobuf.Any must be an object"))?;
        let type_url = object.get("@type").and_then(Json::as_str);
        let type_url =
            type_url.ok_or_else(|| self.invalid("google.protobuf.Any needs a string \"@type\""))?;
        let inner = pool().get_message_by_name(type_url::message_name(type_url));
        let value = match inner {
            Some(inner) if has_own_form(inner.full_name()) => {
                self.path.push(".value".to_owned());
                let message = self.message(&inner, object.get("value").unwrap_or(&Json::Null))?;
                self.path.pop();
                encode::encode(&message)
            }
            Some(inner) => {
                let message = self.fields(&inner, object.iter().filter(|(key, _)| *key != "@type"))?;
                encode::encode(&message)
            }
            None => opaque(object)
                .ok_or_else(|| JsonError::UnknownType { path: self.path(), type_url: type_url.to_owned() })?,
        };
        let mut any = DynamicMessage::new(descriptor.clone());
        any.set_field_by_name("type_url", Value::String(type_url.to_owned()));
        any.set_field_by_name("value", Value::Bytes(value.into()));
        Ok(any)
    }

    fn unknown_field(&mut self, descriptor: &MessageDescriptor) -> Result<(), JsonError> {
        let path = self.path();
        match &mut self.skipped {
            Some(skipped) => {
                skipped.push(path);
                Ok(())
            }
            None => Err(JsonError::UnknownField { path, message: descriptor.full_name().to_owned() }),
        }
    }

    fn invalid(&self, reason: impl Into<String>) -> JsonError {
        JsonError::Invalid { path: self.path(), reason: reason.into() }
    }

    fn path(&self) -> String {
        format!("${}", self.path.concat())
    }
}

/// For most fields `null` means absent; these have a null value.
fn takes_null(field: &FieldDescriptor) -> bool {
    match field.kind() {
        Kind::Message(message) => message.full_name() == "google.protobuf.Value" && !field.is_list(),
        Kind::Enum(kind) => kind.full_name() == "google.protobuf.NullValue" && !field.is_list(),
        _ => false,
    }
}

fn map_key(kind: &Kind, name: &str) -> Option<MapKey> {
    match kind {
        Kind::String => Some(MapKey::String(name.to_owned())),
        Kind::Bool => name.parse().ok().map(MapKey::Bool),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => name.parse().ok().map(MapKey::I32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => name.parse().ok().map(MapKey::I64),
        Kind::Uint32 | Kind::Fixed32 => name.parse().ok().map(MapKey::U32),
        Kind::Uint64 | Kind::Fixed64 => name.parse().ok().map(MapKey::U64),
        _ => None,
    }
}

/// Returns the bytes of an `Any` of unknown type, as the writer leaves them: `@type` and a base64 `value`.
fn opaque(object: &Map<String, Json>) -> Option<Vec<u8>> {
    if object.keys().any(|key| key != "@type" && key != "value") {
        return None;
    }
    BASE64_STANDARD.decode(object.get("value")?.as_str()?).ok()
}
