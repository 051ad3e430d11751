//! Calls libvirt, whose library blocks, from asynchronous code.
//!
//! A call runs on a thread of a small pool, each with a connection of its own. The caller waits for the reply and may
//! leave at any moment; the thread goes on, since nothing can stop it, and what it does late is looked after by
//! [`Turn`].

mod addresses;
mod event_loop;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod faults;
mod library;
mod pool;
mod stream;
mod turn;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use cloud_providers::{Error, ErrorKind, OpContext, Result, Retry};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};
use virt::{connect::Connect, error::Error as VirtError};

pub(crate) use addresses::{Interface, interfaces};
pub(crate) use event_loop::start as start_event_loop;
use pool::{Line, Pool};
pub(crate) use stream::{Console, Consoles};
use turn::Running;
pub(crate) use turn::{Turn, Turns};

use crate::error::virt_error;

/// The longest that most calls may stay unanswered.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// How long a call waits for a server that was there before: longer than a restart takes.
const RECONNECT_LIMIT: Duration = Duration::from_secs(30);
/// How long it waits for a server that never answered.
const FIRST_LIMIT: Duration = Duration::from_secs(2);
/// The pause before the second attempt to connect, doubled for each further one up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What runs on a thread returns this.
pub(crate) type CallResult<T> = std::result::Result<T, CallError>;

/// Why work on a thread failed.
#[derive(Debug)]
pub(crate) enum CallError {
    /// libvirt's own error.
    Virt(VirtError),
    /// An error of ours, such as an answer that does not parse.
    Ours(Error),
}

impl From<VirtError> for CallError {
    fn from(error: VirtError) -> Self {
        Self::Virt(error)
    }
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

/// Why a call that changes something failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: Error,
    /// It may have taken effect all the same.
    pub(crate) unclear: bool,
    /// The connection broke under it, and the server may be back: looking or asking again makes sense.
    pub(crate) may_repeat: bool,
}

impl Failed {
    fn surely(error: Error) -> Self {
        Self { error, unclear: false, may_repeat: false }
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        failed.error
    }
}

/// Names a call: the function of libvirt, and what it is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// The function of libvirt, or several joined by `+`; the name by which tests break it.
    pub(crate) operation: &'static str,
    /// The first words of its error.
    pub(crate) failed: &'static str,
    /// The longest that it may stay unanswered.
    pub(crate) limit: Duration,
}

/// Shorthand for a [`Step`].
pub(crate) const fn step(operation: &'static str, failed: &'static str) -> Step {
    Step { operation, failed, limit: CALL_LIMIT }
}

/// A server, as one provider talks to it.
pub(crate) struct Client {
    pool: Pool,
    #[cfg(any(test, feature = "testing"))]
    faults: faults::Faults,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("uri", &self.pool.uri()).finish_non_exhaustive()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.pool.close();
    }
}

/// Where a call runs.
#[derive(Clone, Copy)]
enum Place {
    /// On a thread of the pool.
    Pool,
    /// On a thread of its own, with the connection of one of the pool: for transfers, which may take long.
    Own,
}

/// How one attempt ended.
enum Reply<T> {
    Done(CallResult<T>),
    /// Nothing was sent.
    NotConnected(VirtError),
    /// The connection ended under the call.
    Broken(Error),
}

type Run<T> = Arc<dyn Fn(&Connect) -> CallResult<T> + Send + Sync>;
type Late<T> = Arc<dyn Fn(&Connect, &T) + Send + Sync>;

const QUEUED: u8 = 0;
const STARTED: u8 = 1;
const WITHDRAWN: u8 = 2;

/// Withdraws a call that no thread has begun, when its caller leaves.
#[derive(Default)]
struct Ticket(Arc<AtomicU8>);

impl Ticket {
    /// Returns whether no thread will begin the call.
    fn withdraw(&self) -> bool {
        self.0.compare_exchange(QUEUED, WITHDRAWN, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.withdraw();
    }
}

impl Client {
    /// Starts what the whole process needs; connects to nothing yet.
    pub(crate) fn new(uri: &str) -> Result<Self> {
        start_event_loop()?;
        Ok(Self {
            pool: Pool::new(uri.to_owned()),
            #[cfg(any(test, feature = "testing"))]
            faults: faults::Faults::default(),
        })
    }

    /// Lets calls go wrong as `faults` say.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn set_faults(&mut self, faults: faults::Faults) {
        self.faults = faults;
    }

