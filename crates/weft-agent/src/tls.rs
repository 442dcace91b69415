//! Connections to the control plane and the authority.

use crate::config::{Roots, Server, ServerTrust};
use crate::identity::Identity;
use crate::store::Store;
use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

/// Where distributions keep the roots that they trust.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The roots cannot be read.
    #[error("cannot read the roots {path}")]
    Roots {
        /// Where they should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There are no roots, so nobody can be believed.
    #[error("there is no certificate of an authority in {0}")]
    NoRoots(String),
    /// A name, a certificate or a key is malformed.
    #[error("{0}")]
    Setting(String),
    /// The server is not reached, or not who it should be.
    #[error("cannot connect to {address}")]
    Connect {
        /// Where it should be.
        address: String,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Connects to a server, with a certificate if there is one.
pub async fn connect(
    server: &Server,
    identity: Option<&Identity>,
    store: &Store,
) -> Result<Channel, TlsError> {
    let host = if server.host.contains(':') { format!("[{}]", server.host) } else { server.host.clone() };
    let address = format!("{host}:{}", server.port);
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let endpoint = endpoint.map_err(|error| TlsError::Setting(format!("{address}: {error}")))?;
    let endpoint = endpoint
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true);
    let tls = match &server.trust {
        None => None,
        Some(trust) => Some((TlsConnector::from(config(trust, identity, store)?), server_name(trust)?)),
    };
    let target = (server.host.clone(), server.port);
    let connector = tower::service_fn(move |_| {
        let (tls, target) = (tls.clone(), target.clone());
        async move {
            let stream = TcpStream::connect(target).await?;
            stream.set_nodelay(true)?;
            let stream = match tls {
                None => Stream::Plain(stream),
                Some((connector, name)) => Stream::Tls(Box::new(connector.connect(name, stream).await?)),
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    let connected = endpoint.connect_with_connector(connector).await;
    connected.map_err(|source| TlsError::Connect { address, source })
}

fn server_name(trust: &ServerTrust) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(trust.name.clone())
        .map_err(|_| TlsError::Setting(format!("{:?} is no name of a server", trust.name)))
}

fn config(
    trust: &ServerTrust,
    identity: Option<&Identity>,
    store: &Store,
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    let (pem, origin) = roots_pem(&trust.roots, store)?;
    let (added, _) = roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
    if added == 0 {
        return Err(TlsError::NoRoots(origin));
    }
    let setting = |error: rustls::Error| TlsError::Setting(error.to_string());
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let config = config.with_safe_default_protocol_versions().map_err(setting)?.with_root_certificates(roots);
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some(identity) => {
            let unusable = |error: &dyn ToString| TlsError::Setting(error.to_string());
            let chain = identity.certificates().map_err(|error| unusable(&error))?;
            let key = PrivateKeyDer::from_pem_slice(identity.key.pem()).map_err(|error| unusable(&error))?;
            config.with_client_auth_cert(chain, key).map_err(setting)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A connection after a renewal must be authenticated with the new certificate.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Returns the roots that a server's certificate must come from, and where they are from.
fn roots_pem(roots: &Roots, store: &Store) -> Result<(Vec<u8>, String), TlsError> {
    match roots {
        Roots::System => Ok((system_roots()?, "the system's roots".to_owned())),
        Roots::File { path, and_workload_roots } => {
            let read = std::fs::read(path);
            let mut pem = match read {
                Ok(pem) => pem,
                Err(_) if *and_workload_roots && store.workload_roots().is_some() => Vec::new(),
                Err(source) => return Err(TlsError::Roots { path: path.clone(), source }),
            };
            if *and_workload_roots && let Some(bundle) = store.workload_roots() {
                pem.push(b'\n');
                pem.extend_from_slice(bundle.to_pem().as_bytes());
            }
            Ok((pem, path.display().to_string()))
        }
    }
}

/// Returns the roots that the operating system trusts.
pub fn system_roots() -> Result<Vec<u8>, TlsError> {
    let mut first_error = None;
    for path in SYSTEM_ROOTS {
        match std::fs::read(path) {
            Ok(pem) => return Ok(pem),
            Err(source) => {
                first_error.get_or_insert(TlsError::Roots { path: path.into(), source });
            }
        }
    }
    Err(first_error.unwrap_or_else(|| TlsError::NoRoots("the system's roots".to_owned())))
}

/// A connection with or without TLS.
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
