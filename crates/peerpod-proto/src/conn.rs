//! The answering end of a connection, shared by the server and the relay: reads requests, checks their stream
//! ids, and writes responses in the order they become ready.

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

/// A peer that lets this much pile up without reading is cut off. Only calls that were already under way when
/// the high-water mark was reached can lead here.
const LIMIT: usize = 64 << 20;

/// The most calls of one connection that may be open at the same time.
const MAX_CALLS: usize = 8192;

/// How many frames are written at once.
const BATCH: usize = 64;

/// How long a connection that is closed from this side may take to write what is ready.
const FLUSH_TIME: Duration = Duration::from_secs(1);

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
    /// Answers a call.
    pub(crate) fn respond(&self, stream_id: u32, result: Result<Bytes, Status>) {
        self.calls.fetch_sub(1, Ordering::Relaxed);
        self.send(stream_id, result);
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

    fn send(&self, stream_id: u32, result: Result<Bytes, Status>) {
        let mut payload = Response::new(result).to_bytes();
        if payload.len() > MAX_PAYLOAD {
            payload = Response::new(Err(Status::oversized(payload.len()))).to_bytes();
        }
        self.push(Frame::response(stream_id, payload));
    }

    fn push(&self, frame: Frame) {
        if self.gone.is_cancelled() {
            return;
        }
        let length = frame.payload.len();
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
        loop {
            let drained = self.drained.notified();
            if self.queued.load(Ordering::Relaxed) <= HIGH_WATER {
                return;
            }
            drained.await;
        }
    }
}

/// Serves one connection until the peer closes it, it fails, or `stop` is cancelled.
pub(crate) async fn run<S>(stream: S, stop: &CancellationToken, requests: &mut dyn Requests)
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
        () = read_all(read, &outbox, requests) => false,
        () = outbox.gone.cancelled() => false,
        () = stop.cancelled() => true,
    };
    if ours {
        requests.finish().await;
        let _ = outbox.frames.send(Out::End);
        let _ = tokio::time::timeout(FLUSH_TIME, writer).await;
    }
}

async fn read_all(read: impl AsyncRead + Unpin, outbox: &Arc<Outbox>, requests: &mut dyn Requests) {
    let mut reader = FrameReader::new(read);
    let mut last = 0;
    loop {
        outbox.room().await;
        let frame = match reader.read().await {
            Ok(Some(Inbound::Frame(frame))) => frame,
            Ok(Some(Inbound::Oversized(header))) => {
                outbox.send(header.stream_id, Err(Status::oversized(header.length as usize)));
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
            outbox.send(id, Err(Status::even_stream_id()));
            continue;
        }
        match frame.kind {
            Kind::Request if id <= last => outbox.send(id, Err(Status::reused_stream_id())),
            Kind::Request => {
                last = id;
                if outbox.begin_call() {
                    requests.request(outbox, id, frame.payload).await;
                } else {
                    let message = format!("more than {MAX_CALLS} calls of one connection are open");
                    outbox.send(id, Err(Status::new(Code::ResourceExhausted, message)));
                }
            }
            Kind::Data => outbox.send(id, Err(Status::inactive_stream())),
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
            let written = batch.drain(..).map(|frame| frame.payload.len()).sum();
            outbox.queued.fetch_sub(written, Ordering::Relaxed);
            outbox.drained.notify_one();
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