    /// Returns what lets calls go wrong, and counts them.
    #[cfg(test)]
    pub(crate) fn faults(&self) -> &faults::Faults {
        &self.faults
    }

    /// Returns the URI.
    pub(crate) fn uri(&self) -> &str {
        self.pool.uri()
    }

    /// Changes when a connection broke: the server may be another one since.
    pub(crate) fn epoch(&self) -> u64 {
        self.pool.epoch()
    }

    /// Closes the connections after the calls under way; returns whether they ended within `limit`.
    pub(crate) async fn close(&self, limit: Duration) -> bool {
        self.pool.close();
        let pool = self.pool.clone();
        tokio::task::spawn_blocking(move || pool.wait_closed(limit)).await.unwrap_or(false)
    }

    /// Makes a call that changes nothing. It is repeated once when the connection breaks.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        ctx: &OpContext,
        step: Step,
        run: impl Fn(&Connect) -> CallResult<T> + Send + Sync + 'static,
    ) -> Result<T> {
        let run: Run<T> = Arc::new(run);
        let mut repeated = false;
        loop {
            match self.connected(ctx, step, Place::Pool, None, &run, None).await {
                Ok(Reply::Broken(_)) if !repeated => repeated = true,
                other => return finished(step, other).map_err(Error::from),
            }
        }
    }

    /// Makes a call that changes something, once. Whether it did after an unclear end is for the caller to look.
    ///
    /// `late` takes the effect back; it runs on the thread when the call ends after the whole operation gave up.
    pub(crate) async fn effect<T: Send + 'static>(
        &self,
        ctx: &OpContext,
        step: Step,
        turn: &Turn,
        run: impl Fn(&Connect) -> CallResult<T> + Send + Sync + 'static,
        late: impl Fn(&Connect, &T) + Send + Sync + 'static,
    ) -> std::result::Result<T, Failed> {
        let (run, late): (Run<T>, Late<T>) = (Arc::new(run), Arc::new(late));
        let reply = self.connected(ctx, step, Place::Pool, Some(turn), &run, Some(&late)).await;
        finished(step, reply)
    }

    /// Makes a longer series of calls, on a thread of its own, that leaves nothing behind by itself.
    pub(crate) async fn apart<T: Send + 'static>(
        &self,
        ctx: &OpContext,
        step: Step,
        run: impl Fn(&Connect) -> CallResult<T> + Send + Sync + 'static,
    ) -> Result<T> {
        let run: Run<T> = Arc::new(run);
        let reply = self.connected(ctx, step, Place::Own, None, &run, None).await;
        finished(step, reply).map_err(Error::from)
    }

    /// As [`Self::effect`], on a thread of its own.
    async fn transfer<T: Send + 'static>(
        &self,
        ctx: &OpContext,
        step: Step,
        turn: &Turn,
        run: impl Fn(&Connect) -> CallResult<T> + Send + Sync + 'static,
    ) -> std::result::Result<T, Failed> {
        let run: Run<T> = Arc::new(run);
        let reply = self.connected(ctx, step, Place::Own, Some(turn), &run, None).await;
        finished(step, reply)
    }

    /// Tries again while the server is away, with growing pauses.
    async fn connected<T: Send + 'static>(
        &self,
        ctx: &OpContext,
        step: Step,
        place: Place,
        turn: Option<&Turn>,
        run: &Run<T>,
        late: Option<&Late<T>>,
    ) -> std::result::Result<Reply<T>, Failed> {
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let reply = self.attempt(ctx, step, place, turn, run, late).await?;
            let Reply::NotConnected(error) = &reply else { return Ok(reply) };
            let error = self.unreachable(error);
            let limit = if self.pool.was_connected() { RECONNECT_LIMIT } else { FIRST_LIMIT };
            if !matches!(error.retry(), Retry::After { .. }) || start.elapsed() + pause > limit {
                return Err(Failed::surely(error));
            }
            ctx.sleep(pause).await.map_err(Failed::surely)?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn unreachable(&self, error: &VirtError) -> Error {
        virt_error("virConnectOpen", "cannot connect to libvirt", error)
            .with("uri", self.uri())
            .with("set", "LIBVIRT_URI")
    }

    /// Waits for one attempt as long as the operation and a single call may last.
    async fn attempt<T: Send + 'static>(
        &self,
        ctx: &OpContext,
        step: Step,
        place: Place,
        turn: Option<&Turn>,
        run: &Run<T>,
        late: Option<&Late<T>>,
    ) -> std::result::Result<Reply<T>, Failed> {
        let ticket = Ticket::default();
        #[cfg(any(test, feature = "testing"))]
        let strike = self.faults.meet(step.operation);
        #[cfg(any(test, feature = "testing"))]
        let limit = strike.as_ref().and_then(faults::Strike::patience).unwrap_or(step.limit);
        #[cfg(not(any(test, feature = "testing")))]
        let limit = step.limit;
        let call = async {
            #[cfg(any(test, feature = "testing"))]
            if let Some(reply) = faults::before(strike.as_ref(), &ticket).await {
                return Ok(reply);
            }
            let reply = self.submit(&ticket, place, turn, run.clone(), late.cloned())?.await;
            #[cfg(any(test, feature = "testing"))]
            if let Some(broken) = faults::after(strike.as_ref()).await {
                return Ok(broken);
            }
            // The sender vanishes with a thread that panicked.
            reply.map_err(|_| Error::internal("a call to libvirt panicked"))
        };
        let bounded = async {
            let late = |_| {
                Error::new(ErrorKind::Transient, "libvirt did not answer in time")
                    .with("waited", format!("{limit:?}"))
                    .with("uri", self.uri())
            };
            timeout(limit, call).await.map_err(late)?
        };
        ctx.run(bounded).await.map_err(|error| Failed {
            error: error.with_operation(step.operation),
            unclear: !ticket.withdraw(),
            may_repeat: false,
        })
    }

    /// Queues one attempt. Its reply comes through the channel that is returned.
    fn submit<T: Send + 'static>(
        &self,
        ticket: &Ticket,
        place: Place,
        turn: Option<&Turn>,
        run: Run<T>,
        late: Option<Late<T>>,
    ) -> Result<oneshot::Receiver<Reply<T>>> {
        let (send, receive) = oneshot::channel();
        let begun = ticket.0.clone();
        let running = turn.map(Turn::running);
        self.pool.submit(Box::new(move |line: &mut Line| {
            if begun.compare_exchange(QUEUED, STARTED, Ordering::SeqCst, Ordering::SeqCst).is_err() {
                return;
            }
            let connection = match line.connection() {
                Ok(connection) => connection,
                Err(error) => {
                    let _ = send.send(Reply::NotConnected(error));
                    return;
                }
            };
            let work = Work { run, late, running, send };
            match place {
                Place::Pool => {
                    if work.perform(connection) {
                        line.hang_up();
                    }
                }
                Place::Own => {
                    let connection = connection.clone();
                    let thread = std::thread::Builder::new().name("libvirt-transfer".into());
                    // Without a thread the sender is dropped, and the caller sees that.
                    let _ = thread.spawn(move || work.perform(&connection));
                }
            }
        }))?;
        Ok(receive)
    }
}

