//! Small pieces of Envoy's messages that every generator needs, so that each is put together in one place.
//!
//! What is here has no opinion: it turns a value of the model into the message of the same meaning.

use crate::names;
use model::ObjectKey;
use model::route::{Denominator, Percent, StringMatch};
use proto::envoy::config::core::v3::http1_protocol_options::HeaderKeyFormat;
use proto::envoy::config::core::v3::http1_protocol_options::header_key_format::HeaderFormat;
use proto::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, Metadata, Pipe, RuntimeFractionalPercent,
    SocketAddress, TypedExtensionConfig, address, config_source, socket_address,
};
use proto::envoy::config::listener::v3::{Filter, ListenerFilter, filter, listener_filter};
use proto::envoy::extensions::filters::network::http_connection_manager::v3::{HttpFilter, http_filter};
use proto::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;
use proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use proto::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};
use proto::envoy::r#type::v3::FractionalPercent;
use proto::envoy::r#type::v3::fractional_percent::DenominatorType;
use proto::google::protobuf::{self, Struct, Value};
use std::net::IpAddr;
use std::time::Duration;

/// The key of Istio's own metadata in `filter_metadata`.
pub const ISTIO_METADATA: &str = "istio";

/// Returns `value` as a set boolean.
pub fn bool_value(value: bool) -> Option<protobuf::BoolValue> {
    Some(value.into())
}

/// Returns `value` as a set number.
pub fn u32_value(value: u32) -> Option<protobuf::UInt32Value> {
    Some(value.into())
}

/// Returns `value` as a set number.
pub fn u64_value(value: u64) -> Option<protobuf::UInt64Value> {
    Some(value.into())
}

/// Returns `value` as a set number.
pub fn f64_value(value: f64) -> Option<protobuf::DoubleValue> {
    Some(value.into())
}

/// Returns `value` as a set duration.
pub fn duration(value: Duration) -> Option<protobuf::Duration> {
    Some(value.into())
}

/// Returns a duration of zero, which for most limits of Envoy means that there is none.
pub fn no_timeout() -> Option<protobuf::Duration> {
    duration(Duration::ZERO)
}

/// Returns the matcher of the same meaning.
pub fn string_matcher(matched: &StringMatch) -> StringMatcher {
    let pattern = match matched {
        StringMatch::Exact(text) => MatchPattern::Exact(text.to_string()),
        StringMatch::Prefix(text) => MatchPattern::Prefix(text.to_string()),
        StringMatch::Regex(expression) => MatchPattern::SafeRegex(regex(expression.as_ref())),
    };
    StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }
}

/// Returns a matcher of exactly `text`.
pub fn exact(text: impl Into<String>) -> StringMatcher {
    StringMatcher { match_pattern: Some(MatchPattern::Exact(text.into())), ..StringMatcher::default() }
}

/// Returns a matcher of what begins with `text`.
pub fn prefix(text: impl Into<String>) -> StringMatcher {
    StringMatcher { match_pattern: Some(MatchPattern::Prefix(text.into())), ..StringMatcher::default() }
}

/// Returns a matcher of the RE2 expression `expression`.
pub fn regex(expression: impl Into<String>) -> RegexMatcher {
    RegexMatcher { regex: expression.into(), ..RegexMatcher::default() }
}

/// Returns the share `percent`.
pub fn fraction(percent: Percent) -> FractionalPercent {
    let denominator = match percent.denominator {
        Denominator::Hundred => DenominatorType::Hundred,
        Denominator::Million => DenominatorType::Million,
    };
    FractionalPercent { numerator: percent.numerator, denominator: denominator.into() }
}

/// Returns the share `percent`, which no runtime key can change.
pub fn runtime_fraction(percent: Percent) -> RuntimeFractionalPercent {
    RuntimeFractionalPercent { default_value: Some(fraction(percent)), ..RuntimeFractionalPercent::default() }
}

/// Everything, as a percentage.
pub const ALL: Percent = Percent { numerator: 100, denominator: Denominator::Hundred };

