//! One span for each call.

use tokio::time::Instant;
use tracing::Instrument as _;

use super::{Around, Call, Next, Operation};
use crate::{OpContext, Result};

/// Puts a call into a span, and tells its end within it.
#[derive(Debug)]
pub(super) struct Trace {
    pub(super) provider: String,
}

impl Around for Trace {
    async fn around<'a, T: Send + 'a>(
        &'a self,
        ctx: &'a OpContext,
        call: Call<'a>,
        next: Next<'a, T>,
    ) -> Result<T> {
        let Call { operation, subject } = call;
        let span = tracing::info_span!(
            "provider",
            provider = %self.provider,
            %operation,
            unit = tracing::field::Empty,
            instance_id = tracing::field::Empty,
            scope = tracing::field::Empty,
            token = tracing::field::Empty,
            error = tracing::field::Empty,
            kind = tracing::field::Empty,
        );
        if let Some((field, value)) = subject.shown() {
            span.record(field, value);
        }
        let inner = span.clone();
        async move {
            let start = Instant::now();
            let result = next(ctx.clone()).await;
            let elapsed = start.elapsed();
            match &result {
                // The list of a sweep comes every minute and says nothing.
                Ok(_) if operation == Operation::List => tracing::trace!(?elapsed, "the provider answered"),
                Ok(_) => tracing::debug!(?elapsed, "the provider answered"),
                // The caller decides how bad it is, and says so.
                Err(error) => {
                    let report = error.report();
                    tracing::debug!(?elapsed, error = report, "the provider failed");
                    // For whoever follows traces; after the line, which says it itself.
                    span.record("error", report.as_str()).record("kind", error.kind().label());
                }
            }
            result
        }
        .instrument(inner)
        .await
    }
}
