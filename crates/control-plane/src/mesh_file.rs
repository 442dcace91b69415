//! The mesh configuration in a file.

use index::Change;
use k8s_api::mesh_config::MeshConfig;
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
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let origin = path.display().to_string();
    let parsed = MeshConfig::parse(&[(&origin, &text)])?;
    for (origin, warning) in &parsed.warnings {
        warn!(file = origin, line = warning.line, field = warning.path, "{}", warning.message);
    }
    let values = k8s_api::yaml::parse_value::<serde_json::Value>(&text, &origin)?.value;
    Ok((values, parsed.config))
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
