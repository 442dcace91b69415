//! Telemetry: metrics, access logs and traces.

use std::collections::BTreeMap;

use crate::crd::column;
use crate::meta::{LabelSelector, PolicyTargetReference};
use crate::schema;
use crate::wire::{api_type, istio_kind, open_enum};

istio_kind! {
    /// What workloads report.
    Telemetry(TelemetrySpec) {
        group: "telemetry.istio.io",
        plural: "telemetries",
        short_names: &["telemetry"],
        categories: &["istio-io", "telemetry-istio-io"],
        versions: &["v1alpha1", "v1"],
        columns: &[column("Age", "date", ".metadata.creationTimestamp")],
        spec_required: false,
    }
}

api_type! {
    /// What is reported.
    #[schemars(extend("x-kubernetes-validations" = schema::cel(&[schema::ONE_TARGET])))]
    pub struct TelemetrySpec {
        /// Access logs.
        pub access_logging: Vec<AccessLogging>,
        /// Metrics.
        pub metrics: Vec<Metrics>,
        /// The workloads, by labels.
        pub selector: Option<LabelSelector>,
        /// One target; `targetRefs` is the newer form.
        pub target_ref: Option<PolicyTargetReference>,
        /// The targets.
        #[schemars(extend("maxItems" = 16))]
        pub target_refs: Vec<PolicyTargetReference>,
        /// Traces.
        pub tracing: Vec<Tracing>,
    }

    /// Names a provider of the mesh configuration.
    #[schemars(extend("required" = ["name"]))]
    pub struct ProviderRef {
        /// Its name.
        #[schemars(extend("minLength" = 1))]
        pub name: String,
    }

    /// Access logs.
    pub struct AccessLogging {
        /// Turns them off.
        #[schemars(schema_with = "schema::nullable_bool")]
        pub disabled: Option<bool>,
        /// Which requests are logged.
        pub filter: Option<Filter>,
        /// Which traffic this is about.
        #[serde(rename = "match")]
        pub match_: Option<LogSelector>,
        /// Where logs go.
        pub providers: Vec<ProviderRef>,
    }

    /// Which requests are logged.
    pub struct Filter {
        /// A CEL expression.
        pub expression: String,
    }

    /// Which traffic a log is about.
    pub struct LogSelector {
        /// Which side of it; absent means both.
        pub mode: Option<WorkloadMode>,
    }

    /// Metrics.
    pub struct Metrics {
        /// What differs from the defaults.
        pub overrides: Vec<MetricsOverride>,
        /// Where metrics go.
        pub providers: Vec<ProviderRef>,
        /// How often TCP connections are reported.
        #[schemars(schema_with = "schema::duration")]
        pub reporting_interval: Option<String>,
    }

    /// What differs from the defaults.
    pub struct MetricsOverride {
        /// Turns the metric off.
        #[schemars(schema_with = "schema::nullable_bool")]
        pub disabled: Option<bool>,
        /// Which metric.
        #[serde(rename = "match")]
        pub match_: Option<MetricSelector>,
        /// Tags.
        pub tag_overrides: BTreeMap<String, TagOverride>,
    }

    /// Which metric.
    #[schemars(transform = schema::one_of(&["metric", "customMetric"]))]
    pub struct MetricSelector {
        /// One of somebody else's.
        #[schemars(extend("minLength" = 1))]
        pub custom_metric: Option<String>,
        /// One of Istio's.
        pub metric: Option<IstioMetric>,
        /// Which side of the traffic; absent means both.
        pub mode: Option<WorkloadMode>,
    }

    /// A tag of a metric.
    #[schemars(extend("x-kubernetes-validations" = schema::cel(&[
        (
            "((has(self.operation) ? self.operation : \"\") == \"UPSERT\") ? (self.value != \"\") : true",
            "value must be set when operation is UPSERT",
        ),
        (
            "((has(self.operation) ? self.operation : \"\") == \"REMOVE\") ? !has(self.value) : true",
            "value must not be set when operation is REMOVE",
        ),
    ])))]
    pub struct TagOverride {
        /// What is done; absent means `UPSERT`.
        pub operation: Option<TagOperation>,
        /// A CEL expression.
        pub value: String,
    }

    /// Traces.
    pub struct Tracing {
        /// Further tags of spans.
        pub custom_tags: BTreeMap<String, CustomTag>,
        /// Whether headers of traces are not passed on.
        #[schemars(schema_with = "schema::nullable_bool")]
        pub disable_context_propagation: Option<bool>,
        /// Whether spans are not reported.
        #[schemars(schema_with = "schema::nullable_bool")]
        pub disable_span_reporting: Option<bool>,
        /// Whether spans have Istio's own tags.
        #[schemars(schema_with = "schema::nullable_bool")]
        pub enable_istio_tags: Option<bool>,
        /// Which traffic this is about.
        #[serde(rename = "match")]
        pub match_: Option<LogSelector>,
        /// Where spans go.
        pub providers: Vec<ProviderRef>,
        /// The share of requests.
        #[schemars(schema_with = "schema::nullable_percent")]
        pub random_sampling_percentage: Option<f64>,
        /// Whether the id of a request decides about sampling.
        #[schemars(schema_with = "schema::nullable_bool")]
        pub use_request_id_for_trace_sampling: Option<bool>,
    }

    /// A tag of spans.
    #[schemars(transform = schema::one_of(&["literal", "environment", "header", "formatter"]))]
    pub struct CustomTag {
        /// A variable of the proxy's environment.
        pub environment: Option<TagEnvironment>,
        /// A format of Envoy's access logs.
        pub formatter: Option<TagText>,
        /// A header of the request.
        pub header: Option<TagEnvironment>,
        /// A text.
        pub literal: Option<TagText>,
    }

    /// Where a tag's value is.
    #[schemars(extend("required" = ["name"]))]
    pub struct TagEnvironment {
        /// The value if there is none.
        pub default_value: String,
        /// The name of the variable or header.
        #[schemars(extend("minLength" = 1))]
        pub name: String,
    }

    /// A tag's value.
    #[schemars(extend("required" = ["value"]))]
    pub struct TagText {
        /// The value.
        #[schemars(extend("minLength" = 1))]
        pub value: String,
    }
}

