//! Counters and ages, served as OpenMetrics text.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cloud_providers::{
    ErrorKind,
    layers::{CallOutcome, Observer, Operation},
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AccountLabels {
    account: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    account: String,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OrphanLabels {
    account: String,
    verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HeldLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    account: String,
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    account: String,
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RepeatLabels {
    account: String,
    operation: &'static str,
    kind: &'static str,
}

/// What is counted about calls of providers.
#[derive(Clone, Debug)]
struct Calls {
    ended: Family<OutcomeLabels, Counter>,
    seconds: Family<CallLabels, Histogram, fn() -> Histogram>,
    running: Family<CallLabels, Gauge>,
    repeated: Family<RepeatLabels, Counter>,
    waited: Family<CallLabels, Histogram, fn() -> Histogram>,
}

impl Calls {
    fn new(registry: &mut Registry) -> Self {
        let calls = Self {
            ended: Family::default(),
            seconds: Family::new_with_constructor(seconds),
            running: Family::default(),
            repeated: Family::default(),
            waited: Family::new_with_constructor(seconds),
        };
        registry.register(
            "peerpod_ctrl_provider_calls",
            "Calls of a provider by their end",
            calls.ended.clone(),
        );
        registry.register(
            "peerpod_ctrl_provider_call_seconds",
            "Time of each call, repetitions and waits included",
            calls.seconds.clone(),
        );
        registry.register("peerpod_ctrl_provider_calls_running", "Calls under way", calls.running.clone());
        registry.register(
            "peerpod_ctrl_provider_repetitions",
            "Attempts that failed and were repeated, by kind of error",
            calls.repeated.clone(),
        );
        registry.register(
            "peerpod_ctrl_provider_rate_limit_seconds",
            "Time that attempts waited for their turn within the rate limit",
            calls.waited.clone(),
        );
        calls
    }
}

fn seconds() -> Histogram {
    Histogram::new([0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0])
}

/// Counts the calls of one account.
struct AccountCalls {
    account: String,
    calls: Calls,
}

impl AccountCalls {
    fn of(&self, operation: Operation) -> CallLabels {
        CallLabels { account: self.account.clone(), operation: operation.label() }
    }
}

impl Observer for AccountCalls {
    fn started(&self, operation: Operation) {
        self.calls.running.get_or_create(&self.of(operation)).inc();
    }

    fn finished(&self, operation: Operation, outcome: CallOutcome, elapsed: Duration) {
        self.calls.running.get_or_create(&self.of(operation)).dec();
        self.calls.seconds.get_or_create(&self.of(operation)).observe(elapsed.as_secs_f64());
        let CallLabels { account, operation } = self.of(operation);
        let labels = OutcomeLabels { account, operation, outcome: outcome.label() };
        self.calls.ended.get_or_create(&labels).inc();
    }

    fn retried(&self, operation: Operation, kind: &ErrorKind, _: Duration) {
        let CallLabels { account, operation } = self.of(operation);
        let labels = RepeatLabels { account, operation, kind: kind.label() };
        self.calls.repeated.get_or_create(&labels).inc();
    }

    fn waited(&self, operation: Operation, delay: Duration) {
        self.calls.waited.get_or_create(&self.of(operation)).observe(delay.as_secs_f64());
    }
}

/// The controller's metrics. No global registry: tests and several controllers in one process stay apart.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    deleted: Family<AccountLabels, Counter>,
    failed: Family<FailureLabels, Counter>,
    pending: Family<AccountLabels, Gauge>,
    oldest: Family<AccountLabels, Gauge<f64, AtomicU64>>,
    held: Family<HeldLabels, Gauge>,
    orphans: Family<OrphanLabels, Gauge>,
    swept: Family<AccountLabels, Counter>,
    config_broken: Family<AccountLabels, Gauge>,
    sweep_at: Gauge,
    sweep_frozen: Gauge,
    calls: Calls,
    /// Records that are known.
    pub records: Gauge,
    /// Streams of changes that broke and were begun anew.
    pub watch_restarts: Counter,
    /// Whether this controller leads: 1 or 0.
    pub leader: Gauge,
    beat: AtomicU64,
}

impl Metrics {
    /// Makes the metrics of one controller.
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::default();
        let deleted = Family::<AccountLabels, Counter>::default();
        let failed = Family::<FailureLabels, Counter>::default();
        let pending = Family::<AccountLabels, Gauge>::default();
        let oldest = Family::<AccountLabels, Gauge<f64, AtomicU64>>::default();
        let held = Family::<HeldLabels, Gauge>::default();
        let (records, watch_restarts, leader) = (Gauge::default(), Counter::default(), Gauge::default());
        registry.register("peerpod_ctrl_deleted", "VMs that the cloud said are gone", deleted.clone());
        registry.register("peerpod_ctrl_failures", "Deletions that failed, by kind of error", failed.clone());
        registry.register(
            "peerpod_ctrl_deletions_pending",
            "Records that wait for their deletion",
            pending.clone(),
        );
        registry.register(
            "peerpod_ctrl_oldest_deletion_seconds",
            "Age of the deletion that has been pending for longest",
            oldest.clone(),
        );
        registry.register("peerpod_ctrl_held", "Records that are held, by reason", held.clone());
        registry.register("peerpod_ctrl_records", "PeerPod objects that are known", records.clone());
        registry.register(
            "peerpod_ctrl_watch_restarts",
            "Streams of changes that broke and were begun anew",
            watch_restarts.clone(),
        );
        registry.register("peerpod_ctrl_leader", "1 while this controller leads", leader.clone());
        let (orphans, swept) =
            (Family::<OrphanLabels, Gauge>::default(), Family::<AccountLabels, Counter>::default());
        let config_broken = Family::<AccountLabels, Gauge>::default();
        registry.register(
            "peerpod_ctrl_config_broken",
            "1 while the configuration of an account does not work",
            config_broken.clone(),
        );
        let (sweep_at, sweep_frozen) = (Gauge::default(), Gauge::default());
        registry.register(
            "peerpod_ctrl_orphans",
            "What carries the tags of this cluster and is in no record, by what the last sweep decided",
            orphans.clone(),
        );
        registry.register("peerpod_ctrl_swept", "Orphans that the sweep deleted", swept.clone());
        registry.register(
            "peerpod_ctrl_last_sweep_timestamp_seconds",
            "When the last sweep ended",
            sweep_at.clone(),
        );
        registry.register(
            "peerpod_ctrl_sweep_frozen",
            "1 when the last sweep deleted nothing because the view of the cluster could not be trusted",
            sweep_frozen.clone(),
        );
        let calls = Calls::new(&mut registry);
        Arc::new(Self {
            registry,
            calls,
            orphans,
            swept,
            config_broken,
            sweep_at,
            sweep_frozen,
            deleted,
            failed,
            pending,
            oldest,
            held,
            records,
            watch_restarts,
            leader,
            beat: AtomicU64::new(0),
        })
    }

    /// Returns what counts the calls of an account, for the layers around its provider.
    pub fn calls_of(&self, account: &str) -> Arc<dyn Observer> {
        Arc::new(AccountCalls { account: account.to_owned(), calls: self.calls.clone() })
    }

    /// Counts a VM that is gone.
    pub fn gone(&self, account: &str) {
        self.deleted.get_or_create(&AccountLabels { account: account.into() }).inc();
    }

    /// Counts a deletion that failed.
    pub fn failure(&self, account: &str, kind: &'static str) {
        self.failed.get_or_create(&FailureLabels { account: account.into(), kind }).inc();
    }

    /// Sets how many deletions of an account are pending, and for how long the oldest has been.
    pub fn pending(&self, account: &str, count: usize, oldest_seconds: u64) {
        let labels = AccountLabels { account: account.into() };
        self.pending.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        #[expect(clippy::cast_precision_loss, reason = "an age in seconds")]
        self.oldest.get_or_create(&labels).set(oldest_seconds as f64);
    }

    /// Sets how many records are held for a reason.
    pub fn held(&self, reason: &'static str, count: usize) {
        self.held.get_or_create(&HeldLabels { reason }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Sets how many orphans of an account the last sweep decided so about.
    pub fn orphans(&self, account: &str, verdict: &'static str, count: usize) {
        let labels = OrphanLabels { account: account.into(), verdict };
        self.orphans.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts an orphan that the sweep deleted.
    pub fn swept(&self, account: &str) {
        self.swept.get_or_create(&AccountLabels { account: account.into() }).inc();
    }

    /// Sets whether the configuration of an account does not work.
    pub fn config_broken(&self, account: &str, broken: bool) {
        self.config_broken.get_or_create(&AccountLabels { account: account.into() }).set(i64::from(broken));
    }

    /// Notes the end of a sweep.
    pub fn sweep_ended(&self, at_unix: u64, frozen: bool) {
        self.sweep_at.set(i64::try_from(at_unix).unwrap_or(i64::MAX));
        self.sweep_frozen.set(i64::from(frozen));
    }

    /// Notes that the controller's loop turns; see [`Metrics::beats`].
    pub fn beat(&self) {
        self.beat.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the turns of the controller's loop: a number that stands still means a controller that does.
    pub fn beats(&self) -> u64 {
        self.beat.load(Ordering::Relaxed)
    }

    /// Returns everything as OpenMetrics text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing into a string cannot fail.
        let _ = encode(&mut out, &self.registry);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_appears_with_its_labels() {
        let metrics = Metrics::new();
        metrics.gone("aws");
        metrics.failure("aws/eu", "throttled");
        metrics.pending("aws", 3, 61);
        metrics.held("PodAlive", 1);
        let text = metrics.text();
        for part in [
            "peerpod_ctrl_deleted_total{account=\"aws\"} 1",
            "kind=\"throttled\"",
            "peerpod_ctrl_oldest_deletion_seconds{account=\"aws\"} 61",
            "peerpod_ctrl_held{reason=\"PodAlive\"} 1",
            "# EOF",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }
}
