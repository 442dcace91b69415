//! Where the authority is kept: a directory, or Secrets. No decisions are made here.
//!
//! | | directory | Secrets |
//! | --- | --- | --- |
//! | the authority | its files | `cacerts`, else `istio-ca-secret` |
//! | the one that is to take its place | `next/` | `weft-ca-next` |
//! | how far that has come | `rotation.json` | `weft-ca-rotation`, key `rotation.json` |
//! | what an operator orders about it | `order` | the same, key `order` |

use anyhow::{Context as _, Result, bail};
use ca::{IssuerMaterial, Serial, SigningKeyPair, UnixTime};
use controllers::Client;
use identity::Clock;
use model::TrustDomain;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use tracing::info;

/// An authority that was plugged in: Istio's name.
const PLUGGED_IN: &str = "cacerts";
/// An authority that the control plane made for itself, and its type: Istio's names.
const SELF_SIGNED: &str = "istio-ca-secret";
const SELF_SIGNED_TYPE: &str = "istio.io/ca-root";
/// The authority that is to take its place.
const NEXT: &str = "weft-ca-next";
/// How far that has come.
const ROTATION: &str = "weft-ca-rotation";
const ROTATION_TYPE: &str = "Opaque";

const NEXT_FOLDER: &str = "next";
const STATE: &str = "rotation.json";
const ORDER: &str = "order";

pub(super) const KEY: &str = "ca-key.pem";
pub(super) const CERTIFICATE: &str = "ca-cert.pem";
pub(super) const ROOT: &str = "root-cert.pem";
const CRL: &str = "ca-crl.pem";
/// The files that are read. Others in the same directory are nobody's business.
const FILES: [&str; 8] = [CERTIFICATE, KEY, "cert-chain.pem", ROOT, CRL, "tls.crt", "tls.key", "ca.crt"];
/// The largest file that is read, and one byte more, by which it is noticed.
const READ_AT_MOST: u64 = (1 << 20) + 1;

pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// Where the authority is kept.
pub(super) enum Store {
    /// In a directory.
    Directory(PathBuf),
    /// In Secrets.
    Secret { client: Client, namespace: String },
    /// Nowhere.
    Nowhere,
}

/// All that is kept.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Documents {
    /// The authority.
    pub(super) current: Files,
    /// The one that is to take its place.
    pub(super) next: Option<Files>,
    /// How far that has come.
    pub(super) state: Option<String>,
    /// What an operator orders.
    pub(super) order: Option<String>,
    /// What tells the Secret of these two from what it was before.
    version: Option<String>,
}

impl Store {
    /// Returns what is kept. Makes a self-signed authority where there is none, and where an empty place for the next
    /// one is.
    pub(super) async fn read(&self, domain: &TrustDomain, clock: &Clock) -> Result<Documents> {
        match self {
            Self::Directory(directory) => read_all(directory, domain, clock),
            Self::Secret { client, namespace } => read_secrets(client, namespace, domain, clock).await,
            Self::Nowhere => bail!("no place for it is configured"),
        }
    }

    /// Keeps `state` in the place of that of `documents`, and drops their order. Returns whether it did: if not, somebody
    /// else was faster, and what they wrote counts.
    pub(super) async fn save(&self, documents: &Documents, state: &str) -> Result<bool> {
        match self {
            Self::Directory(directory) => {
                drop_order(directory)?;
                replace(&directory.join(STATE), state)?;
                Ok(true)
            }
            Self::Secret { client, namespace } => match &documents.version {
                Some(version) => {
                    let data = BTreeMap::from([(STATE, Some(state.as_bytes().to_vec())), (ORDER, None)]);
                    Ok(controllers::change_secret(client, namespace, ROTATION, version, &data).await?)
                }
                None => {
                    let data = Files::from([(STATE.to_owned(), state.as_bytes().to_vec())]);
                    Ok(controllers::create_secret(client, namespace, ROTATION, ROTATION_TYPE, &data).await?)
                }
            },
            Self::Nowhere => bail!("no place for it is configured"),
        }
    }

