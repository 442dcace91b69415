//! Small pieces of Envoy's messages.

use proto::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use proto::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use proto::envoy::config::core::v3::socket_address::PortSpecifier;
use proto::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, GrpcService, Pipe, SocketAddress,
    TypedExtensionConfig, address,
};
use proto::google::protobuf::{self, Struct, Value};
use std::net::IpAddr;
use std::time::Duration;

pub(super) fn u32_value(value: u32) -> Option<protobuf::UInt32Value> {
    Some(value.into())
}

pub(super) fn duration(value: Duration) -> Option<protobuf::Duration> {
    Some(value.into())
}

pub(super) fn address(ip: IpAddr, port: u16) -> Address {
    host_address(&ip.to_string(), port)
}

pub(super) fn host_address(host: &str, port: u16) -> Address {
    let socket = SocketAddress {
        address: host.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(port.into())),
        ..SocketAddress::default()
    };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}

pub(super) fn pipe(path: &str) -> Address {
    Address { address: Some(address::Address::Pipe(Pipe { path: path.to_owned(), mode: 0 })) }
}

pub(super) fn extension<M: prost::Name>(name: &str, config: &M) -> TypedExtensionConfig {
    TypedExtensionConfig { name: name.to_owned(), typed_config: Some(proto::any(config)) }
}

pub(super) fn grpc_service(cluster: &str) -> GrpcService {
    let target = EnvoyGrpc { cluster_name: cluster.to_owned(), ..EnvoyGrpc::default() };
    GrpcService { target_specifier: Some(TargetSpecifier::EnvoyGrpc(target)), ..GrpcService::default() }
}

/// Waits for its first configuration as long as it takes: an Envoy without one must not become ready.
pub(super) fn over_ads() -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        initial_fetch_timeout: duration(Duration::ZERO),
        resource_api_version: ApiVersion::V3.into(),
        ..ConfigSource::default()
    }
}

/// Returns the value of the same JSON form.
pub(super) fn json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => {
            Value { kind: Some(protobuf::value::Kind::NullValue(protobuf::NullValue::NullValue.into())) }
        }
        serde_json::Value::Bool(value) => (*value).into(),
        // Numbers of a Struct are doubles, whatever is written.
        serde_json::Value::Number(number) => number.as_f64().unwrap_or_default().into(),
        serde_json::Value::String(text) => text.as_str().into(),
        serde_json::Value::Array(values) => values.iter().map(json).collect::<Vec<_>>().into(),
        serde_json::Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.as_str(), json(value))).collect::<Struct>().into()
        }
    }
}
