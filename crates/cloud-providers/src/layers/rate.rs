//! Token buckets: no account is asked faster than it answers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{Around, Call, Next, metrics::Observed, stack::RateLimit};
use crate::{ErrorKind, OpContext, Result, Retry};

/// How many calls an account takes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Rate {
    /// Calls for each second, over time.
    pub per_second: f64,
    /// Calls at once after a pause.
    pub burst: u32,
}

impl Rate {
    /// Makes a rate; what is not above zero becomes one call in a thousand seconds, and a burst at least 1.
    pub fn new(per_second: f64, burst: u32) -> Self {
        Self { per_second: if per_second > 0.001 { per_second } else { 0.001 }, burst: burst.max(1) }
    }

    fn time_for(self, tokens: f64) -> Duration {
        Duration::from_secs_f64(tokens / self.per_second)
    }
}

/// Token buckets of accounts and operations. Whoever has the same one shares the buckets.
///
/// Operations are words, so that a provider limits the remote calls of its cloud with it too.
#[derive(Debug, Default)]
pub struct RateLimiter {
    buckets: Mutex<HashMap<(String, String), Arc<Bucket>>>,
}

#[derive(Debug)]
struct Bucket {
    /// Taken in turn, so nobody is overtaken. Who is cancelled leaves the queue and takes no token along.
    turn: tokio::sync::Mutex<Fill>,
    /// The cloud wants nobody before this.
    closed_until: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Fill {
    tokens: f64,
    at: Instant,
}

impl RateLimiter {
    /// Makes a limiter whose buckets are full.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits for a token of `operation` in `account`, in turn, and returns how long that took.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Cancelled`] when the call ends before; it takes no token along.
    pub async fn take(
        &self,
        ctx: &OpContext,
        account: &str,
        operation: &str,
        rate: Rate,
    ) -> Result<Duration> {
        let bucket = self.bucket(account, operation, rate);
        let start = Instant::now();
        ctx.run(async {
            let mut fill = bucket.turn.lock().await;
            loop {
                let now = Instant::now();
                let gained = now.duration_since(fill.at).as_secs_f64() * rate.per_second;
                fill.tokens = (fill.tokens + gained).min(f64::from(rate.burst));
                fill.at = now;
                let closed = *bucket.closed_until.lock().unwrap_or_else(PoisonError::into_inner);
                // A hair less than one is one: the clock counts in whole milliseconds.
                if fill.tokens >= 1.0 - 1e-6 && closed.is_none_or(|end| end <= now) {
                    fill.tokens -= 1.0;
                    return Ok(());
                }
                let full = now + rate.time_for((1.0 - fill.tokens).max(0.0));
                sleep_until(closed.map_or(full, |end| end.max(full))).await;
            }
        })
        .await?;
        Ok(start.elapsed())
    }

    /// Lets nobody pass before `delay` is over: the cloud said that there are too many calls.
    pub fn close(&self, account: &str, operation: &str, rate: Rate, delay: Duration) {
        let end = Instant::now() + delay;
        let bucket = self.bucket(account, operation, rate);
        let mut closed = bucket.closed_until.lock().unwrap_or_else(PoisonError::into_inner);
        *closed = Some(closed.map_or(end, |before| before.max(end)));
    }

    fn bucket(&self, account: &str, operation: &str, rate: Rate) -> Arc<Bucket> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || {
            let fill = Fill { tokens: f64::from(rate.burst), at: Instant::now() };
            Arc::new(Bucket { turn: tokio::sync::Mutex::new(fill), closed_until: Mutex::default() })
        };
        buckets.entry((account.to_owned(), operation.to_owned())).or_insert_with(fresh).clone()
    }
}

/// Lets each attempt wait for its token.
#[derive(Debug)]
pub(super) struct Limit {
    pub(super) account: String,
    pub(super) limit: RateLimit,
    pub(super) observer: Observed,
}

impl Around for Limit {
    async fn around<'a, T: Send + 'a>(
        &'a self,
        ctx: &'a OpContext,
        call: Call<'a>,
        next: Next<'a, T>,
    ) -> Result<T> {
        let operation = call.operation;
        let Some(rate) = self.limit.of(operation) else { return next(ctx.clone()).await };
        let limiter = &self.limit.limiter;
        let waited = limiter.take(ctx, &self.account, operation.label(), rate).await?;
        if !waited.is_zero() {
            self.observer.0.waited(operation, waited);
        }
        let result = next(ctx.clone()).await;
        if let Err(error) = &result
            && *error.kind() == ErrorKind::Throttled
            && let Retry::After { delay } = error.retry()
        {
            // Everybody's pause, or the others would run into the same wall one after the other.
            limiter.close(&self.account, operation.label(), rate, delay.min(self.limit.pause_cap));
        }
        result
    }
}
