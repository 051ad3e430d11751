//! The proxy: takes calls, asks the rules, and lets the behaviour answer.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::behaviour::{Behaviour, Forward};
use crate::journal::{self, Entry, Journal};
use crate::message::{Answer, Request};
use crate::rule::{Act, Moment, Rule, Rules, Step};
use crate::upstream::Upstream;

/// How a proxy is made.
pub struct Options {
    listen: SocketAddr,
    behaviour: Arc<dyn Behaviour>,
    seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 0).into(), behaviour: Arc::new(Forward), seed: 0 }
    }
}

impl Options {
    /// Listens there in place of a free port of loopback.
    #[must_use]
    pub fn with_listen(mut self, listen: SocketAddr) -> Self {
        self.listen = listen;
        self
    }

    /// Lets this answer in place of passing calls on as they are.
    #[must_use]
    pub fn with_behaviour(mut self, behaviour: Arc<dyn Behaviour>) -> Self {
        self.behaviour = behaviour;
        self
    }

    /// What chance begins with.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}

/// Passes HTTP calls on to a server and does to some of them what rules say, before or after the server did them.
///
/// It ends when it is dropped; connections are reset then.
pub struct HttpFaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _accept: AbortOnDropHandle<()>,
}

pub(crate) struct Shared {
    behaviour: Arc<dyn Behaviour>,
    upstream: Upstream,
    rules: Mutex<Rules>,
    changed: Notify,
    journal: Mutex<Journal>,
    stop: CancellationToken,
}

/// What the client gets.
enum Outcome {
    Answer(Answer),
    Cut,
    CutBody(Answer, usize),
}

impl HttpFaultProxy {
    /// Listens.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub async fn start(upstream: Upstream, options: Options) -> Result<Self> {
        let listener = TcpListener::bind(options.listen)
            .await
            .with_context(|| format!("cannot listen on {}", options.listen))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            behaviour: options.behaviour,
            upstream,
            rules: Mutex::new(Rules::new(options.seed)),
            changed: Notify::new(),
            journal: Mutex::new(Journal::new()),
            stop: CancellationToken::new(),
        });
        let accept = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, _accept: AbortOnDropHandle::new(accept) })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where clients connect to, as an endpoint.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds a rule after the others, or in place of the one with its name.
    ///
    /// # Errors
    ///
    /// When the rule makes no sense.
    pub fn add(&self, rule: Rule) -> Result<()> {
        self.shared.add(rule)
    }

    /// Removes a rule; `false` where there is none of that name.
    pub fn remove(&self, name: &str) -> bool {
        self.shared.remove(name)
    }

    /// Removes all rules.
    pub fn clear(&self) {
        self.shared.clear();
    }

    /// Returns each rule with how many calls fitted and to how many it was done.
    pub fn rules(&self) -> Vec<(Rule, u64, u64)> {
        self.shared.rules()
    }

    /// Returns the calls so far, in the order in which they ended.
    pub fn journal(&self) -> Vec<Entry> {
        self.shared.journal()
    }

    /// Forgets the calls so far.
    pub fn clear_journal(&self) {
        lock(&self.shared.journal).clear();
    }

    /// Counts the calls so far by what they are called.
    pub fn counts(&self) -> std::collections::BTreeMap<String, u64> {
        journal::counts(lock(&self.shared.journal).entries())
    }

    /// Returns the most calls that came within any second.
    pub fn peak(&self) -> u64 {
        journal::peak(lock(&self.shared.journal).entries())
    }

    /// What calls are passed on to.
    pub fn upstream(&self) -> &Upstream {
        &self.shared.upstream
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }
}

impl std::fmt::Debug for HttpFaultProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpFaultProxy")
            .field("address", &self.address)
            .field("upstream", &self.shared.upstream)
            .finish_non_exhaustive()
    }
}

impl Drop for HttpFaultProxy {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl Shared {
    pub(crate) fn add(&self, rule: Rule) -> Result<()> {
        lock(&self.rules).add(rule)?;
        self.changed.notify_waiters();
        Ok(())
    }

    pub(crate) fn remove(&self, name: &str) -> bool {
        let removed = lock(&self.rules).remove(name);
        self.changed.notify_waiters();
        removed
    }

    pub(crate) fn clear(&self) {
        lock(&self.rules).clear();
        self.changed.notify_waiters();
    }

    pub(crate) fn rules(&self) -> Vec<(Rule, u64, u64)> {
        lock(&self.rules).list()
    }

    pub(crate) fn journal(&self) -> Vec<Entry> {
        lock(&self.journal).entries().to_vec()
    }

    pub(crate) fn clear_journal(&self) {
        lock(&self.journal).clear();
    }

    pub(crate) fn behaviour(&self) -> &dyn Behaviour {
        &*self.behaviour
    }

