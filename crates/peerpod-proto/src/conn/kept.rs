//! What a session keeps while a connection may break: responses that the peer has not acknowledged, and how far its
//! requests were taken.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::FRAME_COST;
use crate::frame::Frame;

/// An acknowledgement goes with the next frames that are written once there are so many, or so many bytes.
pub(crate) const ACK_FRAMES: usize = 64;
pub(crate) const ACK_BYTES: usize = 64 << 10;

/// After so many, or after [`ACK_BYTES`], it is written alone. What is held for want of one stays below this on an idle
/// connection, so no timer is needed.
pub(crate) const ACK_ALONE: usize = 4 * ACK_FRAMES;

/// The kept part of an [`Outbox`](super::Outbox).
#[derive(Debug)]
pub(crate) struct Kept {
    /// The most bytes of responses that are kept.
    limit: usize,
    parked: AtomicBool,
    received: AtomicU32,
    answered: AtomicU32,
    bytes: AtomicUsize,
    replies: Mutex<Replies>,
}

#[derive(Debug, Default)]
struct Replies {
    /// Written, or about to be, and not acknowledged.
    frames: VecDeque<Frame>,
    /// How many responses came before the first of them.
    before: u64,
    /// Whether there were too many.
    given_up: bool,
}

impl Kept {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            parked: AtomicBool::new(false),
            // The first request of a connection is the greeting, which is no part of the session.
            received: AtomicU32::new(1),
            answered: AtomicU32::new(0),
            bytes: AtomicUsize::new(0),
            replies: Mutex::default(),
        }
    }

    pub(super) fn set_parked(&self, parked: bool) {
        self.parked.store(parked, Ordering::SeqCst);
    }

    /// Whether there is no connection.
    pub(super) fn is_parked(&self) -> bool {
        self.parked.load(Ordering::SeqCst)
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// How much is kept.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The highest stream id of a request that was taken.
    pub(crate) fn received(&self) -> u32 {
        self.received.load(Ordering::Relaxed)
    }

    /// Notes that a request was taken.
    pub(super) fn take(&self, stream_id: u32) {
        self.received.fetch_max(stream_id, Ordering::Relaxed);
    }

    /// The highest stream id of a request that was answered: whoever reads that knows that all before it were taken.
    pub(super) fn answered(&self) -> u32 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Keeps responses that are about to be written. Returns false for the first time that there are too many.
    pub(super) fn note(&self, frames: &[Frame]) -> bool {
        let mut replies = self.replies();
        if replies.given_up {
            return true;
        }
        let added: usize = frames.iter().map(cost).sum();
        let last = frames.iter().map(|frame| frame.stream_id).max().unwrap_or_default();
        self.answered.fetch_max(last, Ordering::Relaxed);
        if self.bytes.fetch_add(added, Ordering::Relaxed) + added > self.limit {
            replies.given_up = true;
            replies.frames = VecDeque::new();
            self.bytes.store(0, Ordering::Relaxed);
            return false;
        }
        replies.frames.extend(frames.iter().cloned());
        true
    }

    /// Forgets what the peer has received: the first `count` responses of the session. Returns false for a count that
    /// cannot be.
    pub(super) fn acknowledge(&self, count: u64) -> bool {
        let mut replies = self.replies();
        if replies.given_up {
            return true;
        }
        let Some(more) = count.checked_sub(replies.before).and_then(|more| usize::try_from(more).ok()) else {
            return false;
        };
        if more > replies.frames.len() {
            return false;
        }
        let freed = replies.frames.drain(..more).map(|frame| cost(&frame)).sum();
        self.bytes.fetch_sub(freed, Ordering::Relaxed);
        replies.before = count;
        true
    }

    /// The responses after the first `count`; nothing when they are not here.
    pub(crate) fn after(&self, count: u64) -> Option<Vec<Frame>> {
        if !self.acknowledge(count) {
            return None;
        }
        let replies = self.replies();
        (!replies.given_up).then(|| replies.frames.iter().cloned().collect())
    }

    fn replies(&self) -> MutexGuard<'_, Replies> {
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests that were taken, and of which the peer of a session may not know that.
#[derive(Debug, Default)]
pub(super) struct Unacknowledged {
    /// The first of those that are counted.
    first: Option<u32>,
    count: usize,
    bytes: usize,
}

impl Unacknowledged {
    pub(super) fn add(&mut self, id: u32, length: usize) {
        self.first.get_or_insert(id);
        self.count += 1;
        self.bytes += length;
    }

    /// Whether an acknowledgement is due. An answer is one for all requests before it, so that small ones which are
    /// answered need no other: each costs a record, a write and a wake-up.
    pub(super) fn is_to_be_told(&mut self, answered: u32) -> bool {
        if self.bytes >= ACK_BYTES {
            return true;
        }
        if self.count < ACK_FRAMES {
            return false;
        }
        // The bytes stay: what the peer has to hold is bounded by them.
        self.count = 0;
        self.first.take().is_none_or(|first| answered < first)
    }
}

fn cost(frame: &Frame) -> usize {
    frame.payload.len() + FRAME_COST
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn frames(ids: std::ops::Range<u32>) -> Vec<Frame> {
        ids.map(|id| Frame::response(id, Bytes::from_static(b"answer"))).collect()
    }

    #[test]
    fn what_is_acknowledged_is_forgotten_and_the_rest_can_be_had_again() {
        let kept = Kept::new(1 << 20);
        assert!(kept.note(&frames(0..5)));
        assert!(kept.acknowledge(2));
        assert_eq!(kept.after(3).unwrap(), frames(3..5));
        assert_eq!(kept.after(3).unwrap(), frames(3..5), "as often as it is asked for");
        assert_eq!(kept.bytes(), 2 * (6 + FRAME_COST));
        assert_eq!(kept.after(5).unwrap(), []);
        assert_eq!(kept.bytes(), 0);
    }

    #[test]
    fn the_highest_request_that_was_answered_is_known_whatever_the_order() {
        let kept = Kept::new(1 << 20);
        assert_eq!(kept.answered(), 0);
        kept.note(&[frames(7..8), frames(3..6)].concat());
        kept.note(&frames(1..2));
        assert_eq!(kept.answered(), 7);
    }

    #[test]
    fn counts_that_cannot_be_are_refused() {
        let kept = Kept::new(1 << 20);
        kept.note(&frames(0..5));
        assert!(kept.acknowledge(3));
        for wrong in [2, 6, u64::MAX] {
            assert!(!kept.acknowledge(wrong), "{wrong}");
            assert!(kept.after(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn requests_are_acknowledged_alone_where_no_answer_says_it() {
        let frames = ACK_FRAMES as u32;
        let mut unacknowledged = Unacknowledged::default();
        let mut due = |ids: std::ops::Range<u32>, length, answered| {
            let told = |id| {
                unacknowledged.add(id, length);
                unacknowledged.is_to_be_told(answered)
            };
            ids.map(told).filter(|told| *told).count()
        };
        assert_eq!(due(1..frames, 1, 0), 0, "too few");
        assert_eq!(due(frames..frames + 1, 1, 1), 0, "the answer to the first says it");
        assert_eq!(due(frames + 1..2 * frames + 1, 1, frames), 1, "no answer since");
        let mut unacknowledged = Unacknowledged::default();
        let half = ACK_BYTES / 2;
        unacknowledged.add(1, half);
        assert!(!unacknowledged.is_to_be_told(0));
        unacknowledged.add(3, half);
        assert!(unacknowledged.is_to_be_told(2), "so many bytes whatever was answered");
    }

    #[test]
    fn too_much_is_given_up_once_and_for_all() {
        let kept = Kept::new(3 * (6 + FRAME_COST));
        assert!(kept.note(&frames(0..3)));
        assert!(!kept.note(&frames(3..4)));
        assert!(kept.note(&frames(4..5)), "it is said once");
        assert!(kept.acknowledge(4) && kept.after(4).is_none());
        assert_eq!(kept.bytes(), 0);
    }
}
