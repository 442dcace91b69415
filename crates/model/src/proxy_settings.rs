//! Settings of single proxies that change what they are sent: the part of Istio's ProxyConfig that compilation depends on.
//!
//! The mesh has some for proxies that bring none of their own in their node's metadata. Both are read here, so that a
//! field means the same wherever it is said.

use crate::Str;
use std::time::Duration;

/// Settings of a proxy. The default is Istio's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProxySettings {
    /// Proxies ahead of a gateway that are trusted to set `x-forwarded-for`.
    pub num_trusted_proxies: u32,
    /// What a gateway does with `x-forwarded-client-cert`.
    pub gateway_client_cert: ForwardClientCert,
    /// Whether a gateway expects the PROXY protocol.
    pub proxy_protocol: bool,
    /// Headers that proxies add by themselves.
    pub headers: ProxyHeaders,
    /// Buffers and timeouts.
    pub connection: ConnectionSettings,
}

/// Headers that proxies add by themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProxyHeaders {
    /// What is done with `x-forwarded-client-cert`, also by gateways.
    pub forward_client_cert: ForwardClientCert,
    /// What `x-forwarded-client-cert` says, if that is said.
    pub client_cert_details: Option<ClientCertDetails>,
    /// Whether requests get no `x-request-id`.
    pub no_request_id: bool,
    /// Whether requests get no `x-envoy-attempt-count`.
    pub no_attempt_count: bool,
    /// Whether the other headers `x-envoy-…` are left out.
    pub no_envoy_headers: bool,
    /// The `server` header.
    pub server: ServerHeader,
    /// Whether HTTP/1.1 headers keep their case.
    pub preserve_case: bool,
    /// Whether the original host is kept in `x-forwarded-host` when it is rewritten.
    pub forwarded_host: bool,
    /// Whether the port is told in `x-forwarded-port`.
    pub forwarded_port: bool,
}

/// What `x-forwarded-client-cert` says of the client's certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each field is the part of the certificate of that name")]
pub struct ClientCertDetails {
    pub subject: bool,
    pub cert: bool,
    pub chain: bool,
    pub dns: bool,
    pub uri: bool,
}

/// The `server` header of responses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServerHeader {
    /// The mesh's name, for responses of the mesh's own servers.
    #[default]
    Default,
    /// This, for all responses.
    Named(Str),
    /// What the server behind says.
    PassedOn,
}

/// What is done with `x-forwarded-client-cert`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each variant is Envoy's mode of the same name")]
pub enum ForwardClientCert {
    #[default]
    Undefined,
    Sanitize,
    ForwardOnly,
    AppendForward,
    SanitizeSet,
    AlwaysForwardOnly,
}

/// Buffers and timeouts of HTTP connections that clients make. What is not said has Envoy's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionSettings {
    /// How much a gateway's listener buffers for a connection, in bytes.
    pub listener_buffer: Option<u32>,
    /// How long a connection may be idle.
    pub idle_timeout: Option<Duration>,
    /// How long a connection may live.
    pub max_connection_duration: Option<Duration>,
    /// How long a connection is drained.
    pub drain_timeout: Option<Duration>,
    /// How long a request may take to arrive.
    pub request_timeout: Option<Duration>,
    /// How long a request's headers may take to arrive.
    pub request_headers_timeout: Option<Duration>,
    /// How long a stream may be idle.
    pub stream_idle_timeout: Option<Duration>,
    /// How long a stream may live.
    pub max_stream_duration: Option<Duration>,
    /// How many streams an HTTP/2 connection may carry.
    pub max_concurrent_streams: Option<u32>,
    /// HTTP/2's window of a stream, in bytes.
    pub stream_window: Option<u32>,
    /// HTTP/2's window of a connection, in bytes.
    pub connection_window: Option<u32>,
    /// What happens to headers with underscores.
    pub underscores: Option<Underscores>,
    /// Whether slashes in paths are merged, whatever path normalisation says.
    pub merge_slashes: Option<bool>,
    /// What happens to paths with escaped slashes, whatever path normalisation says.
    pub escaped_slashes: Option<EscapedSlashes>,
}

/// What happens to headers with underscores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each variant is Envoy's action of the same name")]
pub enum Underscores {
    Allow,
    RejectRequest,
    DropHeader,
}

/// What happens to paths with escaped slashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each variant is Envoy's action of the same name")]
pub enum EscapedSlashes {
    ImplementationDefault,
    KeepUnchanged,
    RejectRequest,
    UnescapeAndRedirect,
    UnescapeAndForward,
}

impl ProxySettings {
    /// Reads a ProxyConfig in protobuf's JSON form. `get` returns the text of the scalar at a path such as
    /// `proxyHeaders.server.value`, or an empty text for a message that is set. `refuse` is told of each value that
    /// cannot be used, by its path; it counts as not set.
    pub fn read(get: &dyn Fn(&str) -> Option<String>, refuse: &mut dyn FnMut(&str, String)) -> Self {
        let mut reader = Reader { get, refuse };
        Self {
            num_trusted_proxies: reader.number("gatewayTopology.numTrustedProxies").unwrap_or_default(),
            gateway_client_cert: reader.forwarding("gatewayTopology.forwardClientCertDetails"),
            proxy_protocol: get("gatewayTopology.proxyProtocol").is_some(),
            headers: reader.headers(),
            connection: reader.connection(),
        }
    }
}

