//! Pods and VMs that went, as cluster and provider tell it.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use caa::{
    cluster::{ClusterRecord, NoCluster, PodRef, SandboxRef},
    sandbox::Phase,
};
use cloud_providers::{
    Capabilities, CreateRequest, Instance, InstanceId, OpContext, OwnedList, Ownership, Provider, Resource,
    Scope,
    scripted::{Fault, ScriptedProvider, World},
};
use tokio_util::sync::CancellationToken;

use crate::fakes::Node;

const GRACE: Duration = Duration::from_secs(60);
/// Several times the grace time: by then everything that comes has come.
const LONG: Duration = Duration::from_secs(600);

/// What the API says of pods that it is asked about.
#[derive(Clone, Copy, PartialEq)]
enum Api {
    /// There is a pod of this UID under each name.
    Has(&'static str),
    HasNone,
    Fails,
    Hangs,
}

struct FakeCluster {
    api: Mutex<Api>,
    uid: Option<&'static str>,
    /// The sandboxes of each question.
    asked: Mutex<Vec<Vec<String>>>,
}

impl FakeCluster {
    fn new(uid: Option<&'static str>, api: Api) -> Arc<Self> {
        Arc::new(Self { api: Mutex::new(api), uid, asked: Mutex::default() })
    }
}

#[async_trait]
impl ClusterRecord for FakeCluster {
    async fn pod_uid(&self, _: &str, _: &str) -> anyhow::Result<Option<String>> {
        Ok(self.uid.map(str::to_owned))
    }

    async fn pull_secrets(&self, namespace: &str, name: &str) -> anyhow::Result<Option<String>> {
        NoCluster.pull_secrets(namespace, name).await
    }

    async fn gone_pods(&self, pods: &[PodRef]) -> anyhow::Result<Option<BTreeSet<String>>> {
        self.asked.lock().unwrap().push(pods.iter().map(|p| p.sandbox_id.clone()).collect());
        let api = *self.api.lock().unwrap();
        let found = match api {
            Api::Has(uid) => Some(uid),
            Api::HasNone => None,
            Api::Fails => anyhow::bail!("the API server is away"),
            Api::Hangs => std::future::pending().await,
        };
        Ok(Some(pods.iter().filter(|p| p.is_gone(found)).map(|p| p.sandbox_id.clone()).collect()))
    }

    async fn claim(&self, sandbox: &SandboxRef) -> anyhow::Result<()> {
        NoCluster.claim(sandbox).await
    }

    async fn bind(&self, sandbox: &SandboxRef, instance_id: &str) -> anyhow::Result<()> {
        NoCluster.bind(sandbox, instance_id).await
    }