/// A call on its thread.
struct Work<T> {
    run: Run<T>,
    late: Option<Late<T>>,
    running: Option<Running>,
    send: oneshot::Sender<Reply<T>>,
}

impl<T> Work<T> {
    /// Makes the call, sends the reply, and returns whether the connection is broken.
    fn perform(self, connection: &Connect) -> bool {
        let result = (self.run)(connection);
        let broken = result.is_err() && !connection.is_alive().unwrap_or(false);
        let reply = match result {
            Err(CallError::Virt(error)) if broken => {
                Reply::Broken(virt_error("virConnectIsAlive", "the connection to libvirt broke", &error))
            }
            result => Reply::Done(result),
        };
        if let Err(Reply::Done(Ok(value))) = self.send.send(reply)
            && let (Some(late), Some(running)) = (&self.late, &self.running)
            && running.given_up()
        {
            late(connection, &value);
        }
        // The turn ends here, after everything that this call did.
        drop(self.running);
        broken
    }
}

/// Makes an error of a reply that is one.
fn finished<T>(step: Step, reply: std::result::Result<Reply<T>, Failed>) -> std::result::Result<T, Failed> {
    match reply? {
        Reply::Done(Ok(value)) => Ok(value),
        Reply::Done(Err(CallError::Virt(error))) => {
            Err(Failed::surely(virt_error(step.operation, step.failed, &error)))
        }
        Reply::Done(Err(CallError::Ours(error))) => Err(Failed::surely(with_operation(step, error))),
        Reply::NotConnected(error) => {
            Err(Failed::surely(virt_error("virConnectOpen", "cannot connect to libvirt", &error)))
        }
        Reply::Broken(error) => Err(Failed { error: broken(step, error), unclear: true, may_repeat: true }),
    }
}

