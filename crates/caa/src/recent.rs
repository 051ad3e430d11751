//! What was logged about each sandbox a little while ago, for `caactl diagnose`.
//!
//! Also of sandboxes that are gone: whoever asks why a start failed comes when everything was taken back. All of it is
//! in memory and bounded: the newest lines of the newest sandboxes.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::{self, Write as _},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use cloud_providers::ConsoleTail;
use serde::{Deserialize, Serialize};
use tracing::{
    Event, Id, Subscriber,
    field::{Field, Visit},
    span::Attributes,
};
use tracing_subscriber::{Layer, filter::Targets, layer::Context, registry::LookupSpan};

use crate::store::lock;

/// Of how many sandboxes something is kept.
const SANDBOXES: usize = 64;
/// How many lines of each.
const LINES: usize = 200;
/// How long a line may be.
const LENGTH: usize = 1000;
/// Whose lines are kept, down to `debug`.
const OURS: [&str; 6] = [
    "caa",
    "cloud_providers",
    "cloud_providers_local",
    "cloud_providers_libvirt",
    "peerpod_gateway",
    "peerpod_net",
];

/// What is known of one sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Past {
    /// Its lines of the log, the oldest first.
    pub log: Vec<String>,
    /// Whether there were lines before.
    pub cut: bool,
    /// The end of its guest's console, where a start failed.
    pub console: Option<ConsoleTail>,
}

#[derive(Default)]
struct Kept {
    /// Without the room that a line grew into.
    log: VecDeque<Box<str>>,
    cut: bool,
    console: Option<ConsoleTail>,
    /// Grows with each change of any sandbox.
    touched: u64,
}

/// Keeps what is logged about sandboxes. Clones keep together.
#[derive(Clone, Default)]
pub struct Recent(Arc<Mutex<All>>);

#[derive(Default)]
struct All {
    kept: BTreeMap<String, Kept>,
    clock: u64,
}

impl fmt::Debug for Recent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Recent").field(&lock(&self.0).kept.len()).finish()
    }
}

impl Recent {
    /// Returns the layer of the log that keeps lines.
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> + use<S> {
        let level = tracing::Level::DEBUG;
        let ours = Targets::new().with_targets(OURS.map(|target| (target, level)));
        Keep(self.clone()).with_filter(ours)
    }

    /// Returns what is known of a sandbox.
    pub fn of(&self, sandbox: &str) -> Option<Past> {
        let all = lock(&self.0);
        let kept = all.kept.get(sandbox)?;
        Some(Past {
            log: kept.log.iter().map(|line| line.to_string()).collect(),
            cut: kept.cut,
            console: kept.console.clone(),
        })
    }

    /// Returns the sandboxes of which something is known.
    pub fn sandboxes(&self) -> Vec<String> {
        lock(&self.0).kept.keys().cloned().collect()
    }

    /// Keeps the end of a guest's console.
    pub(crate) fn console(&self, sandbox: &str, tail: ConsoleTail) {
        self.change(sandbox, |kept| kept.console = Some(tail));
    }

    fn change(&self, sandbox: &str, change: impl FnOnce(&mut Kept)) {
        let mut all = lock(&self.0);
        all.clock += 1;
        let clock = all.clock;
        let kept = all.kept.entry(sandbox.to_owned()).or_default();
        kept.touched = clock;
        change(kept);
        if all.kept.len() > SANDBOXES {
            let oldest = all.kept.iter().min_by_key(|(_, kept)| kept.touched).map(|(id, _)| id.clone());
            oldest.and_then(|id| all.kept.remove(&id));
        }
    }

    fn line(&self, sandbox: &str, line: Box<str>) {
        self.change(sandbox, |kept| {
            kept.log.push_back(line);
            if kept.log.len() > LINES {
                kept.log.pop_front();
                kept.cut = true;
            }
        });
    }
}

/// The layer.
struct Keep(Recent);

