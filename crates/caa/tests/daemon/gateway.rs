//! The gateway as a program of its own: the daemon comes and goes, and no connection of a shim breaks.

use nix::sys::signal::Signal;
use test_support::{AgentPlayer, wait_for_async};

use crate::node::{Node, SOON};

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_of_a_shim_breaks_when_the_daemon_is_killed() {
    let mut node = Node::behind_gateway(2).await.unwrap();
    let (shim, socket) =
        node.sandbox("sandbox-1", 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    let agent = node.web(&socket, "sandbox-1").await.unwrap();
    // Calls that wait, as every shim has them: for output, and for the end of a process.
    let waiting = tokio::spawn({
        let agent = AgentPlayer::connect(&socket).await.unwrap();
        async move { agent.exec("web", "waits", &["sh", "-c", "echo begun; sleep 5; echo over"]).await }
    });
    for _ in 0..3 {
        node.crash_and_restart(&[]).await.unwrap();
        agent.check().await.unwrap();
        shim.version()
            .await
            .unwrap_or_else(|e| panic!("the shim's connection broke: {e:?}\n{}", node.logs()));
    }
    let (code, output) = waiting.await.unwrap().unwrap();
    assert_eq!((code, output.as_str()), (0, "begun\nover\n"), "no byte of a stream is lost");
    // A new pod over the new daemon, while the old one's shim is still connected.
    let (other, _) = node.sandbox("sandbox-2", 1).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    shim.stop_vm().await.unwrap();
    other.stop_vm().await.unwrap();
    node.wait_empty().unwrap();
    assert!(node.daemon.terminate(SOON).unwrap().success());
    assert!(node.gateway.take().unwrap().terminate(SOON).unwrap().success());
    assert!(!node.socket().exists(), "the gateway removes the socket of the shims");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_wait_for_a_daemon_and_a_stop_is_kept_for_it() {
    let mut node = Node::behind_gateway(2).await.unwrap();
    let (shim, _) = node.sandbox("sandbox-1", 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    node.daemon.signal(Signal::SIGKILL).unwrap();
    node.daemon.wait_exit(SOON).unwrap();
    // Answered at once, by the gateway alone.
    shim.stop_vm().await.unwrap();
    assert_eq!(node.instances().len(), 1);
    // Who looks is told, and does not wait with them.
    for look in ["list", "journal"] {
        let mut caactl = std::process::Command::new(env!("CARGO_BIN_EXE_caactl"));
        let out = caactl.arg("--socket").arg(node.socket()).args([look, "--timeout", "1"]).output().unwrap();
        let error = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.code() == Some(3) && error.contains("no daemon answers at"), "{error}");
    }
    // A new pod that comes while no daemon is there.
    let creating = tokio::spawn({
        let (other, netns) = (node.shim("sandbox-2").await.unwrap(), node.pods[1].netns.path());
        async move {
            other.create_vm("web", &netns).await?;
            other.start_vm().await.map(|()| other)
        }
    });
    node.restart(&[]).await.unwrap();
    let other = creating.await.unwrap().unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    wait_for_async("the kept StopVM to be carried out", SOON, || async {
        (node.instances().len() == 1 && node.record_of("sandbox-1").is_err()).then_some(())
    })
    .await
    .unwrap_or_else(|e| panic!("{e:#}\n{}", node.logs()));
    other.stop_vm().await.unwrap();
    node.wait_empty().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_was_killed_learns_again_what_it_served() {
    let mut node = Node::behind_gateway(1).await.unwrap();
    let (_shim, socket) =
        node.sandbox("sandbox-1", 0).await.unwrap_or_else(|e| panic!("{e:?}\n{}", node.logs()));
    drop(node.web(&socket, "sandbox-1").await.unwrap());
    node.crash_and_restart_gateway().unwrap();
    let served = wait_for_async("the agent socket and the shims' socket", SOON, || async {
        AgentPlayer::connect(&socket).await.ok()?.check().await.ok()?;
        let shim = node.shim("sandbox-1").await.ok()?;
        shim.version().await.ok().map(|_| shim)
    });
    let shim = served.await.unwrap_or_else(|e| panic!("{e:#}\n{}", node.logs()));
    assert!(!node.page(0).unwrap().is_empty());
    shim.stop_vm().await.unwrap();
    node.wait_empty().unwrap();
}
