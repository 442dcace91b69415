//! Mutual TLS with real parts: an API server that vouches for workloads, weftd, agents and stock Envoys.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::client::{Answer, Client};
use e2e::identity::{BYTES_PORT, HTTP_PORT, IMPOSTOR_PORT, Kept, Mesh};
use e2e::{PATIENCE, eventually};

const SERVER: &str = "server.shop.svc.cluster.local";
const IMPOSTOR: &str = "impostor.shop.svc.cluster.local";
/// How many clients make requests.
const CLIENTS: usize = 4;
/// How long the replacement of a root may take: it waits for certificates of ten seconds to expire.
const ROTATION_LIMIT: Duration = Duration::from_secs(180);

#[test]
fn workloads_prove_who_they_are_while_certificates_and_roots_are_replaced() {
    let mesh = Mesh::start(Kept::Directory).unwrap();
    let result = everything(&mesh);
    if let Err(error) = result {
        let tail = |log: String| {
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(60)..].join("\n")
        };
        panic!(
            "{error:?}\n== weftd\n{}\n== client\n{}\n== server\n{}",
            tail(mesh.weftd.log()),
            tail(mesh.client.log()),
            tail(mesh.server.log())
        );
    }
}

fn everything(mesh: &Mesh) -> Result<()> {
    served(mesh)?;
    plain_text_is_refused(mesh)?;
    other_identities_are_refused(mesh)?;
    what_is_not_declared_is_found_out(mesh)?;
    nothing_fails_while_everything_is_replaced(mesh)
}

fn get(at: SocketAddr, host: &str) -> Result<Answer> {
    Ok(Client::new(at, Duration::from_secs(5)).get(host, "/hello")?)
}

/// Requests arrive, over mutual TLS, and the API server was not asked about any token.
fn served(mesh: &Mesh) -> Result<()> {
    let answer = eventually("the first answer", PATIENCE, || {
        let answer = get(mesh.outbound(HTTP_PORT), SERVER)?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(answer)
    })?;
    assert_eq!(answer.body, "GET /hello");
    let handshakes =
        mesh.client.counter(&format!("cluster.outbound|{HTTP_PORT}||{SERVER};.ssl.handshake"))?;
    ensure!(handshakes > 0, "the client's Envoy has made no handshake");
    let offline = mesh.metric("weft_tokens_verified_offline_total")?;
    ensure!(offline >= 2, "tokens of both were verified here: {offline}");
    Ok(())
}

/// STRICT: without TLS there is no answer, on either port.
fn plain_text_is_refused(mesh: &Mesh) -> Result<()> {
    for at in mesh.inbound() {
        match get(at, SERVER) {
            Ok(answer) => bail!("plain text was answered at {at}: {answer:?}"),
            Err(error) => ensure!(
                error.downcast_ref::<std::io::Error>().is_some_and(|error| {
                    matches!(
                        error.kind(),
                        std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset
                    )
                }),
                "{at}: {error:?}"
            ),
        }
    }
    Ok(())
}

/// A server that is not who it should be gets no request.
fn other_identities_are_refused(mesh: &Mesh) -> Result<()> {
    eventually("the impostor to be refused", PATIENCE, || {
        let answer = get(mesh.outbound(IMPOSTOR_PORT), IMPOSTOR)?;
        ensure!(answer.status == 503, "{answer:?}");
        Ok(())
    })?;
    let cluster = format!("cluster.outbound|{IMPOSTOR_PORT}||{IMPOSTOR};");
    let refused = mesh.client.counter(&format!("{cluster}.ssl.fail_verify_san"))?;
    ensure!(refused > 0, "it was refused for its name");
    Ok(())
}

