//! Many simulated proxies, and what becomes of them.

use crate::envoy::{Applied, Dangling, Envoy};
use crate::facts::{Facts, Library};
use crate::stats::Spread;
use crate::stream::Stream;
use anyhow::{anyhow, bail};
use parking_lot::{Mutex, RwLock};
use proto::envoy::config::core::v3::Node;
use proto::resource::ResourceType;
use rustls::ClientConfig;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

/// What one waits for: a resource of this type about which the predicate holds.
type Wanted = Box<dyn Fn(&Facts) -> bool + Send + Sync>;

/// Waits until every proxy has seen something.
pub struct Probe {
    kind: ResourceType,
    wanted: Wanted,
    began: Instant,
    seen: Vec<AtomicBool>,
    missing: AtomicUsize,
    times: Mutex<Vec<Duration>>,
    done: Notify,
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe")
            .field("kind", &self.kind)
            .field("missing", &self.missing)
            .finish_non_exhaustive()
    }
}

impl Probe {
    fn look(&self, proxy: usize, applied: &Applied, now: Instant) {
        if applied.kind != self.kind || !applied.resources.iter().any(|facts| (self.wanted)(facts)) {
            return;
        }
        if self.seen[proxy].swap(true, Ordering::Relaxed) {
            return;
        }
        self.times.lock().push(now.saturating_duration_since(self.began));
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_one();
        }
    }
}

/// What the proxies share.
#[derive(Debug, Default)]
struct Shared {
    library: Arc<Library>,
    probe: RwLock<Option<Arc<Probe>>>,
    responses: AtomicU64,
    bytes: AtomicU64,
}

/// What was received in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Responses.
    pub responses: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Proxies that are connected. They disconnect when it is dropped.
#[derive(Debug)]
pub struct Fleet {
    proxies: Vec<Arc<Mutex<Envoy>>>,
    shared: Arc<Shared>,
    tasks: JoinSet<anyhow::Error>,
}

impl Fleet {
    /// Connects one proxy a node, all at once, and waits until each has everything. Returns how long each took from
    /// the start of the first.
    ///
    /// # Errors
    ///
    /// If one is refused, or does not have everything within `limit`.
    pub async fn connect(
        server: SocketAddr,
        nodes: Vec<Node>,
        limit: Duration,
    ) -> anyhow::Result<(Self, Spread)> {
        let proxies = nodes.into_iter().map(|node| (node, None)).collect();
        Self::connect_as(server, proxies, limit).await
    }

    /// As [`Fleet::connect`], over TLS where a proxy has a configuration.
    ///
    /// # Errors
    ///
    /// As [`Fleet::connect`].
    pub async fn connect_as(
        server: SocketAddr,
        nodes: Vec<(Node, Option<Arc<ClientConfig>>)>,
        limit: Duration,
    ) -> anyhow::Result<(Self, Spread)> {
        let count = nodes.len();
        let shared = Arc::new(Shared::default());
        let mut fleet =
            Self { proxies: Vec::with_capacity(count), shared: shared.clone(), tasks: JoinSet::new() };
        let (converged, mut arrivals) = mpsc::unbounded_channel();
        for (index, (node, tls)) in nodes.into_iter().enumerate() {
            let envoy = Arc::new(Mutex::new(Envoy::new(node, shared.library.clone())));
            fleet.proxies.push(envoy.clone());
            let (shared, converged) = (shared.clone(), converged.clone());
            fleet.tasks.spawn(async move {
                let Err(error) = live(index, (server, tls), &envoy, &shared, &converged).await;
                error.context(format!("proxy {index}"))
            });
        }
        let began = Instant::now();
        let mut times = Vec::with_capacity(count);
        let arrived = async {
            while times.len() < count {
                tokio::select! {
                    Some(at) = arrivals.recv() => times.push(Instant::saturating_duration_since(&at, began)),
                    Some(ended) = fleet.tasks.join_next() => return Err(ended?),
                }
            }
            Ok(())
        };
        match tokio::time::timeout(limit, arrived).await {
            Ok(result) => result?,
            Err(_) => {
                bail!("after {limit:?} only {} of {count} proxies have all that they asked for", times.len())
            }
        }
        Ok((fleet, times.into_iter().collect()))
    }

    /// Begins to wait for a resource of type `kind`, from now on.
    pub fn expect(
        &self,
        kind: ResourceType,
        wanted: impl Fn(&Facts) -> bool + Send + Sync + 'static,
    ) -> Arc<Probe> {
        let count = self.proxies.len();
        let probe = Arc::new(Probe {
            kind,
            wanted: Box::new(wanted),
            began: Instant::now(),
            seen: (0..count).map(|_| AtomicBool::new(false)).collect(),
            missing: AtomicUsize::new(count),
            times: Mutex::new(Vec::with_capacity(count)),
            done: Notify::new(),
        });
        *self.shared.probe.write() = Some(probe.clone());
        probe
    }

