//! What the node itself shows: a network namespace, and the machine.

use std::path::Path;

use peerpod_net::netns;
use tokio::process::Command;

/// Files of `/proc/thread-self/net`, which need no program to be read.
const FILES: [&str; 8] = ["dev", "route", "ipv6_route", "fib_trie", "if_inet6", "arp", "snmp", "udp"];
/// Programs that say more, where they are there.
const PROGRAMS: [(&str, &[&str]); 6] = [
    ("ip", &["-details", "-statistics", "address", "show"]),
    ("ip", &["route", "show", "table", "all"]),
    ("ip", &["rule", "show"]),
    ("ip", &["neighbour", "show"]),
    ("bridge", &["fdb", "show"]),
    ("nft", &["list", "ruleset"]),
];
/// How much of one of them is kept.
const MOST: usize = 256 * 1024;
/// How long a program may take.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(5);

/// A text, and what is missing in it and why.
pub(super) type Seen = (String, Vec<String>);

/// Describes the network namespace at `path`, or the one of this process.
pub(super) async fn network(path: Option<&Path>) -> Seen {
    let Some(path) = path else { return look().await };
    match netns::run_in(path, look).await {
        Ok(seen) => seen,
        Err(error) => {
            (String::new(), vec![format!("the network namespace cannot be entered: {}", error.chain())])
        }
    }
}

/// Looks at the namespace of this thread.
async fn look() -> Seen {
    let (mut text, mut missing) = (String::new(), Vec::new());
    for file in FILES {
        let path = format!("/proc/thread-self/net/{file}");
        match std::fs::read(&path) {
            Ok(bytes) => text += &section(&format!("/proc/net/{file}"), &bytes),
            // IPv6 may be off.
            Err(error) => missing.push(format!("{path}: {error}")),
        }
    }
    for (program, args) in PROGRAMS {
        let line = format!("{program} {}", args.join(" "));
        // Started from this thread, and so in its namespace.
        let run = Command::new(program).args(args).kill_on_drop(true).output();
        match tokio::time::timeout(LIMIT, run).await {
            Ok(Ok(output)) if output.status.success() => text += &section(&line, &output.stdout),
            Ok(Ok(output)) => {
                let why = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
                missing.push(format!("{line}: {}: {why}", output.status));
            }
            Ok(Err(error)) => missing.push(format!("{line}: {error}")),
            Err(_) => missing.push(format!("{line}: no end within {LIMIT:?}")),
        }
    }
    (text, missing)
}

fn section(head: &str, bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MOST)]);
    let cut = if bytes.len() > MOST { "[cut]\n" } else { "" };
    format!("== {head}\n{}\n{cut}\n", text.trim_end())
}

/// Describes the machine: what matters for a tunnel and a handshake.
pub(super) fn machine() -> Seen {
    let (mut text, mut missing) = (String::new(), Vec::new());
    for path in [
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/osrelease",
        "/proc/version",
        "/etc/os-release",
        "/proc/uptime",
        "/proc/loadavg",
        "/proc/meminfo",
        "/proc/sys/net/ipv4/ip_forward",
    ] {
        match std::fs::read(path) {
            Ok(bytes) => text += &section(path, &bytes),
            Err(error) => missing.push(format!("{path}: {error}")),
        }
    }
    (text, missing)
}
