//! VirtualService: how requests to a host are matched, changed and sent on.

use std::collections::BTreeMap;

use crate::crd::column;
use crate::schema;
use crate::wire::{api_type, istio_kind, open_enum};

istio_kind! {
    /// Routes the traffic of one or more hosts, in the mesh or at gateways.
    VirtualService(VirtualServiceSpec) {
        group: "networking.istio.io",
        plural: "virtualservices",
        short_names: &["vs"],
        categories: &["istio-io", "networking-istio-io"],
        versions: &["v1", "v1alpha3", "v1beta1"],
        columns: &[
            column("Gateways", "string", ".spec.gateways"),
            column("Hosts", "string", ".spec.hosts"),
            column("Age", "date", ".metadata.creationTimestamp"),
        ],
        spec_required: false,
    }
}

api_type! {
    /// Routing rules for traffic to the listed hosts.
    pub struct VirtualServiceSpec {
        /// Namespaces that see this object: `*` all, `.` its own, or names. Empty means the mesh's default.
        pub export_to: Vec<String>,
        /// Gateways (`namespace/name` or `name`) that the rules apply to; the word `mesh` stands for all sidecars and is the default.
        pub gateways: Vec<String>,
        /// Hosts the rules apply to: DNS names, with or without a leading wildcard, short service names, or IP addresses.
        pub hosts: Vec<String>,
        /// Rules for HTTP, HTTP/2 and gRPC traffic, tried in order; the first match wins.
        pub http: Vec<HttpRoute>,
        /// Rules for TCP traffic, tried in order.
        pub tcp: Vec<TcpRoute>,
        /// Rules for TLS traffic that is passed through, chosen by server name.
        pub tls: Vec<TlsRoute>,
    }

    /// One HTTP rule: what it matches and what happens then.
    pub struct HttpRoute {
        /// Cross-origin resource sharing.
        pub cors_policy: Option<CorsPolicy>,
        /// Another VirtualService whose rules are used in place of destinations.
        pub delegate: Option<Delegate>,
        /// Answers at once with a fixed response.
        pub direct_response: Option<HttpDirectResponse>,
        /// Delays or aborts a share of the requests, to test how clients cope.
        pub fault: Option<HttpFaultInjection>,
        /// Header changes for every destination of the rule.
        pub headers: Option<Headers>,
        /// Conditions of which at least one must hold; an empty list matches everything.
        #[serde(rename = "match")]
        pub matches: Vec<HttpMatchRequest>,
        /// A destination that gets a copy of each request; its answers are dropped.
        pub mirror: Option<Destination>,
        /// The earlier spelling of `mirrorPercent`.
        #[serde(rename = "mirror_percent")]
        #[schemars(schema_with = "schema::nullable_u32")]
        pub mirror_percent_snake: Option<u32>,
        /// Whole percents of requests to mirror; `mirrorPercentage` replaces it.
        #[schemars(schema_with = "schema::nullable_u32")]
        pub mirror_percent: Option<u32>,
        /// The share of requests to mirror; absent means all.
        pub mirror_percentage: Option<Percent>,
        /// Destinations that get copies, each with its own share.
        pub mirrors: Vec<HttpMirrorPolicy>,
        /// A name for the rule, shown in access logs.
        pub name: String,
        /// Answers with a redirect.
        pub redirect: Option<HttpRedirect>,
        /// When and how often a failed request is tried again. Absent means as the mesh says, an empty message never.
        pub retries: Option<HttpRetry>,
        /// Changes path or authority before the request is sent on.
        pub rewrite: Option<HttpRewrite>,
        /// Destinations with their weights.
        pub route: Vec<HttpRouteDestination>,
        /// The time limit for the whole request, retries included. Absent means none.
        #[schemars(schema_with = "schema::duration")]
        pub timeout: Option<String>,
    }

    /// Conditions on an HTTP request, all of which must hold.
    pub struct HttpMatchRequest {
        /// The authority (`Host` header).
        pub authority: Option<StringMatch>,
        /// Gateways for which the condition counts, overriding those of the VirtualService.
        pub gateways: Vec<String>,
        /// Headers by lower-case name; an empty condition asks for presence only.
        pub headers: BTreeMap<String, StringMatch>,
        /// Compares the path without regard to case, for `exact` and `prefix`.
        pub ignore_uri_case: bool,
        /// The method.
        pub method: Option<StringMatch>,
        /// A name for the condition, appended to the rule's name in access logs.
        pub name: String,
        /// The port of the host that was addressed.
        pub port: Option<u32>,
        /// Query parameters by name.
        pub query_params: BTreeMap<String, StringMatch>,
        /// The scheme.
        pub scheme: Option<StringMatch>,
        /// Labels that the calling workload must carry.
        pub source_labels: BTreeMap<String, String>,
        /// The namespace of the calling workload.
        pub source_namespace: String,
        /// A prefix for the statistics of this route.
        pub stat_prefix: String,
        /// The path.
        pub uri: Option<StringMatch>,
        /// Headers that must not match.
        pub without_headers: BTreeMap<String, StringMatch>,
    }

    /// Compares a string; at most one of the fields is set.
    #[schemars(transform = schema::one_of(&["exact", "prefix", "regex"]))]
    pub struct StringMatch {
        /// The whole string.
        pub exact: Option<String>,
        /// Its beginning.
        pub prefix: Option<String>,
        /// An RE2 expression that must match the whole string.
        pub regex: Option<String>,
    }

    /// Names another VirtualService.
    pub struct Delegate {
        /// Its name.
        pub name: String,
        /// Its namespace; empty means the namespace of the delegating object.
        pub namespace: String,
    }

    /// A service, and optionally a subset and port of it.
    #[schemars(extend("required" = ["host"]))]
    pub struct Destination {
        /// The service's name: short names are completed with the namespace of the object.
        pub host: String,
        /// The port; needed if the service has several.
        pub port: Option<PortSelector>,
        /// A subset that a DestinationRule of the host defines.
        pub subset: String,
    }

    /// Selects a port of a service.
    pub struct PortSelector {
        /// The port's number.
        pub number: Option<u32>,
    }

    /// A destination with its share of the requests.
    #[schemars(extend("required" = ["destination"]))]
    pub struct HttpRouteDestination {
        /// Where requests go.
        pub destination: Option<Destination>,
        /// Header changes for this destination only.
        pub headers: Option<Headers>,
        /// The share, relative to the sum of weights. A single destination gets everything.
        pub weight: Option<i32>,
    }

    /// A destination of TCP or TLS traffic with its share of the connections.
    #[schemars(extend("required" = ["destination"]))]
    pub struct RouteDestination {
        /// Where connections go.
        pub destination: Option<Destination>,
        /// The share, relative to the sum of weights.
        pub weight: Option<i32>,
    }

    /// Header changes on the way to the destination and back.
    pub struct Headers {
        /// Changes to the request.
        pub request: Option<HeaderOperations>,
        /// Changes to the response.
        pub response: Option<HeaderOperations>,
    }

    /// Changes to a set of headers.
    pub struct HeaderOperations {
        /// Appends values to headers.
        pub add: BTreeMap<String, String>,
        /// Removes headers.
        pub remove: Vec<String>,
        /// Replaces headers.
        pub set: BTreeMap<String, String>,
    }

    /// Changes the request's path or authority.
    pub struct HttpRewrite {
        /// The new authority.
        pub authority: String,
        /// What replaces the matched path or prefix.
        pub uri: String,
        /// Rewrites the path by a regular expression.
        pub uri_regex_rewrite: Option<RegexRewrite>,
    }

    /// A substitution by regular expression.
    pub struct RegexRewrite {
        /// The RE2 expression.
        #[serde(rename = "match")]
        pub matches: String,
        /// The replacement, with `\1` for the first group.
        pub rewrite: String,
    }

    /// A redirect.
    #[schemars(transform = schema::one_of(&["port", "derivePort"]))]
    pub struct HttpRedirect {
        /// The authority of the new location.
        pub authority: String,
        /// How the port of the new location is found.
        pub derive_port: Option<RedirectPort>,
        /// The port of the new location.
        pub port: Option<u32>,
        /// What replaces the matched prefix.
        pub prefix_rewrite: String,
        /// The status code; absent means 301.
        pub redirect_code: Option<u32>,
        /// The scheme of the new location.
        pub scheme: String,
        /// The path of the new location.
        pub uri: String,
    }

    /// A fixed answer.
    #[schemars(extend("required" = ["status"]))]
    pub struct HttpDirectResponse {
        /// The body; absent means none.
        pub body: Option<HttpBody>,
        /// The status code.
        pub status: Option<u32>,
    }

    /// The body of a fixed answer.
    #[schemars(transform = schema::one_of(&["string", "bytes"]))]
    pub struct HttpBody {
        /// Base64-encoded bytes.
        #[schemars(extend("format" = "byte"))]
        pub bytes: Option<String>,
        /// Text.
        pub string: Option<String>,
    }

    /// When and how often a failed request is tried again.
    pub struct HttpRetry {
        /// How many further tries are made; 0 or absent turns retries off.
        pub attempts: Option<i32>,
        /// The least time between tries.
        #[schemars(schema_with = "schema::duration")]
        pub backoff: Option<String>,
        /// The time limit of one try; absent means the timeout of the route.
        #[schemars(schema_with = "schema::duration")]
        pub per_try_timeout: Option<String>,
        /// Prefers endpoints that were not tried yet; absent means yes.
        #[schemars(schema_with = "schema::nullable_bool")]
        pub retry_ignore_previous_hosts: Option<bool>,
        /// Conditions (Envoy's words) and status codes, separated by commas.
        pub retry_on: String,
        /// Whether further tries may leave the locality.
        #[schemars(schema_with = "schema::nullable_bool")]
        pub retry_remote_localities: Option<bool>,
    }

    /// Answers to cross-origin requests.
    pub struct CorsPolicy {
        /// Whether credentials may be sent.
        #[schemars(schema_with = "schema::nullable_bool")]
        pub allow_credentials: Option<bool>,
        /// Headers that requests may carry.
        pub allow_headers: Vec<String>,
        /// Methods that requests may use.
        pub allow_methods: Vec<String>,
        /// Exact origins; `allowOrigins` replaces it.
        pub allow_origin: Vec<String>,
        /// Origins that may send requests.
        pub allow_origins: Vec<StringMatch>,
        /// Headers that the browser may read.
        pub expose_headers: Vec<String>,
        /// How long a preflight's answer may be cached.
        #[schemars(schema_with = "schema::duration")]
        pub max_age: Option<String>,
        /// What happens to a preflight request from another origin.
        pub unmatched_preflights: Option<UnmatchedPreflights>,
    }

    /// Faults to inject.
    pub struct HttpFaultInjection {
        /// Answers with an error.
        pub abort: Option<FaultAbort>,
        /// Holds requests back.
        pub delay: Option<FaultDelay>,
    }

    /// Answers a share of the requests with an error.
    #[schemars(transform = schema::one_of(&["httpStatus", "grpcStatus", "http2Error"]))]
    pub struct FaultAbort {
        /// A gRPC status by name.
        pub grpc_status: Option<String>,
        /// An HTTP/2 error; refused by validation, because no proxy supports it.
        pub http2_error: Option<String>,
        /// An HTTP status code.
        pub http_status: Option<i32>,
        /// The share of requests; absent means none.
        pub percentage: Option<Percent>,
    }

    /// Holds a share of the requests back.
    #[schemars(transform = schema::one_of(&["fixedDelay", "exponentialDelay"]))]
    pub struct FaultDelay {
        /// A mean delay; refused by validation, because no proxy supports it.
        #[schemars(schema_with = "schema::duration")]
        pub exponential_delay: Option<String>,
        /// The delay.
        #[schemars(schema_with = "schema::duration")]
        pub fixed_delay: Option<String>,
        /// Whole percents of requests; `percentage` replaces it.
        pub percent: Option<i32>,
        /// The share of requests; absent means `percent`, or none.
        pub percentage: Option<Percent>,
    }

    /// A share of requests, 0 to 100.
    pub struct Percent {
        /// The number; absent means 0.
        pub value: Option<f64>,
    }

    /// A destination that gets copies of requests.
    #[schemars(extend("required" = ["destination"]))]
    pub struct HttpMirrorPolicy {
        /// Where copies go.
        pub destination: Option<Destination>,
        /// The share of requests; absent means all.
        pub percentage: Option<Percent>,
    }

    /// One rule for TLS traffic that is passed through.
    #[schemars(extend("required" = ["match"]))]
    pub struct TlsRoute {
        /// Conditions of which at least one must hold.
        #[serde(rename = "match")]
        pub matches: Vec<TlsMatchAttributes>,
        /// Destinations with their weights.
        pub route: Vec<RouteDestination>,
    }

    /// Conditions on a TLS connection, all of which must hold.
    #[schemars(extend("required" = ["sniHosts"]))]
    pub struct TlsMatchAttributes {
        /// Networks of the destination address.
        pub destination_subnets: Vec<String>,
        /// Gateways for which the condition counts.
        pub gateways: Vec<String>,
        /// The port that was addressed.
        pub port: Option<u32>,
        /// Server names, with or without a leading wildcard; each must be covered by a host of the VirtualService.
        pub sni_hosts: Vec<String>,
        /// Labels that the calling workload must carry.
        pub source_labels: BTreeMap<String, String>,
        /// The namespace of the calling workload.
        pub source_namespace: String,
    }

    /// One rule for TCP traffic.
    pub struct TcpRoute {
        /// Conditions of which at least one must hold; an empty list matches everything.
        #[serde(rename = "match")]
        pub matches: Vec<L4MatchAttributes>,
        /// Destinations with their weights.
        pub route: Vec<RouteDestination>,
    }

    /// Conditions on a TCP connection, all of which must hold.
    pub struct L4MatchAttributes {
        /// Networks of the destination address.
        pub destination_subnets: Vec<String>,
        /// Gateways for which the condition counts.
        pub gateways: Vec<String>,
        /// The port that was addressed.
        pub port: Option<u32>,
        /// Labels that the calling workload must carry.
        pub source_labels: BTreeMap<String, String>,
        /// The namespace of the calling workload.
        pub source_namespace: String,
        /// A network of the source address; accepted and not used, as in Istio.
        pub source_subnet: String,
    }
}

