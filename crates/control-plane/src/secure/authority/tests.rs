//! Authorities in directories: made, replaced by hand, and replaced by rotation.

use super::super::proxies::Proxies;
use super::super::store::{CERTIFICATE, KEY, ROOT, self_signed};
use super::*;
use identity::{Caller, Proof, Recorder};
use model::WorkloadId;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::SystemTime;

struct Rig {
    held: watch::Receiver<Option<Held>>,
    progress: watch::Receiver<String>,
    proxies: Arc<Proxies>,
    clock: Arc<Mutex<SystemTime>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Rig {
    fn start(directory: &Path) -> Self {
        let now = Arc::new(Mutex::new(SystemTime::now()));
        Self::start_at(directory, now)
    }

    fn start_at(directory: &Path, now: Arc<Mutex<SystemTime>>) -> Self {
        let (sender, held) = watch::channel(None);
        let (shown, progress) = watch::channel(String::new());
        let time = now.clone();
        let clock: Clock = Arc::new(move || *time.lock().unwrap());
        let proxies = Arc::new(Proxies::new(clock.clone()));
        let policy = Policy {
            default_ttl: Duration::from_secs(60),
            max_ttl: Duration::from_secs(60),
            ..Policy::new("cluster.local".parse().unwrap())
        };
        let keeper = Keeper {
            store: Store::Directory(directory.to_owned()),
            policy,
            clock,
            metrics: Metrics::default(),
            proxies: proxies.clone(),
            replicas: None,
            stopping: CancellationToken::new(),
            held: sender,
            progress: shown,
        };
        Self { held, progress, proxies, clock: now, task: tokio::spawn(keeper.keep()) }
    }

    async fn ready(&mut self) -> Held {
        self.held.wait_for(Option::is_some).await.unwrap().clone().unwrap()
    }

    fn now(&self) -> Held {
        self.held.borrow().clone().unwrap()
    }

    fn root_pem(&self) -> String {
        self.now().authority.bundle().to_pem()
    }

    fn signer(&self) -> Fingerprint {
        self.now().authority.material().root()
    }

    fn roots(&self) -> usize {
        self.now().authority.bundle().len()
    }

    /// Lets time pass, and the keeper look twice.
    async fn pass(&self, seconds: u64) {
        *self.clock.lock().unwrap() += Duration::from_secs(seconds);
        tokio::time::sleep(POLL_SOON * 3).await;
    }

    fn says(&self, text: &str) {
        let progress = self.progress.borrow().clone();
        assert!(progress.contains(text), "{progress}");
    }

    fn caller() -> Caller {
        Caller {
            id: "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap(),
            proof: Proof::Token,
            pod: Some(identity::Pod { name: "cart-1".into(), uid: "1".into() }),
            node: None,
            expires: SystemTime::now(),
        }
    }

    /// Certifies `cart-1`, by the authority of now.
    fn certify(&self) {
        let key = rcgen::KeyPair::generate().unwrap();
        let public = ca::PublicKey::from_spki(&rcgen::PublicKeyData::subject_public_key_info(&key)).unwrap();
        let caller = Self::caller();
        let now = UnixTime::from(*self.clock.lock().unwrap());
        let serial = ca::Serial::from_random(std::array::from_fn(|_| rand_byte()));
        let issued = self.now().authority.issue_for_key(&public, &caller.id, None, now, serial).unwrap();
        self.proxies.issued(&caller, None, &issued);
    }
}

fn rand_byte() -> u8 {
    let mut byte = [0];
    aws_lc_rs::rand::fill(&mut byte).unwrap();
    byte[0]
}

#[tokio::test(start_paused = true)]
async fn an_empty_directory_gets_an_authority_that_stays() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("ca");
    let mut rig = Rig::start(&directory);
    rig.ready().await;
    let first = rig.root_pem();
    for name in [KEY, CERTIFICATE, ROOT] {
        let mode = std::fs::metadata(directory.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    drop(rig);
    let mut again = Rig::start(&directory);
    again.ready().await;
    assert_eq!(again.root_pem(), first, "a restart signs with the same key");
}

#[tokio::test(start_paused = true)]
async fn a_new_authority_is_taken_up_and_a_bad_one_is_not() {
    let scratch = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(scratch.path());
    rig.ready().await;
    let first = rig.root_pem();

    std::fs::write(scratch.path().join(CERTIFICATE), "nonsense").unwrap();
    tokio::time::sleep(POLL_SOON * 3).await;
    assert_eq!(rig.root_pem(), first);

    let clock: Clock = Arc::new(SystemTime::now);
    let other = self_signed(&"cluster.local".parse().unwrap(), &clock).unwrap();
    rig.held.mark_unchanged();
    for (name, content) in other {
        std::fs::write(scratch.path().join(name), content).unwrap();
    }
    rig.held.changed().await.unwrap();
    assert_ne!(rig.root_pem(), first);
}

#[tokio::test(start_paused = true)]
async fn a_root_is_replaced_step_by_step_and_a_restart_at_each_step_goes_on() {
    let scratch = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(scratch.path());
    rig.ready().await;
    let old = rig.signer();
    rig.certify();
    let workload = WorkloadId { namespace: "shop".into(), name: "cart-1".into() };
    let mut stream = rig.proxies.enter(&Rig::caller(), None, &workload, None);
    stream.asks_for_roots(true);
    let ack = |rig: &Rig, stream: &super::super::proxies::Tracker| {
        let held = rig.now();
        stream.sends(held.authority.bundle().hash());
        stream.acked(held.roots.version());
    };
    ack(&rig, &stream);

    // An empty folder asks for a root of weftd's own.
    std::fs::create_dir(scratch.path().join("next")).unwrap();
    rig.pass(70).await;
    assert_eq!((rig.roots(), rig.signer()), (2, old));
    rig.says("distributing both roots");
    rig.pass(70).await;
    assert_eq!(rig.signer(), old, "nobody has acknowledged both");
    rig.says("has not acknowledged the present roots");

    ack(&rig, &stream);
    rig.pass(2).await;
    let new = rig.signer();
    assert_ne!(new, old);
    assert_eq!(rig.roots(), 2);

    // Another process goes on where this one was.
    let clock = rig.clock.clone();
    drop(stream);
    drop(rig);
    let mut rig = Rig::start_at(scratch.path(), clock);
    rig.ready().await;
    assert_eq!((rig.roots(), rig.signer()), (2, new));
    rig.certify();
    let mut stream = rig.proxies.enter(&Rig::caller(), None, &workload, None);
    stream.asks_for_roots(true);
    ack(&rig, &stream);
    rig.pass(30).await;
    assert_eq!(rig.roots(), 2, "certificates of the old root may still be out there");
    rig.certify();
    rig.pass(40).await;
    rig.certify();
    rig.pass(5).await;
    assert_eq!((rig.roots(), rig.signer()), (1, new));
    rig.says("has not acknowledged the present roots");
    ack(&rig, &stream);
    rig.pass(2).await;
    rig.says("stable");

    // The files are moved; nothing changes.
    let clock = rig.clock.clone();
    drop(stream);
    drop(rig);
    for name in [KEY, CERTIFICATE, ROOT] {
        std::fs::rename(scratch.path().join("next").join(name), scratch.path().join(name)).unwrap();
    }
    std::fs::remove_dir(scratch.path().join("next")).unwrap();
    let mut rig = Rig::start_at(scratch.path(), clock);
    rig.ready().await;
    assert_eq!((rig.roots(), rig.signer()), (1, new));
}

#[tokio::test(start_paused = true)]
async fn an_operator_forces_and_rolls_back() {
    let scratch = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(scratch.path());
    rig.ready().await;
    let old = rig.signer();
    rig.certify();
    let order = scratch.path().join("order");

    std::fs::write(&order, "force anna: no rotation yet").unwrap();
    rig.pass(1).await;
    assert!(!order.exists(), "an order that cannot be carried out is not kept");

    std::fs::create_dir(scratch.path().join("next")).unwrap();
    rig.pass(1).await;
    assert_eq!((rig.roots(), rig.signer()), (2, old));
    std::fs::write(&order, "force").unwrap();
    rig.pass(1).await;
    assert_eq!(rig.signer(), old, "an order without a name is none");
    std::fs::write(&order, "force anna: the old key has leaked").unwrap();
    rig.pass(1).await;
    assert_ne!(rig.signer(), old);
    let kept = std::fs::read_to_string(scratch.path().join("rotation.json")).unwrap();
    assert!(kept.contains("anna: the old key has leaked"), "{kept}");

    std::fs::write(&order, "rollback\n").unwrap();
    rig.pass(1).await;
    rig.pass(1).await;
    assert_eq!((rig.roots(), rig.signer()), (2, old), "everybody still trusts the old root");
    rig.says("rolling back");

    // All that was issued meanwhile has expired. It does not begin again, although the other authority is still there.
    for _ in 0..5 {
        rig.pass(61).await;
    }
    assert_eq!((rig.roots(), rig.signer()), (1, old));
    rig.says("stable");
    let kept = std::fs::read_to_string(scratch.path().join("rotation.json")).unwrap();
    drop(rig);
    let now = Arc::new(Mutex::new(SystemTime::now() + Duration::from_secs(400)));
    let mut rig = Rig::start_at(scratch.path(), now);
    rig.ready().await;
    rig.pass(61).await;
    assert_eq!((rig.roots(), rig.signer()), (1, old), "nor after a restart");
    assert_eq!(std::fs::read_to_string(scratch.path().join("rotation.json")).unwrap(), kept);
    // Unless that is ordered.
    std::fs::write(&order, "resume").unwrap();
    rig.pass(1).await;
    assert_eq!((rig.roots(), rig.signer()), (2, old));
}

#[tokio::test(start_paused = true)]
async fn a_bad_successor_is_not_in_the_way() {
    let scratch = tempfile::tempdir().unwrap();
    let next = scratch.path().join("next");
    std::fs::create_dir(&next).unwrap();
    std::fs::write(next.join(CERTIFICATE), "nonsense").unwrap();
    // From the start.
    let mut rig = Rig::start(scratch.path());
    rig.ready().await;
    let old = rig.signer();
    // A key that is not that of the certificate.
    let clock: Clock = Arc::new(SystemTime::now);
    let domain = "cluster.local".parse().unwrap();
    let (one, other) = (self_signed(&domain, &clock).unwrap(), self_signed(&domain, &clock).unwrap());
    for (name, content) in [(CERTIFICATE, &one), (ROOT, &one), (KEY, &other)].map(|(n, of)| (n, &of[n])) {
        std::fs::write(next.join(name), content).unwrap();
    }
    rig.pass(1).await;
    assert_eq!((rig.roots(), rig.signer()), (1, old));
    assert!(!scratch.path().join("rotation.json").exists(), "nothing has begun");
    // Put right, it takes over.
    std::fs::write(next.join(KEY), &one[KEY]).unwrap();
    rig.pass(1).await;
    assert_eq!((rig.roots(), rig.signer()), (2, old));
    // From here on it is needed: whatever becomes of it, nothing changes by itself.
    std::fs::write(next.join(KEY), &other[KEY]).unwrap();
    rig.pass(1).await;
    assert_eq!((rig.roots(), rig.signer()), (2, old));
}

#[tokio::test(start_paused = true)]
async fn a_root_whose_key_is_gone_does_not_sign() {
    let scratch = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(scratch.path());
    rig.ready().await;
    std::fs::create_dir(scratch.path().join("next")).unwrap();
    rig.pass(1).await;
    std::fs::write(scratch.path().join("order"), "force anna: quick").unwrap();
    rig.pass(1).await;
    let new = rig.signer();
    std::fs::remove_dir_all(scratch.path().join("next")).unwrap();
    rig.pass(1).await;
    assert_eq!(rig.signer(), new, "what is in use stays in use");
    drop(rig);
    let rig = Rig::start(scratch.path());
    tokio::time::sleep(POLL_SOON * 3).await;
    assert!(rig.held.borrow().is_none(), "rather nothing than the wrong root");
}
