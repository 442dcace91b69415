//! How patient and how generous a listener is.

use std::time::Duration;

/// How many connections there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub connections: usize,
    /// Of strangers: connections that are not settled yet.
    pub strangers: usize,
    /// Of strangers from one source: an IPv4 address, or an IPv6 network of 64 bits.
    pub strangers_per_source: usize,
    /// Of one identity from one source.
    pub per_identity: usize,
}

impl Limits {
    /// Limits for `connections` in all, under which strangers cannot take much memory: a settled proxy needs one
    /// connection, and a gateway between clusters stands for many of them.
    pub fn standard(connections: usize) -> Self {
        Self { connections, strangers: 1024, strangers_per_source: 256, per_identity: 256 }
    }
}

/// How a listener treats its clients.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the listener is called in metrics and logs.
    pub name: &'static str,
    /// How many connections there may be.
    pub limits: Limits,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long a connection may take from being accepted to being settled.
    pub settle_timeout: Duration,
    /// How often an idle connection is checked.
    pub keepalive_interval: Duration,
    /// How long that check may take.
    pub keepalive_timeout: Duration,
    /// After how long a connection is drained, so that clients spread over replicas. Shortened by up to a fifth, so
    /// that those that came together do not go together.
    pub max_age: Option<Duration>,
    /// How long a connection that is drained may go on.
    pub drain_grace: Duration,
    /// How many requests a connection may have at once.
    pub max_streams: u32,
    /// The largest header of a request.
    pub max_header_bytes: u32,
}

impl Config {
    /// Returns a configuration with Istio's keepalive, and no age limit.
    pub fn standard(name: &'static str, limits: Limits) -> Self {
        Self {
            name,
            limits,
            handshake_timeout: Duration::from_secs(5),
            settle_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            max_age: None,
            drain_grace: Duration::from_secs(10),
            max_streams: 1024,
            max_header_bytes: 32 << 10,
        }
    }
}
