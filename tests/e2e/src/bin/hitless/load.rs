//! Requests that flow all the time, each checked against the configurations that may have answered it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use e2e::client::Client;

use crate::mesh::{Mesh, Pod, Random};

/// Every configuration that there has been, and the one that Envoy is known to follow.
#[derive(Debug)]
pub(crate) struct History(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    meshes: Vec<(Arc<Mesh>, String)>,
    settled: usize,
    /// Indices that count as settled from a time on.
    soon: VecDeque<(usize, Instant)>,
}

impl History {
    pub(crate) fn new(mesh: Arc<Mesh>) -> Self {
        let meshes = vec![(mesh, "the start".to_owned())];
        Self(Mutex::new(Inner { meshes, settled: 0, soon: VecDeque::new() }))
    }

    /// Adds a configuration. Must be called before any of it is written.
    pub(crate) fn push(&self, mesh: Arc<Mesh>, what: String) {
        self.lock().meshes.push((mesh, what));
    }

    /// Returns the index of the newest configuration.
    pub(crate) fn newest(&self) -> usize {
        let inner = self.lock();
        inner.meshes.len() - 1
    }

    /// Notes that Envoy follows the configuration `index` or a newer one, `delay` from now.
    pub(crate) fn settled_in(&self, index: usize, delay: Duration) {
        self.lock().soon.push_back((index, Instant::now() + delay));
    }

    /// Returns the oldest configuration that a request which starts now may meet.
    fn oldest(&self) -> usize {
        let mut inner = self.lock();
        while let Some((index, from)) = inner.soon.front().copied()
            && Instant::now() >= from
        {
            inner.settled = index;
            inner.soon.pop_front();
        }
        inner.settled
    }

    /// Returns whether the configurations since `oldest` let `pod` answer for `host`. While edits of different
    /// objects are rolled out at once, each may arrive before the other: routes may be those of one configuration and
    /// endpoints those of another, but neither may be anything that nobody has asked for.
    fn allows(&self, oldest: usize, host: u8, pod: Pod) -> bool {
        let inner = self.lock();
        let mut recent = inner.meshes.iter().skip(oldest).map(|(mesh, _)| mesh);
        recent.clone().any(|mesh| mesh.routes(host, pod)) && recent.any(|mesh| mesh.has(pod))
    }

    /// Returns which edits are being rolled out.
    pub(crate) fn recent(&self) -> String {
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
pub(crate) struct Load {
    gateway: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    history: Arc<History>,
    stopping: AtomicBool,
    requests: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Load {
    pub(crate) fn new(gateway: SocketAddr, history: Arc<History>) -> Self {
        let (stopping, requests) = (AtomicBool::new(false), AtomicU64::new(0));
        let shared = Arc::new(Shared { history, stopping, requests, failures: Mutex::new(Vec::new()) });
        Self { gateway, shared, threads: Vec::new() }
    }

    pub(crate) fn start(&mut self, clients: u32, seed: u64) {
        for number in 0..clients {
            let (shared, gateway) = (self.shared.clone(), self.gateway);
            let random = Random::new(seed ^ u64::from(number + 1) << 32);
            self.threads.push(thread::spawn(move || shared.run(gateway, random)));
        }
    }

    pub(crate) fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn failures(&self) -> Vec<String> {
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
                Ok(answer) if answer.status == 200 => self.judge(oldest, host, &answer.body),
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

    fn judge(&self, oldest: usize, host: u8, body: &str) -> Result<(), String> {
        let mut numbers = body.split(' ').map(|word| word.parse().ok());
        let mut number = || numbers.next().flatten().ok_or_else(|| format!("an answer of nobody: {body:?}"));
        let pod = Pod { service: number()?, version: number()?, number: number()? };
        if self.history.allows(oldest, host, pod) { Ok(()) } else { Err(format!("pod {pod} may not answer")) }
    }

    fn failures(&self) -> MutexGuard<'_, Vec<String>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
