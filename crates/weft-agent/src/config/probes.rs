//! The application's probes, which the injector moved from the pod into `ISTIO_KUBE_APP_PROBERS`, so that the agent
//! asks in the kubelet's place: the kubelet cannot speak mutual TLS.

use super::ConfigError;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

const VARIABLE: &str = "ISTIO_KUBE_APP_PROBERS";

/// How an application is asked for its health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The question.
    pub action: Action,
    /// How long the answer may take.
    pub timeout: Duration,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// An HTTP request.
    Http {
        /// Whether it goes over TLS; the certificate is not verified, as the kubelet does not either.
        tls: bool,
        /// The port.
        port: u16,
        /// The path, with a leading slash, and the query.
        path: String,
        /// Another host than the pod.
        host: Option<String>,
        /// Further headers.
        headers: Vec<(String, String)>,
    },
    /// A connection.
    Tcp {
        /// The port.
        port: u16,
        /// Another host than the pod.
        host: Option<String>,
    },
    /// gRPC's health protocol.
    Grpc {
        /// The port.
        port: u16,
        /// The service that is asked for; empty for the whole server.
        service: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    grpc: Option<Grpc>,
    timeout_seconds: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    path: Option<String>,
    port: u16,
    host: Option<String>,
    scheme: Option<String>,
    #[serde(default)]
    http_headers: Vec<Header>,
}

#[derive(Deserialize)]
struct Header {
    name: String,
    value: String,
}

#[derive(Deserialize)]
struct TcpSocket {
    port: u16,
    host: Option<String>,
}

#[derive(Deserialize)]
struct Grpc {
    port: u16,
    service: Option<String>,
}

/// Parses the variable: a probe for each path that the kubelet asks.
pub fn parse(json: &str) -> Result<BTreeMap<String, Probe>, ConfigError> {
    let wire: BTreeMap<String, Wire> = serde_json::from_str(json)
        .map_err(|error| ConfigError::variable(VARIABLE, format!("not a map of probes: {error}")))?;
    let convert = |(path, wire): (String, Wire)| {
        check_path(&path).map_err(|reason| ConfigError::variable(VARIABLE, reason))?;
        let probe =
            convert(wire).map_err(|reason| ConfigError::variable(VARIABLE, format!("{path}: {reason}")))?;
        Ok((path, probe))
    };
    wire.into_iter().map(convert).collect()
}

/// Paths are `/app-health/<container>/{livez,readyz,startupz}` or
/// `/app-lifecycle/<container>/{prestopz,poststartz}`.
fn check_path(path: &str) -> Result<(), String> {
    let parts: Vec<&str> = path.split('/').collect();
    let valid = match parts[..] {
        ["", "app-health", container, "livez" | "readyz" | "startupz"]
        | ["", "app-lifecycle", container, "prestopz" | "poststartz"] => !container.is_empty(),
        _ => false,
    };
    if valid { Ok(()) } else { Err(format!("{path:?} is no path of a probe")) }
}

fn convert(wire: Wire) -> Result<Probe, String> {
    let action = match (wire.http_get, wire.tcp_socket, wire.grpc) {
        (Some(http), None, None) => Action::Http {
            tls: match http.scheme.as_deref() {
                None | Some("" | "HTTP" | "http") => false,
                Some("HTTPS" | "https") => true,
                Some(other) => return Err(format!("scheme {other:?} is neither HTTP nor HTTPS")),
            },
            port: http.port,
            path: match http.path.unwrap_or_default() {
                path if path.starts_with('/') => path,
                path => format!("/{path}"),
            },
            host: http.host.filter(|host| !host.is_empty()),
            headers: http.http_headers.into_iter().map(|header| (header.name, header.value)).collect(),
        },
        (None, Some(tcp), None) => {
            Action::Tcp { port: tcp.port, host: tcp.host.filter(|host| !host.is_empty()) }
        }
        (None, None, Some(grpc)) => {
            Action::Grpc { port: grpc.port, service: grpc.service.unwrap_or_default() }
        }
        _ => return Err("exactly one of httpGet, tcpSocket and grpc must be set".to_owned()),
    };
    // Kubernetes' default is a second; what is not positive is not allowed there.
    let seconds = wire.timeout_seconds.filter(|seconds| *seconds > 0).unwrap_or(1);
    Ok(Probe { action, timeout: Duration::from_secs(seconds.into()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_kinds_of_probes_are_read() {
        let probes = parse(
            r#"{
              "/app-health/web/livez": {"httpGet": {"path": "live?x=1", "port": 8080, "scheme": "HTTPS",
                "httpHeaders": [{"name": "Host", "value": "a"}]}, "timeoutSeconds": 3},
              "/app-health/web/readyz": {"tcpSocket": {"port": 90}},
              "/app-health/db/startupz": {"grpc": {"port": 50051, "service": "db"}},
              "/app-lifecycle/web/prestopz": {"httpGet": {"port": 80}}
            }"#,
        )
        .unwrap();
        assert_eq!(
            probes["/app-health/web/livez"],
            Probe {
                action: Action::Http {
                    tls: true,
                    port: 8080,
                    path: "/live?x=1".to_owned(),
                    host: None,
                    headers: vec![("Host".to_owned(), "a".to_owned())],
                },
                timeout: Duration::from_secs(3),
            }
        );
        assert_eq!(probes["/app-health/web/readyz"].action, Action::Tcp { port: 90, host: None });
        assert_eq!(probes["/app-health/web/readyz"].timeout, Duration::from_secs(1));
        assert_eq!(
            probes["/app-health/db/startupz"].action,
            Action::Grpc { port: 50051, service: "db".to_owned() }
        );
        assert_eq!(probes.len(), 4);
    }

    #[test]
    fn bad_probes_are_refused_with_a_reason() {
        for (json, expected) in [
            ("[]", "not a map of probes"),
            (r#"{"/app-health/livez": {"tcpSocket": {"port": 1}}}"#, "is no path of a probe"),
            (r#"{"/app-health//livez": {"tcpSocket": {"port": 1}}}"#, "is no path of a probe"),
            (r#"{"/app-health/a/livez": {}}"#, "exactly one of"),
            (r#"{"/app-health/a/livez": {"tcpSocket": {"port": 1}, "grpc": {"port": 1}}}"#, "exactly one of"),
            (r#"{"/app-health/a/livez": {"httpGet": {"port": "http"}}}"#, "not a map of probes"),
            (r#"{"/app-health/a/livez": {"httpGet": {"port": 1, "scheme": "FTP"}}}"#, "scheme \"FTP\""),
        ] {
            let error = parse(json).unwrap_err().to_string();
            assert!(error.starts_with("ISTIO_KUBE_APP_PROBERS: ") && error.contains(expected), "{error}");
        }
    }
}
