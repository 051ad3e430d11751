//! Counters and timings, served as OpenMetrics text.

use std::{sync::Arc, time::Duration};

use cloud_providers::{
    ErrorKind,
    layers::{CallOutcome, Observer, Operation},
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// A step of a sandbox's start, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StartPhase {
    /// The pod's network namespace.
    Inspect,
    /// Certificates, user data, the journal and a tunnel id.
    Prepare,
    /// The record in the cluster, before the instance.
    Claim,
    /// The provider's create call, with the wait for the turn to make it.
    Create,
    /// The instance's id in the cluster.
    Bind,
    /// The tunnel to the instance.
    Tunnel,
    /// From the first dial to a finished handshake with the forwarder.
    Connect,
    /// All of StartVM.
    StartVm,
    /// All of CreateVM.
    CreateVm,
}

impl StartPhase {
    /// Every phase.
    pub const ALL: [Self; 9] = [
        Self::Inspect,
        Self::Prepare,
        Self::Claim,
        Self::Create,
        Self::Bind,
        Self::Tunnel,
        Self::Connect,
        Self::StartVm,
        Self::CreateVm,
    ];

    /// Returns the word for logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Inspect => "inspect",
            Self::Prepare => "prepare",
            Self::Claim => "claim",
            Self::Create => "create",
            Self::Bind => "bind",
            Self::Tunnel => "tunnel",
            Self::Connect => "connect",
            Self::StartVm => "start_vm",
            Self::CreateVm => "create_vm",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseFailureLabels {
    phase: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    operation: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: &'static str,
}

/// What became of the spans that were to be sent to a collector. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct SpanCounts {
    sent: Counter,
    dropped: Family<ReasonLabels, Counter>,
}

impl SpanCounts {
    /// Counts spans that a request carried, of which the collector refused some.
    pub fn sent(&self, spans: usize, rejected: usize) {
        self.sent.inc_by(spans.saturating_sub(rejected) as u64);
        self.dropped("rejected", rejected);
    }

    /// Counts spans that nobody gets.
    pub fn dropped(&self, reason: &'static str, spans: usize) {
        if spans > 0 {
            self.dropped.get_or_create(&ReasonLabels { reason }).inc_by(spans as u64);
        }
    }
}

/// What is counted about calls of the provider.
#[derive(Debug)]
struct Calls {
    ended: Family<CallLabels, Counter>,
    seconds: Family<OperationLabels, Histogram, fn() -> Histogram>,
    running: Family<OperationLabels, Gauge>,
    repeated: Family<FailureLabels, Counter>,
    waited: Family<OperationLabels, Histogram, fn() -> Histogram>,
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
            "peerpod_provider_calls",
            "Calls of the provider by their end",
            calls.ended.clone(),
        );
        registry.register(
            "peerpod_provider_call_seconds",
            "Time of each call, repetitions and waits included",
            calls.seconds.clone(),
        );
        registry.register("peerpod_provider_calls_running", "Calls under way", calls.running.clone());
        registry.register(
            "peerpod_provider_repetitions",
            "Attempts that failed and were repeated, by kind of error",
            calls.repeated.clone(),
        );
        registry.register(
            "peerpod_provider_rate_limit_seconds",
            "Time that attempts waited for their turn within the rate limit",
            calls.waited.clone(),
        );
        calls
    }
}

fn of(operation: Operation) -> OperationLabels {
    OperationLabels { operation: operation.label() }
}

impl Observer for Metrics {
    fn started(&self, operation: Operation) {
        self.calls.running.get_or_create(&of(operation)).inc();
    }

    fn finished(&self, operation: Operation, outcome: CallOutcome, elapsed: Duration) {
        self.calls.running.get_or_create(&of(operation)).dec();
        self.calls.seconds.get_or_create(&of(operation)).observe(elapsed.as_secs_f64());
        let labels = CallLabels { operation: operation.label(), outcome: outcome.label() };
        self.calls.ended.get_or_create(&labels).inc();
    }

    fn retried(&self, operation: Operation, kind: &ErrorKind, _: Duration) {
        let labels = FailureLabels { operation: operation.label(), kind: kind.label() };
        self.calls.repeated.get_or_create(&labels).inc();
    }

    fn waited(&self, operation: Operation, delay: Duration) {
        self.calls.waited.get_or_create(&of(operation)).observe(delay.as_secs_f64());
    }
}

/// The daemon's metrics. No global registry: tests and several daemons in one process stay apart.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    phases: Family<PhaseLabels, Histogram, fn() -> Histogram>,
    failures: Family<FailureLabels, Counter>,
    phase_failures: Family<PhaseFailureLabels, Counter>,
    calls: Calls,
    /// Sandboxes that are known, whatever their phase.
    pub sandboxes: Gauge,
    /// Instances whose deletion is not confirmed yet.
    pub deletions_pending: Gauge,
    /// Attempts to delete that failed.
    pub deletions_failed: Counter,
    /// What carries this node's name in the cloud and is in no record.
    pub orphans: Gauge,
}

