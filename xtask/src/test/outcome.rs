//! How many tests passed, as read from what test programs print.

use std::collections::VecDeque;

/// How many of the lines printed last are kept, in case something fails, and how much of each.
const TAIL: usize = 60;
const TAIL_WIDTH: usize = 500;

/// Counts of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

/// The outcome of a step, and what failed in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tests {
    pub(crate) outcome: Outcome,
    pub(crate) failures: Vec<String>,
    /// If something failed, what was printed last.
    pub(crate) tail: Vec<String>,
}

impl Tests {
    /// A step that is one test.
    pub(crate) fn one(name: &str, passed: bool) -> Self {
        if passed {
            return Self { outcome: Outcome { passed: 1, failed: 0 }, ..Self::default() };
        }
        let outcome = Outcome { passed: 0, failed: 1 };
        Self { outcome, failures: vec![name.to_owned()], tail: Vec::new() }
    }

    /// A step that could not even run is one failed test.
    pub(crate) fn broken(error: &anyhow::Error) -> Self {
        println!("error: {error:#}");
        Self::one(&format!("{error:#}"), false)
    }
}

/// Reads the output of libtest line by line.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// From the summaries, one for each program or crate.
    summed: Outcome,
    /// Since the last summary, from the lines of single tests.
    open: Outcome,
    failures: Vec<String>,
    tail: VecDeque<String>,
}

impl Reader {
    /// Takes one line.
    pub(crate) fn line(&mut self, line: &str) {
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line.chars().take(TAIL_WIDTH).collect());
        if let Some(summary) = summary(line) {
            self.summed.passed += summary.passed;
            self.summed.failed += summary.failed;
            self.open = Outcome::default();
        } else if let Some(test) = line.strip_prefix("test ") {
            // `test a::b ... ok`; what a test prints unasked may come between.
            if test.ends_with("... ok") {
                self.open.passed += 1;
            } else if let Some(name) = test.strip_suffix(" ... FAILED") {
                self.open.failed += 1;
                self.failures.push(name.to_owned());
            }
        }
    }

    /// Takes how the program ended. One that ends without a summary has been stopped or has crashed: what it was
    /// doing then counts as one failed test.
    pub(crate) fn end(self, ended: anyhow::Result<()>) -> Tests {
        let passed = self.summed.passed + self.open.passed;
        let mut failed = self.summed.failed + self.open.failed;
        let mut failures = self.failures;
        if let Err(error) = ended
            && (failed == 0 || self.open != Outcome::default())
        {
            failed += 1;
            failures.push(format!("{error:#}"));
        }
        let tail = if failed > 0 { self.tail.into() } else { Vec::new() };
        Tests { outcome: Outcome { passed, failed }, failures, tail }
    }
}

/// Reads `test result: ok. 3 passed; 0 failed; …`, or a line that is just `3 passed, 0 failed`.
pub(crate) fn summary(line: &str) -> Option<Outcome> {
    let counts = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "));
    let counts = counts.map_or(line, |(_, counts)| counts);
    let mut counts = counts.split([';', ',']).map(str::trim);
    let passed = counts.next()?.strip_suffix(" passed")?.parse().ok()?;
    let failed = counts.next()?.strip_suffix(" failed")?.parse().ok()?;
    Some(Outcome { passed, failed })
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn read(text: &str, ended: anyhow::Result<()>) -> (u64, u64, Vec<String>) {
        let mut reader = Reader::default();
        text.lines().for_each(|line| reader.line(line));
        let tests = reader.end(ended);
        (tests.outcome.passed, tests.outcome.failed, tests.failures)
    }

    const GOOD: &str = "running 2 tests\ntest a ... ok\ntest b ... ok\n\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s";
    const BAD: &str =
        "test a ... ok\ntest m::b ... FAILED\ntest result: FAILED. 1 passed; 1 failed; 0 ignored";

    #[test]
    fn summaries_are_added_up() {
        assert_eq!(read(&format!("{GOOD}\n{GOOD}"), Ok(())), (4, 0, vec![]));
    }

    #[test]
    fn failures_are_named_and_counted_once() {
        let ended = Err(anyhow!("exit status: 101"));
        assert_eq!(read(BAD, ended), (1, 1, vec!["m::b".to_owned()]));
    }

    #[test]
    fn a_crash_without_a_summary_is_a_failure() {
        let ended = || Err(anyhow!("killed"));
        assert_eq!(read("test a ... ok\ntest b ...", ended()), (1, 1, vec!["killed".to_owned()]));
        assert_eq!(read("", ended()), (0, 1, vec!["killed".to_owned()]));
        assert_eq!(read("test a ... FAILED", ended()).1, 2);
    }

    #[test]
    fn a_bad_status_after_a_good_summary_is_a_failure() {
        assert_eq!(read(GOOD, Err(anyhow!("exit status: 1"))), (2, 1, vec!["exit status: 1".to_owned()]));
    }

    #[test]
    fn what_was_printed_last_is_kept_of_failures_only() {
        let text: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let tail = |ending: &str| {
            let mut reader = Reader::default();
            format!("{text}{ending}").lines().for_each(|line| reader.line(line));
            reader.end(Ok(())).tail
        };
        assert!(tail("1 passed, 0 failed").is_empty());
        let failed = tail("0 passed, 1 failed");
        assert_eq!((failed.len(), failed[0].as_str()), (TAIL, "line 41"));
    }

    #[test]
    fn the_plain_closing_line_is_a_summary_too() {
        assert_eq!(summary("62 passed, 1 failed"), Some(Outcome { passed: 62, failed: 1 }));
        assert_eq!(summary("62 passed and 1 failed"), None);
        assert_eq!(summary("running 3 tests"), None);
    }
}
