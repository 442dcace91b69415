//! The benchmark of identity: what certificates cost, and what it takes to connect everybody by mutual TLS.
//!
//! ```text
//! callers ─ token, CSR ─▶ weftd :15012      one connection each, as many requests as fit
//! proxies ═ mutual TLS ══▶ weftd :15012     everything that a proxy asks for; or, as an agent does, the roots
//! ```

use crate::fleet::{Fleet, source_of};
use crate::mesh::Mesh;
use crate::stats::{Spread, short};
use crate::stream::{self, Stream};
use crate::usage::Meter;
use anyhow::{Context, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut, Bytes, BytesMut};
use e2e::config::Config;
use e2e::network::Network;
use e2e::weftd::Weftd;
use prost::Message;
use proto::envoy::config::core::v3::Node;
use proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use proto::google::protobuf::value::Kind;
use proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::task::JoinSet;

const ISSUER: &str = "https://tokens.example";
const METHOD: &str = "istio.v1.auth.IstioCertificateService/CreateCertificate";
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// How long nothing may be received before proxies count as idle.
const QUIET: Duration = Duration::from_millis(500);

/// What is measured, and on what.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The mesh.
    pub mesh: Mesh,
    /// Callers of the certificate service, each with a token of its own.
    pub callers: usize,
    /// Certificates for each.
    pub requests: usize,
    /// Simulated proxies.
    pub streams: usize,
    /// How long any step may take.
    pub limit: Duration,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Report {
    /// The plan.
    pub plan: Plan,
    /// From the first request to the last answer.
    pub certificates: Duration,
    /// Each request.
    pub requests: Spread,
    /// weftd's CPU time for all certificates.
    pub certificates_cpu: Duration,
    /// From the first connection to the moment at which each proxy had everything.
    pub connect: Spread,
    /// weftd's CPU time for that.
    pub connect_cpu: Duration,
    /// weftd's memory for each connection on which nothing was asked yet.
    pub idle_bytes: u64,
    /// weftd's memory for each connection of an agent, which asks for the roots and is idle then.
    pub agent_bytes: u64,
    /// weftd's memory for each proxy with its configuration.
    pub proxy_bytes: u64,
    /// Proxies that had everything in the end.
    pub converged: usize,
}

/// Runs the benchmark on a weftd of its own.
///
/// # Errors
///
/// If weftd cannot be started, refuses somebody, or takes too long.
pub async fn run(plan: Plan) -> anyhow::Result<Report> {
    let mut rig = Rig::start(&plan)?;
    let nodes: Vec<Node> = (0..plan.streams.max(plan.callers)).map(|index| plan.mesh.node(index)).collect();
    let callers: Vec<Caller> = nodes.iter().map(|node| rig.caller(node)).collect::<Result<_, _>>()?;
    let callers = Arc::new(callers);

    // One after the other: this warms weftd up, and leaves nothing in the heap that would be used again and hide what is new.
    let mut configs = Vec::with_capacity(plan.streams);
    for caller in callers.iter().take(plan.streams) {
        configs.push(rig.client_config(Some((&caller.certify(&mut rig.connect(0).await?).await?, caller)))?);
    }
    tokio::time::sleep(QUIET).await;
    let idle = rig.meter.memory()?.now;
    let each = |now: u64| now.saturating_sub(idle) / plan.streams.max(1) as u64;
    let connections = rig.connections(&configs).await?;
    tokio::time::sleep(QUIET).await;
    let idle_bytes = each(rig.meter.memory()?.now);
    drop(connections);
    tokio::time::sleep(QUIET * 2).await;
    let agents = rig.agents(&nodes, &configs, plan.limit).await?;
    tokio::time::sleep(QUIET * 2).await;
    let agent_bytes = each(rig.meter.memory()?.now);
    drop(agents);
    tokio::time::sleep(QUIET * 2).await;

    let before = rig.meter.cpu()?;
    let began = Instant::now();
    let storm = rig.certify(&callers, plan.callers, plan.requests);
    let requests = tokio::time::timeout(plan.limit, storm).await.context("certificates take too long")??;
    let certificates = began.elapsed();
    let certificates_cpu = rig.meter.cpu()?.saturating_sub(before);

    let before = rig.meter.cpu()?;
    let proxies = nodes.iter().cloned().zip(configs.into_iter().map(Some)).take(plan.streams).collect();
    let (mut fleet, connect) = Fleet::connect_as(rig.address, proxies, plan.limit).await?;
    let connect_cpu = rig.meter.cpu()?.saturating_sub(before);
    fleet.settle(QUIET).await?;
    let proxy_bytes = each(rig.meter.memory()?.now);
    let converged = fleet.converged();
    Ok(Report {
        plan,
        certificates,
        requests,
        certificates_cpu,
        connect,
        connect_cpu,
        idle_bytes,
        agent_bytes,
        proxy_bytes,
        converged,
    })
}

