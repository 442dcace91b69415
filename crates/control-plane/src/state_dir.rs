//! What must outlive a restart: the last good form of objects whose newest form is not used (`--state-dir`).
//!
//! While weftd runs, an object that is refused stays as it last was. A weftd that starts sees the newest forms only,
//! so the older ones that are in use are kept in a file: written when there are some, removed when there are none.
//! Without it everything works, but for objects that are bad while weftd restarts.
//!
//! In a cluster of several replicas the same list belongs into a ConfigMap, written by whoever holds the lease. It will
//! follow the same channels as [`keep`].

use anyhow::{Context as _, Result, bail};
use index::Held;
use k8s_api::mesh_config::MeshConfig;
use k8s_api::object::Object;
use k8s_api::yaml;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use source_dir::Kept;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

/// The version of the format. Files of another version are not read.
const VERSION: u32 = 1;
/// The most that is kept. What is more is named in the log.
const MAX_BYTES: usize = 32 * 1024 * 1024;
/// How soon a failed write is tried again.
const RETRY: Duration = Duration::from_secs(10);

const FILE: &str = "last-good.json";
const MESH_FILE: &str = "mesh-config.json";
const LOCK: &str = ".lock";

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Saved {
    /// Objects that were refused, in their last accepted form.
    pub(crate) refused: Vec<Arc<Object>>,
    /// Manifests of files that could not be read.
    pub(crate) kept: Vec<Kept>,
    /// The mesh configuration that was in use, good or not.
    pub(crate) mesh: Option<Arc<MeshConfig>>,
}

/// The directory, which belongs to this process.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: File,
}

/// The file: `content` is an [`Entries`] as JSON, whose checksum is beside it.
#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u32,
    checksum: String,
    content: Value,
}

#[derive(Default, Serialize, Deserialize)]
struct Entries {
    refused: Vec<Refused>,
    kept: Vec<KeptEntry>,
}

#[derive(Serialize, Deserialize)]
struct Refused {
    object: String,
    manifest: Value,
}

#[derive(Serialize, Deserialize)]
struct KeptEntry {
    path: PathBuf,
    line: u32,
    object: String,
    text: String,
}

impl StateDir {
    /// Makes the directory if need be, and claims it.
    ///
    /// # Errors
    ///
    /// If it cannot be written to, or another process has it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let name = path.display();
        let mut directory = DirBuilder::new();
        directory.recursive(true).mode(0o700);
        directory.create(path).with_context(|| format!("cannot make {name} (--state-dir)"))?;
        let lock =
            owned(&path.join(LOCK)).with_context(|| format!("cannot write to {name} (--state-dir)"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("{name} is in use by another weftd (--state-dir)"),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {name} (--state-dir)"));
            }
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Reads what was kept. What cannot be read is reported and left out.
    pub(crate) fn load(&self) -> Saved {
        let path = self.path.join(FILE);
        let mut saved = match read(&path) {
            Ok(None) => Saved::default(),
            Ok(Some(saved)) => {
                let (refused, kept) = (saved.refused.len(), saved.kept.len());
                info!(file = %path.display(), refused, kept, "read the last good forms of objects");
                saved
            }
            Err(failure) => {
                set_aside(&path, &failure, "objects that are bad now are not used at all");
                Saved::default()
            }
        };
        let path = self.path.join(MESH_FILE);
        saved.mesh = match read_mesh(&path) {
            Ok(mesh) => mesh.map(Arc::new),
            Err(failure) => {
                set_aside(&path, &failure, "a mesh configuration that is bad now is not used at all");
                None
            }
        };
        saved
    }

    /// Replaces what is kept.
    fn save(&self, saved: &Saved) -> io::Result<()> {
        let file = self.path.join(FILE);
        let text = encode(saved)?;
        match text {
            None => match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            },
            Some(text) => self.write(FILE, &text)?,
        }
        self.sync()
    }

    /// Replaces the mesh configuration that is kept.
    fn save_mesh(&self, config: &MeshConfig) -> io::Result<()> {
        self.write(MESH_FILE, &enclose(serde_json::to_value(config)?)?)?;
        self.sync()
    }

