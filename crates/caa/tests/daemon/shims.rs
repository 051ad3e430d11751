//! The five ordinary faults after which the shim of runtime-rs sends no StopVM, each with a shim in a process of its own.
//! The VM goes all the same.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use test_support::{ProcessGuard, wait_for};

use crate::node::{Node, SOON, Script};

/// How long two signs must agree here.
const GRACE: [&str; 2] = ["-pod-loss-grace", "1s"];
/// How long a connection must have been kept for its end to say something.
const KEPT: Duration = Duration::from_secs(2);
/// How long the shim waits for its agent.
const PATIENCE: Duration = Duration::from_secs(2);
const ID: &str = "sandbox-1";
/// What the shim writes when it is told to stop the pod and cannot reach the daemon any more.
const NO_STOP: &str = "shim: StopVM fails: ";
const READY: &str = "shim: the pod is ready";
const NOT_READY: &str = "shim: the pod is not ready any more";

/// Starts a shim in a process of its own and waits until its pod runs and its connections count as kept.
fn pod_of_a_process(node: &Node, socket: &Path) -> ProcessGuard {
    let mut shim = node.shim_process(socket, ID, 0, PATIENCE).unwrap();
    shim.wait_for_output(READY, SOON).unwrap_or_else(|e| panic!("{e:#}\n{}", node.logs()));
    let ready = Instant::now();
    wait_for("the connections to count as kept", SOON, || (ready.elapsed() > KEPT).then_some(())).unwrap();
    assert_eq!(node.instances().len(), 1, "a pod with its shim lives");
    shim
}

/// Waits until nothing is left, and checks that no StopVM brought it about.
fn ended_without_a_stop(node: &Node, shim: &ProcessGuard, signs: &[&str]) {
    node.wait_empty().unwrap();
    assert!(!shim.output().contains("StopVM is answered"), "{}", shim.output());
    let log = node.daemon.output();
    assert!(signs.iter().all(|sign| log.contains(sign)), "{signs:?}: {log}");
}

/// Lets the guest be made and never answer, so that StartVM is pending for as long as it takes.
async fn pending_start(behind_gateway: bool) -> (Node, ProcessGuard, Script) {
    let init = Script::new("exec sleep 1000");
    let args = ["-init", init.path()];
    let node = match behind_gateway {
        false => Node::start(1, &args).await,
        true => Node::behind_gateway_with(1, &args).await,
    };
    let node = node.unwrap();
    let shim = node.shim_process(&node.socket(), ID, 0, PATIENCE).unwrap();
    wait_for("the instance", SOON, || (!node.instances().is_empty()).then_some(()))
        .unwrap_or_else(|e| panic!("{e:#}\n{}", node.logs()));
    (node, shim, init)
}

