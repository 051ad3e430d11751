//! StopVM while the provider does not answer.

use futures_util::future::join_all;
use test_support::wait_for;

use crate::node::{Node, SOON};

const PODS: usize = 20;
const METRICS: [&str; 1] = ["-metrics-address=127.0.0.1:9201"];

/// What `caactl list` prints, as JSON.
fn phases(node: &Node) -> Vec<String> {
    let args = ["--socket", node.socket().to_str().unwrap(), "--json", "list"].map(str::to_owned);
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_caactl")).args(args).output().unwrap();
    let list: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    list.as_array().unwrap().iter().map(|s| s["phase"].as_str().unwrap().to_owned()).collect()
}

fn wait_pending(node: &Node, count: usize) {
    let line = format!("peerpod_deletions_pending{{provider=\"local\"}} {count}\n");
    wait_for(&line, SOON, || {
        let text = node.netns.exec("curl", &["-s", "-m", "5", "http://127.0.0.1:9201/metrics"]).ok()?;
        text.contains(&line).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", node.logs()));
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_stops_at_once_are_answered_in_a_shims_second_by_a_provider_that_never_answers() {
    let args = [&METRICS[..], &["-peerpods-limit-per-node", "20"]].concat();
    let mut node = Node::start(PODS, &args).await.unwrap();
    let names: Vec<String> = (0..PODS).map(|n| format!("sandbox-{n}")).collect();
    let started = join_all(names.iter().enumerate().map(|(n, id)| node.sandbox(id, n))).await;
    let shims: Vec<_> =
        started.into_iter().map(|s| s.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs())).0).collect();
    let held = node.hold_locks().unwrap();
    assert_eq!(held.len(), PODS);
    // As a shim stops: three times, each with its deadline of a second, whatever the one before said.
    for _ in 0..3 {
        for answer in join_all(shims.iter().map(|shim| shim.stop_vm())).await {
            answer.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
        }
    }
    wait_pending(&node, PODS);
    assert_eq!(phases(&node), ["stopping"; PODS]);
    // None of them is forgotten with the daemon.
    drop(shims);
    node.crash_and_restart(&args).await.unwrap();
    wait_pending(&node, PODS);
    assert_eq!(phases(&node), ["stopping"; PODS]);
    assert_eq!(node.instances().len(), PODS);
    drop(held);
    node.wait_empty().unwrap();
    wait_pending(&node, 0);
    assert!(phases(&node).is_empty());
}
