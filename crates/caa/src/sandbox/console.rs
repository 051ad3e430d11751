//! What the guest of a failed start has to say.

use std::time::Duration;

use cloud_providers::OpContext;

use super::{Sandbox, Shared};
use crate::store::lock;

/// How much of a console is kept for `caactl diagnose`.
const KEPT: usize = 16 * 1024;
/// How many lines of it go to the log.
const LINES: usize = 20;
/// How much of a line does.
const LENGTH: usize = 200;
/// How long the provider may take. The shim, and the deletion, wait for it.
const LIMIT: Duration = Duration::from_secs(1);

impl Shared {
    /// Logs the end of the console of an instance that is about to be taken back, and keeps it. Returns whether there is
    /// something to read.
    pub(super) async fn read_console(&self, sandbox: &Sandbox) -> bool {
        let (instance, user_data) = {
            let record = lock(&sandbox.record);
            (record.instance.clone(), record.request.user_data.clone())
        };
        let Some(instance) = instance.filter(|_| self.capabilities.console) else { return false };
        let ctx = OpContext::new().with_timeout(LIMIT);
        let read = self.parts.provider.console(&ctx, &instance.id, KEPT);
        let tail = match tokio::time::timeout(LIMIT, read).await {
            Ok(Ok(tail)) => tail,
            Ok(Err(error)) => {
                tracing::debug!(sandbox_id = %sandbox.id, instance_id = %instance.id, error = %error.report(), "the guest's console cannot be read");
                return false;
            }
            Err(_) => {
                tracing::debug!(sandbox_id = %sandbox.id, instance_id = %instance.id, limit = ?LIMIT, "the guest's console is not told in time");
                return false;
            }
        };
        // A guest may print what it was given.
        let tail = tail.without(&String::from_utf8_lossy(user_data.as_bytes()));
        let lines: Vec<String> =
            tail.lines(LINES).into_iter().map(|line| line.chars().take(LENGTH).collect()).collect();
        let said = !lines.is_empty();
        let console = if said { lines.join(" | ") } else { "silent".to_owned() };
        tracing::warn!(sandbox_id = %sandbox.id, instance_id = %instance.id, console, "the guest did not come up: the end of its console");
        if said {
            self.parts.config.recent.console(&sandbox.id, tail);
        }
        said
    }
}
