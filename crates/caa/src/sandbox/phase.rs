//! A phase of a start, seen from outside: its span, its time, and what its failure counts as.

use std::time::Instant;

use peerpod_proto::Status;
use tracing::Instrument as _;

use super::{Shared, code_label};
use crate::{metrics::StartPhase, trace};

/// Why a step failed, for the shim and for a count.
pub(super) struct StepError {
    pub(super) status: Status,
    pub(super) kind: &'static str,
}

impl From<Status> for StepError {
    fn from(status: Status) -> Self {
        let kind = code_label(status.code());
        Self { status, kind }
    }
}

impl Shared {
    /// Takes a phase of a start: with a span, a time, and a count when it fails.
    pub(super) async fn phase<T>(
        &self,
        id: &str,
        phase: StartPhase,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        self.phase_of(id, phase, async { work.await.map_err(StepError::from) }).await
    }

    /// As [`Shared::phase`], where more than the status of a failure is known.
    pub(super) async fn phase_of<T>(
        &self,
        id: &str,
        phase: StartPhase,
        work: impl Future<Output = Result<T, StepError>>,
    ) -> Result<T, Status> {
        let span = tracing::info_span!("phase", phase = phase.label(), error = tracing::field::Empty);
        let started = Instant::now();
        // Outside of what waits: a phase is as large as all that it does.
        let result = Box::pin(work).instrument(span.clone()).await;
        let elapsed = started.elapsed();
        let long = matches!(phase, StartPhase::Create | StartPhase::Tunnel | StartPhase::Connect);
        match result {
            Ok(done) => {
                self.parts.metrics.phase(phase, elapsed);
                let (elapsed_ms, phase, sandbox_id) = (elapsed.as_micros() as f64 / 1e3, phase.label(), id);
                // Those in which a start spends its time, and those that take a moment.
                if long {
                    tracing::info!(sandbox_id, phase, elapsed_ms, "phase of the start is done");
                } else {
                    tracing::debug!(sandbox_id, phase, elapsed_ms, "phase of the start is done");
                }
                Ok(done)
            }
            Err(StepError { status, kind }) => {
                self.parts.metrics.phase_failure(phase, kind);
                trace::failed(&span, &status.message);
                tracing::debug!(
                    sandbox_id = id,
                    phase = phase.label(),
                    ?elapsed,
                    "phase of the start failed"
                );
                Err(status)
            }
        }
    }
}
