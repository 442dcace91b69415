//! A root in Secrets of a real API server is replaced by two replicas of weftd, which are killed at each step, while Envoys
//! with agents at one and the other serve requests to each other over mutual TLS.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::client::Client;
use e2e::identity::{HTTP_PORT, Kept, Mesh};
use e2e::{PATIENCE, eventually};

const SERVER: &str = "server.shop.svc.cluster.local";
const CLIENTS: usize = 3;
/// Each of three steps waits for a minute, in which a replica may act by the state before.
const STEP_LIMIT: Duration = Duration::from_secs(240);

/// What the clients have seen.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    requests: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Load {
    fn make(&self, at: SocketAddr) {
        let mut client = Client::new(at, Duration::from_secs(10));
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
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_root_in_secrets_is_replaced_by_two_replicas_that_are_killed_at_each_step() {
    let mut mesh = Mesh::start(Kept::Secrets).unwrap();
    if let Err(error) = everything(&mut mesh) {
        let tail = |log: String| {
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(40)..].join("\n")
        };
        let other = mesh.other.as_ref().map(|weftd| tail(weftd.log())).unwrap_or_default();
        panic!(
            "{error:?}\n== weftd-a\n{}\n== weftd-b\n{other}\n== client\n{}\n== server\n{}",
            tail(mesh.weftd.log()),
            tail(mesh.client.log()),
            tail(mesh.server.log())
        );
    }
}

fn everything(mesh: &mut Mesh) -> Result<()> {
    let at = mesh.outbound(HTTP_PORT);
    eventually("the first answer", PATIENCE, || {
        let answer = Client::new(at, Duration::from_secs(5)).get(SERVER, "/hello")?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })?;
    let before = [mesh.client.processes()?, mesh.server.processes()?];
    let load = Load::default();
    let replaced = thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| load.make(at));
        }
        let replaced = replace(mesh);
        load.stop.store(true, Ordering::Relaxed);
        replaced
    });
    let took = replaced?;
    let (requests, failures) = (load.requests.into_inner(), load.failures.into_inner().unwrap());
    println!("{requests} requests, {} failed, the root was replaced in {took:?}", failures.len());
    ensure!(
        failures.is_empty(),
        "{} of {requests} failed: {:?}",
        failures.len(),
        &failures[..failures.len().min(5)]
    );
    ensure!(requests > 1_000, "{requests} requests are no load");
    assert_eq!(
        [mesh.client.processes()?, mesh.server.processes()?],
        before,
        "nothing but weftd was restarted"
    );
    Ok(())
}

/// Replaces the root, and kills both replicas at each step, one after the other.
fn replace(mesh: &mut Mesh) -> Result<Duration> {
    let old = mesh.client.roots()?;
    ensure!(old.len() == 1 && mesh.server.roots()? == old, "replicas that start together have one root");
    let started = Instant::now();

    // What cannot be carried out is refused, and dropped.
    mesh.kubectl(&["-n", "istio-system", "create", "secret", "generic", "weft-ca-next"])?;
    for (step, phase) in ["distributing", "switched", "retiring"].into_iter().enumerate() {
        let since = Instant::now();
        wait_for(mesh, phase)?;
        println!("{phase} after {:?}", since.elapsed());
        if step == 0 {
            refused_order(mesh)?;
        }
        let generation = generation(mesh)?;
        for other in [step % 2 == 0, step % 2 == 1] {
            mesh.kill(other)?;
        }
        ensure!(self::generation(mesh)? >= generation, "a kill took a step back");
    }
    let since = Instant::now();
    wait_for(mesh, "stable")?;
    println!("stable after {:?}", since.elapsed());
    eventually("both Envoys to trust the new root alone", PATIENCE, || {
        for agent in [&mesh.client, &mesh.server] {
            let roots = agent.roots()?;
            ensure!(roots.len() == 1 && roots.is_disjoint(&old), "{} roots", roots.len());
        }
        Ok(())
    })?;
    // What rests on the old root would show now.
    thread::sleep(Duration::from_secs(30));
    Ok(started.elapsed())
}

/// Orders something that is no order.
fn refused_order(mesh: &Mesh) -> Result<()> {
    let patch = r#"{"stringData":{"order":"jump"}}"#;
    mesh.kubectl(&["-n", "istio-system", "patch", "secret", "weft-ca-rotation", "-p", patch])?;
    eventually("the order to be dropped", PATIENCE, || {
        ensure!(mesh.secret("weft-ca-rotation", "order").is_err(), "it is still there");
        Ok(())
    })
}

/// Returns how often the state was changed.
fn generation(mesh: &Mesh) -> Result<u64> {
    let state: serde_json::Value = serde_json::from_str(&mesh.secret("weft-ca-rotation", "rotation.json")?)?;
    state["rotation"]["generation"].as_u64().context("no generation")
}

/// Waits until both replicas are at this phase.
fn wait_for(mesh: &Mesh, phase: &str) -> Result<()> {
    let started = Instant::now();
    loop {
        let said = [Some(&mesh.weftd), mesh.other.as_ref()]
            .into_iter()
            .flatten()
            .map(|weftd| mesh.rotation_of(weftd));
        let said = said.collect::<Result<Vec<String>>>()?;
        if said.iter().all(|said| said.starts_with(phase)) {
            return Ok(());
        }
        if started.elapsed() > STEP_LIMIT {
            bail!("not {phase}: {said:?}");
        }
        thread::sleep(Duration::from_millis(250));
    }
}
