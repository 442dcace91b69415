//! weftd's secure port, without a cluster: a token buys a certificate, and the certificate opens xDS.

mod isolation;
mod rig;

use anyhow::{Context as _, Result, ensure};
use prost::Message as _;
use proto::envoy::config::core::v3::Node;
use proto::envoy::config::core::v3::data_source::Specifier;
use proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use proto::google::protobuf::{Struct, Value};
use rig::{ISSUER, Identity, Weftd};
use serde_json::json;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http as http_uri;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Asks for clusters as `node`, and returns the first answer.
async fn clusters(channel: Channel, node: &str) -> Result<DeltaDiscoveryResponse, Status> {
    let request = DeltaDiscoveryRequest {
        node: Some(Node { id: node.to_owned(), ..Node::default() }),
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    let requests = tokio_stream::once(request).chain(tokio_stream::pending());
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let mut responses = client.delta_aggregated_resources(requests).await?.into_inner();
    responses.message().await?.ok_or_else(|| Status::aborted("no answer"))
}

const CART: &str = "sidecar~10.0.0.9~cart-1.shop~shop.svc.cluster.local";
const TILL_IN_BANK: &str = "sidecar~10.0.0.9~till-1.bank~bank.svc.cluster.local";

#[tokio::test]
async fn a_token_buys_a_certificate_and_the_certificate_opens_xds() -> Result<()> {
    let weftd = Weftd::start()?;
    let identity = weftd.identity().await?;
    let served = clusters(weftd.connect(Some(&identity)).await?, CART).await?;
    let names: Vec<&str> = served.resources.iter().map(|resource| resource.name.as_str()).collect();
    ensure!(names.contains(&"outbound|80||api.example.com"), "{names:?}");

    let status = clusters(weftd.connect(Some(&identity)).await?, TILL_IN_BANK).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(status.message().contains("claims namespace \"bank\", has proved \"shop\""), "{status:?}");

    let status = clusters(weftd.connect(None).await?, CART).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    Ok(())
}

#[tokio::test]
async fn told_to_stop_it_sends_clients_elsewhere_in_order() -> Result<()> {
    let mut weftd = Weftd::start()?;
    let identity = weftd.identity().await?;
    let request = DeltaDiscoveryRequest {
        node: Some(Node { id: CART.to_owned(), ..Node::default() }),
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    let requests = tokio_stream::once(request).chain(tokio_stream::pending());
    let mut client = AggregatedDiscoveryServiceClient::new(weftd.connect(Some(&identity)).await?);
    let mut responses = client.delta_aggregated_resources(requests).await?.into_inner();
    responses.message().await?.context("an answer")?;

    let process = rustix::process::Pid::from_child(&weftd.process);
    rustix::process::kill_process(process, rustix::process::Signal::TERM)?;
    let status = loop {
        match responses.message().await {
            Ok(Some(_)) => {}
            Ok(None) => break Status::ok("ended"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(status.message(), "the server is shutting down");
    assert!(weftd.process.wait()?.success());
    Ok(())
}

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// Asks the secret service for `names` with a token, if there is one, and hands on the stream of answers.
async fn secrets(
    channel: Channel,
    token: Option<&str>,
    node: &str,
    names: &[&str],
) -> Result<tonic::Streaming<DiscoveryResponse>, Status> {
    let request = DiscoveryRequest {
        node: Some(Node { id: node.to_owned(), ..Node::default() }),
        type_url: SECRET.to_owned(),
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..DiscoveryRequest::default()
    };
    let mut request = tonic::Request::new(tokio_stream::once(request).chain(tokio_stream::pending()));
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().map_err(|_| Status::internal("no header"))?;
        request.metadata_mut().insert("authorization", value);
    }
    Ok(SecretDiscoveryServiceClient::new(channel).stream_secrets(request).await?.into_inner())
}

/// Returns the next secrets.
async fn next(responses: &mut tonic::Streaming<DiscoveryResponse>) -> Result<Vec<Secret>> {
    let response = tokio::time::timeout(PATIENCE, responses.message()).await??.context("the stream ended")?;
    response.resources.iter().map(|any| Ok(Secret::decode(any.value.clone())?)).collect()
}

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
/// Long enough for an answer that must not come.
const SILENCE: std::time::Duration = std::time::Duration::from_millis(500);

fn text(source: Option<&proto::envoy::config::core::v3::DataSource>) -> Result<String> {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::InlineBytes(bytes)) => Ok(String::from_utf8(bytes.to_vec())?),
        other => anyhow::bail!("not inline: {other:?}"),
    }
}

#[tokio::test]
async fn a_client_without_an_agent_gets_a_key_of_its_own_and_the_roots() -> Result<()> {
    let weftd = Weftd::start()?;
    let token = weftd.token()?;
    let channel = weftd.connect(None).await?;
    let mut answers = secrets(channel, Some(&token), CART, &["default", "ROOTCA"]).await?;
    let mut found = Vec::new();
    while found.len() < 2 {
        found.extend(next(&mut answers).await?);
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    let [roots, key] = &found[..] else { anyhow::bail!("{} secrets", found.len()) };
    let Some(secret::Type::ValidationContext(context)) = &roots.r#type else { anyhow::bail!("no roots") };
    let ours = std::fs::read_to_string(weftd.ca().join("root-cert.pem"))?;
    assert_eq!(text(context.trusted_ca.as_ref())?, ours);
    let Some(secret::Type::TlsCertificate(certificate)) = &key.r#type else { anyhow::bail!("no key") };
    let chain = text(certificate.certificate_chain.as_ref())?;
    let identity = Identity { chain: vec![chain], key: text(certificate.private_key.as_ref())? };

    // It is one that opens doors, and for nobody but its owner.
    clusters(weftd.connect(Some(&identity)).await?, CART).await?;
    let status = clusters(weftd.connect(Some(&identity)).await?, TILL_IN_BANK).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");

    // A stolen certificate does not become another one: it gets the roots, and no key.
    let channel = weftd.connect(Some(&identity)).await?;
    let mut answers = secrets(channel, None, CART, &["default", "ROOTCA"]).await?;
    let names: Vec<String> = next(&mut answers).await?.into_iter().map(|secret| secret.name).collect();
    assert_eq!(names, ["ROOTCA"]);
    let more = tokio::time::timeout(SILENCE, answers.message()).await;
    assert!(more.is_err(), "{more:?}");
    Ok(())
}

#[tokio::test]
async fn nobody_gets_secrets_without_proof_or_as_somebody_else() -> Result<()> {
    let weftd = Weftd::start()?;
    let status = secrets(weftd.connect(None).await?, None, CART, &["ROOTCA"]).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    let token = weftd.token()?;
    let channel = weftd.connect(None).await?;
    let mut answers = secrets(channel, Some(&token), TILL_IN_BANK, &["default"]).await?;
    let status = answers.message().await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    // Whatever else it asks for, it is not there.
    let others =
        ["spiffe://cluster.local/ns/bank/sa/till", "kubernetes://bank/tls", "kubernetes://tls", "default/"];
    let mut answers = secrets(weftd.connect(None).await?, Some(&token), CART, &others).await?;
    let more = tokio::time::timeout(SILENCE, answers.message()).await;
    assert!(more.is_err(), "{more:?}");
    Ok(())
}

#[tokio::test]
async fn streams_end_when_the_proof_that_opened_them_does() -> Result<()> {
    let weftd = Weftd::start()?;
    let token = weftd.token_for(2)?;
    let started = std::time::Instant::now();
    let mut answers = secrets(weftd.connect(None).await?, Some(&token), CART, &["ROOTCA"]).await?;
    next(&mut answers).await?;
    let status = tokio::time::timeout(PATIENCE, answers.message()).await?.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("connect again"), "{status:?}");
    assert!(started.elapsed().as_secs() >= 1, "it was good until then");
    // Clocks differ, so it opens another stream for a few seconds: one that ends before anything was sent.
    let mut answers = secrets(weftd.connect(None).await?, Some(&token), CART, &["default", "ROOTCA"]).await?;
    let status = answers.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    Ok(())
}

/// Calls a method with an empty message, and returns its status.
async fn call(channel: &mut Channel, path: &str, token: Option<&str>) -> Result<Code> {
    use tower::{Service as _, ServiceExt as _};
    let mut request = http_uri::Request::post(format!("http://istiod{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let body = tonic::body::Body::new(tonic::body::Body::empty());
    let response = channel.ready().await?.call(request.body(body)?).await?;
    Ok(match Status::from_header_map(response.headers()) {
        Some(status) => status.code(),
        // It was let in: what it says comes in trailers.
        None => Code::Ok,
    })
}

/// Every method of every service that there are types for, which is more than weftd serves; and some that are none.
fn every_method() -> Vec<String> {
    let mut methods: Vec<String> = identity::METHODS.iter().map(|(method, _)| (*method).to_owned()).collect();
    for service in proto::pool().services() {
        let of = service.methods().map(|method| format!("/{}/{}", service.full_name(), method.name()));
        methods.extend(of.collect::<Vec<_>>());
    }
    methods.extend(["/", "/debug/config_dump", "/metrics", "/ready", "/x.Y/Z"].map(str::to_owned));
    methods
}

#[tokio::test]
async fn no_method_of_the_port_is_for_strangers() -> Result<()> {
    let weftd = Weftd::start()?;
    let other = Weftd::start()?;
    let (good, foreign) = (weftd.token()?, other.token()?);
    let expired = weftd.token_at(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() - 3600)?;
    let mut channel = weftd.connect(None).await?;
    let mut count = 0;
    for method in every_method() {
        let access = identity::access_of(&method);
        for token in [None, Some(foreign.as_str()), Some(expired.as_str()), Some("junk")] {
            let expected = match access {
                None => Code::PermissionDenied,
                Some(identity::Access::Anyone) => continue,
                Some(_) => Code::Unauthenticated,
            };
            assert_eq!(call(&mut channel, &method, token).await?, expected, "{method}");
            count += 1;
        }
        if access.is_none() {
            assert_eq!(call(&mut channel, &method, Some(&good)).await?, Code::PermissionDenied, "{method}");
        }
    }
    assert!(count > 100, "{count} calls");
    // A certificate of another authority does not even get as far.
    let foreigner = other.identity().await?;
    let refused = async {
        let mut channel = weftd.connect(Some(&foreigner)).await?;
        call(&mut channel, identity::METHODS[0].0, None).await
    };
    assert!(refused.await.is_err());
    Ok(())
}

#[test]
fn keys_of_tokens_that_are_none_are_refused_at_the_start() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let keys = scratch.path().join("keys.json");
    let no_key_for_us = json!({ "keys": [{ "kty": "oct", "k": "c2VjcmV0" }] }).to_string();
    for (content, reason) in [
        (None, "cannot read"),
        (Some(String::new()), "no JSON Web Key Set"),
        (Some("{\"keys\": ".to_owned()), "no JSON Web Key Set"),
        (Some("-----BEGIN PUBLIC KEY-----".to_owned()), "no JSON Web Key Set"),
        (Some(no_key_for_us), "no key in it can verify tokens"),
        (Some(" ".repeat(3 << 20)), "at most 1048576 are read"),
    ] {
        match content {
            Some(content) => std::fs::write(&keys, content)?,
            None => assert!(!keys.exists()),
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_weftd"));
        command.arg("--config").arg(scratch.path()).arg("--ca-dir").arg(scratch.path().join("ca"));
        command.arg("--token-keys").arg(&keys).args(["--token-issuer", ISSUER]);
        for flag in ["--grpc-addr", "--http-addr", "--monitoring-addr", "--secure-grpc-addr", "--https-addr"]
        {
            command.args([flag, "127.0.0.1:0"]);
        }
        let output = command.output()?;
        let said = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(1), "{said}");
        let last = said.lines().last().unwrap_or_default();
        assert!(last.starts_with("weftd: --token-keys: ") && last.contains(reason), "{reason}: {said}");
    }
    Ok(())
}

/// A Secret in one namespace, and a Gateway in another that refers to it.
fn secret_of_bank() -> Result<String> {
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(vec!["a.test".to_owned()])?.self_signed(&key)?.pem();
    let key = key.serialize_pem();
    Ok(format!(
        "
apiVersion: v1
kind: Secret
metadata: {{ name: tls, namespace: bank }}
stringData: {{ cert: {certificate:?}, key: {key:?}, cacert: {certificate:?} }}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{ name: all, namespace: shop }}
spec:
  selector: {{ edge: yes }}
  servers:
  - hosts: [a.test]
    port: {{ number: 443, name: https, protocol: HTTPS }}
    tls: {{ mode: MUTUAL, credentialName: \"kubernetes-gateway://bank/tls\" }}
"
    ))
}

/// Names of what is not the callers, and types by which Istio's control plane tells of the whole mesh.
const FOREIGN: [&str; 4] = [
    "kubernetes://bank/tls",
    "kubernetes-gateway://bank/tls",
    "kubernetes-gateway://bank/tls-cacert",
    "spiffe://cluster.local/ns/bank/sa/till",
];
const FLEET: [&str; 5] = [
    "istio.io/debug/config_dump",
    "istio.io/debug/syncz",
    "istio.io/connections",
    "networking.istio.io/v1/VirtualService",
    "type.googleapis.com/istio.workload.Address",
];

fn node_with(id: &str, metadata: &[(&str, &str)]) -> Node {
    let metadata = metadata.iter().map(|(name, value)| (*name, Value::from(*value)));
    let labels = Value::from(Struct::from_iter([("edge", Value::from("yes"))]));
    let metadata = metadata.chain([("LABELS", labels)]).collect();
    Node { id: id.to_owned(), metadata: Some(metadata), ..Node::default() }
}

/// Sends requests on one stream of ADS, and returns all that comes within a while, or how the stream ended.
async fn converse(
    weftd: &Weftd,
    token: &str,
    requests: Vec<DeltaDiscoveryRequest>,
) -> Result<Vec<DeltaDiscoveryResponse>, Status> {
    let channel = weftd.connect(None).await.map_err(|error| Status::internal(error.to_string()))?;
    let (sender, outgoing) = tokio::sync::mpsc::channel(64);
    for request in requests {
        sender.send(request).await.map_err(|_| Status::internal("nobody takes requests"))?;
    }
    let mut request = tonic::Request::new(ReceiverStream::new(outgoing));
    let value = format!("Bearer {token}").parse().map_err(|_| Status::internal("no header"))?;
    request.metadata_mut().insert("authorization", value);
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let mut answers = client.delta_aggregated_resources(request).await?.into_inner();
    let mut came = Vec::new();
    while let Ok(answer) = tokio::time::timeout(SILENCE, answers.message()).await {
        let answer = answer?.ok_or_else(|| Status::aborted("the stream ended"))?;
        let acknowledged = DeltaDiscoveryRequest {
            type_url: answer.type_url.clone(),
            response_nonce: answer.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        sender.send(acknowledged).await.map_err(|_| Status::internal("nobody takes requests"))?;
        came.push(answer);
    }
    Ok(came)
}

fn subscribe(node: Node, type_url: &str, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(node),
        type_url: type_url.to_owned(),
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

#[tokio::test]
async fn whoever_lies_about_itself_is_refused() -> Result<()> {
    let weftd = Weftd::start()?;
    let token = weftd.token()?;
    for (node, code) in [
        (node_with(TILL_IN_BANK, &[]), Code::PermissionDenied),
        (node_with(CART, &[("NAMESPACE", "bank")]), Code::PermissionDenied),
        (node_with(CART, &[("SERVICE_ACCOUNT", "till")]), Code::PermissionDenied),
        (node_with(CART, &[("SERVICE_ACCOUNT", "")]), Code::PermissionDenied),
        (node_with("ztunnel~10.0.0.9~cart-1.shop~shop.svc.cluster.local", &[]), Code::InvalidArgument),
        (node_with("waypoint~10.0.0.9~cart-1.shop~shop.svc.cluster.local", &[]), Code::InvalidArgument),
        (node_with("", &[]), Code::InvalidArgument),
    ] {
        let said = format!("{node:?}");
        let result = converse(&weftd, &token, vec![subscribe(node, SECRET, &["ROOTCA"])]).await;
        assert_eq!(result.unwrap_err().code(), code, "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_not_the_callers_does_not_come_by_any_way() -> Result<()> {
    let weftd = Weftd::start_with(&[("secrets.yaml".to_owned(), secret_of_bank()?)])?;
    let token = weftd.token()?;
    let router = || node_with("router~10.0.0.9~cart-1.shop~shop.svc.cluster.local", &[("GENERATOR", "api")]);
    // As the owner gets it: there is something to be had.
    let of_bank = {
        let expires = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + 600;
        weftd.token_of("bank", "till", expires)?
    };
    let owner = node_with("router~10.0.0.9~till-1.bank~bank.svc.cluster.local", &[]);
    let own =
        subscribe(owner, SECRET, &["kubernetes-gateway://bank/tls-cacert", "kubernetes-gateway://bank/tls"]);
    let came = converse(&weftd, &of_bank, vec![own]).await?;
    assert!(came.iter().any(|answer| !answer.resources.is_empty()), "{came:?}");

    let names = |answers: Vec<DeltaDiscoveryResponse>| -> Vec<String> {
        let all = answers.into_iter().flat_map(|answer| answer.resources);
        all.map(|resource| resource.name).collect()
    };
    // Over ADS, and by types that tell of the fleet.
    let asked = converse(&weftd, &token, vec![subscribe(router(), SECRET, &FOREIGN)]).await?;
    assert_eq!(names(asked), Vec::<String>::new());
    for fleet in FLEET {
        let asked = vec![subscribe(router(), SECRET, &[]), subscribe(router(), fleet, &["*"])];
        if let Ok(answers) = converse(&weftd, &token, asked).await {
            assert_eq!(names(answers), Vec::<String>::new(), "{fleet}");
        }
    }
    // As somebody else in the middle of a stream: who it is was settled at its beginning.
    let owner = node_with("router~10.0.0.9~till-1.bank~bank.svc.cluster.local", &[]);
    let asked = vec![subscribe(router(), SECRET, &["ROOTCA"]), subscribe(owner, SECRET, &FOREIGN)];
    if let Ok(answers) = converse(&weftd, &token, asked).await {
        assert!(names(answers).iter().all(|name| name == "ROOTCA"));
    }
    // And by the service of secrets alone, in both forms and as a single call.
    let mut answers = secrets(weftd.connect(None).await?, Some(&token), CART, &FOREIGN).await?;
    let more = tokio::time::timeout(SILENCE, answers.message()).await;
    assert!(more.is_err(), "{more:?}");
    let mut request = tonic::Request::new(DiscoveryRequest {
        node: Some(router()),
        type_url: SECRET.to_owned(),
        resource_names: FOREIGN.map(str::to_owned).to_vec(),
        ..DiscoveryRequest::default()
    });
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let mut client = SecretDiscoveryServiceClient::new(weftd.connect(None).await?);
    if let Ok(answer) = client.fetch_secrets(request).await {
        assert!(answer.into_inner().resources.is_empty());
    }
    Ok(())
}
