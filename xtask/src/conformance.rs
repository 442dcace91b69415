//! Conformance corpora: inputs and expected outcomes that others wrote, which lie beside the project.
//!
//! A corpus is run as a whole. What passes is kept in a checked-in list that may only grow: with `--ratchet` a
//! case of the list that fails is an error, and one that passes without being in it is named.

mod envoy;
mod inject;
mod outcome;
mod validation;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Subcommand;
use envoy::Selection;
use outcome::{Case, Outcome, Shared, judge};
use serde_json::Value;
use toolbox::Tool;

use crate::{Usage, process, workspace};

/// Time for one case: a case that takes longer hangs.
const CASE_LIMIT: Duration = Duration::from_secs(60);

/// Which corpus, and what to do with the outcome.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    corpus: Corpus,
}

#[derive(Subcommand)]
enum Corpus {
    /// Compile every scenario folder of DIR and compare what each proxy gets with what istiod generated
    Xds {
        /// The folder of scenarios
        dir: PathBuf,
        /// Where to write what Weft generates, as NAME/weft.json [default: target/conformance/xds]
        out: Option<PathBuf>,
        #[command(flatten)]
        ratchet: Ratchet,
    },
    /// Evaluate every call of the situations in DIR and compare where it ends
    Simulation {
        /// The folder of situations
        dir: PathBuf,
        #[command(flatten)]
        ratchet: Ratchet,
    },
    /// Inject the workloads of DIR and compare what users and tools depend on with what Istio does
    Inject {
        /// The folder of workloads
        dir: PathBuf,
        #[command(flatten)]
        ratchet: Ratchet,
    },
    /// Judge the objects of DIR and compare with the verdicts of Istio's validator
    Validation {
        /// The folder of objects
        dir: PathBuf,
        #[command(flatten)]
        ratchet: Ratchet,
    },
    /// Start every proxy of scenarios in DIR as a stock Envoy that weftd configures, which must take everything
    Envoy {
        /// The folder of scenarios
        dir: PathBuf,
        /// Which of them [default: those that `slice.txt` beside DIR lists]
        names: Vec<String>,
        /// All of them
        #[arg(long, conflicts_with = "names")]
        all: bool,
        #[command(flatten)]
        ratchet: Ratchet,
    },
}

#[derive(clap::Args)]
struct Ratchet {
    /// Fail only if a case of the checked-in list fails
    #[arg(long)]
    ratchet: bool,
    /// Add what passes to the checked-in list
    #[arg(long)]
    update: bool,
}

/// Runs a corpus.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let (Corpus::Xds { dir, .. }
    | Corpus::Simulation { dir, .. }
    | Corpus::Inject { dir, .. }
    | Corpus::Validation { dir, .. }
    | Corpus::Envoy { dir, .. }) = &args.corpus;
    // Before anything is built.
    if !dir.is_dir() {
        return Err(Usage(format!("{} is not a folder", dir.display())).into());
    }
    match &args.corpus {
        Corpus::Xds { dir, out, ratchet } => {
            let default = workspace::root().join("target/conformance/xds");
            let outcome = xds(&build_weftctl()?, dir, out.as_ref().unwrap_or(&default))?;
            judge("xds", &outcome, ratchet)
        }
        Corpus::Simulation { dir, ratchet } => {
            let outcome = simulation(&build_weftctl()?, dir)?;
            judge("simulation", &outcome, ratchet)
        }
        Corpus::Inject { dir, ratchet } => {
            let outcome = inject::run(&build_weftctl()?, dir)?;
            judge("inject", &outcome, ratchet)
        }
        Corpus::Validation { dir, ratchet } => {
            let outcome = validation::run(&build_weftctl()?, dir)?;
            judge("validation", &outcome, ratchet)
        }
        Corpus::Envoy { dir, names, all, ratchet } => {
            let selection = match (all, names.as_slice()) {
                (true, _) => Selection::All,
                (false, []) => Selection::Slice,
                (false, names) => Selection::Named(names),
            };
            judge("envoy", &envoy::run(dir, &selection)?, ratchet)
        }
    }
}

/// Runs the corpus in `dir` and fails if a case of the checked-in list does.
pub(crate) fn ratchet(corpus: &str, dir: &Path) -> anyhow::Result<()> {
    let weftctl = build_weftctl()?;
    let outcome = match corpus {
        "inject" => inject::run(&weftctl, dir)?,
        "validation" => validation::run(&weftctl, dir)?,
        "xds" => xds(&weftctl, dir, &workspace::root().join("target/conformance/xds"))?,
        _ => simulation(&weftctl, dir)?,
    };
    judge(corpus, &outcome, &Ratchet { ratchet: true, update: false })
}

