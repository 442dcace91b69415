//! What became of the cases of a corpus, and the verdict over all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::sync::Mutex;

use anyhow::{Context, bail};

use super::Ratchet;
use crate::workspace;

/// What became of a case.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) passed: bool,
    /// What is to be said about it, a line each: how it differs, or why it may.
    pub(super) notes: Vec<String>,
}

impl Case {
    /// A case that differs in these ways from what is expected; `reason` says why it may.
    pub(super) fn compared(wrong: Vec<String>, reason: Option<&String>) -> Self {
        let passed = wrong.is_empty() || reason.is_some();
        let notes = match reason {
            Some(reason) if wrong.is_empty() => vec![format!("unused rule: {reason}")],
            Some(reason) => vec![format!("differs on purpose: {reason}")],
            None => wrong,
        };
        Self { passed, notes }
    }
}

/// What became of each case, by name.
pub(super) type Outcome = BTreeMap<String, Case>;

/// The outcome of cases that run at the same time.
#[derive(Default)]
pub(super) struct Shared(Mutex<Outcome>);

impl Shared {
    pub(super) fn insert(&self, name: &str, case: Case) {
        self.0.lock().expect("no thread panics here").insert(name.to_owned(), case);
    }

    pub(super) fn into_inner(self) -> Outcome {
        self.0.into_inner().expect("no thread panics here")
    }
}

/// Prints the outcome of a corpus and fails if a case does that must not: with a ratchet one of the checked-in list,
/// otherwise any.
///
/// With a ratchet only what counts is printed; the rest is in `target/conformance/CORPUS.log`.
pub(super) fn judge(corpus: &str, outcome: &Outcome, ratchet: &Ratchet) -> anyhow::Result<()> {
    let passing: BTreeSet<&str> =
        outcome.iter().filter(|(_, case)| case.passed).map(|(name, _)| name.as_str()).collect();
    let failed = outcome.len() - passing.len();
    let list = workspace::root().join("tests/conformance").join(format!("{corpus}-passing.txt"));
    let known = fs::read_to_string(&list).unwrap_or_default();
    let known: BTreeSet<&str> = known.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let lost: Vec<(&String, &Case)> =
        outcome.iter().filter(|(name, case)| !case.passed && known.contains(name.as_str())).collect();
    let gained = passing.difference(&known).count();
    if ratchet.update {
        let all: BTreeSet<&str> = known.union(&passing).copied().collect();
        let text: String = all.iter().map(|name| format!("{name}\n")).collect();
        fs::write(&list, text).with_context(|| format!("could not write {}", list.display()))?;
    } else if ratchet.ratchet && gained > 0 {
        println!("{gained} cases pass that are not in {}: add them with --update", list.display());
    }
    if ratchet.ratchet {
        keep(corpus, outcome)?;
        print!("{}", text(lost.iter().copied()));
    } else {
        print!("{}", text(outcome));
    }
    for (name, _) in &lost {
        println!("LOST {name}: passed before");
    }
    println!("{} passed, {failed} failed", passing.len());
    if !lost.is_empty() {
        let names: Vec<&str> = lost.iter().map(|(name, _)| name.as_str()).collect();
        bail!("cases of {} do not pass any more: {}", list.display(), names.join(", "));
    }
    if failed > 0 && !ratchet.ratchet {
        bail!("{failed} cases of the {corpus} corpus fail");
    }
    Ok(())
}

/// Writes everything that is to be said to a file, whose name is printed.
fn keep(corpus: &str, outcome: &Outcome) -> anyhow::Result<()> {
    let folder = workspace::root().join("target/conformance");
    let path = folder.join(format!("{corpus}.log"));
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&path, text(outcome)))
        .with_context(|| format!("could not write {}", path.display()))?;
    println!("details are in {}", path.display());
    Ok(())
}

fn text<'a>(cases: impl IntoIterator<Item = (&'a String, &'a Case)>) -> String {
    let mut text = String::new();
    for (name, case) in cases {
        if case.passed && case.notes.is_empty() {
            continue;
        }
        let verdict = if case.passed { "ok" } else { "FAIL" };
        let _ = writeln!(text, "{verdict} {name}");
        for note in &case.notes {
            let _ = writeln!(text, "    {note}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_excuses_a_difference_and_one_without_is_named() {
        let reason = "ours is better".to_owned();
        let excused = Case::compared(vec!["port: expected 1, got 2".to_owned()], Some(&reason));
        let unused = Case::compared(Vec::new(), Some(&reason));
        let wrong = Case::compared(vec!["port: expected 1, got 2".to_owned()], None);
        let cases = [("a", excused), ("b", unused), ("c", wrong), ("d", Case::compared(Vec::new(), None))];
        let outcome: Outcome = cases.map(|(name, case)| (name.to_owned(), case)).into();
        assert_eq!(
            text(&outcome),
            "ok a\n    differs on purpose: ours is better\nok b\n    unused rule: ours is better\nFAIL c\n    port: expected 1, got 2\n"
        );
    }
}
