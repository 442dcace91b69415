//! A small HTTP client for Envoy's administration, the application's metrics and its probes: one connection a
//! request, nothing kept, everything bounded.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use std::error::Error;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio_rustls::TlsConnector;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Nobody answers.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// What answers does not speak HTTP.
    #[error("{0}")]
    Protocol(String),
    /// The answer takes too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The answer is too large.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// The server's name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The path and the query.
    pub path: String,
    /// The method.
    pub method: Method,
    /// Headers; `host` is the server's unless it is among them.
    pub headers: HeaderMap,
    /// Whether to use TLS. Nobody's certificate is verified: the kubelet does not either, and nothing secret is sent.
    pub tls: bool,
    /// Whether the connection comes from the address that is never redirected to Envoy.
    pub from_agent: bool,
    /// How long it may take in all.
    pub timeout: Duration,
    /// How large the answer may be.
    pub limit: usize,
    /// Whether the rest of an answer that is too large is left out instead of being an error.
    pub truncate: bool,
}

impl Question {
    /// Asks for a path.
    pub fn get(address: SocketAddr, path: &str) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
            path: path.to_owned(),
            method: Method::GET,
            headers: HeaderMap::new(),
            tls: false,
            from_agent: false,
            timeout: Duration::from_secs(5),
            limit: 4 << 20,
            truncate: false,
        }
    }

    /// Asks to do something.
    pub fn post(address: SocketAddr, path: &str) -> Self {
        Self { method: Method::POST, ..Self::get(address, path) }
    }

    /// Sends it and reads the answer.
    pub async fn send(self) -> Result<Answer, HttpError> {
        let timeout = self.timeout;
        tokio::time::timeout(timeout, self.exchange()).await.map_err(|_| HttpError::Timeout(timeout))?
    }

    async fn exchange(self) -> Result<Answer, HttpError> {
        let stream = connect(&self.host, self.port, self.from_agent).await?;
        if !self.tls {
            return self.speak(TokioIo::new(stream), false).await;
        }
        let failed = |source| HttpError::Connect { address: format!("{}:{}", self.host, self.port), source };
        let name =
            ServerName::try_from(self.host.clone()).map_err(|error| failed(io::Error::other(error)))?;
        let stream = unverified().map_err(|error| failed(io::Error::other(error)))?.connect(name, stream);
        let stream = stream.await.map_err(failed)?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        self.speak(TokioIo::new(stream), http2).await
    }

    async fn speak<S>(self, stream: TokioIo<S>, http2: bool) -> Result<Answer, HttpError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let request = self.request(http2)?;
        let response = if http2 {
            let connected = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await;
            let (mut sender, connection) = connected.map_err(|error| protocol(&error))?;
            let connection = AbortOnDrop(tokio::spawn(async move { drop(connection.await) }));
            (sender.send_request(request).await, connection)
        } else {
            let connected = hyper::client::conn::http1::handshake(stream).await;
            let (mut sender, connection) = connected.map_err(|error| protocol(&error))?;
            let connection = AbortOnDrop(tokio::spawn(async move { drop(connection.await) }));
            (sender.send_request(request).await, connection)
        };
        let (response, _connection) = response;
        self.read(response.map_err(|error| protocol(&error))?).await
    }

    fn request(&self, http2: bool) -> Result<Request<Full<Bytes>>, HttpError> {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let authority = match self.headers.get(header::HOST).and_then(|value| value.to_str().ok()) {
            Some(host) => host.to_owned(),
            None => format!("{host}:{}", self.port),
        };
        let scheme = if self.tls { "https" } else { "http" };
        let uri = if http2 { format!("{scheme}://{authority}{}", self.path) } else { self.path.clone() };
        let uri: Uri = uri.parse().map_err(|error: http::uri::InvalidUri| protocol(&error))?;
        let mut request = Request::builder().method(self.method.clone()).uri(uri);
        if let Some(headers) = request.headers_mut() {
            headers.extend(self.headers.clone());
            match http2 {
                true => drop(headers.remove(header::HOST)),
                false => {
                    let value =
                        authority.parse().map_err(|error: header::InvalidHeaderValue| protocol(&error))?;
                    headers.insert(header::HOST, value);
                }
            }
        }
        request.body(Full::default()).map_err(|error| protocol(&error))
    }

    async fn read(&self, response: http::Response<Incoming>) -> Result<Answer, HttpError> {
        let (parts, mut body) = response.into_parts();
        let mut read = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| protocol(&error))?;
            let Some(data) = frame.data_ref() else { continue };
            if read.len() + data.len() > self.limit {
                if !self.truncate {
                    return Err(HttpError::TooLarge(self.limit));
                }
                read.extend_from_slice(&data[..self.limit - read.len()]);
                break;
            }
            read.extend_from_slice(data);
        }
        Ok(Answer { status: parts.status, headers: parts.headers, body: read.into() })
    }
}

/// Ends the task of a connection with the request that it was made for.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn protocol(error: &dyn Error) -> HttpError {
    HttpError::Protocol(crate::identity::renew::chain(error))
}

/// Connects; with `from_agent` from 127.0.0.6, which the rules of the pod's network never redirect to Envoy. That way
/// a question to the pod's own address reaches the application itself. IPv6 has `::6` for that, where it is set up.
pub async fn connect(host: &str, port: u16, from_agent: bool) -> Result<TcpStream, HttpError> {
    let failed = |source| HttpError::Connect { address: format!("{host}:{port}"), source };
    let addresses = lookup_host((host, port)).await.map_err(failed)?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match connect_to(address, from_agent).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

async fn connect_to(address: SocketAddr, from_agent: bool) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if from_agent {
        let source: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::new(127, 0, 0, 6).into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).into(),
        };
        if let Err(error) = socket.bind(SocketAddr::new(source, 0)) {
            tracing::debug!(%error, %source, "a probe comes from an address that may be redirected");
        }
    }
    socket.connect(address).await
}

fn unverified() -> Result<TlsConnector, rustls::Error> {
    let provider = Arc::new(default_provider());
    let config =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider)));
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Believes everybody, as the kubelet's probes do.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
