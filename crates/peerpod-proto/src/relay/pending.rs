//! The calls of a relay: those the backend is to answer, and those whose callers have gone.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::flow::Place;
use crate::conn::{ACK_ALONE, ACK_BYTES, ACK_FRAMES, Outbox};
use crate::envelope::Response;
use crate::status::Status;

/// The most answers that are kept for a successor, and their bytes altogether.
const MAX_KEPT: usize = 256;
const MAX_KEPT_BYTES: usize = 8 << 20;

/// The most bytes of requests that are kept until the backend has them.
const MAX_UNACKNOWLEDGED: usize = 32 << 20;

/// Stream id of the greeting, the first request of a connection where there is one.
pub(super) const GREETING: u32 = 1;

/// A call on its way to the backend.
#[derive(Debug)]
pub(super) struct Call {
    /// The request as it goes to the backend.
    pub(super) envelope: Bytes,
    /// Whether it only waits for something to happen, so that asking again does no harm.
    pub(super) waits: bool,
    pub(super) deadline: Option<Instant>,
    pub(super) reply: Reply,
    /// Its place among the calls on their way; a call that waits for a connection has none.
    pub(super) place: Option<Place>,
}

/// Where an answer goes.
#[derive(Debug)]
pub(super) enum Reply {
    /// To a front connection.
    Front { outbox: Arc<Outbox>, stream_id: u32 },
    /// To the relay's own caller.
    Own(oneshot::Sender<Bytes>),
    /// To nobody yet: it is kept until a front asks the same again.
    Kept,
}

impl Reply {
    /// Passes an encoded response on.
    fn deliver(self, envelope: Bytes) {
        match self {
            Self::Front { outbox, stream_id } => outbox.respond_raw(stream_id, envelope),
            Self::Own(answer) => {
                // The caller may have gone in this moment.
                let _ = answer.send(envelope);
            }
            Self::Kept => {}
        }
    }

    pub(super) fn succeed(self, payload: Bytes) {
        self.finish(Ok(payload));
    }

    pub(super) fn fail(self, status: Status) {
        self.finish(Err(status));
    }

    fn finish(self, result: Result<Bytes, Status>) {
        match self {
            Self::Front { outbox, stream_id } => outbox.respond(stream_id, result),
            reply => reply.deliver(Response::new(result).to_bytes()),
        }
    }

    /// Waits until nobody waits for the answer any more.
    pub(super) async fn gone(&self) {
        match self {
            Self::Front { outbox, .. } => outbox.gone().cancelled().await,
            // Neither waits for a place.
            Self::Own(_) | Self::Kept => std::future::pending().await,
        }
    }

    /// Whether nobody waits for the answer any more.
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Self::Front { outbox, .. } => outbox.gone().is_cancelled(),
            Self::Own(answer) => answer.is_closed(),
            Self::Kept => false,
        }
    }

    fn is_of_same_front(&self, other: &Self) -> bool {
        matches!(other, Self::Front { outbox, .. } if self.is_of(outbox))
    }

    fn is_of(&self, outbox: &Arc<Outbox>) -> bool {
        matches!(self, Self::Front { outbox: own, .. } if Arc::ptr_eq(own, outbox))
    }
}

/// The calls the backend is to answer, by stream id.
#[derive(Debug)]
pub(super) struct Pending {
    table: Mutex<Table>,
    /// Whether waiting calls are kept when their front is gone.
    keep: bool,
}

#[derive(Debug, Default)]
struct Table {
    calls: HashMap<u32, Entry, BuildHasherDefault<ById>>,
    deadlines: BinaryHeap<Reverse<(Instant, u32)>>,
    /// Answers to calls whose fronts have gone, by request.
    kept: HashMap<Bytes, Bytes>,
    kept_bytes: usize,
    /// Takes the answer to the greeting.
    greeting: Option<oneshot::Sender<Bytes>>,
    session: Option<Sent>,
}

/// Hashes stream ids. They are our own, one after another, so that nobody can choose them to collide; and every message is
/// looked up here.
#[derive(Debug, Default)]
struct ById(u64);

impl Hasher for ById {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        // The golden ratio spreads successive numbers over the high bits, too, which the table uses.
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Both directions of a session with the backend.
#[derive(Debug, Default)]
struct Sent {
    /// Requests that the backend may not have received, by stream id. Their places are given back when it has.
    requests: VecDeque<(u32, Bytes, Option<Place>)>,
    bytes: usize,
    /// How many answers were received.
    answers: u64,
    /// How many of them the backend was told of, and the bytes of the others.
    told: u64,
    untold_bytes: usize,
}

impl Sent {
    /// Forgets requests that the backend has.
    fn received(&mut self, id: u32) {
        while let Some((_, envelope, _)) = self.requests.pop_front_if(|(first, ..)| *first <= id) {
            self.bytes -= envelope.len();
        }
    }

