//! A cloud that refuses, over the real wire: what the shim is told, and that passing faults are repeated in its time.

use std::time::Duration;

use peerpod_proto::{
    Code, Status,
    messages::hypervisor::{self, StartVmRequest, StartVmResponse},
};

use crate::node::Node;

/// Starts a sandbox on a node whose cloud is scripted, with a shim that waits so long.
async fn refused(fault: &str, patience: Duration) -> (Status, String) {
    let fault = format!("-scripted-faults={fault}");
    let args = ["-scripted-address", "192.0.2.2", "-scripted-key=canary-of-the-cloud", &fault];
    let node = Node::start_with("scripted", 1, &args).await.unwrap();
    let shim = node.shim("sandbox-1").await.unwrap();
    shim.create_vm("pod-0", &node.pods[0].netns.path()).await.unwrap();
    let request = StartVmRequest { id: "sandbox-1".into() };
    let answer: Result<StartVmResponse, Status> =
        shim.client().call(hypervisor::SERVICE, hypervisor::START_VM, &request, Some(patience)).await;
    let status = answer.unwrap_err();
    node.wait_empty().unwrap();
    (status, node.daemon.output())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_stays_is_the_answer_at_the_first_time_in_the_clouds_words() {
    for (kind, code, hint) in [
        ("quota", Code::ResourceExhausted, "raise it"),
        ("auth", Code::Unauthenticated, "renew them"),
        ("permission", Code::PermissionDenied, "grant the one"),
        ("unsupported", Code::FailedPrecondition, "leave it out"),
        ("capacity", Code::ResourceExhausted, "more zones"),
    ] {
        let (status, log) = refused(&format!("run_instance:1+:{kind}"), Duration::from_secs(60)).await;
        assert_eq!(status.code(), code, "{status:?}");
        let words = ["create the instance", hint, &format!("Scripted.{kind}"), "run_instance is refused"];
        for part in words {
            assert!(status.message.contains(part), "{part} is missing in {}", status.message);
        }
        assert!(!status.message.contains("attempts:"), "it is asked once: {}", status.message);
        assert!(!status.message.contains("canary") && !log.contains("canary"), "{}\n{log}", status.message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_that_passes_is_repeated_within_the_shims_time_which_its_last_words_end() {
    for (kind, patience) in [("transient", 6), ("throttled", 12)] {
        let fault = format!("run_instance:1+:{kind}");
        let (status, _) = refused(&fault, Duration::from_secs(patience)).await;
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        for part in ["create the instance", &format!("Scripted.{kind}"), "attempts: "] {
            assert!(status.message.contains(part), "{part} is missing in {}", status.message);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_goes_on_after_a_fault_that_has_passed() {
    let (status, _) = refused("run_instance:1:transient", Duration::from_secs(10)).await;
    // Nobody answers at the address of the scripted machine: the start came that far.
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(status.message.contains("reach the forwarder of the guest"), "{}", status.message);
    assert!(status.message.contains("the shim waits for 10s"), "{}", status.message);
}
