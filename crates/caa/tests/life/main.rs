//! The life of sandboxes over a scripted cloud: every order of calls, every failing step, nothing left.

mod certificates;
#[cfg(feature = "otlp")]
mod collector;
mod counted;
mod errors;
mod evidence;
mod fakes;
mod levels;
mod secrets;
#[cfg(feature = "otlp")]
mod traces;

use std::{sync::Arc, time::Duration};

use caa::{annotations::keys, sandbox::Phase};
use cloud_providers::{
    CreateRequest, Error, ErrorKind, Instance, InstanceId, OpContext, Ownership, Provider,
    scripted::{Fault, ScriptedProvider, World},
};
use fakes::{Node, SOON};
use peerpod_gateway::{GatewayError, GatewayErrorKind};
use peerpod_proto::Code;
use test_support::{ShimPlayer, wait_for_async};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn a_sandbox_lives_from_create_to_stop_and_leaves_nothing() {
    let node = Node::new();
    let socket = node.create("s1").await.unwrap();
    assert_eq!(socket, node.dir.path().join("pods/s1/agent.ttrpc"));
    node.start("s1").await.unwrap();
    let info = &node.sandboxes.list()[0];
    assert_eq!(info.phase, Phase::Ready);
    let spec = node.gateway.specs.lock().unwrap()["s1"].clone();
    assert_eq!(spec.targets, [format!("{}:15150", info.addresses[0])]);
    assert_eq!(spec.tls.unwrap().server_name, "podvm-web-s1");
    assert_eq!(node.network.connected.lock().unwrap()[&info.tunnel_id].peer, info.addresses[0]);
    node.sandboxes.stop_vm("s1").await;
    node.wait_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_planned_sandbox_whose_shim_died_goes_after_a_while() {
    let node = Node::new();
    node.create("s1").await.unwrap();
    tokio::time::sleep(Duration::from_secs(599)).await;
    assert_eq!(node.sandboxes.list()[0].phase, Phase::Planned);
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.wait_empty().await;
    assert_eq!(node.start("s1").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn stopping_three_times_in_a_row_or_an_unknown_sandbox_is_fine() {
    let node = Node::new();
    node.create("s1").await.unwrap();
    node.start("s1").await.unwrap();
    for id in ["s1", "s1", "s1", "never-seen"] {
        node.sandboxes.stop_vm(id).await;
    }
    node.wait_empty().await;
    assert_eq!(node.world.operations().iter().filter(|o| **o == "terminate_instance").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn starts_take_turns_with_the_cloud_and_one_that_waits_can_be_stopped() {
    let world = World::new();
    let provider = Arc::new(ScriptedProvider::new(&world).with_call_limit(Duration::from_secs(3600)));
    let node = Node::with_provider(world.clone(), provider, &[("CREATE_CONCURRENCY", "2")]);
    world.script(Fault::on("create_disk").hang_before());
    world.script(Fault::on("create_disk").nth(2).hang_before());
    let asked = || world.operations().iter().filter(|o| **o == "create_disk").count();
    let start = |id: &'static str| {
        let sandboxes = node.sandboxes.clone();
        tokio::spawn(async move { sandboxes.start_vm(id, &CancellationToken::new()).await })
    };
    for id in ["s1", "s2", "s3", "s4"] {
        node.create(id).await.unwrap();
    }
    let (_first, _second) = (start("s1"), start("s2"));
    wait_for_async("two to ask", SOON, || async { (asked() == 2).then_some(()) }).await.unwrap();
    let (third, fourth) = (start("s3"), start("s4"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(asked(), 2, "two hold their turns");
    // One that waits is stopped at once, and one that ends gives its turn to the next.
    node.sandboxes.stop_vm("s3").await;
    assert_eq!(timeout(SOON, third).await.unwrap().unwrap().unwrap_err().code(), Code::Canceled);
    node.sandboxes.stop_vm("s1").await;
    timeout(SOON, fourth).await.unwrap().unwrap().unwrap();
    for id in ["s2", "s4"] {
        node.sandboxes.stop_vm(id).await;
    }
    node.wait_empty().await;
}

/// Keeps records in memory, that of a stop only once it may.
struct SlowStore(caa::store::MemoryStore, CancellationToken);

#[async_trait::async_trait]
impl caa::store::SandboxStore for SlowStore {
    async fn put(&self, record: &caa::store::SandboxRecord) -> anyhow::Result<()> {
        if record.phase == Phase::Stopping {
            self.1.cancelled().await;
        }
        self.0.put(record).await
    }

    async fn remove(&self, id: &str) -> anyhow::Result<()> {
        self.0.remove(id).await
    }

    async fn list(&self) -> anyhow::Result<Vec<caa::store::SandboxRecord>> {
        self.0.list().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_answered_when_the_journal_has_it_and_within_the_shims_second_all_the_same() {
    for (takes, answered) in [(200, 200), (5_000, 550)] {
        let may = CancellationToken::new();
        let node = Node::with_store(Arc::new(SlowStore(Default::default(), may.clone())));
        node.create("s1").await.unwrap();
        node.start("s1").await.unwrap();
        let begun = Instant::now();
        let (took, ()) = tokio::join!(
            async {
                node.sandboxes.stop_vm("s1").await;
                begun.elapsed()
            },
            async {
                tokio::time::sleep(Duration::from_millis(takes)).await;
                may.cancel();
            }
        );
        let earliest = Duration::from_millis(answered);
        assert!(
            took >= earliest && took < earliest + Duration::from_millis(100),
            "{took:?}, not {earliest:?}"
        );
        node.wait_empty().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_during_the_start_cancels_it_and_removes_what_was_made() {
    for operation in ["create_disk", "create_interface", "run_instance", "get_instance"] {
        for fault in [Fault::on(operation).hang_before(), Fault::on(operation).hang_after()] {
            let node = Node::new();
            node.world.script(fault);
            node.create("s1").await.unwrap();
            let start = tokio::spawn({
                let sandboxes = node.sandboxes.clone();
                async move { sandboxes.start_vm("s1", &CancellationToken::new()).await }
            });
            wait_for_async(operation, SOON, || async {
                node.world.operations().contains(&operation).then_some(())
            })
            .await
            .unwrap();
            let begun = Instant::now();
            node.sandboxes.stop_vm("s1").await;
            assert!(
                begun.elapsed() < Duration::from_millis(900),
                "StopVM must answer within its caller's second"
            );
            let error = timeout(SOON, start).await.unwrap().unwrap().unwrap_err();
            assert!(matches!(error.code(), Code::Canceled | Code::FailedPrecondition), "{error:?}");
            node.wait_empty().await;
        }
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_cancels_the_start() {
    let node = Node::new();
    *node.gateway.silent.lock().unwrap() = true;
    node.create("s1").await.unwrap();
    let caller = CancellationToken::new();
    let start = tokio::spawn({
        let (sandboxes, caller) = (node.sandboxes.clone(), caller.clone());
        async move { sandboxes.start_vm("s1", &caller).await }
    });
    wait_for_async("the guest to be dialled", SOON, || async {
        (!node.gateway.specs.lock().unwrap().is_empty()).then_some(())
    })
    .await
    .unwrap();
    caller.cancel();
    assert_eq!(start.await.unwrap().unwrap_err().code(), Code::Canceled);
    node.wait_empty().await;
}

#[tokio::test]
async fn a_stop_during_create_is_not_lost() {
    let node = Node::new();
    let gate = CancellationToken::new();
    *node.network.gate.lock().unwrap() = Some(gate.clone());
    let (sandboxes, annotations) = (node.sandboxes.clone(), ShimPlayer::annotations("web"));
    let create = tokio::spawn(async move {
        sandboxes.create_vm("s1", &annotations, "/fake/netns", &CancellationToken::new()).await
    });
    wait_for_async("CreateVM to begin", SOON, || async {
        (*node.network.inspected.lock().unwrap() == 1).then_some(())
    })
    .await
    .unwrap();
    assert_eq!(node.create("s1").await.unwrap_err().code(), Code::AlreadyExists);
    node.sandboxes.stop_vm("s1").await;
    gate.cancel();
    assert_eq!(create.await.unwrap().unwrap_err().code(), Code::Canceled);
    node.wait_empty().await;
}

#[tokio::test]
async fn a_second_create_of_an_id_does_nothing() {
    let node = Node::new();
    let socket = node.create("s1").await.unwrap();
    let apf = std::fs::read(socket.with_file_name("apf.json")).unwrap();
    assert_eq!(node.create("s1").await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(std::fs::read(socket.with_file_name("apf.json")).unwrap(), apf);
    assert_eq!(node.network.reserved.lock().unwrap().len(), 1);
    node.sandboxes.stop_vm("s1").await;
    node.wait_empty().await;
}

#[tokio::test]
async fn a_full_node_refuses_and_takes_on_again_when_one_leaves() {
    let world = World::new();
    let provider = Arc::new(ScriptedProvider::new(&world));
    let node = Node::with_provider(world, provider, &[("PEERPODS_LIMIT_PER_NODE", "2")]);
    node.create("one").await.unwrap();
    node.create("two").await.unwrap();
    let refused = node.create("three").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message.contains("-peerpods-limit-per-node"), "{}", refused.message);
    node.sandboxes.stop_vm("one").await;
    node.create("three").await.unwrap();
    // At once: the limit holds also while they are planned.
    node.sandboxes.stop_vm("two").await;
    node.sandboxes.stop_vm("three").await;
    let ids: Vec<String> = (0..8).map(|n| format!("at-once-{n}")).collect();
    let mut done = 0;
    for result in futures_util::future::join_all(ids.iter().map(|id| node.create(id))).await {
        done += usize::from(result.is_ok());
    }
    assert!((1..=2).contains(&done), "{done} of 8 were taken on");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_pods_for_the_last_place_one_has_it() {
    const PODS: usize = 8;
    let world = World::new();
    let provider = Arc::new(ScriptedProvider::new(&world));
    let node = Arc::new(Node::with_provider(world, provider, &[("PEERPODS_LIMIT_PER_NODE", "1")]));
    for round in 0..100 {
        let barrier = Arc::new(std::sync::Barrier::new(PODS));
        let mut creates = tokio::task::JoinSet::new();
        for pod in 0..PODS {
            let (node, barrier) = (node.clone(), barrier.clone());
            let runtime = tokio::runtime::Handle::current();
            creates.spawn_blocking(move || {
                barrier.wait();
                runtime.block_on(node.create(&format!("pod-{pod}-{round}"))).is_ok()
            });
        }
        let made = creates.join_all().await.into_iter().filter(|made| *made).count();
        assert_eq!(made, 1, "in round {round}");
        for sandbox in node.sandboxes.list() {
            node.sandboxes.stop_vm(&sandbox.id).await;
        }
    }
    node.wait_empty().await;
}

#[tokio::test]
async fn concurrent_starts_of_one_sandbox_make_one_instance() {
    let node = Node::new();
    node.create("s1").await.unwrap();
    let (a, b, c) = tokio::join!(node.start("s1"), node.start("s1"), node.start("s1"));
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    assert_eq!(node.world.operations().iter().filter(|o| **o == "run_instance").count(), 1);
    node.sandboxes.stop_vm("s1").await;
    node.wait_empty().await;
}

#[tokio::test]
async fn a_failing_step_is_told_in_the_clouds_words_and_undone() {
    let node = Node::new();
    let cause = Error::new(ErrorKind::Capacity { zone: Some("z1".into()), instance_type: None }, "no room")
        .with_cloud("InsufficientInstanceCapacity", "we have no capacity in z1");
    node.world.script(Fault::on("run_instance").before(cause).forever());
    node.create("s1").await.unwrap();
    let status = node.start("s1").await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    for part in ["create the instance", "InsufficientInstanceCapacity", "we have no capacity in z1"] {
        assert!(status.message.contains(part), "{}", status.message);
    }
    node.wait_empty().await;
    assert_eq!(node.start("s1").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_guest_that_is_not_ours_costs_the_instance() {
    let node = Node::new();
    let error = GatewayError::new(GatewayErrorKind::Tls, "certificate of podvm-web-s1 is expired");
    *node.gateway.failure.lock().unwrap() = Some(error);
    node.create("s1").await.unwrap();
    let status = node.start("s1").await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message.contains("expired"), "{}", status.message);
    node.wait_empty().await;
}

#[tokio::test]
async fn a_panic_in_one_start_reaches_no_other_sandbox() {
    let node = Node::new();
    node.create("good").await.unwrap();
    node.start("good").await.unwrap();
    *node.gateway.panics.lock().unwrap() = true;
    node.create("bad").await.unwrap();
    assert_eq!(node.start("bad").await.unwrap_err().code(), Code::Internal);
    wait_for_async("the bad sandbox to go", SOON, || async {
        (node.sandboxes.list().len() == 1).then_some(())
    })
    .await
    .unwrap();
    assert_eq!(node.sandboxes.list()[0].phase, Phase::Ready);
    assert!(node.sandboxes.shutdown(SOON).await.is_empty());
    node.wait_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_deletion_is_tried_until_it_succeeds() {
    let node = Node::new();
    node.create("s1").await.unwrap();
    node.start("s1").await.unwrap();
    for nth in 1..=4 {
        node.world.script(
            Fault::on("terminate_instance").nth(nth).before(Error::new(ErrorKind::Permission, "not now")),
        );
    }
    let begun = Instant::now();
    node.sandboxes.stop_vm("s1").await;
    assert!(begun.elapsed() < Duration::from_millis(900));
    assert_eq!(node.sandboxes.list()[0].phase, Phase::Stopping, "a failed delete is never reported as done");
    let told = wait_for_async("the reason in the list", SOON, || async {
        node.sandboxes.list().first().and_then(|s| s.trouble.clone())
    });
    let told = told.await.unwrap();
    assert!(told.contains("cannot delete the instance") && told.contains("not now"), "{told}");
    wait_for_async("the deletion to succeed", Duration::from_secs(300), || async {
        node.leftovers().is_empty().then_some(())
    })
    .await
    .unwrap();
    assert!(
        node.metrics.text().contains("peerpod_deletions_failed_total{provider=\"scripted\"} 4"),
        "{}",
        node.metrics.text()
    );
}

#[tokio::test]
async fn guests_are_told_the_nodes_addresses_unless_their_bridge_may_come_later() {
    for isolation in [true, false] {
        let world = World::new();
        let mut can = ScriptedProvider::new(&world).capabilities();
        can.isolation = isolation;
        let provider = ScriptedProvider::new(&world).with_capabilities(can);
        let node = Node::with_provider(world, Arc::new(provider), &[]);
        node.create("s1").await.unwrap();
        let apf = std::fs::read_to_string(node.dir.path().join("pods/s1/apf.json")).unwrap();
        assert_eq!(apf.contains("worker-addresses"), isolation, "{apf}");
        node.sandboxes.stop_vm("s1").await;
        node.wait_empty().await;
    }
}

#[tokio::test]
async fn ids_of_other_tunnels_are_passed_over() {
    let node = Node::new();
    node.network.foreign.lock().unwrap().extend([555_000, 555_001]);
    node.create("s1").await.unwrap();
    let apf = std::fs::read_to_string(node.dir.path().join("pods/s1/apf.json")).unwrap();
    assert!(apf.contains("\"vxlan-id\": 555002") && apf.contains("\"index\": 2"), "{apf}");
    node.sandboxes.stop_vm("s1").await;
    node.wait_empty().await;
}

#[tokio::test]
async fn bad_requests_are_refused_with_the_thing_to_mend_and_leave_nothing() {
    let node = Node::new();
    let with = |key: &str, value: &str| {
        let mut annotations = ShimPlayer::annotations("web");
        annotations.insert(key.to_owned(), value.to_owned());
        annotations
    };
    let plain = ShimPlayer::annotations("web");
    let cases = [
        ("s1", with(keys::SANDBOX_NAME, ""), "/fake/n", Code::InvalidArgument, keys::SANDBOX_NAME),
        ("s1", with(keys::MEMORY, "lots"), "/fake/n", Code::InvalidArgument, "default_memory"),
        ("s1", with(keys::INIT_DATA, "nonsense"), "/fake/n", Code::InvalidArgument, "init-data"),
        ("s1", with(keys::GPUS, "2"), "/fake/n", Code::FailedPrecondition, "GPU"),
        ("s1", plain.clone(), "", Code::InvalidArgument, "networkNamespacePath"),
        ("s1", plain.clone(), "/nonexistent/netns", Code::InvalidArgument, "/nonexistent/netns"),
        ("../up", plain.clone(), "/fake/n", Code::InvalidArgument, "sandbox id"),
        ("", plain, "/fake/n", Code::InvalidArgument, "empty"),
    ];
    for (id, annotations, netns, code, part) in cases {
        let status = node.create_with(id, &annotations, netns).await.unwrap_err();
        assert_eq!(status.code(), code, "{}", status.message);
        assert!(status.message.contains(part), "{part:?} is missing in {}", status.message);
        assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
    }
    assert_eq!(node.start("unknown").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_ends_create_and_leaves_nothing() {
    let node = Node::new();
    std::fs::write(node.dir.path().join("pods"), "in the way").unwrap();
    let status = node.create("s1").await.unwrap_err();
    assert!(status.message.contains("pods/s1"), "{}", status.message);
    node.wait_empty().await;
}

#[tokio::test]
async fn the_instance_of_a_pod_can_be_waited_for() {
    let node = Node::new();
    let never = CancellationToken::new();
    let missing = node.sandboxes.instance_of("default", "web", false, &never).await;
    assert_eq!(missing.unwrap_err().code(), Code::NotFound);
    let waiting = tokio::spawn({
        let sandboxes = node.sandboxes.clone();
        async move { sandboxes.instance_of("default", "web", true, &CancellationToken::new()).await }
    });
    node.create("s1").await.unwrap();
    assert!(!waiting.is_finished());
    node.start("s1").await.unwrap();
    let id = timeout(SOON, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(Some(id), node.sandboxes.list()[0].instance_id);
    let caller = CancellationToken::new();
    caller.cancel();
    let cancelled = node.sandboxes.instance_of("default", "other", true, &caller).await;
    assert_eq!(cancelled.unwrap_err().code(), Code::Canceled);
    assert!(node.sandboxes.shutdown(SOON).await.is_empty());
}

#[tokio::test]
async fn the_newest_sandbox_of_a_pod_answers_for_it() {
    let node = Node::new();
    for id in ["old", "new"] {
        node.create(id).await.unwrap();
        node.start(id).await.unwrap();
    }
    let never = CancellationToken::new();
    let id = node.sandboxes.instance_of("default", "web", true, &never).await.unwrap();
    assert_eq!(Some(id), node.sandboxes.list()[1].instance_id);
    assert!(node.sandboxes.shutdown(SOON).await.is_empty());
}

#[tokio::test]
async fn eight_sandboxes_at_once_have_eight_tunnel_ids() {
    let node = Arc::new(Node::new());
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let node = node.clone();
        tasks.spawn(async move {
            let id = format!("s{n}");
            node.create(&id).await.unwrap();
            node.start(&id).await.unwrap();
        });
    }
    tasks.join_all().await;
    let ids: std::collections::BTreeSet<u32> = node.sandboxes.list().iter().map(|s| s.tunnel_id).collect();
    assert_eq!(ids.len(), 8);
    assert!(node.sandboxes.shutdown(SOON).await.is_empty());
    node.wait_empty().await;
    assert_eq!(node.create("late").await.unwrap_err().code(), Code::Unavailable);
}

/// Has only the three required calls, as a provider crate of somebody else may.
#[derive(Debug)]
struct Bare(ScriptedProvider);

#[cloud_providers::async_trait]
impl Provider for Bare {
    async fn create_instance(
        &self,
        ctx: &OpContext,
        request: &CreateRequest,
    ) -> cloud_providers::Result<Instance> {
        self.0.create_instance(ctx, request).await
    }

    async fn delete_instance(
        &self,
        ctx: &OpContext,
        id: &InstanceId,
        owner: &Ownership,
    ) -> cloud_providers::Result<()> {
        self.0.delete_instance(ctx, id, owner).await
    }

    async fn teardown(&self) -> cloud_providers::Result<()> {
        self.0.teardown().await
    }
}

#[tokio::test]
async fn a_provider_with_only_the_three_required_calls_is_enough() {
    let world = World::new();
    let node = Node::with_provider(world.clone(), Arc::new(Bare(ScriptedProvider::new(&world))), &[]);
    node.create("s1").await.unwrap();
    node.start("s1").await.unwrap();
    node.sandboxes.stop_vm("s1").await;
    node.wait_empty().await;
}

#[tokio::test]
async fn secrets_of_a_sandbox_appear_in_no_list_and_no_debug_output() {
    let node = Node::new();
    let canary = "algorithm = \"sha256\"\nversion = \"0.1.0\"\n\n[data]\n\"aa.toml\" = ''\n\"policy.rego\" = 'canary-7f3a'\n";
    let mut annotations = ShimPlayer::annotations("web");
    annotations.insert(keys::INIT_DATA.into(), canary.into());
    node.create_with("s1", &annotations, "/fake/n").await.unwrap();
    node.start("s1").await.unwrap();
    let spec = node.gateway.specs.lock().unwrap()["s1"].clone();
    let shown = format!("{:?} {spec:?} {}", node.sandboxes.list(), node.metrics.text());
    for secret in ["canary-7f3a", "PRIVATE KEY"] {
        assert!(!shown.contains(secret), "{secret}");
    }
    assert!(node.sandboxes.shutdown(SOON).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_does_not_answer_does_not_keep_the_instance() {
    let node = Node::new();
    node.create("s1").await.unwrap();
    node.start("s1").await.unwrap();
    *node.gateway.hangs.lock().unwrap() = true;
    let begun = Instant::now();
    node.sandboxes.stop_vm("s1").await;
    wait_for_async("the instance to go", SOON, || async { node.world.resources().is_empty().then_some(()) })
        .await
        .unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "time is virtual here: it was not waited for");
    node.wait_empty().await;
}

/// Loses its way after the instance was made, and hears no cancellation.
#[derive(Debug)]
struct Deaf(ScriptedProvider);

#[cloud_providers::async_trait]
impl Provider for Deaf {
    async fn create_instance(
        &self,
        ctx: &OpContext,
        request: &CreateRequest,
    ) -> cloud_providers::Result<Instance> {
        self.0.create_instance(ctx, request).await?;
        std::future::pending().await
    }

    async fn delete_instance(
        &self,
        ctx: &OpContext,
        id: &InstanceId,
        owner: &Ownership,
    ) -> cloud_providers::Result<()> {
        self.0.delete_instance(ctx, id, owner).await
    }

    async fn teardown(&self) -> cloud_providers::Result<()> {
        self.0.teardown().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_ignores_its_cancellation_does_not_keep_the_instance() {
    let world = World::new();
    let node = Node::with_provider(world.clone(), Arc::new(Deaf(ScriptedProvider::new(&world))), &[]);
    node.create("s1").await.unwrap();
    let start = tokio::spawn({
        let sandboxes = node.sandboxes.clone();
        async move { sandboxes.start_vm("s1", &CancellationToken::new()).await }
    });
    wait_for_async("the instance", SOON, || async {
        world.operations().contains(&"run_instance").then_some(())
    })
    .await
    .unwrap();
    node.sandboxes.stop_vm("s1").await;
    let gone = || async { node.leftovers().is_empty().then_some(()) };
    wait_for_async("nothing to be left", Duration::from_secs(600), gone).await.unwrap();
    assert!(start.await.unwrap().is_err());
}
