//! One question to the cloud for everybody who waits.
//!
//! A [`Batch`] collects ids from all calls of a provider and asks for them together, once for each interval: a hundred
//! machines that start cost one call per second and not a hundred. The first question of an id comes after a moment in
//! which others can join, and never later than one interval and the calls that are under way.
//!
//! A waiter that is cancelled leaves. When the last one left, the call under way is dropped and the task behind a batch
//! ends; so does everything when the batch is dropped.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{Error, ErrorKind, OpContext, Result, Retry};

/// Asks the cloud about many things in one call.
#[async_trait]
pub trait Describe: Send + Sync + 'static {
    /// What is asked for: an id.
    type Id: Clone + Eq + Hash + Send + Sync + 'static;
    /// What the cloud says about it.
    type State: Clone + Send + Sync + 'static;

    /// Returns what the cloud says about `ids`; what it does not know is not in the answer.
    ///
    /// A cloud that refuses the whole call for one unknown id is asked by filter instead, or every waiter gets the
    /// error of one.
    ///
    /// # Errors
    ///
    /// The cloud's own. The call is made again once for the whole batch, after the delay that the error names.
    async fn describe(&self, ids: &[Self::Id]) -> Result<HashMap<Self::Id, Self::State>>;
}

/// How a batch asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchSettings {
    /// The least time between two questions. More ids than one call takes are asked in several calls at once.
    pub interval: Duration,
    /// How long a question after a pause waits for others to join it.
    pub gather: Duration,
    /// The most ids of one call.
    pub ids_per_call: usize,
    /// The longest that one call may take.
    pub call_limit: Duration,
    /// The longest that the cloud's wish for a pause is followed.
    pub delay_cap: Duration,
}

impl Default for BatchSettings {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            gather: Duration::from_millis(20),
            ids_per_call: 100,
            call_limit: Duration::from_secs(30),
            delay_cap: Duration::from_secs(20),
        }
    }
}

impl BatchSettings {
    /// Sets the least time between two questions.
    #[must_use]
    pub fn with_interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets how long a question after a pause waits for others.
    #[must_use]
    pub fn with_gather(mut self, gather: Duration) -> Self {
        self.gather = gather;
        self
    }

    /// Sets the most ids of one call, at least 1.
    #[must_use]
    pub fn with_ids_per_call(mut self, ids: usize) -> Self {
        self.ids_per_call = ids.max(1);
        self
    }

    /// Sets the longest time of one call.
    #[must_use]
    pub fn with_call_limit(mut self, limit: Duration) -> Self {
        self.call_limit = limit;
        self
    }

    /// Sets the longest time for which the cloud's wish for a pause is followed.
    #[must_use]
    pub fn with_delay_cap(mut self, cap: Duration) -> Self {
        self.delay_cap = cap;
        self
    }
}

type Answer<D> = Result<Option<<D as Describe>::State>>;
type Waiters<D> = HashMap<<D as Describe>::Id, Vec<oneshot::Sender<Answer<D>>>>;

/// Collects questions and asks them together. Clones are the same batch.
pub struct Batch<D: Describe> {
    shared: Arc<Shared<D>>,
}

struct Shared<D: Describe> {
    describe: D,
    settings: BatchSettings,
    state: Mutex<State<D>>,
    /// Told when the last waiter leaves.
    deserted: Notify,
}

struct State<D: Describe> {
    /// In the order of their coming, so that a call takes those that wait longest.
    order: Vec<D::Id>,
    waiting: Waiters<D>,
    /// Waiters whose answer is still wanted, those of the call under way among them.
    alive: usize,
    running: bool,
    /// When the next question may be asked.
    next: Option<Instant>,
}

impl<D: Describe> Clone for Batch<D> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<D: Describe> fmt::Debug for Batch<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("settings", &self.shared.settings)
            .field("waiting", &self.waiting())
            .finish()
    }
}

impl<D: Describe> Batch<D> {
    /// Makes a batch that asks nothing yet.
    pub fn new(describe: D, settings: BatchSettings) -> Self {
        let state =
            State { order: Vec::new(), waiting: HashMap::new(), alive: 0, running: false, next: None };
        let (state, deserted) = (Mutex::new(state), Notify::new());
        Self { shared: Arc::new(Shared { describe, settings, state, deserted }) }
    }

    /// Returns how many waiters there are now.
    pub fn waiting(&self) -> usize {
        self.shared.lock().alive
    }

    /// Asks for `id` with the next question and returns what the cloud says; `None` when it does not know it.
    ///
    /// The answer is never older than the call: a question that is under way already is not joined.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Cancelled`] when the call ends; the error of the whole batch, after its one repetition.
    pub async fn get(&self, ctx: &OpContext, id: D::Id) -> Answer<D> {
        ctx.check()?;
        let (send, receive) = oneshot::channel();
        let _waiter = Shared::join(&self.shared, id, send);
        ctx.run(async {
            receive
                .await
                .unwrap_or_else(|_| Err(Error::internal("the batched question ended without an answer")))
        })
        .await
    }

