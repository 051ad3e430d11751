//! The answering end of a connection, shared by the server and the relay: reads requests, checks their stream
//! ids, and writes responses in the order they become ready.

mod ended;
mod kept;
mod write;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

pub(crate) use self::ended::Ended;
use self::kept::Unacknowledged;
pub(crate) use self::kept::{ACK_ALONE, ACK_BYTES, ACK_FRAMES, Kept};
use self::write::write_all;
use crate::envelope::Response;
use crate::frame::{Frame, FrameError, FrameReader, Inbound, Kind, MAX_PAYLOAD};
use crate::status::{Code, Status};

/// No further request is read while this much waits to be written.
const HIGH_WATER: usize = 128 << 10;

/// A client of a relay that lets this much pile up without reading is cut off. The backend is not read while the
/// high-water mark is passed, unless others wait for its answers too; only then can calls under way lead here.
const LIMIT: usize = 64 << 20;

/// What a waiting frame takes beside its payload. Without it a client that reads nothing could have half a million empty
/// answers wait for it.
const FRAME_COST: usize = 128;

/// The most calls of one connection that may be open at the same time.
const MAX_CALLS: usize = 8192;

/// How many frames are written at once.
const BATCH: usize = 64;

/// A session writes no further answers while so many bytes of them are not acknowledged: what is kept for a peer that
/// reads nothing is bounded by this, and not by what the system's buffers take.
const WINDOW: usize = 320 << 10;

/// Acknowledgements stand behind requests, and those are not read while there is no room for them, which may be so until
/// answers are written. So a further batch goes out without them when nothing is read after this long.
const WINDOW_TIME: Duration = Duration::from_secs(1);

/// How long a connection that is closed from this side may take to write what is ready.
const FLUSH_TIME: Duration = Duration::from_secs(1);

/// Which stream ids of requests are accepted. They are odd in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IdRule {
    /// Each is greater than the one before.
    Increasing,
    /// None comes twice. The ttrpc client of Kata's Rust shim draws an id and queues the frame in two steps, so
    /// calls of two threads may arrive the wrong way round.
    Unique,
}

/// How far back an id may lie under [`IdRule::Unique`]. That client may hold a frame back for as long as others
/// fill its queue.
const LOOK_BACK: u32 = 1 << 16;

/// The stream ids a connection has used.
#[derive(Debug)]
struct Ids {
    rule: IdRule,
    /// The lowest id above all that came; wide enough for the one after the last.
    next: u64,
    skipped: BTreeSet<u32>,
}

impl Ids {
    fn new(rule: IdRule) -> Self {
        Self { rule, next: 1, skipped: BTreeSet::new() }
    }

    /// Takes note of an odd id; returns whether it is acceptable.
    fn accept(&mut self, id: u32) -> bool {
        if u64::from(id) < self.next {
            return self.skipped.remove(&id);
        }
        if self.rule == IdRule::Unique {
            let oldest = id.saturating_sub(LOOK_BACK);
            self.skipped = self.skipped.split_off(&oldest);
            let first = u32::try_from(self.next).map_or(id, |next| next.max(oldest | 1));
            self.skipped.extend((first..id).step_by(2));
        }
        self.next = u64::from(id) + 2;
        true
    }
}

/// Takes the requests of one connection. Its futures are no boxes: one for each message would be an allocation for each.
pub(crate) trait Requests: Send {
    /// Room for a request, given back when it is dropped.
    type Room: Send;

    /// A request that cannot be passed on at once.
    type Waiting: Send;

    /// Waits for room for a request of so many bytes, which is not read before.
    fn room(&mut self, bytes: usize) -> impl Future<Output = Self::Room> + Send;

    /// Takes a request. Each must be answered once with [`Outbox::respond`] or [`Outbox::respond_raw`]. One that was read
    /// together with others comes without room. Returns the request where it has to wait: nearly all need not, and a
    /// future for each would cost more than all else that is done for a small one.
    fn request(
        &mut self,
        outbox: &Arc<Outbox>,
        stream_id: u32,
        envelope: Bytes,
        room: Option<Self::Room>,
    ) -> Option<Self::Waiting>;

