//! A gRPC stream of its own connection, with as little around it as possible: the clients share the machine with the
//! server that they measure.

use anyhow::{Context, bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client;
use prost::Message;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

const METHOD: &str = "envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// Windows of Envoy's default size.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 24 << 20;

const HEADER: usize = 5;

/// A delta ADS stream.
#[derive(Debug)]
pub struct Stream {
    requests: h2::SendStream<Bytes>,
    responses: h2::RecvStream,
    buffer: BytesMut,
    connection: tokio::task::JoinHandle<()>,
}

impl Stream {
    /// Connects from an address, if one is given, and opens the stream with a first message.
    ///
    /// # Errors
    ///
    /// If there is no gRPC server, or it refuses.
    pub async fn open(
        server: SocketAddr,
        tls: Option<Arc<ClientConfig>>,
        source: Option<IpAddr>,
        first: &impl Message,
    ) -> anyhow::Result<Self> {
        let (mut sender, connection) = http2(server, tls, source).await?;
        let request = http::Request::post(format!("http://{server}/{METHOD}"))
            .header(http::header::CONTENT_TYPE, "application/grpc")
            .header(http::header::TE, "trailers")
            .body(())?;
        let (response, mut requests) = sender.send_request(request, false)?;
        requests.send_data(frame(first), false)?;
        let response = response.await?;
        if let Some(status) = response.headers().get("grpc-status") {
            bail!("refused with gRPC status {status:?}");
        }
        ensure!(response.status().is_success(), "refused with HTTP status {}", response.status());
        Ok(Self { requests, responses: response.into_body(), buffer: BytesMut::new(), connection })
    }

    /// Sends a message.
    ///
    /// # Errors
    ///
    /// If the stream has ended.
    pub fn send(&mut self, message: &impl Message) -> anyhow::Result<()> {
        Ok(self.requests.send_data(frame(message), false)?)
    }

    /// Returns the next message.
    ///
    /// # Errors
    ///
    /// If the stream has ended.
    pub async fn next(&mut self) -> anyhow::Result<Bytes> {
        loop {
            if let Some(message) = take_message(&mut self.buffer)? {
                return Ok(message);
            }
            let Some(data) = self.responses.data().await else {
                let trailers = self.responses.trailers().await?;
                bail!("the server ended the stream: {:?}", trailers.unwrap_or_default());
            };
            let data = data?;
            self.responses.flow_control().release_capacity(data.len())?;
            self.buffer.put(data);
        }
    }
}

/// Makes an HTTP/2 connection, over TLS if there is a configuration, on a task of its own.
///
/// # Errors
///
/// If there is no such server.
pub(crate) async fn http2(
    server: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    source: Option<IpAddr>,
) -> anyhow::Result<(client::SendRequest<Bytes>, tokio::task::JoinHandle<()>)> {
    let tcp = connect(server, source).await.with_context(|| format!("cannot connect to {server}"))?;
    tcp.set_nodelay(true)?;
    match tls {
        None => handshake(tcp).await,
        Some(config) => {
            let name = ServerName::from(server.ip());
            handshake(TlsConnector::from(config).connect(name, tcp).await?).await
        }
    }
}

async fn handshake(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> anyhow::Result<(client::SendRequest<Bytes>, tokio::task::JoinHandle<()>)> {
    let (sender, connection) = client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(io)
        .await?;
    let connection = tokio::spawn(async move {
        // The stream tells of a connection that ends.
        let _ = connection.await;
    });
    Ok((sender, connection))
}

async fn connect(server: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let Some(source) = source else { return TcpStream::connect(server).await };
    let socket = match source {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.bind(SocketAddr::new(source, 0))?;
    socket.connect(server).await
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

pub(crate) fn frame(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut frame = BytesMut::with_capacity(HEADER + len);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(len).expect("requests are small"));
    message.encode_raw(&mut frame);
    frame.freeze()
}

pub(crate) fn take_message(buffer: &mut BytesMut) -> anyhow::Result<Option<Bytes>> {
    let Some(header) = buffer.first_chunk::<HEADER>() else { return Ok(None) };
    ensure!(header[0] == 0, "the server compresses messages, which was not asked for");
    let len = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if buffer.len() < HEADER + len {
        buffer.reserve(HEADER + len - buffer.len());
        return Ok(None);
    }
    buffer.advance(HEADER);
    let message = buffer.split_to(len).freeze();
    if buffer.is_empty() {
        // Memory of large messages is not kept by a client that may wait for long.
        *buffer = BytesMut::new();
    }
    Ok(Some(message))
}
