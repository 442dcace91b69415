//! The directory that weftd serves from: copies of samples, and edits as an editor makes them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::network::Network;
use crate::repository;

/// A temporary directory of manifests.
#[derive(Debug)]
pub struct Config {
    directory: TempDir,
    /// Where files are written before they are moved into place: on the same file system, not watched.
    staging: TempDir,
}

impl Config {
    /// Makes an empty directory.
    ///
    /// # Errors
    ///
    /// If the system lets us not.
    pub fn new() -> anyhow::Result<Self> {
        let make = |prefix| tempfile::Builder::new().prefix(prefix).tempdir();
        Ok(Self { directory: make("weft-config-")?, staging: make("weft-staging-")? })
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the path of a file in the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Copies every manifest of `samples/FOLDER` and of the folders in it, moved to `network`.
    ///
    /// # Errors
    ///
    /// If the folder has none, or cannot be copied.
    pub fn add_sample(&self, folder: &str, network: &Network) -> anyhow::Result<()> {
        let from = repository().join("samples").join(folder);
        let mut copied = 0;
        for entry in fs::read_dir(&from).with_context(|| format!("cannot read {}", from.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let name = format!("{folder}/{name}");
            copied += 1;
            if path.is_dir() {
                self.add_sample(&name, network)?;
                continue;
            }
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            self.write(&name, &network.localize(&text))?;
        }
        ensure!(copied > 0, "{} is empty", from.display());
        Ok(())
    }

    /// Writes a file and moves it into place, as editors do: nobody ever sees half of it.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        self.change(&[(name, Some(text.to_owned()))])
    }

    /// Writes and deletes several files, one right after the other in the given order, as `git checkout` does.
    ///
    /// # Errors
    ///
    /// If one cannot be written or deleted.
    pub fn change(&self, files: &[(&str, Option<String>)]) -> anyhow::Result<()> {
        let staged = |name: &str| self.staging.path().join(name.replace('/', "_"));
        for (name, text) in files {
            let Some(text) = text else { continue };
            fs::write(staged(name), text).with_context(|| format!("cannot write {name}"))?;
            if let Some(folder) = self.file(name).parent() {
                fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            }
        }
        for (name, text) in files {
            match text {
                Some(_) => fs::rename(staged(name), self.file(name))
                    .with_context(|| format!("cannot write {name}"))?,
                None => self.remove(name)?,
            }
        }
        Ok(())
    }

    /// Returns the text of a file.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn read(&self, name: &str) -> anyhow::Result<String> {
        fs::read_to_string(self.file(name)).with_context(|| format!("cannot read {name}"))
    }

    /// Replaces text in a file.
    ///
    /// # Errors
    ///
    /// If the file does not have the text.
    pub fn replace(&self, name: &str, from: &str, to: &str) -> anyhow::Result<()> {
        let text = self.read(name)?;
        ensure!(text.contains(from), "{name} does not have {from:?}");
        self.write(name, &text.replace(from, to))
    }

    /// Deletes a file.
    ///
    /// # Errors
    ///
    /// If it cannot be deleted.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        fs::remove_file(self.file(name)).with_context(|| format!("cannot delete {name}"))
    }
}
