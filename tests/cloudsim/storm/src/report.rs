//! What a storm came to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// Counts and times of a storm.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// How many instances were asked for.
    pub pods: u32,
    /// How many came to be.
    pub created: u32,
    /// How many did not, with what was said of the first ones.
    pub failed: u32,
    /// What was said.
    pub errors: Vec<String>,
    /// How many had to be released or deleted more than once, since the first try failed.
    pub repeated: u32,
    /// Calls of creating, by operation.
    pub create_calls: BTreeMap<String, u64>,
    /// Calls of deleting, by operation.
    pub delete_calls: BTreeMap<String, u64>,
    /// The most calls in any second.
    pub peak_per_second: u64,
    /// How long creating took.
    pub create_seconds: f64,
    /// How long deleting took.
    pub delete_seconds: f64,
    /// What is there that was not there before.
    pub leftovers: Vec<String>,
}

impl Report {
    /// Calls of creating per instance.
    pub fn create_calls_per_pod(&self) -> f64 {
        per_pod(&self.create_calls, self.pods)
    }

    /// Calls of deleting per instance.
    pub fn delete_calls_per_pod(&self) -> f64 {
        per_pod(&self.delete_calls, self.pods)
    }

    /// Says what is wrong with a storm: what is left, and instances that never came to be.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.leftovers.is_empty() {
            problems.push(format!("{} resources are left", self.leftovers.len()));
        }
        if self.created + self.failed != self.pods {
            problems.push(format!(
                "{} of {} instances have no outcome",
                self.pods - self.created - self.failed,
                self.pods
            ));
        }
        if self.pods > 0 && self.created == 0 {
            problems.push("not one instance came to be: nothing was tried".to_owned());
        }
        problems
    }

    /// Says what is wrong with a run without faults: there is no reason for a failure.
    pub fn calm_problems(&self) -> Vec<String> {
        let mut problems = self.problems();
        if self.failed > 0 {
            problems.push(format!("{} instances failed without a fault", self.failed));
        }
        problems
    }

    /// Says what is wrong with a run of AWS without faults: more calls than are meant, or failures.
    ///
    /// Creating is RunInstances and a share of describing; deleting is describing, TerminateInstances and a share of
    /// describing, where the share is one call for each interval of the batch.
    pub fn quiet_problems(&self) -> Vec<String> {
        let mut problems = self.calm_problems();
        if self.create_calls_per_pod() > 2.0 {
            problems
                .push(format!("creating takes {:.2} calls and not at most 2", self.create_calls_per_pod()));
        }
        // Describing in batches: at most one call a second, and one more where it begins or ends.
        let share = (self.delete_seconds.ceil() + 1.0) / f64::from(self.pods.max(1));
        if self.delete_calls_per_pod() > 2.0 + share {
            problems.push(format!(
                "deleting takes {:.2} calls and not 2 and a share of {share:.2}",
                self.delete_calls_per_pod()
            ));
        }
        problems
    }
}

fn per_pod(calls: &BTreeMap<String, u64>, pods: u32) -> f64 {
    let sum: u64 = calls.values().sum();
    // Counts are far below what a float holds exactly.
    sum as f64 / f64::from(pods.max(1))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |seconds: f64| Duration::from_secs_f64(seconds.max(0.0));
        writeln!(f, "{} pods: {} created, {} failed", self.pods, self.created, self.failed)?;
        for error in &self.errors {
            writeln!(f, "  {error}")?;
        }
        writeln!(
            f,
            "created in {:.1?}, deleted in {:.1?}",
            seconds(self.create_seconds),
            seconds(self.delete_seconds)
        )?;
        writeln!(f, "deleted or released more than once: {}", self.repeated)?;
        for (what, calls, each) in [
            ("create", &self.create_calls, self.create_calls_per_pod()),
            ("delete", &self.delete_calls, self.delete_calls_per_pod()),
        ] {
            writeln!(f, "calls per pod, {what}: {each:.2}")?;
            for (operation, count) in calls {
                writeln!(f, "  {count:>7} {operation}")?;
            }
        }
        writeln!(f, "peak: {} calls in a second", self.peak_per_second)?;
        write!(f, "left: {}", self.leftovers.len())?;
        for resource in self.leftovers.iter().take(20) {
            write!(f, "\n  {resource}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine() -> Report {
        Report {
            pods: 10,
            created: 10,
            create_calls: [("RunInstances".to_owned(), 10), ("DescribeInstances".to_owned(), 3)].into(),
            delete_calls: [("TerminateInstances".to_owned(), 10), ("DescribeInstances".to_owned(), 13)]
                .into(),
            delete_seconds: 2.0,
            ..Report::default()
        }
    }

    #[test]
    fn too_many_calls_failures_and_leftovers_are_problems() {
        assert_eq!(fine().quiet_problems(), [""; 0]);
        let many = Report { create_calls: [("RunInstances".to_owned(), 21)].into(), ..fine() };
        assert_eq!(many.quiet_problems().len(), 1);
        let many = Report { delete_calls: [("DescribeInstances".to_owned(), 24)].into(), ..fine() };
        assert_eq!(many.quiet_problems().len(), 1);
        let left = Report { leftovers: vec!["i-1".to_owned()], ..fine() };
        assert!(left.problems()[0].contains("left") && left.to_string().contains("i-1"));
        let failed = Report { created: 9, failed: 1, ..fine() };
        assert!(failed.problems().is_empty() && failed.quiet_problems().len() == 1);
        let none = Report { created: 0, failed: 10, ..fine() };
        assert_eq!(none.problems().len(), 1);
        assert_eq!(Report { created: 8, ..fine() }.problems().len(), 1);
    }
}
