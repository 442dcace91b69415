//! Reviews as the API server sends them, over HTTPS and without.

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use base64::Engine as _;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use model::MeshConfig;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use webhook::{Knowledge, Limits, Metrics, router, serve};

struct Cluster {
    allows_unenforced: bool,
}

impl Knowledge for Cluster {
    fn injection(&self) -> Arc<inject::Settings> {
        Arc::default()
    }

    fn context(&self) -> Arc<translate::Context> {
        Arc::new(translate::Context::new(&MeshConfig::default(), "Kubernetes"))
    }

    fn namespace_annotations(&self, _: &str) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    fn kubelets(&self, node: Option<&str>) -> Vec<String> {
        vec![if node == Some("old") { "v1.30.0" } else { "v1.33.0" }.to_owned()]
    }

    fn proxy_config(&self, _: &str, _: &BTreeMap<String, String>) -> Vec<Value> {
        vec![json!({"concurrency": 3})]
    }

    fn allows_unenforced_policies(&self) -> bool {
        self.allows_unenforced
    }
}

fn review(resource: &str, operation: &str, object: &Value, old: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u-1", "resource": {"group": "", "version": "v1", "resource": resource}, "namespace": "app",
            "operation": operation, "object": object, "oldObject": old, "dryRun": true,
        },
    })
}

async fn ask(path: &str, media: &str, body: impl Into<Body>, allows_unenforced: bool) -> (StatusCode, Value) {
    let request = Request::post(path).header(header::CONTENT_TYPE, media).body(body.into()).unwrap();
    let answer =
        router(Arc::new(Cluster { allows_unenforced }), Metrics::default()).oneshot(request).await.unwrap();
    let status = answer.status();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    let value = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into()));
    (status, value)
}

async fn judge(path: &str, review: &Value) -> Value {
    let (status, reply) = ask(path, "application/json", review.to_string(), false).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    assert_eq!((&reply["kind"], &reply["response"]["uid"]), (&json!("AdmissionReview"), &json!("u-1")));
    reply["response"].clone()
}

fn pod() -> Value {
    json!({"metadata": {"generateName": "web-"}, "spec": {"containers": [{"name": "web"}]}})
}

fn patched(pod: &Value, response: &Value) -> Value {
    let patch =
        base64::engine::general_purpose::STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}

#[tokio::test]
async fn a_new_pod_gets_a_proxy_that_knows_its_cluster() {
    let response = judge("/inject/cluster/remote1", &review("pods", "CREATE", &pod(), &Value::Null)).await;
    assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
    let pod = patched(&pod(), &response);
    let proxy = &pod["spec"]["initContainers"][1];
    assert_eq!(proxy["name"], "istio-proxy");
    let variable = |name: &str| {
        proxy["env"].as_array().unwrap().iter().find(|variable| variable["name"] == name).unwrap()["value"]
            .clone()
    };
    assert_eq!(variable("ISTIO_META_CLUSTER_ID"), "remote1");
    assert_eq!(variable("PROXY_CONFIG"), "{\"concurrency\":3}");
}

#[tokio::test]
async fn the_pods_own_node_decides_about_native_sidecars() {
    let mut pod = pod();
    pod["spec"]["nodeName"] = json!("old");
    let response = judge("/inject", &review("pods", "CREATE", &pod, &Value::Null)).await;
    assert_eq!(patched(&pod, &response)["spec"]["containers"][1]["name"], "istio-proxy");
}

#[tokio::test]
async fn what_is_not_to_be_injected_passes_as_it_is() {
    let mut host = pod();
    host["spec"]["hostNetwork"] = json!(true);
    for (resource, operation, object) in
        [("pods", "CREATE", &host), ("pods", "UPDATE", &pod()), ("services", "CREATE", &pod())]
    {
        let response = judge("/inject", &review(resource, operation, object, &Value::Null)).await;
        assert_eq!(response, json!({"uid": "u-1", "allowed": true}), "{resource} {operation}");
    }
}

#[tokio::test]
async fn a_bad_annotation_refuses_the_pod_by_name() {
    let mut pod = pod();
    pod["metadata"]["annotations"] = json!({"sidecar.istio.io/proxyCPU": "much"});
    let response = judge("/inject", &review("pods", "CREATE", &pod, &Value::Null)).await;
    assert_eq!(response["allowed"], false);
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.starts_with("annotation sidecar.istio.io/proxyCPU: \"much\""), "{message}");
}

fn entry(address: &str) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": {"name": "w", "namespace": "app"},
        "spec": {"address": address},
    })
}

#[tokio::test]
async fn objects_are_refused_with_field_and_reason_but_stay_changeable() {
    let bad = entry("unix://x");
    let response = judge("/validate", &review("workloadentries", "CREATE", &bad, &Value::Null)).await;
    assert_eq!(response["allowed"], false);
    assert!(response["status"]["message"].as_str().unwrap().starts_with("spec.address: "), "{response}");
    let response = judge("/validate", &review("workloadentries", "UPDATE", &bad, &bad)).await;
    assert_eq!(response["allowed"], true);
    assert!(response["warnings"][0].as_str().unwrap().contains("was there before"), "{response}");
    let response = judge("/validate", &review("workloadentries", "UPDATE", &bad, &entry("10.0.0.1"))).await;
    assert_eq!(response["allowed"], false);
    let response = judge("/validate", &review("workloadentries", "DELETE", &Value::Null, &bad)).await;
    assert_eq!(response["allowed"], true);
    let response =
        judge("/validate", &review("workloadentries", "CREATE", &entry("10.0.0.1"), &Value::Null)).await;
    assert_eq!(response, json!({"uid": "u-1", "allowed": true}));
}

