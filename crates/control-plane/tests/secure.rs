//! weftd's secure port, without a cluster: a token buys a certificate, and the certificate opens xDS.

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use proto::envoy::config::core::v3::Node;
use proto::envoy::config::core::v3::data_source::Specifier;
use proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use proto::istio::v1::auth::IstioCertificateRequest;
use proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use std::io::{self, BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt as _;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

const ISSUER: &str = "https://tokens.example";
const SERVICE: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: api, namespace: shop }
spec:
  hosts: [api.example.com]
  ports: [{ number: 80, name: http, protocol: HTTP }]
  resolution: STATIC
  endpoints: [{ address: 10.0.0.1 }]
";

/// A weftd that serves `SERVICE`, with an authority of its own making.
struct Weftd {
    process: Child,
    address: SocketAddr,
    scratch: tempfile::TempDir,
    key: EcdsaKeyPair,
}

impl Drop for Weftd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Weftd {
    fn start() -> Result<Self> {
        let scratch = tempfile::tempdir()?;
        let at = |name: &str| scratch.path().join(name);
        std::fs::create_dir(at("config"))?;
        std::fs::write(at("config").join("service.yaml"), SERVICE)?;
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        std::fs::write(at("keys.json"), jwks(&key).to_string())?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_weftd"));
        command.arg("--config").arg(at("config")).arg("--ca-dir").arg(at("ca"));
        command.arg("--token-keys").arg(at("keys.json")).args(["--token-issuer", ISSUER]);
        for flag in ["--grpc-addr", "--http-addr", "--monitoring-addr", "--secure-grpc-addr", "--https-addr"]
        {
            command.args([flag, "127.0.0.1:0"]);
        }
        command.args(["--log-format", "json", "--shutdown-duration", "1s"]);
        let mut process = command.stderr(Stdio::piped()).spawn()?;
        let log = process.stderr.take().context("its log")?;
        let mut lines = BufReader::new(log).lines();
        let address = loop {
            let line = lines.next().context("weftd ended")??;
            let line: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
            let fields = &line["fields"];
            if fields["message"] == "encrypted xDS and certificates are served" {
                break fields["address"].as_str().context("an address")?.parse()?;
            }
        };
        // Somebody has to read the rest, or weftd would wait.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { process, address, scratch, key })
    }

    fn ca(&self) -> std::path::PathBuf {
        self.scratch.path().join("ca")
    }

    /// A token of the service account `cart` in `shop`.
    fn token(&self) -> Result<String> {
        self.token_for(600)
    }

    /// As [`Weftd::token`], good for so many seconds.
    fn token_for(&self, seconds: u64) -> Result<String> {
        self.token_at(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + seconds)
    }

    /// As [`Weftd::token`], good until then.
    fn token_at(&self, expires: u64) -> Result<String> {
        let header = json!({ "alg": "ES256", "kid": "test" });
        let claims = json!({
            "iss": ISSUER, "aud": "istio-ca", "sub": "system:serviceaccount:shop:cart", "exp": expires,
        });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.key.sign(&SystemRandom::new(), message.as_bytes())?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    async fn connect(&self, identity: Option<&Identity>) -> Result<Channel> {
        let config = Arc::new(client_config(&self.ca(), identity)?);
        let address = self.address;
        let connector = tower::service_fn(move |_: http_uri::Uri| {
            let config = config.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                let name = ServerName::try_from("istiod.istio-system.svc").map_err(io::Error::other)?;
                let stream = TlsConnector::from(config).connect(name, stream).await?;
                io::Result::Ok(TokioIo::new(stream))
            }
        });
        Ok(Endpoint::from_static("http://istiod").connect_with_connector(connector).await?)
    }

    /// Buys a certificate with a token.
    async fn identity(&self) -> Result<Identity> {
        let key = rcgen::KeyPair::generate()?;
        let csr = rcgen::CertificateParams::default().serialize_request(&key)?.pem()?;
        let request = IstioCertificateRequest { csr, validity_duration: 600, metadata: None };
        let mut request = tonic::Request::new(request);
        request.metadata_mut().insert("authorization", format!("Bearer {}", self.token()?).parse()?);
        let mut client = IstioCertificateServiceClient::new(self.connect(None).await?);
        let response = client.create_certificate(request).await?.into_inner();
        Ok(Identity { chain: response.cert_chain, key: key.serialize_pem() })
    }
}

use tonic::codegen::http as http_uri;

/// A certificate as the service answers it, and its key.
struct Identity {
    chain: Vec<String>,
    key: String,
}

fn jwks(key: &EcdsaKeyPair) -> Value {
    let point = key.public_key().as_ref();
    let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
    json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "test", "x": x, "y": y }] })
}

fn client_config(ca: &Path, identity: Option<&Identity>) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca.join("root-cert.pem"))?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => {
            let leaf = CertificateDer::from_pem_slice(identity.chain[0].as_bytes())?;
            let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
            builder.with_client_auth_cert(vec![leaf], key)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

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
