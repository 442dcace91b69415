//! The corpus of objects with the verdicts of the API server and of Istio's validator.
//!
//! A real API server with our definitions judges first, and `weftctl validate`, which says what the webhook would, judges what
//! it lets through: both as they were measured.

use super::CASE_LIMIT;
use super::outcome::{Case, Outcome};
use crate::process;
use crate::workspace;
use anyhow::{Context, ensure};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use toolbox::Tool;

/// What the API server takes for all objects, and what it takes to build what starts it.
const SERVER_LIMIT: Duration = Duration::from_secs(1800);

const READ: &str = "import json,os,sys,yaml
top, out = sys.argv[1], []
for folder, _, names in sorted(os.walk(top)):
    for name in sorted(names):
        if name.endswith('.yaml'):
            out.append(yaml.safe_load(open(os.path.join(folder, name))))
print(json.dumps(out, default=str))";

/// Runs the corpus in `dir`.
pub(super) fn run(weftctl: &Path, dir: &Path) -> anyhow::Result<Outcome> {
    let python = Tool::Python.find().map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut read = process::command(python);
    read.arg("-c").arg(READ).arg(dir);
    let cases: Vec<Value> = serde_json::from_str(&process::output(&mut read, CASE_LIMIT)?)?;
    ensure!(!cases.is_empty(), "{} holds no cases", dir.display());
    let verdicts = verdicts(weftctl, &cases)?;
    let by_server = verdicts_of_server(&cases)?;
    let reasons = super::deliberate(&workspace::root().join("tests/conformance/validation-ignore.txt"))?;
    let mut outcome = Outcome::new();
    let mut refused_by_server = 0;
    for ((case, verdict), schema) in cases.iter().zip(&verdicts).zip(&by_server) {
        let name = case["name"].as_str().context("a case has no name")?;
        let gates = case["rejectedBy"].as_array().map_or(&[][..], Vec::as_slice);
        let by_schema = gates.iter().any(|gate| gate != "validator");
        let wrong = judge_schema(case, schema).or_else(|| {
            // What is refused there never reaches the validator, which may accept it.
            let is_over = by_schema && verdict["accepted"] == true;
            refused_by_server += usize::from(is_over);
            if is_over { None } else { judge(case, verdict) }
        });
        outcome.insert(name.to_owned(), Case::compared(wrong.into_iter().collect(), reasons.get(name)));
    }
    println!("{refused_by_server} cases are refused by the API server alone");
    Ok(outcome)
}

/// Asks about all objects at once.
fn verdicts(weftctl: &Path, cases: &[Value]) -> anyhow::Result<Vec<Value>> {
    let folder = workspace::root().join("target/conformance/validation");
    fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
    let file = folder.join("objects.yaml");
    let text: Vec<String> = cases.iter().map(|case| case["object"].to_string()).collect();
    fs::write(&file, text.join("\n---\n")).with_context(|| format!("could not write {}", file.display()))?;
    let output = Command::new(weftctl)
        .args(["validate", "--report", "--allow-unenforced-policies", "--objects"])
        .arg(&file)
        .output()
        .context("could not start weftctl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "weftctl validate failed: {}", said.trim());
    let verdicts: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    ensure!(verdicts.len() == cases.len(), "{} verdicts on {} objects", verdicts.len(), cases.len());
    Ok(verdicts)
}

/// Asks a real API server about all objects at once.
fn verdicts_of_server(cases: &[Value]) -> anyhow::Result<Vec<Value>> {
    let objects: Value = cases.iter().map(|case| case["object"].clone()).collect();
    let file = workspace::root().join("target/conformance/validation/objects.json");
    fs::write(&file, objects.to_string()).with_context(|| format!("could not write {}", file.display()))?;
    let mut server = process::command(env!("CARGO"));
    server.current_dir(workspace::root()).args([
        "run",
        "--quiet",
        "--package",
        "weft-e2e",
        "--bin",
        "schema",
    ]);
    server.arg("--").arg(&file);
    let verdicts: Vec<Value> = serde_json::from_str(&process::output(&mut server, SERVER_LIMIT)?)?;
    ensure!(verdicts.len() == cases.len(), "{} verdicts on {} objects", verdicts.len(), cases.len());
    Ok(verdicts)
}

/// Returns how the API server's verdict differs from what is expected.
fn judge_schema(case: &Value, verdict: &Value) -> Option<String> {
    match (case["schema"]["accepted"] == true, verdict["accepted"] == true) {
        (true, false) => Some(format!("the API server must accept it: {}", verdict["message"])),
        (false, true) => Some(format!("the API server must refuse it: {}", case["schema"]["error"])),
        _ => None,
    }
}

/// Returns how a verdict differs from what is expected.
fn judge(case: &Value, verdict: &Value) -> Option<String> {
    let (expected, accepted) = (case["error"].is_null(), verdict["accepted"] == true);
    if expected && !accepted {
        return Some(format!("must be accepted: {}", verdict["rejections"]));
    }
    if !expected && accepted {
        return Some(format!("must be refused: {}", case["validator"]["error"]));
    }
    if !expected {
        return None;
    }
    let warns = verdict["warnings"].as_array().is_some_and(|warnings| !warnings.is_empty());
    match (case["warning"].is_null(), warns) {
        (false, false) => Some(format!("must warn: {}", case["warning"])),
        (true, true) => Some(format!("must not warn: {}", verdict["warnings"])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(refused: bool, warns: bool, accepted: bool, warned: bool) -> Option<String> {
        let text = |set: bool| if set { json!("text") } else { Value::Null };
        let case = json!({"error": text(refused), "warning": text(warns), "validator": {"error": "text"}});
        let warnings = if warned { json!([{}]) } else { json!([]) };
        judge(&case, &json!({"accepted": accepted, "warnings": warnings, "rejections": []}))
    }

    #[test]
    fn the_api_server_must_say_the_same() {
        let check = |expected: bool, accepted: bool| {
            judge_schema(&json!({"schema": {"accepted": expected}}), &json!({"accepted": accepted}))
        };
        assert!(check(true, true).is_none() && check(false, false).is_none());
        assert!(check(true, false).is_some() && check(false, true).is_some());
    }

    #[test]
    fn acceptance_and_warnings_must_be_equal() {
        assert_eq!(check(false, false, true, false), None);
        assert_eq!(check(true, false, false, true), None);
        assert_eq!(check(false, true, true, true), None);
        assert!(check(false, false, false, false).is_some());
        assert!(check(true, false, true, false).is_some());
        assert!(check(false, true, true, false).is_some());
        assert!(check(false, false, true, true).is_some());
    }
}