    /// Whether the backend is to be told of so many answers, or of their bytes.
    fn is_to_be_told(&self, answers: usize) -> bool {
        self.answers - self.told >= answers as u64 || self.untold_bytes >= ACK_BYTES
    }
}

impl Table {
    /// Counts an answer of a session. It says of all requests before it, too, that they were received. Returns whether the
    /// backend is to be told even where no calls are written.
    fn count(&mut self, id: u32, length: usize) -> bool {
        let Some(session) = &mut self.session else { return false };
        session.answers += 1;
        session.untold_bytes += length;
        session.received(id);
        session.is_to_be_told(ACK_ALONE)
    }

    /// Drops the deadlines of calls that were answered, once there are many.
    fn sweep_deadlines(&mut self) {
        let Self { calls, deadlines, .. } = self;
        if deadlines.len() > 1024 + 4 * calls.len() {
            deadlines.retain(|Reverse((_, id))| calls.contains_key(id));
        }
    }
}

#[derive(Debug)]
struct Entry {
    reply: Reply,
    deadline: Option<Instant>,
    /// The request, for a call that is issued again.
    again: Option<Bytes>,
}

impl Pending {
    pub(super) fn new(keep: bool) -> Self {
        Self { table: Mutex::default(), keep }
    }

    /// Takes the next answer to [`GREETING`] for that of a greeting.
    pub(super) fn greet(&self, answer: oneshot::Sender<Bytes>) {
        self.table().greeting = Some(answer);
    }

    /// Begins to keep what a session needs.
    pub(super) fn begin_session(&self) {
        self.table().session = Some(Sent::default());
    }

    /// Keeps it no more.
    pub(super) fn end_session(&self) {
        self.table().session = None;
    }

    /// How many answers of the session were received.
    pub(super) fn answers(&self) -> u64 {
        self.table().session.as_ref().map_or(0, |session| session.answers)
    }

    /// The backend has received the requests up to this one.
    pub(super) fn received(&self, id: u32) {
        if let Some(session) = &mut self.table().session {
            session.received(id);
        }
    }

    /// The requests after `id` that somebody still waits for: the backend has not received them.
    pub(super) fn after(&self, id: u32) -> Vec<(u32, Bytes)> {
        let mut table = self.table();
        let Table { calls, session: Some(session), .. } = &mut *table else { return Vec::new() };
        session.received(id);
        session.requests.retain(|(id, ..)| calls.contains_key(id));
        session.bytes = session.requests.iter().map(|(_, envelope, _)| envelope.len()).sum();
        // What was received before is known by now.
        session.told = session.answers;
        session.untold_bytes = 0;
        session.requests.iter().map(|(id, envelope, _)| (*id, envelope.clone())).collect()
    }

    /// How many answers the backend is to be told of, when it is time.
    pub(super) fn acknowledge(&self) -> Option<u64> {
        let mut table = self.table();
        let session = table.session.as_mut().filter(|session| session.is_to_be_told(ACK_FRAMES))?;
        session.told = session.answers;
        session.untold_bytes = 0;
        Some(session.answers)
    }

    /// Notes a call that is about to be written. Returns false when a session would have to keep too much. A session keeps
    /// the place of the call; else it stays there until what it is for is written.
    pub(super) fn insert(&self, id: u32, mut call: Call, places: &mut Vec<Place>) -> bool {
        let mut table = self.table();
        if let Some(deadline) = call.deadline {
            table.deadlines.push(Reverse((deadline, id)));
            table.sweep_deadlines();
        }
        // A copy, so that a call which waits for days does not hold on to a read buffer.
        let again = call.waits.then(|| Bytes::copy_from_slice(&call.envelope));
        let mut fits = true;
        if let Some(session) = &mut table.session {
            let envelope = again.clone().unwrap_or(call.envelope);
            session.bytes += envelope.len();
            session.requests.push_back((id, envelope, call.place.take()));
            fits = session.bytes <= MAX_UNACKNOWLEDGED;
        }
        places.extend(call.place.take());
        table.calls.insert(id, Entry { reply: call.reply, deadline: call.deadline, again });
        fits
    }