/// weftd, and what it takes to be known by it.
struct Rig {
    address: SocketAddr,
    meter: Meter,
    tokens: EcdsaKeyPair,
    roots: RootCertStore,
    _parts: (Weftd, Network, Config, tempfile::TempDir),
}

/// A workload: its token, its key, and its request, which are made once.
struct Caller {
    token: String,
    request: Bytes,
    key: PrivateKeyDer<'static>,
}

type Connection = (h2::client::SendRequest<Bytes>, SocketAddr);
/// A connection and the task that it is on.
type Connected = (h2::client::SendRequest<Bytes>, tokio::task::JoinHandle<()>);

impl Rig {
    fn start(plan: &Plan) -> anyhow::Result<Self> {
        let (network, config, folder) = (Network::claim()?, Config::new()?, tempfile::tempdir()?);
        let files: Vec<(String, Option<String>)> =
            plan.mesh.files().into_iter().map(|(name, text)| (name, Some(text))).collect();
        config.change(&files.iter().map(|(name, text)| (name.as_str(), text.clone())).collect::<Vec<_>>())?;
        let tokens = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        fs::write(folder.path().join("keys.json"), jwks(&tokens).to_string())?;
        let address = network.socket(255, 1, 15012);
        let ca = folder.path().join("ca");
        let weftd = Weftd::start_with(
            &network,
            &[
                "--config".into(),
                config.path().into(),
                "--ca-dir".into(),
                ca.clone().into(),
                "--token-keys".into(),
                folder.path().join("keys.json").into(),
                "--token-issuer".into(),
                ISSUER.into(),
                "--secure-grpc-addr".into(),
                address.to_string().into(),
                "--secure-name".into(),
                address.ip().to_string().into(),
            ],
        )?;
        let roots = e2e::eventually("weftd's roots", e2e::PATIENCE, || roots(&ca))?;
        let meter = Meter::new(weftd.id());
        Ok(Self { address, meter, tokens, roots, _parts: (weftd, network, config, folder) })
    }

    fn caller(&self, node: &Node) -> anyhow::Result<Caller> {
        let field = |name: &str| match node.metadata.as_ref()?.fields.get(name)?.kind.as_ref()? {
            Kind::StringValue(text) => Some(text.clone()),
            _ => None,
        };
        let (namespace, account) =
            (field("NAMESPACE").context("a namespace")?, field("SERVICE_ACCOUNT").context("an account")?);
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let claims = json!({
            "iss": ISSUER, "aud": "istio-ca", "exp": now + 3600,
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
            // A token of its own, as each pod has.
            "jti": node.id,
        });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", encode(&json!({ "alg": "ES256", "kid": "bench" })), encode(&claims));
        let signature = self.tokens.sign(&SystemRandom::new(), message.as_bytes())?;
        let key = rcgen::KeyPair::generate()?;
        let csr = rcgen::CertificateParams::default().serialize_request(&key)?.pem()?;
        let request = IstioCertificateRequest { csr, validity_duration: 3600, metadata: None };
        Ok(Caller {
            token: format!("Bearer {message}.{}", URL_SAFE_NO_PAD.encode(signature)),
            request: stream::frame(&request),
            key: PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?,
        })
    }

    async fn connect(&self, index: usize) -> anyhow::Result<Connection> {
        let tls = self.client_config(None)?;
        let source = source_of(index, self.address);
        let (sender, _) = stream::http2(self.address, Some(tls), source).await?;
        Ok((sender, self.address))
    }

    /// Has each of the first callers certified over and over, all at once, and returns how long each request took.
    async fn certify(
        &self,
        callers: &Arc<Vec<Caller>>,
        count: usize,
        requests: usize,
    ) -> anyhow::Result<Spread> {
        let mut tasks = JoinSet::new();
        for index in 0..count {
            let (callers, tls, address) = (callers.clone(), self.client_config(None)?, self.address);
            tasks.spawn(async move {
                let source = source_of(index, address);
                let (sender, _) = stream::http2(address, Some(tls), source).await?;
                let mut connection = (sender, address);
                let mut times = Vec::with_capacity(requests);
                for _ in 0..requests {
                    let began = Instant::now();
                    callers[index].certify(&mut connection).await?;
                    times.push(began.elapsed());
                }
                anyhow::Ok(times)
            });
        }
        let mut times = Vec::with_capacity(count * requests);
        while let Some(done) = tasks.join_next().await {
            times.extend(done??);
        }
        Ok(times.into_iter().collect())
    }

