//! Two daemons at once, as in a rolling update: the new one has the old one hand the journal over and end.

use std::{
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use peerpod_proto::{Client, Code, messages::hypervisor};
use test_support::{AgentPlayer, Netns, ProcessGuard, ShimPlayer, wait_for, wait_for_async};

use crate::node::{Node, SOON, command};

const GIVEN: &str = "the journal is handed to another daemon";
const SERVING: &str = "serving Kata shims";

/// Waits until the old daemon of a node ended for `new`, and puts that one in its place.
fn follow(node: &mut Node, mut new: ProcessGuard) -> ProcessGuard {
    new.wait_for_output(SERVING, SOON).unwrap_or_else(|e| panic!("{e:#}\n{}", node.logs()));
    assert_eq!(node.daemon.wait_exit(SOON).unwrap().code(), Some(0), "{}", node.daemon.output());
    let log = node.daemon.output();
    let line = log.lines().find(|line| line.contains(GIVEN)).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains(&format!("process {}", new.pid())), "it says who took it: {line}");
    std::mem::replace(&mut node.daemon, new)
}

/// Connects and asks for the version again and again. Returns how often it was answered; fails when once it was not.
fn asking(node: &Node, stop: &Arc<AtomicBool>) -> tokio::task::JoinHandle<usize> {
    let (socket, stop) = (node.socket(), stop.clone());
    tokio::spawn(async move {
        let mut answered = 0;
        while !stop.load(Ordering::Relaxed) {
            let shim =
                ShimPlayer::connect(&socket, "asking").await.unwrap_or_else(|e| panic!("{answered}: {e:#}"));
            shim.version().await.unwrap_or_else(|e| panic!("after {answered} answers: {e:?}"));
            answered += 1;
        }
        answered
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_daemon_takes_the_journal_over_and_nobody_finds_the_socket_unserved() {
    let mut node = Node::start(2, &[]).await.unwrap();
    let (shim, socket) =
        node.sandbox("sandbox-1", 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    let before = node.record_of("sandbox-1").unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let asked = asking(&node, &stop);
    let new = node.second(&[]).unwrap();
    follow(&mut node, new);
    stop.store(true, Ordering::Relaxed);
    assert!(asked.await.unwrap() > 10);
    drop(shim);
    assert_eq!(node.record_of("sandbox-1").unwrap(), before, "the same instance");
    AgentPlayer::connect(&socket).await.unwrap().check().await.unwrap();
    let (other, _) = node.sandbox("sandbox-2", 1).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    other.stop_vm().await.unwrap();
    node.shim("sandbox-1").await.unwrap().stop_vm().await.unwrap();
    node.wait_empty().unwrap();
    assert!(node.daemon.terminate(SOON).unwrap().success());
    assert!(!node.socket().exists(), "the one that serves the socket removes it");
    assert!(!node.dir.path().join("state/handover.sock").exists());
}

/// Waits until the new daemon has the path of a socket.
fn wait_taken(path: &std::path::Path, inode: u64) {
    let taken = || std::fs::symlink_metadata(path).is_ok_and(|meta| meta.ino() != inode).then_some(());
    wait_for("the socket to be taken", SOON, taken).unwrap();
}

/// Calls that come while one daemon ends and the other one waits: `socket` is the one that changes hands.
async fn calls_in_between(mut node: Node, socket: &str, kept_dies: bool) {
    let path = node.dir.path().join(socket);
    let inode = std::fs::symlink_metadata(&path).unwrap().ino();
    let (shim, _) = node.sandbox("sandbox-1", 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    // A deletion that takes long keeps the old daemon for as long as it may.
    let held = node.hold_locks().unwrap();
    let (kept, _) = node.sandbox("sandbox-2", 1).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    let (other, _) = node.sandbox("sandbox-3", 2).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    shim.stop_vm().await.unwrap();
    let new = node.second(&[]).unwrap();
    wait_taken(&path, inode);
    // A StopVM on the shim's kept connection, one on a new connection, a CreateVM on a new connection.
    kept.stop_vm().await.unwrap();
    let _ = node.shim("sandbox-3").await.unwrap().stop_vm().await;
    let created = node.shim("sandbox-4").await.unwrap();
    let creating = {
        let netns = node.pods[3].netns.path();
        tokio::spawn(async move {
            created.create_vm("pod-3", &netns).await?;
            created.start_vm().await.map(|()| created)
        })
    };
    assert!(node.daemon.try_status().is_none(), "the old daemon is still at it");
    follow(&mut node, new);
    let created = creating.await.unwrap().unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    wait_for("both stopped VMs to go", SOON, || {
        (node.record_of("sandbox-2").is_err() && node.record_of("sandbox-3").is_err()).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", node.logs()));
    assert!(node.record_of("sandbox-1").is_ok(), "its deletion goes on");
    drop(held);
    assert_eq!(other.version().await.is_err(), kept_dies);
    created.stop_vm().await.unwrap();
    node.wait_empty().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_come_during_the_hand_over_are_not_lost() {
    calls_in_between(Node::start(4, &[]).await.unwrap(), "hypervisor.sock", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_come_during_the_hand_over_are_not_lost_behind_a_gateway() {
    calls_in_between(Node::behind_gateway(4).await.unwrap(), "daemon.sock", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_pod_notices_nothing_of_a_hand_over_behind_a_gateway() {
    let mut node = Node::behind_gateway(1).await.unwrap();
    let (shim, socket) =
        node.sandbox("sandbox-1", 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    let agent = node.web(&socket, "sandbox-1").await.unwrap();
    let answers = Arc::new(AtomicUsize::new(0));
    let asking = tokio::spawn({
        let (shim, answers) = (shim.clone(), answers.clone());
        async move {
            loop {
                shim.version().await.unwrap();
                agent.check().await.unwrap();
                answers.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    // The second one may be asked for it at once.
    let new = node.second(&["-handover-rest", "0s"]).unwrap();
    follow(&mut node, new);
    let new = node.second(&[]).unwrap();
    follow(&mut node, new);
    let seen = answers.load(Ordering::Relaxed);
    wait_for("more answers", SOON, || (answers.load(Ordering::Relaxed) > seen + 2).then_some(())).unwrap();
    assert!(!asking.is_finished());
    asking.abort();
    shim.stop_vm().await.unwrap();
    node.wait_empty().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_daemon_never_blocks_the_next_one() {
    let mut node = Node::start(0, &[]).await.unwrap();
    let offered = node.dir.path().join("state/handover.sock");
    node.daemon.signal(Signal::SIGKILL).unwrap();
    node.daemon.wait_exit(SOON).unwrap();
    assert!(offered.exists(), "the socket is left and nobody holds the journal");
    let begun = Instant::now();
    node.restart(&[]).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "nobody was waited for: {:?}", begun.elapsed());
    // The next one is offered the journal again.
    let new = node.second(&[]).unwrap();
    follow(&mut node, new);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_hangs_is_named_with_its_process_and_goes_on_when_it_can() {
    let mut node = Node::start(0, &[]).await.unwrap();
    node.daemon.signal(Signal::SIGSTOP).unwrap();
    let mut new = node.second(&[]).unwrap();
    assert_eq!(new.wait_exit(SOON).unwrap().code(), Some(1));
    let error = new.output();
    let pid = format!("process {}", node.daemon.pid());
    for part in [&*pid, "journal.lock", "does not answer within 10s", "kill -KILL", "kill -CONT"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    node.daemon.signal(Signal::SIGCONT).unwrap();
    node.shim("probe").await.unwrap().version().await.unwrap();
    // Killed at last, as the message says: the next one starts.
    node.daemon.signal(Signal::SIGKILL).unwrap();
    node.daemon.wait_exit(SOON).unwrap();
    node.restart(&[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_cannot_work_asks_nobody_to_end_for_it() {
    let mut node = Node::start(0, &[]).await.unwrap();
    for wrong in [
        &["-proxy-timeout", "soon"][..],
        &["-agent", "/nonexistent/agent", "-cloud-config-verify"],
        &["-gateway-socket", "/nonexistent/gateway.sock"],
    ] {
        let mut new = node.second(wrong).unwrap();
        assert_eq!(new.wait_exit(SOON).unwrap().code(), Some(1), "{wrong:?}: {}", new.output());
    }
    assert!(!node.daemon.output().contains("asks for the journal"), "{}", node.daemon.output());
    assert!(node.daemon.try_status().is_none());
    node.shim("probe").await.unwrap().version().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_was_replaced_does_not_take_the_journal_back_at_once() {
    let mut node = Node::start(0, &[]).await.unwrap();
    let new = node.second(&[]).unwrap();
    follow(&mut node, new);
    // As the kubelet does with a container that ended, until its pod is deleted.
    let mut old = node.second(&[]).unwrap();
    assert_eq!(old.wait_exit(SOON).unwrap().code(), Some(1));
    assert!(old.output().contains("-handover-rest"), "{}", old.output());
    assert!(node.daemon.try_status().is_none());
    node.shim("probe").await.unwrap().version().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_asked_and_went_away_costs_nothing() {
    let mut node = Node::start(0, &[]).await.unwrap();
    // It answers shims before it makes this socket.
    node.daemon.wait_for_output(SERVING, SOON).unwrap();
    let socket = node.dir.path().join("state/handover.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let ask = async |client: &Client, method: &str, text: &str| {
        client.request("peerpod.HandOver", method, text.to_owned().into(), Some(SOON), Vec::new()).await
    };
    let client = Client::connect_unix(&socket).await.unwrap();
    // Keys of a later version are no obstacle.
    let hello = r#"{"version":"9.9.9","pid":1,"min_level":1,"max_level":7,"journal":9,"later":true}"#;
    let answer: serde_json::Value =
        serde_json::from_slice(&ask(&client, "Hello", hello).await.unwrap()).unwrap();
    assert_eq!(answer["pid"], node.daemon.pid());
    assert_eq!(ask(&client, "Placed", "{}").await.unwrap_err().code(), Code::FailedPrecondition);
    let promise = ask(&client, "HandOver", "{}").await.unwrap();
    assert!(String::from_utf8_lossy(&promise).contains("hypervisor.sock"));
    let second = Client::connect_unix(&socket).await.unwrap();
    let error = ask(&second, "HandOver", "{}").await.unwrap_err();
    assert!(error.message.contains("is promised to process"), "{error:?}");
    drop(client);
    node.daemon.wait_for_output("went away: this one goes on", SOON).unwrap();
    assert!(ask(&second, "HandOver", "{}").await.is_ok(), "the next one gets it");
    drop(second);
    node.shim("probe").await.unwrap().version().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_of_another_user_is_not_asked() {
    const NOBODY: u32 = 65534;
    let dir = tempfile::tempdir().unwrap();
    let netns = Netns::unique("caa-user").unwrap();
    chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    // Where everybody may read it.
    let program = dir.path().join("cloud-api-adaptor");
    std::fs::copy(env!("CARGO_BIN_EXE_cloud-api-adaptor"), &program).unwrap();
    let inner = command(&netns, dir.path(), "scripted", &[]);
    let mut theirs = netns.command("setpriv");
    theirs.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    theirs.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&program);
    let at = inner.get_args().position(|arg| arg == "--").unwrap();
    theirs.args(inner.get_args().skip(at + 2));
    let mut theirs = ProcessGuard::spawn("daemon of nobody", &mut theirs, &dir.path().join("log")).unwrap();
    theirs.wait_for_output(SERVING, SOON).unwrap();
    let out = command(&netns, dir.path(), "scripted", &[]).output().unwrap();
    let error = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{error}");
    let pid = format!("process {}", theirs.pid());
    for part in [&*pid, "runs as user 65534 and this one as user 0", "it is not asked"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!theirs.output().contains("asks for the journal"), "{}", theirs.output());
    let client = wait_for_async("an answer", SOON, || async {
        Client::connect_unix(dir.path().join("hypervisor.sock")).await.ok()
    });
    let request = hypervisor::VersionRequest { version: String::new() };
    let answer: Result<hypervisor::VersionResponse, _> =
        client.await.unwrap().call(hypervisor::SERVICE, hypervisor::VERSION, &request, Some(SOON)).await;
    answer.unwrap();
    assert!(theirs.terminate(SOON).unwrap().success());
}
