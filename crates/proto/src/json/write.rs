//! Message to JSON.

use std::collections::HashSet;
use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage, Value,
};
use serde_json::{Map, Value as Json};

use super::{WriteOptions, has_own_form, is_wrapper};
use crate::{pool, type_url};

const REDACTED: &str = "[redacted]";

pub(super) struct Writer {
    options: WriteOptions,
    /// We are inside a sensitive field and the options say to redact.
    redacting: bool,
}

impl Writer {
    pub(super) fn new(options: WriteOptions) -> Self {
        Self { options, redacting: false }
    }

    pub(super) fn message(&self, message: &DynamicMessage) -> Json {
        let descriptor = message.descriptor();
        match descriptor.full_name().strip_prefix("google.protobuf.") {
            Some("Any") => self.any(message),
            Some("Struct") => {
                field(message, "fields").map_or_else(|| Json::Object(Map::new()), |v| self.all(&v))
            }
            Some("ListValue") => {
                field(message, "values").map_or_else(|| Json::Array(Vec::new()), |v| self.all(&v))
            }
            Some("Value") => {
                message.fields().next().map_or(Json::Null, |(kind, value)| self.value(&kind.kind(), value))
            }
            Some(name) if is_wrapper(name) => {
                let value = descriptor.get_field_by_name("value").expect("a wrapper has a value");
                self.value(&value.kind(), &message.get_field(&value))
            }
            // Durations, time stamps and field masks are strings. Out of range, they have no such form.
            Some("Duration" | "Timestamp" | "FieldMask") => match serde_json::to_value(message) {
                Ok(json) => self.redact(json),
                Err(_) => Json::Object(self.fields(message)),
            },
            _ => Json::Object(self.fields(message)),
        }
    }

    fn fields(&self, message: &DynamicMessage) -> Map<String, Json> {
        let mut object = Map::new();
        for (field, value) in message.fields() {
            let name = if self.options.proto_names { field.name() } else { field.json_name() };
            let redacting = self.redacting || (self.options.redact && is_sensitive(&field));
            let writer = Self { options: self.options, redacting };
            let json = writer.value(&field.kind(), value);
            if !(redacting && json.is_null()) {
                object.insert(name.to_owned(), json);
            }
        }
        object
    }

    fn any(&self, any: &DynamicMessage) -> Json {
        let type_url =
            field(any, "type_url").and_then(|url| url.as_str().map(str::to_owned)).unwrap_or_default();
        let bytes = field(any, "value").and_then(|value| value.as_bytes().cloned()).unwrap_or_default();
        let mut object = match message_of(&type_url).map(|d| DynamicMessage::decode(d, bytes.clone())) {
            Some(Ok(inner)) if has_own_form(inner.descriptor().full_name()) => {
                Map::from_iter([("value".to_owned(), self.message(&inner))])
            }
            Some(Ok(inner)) => self.fields(&inner),
            // An unknown type, or bytes that are not of the type.
            Some(Err(_)) | None => {
                Map::from_iter([("value".to_owned(), self.value(&Kind::Bytes, &Value::Bytes(bytes)))])
            }
        };
        object.insert("@type".to_owned(), Json::String(type_url));
        Json::Object(object)
    }

    /// A `Struct`'s fields or a `ListValue`'s values.
    fn all(&self, values: &Value) -> Json {
        // The elements are messages, which bring their own descriptors: the kind is not looked at.
        self.value(&Kind::Bool, values)
    }

    fn value(&self, kind: &Kind, value: &Value) -> Json {
        match value {
            Value::Message(message) => self.message(message),
            Value::List(values) => Json::Array(values.iter().map(|value| self.value(kind, value)).collect()),
            Value::Map(entries) => {
                let value_kind = kind.as_message().filter(|entry| entry.is_map_entry());
                let value_kind = value_kind.map_or(Kind::Bool, |entry| entry.map_entry_value_field().kind());
                let entries =
                    entries.iter().map(|(key, value)| (map_key(key), self.value(&value_kind, value)));
                Json::Object(entries.collect())
            }
            Value::String(text) => self.redact(Json::String(text.clone())),
            Value::Bytes(_) if self.redacting => Json::String(BASE64_STANDARD.encode(REDACTED)),
            Value::Bytes(bytes) => Json::String(BASE64_STANDARD.encode(bytes)),
            Value::Bool(value) => self.redact(Json::Bool(*value)),
            Value::I32(value) => self.redact(Json::from(*value)),
            Value::U32(value) => self.redact(Json::from(*value)),
            // JavaScript's numbers cannot hold 64 bits: the JSON mapping writes strings.
            Value::I64(value) => self.redact(Json::String(value.to_string())),
            Value::U64(value) => self.redact(Json::String(value.to_string())),
            // Through its shortest decimal form: 0.1f32 is not 0.10000000149011612.
            Value::F32(value) => self.redact(number(value.to_string().parse().unwrap_or(f64::from(*value)))),
            Value::F64(value) => self.redact(number(*value)),
            Value::EnumNumber(number) => self.redact(enum_value(kind.as_enum(), *number)),
        }
    }

    fn redact(&self, json: Json) -> Json {
        match json {
            json if !self.redacting => json,
            Json::String(_) => Json::String(REDACTED.to_owned()),
            _ => Json::Null,
        }
    }
}

fn field(message: &DynamicMessage, name: &str) -> Option<Value> {
    message.get_field_by_name(name).map(std::borrow::Cow::into_owned)
}

fn message_of(type_url: &str) -> Option<MessageDescriptor> {
    pool().get_message_by_name(type_url::message_name(type_url))
}

fn map_key(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

/// A number without a fraction is written as an integer, as long as a double holds integers exactly.
fn number(value: f64) -> Json {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.is_nan() {
        Json::from("NaN")
    } else if value.is_infinite() {
        Json::from(if value > 0.0 { "Infinity" } else { "-Infinity" })
    } else if value.fract() == 0.0 && value.abs() <= EXACT && !(value == 0.0 && value.is_sign_negative()) {
        Json::from(value as i64)
    } else {
        Json::from(value)
    }
}

fn enum_value(descriptor: Option<&EnumDescriptor>, number: i32) -> Json {
    match descriptor {
        Some(descriptor) if descriptor.full_name() == "google.protobuf.NullValue" => Json::Null,
        Some(descriptor) => {
            descriptor.get_value(number).map_or_else(|| Json::from(number), |value| Json::from(value.name()))
        }
        None => Json::from(number),
    }
}

/// Whether Envoy's API marks the field as sensitive.
fn is_sensitive(field: &FieldDescriptor) -> bool {
    // Options are decoded on every access, so the marked fields are looked up once.
    static SENSITIVE: LazyLock<HashSet<String>> = LazyLock::new(|| {
        let mark = pool()
            .get_extension_by_name("udpa.annotations.sensitive")
            .expect("the descriptor set has the annotations that Envoy's files import");
        let fields = pool().all_messages().flat_map(|message| message.fields().collect::<Vec<_>>());
        fields
            .filter(|field| field.options().get_extension(&mark).as_bool() == Some(true))
            .map(|field| field.full_name().to_owned())
            .collect()
    });
    SENSITIVE.contains(field.full_name())
}