    /// Passes a request on that has to wait. Meanwhile nothing more is read from the connection.
    fn wait(&mut self, waiting: Self::Waiting) -> impl Future<Output = ()> + Send;

    /// How long requests are still taken when the end comes from this side.
    fn linger(&self) -> Duration {
        Duration::ZERO
    }

    /// Waits for the calls under way, within bounds, before the connection is closed from this side.
    fn finish(&mut self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// Where the responses of one connection go.
#[derive(Debug)]
pub(crate) struct Outbox {
    frames: mpsc::UnboundedSender<Out>,
    queued: AtomicUsize,
    calls: AtomicUsize,
    drained: Notify,
    gone: CancellationToken,
    /// Whether the connection is being read, and not left alone for lack of room.
    reading: AtomicBool,
    /// What outlives a connection, for a session.
    kept: Option<Kept>,
}

/// What waits to be written.
#[derive(Debug)]
pub(crate) enum Out {
    Frame(Frame),
    /// Tell how far requests were taken.
    Acknowledge,
    End,
}

impl Outbox {
    /// Makes an outbox and the queue of what it is given. With a limit it can outlive a connection, and keeps so many bytes
    /// of responses that a peer has not acknowledged.
    pub(crate) fn new(limit: Option<usize>) -> (Arc<Self>, mpsc::UnboundedReceiver<Out>) {
        let (frames, queue) = mpsc::unbounded_channel();
        let outbox = Arc::new(Self {
            frames,
            queued: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            drained: Notify::new(),
            gone: CancellationToken::new(),
            reading: AtomicBool::new(true),
            kept: limit.map(Kept::new),
        });
        (outbox, queue)
    }

    /// What outlives a connection.
    pub(crate) fn kept(&self) -> Option<&Kept> {
        self.kept.as_ref()
    }

    /// Answers a call at once.
    pub(crate) fn respond(&self, stream_id: u32, result: Result<Bytes, Status>) {
        self.respond_raw(stream_id, encode(result));
    }

    /// Answers a call as soon as little enough waits to be written.
    pub(crate) async fn respond_in_turn(&self, stream_id: u32, result: Result<Bytes, Status>) {
        let envelope = encode(result);
        let length = envelope.len() + FRAME_COST;
        self.until_drained(|| {
            let place = |queued| (queued <= HIGH_WATER).then_some(queued + length);
            self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, place).is_ok()
        })
        .await;
        self.calls.fetch_sub(1, Ordering::Relaxed);
        // The writer ends only when the connection does.
        let _ = self.frames.send(Out::Frame(Frame::response(stream_id, envelope)));
    }

    /// Answers a call with a response that is encoded already.
    pub(crate) fn respond_raw(&self, stream_id: u32, envelope: Bytes) {
        self.calls.fetch_sub(1, Ordering::Relaxed);
        self.push(Frame::response(stream_id, envelope));
    }

    /// Cancelled once the connection is gone.
    pub(crate) fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// Ends the connection, and the session where there is one.
    pub(crate) fn end(&self) {
        self.gone.cancel();
    }

    /// Answers a frame that is no call.
    fn refuse(&self, stream_id: u32, status: Status) {
        self.push(Frame::response(stream_id, encode(Err(status))));
    }

    fn push(&self, frame: Frame) {
        let length = frame.payload.len() + FRAME_COST;
        let queued = self.queued.fetch_add(length, Ordering::Relaxed) + length;
        if queued > LIMIT {
            debug!("a peer reads no responses: connection is closed");
            self.gone.cancel();
            return;
        }
        self.check_parked(queued);
        // The writer ends only when the connection does.
        let _ = self.frames.send(Out::Frame(frame));
    }

    /// Notes whether a connection carries this outbox at the moment.
    pub(crate) fn set_parked(&self, parked: bool) {
        if let Some(kept) = &self.kept {
            kept.set_parked(parked);
            self.drained.notify_waiters();
            self.check_parked(self.queued.load(Ordering::Relaxed));
        }
    }

    /// Gives a session without a connection up when too much waits for one.
    fn check_parked(&self, queued: usize) {
        let Some(kept) = self.kept.as_ref().filter(|kept| kept.is_parked()) else { return };
        let bytes = queued + kept.bytes();
        if bytes > kept.limit() && !self.gone.is_cancelled() {
            warn!(
                bytes,
                "too many bytes of answers wait for a node that is not connected: its session is given up"
            );
            self.gone.cancel();
        }
    }

    /// Counts a new call, unless there are too many.
    fn begin_call(&self) -> bool {
        if self.calls.fetch_add(1, Ordering::Relaxed) < MAX_CALLS {
            return true;
        }
        self.calls.fetch_sub(1, Ordering::Relaxed);
        false
    }

    /// Whether so much waits to be written that its source is to wait as well. Where nobody is connected nothing would
    /// ever make room, and other bounds hold.
    pub(crate) fn is_full(&self) -> bool {
        self.queued.load(Ordering::Relaxed) > HIGH_WATER && !self.kept.as_ref().is_some_and(Kept::is_parked)
    }

    /// Waits until this is full no longer.
    pub(crate) async fn until_not_full(&self) {
        self.until_drained(|| !self.is_full()).await;
    }

    /// Waits until the peer has acknowledged enough for more to be written. Where its acknowledgements are not read, this
    /// takes only so long.
    async fn window(&self) {
        let Some(kept) = self.kept.as_ref().filter(|kept| kept.bytes() > WINDOW) else { return };
        let mut acknowledged = std::pin::pin!(self.until_drained(|| kept.bytes() <= WINDOW));
        while tokio::time::timeout(WINDOW_TIME, &mut acknowledged).await.is_err() {
            if !self.reading.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// Waits until little enough is queued for further calls to be taken.
    async fn room(&self) {
        self.until_drained(|| self.queued.load(Ordering::Relaxed) <= HIGH_WATER).await;
    }

    /// Tries something again whenever something was written, or until the connection is gone.
    async fn until_drained(&self, attempt: impl Fn() -> bool) {
        // Before anything is registered: nearly always there is room.
        if attempt() {
            return;
        }
        loop {
            let mut drained = std::pin::pin!(self.drained.notified());
            // Registered before the attempt, so that what is written right after it counts.
            drained.as_mut().enable();
            if attempt() || self.gone.is_cancelled() {
                return;
            }
            tokio::select! {
                () = drained => {}
                () = self.gone.cancelled() => return,
            }
        }
    }
}

/// Encodes a response; one above the limit becomes an error.
fn encode(result: Result<Bytes, Status>) -> Bytes {
    let envelope = Response::new(result).to_bytes();
    if envelope.len() <= MAX_PAYLOAD {
        return envelope;
    }
    Response::new(Err(Status::oversized(envelope.len()))).to_bytes()
}

/// A connection whose first frame may have been read already.
pub(crate) struct Opened<R, W> {
    pub(crate) reader: FrameReader<R>,
    pub(crate) write: W,
    pub(crate) first: Option<Inbound>,
}

/// Who answers over a connection.
pub(crate) struct Line {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) queue: mpsc::UnboundedReceiver<Out>,
    /// Ends the connection, and is cancelled with it.
    pub(crate) link: CancellationToken,
    /// What is written before anything else.
    pub(crate) greeting: Vec<Frame>,
}

/// Serves one connection until the peer closes it, it fails, or `stop` is cancelled.
pub(crate) async fn run<R, W>(
    (read, write): (R, W),
    rule: IdRule,
    stop: &CancellationToken,
    requests: &mut impl Requests,
) where
    R: AsyncRead + Ended + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let opened = Opened { reader: FrameReader::new(read), write, first: None };
    run_opened(opened, rule, stop, requests).await;
}

/// Serves one connection as [`run`] does.
pub(crate) async fn run_opened<R, W>(
    opened: Opened<R, W>,
    rule: IdRule,
    stop: &CancellationToken,
    requests: &mut impl Requests,
) where
    R: AsyncRead + Ended + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let (outbox, queue) = Outbox::new(None);
    let link = outbox.gone.clone();
    carry(opened, Line { outbox, queue, link, greeting: Vec::new() }, rule, stop, requests).await;
}

