//! The connection to the backend: dialled, carried, and dialled again when it breaks.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::io::{AsyncRead, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::flow::Place;
use super::pending::{Call, GREETING};
use super::waiting::Waiting;
use super::{BoxedStream, Dial, DialError, Introduction, LinkState, RelayOptions, Shared};
use crate::conn::Outbox;
use crate::envelope::{Request, Response};
use crate::frame::{Acknowledgements, Frame, FrameReader, FrameWriter, Inbound, Kind};
use crate::messages::peer::{self, LevelRequest, LevelResponse};
use crate::server::encode;
use crate::status::{Code, Status};

/// How many calls are written at once.
const BATCH: usize = 32;

/// The pause after an attempt to connect that panicked.
const PANIC_PAUSE: Duration = Duration::from_millis(200);

/// How long the backend may take to say whether a session goes on.
const GREETING_TIME: Duration = Duration::from_secs(10);

/// How long one front that does not read may delay the answers of others, for each of its own.
const GIVE_WAY: Duration = Duration::from_millis(100);

/// The pause after it did not.
const GREETING_PAUSE: Duration = Duration::from_millis(20);

/// Owns the connection to the backend.
pub(super) struct Link {
    dial: Arc<dyn Dial>,
    shared: Arc<Shared>,
    calls: mpsc::Receiver<Call>,
    publish: Published,
    options: RelayOptions,
    waiting: Waiting,
    connections: u64,
    next_id: u32,
    session: Option<Session>,
}

/// What a link tells of itself.
pub(super) struct Published {
    pub(super) state: watch::Sender<LinkState>,
    pub(super) level: watch::Sender<Option<u32>>,
}

/// Calls and answers that outlive a connection.
struct Session {
    id: Bytes,
    /// How long the backend keeps it without a connection; nothing before it has said so.
    grace: Option<Duration>,
}

