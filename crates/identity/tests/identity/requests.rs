//! The certificate service over real TLS connections.

use crate::rig::{Cluster, Leaf, TestClock, authority, cart, domain, leaf, request};
use ca::Authority;
use hyper_util::rt::TokioIo;
use identity::{
    CertificateAuthenticator, CertificateService, Gate, GateConfig, Identity, Nobody, Purpose, ServerTls,
    SigningPool, Trust, TrustDomains,
};
use proto::google::protobuf::value::Kind;
use proto::google::protobuf::{Struct, Value};
use proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serve::{Config, Limits, Transport};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

const NAME: &str = "istiod.istio-system.svc";

struct Server {
    cluster: Cluster,
    authority: Authority,
    authorities: watch::Sender<Option<Authority>>,
    tls: ServerTls,
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn trust(authority: &Authority) -> Trust {
    Trust::new(authority.bundle().iter().map(|root| root.der().clone()), Vec::new()).unwrap()
}

fn our_identity(authority: &Authority) -> Identity {
    let name = ServerName::try_from(NAME).unwrap();
    Identity::issue(authority, &[name], None, std::time::SystemTime::now()).unwrap()
}

async fn start(pool: SigningPool) -> Server {
    let cluster = Cluster::new(TestClock::of_the_system());
    let authority = authority(&domain(), cluster.clock.now());
    let (authorities, current) = watch::channel(Some(authority.clone()));
    let tls = ServerTls::new(&our_identity(&authority), trust(&authority)).unwrap();
    let domains = TrustDomains { own: domain(), aliases: Vec::new() };
    let by_certificate = |purpose| {
        let clock = cluster.clock.clock();
        Arc::new(CertificateAuthenticator::new(tls.trust.clone(), domains.clone(), purpose, clock))
    };
    let config = GateConfig {
        proved: vec![by_certificate(Purpose::Identity), cluster.tokens.clone()],
        fresh: vec![cluster.tokens.clone(), by_certificate(Purpose::Renewal(cluster.index.clone()))],
    };
    let service = CertificateService::new(
        current,
        Arc::new(Nobody),
        pool,
        cluster.clock.clock(),
        cluster.metrics.clone(),
    );
    let gate = Gate::new(Routes::new(service.into_server()), config, cluster.metrics.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let transport = Transport::Tls(tls.config.clone());
    let task = tokio::spawn(async move {
        let metrics = serve::Metrics::default();
        let config = Config::standard("tls", Limits::standard(100));
        serve::serve(listener, transport, gate, config, &metrics, std::future::pending()).await;
    });
    Server { cluster, authority, authorities, tls, address, task }
}

async fn standard() -> Server {
    start(SigningPool::for_this_machine()).await
}

impl Server {
    fn client_config(&self, leaf: Option<Leaf>) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        for root in self.authority.bundle().iter() {
            roots.add(root.der().clone()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match leaf {
            Some(leaf) => builder.with_client_auth_cert(leaf.chain, leaf.key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    /// Connects with TLS, and hands on the connection.
    async fn connect(
        &self,
        config: Arc<rustls::ClientConfig>,
    ) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        TlsConnector::from(config).connect(ServerName::try_from(NAME).unwrap(), stream).await
    }

    async fn channel(&self, leaf: Option<Leaf>) -> Channel {
        let (config, address) = (Arc::new(self.client_config(leaf)), self.address);
        let connector = tower::service_fn(move |_: http::Uri| {
            let config = config.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                let name = ServerName::try_from(NAME).unwrap();
                let stream = TlsConnector::from(config).connect(name, stream).await?;
                io::Result::Ok(TokioIo::new(stream))
            }
        });
        Endpoint::from_static("http://istiod").connect_with_connector(connector).await.unwrap()
    }

    async fn ask(
        &self,
        leaf: Option<Leaf>,
        token: Option<&str>,
        request: IstioCertificateRequest,
    ) -> Result<IstioCertificateResponse, Status> {
        let mut client = IstioCertificateServiceClient::new(self.channel(leaf).await);
        let mut request = tonic::Request::new(request);
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        client.create_certificate(request).await.map(tonic::Response::into_inner)
    }

    async fn ask_well(&self, request: IstioCertificateRequest) -> Result<IstioCertificateResponse, Status> {
        self.ask(None, Some(&self.cluster.token(|_| ())), request).await
    }
}

fn with_metadata(name: &str, value: Kind) -> IstioCertificateRequest {
    let fields = [(name.to_owned(), Value { kind: Some(value) })].into_iter().collect();
    IstioCertificateRequest { csr: request(), validity_duration: 0, metadata: Some(Struct { fields }) }
}

fn plain_request() -> IstioCertificateRequest {
    IstioCertificateRequest { csr: request(), validity_duration: 3600, metadata: None }
}

#[tokio::test]
async fn a_token_buys_a_certificate_of_its_account() {
    let server = standard().await;
    let response = server.ask_well(plain_request()).await.unwrap();
    // The leaf, and the root as the last element.
    assert_eq!(response.cert_chain.len(), 2);
    assert_eq!(response.cert_chain[1], server.authority.bundle().to_pem());
    let leaf = CertificateDer::from_pem_slice(response.cert_chain[0].as_bytes()).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    let names = parsed.subject_alternative_name().unwrap().unwrap();
    let names: Vec<String> = names.value.general_names.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["URI(spiffe://cluster.local/ns/shop/sa/cart)"]);
    let life = parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp();
    assert_eq!(life, 3600 + 120);
    assert_eq!(server.cluster.metrics.issued.get(), 1);
    assert_eq!(server.cluster.reviewer.reviews(), 0);
}

#[tokio::test]
async fn errors_have_istios_codes() {
    let server = standard().await;
    for (csr, validity_duration, code, part) in [
        (String::new(), 0, Code::InvalidArgument, "not PEM"),
        ("-----BEGIN X-----".to_owned(), 0, Code::InvalidArgument, "not PEM"),
        (server.authority.bundle().to_pem(), 0, Code::InvalidArgument, "CERTIFICATE REQUEST"),
        (request(), 365 * 86_400, Code::InvalidArgument, "at most"),
        ("A".repeat(200_000), 0, Code::OutOfRange, "too large"),
    ] {
        let asked = IstioCertificateRequest { csr, validity_duration, metadata: None };
        let status = server.ask_well(asked).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(part), "{status:?}");
    }
    let never = IstioCertificateRequest { csr: request(), validity_duration: -1, metadata: None };
    assert!(server.ask_well(never).await.is_ok(), "less than nothing is the default, as in Istio");
    server.authorities.send_replace(None);
    assert_eq!(server.ask_well(plain_request()).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn what_is_asked_for_in_metadata_is_granted_or_refused() {
    let server = standard().await;
    let text = |text: &str| Kind::StringValue(text.to_owned());
    for (name, value, code) in [
        ("CertSigner", text("acme.example/ca"), Some(Code::InvalidArgument)),
        ("CertSigner", Kind::NumberValue(1.0), Some(Code::InvalidArgument)),
        ("CertSigner", text(""), None),
        (
            "ImpersonatedIdentity",
            text("spiffe://cluster.local/ns/bank/sa/admin"),
            Some(Code::Unauthenticated),
        ),
        ("ImpersonatedIdentity", text("spiffe://cluster.local/ns/shop/sa/cart"), Some(Code::Unauthenticated)),
        ("ImpersonatedIdentity", text("nonsense"), Some(Code::Unauthenticated)),
        ("ClusterID", text("Kubernetes"), None),
        ("WorkloadName", text("cart"), None),
    ] {
        let result = server.ask_well(with_metadata(name, value.clone())).await;
        assert_eq!(result.map_err(|status| status.code()).err(), code, "{name} {value:?}");
    }
}

#[tokio::test]
async fn without_proof_there_is_no_certificate() {
    let server = standard().await;
    let now = server.cluster.clock.now();
    let own = || leaf(&server.authority, &cart(), Duration::from_secs(600), now);
    let expired = server.cluster.token(|c| c["exp"] = serde_json::json!(1));
    for (certificate, token) in
        [(None, None), (None, Some("junk")), (None, Some(expired.as_str())), (Some(own()), None)]
    {
        let status = server.ask(certificate, token, plain_request()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert_eq!(status.message(), "request authenticate failure");
    }
    // Of a machine, which has no other proof.
    server.cluster.index.machines.lock().insert(cart().as_str().to_owned());
    assert!(server.ask(Some(own()), None, plain_request()).await.is_ok());
    assert_eq!(server.cluster.metrics.csr_authentication_failures.get(), 4);
}

#[tokio::test]
async fn certificates_of_strangers_do_not_even_connect() {
    let server = standard().await;
    let now = server.cluster.clock.now();
    let stranger = authority(&domain(), now);
    let foreign = leaf(&stranger, &cart(), Duration::from_secs(600), now);
    let mut client = server.client_config(Some(foreign));
    client.alpn_protocols.clear();
    // In TLS 1.3 the client learns of it when it reads.
    let refused = async {
        let mut stream = server.connect(Arc::new(client)).await?;
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut [0; 1]).await
    };
    let error = refused.await.unwrap_err();
    assert!(error.to_string().contains("alert"), "{error}");
}

#[tokio::test]
async fn sessions_are_not_resumed_and_old_versions_not_spoken() {
    let server = standard().await;
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let now = server.cluster.clock.now();
        let leaf = leaf(&server.authority, &cart(), Duration::from_secs(600), now);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(server.authority.bundle().iter().next().unwrap().der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(leaf.chain, leaf.key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let config = Arc::new(config);
        for _ in 0..3 {
            let mut stream = server.connect(config.clone()).await.unwrap();
            // The server's settings: whatever tickets there are have come before them.
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut [0; 9]).await.unwrap();
            let (_, session) = stream.get_ref();
            assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full), "{version:?}");
            assert_eq!(session.protocol_version(), Some(version.version));
        }
    }
}

#[tokio::test]
async fn other_protocols_than_http2_are_refused() {
    let server = standard().await;
    let mut config = server.client_config(None);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    assert!(server.connect(Arc::new(config)).await.is_err());
}

#[tokio::test]
async fn our_own_certificate_and_the_roots_change_while_serving() {
    let mut server = standard().await;
    let now = server.cluster.clock.now();
    let old = leaf(&server.authority, &cart(), Duration::from_secs(600), now);
    server.cluster.index.machines.lock().insert(cart().as_str().to_owned());
    let mut held = IstioCertificateServiceClient::new(server.channel(Some(old)).await);
    assert!(held.create_certificate(plain_request()).await.is_ok());

    let next = authority(&domain(), now);
    server.tls.replace(&our_identity(&next), trust(&next)).unwrap();
    server.authorities.send_replace(Some(next.clone()));
    server.authority = next;
    // New connections see the new certificate and get one of the new authority.
    let response = server.ask_well(plain_request()).await.unwrap();
    assert_eq!(response.cert_chain[1], server.authority.bundle().to_pem());
    // The old connection is there, but what it proved is worth nothing any more.
    assert_eq!(held.create_certificate(plain_request()).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_replaced_certificate_is_renewed_at_half_its_life() {
    let clock = TestClock::new();
    let authority = authority(&domain(), clock.now());
    let name = ServerName::try_from(NAME).unwrap();
    let life = Duration::from_secs(7200);
    let identity = Identity::issue(&authority, &[name], Some(life), clock.now()).unwrap();
    let renew = identity.renew_at().duration_since(clock.now()).unwrap();
    assert!(renew > life / 3 && renew < life / 2 + Duration::from_secs(1), "{renew:?}");
}

/// Roots that are swapped while a handshake is under way do no harm: each connection has one or the other.
#[tokio::test]
async fn trust_can_be_swapped_under_load() {
    let server = standard().await;
    for _ in 0..20 {
        let (answer, ()) = tokio::join!(server.ask_well(plain_request()), async {
            server.tls.replace(&our_identity(&server.authority), trust(&server.authority)).unwrap();
        });
        assert!(answer.is_ok(), "{answer:?}");
    }
}
