//! What the machine holds, to find out what was left behind.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Result;

use crate::{Netns, run};

/// One process, as `/proc` shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProcessInfo {
    /// The process id in our process namespace.
    pub pid: i32,
    /// Its parent's process id.
    pub parent: i32,
    /// When it was started, in ticks of the kernel's clock since the machine was.
    pub started: u64,
    /// The command line, arguments joined by blanks; `[comm]` when it has none.
    pub command: String,
    /// Inodes of the namespaces, by name (`net`, `pid`, `mnt`, …).
    pub namespaces: Vec<(String, u64)>,
}

/// Returns every process that is alive; zombies are left out.
pub fn processes() -> Vec<ProcessInfo> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| read_process(entry.ok()?.file_name().to_str()?.parse().ok()?)).collect()
}

fn read_process(pid: i32) -> Option<ProcessInfo> {
    let base = format!("/proc/{pid}");
    let base = Path::new(&base);
    let stat = std::fs::read_to_string(base.join("stat")).ok()?;
    // The name stands in parentheses and may hold any character; the state is the first field after it.
    let (head, tail) = stat.rsplit_once(')')?;
    if tail.trim_start().starts_with(['Z', 'X']) {
        return None;
    }
    // Fields 4 and 22 of the whole line; the first two are in front of the parenthesis.
    let parent = tail.split_whitespace().nth(1)?.parse().ok()?;
    let started = tail.split_whitespace().nth(19)?.parse().ok()?;
    let raw = std::fs::read(base.join("cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&raw).trim_end_matches('\0').replace('\0', " ");
    let command = if command.is_empty() { format!("[{}]", head.split_once('(')?.1) } else { command };
    let namespaces = ["net", "pid", "mnt", "uts", "ipc"]
        .iter()
        .filter_map(|kind| {
            Some(((*kind).to_owned(), std::fs::metadata(base.join("ns").join(kind)).ok()?.ino()))
        })
        .collect();
    Some(ProcessInfo { pid, parent, started, command, namespaces })
}

/// Returns the processes whose command line contains `marker`, without the caller itself.
pub fn processes_matching(marker: &str) -> Vec<ProcessInfo> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    processes().into_iter().filter(|process| process.pid != own && process.command.contains(marker)).collect()
}

/// Tells whether a process group has a member that is not completely dead.
pub(crate) fn group_runs(group: i32) -> bool {
    let Ok(entries) = std::fs::read_dir("/proc") else { return false };
    let runs = |pid: i32| {
        let base = format!("/proc/{pid}");
        let stat = std::fs::read_to_string(format!("{base}/stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        let ours = fields.nth(1)?.parse() == Ok(group);
        // Other threads may still run, and hold what the process holds, when the first one is dead.
        let threads = || std::fs::read_dir(format!("{base}/task")).map_or(0, Iterator::count);
        (ours && (!matches!(state, "Z" | "X") || threads() > 1)).then_some(())
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .any(|pid| runs(pid).is_some())
}

/// Returns the processes that live in one of the namespaces, given by inode.
pub fn processes_using_namespaces(inodes: &[u64]) -> Vec<ProcessInfo> {
    let inside = |process: &ProcessInfo| process.namespaces.iter().any(|(_, inode)| inodes.contains(inode));
    processes().into_iter().filter(inside).collect()
}

/// What one network namespace holds: links, addresses, routes, neighbours, traffic rules and firewall rules.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NamespaceState {
    lines: BTreeSet<String>,
}

impl NamespaceState {
    /// Takes the state of a namespace by the programs `ip`, `tc` and `nft`.
    ///
    /// # Errors
    ///
    /// Fails when one of the programs is missing or the namespace is gone.
    pub fn take(netns: &Netns) -> Result<Self> {
        let mut lines = BTreeSet::new();
        let mut add = |kind: &str, text: &str| {
            let found = text.lines().map(str::trim_end).filter(|line| !line.trim().is_empty());
            lines.extend(found.map(|line| format!("{kind}: {line}")));
        };
        let links = run("ip", &["-netns", netns.name(), "-oneline", "link", "show"])?;
        for link in links.lines() {
            // Only index-free names: the counters and states in the rest of the line change by themselves.
            add("link", link.split_whitespace().nth(1).unwrap_or(link).trim_end_matches(':'));
        }
        for address in run("ip", &["-netns", netns.name(), "-oneline", "addr", "show"])?.lines() {
            let words: Vec<&str> = address.split_whitespace().collect();
            // Link-local IPv6 addresses come and go with the carrier.
            if words.len() > 3 && !words[3].starts_with("fe80:") {
                add("address", &words[1..4].join(" "));
            }
        }
        let routes = run("ip", &["-netns", netns.name(), "-4", "route", "show", "table", "all"])?;
        // A bridge has no carrier while it has no ports; its routes stay what they are.
        add("route", &routes.replace(" linkdown", ""));
        let neighbours = run("ip", &["-netns", netns.name(), "-4", "neigh", "show", "nud", "permanent"])?;
        add("neighbour", &neighbours);
        for line in run("tc", &["-netns", netns.name(), "qdisc", "show"])?.lines() {
            if line.contains("ingress") || line.contains("clsact") {
                add("qdisc", line);
            }
        }
        let mut table = String::new();
        for line in netns.exec("nft", &["list", "ruleset"])?.lines() {
            // Rules carry the table they are in, so that equal lines of two tables stay two lines.
            if line.starts_with("table ") {
                table = line.trim_end_matches(" {").to_owned();
            }
            if line.trim() != "}" {
                add("nft", &format!("{table}: {}", without_counts(line)));
            }
        }
        Ok(Self { lines })
    }

    /// Returns what is here and was not in `before`.
    pub fn added_since(&self, before: &Self) -> Vec<String> {
        self.lines.difference(&before.lines).cloned().collect()
    }

    /// Returns what was in `before` and is no longer here.
    pub fn missing_since(&self, before: &Self) -> Vec<String> {
        before.lines.difference(&self.lines).cloned().collect()
    }

    /// Adds the lines of `now` that contain `part`: something that was made on purpose since.
    #[must_use]
    pub fn with(mut self, now: &Self, part: &str) -> Self {
        self.lines.extend(now.lines.iter().filter(|line| line.contains(part)).cloned());
        self
    }

    /// Returns the lines, each with its kind in front.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}

/// Returns a rule without what it has counted so far.
fn without_counts(rule: &str) -> String {
    let mut words: Vec<&str> = rule.split_whitespace().collect();
    while let Some(at) = words.windows(4).position(|four| four[0] == "packets" && four[2] == "bytes") {
        words.drain(at..at + 4);
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_is_listed_with_its_namespaces() {
        let own = i32::try_from(std::process::id()).unwrap();
        let all = processes();
        let me = all.iter().find(|process| process.pid == own).expect("we are alive");
        let (_, net) = me.namespaces.iter().find(|(kind, _)| kind == "net").unwrap();
        assert_eq!(*net, std::fs::metadata("/proc/self/ns/net").unwrap().ino());
    }

    #[test]
    fn a_rule_that_has_counted_is_the_same_rule() {
        let rule = "iifname \"virbr0\" udp dport 67 counter packets 10 bytes 3339 accept";
        assert_eq!(without_counts(rule), "iifname \"virbr0\" udp dport 67 counter accept");
        assert_eq!(without_counts("\tchain INPUT {"), "chain INPUT {");
    }

    #[test]
    fn what_was_added_to_a_namespace_is_named() {
        let netns = Netns::unique("ppss").unwrap();
        let before = NamespaceState::take(&netns).unwrap();
        netns.bridge("left", "192.0.2.1/24").unwrap();
        netns.exec("nft", &["add", "table", "ip", "forgotten"]).unwrap();
        let added = NamespaceState::take(&netns).unwrap().added_since(&before);
        for part in ["link: left", "192.0.2.1/24", "route: 192.0.2.0/24", "table ip forgotten"] {
            assert!(added.iter().any(|line| line.contains(part)), "{part} is not in {added:?}");
        }
        netns.ip(&["link", "delete", "left"]).unwrap();
        netns.exec("nft", &["delete", "table", "ip", "forgotten"]).unwrap();
        assert_eq!(NamespaceState::take(&netns).unwrap(), before);
    }
}
