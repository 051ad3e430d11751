//! The daemon ends, by a signal or a crash, and the next one takes on what it knew.

use nix::sys::signal::Signal;
use test_support::{AgentPlayer, wait_for_async};

use crate::node::{Node, SOON, Script};

/// What `caactl list` would print, as JSON.
async fn phases(node: &Node) -> String {
    let args = ["--socket", node.socket().to_str().unwrap(), "--json", "list"].map(str::to_owned);
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_caactl")).args(args).output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

/// Speaks to the pod as its shim would after a restart: over the same agent socket, and at last a StopVM.
async fn still_lives_and_ends(node: &Node, socket: &std::path::Path, pod: usize) {
    let agent = wait_for_async("the agent socket", SOON, || async {
        let agent = AgentPlayer::connect(socket).await.ok()?;
        agent.check().await.ok().map(|_| agent)
    });
    let agent = agent.await.unwrap_or_else(|e| panic!("{e:#}\n{}", node.logs()));
    assert!(!node.page(pod).unwrap().is_empty(), "the tunnel carries");
    drop(agent);
    let shim = node.shim("sandbox-1").await.unwrap();
    shim.stop_vm().await.unwrap();
    node.wait_empty().unwrap();
    assert_eq!(phases(node).await.trim(), "[]");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_survives_a_crash_of_the_daemon() {
    let mut node = Node::start(1, &[]).await.unwrap();
    let (_shim, socket) =
        node.sandbox("sandbox-1", 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    let agent = node.web(&socket, "sandbox-1").await.unwrap();
    let before = node.record_of("sandbox-1").unwrap();
    drop(agent);
    node.crash_and_restart(&[]).await.unwrap();
    assert_eq!(node.record_of("sandbox-1").unwrap(), before, "the same instance");
    let listed = phases(&node).await;
    assert!(listed.contains("\"ready\"") && listed.contains("sandbox-1"), "{listed}");
    assert!(!node.daemon.output().contains("in no record"), "{}", node.daemon.output());
    still_lives_and_ends(&node, &socket, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_survives_an_orderly_restart_of_the_daemon() {
    let mut node = Node::start(1, &[]).await.unwrap();
    let (_shim, socket) =
        node.sandbox("sandbox-1", 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    drop(node.web(&socket, "sandbox-1").await.unwrap());
    node.daemon.signal(Signal::SIGTERM).unwrap();
    assert!(node.daemon.wait_exit(SOON).unwrap().success(), "{}", node.logs());
    assert!(!node.socket().exists());
    assert_eq!(node.instances().len(), 1, "its pod lives on");
    node.restart(&[]).await.unwrap();
    still_lives_and_ends(&node, &socket, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_a_crash_cut_off_is_undone() {
    // The guest never answers, so the start is under way for as long as it takes.
    let init = Script::new("exec sleep 1000");
    let args = ["-init", init.path()];
    let mut node = Node::start(1, &args).await.unwrap();
    let shim = node.shim("sandbox-1").await.unwrap();
    shim.create_vm("web", &node.pods[0].netns.path()).await.unwrap();
    let start = tokio::spawn(async move { shim.start_vm().await });
    wait_for_async("the instance", SOON, || async { (!node.instances().is_empty()).then_some(()) })
        .await
        .unwrap();
    node.crash_and_restart(&args).await.unwrap();
    assert!(start.await.unwrap().is_err());
    node.wait_empty().unwrap();
    assert_eq!(phases(&node).await.trim(), "[]");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_a_crash_cut_off_is_finished() {
    let mut node = Node::start(1, &[]).await.unwrap();
    let (shim, _) = node.sandbox("sandbox-1", 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    let held = node.hold_locks().unwrap();
    shim.stop_vm().await.unwrap();
    node.crash_and_restart(&[]).await.unwrap();
    assert_eq!(node.instances().len(), 1);
    assert!(phases(&node).await.contains("\"stopping\""));
    drop(held);
    node.wait_empty().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_planned_before_a_crash_is_started_after_it() {
    let mut node = Node::start(1, &[]).await.unwrap();
    let shim = node.shim("sandbox-1").await.unwrap();
    let socket = shim.create_vm("web", &node.pods[0].netns.path()).await.unwrap();
    node.crash_and_restart(&[]).await.unwrap();
    let shim = node.shim("sandbox-1").await.unwrap();
    shim.start_vm().await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    drop(node.web(&socket, "sandbox-1").await.unwrap());
    still_lives_and_ends(&node, &socket, 0).await;
}

/// A node whose daemon lost its journal, and the id of the instance that is left.
async fn without_journal(args: &[&str]) -> (Node, String) {
    let mut node = Node::start(1, &[]).await.unwrap();
    let (_shim, _) = node.sandbox("sandbox-1", 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    let (dir, _) = node.record_of("sandbox-1").unwrap();
    let id = dir.file_name().unwrap().to_str().unwrap().to_owned();
    node.daemon.signal(Signal::SIGKILL).unwrap();
    node.daemon.wait_exit(SOON).unwrap();
    std::fs::remove_file(node.dir.path().join("state/journal.redb")).unwrap();
    node.restart(args).await.unwrap();
    (node, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_in_no_record_is_reported_and_not_touched() {
    let (mut node, id) = without_journal(&["-orphan-grace", "1s"]).await;
    node.daemon.wait_for_output("is in no record", SOON).unwrap();
    assert!(node.daemon.output().contains(&id), "{}", node.daemon.output());
    // An orderly end, so that whatever the look-out was doing is done.
    assert!(node.daemon.terminate(SOON).unwrap().success());
    assert_eq!(node.instances().len(), 1, "it is reported and not touched: its pod may live");
    node.release_all().unwrap();
    assert!(node.instances().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_in_no_record_is_deleted_after_the_grace_time_when_told_so() {
    let (mut node, id) = without_journal(&["-orphan-grace", "1s", "-orphan-policy", "delete"]).await;
    node.daemon.wait_for_output("an orphan of this node is removed", SOON).unwrap();
    assert!(node.daemon.output().contains(&id), "it was reported first: {}", node.daemon.output());
    assert!(node.instances().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_journal_ends_the_start_and_stays_as_it_is() {
    let mut node = Node::start(0, &[]).await.unwrap();
    assert!(node.daemon.terminate(SOON).unwrap().success());
    let path = node.dir.path().join("state/journal.redb");
    std::fs::write(&path, "not a journal").unwrap();
    let error = format!("{:#}", node.restart(&[]).await.unwrap_err());
    assert!(error.contains(path.to_str().unwrap()) && error.contains("damaged"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"not a journal");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_can_be_looked_at_with_and_without_a_daemon_and_shows_no_secret() {
    let mut node = Node::start(1, &[]).await.unwrap();
    let (shim, _) = node.sandbox("sandbox-1", 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    let look = |args: &[&str]| {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_caactl")).args(args).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let socket = node.socket();
    let asked = look(&["--socket", socket.to_str().unwrap(), "journal"]);
    for part in ["sandbox-1", "\"ready\"", "podvm-pod-0", "user_data_bytes", "instance local-"] {
        assert!(asked.contains(part), "{part} in {asked}");
    }
    assert!(!asked.contains("PRIVATE KEY") && !asked.contains("client_key"), "{asked}");
    node.daemon.signal(Signal::SIGKILL).unwrap();
    node.daemon.wait_exit(SOON).unwrap();
    let state = node.dir.path().join("state");
    assert_eq!(look(&["journal", "--state-dir", state.to_str().unwrap()]), asked);
    node.restart(&[]).await.unwrap();
    drop(shim);
    node.shim("sandbox-1").await.unwrap().stop_vm().await.unwrap();
    node.wait_empty().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_made_after_a_restart_has_a_tunnel_of_its_own() {
    let mut node = Node::start(2, &[]).await.unwrap();
    let (_shim, socket) =
        node.sandbox("sandbox-1", 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    drop(node.web(&socket, "sandbox-1").await.unwrap());
    node.crash_and_restart(&[]).await.unwrap();
    let (other, socket) =
        node.sandbox("sandbox-2", 1).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    drop(node.web(&socket, "sandbox-2").await.unwrap());
    let id = |pod: usize| {
        let text = node.pods[pod].netns.ip(&["-d", "link", "show", "vxlan1"]).unwrap();
        text.split_whitespace().skip_while(|word| *word != "id").nth(1).unwrap().to_owned()
    };
    assert_ne!(id(0), id(1));
    assert_ne!(node.page(0).unwrap(), node.page(1).unwrap(), "both tunnels carry");
    other.stop_vm().await.unwrap();
    node.shim("sandbox-1").await.unwrap().stop_vm().await.unwrap();
    node.wait_empty().unwrap();
}
