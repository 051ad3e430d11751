//! Logs: one line each on stderr, as text or JSON, and spans for whoever follows a trace.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};
use tracing::{Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer, fmt, layer::SubscriberExt as _, registry::LookupSpan, util::SubscriberInitExt as _,
};

use crate::{recent::Recent, trace::Traces};

/// Starts the log of a program, with the layer that knows its traces, and the one that keeps what was said of sandboxes.
///
/// # Errors
///
/// When the filter does not parse.
pub fn init(filter: &str, json: bool, traces: Traces, recent: &Recent) -> Result<()> {
    let filter = EnvFilter::builder()
        .parse(filter)
        .with_context(|| format!("-log-level or LOG_LEVEL is {filter:?}"))?;
    // A filter for each: a log that shows warnings alone must not take the spans away.
    let traces = traces.with_filter(LevelFilter::INFO);
    let lines = lines(json).with_filter(filter);
    tracing_subscriber::registry().with(traces).with(recent.layer()).with(lines).init();
    Ok(())
}

fn lines<S: Subscriber + for<'a> LookupSpan<'a>>(json: bool) -> Box<dyn Layer<S> + Send + Sync> {
    let lines = fmt::layer().with_writer(std::io::stderr);
    match json {
        true => lines.json().flatten_event(true).boxed(),
        false => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
    }
}
