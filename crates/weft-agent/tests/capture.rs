//! Golden files: `testdata/capture/NAME.args`, a command line of `istio-iptables`, and `NAME.nft` and `NAME.iptables`,
//! what comes of it. `UPDATE_GOLDEN=1` writes them anew.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/capture");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut cases: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|kind| kind == "args")).collect();
    cases.sort();
    assert!(!cases.is_empty());
    cases
}

fn dry_run(case: &Path, backend: &str) -> String {
    let words = fs::read_to_string(case).unwrap();
    let words = words.split_whitespace().map(|word| if word == "\"\"" { "" } else { word });
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-agent"));
    let output = command.args(words).args(["--dry-run", "--backend", backend]).env_clear().output().unwrap();
    assert!(output.status.success(), "{}: {}", case.display(), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn command_lines_become_rules() {
    let mut different = Vec::new();
    for case in cases() {
        for (backend, kind) in [("nftables", "nft"), ("iptables", "iptables")] {
            let (found, golden) = (dry_run(&case, backend), case.with_extension(kind));
            if env::var_os("UPDATE_GOLDEN").is_some() {
                fs::write(&golden, &found).unwrap();
            }
            if fs::read_to_string(&golden).unwrap_or_default() != found {
                different.push(golden.display().to_string());
            }
        }
    }
    assert!(different.is_empty(), "UPDATE_GOLDEN=1 writes them anew: {different:#?}");
}

#[test]
fn what_is_missing_is_said() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-agent"));
    let output = command.args(["capture", "-i", "*"]).env_clear().env("PATH", "/nowhere").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    for part in ["traffic cannot be captured: nft is not installed", "iptables-save is not installed"] {
        assert!(error.contains(part), "{error}");
    }
}