    async fn release(&self, sandbox: &SandboxRef) -> anyhow::Result<()> {
        NoCluster.release(sandbox).await
    }
}

/// A node with one running pod, whose signs are looked at.
async fn watched(cluster: Arc<dyn ClusterRecord>) -> (Node, CancellationToken) {
    let world = World::new();
    let provider = Arc::new(ScriptedProvider::new(&world));
    let node = Node::in_cluster(world, provider, &[], cluster);
    node.create("s1").await.unwrap();
    node.start("s1").await.unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(node.sandboxes.clone().watch_signs(GRACE, stop.clone()));
    (node, stop)
}

fn lives(node: &Node) -> bool {
    node.sandboxes.list().iter().any(|s| s.phase == Phase::Ready)
}

fn close_connection(node: &Node) {
    node.gateway.closed.lock().unwrap().insert("s1".into());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_gone_in_the_cluster_is_a_second_sign() {
    let cluster = FakeCluster::new(Some("uid-1"), Api::HasNone);
    let (node, _stop) = watched(cluster.clone()).await;
    tokio::time::sleep(LONG).await;
    assert!(lives(&node), "alone it ends nothing");
    assert!(cluster.asked.lock().unwrap().is_empty(), "nobody is asked while all is well");
    close_connection(&node);
    tokio::time::sleep(GRACE / 2).await;
    assert!(lives(&node), "the grace time is not over");
    assert!(cluster.asked.lock().unwrap().iter().all(|asked| *asked == ["s1"]));
    tokio::time::sleep(LONG).await;
    node.wait_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_pod_of_the_same_name_does_not_stand_for_the_old_one() {
    let cluster = FakeCluster::new(Some("uid-1"), Api::Has("uid-1"));
    let (node, _stop) = watched(cluster.clone()).await;
    close_connection(&node);
    tokio::time::sleep(LONG).await;
    assert!(lives(&node), "its own pod is there");
    *cluster.api.lock().unwrap() = Api::Has("uid-2");
    tokio::time::sleep(LONG).await;
    node.wait_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_does_not_answer_is_no_sign() {
    for api in [Api::Fails, Api::Hangs] {
        let cluster = FakeCluster::new(Some("uid-1"), api);
        let (node, _stop) = watched(cluster.clone()).await;
        close_connection(&node);
        tokio::time::sleep(LONG).await;
        assert!(lives(&node));
        assert!(cluster.asked.lock().unwrap().len() > 2, "it is asked again and again");
        // The look-out goes on: once it answers, its word counts.
        *cluster.api.lock().unwrap() = Api::HasNone;
        tokio::time::sleep(LONG).await;
        node.wait_empty().await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_cluster_nobody_knows_whether_a_pod_is_gone() {
    let (node, _stop) = watched(Arc::new(NoCluster)).await;
    close_connection(&node);
    tokio::time::sleep(LONG).await;
    assert!(lives(&node));
}

fn instance(node: &Node) -> String {
    let all = node.world.resources();
    all.iter().find(|r| r.resource.kind == Resource::INSTANCE).unwrap().resource.id.clone()
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_stopped_ends_its_sandbox_once_its_guest_is_out_of_reach() {
    let (node, _stop) = watched(Arc::new(NoCluster)).await;
    node.gateway.unreached.lock().unwrap().insert("s1".into());
    tokio::time::sleep(LONG).await;
    assert!(lives(&node), "it runs, as the list says");
    node.world.stop(&instance(&node)).unwrap();
    // The deletion hangs, so that the reason can be read.
    node.world.script(Fault::on("terminate_instance").forever().hang_before());
    tokio::time::sleep(2 * GRACE).await;
    let failure = node.sandboxes.list().first().and_then(|s| s.failure.clone());
    assert!(failure.as_deref().is_some_and(|why| why.contains("the VM is stopped")), "{failure:?}");
    node.world.clear_faults();
    tokio::time::sleep(LONG).await;
    node.wait_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_stopped_while_its_guest_is_reached_is_left_alone() {
    let (node, _stop) = watched(Arc::new(NoCluster)).await;
    node.world.stop(&instance(&node)).unwrap();
    tokio::time::sleep(LONG).await;
    assert!(lives(&node), "a list may be wrong, and the guest answers");
}

#[tokio::test(start_paused = true)]
async fn a_cluster_id_that_changed_costs_no_pod_and_leaves_no_vm() {
    let mut node = Node::new();
    node.create("s1").await.unwrap();
    node.start("s1").await.unwrap();
    node.follow_in(Scope::Cluster("another".into())).await;
    tokio::spawn(node.sandboxes.clone().watch_signs(GRACE, CancellationToken::new()));
    node.gateway.unreached.lock().unwrap().insert("s1".into());
    tokio::time::sleep(LONG).await;
    assert!(lives(&node), "its VM runs, under the cluster id it was made with");
    node.sandboxes.stop_vm("s1").await;
    node.wait_empty().await;
}

/// Lists for ever, and hears no deadline.
#[derive(Debug)]
struct DeafList(ScriptedProvider);

#[async_trait]
impl Provider for DeafList {
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

    async fn list_owned(&self, _: &OpContext, _: &Scope) -> cloud_providers::Result<OwnedList> {
        std::future::pending().await
    }

    async fn teardown(&self) -> cloud_providers::Result<()> {
        self.0.teardown().await
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_never_ends_does_not_hide_the_signs_of_other_sandboxes() {
    let world = World::new();
    let provider = Arc::new(DeafList(ScriptedProvider::new(&world)));
    let cluster = FakeCluster::new(Some("uid-1"), Api::HasNone);
    let node = Node::in_cluster(world, provider, &[], cluster);
    for id in ["s1", "unreached"] {
        node.create(id).await.unwrap();
        node.start(id).await.unwrap();
    }
    node.gateway.unreached.lock().unwrap().insert("unreached".into());
    tokio::spawn(node.sandboxes.clone().watch_signs(GRACE, CancellationToken::new()));
    tokio::time::sleep(2 * GRACE).await;
    close_connection(&node);
    tokio::time::sleep(LONG).await;
    let left: Vec<String> = node.sandboxes.list().into_iter().map(|s| s.id).collect();
    assert_eq!(left, ["unreached"]);
}

#[tokio::test(start_paused = true)]
async fn an_agent_socket_that_no_record_knows_is_closed_after_the_grace_time() {
    let (node, stop) = watched(Arc::new(NoCluster)).await;
    node.gateway.unreached.lock().unwrap().insert("stranger".into());
    let served = || node.gateway.unreached.lock().unwrap().contains("stranger");
    tokio::time::sleep(GRACE - Duration::from_secs(1)).await;
    assert!(served(), "it may be one that is just being made");
    tokio::time::sleep(LONG).await;
    assert!(!served());
    assert!(lives(&node) && node.gateway.specs.lock().unwrap().contains_key("s1"));
    stop.cancel();
}
