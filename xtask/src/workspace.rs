//! Where the workspace lies.

use std::path::Path;

/// Returns the root folder of the workspace that this program was built from.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in a folder of the workspace")
}
