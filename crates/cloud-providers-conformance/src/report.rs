//! What a run of the suite found.

use std::{fmt::Write as _, time::Duration};

/// How one case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Every check that could run holds.
    Passed,
    /// No check could run for want of this capability.
    Skipped {
        /// What is missing.
        capability: String,
        /// The reason in the provider's list, `None` when the list does not allow it.
        allowed: Option<String>,
    },
    /// At least one check does not hold.
    Failed(
        /// Each of them.
        Vec<String>,
    ),
}

/// How one case ended, with what its checks skipped.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CaseReport {
    /// The rule.
    pub id: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// Checks that hold.
    pub checks: Vec<String>,
    /// Checks of the case that were skipped: `<rule>#<check>`, the missing capability, the reason if it is allowed.
    pub skipped: Vec<(String, String, Option<String>)>,
    /// How long it took on the clock on the wall.
    pub took: Duration,
}

/// What a run of the suite found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The provider.
    pub provider: String,
    /// Each case that ran.
    pub cases: Vec<CaseReport>,
    /// What is wrong with the run as a whole, such as a skip that is not allowed.
    pub problems: Vec<String>,
}

impl Report {
    /// Returns whether every case passed or was skipped as allowed, and at least one ran.
    pub fn is_green(&self) -> bool {
        self.problems.is_empty() && self.failed().next().is_none()
    }

    /// Returns the ids of the cases that failed.
    pub fn failed(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.cases.iter().filter(|c| matches!(c.outcome, Outcome::Failed(_))).map(|c| c.id)
    }

    /// Returns the line that continuous integration shows.
    pub fn summary(&self) -> String {
        let (passed, skipped, failed) = self.counts();
        let checks: usize = self.cases.iter().map(|c| c.checks.len()).sum();
        let skipped_checks: usize = self.cases.iter().map(|c| c.skipped.len()).sum();
        let mut text = format!(
            "conformance {}: {passed} passed, {skipped} skipped, {failed} failed ({checks} checks, {skipped_checks} skipped)",
            self.provider
        );
        if !self.problems.is_empty() {
            let _ = write!(text, ", {} problems", self.problems.len());
        }
        text
    }

    /// Returns how many cases passed, were skipped and failed.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |wanted: fn(&Outcome) -> bool| self.cases.iter().filter(|c| wanted(&c.outcome)).count();
        (
            count(|o| matches!(o, Outcome::Passed)),
            count(|o| matches!(o, Outcome::Skipped { .. })),
            count(|o| matches!(o, Outcome::Failed(_))),
        )
    }

    /// Returns the table of all cases with the counts below it.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for case in &self.cases {
            text.push_str(&case.lines());
        }
        for problem in &self.problems {
            let _ = writeln!(text, "problem: {problem}");
        }
        text.push_str(&self.summary());
        text.push('\n');
        text
    }
}

impl CaseReport {
    /// Returns the lines of the table for this case.
    pub(crate) fn lines(&self) -> String {
        let seconds = self.took.as_secs_f64();
        let mut text = format!("test {} ... ", self.id);
        match &self.outcome {
            Outcome::Passed => {
                let _ = writeln!(text, "ok ({} checks, {seconds:.2} s)", self.checks.len());
            }
            Outcome::Skipped { capability, allowed } => {
                let why = allowed.as_deref().unwrap_or("NOT ALLOWED");
                let _ = writeln!(text, "skipped: needs {capability} ({why})");
            }
            Outcome::Failed(checks) => {
                let _ = writeln!(text, "FAILED ({seconds:.2} s)");
                for check in checks {
                    let _ = writeln!(text, "    {}", check.replace('\n', "\n    "));
                }
            }
        }
        if !matches!(self.outcome, Outcome::Skipped { .. }) {
            for (id, capability, allowed) in &self.skipped {
                let why = allowed.as_deref().unwrap_or("NOT ALLOWED");
                let _ = writeln!(text, "    skipped check {id}: needs {capability} ({why})");
            }
        }
        text
    }
}