/// Runs the scenarios that the list beside the corpus in `dir` names in real Envoys; all must pass.
pub(crate) fn slice_in_envoys(dir: &Path) -> anyhow::Result<()> {
    judge("envoy", &envoy::run(dir, &Selection::Slice)?, &Ratchet { ratchet: false, update: false })
}

fn build_weftctl() -> anyhow::Result<PathBuf> {
    let mut build = process::command(env!("CARGO"));
    build.current_dir(workspace::root()).args([
        "build",
        "--quiet",
        "--package",
        "weftctl",
        "--message-format=json-render-diagnostics",
    ]);
    let messages = process::output(&mut build, Duration::from_secs(1800))?;
    let executable =
        messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
            (message["target"]["name"] == "weftctl")
                .then(|| message["executable"].as_str().map(PathBuf::from))
                .flatten()
        });
    executable.context("cargo built no weftctl")
}

/// Returns the folders below `dir` that hold `marker`, by their path from `dir`.
fn cases(dir: &Path, marker: &str) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut queue = vec![PathBuf::new()];
    while let Some(relative) = queue.pop() {
        let folder = dir.join(&relative);
        if folder.join(marker).is_file() {
            found.push(relative.display().to_string());
        }
        let entries =
            fs::read_dir(&folder).with_context(|| format!("could not read {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() && !entry.file_name().to_string_lossy().starts_with('.') {
                queue.push(relative.join(entry.file_name()));
            }
        }
    }
    if found.is_empty() {
        bail!("{} holds no folder with {marker}", dir.display());
    }
    found.sort();
    Ok(found)
}

/// Runs `each` for every case, on all cores.
fn for_each(cases: &[String], each: impl Fn(&str) + Sync) {
    let next = AtomicUsize::new(0);
    let workers = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    each(case);
                }
            });
        }
    });
}

/// Runs weftctl on a case. What it says about objects is only of interest when it fails.
fn weftctl(weftctl: &Path, command: &[&str], folder: &Path) -> anyhow::Result<String> {
    let mut call = process::command(weftctl);
    call.args(command)
        .arg("--objects")
        .arg(folder.join("objects.yaml"))
        .arg("--case")
        .arg(folder.join("case.yaml"));
    call.stderr(std::process::Stdio::null());
    let mut text = String::new();
    process::lines(&mut call, CASE_LIMIT, |line| {
        text.push_str(line);
        text.push('\n');
    })?;
    Ok(text)
}

fn xds(binary: &Path, dir: &Path, out: &Path) -> anyhow::Result<Outcome> {
    let cases = cases(dir, "istiod.json")?;
    for_each(&cases, |case| {
        let target = out.join(case);
        let result = weftctl(binary, &["translate"], &dir.join(case)).and_then(|text| {
            fs::create_dir_all(&target)?;
            Ok(fs::write(target.join("weft.json"), text)?)
        });
        if let Err(error) = result {
            // Without a result of this run the comparison says that it is missing.
            let _ = fs::remove_file(target.join("weft.json"));
            eprintln!("{case}: {error:#}");
        }
    });
    let shared = dir.ancestors().find(|folder| folder.join("tools/xdsdiff.py").is_file());
    let script = shared.with_context(|| format!("no tools/xdsdiff.py beside {}", dir.display()))?;
    let python = Tool::Python.find().map_err(|error| anyhow::anyhow!("{error}"))?;
    let ignore = workspace::root().join("tests/conformance/ignore.txt");
    let output = Command::new(python)
        .arg(script.join("tools/xdsdiff.py"))
        .args([Path::new("--tree"), Path::new("--json"), dir, out, Path::new("--ignore"), &ignore])
        .output()
        .context("could not start xdsdiff.py")?;
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| {
        format!("xdsdiff.py gave no report: {}", String::from_utf8_lossy(&output.stderr).trim())
    })?;
    let scenarios = report["scenarios"].as_object().context("the report of xdsdiff.py has no scenarios")?;
    let mut outcome = Outcome::new();
    for (name, scenario) in scenarios {
        let passed = scenario["result"] == "PASS";
        let notes = if passed { Vec::new() } else { differences(scenario) };
        outcome.insert(name.clone(), Case { passed, notes });
    }
    for rule in report["unusedIgnoreRules"].as_array().into_iter().flatten() {
        println!("{}", rule.as_str().unwrap_or_default());
    }
    Ok(outcome)
}