    /// Connects with each of these, and asks for nothing: weftd waits for ten seconds.
    async fn connections(&self, configs: &[Arc<ClientConfig>]) -> anyhow::Result<Vec<Connected>> {
        let mut tasks = JoinSet::new();
        for (index, tls) in configs.iter().enumerate() {
            let (address, tls) = (self.address, tls.clone());
            tasks.spawn(async move { stream::http2(address, Some(tls), source_of(index, address)).await });
        }
        let mut connections = Vec::with_capacity(configs.len());
        while let Some(done) = tasks.join_next().await {
            connections.push(done??);
        }
        Ok(connections)
    }

    /// Opens a stream of the roots for each node, and waits until each has them.
    async fn agents(
        &self,
        nodes: &[Node],
        configs: &[Arc<ClientConfig>],
        limit: Duration,
    ) -> anyhow::Result<Vec<Stream>> {
        let mut tasks = JoinSet::new();
        for (index, (node, tls)) in nodes.iter().zip(configs).enumerate() {
            let first = DeltaDiscoveryRequest {
                node: Some(Node { user_agent_name: "weft-agent".to_owned(), ..node.clone() }),
                type_url: SECRET.to_owned(),
                resource_names_subscribe: vec!["ROOTCA".to_owned()],
                ..DeltaDiscoveryRequest::default()
            };
            let (address, tls) = (self.address, tls.clone());
            tasks.spawn(async move {
                let mut stream = Stream::open(address, Some(tls), source_of(index, address), &first).await?;
                stream.next().await?;
                anyhow::Ok(stream)
            });
        }
        let mut streams = Vec::with_capacity(nodes.len());
        let all = async {
            while let Some(done) = tasks.join_next().await {
                streams.push(done??);
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(limit, all).await.context("roots take too long")??;
        Ok(streams)
    }

    fn client_config(
        &self,
        identity: Option<(&IstioCertificateResponse, &Caller)>,
    ) -> anyhow::Result<Arc<ClientConfig>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots.clone());
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((response, caller)) => {
                let leaf = response.cert_chain.first().context("an empty chain")?;
                let leaf = CertificateDer::from_pem_slice(leaf.as_bytes())?;
                builder.with_client_auth_cert(vec![leaf], caller.key.clone_key())?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

impl Caller {
    async fn certify(&self, (sender, address): &mut Connection) -> anyhow::Result<IstioCertificateResponse> {
        let request = http::Request::post(format!("http://{address}/{METHOD}"))
            .header(http::header::CONTENT_TYPE, "application/grpc")
            .header(http::header::TE, "trailers")
            .header(http::header::AUTHORIZATION, &self.token)
            .body(())?;
        let mut ready = sender.clone().ready().await?;
        let (response, mut body) = ready.send_request(request, false)?;
        body.send_data(self.request.clone(), true)?;
        let mut body = response.await?.into_body();
        let mut buffer = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            buffer.put(data);
        }
        let message = stream::take_message(&mut buffer)?;
        let message = message.with_context(|| "no certificate was issued".to_owned())?;
        let response = IstioCertificateResponse::decode(message)?;
        ensure!(response.cert_chain.len() >= 2, "{} parts of a chain", response.cert_chain.len());
        Ok(response)
    }
}

fn roots(ca: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca.join("root-cert.pem"))?)?;
    Ok(roots)
}

fn jwks(key: &EcdsaKeyPair) -> Value {
    let point = key.public_key().as_ref();
    let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
    json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "bench", "x": x, "y": y }] })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { callers, requests, streams, .. } = self.plan;
        let count = callers * requests;
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let rate = |time: Duration| count as f64 / time.as_secs_f64().max(1e-9);
        let each = self.certificates_cpu / u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        writeln!(
            f,
            "certificates, {callers} callers at once, {requests} each, over TLS with tokens of their own:"
        )?;
        writeln!(
            f,
            "  {:.0} a second ({:.0} per second of weftd's CPU, {} each); {}",
            rate(self.certificates),
            rate(self.certificates_cpu),
            short(each),
            self.requests
        )?;
        writeln!(f, "mutual TLS, {streams} proxies at once, until each has all of its configuration:")?;
        writeln!(
            f,
            "  {}; CPU {}; {} of {streams} converged",
            self.connect,
            short(self.connect_cpu),
            self.converged
        )?;
        write!(
            f,
            "memory for each connection: {} KiB idle, {} KiB with the roots, {} KiB with all configuration",
            self.idle_bytes / 1024,
            self.agent_bytes / 1024,
            self.proxy_bytes / 1024
        )
    }
}
