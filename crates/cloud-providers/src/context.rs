//! What every call carries: how to cancel it, when it must end, and where its resources are recorded.

use std::{future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::{Error, ErrorKind, Resource, Result, Retry};

/// Takes note of each resource before the next remote call is made.
#[async_trait]
pub trait Record: Send + Sync {
    /// Keeps `resource`; returns when it is safe against a crash.
    ///
    /// # Errors
    ///
    /// When it could not be kept. The provider then undoes what it made and returns this error.
    async fn record(&self, resource: &Resource) -> Result<()>;

    /// Keeps several resources, for ids that are known beforehand; returns when all are safe against a crash.
    ///
    /// One after another, unless the recorder can do it at once.
    ///
    /// # Errors
    ///
    /// As [`Record::record`]. Some of them may be kept then.
    async fn record_all(&self, resources: &[Resource]) -> Result<()> {
        for resource in resources {
            self.record(resource).await?;
        }
        Ok(())
    }
}

/// Keeps nothing: for callers that hold their own record, and for tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRecord;

#[async_trait]
impl Record for NoRecord {
    async fn record(&self, _: &Resource) -> Result<()> {
        Ok(())
    }
}

/// Accompanies every call of a [`crate::Provider`].
#[derive(Clone)]
pub struct OpContext {
    /// Ends the call early: it undoes what it made and returns [`ErrorKind::Cancelled`].
    pub cancel: CancellationToken,
    /// The moment at which the call ends as if cancelled.
    pub deadline: Option<Instant>,
    /// Awaited with each resource's id before the next remote call.
    pub record: Arc<dyn Record>,
}

impl std::fmt::Debug for OpContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpContext")
            .field("cancelled", &self.cancel.is_cancelled())
            .field("deadline", &self.deadline)
            .finish()
    }
}

impl Default for OpContext {
    fn default() -> Self {
        Self::new()
    }
}

impl OpContext {
    /// Makes a context that is never cancelled, has no deadline and records nothing.
    pub fn new() -> Self {
        Self { cancel: CancellationToken::new(), deadline: None, record: Arc::new(NoRecord) }
    }

    /// Sets the token that cancels.
    #[must_use]
    pub fn with_cancel(mut self, cancel: CancellationToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// Sets the deadline to `limit` from now, or keeps an earlier one.
    #[must_use]
    pub fn with_timeout(mut self, limit: Duration) -> Self {
        let end = Instant::now() + limit;
        self.deadline = Some(self.deadline.map_or(end, |d| d.min(end)));
        self
    }

    /// Sets where resources are recorded.
    #[must_use]
    pub fn with_record(mut self, record: Arc<dyn Record>) -> Self {
        self.record = record;
        self
    }

    /// Returns the context for undoing: not cancelled with the call, with its own limit, same record.
    ///
    /// An undo that ended with the call it undoes would leave exactly what the call was cancelled for.
    #[must_use]
    pub fn for_undo(&self, limit: Duration) -> Self {
        Self {
            cancel: CancellationToken::new(),
            deadline: Some(Instant::now() + limit),
            record: self.record.clone(),
        }
    }

    /// Records a resource.
    ///
    /// # Errors
    ///
    /// The recorder's own.
    pub async fn record(&self, resource: &Resource) -> Result<()> {
        self.record.record(resource).await
    }

    /// Records several resources whose ids are known beforehand. A recorder that writes to a disk writes once.
    ///
    /// # Errors
    ///
    /// The recorder's own.
    pub async fn record_all(&self, resources: &[Resource]) -> Result<()> {
        self.record.record_all(resources).await
    }

    /// Returns an error when the call should end now.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Cancelled`].
    pub fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(cancelled());
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(late()),
            _ => Ok(()),
        }
    }

    /// Runs `future` until it ends, the call is cancelled or its deadline passes.
    ///
    /// On the last two the future is dropped: use it for calls that can be dropped without loss, such as reads.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Cancelled`], or the future's own error.
    pub async fn run<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        let bounded = async {
            match self.deadline {
                Some(deadline) => timeout_at(deadline, future).await.unwrap_or_else(|_| Err(late())),
                None => future.await,
            }
        };
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(cancelled()),
            result = bounded => result,
        }
    }

    /// Sleeps for `delay`, or less when the call ends first.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Cancelled`].
    pub async fn sleep(&self, delay: Duration) -> Result<()> {
        let end = Instant::now() + delay;
        self.run(async {
            sleep_until(end).await;
            Ok(())
        })
        .await
    }

    /// Calls `probe` every `interval` until it returns a value, at most for `limit`.
    ///
    /// An error whose retry rule is [`Retry::After`] does not end the wait: the probe is called again after the delay
    /// that it names, so that one failed question does not cost a machine. A probe that hangs is dropped at the limit.
    ///
    /// # Errors
    ///
    /// The probe's other errors at once; [`ErrorKind::Cancelled`] when the call ends; [`ErrorKind::Transient`] after
    /// `limit`, naming `what`, with the probe's last error as source.
    pub async fn poll<T, F, Fut>(
        &self,
        what: &str,
        interval: Duration,
        limit: Duration,
        mut probe: F,
    ) -> Result<T>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<Option<T>>>,
    {
        let end = Instant::now() + limit;
        let gave_up = |last: Option<Error>| {
            let error = Error::new(ErrorKind::Transient, format!("gave up waiting for {what}"))
                .with("waited", format!("{limit:?}"));
            match last {
                Some(last) => error.with_source(last),
                None => error,
            }
        };
        let mut last = None;
        loop {
            let answer = self.run(async { Ok(timeout_at(end, probe()).await) }).await?;
            let pause = match answer {
                Err(_) => return Err(gave_up(last)),
                Ok(Ok(Some(value))) => return Ok(value),
                Ok(Ok(None)) => interval,
                Ok(Err(error)) => match error.retry() {
                    Retry::After { delay } => {
                        last = Some(error);
                        interval.max(delay)
                    }
                    _ => return Err(error),
                },
            };
            if Instant::now() + pause > end {
                return Err(gave_up(last));
            }
            self.sleep(pause).await?;
        }
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the caller cancelled the operation")
}

