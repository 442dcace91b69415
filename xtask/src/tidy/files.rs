//! What may be checked in.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::process;

const MAX_BYTES: u64 = 1 << 20;
/// Generated files that may be larger: the descriptors of every message.
const MAY_BE_LARGE: &[&str] = &["crates/proto/src/generated/envoy.fds"];

/// Attributes that keep a test from saying what is wrong. Split, so that this file does not break its own rule.
const FORBIDDEN: [(&str, &str); 2] = [
    (concat!("#[", "ignore"), "a test that cannot run must fail and say what it needs"),
    (concat!("#[", "should_panic"), "assert on the error instead"),
];

/// Returns the files that git knows or would add, relative to the root.
pub(super) fn tracked(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut git = process::command("git");
    git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let names = process::output(&mut git, Duration::from_secs(60)).context("tidy needs git and a clone")?;
    let mut names: Vec<String> = names.trim_end().split('\0').map(str::to_owned).collect();
    // A file that is deleted but not yet committed is still listed.
    names.retain(|name| !name.is_empty() && root.join(name).is_file());
    Ok(names)
}

/// Returns a line for every file that breaks a rule.
pub(super) fn check(root: &Path, files: &[String]) -> Vec<String> {
    let mut problems = Vec::new();
    for name in files {
        let path = root.join(name);
        let bytes = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        if bytes > MAX_BYTES && !MAY_BE_LARGE.contains(&name.as_str()) {
            problems.push(format!("{name}: {bytes} bytes; files over {MAX_BYTES} are not checked in"));
        }
        if name.ends_with(".rs") {
            problems.extend(check_source(name, &fs::read_to_string(&path).unwrap_or_default()));
        }
    }
    problems
}

fn check_source(name: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for (attribute, advice) in FORBIDDEN {
            if line.trim_start().starts_with(attribute) {
                problems.push(format!("{name}:{number}: {attribute}] is not used here: {advice}"));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_with_their_line() {
        let text = format!("#[test]\n    {} = \"slow\"]\nfn a() {{}}\n", FORBIDDEN[0].0);
        let problems = check_source("a.rs", &text);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with("a.rs:2: "), "{problems:?}");
    }

    #[test]
    fn comments_about_them_are_fine() {
        assert!(check_source("a.rs", &format!("// no {}] here\n", FORBIDDEN[0].0)).is_empty());
    }

    #[test]
    fn large_files_are_reported() {
        let folder = std::env::temp_dir().join(format!("weft-tidy-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let large = folder.join("large.bin");
        fs::File::create(&large).unwrap().set_len(MAX_BYTES + 1).unwrap();
        let problems = check(&folder, &["large.bin".to_owned()]);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(problems.len(), 1, "{problems:?}");
    }
}
