//! A control plane of few words: it certifies whoever has the right token, serves one cluster and one listener, and
//! the roots to agents. What it sees is kept for the test.

use arc_swap::ArcSwap;
use ca::{
    Authority, Csr, IssuerMaterial, Policy, PublicKey, Serial, SigningKeyPair, TrustBundle, UnixTime, root,
};
use model::{SpiffeId, TrustDomain};
use proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use proto::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};
use serve::{Limits, Peer, Transport};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// What the authority takes for a token.
pub(crate) const TOKEN: &str = "the-right-token";
/// The name of the control plane.
pub(crate) const NAME: &str = "istiod.test";
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// What the control plane has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Who asked for certificates, and how: `token` or a SPIFFE id.
    pub(crate) requests: Vec<String>,
    /// The SPIFFE ids of clients of streams, with the name of their agent.
    pub(crate) streams: Vec<(String, String)>,
    /// Answers to roots: what was wrong with them, or nothing.
    pub(crate) answers: Vec<Option<String>>,
    /// Whether certificates are refused.
    pub(crate) refuse: bool,
}

/// The control plane.
pub(crate) struct ControlPlane {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Seen>>,
    pub(crate) roots: TrustBundle,
    bundle: watch::Sender<String>,
}

impl ControlPlane {
    /// Starts it. `listener` is what proxies listen on.
    pub(crate) async fn start(address: SocketAddr, listener: SocketAddr) -> Self {
        let authority = Arc::new(new_authority());
        let roots = authority.bundle().clone();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let bundle = watch::channel(roots.to_pem()).0;
        let service = Service {
            authority: authority.clone(),
            seen: seen.clone(),
            bundle: bundle.clone(),
            resources: Arc::new(resources(listener)),
        };
        let routes = tonic::service::Routes::new(AggregatedDiscoveryServiceServer::new(service.clone()))
            .add_service(IstioCertificateServiceServer::new(service))
            .prepare();
        let tls = Transport::Tls(Arc::new(ArcSwap::from_pointee(server_config(&authority))));
        let socket = tokio::net::TcpListener::bind(address).await.unwrap();
        let config = serve::Config::standard("test", Limits::standard(100));
        tokio::spawn(async move {
            serve::serve(socket, tls, routes, config, &serve::Metrics::default(), std::future::pending())
                .await;
        });
        Self { address, seen, roots, bundle }
    }

    /// Returns one at `address` that nobody runs: what is there is somebody else.
    pub(crate) fn at(address: SocketAddr) -> Self {
        let roots = new_authority().bundle().clone();
        Self { address, seen: Arc::default(), bundle: watch::channel(roots.to_pem()).0, roots }
    }

    /// Sends other roots to agents.
    pub(crate) fn send_roots(&self, pem: String) {
        self.bundle.send_replace(pem);
    }
}

/// A new root with a key of its own.
pub(crate) fn new_authority() -> Authority {
    let now = SystemTime::now().into();
    let trust_domain = TrustDomain::parse("cluster.local").unwrap();
    let key = SigningKeyPair::new(rcgen::KeyPair::generate().unwrap()).unwrap();
    let root = root::self_signed(&key, &trust_domain, now, serial()).unwrap();
    let material = IssuerMaterial::self_signed(key, root.clone(), now).unwrap();
    let roots: TrustBundle = [root].into_iter().collect();
    Authority::new(material, roots, Policy::new(trust_domain), now).unwrap()
}

fn serial() -> Serial {
    let mut bytes = [0; 20];
    fastrand::fill(&mut bytes);
    Serial::from_random(bytes)
}

fn server_config(authority: &Authority) -> rustls::ServerConfig {
    let key = rcgen::KeyPair::generate().unwrap();
    let public = PublicKey::from_spki(&rcgen::PublicKeyData::subject_public_key_info(&key)).unwrap();
    let name = ServerName::try_from(NAME).unwrap();
    let issued = authority.issue_server(&public, &[name], None, SystemTime::now().into(), serial()).unwrap();
    let provider = Arc::new(default_provider());
    let mut roots = RootCertStore::empty();
    for root in authority.bundle().iter() {
        roots.add(root.der().clone()).unwrap();
    }
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let clients = clients.allow_unauthenticated().build().unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap().with_client_cert_verifier(clients);
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let mut config = config.with_single_cert(issued.der_chain(), key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Returns the cluster and the listener, encoded: the listener answers only who has a certificate of the mesh.
fn resources(listener: SocketAddr) -> [(&'static str, Resource); 2] {
    let secret = |name: &str| {
        json!({ "name": name, "sds_config": { "resource_api_version": "V3", "api_config_source": {
            "api_type": "GRPC", "transport_api_version": "V3",
            "grpc_services": [{ "envoy_grpc": { "cluster_name": "sds-grpc" } }] } } })
    };
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "direct_response": { "status": 200 } }] }] },
        "http_filters": [{ "name": "router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } }],
    });
    let tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": true,
        "common_tls_context": {
            "tls_certificate_sds_secret_configs": [secret("default")],
            "validation_context_sds_secret_config": secret("ROOTCA"),
        },
    });
    let listener = json!({
        "name": "in", "traffic_direction": "INBOUND",
        "address": { "socket_address": { "address": listener.ip().to_string(), "port_value": listener.port() } },
        "filter_chains": [{
            "transport_socket": { "name": "tls", "typed_config": tls },
            "filters": [{ "name": "http", "typed_config": manager }],
        }],
    });
    let cluster = json!({ "name": "app", "type": "STATIC" });
    let resource = |type_url: &'static str, name: &str, json: &Value| {
        let value = proto::json::from_json(type_url, json).unwrap();
        let any = proto::google::protobuf::Any { type_url: type_url.to_owned(), value };
        let resource = Resource {
            name: name.to_owned(),
            version: "1".to_owned(),
            resource: Some(any),
            ..Resource::default()
        };
        (type_url, resource)
    };
    [
        resource("type.googleapis.com/envoy.config.cluster.v3.Cluster", "app", &cluster),
        resource("type.googleapis.com/envoy.config.listener.v3.Listener", "in", &listener),
    ]
}

