//! Probes and hooks of containers.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use testkit::rig::http::Request;
use testkit::rig::netns::Pod;

use super::container::Container;
use super::text;

/// A probe and how it has gone lately.
#[derive(Debug)]
pub(super) struct Probe {
    spec: Value,
    next: Instant,
    in_a_row: (bool, u64),
    /// Whether it is passed: once it is, until it has failed often enough.
    passed: bool,
}

/// What a probe says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It has succeeded often enough.
    Passed,
    /// Neither often enough.
    Open,
    /// It has failed often enough.
    Failed,
}

impl Probe {
    /// Returns the probe of this name, if the container has it.
    pub(super) fn new(container: &Value, name: &str) -> Option<Self> {
        let spec = container[name].clone();
        if spec.is_null() {
            return None;
        }
        let delay = Duration::from_secs(spec["initialDelaySeconds"].as_u64().unwrap_or_default());
        Some(Self { spec, next: Instant::now() + delay, in_a_row: (false, 0), passed: false })
    }

    /// Returns whether it is passed.
    pub(super) fn is_passed(&self) -> bool {
        self.passed
    }

    /// Probes, if it is time to, and returns what that says.
    pub(super) fn ask(&mut self, container: &Container, spec: &Value, network: &Pod) -> Verdict {
        if Instant::now() >= self.next {
            let limit = Duration::from_secs(self.spec["timeoutSeconds"].as_u64().unwrap_or(1));
            let success = call(&self.spec, container, spec, network, limit).is_ok();
            let period = Duration::from_secs(self.spec["periodSeconds"].as_u64().unwrap_or(10));
            self.next = Instant::now() + period;
            let (last, count) = self.in_a_row;
            self.in_a_row = (success, if last == success { count + 1 } else { 1 });
        }
        let (success, count) = self.in_a_row;
        let often = |name: &str, default| count >= self.spec[name].as_u64().unwrap_or(default);
        if count > 0 && success && often("successThreshold", 1) {
            self.passed = true;
            return Verdict::Passed;
        }
        if count > 0 && !success && often("failureThreshold", 3) {
            self.passed = false;
            return Verdict::Failed;
        }
        Verdict::Open
    }
}

/// Does what a hook says.
pub(super) fn hook(
    hook: &Value,
    container: &Container,
    spec: &Value,
    network: &Pod,
    limit: Duration,
) -> anyhow::Result<()> {
    if let Some(seconds) = hook["sleep"]["seconds"].as_u64() {
        std::thread::sleep(Duration::from_secs(seconds).min(limit));
        return Ok(());
    }
    call(hook, container, spec, network, limit)
}

fn call(
    what: &Value,
    container: &Container,
    spec: &Value,
    network: &Pod,
    limit: Duration,
) -> anyhow::Result<()> {
    let at = |port: &Value| anyhow::Ok(SocketAddr::from((network.address(), number(port, spec)?)));
    let http = &what["httpGet"];
    if http.is_object() {
        ensure!(http["scheme"].as_str().is_none_or(|scheme| scheme == "HTTP"), "only HTTP is spoken here");
        ensure!(http["host"].is_null(), "only the pod itself is asked here");
        let mut request = Request::get(http["path"].as_str().unwrap_or("/")).limit(limit);
        for header in http["httpHeaders"].as_array().into_iter().flatten() {
            request = request.header(text(&header["name"]), text(&header["value"]));
        }
        let status = request.send(at(&http["port"])?)?.status;
        ensure!((200..400).contains(&status), "{status}");
        return Ok(());
    }
    if what["tcpSocket"].is_object() {
        TcpStream::connect_timeout(&at(&what["tcpSocket"]["port"])?, limit)?;
        return Ok(());
    }
    if what["exec"].is_object() {
        ensure!(container.run(&what["exec"]["command"], limit)?, "the command has failed");
        return Ok(());
    }
    bail!("{what} is not understood here")
}

/// Returns a port that is given by its number, or by its name among those of the container.
fn number(port: &Value, container: &Value) -> anyhow::Result<u16> {
    let port = match port.as_str() {
        Some(name) => {
            let mut ports = container["ports"].as_array().into_iter().flatten();
            &ports.find(|port| text(&port["name"]) == name).context("no port of this name")?["containerPort"]
        }
        None => port,
    };
    Ok(u16::try_from(port.as_u64().context("a port is a number")?)?)
}
