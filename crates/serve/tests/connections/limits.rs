//! How many, and what happens to those who are too many.

use crate::rig::{config, plain, tls};
use http_body_util::BodyExt as _;
use serve::{Config, Limits};
use std::io;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;

fn limited(limits: Limits) -> Config {
    Config { limits, ..config() }
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_takes_the_place_of_the_oldest_stranger() {
    let limits = Limits { strangers: 2, ..Limits::standard(100) };
    let running = tls(limited(limits));
    let mut first = running.connect(1);
    let _second = running.connect(1);
    let mut proxy = running.tls_client(2).await;
    assert_eq!(proxy.text("/settle/proxy").await, "settled");
    assert_eq!(first.read(&mut [0; 1]).await.unwrap(), 0, "the oldest stranger had to go");
    assert_eq!(running.ended("strangers"), 1);
    assert_eq!(running.connections(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_full_listener_refuses_and_recovers() {
    let running = plain(limited(Limits::standard(1)));
    let mut first = running.client(1).await;
    assert_eq!(first.text("/hello").await, "hello 10.0.0.1");
    let mut second = running.connect(2);
    assert_eq!(second.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(running.ended("full"), 1);
    let connection = first.connection.abort_handle();
    drop(first);
    connection.abort();
    while running.connections() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(running.client(3).await.text("/hello").await, "hello 10.0.0.3");
}

#[tokio::test(start_paused = true)]
async fn the_oldest_of_too_many_connections_of_one_identity_is_drained() {
    let running = tls(limited(Limits { per_identity: 1, ..Limits::standard(100) }));
    let mut first = running.tls_client(1).await;
    let watch = first.get("/watch").await.unwrap();
    let mut second = running.tls_client(1).await;
    assert_eq!(second.text("/settle/watcher").await, "settled");
    let collected = watch.into_body().collect().await.expect("a clean end");
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "14");
    first.connection.await.unwrap().unwrap();
    assert_eq!(running.ended("identity"), 1);
    assert_eq!(second.text("/hello").await, "hello 10.0.0.1");
}

#[tokio::test(start_paused = true)]
async fn without_descriptors_the_loop_sleeps_and_strangers_go() {
    let running = plain(config());
    let mut known = running.client(1).await;
    assert_eq!(known.text("/hello").await, "hello 10.0.0.1");
    let mut stranger = running.connect(2);
    tokio::time::sleep(Duration::from_millis(1)).await;
    let started = tokio::time::Instant::now();
    for _ in 0..12 {
        // EMFILE.
        running.fail(io::Error::from_raw_os_error(24));
    }
    // Served after the failures: 5 ms, 10 ms, … 1 s each.
    let mut late = running.client(3).await;
    assert_eq!(late.text("/hello").await, "hello 10.0.0.3");
    let waited = started.elapsed();
    assert!((4..7).contains(&waited.as_secs()), "{waited:?}");
    assert_eq!(running.ended("descriptors"), 12);
    let mut settings = Vec::new();
    stranger.read_to_end(&mut settings).await.expect("its descriptor was needed");
    assert_eq!(known.text("/hello").await, "hello 10.0.0.1");
}

#[tokio::test(start_paused = true)]
async fn clients_that_are_gone_already_cost_no_time() {
    let running = plain(config());
    let started = tokio::time::Instant::now();
    for _ in 0..1000 {
        running.fail(io::ErrorKind::ConnectionAborted.into());
    }
    assert_eq!(running.client(1).await.text("/hello").await, "hello 10.0.0.1");
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(running.ended("descriptors"), 0);
}
