//! Pods that went while nobody looked, and VMs that went by themselves.

use test_support::{wait_for, wait_for_async};

use crate::node::{Node, SOON};

const GRACE: [&str; 2] = ["-pod-loss-grace", "1s"];

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_went_while_the_daemon_restarted_costs_the_instance() {
    let mut node = Node::start(1, &GRACE).await.unwrap();
    let (shim, _) = node.sandbox("sandbox-1", 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    node.crash_and_restart(&GRACE).await.unwrap();
    drop(shim);
    assert_eq!(node.instances().len(), 1);
    // The daemon never had a connection of this pod: its namespace and the silence are all there is.
    node.pods.clear();
    wait_for_async("the instance to go", SOON, || async { node.instances().is_empty().then_some(()) })
        .await
        .unwrap_or_else(|e| panic!("{e:#}\n{}", node.logs()));
    let log = node.daemon.output();
    assert!(log.contains("its agent connections are closed, its network namespace is gone"), "{log}");
    // The node itself lost the pod's link, so only the daemon's own files are compared.
    let folder = node.dir.path().join("pods/sandbox-1");
    wait_for("the folder of the sandbox to go", SOON, || (!folder.exists()).then_some(())).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_somebody_deleted_ends_its_sandbox() {
    let node = Node::start(2, &GRACE).await.unwrap();
    let (_shim, socket) =
        node.sandbox("sandbox-1", 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    let agent = node.web(&socket, "sandbox-1").await.unwrap();
    node.release_all().unwrap();
    let (_other, other_socket) =
        node.sandbox("sandbox-2", 1).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    let other = node.web(&other_socket, "sandbox-2").await.unwrap();
    let folder = node.dir.path().join("pods/sandbox-1");
    wait_for_async("the sandbox to end", SOON, || async { (!folder.exists()).then_some(()) })
        .await
        .unwrap_or_else(|e| panic!("{e:#}\n{}", node.logs()));
    assert!(agent.check().await.is_err(), "its shim is told by the end of the connection");
    assert!(node.daemon.output().contains("the VM is gone"), "{}", node.daemon.output());
    other.check().await.unwrap();
    assert_eq!(node.instances().len(), 1, "the other pod lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_somebody_stopped_ends_its_sandbox_and_goes() {
    let node = Node::start(2, &GRACE).await.unwrap();
    let (_shim, socket) =
        node.sandbox("sandbox-1", 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    let agent = node.web(&socket, "sandbox-1").await.unwrap();
    let (_other, other_socket) =
        node.sandbox("sandbox-2", 1).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    let other = node.web(&other_socket, "sandbox-2").await.unwrap();
    // Its first program is killed, as a machine is switched off: its record, link and folder stay.
    let (_, record) = node.record_of("sandbox-1").unwrap();
    let pid = i32::try_from(record["process"]["pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_for("the sandbox and what is left of its VM to go", SOON, || {
        (node.instances().len() == 1).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", node.logs()));
    let log = node.daemon.output();
    assert!(log.contains("the VM is stopped"), "the state is named: {log}");
    assert!(agent.check().await.is_err(), "its shim is told by the end of the connection");
    other.check().await.unwrap();
    assert!(node.record_of("sandbox-2").is_ok(), "the other pod lives");
}
