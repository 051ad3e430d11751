//! The data path: calls of many front connections go to one backend connection and their answers come back.
//!
//! Messages pass as bytes. Only the names of service and method are read, and a request is decoded only when
//! the [`Interceptor`] wants it. Stream ids are given anew for the backend; everything else of a request stays
//! as it came, unknown fields, metadata and the timeout included. Methods that are not known here pass too.
//!
//! When the backend breaks, calls under way fail with the status of a closed connection, except those that only
//! wait for something to happen: they are kept and issued again after the reconnect. New calls wait a moment
//! for the reconnect. Front connections stay open all the time.

mod flow;
mod front;
mod link;
mod pending;
mod session;
mod waiting;

use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::flow::Flow;
use self::front::{Front, serve_peer};
use self::link::{Link, Published};
use self::pending::{Call, Pending, Reply};
pub use self::session::SESSION_ID_LEN;
use self::session::Sessions;
use crate::conn::{self, Ended, IdRule};
use crate::envelope::{Request, Response};
use crate::frame::MAX_PAYLOAD;
use crate::server::deadline;
use crate::status::Status;

/// How many calls may wait to be written to the backend before fronts are read no further.
const QUEUE: usize = 32;

/// How long a relay may take to end.
const SHUTDOWN_TIME: Duration = Duration::from_secs(2);

/// How long a session is kept without a connection, unless said otherwise. A shim whose agent does not answer ends itself
/// after some 120 s, and there is nothing to keep calls for then.
pub const SESSION_GRACE: Duration = Duration::from_secs(120);

/// How many bytes of answers a session keeps, unless said otherwise.
pub const SESSION_BYTES: usize = 32 << 20;

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

    /// What the other end is called in a status.
    fn peer(&self) -> String {
        "the backend".to_owned()
    }
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
    /// Greets the backend with this, learns its level, and keeps a session with it where it can.
    pub introduction: Option<Introduction>,
    /// Keeps sessions with fronts that are served by [`Relay::serve_peer`] and ask for one.
    pub sessions: Option<SessionOptions>,
}

/// How a relay introduces itself to the backend.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Introduction {
    /// Name of the program.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// Makes the id of a session, which nobody can guess. Without one there is no session.
    pub session_id: fn() -> Option<[u8; SESSION_ID_LEN]>,
}

impl Introduction {
    /// Introduces a program.
    pub fn new(
        name: impl Into<String>,
        version: impl Into<String>,
        session_id: fn() -> Option<[u8; SESSION_ID_LEN]>,
    ) -> Self {
        Self { name: name.into(), version: version.into(), session_id }
    }
}

/// What is kept of a front that lost its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionOptions {
    /// For how long.
    pub grace: Duration,
    /// The most bytes of answers.
    pub max_bytes: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { grace: SESSION_GRACE, max_bytes: SESSION_BYTES }
    }
}

impl SessionOptions {
    /// Sets for how long a session is kept without a connection; [`SESSION_GRACE`] else.
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Sets how many bytes of answers are kept; [`SESSION_BYTES`] else.
    #[must_use]
    pub fn with_max_bytes(mut self, max_bytes: usize) -> Self {
        self.max_bytes = max_bytes;
        self
    }
}

impl Default for RelayOptions {
    fn default() -> Self {
        Self {
            first_connect_wait: Duration::from_secs(150),
            reconnect_wait: Duration::from_secs(5),
            adopt_waiting_calls: false,
            introduction: None,
            sessions: None,
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

    /// Sets how the relay introduces itself to the backend; it does not else.
    #[must_use]
    pub fn with_introduction(mut self, introduction: Introduction) -> Self {
        self.introduction = Some(introduction);
        self
    }

    /// Sets what is kept of a front that lost its connection; nothing else.
    #[must_use]
    pub fn with_sessions(mut self, sessions: SessionOptions) -> Self {
        self.sessions = Some(sessions);
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
        /// Whether the calls of the connection before go on over this one.
        resumed: bool,
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
    level: watch::Receiver<Option<u32>>,
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
    sessions: Option<Arc<Sessions>>,
    /// Bounds what is on its way to the backend, and what waits for the interceptor.
    flow: Flow,
    intercepted: Flow,
    /// Told when the backend is to learn what was received.
    acknowledge: Notify,
    tasks: TaskTracker,
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
            sessions: options.sessions.map(|options| Arc::new(Sessions::new(options))),
            flow: Flow::default(),
            intercepted: Flow::of_interceptor(),
            acknowledge: Notify::new(),
            tasks: TaskTracker::new(),
        });
        let connecting = LinkState::Connecting { attempts: 0, error: None, reconnect: false };
        let (publish, state) = watch::channel(connecting);
        let (learned, level) = watch::channel(None);
        let link = Link::new(
            dial,
            Arc::clone(&shared),
            queue,
            Published { state: publish, level: learned },
            options,
        );
        shared.tasks.spawn(link.run());
        Self { shared, calls, state, level, _stop: Arc::new(stop.drop_guard()) }
    }