#[derive(Clone)]
struct Service {
    authority: Arc<Authority>,
    seen: Arc<Mutex<Seen>>,
    bundle: watch::Sender<String>,
    resources: Arc<[(&'static str, Resource); 2]>,
}

/// Returns the SPIFFE id of a client with a certificate.
fn caller<T>(request: &Request<T>) -> Option<String> {
    let peer = request.extensions().get::<Peer>().unwrap();
    peer.settle(None);
    let certificate = peer.certificates().first()?;
    // The only URI of an SVID: its length stands before it.
    let at = certificate.windows(9).position(|window| window == b"spiffe://")?;
    let length = usize::from(certificate[at - 1]);
    Some(String::from_utf8_lossy(&certificate[at..at + length]).into_owned())
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let token = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let who = match (token, caller(&request)) {
            (Some(token), _) if token == format!("Bearer {TOKEN}") => "token".to_owned(),
            (Some(_), _) => return Err(Status::unauthenticated("request authenticate failure")),
            (None, Some(id)) => id,
            (None, None) => return Err(Status::unauthenticated("request authenticate failure")),
        };
        let refuse = {
            let mut seen = self.seen.lock().unwrap();
            seen.requests.push(who);
            seen.refuse
        };
        if refuse {
            return Err(Status::internal("not now"));
        }
        let request = request.into_inner();
        let csr = Csr::from_pem(&request.csr).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let trust_domain = TrustDomain::parse("cluster.local").unwrap();
        let id = SpiffeId::new(&trust_domain, &model::Namespace::new("app"), "web").unwrap();
        let ttl = Duration::from_secs(request.validity_duration.try_into().unwrap());
        let now = UnixTime::from(SystemTime::now());
        let issued = self.authority.issue(&csr, &id, Some(ttl), now, serial()).unwrap();
        Ok(Response::new(IstioCertificateResponse { cert_chain: issued.response() }))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let Some(id) = caller(&request) else { return Err(Status::unauthenticated("no certificate")) };
        let (responses, stream) = mpsc::channel(8);
        tokio::spawn(self.clone().follow(id, request.into_inner(), responses));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Service {
    async fn follow(
        self,
        id: String,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) {
        let mut bundle = self.bundle.subscribe();
        let mut wants_roots = false;
        loop {
            let response = tokio::select! {
                request = requests.message() => {
                    let Ok(Some(request)) = request else { return };
                    if let Some(node) = &request.node {
                        let stream = (id.clone(), node.user_agent_name.clone());
                        self.seen.lock().unwrap().streams.push(stream);
                    }
                    if !request.response_nonce.is_empty() {
                        if request.type_url == SECRET {
                            let answer = request.error_detail.map(|status| status.message);
                            self.seen.lock().unwrap().answers.push(answer);
                        }
                        continue;
                    }
                    if request.type_url == SECRET {
                        wants_roots = request.resource_names_subscribe == ["ROOTCA"];
                        roots(&bundle.borrow_and_update())
                    } else {
                        let found = self.resources.iter().find(|(kind, _)| *kind == request.type_url);
                        let Some((_, resource)) = found else { continue };
                        response(&request.type_url, resource.clone())
                    }
                }
                _ = bundle.changed(), if wants_roots => roots(&bundle.borrow_and_update()),
            };
            if responses.send(Ok(response)).await.is_err() {
                return;
            }
        }
    }
}

fn response(type_url: &str, resource: Resource) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: format!("{:x}", fastrand::u64(..)),
        resources: vec![resource],
        ..DeltaDiscoveryResponse::default()
    }
}

fn roots(pem: &str) -> DeltaDiscoveryResponse {
    let json = json!({ "name": "ROOTCA", "validation_context": { "trusted_ca": { "inline_string": pem } } });
    let any = proto::google::protobuf::Any {
        type_url: SECRET.to_owned(),
        value: proto::json::from_json(SECRET, &json).unwrap(),
    };
    let version = pem.len().to_string();
    response(
        SECRET,
        Resource { name: "ROOTCA".to_owned(), version, resource: Some(any), ..Resource::default() },
    )
}
