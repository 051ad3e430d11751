//! The calls of a relay that wait for a connection.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::pending::Call;
use crate::status::{Code, Status};

/// The most bytes of requests that wait for a connection.
const MAX_WAITING_BYTES: usize = 64 << 20;

/// The calls that wait for a connection, in order.
#[derive(Debug)]
pub(super) struct Waiting {
    calls: VecDeque<Held>,
    bytes: usize,
    /// What is waited for, and why it is not there.
    peer: String,
    reason: Option<String>,
}

#[derive(Debug)]
struct Held {
    call: Call,
    expires: Option<Instant>,
}

impl Waiting {
    pub(super) fn new(peer: String) -> Self {
        Self { calls: VecDeque::new(), bytes: 0, peer, reason: None }
    }

    /// Learns why there is no connection.
    pub(super) fn learn(&mut self, reason: &str) {
        self.reason = Some(reason.to_owned());
    }

    /// Answers a call that is not to wait.
    pub(super) fn refuse(&self, call: Call) {
        call.reply.fail(self.unreachable());
    }

    fn unreachable(&self) -> Status {
        Status::unreachable(&self.peer, self.reason.as_deref())
    }

    /// Puts calls that were under way in front of all others; they have all the time they were given.
    pub(super) fn put_back(&mut self, calls: Vec<Call>) {
        for call in calls.into_iter().rev() {
            self.bytes += call.envelope.len();
            let expires = call.deadline;
            self.calls.push_front(Held { call, expires });
        }
    }

    /// Holds a call for a time, or until its own deadline.
    pub(super) fn push(&mut self, mut call: Call, wait: Option<Duration>) {
        // What waits for a connection has a bound of its own, and does not keep others from waiting.
        call.place = None;
        if self.bytes + call.envelope.len() > MAX_WAITING_BYTES {
            let message = "too many bytes of requests wait for a connection to the guest";
            return call.reply.fail(Status::new(Code::ResourceExhausted, message));
        }
        // A call that only waits has all the time it was given.
        let wait = wait.filter(|_| !call.waits).map(|wait| Instant::now() + wait);
        let expires = match (wait, call.deadline) {
            (Some(wait), Some(deadline)) => Some(wait.min(deadline)),
            (wait, deadline) => wait.or(deadline),
        };
        self.bytes += call.envelope.len();
        self.calls.push_back(Held { call, expires });
    }

    /// Holds a call that came while the backend takes nothing, until its own deadline. It keeps its place.
    pub(super) fn hold(&mut self, call: Call) {
        self.bytes += call.envelope.len();
        let expires = call.deadline;
        self.calls.push_back(Held { call, expires });
    }

    /// The connection is gone: calls that were held for it wait for the next one as all others do.
    pub(super) fn limit(&mut self, wait: Duration) {
        let end = Instant::now() + wait;
        for held in &mut self.calls {
            held.call.place = None;
            if !held.call.waits {
                held.expires = Some(held.expires.map_or(end, |expires| expires.min(end)));
            }
        }
    }

    /// How many calls wait.
    pub(super) fn len(&self) -> usize {
        self.calls.len()
    }

    /// Takes all calls.
    pub(super) fn take(&mut self) -> Vec<Call> {
        self.bytes = 0;
        self.reason = None;
        std::mem::take(&mut self.calls).into_iter().map(|held| held.call).collect()
    }

    /// When the next call has waited long enough.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.calls.iter().filter_map(|held| held.expires).min()
    }

    /// Fails the calls that have waited long enough.
    pub(super) fn expire(&mut self, now: Instant) {
        for held in std::mem::take(&mut self.calls) {
            if held.expires.is_none_or(|expires| expires > now) {
                self.calls.push_back(held);
                continue;
            }
            self.bytes -= held.call.envelope.len();
            let late = held.call.deadline.is_some_and(|deadline| deadline <= now);
            let status = if late { Status::deadline_exceeded() } else { self.unreachable() };
            held.call.reply.fail(status);
        }
    }

    pub(super) fn fail(&mut self, status: &Status) {
        self.bytes = 0;
        for held in std::mem::take(&mut self.calls) {
            held.call.reply.fail(status.clone());
        }
    }

    /// Fails all calls because there is no connection and will be none.
    pub(super) fn fail_unreachable(&mut self) {
        let status = self.unreachable();
        self.fail(&status);
    }
}
