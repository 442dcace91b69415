//! A listener whose connections are pipes, a service that does as it is told, and clients.

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serve::{Accept, Config, Limits, Metrics, Peer, Transport};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, duplex};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Held by whoever measures this process's memory, one at a time.
pub(crate) static MEASURING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The resident memory of this process, in KiB.
pub(crate) fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

type Incomings = mpsc::UnboundedReceiver<io::Result<(DuplexStream, SocketAddr)>>;

/// Connections from a channel.
pub(crate) struct Pipes(Incomings);

impl Accept for Pipes {
    type Io = DuplexStream;

    async fn accept(&mut self) -> io::Result<(DuplexStream, SocketAddr)> {
        match self.0.recv().await {
            Some(result) => result,
            None => std::future::pending().await,
        }
    }
}

/// A listener that runs.
pub(crate) struct Running {
    connections: mpsc::UnboundedSender<io::Result<(DuplexStream, SocketAddr)>>,
    tls: rustls::ClientConfig,
    pub(crate) metrics: Metrics,
    shutdown: Option<oneshot::Sender<()>>,
    pub(crate) served: JoinHandle<()>,
}

/// Limits that are not met by accident.
pub(crate) fn config() -> Config {
    Config::standard("test", Limits::standard(1000))
}

/// Serves in plain text.
pub(crate) fn plain(config: Config) -> Running {
    let (_, client) = tls_configs();
    start(Transport::Plain, client, config)
}

/// Serves over TLS.
pub(crate) fn tls(config: Config) -> Running {
    let (server, client) = tls_configs();
    start(Transport::Tls(Arc::new(ArcSwap::from_pointee(server))), client, config)
}

fn start(transport: Transport, tls: rustls::ClientConfig, config: Config) -> Running {
    let (connections, incoming) = mpsc::unbounded_channel();
    let metrics = Metrics::default();
    let (shutdown, ends) = oneshot::channel::<()>();
    let registered = metrics.clone();
    let served = tokio::spawn(async move {
        serve::serve(Pipes(incoming), transport, Service, config, &registered, async { drop(ends.await) })
            .await;
    });
    Running { connections, tls, metrics, shutdown: Some(shutdown), served }
}

pub(crate) fn tls_configs() -> (rustls::ServerConfig, rustls::ClientConfig) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["server.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    let certificate: CertificateDer<'static> = certificate.der().clone();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec()];
    (server, client)
}

impl Running {
    /// Connects from an address that ends in `host`.
    pub(crate) fn connect(&self, host: u8) -> DuplexStream {
        let (client, server) = duplex(64 << 10);
        self.connections.send(Ok((server, SocketAddr::from(([10, 0, 0, host], 4000))))).unwrap();
        client
    }

    /// Lets `accept` fail.
    pub(crate) fn fail(&self, error: io::Error) {
        self.connections.send(Err(error)).unwrap();
    }

    pub(crate) async fn connect_tls(&self, host: u8) -> TlsStream<DuplexStream> {
        self.tls_over(self.connect(host)).await.unwrap()
    }

    pub(crate) fn tls_over<I: AsyncRead + AsyncWrite + Unpin>(
        &self,
        io: I,
    ) -> impl Future<Output = io::Result<TlsStream<I>>> + use<I> {
        let connector = TlsConnector::from(Arc::new(self.tls.clone()));
        async move { connector.connect(ServerName::try_from("server.test").unwrap(), io).await }
    }

    pub(crate) async fn client(&self, host: u8) -> Client {
        Client::new(self.connect(host)).await
    }

    pub(crate) async fn tls_client(&self, host: u8) -> Client {
        Client::new(self.connect_tls(host).await).await
    }

    pub(crate) fn shut_down(&mut self) {
        drop(self.shutdown.take());
    }

    pub(crate) fn ended(&self, reason: &'static str) -> u64 {
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register("ended", "", self.metrics.ended.clone());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let line = format!("ended_total{{listener=\"test\",reason=\"{reason}\"}} ");
        text.lines().find_map(|found| found.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
    }

    pub(crate) fn gauge(
        &self,
        registered: impl Fn(&Metrics, &mut prometheus_client::registry::Registry),
    ) -> i64 {
        let mut registry = prometheus_client::registry::Registry::default();
        registered(&self.metrics, &mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let line = text.lines().find(|line| !line.starts_with('#')).expect("the metric is there");
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Connections now.
    pub(crate) fn connections(&self) -> i64 {
        self.gauge(|metrics, registry| registry.register("g", "", metrics.connections.clone()))
    }
}

/// A client of HTTP/2.
pub(crate) struct Client {
    requests: http2::SendRequest<Empty<Bytes>>,
    pub(crate) connection: JoinHandle<hyper::Result<()>>,
}

impl Client {
    pub(crate) async fn new(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (requests, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.expect("a connection");
        Self { requests, connection: tokio::spawn(connection) }
    }

    pub(crate) async fn get(&mut self, path: &str) -> hyper::Result<http::Response<Incoming>> {
        let request = http::Request::get(format!("http://server.test{path}")).body(Empty::new()).unwrap();
        self.requests.send_request(request).await
    }

    /// Returns the body of what is at `path`.
    pub(crate) async fn text(&mut self, path: &str) -> String {
        let response = self.get(path).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }
}

/// Knows a few paths:
///
/// - `/hello`: says hello to strangers too.
/// - `/settle/NAME`: settles the connection as `NAME`.
/// - `/watch`: settles it, sends one frame, and ends when it is drained.
/// - `/stubborn`: settles it, sends one frame, and never ends.
#[derive(Clone)]
struct Service;

type Body = BoxBody<Bytes, Infallible>;

impl tower_service::Service<http::Request<Incoming>> for Service {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Incoming>) -> Self::Future {
        let peer = request.extensions().get::<Peer>().expect("every request has a peer").clone();
        let body = match request.uri().path() {
            "/hello" => Full::new(Bytes::from(format!("hello {}", peer.address().ip()))).boxed(),
            "/watch" => {
                peer.settle(Some("watcher"));
                let draining = peer.draining();
                Stream::new(async move { draining.cancelled().await }).boxed()
            }
            "/stubborn" => {
                peer.settle(Some("watcher"));
                Stream::new(std::future::pending()).boxed()
            }
            path => {
                peer.settle(path.strip_prefix("/settle/"));
                Full::new(Bytes::from_static(b"settled")).boxed()
            }
        };
        Box::pin(async move { Ok(http::Response::new(body)) })
    }
}

/// One frame, then a wait, then trailers.
struct Stream {
    sent: bool,
    ended: bool,
    until: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
}

impl Stream {
    fn new(until: impl Future<Output = ()> + Send + Sync + 'static) -> Self {
        Self { sent: false, ended: false, until: Box::pin(until) }
    }
}

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !self.sent {
            self.sent = true;
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"first")))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        std::task::ready!(self.until.as_mut().poll(cx));
        self.ended = true;
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("14"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}
