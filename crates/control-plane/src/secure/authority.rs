//! What certificates are signed with: read, followed, and made where there is nothing.

use anyhow::{Context as _, Result, bail};
use ca::{Authority, IssuerMaterial, Policy, Serial, SigningKeyPair, UnixTime};
use identity::{Clock, Metrics};
use model::TrustDomain;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject as _;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{error, info, warn};

/// How often a directory is looked at: a mounted Secret changes by links, whose notices differ by file system.
const POLL_DIRECTORY: Duration = Duration::from_secs(2);
/// How often Secrets are looked at.
const POLL_SECRET: Duration = Duration::from_secs(30);
/// How soon it is tried again while there is no authority at all.
const POLL_NOTHING: Duration = Duration::from_secs(2);

/// An authority that was plugged in: Istio's name.
const PLUGGED_IN: &str = "cacerts";
/// An authority that the control plane made for itself, and its type: Istio's names.
const SELF_SIGNED: &str = "istio-ca-secret";
const SELF_SIGNED_TYPE: &str = "istio.io/ca-root";

const KEY: &str = "ca-key.pem";
const CERTIFICATE: &str = "ca-cert.pem";
const ROOT: &str = "root-cert.pem";
const CRL: &str = "ca-crl.pem";
/// The files that are read. Others in the same directory are nobody's business.
const FILES: [&str; 8] = [CERTIFICATE, KEY, "cert-chain.pem", ROOT, CRL, "tls.crt", "tls.key", "ca.crt"];
/// The largest file that is read, and one byte more, by which it is noticed.
const READ_AT_MOST: u64 = (1 << 20) + 1;

type Files = BTreeMap<String, Vec<u8>>;

/// Where the authority is kept.
pub(super) enum Store {
    /// In a directory.
    Directory(PathBuf),
    /// In a Secret: `cacerts` if there is one, else `istio-ca-secret`.
    Secret { client: controllers::Client, namespace: String },
    /// Nowhere.
    Nowhere,
}

/// An authority, and whose certificates are not good any more.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) authority: Authority,
    pub(super) revocations: Arc<[CertificateRevocationListDer<'static>]>,
}

/// Keeps `held` up to date for as long as the future lives. What cannot be used changes nothing.
pub(super) async fn keep(
    store: Store,
    policy: Policy,
    clock: Clock,
    metrics: Metrics,
    held: watch::Sender<Option<Held>>,
) {
    let mut known: Option<Files> = None;
    let mut problem = None;
    loop {
        match read(&store, &policy.trust_domain, &clock).await {
            Ok(files) if known.as_ref() == Some(&files) => {}
            Ok(files) => {
                let before = held.borrow().clone();
                match assemble(&files, &policy, before.as_ref(), UnixTime::from(clock())) {
                    Ok(new) => {
                        announce(&new, &metrics, before.is_some());
                        held.send_replace(Some(new));
                        problem = None;
                    }
                    Err(failure) => report(&mut problem, &failure, before.is_some()),
                }
                // Also what is bad: it is complained about once, and looked at again when it changes.
                known = Some(files);
            }
            Err(failure) => report(&mut problem, &failure, held.borrow().is_some()),
        }
        if let Some(held) = held.borrow().as_ref() {
            warn_of_age(held, UnixTime::from(clock()), &mut problem);
        }
        let is_there = held.borrow().is_some();
        if !is_there {
            // A chain that is not valid yet may be so soon, without any change to it.
            known = None;
        }
        tokio::time::sleep(match store {
            Store::Directory(_) => POLL_DIRECTORY,
            Store::Secret { .. } | Store::Nowhere if is_there => POLL_SECRET,
            Store::Secret { .. } | Store::Nowhere => POLL_NOTHING,
        })
        .await;
    }
}

/// Says once what is wrong.
fn report(problem: &mut Option<String>, failure: &anyhow::Error, has_one: bool) {
    let text = format!("{failure:#}");
    if problem.as_ref() != Some(&text) {
        let consequence = if has_one { "the one before stays in use" } else { "no certificates are issued" };
        error!(reason = text, "the certificate authority cannot be used; {consequence}");
        *problem = Some(text);
    }
}

fn announce(held: &Held, metrics: &Metrics, replaced: bool) {
    let chain = held.authority.validity_of_chain();
    let roots = held.authority.bundle();
    let signing = roots.get(&held.authority.material().root());
    metrics.chain_expiry.set(chain.not_after.as_seconds());
    metrics.root_expiry.set(signing.map_or(0, |root| root.validity().not_after.as_seconds()));
    info!(
        root = %held.authority.material().root(), roots = roots.len(), until = %chain.not_after, replaced,
        "the certificate authority is ready",
    );
}

fn warn_of_age(held: &Held, now: UnixTime, problem: &mut Option<String>) {
    let chain = held.authority.validity_of_chain();
    if ca::root::is_due(chain, now) && problem.is_none() {
        let text = format!("its chain ends at {}", chain.not_after);
        warn!(reason = text, "the certificate authority should be replaced");
        *problem = Some(text);
    }
}

fn assemble(files: &Files, policy: &Policy, before: Option<&Held>, now: UnixTime) -> Result<Held> {
    let loaded = ca::material::load(files, now)?;
    for warning in &loaded.warnings {
        warn!(file = warning.file, "{}", warning.text);
    }
    let material = loaded.material.context("there are only roots, and nothing to sign with")?;
    let authority = Authority::new(material, loaded.roots, policy.clone(), now)?;
    let revocations = match loaded.revocations {
        None => Arc::default(),
        Some(Ok(lists)) => {
            let lists: Result<Vec<_>, _> =
                CertificateRevocationListDer::pem_slice_iter(lists.to_pem().as_bytes()).collect();
            lists.context("revocation lists that were read cannot be read again")?.into()
        }
        Some(Err(reason)) => {
            error!(%reason, "the revocation lists cannot be used; those before stay in use");
            before.map(|held| held.revocations.clone()).unwrap_or_default()
        }
    };
    Ok(Held { authority, revocations })
}