    /// Gives a waiting call what an equal one of another front brought, or the place of that one, so that no two
    /// of them compete for the same output. Returns the call when it has to be issued.
    pub(super) fn adopt(&self, call: Call) -> Option<Call> {
        if !self.keep || !call.waits {
            return Some(call);
        }
        let mut table = self.table();
        if let Some(answer) = table.kept.remove(&call.envelope) {
            table.kept_bytes -= answer.len();
            drop(table);
            call.reply.deliver(answer);
            return None;
        }
        let same = |entry: &&mut Entry| {
            entry.again.as_ref() == Some(&call.envelope) && !entry.reply.is_of_same_front(&call.reply)
        };
        let Some(entry) = table.calls.values_mut().find(same) else { return Some(call) };
        let previous = std::mem::replace(&mut entry.reply, call.reply);
        drop(table);
        // The other front may be half of a connection that is long broken.
        previous.fail(Status::closed());
        None
    }

    /// Passes the answer of the backend on. Returns whether the backend is to be told of it, and where it went when too
    /// much waits there.
    pub(super) fn answer(&self, id: u32, envelope: Bytes) -> (bool, Option<Arc<Outbox>>) {
        let mut table = self.table();
        if id == GREETING
            && let Some(greeting) = table.greeting.take()
        {
            // Whoever greeted may have ended the connection meanwhile.
            let _ = greeting.send(envelope);
            return (false, None);
        }
        let tell = table.count(id, envelope.len());
        let Some(entry) = table.calls.remove(&id) else { return (tell, None) };
        match (entry.reply, entry.again) {
            (Reply::Kept, Some(request)) => {
                if table.kept.len() < MAX_KEPT && table.kept_bytes + envelope.len() <= MAX_KEPT_BYTES {
                    table.kept_bytes += envelope.len();
                    table.kept.insert(request, Bytes::copy_from_slice(&envelope));
                }
            }
            (Reply::Front { outbox, stream_id }, _) => {
                drop(table);
                outbox.respond_raw(stream_id, envelope);
                return (tell, outbox.is_full().then_some(outbox));
            }
            (reply, _) => {
                drop(table);
                reply.deliver(envelope);
            }
        }
        (tell, None)
    }

    /// Fails a call whose answer is of no use.
    pub(super) fn fail(&self, id: u32, status: Status) {
        let mut table = self.table();
        table.count(id, 0);
        let entry = table.calls.remove(&id);
        drop(table);
        if let Some(entry) = entry {
            entry.reply.fail(status);
        }
    }

    /// Fails the calls that cannot be issued again, once a session was without a connection for too long.
    pub(super) fn fail_others(&self, status: &Status) {
        let failed: Vec<_> = {
            let mut table = self.table();
            table.calls.extract_if(|_, entry| entry.again.is_none()).collect()
        };
        for (_, entry) in failed {
            entry.reply.fail(status.clone());
        }
    }

    /// Forgets the calls of a front that has gone, or keeps those that wait.
    pub(super) fn forget(&self, outbox: &Arc<Outbox>) {
        let keep = self.keep;
        self.table().calls.retain(|_, entry| {
            if !entry.reply.is_of(outbox) {
                return true;
            }
            entry.reply = Reply::Kept;
            keep && entry.again.is_some()
        });
    }

    /// When the next deadline passes.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let mut table = self.table();
        while let Some(Reverse((deadline, id))) = table.deadlines.peek().copied() {
            if table.calls.get(&id).is_some_and(|entry| entry.deadline == Some(deadline)) {
                return Some(deadline);
            }
            table.deadlines.pop();
        }
        None
    }

    /// Fails the calls whose deadlines have passed.
    pub(super) fn expire(&self, now: Instant) {
        while let Some(deadline) = self.next_deadline()
            && deadline <= now
        {
            let mut table = self.table();
            let Some(Reverse((_, id))) = table.deadlines.pop() else { return };
            let entry = table.calls.remove(&id);
            drop(table);
            if let Some(entry) = entry {
                entry.reply.fail(Status::deadline_exceeded());
            }
        }
    }

    /// Ends all calls of a broken connection: returns those to issue again, in order, and fails the others.
    pub(super) fn break_off(&self, status: &Status) -> Vec<Call> {
        let (calls, _) = {
            let mut table = self.table();
            (std::mem::take(&mut table.calls), std::mem::take(&mut table.deadlines))
        };
        let mut calls: Vec<_> = calls.into_iter().collect();
        calls.sort_by_key(|(id, _)| *id);
        let mut again = Vec::new();
        for (_, entry) in calls {
            match entry.again {
                Some(envelope) if !entry.reply.is_gone() => again.push(Call {
                    envelope,
                    waits: true,
                    deadline: entry.deadline,
                    reply: entry.reply,
                    place: None,
                }),
                _ => entry.reply.fail(status.clone()),
            }
        }
        again
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
