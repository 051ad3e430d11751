//! What a look at the cloud found about a configuration.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CheckOutcome {
    /// It is as it should be.
    Ok,
    /// Instances come to be, and something deserves a look.
    Warning,
    /// Instances cannot come to be, or not all that the configuration promises.
    Failed,
    /// Nobody knows; the detail says why.
    NotChecked,
}

impl CheckOutcome {
    const ALL: [Self; 4] = [Self::Ok, Self::Warning, Self::Failed, Self::NotChecked];

    /// Returns the words for people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::NotChecked => "not checked",
        }
    }
}

impl fmt::Display for CheckOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

/// One check of a [`VerifyReport`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Finding {
    /// What was looked at, as a fixed name such as `credentials` or `image`.
    pub check: String,
    /// How it ended.
    pub outcome: CheckOutcome,
    /// What was found, or why nothing could be.
    pub detail: String,
    /// The variable or flag that mends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub option: Option<String>,
    /// What to do, where setting the option is not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// Makes a finding.
    pub fn new(check: impl Into<String>, outcome: CheckOutcome, detail: impl Into<String>) -> Self {
        Self { check: check.into(), outcome, detail: detail.into(), option: None, remedy: None }
    }

    /// Something is as it should be.
    pub fn ok(check: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(check, CheckOutcome::Ok, detail)
    }

    /// Something deserves a look.
    pub fn warning(check: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(check, CheckOutcome::Warning, detail)
    }

    /// Something is wrong.
    pub fn failed(check: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(check, CheckOutcome::Failed, detail)
    }

    /// Something could not be looked at, and why.
    pub fn not_checked(check: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(check, CheckOutcome::NotChecked, why)
    }

    /// Makes a failed check of an error, with its causes. Errors name the option themselves, as `set`.
    pub fn of_error(check: impl Into<String>, error: &Error) -> Self {
        Self::failed(check, error.report())
    }

    /// Names the variable or flag that mends it.
    #[must_use]
    pub fn with_option(mut self, option: impl Into<String>) -> Self {
        self.option = Some(option.into());
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Returns what mends it: the option, the remedy, or both.
    fn mend(&self) -> Option<String> {
        match (&self.option, &self.remedy) {
            (None, None) => None,
            (Some(option), None) => Some(format!("set {option}")),
            (None, Some(remedy)) => Some(remedy.clone()),
            (Some(option), Some(remedy)) => Some(format!("{remedy}; set {option}")),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.detail)?;
        match self.mend() {
            Some(mend) => write!(f, " ({mend})"),
            None => Ok(()),
        }
    }
}

/// Everything that [`crate::Provider::verify_config`] looked at, in the order of looking.
///
/// Shown, it is one line for each check and a line of counts.
///
/// ```
/// use cloud_providers::{Finding, VerifyReport};
/// let mut report = VerifyReport::new();
/// report.push(Finding::ok("credentials", "account 123"));
/// report.push(Finding::failed("image", "there is no image img-1").with_option("PODVM_IMAGE"));
/// assert_eq!(
///     report.to_string(),
///     "ok           credentials: account 123\n\
///      failed       image: there is no image img-1 (set PODVM_IMAGE)\n\
///      1 ok, 0 warning, 1 failed, 0 not checked\n"
/// );
/// assert!(!report.is_ok());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// The checks.
    pub findings: Vec<Finding>,
}

impl VerifyReport {
    /// Starts without a check.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check.
    pub fn push(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Whether nothing failed. Warnings and what could not be checked are no failure.
    pub fn is_ok(&self) -> bool {
        self.count(CheckOutcome::Failed) == 0
    }

    /// Returns how many checks ended so.
    pub fn count(&self, outcome: CheckOutcome) -> usize {
        self.findings.iter().filter(|f| f.outcome == outcome).count()
    }

    /// Makes one error of all failed checks, for callers that only go on or not.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] naming each of them.
    pub fn into_result(self) -> Result<()> {
        let failed = self.findings.iter().filter(|f| f.outcome == CheckOutcome::Failed);
        Error::all(ErrorKind::Config, failed.map(ToString::to_string).collect()).map_or(Ok(()), Err)
    }
}

impl Extend<Finding> for VerifyReport {
    fn extend<T: IntoIterator<Item = Finding>>(&mut self, findings: T) {
        self.findings.extend(findings);
    }
}

impl FromIterator<Finding> for VerifyReport {
    fn from_iter<T: IntoIterator<Item = Finding>>(findings: T) -> Self {
        Self { findings: findings.into_iter().collect() }
    }
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{:<12} {finding}", finding.outcome)?;
        }
        let counts = CheckOutcome::ALL.map(|outcome| format!("{} {outcome}", self.count(outcome)));
        writeln!(f, "{}", counts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failed_check_fails_and_all_of_them_are_named() {
        let mut report: VerifyReport =
            [Finding::warning("clock", "it is late"), Finding::not_checked("quota", "no permission")]
                .into_iter()
                .collect();
        assert!(report.is_ok() && report.clone().into_result().is_ok());
        report.extend([
            Finding::failed("image", "none").with_option("IMAGE").with_remedy("upload one"),
            Finding::of_error("network", &Error::config("no such network").with("set", "NET")),
        ]);
        let text = report.clone().into_result().unwrap_err().to_string();
        assert_eq!(
            text,
            "2 problems: image: none (upload one; set IMAGE); network: no such network (set: NET)"
        );
        assert!(!report.is_ok());
    }

    #[test]
    fn a_report_crosses_a_process_boundary() {
        let report: VerifyReport =
            [Finding::not_checked("quota", "x").with_remedy("y")].into_iter().collect();
        let json = serde_json::to_string(&report).unwrap();
        assert!(json.contains(r#""outcome":"not-checked""#), "{json}");
        assert_eq!(serde_json::from_str::<VerifyReport>(&json).unwrap(), report);
    }
}
