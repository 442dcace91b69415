//! Secrets in files: those of compiled configuration (`file-cert:`, `file-root:`), and the mounted roots of the
//! control plane.

use super::secret::Secret;
use crate::config::{Roots, Server};
use crate::identity::certificate::roots_from_pem;
use crate::identity::files::{read_file, read_pair};
use crate::identity::renew::{FILES_INTERVAL, chain};
use crate::names;
use crate::store::Store;
use crate::tls::system_roots;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// Follows files that Envoy asks for, for ever. What cannot be read keeps its last good content.
pub async fn follow(store: Arc<Store>, control_plane: Server) {
    let mut changes = store.changes();
    let mut errors = BTreeMap::new();
    let mounted = control_plane.trust.map(|trust| trust.roots);
    loop {
        if let Some(Roots::File { path, .. }) = &mounted {
            let read = read_file(path).map_err(|error| chain(&error));
            let read = read.and_then(|pem| roots_from_pem(&pem).map_err(|error| chain(&error)));
            if let Some(roots) = report(&mut errors, &path.display().to_string(), read) {
                store.set_mounted_roots(roots);
            }
        }
        for name in store.wanted() {
            let read = read_secret(&name);
            if let Some(secret) = report(&mut errors, &name, read) {
                store.set_file(&name, secret);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(FILES_INTERVAL) => {}
            // Somebody may ask for a file that nobody asked for before: it should not wait.
            _ = changes.changed() => tokio::time::sleep(FILES_INTERVAL / 20).await,
        }
    }
}

/// Says each problem once.
fn report<T>(errors: &mut BTreeMap<String, String>, name: &str, read: Result<T, String>) -> Option<T> {
    match read {
        Ok(value) => {
            errors.remove(name);
            Some(value)
        }
        Err(error) => {
            if errors.get(name) != Some(&error) {
                tracing::warn!(secret = name, %error, "a secret in files is not read");
                errors.insert(name.to_owned(), error);
            }
            None
        }
    }
}

fn read_secret(name: &str) -> Result<Secret, String> {
    if name == names::SYSTEM_ROOTS {
        return Ok(Secret::roots(name, &system_roots().map_err(|error| chain(&error))?));
    }
    if let Some(path) = name.strip_prefix(names::FILE_ROOTS) {
        let pem = read_file(Path::new(path)).map_err(|error| chain(&error))?;
        if !pem.windows(10).any(|window| window == b"-----BEGIN") {
            return Err("holds no certificate".to_owned());
        }
        return Ok(Secret::roots(name, &pem));
    }
    let paths = name.strip_prefix(names::FILE_CERTIFICATE).and_then(|paths| paths.split_once('~'));
    let (certificate, key) = paths.ok_or("is not <certificate>~<private key>")?;
    let pair = read_pair(Path::new(certificate), Path::new(key), SystemTime::now().into());
    Ok(Secret::certificate(name, &pair.map_err(|error| chain(&error))?))
}