#[tokio::test]
async fn a_policy_that_nothing_enforces_is_refused_unless_it_is_allowed() {
    let policy = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "a"}, "spec": {},
    });
    let review = review("authorizationpolicies", "CREATE", &policy, &Value::Null);
    assert_eq!(judge("/validate", &review).await["allowed"], false);
    let (_, reply) = ask("/validate", "application/json", review.to_string(), true).await;
    assert_eq!(reply["response"]["warnings"], json!(["Weft does not act on this kind yet"]));
    let mut check = entry("10.0.0.1");
    check["metadata"]["annotations"] = json!({"internal.istio.io/webhook-always-reject": "true"});
    let response = judge("/validate", &self::review("gateways", "CREATE", &check, &Value::Null)).await;
    assert_eq!(response["allowed"], false);
}

#[tokio::test]
async fn what_is_no_review_is_an_error_and_nothing_else() {
    let valid = review("pods", "CREATE", &pod(), &Value::Null).to_string();
    for (media, body, expected) in [
        ("text/plain", valid.clone(), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("application/json", "{".to_owned(), StatusCode::BAD_REQUEST),
        ("application/json", "{}".to_owned(), StatusCode::BAD_REQUEST),
        (
            "application/json",
            valid.replace("admission.k8s.io/v1", "admission.k8s.io/v1beta1"),
            StatusCode::BAD_REQUEST,
        ),
        ("application/json", "[".repeat(9 << 20), StatusCode::PAYLOAD_TOO_LARGE),
        ("application/json", "[".repeat(1 << 20), StatusCode::BAD_REQUEST),
    ] {
        let (status, reply) = ask("/inject", media, body, false).await;
        assert_eq!(status, expected, "{reply}");
    }
    let (status, _) = ask("/inject", "application/json; charset=utf-8", valid, false).await;
    assert_eq!(status, StatusCode::OK);
}

/// A certificate for `localhost`, and a client that trusts only it.
fn identity() -> (Arc<ServerConfig>, TlsConnector) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), TlsConnector::from(Arc::new(client)))
}

async fn status_over_tls(
    address: std::net::SocketAddr,
    client: &TlsConnector,
) -> std::io::Result<StatusCode> {
    let stream = TcpStream::connect(address).await?;
    let stream = client.connect(ServerName::try_from("localhost").unwrap(), stream).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let body = Body::from(review("pods", "CREATE", &pod(), &Value::Null).to_string());
    let request = Request::post("/inject")
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)
        .unwrap();
    let status = sender.send_request(request).await.unwrap().status();
    driver.abort();
    Ok(status)
}

#[tokio::test]
async fn certificates_change_while_reviews_are_answered_and_silence_is_not_waited_for() {
    let ((first, of_first), (second, of_second)) = (identity(), identity());
    let (sender, tls) = watch::channel(first);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let limits = Limits { connections: 8, handshake: Duration::from_millis(200), ..Limits::default() };
    let routes = router(Arc::new(Cluster { allows_unenforced: false }), Metrics::default());
    let server = tokio::spawn(serve(listener, tls, routes, limits, stop.clone()));
    assert_eq!(status_over_tls(address, &of_first).await.unwrap(), StatusCode::OK);
    sender.send(second).unwrap();
    assert_eq!(status_over_tls(address, &of_second).await.unwrap(), StatusCode::OK);
    assert!(status_over_tls(address, &of_first).await.is_err(), "the old certificate is still used");

    // All places are taken by clients that say nothing; they lose them.
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let answered = async {
        while status_over_tls(address, &of_second).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), answered).await.expect("silent clients keep their places");
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), server).await.expect("it does not end").unwrap();
}

#[tokio::test]
async fn answers_are_counted_under_istios_names() {
    let mut registry = prometheus_client::registry::Registry::default();
    let metrics = Metrics::register(&mut registry);
    let routes = router(Arc::new(Cluster { allows_unenforced: false }), metrics);
    let ask = |path: &'static str, review: Value| {
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        routes.clone().oneshot(request.body(Body::from(review.to_string())).unwrap())
    };
    let mut refused = pod();
    refused["metadata"]["annotations"] = json!({"sidecar.istio.io/proxyCPU": "much"});
    let mut host = pod();
    host["spec"]["hostNetwork"] = json!(true);
    for pod in [&pod(), &pod(), &refused, &host] {
        ask("/inject", review("pods", "CREATE", pod, &Value::Null)).await.unwrap();
    }
    for address in ["10.0.0.1", "unix://x"] {
        ask("/validate", review("workloadentries", "CREATE", &entry(address), &Value::Null)).await.unwrap();
    }
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        "sidecar_injection_requests_total 4",
        "sidecar_injection_success_total 2",
        "sidecar_injection_failure_total 1",
        "sidecar_injection_skip_total 1",
        "galley_validation_passed_total{group=\"\",resource=\"workloadentries\"} 1",
        "galley_validation_failed_total{group=\"\",resource=\"workloadentries\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}