/// A connection to the backend.
struct Opened {
    reader: FrameReader<ReadHalf<BoxedStream>>,
    writer: FrameWriter<WriteHalf<BoxedStream>>,
    /// What the backend answered to the question whether the session goes on, where there was one.
    greeted: Option<Result<LevelResponse, Status>>,
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
        publish: Published,
        options: RelayOptions,
    ) -> Self {
        let peer = dial.peer();
        Self {
            dial,
            shared,
            calls,
            publish,
            options,
            waiting: Waiting::new(peer),
            connections: 0,
            next_id: GREETING,
            session: None,
        }
    }

    pub(super) async fn run(mut self) {
        // Fronts end after the link, however it ends, so that their callers are told first.
        let _fronts = self.shared.fronts.clone().drop_guard();
        loop {
            match self.connect().await {
                Next::Go((opened, again)) => {
                    if self.carry(opened, again).await {
                        break;
                    }
                    if self.session.is_none() {
                        self.fall_back();
                    }
                    self.dial.lost();
                }
                Next::Failed => {
                    self.fall_back();
                    self.waiting.fail_unreachable();
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
        for call in self.shared.pending.break_off(&Status::closed()) {
            call.reply.fail(Status::closed());
        }
        self.waiting.fail(&Status::closed());
        self.publish.state.send_replace(LinkState::Closed);
    }

    /// Ends the calls of a connection that is not gone on with: those that only wait are issued again.
    fn fall_back(&mut self) {
        self.session = None;
        self.shared.pending.end_session();
        let again = self.shared.pending.break_off(&Status::broken(&self.dial.peer()));
        self.waiting.put_back(again);
    }

    /// Dials until there is a connection. Calls that come meanwhile wait for a limited time. Returns the connection and
    /// the requests that have to be written once more.
    async fn connect(&mut self) -> Next<(Opened, Vec<Frame>)> {
        let reconnect = self.connections > 0;
        let wait = match &self.session {
            _ if !reconnect => self.options.first_connect_wait,
            Some(Session { grace: Some(grace), .. }) => *grace,
            _ => self.options.reconnect_wait,
        };
        self.waiting.limit(wait);
        let mut kept_until = self.session.is_some().then(|| Instant::now() + wait);
        let (mut attempts, mut error, mut pause) = (0, None, Duration::ZERO);
        loop {
            self.publish.state.send_replace(LinkState::Connecting { attempts, error, reconnect });
            attempts += 1;
            let offer = self.offer();
            let resume = self.session.as_ref().and_then(|session| {
                let introduction = self.options.introduction.as_ref()?;
                Some(greeting(introduction, &offer, &session.id, self.shared.pending.answers()))
            });
            match self.attempt(pause, wait, resume, &mut kept_until).await {
                None => return Next::Stop,
                Some(Ok(opened)) => {
                    let again = self.go_on(opened.greeted.as_ref(), offer);
                    self.connections += 1;
                    let (since, connections) = (Instant::now(), self.connections);
                    let resumed = again.is_some();
                    let state = LinkState::Connected { since, attempts, connections, resumed };
                    self.publish.state.send_replace(state);
                    return Next::Go((opened, again.unwrap_or_default()));
                }
                Some(Err(DialError { retry: Some(after), source })) => {
                    let text = crate::chain(source.as_ref());
                    self.waiting.learn(&text);
                    error = Some(text);
                    pause = after;
                }
                Some(Err(DialError { retry: None, source })) => {
                    let error = crate::chain(source.as_ref());
                    self.waiting.learn(&error);
                    self.publish.state.send_replace(LinkState::Failed { attempts, error });
                    return Next::Failed;
                }
            }
        }
    }

    /// A new session's id.
    fn offer(&self) -> Bytes {
        let id = self.options.introduction.as_ref().and_then(|introduction| (introduction.session_id)());
        id.map_or_else(Bytes::new, |id| Bytes::copy_from_slice(&id))
    }

    /// Goes on with the session if the backend does, and returns the requests it has not received.
    fn go_on(&mut self, greeted: Option<&Result<LevelResponse, Status>>, offer: Bytes) -> Option<Vec<Frame>> {
        let answer = match greeted? {
            Ok(answer) if answer.resumed => answer,
            refused => {
                warn!(
                    peer = self.dial.peer(),
                    "the session is not gone on with: calls that only wait are made again"
                );
                self.fall_back();
                self.next_id = GREETING + 2;
                self.learn(refused);
                if refused.as_ref().is_ok_and(|answer| answer.kept) {
                    self.shared.pending.begin_session();
                    self.session = Some(Session { id: offer, grace: refused.as_ref().ok().map(grace) });
                }
                return None;
            }
        };
        self.learn(&Ok(answer.clone()));
        if let Some(session) = &mut self.session {
            session.grace = Some(grace(answer));
        }
        let again = self.shared.pending.after(answer.received);
        info!(peer = self.dial.peer(), requests = again.len(), "calls go on over a new connection");
        Some(again.into_iter().map(|(id, envelope)| Frame::request(id, envelope)).collect())
    }

    /// Publishes the level that an answer to a greeting means.
    fn learn(&self, answer: &Result<LevelResponse, Status>) {
        let level = match answer {
            Ok(theirs) => {
                let ours = (peer::MIN_LEVEL, peer::MAX_LEVEL);
                peer::common_level(ours, (theirs.min_level, theirs.max_level)).unwrap_or_else(|| {
                    warn!(?theirs, "the peer speaks no common level; the basic one is assumed");
                    0
                })
            }
            // The Rust library of ttrpc has another code than the Go one for a service it does not know.
            Err(status) if matches!(status.code(), Code::Unimplemented | Code::InvalidArgument) => 0,
            Err(status) => return debug!(%status, "the peer does not tell its level"),
        };
        self.publish.level.send_replace(Some(level));
    }

    /// Makes one attempt after a pause, taking calls meanwhile. Returns nothing when the relay ends.
    async fn attempt(
        &mut self,
        pause: Duration,
        wait: Duration,
        resume: Option<Bytes>,
        kept_until: &mut Option<Instant>,
    ) -> Option<Result<Opened, DialError>> {
        let dial = Arc::clone(&self.dial);
        // In a task of its own a panic costs one attempt only.
        let mut task = Owned(tokio::spawn(async move {
            sleep(pause).await;
            let stream = dial.dial().await?;
            open(stream, resume).await.inspect_err(|_| dial.lost())
        }));
        let shared = Arc::clone(&self.shared);
        loop {
            tokio::select! {
                () = shared.stop.cancelled() => return None,
                result = &mut task.0 => {
                    return Some(result.unwrap_or_else(|panic| Err(DialError::again(PANIC_PAUSE, panic))));
                }
                call = self.calls.recv() => match call {
                    Some(call) => {
                        if let Some(call) = shared.pending.adopt(call) {
                            self.waiting.push(call, Some(wait));
                        }
                    }
                    None => return None,
                },
                () = until(self.waiting.next_expiry()) => self.waiting.expire(Instant::now()),
                () = watch_deadlines(&shared) => {}
                () = until(*kept_until) => {
                    *kept_until = None;
                    shared.pending.fail_others(&Status::broken(&self.dial.peer()));
                }
            }
        }
    }

    /// Answers calls while there is no hope of a connection.
    async fn refuse_calls(&mut self) {
        loop {
            tokio::select! {
                () = self.shared.stop.cancelled() => return,
                call = self.calls.recv() => match call {
                    Some(call) => self.waiting.refuse(call),
                    None => return,
                },
            }
        }
    }

    /// Carries calls over one connection until it breaks. Returns whether the relay ends.
    async fn carry(&mut self, opened: Opened, again: Vec<Frame>) -> bool {
        let Opened { reader, writer, greeted } = opened;
        let (batch, answer) = if greeted.is_some() { (again, None) } else { self.greet() };
        let mut reader = Owned(tokio::spawn(read_answers(reader, Arc::clone(&self.shared))));
        let ends = self.write(writer, &mut reader, batch, answer).await;
        // What it has received must stand before the next connection is asked for the rest.
        if !reader.0.is_finished() {
            reader.0.abort();
            let _ = (&mut reader.0).await;
        }
        ends
    }

    async fn write(
        &mut self,
        mut writer: FrameWriter<WriteHalf<BoxedStream>>,
        reader: &mut Owned<()>,
        mut batch: Vec<Frame>,
        mut answer: Option<oneshot::Receiver<Bytes>>,
    ) -> bool {
        let shared = Arc::clone(&self.shared);
        let waiting = self.waiting.take();
        // Given back once what they are for is written.
        let mut places = Vec::new();
        let mut fits = self.issue(waiting.into_iter(), &mut batch, &mut places);
        let mut calls = Vec::new();
        let mut acknowledgements = Acknowledgements::default();
        loop {
            if !fits {
                return false;
            }
            if batch.is_empty() {
                tokio::select! {
                    () = shared.stop.cancelled() => return true,
                    _ = &mut reader.0 => return false,
                    () = watch_deadlines(&shared) => continue,
                    greeted = answered(&mut answer) => {
                        self.greeted(greeted);
                        continue;
                    }
                    () = shared.acknowledge.notified() => {}
                    count = self.calls.recv_many(&mut calls, BATCH) => {
                        if count == 0 {
                            return true;
                        }
                    }
                }
                let new = calls.drain(..).filter_map(|call| shared.pending.adopt(call));
                fits = self.issue(new, &mut batch, &mut places);
                if self.session.is_some()
                    && let Some(count) = shared.pending.acknowledge()
                {
                    batch.push(acknowledgements.frame(count));
                }
                continue;
            }
            let result = {
                let mut writing = std::pin::pin!(writer.write(&batch));
                loop {
                    tokio::select! {
                        biased;
                        () = shared.stop.cancelled() => return true,
                        _ = &mut reader.0 => return false,
                        result = &mut writing => break result,
                        () = watch_deadlines(&shared) => {}
                        () = until(self.waiting.next_expiry()) => self.waiting.expire(Instant::now()),
                        // Those that come while the backend takes nothing have deadlines, too.
                        call = self.calls.recv(), if self.waiting.len() < BATCH => match call {
                            Some(call) => self.waiting.hold(call),
                            None => return true,
                        },
                    }
                }
            };
            if let Err(error) = result {
                debug!(error = %crate::chain(&error), "calls cannot be written to the backend");
                return false;
            }
            batch.clear();
            places.clear();
            if self.waiting.len() > 0 {
                let waiting = self.waiting.take();
                let new = waiting.into_iter().filter_map(|call| shared.pending.adopt(call));
                fits = self.issue(new, &mut batch, &mut places);
            }
        }
    }

    /// Begins a connection that goes on with no other one.
    fn greet(&mut self) -> (Vec<Frame>, Option<oneshot::Receiver<Bytes>>) {
        self.next_id = GREETING;
        let Some(introduction) = &self.options.introduction else { return (Vec::new(), None) };
        let offer = self.offer();
        let frame = Frame::request(GREETING, greeting(introduction, &offer, &Bytes::new(), 0));
        self.next_id += 2;
        if !offer.is_empty() {
            // Before it is known whether the backend keeps it: what is sent meanwhile belongs to it.
            self.shared.pending.begin_session();
            self.session = Some(Session { id: offer, grace: None });
        }
        let (answer, answered) = oneshot::channel();
        self.shared.pending.greet(answer);
        (vec![frame], Some(answered))
    }

    /// Takes the answer to the greeting.
    fn greeted(&mut self, answer: Result<LevelResponse, Status>) {
        self.learn(&answer);
        match (&mut self.session, answer) {
            (Some(session), Ok(answer)) if answer.kept => session.grace = Some(grace(&answer)),
            _ => self.give_up(),
        }
    }

    /// Keeps nothing for a session any more. The connection goes on.
    fn give_up(&mut self) {
        self.session = None;
        self.shared.pending.end_session();
    }

    /// Gives calls their stream ids, in one place, so that ids only grow. Returns false when the ids of this connection
    /// are used up; the call is then one of those that broke.
    fn issue(
        &mut self,
        mut calls: impl Iterator<Item = Call>,
        batch: &mut Vec<Frame>,
        places: &mut Vec<Place>,
    ) -> bool {
        while let Some(call) = calls.next() {
            if call.reply.is_gone() {
                continue;
            }
            let id = self.next_id;
            let envelope = call.envelope.clone();
            if !self.shared.pending.insert(id, call, places) {
                warn!(
                    peer = self.dial.peer(),
                    "too many bytes of requests are not acknowledged: the session is given up"
                );
                self.give_up();
            }
            let Some(next) = id.checked_add(2) else {
                self.give_up();
                self.waiting.put_back(calls.collect());
                return false;
            };
            self.next_id = next;
            batch.push(Frame::request(id, envelope));
        }
        true
    }
}

/// The request that greets the backend.
fn greeting(introduction: &Introduction, session: &Bytes, resume: &Bytes, received: u64) -> Bytes {
    let request = LevelRequest {
        name: introduction.name.clone(),
        version: introduction.version.clone(),
        min_level: peer::MIN_LEVEL,
        max_level: peer::MAX_LEVEL,
        session: session.clone(),
        resume: resume.clone(),
        received,
    };
    Request::new(peer::SERVICE, peer::LEVEL, encode(&request), Some(GREETING_TIME)).to_bytes()
}

/// Reads the answer to a greeting.
fn level(envelope: Bytes) -> Result<LevelResponse, Status> {
    let payload = Response::decode(envelope).map_err(Status::bad_payload)?.into_result()?;
    LevelResponse::decode(payload).map_err(Status::bad_payload)
}

fn grace(answer: &LevelResponse) -> Duration {
    Duration::from_millis(answer.grace_millis)
}

/// Asks the backend whether a session goes on, which has to be known before anything else is written.
async fn open(stream: BoxedStream, resume: Option<Bytes>) -> Result<Opened, DialError> {
    let (read, write) = tokio::io::split(stream);
    let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
    let Some(envelope) = resume else { return Ok(Opened { reader, writer, greeted: None }) };
    let asking = async {
        writer.write(&[Frame::request(GREETING, envelope)]).await?;
        reader.read().await
    };
    let reason = match timeout(GREETING_TIME, asking).await {
        Ok(Ok(Some(Inbound::Frame(frame))))
            if frame.stream_id == GREETING && frame.kind == Kind::Response =>
        {
            return Ok(Opened { reader, writer, greeted: Some(level(frame.payload)) });
        }
        Ok(Ok(Some(_))) => "the peer answers something that was not asked".to_owned(),
        Ok(Ok(None)) => "the peer closed the connection when asked for the session".to_owned(),
        Ok(Err(error)) => crate::chain(&error),
        Err(_) => "the peer does not say whether the session goes on".to_owned(),
    };
    Err(DialError::again(GREETING_PAUSE, reason))
}

/// Waits for the answer to a greeting, for ever when there is none to come.
async fn answered(answer: &mut Option<oneshot::Receiver<Bytes>>) -> Result<LevelResponse, Status> {
    let Some(receiver) = answer else { return pending().await };
    let envelope = receiver.await;
    *answer = None;
    envelope.map_err(|_| Status::closed()).and_then(level)
}

/// Passes the answers of the backend on until its connection ends.
async fn read_answers(reader: FrameReader<ReadHalf<BoxedStream>>, shared: Arc<Shared>) {
    if let Err(error) = pass_on(reader, &shared).await {
        debug!(error = %crate::chain(&error), "connection to the backend failed");
    }
}

async fn pass_on(
    mut reader: FrameReader<impl AsyncRead + Unpin>,
    shared: &Shared,
) -> Result<(), crate::frame::FrameError> {
    loop {
        let inbound = match reader.ready() {
            Some(inbound) => inbound,
            None => match reader.read().await? {
                Some(inbound) => inbound,
                None => return Ok(()),
            },
        };
        match inbound {
            Inbound::Frame(frame) if frame.kind == Kind::Response => {
                let (tell, full) = shared.pending.answer(frame.stream_id, frame.payload);
                if tell {
                    shared.acknowledge.notify_one();
                }
                if let Some(outbox) = full {
                    give_way(shared, &outbox).await;
                }
            }
            Inbound::Frame(frame) => match frame.acknowledged().map(u32::try_from) {
                Some(Ok(id)) => {
                    shared.pending.received(id);
                    shared.acknowledge.notify_one();
                }
                _ => warn!(kind = ?frame.kind, "the backend sent an unexpected frame"),
            },
            Inbound::Oversized(header) => {
                shared.pending.fail(header.stream_id, Status::oversized(header.length as usize));
            }
        }
    }
}

/// Reads nothing more from the backend while a front has enough to read, so that the backend waits in its turn. Where there
/// are other fronts this is short: they want their answers.
async fn give_way(shared: &Shared, outbox: &Outbox) {
    let mut room = std::pin::pin!(outbox.until_not_full());
    loop {
        if timeout(GIVE_WAY, &mut room).await.is_ok() || shared.open_fronts.load(Ordering::Relaxed) != 1 {
            return;
        }
    }
}

/// Waits for the next deadline of a pending call and fails what is over.
async fn watch_deadlines(shared: &Shared) {
    until(shared.pending.next_deadline()).await;
    shared.pending.expire(Instant::now());
}

/// Waits until a moment, for ever when there is none.
pub(super) async fn until(moment: Option<Instant>) {
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
