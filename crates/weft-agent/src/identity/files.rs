//! Certificates in files that somebody else renews.

use super::certificate::{Identity, IdentityError, roots_from_pem};
use super::key::PrivateKey;
use crate::config::CertificateFiles;
use ca::{TrustBundle, UnixTime};
use std::io;
use std::path::{Path, PathBuf};

/// Why files are not used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// They do not belong together.
    #[error("{path}: {source}")]
    Content {
        /// The first of the files.
        path: PathBuf,
        /// What is wrong.
        source: IdentityError,
    },
}

/// Reads a certificate, its key and its roots.
pub fn read(files: &CertificateFiles, now: UnixTime) -> Result<(Identity, TrustBundle), FilesError> {
    let identity = read_pair(&files.certificate, &files.private_key, now)?;
    let roots = roots_from_pem(&read_file(&files.roots)?);
    let roots = roots.map_err(|source| FilesError::Content { path: files.roots.clone(), source })?;
    Ok((identity, roots))
}

/// Reads a certificate and its key. Both are read as they are at one moment or not at all: files that are being
/// replaced one after the other do not fit each other, and the next look finds them whole.
pub fn read_pair(certificate: &Path, private_key: &Path, now: UnixTime) -> Result<Identity, FilesError> {
    let key = PrivateKey::from_pem(read_file(private_key)?);
    let content = |source| FilesError::Content { path: certificate.to_owned(), source };
    Identity::new(read_file(certificate)?, key, now).map_err(content)
}

/// Reads a file.
pub fn read_file(path: &Path) -> Result<Vec<u8>, FilesError> {
    std::fs::read(path).map_err(|source| FilesError::Read { path: path.to_owned(), source })
}
