//! Watches the compilers below this process while cargo runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often is looked. The kernel keeps the most that each process had, so a short peak is not missed.
const PAUSE: Duration = Duration::from_millis(50);

/// A look at the compilers every few milliseconds.
pub(super) struct Watch {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<(u64, u64)>,
}

impl Watch {
    /// Begins.
    pub(super) fn start() -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            let (mut largest, mut together) = (0, 0);
            while !seen.load(Ordering::Relaxed) {
                let now = compilers();
                largest = largest.max(now.iter().map(|(peak, _)| *peak).max().unwrap_or(0));
                together = together.max(now.iter().map(|(_, resident)| resident).sum());
                std::thread::sleep(PAUSE);
            }
            (largest, together)
        });
        Self { ended, thread }
    }

    /// Ends, and returns the most memory of one compiler and of all at one moment, in KiB.
    pub(super) fn end(self) -> (u64, u64) {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

/// Peak and present memory of each compiler among the descendants of this process.
fn compilers() -> Vec<(u64, u64)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut parents = BTreeMap::new();
    let mut found = Vec::new();
    for pid in entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok()) {
        let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.split_whitespace().next().map(str::to_owned)
        };
        let number = |name: &str| field(name).and_then(|text| text.parse::<u64>().ok());
        if let Some(parent) = number("PPid").and_then(|parent| u32::try_from(parent).ok()) {
            parents.insert(pid, parent);
        }
        if field("Name").as_deref() == Some("rustc") {
            found.push((pid, number("VmHWM").unwrap_or(0), number("VmRSS").unwrap_or(0)));
        }
    }
    let ours = |pid: u32| {
        let mut at = pid;
        while let Some(parent) = parents.get(&at).filter(|parent| **parent != 0) {
            if *parent == std::process::id() {
                return true;
            }
            at = *parent;
        }
        false
    };
    // Another build on the machine is not ours to count.
    found.into_iter().filter(|(pid, ..)| ours(*pid)).map(|(_, peak, now)| (peak, now)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Run;

    #[test]
    fn a_compiler_that_we_started_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("x.rs");
        std::fs::write(&source, "fn main() { println!(\"{:?}\", std::env::args()); }\n").unwrap();
        let watch = Watch::start();
        Run::new("rustc").args(["-O", "-o"]).arg(dir.path().join("x")).arg(&source).stdout().unwrap();
        let (largest, together) = watch.end();
        assert!(largest > 10_000 && together > 10_000, "{largest} {together}");
    }
}
