//! Lets calls to libvirt go wrong on purpose, for tests.

use std::{
    future::pending,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

use cloud_providers::{Error, ErrorKind};

use super::{Reply, STARTED, Ticket};

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It fails as by a broken connection and nothing changed.
    FailBefore,
    /// It takes effect and the reply is lost.
    LoseReply,
    /// It is never answered and nothing changed.
    HangBefore,
    /// It takes effect and is never answered.
    HangAfter,
}

/// The faults of one provider, and the calls that it made.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    calls: Vec<&'static str>,
    plan: Option<(Option<String>, usize, How, bool)>,
}

impl Faults {
    /// Lets the `nth` call from now, from 1, go wrong; only calls of `operation` count when one is given.
    pub fn plan(&self, operation: Option<&str>, nth: usize, how: How) {
        self.lock().plan = Some((operation.map(str::to_owned), nth, how, false));
    }

    /// As [`Self::plan`], and all later calls go wrong too.
    pub fn plan_forever(&self, operation: Option<&str>, nth: usize, how: How) {
        self.lock().plan = Some((operation.map(str::to_owned), nth, how, true));
    }

    /// Lets everything work again.
    pub fn clear(&self) {
        self.lock().plan = None;
    }

    /// Returns the names of the calls since this was last asked.
    pub fn take_calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.lock().calls)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call and says what happens to it.
    pub(super) fn strike(&self, operation: &'static str) -> Option<How> {
        let mut state = self.lock();
        state.calls.push(operation);
        let (wanted, left, how, forever) = state.plan.as_mut()?;
        if wanted.as_deref().is_some_and(|w| w != operation) {
            return None;
        }
        let (how, forever) = (*how, *forever);
        *left = left.saturating_sub(1);
        if *left > 0 {
            return None;
        }
        if !forever {
            state.plan = None;
        }
        Some(how)
    }
}

fn broken<T>() -> Reply<T> {
    Reply::Broken(Error::new(ErrorKind::Transient, "the test broke the connection"))
}

/// Applies what happens before the effect.
pub(super) async fn before<T>(fault: Option<How>, ticket: &Ticket) -> Option<Reply<T>> {
    match fault? {
        How::FailBefore => Some(broken()),
        How::HangBefore => {
            // The caller cannot know that nothing was sent.
            ticket.0.store(STARTED, Ordering::SeqCst);
            pending().await
        }
        How::LoseReply | How::HangAfter => None,
    }
}

/// Applies what happens after the effect.
pub(super) async fn after<T>(fault: Option<How>) -> Option<Reply<T>> {
    match fault? {
        How::LoseReply => Some(broken()),
        How::HangAfter => pending().await,
        How::FailBefore | How::HangBefore => None,
    }
}
