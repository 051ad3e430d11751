//! A ttrpc server: answers calls on any stream, or on the connections of a unix socket.
//!
//! Calls of one connection run side by side and are answered as they finish. A handler is not dropped when its
//! caller disconnects or runs out of time; it sees its token cancelled and decides itself what to undo. A panic
//! in a handler fails its own call only.

use std::any::Any;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use crate::conn::{self, IdRule, Outbox, Requests};
use crate::envelope::{KeyValue, Request};
use crate::status::Status;

/// How long calls under way may take when the server is stopped.
const GRACE: Duration = Duration::from_secs(5);

/// How long requests are still taken when the server is stopped. A client that was connected before and asks after it
/// cannot know better: what it sent would be lost, and it could not tell whether it was done.
const LINGER: Duration = Duration::from_millis(250);

/// How long to wait before connections are accepted again after a failure, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a server offers.
#[async_trait::async_trait]
pub trait Service: Send + Sync + 'static {
    /// Answers a call with the encoded response.
    ///
    /// `ctx.cancel` is cancelled when the caller disconnects or its time is over; what this returns afterwards
    /// reaches nobody.
    ///
    /// # Errors
    ///
    /// The status the caller is told; [`Status::unknown_service`] and [`Status::unknown_method`] for names that
    /// are not offered.
    async fn call(
        &self,
        ctx: CallContext,
        service: &str,
        method: &str,
        payload: Bytes,
    ) -> Result<Bytes, Status>;

    /// Learns that a client connected.
    fn connected(&self, _connection: &Connection) {}

    /// Learns that a client's connection is gone. Its calls may still be running.
    fn disconnected(&self, _connection: &Connection) {}
}

/// Who is at the other end of a unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PeerCredentials {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id, where the system tells it.
    pub pid: Option<i32>,
}

impl From<tokio::net::unix::UCred> for PeerCredentials {
    fn from(credentials: tokio::net::unix::UCred) -> Self {
        Self { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() }
    }
}

/// A connection of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Connection {
    /// Number of the connection, different for each one of a process.
    pub id: u64,
    /// Who is at the other end, for a unix socket.
    pub peer: Option<PeerCredentials>,
}

/// What a handler knows of a call besides its payload.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CallContext {
    /// When the caller's time is over.
    pub deadline: Option<Instant>,
    /// Metadata of the call.
    pub metadata: Vec<KeyValue>,
    /// Cancelled when the caller disconnects or its time is over.
    pub cancel: CancellationToken,
    /// The connection the call came on.
    pub connection: Connection,
}

/// Reads the payload of a call.
///
/// # Errors
///
/// [`Status::bad_payload`] when the payload is no such message.
pub fn decode<M: Message + Default>(payload: Bytes) -> Result<M, Status> {
    M::decode(payload).map_err(Status::bad_payload)
}

/// Writes the answer of a call.
pub fn encode<M: Message>(message: &M) -> Bytes {
    message.encode_to_vec().into()
}

/// Serves a [`Service`]. Clones serve the same one.
#[derive(Clone)]
pub struct Server {
    service: Arc<dyn Service>,
    grace: Duration,
    linger: Duration,
    allowed_uids: Option<Arc<[u32]>>,
}

impl Server {
    /// Offers a service to everyone who can connect.
    pub fn new(service: Arc<dyn Service>) -> Self {
        Self { service, grace: GRACE, linger: LINGER, allowed_uids: None }
    }

    /// Sets how long calls under way may take when the server is stopped; 5 s else.
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Sets how long requests of clients that stay connected are still taken when the server is stopped; 250 ms else.
    #[must_use]
    pub fn with_linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// Accepts only clients of these users on unix sockets, by what the kernel says of them.
    #[must_use]
    pub fn with_allowed_uids(mut self, uids: impl IntoIterator<Item = u32>) -> Self {
        self.allowed_uids = Some(uids.into_iter().collect());
        self
    }