/// On a port of which nothing is declared HTTP is HTTP, to the server's Envoy as well, and bytes are bytes.
fn what_is_not_declared_is_found_out(mesh: &Mesh) -> Result<()> {
    let [_, inbound] = mesh.inbound();
    let connections = format!("cluster.inbound|{}||;.upstream_cx_total", inbound.port());
    let answer = eventually("an answer of the sniffed port", PATIENCE, || {
        let answer = get(mesh.outbound(BYTES_PORT), SERVER)?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(answer)
    })?;
    assert_eq!(answer.body, "http");
    let seen = mesh.server.requests(inbound.port())?;
    ensure!(seen > 0, "the server's Envoy took the request for bytes");

    let before = mesh.server.counter(&connections)?;
    let mut stream = TcpStream::connect(mesh.outbound(BYTES_PORT))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"\x00\x01 not HTTP at all\n")?;
    let mut echoed = [0; 19];
    stream.read_exact(&mut echoed).context("bytes come back")?;
    assert_eq!(&echoed, b"\x00\x01 not HTTP at all\n");
    ensure!(mesh.server.counter(&connections)? > before, "over a connection of its own");
    assert_eq!(mesh.server.requests(inbound.port())?, seen, "and not as a request");
    Ok(())
}

/// What the clients have seen.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    requests: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Load {
    fn make(&self, at: SocketAddr) {
        let mut client = Client::new(at, Duration::from_secs(5));
        while !self.stop.load(Ordering::Relaxed) {
            let failure = match client.get(SERVER, "/load") {
                Ok(answer) if answer.status == 200 => None,
                Ok(answer) => Some(format!("{answer:?}")),
                Err(error) => Some(error.to_string()),
            };
            self.requests.fetch_add(1, Ordering::Relaxed);
            if let Some(failure) = failure {
                self.failures.lock().unwrap().push(failure);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn nothing_fails_while_everything_is_replaced(mesh: &Mesh) -> Result<()> {
    let load = Load::default();
    let before = [mesh.client.processes()?, mesh.server.processes()?];
    let (replaced, leaves) = thread::scope(|scope| {
        for port in [HTTP_PORT, BYTES_PORT] {
            for _ in 0..CLIENTS / 2 {
                let load = &load;
                scope.spawn(move || load.make(mesh.outbound(port)));
            }
        }
        let replaced = replace_root(mesh);
        load.stop.store(true, Ordering::Relaxed);
        match replaced {
            Ok((took, leaves)) => (Ok(took), leaves),
            Err(error) => (Err(error), BTreeSet::new()),
        }
    });
    let took = replaced?;
    let failures = load.failures.into_inner().unwrap();
    let requests = load.requests.into_inner();
    println!(
        "{requests} requests, {} failed, {} certificates of the client, the root was replaced in {took:?}",
        failures.len(),
        leaves.len()
    );
    ensure!(
        failures.is_empty(),
        "{} of {requests} failed: {:?}",
        failures.len(),
        &failures[..failures.len().min(5)]
    );
    ensure!(requests > 1_000, "{requests} requests are no load");
    ensure!(leaves.len() >= 4, "{} certificates in {took:?}", leaves.len());
    assert_eq!([mesh.client.processes()?, mesh.server.processes()?], before, "nothing was restarted");
    Ok(())
}

/// Has weftd make another root, and waits until it is the only one. Returns how long that took, and the certificates that
/// the client had meanwhile.
fn replace_root(mesh: &Mesh) -> Result<(Duration, BTreeSet<String>)> {
    let (mut leaves, old) = (mesh.client.certificates()?, mesh.client.roots()?);
    assert_eq!(old.len(), 1, "{old:?}");
    let started = Instant::now();
    fs::create_dir(mesh.authority().join("next"))?;
    let mut most = 0;
    loop {
        let progress = mesh.rotation()?;
        let roots = mesh.client.roots()?;
        leaves.extend(mesh.client.certificates()?);
        most = most.max(roots.len());
        if progress.starts_with("stable") && roots.len() == 1 && roots.is_disjoint(&old) {
            break;
        }
        ensure!(started.elapsed() < ROTATION_LIMIT, "the root was not replaced: {progress}");
        thread::sleep(Duration::from_millis(250));
    }
    assert_eq!(most, 2, "there was a time at which both were trusted");
    ensure!(mesh.server.roots()?.is_disjoint(&old), "the server's Envoy still trusts the old root");
    // A while longer: what rests on the old root would show only now.
    thread::sleep(Duration::from_secs(12));
    leaves.extend(mesh.client.certificates()?);
    Ok((started.elapsed(), leaves))
}
