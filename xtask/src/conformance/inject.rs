//! The corpus of injected workloads: facts that must hold of what `weftctl inject` makes.
//!
//! Images, commands and agent arguments are Weft's own. What users, tools and the pod's network depend on must be equal.

mod facts;

use super::outcome::{Case, Outcome, Shared};
use super::{CASE_LIMIT, for_each};
use crate::process;
use crate::workspace;
use anyhow::{Context, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use toolbox::Tool;

/// Everything of the corpus that is compared with, by path, read at once.
const READ: &str = "import json,os,sys,yaml
top, out = sys.argv[1], {}
for folder, _, names in os.walk(top):
    for name in names:
        if name in ('facts.yaml', 'case.yaml') or os.path.relpath(folder, top) in ('required', 'node-versions'):
            path = os.path.join(folder, name)
            out[os.path.relpath(path, top)] = yaml.safe_load(open(path))
print(json.dumps(out))";

/// Runs the corpus in `dir`.
pub(super) fn run(weftctl: &Path, dir: &Path) -> anyhow::Result<Outcome> {
    let python = Tool::Python.find().map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut read = process::command(python);
    read.arg("-c").arg(READ).arg(dir);
    let files: BTreeMap<String, Value> = serde_json::from_str(&process::output(&mut read, CASE_LIMIT)?)?;
    let reasons = super::deliberate(&workspace::root().join("tests/conformance/inject-ignore.txt"))?;
    let mut cases: Vec<String> =
        files.keys().filter_map(|path| path.strip_suffix("/facts.yaml").map(str::to_owned)).collect();
    let tables = files.keys().filter(|path| !path.ends_with("/facts.yaml") && !path.ends_with("/case.yaml"));
    cases.extend(tables.map(|path| path.trim_end_matches(".yaml").to_owned()));
    if cases.is_empty() {
        bail!("{} holds no cases", dir.display());
    }
    let outcome = Shared::default();
    for_each(&cases, |case| {
        let wrong = check(weftctl, dir, case, &files).unwrap_or_else(|error| vec![format!("{error:#}")]);
        outcome.insert(case, Case::compared(wrong, reasons.get(case)));
    });
    Ok(outcome.into_inner())
}

fn check(
    weftctl: &Path,
    dir: &Path,
    case: &str,
    files: &BTreeMap<String, Value>,
) -> anyhow::Result<Vec<String>> {
    let Some(facts) = files.get(&format!("{case}/facts.yaml")) else {
        let path = format!("{case}.yaml");
        return decision(weftctl, &dir.join(&path), &files[&path]);
    };
    let settings = &files[&format!("{case}/case.yaml")];
    let folder = dir.join(case);
    let mut wrong = Vec::new();
    let mut ran = false;
    for (path, flag) in [("offline", None), ("webhook", Some("--admission"))] {
        if settings["paths"][path] != true {
            continue;
        }
        ran = true;
        let mut command = process::command(weftctl);
        command.args(["inject", "--report"]).args(flag);
        command.arg("--objects").arg(folder.join("input.yaml"));
        // Templates of the user's are Go's there, and structured patches here.
        let own = workspace::root().join("tests/conformance/inject").join(format!("{case}.yaml"));
        for file in [dir.join("defaults.yaml"), folder.join("case.yaml"), own] {
            if file.is_file() {
                command.arg("--case").arg(file);
            }
        }
        let output = command.output().context("could not start weftctl")?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let found = if facts["rejected"] == true {
            rejection(facts, output.status.success(), &error)
        } else if output.status.success() {
            facts::compare(facts, &serde_json::from_slice(&output.stdout)?)
        } else {
            vec![error.trim().to_owned()]
        };
        wrong.extend(found.into_iter().map(|wrong| format!("{path}: {wrong}")));
    }
    if !ran {
        bail!("neither path is to be run");
    }
    Ok(wrong)
}

fn rejection(facts: &Value, succeeded: bool, error: &str) -> Vec<String> {
    let expected = facts["errorContains"].as_str().unwrap_or_default().to_lowercase();
    if succeeded {
        return vec!["should be refused".to_owned()];
    }
    if error.to_lowercase().contains(&expected) {
        return Vec::new();
    }
    vec![format!("the error lacks {expected:?}: {}", error.trim())]
}

fn decision(weftctl: &Path, file: &Path, expected: &Value) -> anyhow::Result<Vec<String>> {
    let mut command = process::command(weftctl);
    command.args(["inject", "--decision"]).arg(file);
    let answer: Value = serde_json::from_str(&process::output(&mut command, CASE_LIMIT)?)?;
    let key = if expected.get("native").is_some() { "native" } else { "injected" };
    if expected[key].is_null() {
        bail!("{} expects nothing", fs::canonicalize(file)?.display());
    }
    let differs = answer[key] != expected[key];
    Ok(differs.then(|| format!("{key} is {}, expected {}", answer[key], expected[key])).into_iter().collect())
}
