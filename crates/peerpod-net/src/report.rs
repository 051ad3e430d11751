//! What a teardown did, and what an interface counted.

use std::path::Path;

use crate::{NetError, netns};

/// What a teardown removed and what it could not remove.
///
/// A teardown never stops at a failed step: it goes on and lists the failure here.
#[derive(Debug, Default)]
#[must_use = "what could not be removed has to be logged or retried"]
pub struct TeardownReport {
    removed: Vec<String>,
    problems: Vec<NetError>,
    namespace_gone: bool,
}

impl From<NetError> for TeardownReport {
    /// Nothing was removed, for this reason.
    fn from(problem: NetError) -> Self {
        Self { problems: vec![problem], ..Self::default() }
    }
}

impl TeardownReport {
    /// Whether nothing of the tunnel is left.
    pub fn is_complete(&self) -> bool {
        self.problems.is_empty()
    }

    /// What was there and is gone now, one phrase each. Empty on a repeat.
    pub fn removed(&self) -> &[String] {
        &self.removed
    }

    /// The steps that failed. Calling the teardown again tries them again.
    pub fn problems(&self) -> &[NetError] {
        &self.problems
    }

    /// Whether the pod's namespace was gone already, and everything in it with it.
    pub fn is_namespace_gone(&self) -> bool {
        self.namespace_gone
    }

    pub(crate) fn namespace_is_gone(&mut self, netns: &Path) {
        tracing::info!(netns = %netns.display(), "the pod's namespace is gone, and what was in it with it");
        self.namespace_gone = true;
    }

    pub(crate) fn note(&mut self, removed: impl Into<String>) {
        self.removed.push(removed.into());
    }

    pub(crate) fn problem(&mut self, error: NetError) {
        self.problems.push(error);
    }
}

/// Runs the steps of a teardown on a fresh thread.
pub(crate) async fn collect<F>(name: &str, steps: F) -> TeardownReport
where
    F: FnOnce(&mut TeardownReport) + Send + 'static,
{
    let work = netns::on_thread(name, move || {
        let mut report = TeardownReport::default();
        steps(&mut report);
        Ok(report)
    });
    work.await.unwrap_or_else(|e| {
        let mut report = TeardownReport::default();
        report.problem(e);
        report
    })
}

/// Packets and bytes that an interface carried.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}