/// Names the step in an error of ours that names none.
fn with_operation(step: Step, error: Error) -> Error {
    if error.operation().is_some() { error } else { error.with_operation(step.operation) }
}

/// Describes a call whose connection ended under it: the same call may succeed on the next one.
fn broken(step: Step, cause: Error) -> Error {
    Error::new(ErrorKind::Transient, step.failed).with_operation(step.operation).with_source(cause)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU32},
    };

    use super::*;

    const STEP: Step = step("virTest", "cannot test");

    fn client() -> Arc<Client> {
        Arc::new(Client::new("test:///default").unwrap())
    }

    fn hold() -> (Arc<Barrier>, impl Fn(&Connect) -> CallResult<u32> + Send + Sync + 'static) {
        let barrier = Arc::new(Barrier::new(2));
        let held = barrier.clone();
        let run = move |_: &Connect| {
            held.wait();
            held.wait();
            Ok(7)
        };
        (barrier, run)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_call_does_after_its_operation_gave_up_is_taken_back() {
        let (client, turns) = (client(), Turns::default());
        let turn = turns.take(&OpContext::new(), "t").await.unwrap();
        let (barrier, run) = hold();
        let taken_back = Arc::new(AtomicU32::new(0));
        let noted = taken_back.clone();
        let cancel = cloud_providers::CancellationToken::new();
        let ctx = OpContext::new().with_cancel(cancel.clone());
        let call = client.effect(&ctx, STEP, &turn, run, move |_, made| noted.store(*made, Ordering::SeqCst));
        let (result, ()) = tokio::join!(call, async {
            let at_work = barrier.clone();
            tokio::task::spawn_blocking(move || at_work.wait()).await.unwrap();
            cancel.cancel();
        });
        let failed = result.unwrap_err();
        assert!(failed.unclear && *failed.error.kind() == ErrorKind::Cancelled, "{failed:?}");
        assert!(!turn.settle(Duration::from_millis(10)).await);
        drop(turn);
        barrier.wait();
        // The next turn begins when the call has ended.
        turns.take(&OpContext::new(), "t").await.unwrap();
        assert_eq!(taken_back.load(Ordering::SeqCst), 7);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_call_that_no_thread_has_begun_is_withdrawn() {
        let (client, turns) = (client(), Turns::default());
        let turn = turns.take(&OpContext::new(), "t").await.unwrap();
        // All threads are busy.
        let mut busy = Vec::new();
        let mut barriers = Vec::new();
        for _ in 0..4 {
            let ((barrier, run), client) = (hold(), client.clone());
            busy.push(tokio::spawn(async move { client.read(&OpContext::new(), STEP, run).await }));
            let at_work = barrier.clone();
            tokio::task::spawn_blocking(move || at_work.wait()).await.unwrap();
            barriers.push(barrier);
        }
        let ran = Arc::new(AtomicBool::new(false));
        let noted = ran.clone();
        let ctx = OpContext::new().with_timeout(Duration::from_millis(10));
        let run = move |_: &Connect| {
            noted.store(true, Ordering::SeqCst);
            Ok(())
        };
        let failed = client.effect(&ctx, STEP, &turn, run, |_, ()| {}).await.unwrap_err();
        assert!(!failed.unclear && *failed.error.kind() == ErrorKind::Cancelled, "{failed:?}");
        for (barrier, call) in barriers.into_iter().zip(busy) {
            barrier.wait();
            assert_eq!(call.await.unwrap().unwrap(), 7);
        }
        assert!(turn.settle(Duration::from_secs(10)).await);
        assert!(!ran.load(Ordering::SeqCst));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_call_that_panics_harms_no_other() {
        let client = client();
        let ctx = OpContext::new();
        let error = client.read::<()>(&ctx, STEP, |_| panic!("on purpose")).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Internal);
        for _ in 0..8 {
            client.read(&ctx, STEP, |c| Ok(c.get_type()?)).await.unwrap();
        }
        assert!(client.close(Duration::from_secs(10)).await);
        let closed = client.read(&ctx, STEP, |c| Ok(c.get_type()?)).await.unwrap_err();
        assert!(closed.to_string().contains("torn down"), "{closed}");
    }
}
