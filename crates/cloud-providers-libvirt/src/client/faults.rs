//! Lets calls to libvirt go wrong on purpose, for tests.

use std::{
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use cloud_providers::{CancellationToken, Error, ErrorKind};

use super::{CallError, Reply, STARTED, Ticket};

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It is refused for good and nothing changed.
    Refuse,
    /// The connection breaks before it was sent.
    Break,
    /// It takes effect and the connection breaks before the reply.
    LoseReply,
    /// It is never answered and nothing changed.
    HangBefore,
    /// It takes effect and is never answered.
    HangAfter,
}

/// A fault that is to come.
#[derive(Clone, Debug)]
struct Plan {
    operation: Option<String>,
    left: usize,
    how: How,
    forever: bool,
    struck: CancellationToken,
}

/// The fault that strikes a call.
#[derive(Clone, Debug)]
pub(super) struct Strike {
    how: How,
    struck: CancellationToken,
    patience: Duration,
}

/// The faults of the calls of one or several providers, and the calls that they made.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    calls: Vec<&'static str>,
    counted: usize,
    plans: Vec<Plan>,
    patience: Duration,
}

impl Default for State {
    fn default() -> Self {
        Self { calls: Vec::new(), counted: 0, plans: Vec::new(), patience: Duration::from_secs(30) }
    }
}

/// How often this is asked depends on the machine's speed, so [`Faults::count`] counts a row of them once.
const POLLED: &str = "virDomainInterfaceAddresses";

impl Faults {
    /// Sets the longest that a call waits which never gets an answer.
    pub fn set_patience(&self, time: Duration) {
        self.lock().patience = time;
    }

    /// Lets the `nth` call from now, from 1, go wrong, and cancels `struck` when that happens.
    pub fn strike_nth(&self, nth: usize, how: How, struck: &CancellationToken) {
        self.plan(None, nth, how, false, struck.clone());
    }

    /// Lets the `nth` call of `operation` from now, from 1, go wrong; returns what is cancelled when that happens.
    pub fn strike(&self, operation: &str, nth: usize, how: How) -> CancellationToken {
        let struck = CancellationToken::new();
        self.plan(Some(operation), nth, how, false, struck.clone());
        struck
    }

    /// Lets every call of `operation` go wrong.
    pub fn strike_all(&self, operation: &str, how: How) {
        self.plan(Some(operation), 1, how, true, CancellationToken::new());
    }

    fn plan(&self, operation: Option<&str>, left: usize, how: How, forever: bool, struck: CancellationToken) {
        self.lock().plans.push(Plan { operation: operation.map(str::to_owned), left, how, forever, struck });
    }

    /// Lets everything work again.
    pub fn clear(&self) {
        self.lock().plans.clear();
    }

    /// Returns the names of the calls since this was last asked.
    pub fn take_calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.lock().calls)
    }

    /// Returns the number of calls so far; questions for an address that follow each other count once.
    pub fn count(&self) -> usize {
        self.lock().counted
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call and says what happens to it.
    pub(super) fn meet(&self, operation: &'static str) -> Option<Strike> {
        let mut state = self.lock();
        let repeated = operation == POLLED && state.calls.last() == Some(&POLLED);
        state.calls.push(operation);
        state.counted += usize::from(!repeated);
        let patience = state.patience;
        let mut found = None;
        for plan in &mut state.plans {
            if plan.operation.as_deref().is_some_and(|o| o != operation) {
                continue;
            }
            plan.left = plan.left.saturating_sub(1);
            if plan.left == 0 && found.is_none() {
                found = Some(Strike { how: plan.how, struck: plan.struck.clone(), patience });
            }
        }
        state.plans.retain(|plan| plan.left > 0 || plan.forever);
        found
    }
}

impl Strike {
    /// Returns how long the struck call waits for an answer that never comes.
    pub(super) fn patience(&self) -> Option<Duration> {
        matches!(self.how, How::HangBefore | How::HangAfter).then_some(self.patience)
    }
}

fn broken<T>() -> Reply<T> {
    Reply::Broken(Error::new(ErrorKind::Transient, "the test broke the connection"))
}

/// Applies what happens before the effect.
pub(super) async fn before<T>(strike: Option<&Strike>, ticket: &Ticket) -> Option<Reply<T>> {
    let strike = strike?;
    match strike.how {
        How::Refuse => {
            strike.struck.cancel();
            let refused =
                Error::new(ErrorKind::Quota, "the test refuses the call").with_cloud("AsTold", "no");
            Some(Reply::Done(Err(CallError::Ours(refused))))
        }
        How::Break => {
            strike.struck.cancel();
            Some(broken())
        }
        How::HangBefore => {
            // The caller cannot know that nothing was sent.
            ticket.0.store(STARTED, Ordering::SeqCst);
            strike.struck.cancel();
            pending().await
        }
        How::LoseReply | How::HangAfter => None,
    }
}

/// Applies what happens after the effect.
pub(super) async fn after<T>(strike: Option<&Strike>) -> Option<Reply<T>> {
    let strike = strike?;
    strike.struck.cancel();
    match strike.how {
        How::LoseReply => Some(broken()),
        How::HangAfter => pending().await,
        How::Refuse | How::Break | How::HangBefore => None,
    }
}