open_enum! {
    /// How the port of a redirect is found.
    pub enum RedirectPort {
        /// 80 for http, 443 for https.
        FromProtocolDefault = "FROM_PROTOCOL_DEFAULT",
        /// The port of the request.
        FromRequestPort = "FROM_REQUEST_PORT",
    }

    /// What happens to a preflight request whose origin is not allowed.
    pub enum UnmatchedPreflights {
        /// As `FORWARD`.
        Unspecified = "UNSPECIFIED",
        /// It goes to the destination.
        Forward = "FORWARD",
        /// It is answered without CORS headers.
        Ignore = "IGNORE",
    }
}

/// A string comparison by its kind, see [`StringMatch::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StringMatchKind<'a> {
    /// The whole string.
    Exact(&'a str),
    /// Its beginning.
    Prefix(&'a str),
    /// An RE2 expression for the whole string.
    Regex(&'a str),
}

impl StringMatch {
    /// Returns the comparison that is set, or `None` for an empty message (a presence test on headers).
    pub fn kind(&self) -> Option<StringMatchKind<'_>> {
        let exact = self.exact.as_deref().map(StringMatchKind::Exact);
        let prefix = || self.prefix.as_deref().map(StringMatchKind::Prefix);
        let regex = || self.regex.as_deref().map(StringMatchKind::Regex);
        exact.or_else(prefix).or_else(regex)
    }
}

impl HttpRoute {
    /// Returns the deprecated whole-percent mirror share, whichever spelling was used.
    pub fn mirror_percent(&self) -> Option<u32> {
        self.mirror_percent.or(self.mirror_percent_snake)
    }
}
