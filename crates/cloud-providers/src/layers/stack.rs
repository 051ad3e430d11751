//! Layers in their one order.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    Layered, NoObserver, Observer, Operation, Rate, RateLimiter, RetryPolicy, Timeouts,
    error_context::ErrorContext,
    metrics::{Metrics, Observed},
    rate::Limit,
    retry::Repeat,
    timeout::Timeout,
    trace::Trace,
};
use crate::{Error, Provider, Result};

/// How fast an account is asked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RateLimit {
    /// The buckets; whoever shares them shares the limit.
    pub limiter: Arc<RateLimiter>,
    /// Creates; `None` is no limit.
    pub create: Option<Rate>,
    /// Deletions, and releases apart from them.
    pub delete: Option<Rate>,
    /// Lists.
    pub list: Option<Rate>,
    /// The longest pause for everybody after the cloud said that there are too many calls.
    pub pause_cap: Duration,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            limiter: Arc::new(RateLimiter::new()),
            create: Some(Rate::new(10.0, 50)),
            delete: Some(Rate::new(10.0, 50)),
            list: Some(Rate::new(2.0, 10)),
            pause_cap: Duration::from_secs(20),
        }
    }
}

impl RateLimit {
    /// Sets the buckets.
    #[must_use]
    pub fn with_limiter(mut self, limiter: Arc<RateLimiter>) -> Self {
        self.limiter = limiter;
        self
    }

    /// Sets the rate of creates; `None` is no limit.
    #[must_use]
    pub fn with_create(mut self, rate: Option<Rate>) -> Self {
        self.create = rate;
        self
    }

    /// Sets the rate of deletions and of releases; `None` is no limit.
    #[must_use]
    pub fn with_delete(mut self, rate: Option<Rate>) -> Self {
        self.delete = rate;
        self
    }

    /// Sets the rate of lists; `None` is no limit.
    #[must_use]
    pub fn with_list(mut self, rate: Option<Rate>) -> Self {
        self.list = rate;
        self
    }

    /// Sets the longest pause for everybody.
    #[must_use]
    pub fn with_pause_cap(mut self, cap: Duration) -> Self {
        self.pause_cap = cap;
        self
    }

    /// Returns the rate of an operation. Verifying is asked for by people and teardown calls nobody.
    pub fn of(&self, operation: Operation) -> Option<Rate> {
        match operation {
            Operation::Create => self.create,
            Operation::Delete | Operation::Release => self.delete,
            Operation::List => self.list,
            Operation::Verify | Operation::Console | Operation::Teardown => None,
        }
    }
}

/// One layer with its settings.
#[derive(Clone)]
#[non_exhaustive]
pub enum Layer {
    /// Writes provider, operation and subject on every error.
    ErrorContext,
    /// One span for each call.
    Tracing,
    /// Tells an observer of each call; the layers below tell it of repetitions and waits.
    Metrics(Arc<dyn Observer>),
    /// Gives each call a deadline.
    Timeout(Timeouts),
    /// Repeats failed calls.
    Retry(RetryPolicy),
    /// Lets each attempt wait for its token.
    RateLimit(RateLimit),
}

impl Layer {
    /// Returns its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ErrorContext => "error context",
            Self::Tracing => "tracing",
            Self::Metrics(_) => "metrics",
            Self::Timeout(_) => "timeout",
            Self::Retry(_) => "retry",
            Self::RateLimit(_) => "rate limit",
        }
    }

    /// Returns its place, from the outside, and why it is not further inside.
    fn place(&self) -> (u8, &'static str) {
        match self {
            Self::ErrorContext => (1, "errors of the layers below need their context too"),
            Self::Tracing => (2, "a call with all its repetitions is one span"),
            Self::Metrics(_) => (3, "a call with all its repetitions and waits is counted once"),
            Self::Timeout(_) => (4, "all repetitions and waits have to fit into the deadline"),
            Self::Retry(_) => (5, "each repetition has to wait for its token"),
            Self::RateLimit(_) => (6, "it is the innermost"),
        }
    }
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Puts layers around a provider, the outermost first.
///
/// ```
/// # use std::sync::Arc;
/// # use cloud_providers::{Provider, scripted::{ScriptedProvider, World}};
/// use cloud_providers::layers::{Layer, RetryPolicy, Stack, Timeouts};
/// # let provider: Arc<dyn Provider> = Arc::new(ScriptedProvider::new(&World::new()));
/// # let other = provider.clone();
/// let stack = Stack::new("aws").with(Layer::Timeout(Timeouts::default())).with(Layer::Retry(RetryPolicy::default()));
/// let provider = stack.wrap(provider)?;
///
/// let wrong = Stack::new("aws").with(Layer::Retry(RetryPolicy::default())).with(Layer::Tracing);
/// # let provider = other;
/// assert_eq!(
///     wrong.wrap(provider).unwrap_err().to_string(),
///     "the layer tracing is inside of retry and belongs outside: a call with all its repetitions is one span"
/// );
/// # Ok::<(), cloud_providers::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Stack {
    provider: String,
    account: String,
    layers: Vec<Layer>,
}