/// Serves one connection and hands back what was not written, unless the end came from this side.
pub(crate) async fn carry<R, W>(
    opened: Opened<R, W>,
    line: Line,
    rule: IdRule,
    stop: &CancellationToken,
    requests: &mut impl Requests,
) -> Option<mpsc::UnboundedReceiver<Out>>
where
    R: AsyncRead + Ended + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let Line { outbox, queue, link, greeting } = line;
    // However this function ends, also when it is dropped, the writer ends with it.
    let _end = link.clone().drop_guard();
    let writing = write_all(opened.write, queue, Arc::clone(&outbox), link.clone(), greeting);
    let writer = tokio::spawn(writing);
    let linger = requests.linger();
    let ended = async {
        stop.cancelled().await;
        if !linger.is_zero() {
            tokio::time::sleep(linger).await;
        }
    };
    let ours = tokio::select! {
        () = read_all(opened.reader, opened.first, rule, &outbox, requests) => false,
        () = link.cancelled() => false,
        () = ended => true,
    };
    if ours {
        requests.finish().await;
        let _ = outbox.frames.send(Out::End);
        let _ = tokio::time::timeout(FLUSH_TIME, writer).await;
        return None;
    }
    link.cancel();
    writer.await.ok()
}

/// Reads the next frame: a request that is not there yet only once there is room for it, whatever it then brings. Returns
/// nothing where the connection ends, also while there is no room.
async fn next<Q: Requests>(
    reader: &mut FrameReader<impl AsyncRead + Ended + Unpin>,
    outbox: &Outbox,
    requests: &mut Q,
) -> Result<Option<(Inbound, Option<Q::Room>)>, FrameError> {
    if let Some(inbound) = reader.ready() {
        return Ok(Some((inbound, None)));
    }
    outbox.reading.store(true, Ordering::Relaxed);
    let header = reader.peek().await?;
    let mut room = None;
    if let Some(header) = header
        && header.kind == Kind::Request
        && header.length as usize <= MAX_PAYLOAD
        && !reader.holds(&header)
    {
        outbox.reading.store(false, Ordering::Relaxed);
        tokio::select! {
            biased;
            given = requests.room(header.length as usize) => room = Some(given),
            () = reader.get_ref().ended() => return Ok(None),
        }
        outbox.reading.store(true, Ordering::Relaxed);
    }
    let inbound = reader.read().await?;
    outbox.reading.store(false, Ordering::Relaxed);
    Ok(inbound.map(|inbound| (inbound, room)))
}

