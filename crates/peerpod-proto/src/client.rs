//! A ttrpc client: many calls at the same time over one connection.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use crate::envelope::{KeyValue, Request, Response};
use crate::frame::{Frame, FrameReader, FrameWriter, Inbound, Kind, MAX_PAYLOAD};
use crate::status::Status;

/// How many requests may wait to be written.
const QUEUE: usize = 64;

/// A connection to a server. Clones share it; it is closed when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Frame>,
    _close: Arc<DropGuard>,
}

#[derive(Debug)]
struct Shared {
    calls: Mutex<Calls>,
    closed: CancellationToken,
}

#[derive(Debug)]
struct Calls {
    next_id: u32,
    waiting: HashMap<u32, oneshot::Sender<Result<Bytes, Status>>>,
}

impl Client {
    /// Speaks to the server at the other end of a stream.
    ///
    /// Must be called within a Tokio runtime, which then reads and writes the stream.
    pub fn connect<S>(stream: S) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(stream);
        let (queue, frames) = mpsc::channel(QUEUE);
        let closed = CancellationToken::new();
        let shared = Arc::new(Shared {
            calls: Mutex::new(Calls { next_id: 1, waiting: HashMap::new() }),
            closed: closed.clone(),
        });
        let work = Arc::clone(&shared);
        tokio::spawn(async move {
            tokio::select! {
                () = read_all(read, &work) => {}
                () = write_all(write, frames) => {}
                () = work.closed.cancelled() => {}
            }
            work.closed.cancel();
            // Dropping their senders tells all callers.
            work.calls().waiting.clear();
        });
        Self { shared, queue, _close: Arc::new(closed.drop_guard()) }
    }

    /// Speaks to the server at a unix socket.
    ///
    /// # Errors
    ///
    /// When the socket cannot be connected to.
    pub async fn connect_unix(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self::connect(UnixStream::connect(path).await?))
    }

    /// Makes a call and returns the encoded response.
    ///
    /// The server is told the timeout, and the call also ends here when it is over. Dropping the returned
    /// future forgets the call.
    ///
    /// # Errors
    ///
    /// The status of the response; [`Status::closed`] when the connection is gone.
    pub async fn request(
        &self,
        service: &str,
        method: &str,
        payload: Bytes,
        timeout: Option<Duration>,
        metadata: Vec<KeyValue>,
    ) -> Result<Bytes, Status> {
        let mut request = Request::new(service, method, payload, timeout);
        request.metadata = metadata;
        let envelope = request.to_bytes();
        if envelope.len() > MAX_PAYLOAD {
            return Err(Status::oversized(envelope.len()));
        }
        let call = self.exchange(envelope);
        match timeout {
            None => call.await,
            Some(timeout) => {
                tokio::time::timeout(timeout, call).await.unwrap_or_else(|_| Err(Status::deadline_exceeded()))
            }
        }
    }

    /// Makes a call with messages.
    ///
    /// # Errors
    ///
    /// As for [`Client::request`], and [`Status::bad_payload`] when the response is another message.
    pub async fn call<Req, Resp>(
        &self,
        service: &str,
        method: &str,
        request: &Req,
        timeout: Option<Duration>,
    ) -> Result<Resp, Status>
    where
        Req: Message,
        Resp: Message + Default,
    {
        let payload = request.encode_to_vec().into();
        let response = self.request(service, method, payload, timeout, Vec::new()).await?;
        Resp::decode(response).map_err(Status::bad_payload)
    }

    /// Waits until the connection is gone.
    pub async fn closed(&self) {
        self.shared.closed.cancelled().await;
    }

    /// Returns a token that is cancelled when the connection is gone, and that does not keep it open.
    pub fn on_close(&self) -> CancellationToken {
        self.shared.closed.child_token()
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.is_cancelled()
    }

    async fn exchange(&self, envelope: Bytes) -> Result<Bytes, Status> {
        let place = self.queue.reserve().await.map_err(|_| Status::closed())?;
        let (answer, answered) = oneshot::channel();
        let _forget = {
            let mut calls = self.shared.calls();
            if self.shared.closed.is_cancelled() {
                return Err(Status::closed());
            }
            let id = calls.next_id;
            let Some(next) = id.checked_add(2) else {
                // All stream ids are used; only a new connection has more.
                self.shared.closed.cancel();
                return Err(Status::closed());
            };
            calls.next_id = next;
            calls.waiting.insert(id, answer);
            // Queued under the same lock, so that ids only grow on the wire.
            place.send(Frame::request(id, envelope));
            Forget { shared: &self.shared, id }
        };
        answered.await.unwrap_or_else(|_| Err(Status::closed()))
    }
}

impl Shared {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes a call whose future ended, answered or not.
struct Forget<'a> {
    shared: &'a Shared,
    id: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.calls().waiting.remove(&self.id);
    }
}

async fn read_all(read: impl AsyncRead + Unpin, shared: &Shared) {
    let mut reader = FrameReader::new(read);
    loop {
        let (stream_id, result) = match reader.read().await {
            Ok(Some(Inbound::Frame(frame))) if frame.kind == Kind::Response => {
                let response = Response::decode(frame.payload).map_err(Status::bad_payload);
                (frame.stream_id, response.and_then(Response::into_result))
            }
            Ok(Some(Inbound::Frame(frame))) => {
                debug!(kind = ?frame.kind, "a server sent an unexpected frame");
                continue;
            }
            Ok(Some(Inbound::Oversized(header))) => {
                (header.stream_id, Err(Status::oversized(header.length as usize)))
            }
            Ok(None) => return,
            Err(error) => {
                debug!(error = %crate::chain(&error), "connection to a server failed");
                return;
            }
        };
        let answer = shared.calls().waiting.remove(&stream_id);
        if let Some(answer) = answer {
            // The caller may have gone in this moment.
            let _ = answer.send(result);
        }
    }
}

async fn write_all(write: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Frame>) {
    let mut writer = FrameWriter::new(write);
    let mut batch = Vec::with_capacity(QUEUE);
    loop {
        frames.recv_many(&mut batch, QUEUE).await;
        if batch.is_empty() {
            return;
        }
        if let Err(error) = writer.write(&batch).await {
            debug!(error = %crate::chain(&error), "requests cannot be written");
            return;
        }
        batch.clear();
    }
}
