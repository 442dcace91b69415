//! Rotations under random events: proxies come and go, messages are in flight, replicas lag behind, and the control
//! plane is killed at every step. At no moment may anybody be presented a certificate that it does not trust.
//!
//! `WEFT_CA_CASES=N` makes it N thousandths as many runs as requests in `property.rs`.

mod common;

use ca::rotation::{BundleLog, Evidence, LeafReport, Phase, ProxyReport, RetireWhen, Rotation, Settings};
use ca::{BundleHash, CaCertificate, Fingerprint, TrustBundle, UnixTime};
use common::{Ca, NOW, Random};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

const LIFETIME: u64 = 100;
const LAG: u64 = 7;
const PROXIES: usize = 4;
const REPLICAS: usize = 2;

type Roots = BTreeSet<Fingerprint>;

/// What a proxy really has.
#[derive(Default)]
struct Proxy {
    /// The replica at the other end of its stream.
    stream: Option<usize>,
    roots: Option<Roots>,
    leaf: Option<LeafReport>,
    /// On their way to it.
    sent: VecDeque<(BundleHash, Roots)>,
    /// On their way back.
    acks: VecDeque<BundleHash>,
    /// What was sent last on its stream.
    last_sent: Option<BundleHash>,
}

/// One run.
struct Mesh {
    random: Random,
    /// How many of a hundred events are orders of an operator.
    orders: u64,
    /// Whether the control plane sees which certificates proxies have.
    sees_leaves: bool,
    settings: Settings,
    now: UnixTime,
    roots: Vec<CaCertificate>,
    /// What is stored; replica 0 takes steps.
    stored: String,
    replicas: [Rotation; REPLICAS],
    /// Since when a replica acts by an old state.
    outdated: [Option<UnixTime>; REPLICAS],
    proxies: [Proxy; PROXIES],
    /// What replica 0 knows; lost when it is killed.
    reports: [Option<ProxyReport>; PROXIES],
    complete_since: UnixTime,
    bundles: BundleLog,
    log: Vec<String>,
    finished: usize,
}

impl Mesh {
    fn new(roots: &[CaCertificate], seed: u64) -> Self {
        let mut random = Random::new(seed);
        let retire = if random.below(2) == 0 { RetireWhen::Expired } else { RetireWhen::Replaced };
        let lag = Duration::from_secs(LAG);
        let settings = Settings { leaf_lifetime: Duration::from_secs(LIFETIME), replica_lag: lag, retire };
        let stable = Rotation::stable(roots[0].clone(), NOW);
        Self {
            orders: 1 + random.below(10),
            sees_leaves: random.below(2) == 0,
            random,
            settings,
            now: NOW,
            roots: roots.to_vec(),
            stored: stable.to_json(),
            replicas: [stable.clone(), stable],
            outdated: [None; REPLICAS],
            proxies: Default::default(),
            reports: Default::default(),
            complete_since: NOW,
            bundles: BundleLog::new(),
            log: Vec::new(),
            finished: 0,
        }
    }

    fn event(&mut self) {
        let proxy = self.random.index(PROXIES);
        let replica = self.random.index(REPLICAS);
        if self.random.below(100) < self.orders {
            self.order();
        }
        match self.random.below(97) {
            0..12 => self.connect(proxy, replica),
            12..18 => self.disconnect(proxy),
            18..38 => self.deliver(proxy),
            38..58 => self.acknowledge(proxy),
            58..68 => self.renew(proxy, replica),
            68..78 => self.pass_time(),
            78..91 => self.take_a_step(),
            91..95 => self.refresh(1),
            _ => self.kill(),
        }
        self.publish();
        self.check();
    }

    fn note(&mut self, text: &str) {
        self.log.push(format!("{} {text}", self.now.since(NOW).as_secs()));
    }

    fn bundle(&self, replica: usize) -> TrustBundle {
        self.replicas[replica].bundle(&TrustBundle::new())
    }

    fn report(&mut self, proxy: usize) -> &mut ProxyReport {
        let now = self.now;
        let report = self.reports[proxy].get_or_insert_with(|| ProxyReport {
            name: format!("proxy-{proxy}").into(),
            acked: None,
            unanswered: Vec::new(),
            leaves: Vec::new(),
            last_seen: now,
        });
        report.last_seen = now;
        report
    }

