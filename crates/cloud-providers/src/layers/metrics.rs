//! What happens, told to whoever counts.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Around, Call, Next, Operation};
use crate::{Error, ErrorKind, OpContext, Result};

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CallOutcome {
    /// It succeeded.
    Ok,
    /// It failed; the word of [`ErrorKind::label`].
    Failed(&'static str),
    /// The caller dropped it.
    Dropped,
}

impl CallOutcome {
    /// Returns the fixed word for a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed(kind) => kind,
            Self::Dropped => "dropped",
        }
    }
}

/// Counts calls. The contract knows no library of metrics; a program maps this to its own.
///
/// Everything in it is from a fixed set, so it can be a label. No method may block.
pub trait Observer: Send + Sync {
    /// A call began.
    fn started(&self, operation: Operation) {
        let _ = operation;
    }

    /// A call that began has ended, after `elapsed`, all repetitions and waits included.
    fn finished(&self, operation: Operation, outcome: CallOutcome, elapsed: Duration) {
        let _ = (operation, outcome, elapsed);
    }

    /// An attempt failed with an error of `kind` and is repeated after `delay`.
    fn retried(&self, operation: Operation, kind: &ErrorKind, delay: Duration) {
        let _ = (operation, kind, delay);
    }

    /// An attempt waited for its token of the rate limit.
    fn waited(&self, operation: Operation, delay: Duration) {
        let _ = (operation, delay);
    }
}

/// Counts nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {}

/// An observer, without its inside.
#[derive(Clone)]
pub(super) struct Observed(pub(super) Arc<dyn Observer>);

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

/// Tells an observer of each call.
#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) observer: Observed,
}

/// Tells the end of a call also where its future is dropped.
struct Running<'a> {
    observer: &'a dyn Observer,
    operation: Operation,
    start: Instant,
    outcome: CallOutcome,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.observer.finished(self.operation, self.outcome, self.start.elapsed());
    }
}

impl Around for Metrics {
    async fn around<'a, T: Send + 'a>(
        &'a self,
        ctx: &'a OpContext,
        call: Call<'a>,
        next: Next<'a, T>,
    ) -> Result<T> {
        let observer = &*self.observer.0;
        observer.started(call.operation);
        let (operation, start) = (call.operation, Instant::now());
        let mut running = Running { observer, operation, start, outcome: CallOutcome::Dropped };
        let result = next(ctx.clone()).await;
        running.outcome = match &result {
            Ok(_) => CallOutcome::Ok,
            Err(error) => CallOutcome::Failed(Error::kind(error).label()),
        };
        result
    }
}
