//! What every crate of the workspace carries.

use std::fs;
use std::path::Path;

use cargo_metadata::{Metadata, Package};

use super::layers;

/// What a crate of layers 0 and 1 must not call: their results are functions of their arguments.
const DISALLOWED: [&str; 3] = ["std::time::SystemTime::now", "std::time::Instant::now", "std::env::var"];

/// Returns a line for every crate that lacks something.
pub(super) fn check(metadata: &Metadata) -> Vec<String> {
    metadata.packages.iter().flat_map(check_package).collect()
}

fn check_package(package: &Package) -> Vec<String> {
    let name = package.name.as_str();
    let folder = package.manifest_path.parent().expect("a manifest lies in a folder").as_std_path();
    let mut problems = Vec::new();
    if !inherits_lints(&read(package.manifest_path.as_std_path())) {
        problems.push(format!("{name}: Cargo.toml lacks `[lints] workspace = true`"));
    }
    let library = folder.join("src/lib.rs");
    if library.is_file() && !opens_with_invariant(&read(&library)) {
        problems.push(format!("{name}: the module docs of src/lib.rs lack an `**Invariant:**` paragraph"));
    }
    if layers::is_pure(name) && !disallows_impurity(&read(&folder.join("clippy.toml"))) {
        let methods = DISALLOWED.join(", ");
        problems.push(format!("{name}: clippy.toml must list as disallowed-methods: {methods}"));
    }
    problems
}

/// A file that is not there has nothing of what is looked for.
fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn inherits_lints(manifest: &str) -> bool {
    let mut lines = manifest.lines().map(str::trim).skip_while(|line| *line != "[lints]").skip(1);
    lines.find(|line| !line.is_empty()).is_some_and(|line| line.replace(' ', "") == "workspace=true")
}

fn opens_with_invariant(library: &str) -> bool {
    let docs =
        library.lines().skip_while(|line| line.trim().is_empty()).take_while(|line| line.starts_with("//!"));
    docs.into_iter().any(|line| line.starts_with("//! **Invariant:**"))
}

fn disallows_impurity(clippy: &str) -> bool {
    clippy.contains("disallowed-methods")
        && DISALLOWED.iter().all(|method| clippy.contains(&format!("\"{method}\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lints_must_come_from_the_workspace() {
        assert!(inherits_lints("[lib]\n\n[lints]\nworkspace = true\n"));
        assert!(!inherits_lints("[lints]\n\n[dependencies]\n"));
        assert!(!inherits_lints("[lints.rust]\nunsafe_code = \"allow\"\n"));
    }

    #[test]
    fn the_invariant_must_be_in_the_opening_docs() {
        assert!(opens_with_invariant("//! A crate.\n//!\n//! **Invariant:** none.\n\nmod a;\n"));
        assert!(!opens_with_invariant("//! A crate.\n\nmod a;\n//! **Invariant:** too late.\n"));
        assert!(!opens_with_invariant(""));
    }

    #[test]
    fn clippy_must_forbid_all_three() {
        assert!(!disallows_impurity("disallowed-methods = [{ path = \"std::env::var\" }]"));
        let all = DISALLOWED.map(|method| format!("\"{method}\"")).join(",");
        assert!(disallows_impurity(&format!("disallowed-methods = [{all}]")));
    }
}