    /// Asks for `id` until `probe` makes a value of the answer, at most for `limit`.
    ///
    /// An error whose retry rule is [`Retry::After`] does not end the wait, as in [`OpContext::poll`].
    ///
    /// # Errors
    ///
    /// The batch's other errors and the probe's; [`ErrorKind::Cancelled`] when the call ends;
    /// [`ErrorKind::Transient`] after `limit`, naming `what`.
    pub async fn wait<T>(
        &self,
        ctx: &OpContext,
        what: &str,
        id: &D::Id,
        limit: Duration,
        probe: impl Fn(Option<D::State>) -> Result<Option<T>>,
    ) -> Result<T> {
        // The interval is kept by the batch, so nothing is added to it here.
        ctx.poll(what, Duration::ZERO, limit, async || probe(self.get(ctx, id.clone()).await?)).await
    }
}

/// Counts a waiter for as long as it wants an answer.
struct Waiter<'a, D: Describe>(&'a Shared<D>);

impl<D: Describe> Drop for Waiter<'_, D> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.alive -= 1;
        if state.alive == 0 {
            self.0.deserted.notify_one();
        }
    }
}

impl<D: Describe> Shared<D> {
    fn lock(&self) -> MutexGuard<'_, State<D>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(shared: &Arc<Self>, id: D::Id, send: oneshot::Sender<Answer<D>>) -> Waiter<'_, D> {
        let mut state = shared.lock();
        state.alive += 1;
        let waiters = state.waiting.entry(id.clone()).or_default();
        let first = waiters.is_empty();
        waiters.push(send);
        if first {
            state.order.push(id);
        }
        if !std::mem::replace(&mut state.running, true) {
            tokio::spawn(drive(shared.clone()));
        }
        Waiter(shared)
    }

    /// Takes everybody who waits, in calls of the size that the cloud takes; none ends the task, under the same lock.
    fn take(&self) -> Vec<Waiters<D>> {
        let mut state = self.lock();
        let State { order, waiting, .. } = &mut *state;
        // Who was cancelled is not asked for.
        waiting.retain(|_, senders| {
            senders.retain(|s| !s.is_closed());
            !senders.is_empty()
        });
        let ids: Vec<D::Id> = order.drain(..).filter(|id| waiting.contains_key(id)).collect();
        let mut take = |id: &D::Id| waiting.remove(id).map(|senders| (id.clone(), senders));
        let calls = ids.chunks(self.settings.ids_per_call).map(|c| c.iter().filter_map(&mut take).collect());
        let calls: Vec<Waiters<D>> = calls.collect();
        state.running = !calls.is_empty();
        calls
    }

    /// Waits for the moment of the next question, or for the last waiter to leave.
    async fn until_next(&self) {
        let start = {
            let state = self.lock();
            let gathered = Instant::now() + self.settings.gather.min(self.settings.interval);
            state.next.map_or(gathered, |next| next.max(gathered))
        };
        while Instant::now() < start && self.lock().alive > 0 {
            tokio::select! {
                () = sleep_until(start) => {}
                () = self.deserted.notified() => {}
            }
        }
    }

    /// Asks once and, if that failed in a way that may pass, once more.
    async fn ask(&self, ids: &[D::Id]) -> Result<HashMap<D::Id, D::State>> {
        let error = match self.call(ids).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        match error.retry() {
            Retry::Never => return Err(error),
            // The repetition is a question as well, so it keeps the interval.
            _ => sleep(self.pause_after(&error)).await,
        }
        self.call(ids).await
    }

    async fn call(&self, ids: &[D::Id]) -> Result<HashMap<D::Id, D::State>> {
        let limit = self.settings.call_limit;
        self.lock().next = Some(Instant::now() + self.settings.interval);
        let late = || {
            Error::new(ErrorKind::Transient, "the batched question was not answered in time")
                .with("waited", format!("{limit:?}"))
        };
        let result = timeout(limit, self.describe.describe(ids)).await.unwrap_or_else(|_| Err(late()));
        if let Err(error) = &result {
            tracing::debug!(ids = ids.len(), %error, "a batched question failed");
            let mut state = self.lock();
            state.next = state.next.max(Some(Instant::now() + self.pause_after(error)));
        }
        result
    }

    fn pause_after(&self, error: &Error) -> Duration {
        match error.retry() {
            Retry::After { delay } => delay.min(self.settings.delay_cap).max(self.settings.interval),
            _ => self.settings.interval,
        }
    }
}

/// Runs while somebody waits.
async fn drive<D: Describe>(shared: Arc<Shared<D>>) {
    let end = End(&shared);
    loop {
        shared.until_next().await;
        let calls = shared.take();
        if calls.is_empty() {
            // Another task may run from here on.
            std::mem::forget(end);
            return;
        }
        for mut waiters in calls {
            let ids: Vec<D::Id> = waiters.keys().cloned().collect();
            let all_left = async {
                for sender in waiters.values_mut().flatten() {
                    sender.closed().await;
                }
            };
            let answer = tokio::select! {
                answer = shared.ask(&ids) => answer,
                () = all_left => continue,
            };
            for (id, senders) in waiters {
                let answer = answer.as_ref().map(|states| states.get(&id).cloned()).map_err(Clone::clone);
                for sender in senders {
                    // Who left meanwhile needs no answer.
                    let _ = sender.send(answer.clone());
                }
            }
        }
    }
}

/// Lets nobody wait for a task that panicked, or whose runtime ended.
struct End<'a, D: Describe>(&'a Shared<D>);

impl<D: Describe> Drop for End<'_, D> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.running = false;
        state.order.clear();
        state.waiting.clear();
    }
}