    /// Waits until every proxy has acknowledged what `probe` waits for, and returns how long each took.
    ///
    /// # Errors
    ///
    /// If that takes longer than `limit`, or a stream ends.
    pub async fn wait(&mut self, probe: &Probe, limit: Duration) -> anyhow::Result<Vec<Duration>> {
        let done = async {
            while probe.missing.load(Ordering::Acquire) > 0 {
                tokio::select! {
                    () = probe.done.notified() => {}
                    Some(ended) = self.tasks.join_next() => return Err(ended?),
                }
            }
            Ok(())
        };
        match tokio::time::timeout(limit, done).await {
            Ok(result) => result?,
            Err(_) => bail!(
                "after {limit:?} a change has not reached {} proxies",
                probe.missing.load(Ordering::Acquire)
            ),
        }
        *self.shared.probe.write() = None;
        Ok(probe.times.lock().clone())
    }

    /// Waits until nothing has been received for as long as `quiet`.
    ///
    /// # Errors
    ///
    /// If a stream has ended.
    pub async fn settle(&mut self, quiet: Duration) -> anyhow::Result<()> {
        let mut before = self.traffic();
        loop {
            tokio::time::sleep(quiet).await;
            if let Some(ended) = self.tasks.try_join_next() {
                return Err(ended?);
            }
            let now = self.traffic();
            if now == before {
                return Ok(());
            }
            before = now;
        }
    }

    /// Returns what was received so far.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            responses: self.shared.responses.load(Ordering::Relaxed),
            bytes: self.shared.bytes.load(Ordering::Relaxed),
        }
    }

    /// Returns how many proxies have all that they asked for.
    pub fn converged(&self) -> usize {
        self.proxies.iter().filter(|envoy| envoy.lock().is_converged()).count()
    }

    /// Returns how many clusters, assignments, listeners and routes the first proxy has.
    pub fn counts(&self) -> [usize; 4] {
        self.proxies.first().map(|envoy| envoy.lock().counts()).unwrap_or_default()
    }

    /// Returns, over all proxies, how long acknowledged routes have named clusters that could not be used.
    pub fn dangling(&self) -> Dangling {
        let now = Instant::now();
        self.proxies.iter().map(|envoy| envoy.lock().dangling(now)).fold(Dangling::default(), |sum, one| {
            Dangling {
                times: sum.times + one.times,
                total: sum.total + one.total,
                longest: sum.longest.max(one.longest),
            }
        })
    }
}

/// Proxies have addresses of their own, by which servers tell them apart. On loopback there are enough for all; elsewhere
/// the system chooses.
pub(crate) fn source_of(index: usize, server: SocketAddr) -> Option<IpAddr> {
    let SocketAddr::V4(server) = server else { return None };
    let number = u32::try_from(index).ok().filter(|number| *number < 1 << 16)?;
    let own = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 200, 0, 1)) + number);
    server.ip().is_loopback().then_some(IpAddr::V4(own))
}

/// One proxy, for as long as its stream lives.
async fn live(
    index: usize,
    (server, tls): (SocketAddr, Option<Arc<ClientConfig>>),
    envoy: &Mutex<Envoy>,
    shared: &Shared,
    converged: &mpsc::UnboundedSender<Instant>,
) -> Result<std::convert::Infallible, anyhow::Error> {
    let first = envoy.lock().first_request();
    let mut stream = Stream::open(server, tls, source_of(index, server), &first).await?;
    drop(first);
    let mut has_converged = false;
    loop {
        let message = stream.next().await?;
        shared.responses.fetch_add(1, Ordering::Relaxed);
        shared.bytes.fetch_add(message.len() as u64, Ordering::Relaxed);
        let mut locked = envoy.lock();
        let applied = locked.on_response(&message, Instant::now());
        let applied = applied.ok_or_else(|| anyhow!("a response of a type that was not asked for"))?;
        let is_converged = locked.is_converged();
        drop(locked);
        for request in &applied.requests {
            stream.send(request)?;
        }
        if is_converged && !std::mem::replace(&mut has_converged, true) {
            // Who counts may have heard enough.
            let _ = converged.send(Instant::now());
        }
        let probe = shared.probe.read().clone();
        if let Some(probe) = probe {
            probe.look(index, &applied, Instant::now());
        }
    }
}