open_enum! {
    /// Which side of traffic.
    pub enum WorkloadMode {
        /// Both.
        ClientAndServer = "CLIENT_AND_SERVER",
        /// The client's.
        Client = "CLIENT",
        /// The server's.
        Server = "SERVER",
    }

    /// What is done with a tag.
    pub enum TagOperation {
        /// It is added or replaced.
        Upsert = "UPSERT",
        /// It is removed.
        Remove = "REMOVE",
    }

    /// Istio's metrics.
    pub enum IstioMetric {
        /// All of them.
        AllMetrics = "ALL_METRICS",
        /// `istio_requests_total`.
        RequestCount = "REQUEST_COUNT",
        /// `istio_request_duration_milliseconds`.
        RequestDuration = "REQUEST_DURATION",
        /// `istio_request_bytes`.
        RequestSize = "REQUEST_SIZE",
        /// `istio_response_bytes`.
        ResponseSize = "RESPONSE_SIZE",
        /// `istio_tcp_connections_opened_total`.
        TcpOpenedConnections = "TCP_OPENED_CONNECTIONS",
        /// `istio_tcp_connections_closed_total`.
        TcpClosedConnections = "TCP_CLOSED_CONNECTIONS",
        /// `istio_tcp_sent_bytes_total`.
        TcpSentBytes = "TCP_SENT_BYTES",
        /// `istio_tcp_received_bytes_total`.
        TcpReceivedBytes = "TCP_RECEIVED_BYTES",
        /// `istio_request_messages_total`.
        GrpcRequestMessages = "GRPC_REQUEST_MESSAGES",
        /// `istio_response_messages_total`.
        GrpcResponseMessages = "GRPC_RESPONSE_MESSAGES",
    }
}
