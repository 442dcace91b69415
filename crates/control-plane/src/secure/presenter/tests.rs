//! Rotations while pods are created, and what is waited for.

use super::super::authority::assemble;
use super::super::store::{Files, self_signed};
use super::*;
use crate::admission::Admission;
use ca::{Policy, UnixTime};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, UnixTime as TlsTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

const NAME: &str = "istiod.istio-system.svc";

fn authority() -> Files {
    self_signed(&"cluster.local".parse().unwrap(), &identity::system_clock()).unwrap()
}

fn held(signer: &Files, others: &[&Files]) -> Held {
    let now = UnixTime::from(SystemTime::now());
    let loaded = ca::material::load(signer, now).unwrap();
    let bundle = others.iter().fold(loaded.roots.clone(), |bundle, other| {
        bundle.union(&ca::material::load(other, now).unwrap().roots)
    });
    assemble(loaded, bundle, &Policy::new("cluster.local".parse().unwrap()), None, now).unwrap()
}

struct Rig {
    held: watch::Sender<Option<Held>>,
    bundles: watch::Sender<Bundles>,
    wanted: watch::Receiver<Option<Arc<str>>>,
    tls: watch::Receiver<Option<Arc<ServerConfig>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Rig {
    fn start(first: Held, pace: Pace) -> Self {
        Self::start_at(first, pace, identity::system_clock())
    }

    fn start_at(first: Held, pace: Pace, clock: Clock) -> Self {
        let (held, seen) = watch::channel(Some(first));
        let (bundles, known) = watch::channel(None);
        let (sender, wanted) = watch::channel(None);
        let (certificates, tls) = watch::channel(None);
        let presenter = Presenter {
            held: seen,
            names: vec![ServerName::try_from(NAME).unwrap()],
            clock,
            pace,
            bundles: known,
            wanted: sender,
            roots: watch::channel(None).0,
            tls: certificates,
        };
        Self { held, bundles, wanted, tls, task: tokio::spawn(presenter.keep()) }
    }

    /// What a configuration should have by now, as an API server would be told.
    fn wanted(&mut self) -> String {
        self.wanted.borrow_and_update().as_deref().unwrap_or_default().to_owned()
    }

    fn tell(&self, bundle: &str) {
        self.bundles.send_replace(Some(Arc::new(vec![bundle.as_bytes().to_vec()])));
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Trusts what an API server is told to trust at the moment of a handshake.
#[derive(Debug)]
struct Newest(watch::Receiver<Arc<WebPkiServerVerifier>>);

impl Newest {
    fn verifier(&self) -> Arc<WebPkiServerVerifier> {
        self.0.borrow().clone()
    }
}

fn verifier(bundle: &str) -> Arc<WebPkiServerVerifier> {
    let mut roots = RootCertStore::empty();
    for root in TrustBundle::from_pem(bundle.as_bytes()).unwrap().iter() {
        roots.add(root.der().clone()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap()
}

impl ServerCertVerifier for Newest {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: TlsTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verifier().verify_server_cert(leaf, chain, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier().verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier().verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier().supported_verify_schemes()
    }
}

fn api_server(trust: watch::Receiver<Arc<WebPkiServerVerifier>>) -> TlsConnector {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(Newest(trust)));
    TlsConnector::from(Arc::new(config.with_no_client_auth()))
}

/// Asks about a pod on a connection of its own.
async fn create_pod(address: SocketAddr, client: &TlsConnector) -> std::io::Result<String> {
    let body = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","resource":{"group":"","version":"v1","resource":"pods"},"namespace":"app","operation":"CREATE","object":{"metadata":{"name":"a"},"spec":{"containers":[{"name":"a","image":"b"}]}}}}"#;
    let stream = TcpStream::connect(address).await?;
    let mut stream = client.connect(ServerName::try_from(NAME).unwrap(), stream).await?;
    let head = format!(
        "POST /inject HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_rotations_lose_no_request() {
    const ROTATIONS: usize = 200;
    /// Whatever stands still is to say so, and not to keep others waiting.
    const LIMIT: Duration = Duration::from_secs(300);
    let roots = [authority(), authority(), authority()];
    // Replaced roots are never dropped here: that is a matter of time, which the next test is about.
    let hour = Duration::from_secs(3600);
    let pace = Pace { lag: hour, settling: Duration::ZERO, patience: hour };
    let mut rig = Rig::start(held(&roots[0], &[]), pace);
    rig.tls.wait_for(Option::is_some).await.unwrap();
    rig.tls.mark_unchanged();
    rig.wanted.wait_for(Option::is_some).await.unwrap();
    let wanted = rig.wanted();
    let (trust, trusted) = watch::channel(verifier(&wanted));
    rig.tell(&wanted);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let port = tokio::spawn(Admission::of_nothing(listener, rig.tls.clone()).serve(stop.clone()));
    let (is_over, created) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let (client, is_over, created) = (api_server(trusted.clone()), is_over.clone(), created.clone());
            tokio::spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    let answer = create_pod(address, &client).await.unwrap();
                    assert!(answer.contains("\"patchType\":\"JSONPatch\""), "{answer}");
                    created.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
        })
        .collect();

    let (mut changes_of_root, mut writes) = (0, 0);
    let began = Instant::now();
    for rotation in 1..=ROTATIONS {
        // Others go on while this one happens.
        let before = created.load(Ordering::Relaxed);
        let signer = rotation / 20 % roots.len();
        let is_other = signer != (rotation - 1) / 20 % roots.len();
        changes_of_root += usize::from(is_other);
        rig.held.send_replace(Some(held(&roots[signer], &[])));
        while !rig.tls.has_changed().unwrap() {
            assert!(began.elapsed() < LIMIT, "no certificate came of rotation {rotation}");
            if rig.wanted.has_changed().unwrap() {
                writes += 1;
                // As an API server: it acts by the configuration before weftd hears that it was written.
                let wanted = rig.wanted();
                trust.send_replace(verifier(&wanted));
                rig.tell(&wanted);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        rig.tls.mark_unchanged();
        while created.load(Ordering::Relaxed) == before {
            assert!(clients.iter().all(|client| !client.is_finished()), "a request was lost");
            assert!(began.elapsed() < LIMIT, "no request was answered after rotation {rotation}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    is_over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(changes_of_root, 10);
    assert!(writes <= changes_of_root, "{writes} bundles for {changes_of_root} changes of the root");
    assert!(created.load(Ordering::Relaxed) >= ROTATIONS);
    stop.cancel();
    port.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_held_is_news_whatever_comes_with_it() {
    let root = authority();
    let mut rig = Rig::start(held(&root, &[]), Pace::STANDARD);
    rig.tls.wait_for(Option::is_some).await.unwrap();
    let bundle = rig.wanted();
    // Which of two events is seen first is chance.
    for _ in 0..30 {
        rig.tls.mark_unchanged();
        rig.held.send_replace(Some(held(&root, &[])));
        rig.tell(&bundle);
        let renewed = tokio::time::timeout(Duration::from_secs(1), rig.tls.changed());
        renewed.await.expect("another certificate").unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_root_is_waited_for_and_an_old_one_outlives_its_time() {
    let (old, new) = (authority(), authority());
    let mut rig = Rig::start(held(&old, &[]), Pace::STANDARD);
    rig.tls.wait_for(Option::is_some).await.unwrap();
    rig.tls.mark_unchanged();
    let of_old = rig.wanted();
    rig.tell(&of_old);

    // Replaced at one blow, as somebody does who plugs in another authority.
    let began = Instant::now();
    rig.held.send_replace(Some(held(&new, &[])));
    rig.wanted.changed().await.unwrap();
    let both = rig.wanted();
    assert_eq!(both.matches("BEGIN CERTIFICATE").count(), 2);
    assert!(!rig.tls.has_changed().unwrap(), "no configuration has the new root");
    rig.tell(&both);
    rig.tls.changed().await.unwrap();
    assert!(began.elapsed() >= Pace::STANDARD.settling && began.elapsed() < Pace::STANDARD.patience);
    rig.tls.mark_unchanged();
    rig.wanted.changed().await.unwrap();
    assert!(began.elapsed() >= Pace::STANDARD.lag);
    let of_new = rig.wanted();
    assert_eq!(of_new.matches("BEGIN CERTIFICATE").count(), 1);
    assert!(both.contains(of_new.trim()) && !of_old.contains(of_new.trim()));

    // A configuration that somebody else keeps is not waited for without end.
    rig.tell(&of_new);
    let began = Instant::now();
    rig.held.send_replace(Some(held(&old, &[])));
    rig.tls.changed().await.unwrap();
    assert!(began.elapsed() >= Pace::STANDARD.patience);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_when_half_of_its_life_is_over() {
    let began = (Instant::now(), SystemTime::now());
    let clock: Clock = Arc::new(move || began.1 + began.0.elapsed());
    let mut rig = Rig::start_at(held(&authority(), &[]), Pace::STANDARD, clock);
    rig.tls.wait_for(Option::is_some).await.unwrap();
    rig.tls.mark_unchanged();
    let ttl = Policy::new("cluster.local".parse().unwrap()).default_ttl;
    for _ in 0..3 {
        let began = Instant::now();
        rig.tls.changed().await.unwrap();
        rig.tls.mark_unchanged();
        assert!(began.elapsed() > ttl / 3 && began.elapsed() <= ttl / 2 + RETRY, "{:?}", began.elapsed());
    }
}
