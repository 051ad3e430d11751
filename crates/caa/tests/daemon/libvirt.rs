//! Pods in machines of a real libvirtd, which goes away and comes back, or whose machines are switched off by hand.
//!
//! The machines boot the image of `cargo xtask podvm build`; `PEERPOD_IMAGE` names one that is there already.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use test_support::{ProcessGuard, wait_for};

use crate::node::{Node, SOON};

/// How long a machine may need under software emulation, on a machine that is busy with other tests.
const BOOT: Duration = Duration::from_secs(300);
const ARGS: [&str; 4] = ["-pod-loss-grace", "1s", "-proxy-timeout", "4m"];
const ID: &str = "sandbox-1";

fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        if let Some(image) = std::env::var_os("PEERPOD_IMAGE") {
            return image.into();
        }
        let args = ["run", "--quiet", "--package", "xtask", "--", "podvm", "build"];
        let built =
            Command::new(env!("CARGO")).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        let errors = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "the image cannot be built: {errors}");
        String::from_utf8(built.stdout).unwrap().trim().into()
    })
}

/// A node whose one pod runs in a machine, with its shim in a process of its own.
async fn pod_in_a_machine() -> (Node, ProcessGuard) {
    let node = Node::with_libvirtd(1, image(), &ARGS).await.unwrap();
    let mut shim = node.shim_process(&node.socket(), ID, 0, BOOT).unwrap();
    shim.wait_for_output("shim: the pod is ready", BOOT)
        .unwrap_or_else(|e| panic!("{e:#}\n{}", node.daemon.last_lines(60)));
    assert_eq!(node.libvirtd.as_ref().unwrap().domains().unwrap().len(), 1);
    (node, shim)
}

/// Watches the pod answer for longer than signs and lists need to end it.
fn lives_on(shim: &ProcessGuard) {
    let (begun, seen) = (Instant::now(), shim.output().len());
    wait_for("several times the grace time to pass", SOON, || {
        (begun.elapsed() > Duration::from_secs(5)).then_some(())
    })
    .unwrap();
    wait_for("the agent to answer", SOON, || {
        shim.output()[seen..].contains("the agent answers").then_some(())
    })
    .unwrap();
    assert!(!shim.output().contains("not ready any more"), "{}", shim.output());
}

/// Waits until the machine, its disks and all that the node had of it are gone.
fn wait_gone(node: &Node) {
    let libvirtd = node.libvirtd.as_ref().unwrap();
    wait_for("the machine and its disks to go", SOON, || {
        (libvirtd.domains().ok()?.is_empty() && libvirtd.volumes().ok()? == ["base.qcow2"]).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e:#}: {:?}\n{}", libvirtd.domains(), node.daemon.last_lines(60)));
    assert!(libvirtd.qemu_processes().is_empty());
    node.wait_empty().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn libvirtd_restarts_and_the_pod_lives_and_a_stop_meanwhile_ends_with_the_vm_gone() {
    let (mut node, mut shim) = pod_in_a_machine().await;
    let libvirtd = node.libvirtd.as_mut().unwrap();
    libvirtd.kill().unwrap();
    lives_on(&shim);
    libvirtd.start_again().unwrap();
    lives_on(&shim);
    assert_eq!(libvirtd.domains().unwrap().len(), 1, "a running pod keeps its machine");
    // The pod is stopped while nobody can delete its machine.
    libvirtd.kill().unwrap();
    assert!(shim.terminate(SOON).unwrap().success(), "{}", shim.output());
    assert_eq!(shim.output().matches("shim: StopVM is answered").count(), 3, "{}", shim.output());
    node.daemon.wait_for_output("cannot delete the instance, trying again", BOOT).unwrap();
    let libvirtd = node.libvirtd.as_mut().unwrap();
    assert_eq!(libvirtd.qemu_processes().len(), 1, "it runs on without libvirtd");
    libvirtd.start_again().unwrap();
    wait_gone(&node);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_switched_off_by_hand_ends_its_pod_and_goes() {
    let (node, mut shim) = pod_in_a_machine().await;
    let libvirtd = node.libvirtd.as_ref().unwrap();
    let domain = libvirtd.domains().unwrap().remove(0);
    libvirtd.virsh(&["destroy", &domain]).unwrap();
    wait_gone(&node);
    let log = node.daemon.output();
    assert!(log.contains("the VM is stopped"), "the state is named: {log}");
    shim.wait_for_output("shim: the pod is not ready any more", SOON).unwrap();
}
