//! The connection to the backend: dialled, carried, and dialled again when it breaks.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, warn};

use super::pending::Call;
use super::{BoxedStream, Dial, DialError, LinkState, RelayOptions, Shared};
use crate::frame::{Frame, FrameReader, FrameWriter, Inbound, Kind};
use crate::status::{Code, Status};

/// How many calls are written at once.
const BATCH: usize = 32;

/// The most bytes of requests that wait for a connection.
const MAX_WAITING_BYTES: usize = 64 << 20;

/// The pause after an attempt to connect that panicked.
const PANIC_PAUSE: Duration = Duration::from_millis(200);

/// Owns the connection to the backend.
pub(super) struct Link {
    dial: Arc<dyn Dial>,
    shared: Arc<Shared>,
    calls: mpsc::Receiver<Call>,
    state: watch::Sender<LinkState>,
    options: RelayOptions,
    waiting: Waiting,
    connections: u64,
}

/// Why the link goes on as it does.
enum Next<T> {
    Go(T),
    Failed,
    Stop,
}

impl Link {
    pub(super) fn new(
        dial: Arc<dyn Dial>,
        shared: Arc<Shared>,
        calls: mpsc::Receiver<Call>,
        state: watch::Sender<LinkState>,
        options: RelayOptions,
    ) -> Self {
        Self { dial, shared, calls, state, options, waiting: Waiting::default(), connections: 0 }
    }

    pub(super) async fn run(mut self) {
        // Fronts end after the link, however it ends, so that their callers are told first.
        let _fronts = self.shared.fronts.clone().drop_guard();
        loop {
            match self.connect().await {
                Next::Go(stream) => {
                    let stopped = self.carry(stream).await;
                    for call in self.shared.pending.break_off() {
                        self.waiting.push(call, None);
                    }
                    if stopped {
                        break;
                    }
                    self.dial.lost();
                }
                Next::Failed => {
                    self.waiting.fail(&Status::closed());
                    self.refuse_calls().await;
                    break;
                }
                Next::Stop => break,
            }
        }
        self.calls.close();
        while let Ok(call) = self.calls.try_recv() {
            call.reply.fail(Status::closed());
        }
        self.waiting.fail(&Status::closed());
        self.state.send_replace(LinkState::Closed);
    }

    /// Dials until there is a connection. Calls that come meanwhile wait for a limited time.
    async fn connect(&mut self) -> Next<BoxedStream> {
        let reconnect = self.connections > 0;
        let wait = if reconnect { self.options.reconnect_wait } else { self.options.first_connect_wait };
        let (mut attempts, mut error, mut pause) = (0, None, Duration::ZERO);
        loop {
            self.state.send_replace(LinkState::Connecting { attempts, error, reconnect });
            attempts += 1;
            match self.attempt(pause, wait).await {
                None => return Next::Stop,
                Some(Ok(stream)) => {
                    self.connections += 1;
                    let (since, connections) = (Instant::now(), self.connections);
                    self.state.send_replace(LinkState::Connected { since, attempts, connections });
                    return Next::Go(stream);
                }
                Some(Err(DialError { retry: Some(after), source })) => {
                    error = Some(crate::chain(source.as_ref()));
                    pause = after;
                }
                Some(Err(DialError { retry: None, source })) => {
                    let error = crate::chain(source.as_ref());
                    self.state.send_replace(LinkState::Failed { attempts, error });
                    return Next::Failed;
                }
            }
        }
    }

    /// Makes one attempt after a pause, taking calls meanwhile. Returns nothing when the relay ends.
    async fn attempt(&mut self, pause: Duration, wait: Duration) -> Option<Result<BoxedStream, DialError>> {
        let dial = Arc::clone(&self.dial);
        // In a task of its own a panic costs one attempt only.
        let mut task = Owned(tokio::spawn(async move {
            sleep(pause).await;
            dial.dial().await
        }));
        loop {
            tokio::select! {
                () = self.shared.stop.cancelled() => return None,
                result = &mut task.0 => {
                    return Some(result.unwrap_or_else(|panic| Err(DialError::again(PANIC_PAUSE, panic))));
                }
                call = self.calls.recv() => match call {
                    Some(call) => {
                        if let Some(call) = self.shared.pending.adopt(call) {
                            self.waiting.push(call, Some(wait));
                        }
                    }
                    None => return None,
                },
                () = until(self.waiting.next_expiry()) => self.waiting.expire(Instant::now()),
            }
        }
    }

    /// Answers calls while there is no hope of a connection.
    async fn refuse_calls(&mut self) {
        loop {
            tokio::select! {
                () = self.shared.stop.cancelled() => return,
                call = self.calls.recv() => match call {
                    Some(call) => call.reply.fail(Status::closed()),
                    None => return,
                },
            }
        }
    }

