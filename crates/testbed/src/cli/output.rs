//! What people and programs see.

use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Write as _},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{Event, Progress};

/// How a command speaks. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Ui {
    json: bool,
    quiet: bool,
    bars: Option<Arc<Bars>>,
}

impl Ui {
    /// Makes the way to speak. Bars are drawn only where somebody looks at a terminal.
    pub(super) fn new(json: bool, quiet: bool, verbose: bool) -> Self {
        let bars = !json && !quiet && !verbose && std::io::stderr().is_terminal();
        Self { json, quiet, bars: bars.then(Arc::default) }
    }

    /// Whether programs read what is written.
    pub(super) fn json(&self) -> bool {
        self.json
    }

    /// Writes the one document of a command that answers at once: `text` for people, `value` for programs.
    pub(super) fn answer(&self, value: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            let text = serde_json::to_string_pretty(value).unwrap_or_default();
            self.raw(&format!("{text}\n"));
        } else {
            self.raw(&text());
        }
    }

    /// Writes text to the standard output as it is.
    pub(super) fn raw(&self, text: &str) {
        self.finish();
        let mut out = std::io::stdout().lock();
        // A reader that went away, such as `head`, is no failure.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// Writes a line of a command that takes time, for programs.
    pub(super) fn line(&self, value: &Value) {
        if self.json {
            self.raw(&format!("{value}\n"));
        }
    }

    /// Ends a command that takes time: the last line for programs, a sentence for people.
    pub(super) fn result(&self, mut value: Value, text: &str) {
        self.finish();
        if self.json {
            if let Some(map) = value.as_object_mut() {
                map.insert("result".into(), "ok".into());
            }
            self.raw(&format!("{value}\n"));
        } else if !self.quiet && !text.is_empty() {
            eprintln!("{text}");
        }
    }

    /// Tells people something beside the result.
    pub(super) fn say(&self, text: &str) {
        if self.quiet || self.json {
            return;
        }
        match &self.bars {
            Some(bars) => bars.all.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Warns, whatever was asked for: on the side that nobody parses.
    pub(super) fn warn(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.all.suspend(|| eprintln!("warning: {text}")),
            None => eprintln!("warning: {text}"),
        }
    }

    /// Takes the bars off the screen.
    pub(super) fn finish(&self) {
        if let Some(bars) = &self.bars {
            bars.finish();
        }
    }

    /// Returns where the log goes.
    pub(super) fn log(&self) -> Log {
        Log(self.clone())
    }

    /// Returns what providers tell their progress to.
    pub(super) fn progress(&self) -> Arc<dyn Progress> {
        Arc::new(self.clone())
    }
}

/// Where the log goes: standard error, past the bars.
pub(super) struct Log(Ui);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match &self.0.bars {
            Some(bars) => bars.all.suspend(|| std::io::stderr().write(bytes)),
            None => std::io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

impl Progress for Ui {
    fn tell(&self, machine: &str, event: &Event) {
        if self.json {
            let mut value = json!(event);
            if let (Some(map), false) = (value.as_object_mut(), machine.is_empty()) {
                map.insert("machine".into(), machine.into());
            }
            self.line(&value);
        } else if let Some(bars) = &self.bars {
            bars.tell(machine, event);
        } else if !self.quiet {
            let words = words(event);
            if machine.is_empty() { eprintln!("{words}") } else { eprintln!("{machine}: {words}") }
        }
    }
}

/// Says an event in words.
fn words(event: &Event) -> String {
    match event {
        Event::Creating => "is being made".into(),
        Event::Found => "was there already".into(),
        Event::Created { address } => format!("is made, at {address}"),
        Event::Reachable => "answers over SSH".into(),
        Event::Deleting => "is being deleted".into(),
        Event::Deleted => "is gone".into(),
        Event::Failed { error } => format!("failed: {error}"),
        Event::Note { text } => text.clone(),
    }
}

/// A line on the terminal for each machine.
#[derive(Debug, Default)]
struct Bars {
    all: MultiProgress,
    by_machine: Mutex<BTreeMap<String, ProgressBar>>,
}

/// A screen has no room for a line of each of more machines: those that come later are told when they are through.
const AT_MOST: usize = 30;

impl Bars {
    fn tell(&self, machine: &str, event: &Event) {
        let words = words(event);
        let mut bars = self.by_machine.lock().unwrap_or_else(PoisonError::into_inner);
        if machine.is_empty() {
            self.all.suspend(|| eprintln!("{words}"));
            return;
        }
        if !bars.contains_key(machine) {
            if bars.len() >= AT_MOST {
                self.all.suspend(|| eprintln!("{machine}: {words}"));
                return;
            }
            let bar = self.all.add(ProgressBar::new_spinner());
            let style = ProgressStyle::with_template("{spinner} {prefix:.bold}: {msg} ({elapsed})");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_prefix(machine.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bars.insert(machine.to_owned(), bar);
        }
        let Some(bar) = bars.get(machine) else { return };
        bar.set_message(words.clone());
        if matches!(event, Event::Reachable | Event::Deleted | Event::Failed { .. }) {
            let bar = bars.remove(machine).unwrap_or_else(ProgressBar::hidden);
            bar.finish_and_clear();
            self.all.suspend(|| eprintln!("{machine}: {words}"));
        }
    }

    fn finish(&self) {
        let mut bars = self.by_machine.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *bars).into_values().for_each(|bar| bar.finish_and_clear());
    }
}

/// Writes rows below each other, each column as wide as its widest value.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - cell.chars().count())));
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    let mut text = line(&mut head.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let text = table(&["A", "BB"], &[vec!["ünï".into(), "x".into()], vec!["y".into(), String::new()]]);
        assert_eq!(text, "A    BB\nünï  x\ny\n");
    }
}