fn seconds() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
        300.0,
    ])
}

impl Metrics {
    /// Makes the metrics of one daemon for one provider.
    pub fn new(provider: &str) -> Arc<Self> {
        Self::with_spans(provider, &SpanCounts::default())
    }

    /// Makes them with what is counted about spans elsewhere.
    pub fn with_spans(provider: &str, spans: &SpanCounts) -> Arc<Self> {
        let mut registry =
            Registry::with_labels([("provider".into(), provider.to_owned().into())].into_iter());
        let phases = Family::<PhaseLabels, Histogram, fn() -> Histogram>::new_with_constructor(seconds);
        let failures = Family::<FailureLabels, Counter>::default();
        let (sandboxes, deletions_pending, deletions_failed) =
            (Gauge::default(), Gauge::default(), Counter::default());
        registry.register(
            "peerpod_start_phase_seconds",
            "Time of each phase of a sandbox's start",
            phases.clone(),
        );
        registry.register("peerpod_failures", "Failed operations by kind of error", failures.clone());
        let phase_failures = Family::<PhaseFailureLabels, Counter>::default();
        registry.register(
            "peerpod_start_failures",
            "Starts that failed, by the phase in which they did and the kind of error",
            phase_failures.clone(),
        );
        registry.register("peerpod_spans_sent", "Spans that a collector took", spans.sent.clone());
        registry.register(
            "peerpod_spans_dropped",
            "Spans that no collector got, by the reason",
            spans.dropped.clone(),
        );
        registry.register("peerpod_sandboxes", "Sandboxes known to the daemon", sandboxes.clone());
        registry.register(
            "peerpod_deletions_pending",
            "Instances whose deletion is not confirmed",
            deletions_pending.clone(),
        );
        registry.register(
            "peerpod_deletions_failed",
            "Failed attempts to delete an instance",
            deletions_failed.clone(),
        );
        let orphans = Gauge::default();
        registry.register(
            "peerpod_orphans",
            "Things in the cloud that carry this node's name and are in no record",
            orphans.clone(),
        );
        let calls = Calls::new(&mut registry);
        Arc::new(Self {
            registry,
            phases,
            failures,
            phase_failures,
            calls,
            sandboxes,
            deletions_pending,
            deletions_failed,
            orphans,
        })
    }

    /// Notes how long a phase took.
    pub fn phase(&self, phase: StartPhase, elapsed: Duration) {
        self.phases.get_or_create(&PhaseLabels { phase: phase.label() }).observe(elapsed.as_secs_f64());
    }

    /// Counts a failed operation.
    pub fn failure(&self, operation: &'static str, kind: &'static str) {
        self.failures.get_or_create(&FailureLabels { operation, kind }).inc();
    }

    /// Counts a start that failed in a phase.
    pub fn phase_failure(&self, phase: StartPhase, kind: &'static str) {
        self.phase_failures.get_or_create(&PhaseFailureLabels { phase: phase.label(), kind }).inc();
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
    fn phases_and_failures_appear_with_their_labels() {
        let metrics = Metrics::new("local");
        metrics.phase(StartPhase::Create, Duration::from_millis(7));
        metrics.failure("start_vm", "capacity");
        let text = metrics.text();
        for part in
            ["phase=\"create\"", "provider=\"local\"", "kind=\"capacity\"", "peerpod_sandboxes", "# EOF"]
        {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn calls_of_the_provider_appear_with_their_end() {
        let metrics = Metrics::new("local");
        metrics.started(Operation::Create);
        metrics.retried(Operation::Create, &ErrorKind::Throttled, Duration::from_secs(1));
        metrics.waited(Operation::Create, Duration::from_secs(2));
        metrics.started(Operation::Create);
        metrics.finished(Operation::Create, CallOutcome::Failed("quota"), Duration::from_secs(3));
        let text = metrics.text();
        for part in [
            "peerpod_provider_calls_total{provider=\"local\",operation=\"create_instance\",outcome=\"quota\"} 1",
            "peerpod_provider_calls_running{provider=\"local\",operation=\"create_instance\"} 1",
            "peerpod_provider_call_seconds_sum{provider=\"local\",operation=\"create_instance\"} 3",
            "peerpod_provider_repetitions_total{provider=\"local\",operation=\"create_instance\",kind=\"throttled\"} 1",
            "peerpod_provider_rate_limit_seconds_sum{provider=\"local\",operation=\"create_instance\"} 2",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }
}
