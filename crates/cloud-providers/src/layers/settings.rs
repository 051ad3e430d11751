//! The stack that programs use, and its options.

use std::{sync::Arc, time::Duration};

use super::{Layer, Observer, Rate, RateLimit, RetryPolicy, Stack, Timeouts};
use crate::{OptionKind, OptionSpec, Provider, Values};

/// Repetitions of a failed call.
pub const RETRIES: OptionSpec = OptionSpec::int(
    "cloud-retries",
    0,
    20,
    "how often a call of the provider that failed for a passing reason is repeated; 0 repeats none",
)
.env("CLOUD_RETRIES")
.default("4");

/// The longest pause before a repetition.
pub const RETRY_CAP: OptionSpec = OptionSpec::new(
    "cloud-retry-cap",
    OptionKind::Duration,
    "longest pause before a repetition; a cloud that wants a longer one is not asked again",
)
.env("CLOUD_RETRY_CAP")
.default("20s");

/// Creates for each second.
pub const CREATE_RATE: OptionSpec = OptionSpec::int(
    "cloud-creates-per-second",
    0,
    10_000,
    "instances that this program asks for in each second, with five times as many at once after a pause; 0 is no limit",
)
.env("CLOUD_CREATES_PER_SECOND")
.default("10");

/// Deletions for each second.
pub const DELETE_RATE: OptionSpec = OptionSpec::int(
    "cloud-deletes-per-second",
    0,
    10_000,
    "deletions, and likewise releases, in each second, with five times as many at once after a pause; 0 is no limit",
)
.env("CLOUD_DELETES_PER_SECOND")
.default("10");

/// Lists for each second.
pub const LIST_RATE: OptionSpec = OptionSpec::int(
    "cloud-lists-per-second",
    0,
    10_000,
    "lists of what is owned in each second, with five times as many at once after a pause; 0 is no limit",
)
.env("CLOUD_LISTS_PER_SECOND")
.default("2");

/// All options of the layers, for programs that declare theirs by `const`.
pub const OPTIONS: &[OptionSpec] = &[RETRIES, RETRY_CAP, CREATE_RATE, DELETE_RATE, LIST_RATE];

/// Settings of all layers.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct LayerSettings {
    /// Deadlines.
    pub timeouts: Timeouts,
    /// Repetitions.
    pub retry: RetryPolicy,
    /// Rates.
    pub rate: RateLimit,
    /// The account whose limits are shared; default: the provider's name.
    pub account: Option<String>,
}

impl LayerSettings {
    /// Reads [`OPTIONS`] from values that were parsed with them.
    pub fn from_values(values: &Values) -> Self {
        let rate = |spec: OptionSpec| {
            let calls = u32::try_from(values.int(spec.flag)).unwrap_or_default();
            (calls > 0).then(|| Rate::new(f64::from(calls), calls.saturating_mul(5)))
        };
        let cap = values.duration(RETRY_CAP.flag);
        let repeats = u32::try_from(values.int(RETRIES.flag)).unwrap_or_default();
        Self {
            timeouts: Timeouts::default(),
            retry: RetryPolicy::default().with_repeats(repeats).with_cap(cap),
            rate: RateLimit::default()
                .with_create(rate(CREATE_RATE))
                .with_delete(rate(DELETE_RATE))
                .with_list(rate(LIST_RATE))
                .with_pause_cap(cap.max(Duration::from_secs(1))),
            account: None,
        }
    }

    /// Sets the deadlines.
    #[must_use]
    pub fn with_timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// Sets the repetitions.
    #[must_use]
    pub fn with_retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// Sets the rates.
    #[must_use]
    pub fn with_rate(mut self, rate: RateLimit) -> Self {
        self.rate = rate;
        self
    }
}

/// Puts every layer around a provider: what programs do with each provider that they make.
pub fn standard(
    name: &str,
    provider: Arc<dyn Provider>,
    settings: &LayerSettings,
    observer: Arc<dyn Observer>,
) -> Arc<dyn Provider> {
    Stack::new(name)
        .with_account(settings.account.as_deref().unwrap_or(name))
        .with(Layer::ErrorContext)
        .with(Layer::Tracing)
        .with(Layer::Metrics(observer))
        .with(Layer::Timeout(settings.timeouts))
        .with(Layer::Retry(settings.retry))
        .with(Layer::RateLimit(settings.rate.clone()))
        .put_around(provider)
}