struct Reader<'a> {
    get: &'a dyn Fn(&str) -> Option<String>,
    refuse: &'a mut dyn FnMut(&str, String),
}

impl Reader<'_> {
    fn headers(&mut self) -> ProxyHeaders {
        let details = "proxyHeaders.setCurrentClientCertDetails";
        let client_cert_details = (self.get)(details).map(|_| ClientCertDetails {
            subject: self.flag(&format!("{details}.subject")),
            cert: self.flag(&format!("{details}.cert")),
            chain: self.flag(&format!("{details}.chain")),
            dns: self.flag(&format!("{details}.dns")),
            uri: self.flag(&format!("{details}.uri")),
        });
        let value = (self.get)("proxyHeaders.server.value").filter(|value| !value.is_empty());
        let server = match (self.flag("proxyHeaders.server.disabled"), value) {
            (true, _) => ServerHeader::PassedOn,
            (false, Some(value)) => ServerHeader::Named(value.as_str().into()),
            (false, None) => ServerHeader::Default,
        };
        ProxyHeaders {
            forward_client_cert: self.forwarding("proxyHeaders.forwardedClientCert"),
            client_cert_details,
            no_request_id: self.flag("proxyHeaders.requestId.disabled"),
            no_attempt_count: self.flag("proxyHeaders.attemptCount.disabled"),
            no_envoy_headers: self.flag("proxyHeaders.envoyDebugHeaders.disabled"),
            server,
            preserve_case: self.flag("proxyHeaders.preserveHttp1HeaderCase"),
            forwarded_host: self.flag("proxyHeaders.xForwardedHost.enabled"),
            forwarded_port: self.flag("proxyHeaders.xForwardedPort.enabled"),
        }
    }

    fn connection(&mut self) -> ConnectionSettings {
        ConnectionSettings {
            listener_buffer: self.number("connectionSettings.listenerPerConnectionBufferLimitBytes"),
            idle_timeout: self.duration("connectionSettings.httpIdleTimeout"),
            max_connection_duration: self.duration("connectionSettings.httpMaxConnectionDuration"),
            drain_timeout: self.duration("connectionSettings.httpDrainTimeout"),
            request_timeout: self.duration("connectionSettings.httpRequestTimeout"),
            request_headers_timeout: self.duration("connectionSettings.httpRequestHeadersTimeout"),
            stream_idle_timeout: self.duration("connectionSettings.httpStreamIdleTimeout"),
            max_stream_duration: self.duration("connectionSettings.httpMaxStreamDuration"),
            max_concurrent_streams: self.number("connectionSettings.httpMaxConcurrentStreams"),
            stream_window: self.number("connectionSettings.http2InitialStreamWindowSize"),
            connection_window: self.number("connectionSettings.http2InitialConnectionWindowSize"),
            underscores: self.one_of(
                "connectionSettings.httpHeadersWithUnderscoresAction",
                &[
                    ("HEADERS_WITH_UNDERSCORES_ALLOW", Underscores::Allow),
                    ("HEADERS_WITH_UNDERSCORES_REJECT_REQUEST", Underscores::RejectRequest),
                    ("HEADERS_WITH_UNDERSCORES_DROP_HEADER", Underscores::DropHeader),
                ],
            ),
            merge_slashes: (self.get)("connectionSettings.httpMergeSlashes")
                .map(|_| self.flag("connectionSettings.httpMergeSlashes")),
            escaped_slashes: self.one_of(
                "connectionSettings.httpPathWithEscapedSlashesAction",
                &[
                    ("IMPLEMENTATION_SPECIFIC_DEFAULT", EscapedSlashes::ImplementationDefault),
                    ("KEEP_UNCHANGED", EscapedSlashes::KeepUnchanged),
                    ("REJECT_REQUEST", EscapedSlashes::RejectRequest),
                    ("UNESCAPE_AND_REDIRECT", EscapedSlashes::UnescapeAndRedirect),
                    ("UNESCAPE_AND_FORWARD", EscapedSlashes::UnescapeAndForward),
                ],
            ),
        }
    }

    fn flag(&mut self, path: &str) -> bool {
        self.one_of(path, &[("true", true), ("false", false)]).unwrap_or_default()
    }

    fn number(&mut self, path: &str) -> Option<u32> {
        self.parsed(path, "a number", |text| text.parse().ok())
    }

    fn duration(&mut self, path: &str) -> Option<Duration> {
        self.parsed(path, "a duration, such as 30s", parse_duration)
    }

    fn forwarding(&mut self, path: &str) -> ForwardClientCert {
        let known = [
            ("UNDEFINED", ForwardClientCert::Undefined),
            ("SANITIZE", ForwardClientCert::Sanitize),
            ("FORWARD_ONLY", ForwardClientCert::ForwardOnly),
            ("APPEND_FORWARD", ForwardClientCert::AppendForward),
            ("SANITIZE_SET", ForwardClientCert::SanitizeSet),
            ("ALWAYS_FORWARD_ONLY", ForwardClientCert::AlwaysForwardOnly),
        ];
        self.one_of(path, &known).unwrap_or_default()
    }

    fn one_of<T: Clone>(&mut self, path: &str, known: &[(&str, T)]) -> Option<T> {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let wanted = format!("one of {}", names.join(", "));
        self.parsed(path, &wanted, |text| {
            known.iter().find(|(name, _)| *name == text).map(|(_, value)| value.clone())
        })
    }

    fn parsed<T>(&mut self, path: &str, wanted: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = (self.get)(path)?;
        let parsed = parse(&text);
        if parsed.is_none() {
            (self.refuse)(path, format!("{text:?} is not {wanted}"));
        }
        parsed
    }
}