    /// Drops an order that cannot be carried out.
    pub(super) async fn drop_order(&self, documents: &Documents) -> Result<()> {
        match (self, &documents.version) {
            (Self::Directory(directory), _) => drop_order(directory),
            (Self::Secret { client, namespace }, Some(version)) => {
                let data = BTreeMap::from([(ORDER, None)]);
                controllers::change_secret(client, namespace, ROTATION, version, &data).await?;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

async fn read_secrets(
    client: &Client,
    namespace: &str,
    domain: &TrustDomain,
    clock: &Clock,
) -> Result<Documents> {
    let read = |name| controllers::read_secret(client, namespace, name);
    let current = match read(PLUGGED_IN).await? {
        Some(secret) => secret.data,
        None => match read(SELF_SIGNED).await? {
            Some(secret) => secret.data,
            None => {
                let files = self_signed(domain, clock)?;
                if controllers::create_secret(client, namespace, SELF_SIGNED, SELF_SIGNED_TYPE, &files)
                    .await?
                {
                    info!(secret = SELF_SIGNED, "made a self-signed certificate authority");
                }
                // What is there is what counts, whoever made it: replicas start together.
                let secret = read(SELF_SIGNED).await?;
                secret
                    .context("the Secret of the certificate authority is gone right after it was made")?
                    .data
            }
        },
    };
    let next = match read(NEXT).await? {
        Some(secret) if secret.data.is_empty() => {
            let made = self_signed(domain, clock)?;
            let data = made.iter().map(|(name, content)| (name.as_str(), Some(content.clone()))).collect();
            let is_ours = controllers::change_secret(client, namespace, NEXT, &secret.version, &data).await?;
            // If somebody else was faster, theirs is read next time.
            is_ours.then_some(made)
        }
        Some(secret) => Some(secret.data),
        None => None,
    };
    let rotation = read(ROTATION).await?;
    let text = |name: &str| {
        let bytes = rotation.as_ref()?.data.get(name)?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    };
    Ok(Documents {
        current,
        next,
        state: text(STATE),
        order: text(ORDER),
        version: rotation.as_ref().map(|secret| secret.version.clone()),
    })
}

fn read_all(directory: &Path, domain: &TrustDomain, clock: &Clock) -> Result<Documents> {
    let mut current = read_directory(directory)?;
    if current.is_empty() {
        write_directory(directory, &self_signed(domain, clock)?)?;
        info!(directory = %directory.display(), "made a self-signed certificate authority");
        current = read_directory(directory)?;
    }
    let folder = directory.join(NEXT_FOLDER);
    let mut next = None;
    if folder.is_dir() {
        let mut files = read_directory(&folder)?;
        // Empty, with nothing that is about to become an authority in it.
        if files.is_empty() && fs::read_dir(&folder)?.next().is_none() {
            write_directory(&folder, &self_signed(domain, clock)?)?;
            info!(directory = %folder.display(), "made a self-signed certificate authority");
            files = read_directory(&folder)?;
        }
        next = Some(files).filter(|files| !files.is_empty());
    }
    let text = |name: &str| -> Result<Option<String>> {
        let content = read_file(&directory.join(name))?;
        Ok(content.map(|content| String::from_utf8_lossy(&content).into_owned()))
    };
    Ok(Documents { current, next, state: text(STATE)?, order: text(ORDER)?, version: None })
}

/// Returns a new authority that has nobody above it.
pub(super) fn self_signed(domain: &TrustDomain, clock: &Clock) -> Result<Files> {
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
    let mut files = Files::new();
    for name in FILES {
        if let Some(content) = read_file(&directory.join(name))? {
            files.insert(name.to_owned(), content);
        }
    }
    Ok(files)
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>> {
    let read = File::open(path).and_then(|file| {
        let mut content = Vec::new();
        file.take(READ_AT_MOST).read_to_end(&mut content)?;
        Ok(content)
    });
    match read {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Writes files that are not there yet, readable by their owner only. The certificate comes last: without it the
/// others are nothing.
fn write_directory(directory: &Path, files: &Files) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for name in [KEY, ROOT, CERTIFICATE] {
        let Some(content) = files.get(name) else { continue };
        let path = directory.join(name);
        let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        written
            .and_then(|mut file| {
                file.write_all(content)?;
                file.sync_all()
            })
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Puts a file in the place of another, in one step that a power failure does not undo.
fn replace(path: &Path, content: &str) -> Result<()> {
    let written = || -> std::io::Result<()> {
        let new = path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

/// An order is dropped before it is carried out, so that a crash does not carry it out twice.
fn drop_order(directory: &Path) -> Result<()> {
    let path = directory.join(ORDER);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