fn late() -> Error {
    Error::new(ErrorKind::Cancelled, "the deadline of the operation passed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn polling_ends_within_its_bound() {
        let start = Instant::now();
        let result: Result<()> = OpContext::new()
            .poll("an address", Duration::from_millis(200), Duration::from_secs(3), || async { Ok(None) })
            .await;
        assert_eq!(*result.unwrap_err().kind(), ErrorKind::Transient);
        assert!(start.elapsed() <= Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn polling_outlives_passing_errors_and_follows_their_delay() {
        let start = Instant::now();
        let mut answers = vec![
            Ok(Some(7)),
            Err(Error::new(ErrorKind::Transient, "reset")),
            Err(Error::new(ErrorKind::Throttled, "slow down")
                .with_retry(Retry::After { delay: Duration::from_secs(5) })),
        ];
        let (step, limit) = (Duration::from_millis(200), Duration::from_secs(20));
        let value =
            OpContext::new().poll("x", step, limit, || std::future::ready(answers.pop().unwrap())).await;
        assert_eq!(value.unwrap(), 7);
        assert!(start.elapsed() >= Duration::from_secs(5));
        let error = OpContext::new()
            .poll("x", step, limit, || async { Err::<Option<()>, _>(Error::new(ErrorKind::Auth, "who?")) })
            .await;
        assert_eq!(*error.unwrap_err().kind(), ErrorKind::Auth);
        let error = OpContext::new()
            .poll("x", step, limit, || async {
                Err::<Option<()>, _>(Error::new(ErrorKind::Transient, "reset"))
            })
            .await;
        assert!(error.unwrap_err().report().contains("gave up waiting for x (waited: 20s): reset"));
    }

    #[tokio::test(start_paused = true)]
    async fn polling_drops_a_probe_that_hangs() {
        let result: Result<()> = OpContext::new()
            .poll("x", Duration::from_millis(1), Duration::from_secs(3), std::future::pending)
            .await;
        assert_eq!(*result.unwrap_err().kind(), ErrorKind::Transient);
    }

    #[tokio::test(start_paused = true)]
    async fn polling_ends_on_cancel_and_at_the_deadline() {
        let ctx = OpContext::new().with_timeout(Duration::from_secs(1));
        let late: Result<()> =
            ctx.poll("x", Duration::from_secs(10), Duration::from_secs(60), || async { Ok(None) }).await;
        assert_eq!(*late.unwrap_err().kind(), ErrorKind::Cancelled);
        let ctx = OpContext::new();
        ctx.cancel.cancel();
        assert!(ctx.check().is_err());
        assert!(ctx.for_undo(Duration::from_secs(1)).check().is_ok());
    }
}