/// Returns the address of a TCP socket.
pub fn socket_address(ip: IpAddr, port: u16) -> Address {
    named_address(ip.to_string(), port)
}

/// Returns the address of a TCP socket on a host that is named by text: an address or a host name.
pub fn named_address(host: impl Into<String>, port: u16) -> Address {
    let socket = SocketAddress {
        address: host.into(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(port.into())),
        ..SocketAddress::default()
    };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}

/// Returns the address of a Unix domain socket. `path` may begin with `unix://`.
pub fn pipe(path: &str) -> Address {
    let path = path.strip_prefix("unix://").unwrap_or(path).to_owned();
    Address { address: Some(address::Address::Pipe(Pipe { path, ..Pipe::default() })) }
}

/// Returns the source of what is asked for over the stream that configured whoever asks.
pub fn ads() -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        resource_api_version: ApiVersion::V3.into(),
        initial_fetch_timeout: no_timeout(),
        ..ConfigSource::default()
    }
}

/// Returns an extension's configuration under its name.
pub fn extension<M: prost::Name>(name: &str, config: &M) -> TypedExtensionConfig {
    TypedExtensionConfig { name: name.to_owned(), typed_config: Some(proto::any(config)) }
}

/// Returns a filter of an HTTP connection manager.
pub fn http_filter<M: prost::Name>(name: &str, config: &M) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(proto::any(config))),
        ..HttpFilter::default()
    }
}

/// Returns a filter of a filter chain.
pub fn network_filter<M: prost::Name>(name: &str, config: &M) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(proto::any(config))) }
}

/// Returns a filter of a listener.
pub fn listener_filter<M: prost::Name>(name: &str, config: &M) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(proto::any(config))),
        ..ListenerFilter::default()
    }
}

/// Returns a structure of these fields.
pub fn structure<'a>(fields: impl IntoIterator<Item = (&'a str, Value)>) -> Struct {
    fields.into_iter().collect()
}

/// Returns metadata for the filter (or convention) `key`.
pub fn metadata(key: &str, fields: Struct) -> Metadata {
    let filter_metadata = [(key.to_owned(), fields)].into_iter().collect();
    Metadata { filter_metadata, ..Metadata::default() }
}

/// Returns the metadata that names the object which something was made from: `istio: {config: <path>}`.
pub fn config_metadata(object: &ObjectKey) -> Metadata {
    metadata(ISTIO_METADATA, structure([("config", names::config_path(object).into())]))
}

/// Keeps the case of HTTP/1.1 headers.
pub(crate) fn preserve_case() -> HeaderKeyFormat {
    let formatter = TypedExtensionConfig {
        name: "preserve_case".to_owned(),
        typed_config: Some(proto::any(&PreserveCaseFormatterConfig::default())),
    };
    HeaderKeyFormat { header_format: Some(HeaderFormat::StatefulFormatter(formatter)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Kind;

    #[test]
    fn config_metadata_names_the_object() {
        let metadata = config_metadata(&ObjectKey::new(Kind::VirtualService, "shop", "cart"));
        let path = &metadata.filter_metadata[ISTIO_METADATA].fields["config"];
        let expected = "/apis/networking.istio.io/v1/namespaces/shop/virtual-service/cart";
        assert_eq!(*path, Value::from(expected));
    }

    #[test]
    fn string_matchers_keep_their_kind() {
        let cases = [
            (StringMatch::Exact("a".into()), exact("a")),
            (StringMatch::Prefix("a".into()), prefix("a")),
            (
                StringMatch::Regex("a.*".into()),
                StringMatcher {
                    match_pattern: Some(MatchPattern::SafeRegex(regex("a.*"))),
                    ..StringMatcher::default()
                },
            ),
        ];
        for (matched, message) in cases {
            assert_eq!(string_matcher(&matched), message);
        }
    }

    #[test]
    fn unix_sockets_may_be_written_as_urls() {
        assert_eq!(pipe("unix:///var/run/x"), pipe("/var/run/x"));
        assert_eq!(pipe("unix://@abstract"), pipe("@abstract"));
    }
}
