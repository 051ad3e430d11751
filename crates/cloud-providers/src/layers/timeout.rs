//! A deadline for each call, and an end.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::{Around, Call, Next, Operation, Subject};
use crate::{Error, ErrorKind, OpContext, Resource, Result, Token};

/// The kind of what carries a token and may or may not be there.
const UNCONFIRMED: &str = "unconfirmed";
/// The longest that the record of a leftover may take.
const RECORD_LIMIT: Duration = Duration::from_secs(5);

/// How long calls may take.
///
/// A call whose caller set an earlier deadline keeps that one. At the deadline the provider is told, as when the call is
/// cancelled; a call that changes something then has the grace to undo it. After that its future is dropped, which
/// leaves what was recorded and nothing else; the error then has leftovers, as nobody knows what is there. Calls that
/// only read are dropped at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timeouts {
    /// [`Operation::Create`].
    pub create: Duration,
    /// [`Operation::Delete`] and [`Operation::Release`].
    pub delete: Duration,
    /// [`Operation::List`], [`Operation::Verify`] and [`Operation::Console`].
    pub read: Duration,
    /// [`Operation::Teardown`].
    pub teardown: Duration,
    /// What a call that changes something may take after its deadline, or after it was cancelled, to undo.
    pub undo: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            create: Duration::from_secs(900),
            delete: Duration::from_secs(600),
            read: Duration::from_secs(180),
            teardown: Duration::from_secs(60),
            // Providers give their undo up to ten minutes.
            undo: Duration::from_secs(660),
        }
    }
}

impl Timeouts {
    /// Sets the limit of creates.
    #[must_use]
    pub fn with_create(mut self, limit: Duration) -> Self {
        self.create = limit;
        self
    }

    /// Sets the limit of deletions and releases.
    #[must_use]
    pub fn with_delete(mut self, limit: Duration) -> Self {
        self.delete = limit;
        self
    }

    /// Sets the limit of lists and verifications.
    #[must_use]
    pub fn with_read(mut self, limit: Duration) -> Self {
        self.read = limit;
        self
    }

    /// Sets what undoing may take.
    #[must_use]
    pub fn with_undo(mut self, grace: Duration) -> Self {
        self.undo = grace;
        self
    }

    /// Returns the limit of an operation.
    pub fn of(&self, operation: Operation) -> Duration {
        match operation {
            Operation::Create => self.create,
            Operation::Delete | Operation::Release => self.delete,
            Operation::List | Operation::Verify | Operation::Console => self.read,
            Operation::Teardown => self.teardown,
        }
    }
}

/// Gives each call a deadline and an end.
#[derive(Debug)]
pub(super) struct Timeout {
    pub(super) limits: Timeouts,
}

impl Around for Timeout {
    async fn around<'a, T: Send + 'a>(
        &'a self,
        ctx: &'a OpContext,
        call: Call<'a>,
        next: Next<'a, T>,
    ) -> Result<T> {
        let operation = call.operation;
        let limit = self.limits.of(operation);
        let own = Instant::now() + limit;
        let bounded = ctx.clone().with_timeout(limit);
        let deadline = bounded.deadline.map_or(own, |d| d.min(own));
        let mut future = next(bounded.clone());
        if operation.only_reads() || operation == Operation::Teardown {
            return bounded.run(future).await.map_err(|e| told(e, own, limit));
        }
        // Until then the provider is left alone; from then on it undoes.
        let told_to_end = tokio::select! {
            biased;
            result = &mut future => return result.map_err(|e| told(e, own, limit)),
            () = sleep_until(deadline) => Instant::now(),
            () = ctx.cancel.cancelled() => Instant::now(),
        };
        match timeout_at(told_to_end + self.limits.undo, future).await {
            Ok(result) => result.map_err(|e| told(e, own, limit)),
            Err(_) => {
                let left = left_by(call.subject);
                for resource in &left {
                    // The error tells it as well, so a recorder that fails or hangs loses nothing.
                    let _ = timeout(RECORD_LIMIT, ctx.record(resource)).await;
                }
                Err(Error::new(
                    ErrorKind::Cancelled,
                    "the provider did not come back after the end of the call, so nobody knows what it left",
                )
                .with("waited", format!("{:?}", self.limits.undo))
                .with_leftovers(left))
            }
        }
    }
}

/// Names what may be there after a call that was dropped: an instance, or whatever a token has.
fn left_by(subject: Subject<'_>) -> Vec<Resource> {
    let of_token = |token: &Token| vec![Resource::new(UNCONFIRMED, token.tag_value())];
    match subject {
        Subject::Request(request) => of_token(&request.token),
        Subject::Token(token) => of_token(token),
        Subject::Instance(id) => vec![Resource::new(Resource::INSTANCE, id.as_str())],
        Subject::Scope(_) | Subject::Nothing => Vec::new(),
    }
}

/// Says whose limit it was, where it was ours.
fn told(error: Error, own: Instant, limit: Duration) -> Error {
    match error.kind() {
        ErrorKind::Cancelled if Instant::now() >= own => error.with("limit", format!("{limit:?}")),
        _ => error,
    }
}
