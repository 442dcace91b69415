//! Deadlines and ages.

use crate::rig::{Client, config, plain, tls};
use http_body_util::BodyExt as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio::time::Instant;

/// A connection that may be cut without a word.
struct Line {
    io: DuplexStream,
    carried: Arc<AtomicBool>,
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.carried.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.carried.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Waits until the server closes the connection, and returns what it sent before.
async fn rest(io: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A connection that is cut in the midst of TLS is an error to the reader, and as good an end as any.
    let _ = io.read_to_end(&mut bytes).await;
    bytes
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_shakes_hands_is_cut() {
    let running = tls(config());
    let started = Instant::now();
    let mut silent = running.connect(1);
    assert_eq!(rest(&mut silent).await, b"");
    assert_eq!(started.elapsed().as_secs(), 5);
    assert_eq!(running.ended("handshake-timeout"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_drips_its_handshake_is_cut() {
    let running = tls(config());
    let started = Instant::now();
    let mut slow = running.connect(1);
    // The beginning of a TLS record that says it is long.
    for byte in [0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03] {
        if slow.write_all(&[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(rest(&mut slow).await, b"");
    assert_eq!(running.ended("handshake-timeout"), 1);
    assert!(started.elapsed() < Duration::from_secs(12));
}

#[tokio::test(start_paused = true)]
async fn plain_text_on_the_tls_port_is_refused_at_once() {
    let running = tls(config());
    let started = Instant::now();
    for hello in ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n"] {
        let mut client = running.connect(1);
        client.write_all(hello.as_bytes()).await.unwrap();
        rest(&mut client).await;
    }
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(running.ended("handshake"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_after_its_handshake_is_cut() {
    let running = tls(config());
    let started = Instant::now();
    let mut silent = running.connect_tls(1).await;
    let _settings = rest(&mut silent).await;
    assert_eq!(started.elapsed().as_secs(), 10);
    assert_eq!(running.ended("unproved"), 1);
}

#[tokio::test(start_paused = true)]
async fn asking_without_proof_buys_no_time() {
    let running = tls(config());
    let started = Instant::now();
    let mut stranger = running.tls_client(1).await;
    assert_eq!(stranger.text("/hello").await, "hello 10.0.0.1");
    let _ = stranger.connection.await.unwrap();
    assert_eq!(started.elapsed().as_secs(), 10);
    assert_eq!(running.ended("unproved"), 1);
}

#[tokio::test(start_paused = true)]
async fn whoever_is_settled_stays() {
    let running = tls(config());
    let mut known = running.tls_client(1).await;
    assert_eq!(known.text("/settle/a").await, "settled");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(known.text("/hello").await, "hello 10.0.0.1");
}

#[tokio::test(start_paused = true)]
async fn in_plain_text_a_request_is_enough() {
    let running = plain(config());
    let started = Instant::now();
    let mut client = running.client(1).await;
    assert_eq!(client.text("/hello").await, "hello 10.0.0.1");
    let mut silent = running.connect(2);
    rest(&mut silent).await;
    assert_eq!(started.elapsed().as_secs(), 10);
    assert_eq!(client.text("/hello").await, "hello 10.0.0.1");
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_is_drained_and_its_streams_end_cleanly() {
    let running = plain(serve::Config { max_age: Some(Duration::from_secs(600)), ..config() });
    let started = Instant::now();
    let mut client = running.client(1).await;
    let watch = client.get("/watch").await.unwrap();
    let collected = watch.into_body().collect().await.expect("a clean end");
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "14");
    assert_eq!(collected.to_bytes(), "first");
    let age = started.elapsed();
    assert!((480..=600).contains(&age.as_secs()), "{age:?}");
    // No error: the client was asked to go, and the last stream was over.
    client.connection.await.unwrap().unwrap();
    assert_eq!(running.ended("age"), 1);
    assert_eq!(running.ended("grace"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_does_not_end_is_cut_after_a_while() {
    let running = plain(serve::Config { max_age: Some(Duration::from_secs(600)), ..config() });
    let started = Instant::now();
    let mut client = running.client(1).await;
    let watch = client.get("/stubborn").await.unwrap();
    assert!(watch.into_body().collect().await.is_err());
    assert!((490..=610).contains(&started.elapsed().as_secs()));
    assert_eq!(running.ended("grace"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_vanished_is_noticed() {
    let running = plain(config());
    let carried = Arc::new(AtomicBool::new(true));
    let mut client = Client::new(Line { io: running.connect(1), carried: carried.clone() }).await;
    assert_eq!(client.text("/hello").await, "hello 10.0.0.1");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(running.connections(), 1);
    carried.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(running.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn shutting_down_waits_for_streams_that_end() {
    let mut running = plain(config());
    let started = Instant::now();
    let mut client = running.client(1).await;
    let watch = client.get("/watch").await.unwrap();
    running.shut_down();
    let collected = watch.into_body().collect().await.expect("a clean end");
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "14");
    client.connection.await.unwrap().unwrap();
    running.served.await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn shutting_down_does_not_wait_for_ever() {
    let mut running = plain(config());
    let started = Instant::now();
    let mut client = running.client(1).await;
    let _stubborn = client.get("/stubborn").await.unwrap();
    let _silent = running.connect(2);
    running.shut_down();
    (&mut running.served).await.unwrap();
    assert_eq!(started.elapsed().as_secs(), 10);
}