    /// Asks the rules what is done at this moment, and waits where they say so.
    async fn ask(&self, request: &Request, moment: Moment) -> Option<(String, Act)> {
        let mut from = 0;
        loop {
            // The lock is not held over the wait.
            let step = lock(&self.rules).next(request, moment, from);
            match step? {
                Step::Wait(time, next) => {
                    tokio::time::sleep(time).await;
                    from = next;
                }
                Step::Stall(name, next) => {
                    loop {
                        let mut changed = std::pin::pin!(self.changed.notified());
                        changed.as_mut().enable();
                        if !lock(&self.rules).has(&name) {
                            break;
                        }
                        changed.await;
                    }
                    // The rule is gone, and those behind it moved up.
                    from = next - 1;
                }
                Step::Do(name, act) => return Some((name, act)),
            }
        }
    }

    async fn handle(&self, request: Request) -> Outcome {
        let came = Instant::now();
        let label = request.label();
        let (outcome, passed, rule) = self.decide(&request).await;
        let status = match &outcome {
            Outcome::Answer(answer) => Some(answer.status),
            Outcome::Cut | Outcome::CutBody(..) => None,
        };
        lock(&self.journal).note(came, label, passed, rule, status);
        outcome
    }

    async fn decide(&self, request: &Request) -> (Outcome, bool, Option<String>) {
        match self.ask(request, Moment::Before).await {
            Some((rule, Act::Answer(answer))) => return (Outcome::Answer(answer), false, Some(rule)),
            Some((rule, _)) => return (Outcome::Cut, false, Some(rule)),
            None => {}
        }
        let answer = match self.behaviour.answer(request, &self.upstream).await {
            Ok(answer) => answer,
            Err(error) => Answer::new(502, format!("fault-proxy: {error:#}\n")),
        };
        match self.ask(request, Moment::After).await {
            Some((rule, Act::Answer(answer))) => (Outcome::Answer(answer), true, Some(rule)),
            Some((rule, Act::CutBody { bytes })) => (Outcome::CutBody(answer, bytes), true, Some(rule)),
            Some((rule, _)) => (Outcome::Cut, true, Some(rule)),
            None => (Outcome::Answer(answer), true, None),
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: others close.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let stop = shared.stop.clone();
            stop.run_until_cancelled(serve(stream, shared)).await;
        });
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    // A second descriptor of the connection: hyper owns the first one.
    let Ok(socket) = stream.as_fd().try_clone_to_owned() else { return };
    let service = service_fn(|request| {
        let (shared, socket) = (Arc::clone(&shared), &socket);
        async move { answer(request, shared, socket).await }
    });
    // An error is a connection that one of the two sides cut.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Nothing to say: hyper closes the connection.
#[derive(Debug)]
struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is cut")
    }
}

impl std::error::Error for Closed {}

type Body = UnsyncBoxBody<Bytes, Closed>;

async fn answer(
    request: hyper::Request<Incoming>,
    shared: Arc<Shared>,
    socket: &OwnedFd,
) -> Result<hyper::Response<Body>, Closed> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return Err(Closed) };
    let request = Request {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
        body: body.to_bytes(),
    };
    // In a task of its own: what a server has begun goes on when the client leaves.
    let outcome = tokio::spawn(async move { shared.handle(request).await }).await;
    match outcome {
        Ok(Outcome::Answer(answer)) => {
            let head = answer.head().map_err(|_| Closed)?;
            let body = Full::new(answer.body).map_err(|never: Infallible| match never {}).boxed_unsync();
            head.body(body).map_err(|_| Closed)
        }
        Ok(Outcome::CutBody(answer, bytes)) => {
            let head = answer.head().map_err(|_| Closed)?.header("content-length", answer.body.len());
            let start = answer.body.slice(..bytes.min(answer.body.len().saturating_sub(1)));
            let pieces = broken_off(start);
            head.body(pieces).map_err(|_| Closed)
        }
        Ok(Outcome::Cut) => {
            reset_on_close(socket);
            Err(Closed)
        }
        // A behaviour that panicked has no answer.
        Err(_) => Err(Closed),
    }
}

/// A body that breaks off after `start`.
fn broken_off(start: Bytes) -> Body {
    let steps = futures_util::stream::unfold(Some(start), |state| async move {
        let start = state?;
        if !start.is_empty() {
            return Some((Ok(Frame::data(start)), Some(Bytes::new())));
        }
        // hyper sends what it was given when it is left waiting, and drops it with the connection otherwise.
        tokio::task::yield_now().await;
        Some((Err(Closed), None))
    });
    StreamBody::new(steps).boxed_unsync()
}

/// Has a connection end with a reset, as after a fault, and not with an orderly end.
fn reset_on_close(socket: &OwnedFd) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::Linger, &linger);
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
