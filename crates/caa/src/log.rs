//! Logs: one line each on stderr, as text or JSON.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};
use tracing_subscriber::{EnvFilter, fmt};

/// Starts the log of a program.
///
/// # Errors
///
/// When the filter does not parse.
pub fn init(filter: &str, json: bool) -> Result<()> {
    let filter = EnvFilter::builder()
        .parse(filter)
        .with_context(|| format!("-log-level or LOG_LEVEL is {filter:?}"))?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).init();
    }
    Ok(())
}
