//! Repeats what may succeed a little later.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::Instant;

use super::{Around, Call, Next, Operation, metrics::Observed};
use crate::{Error, ErrorKind, OpContext, Result, Retry};

/// How failed calls are repeated.
///
/// Only an error whose rule is [`Retry::After`] is repeated. The pause is drawn anew for each repetition: evenly between
/// nothing and a bound that doubles from [`RetryPolicy::base`] (full jitter), so that programs that failed together do
/// not come back together; it is never shorter than the delay that the error names, which is the server's own word
/// where it gave one, and never longer than [`RetryPolicy::cap`].
///
/// Not repeated is what the pause would bring beyond the deadline, a delay of the server beyond the cap, an error with
/// leftovers, and [`Operation::Teardown`]. Creating is safe to repeat, since the token names the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// The most repetitions of one call; zero repeats nothing.
    pub repeats: u32,
    /// The bound of the first pause.
    pub base: Duration,
    /// The longest pause.
    pub cap: Duration,
    /// Draws the same pauses again, for simulations; `None` draws others in every process.
    pub seed: Option<u64>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { repeats: 4, base: Duration::from_millis(500), cap: Duration::from_secs(20), seed: None }
    }
}

impl RetryPolicy {
    /// Sets the most repetitions.
    #[must_use]
    pub fn with_repeats(mut self, repeats: u32) -> Self {
        self.repeats = repeats;
        self
    }

    /// Sets the bound of the first pause.
    #[must_use]
    pub fn with_base(mut self, base: Duration) -> Self {
        self.base = base;
        self
    }

    /// Sets the longest pause.
    #[must_use]
    pub fn with_cap(mut self, cap: Duration) -> Self {
        self.cap = cap;
        self
    }

    /// Lets the same pauses be drawn again, for simulations.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Returns the pause before repetition `nth`, from 1, after an error that names `least`; `None` when that is beyond
    /// the cap. `jitter` is between 0 and 1.
    pub fn pause(&self, nth: u32, least: Duration, jitter: f64) -> Option<Duration> {
        if least > self.cap {
            return None;
        }
        let doubled = self.base.saturating_mul(1u32.checked_shl(nth.saturating_sub(1)).unwrap_or(u32::MAX));
        let bound = doubled.min(self.cap);
        // Added to the server's word: whoever was told the same second comes back spread as well.
        Some((least + bound.mul_f64(jitter.clamp(0.0, 1.0))).min(self.cap))
    }
}

/// Repeats failed calls.
#[derive(Debug)]
pub(super) struct Repeat {
    policy: RetryPolicy,
    observer: Observed,
    dice: Mutex<StdRng>,
}

impl Repeat {
    pub(super) fn new(policy: RetryPolicy, observer: Observed) -> Self {
        let dice = policy.seed.map_or_else(StdRng::from_os_rng, StdRng::seed_from_u64);
        Self { policy, observer, dice: Mutex::new(dice) }
    }

    /// Returns the pause before the next attempt, `None` when the error is the answer.
    fn pause(&self, ctx: &OpContext, operation: Operation, error: &Error, nth: u32) -> Option<Duration> {
        let Retry::After { delay: least } = error.retry() else { return None };
        let over = nth > self.policy.repeats || operation == Operation::Teardown;
        if over || *error.kind() == ErrorKind::Cancelled || !error.leftovers().is_empty() {
            return None;
        }
        let jitter = self.dice.lock().unwrap_or_else(PoisonError::into_inner).random();
        let pause = self.policy.pause(nth, least, jitter)?;
        // A pause that ends with the call would only hide the error behind a deadline.
        ctx.deadline.is_none_or(|deadline| Instant::now() + pause < deadline).then_some(pause)
    }
}

impl Around for Repeat {
    async fn around<'a, T: Send + 'a>(
        &'a self,
        ctx: &'a OpContext,
        call: Call<'a>,
        next: Next<'a, T>,
    ) -> Result<T> {
        let mut attempts = 1;
        loop {
            let error = match next(ctx.clone()).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let Some(pause) = self.pause(ctx, call.operation, &error, attempts) else {
                return Err(counted(error, attempts));
            };
            tracing::debug!(operation = %call.operation, attempt = attempts, ?pause, %error, "repeated after a pause");
            self.observer.0.retried(call.operation, error.kind(), pause);
            ctx.sleep(pause).await.map_err(|ended| counted(ended.with_source(error), attempts))?;
            attempts += 1;
        }
    }
}

fn counted(error: Error, attempts: u32) -> Error {
    if attempts > 1 { error.with("attempts", attempts) } else { error }
}
