//! The data path: calls of many front connections go to one backend connection and their answers come back.
//!
//! Messages pass as bytes. Only the names of service and method are read, and a request is decoded only when
//! the [`Interceptor`] wants it. Stream ids are given anew for the backend; everything else of a request stays
//! as it came, unknown fields, metadata and the timeout included. Methods that are not known here pass too.
//!
//! When the backend breaks, calls under way fail with the status of a closed connection, except those that only
//! wait for something to happen: they are kept and issued again after the reconnect. New calls wait a moment
//! for the reconnect. Front connections stay open all the time.

mod front;
mod link;
mod pending;

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::link::Link;
use self::pending::{Call, Pending, Reply};
use crate::conn::{self, IdRule};
use crate::envelope::{Request, Response};
use crate::frame::MAX_PAYLOAD;
use crate::server::deadline;
use crate::status::Status;

/// How many calls may wait to be written to the backend before fronts are read no further.
const QUEUE: usize = 32;

/// How long a relay may take to end.
const SHUTDOWN_TIME: Duration = Duration::from_secs(2);

/// A connection of any kind.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + ?Sized> Stream for T {}

/// A connection to the backend.
pub type BoxedStream = Box<dyn Stream>;

/// Connects to the backend.
#[async_trait::async_trait]
pub trait Dial: Send + Sync + 'static {
    /// Makes one attempt, bounded in time. It is dropped when the relay ends.
    ///
    /// # Errors
    ///
    /// Why there is no connection, and when to try again.
    async fn dial(&self) -> Result<BoxedStream, DialError>;

    /// Learns that an established connection broke, before it is dialled again.
    fn lost(&self) {}
}

/// Why an attempt to connect failed.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct DialError {
    /// When to try again; never, when another attempt would fail in the same way.
    pub retry: Option<Duration>,
    /// The reason.
    pub source: Box<dyn Error + Send + Sync>,
}

impl DialError {
    /// Another attempt may succeed after a pause.
    pub fn again(after: Duration, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { retry: Some(after), source: source.into() }
    }

    /// Another attempt would fail in the same way.
    pub fn permanent(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { retry: None, source: source.into() }
    }
}

/// Changes requests on their way, or answers them in place of the backend.
#[async_trait::async_trait]
pub trait Interceptor: Send + Sync + 'static {
    /// Whether requests of a method are to be handed to [`Interceptor::rewrite`]. It is asked for every
    /// request, so it must be cheap.
    fn wants(&self, service: &str, method: &str) -> bool;

    /// Takes the inner message of a request. It may take its time; other calls pass meanwhile.
    ///
    /// To keep what it does not know, a rewrite edits the bytes with [`crate::wire`].
    ///
    /// # Errors
    ///
    /// The status the caller is told; the backend does not see the request.
    async fn rewrite(
        &self,
        ctx: InterceptContext,
        service: &str,
        method: &str,
        payload: Bytes,
    ) -> Result<Rewrite, Status>;
}

/// What an interceptor knows of a request besides its payload.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct InterceptContext {
    /// When the caller's time is over.
    pub deadline: Option<Instant>,
    /// Cancelled when the caller disconnects or its time is over.
    pub cancel: CancellationToken,
}

/// What becomes of an intercepted request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rewrite {
    /// It goes on with this inner message. The same bytes leave the whole request as it came.
    Forward(Bytes),
    /// It is answered with this inner message, and the backend does not see it.
    Reply(Bytes),
}

/// Wants no request.
#[derive(Clone, Copy, Debug, Default)]
pub struct PassThrough;

#[async_trait::async_trait]
impl Interceptor for PassThrough {
    fn wants(&self, _service: &str, _method: &str) -> bool {
        false
    }

    async fn rewrite(
        &self,
        _ctx: InterceptContext,
        _service: &str,
        _method: &str,
        payload: Bytes,
    ) -> Result<Rewrite, Status> {
        Ok(Rewrite::Forward(payload))
    }
}

/// How a relay behaves.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RelayOptions {
    /// How long a new call waits for the first connection to the backend.
    pub first_connect_wait: Duration,
    /// How long a new call waits for a reconnect.
    pub reconnect_wait: Duration,
    /// Keeps the waiting calls of a front connection that broke, with what they bring, for a front that asks
    /// the same again. So no output and no exit status is lost when the front is a relay that reconnects. A front
    /// that asks the same as another one takes its place, since the other may not have noticed its end yet.
    pub adopt_waiting_calls: bool,
}

impl Default for RelayOptions {
    fn default() -> Self {
        Self {
            first_connect_wait: Duration::from_secs(150),
            reconnect_wait: Duration::from_secs(5),
            adopt_waiting_calls: false,
        }
    }
}

impl RelayOptions {
    /// Sets how long a new call waits for the first connection; 150 s else.
    #[must_use]
    pub fn with_first_connect_wait(mut self, wait: Duration) -> Self {
        self.first_connect_wait = wait;
        self
    }

