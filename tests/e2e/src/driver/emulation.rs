//! A delay between two machines, by `testbed emulate`: it is there, it is shown, and it goes.

use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::{Plan, REMOTE, WORKER};
use crate::setup::Setup;

/// The role of the machine at the other end.
const PEER: &str = "peer";
/// Held back by each of the two machines.
const DELAY_MS: f64 = 60.0;
/// The exit code of what the machines cannot do.
const UNSUPPORTED: i32 = 8;

/// Returns what was seen.
pub(super) fn assess(plan: &Plan, setup: &dyn Setup) -> Result<String> {
    let before = round_trip(plan, setup)?;
    let delay = format!("{DELAY_MS}ms");
    let apply = ["emulate", "apply", "--src", WORKER, "--dst", PEER, "--delay", &delay];
    let applied = output(&mut plan.testbed(setup, &apply))?;
    if applied.status.code() == Some(UNSUPPORTED) && !setup.boots_a_kernel() {
        let text = String::from_utf8_lossy(&applied.stderr).into_owned();
        ensure!(text.contains(WORKER) || text.contains(PEER), "no machine is named: {text}");
        return Ok("refused: the kernel of this host has no netem".to_owned());
    }
    succeeded(&applied)?;
    let during = round_trip(plan, setup)?;
    ensure!(
        during >= 2.0 * DELAY_MS,
        "the round trip takes {during} ms, with {DELAY_MS} ms held back by both"
    );
    let shown = output(&mut plan.testbed(setup, &["emulate", "show"]))?;
    succeeded(&shown)?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    ensure!(shown.contains(&DELAY_MS.to_string()), "the delay is not shown:\n{shown}");
    succeeded(&output(&mut plan.testbed(setup, &["emulate", "clear"]))?)?;
    let after = round_trip(plan, setup)?;
    ensure!(after < DELAY_MS, "the round trip still takes {after} ms");
    Ok(format!("round trip {before} ms, {during} ms, {after} ms"))
}

/// The mean time of a packet to the peer and back, in milliseconds, as the worker sees it.
fn round_trip(plan: &Plan, setup: &dyn Setup) -> Result<f64> {
    let hosts = output(&mut plan.testbed(setup, &["hosts", "--json"]))?;
    succeeded(&hosts)?;
    let hosts: serde_json::Value = serde_json::from_slice(&hosts.stdout).context("`hosts` gives no JSON")?;
    let address = address_of(&hosts, PEER).context("`hosts` has no address of the peer")?;
    let measure = format!("{REMOTE}/e2e-worker --round-trip {address}:22");
    let measured = output(&mut plan.testbed(setup, &["ssh", WORKER, &measure]))?;
    succeeded(&measured)?;
    let text = String::from_utf8_lossy(&measured.stdout).into_owned();
    text.trim().parse().with_context(|| format!("{text:?} is no time"))
}

/// Finds the object that has the role, wherever the list of hosts stands.
fn address_of(value: &serde_json::Value, role: &str) -> Option<String> {
    let has_role = value["roles"].as_array().is_some_and(|roles| roles.iter().any(|found| found == role));
    if has_role && let Some(address) = value["address"].as_str() {
        return Some(address.to_owned());
    }
    match value {
        serde_json::Value::Array(items) => items.iter().find_map(|item| address_of(item, role)),
        serde_json::Value::Object(map) => map.values().find_map(|item| address_of(item, role)),
        _ => None,
    }
}

fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))
}

fn succeeded(output: &Output) -> Result<()> {
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "testbed ended with {}: {}", output.status, text.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_found_by_its_role() {
        let hosts = serde_json::json!({"hosts": [
            {"roles": ["node", "worker"], "address": "10.0.0.1"},
            {"roles": ["node", "peer"], "address": "10.0.0.2"},
        ]});
        assert_eq!(address_of(&hosts, PEER).as_deref(), Some("10.0.0.2"));
        assert_eq!(address_of(&hosts, "x"), None);
    }
}
