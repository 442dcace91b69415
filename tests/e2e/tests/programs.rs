//! The programs that `cargo xtask` offers do what they promise.

use std::process::Command;

use e2e::weftd;

/// Runs a program to its end; what it says is shown if the test fails.
fn succeeds(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).env("WEFTD", weftd::executable().unwrap());
    let output = command.output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{said}", output.status);
    said
}

#[test]
fn the_demo_shows_a_split_that_shifts() {
    let said = succeeds(env!("CARGO_BIN_EXE_demo"), &["--check"]);
    assert!(said.contains("weights 0/100") && said.contains("0 failed"), "{said}");
    println!("{said}");
}

#[test]
fn a_thousand_edits_fail_no_request() {
    let said = succeeds(env!("CARGO_BIN_EXE_hitless"), &["--edits", "1000", "--seed", "1"]);
    assert!(said.contains("1000 edits, ") && said.contains(" 0 failed in "), "{said}");
    println!("{said}");
}
