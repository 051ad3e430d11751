//! Gives the spans of the log a place in a trace, and tells a sink of those that ended.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tracing::{
    Event, Id, Level, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Record},
};
use tracing_subscriber::{
    Layer,
    layer::Context,
    registry::{LookupSpan, SpanRef},
};

use super::TraceContext;

/// The field by which a span says which trace it begins in; spans without one belong to that of the span around them.
const TRACE: &str = "trace_id";
/// The field with the span above, which is none of this process.
const PARENT: &str = "parent_id";
/// The field that says whether the caller wants the trace.
const SAMPLED: &str = "sampled";
/// The field that says why the work of the span failed.
const ERROR: &str = "error";
/// Fields that tell spans of one name apart; their value goes into the name.
const KINDS: [&str; 3] = ["phase", "operation", "step"];
/// The most that is kept of one span.
const MOST_EVENTS: usize = 32;
/// The most characters of a value.
const MOST_TEXT: usize = 1024;

/// A value of an attribute.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TraceValue {
    /// Text.
    Text(String),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// Yes or no.
    Bool(bool),
}

/// Something that was logged within a span.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TraceEvent {
    /// When.
    pub at: SystemTime,
    /// The message of the log.
    pub message: String,
    /// Its level and fields.
    pub attributes: Vec<(&'static str, TraceValue)>,
}

/// A span that ended.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EndedSpan {
    /// Its trace and its own id.
    pub context: TraceContext,
    /// The span above it; 0 for the first one.
    pub parent: u64,
    /// Whether the span above is of the program that called.
    pub called: bool,
    /// Its name, with what tells it from others of that name.
    pub name: String,
    /// When it began.
    pub began: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// Its fields.
    pub attributes: Vec<(&'static str, TraceValue)>,
    /// What was logged within it.
    pub events: Vec<TraceEvent>,
    /// Why it failed.
    pub error: Option<String>,
}

/// Takes spans that ended. It must not wait.
pub trait TraceSink: Send + Sync {
    /// Takes one.
    fn take(&self, span: EndedSpan);
}

/// The layer that knows traces. Without a sink it only gives ids.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<dyn TraceSink>>);

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Traces").field(&self.0.is_some()).finish()
    }
}

impl Traces {
    /// Tells `sink` of each span that ended.
    pub fn into_sink(sink: Arc<dyn TraceSink>) -> Self {
        Self(Some(sink))
    }
}

/// What is known of a span while it runs.
struct Running {
    context: TraceContext,
    parent: u64,
    called: bool,
    began: SystemTime,
    fields: Fields,
    events: Vec<TraceEvent>,
}

/// Fields as they come.
#[derive(Default)]
struct Fields {
    trace: Option<u128>,
    parent: Option<u64>,
    sampled: Option<bool>,
    kind: Option<String>,
    error: Option<String>,
    message: Option<String>,
    attributes: Vec<(&'static str, TraceValue)>,
}

impl Fields {
    fn text(&mut self, field: &Field, text: String) {
        match field.name() {
            TRACE => self.trace = u128::from_str_radix(&text, 16).ok(),
            PARENT => self.parent = u64::from_str_radix(&text, 16).ok(),
            ERROR => self.error = Some(shortened(text)),
            "message" => self.message = Some(shortened(text)),
            name => {
                if KINDS.contains(&name) {
                    self.kind = Some(text.clone());
                }
                self.put(name, TraceValue::Text(shortened(text)));
            }
        }
    }

    fn put(&mut self, name: &'static str, value: TraceValue) {
        self.attributes.retain(|(known, _)| *known != name);
        self.attributes.push((name, value));
    }
}

/// Cuts what is too long for a backend; the log has the whole text.
fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MOST_TEXT) {
        text.truncate(end);
        text.push('…');
    }
    text
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.to_owned());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), TraceValue::Int(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match i64::try_from(value) {
            Ok(value) => self.put(field.name(), TraceValue::Int(value)),
            Err(_) => self.put(field.name(), TraceValue::Text(value.to_string())),
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), TraceValue::Float(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        match field.name() {
            SAMPLED => self.sampled = Some(value),
            name => self.put(name, TraceValue::Bool(value)),
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Traces {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        let Some(span) = ctx.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let above = span.parent().and_then(|above| context_of(&above));
        let (trace_id, parent, sampled, called) = match (fields.trace, above) {
            (Some(trace), _) => {
                let parent = fields.parent.unwrap_or_default();
                (trace, parent, fields.sampled.unwrap_or(true), parent != 0)
            }
            (None, Some(above)) => (above.trace_id(), above.span_id(), above.is_sampled(), false),
            // Work that belongs to no sandbox, such as a sweep.
            (None, None) => return,
        };
        let context = TraceContext::new(trace_id, rand::random::<u64>().max(1), sampled);
        let (began, events) = (SystemTime::now(), Vec::new());
        span.extensions_mut().insert(Running { context, parent, called, began, fields, events });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, ctx: Context<'_, S>) {
        if let Some(span) = ctx.span(id)
            && let Some(running) = span.extensions_mut().get_mut::<Running>()
        {
            values.record(&mut running.fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        if self.0.is_none() || *event.metadata().level() > Level::INFO {
            return;
        }
        let Some(span) = ctx.event_span(event) else { return };
        let mut extensions = span.extensions_mut();
        let Some(running) = extensions.get_mut::<Running>() else { return };
        if running.events.len() == MOST_EVENTS {
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        if let Some(error) = fields.error.take() {
            fields.put(ERROR, TraceValue::Text(error));
        }
        fields.put("level", TraceValue::Text(event.metadata().level().to_string()));
        let message = fields.message.unwrap_or_default();
        running.events.push(TraceEvent { at: SystemTime::now(), message, attributes: fields.attributes });
    }

    fn on_close(&self, id: Id, ctx: Context<'_, S>) {
        let (Some(sink), Some(span)) = (&self.0, ctx.span(&id)) else { return };
        let Some(running) = span.extensions_mut().remove::<Running>() else { return };
        let Running { context, parent, called, began, fields, events } = running;
        let name = match &fields.kind {
            Some(kind) => format!("{} {kind}", span.name()),
            None => span.name().to_owned(),
        };
        // A clock that was set back in between must not make a span that ends before it begins.
        let ended = SystemTime::now().max(began + Duration::from_nanos(1));
        let Fields { attributes, error, .. } = fields;
        sink.take(EndedSpan { context, parent, called, name, began, ended, attributes, events, error });
    }
}

fn context_of<S: for<'a> LookupSpan<'a>>(span: &SpanRef<'_, S>) -> Option<TraceContext> {
    span.extensions().get::<Running>().map(|running| running.context)
}

/// The context of the span around the caller, where the log of the program knows traces.
pub fn current() -> Option<TraceContext> {
    context_in(&tracing::Span::current())
}

/// The context of a span.
pub(crate) fn context_in(span: &tracing::Span) -> Option<TraceContext> {
    span.with_subscriber(|(id, dispatch)| {
        let registry = dispatch.downcast_ref::<tracing_subscriber::Registry>()?;
        let span = registry.span(id)?;
        context_of(&span)
    })
    .flatten()
}
