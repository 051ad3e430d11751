//! Counters and timings, served as OpenMetrics text.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// A step of a sandbox's start, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StartPhase {
    /// Annotations, network namespace, tunnel id.
    Inspect,
    /// Certificates and user data.
    Prepare,
    /// The provider's create call.
    Create,
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
    /// Returns the word for logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Inspect => "inspect",
            Self::Prepare => "prepare",
            Self::Create => "create",
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
struct FailureLabels {
    operation: &'static str,
    kind: &'static str,
}

/// The daemon's metrics. No global registry: tests and several daemons in one process stay apart.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    phases: Family<PhaseLabels, Histogram, fn() -> Histogram>,
    failures: Family<FailureLabels, Counter>,
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
        Arc::new(Self { registry, phases, failures, sandboxes, deletions_pending, deletions_failed, orphans })
    }

    /// Notes how long a phase took.
    pub fn phase(&self, phase: StartPhase, elapsed: Duration) {
        self.phases.get_or_create(&PhaseLabels { phase: phase.label() }).observe(elapsed.as_secs_f64());
    }

    /// Counts a failed operation.
    pub fn failure(&self, operation: &'static str, kind: &'static str) {
        self.failures.get_or_create(&FailureLabels { operation, kind }).inc();
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
}