/// The sandbox that a span is about.
struct About(String);

/// Fields as text.
#[derive(Default)]
struct Fields {
    sandbox: Option<String>,
    message: String,
    others: String,
}

impl Fields {
    fn put(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        match field.name() {
            "message" => self.message = value.to_string(),
            // The unit of a provider's call is the sandbox.
            "sandbox_id" | "unit" => self.sandbox = Some(value.to_string()),
            name => {
                let _ = write!(self.others, " {name}={value}");
            }
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" | "sandbox_id" | "unit" => self.put(field, format_args!("{value}")),
            _ => self.put(field, format_args!("{value:?}")),
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Keep {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let (Some(sandbox), Some(span)) = (fields.sandbox, ctx.span(id)) {
            span.extensions_mut().insert(About(sandbox));
        }
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let around = || {
            let mut scope = ctx.event_scope(event)?;
            scope.find_map(|span| Some(span.extensions().get::<About>()?.0.clone()))
        };
        let Some(sandbox) = fields.sandbox.take().or_else(around) else { return };
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (level, target) = (event.metadata().level(), event.metadata().target());
        let text = format!("{}{}", fields.message, fields.others);
        let mut line = format!("{}.{:03} {level:5} {target}: ", since.as_secs(), since.subsec_millis());
        // One line each, also of what a cloud wrote in several.
        line.extend(text.chars().take(LENGTH).map(|c| if c.is_control() { ' ' } else { c }));
        self.0.line(&sandbox, line.into());
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    fn logged(work: impl FnOnce()) -> Recent {
        let recent = Recent::default();
        let subscriber = tracing_subscriber::registry().with(recent.layer());
        tracing::subscriber::with_default(subscriber, work);
        recent
    }

    #[test]
    fn lines_belong_to_the_sandbox_that_they_or_their_spans_name() {
        let recent = logged(|| {
            tracing::info!(sandbox_id = "s1", n = 7, "by itself");
            let outer = tracing::info_span!("StartVM", sandbox_id = %"s1").entered();
            let inner = tracing::info_span!("phase", phase = "create").entered();
            tracing::debug!(error = "two\nlines", "by its span");
            tracing::warn!(sandbox_id = "s2", "another's");
            drop((inner, outer));
            tracing::error!("nobody's");
        });
        assert_eq!(recent.sandboxes(), ["s1", "s2"]);
        let past = recent.of("s1").unwrap();
        assert_eq!(past.log.len(), 2, "{past:?}");
        assert!(past.log[0].contains("INFO") && past.log[0].ends_with("by itself n=7"), "{past:?}");
        assert!(past.log[1].ends_with("by its span error=\"two\\nlines\""), "{past:?}");
        assert!(recent.of("s3").is_none());
    }

    #[test]
    fn only_the_newest_lines_of_the_newest_sandboxes_are_kept() {
        let recent = logged(|| {
            for n in 0..=SANDBOXES {
                tracing::info!(sandbox_id = format!("s{n}"), "line");
                tracing::info!(sandbox_id = "s0", "{}", "x".repeat(10_000));
            }
            for _ in 0..2 * LINES {
                tracing::info!(sandbox_id = "s0", "more");
            }
        });
        assert_eq!(recent.sandboxes().len(), SANDBOXES);
        assert!(recent.of("s1").is_none(), "the one that nothing was said of for longest went");
        let past = recent.of("s0").unwrap();
        assert_eq!((past.log.len(), past.cut), (LINES, true));
        assert!(past.log.iter().all(|line| line.len() < LENGTH + 100));
    }

    #[test]
    fn what_libraries_say_at_length_is_not_kept() {
        let recent = logged(|| {
            tracing::debug!(target: "hyper::client", sandbox_id = "s1", "bytes");
            tracing::trace!(sandbox_id = "s1", "too much");
        });
        assert!(recent.sandboxes().is_empty());
    }
}
