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

/// Runs the proxy of a one-service scenario with this mesh configuration in a real Envoy.
fn scenario(mesh_config: &str) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let objects = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: app}
spec: {clusterIP: 10.2.0.1, ports: [{name: http, port: 80}]}
";
    let case = format!(
        "proxies: [{{name: client, type: sidecar, ip: [10.1.0.1], namespace: app}}]\nmeshConfig: {mesh_config}\n"
    );
    std::fs::write(folder.path().join("objects.yaml"), objects).unwrap();
    std::fs::write(folder.path().join("case.yaml"), case).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_scenario"));
    command.arg(folder.path()).env("WEFTD", weftd::executable().unwrap());
    let output = command.env("WEFTCTL", weftd::weftctl().unwrap()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.success(), said)
}

#[test]
fn a_scenario_shows_what_an_envoy_takes_and_what_it_refuses() {
    let (passed, said) = scenario("{accessLogFile: /no/such/folder/log}");
    assert!(passed && said.starts_with("ok client"), "{said}");
    // Nobody but Envoy knows all commands.
    let (passed, said) = scenario("{accessLogFile: /dev/stdout, accessLogFormat: '%NO_SUCH_COMMAND%'}");
    assert!(!passed && said.contains("FAIL client") && said.contains("NO_SUCH_COMMAND"), "{said}");
}