async fn read_all(
    mut reader: FrameReader<impl AsyncRead + Ended + Unpin>,
    mut first: Option<Inbound>,
    rule: IdRule,
    outbox: &Arc<Outbox>,
    requests: &mut impl Requests,
) {
    let mut ids = Ids::new(rule);
    let mut unacknowledged = Unacknowledged::default();
    loop {
        outbox.reading.store(false, Ordering::Relaxed);
        outbox.room().await;
        let inbound = match first.take() {
            Some(first) => Ok(Some((first, None))),
            None => next(&mut reader, outbox, requests).await,
        };
        let (frame, room) = match inbound {
            Ok(Some((Inbound::Frame(frame), room))) => (frame, room),
            Ok(Some((Inbound::Oversized(header), _))) => {
                outbox.refuse(header.stream_id, Status::oversized(header.length as usize));
                continue;
            }
            Ok(None) => return,
            Err(error) => {
                debug!(error = %crate::chain(&error), "connection of a client failed");
                return;
            }
        };
        let id = frame.stream_id;
        if id % 2 == 0 {
            outbox.refuse(id, Status::even_stream_id());
            continue;
        }
        match frame.kind {
            Kind::Request => {
                let length = frame.payload.len();
                let fresh = match &outbox.kept {
                    Some(kept) => id > kept.received(),
                    None => ids.accept(id),
                };
                if let Some(waiting) = take_request(outbox, requests, frame, fresh, room) {
                    let counted = Counted(outbox);
                    tokio::select! {
                        biased;
                        () = requests.wait(waiting) => std::mem::forget(counted),
                        // Its callers are gone: what it waits for is of no use to them.
                        () = reader.get_ref().ended() => return,
                    }
                }
                let Some(kept) = &outbox.kept else { continue };
                // Only now: what is dropped while it waits to be forwarded counts as never received.
                kept.take(id);
                unacknowledged.add(id, length);
                if unacknowledged.is_to_be_told(kept.answered()) {
                    unacknowledged = Unacknowledged::default();
                    let _ = outbox.frames.send(Out::Acknowledge);
                }
            }
            Kind::Data => outbox.refuse(id, Status::inactive_stream()),
            // Kinds from the future are for those who know them.
            Kind::Response | Kind::Other(_) => match (&outbox.kept, frame.acknowledged()) {
                (Some(kept), Some(count)) => {
                    if !kept.acknowledge(count) {
                        warn!(count, "the peer of a session acknowledges what it cannot have received");
                        return;
                    }
                    outbox.drained.notify_waiters();
                }
                _ => debug!(kind = ?frame.kind, "a client sent an unexpected frame"),
            },
        }
    }
}

