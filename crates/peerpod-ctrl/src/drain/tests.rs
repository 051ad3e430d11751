//! Draining a cluster and a cloud in memory.

use cloud_providers::{
    CreateRequest, Provider, Scope, Token, Unit,
    scripted::{Fault, ScriptedProvider, World},
    tags,
};
use peerpod_api::{Claim, PodOwner, names, writes};
use serde_json::json;

use super::*;
use crate::{
    hooks::Hooks,
    memory::{Memory, MemoryClient},
    metrics::Metrics,
    providers::Fixed,
};

struct Bench {
    cluster: Memory,
    client: MemoryClient,
    world: World,
    provider: Arc<ScriptedProvider>,
}

impl Bench {
    fn new() -> Self {
        let (cluster, world) = (Memory::new(), World::new());
        let (client, provider) = (cluster.client(), Arc::new(ScriptedProvider::new(&world)));
        Self { cluster, client, world, provider }
    }

    async fn drain(&self, how: DrainSettings) -> Drained {
        let accounts = [("one", self.provider.clone() as Arc<dyn Provider>)];
        let parts = Parts {
            cluster: Arc::new(self.client.clone()),
            providers: Arc::new(Fixed::new(accounts)),
            metrics: Metrics::new(),
            hooks: Hooks::default(),
        };
        drain(parts, Settings::new(Scope::Cluster("c".into())), how, CancellationToken::new()).await
    }

    async fn vm(&self, cluster: &str, pod: &str, sandbox: &str) -> cloud_providers::Instance {
        let token = Token::new(Scope::Cluster(cluster.into()), sandbox, 1);
        let request = CreateRequest::new(token, Unit { id: sandbox.into(), name_hint: pod.into() }, "node");
        self.provider.create_instance(&OpContext::new(), &request).await.unwrap()
    }

    /// A pod that lives, with its VM and record.
    async fn pod(&self, name: &str, sandbox: &str) -> crate::model::Key {
        let pod = self.cluster.add_pod("default", name, "node");
        let owner = PodOwner::new("default", name, &pod.uid);
        let mut claim = Claim::new(sandbox, Token::new(Scope::Cluster("c".into()), sandbox, 1), owner);
        claim.provider = "one".into();
        let object = self.cluster.create(writes::early(&claim)).unwrap();
        let vm = self.vm("c", name, sandbox).await;
        let key = Record::new(object.clone()).key;
        self.cluster.patch(&key, &writes::bind(&object, &vm.id, &Default::default()).unwrap()).unwrap();
        key
    }
}

fn how() -> DrainSettings {
    DrainSettings::new(Duration::from_secs(60))
}

#[tokio::test(start_paused = true)]
async fn everything_of_the_cluster_goes_and_nothing_of_others() {
    let b = Bench::new();
    b.pod("web", "a1a1a1a1a1").await;
    b.pod("db", "b2b2b2b2b2").await;
    b.vm("c", "lost", "c3c3c3c3c3").await;
    let theirs = b.vm("other", "web", "d4d4d4d4d4").await;
    let dry = b.drain(DrainSettings { dry_run: true, ..how() }).await;
    assert_eq!((dry.found.len(), dry.left.len(), dry.exit_code()), (5, 5, 3), "{dry:?}");
    assert!(text(&dry, true).contains("nothing was deleted"));
    let drained = b.drain(how()).await;
    assert_eq!((drained.exit_code(), drained.found.len()), (0, 5), "{drained:?}");
    assert!(b.cluster.objects().is_empty());
    let left: Vec<String> = b
        .world
        .resources()
        .into_iter()
        .filter(|r| r.resource.kind == "instance")
        .map(|r| r.resource.id)
        .collect();
    assert_eq!(left, [theirs.id.to_string()]);
    assert_eq!(b.drain(how()).await.exit_code(), 0, "a second time, too");
}

#[tokio::test(start_paused = true)]
async fn what_is_left_is_told_with_its_reason_and_in_the_exit_code() {
    let b = Bench::new();
    let key = b.pod("web", "a1a1a1a1a1").await;
    b.cluster.patch(&key, &json!({"metadata": {"annotations": {names::PROTECT: "true"}}})).unwrap();
    let vm = b.vm("c", "lost", "c3c3c3c3c3").await;
    b.world.set_tag(vm.id.as_str(), tags::PROTECT, Some("true")).unwrap();
    let stuck = b.pod("db", "b2b2b2b2b2").await;
    b.world.script(
        Fault::on("terminate_instance").forever().before(Error::new(ErrorKind::Permission, "not allowed")),
    );
    let drained = b.drain(how()).await;
    assert_eq!(drained.exit_code(), 3);
    let text = text(&drained, false);
    for part in ["peer.pod/protect", "protect tag", "not allowed"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(b.cluster.object(&stuck).is_some(), "its VM is there still");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_looked_at_is_no_success() {
    let b = Bench::new();
    b.world.script(Fault::on("list_resources").forever());
    assert_eq!(b.drain(how()).await.exit_code(), 4);
    b.world.clear_faults();
    b.client.set_link(|link| link.down = true);
    let drained = b.drain(how()).await;
    assert_eq!(drained.exit_code(), 4, "{drained:?}");
    b.client.set_link(|link| link.down = false);
    assert_eq!(b.drain(how()).await.exit_code(), 0);
}

#[tokio::test(start_paused = true)]
async fn passing_faults_are_outlived() {
    let b = Bench::new();
    for n in 0..5 {
        b.pod(&format!("web-{n}"), &format!("{n}1a1a1a1")).await;
    }
    for n in [1, 3] {
        b.world.script(Fault::on("terminate_instance").nth(n).lost_reply());
    }
    b.client.set_link(|link| link.loses_replies = true);
    let drained = b.drain(how()).await;
    assert_eq!(drained.exit_code(), 0, "{drained:?}");
}
