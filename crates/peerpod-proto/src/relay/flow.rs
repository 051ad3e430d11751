//! How much may be on its way to the backend.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::conn::{ACK_BYTES, ACK_FRAMES};
use crate::frame::MAX_PAYLOAD;

/// This many bytes of calls may be on their way: read from a front and not written to the backend or, in a session, not
/// acknowledged by it.
const MOST: usize = 512 << 10;

/// What a call takes beside its bytes.
const CALL_COST: usize = 256;

/// What a backend need not have acknowledged although it has received it; it may be calls that wait for days.
const LEFT: usize = 2 * (ACK_BYTES + ACK_FRAMES * CALL_COST);

/// The most that one call counts for. A longer one begins when nothing else is on its way but what is not acknowledged for
/// lack of more: it would wait for ever else.
const LONGEST: usize = MOST - LEFT;

/// The bytes of calls that wait for an interceptor. What waits there, for a disk for one, is not to keep all other calls
/// waiting, so that it has a bound of its own.
const INTERCEPTED: usize = 2 * MAX_PAYLOAD;

/// Bounds the bytes of calls on their way, of all fronts together. Who comes first gets a place first, so that a long call
/// waits for those before it and not for all the short ones after it.
#[derive(Debug)]
pub(super) struct Flow {
    places: Arc<Semaphore>,
    longest: usize,
}

impl Default for Flow {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(MOST)), longest: LONGEST }
    }
}

impl Flow {
    /// Bounds the calls that wait for an interceptor.
    pub(super) fn of_interceptor() -> Self {
        Self { places: Arc::new(Semaphore::new(INTERCEPTED)), longest: INTERCEPTED }
    }

    /// Waits for a place for a call of so many bytes.
    pub(super) async fn place(&self, bytes: usize) -> Place {
        // Nobody closes the semaphore; a place that counts for nothing would do no harm.
        Place { _permit: Arc::clone(&self.places).acquire_many_owned(self.count(bytes)).await.ok() }
    }

    /// Gives a place for a call of so many bytes where nobody waits for one and there is enough.
    pub(super) fn place_now(&self, bytes: usize) -> Option<Place> {
        let permit = Arc::clone(&self.places).try_acquire_many_owned(self.count(bytes)).ok()?;
        Some(Place { _permit: Some(permit) })
    }

    /// What a call of so many bytes counts for.
    fn count(&self, bytes: usize) -> u32 {
        // Both bounds are far below 4 GiB.
        bytes.saturating_add(CALL_COST).min(self.longest) as u32
    }

    /// How many bytes are on their way.
    #[cfg(test)]
    fn used(&self) -> usize {
        MOST - self.places.available_permits()
    }
}

/// A place among what is on its way, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: Option<OwnedSemaphorePermit>,
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_place_is_given_when_enough_is_given_back() {
        let flow = Flow::default();
        let first = flow.place(MOST / 2).await;
        let mut second = std::pin::pin!(flow.place(MOST / 2));
        assert!(second.as_mut().now_or_never().is_none(), "it costs more than its bytes");
        drop(first);
        drop(second.await);
        assert_eq!(flow.used(), 0);
    }

    #[tokio::test]
    async fn the_longest_call_passes_beside_what_is_never_acknowledged() {
        let flow = Flow::default();
        let mut waiting = Vec::new();
        for _ in 0..ACK_FRAMES {
            waiting.push(flow.place(ACK_BYTES / ACK_FRAMES).await);
        }
        let longest = flow.place(MAX_PAYLOAD).now_or_never().expect("nothing else is on its way");
        let mut next = std::pin::pin!(flow.place(MAX_PAYLOAD));
        assert!(next.as_mut().now_or_never().is_none(), "one at a time");
        drop(longest);
        next.await;
    }

    #[tokio::test]
    async fn a_long_call_is_not_overtaken_for_ever() {
        let flow = Flow::default();
        let first = flow.place(1 << 10).await;
        let second = flow.place(1 << 10).await;
        let third = flow.place(192 << 10).await;
        let mut long = std::pin::pin!(flow.place(MAX_PAYLOAD));
        assert!(long.as_mut().now_or_never().is_none());
        let mut short = std::pin::pin!(flow.place(1));
        assert!(short.as_mut().now_or_never().is_none(), "it came after the long one");
        drop((first, second, third));
        let long = long.await;
        short.await;
        drop(long);
    }
}
