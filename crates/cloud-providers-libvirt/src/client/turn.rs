//! Taking turns: one operation at a time for one token.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cloud_providers::{OpContext, Result};
use tokio::sync::OwnedMutexGuard;
use tokio_util::task::TaskTracker;

/// One lock per key. Two creates of one token take turns within a process.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    /// Waits for the turn of `key` as long as the call may last.
    pub(crate) async fn take(&self, ctx: &OpContext, key: &str) -> Result<Turn> {
        let lock = self.lock(key);
        let guard = ctx.run(async { Ok(lock.lock_owned().await) }).await?;
        Ok(Turn(Arc::new(Inner {
            _guard: guard,
            running: TaskTracker::new(),
            given_up: AtomicBool::new(false),
        })))
    }

    fn lock(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(key).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        locks.insert(key.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

/// A turn. It ends when the operation and every call that it left behind have ended.
///
/// A thread inside libvirt cannot be stopped. A caller that is cancelled leaves it behind, and what it does late must
/// not meet the next operation of the same token: a volume that appears after its release would stay for ever.
#[derive(Clone, Debug)]
pub(crate) struct Turn(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    _guard: OwnedMutexGuard<()>,
    running: TaskTracker,
    given_up: AtomicBool,
}

/// Kept by a call that changes something until it has ended.
#[derive(Debug)]
pub(super) struct Running {
    turn: Turn,
    _token: tokio_util::task::task_tracker::TaskTrackerToken,
}

impl Running {
    /// Returns whether the operation has ended without waiting for this call.
    pub(super) fn given_up(&self) -> bool {
        self.turn.0.given_up.load(Ordering::SeqCst)
    }
}

impl Turn {
    /// Notes a call that changes something.
    pub(super) fn running(&self) -> Running {
        Running { turn: self.clone(), _token: self.0.running.token() }
    }

    /// Waits until every call left behind has ended, at most for `limit`; returns whether they did.
    ///
    /// Calls that end later than that take back themselves what they made.
    pub(crate) async fn settle(&self, limit: Duration) -> bool {
        self.0.running.close();
        let settled = tokio::time::timeout(limit, self.0.running.wait()).await.is_ok();
        if !settled {
            self.0.given_up.store(true, Ordering::SeqCst);
        }
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_turn_lasts_as_long_as_the_calls_it_left_behind() {
        let turns = Turns::default();
        let ctx = OpContext::new();
        let turn = turns.take(&ctx, "t").await.unwrap();
        let running = turn.running();
        assert!(!turn.settle(Duration::from_millis(5)).await);
        assert!(running.given_up());
        drop(turn);
        let hurried = OpContext::new().with_timeout(Duration::from_millis(5));
        assert_eq!(turns.take(&hurried, "t").await.unwrap_err().kind().label(), "cancelled");
        turns.take(&ctx, "another").await.unwrap();
        drop(running);
        let turn = turns.take(&ctx, "t").await.unwrap();
        assert!(turn.settle(Duration::from_secs(5)).await);
    }
}
