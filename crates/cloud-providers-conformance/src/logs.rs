//! Catches what the provider logs, so that secrets can be looked for in it.

use std::{
    fmt::Write as _,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::Interest,
};

/// Lines of this process since its start.
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
static SPANS: AtomicU64 = AtomicU64::new(1);

/// Keeps everything that is logged in this process, at every level and on every thread.
///
/// Returns whether the lines come here: a program has one place for its log, and another one may have been set.
pub(crate) fn catch() -> bool {
    static CAUGHT: OnceLock<bool> = OnceLock::new();
    *CAUGHT.get_or_init(|| tracing::subscriber::set_global_default(Catcher).is_ok())
}

/// Returns how many lines there are.
pub(crate) fn mark() -> usize {
    lines().len()
}

/// Returns the lines since a mark.
pub(crate) fn since(mark: usize) -> Vec<String> {
    lines().get(mark..).unwrap_or_default().to_vec()
}

fn lines() -> std::sync::MutexGuard<'static, Vec<String>> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Catcher;

#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a text does not fail.
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}

impl Text {
    fn keep(self, what: &Metadata<'_>) {
        lines().push(format!("{} {}:{}", what.level(), what.target(), self.0));
    }
}

impl Subscriber for Catcher {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::always()
    }

    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut text = Text(format!(" span {}", attributes.metadata().name()));
        attributes.record(&mut text);
        text.keep(attributes.metadata());
        Id::from_u64(SPANS.fetch_add(1, Ordering::Relaxed))
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        let mut text = Text(" span".into());
        values.record(&mut text);
        lines().push(text.0);
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        text.keep(event.metadata());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_events_and_spans_are_kept_from_every_thread() {
        assert!(catch(), "no other test sets a place for the log");
        let start = mark();
        std::thread::spawn(|| {
            let _span = tracing::trace_span!("work", key = "in-a-span").entered();
            tracing::trace!(value = ?Some("in-an-event"), "text of the event");
        })
        .join()
        .unwrap();
        let text = since(start).join("\n");
        for part in ["in-a-span", "in-an-event", "text of the event"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