    fn connect(&mut self, proxy: usize, replica: usize) {
        let now = self.now;
        let connected = &mut self.proxies[proxy];
        // A stream needs a certificate that is valid.
        let Some(leaf) = connected.leaf.filter(|leaf| leaf.not_after >= now) else { return };
        if connected.stream.is_some() {
            return;
        }
        connected.stream = Some(replica);
        let seen = if self.sees_leaves { vec![leaf] } else { Vec::new() };
        let report = self.report(proxy);
        report.acked = None;
        report.leaves = seen;
        self.note(&format!("proxy {proxy} connects to {replica}"));
    }

    /// The stream breaks: what was on its way may arrive or not, but no answer does.
    fn disconnect(&mut self, proxy: usize) {
        if self.proxies[proxy].stream.take().is_none() {
            return;
        }
        let arrive = self.random.index(self.proxies[proxy].sent.len() + 1);
        let broken = &mut self.proxies[proxy];
        if let Some((_, roots)) = broken.sent.drain(..).take(arrive).next_back() {
            broken.roots = Some(roots);
        }
        broken.acks.clear();
        broken.last_sent = None;
        self.note(&format!("proxy {proxy} loses its stream after {arrive} more"));
    }

    fn deliver(&mut self, proxy: usize) {
        if let Some((hash, roots)) = self.proxies[proxy].sent.pop_front() {
            self.proxies[proxy].roots = Some(roots);
            self.proxies[proxy].acks.push_back(hash);
            self.note(&format!("proxy {proxy} installs {hash}"));
        }
    }

    fn acknowledge(&mut self, proxy: usize) {
        let Some(hash) = self.proxies[proxy].acks.pop_front() else { return };
        let report = self.report(proxy);
        report.acked = Some(hash);
        if let Some(position) = report.unanswered.iter().position(|sent| *sent == hash) {
            report.unanswered.drain(..=position);
        }
        self.note(&format!("proxy {proxy} acknowledges {hash}"));
    }

    /// A certificate, and roots with it, which are taken only by who had no valid one.
    fn renew(&mut self, proxy: usize, replica: usize) {
        let bundle = self.bundle(replica);
        let ttl = match self.random.below(2) {
            0 => LIFETIME,
            _ => 1 + self.random.below(LIFETIME),
        };
        let ttl = Duration::from_secs(ttl);
        let leaf = LeafReport { root: self.replicas[replica].signer(), not_after: self.now.after(ttl) };
        self.bundles.note(&bundle);
        let now = self.now;
        let renewed = &mut self.proxies[proxy];
        if renewed.leaf.is_none_or(|leaf| leaf.not_after < now) {
            renewed.roots = Some(bundle.fingerprints().clone());
        }
        renewed.leaf = Some(leaf);
        let sees_leaves = self.sees_leaves;
        let report = self.report(proxy);
        report.unanswered.push(bundle.hash());
        report.leaves.extend(sees_leaves.then_some(leaf));
        self.note(&format!("proxy {proxy} gets a certificate of {} by {replica}", leaf.root));
    }

    fn pass_time(&mut self) {
        let seconds = match self.random.below(10) {
            0 => LIFETIME + self.random.below(LIFETIME),
            1..4 => self.random.below(LIFETIME),
            _ => self.random.below(LAG + 2),
        };
        self.now = self.now.after(Duration::from_secs(seconds));
        for replica in 0..REPLICAS {
            let late = |since: UnixTime| self.now >= since.after(self.settings.replica_lag);
            if self.outdated[replica].is_some_and(late) {
                self.refresh(replica);
            }
        }
        for proxy in 0..PROXIES {
            if self.proxies[proxy].stream.is_some() {
                self.report(proxy);
            }
            // A stream whose certificate has expired ends.
            if self.proxies[proxy].leaf.is_some_and(|leaf| leaf.not_after < self.now) {
                self.disconnect(proxy);
            }
        }
    }

