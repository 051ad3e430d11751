//! Guests that die or never answer, networks that do not fit: one clear status, nothing left.

use std::{fs, time::Duration};

use peerpod_proto::messages::hypervisor::{self, StartVmRequest, StartVmResponse};
use peerpod_proto::{Code, Status};

use crate::node::{Node, SOON, Script, annotations};

async fn failed_start(args: &[&str]) -> (Status, String) {
    let node = Node::start(1, args).await.unwrap();
    let Err(status) = node.sandbox("sandbox-1", 0).await else { panic!("{args:?} started") };
    node.wait_empty().unwrap();
    // The shim stops after a failed start.
    node.shim("sandbox-1").await.unwrap().stop_vm().await.unwrap();
    let log = node.daemon.output();
    (status, log)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_never_comes_ends_the_start_within_the_proxy_timeout() {
    let init = Script::new("exec sleep 1000");
    let (status, _) = failed_start(&["-init", init.path(), "-proxy-timeout", "2s"]).await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(status.message.contains("reach the forwarder of the guest"), "{}", status.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_outlasts_the_shims_patience_is_logged_with_the_state_of_the_guest() {
    let init = Script::new("exec sleep 1000");
    let mut node = Node::start(1, &["-init", init.path()]).await.unwrap();
    let shim = node.shim("sandbox-1").await.unwrap();
    shim.create_vm("pod-0", &node.pods[0].netns.path()).await.unwrap();
    let request = StartVmRequest { id: "sandbox-1".into() };
    let time = Some(Duration::from_secs(3));
    let answer: Result<StartVmResponse, Status> =
        shim.client().call(hypervisor::SERVICE, hypervisor::START_VM, &request, time).await;
    assert_eq!(answer.unwrap_err().code(), Code::DeadlineExceeded);
    node.wait_empty().unwrap();
    node.daemon.wait_for_output("the guest was not reached before the start was cancelled", SOON).unwrap();
    let log = node.daemon.output();
    let line = log.lines().find(|line| line.contains("was not reached")).unwrap();
    assert!(line.contains("sandbox-1") && line.contains("Connection refused"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_first_program_fails_is_told_with_its_console() {
    let init = Script::new("echo canary-console; exit 3");
    let (status, _) = failed_start(&["-init", init.path(), "-boot-grace", "5s"]).await;
    assert!(status.message.contains("create the instance"), "{}", status.message);
    assert!(status.message.contains("canary-console"), "{}", status.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_dies_at_any_step_of_its_boot_leaves_nothing() {
    // Each delay hits another step: at once, during the boot, after the forwarder may be up.
    for delay in ["0", "0.05", "0.3"] {
        let script =
            format!("/run/peerpod-local/guest/podvm-init \"$@\" & sleep {delay}; kill -9 -1; exit 1");
        let init = Script::new(&script);
        let node = Node::start(1, &["-init", init.path(), "-proxy-timeout", "3s"]).await.unwrap();
        // Depending on the step the start fails or the pod dies later; either way StopVM ends it.
        let started = node.sandbox("sandbox-1", 0).await;
        if let Err(status) = &started {
            assert!(!status.message.is_empty());
        }
        node.shim("sandbox-1").await.unwrap().stop_vm().await.unwrap();
        node.wait_empty().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_that_cannot_be_joined_are_refused_with_what_is_missing() {
    let node = Node::start(1, &[]).await.unwrap();
    let shim = node.shim("sandbox-1").await.unwrap();
    let pod = &node.pods[0].netns;
    let try_create = async |path: &str| {
        shim.create_vm_with(annotations("web", &[]), std::path::Path::new(path)).await.unwrap_err()
    };
    let missing = try_create("/run/netns/no-such-namespace").await;
    assert_eq!(missing.code(), Code::InvalidArgument);
    assert!(missing.message.contains("/run/netns/no-such-namespace"), "{}", missing.message);
    let file = node.dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(try_create(file.to_str().unwrap()).await.code(), Code::InvalidArgument);
    assert_eq!(try_create("").await.code(), Code::InvalidArgument);
    let path = pod.path();
    let path = path.to_str().unwrap();
    pod.ip(&["addr", "add", "10.244.1.99/24", "dev", "eth0"]).unwrap();
    let two = try_create(path).await;
    assert_eq!(two.code(), Code::FailedPrecondition, "{two:?}");
    pod.ip(&["addr", "flush", "dev", "eth0"]).unwrap();
    let none = try_create(path).await;
    assert_eq!(none.code(), Code::FailedPrecondition, "{none:?}");
    assert!(node.instances().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_create_with_the_path_and_leaves_nothing() {
    let node = Node::start(1, &[]).await.unwrap();
    // The daemon's folder of sandboxes is a file system without room, in the daemon's own view.
    let pods = node.dir.path().join("pods");
    let mount = |args: &[&str]| test_support::run("mount", args).unwrap();
    mount(&["-t", "tmpfs", "-o", "size=4k,nr_inodes=3", "tmpfs", pods.to_str().unwrap()]);
    fs::write(pods.join("filler"), vec![0; 4096]).unwrap();
    let shim = node.shim("sandbox-1").await.unwrap();
    let outcome = shim.create_vm("web", &node.pods[0].netns.path()).await;
    test_support::run("umount", &[pods.to_str().unwrap()]).unwrap();
    let status = outcome.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message.contains("pods/sandbox-1"), "{}", status.message);
    node.wait_empty().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_journal_refuses_new_sandboxes_and_keeps_the_running_ones() {
    let mut node = Node::start(2, &[]).await.unwrap();
    assert!(node.daemon.terminate(SOON).unwrap().success());
    let state = node.dir.path().join("state").to_str().unwrap().to_owned();
    test_support::run("mount", &["-t", "tmpfs", "-o", "size=40m", "tmpfs", &state]).unwrap();
    let outcome = async {
        node.restart(&[]).await?;
        let (shim, socket) = node.sandbox("sandbox-1", 0).await.map_err(|e| anyhow::anyhow!("{e:?}"))?;
        fs::write(format!("{state}/filler"), vec![0; 30 << 20])?;
        let refused = node.shim("sandbox-2").await?.create_vm("web", &node.pods[1].netns.path()).await;
        let agent = test_support::AgentPlayer::connect(&socket).await?;
        agent.check().await?;
        // Not one byte is left for the records of the end.
        let mut rest = fs::File::create(format!("{state}/rest"))?;
        while std::io::Write::write_all(&mut rest, &[0; 4096]).is_ok() {}
        shim.stop_vm().await.map_err(|e| anyhow::anyhow!("{e:?}"))?;
        test_support::wait_for("the VM to go although nothing can be written", SOON, || {
            node.instances().is_empty().then_some(())
        })?;
        fs::remove_file(format!("{state}/rest"))?;
        anyhow::Ok(refused)
    };
    let outcome = outcome.await;
    let gone = outcome.is_ok().then(|| node.wait_empty());
    let ended = node.daemon.terminate(SOON);
    test_support::run("umount", &[&state]).unwrap();
    let status = outcome.unwrap_or_else(|e| panic!("{e:#}\n{}", node.logs())).unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message.contains(&state) && status.message.contains("-state-dir"), "{}", status.message);
    gone.unwrap().unwrap();
    assert!(ended.unwrap().success());
}
