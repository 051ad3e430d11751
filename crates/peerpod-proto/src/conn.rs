//! The answering end of a connection, shared by the server and the relay: reads requests, checks their stream
//! ids, and writes responses in the order they become ready.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::envelope::Response;
use crate::frame::{Frame, FrameReader, FrameWriter, Inbound, Kind, MAX_PAYLOAD};
use crate::status::{Code, Status};

/// No further request is read while this much waits to be written.
const HIGH_WATER: usize = 4 << 20;

/// A client of a relay that lets this much pile up without reading is cut off. Only calls that were already under
/// way when the high-water mark was reached can lead here.
const LIMIT: usize = 64 << 20;

/// What a waiting frame takes beside its payload. Without it a client that reads nothing could have half a million empty
/// answers wait for it.
const FRAME_COST: usize = 128;

/// The most calls of one connection that may be open at the same time.
const MAX_CALLS: usize = 8192;

/// How many frames are written at once.
const BATCH: usize = 64;

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

/// Takes the requests of one connection.
#[async_trait::async_trait]
pub(crate) trait Requests: Send {
    /// Takes a request. Each must be answered once with [`Outbox::respond`] or [`Outbox::respond_raw`]. While
    /// this waits, nothing more is read from the connection.
    async fn request(&mut self, outbox: &Arc<Outbox>, stream_id: u32, envelope: Bytes);

    /// Waits for the calls under way, within bounds, before the connection is closed from this side.
    async fn finish(&mut self) {}
}

/// Where the responses of one connection go.
#[derive(Debug)]
pub(crate) struct Outbox {
    frames: mpsc::UnboundedSender<Out>,
    queued: AtomicUsize,
    calls: AtomicUsize,
    drained: Notify,
    gone: CancellationToken,
}

#[derive(Debug)]
enum Out {
    Frame(Frame),
    End,
}

impl Outbox {
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

    /// Answers a frame that is no call.
    fn refuse(&self, stream_id: u32, status: Status) {
        self.push(Frame::response(stream_id, encode(Err(status))));
    }

    fn push(&self, frame: Frame) {
        if self.gone.is_cancelled() {
            return;
        }
        let length = frame.payload.len() + FRAME_COST;
        if self.queued.fetch_add(length, Ordering::Relaxed) + length > LIMIT {
            debug!("a peer reads no responses: connection is closed");
            self.gone.cancel();
            return;
        }
        // The writer ends only when the connection does.
        let _ = self.frames.send(Out::Frame(frame));
    }

    /// Counts a new call, unless there are too many.
    fn begin_call(&self) -> bool {
        if self.calls.fetch_add(1, Ordering::Relaxed) < MAX_CALLS {
            return true;
        }
        self.calls.fetch_sub(1, Ordering::Relaxed);
        false
    }

    /// Waits until little enough is queued for further calls to be taken.
    async fn room(&self) {
        self.until_drained(|| self.queued.load(Ordering::Relaxed) <= HIGH_WATER).await;
    }

    /// Tries something again whenever something was written, or until the connection is gone.
    async fn until_drained(&self, attempt: impl Fn() -> bool) {
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

/// Serves one connection until the peer closes it, it fails, or `stop` is cancelled.
pub(crate) async fn run<S>(stream: S, rule: IdRule, stop: &CancellationToken, requests: &mut dyn Requests)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, write) = tokio::io::split(stream);
    let (frames, queue) = mpsc::unbounded_channel();
    let outbox = Arc::new(Outbox {
        frames,
        queued: AtomicUsize::new(0),
        calls: AtomicUsize::new(0),
        drained: Notify::new(),
        gone: CancellationToken::new(),
    });
    // However this function ends, also when it is dropped, the writer ends with it.
    let _gone = outbox.gone.clone().drop_guard();
    let writer = tokio::spawn(write_all(write, queue, Arc::clone(&outbox)));
    let ours = tokio::select! {
        () = read_all(read, rule, &outbox, requests) => false,
        () = outbox.gone.cancelled() => false,
        () = stop.cancelled() => true,
    };
    if ours {
        requests.finish().await;
        let _ = outbox.frames.send(Out::End);
        let _ = tokio::time::timeout(FLUSH_TIME, writer).await;
    }
}

async fn read_all(
    read: impl AsyncRead + Unpin,
    rule: IdRule,
    outbox: &Arc<Outbox>,
    requests: &mut dyn Requests,
) {
    let mut reader = FrameReader::new(read);
    let mut ids = Ids::new(rule);
    loop {
        outbox.room().await;
        let frame = match reader.read().await {
            Ok(Some(Inbound::Frame(frame))) => frame,
            Ok(Some(Inbound::Oversized(header))) => {
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
            Kind::Request if !ids.accept(id) => outbox.refuse(id, Status::reused_stream_id()),
            Kind::Request => {
                if outbox.begin_call() {
                    requests.request(outbox, id, frame.payload).await;
                } else {
                    let message = format!("more than {MAX_CALLS} calls of one connection are open");
                    outbox.refuse(id, Status::new(Code::ResourceExhausted, message));
                }
            }
            Kind::Data => outbox.refuse(id, Status::inactive_stream()),
            // Kinds from the future are for those who know them.
            Kind::Response | Kind::Other(_) => {
                debug!(kind = ?frame.kind, "a client sent an unexpected frame")
            }
        }
    }
}

async fn write_all(
    write: impl AsyncWrite + Unpin,
    mut queue: mpsc::UnboundedReceiver<Out>,
    outbox: Arc<Outbox>,
) {
    let mut writer = FrameWriter::new(write);
    let (mut taken, mut batch) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
    let work = async {
        loop {
            queue.recv_many(&mut taken, BATCH).await;
            let mut end = taken.is_empty();
            for out in taken.drain(..) {
                match out {
                    Out::Frame(frame) => batch.push(frame),
                    Out::End => end = true,
                }
            }
            writer.write(&batch).await?;
            let written = batch.drain(..).map(|frame| frame.payload.len() + FRAME_COST).sum();
            outbox.queued.fetch_sub(written, Ordering::Relaxed);
            outbox.drained.notify_waiters();
            if end {
                writer.shutdown().await?;
                return Ok::<(), crate::frame::FrameError>(());
            }
        }
    };
    tokio::select! {
        result = work => if let Err(error) = result {
            debug!(error = %crate::chain(&error), "responses cannot be written");
        },
        () = outbox.gone.cancelled() => {}
    }
    outbox.gone.cancel();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers everything with nothing.
    struct Empty;

    #[async_trait::async_trait]
    impl Requests for Empty {
        async fn request(&mut self, outbox: &Arc<Outbox>, stream_id: u32, _: Bytes) {
            outbox.respond(stream_id, Ok(Bytes::new()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_has_few_empty_answers_wait_for_it() {
        let (client, server) = tokio::io::duplex(1 << 10);
        let stop = CancellationToken::new();
        let mut empty = Empty;
        let serving = run(server, IdRule::Increasing, &stop, &mut empty);
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