/// Returns what went wrong with a scenario, a line each.
fn differences(scenario: &Value) -> Vec<String> {
    let mut lines: Vec<String> = scenario["error"].as_str().map(str::to_owned).into_iter().collect();
    for difference in scenario["differences"].as_array().into_iter().flatten() {
        if difference["severity"] == "BEHAVIOUR" {
            let text = |key: &str| {
                difference[key].as_str().map_or_else(|| difference[key].to_string(), str::to_owned)
            };
            lines.push(format!(
                "{} {} {} {}: reference={} candidate={}",
                text("proxy"),
                text("kind"),
                text("name"),
                text("path"),
                text("reference"),
                text("candidate")
            ));
        }
    }
    lines
}

fn simulation(binary: &Path, dir: &Path) -> anyhow::Result<Outcome> {
    let cases = cases(dir, "case.yaml")?;
    let deliberate = deliberate(&workspace::root().join("tests/conformance/simulation-ignore.txt"))?;
    let outcome = Shared::default();
    for_each(&cases, |case| {
        let folder = dir.join(case);
        // The rules of this corpus were read without a DNS domain, its Services with one.
        let result = weftctl(binary, &["simulate", "--bare-short-names"], &folder)
            .and_then(|text| Ok((serde_json::from_str::<Vec<Value>>(&text)?, expectations(&folder)?)));
        match result {
            Ok((answers, expectations)) => {
                for (index, (name, expect)) in expectations.iter().enumerate() {
                    let wrong = mismatches(expect, answers.get(index).unwrap_or(&Value::Null));
                    let call = format!("{case}/{index}-{}", name.replace(char::is_whitespace, "_"));
                    outcome.insert(&call, Case::compared(wrong, deliberate.get(&call)));
                }
            }
            Err(error) => outcome.insert(case, Case::compared(vec![format!("{error:#}")], None)),
        }
    });
    Ok(outcome.into_inner())
}

/// Reads the calls that end elsewhere on purpose, with the reason of each: `CALL  # REASON` a line.
fn deliberate(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))?;
    let rules = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let rule = |line: &str| {
        let (call, reason) = line.split_once('#').with_context(|| format!("{line:?} has no reason"))?;
        Ok((call.trim().to_owned(), reason.trim().to_owned()))
    };
    rules.map(rule).collect()
}

/// Reads what is expected of each call, by way of the Python environment, which reads YAML.
fn expectations(folder: &Path) -> anyhow::Result<Vec<(String, Value)>> {
    let python = Tool::Python.find().map_err(|error| anyhow::anyhow!("{error}"))?;
    let program = "import json,sys,yaml; print(json.dumps([[c.get('name',''),c['expect']] for c in yaml.safe_load(open(sys.argv[1]))['calls']]))";
    let mut command = process::command(python);
    command.arg("-c").arg(program).arg(folder.join("case.yaml"));
    Ok(serde_json::from_str(&process::output(&mut command, CASE_LIMIT)?)?)
}

/// Returns how an answer differs from what is expected of it: every expected field must be equal, an error only if
/// one is expected, and in strict cases nothing else may be there.
fn mismatches(expect: &Value, answer: &Value) -> Vec<String> {
    const FIELDS: [&str; 7] =
        ["error", "listener", "filterChain", "routeConfig", "virtualHost", "route", "cluster"];
    let strict = expect["strict"] == true;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let differs = |field: &&str| {
        let is_demanded = strict || *field == "error" || !expect[*field].is_null();
        is_demanded && text(&expect[*field]) != text(&answer[*field])
    };
    let wrong = FIELDS.into_iter().filter(|field| differs(field));
    wrong
        .map(|field| format!("{field}: expected {:?}, got {:?}", text(&expect[field]), text(&answer[field])))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_is_demanded_must_be_equal() {
        let answer = json!({"name": "x", "cluster": "a", "listener": "l"});
        assert!(mismatches(&json!({"cluster": "a"}), &answer).is_empty());
        assert_eq!(mismatches(&json!({"cluster": "b"}), &answer), ["cluster: expected \"b\", got \"a\""]);
        assert_eq!(
            mismatches(&json!({"cluster": "a", "strict": true}), &answer),
            ["listener: expected \"\", got \"l\""]
        );
        let refused = json!({"error": "no route matched"});
        assert_eq!(mismatches(&json!({}), &refused), ["error: expected \"\", got \"no route matched\""]);
    }
}
