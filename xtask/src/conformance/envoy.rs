//! Scenarios in real Envoys: the program `scenario` of the package `weft-e2e` starts each proxy of a scenario as a
//! stock Envoy that weftd configures, and says whether it took everything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use super::outcome::{Case, Outcome, Shared};
use super::{cases, for_each};
use crate::{Usage, process, tidy, workspace};

/// Time for all proxies of a scenario, each of which has 25 seconds.
const CASE_LIMIT: Duration = Duration::from_secs(240);

/// The programs that take part: the one that runs a scenario, and what it starts.
const PROGRAMS: [&str; 3] = ["scenario", "weftd", "weftctl"];

/// Which scenarios.
pub(super) enum Selection<'a> {
    /// Those of the list beside the corpus.
    Slice,
    /// The whole corpus.
    All,
    /// These.
    Named(&'a [String]),
}

/// Runs scenarios of the corpus in `dir`.
pub(super) fn run(dir: &Path, selection: &Selection<'_>) -> anyhow::Result<Outcome> {
    let scenarios = select(dir, selection)?;
    let programs = build()?;
    let outcome = Shared::default();
    for_each(&scenarios, |scenario| {
        let mut notes = Vec::new();
        let passed = one(&programs, &dir.join(scenario), |line| notes.push(line.to_owned()));
        if passed {
            notes.retain(|line| line.starts_with("skipped"));
        }
        outcome.insert(scenario, Case { passed, notes });
    });
    Ok(outcome.into_inner())
}

fn select(dir: &Path, selection: &Selection<'_>) -> anyhow::Result<Vec<String>> {
    let all = cases(dir, "case.yaml")?;
    let named: Vec<String> = match selection {
        Selection::All => return Ok(all),
        Selection::Named(names) => names.to_vec(),
        Selection::Slice => {
            let list = dir.join("../slice.txt");
            let text =
                fs::read_to_string(&list).with_context(|| format!("could not read {}", list.display()))?;
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
        }
    };
    if let Some(unknown) = named.iter().find(|name| !all.contains(name)) {
        return Err(Usage(format!("{} has no scenario {unknown}", dir.display())).into());
    }
    Ok(named)
}

/// Builds the programs and returns where they are.
fn build() -> anyhow::Result<PathBuf> {
    let mut build = process::command(env!("CARGO"));
    // Of the whole workspace, so that dependencies are those of every other build.
    build.current_dir(workspace::root()).args(["build", "--quiet", "--workspace"]);
    for program in PROGRAMS {
        build.args(["--bin", program]);
    }
    process::run(&mut build, Duration::from_secs(1800))?;
    Ok(tidy::metadata()?.target_directory.into_std_path_buf().join("debug"))
}

/// Runs one scenario and gives what it says to `each`.
fn one(programs: &Path, folder: &Path, mut each: impl FnMut(&str)) -> bool {
    let mut scenario: Command = process::command(programs.join("scenario"));
    scenario.arg(folder);
    for (variable, program) in [("WEFTD", "weftd"), ("WEFTCTL", "weftctl")] {
        scenario.env(variable, programs.join(program));
    }
    match process::lines(&mut scenario, CASE_LIMIT, &mut each) {
        Ok(()) => true,
        Err(error) => {
            each(&format!("{error:#}"));
            false
        }
    }
}