    /// Carries calls over one connection until it breaks. Returns whether the relay ends.
    async fn carry(&mut self, stream: BoxedStream) -> bool {
        let (read, write) = tokio::io::split(stream);
        let mut reader = Owned(tokio::spawn(read_answers(read, Arc::clone(&self.shared))));
        let mut writer = Writer { frames: FrameWriter::new(write), next_id: 1, batch: Vec::new() };
        let shared = Arc::clone(&self.shared);
        for call in self.waiting.take() {
            if !writer.add(&shared, call) {
                return false;
            }
        }
        let mut calls = Vec::with_capacity(BATCH);
        loop {
            if writer.batch.is_empty() {
                tokio::select! {
                    () = shared.stop.cancelled() => return true,
                    _ = &mut reader.0 => return false,
                    () = watch_deadlines(&shared) => continue,
                    count = self.calls.recv_many(&mut calls, BATCH) => if count == 0 { return true },
                }
                for call in calls.drain(..) {
                    if let Some(call) = shared.pending.adopt(call)
                        && !writer.add(&shared, call)
                    {
                        return false;
                    }
                }
                continue;
            }
            let result = tokio::select! {
                () = shared.stop.cancelled() => return true,
                _ = &mut reader.0 => return false,
                never = keep_deadlines(&shared) => match never {},
                result = writer.frames.write(&writer.batch) => result,
            };
            if let Err(error) = result {
                debug!(error = %crate::chain(&error), "calls cannot be written to the backend");
                return false;
            }
            writer.batch.clear();
        }
    }
}

/// Writes calls and gives them their stream ids, in one place, so that ids only grow.
struct Writer {
    frames: FrameWriter<WriteHalf<BoxedStream>>,
    next_id: u32,
    batch: Vec<Frame>,
}

impl Writer {
    /// Adds a call to what is written next. Returns false when the ids of this connection are used up; the
    /// call is then one of those that broke.
    fn add(&mut self, shared: &Shared, call: Call) -> bool {
        if call.reply.is_gone() {
            return true;
        }
        let id = self.next_id;
        let envelope = call.envelope.clone();
        shared.pending.insert(id, call);
        match id.checked_add(2) {
            Some(next) => self.next_id = next,
            None => return false,
        }
        self.batch.push(Frame::request(id, envelope));
        true
    }
}

/// Passes the answers of the backend on until its connection ends.
async fn read_answers(read: ReadHalf<BoxedStream>, shared: Arc<Shared>) {
    if let Err(error) = pass_on(FrameReader::new(read), &shared).await {
        debug!(error = %crate::chain(&error), "connection to the backend failed");
    }
}

async fn pass_on(
    mut reader: FrameReader<impl AsyncRead + Unpin>,
    shared: &Shared,
) -> Result<(), crate::frame::FrameError> {
    while let Some(inbound) = reader.read().await? {
        match inbound {
            Inbound::Frame(frame) if frame.kind == Kind::Response => {
                shared.pending.answer(frame.stream_id, frame.payload);
            }
            Inbound::Frame(frame) => warn!(kind = ?frame.kind, "the backend sent an unexpected frame"),
            Inbound::Oversized(header) => {
                shared.pending.fail(header.stream_id, Status::oversized(header.length as usize));
            }
        }
    }
    Ok(())
}

/// Waits for the next deadline of a pending call and fails what is over.
async fn watch_deadlines(shared: &Shared) {
    until(shared.pending.next_deadline()).await;
    shared.pending.expire(Instant::now());
}

/// Fails what is over, again and again.
async fn keep_deadlines(shared: &Shared) -> Infallible {
    loop {
        watch_deadlines(shared).await;
    }
}

/// Waits until a moment, for ever when there is none.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

/// A task that ends with its owner.
struct Owned<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The calls that wait for a connection, in order.
#[derive(Debug, Default)]
struct Waiting {
    calls: VecDeque<Held>,
    bytes: usize,
}

#[derive(Debug)]
struct Held {
    call: Call,
    expires: Option<Instant>,
}

impl Waiting {
    /// Holds a call for a time, or until its own deadline.
    fn push(&mut self, call: Call, wait: Option<Duration>) {
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

    fn take(&mut self) -> impl Iterator<Item = Call> + use<> {
        self.bytes = 0;
        std::mem::take(&mut self.calls).into_iter().map(|held| held.call)
    }

    fn next_expiry(&self) -> Option<Instant> {
        self.calls.iter().filter_map(|held| held.expires).min()
    }

    /// Fails the calls that have waited long enough.
    fn expire(&mut self, now: Instant) {
        for held in std::mem::take(&mut self.calls) {
            if held.expires.is_none_or(|expires| expires > now) {
                self.calls.push_back(held);
                continue;
            }
            self.bytes -= held.call.envelope.len();
            let late = held.call.deadline.is_some_and(|deadline| deadline <= now);
            let status = if late { Status::deadline_exceeded() } else { Status::closed() };
            held.call.reply.fail(status);
        }
    }

    fn fail(&mut self, status: &Status) {
        for call in self.take() {
            call.reply.fail(status.clone());
        }
    }
}