/// Parses Go's and protobuf's notation, such as `1h30m`, `5s`, `0.5s` or `250ms`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let amount: f64 = rest[..digits].parse().ok()?;
        let unit_end =
            rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |end| digits + end);
        let seconds = match &rest[digits..unit_end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(amount * seconds).ok()?)?;
        rest = &rest[unit_end..];
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &[(&str, &str)]) -> (ProxySettings, Vec<String>) {
        let get = |path: &str| {
            let found = fields.iter().find(|(name, _)| *name == path);
            found.map(|(_, value)| (*value).to_owned())
        };
        let mut refused = Vec::new();
        let settings =
            ProxySettings::read(&get, &mut |path, reason| refused.push(format!("{path}: {reason}")));
        (settings, refused)
    }

    #[test]
    fn nothing_said_is_the_default() {
        assert_eq!(read(&[]), (ProxySettings::default(), Vec::new()));
    }

    #[test]
    fn what_is_said_arrives() {
        let (settings, refused) = read(&[
            ("gatewayTopology.proxyProtocol", ""),
            ("gatewayTopology.numTrustedProxies", "2"),
            ("proxyHeaders.forwardedClientCert", "SANITIZE"),
            ("proxyHeaders.setCurrentClientCertDetails", ""),
            ("proxyHeaders.setCurrentClientCertDetails.chain", "true"),
            ("proxyHeaders.server.value", "corp"),
            ("proxyHeaders.requestId.disabled", "true"),
            ("connectionSettings.httpIdleTimeout", "1.5s"),
            ("connectionSettings.httpMergeSlashes", "false"),
            ("connectionSettings.httpHeadersWithUnderscoresAction", "HEADERS_WITH_UNDERSCORES_DROP_HEADER"),
        ]);
        assert!(refused.is_empty());
        assert!(settings.proxy_protocol && settings.headers.no_request_id);
        assert_eq!(settings.num_trusted_proxies, 2);
        assert_eq!(settings.headers.forward_client_cert, ForwardClientCert::Sanitize);
        let chain = ClientCertDetails { chain: true, ..ClientCertDetails::default() };
        assert_eq!(settings.headers.client_cert_details, Some(chain));
        assert_eq!(settings.headers.server, ServerHeader::Named("corp".into()));
        assert_eq!(settings.connection.idle_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(settings.connection.merge_slashes, Some(false));
        assert_eq!(settings.connection.underscores, Some(Underscores::DropHeader));
        let (passed_on, _) =
            read(&[("proxyHeaders.server.disabled", "true"), ("proxyHeaders.server.value", "corp")]);
        assert_eq!(passed_on.headers.server, ServerHeader::PassedOn);
    }

    #[test]
    fn what_cannot_be_used_is_told_and_counts_as_not_said() {
        let (settings, refused) = read(&[
            ("connectionSettings.httpIdleTimeout", "soon"),
            ("connectionSettings.httpMaxConcurrentStreams", "-1"),
            ("proxyHeaders.forwardedClientCert", "MAYBE"),
        ]);
        assert_eq!(settings, ProxySettings::default());
        assert_eq!(
            refused,
            [
                "proxyHeaders.forwardedClientCert: \"MAYBE\" is not one of UNDEFINED, SANITIZE, FORWARD_ONLY, \
                 APPEND_FORWARD, SANITIZE_SET, ALWAYS_FORWARD_ONLY",
                "connectionSettings.httpIdleTimeout: \"soon\" is not a duration, such as 30s",
                "connectionSettings.httpMaxConcurrentStreams: \"-1\" is not a number",
            ]
        );
    }

    #[test]
    fn durations_are_sums_of_numbers_with_units() {
        assert_eq!(parse_duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        for bad in ["", "5", "s", "1x", "-1s", "1e400s"] {
            assert_eq!(parse_duration(bad), None, "{bad:?}");
        }
    }
}