impl Stack {
    /// Starts without a layer. `provider` is the name for errors, logs and, unless set otherwise, the account.
    pub fn new(provider: impl Into<String>) -> Self {
        let provider = provider.into();
        Self { account: provider.clone(), provider, layers: Vec::new() }
    }

    /// Names the account whose limits are shared.
    #[must_use]
    pub fn with_account(mut self, account: impl Into<String>) -> Self {
        self.account = account.into();
        self
    }

    /// Adds a layer inside of those that are there.
    #[must_use]
    pub fn with(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Puts the layers around `provider`.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::Internal`] when a layer is there twice, or not in its place, with the reason.
    pub fn wrap(self, provider: Arc<dyn Provider>) -> Result<Arc<dyn Provider>> {
        self.check()?;
        Ok(self.put_around(provider))
    }

    fn check(&self) -> Result<()> {
        for pair in self.layers.windows(2) {
            let (outer, inner) = (&pair[0], &pair[1]);
            let ((outer_place, _), (inner_place, why)) = (outer.place(), inner.place());
            if outer_place == inner_place {
                return Err(Error::internal(format!("the layer {} is there twice", inner.name())));
            }
            if outer_place > inner_place {
                return Err(Error::internal(format!(
                    "the layer {} is inside of {} and belongs outside: {why}",
                    inner.name(),
                    outer.name()
                )));
            }
        }
        Ok(())
    }

    /// Puts layers around that are in their places.
    pub(super) fn put_around(self, provider: Arc<dyn Provider>) -> Arc<dyn Provider> {
        let observer = self.layers.iter().find_map(|layer| match layer {
            Layer::Metrics(observer) => Some(observer.clone()),
            _ => None,
        });
        let observer = Observed(observer.unwrap_or_else(|| Arc::new(NoObserver)));
        let mut inner = provider;
        for layer in self.layers.into_iter().rev() {
            let observer = observer.clone();
            inner = match layer {
                Layer::ErrorContext => {
                    Arc::new(Layered { layer: ErrorContext { provider: self.provider.clone() }, inner })
                }
                Layer::Tracing => {
                    Arc::new(Layered { layer: Trace { provider: self.provider.clone() }, inner })
                }
                Layer::Metrics(_) => Arc::new(Layered { layer: Metrics { observer }, inner }),
                Layer::Timeout(limits) => Arc::new(Layered { layer: Timeout { limits }, inner }),
                Layer::Retry(policy) => Arc::new(Layered { layer: Repeat::new(policy, observer), inner }),
                Layer::RateLimit(limit) => {
                    let account = self.account.clone();
                    Arc::new(Layered { layer: Limit { account, limit, observer }, inner })
                }
            };
        }
        inner
    }
}

#[cfg(all(test, feature = "scripted"))]
mod tests {
    use super::*;
    use crate::scripted::{ScriptedProvider, World};

    fn all() -> [Layer; 6] {
        [
            Layer::ErrorContext,
            Layer::Tracing,
            Layer::Metrics(Arc::new(NoObserver)),
            Layer::Timeout(Timeouts::default()),
            Layer::Retry(RetryPolicy::default()),
            Layer::RateLimit(RateLimit::default()),
        ]
    }

    fn wrap(layers: &[&Layer]) -> Result<Arc<dyn Provider>> {
        let stack = layers.iter().fold(Stack::new("x"), |stack, layer| stack.with((*layer).clone()));
        stack.wrap(Arc::new(ScriptedProvider::new(&World::new())))
    }

    #[test]
    fn every_order_but_the_one_is_refused_with_the_reason() {
        let all = all();
        wrap(&all.iter().collect::<Vec<_>>()).unwrap();
        wrap(&[]).unwrap();
        for (i, outer) in all.iter().enumerate() {
            for (j, inner) in all.iter().enumerate() {
                let result = wrap(&[outer, inner]);
                match i.cmp(&j) {
                    std::cmp::Ordering::Less => drop(result.unwrap()),
                    std::cmp::Ordering::Equal => {
                        assert_eq!(
                            result.unwrap_err().to_string(),
                            format!("the layer {} is there twice", inner.name())
                        );
                    }
                    std::cmp::Ordering::Greater => {
                        let text = result.unwrap_err().to_string();
                        assert!(text.contains(inner.place().1) && text.contains(outer.name()), "{text}");
                    }
                }
            }
        }
    }
}
