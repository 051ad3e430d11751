//! What a daemon does with its sandboxes when another one follows it.

use std::time::{Duration, Instant};

use super::Sandboxes;
use crate::store::lock;

/// How long a CreateVM that is under way is waited for. It asks nobody but the node and the cluster.
const PLAN_LIMIT: Duration = Duration::from_secs(2);
/// How long who was connected when the other daemon came has to ask: between its connection and its call lies what a busy
/// node makes of it.
const LATE: Duration = Duration::from_millis(250);
const STEP: Duration = Duration::from_millis(10);

impl Sandboxes {
    /// Whether nothing new is begun any more.
    pub fn is_closing(&self) -> bool {
        self.0.closing.is_cancelled()
    }

    /// Lets late calls come and calls to CreateVM end, then does what [`Sandboxes::suspend`] does. Calls may come in all the while: a StopVM is
    /// carried out, and what would begin something is refused.
    pub async fn settle(&self, limit: Duration) {
        tokio::time::sleep(LATE).await;
        let begun = Instant::now();
        while !lock(&self.0.planning).is_empty() && begun.elapsed() < PLAN_LIMIT {
            tokio::time::sleep(STEP).await;
        }
        self.suspend(limit).await;
    }
}
