//! Access logs to a file, as the mesh's settings ask for them.

use crate::wire;
use model::MeshConfig;
use prost::{Message, Name};
use proto::envoy::config::accesslog::v3::{
    AccessLog, AccessLogFilter, ResponseFlagFilter, access_log, access_log_filter,
};
use proto::envoy::config::core::v3::data_source::Specifier;
use proto::envoy::config::core::v3::substitution_format_string::Format;
use proto::envoy::config::core::v3::{
    DataSource, JsonFormatOptions, SubstitutionFormatString, TypedExtensionConfig,
};
use proto::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use proto::envoy::extensions::access_loggers::file::v3::file_access_log::AccessLogFormat;
use proto::envoy::extensions::formatter::cel::v3::Cel;
use proto::envoy::extensions::formatter::metadata::v3::Metadata;
use proto::envoy::extensions::formatter::req_without_query::v3::ReqWithoutQuery;
use proto::google::protobuf::{Struct, Value};

/// What is logged where the mesh names no format: the fields and their order are known to log pipelines.
const FIELDS: [(&str, &str); 24] = [
    ("start_time", "[%START_TIME%]"),
    ("method", "\"%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%\""),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("upstream_transport_failure_reason", "\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\""),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "\"%REQ(X-FORWARDED-FOR)%\""),
    ("user_agent", "\"%REQ(USER-AGENT)%\""),
    ("request_id", "\"%REQ(X-REQUEST-ID)%\""),
    ("authority", "\"%REQ(:AUTHORITY)%\""),
    ("upstream_host", "\"%UPSTREAM_HOST%\""),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("route_name", "%ROUTE_NAME%"),
];

/// Returns the logs of requests and connections.
pub(super) fn requests(config: &MeshConfig) -> Vec<AccessLog> {
    file(config, None).into_iter().collect()
}

/// Returns the logs of a listener: only of connections that no filter chain takes, since the chains log the rest.
pub(super) fn unmatched_connections(config: &MeshConfig) -> Vec<AccessLog> {
    if !config.listener_log {
        return Vec::new();
    }
    let no_route = ResponseFlagFilter { flags: vec!["NR".to_owned()] };
    let filter = AccessLogFilter {
        filter_specifier: Some(access_log_filter::FilterSpecifier::ResponseFlagFilter(no_route)),
    };
    file(config, Some(filter)).into_iter().collect()
}

fn file(config: &MeshConfig, filter: Option<AccessLogFilter>) -> Option<AccessLog> {
    if config.access_log_file.is_empty() {
        return None;
    }
    let log = FileAccessLog {
        path: config.access_log_file.to_string(),
        access_log_format: Some(AccessLogFormat::LogFormat(format(config))),
    };
    Some(AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        filter,
        config_type: Some(access_log::ConfigType::TypedConfig(proto::any(&log))),
    })
}

fn format(config: &MeshConfig) -> SubstitutionFormatString {
    let given = config.access_log_format.as_ref();
    if config.access_log_json {
        // A format that is not a JSON object was refused when the settings were read, so the default stands in.
        let fields = if given.is_empty() { None } else { json_object(given) };
        return SubstitutionFormatString {
            format: Some(Format::JsonFormat(fields.unwrap_or_else(default_fields))),
            json_format_options: Some(JsonFormatOptions::default()),
            formatters: formatters(given),
            ..SubstitutionFormatString::default()
        };
    }
    let mut text = if given.is_empty() { default_line() } else { given.to_owned() };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    SubstitutionFormatString {
        format: Some(Format::TextFormatSource(DataSource {
            specifier: Some(Specifier::InlineString(text)),
            ..DataSource::default()
        })),
        formatters: formatters(given),
        ..SubstitutionFormatString::default()
    }
}

fn default_line() -> String {
    FIELDS.map(|(_, text)| text).join(" ")
}

fn default_fields() -> Struct {
    let bare = |text: &'static str| text.trim_matches(|c| matches!(c, '"' | '[' | ']'));
    FIELDS.iter().map(|(name, text)| (*name, Value::from(bare(text)))).collect()
}

fn json_object(text: &str) -> Option<Struct> {
    let object: serde_json::Value = serde_json::from_str(text).ok()?;
    let bytes = proto::json::from_json(&Struct::type_url(), &object).ok()?;
    Struct::decode(bytes).ok()
}

/// Returns the extensions that the commands in `format` need.
fn formatters(format: &str) -> Vec<TypedExtensionConfig> {
    let mut formatters = Vec::new();
    if format.contains("%REQ_WITHOUT_QUERY") {
        let config = ReqWithoutQuery::default();
        formatters.push(wire::extension("envoy.formatter.req_without_query", &config));
    }
    if format.contains("%METADATA") {
        formatters.push(wire::extension("envoy.formatter.metadata", &Metadata::default()));
    }
    if format.contains("%CEL") {
        formatters.push(wire::extension("envoy.formatter.cel", &Cel::default()));
    }
    formatters
}
