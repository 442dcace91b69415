//! Requests that flow all the time, each checked against the configurations that may have answered it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Mesh, Outcome, Pod, Random};
use crate::client::Client;

/// Every configuration that there has been, and the one that Envoy is known to follow.
#[derive(Debug)]
pub struct History(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    meshes: Vec<(Arc<Mesh>, String)>,
    settled: usize,
    /// Indices that count as settled from a time on.
    soon: VecDeque<(usize, Instant)>,
}

impl History {
    /// Begins with a configuration that Envoy follows.
    pub fn new(mesh: Arc<Mesh>) -> Self {
        let meshes = vec![(mesh, "the start".to_owned())];
        Self(Mutex::new(Inner { meshes, settled: 0, soon: VecDeque::new() }))
    }

    /// Adds a configuration. Must be called before any of it is written.
    pub fn push(&self, mesh: Arc<Mesh>, what: String) {
        self.lock().meshes.push((mesh, what));
    }

    /// Returns the index of the newest configuration.
    pub fn newest(&self) -> usize {
        let inner = self.lock();
        inner.meshes.len() - 1
    }

    /// Notes that Envoy follows the configuration `index` or a newer one, `delay` from now.
    pub fn settled_in(&self, index: usize, delay: Duration) {
        self.lock().soon.push_back((index, Instant::now() + delay));
    }

    /// Returns the index of the oldest configuration that a request which starts now may meet.
    pub fn oldest(&self) -> usize {
        let mut inner = self.lock();
        while let Some((index, from)) = inner.soon.front().copied()
            && Instant::now() >= from
        {
            inner.settled = index;
            inner.soon.pop_front();
        }
        inner.settled
    }

    /// Returns the configurations from `oldest` to the newest.
    pub fn since(&self, oldest: usize) -> Vec<Arc<Mesh>> {
        self.lock().meshes.iter().skip(oldest).map(|(mesh, _)| mesh.clone()).collect()
    }

    /// Returns which edits are being rolled out.
    pub fn recent(&self) -> String {
        let inner = self.lock();
        let since = inner.settled;
        let edits: Vec<&str> = inner.meshes.iter().skip(since).map(|(_, what)| what.as_str()).collect();
        format!("edits being rolled out: {}", edits.join("; "))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The clients.
#[derive(Debug)]
pub struct Load {
    gateway: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    history: Arc<History>,
    stopping: AtomicBool,
    requests: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Load {
    /// Returns clients of a gateway that send nothing yet.
    pub fn new(gateway: SocketAddr, history: Arc<History>) -> Self {
        let (stopping, requests) = (AtomicBool::new(false), AtomicU64::new(0));
        let shared = Arc::new(Shared { history, stopping, requests, failures: Mutex::new(Vec::new()) });
        Self { gateway, shared, threads: Vec::new() }
    }

    /// Starts clients.
    pub fn start(&mut self, clients: u32, seed: u64) {
        for number in 0..clients {
            let (shared, gateway) = (self.shared.clone(), self.gateway);
            let random = Random::new(seed ^ u64::from(number + 1) << 32);
            self.threads.push(thread::spawn(move || shared.run(gateway, random)));
        }
    }

    /// Returns how many requests were sent.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Returns what failed.
    pub fn failures(&self) -> Vec<String> {
        self.shared.failures().clone()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self, gateway: SocketAddr, mut random: Random) {
        let mut client = Client::new(gateway, Duration::from_secs(10));
        while !self.stopping.load(Ordering::Relaxed) {
            let host = u8::try_from(random.below(Mesh::host_count().into())).expect("there are few hosts");
            let oldest = self.history.oldest();
            let result = match client.get(&Mesh::host_name(host), "/") {
                Ok(answer) if answer.status == 200 => {
                    pod(&answer.body).and_then(|pod| self.judge(oldest, host, Outcome::Pod(pod)))
                }
                Ok(answer) if answer.status == 503 => self
                    .judge(oldest, host, Outcome::Unavailable)
                    .map_err(|reason| format!("{reason}: {} {}", answer.body, answer.flags)),
                Ok(answer) => Err(format!("{} {} {}", answer.status, answer.body, answer.flags)),
                Err(error) => Err(error.to_string()),
            };
            self.requests.fetch_add(1, Ordering::Relaxed);
            if let Err(failure) = result {
                let failure = format!("host{host}: {failure}; {}", self.history.recent());
                self.failures().push(failure);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// An answer is allowed if one of the configurations that may have been in use allows it, routes and endpoints
    /// together.
    fn judge(&self, oldest: usize, host: u8, outcome: Outcome) -> Result<(), String> {
        let recent = self.history.since(oldest);
        if recent.iter().any(|mesh| mesh.allows(host, outcome)) {
            return Ok(());
        }
        Err(match outcome {
            Outcome::Pod(pod) => format!("pod {pod} may not answer"),
            Outcome::Unavailable => "503".to_owned(),
        })
    }

    fn failures(&self) -> MutexGuard<'_, Vec<String>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads which pod has answered.
fn pod(body: &str) -> Result<Pod, String> {
    let mut numbers = body.split(' ').map(|word| word.parse().ok());
    let mut number = || numbers.next().flatten().ok_or_else(|| format!("an answer of nobody: {body:?}"));
    Ok(Pod { service: number()?, version: number()?, number: number()? })
}