/// Passes a request on, or refuses it. Returns it where it has to wait.
fn take_request<Q: Requests>(
    outbox: &Arc<Outbox>,
    requests: &mut Q,
    frame: Frame,
    fresh: bool,
    room: Option<Q::Room>,
) -> Option<Q::Waiting> {
    let id = frame.stream_id;
    if !fresh {
        outbox.refuse(id, Status::reused_stream_id());
        return None;
    }
    if !outbox.begin_call() {
        let message = format!("more than {MAX_CALLS} calls of one connection are open");
        outbox.refuse(id, Status::new(Code::ResourceExhausted, message));
        return None;
    }
    requests.request(outbox, id, frame.payload, room)
}

/// Takes a call back that is dropped before it was passed on.
struct Counted<'a>(&'a Outbox);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameWriter;

    /// Answers everything with nothing.
    struct Empty;

    impl Requests for Empty {
        type Room = ();
        type Waiting = ();

        async fn room(&mut self, _: usize) {}

        fn request(&mut self, outbox: &Arc<Outbox>, stream_id: u32, _: Bytes, _: Option<()>) -> Option<()> {
            outbox.respond(stream_id, Ok(Bytes::new()));
            None
        }

        async fn wait(&mut self, (): ()) {}
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_has_few_empty_answers_wait_for_it() {
        let (client, server) = tokio::io::duplex(1 << 10);
        let stop = CancellationToken::new();
        let mut empty = Empty;
        let serving = run(tokio::io::split(server), IdRule::Increasing, &stop, &mut empty);
        let (_answers, write) = tokio::io::split(client);
        let most = HIGH_WATER / 64;
        let mut sent = 0u32;
        let asking = async {
            let mut writer = FrameWriter::new(write);
            while (sent as usize) < most {
                let frame =
                    Frame { stream_id: 2 * sent + 1, kind: Kind::Request, flags: 0, payload: Bytes::new() };
                writer.write(&[frame]).await.unwrap();
                sent += 1;
            }
        };
        // The clock stands still until nothing can go on.
        tokio::select! {
            () = serving => panic!("the connection ended"),
            () = asking => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        assert!((1_000..most).contains(&(sent as usize)), "{sent} answers wait");
    }

    fn accepted(rule: IdRule, ids: &[u32]) -> Vec<bool> {
        let mut seen = Ids::new(rule);
        ids.iter().map(|id| seen.accept(*id)).collect()
    }

    #[test]
    fn ids_increase() {
        let seen = accepted(IdRule::Increasing, &[1, 3, 3, 1, 9, 5, u32::MAX, u32::MAX]);
        assert_eq!(seen, [true, true, false, false, true, false, true, false]);
    }

    #[test]
    fn unique_ids_may_arrive_the_wrong_way_round() {
        let seen = accepted(IdRule::Unique, &[3, 1, 1, 9, 7, 5, 7, 9, u32::MAX, u32::MAX - 2, u32::MAX]);
        assert_eq!(seen, [true, true, false, true, true, true, false, false, true, true, false]);
    }

    #[test]
    fn ids_from_long_ago_count_as_used() {
        let mut ids = Ids::new(IdRule::Unique);
        assert!(ids.accept(1_000_001));
        assert!(!ids.accept(3));
        assert!(ids.accept(999_999));
        assert!(ids.skipped.len() <= LOOK_BACK as usize);
    }
}