    /// Replaces a file: whoever reads it finds the old or the new text.
    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let aside = self.path.join(format!(".{name}.new"));
        let mut new = owned(&aside)?;
        new.set_len(0)?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        fs::rename(&aside, self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        // The name, too, must outlive a crash of the machine.
        File::open(&self.path)?.sync_all()
    }
}

/// Opens a file that only its owner may read, which is made if it is not there.
fn owned(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Keeps a damaged file for people to look at, under another name, so that nothing is written over it.
fn set_aside(path: &Path, failure: &anyhow::Error, consequence: &str) {
    let reason = format!("{failure:#}");
    let aside = path.with_extension("json.damaged");
    match fs::rename(path, &aside) {
        Ok(()) => error!(file = %path.display(), reason, kept = %aside.display(), "damaged: {consequence}"),
        Err(error) => error!(file = %path.display(), reason, %error, "damaged: {consequence}"),
    }
}

fn read(path: &Path) -> Result<Option<Saved>> {
    let Some(content) = read_content(path)? else { return Ok(None) };
    let entries: Entries = serde_json::from_value(content).context("not what weftd writes")?;
    let kept = entries.kept.into_iter().map(|entry| {
        let KeptEntry { path, line, object, text } = entry;
        Kept { path, line, object, text }
    });
    let refused = entries.refused.iter().filter_map(object_of).collect();
    Ok(Some(Saved { refused, kept: kept.collect(), mesh: None }))
}

fn read_mesh(path: &Path) -> Result<Option<MeshConfig>> {
    let Some(content) = read_content(path)? else { return Ok(None) };
    // By way of the defaults, so that a field which is new has one.
    Ok(Some(MeshConfig::merge([&content]).context("not what weftd writes")?))
}

fn read_content(path: &Path) -> Result<Option<Value>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut text = String::new();
    let limit = 2 * MAX_BYTES;
    file.take(limit as u64 + 1).read_to_string(&mut text)?;
    if text.len() > limit {
        bail!("the file has more than {limit} bytes");
    }
    let envelope: Envelope = serde_json::from_str(&text).context("not what weftd writes")?;
    if envelope.version != VERSION {
        bail!("the file has version {}, and this weftd reads {VERSION}", envelope.version);
    }
    if envelope.checksum != checksum(&envelope.content.to_string()) {
        bail!("the checksum is wrong");
    }
    Ok(Some(envelope.content))
}

fn object_of(entry: &Refused) -> Option<Arc<Object>> {
    let documents = yaml::parse_documents(&entry.manifest.to_string(), FILE);
    let object = documents.into_iter().find_map(Result::ok).map(|document| Arc::new(document.object));
    if object.is_none() {
        warn!(object = entry.object, "its last good form is not one that this weftd reads");
    }
    object
}

/// Returns the file's text; nothing if there is nothing to keep.
fn encode(saved: &Saved) -> io::Result<Option<String>> {
    let mut entries = Entries::default();
    let mut room = MAX_BYTES;
    let mut fits = |object: &str, len: usize| {
        let enough = len <= room;
        match enough {
            true => room -= len,
            false => warn!(object, len, "too large to be kept: its last good form ends with this process"),
        }
        enough
    };
    for object in &saved.refused {
        let name = object.key().to_string();
        let Some(text) = object.manifest() else {
            debug!(object = name, "of this kind only a part is known, which is not kept");
            continue;
        };
        if fits(&name, text.len()) {
            entries.refused.push(Refused { object: name, manifest: serde_json::from_str(&text)? });
        }
    }
    for Kept { path, line, object, text } in &saved.kept {
        if fits(object, text.len()) {
            let (path, object, text) = (path.clone(), object.clone(), text.clone());
            entries.kept.push(KeptEntry { path, line: *line, object, text });
        }
    }
    if entries.refused.is_empty() && entries.kept.is_empty() {
        return Ok(None);
    }
    enclose(serde_json::to_value(&entries)?).map(Some)
}

fn enclose(content: Value) -> io::Result<String> {
    let envelope = Envelope { version: VERSION, checksum: checksum(&content.to_string()), content };
    Ok(serde_json::to_string(&envelope)? + "\n")
}

