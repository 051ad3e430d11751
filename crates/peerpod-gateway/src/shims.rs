//! Which sandboxes lost the connection that their shim kept.
//!
//! A shim of runtime-rs keeps the connection on which it called StartVM for its pod's whole life; a Go shim makes one for
//! each call. So the end of a connection says something of a sandbox only when it had outlived the answer to StartVM.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a connection must outlive the answer to StartVM to count as kept.
const KEPT: Duration = Duration::from_secs(2);

/// Metadata of a StartVM: the shim's process id, where somebody else carries the call; 0 for none.
pub const SHIM_PID: &str = "peerpod-shim-pid";

/// Watches the connections of shims.
#[derive(Debug, Default)]
pub struct ShimConnections(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By connection: the sandboxes that were started on it, and when.
    open: HashMap<u64, Vec<(String, Instant)>>,
    closed: BTreeSet<String>,
}

impl ShimConnections {
    /// StartVM of a sandbox was answered well on a connection.
    pub fn started(&self, connection: u64, sandbox_id: &str) {
        let mut inner = self.inner();
        inner.closed.remove(sandbox_id);
        inner.open.entry(connection).or_default().push((sandbox_id.to_owned(), Instant::now()));
    }

    /// A connection ended.
    pub fn ended(&self, connection: u64) {
        let mut inner = self.inner();
        let started = inner.open.remove(&connection).unwrap_or_default();
        let kept = started.into_iter().filter(|(_, at)| at.elapsed() >= KEPT);
        inner.closed.extend(kept.map(|(id, _)| id));
    }

    /// A sandbox was stopped: nobody asks any more.
    pub fn forget(&self, sandbox_id: &str) {
        let mut inner = self.inner();
        inner.closed.remove(sandbox_id);
        for started in inner.open.values_mut() {
            started.retain(|(id, _)| id != sandbox_id);
        }
    }

    /// Returns the sandboxes whose kept connection ended.
    pub fn closed(&self) -> BTreeSet<String> {
        self.inner().closed.clone()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_connection_that_was_kept_says_something_by_its_end() {
        let shims = ShimConnections::default();
        shims.started(1, "go");
        shims.ended(1);
        shims.started(2, "rust");
        shims.started(3, "stopped");
        tokio::time::advance(KEPT).await;
        shims.forget("stopped");
        shims.ended(2);
        shims.ended(3);
        shims.ended(9);
        assert_eq!(shims.closed(), BTreeSet::from(["rust".to_owned()]));
        shims.forget("rust");
        assert!(shims.closed().is_empty());
    }
}