    /// Sets how long a new call waits for a reconnect; 5 s else.
    #[must_use]
    pub fn with_reconnect_wait(mut self, wait: Duration) -> Self {
        self.reconnect_wait = wait;
        self
    }

    /// Sets whether the waiting calls of a broken front are kept for its successor; they are not else.
    #[must_use]
    pub fn with_adopt_waiting_calls(mut self, adopt: bool) -> Self {
        self.adopt_waiting_calls = adopt;
        self
    }
}

/// The state of the connection to the backend.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LinkState {
    /// There is none at the moment.
    Connecting {
        /// Attempts since there was none.
        attempts: u64,
        /// Why the last attempt failed.
        error: Option<String>,
        /// Whether there was a connection before.
        reconnect: bool,
    },
    /// The backend is connected.
    Connected {
        /// Since when.
        since: Instant,
        /// Attempts it took.
        attempts: u64,
        /// Connections made so far, this one included.
        connections: u64,
    },
    /// There is none and will be none.
    Failed {
        /// Attempts it took to know.
        attempts: u64,
        /// Why.
        error: String,
    },
    /// The relay was shut down.
    Closed,
}

/// Forwards the calls of front connections to a backend. Clones are handles of the same relay, which ends when
/// the last one is dropped.
#[derive(Clone)]
pub struct Relay {
    shared: Arc<Shared>,
    calls: mpsc::Sender<Call>,
    state: watch::Receiver<LinkState>,
    tasks: TaskTracker,
    _stop: Arc<DropGuard>,
}

/// What fronts and the link to the backend share.
struct Shared {
    interceptor: Arc<dyn Interceptor>,
    pending: Pending,
    /// Ends the link, which then fails all calls and cancels `fronts`.
    stop: CancellationToken,
    fronts: CancellationToken,
    open_fronts: AtomicUsize,
}

impl Relay {
    /// Starts a relay, which begins to dial at once.
    ///
    /// Must be called within a Tokio runtime.
    pub fn new(dial: Arc<dyn Dial>, interceptor: Arc<dyn Interceptor>, options: RelayOptions) -> Self {
        let (calls, queue) = mpsc::channel(QUEUE);
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            interceptor,
            pending: Pending::new(options.adopt_waiting_calls),
            stop: stop.clone(),
            fronts: CancellationToken::new(),
            open_fronts: AtomicUsize::new(0),
        });
        let connecting = LinkState::Connecting { attempts: 0, error: None, reconnect: false };
        let (publish, state) = watch::channel(connecting);
        let tasks = TaskTracker::new();
        let link = Link::new(dial, Arc::clone(&shared), queue, publish, options);
        tasks.spawn(link.run());
        Self { shared, calls, state, tasks, _stop: Arc::new(stop.drop_guard()) }
    }

    /// Serves a front connection until it is closed or the relay ends. A front that sends nothing is fine.
    pub async fn serve<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let mut front = front::Front::new(Arc::clone(&self.shared), self.calls.clone());
        let stop = self.shared.fronts.clone();
        self.tasks.track_future(conn::run(stream, IdRule::Unique, &stop, &mut front)).await;
    }

    /// Makes a call of our own over the same connection to the backend.
    ///
    /// # Errors
    ///
    /// The status of the response, or that of a closed connection.
    pub async fn request(
        &self,
        service: &str,
        method: &str,
        payload: Bytes,
        timeout: Option<Duration>,
    ) -> Result<Bytes, Status> {
        let envelope = Request::new(service, method, payload, timeout).to_bytes();
        if envelope.len() > MAX_PAYLOAD {
            return Err(Status::oversized(envelope.len()));
        }
        let (answer, answered) = oneshot::channel();
        let call =
            Call { envelope, waits: false, deadline: timeout.and_then(deadline), reply: Reply::Own(answer) };
        self.calls.send(call).await.map_err(|_| Status::closed())?;
        let response = answered.await.map_err(|_| Status::closed())?;
        prost::Message::decode(response).map_err(Status::bad_payload).and_then(Response::into_result)
    }

    /// The state of the connection to the backend, to be watched.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// How many front connections are open.
    pub fn fronts(&self) -> usize {
        self.shared.open_fronts.load(Ordering::Relaxed)
    }

    /// Tells the relay to end, without waiting for it; see [`Relay::shutdown`].
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }

    /// Ends the relay: the backend first, then the fronts, whose calls fail with the status of a closed
    /// connection. Returns when all is closed, after two seconds at most.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(SHUTDOWN_TIME, self.tasks.wait()).await.is_err() {
            tracing::warn!(tasks = self.tasks.len(), "a relay ends with tasks that do not");
        }
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("state", &*self.state.borrow()).finish_non_exhaustive()
    }
}