    /// Serves the clients of a unix socket until `stop` is cancelled: who is connected then, or waits to be, has
    /// [`Server::with_linger`] to ask. Then waits for the calls under way, at most as long as [`Server::with_grace`]
    /// says. The socket file is left to the caller.
    pub async fn serve_unix(&self, listener: UnixListener, stop: CancellationToken) {
        let connections = TaskTracker::new();
        let serve = |stream: UnixStream| match self.admit(stream.peer_cred()) {
            Ok(peer) => {
                let (server, stop) = (self.clone(), stop.clone());
                connections.spawn(async move { server.serve_connection(stream, Some(peer), &stop).await });
            }
            Err(reason) => warn!(reason, "a client of the unix socket is refused"),
        };
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, _)) => serve(stream),
                Err(error) => {
                    warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        if let Err(error) = waiting(listener).map(|streams| streams.into_iter().for_each(serve)) {
            warn!(%error, "who waits for this server at its end is not served");
        }
        connections.close();
        connections.wait().await;
    }

    /// Serves one connection until the client closes it or `stop` is cancelled.
    pub async fn serve_connection<S>(
        &self,
        stream: S,
        peer: Option<PeerCredentials>,
        stop: &CancellationToken,
    ) where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let connection = Connection { id: NEXT.fetch_add(1, Ordering::Relaxed), peer };
        let cancel = CancellationToken::new();
        let _cancel_calls = cancel.clone().drop_guard();
        let _disconnected = Disconnected { service: Arc::clone(&self.service), connection };
        self.service.connected(&connection);
        let mut calls = Calls {
            service: Arc::clone(&self.service),
            connection,
            cancel,
            running: TaskTracker::new(),
            grace: self.grace,
            linger: self.linger,
        };
        conn::run(tokio::io::split(stream), IdRule::Increasing, stop, &mut calls).await;
    }

    fn admit(&self, credentials: io::Result<tokio::net::unix::UCred>) -> Result<PeerCredentials, String> {
        let peer = PeerCredentials::from(credentials.map_err(|error| error.to_string())?);
        match &self.allowed_uids {
            Some(allowed) if !allowed.contains(&peer.uid) => {
                Err(format!("user {} is not allowed (allowed: {allowed:?})", peer.uid))
            }
            _ => Ok(peer),
        }
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("grace", &self.grace)
            .field("linger", &self.linger)
            .field("allowed_uids", &self.allowed_uids)
            .finish_non_exhaustive()
    }
}

/// Takes the connections that wait in the queue of a socket, and closes it.
fn waiting(listener: UnixListener) -> io::Result<Vec<UnixStream>> {
    // Asked directly: the runtime may not know yet that somebody came.
    let listener = listener.into_std()?;
    let mut streams = Vec::new();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                streams.push(UnixStream::from_std(stream)?);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(streams),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Those that came before it are served.
            Err(error) => {
                warn!(%error, "a connection cannot be accepted");
                return Ok(streams);
            }
        }
    }
}

/// Tells the service of the end of a connection, also when serving it is dropped.
struct Disconnected {
    service: Arc<dyn Service>,
    connection: Connection,
}

impl Drop for Disconnected {
    fn drop(&mut self) {
        self.service.disconnected(&self.connection);
    }
}

/// The calls of one connection.
struct Calls {
    service: Arc<dyn Service>,
    connection: Connection,
    cancel: CancellationToken,
    running: TaskTracker,
    grace: Duration,
    linger: Duration,
}

impl Requests for Calls {
    type Room = ();
    // Each has a task of its own.
    type Waiting = Infallible;

    async fn room(&mut self, _: usize) {}

    fn request(
        &mut self,
        outbox: &Arc<Outbox>,
        stream_id: u32,
        envelope: Bytes,
        _: Option<()>,
    ) -> Option<Infallible> {
        let request = match Request::decode(envelope) {
            Ok(request) => request,
            Err(error) => {
                outbox.respond(stream_id, Err(Status::bad_envelope(error)));
                return None;
            }
        };
        let ctx = CallContext {
            deadline: request.timeout().and_then(deadline),
            metadata: request.metadata,
            cancel: self.cancel.child_token(),
            connection: self.connection,
        };
        let service = Arc::clone(&self.service);
        let (deadline, cancel) = (ctx.deadline, ctx.cancel.clone());
        let outbox = Arc::clone(outbox);
        self.running.spawn(async move {
            let call = service.call(ctx, &request.service, &request.method, request.payload);
            let call = caught(call, "handler");
            let mut call = std::pin::pin!(call);
            let result = match deadline {
                None => call.await,
                Some(deadline) => match tokio::time::timeout_at(deadline, &mut call).await {
                    Ok(result) => result,
                    Err(_) => {
                        outbox.respond(stream_id, Err(Status::deadline_exceeded()));
                        cancel.cancel();
                        // The handler ends its work in its own way.
                        let _ = call.await;
                        return;
                    }
                },
            };
            outbox.respond_in_turn(stream_id, result).await;
        });
        None
    }

    async fn wait(&mut self, never: Infallible) {
        match never {}
    }

    fn linger(&self) -> Duration {
        self.linger
    }

    async fn finish(&mut self) {
        self.running.close();
        if tokio::time::timeout(self.grace, self.running.wait()).await.is_err() {
            warn!(calls = self.running.len(), "calls are cut off at the end of the server");
        }
    }
}

/// When a call's time is over. A limit of years is none, which spares timers that cannot count so far.
pub(crate) fn deadline(timeout: Duration) -> Option<Instant> {
    const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
    (timeout <= LONGEST).then(|| Instant::now() + timeout)
}

/// Turns a panic into a status.
pub(crate) async fn caught<T>(
    call: impl Future<Output = Result<T, Status>>,
    what: &'static str,
) -> Result<T, Status> {
    AssertUnwindSafe(call).catch_unwind().await.unwrap_or_else(|panic| {
        error!(panic = panic_text(panic.as_ref()), "a {what} panicked");
        Err(Status::internal(format!("the {what} panicked; the log of this program has the details")))
    })
}

/// The message of a panic, where it has one.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
