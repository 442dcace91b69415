//! The mesh configuration in a file.

use anyhow::bail;
use index::Change;
use k8s_api::mesh_config::MeshConfig;
use model::{Rejection, Str};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{error, warn};

/// How often the file is looked at: a mounted ConfigMap changes by links, whose notices differ by file system.
const POLL: Duration = Duration::from_secs(2);

/// Reads the file as JSON values, with its warnings logged.
///
/// # Errors
///
/// If the file cannot be read or is no mesh configuration.
pub(crate) fn read(path: &Path) -> anyhow::Result<(serde_json::Value, MeshConfig)> {
    use anyhow::Context as _;
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {} (--mesh-config)", path.display()))?;
    let origin = path.display().to_string();
    let parsed = MeshConfig::parse(&[(&origin, &text)])?;
    for (origin, warning) in &parsed.warnings {
        warn!(file = origin, line = warning.line, field = warning.path, "{}", warning.message);
    }
    let values = k8s_api::yaml::parse_value::<serde_json::Value>(&text, &origin)?.value;
    Ok((values, parsed.config))
}

/// Reads the file at the start: one that cannot be used is an error, unless `last_good` says what was in use before the
/// restart.
///
/// # Errors
///
/// If the file cannot be read, is no mesh configuration, or has a field that is refused.
pub(crate) fn read_first(
    path: &Path,
    domain: &Str,
    cluster: &Str,
    last_good: Option<&MeshConfig>,
) -> anyhow::Result<(serde_json::Value, MeshConfig)> {
    let found = read(path).and_then(|(values, config)| {
        let translated = translate::mesh_config(domain, cluster, &config);
        match translated.rejections.first().filter(|_| translated.value.is_none()) {
            Some(Rejection { field, reason, .. }) => {
                bail!("{} (--mesh-config): {field}: {reason}", path.display())
            }
            None => Ok((values, config)),
        }
    });
    match (found, last_good) {
        (Err(failure), Some(last)) => {
            let reason = format!("{failure:#}");
            error!(file = %path.display(), reason, "mesh configuration not used; the one from before the restart is");
            Ok((serde_json::to_value(last)?, last.clone()))
        }
        (found, _) => found,
    }
}

/// Tells the writer whenever the file's contents change. A file that cannot be used changes nothing.
pub(crate) async fn follow(path: PathBuf, changes: mpsc::Sender<Change>) {
    let mut known = std::fs::read(&path).ok();
    loop {
        tokio::time::sleep(POLL).await;
        let found = std::fs::read(&path).ok();
        if found == known {
            continue;
        }
        known = found;
        match read(&path) {
            Ok((_, config)) => {
                if changes.send(Change::MeshConfig(Box::new(config))).await.is_err() {
                    return;
                }
            }
            Err(failure) => {
                let reason = format!("{failure:#}");
                error!(file = %path.display(), reason, "mesh configuration not used; the last good one stays");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_used_at_the_start_is_an_error_unless_there_is_a_last_good_one() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("mesh.yaml");
        let read = |last: Option<&MeshConfig>| read_first(&path, &"cluster.local".into(), &"c".into(), last);
        let good = MeshConfig::parse(&[("test", "trustDomain: corp")]).unwrap().config;
        for (text, part) in [
            (None, "No such file"),
            (Some("a: ["), ":1: unclosed bracket"),
            (Some("proxyListenPort: x"), "proxyListenPort: invalid type"),
            (Some("proxyListenPort: 0"), "mesh.proxyListenPort: port 0 must be in the range"),
        ] {
            if let Some(text) = text {
                std::fs::write(&path, text).unwrap();
            }
            let error = format!("{:#}", read(None).unwrap_err());
            assert!(error.contains(part) && error.contains("mesh.yaml"), "{error}");
            assert_eq!(read(Some(&good)).unwrap().1, good);
        }
        std::fs::write(&path, "trustDomain: new").unwrap();
        assert_eq!(read(Some(&good)).unwrap().1.trust_domain, "new");
    }
}
