//! Whole pods: calls come in on the socket, a process runs with the pod's address, nothing is left.

use std::collections::BTreeSet;

use peerpod_proto::Code;
use test_support::wait_for_async;

use crate::node::{Node, SOON, Script};

async fn one_pod(args: &[&str]) {
    let node = Node::start(1, args).await.unwrap();
    let (shim, socket) =
        node.sandbox("sandbox-1", 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    let agent = node.web(&socket, "sandbox-1").await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    agent.check().await.unwrap();
    let (code, output) = agent.exec("web", "e1", &["readlink", "/proc/self/ns/net"]).await.unwrap();
    assert_eq!(code, 0, "{output}");
    let inode = output.trim().trim_start_matches("net:[").trim_end_matches(']').to_owned();
    let outside: Vec<String> =
        [node.netns.inode(), node.pods[0].netns.inode()].map(|i| i.unwrap().to_string()).into();
    assert!(!outside.contains(&inode), "the process runs in a namespace of the guest");
    let page = node.page(0).unwrap();
    assert!(page.contains(&inode), "the page comes from the guest: {page}");
    for _ in 0..3 {
        shim.stop_vm().await.unwrap();
    }
    node.wait_empty().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_behind_mutual_tls_and_leaves_nothing() {
    one_pod(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_without_tls_when_told_so() {
    // The forwarder refuses to serve without certificates unless it is told so too.
    one_pod(&["-disable-tls", "-init-args=--forwarder-options=-disable-tls"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_pods_run_at_once_and_a_fault_in_one_disturbs_no_other() {
    const PODS: usize = 8;
    let node = Node::start(PODS, &["-proxy-timeout", "30s"]).await.unwrap();
    let names: Vec<String> = (0..PODS).map(|n| format!("sandbox-{n}")).collect();
    let started =
        futures_util::future::join_all(names.iter().enumerate().map(|(n, id)| node.sandbox(id, n))).await;
    let started: Vec<_> =
        started.into_iter().map(|s| s.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()))).collect();
    let mut agents = Vec::new();
    for (n, (_, socket)) in started.iter().enumerate() {
        agents.push(node.web(socket, &names[n]).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs())));
    }
    let vnis: BTreeSet<String> = node
        .pods
        .iter()
        .map(|pod| {
            let text = pod.netns.ip(&["-d", "link", "show", "vxlan1"]).unwrap();
            text.split_whitespace().skip_while(|w| *w != "id").nth(1).unwrap().to_owned()
        })
        .collect();
    assert_eq!(vnis.len(), PODS);
    let pages: BTreeSet<String> = (0..PODS).map(|n| node.page(n).unwrap()).collect();
    assert_eq!(pages.len(), PODS, "each pod has a guest of its own");

    // One guest dies, one agent socket gets garbage.
    let (_, record) = node.record_of(&names[0]).unwrap();
    let pid = i32::try_from(record["process"]["pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let mut garbage = std::os::unix::net::UnixStream::connect(&started[1].1).unwrap();
    std::io::Write::write_all(&mut garbage, &[0xa5; 4096]).unwrap();
    drop(garbage);
    wait_for_async("the dead guest to be noticed", SOON, || async { agents[0].check().await.err() })
        .await
        .unwrap();
    for (n, agent) in agents.iter().enumerate().skip(1) {
        agent.check().await.unwrap_or_else(|e| panic!("pod {n}: {e:#}\n{}", node.logs()));
        assert!(!node.page(n).unwrap().is_empty());
    }
    futures_util::future::join_all(started.iter().map(|(shim, _)| shim.stop_vm())).await;
    node.wait_empty().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_the_start_is_pending_on_the_same_connection_ends_both() {
    // The first program never starts a forwarder: the start waits until it is stopped.
    let init = Script::new("exec sleep 1000");
    let node = Node::start(1, &["-init", init.path()]).await.unwrap();
    let shim = node.shim("sandbox-1").await.unwrap();
    shim.create_vm("web", &node.pods[0].netns.path()).await.unwrap();
    let start = tokio::spawn({
        let shim = shim.clone();
        async move { shim.start_vm().await }
    });
    wait_for_async("the instance", SOON, || async { (!node.instances().is_empty()).then_some(()) })
        .await
        .unwrap();
    shim.stop_vm().await.unwrap();
    let error = tokio::time::timeout(SOON, start).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error.code(), Code::Canceled | Code::FailedPrecondition), "{error:?}");
    node.wait_empty().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_dies_during_the_start_costs_the_instance() {
    let init = Script::new("exec sleep 1000");
    let node = Node::start(1, &["-init", init.path()]).await.unwrap();
    let shim = node.shim("sandbox-1").await.unwrap();
    shim.create_vm("web", &node.pods[0].netns.path()).await.unwrap();
    let start = tokio::spawn(async move { shim.start_vm().await });
    wait_for_async("the instance", SOON, || async { (!node.instances().is_empty()).then_some(()) })
        .await
        .unwrap();
    // Dropping the only client closes the connection.
    start.abort();
    let _ = start.await;
    node.wait_empty().unwrap();
}
