//! The reference material beside the clone (`../shared`), which not everybody has.

use std::env;
use std::path::{Path, PathBuf};

/// Returns a file or folder of the reference material.
///
/// Where the material is absent this prints one line that starts with `skipped` and returns `None`: the caller
/// returns without a verdict.
///
/// # Panics
///
/// If `CI=true` and the material is absent, since there nothing may be skipped; also if the material is there and
/// lacks `relative`, which is a mistake in the test.
pub fn path(relative: &str) -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let shared = workspace.join("../shared");
    if !shared.is_dir() {
        assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "{} is required in CI", shared.display());
        println!("skipped: needs {relative} of {}, which is absent", shared.display());
        return None;
    }
    let path = shared.join(relative);
    assert!(path.exists(), "{} does not exist", path.display());
    Some(path)
}
