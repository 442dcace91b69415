//! Conversions between the well-known types and Rust's own.

use std::time::Duration;

use crate::google::protobuf;

impl From<Duration> for protobuf::Duration {
    /// A duration longer than protobuf can express (292 thousand million years) becomes the longest.
    fn from(duration: Duration) -> Self {
        let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        // Less than 1_000_000_000, so it fits.
        Self { seconds, nanos: duration.subsec_nanos() as i32 }
    }
}

macro_rules! wrappers {
    ($($wrapper:ident($value:ty);)*) => {
        $(impl From<$value> for protobuf::$wrapper {
            fn from(value: $value) -> Self {
                Self { value }
            }
        })*
    };
}

wrappers! {
    BoolValue(bool);
    Int32Value(i32);
    Int64Value(i64);
    UInt32Value(u32);
    UInt64Value(u64);
    FloatValue(f32);
    DoubleValue(f64);
    StringValue(String);
    BytesValue(bytes::Bytes);
}

impl From<&str> for protobuf::StringValue {
    fn from(value: &str) -> Self {
        Self { value: value.to_owned() }
    }
}

impl From<bool> for protobuf::Value {
    fn from(value: bool) -> Self {
        Self { kind: Some(protobuf::value::Kind::BoolValue(value)) }
    }
}

impl From<f64> for protobuf::Value {
    fn from(value: f64) -> Self {
        Self { kind: Some(protobuf::value::Kind::NumberValue(value)) }
    }
}

impl From<String> for protobuf::Value {
    fn from(value: String) -> Self {
        Self { kind: Some(protobuf::value::Kind::StringValue(value)) }
    }
}

impl From<&str> for protobuf::Value {
    fn from(value: &str) -> Self {
        Self::from(value.to_owned())
    }
}

impl From<protobuf::Struct> for protobuf::Value {
    fn from(value: protobuf::Struct) -> Self {
        Self { kind: Some(protobuf::value::Kind::StructValue(value)) }
    }
}

impl From<Vec<Self>> for protobuf::Value {
    fn from(values: Vec<Self>) -> Self {
        Self { kind: Some(protobuf::value::Kind::ListValue(protobuf::ListValue { values })) }
    }
}

impl<K: Into<String>, V: Into<protobuf::Value>> FromIterator<(K, V)> for protobuf::Struct {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(fields: I) -> Self {
        Self { fields: fields.into_iter().map(|(key, value)| (key.into(), value.into())).collect() }
    }
}