#[tokio::test(flavor = "multi_thread")]
async fn caa_closes_the_connection_instead_of_answering_and_the_vm_goes() {
    let (mut node, mut shim, init) = pending_start(false).await;
    node.daemon.signal(Signal::SIGKILL).unwrap();
    node.daemon.wait_exit(SOON).unwrap();
    assert!(!shim.wait_exit(SOON).unwrap().success());
    assert!(shim.output().contains("no StopVM is sent"), "{}", shim.output());
    assert_eq!(node.instances().len(), 1, "nobody is there to remove it");
    node.restart(&["-init", init.path()]).await.unwrap();
    node.wait_empty().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_closes_the_connection_instead_of_answering_and_the_vm_goes() {
    let (mut node, mut shim, _init) = pending_start(true).await;
    // The daemon lives on: it sees its call end, and nobody would use the result.
    node.crash_and_restart_gateway().unwrap();
    assert!(!shim.wait_exit(SOON).unwrap().success());
    assert!(shim.output().contains("no StopVM is sent"), "{}", shim.output());
    node.wait_empty().unwrap();
}

/// Stops a pod whose shim lost its connection to the hypervisor socket, as the kubelet does.
fn stop_in_vain(shim: &mut ProcessGuard) {
    assert!(shim.terminate(SOON).unwrap().success(), "{}", shim.output());
    assert_eq!(shim.output().matches(NO_STOP).count(), 3, "{}", shim.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn caa_restarts_and_the_agent_connection_breaks_and_the_vm_goes() {
    let mut node = Node::start(1, &GRACE).await.unwrap();
    let mut shim = pod_of_a_process(&node, &node.socket());
    node.crash_and_restart(&GRACE).await.unwrap();
    shim.wait_for_output(NOT_READY, SOON).unwrap();
    stop_in_vain(&mut shim);
    ended_without_a_stop(
        &node,
        &shim,
        &[
            "its agent connections are closed",
            "its shim's process is gone",
            "the pod is gone without a StopVM",
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_restarts_and_the_agent_connection_breaks_and_the_vm_goes() {
    let mut node = Node::behind_gateway_with(1, &GRACE).await.unwrap();
    let mut shim = pod_of_a_process(&node, &node.socket());
    node.crash_and_restart_gateway().unwrap();
    shim.wait_for_output(NOT_READY, SOON).unwrap();
    stop_in_vain(&mut shim);
    ended_without_a_stop(
        &node,
        &shim,
        &[
            "its agent connections are closed",
            "its shim's process is gone",
            "the pod is gone without a StopVM",
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn caa_restarts_and_the_agent_connection_survives_and_the_vm_goes() {
    let mut node = Node::behind_gateway_with(1, &GRACE).await.unwrap();
    // The daemon serves this shim itself, as beside a gateway that cannot, and the gateway its agent.
    let socket = node.dir.path().join("daemon.sock");
    let mut shim = pod_of_a_process(&node, &socket);
    node.crash_and_restart(&GRACE).await.unwrap();
    let restarted = Instant::now();
    let seen = shim.output().len();
    wait_for("the pod to live on for longer than the grace time", SOON, || {
        (restarted.elapsed() > Duration::from_secs(4)).then_some(())
    })
    .unwrap();
    assert!(shim.output()[seen..].contains("the agent answers"), "{}", shim.output());
    assert!(!shim.output().contains(NOT_READY), "the pod stays ready: {}", shim.output());
    assert_eq!(node.instances().len(), 1, "one sign alone ends nothing");
    stop_in_vain(&mut shim);
    ended_without_a_stop(
        &node,
        &shim,
        &[
            "its agent connections are closed",
            "its shim's process is gone",
            "the pod is gone without a StopVM",
        ],
    );
}

/// The shim is killed: both kept connections end at once.
async fn killed(node: Node) {
    let mut shim = pod_of_a_process(&node, &node.socket());
    shim.signal(Signal::SIGKILL).unwrap();
    shim.wait_exit(SOON).unwrap();
    ended_without_a_stop(
        &node,
        &shim,
        &[
            "its agent connections are closed",
            "its hypervisor connection is closed",
            "its shim's process is gone",
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shim_is_killed_and_the_vm_goes() {
    killed(Node::start(1, &GRACE).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shim_is_killed_and_the_vm_goes_behind_a_gateway() {
    killed(Node::behind_gateway_with(1, &GRACE).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shim_is_killed_and_the_vm_goes_where_no_process_of_the_host_is_seen() {
    // Without hostPID the process is no sign: the closed connections are enough.
    let node = Node::in_own_process_namespace(1, &GRACE).await.unwrap();
    let mut shim = pod_of_a_process(&node, &node.socket());
    shim.signal(Signal::SIGKILL).unwrap();
    shim.wait_exit(SOON).unwrap();
    ended_without_a_stop(
        &node,
        &shim,
        &["its agent connections are closed, its hypervisor connection is closed"],
    );
    assert!(!node.daemon.output().contains("its shim's process is gone"), "{}", node.daemon.output());
    // The program that made the namespace passes no other signal on.
    node.daemon.signal(Signal::SIGKILL).unwrap();
}

/// The agent stops answering: the shim's health check fails, and its process ends itself.
async fn hanging_agent(node: Node) {
    let mut shim = pod_of_a_process(&node, &node.socket());
    let all = node.processes_of(ID).unwrap();
    // The agent's own process, not the forwarder in front of it.
    let agents: Vec<_> = all.iter().filter(|p| p.command.contains("test-agent")).collect();
    assert!(!agents.is_empty(), "{all:?}");
    for agent in agents {
        kill(Pid::from_raw(agent.pid), Signal::SIGSTOP).unwrap();
    }
    assert!(!shim.wait_exit(SOON).unwrap().success());
    assert!(shim.output().contains("the agent does not answer"), "{}", shim.output());
    ended_without_a_stop(&node, &shim, &["the pod is gone without a StopVM"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_hangs_and_the_vm_goes() {
    hanging_agent(Node::start(1, &GRACE).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_hangs_and_the_vm_goes_behind_a_gateway() {
    hanging_agent(Node::behind_gateway_with(1, &GRACE).await.unwrap()).await;
}
