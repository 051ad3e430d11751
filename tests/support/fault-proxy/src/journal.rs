//! Which calls there were, what became of them, and how many at a time.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// One call.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[non_exhaustive]
pub struct Entry {
    /// Milliseconds since the proxy was started.
    pub at_ms: u64,
    /// What it is called: see [`crate::Request::label`].
    pub label: String,
    /// Whether what is behind the proxy has done it, or tried to.
    pub passed: bool,
    /// The rule that ended it, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The status that the client got; nothing where the connection was cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}

/// The calls so far, in the order in which they ended.
#[derive(Debug)]
pub struct Journal {
    start: Instant,
    entries: Vec<Entry>,
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), entries: Vec::new() }
    }

    pub(crate) fn note(
        &mut self,
        came: Instant,
        label: String,
        passed: bool,
        rule: Option<String>,
        status: Option<u16>,
    ) {
        let at_ms = u64::try_from(came.duration_since(self.start).as_millis()).unwrap_or(u64::MAX);
        self.entries.push(Entry { at_ms, label, passed, rule, status });
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

/// Counts calls by what they are called.
pub(crate) fn counts(entries: &[Entry]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for entry in entries {
        *counts.entry(entry.label.clone()).or_default() += 1;
    }
    counts
}

/// Returns the most calls that came within a second, wherever it begins.
pub(crate) fn peak(entries: &[Entry]) -> u64 {
    let second = u64::try_from(Duration::from_secs(1).as_millis()).unwrap_or(1000);
    let mut times: Vec<u64> = entries.iter().map(|entry| entry.at_ms).collect();
    times.sort_unstable();
    let mut first = 0;
    let mut most = 0;
    for (last, time) in times.iter().enumerate() {
        while time - times[first] >= second {
            first += 1;
        }
        most = most.max(last - first + 1);
    }
    most as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_of_any_second_and_not_of_those_of_the_clock() {
        let entry = |at_ms| Entry { at_ms, label: "A".to_owned(), passed: true, rule: None, status: None };
        let entries: Vec<Entry> = [0, 900, 1100, 1200, 1899, 1900, 5000].map(entry).into();
        assert_eq!(peak(&entries), 4);
        assert_eq!(peak(&[]), 0);
        assert_eq!(counts(&entries)["A"], 7);
    }
}
