//! The JSON form of messages, for people: golden files, configuration dumps, patches written by users.
//!
//! This is protobuf's JSON mapping, with what Envoy's configuration needs on top:
//!
//! - An `Any` is expanded at any depth. One whose type is not in [`pool`](crate::pool), or whose bytes do not decode,
//!   is written as `{"@type": …, "value": <base64>}` instead of failing the whole document, and reads back.
//! - Whole numbers of a `Struct` (and of `double` and `float` fields) are written `9080`, not `9080.0`.
//! - Fields can be written under their protobuf names, as Envoy's own dumps do. Both spellings are read.
//! - Errors say at which path of the document they are.
//!
//! Reading gives the same bytes for equal documents, whatever the order of their keys.

mod encode;
mod read;
#[cfg(test)]
mod tests;
mod write;

use bytes::Bytes;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use serde_json::Value;

use crate::{pool, type_url};

/// Why a message has no JSON form, or a JSON document no message.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// A type URL names no message that we know.
    #[error("{path}: unknown message type {type_url:?}")]
    UnknownType {
        /// Where in the document; `$` is the whole.
        path: String,
        /// The type URL as written.
        type_url: String,
    },
    /// A message has no such field.
    #[error("{path}: {message} has no such field")]
    UnknownField {
        /// Where in the document, with the name of the field.
        path: String,
        /// The full name of the message.
        message: String,
    },
    /// A field is set twice: under both its names, or next to another field of the same oneof.
    #[error("{path}: {other} is already set")]
    Conflict {
        /// Where in the document.
        path: String,
        /// The field or oneof that was already set.
        other: String,
    },
    /// A value does not fit its field.
    #[error("{path}: {reason}")]
    Invalid {
        /// Where in the document.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The bytes are no message of the type.
    #[error("not a {message}")]
    Malformed {
        /// The full name of the message.
        message: String,
        /// What is wrong with the bytes.
        #[source]
        source: prost::DecodeError,
    },
}

/// How [`to_json_with`] writes a message. The default is what protobuf's own JSON printers do.
#[derive(Debug, Default, Clone, Copy)]
pub struct WriteOptions {
    /// Names fields as in the `.proto` file (`load_assignment`) instead of `loadAssignment`.
    pub proto_names: bool,
    /// Replaces strings and bytes in fields marked `udpa.annotations.sensitive`, such as private keys, by
    /// `[redacted]` and leaves other values in them out.
    pub redact: bool,
}

/// Returns the JSON form of an encoded message.
pub fn to_json(type_url: &str, bytes: &[u8]) -> Result<Value, JsonError> {
    to_json_with(type_url, bytes, WriteOptions::default())
}

/// Returns the JSON form of an encoded message, written as `options` say.
pub fn to_json_with(type_url: &str, bytes: &[u8], options: WriteOptions) -> Result<Value, JsonError> {
    let descriptor = descriptor(type_url)?;
    let message = DynamicMessage::decode(descriptor, bytes).map_err(|source| JsonError::Malformed {
        message: type_url::message_name(type_url).to_owned(),
        source,
    })?;
    Ok(write::Writer::new(options).message(&message))
}

/// Returns the encoded message that `json` stands for; a field that the message does not have is an error.
pub fn from_json(type_url: &str, json: &Value) -> Result<Bytes, JsonError> {
    let message = read::Reader::strict().message(&descriptor(type_url)?, json)?;
    Ok(encode::encode(&message).into())
}

/// As [`from_json`], but skips fields that the message does not have and returns their paths too.
pub fn from_json_lenient(type_url: &str, json: &Value) -> Result<(Bytes, Vec<String>), JsonError> {
    let mut reader = read::Reader::lenient();
    let message = reader.message(&descriptor(type_url)?, json)?;
    Ok((encode::encode(&message).into(), reader.into_skipped()))
}

fn descriptor(type_url: &str) -> Result<MessageDescriptor, JsonError> {
    pool()
        .get_message_by_name(type_url::message_name(type_url))
        .ok_or_else(|| JsonError::UnknownType { path: "$".to_owned(), type_url: type_url.to_owned() })
}

/// Whether a message of this name has a JSON form of its own, which stands under `value` in an `Any`.
fn has_own_form(message: &str) -> bool {
    let Some(name) = message.strip_prefix("google.protobuf.") else { return false };
    matches!(
        name,
        "Any" | "Duration" | "Empty" | "FieldMask" | "ListValue" | "Struct" | "Timestamp" | "Value"
    ) || is_wrapper(name)
}

fn is_wrapper(name: &str) -> bool {
    matches!(
        name,
        "BoolValue"
            | "BytesValue"
            | "DoubleValue"
            | "FloatValue"
            | "Int32Value"
            | "Int64Value"
            | "StringValue"
            | "UInt32Value"
            | "UInt64Value"
    )
}