/// FNV-1a: against accidents, not against people who may write to the directory.
fn checksum(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Writes what is in use although it is not the newest, whenever that changes. `held` says nothing until everything
/// has been read once: before that, what was kept is still needed.
pub(crate) async fn keep(
    directory: Arc<StateDir>,
    mut held: watch::Receiver<Option<Vec<Held>>>,
    mut kept: watch::Receiver<Vec<Kept>>,
    mut written: Saved,
) {
    let mut failing = false;
    loop {
        let refused = held.borrow_and_update().as_ref().map(|held| {
            let objects = held.iter().map(|held| held.object.clone());
            objects.collect::<Vec<Arc<Object>>>()
        });
        let kept_now = kept.borrow_and_update().clone();
        if let Some(refused) = refused {
            let saved = Saved { refused, kept: kept_now, mesh: written.mesh.clone() };
            if failing || saved != written {
                let (target, copy) = (directory.clone(), saved.clone());
                let result = tokio::task::spawn_blocking(move || target.save(&copy)).await;
                let result = result.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
                match &result {
                    Ok(()) => written = saved,
                    Err(failure) if !failing => {
                        let path = directory.path.display();
                        error!(directory = %path, %failure, "cannot keep the last good forms of objects; trying again");
                    }
                    Err(_) => {}
                }
                failing = result.is_err();
            }
        }
        tokio::select! {
            changed = held.changed() => if changed.is_err() { return },
            Ok(()) = kept.changed() => {}
            () = tokio::time::sleep(RETRY), if failing => {}
        }
    }
}

/// Writes the mesh configuration that is in use, whenever that changes: whoever reads a newer form and cannot use it does
/// not know the last one after a restart.
pub(crate) async fn keep_mesh(
    directory: Arc<StateDir>,
    mut accepted: watch::Receiver<Option<Arc<MeshConfig>>>,
    mut written: Option<Arc<MeshConfig>>,
) {
    let mut failing = false;
    loop {
        let now = accepted.borrow_and_update().clone();
        if let Some(config) = now.filter(|config| failing || written.as_ref() != Some(config)) {
            let (target, copy) = (directory.clone(), config.clone());
            let result = tokio::task::spawn_blocking(move || target.save_mesh(&copy)).await;
            let result = result.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
            match &result {
                Ok(()) => written = Some(config),
                Err(failure) if !failing => {
                    let path = directory.path.display();
                    error!(directory = %path, %failure, "cannot keep the mesh configuration; trying again");
                }
                Err(_) => {}
            }
            failing = result.is_err();
        }
        tokio::select! {
            changed = accepted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failing => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cart, namespace: app}
spec: {hosts: [cart], http: [{route: [{destination: {host: cart}}]}]}
";

    fn object(yaml: &str) -> Arc<Object> {
        Arc::new(yaml::parse_documents(yaml, "test").remove(0).unwrap().object)
    }

    fn saved() -> Saved {
        let (path, object_name) = (PathBuf::from("/etc/mesh/a.yaml"), "Service app/cart".to_owned());
        let kept = Kept { path, line: 3, object: object_name, text: "kind: Service\n".to_owned() };
        Saved { refused: vec![object(RULES)], kept: vec![kept], mesh: None }
    }

    #[test]
    fn what_is_kept_is_read_back_and_removed_when_there_is_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a/state");
        let directory = StateDir::open(&path).unwrap();
        assert_eq!(directory.load(), Saved::default());
        directory.save(&saved()).unwrap();
        assert_eq!(directory.load(), saved());
        directory.save(&saved()).unwrap();
        assert_eq!(directory.load(), saved());
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path.join(FILE)).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600, "there may be keys in it");

        directory.save(&Saved::default()).unwrap();
        assert!(!path.join(FILE).exists());
        directory.save(&Saved::default()).unwrap();
        drop(directory);
        assert_eq!(StateDir::open(&path).unwrap().load(), Saved::default());
    }

    #[tokio::test]
    async fn the_mesh_configuration_in_use_is_kept() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Arc::new(StateDir::open(scratch.path()).unwrap());
        let config = |text: &str| Arc::new(MeshConfig::parse(&[("test", text)]).unwrap().config);
        let (accepted, receiver) = watch::channel(None);
        let task = tokio::spawn(keep_mesh(directory.clone(), receiver, None));
        for text in ["trustDomain: corp", "{proxyListenPort: 1501, meshMTLS: {minProtocolVersion: TLSV1_3}}"]
        {
            accepted.send_replace(Some(config(text)));
            for _ in 0..500 {
                if directory.load().mesh == Some(config(text)) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(directory.load().mesh, Some(config(text)));
        }
        drop(accepted);
        task.await.unwrap();
        let file = scratch.path().join(MESH_FILE);
        fs::write(&file, "{}").unwrap();
        assert_eq!(directory.load().mesh, None);
        assert!(!file.exists() && scratch.path().join("mesh-config.json.damaged").exists());
    }

    #[test]
    fn damaged_files_are_ignored() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = StateDir::open(scratch.path()).unwrap();
        directory.save(&saved()).unwrap();
        let file = scratch.path().join(FILE);
        let good = fs::read_to_string(&file).unwrap();
        for (bad, reason) in [
            (good[..good.len() / 2].to_owned(), "not what weftd writes"),
            (good.replace("app", "cpp"), "the checksum is wrong"),
            (
                good.replace("\"version\":1", "\"version\":2"),
                "the file has version 2, and this weftd reads 1",
            ),
            (String::new(), "not what weftd writes"),
        ] {
            fs::write(&file, bad).unwrap();
            assert_eq!(read(&file).unwrap_err().to_string(), reason);
            assert_eq!(directory.load(), Saved::default());
            assert!(!file.exists());
        }
        fs::write(&file, [0xff, 0xfe]).unwrap();
        assert_eq!(directory.load(), Saved::default());
        let aside = scratch.path().join("last-good.json.damaged");
        assert_eq!(fs::read(aside).unwrap(), [0xff, 0xfe], "people may want to look at it");
        // The next good write does not care.
        directory.save(&saved()).unwrap();
        assert_eq!(directory.load(), saved());
    }

    #[test]
    fn what_is_too_large_is_left_out_and_the_rest_kept() {
        let mut saved = saved();
        let large = Kept {
            object: "Service app/large".to_owned(),
            text: "x".repeat(MAX_BYTES),
            ..saved.kept[0].clone()
        };
        saved.kept.insert(0, large);
        let scratch = tempfile::tempdir().unwrap();
        let directory = StateDir::open(scratch.path()).unwrap();
        directory.save(&saved).unwrap();
        saved.kept.remove(0);
        assert_eq!(directory.load(), saved);
    }

    #[test]
    fn a_directory_belongs_to_one_weftd() {
        let scratch = tempfile::tempdir().unwrap();
        let _first = StateDir::open(scratch.path()).unwrap();
        let error = StateDir::open(scratch.path()).unwrap_err().to_string();
        assert!(error.contains("in use by another weftd"), "{error}");
        let file = scratch.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(StateDir::open(&file).unwrap_err().to_string().contains("--state-dir"));
    }

    /// Waits until the file says `expected`; nothing for no file.
    async fn wait_for(file: &Path, expected: Option<Saved>) {
        for _ in 0..500 {
            if read(file).ok() == Some(expected.clone()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(read(file).unwrap(), expected);
    }

    #[tokio::test]
    async fn nothing_is_forgotten_before_everything_was_read() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = StateDir::open(scratch.path()).unwrap();
        directory.save(&saved()).unwrap();
        let file = scratch.path().join(FILE);
        let (held, held_receiver) = watch::channel(None);
        let (kept, kept_receiver) = watch::channel(Vec::new());
        let task = tokio::spawn(keep(Arc::new(directory), held_receiver, kept_receiver, saved()));
        // Nobody knows yet what is needed.
        kept.send(Vec::new()).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        wait_for(&file, Some(saved())).await;
        held.send(Some(vec![Held { object: object(RULES), origin: model::Origin::Api }])).unwrap();
        wait_for(&file, Some(Saved { kept: Vec::new(), ..saved() })).await;
        kept.send(saved().kept).unwrap();
        wait_for(&file, Some(saved())).await;
        kept.send(Vec::new()).unwrap();
        held.send(Some(Vec::new())).unwrap();
        wait_for(&file, None).await;
        drop(held);
        task.await.unwrap();
    }
}