    /// Serves a front connection until it is closed or the relay ends. A front that sends nothing is fine.
    pub async fn serve<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        self.serve_boxed(boxed(stream)).await;
    }

    async fn serve_boxed(&self, stream: BoxedStream) {
        apart(self.serve_halves(tokio::io::split(stream))).await;
    }

    /// Serves a front connection as [`Relay::serve`] does, and notices its end also while it is not read because too much
    /// is on its way to the backend.
    pub async fn serve_unix(&self, stream: UnixStream) {
        apart(self.serve_halves(stream.into_split())).await;
    }

    async fn serve_halves<R, W>(&self, halves: (R, W))
    where
        R: AsyncRead + Ended + Unpin + Send,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let mut front = Front::new(Arc::clone(&self.shared), self.calls.clone(), false);
        let stop = self.shared.fronts.clone();
        self.shared.tasks.track_future(conn::run(halves, IdRule::Unique, &stop, &mut front)).await;
    }

    /// Serves a front connection as [`Relay::serve`] does. Where it asks for a session, its calls outlive it: they go on
    /// over the next connection that shows the session's id and has the same owner.
    ///
    /// The owner is what the peer is known by, its certificate for one; nothing where everybody is believed.
    pub async fn serve_peer<S>(&self, stream: S, owner: Option<Bytes>)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        self.serve_boxed_peer(boxed(stream), owner).await;
    }

    async fn serve_boxed_peer(&self, stream: BoxedStream, owner: Option<Bytes>) {
        match &self.shared.sessions {
            None => self.serve_boxed(stream).await,
            Some(sessions) => {
                let serving = serve_peer(Arc::clone(sessions), self, stream, owner);
                apart(self.shared.tasks.track_future(serving)).await;
            }
        }
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
        let call = Call {
            envelope,
            waits: false,
            deadline: timeout.and_then(deadline),
            reply: Reply::Own(answer),
            place: None,
        };
        self.calls.send(call).await.map_err(|_| Status::closed())?;
        let response = answered.await.map_err(|_| Status::closed())?;
        prost::Message::decode(response).map_err(Status::bad_payload).and_then(Response::into_result)
    }

    /// The state of the connection to the backend, to be watched.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// The level agreed with the backend, to be watched: nothing before it has answered, and without an introduction.
    pub fn peer_level(&self) -> watch::Receiver<Option<u32>> {
        self.level.clone()
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
        let tasks = &self.shared.tasks;
        tasks.close();
        if tokio::time::timeout(SHUTDOWN_TIME, tasks.wait()).await.is_err() {
            tracing::warn!(tasks = tasks.len(), "a relay ends with tasks that do not");
        }
    }
}

/// One kind of stream for all, so that the code for every message is part of this crate.
fn boxed<S>(stream: S) -> BoxedStream
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    Box::new(Box::pin(stream))
}

/// Keeps the code of a future out of that of its caller: programs are compiled for size, and this crate for speed.
fn apart<F: Future>(future: F) -> impl Future<Output = F::Output> {
    #[inline(never)]
    fn poll<F: Future>(future: Pin<&mut F>, context: &mut Context<'_>) -> Poll<F::Output> {
        future.poll(context)
    }
    // An async function would keep room for it twice.
    let mut future = Box::pin(future);
    poll_fn(move |context| poll(future.as_mut(), context))
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("state", &*self.state.borrow()).finish_non_exhaustive()
    }
}