    fn take_a_step(&mut self) {
        let reports: Vec<ProxyReport> = self.reports.iter().flatten().cloned().collect();
        let evidence = Evidence {
            proxies: &reports,
            complete_since: self.complete_since,
            bundles: &self.bundles,
            replicas: &[],
        };
        if let Ok(next) = self.replicas[0].next(&evidence, &self.settings, self.now) {
            self.note(&format!("step to: {}", next.phase()));
            if next.phase() == Phase::Stable {
                self.finished += 1;
            }
            self.store(next);
        }
    }

    fn order(&mut self) {
        let choice = self.random.below(3);
        let root = self.roots[self.random.index(self.roots.len())].clone();
        let present = &self.replicas[0];
        let next = match choice {
            0 => present.begin(root, self.now).ok(),
            1 => present.roll_back().ok(),
            _ => present.resume(self.now).ok(),
        };
        if let Some(next) = next {
            self.note(&format!("order {choice}: {}", next.phase()));
            self.store(next);
        }
    }

    /// Stored first, then acted upon; the process may die in between.
    fn store(&mut self, next: Rotation) {
        self.stored = next.to_json();
        assert_eq!(Rotation::from_json(&self.stored).unwrap(), next);
        for outdated in self.outdated.iter_mut().skip(1) {
            outdated.get_or_insert(self.now);
        }
        if self.random.below(4) == 0 {
            self.kill();
        } else {
            self.replicas[0] = next;
        }
    }

    fn refresh(&mut self, replica: usize) {
        self.replicas[replica] = Rotation::from_json(&self.stored).unwrap();
        self.outdated[replica] = None;
    }

    fn kill(&mut self) {
        self.note("the control plane is killed");
        for proxy in 0..PROXIES {
            self.disconnect(proxy);
        }
        self.refresh(0);
        self.reports = Default::default();
        self.bundles = BundleLog::new();
        self.complete_since = self.now;
    }

    /// Every stream is sent what its replica would have it trust.
    fn publish(&mut self) {
        for replica in 0..REPLICAS {
            let bundle = self.bundle(replica);
            let hash = bundle.hash();
            for proxy in 0..PROXIES {
                let connected = &mut self.proxies[proxy];
                if connected.stream != Some(replica) || connected.last_sent == Some(hash) {
                    continue;
                }
                self.bundles.note(&bundle);
                connected.last_sent = Some(hash);
                connected.sent.push_back((hash, bundle.fingerprints().clone()));
                self.report(proxy).unanswered.push(hash);
            }
        }
    }

    fn check(&self) {
        let valid = |proxy: &&Proxy| proxy.leaf.is_some_and(|leaf| leaf.not_after >= self.now);
        for one in self.proxies.iter().filter(valid) {
            for other in self.proxies.iter().filter(valid) {
                let trusts =
                    one.roots.as_ref().is_some_and(|roots| roots.contains(&other.leaf.unwrap().root));
                assert!(trusts, "a handshake fails after\n{}", self.log.join("\n"));
            }
        }
    }

    /// All is well for a while: whatever was begun must come to its end.
    fn settle(&mut self) {
        for round in 0..200 {
            if self.replicas[0].phase() == Phase::Stable {
                return;
            }
            self.now = self.now.after(Duration::from_secs(10));
            self.refresh(1);
            for proxy in 0..PROXIES {
                if round % 4 == 0 {
                    self.disconnect(proxy);
                }
                self.renew(proxy, 0);
                self.connect(proxy, 0);
                self.publish();
                while !self.proxies[proxy].sent.is_empty() {
                    self.deliver(proxy);
                    self.acknowledge(proxy);
                }
                while !self.proxies[proxy].acks.is_empty() {
                    self.acknowledge(proxy);
                }
                self.report(proxy);
                self.check();
            }
            self.take_a_step();
            self.publish();
            self.check();
        }
        panic!("no end of {} after\n{}", self.replicas[0].phase(), self.log.join("\n"));
    }
}

#[test]
fn no_handshake_fails_whatever_happens() {
    let roots = ["a", "b", "c"].map(|name| Ca::root(name).certificate());
    let mut finished = 0;
    for seed in 0..common::cases(300_000) / 1_000 {
        let mut mesh = Mesh::new(&roots, seed);
        for _ in 0..400 {
            mesh.event();
        }
        mesh.settle();
        finished += mesh.finished;
    }
    println!("{finished} rotations came to an end");
    assert!(finished > 0);
}
