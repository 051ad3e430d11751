//! Traces: what belongs to one start, across shim, daemon and gateway.
//!
//! Each call of a shim is a span of the log, each phase of the work below it another one. The span of a call carries the
//! id of its trace: that of the shim where it sent one, otherwise a new one. With the feature `otlp` the spans go to a
//! collector as well.
//!
//! ```text
//! CreateVM ─ phase inspect, phase prepare
//! StartVM ─ phase claim, phase create ─ provider create_instance, phase bind, phase tunnel, phase connect
//! StopVM ─ teardown ─ undo close the agent socket, undo delete the instance ─ provider delete_instance, …
//! ```

mod context;
mod layer;
#[cfg(feature = "otlp")]
pub mod otlp;
mod settings;

use std::future::Future;

use futures_util::future::BoxFuture;
use peerpod_proto::envelope::KeyValue;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::metrics::SpanCounts;

pub use context::{TRACEPARENT, TraceContext};
pub(crate) use layer::context_in;
pub use layer::{EndedSpan, TraceEvent, TraceSink, TraceValue, Traces, current};
pub use settings::{Sampler, TraceSettings};

tokio::task_local! {
    static ORIGIN: Option<TraceContext>;
}

/// Answers a call within the trace that its metadata names.
pub async fn within<T>(metadata: &[KeyValue], call: impl Future<Output = T>) -> T {
    ORIGIN.scope(TraceContext::of_call(metadata), call).await
}

/// The trace that the caller named, if any.
pub(crate) fn origin() -> Option<TraceContext> {
    ORIGIN.try_with(|origin| *origin).ok().flatten()
}

/// Makes the span of a call, or of work that goes on after its call, below a place in a trace.
macro_rules! below {
    ($context:expr, $name:literal, $($fields:tt)*) => {{
        let context: $crate::trace::TraceContext = $context;
        tracing::info_span!(
            $name,
            trace_id = %context.trace(),
            parent_id = context.parent(),
            sampled = context.unwanted(),
            error = tracing::field::Empty,
            $($fields)*
        )
    }};
}
pub(crate) use below;

/// Sends spans until its token fires.
pub(crate) type Sender = Box<dyn FnOnce(CancellationToken) -> BoxFuture<'static, ()> + Send>;

/// Makes the layer of the log that knows traces, and what sends its spans.
///
/// # Errors
///
/// When the collector's address or certificate cannot be used.
#[cfg(feature = "otlp")]
pub(crate) fn set_up(
    settings: Option<TraceSettings>,
    counts: &SpanCounts,
) -> anyhow::Result<(Traces, Sender)> {
    let Some(settings) = settings else { return Ok((Traces::default(), nothing())) };
    let (sink, exporter) = otlp::exporter(settings, counts.clone())?;
    Ok((Traces::into_sink(sink), Box::new(|stop| Box::pin(exporter.run(stop)))))
}

/// Makes the layer of the log that knows traces; this program has nothing that sends spans.
#[cfg(not(feature = "otlp"))]
pub(crate) fn set_up(_: Option<TraceSettings>, _: &SpanCounts) -> anyhow::Result<(Traces, Sender)> {
    Ok((Traces::default(), nothing()))
}

fn nothing() -> Sender {
    Box::new(|_| Box::pin(async {}))
}

/// Ends the work of a span as failed.
pub(crate) fn failed(span: &Span, error: &str) {
    span.record("error", error);
}
