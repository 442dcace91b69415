//! Ten thousand strangers on real sockets, while somebody known is served.

use crate::rig::{Client, MEASURING, resident, tls_configs};
use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use rustls::pki_types::ServerName;
use serve::{Config, Limits, Metrics, Peer, Transport};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

#[tokio::test]
async fn ten_thousand_strangers_delay_nobody_and_take_little_memory() {
    let _alone = MEASURING.lock().await;
    let (server, client) = tls_configs();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = tower::service_fn(|request: http::Request<Incoming>| async move {
        request.extensions().get::<Peer>().unwrap().settle(Some("known"));
        Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from_static(b"served"))))
    });
    let metrics = Metrics::default();
    let config = Config::standard("test", Limits::standard(5000));
    let transport = Transport::Tls(Arc::new(ArcSwap::from_pointee(server)));
    let (registered, never) = (metrics.clone(), std::future::pending());
    let serving =
        tokio::spawn(
            async move { serve::serve(listener, transport, service, config, &registered, never).await },
        );

    let connector = TlsConnector::from(Arc::new(client));
    let connect = || async {
        let stream = TcpStream::connect(address).await.unwrap();
        connector.connect(ServerName::try_from("server.test").unwrap(), stream).await.unwrap()
    };
    let mut known = Client::new(connect().await).await;
    assert_eq!(known.text("/").await, "served");

    let before = resident();
    let mut strangers = Vec::new();
    let mut slowest = Duration::ZERO;
    for batch in 0..100 {
        for stranger in 0..100 {
            strangers.push(connect_as_stranger(address, stranger, &connector).await);
        }
        let asked = Instant::now();
        assert_eq!(known.text("/").await, "served");
        slowest = slowest.max(asked.elapsed());
        if batch % 20 == 0 {
            let mut newcomer = Client::new(connect().await).await;
            assert_eq!(newcomer.text("/").await, "served", "newcomers are let in during the flood");
        }
        // Half of the sockets are ours: what the server has closed is not needed to make more.
        strangers.drain(..strangers.len().saturating_sub(5000));
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 << 10, "memory grew by {grown} KiB");
    assert!(slowest < Duration::from_secs(2), "a request took {slowest:?}");
    serving.abort();
}

/// A connection that goes no further.
#[expect(dead_code, reason = "kept so that the connection stays open")]
enum Stranger {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Opens a connection and goes as far as `kind` says: TCP only, the beginning of a handshake, nonsense, all of the
/// handshake, or the beginning of HTTP/2 over TLS.
async fn connect_as_stranger(address: SocketAddr, kind: usize, connector: &TlsConnector) -> Stranger {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const NO_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    let mut stream = TcpStream::connect(address).await.unwrap();
    let bytes: &[u8] = match kind % 5 {
        0 => b"",
        1 => &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01],
        2 => PREFACE,
        kind => {
            let name = ServerName::try_from("server.test").unwrap();
            let mut stream = connector.connect(name, stream).await.unwrap();
            if kind == 4 {
                // It may have been closed already, as below.
                let _ = stream.write_all(&[PREFACE, NO_SETTINGS].concat()).await;
                let _ = stream.flush().await;
            }
            return Stranger::Tls(Box::new(stream));
        }
    };
    let _ = stream.write_all(bytes).await;
    Stranger::Tcp(stream)
}
