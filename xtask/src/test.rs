//! `cargo xtask test`: everything a contributor needs to know before sending a change, from a clean clone.
//!
//! ```text
//! tools ─▶ build ─▶ each test program ─▶ doc tests ─▶ comparisons with the reference material
//! ```
//!
//! Test programs are run one by one, each with a time limit of its own, and their output is passed on as it comes: a
//! hang shows where it is and ends. The last line is `N passed, N failed`, over everything.

use std::fmt;
use std::time::{Duration, Instant};

use toolbox::Tool;

use crate::{AlreadyReported, system, tools};

mod cargo;
mod outcome;
mod reference;

use outcome::Outcome;

/// How many of the slowest steps are named at the end.
const SLOWEST: usize = 10;

/// What `cargo xtask test` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only the test programs whose name contains this, such as compile or e2e
    filter: Option<String>,
}

/// Runs everything; an error if anything failed.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut report = Report::default();
    match all(args, &mut report) {
        Ok(()) => {}
        // Without tools or a build there is nothing to count but this.
        Err(error) => {
            println!("error: {error:#}");
            report.outcome.failed += 1;
            report.failures.push("a step that the rest needs".to_owned());
        }
    }
    print!("{report}");
    let Outcome { passed, failed } = report.outcome;
    // That no test ran is a failure too.
    if failed > 0 || passed == 0 { Err(AlreadyReported.into()) } else { Ok(()) }
}

fn all(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    report.timed("tools", || tools::install(&Tool::ALL).and_then(|()| system::install()))?;
    let programs = report.timed("build", cargo::build)?;

    let wanted = |name: &str| args.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()));
    for program in programs.iter().filter(|program| wanted(&program.name)) {
        report.step(&program.name, || program.run());
    }
    if args.filter.is_none() {
        report.step("doc tests", cargo::doc_tests);
        for (name, comparison) in reference::comparisons()? {
            report.step(name, comparison);
        }
    }
    Ok(())
}

/// What has been done so far.
#[derive(Default)]
struct Report {
    outcome: Outcome,
    failures: Vec<String>,
    /// What failing steps printed last.
    tails: Vec<(String, Vec<String>)>,
    times: Vec<(Duration, String)>,
}

impl Report {
    /// Announces a step and notes how long it took.
    fn timed<T>(&mut self, name: &str, step: impl FnOnce() -> T) -> T {
        println!("\n== {name}");
        let started = Instant::now();
        let value = step();
        self.times.push((started.elapsed(), name.to_owned()));
        value
    }

    /// Runs a step that counts tests.
    fn step(&mut self, name: &str, step: impl FnOnce() -> outcome::Tests) {
        let tests = self.timed(name, step);
        self.outcome.passed += tests.outcome.passed;
        self.outcome.failed += tests.outcome.failed;
        self.failures.extend(tests.failures.iter().map(|failure| format!("{name}: {failure}")));
        if !tests.tail.is_empty() {
            self.tails.push((name.to_owned(), tests.tail));
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut times: Vec<&(Duration, String)> = self.times.iter().collect();
        times.sort_by(|a, b| b.cmp(a));
        writeln!(f, "\nslowest steps:")?;
        for (time, name) in times.iter().take(SLOWEST) {
            writeln!(f, "{:>8.1} s  {name}", time.as_secs_f64())?;
        }
        // Again, and last: what failed may be thousands of lines further up.
        for (name, tail) in &self.tails {
            writeln!(f, "\nthe last lines of {name}:")?;
            for line in tail {
                writeln!(f, "  {line}")?;
            }
        }
        if !self.failures.is_empty() {
            writeln!(f, "failed:")?;
        }
        for failure in &self.failures {
            writeln!(f, "  {failure}")?;
        }
        writeln!(f, "{} passed, {} failed", self.outcome.passed, self.outcome.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_has_the_sums_and_the_slowest_come_first() {
        let mut report = Report::default();
        report
            .times
            .extend([(Duration::from_secs(1), "a".to_owned()), (Duration::from_secs(2), "b".to_owned())]);
        report.step("c", || outcome::Tests::one("it breaks", false));
        report.step("d", || outcome::Tests::one("it works", true));
        let text = report.to_string();
        assert!(text.ends_with("failed:\n  c: it breaks\n1 passed, 1 failed\n"), "{text}");
        assert!(text.contains("2.0 s  b\n     1.0 s  a\n"), "{text}");
    }
}