/// Returns the files of the authority; makes them where there are none.
async fn read(store: &Store, domain: &TrustDomain, clock: &Clock) -> Result<Files> {
    match store {
        Store::Directory(directory) => {
            let files = read_directory(directory)?;
            if !files.is_empty() {
                return Ok(files);
            }
            write_directory(directory, &self_signed(domain, clock)?)?;
            info!(directory = %directory.display(), "made a self-signed certificate authority");
            read_directory(directory)
        }
        Store::Secret { client, namespace } => {
            if let Some(files) = controllers::read_secret(client, namespace, PLUGGED_IN).await? {
                return Ok(files);
            }
            if let Some(files) = controllers::read_secret(client, namespace, SELF_SIGNED).await? {
                return Ok(files);
            }
            let files = self_signed(domain, clock)?;
            if controllers::create_secret(client, namespace, SELF_SIGNED, SELF_SIGNED_TYPE, &files).await? {
                info!(secret = SELF_SIGNED, "made a self-signed certificate authority");
            }
            // What is there is what counts, whoever made it: replicas start together.
            let files = controllers::read_secret(client, namespace, SELF_SIGNED).await?;
            files.context("the Secret of the certificate authority is gone right after it was made")
        }
        Store::Nowhere => bail!("no place for it is configured"),
    }
}

fn self_signed(domain: &TrustDomain, clock: &Clock) -> Result<Files> {
    let key = SigningKeyPair::new(rcgen::KeyPair::generate().context("cannot make a key")?)?;
    let mut serial = [0; 20];
    if aws_lc_rs::rand::fill(&mut serial).is_err() {
        bail!("the system has no randomness");
    }
    let now = UnixTime::from(clock());
    let root = ca::root::self_signed(&key, domain, now, Serial::from_random(serial))?;
    let (root_pem, key_pem) = (root.to_pem().into_bytes(), key.to_secret_pem().into_bytes());
    // What others are to trust for years is tried before it is kept.
    IssuerMaterial::self_signed(key, root, now)?;
    Ok([(KEY, key_pem), (ROOT, root_pem.clone()), (CERTIFICATE, root_pem)]
        .map(|(name, content)| (name.to_owned(), content))
        .into())
}

fn read_directory(directory: &Path) -> Result<Files> {
    use std::io::Read as _;
    let mut files = Files::new();
    for name in FILES {
        let path = directory.join(name);
        let read = std::fs::File::open(&path).and_then(|file| {
            let mut content = Vec::new();
            file.take(READ_AT_MOST).read_to_end(&mut content)?;
            Ok(content)
        });
        match read {
            Ok(content) => drop(files.insert(name.to_owned(), content)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
    Ok(files)
}

/// Writes files that are not there yet, readable by their owner only. The certificate comes last: without it the
/// others are nothing.
fn write_directory(directory: &Path, files: &Files) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for name in [KEY, ROOT, CERTIFICATE] {
        let Some(content) = files.get(name) else { continue };
        let path = directory.join(name);
        let written = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        written
            .and_then(|mut file| {
                file.write_all(content)?;
                file.sync_all()
            })
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::SystemTime;

    fn start(directory: &Path) -> (watch::Receiver<Option<Held>>, tokio::task::JoinHandle<()>) {
        let (sender, held) = watch::channel(None);
        let store = Store::Directory(directory.to_owned());
        let policy = Policy::new("cluster.local".parse().unwrap());
        let clock: Clock = Arc::new(SystemTime::now);
        let keeping =
            tokio::spawn(async move { keep(store, policy, clock, Metrics::default(), sender).await });
        (held, keeping)
    }

    fn root_of(held: &watch::Receiver<Option<Held>>) -> String {
        held.borrow().as_ref().unwrap().authority.bundle().to_pem()
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_directory_gets_an_authority_that_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("ca");
        let (mut held, keeping) = start(&directory);
        held.wait_for(Option::is_some).await.unwrap();
        let first = root_of(&held);
        for name in [KEY, CERTIFICATE, ROOT] {
            let mode = std::fs::metadata(directory.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        keeping.abort();
        let (mut again, _keeping) = start(&directory);
        again.wait_for(Option::is_some).await.unwrap();
        assert_eq!(root_of(&again), first, "a restart signs with the same key");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_authority_is_taken_up_and_a_bad_one_is_not() {
        let scratch = tempfile::tempdir().unwrap();
        let (mut held, _keeping) = start(scratch.path());
        held.wait_for(Option::is_some).await.unwrap();
        let first = root_of(&held);

        std::fs::write(scratch.path().join(CERTIFICATE), "nonsense").unwrap();
        tokio::time::sleep(POLL_DIRECTORY * 3).await;
        assert_eq!(root_of(&held), first);

        let clock: Clock = Arc::new(SystemTime::now);
        let other = self_signed(&"cluster.local".parse().unwrap(), &clock).unwrap();
        held.mark_unchanged();
        for (name, content) in other {
            std::fs::write(scratch.path().join(name), content).unwrap();
        }
        held.changed().await.unwrap();
        assert_ne!(root_of(&held), first);
    }
}
