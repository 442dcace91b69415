//! Asking the application in the kubelet's place, as the kubelet would.

use crate::config::probes::{Action, Probe};
use crate::http::{Answer, HttpError, Question, connect};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use proto::grpc::health::v1::HealthCheckRequest;
use proto::grpc::health::v1::health_check_response::ServingStatus;
use proto::grpc::health::v1::health_client::HealthClient;
use std::net::IpAddr;
use std::time::Duration;
use tonic::transport::Endpoint;

/// How much of the application's answer is passed on.
const BODY: usize = 10 << 10;
/// How many redirects are followed.
const REDIRECTS: usize = 10;
/// Headers that belong to a connection, not to what is asked.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::CONTENT_LENGTH,
];

/// Asks the application and answers what it answered.
pub(super) async fn ask(probe: &Probe, pod: IpAddr, status_port: u16, headers: &HeaderMap) -> Response {
    let host = |host: &Option<String>| host.clone().unwrap_or_else(|| pod.to_string());
    let failed = |error: &dyn std::fmt::Display| {
        tracing::info!(%error, ?probe.action, "a probe of the application fails");
        (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
    };
    match &probe.action {
        Action::Tcp { port, host: named } => {
            match tokio::time::timeout(probe.timeout, connect(&host(named), *port, true)).await {
                Ok(Ok(_)) => StatusCode::OK.into_response(),
                Ok(Err(error)) => failed(&error),
                Err(_) => failed(&HttpError::Timeout(probe.timeout)),
            }
        }
        Action::Grpc { port, service } => match grpc(&host(&None), *port, service, probe.timeout).await {
            Ok(()) => StatusCode::OK.into_response(),
            Err(error) => failed(&error),
        },
        Action::Http { tls, port, path, host: named, headers: own } => {
            let question = Question {
                host: host(named),
                port: *port,
                path: path.clone(),
                method: axum::http::Method::GET,
                headers: passed_on(headers, own, status_port, *port),
                tls: *tls,
                from_agent: true,
                timeout: probe.timeout,
                limit: BODY,
                truncate: true,
            };
            match tokio::time::timeout(probe.timeout, follow(question)).await {
                Ok(Ok(answer)) if answer.status.is_redirection() => StatusCode::OK.into_response(),
                Ok(Ok(answer)) => (answer.status, answer.body).into_response(),
                Ok(Err(error)) => failed(&error),
                Err(_) => failed(&HttpError::Timeout(probe.timeout)),
            }
        }
    }
}

/// The kubelet's headers, with the probe's own over them. A host with our port in it was meant for the application's.
fn passed_on(headers: &HeaderMap, own: &[(String, String)], status_port: u16, port: u16) -> HeaderMap {
    let mut result = headers.clone();
    for name in HOP_BY_HOP {
        result.remove(name);
    }
    let host = result.get(header::HOST).and_then(|host| host.to_str().ok());
    let replaced = host.and_then(|host| host.strip_suffix(&format!(":{status_port}")));
    if let Some(replaced) = replaced.and_then(|host| HeaderValue::from_str(&format!("{host}:{port}")).ok()) {
        result.insert(header::HOST, replaced);
    }
    for (name, value) in own {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            result.insert(name, value);
        }
    }
    result
}

/// Follows redirects to the same host; one to another host is a good answer, which nobody looks behind.
async fn follow(mut question: Question) -> Result<Answer, HttpError> {
    for _ in 0..REDIRECTS {
        let answer = question.clone().send().await?;
        if !answer.status.is_redirection() {
            return Ok(answer);
        }
        let location = answer.headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
        let Some(next) = location.and_then(|location| redirected(&question, location)) else {
            return Ok(answer);
        };
        question = next;
    }
    Err(HttpError::Protocol(format!("more than {REDIRECTS} redirects")))
}

fn redirected(question: &Question, location: &str) -> Option<Question> {
    let uri: Uri = location.parse().ok()?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut next = question.clone();
    next.path = if path.starts_with('/') {
        path.to_owned()
    } else {
        let directory = question.path.rsplit_once('/').map_or("", |(directory, _)| directory);
        format!("{directory}/{path}")
    };
    if let Some(authority) = uri.authority() {
        let asked = question.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let asked =
            asked.map_or(question.host.as_str(), |host| host.rsplit_once(':').map_or(host, |(host, _)| host));
        if authority.host() != asked && authority.host() != question.host {
            return None;
        }
        next.tls = uri.scheme_str() == Some("https");
        next.port = authority.port_u16().unwrap_or(if next.tls { 443 } else { 80 });
        next.headers.insert(header::HOST, HeaderValue::from_str(authority.as_str()).ok()?);
    }
    Some(next)
}

