//! The suite that every testbed passes.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use testbed::{Reservation, Result, Testbed, async_trait, conformance::{self, Harness}};
//! # struct Mine;
//! # #[async_trait]
//! # impl Harness for Mine {
//! #     async fn open(&self) -> Result<Arc<dyn Testbed>> { unreachable!() }
//! #     fn reservation(&self, _: &str, _: usize) -> Reservation { unreachable!() }
//! #     async fn there(&self, _: &str) -> Result<Vec<String>> { unreachable!() }
//! # }
//! # async fn run() {
//! let report = conformance::run(&Mine).await;
//! println!("{report}");
//! assert!(report.passed());
//! # }
//! ```

mod bed;
mod cases;

use std::{fmt, sync::Arc};

use cloud_providers::Result;

use crate::{Reservation, Testbed, async_trait};

/// What the suite needs of a testbed.
#[async_trait]
pub trait Harness: Send + Sync {
    /// Makes a new value, as the next command would: it knows nothing of the one before.
    async fn open(&self) -> Result<Arc<dyn Testbed>>;

    /// Asks for this many machines, up to three. The same machine has the same name whatever the number.
    fn reservation(&self, experiment: &str, machines: usize) -> Reservation;

    /// Asks past the testbed what is there of the experiment: one text for each machine.
    async fn there(&self, experiment: &str) -> Result<Vec<String>>;

    /// Says whether `init` takes anything that `destroy` gives back. Hosts that exist already are not taken.
    fn takes(&self) -> bool {
        true
    }
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The testbed does what it must.
    Passed,
    /// The testbed says that it does not have this, with the reason.
    Skipped(String),
    /// What is wrong.
    Failed(String),
}

/// What came of all cases.
#[derive(Clone, Debug)]
pub struct Report(Vec<(&'static str, Outcome)>);

impl Report {
    /// Says whether cases ran, and none failed.
    pub fn passed(&self) -> bool {
        self.0.iter().any(|(_, outcome)| *outcome == Outcome::Passed)
            && !self.0.iter().any(|(_, outcome)| matches!(outcome, Outcome::Failed(_)))
    }

    /// Returns every case with what came of it.
    pub fn outcomes(&self) -> &[(&'static str, Outcome)] {
        &self.0
    }

    /// Returns the names of the cases that the testbed does not have.
    pub fn skipped(&self) -> Vec<&'static str> {
        self.0
            .iter()
            .filter(|(_, outcome)| matches!(outcome, Outcome::Skipped(_)))
            .map(|(name, _)| *name)
            .collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts = [0; 3];
        for (name, outcome) in &self.0 {
            match outcome {
                Outcome::Passed => {
                    counts[0] += 1;
                    writeln!(f, "ok      {name}")?;
                }
                Outcome::Skipped(reason) => {
                    counts[1] += 1;
                    writeln!(f, "skipped {name}: {reason}")?;
                }
                Outcome::Failed(reason) => {
                    counts[2] += 1;
                    writeln!(f, "FAILED  {name}: {reason}")?;
                }
            }
        }
        write!(f, "{} passed, {} skipped, {} failed", counts[0], counts[1], counts[2])
    }
}

/// Returns the name of every case.
pub fn names() -> Vec<&'static str> {
    cases::CASES.iter().map(|(name, _)| *name).collect()
}

/// Runs every case, one after the other. What a case leaves is given back also when it fails.
pub async fn run(harness: &dyn Harness) -> Report {
    let mut outcomes = Vec::new();
    for (name, case) in cases::CASES {
        outcomes.push((*name, bed::run(harness, name, *case).await));
    }
    Report(outcomes)
}
