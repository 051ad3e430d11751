//! A pause that somebody else can end.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Ends the waits of everyone who holds a clone.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    inner: Arc<(Mutex<bool>, Condvar)>,
}

impl Cancel {
    /// Ends present and future waits.
    pub fn cancel(&self) {
        *self.inner.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.inner.1.notify_all();
    }

    /// Pauses; answers whether it was cancelled, then or before.
    pub fn wait(&self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        let mut cancelled = self.inner.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !*cancelled {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            cancelled = self.inner.1.wait_timeout(cancelled, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *cancelled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancelling_ends_a_long_wait() {
        let cancel = Cancel::default();
        let waiter = std::thread::spawn({
            let cancel = cancel.clone();
            move || cancel.wait(Duration::from_secs(60))
        });
        let start = Instant::now();
        cancel.cancel();
        assert!(waiter.join().unwrap());
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_wait_that_nobody_cancels_ends_by_itself() {
        assert!(!Cancel::default().wait(Duration::from_millis(1)));
    }
}