async fn grpc(host: &str, port: u16, service: &str, timeout: Duration) -> Result<(), String> {
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let endpoint = Endpoint::from_shared(format!("http://{authority}")).map_err(|error| error.to_string())?;
    let target = host.to_owned();
    let connector = tower::service_fn(move |_| {
        let target = target.clone();
        async move { connect(&target, port, true).await.map(TokioIo::new) }
    });
    let check = async {
        let channel = endpoint.connect_with_connector(connector).await;
        let channel = channel.map_err(|error| crate::identity::renew::chain(&error))?;
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = HealthClient::new(channel).check(request).await;
        let answer = answer.map_err(|status| format!("{:?}: {}", status.code(), status.message()))?;
        match answer.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            other => Err(format!("the application says {other:?}")),
        }
    };
    tokio::time::timeout(timeout, check)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use testkit::rig::{HttpEcho, TcpEcho, loopback};

    fn probe(action: Action) -> Probe {
        Probe { action, timeout: Duration::from_millis(500) }
    }

    fn http(port: u16, tls: bool) -> Probe {
        let headers = vec![("x-own".to_owned(), "1".to_owned())];
        probe(Action::Http { tls, port, path: "/live?x=1".to_owned(), host: None, headers })
    }

    async fn status(probe: &Probe, address: SocketAddr) -> (u16, serde_json::Value) {
        let headers = HeaderMap::from_iter([
            (header::HOST, HeaderValue::from_static("10.0.0.7:15020")),
            (header::USER_AGENT, HeaderValue::from_static("kube-probe/1.33")),
            (header::CONNECTION, HeaderValue::from_static("close")),
        ]);
        let answer = ask(probe, address.ip(), 15020, &headers).await;
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn http_probes_ask_what_the_kubelet_would() {
        let app = HttpEcho::start("app", "v1", loopback::socket().unwrap()).unwrap();
        let (code, seen) = status(&http(app.address().port(), false), app.address()).await;
        assert_eq!(code, 200);
        assert_eq!(seen["path"], "/live");
        assert_eq!(seen["headers"]["user-agent"][0], "kube-probe/1.33");
        assert_eq!(seen["headers"]["x-own"][0], "1");
        assert_eq!(seen["headers"]["host"][0], format!("10.0.0.7:{}", app.address().port()));
        app.set_status(503);
        assert_eq!(status(&http(app.address().port(), false), app.address()).await.0, 503);
        app.set_delay(Duration::from_secs(3));
        assert_eq!(status(&http(app.address().port(), false), app.address()).await.0, 500);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn https_probes_believe_everybody() {
        let authority = testkit::rig::pki::Authority::new("nobody");
        let identity = authority.issue("app", &["elsewhere.example.com"]);
        let app = HttpEcho::start_tls("app", "v1", loopback::socket().unwrap(), &identity).unwrap();
        let (code, seen) = status(&http(app.address().port(), true), app.address()).await;
        assert_eq!((code, &seen["path"]), (200, &"/live".into()));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn tcp_probes_connect() {
        let app = TcpEcho::start("app", "v1", loopback::socket().unwrap()).unwrap();
        let tcp = |port| probe(Action::Tcp { port, host: None });
        assert_eq!(status(&tcp(app.address().port()), app.address()).await.0, 200);
        let free = loopback::socket().unwrap();
        assert_eq!(status(&tcp(free.port()), free).await.0, 500);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn grpc_probes_ask_for_a_service() {
        use tonic_health::ServingStatus as Serving;
        let (reporter, service) = tonic_health::server::health_reporter();
        reporter.set_service_status("db", Serving::Serving).await;
        reporter.set_service_status("cache", Serving::NotServing).await;
        let address = loopback::socket().unwrap();
        let server = tonic::transport::Server::builder().add_service(service).serve(address);
        let server = tokio::spawn(server);
        let grpc = |service: &str| probe(Action::Grpc { port: address.port(), service: service.to_owned() });
        let mut code = 0;
        for _ in 0..100 {
            code = status(&grpc("db"), address).await.0;
            if code == 200 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(code, 200);
        assert_eq!(status(&grpc("cache"), address).await.0, 500);
        assert_eq!(status(&grpc("unknown"), address).await.0, 500);
        server.abort();
    }

    #[test]
    fn redirects_are_followed_on_the_same_host_only() {
        let question = Question::get("10.0.0.7:8080".parse().unwrap(), "/a/b");
        let next = |location| redirected(&question, location).map(|next| (next.port, next.path, next.tls));
        assert_eq!(next("/c?d"), Some((8080, "/c?d".to_owned(), false)));
        assert_eq!(next("https://10.0.0.7:8443/c"), Some((8443, "/c".to_owned(), true)));
        assert_eq!(next("http://10.0.0.7/"), Some((80, "/".to_owned(), false)));
        assert_eq!(next("http://elsewhere.example.com/"), None);
    }
}
