//! The loop over a cluster and clouds in memory, in tokio's time.

use std::{future::Future, time::Duration};

use cloud_providers::{
    Capabilities, CreateRequest, Error, ErrorKind, Instance, InstanceId, OpContext, Ownership, Provider,
    Retry, Scope, Token, Unit, async_trait,
    scripted::{Fault, ScriptedProvider, World},
};
use peerpod_api::{Claim, PeerPod, PodOwner, names, writes};
use serde_json::json;
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    hooks::Hooks,
    memory::{Memory, MemoryClient},
    metrics::Metrics,
    model::{Daemon, Pod},
    providers::Fixed,
};

struct Bench {
    cluster: Memory,
    client: MemoryClient,
    clouds: BTreeMap<String, World>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

fn scope() -> Scope {
    Scope::Cluster("c".into())
}

impl Bench {
    /// A controller over one cloud for each name.
    fn new(clouds: &[&str]) -> Self {
        let clouds: BTreeMap<String, World> =
            clouds.iter().map(|name| ((*name).to_owned(), World::new())).collect();
        let accounts = clouds
            .iter()
            .map(|(name, world)| (name.clone(), Arc::new(ScriptedProvider::new(world)) as Arc<dyn Provider>));
        Self::over(Fixed::new(accounts), clouds.clone())
    }

    fn over(providers: Fixed, clouds: BTreeMap<String, World>) -> Self {
        let cluster = Memory::new();
        let client = cluster.client();
        let (metrics, stop) = (Metrics::new(), CancellationToken::new());
        let parts = Parts {
            cluster: Arc::new(client.clone()),
            providers: Arc::new(providers),
            metrics: metrics.clone(),
            hooks: Hooks::default(),
        };
        let running = tokio::spawn(run(parts, Settings::new(scope()), stop.clone()));
        Self { cluster, client, clouds, metrics, stop, running }
    }

    /// A pod on a node without daemon, whose VM is in `cloud`.
    async fn pod(&self, cloud: &str, name: &str) -> (Pod, Key) {
        let pod = self.cluster.add_pod("default", name, "node");
        let key = self.sandbox(cloud, &pod, &format!("sandbox-{name}"), 1).await;
        (pod, key)
    }

    /// What a daemon does for a sandbox: the early object, the VM, the patch.
    async fn sandbox(&self, cloud: &str, pod: &Pod, sandbox: &str, order: u64) -> Key {
        let object = self.early(cloud, pod, sandbox, order);
        let key = Record::new(object.clone()).key;
        let request = CreateRequest::new(
            Token::new(scope(), sandbox, 1),
            Unit { id: sandbox.into(), name_hint: pod.key.name.clone() },
            "node",
        );
        let provider = ScriptedProvider::new(&self.clouds[cloud]);
        let instance = provider.create_instance(&OpContext::new(), &request).await.unwrap();
        self.cluster.patch(&key, &writes::bind(&object, &instance.id, &Default::default()).unwrap()).unwrap();
        key
    }

    fn early(&self, cloud: &str, pod: &Pod, sandbox: &str, order: u64) -> PeerPod {
        let owner = PodOwner::new(&pod.key.namespace, &pod.key.name, &pod.uid);
        let mut claim = Claim::new(sandbox, Token::new(scope(), sandbox, 1), owner);
        (claim.provider, claim.node, claim.order) = (cloud.into(), Some("node".into()), Some(order));
        self.cluster.create(writes::early(&claim)).unwrap()
    }

    /// Waits for a state, generously: time costs nothing here.
    async fn until(&self, what: &str, seconds: u64, mut is: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(seconds);
        while !is(self) {
            assert!(
                Instant::now() < end,
                "not within {seconds} s: {what}; events: {:?}",
                self.cluster.events()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn vms(&self) -> usize {
        self.clouds.values().map(|world| world.resources().len()).sum()
    }

    fn told(&self, key: &Key) -> Vec<Reason> {
        self.cluster.events().into_iter().filter(|(k, _)| k == key).map(|(_, note)| note.reason).collect()
    }

    fn condition(&self, key: &Key) -> Option<(String, String, String)> {
        let status = self.cluster.object(key)?.status?;
        let stuck = status.conditions.iter().find(|c| c.type_ == "Stuck" && c.status == "True");
        stuck.or(status.conditions.first()).map(|c| (c.type_.clone(), c.reason.clone(), c.message.clone()))
    }

    async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }
}

async fn over<F: Future<Output = ()>>(clouds: &[&str], test: impl FnOnce(Bench) -> F) {
    test(Bench::new(clouds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_pods_end_removes_its_vm_and_then_its_record() {
    over(&["one"], |b| async move {
        let (pod, key) = b.pod("one", "web").await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(b.cluster.object(&key).is_some() && b.vms() > 0, "nobody asked for it");
        b.cluster.remove_pod(&pod.key);
        b.until("the VM and its record are gone", 10, |b| b.vms() == 0 && b.cluster.objects().is_empty())
            .await;
        assert!(b.metrics.text().contains("peerpod_ctrl_deleted_total{account=\"one\"} 1"));
        b.end().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_finalizer_stays_until_the_cloud_says_gone() {
    over(&["one"], |b| async move {
        let (pod, key) = b.pod("one", "web").await;
        let down = Error::new(ErrorKind::Transient, "the cloud is down");
        b.clouds["one"].script(Fault::on("terminate_instance").forever().before(down));
        b.cluster.remove_pod(&pod.key);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let object = b.cluster.object(&key).expect("the record stays");
        assert_eq!(object.metadata.finalizers.as_deref(), Some(&[names::FINALIZER.to_owned()][..]));
        let (kind, reason, message) = b.condition(&key).unwrap();
        assert_eq!((kind.as_str(), reason.as_str()), ("DeletionPending", "DeletionFailed"));
        assert!(message.contains("the cloud is down"), "{message}");
        assert!(b.told(&key).contains(&Reason::DeletionFailed));
        let text = b.metrics.text();
        assert!(
            text.contains("kind=\"transient\"") && text.contains("deletions_pending{account=\"one\"} 1"),
            "{text}"
        );
        let tries = b.clouds["one"].operations().iter().filter(|o| **o == "terminate_instance").count();
        assert!((12..150).contains(&tries), "{tries} tries in an hour");
        b.clouds["one"].clear_faults();
        b.until("all is gone", 400, |b| b.vms() == 0 && b.cluster.objects().is_empty()).await;
        b.end().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_record_without_instance_is_released_by_its_token() {
    over(&["one"], |b| async move {
        let pod = b.cluster.add_pod("default", "web", "node");
        let key = Record::new(b.early("one", &pod, "s1", 1)).key;
        // What a create made that never told its id.
        let request = CreateRequest::new(
            Token::new(scope(), "s1", 1),
            Unit { id: "s1".into(), name_hint: "web".into() },
            "node",
        );
        ScriptedProvider::new(&b.clouds["one"]).create_instance(&OpContext::new(), &request).await.unwrap();
        b.cluster.remove_pod(&pod.key);
        b.until("all is gone", 30, |b| b.vms() == 0 && b.cluster.object(&key).is_none()).await;
        b.end().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_cloud_that_hangs_holds_up_nobody_else() {
    over(&["fast", "slow"], |b| async move {
        b.clouds["slow"].script(Fault::on("terminate_instance").forever().hang_before());
        for n in 0..40 {
            b.pod("slow", &format!("slow-{n}")).await;
        }
        for n in 0..5 {
            b.pod("fast", &format!("fast-{n}")).await;
        }
        let begun = Instant::now();
        b.cluster.pods().iter().for_each(|p| b.cluster.remove_pod(&p.key));
        b.until("the fast ones are gone", 10, |b| b.clouds["fast"].resources().is_empty()).await;
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert_eq!(b.cluster.objects().len(), 40);
        // Every one of the slow ones gets a word and another try, although each call hangs for ten minutes.
        b.clouds["slow"].clear_faults();
        b.until("the slow ones are gone", 1800, |b| b.vms() == 0 && b.cluster.objects().is_empty()).await;
        b.end().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_lives_goes_first_and_the_controller_takes_over() {
    over(&["one"], |b| async move {
        b.cluster.set_node("node", Some(Daemon::Alive));
        let (pod, key) = b.pod("one", "web").await;
        b.cluster.remove_pod(&pod.key);
        let begun = Instant::now();
        b.until("it is said", 10, |b| b.told(&key) == [Reason::WaitingForDaemon]).await;
        assert!(b.condition(&key).is_some_and(|c| c.1 == "WaitingForDaemon"));
        b.until("it is gone", 120, |b| b.vms() == 0 && b.cluster.objects().is_empty()).await;
        assert!(begun.elapsed() >= Duration::from_secs(60), "{:?}", begun.elapsed());
        // One whose daemon does its work is none of the controller's.
        let (pod, key) = b.pod("one", "db").await;
        b.cluster.remove_pod(&pod.key);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = b.clouds["one"].calls().len();
        let patch = writes::release(&b.cluster.object(&key).unwrap()).unwrap();
        b.cluster.patch(&key, &patch).unwrap();
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert_eq!(b.clouds["one"].calls().len(), before);
        assert!(b.told(&key).is_empty());
        b.end().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_deleted_under_a_living_pod_keeps_its_vm() {
    over(&["one"], |b| async move {
        let (pod, key) = b.pod("one", "web").await;
        let before = b.vms();
        b.cluster.delete(&key);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(b.vms(), before);
        assert_eq!(b.told(&key), [Reason::PodAlive]);
        assert!(b.metrics.text().contains("held{reason=\"PodAlive\"} 1"));
        b.cluster.remove_pod(&pod.key);
        b.until("it goes with the pod", 120, |b| b.vms() == 0 && b.cluster.objects().is_empty()).await;
        b.end().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ends_has_its_whole_time_although_its_record_was_deleted_before() {
    over(&["one"], |b| async move {
        let (pod, key) = b.pod("one", "web").await;
        let before = b.vms();
        b.cluster.delete(&key);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        b.cluster.change_pod(&pod.key, |pod| (pod.deleting, pod.grace_seconds) = (true, 600));
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(b.vms(), before);
        // It may wait for its record: it is not waited for without end.
        b.until("the VM is gone", 200, |b| b.vms() == 0).await;
        b.end().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_record_goes_while_its_pod_lives_once_another_sandbox_serves_it() {
    over(&["one"], |b| async move {
        let (pod, old) = b.pod("one", "web").await;
        b.cluster.delete(&old);
        b.until("it is held", 120, |b| b.told(&old) == [Reason::PodAlive]).await;
        let new = b.sandbox("one", &pod, "later", 2).await;
        b.until("the old one is gone", 120, |b| b.cluster.object(&old).is_none()).await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(b.cluster.object(&new).is_some_and(|o| o.metadata.deletion_timestamp.is_none()));
        assert_eq!(b.clouds["one"].resources().iter().filter(|r| r.resource.kind == "instance").count(), 1);
        b.end().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_earlier_sandbox_goes_although_the_record_of_the_later_one_is_being_deleted() {
    over(&["one"], |b| async move {
        // Its daemon has the first go, so that the later one is deleted before the earlier one is.
        b.cluster.set_node("node", Some(Daemon::Alive));
        let pod = b.cluster.add_pod("default", "web", "node");
        let old = b.sandbox("one", &pod, "s1", 1).await;
        let new = b.sandbox("one", &pod, "s2", 2).await;
        b.cluster.delete(&new);
        assert!(b.cluster.object(&old).is_some_and(|o| o.metadata.deletion_timestamp.is_none()));
        b.until("the old one is gone", 300, |b| b.cluster.object(&old).is_none()).await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(b.told(&new).contains(&Reason::PodAlive));
        assert_eq!(b.clouds["one"].resources().iter().filter(|r| r.resource.kind == "instance").count(), 1);
        b.end().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_earlier_sandbox_of_a_pod_goes_and_the_later_one_stays() {
    over(&["one"], |b| async move {
        let pod = b.cluster.add_pod("default", "web", "node");
        // Within one second of the API server's clock, which stands still here.
        let old = b.sandbox("one", &pod, "s1", 1).await;
        let new = b.sandbox("one", &pod, "s2", 2).await;
        b.until("the old one is gone", 60, |b| b.cluster.object(&old).is_none()).await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(b.cluster.object(&new).is_some());
        assert_eq!(b.clouds["one"].resources().iter().filter(|r| r.resource.kind == "instance").count(), 1);
        assert!(b.told(&old).contains(&Reason::Superseded));
        b.end().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn records_that_nobody_can_act_on_are_told_and_nothing_panics() {
    over(&["one"], |b| async move {
        let object = |name: &str, change: fn(&mut PeerPod)| {
            let mut object = PeerPod::new("default", name, Default::default());
            object.metadata.finalizers = Some(vec![names::FINALIZER.into()]);
            change(&mut object);
            Record::new(b.cluster.create(object).unwrap()).key
        };
        let ownerless = object("ownerless", |o| o.spec.instance_id = Some("i".into()));
        let unknown = object("unknown", |o| {
            o.metadata.owner_references = Some(vec![PodOwner::new("default", "gone", "uid").reference()]);
            (o.spec.cloud_provider, o.spec.instance_id) = (Some("nowhere".into()), Some("i".into()));
        });
        let empty = object("empty", |o| o.spec.cloud_provider = Some("one".into()));
        b.cluster.delete(&unknown);
        b.cluster.delete(&empty);
        b.until("all is told", 120, |b| {
            b.told(&ownerless) == [Reason::NoOwner]
                && b.told(&unknown).contains(&Reason::UnknownProvider)
                && b.told(&empty).contains(&Reason::NoInstance)
        })
        .await;
        assert!(b.condition(&unknown).is_some_and(|c| c.0 == "Stuck" && c.2.contains("nowhere")));
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(b.cluster.objects().len(), 3);
        // And all others go on.
        let (pod, key) = b.pod("one", "web").await;
        b.cluster.remove_pod(&pod.key);
        b.until("it is gone", 30, |b| b.cluster.object(&key).is_none()).await;
        b.end().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn behind_a_broken_link_nothing_is_deleted_and_all_is_when_it_is_back() {
    over(&["one"], |b| async move {
        let (pod, key) = b.pod("one", "web").await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        // The cache says that it is being deleted, and then the link breaks.
        b.client.set_link(|link| link.latency = Duration::from_secs(2));
        b.cluster.remove_pod(&pod.key);
        tokio::time::sleep(Duration::from_secs(1)).await;
        b.client.set_link(|link| (link.down, link.latency) = (true, Duration::ZERO));
        let before = b.vms();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(b.vms(), before, "nothing is known about the pod");
        b.client.set_link(|link| link.down = false);
        b.until("all is gone", 400, |b| b.vms() == 0 && b.cluster.object(&key).is_none()).await;
        b.end().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stale_cache_deletes_nothing() {
    over(&["one"], |b| async move {
        let (_, key) = b.pod("one", "web").await;
        b.cluster.delete(&key);
        b.until("it is held", 120, |b| b.told(&key) == [Reason::PodAlive]).await;
        // The stream stands still: the controller goes on to believe in the record, which is another one by now.
        b.client.set_link(|link| link.silent = true);
        b.cluster.patch(&key, &json!({"metadata": {"finalizers": null}})).unwrap();
        let pod = b.cluster.pods().remove(0);
        b.sandbox("one", &pod, "sandbox-web", 1).await;
        let before = b.vms();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(b.vms(), before);
        b.end().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn replies_that_are_lost_leave_nothing_behind() {
    over(&["one"], |b| async move {
        let (pod, _) = b.pod("one", "web").await;
        b.client.set_link(|link| link.loses_replies = true);
        b.clouds["one"].script(Fault::on("terminate_instance").lost_reply());
        b.cluster.remove_pod(&pod.key);
        b.until("all is gone", 400, |b| b.vms() == 0 && b.cluster.objects().is_empty()).await;
        b.end().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_finalizer_of_somebody_else_stays() {
    over(&["one"], |b| async move {
        let (pod, key) = b.pod("one", "web").await;
        let both = json!({"metadata": {"finalizers": ["of/others", names::FINALIZER]}});
        b.cluster.patch(&key, &both).unwrap();
        b.cluster.remove_pod(&pod.key);
        b.until("ours is off", 30, |b| {
            b.cluster.object(&key).unwrap().metadata.finalizers == Some(vec!["of/others".into()])
        })
        .await;
        assert_eq!(b.vms(), 0);
        b.end().await;
    })
    .await;
}

#[derive(Debug)]
struct Bad;

#[async_trait]
impl Provider for Bad {
    async fn create_instance(&self, _: &OpContext, _: &CreateRequest) -> cloud_providers::Result<Instance> {
        Err(Error::unsupported("it makes nothing"))
    }

    async fn delete_instance(
        &self,
        _: &OpContext,
        id: &InstanceId,
        _: &Ownership,
    ) -> cloud_providers::Result<()> {
        match id.as_str() {
            "panics" => panic!("a bug in a provider"),
            "never" => Err(Error::new(ErrorKind::Permission, "not allowed")),
            "later" => Err(Error::new(ErrorKind::Throttled, "slow down")
                .with_retry(Retry::After { delay: Duration::from_secs(500) })),
            // It ignores that it is cancelled.
            _ => std::future::pending().await,
        }
    }

    async fn teardown(&self) -> cloud_providers::Result<()> {
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
}

fn bad(b: &Bench, id: Option<&str>) -> Key {
    let pod = b.cluster.add_pod("default", id.unwrap_or("none"), "node");
    let object = b.early("bad", &pod, id.unwrap_or("none"), 1);
    let key = Record::new(object.clone()).key;
    if let Some(id) = id {
        let patch = writes::bind(&object, &InstanceId::new(id), &Default::default()).unwrap();
        b.cluster.patch(&key, &patch).unwrap();
    }
    b.cluster.remove_pod(&pod.key);
    key
}

fn bad_bench() -> Bench {
    let accounts = [("bad", Arc::new(Bad) as Arc<dyn Provider>)];
    Bench::over(Fixed::new(accounts), BTreeMap::new())
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_panics_is_asked_again_and_harms_nobody() {
    let b = bad_bench();
    let (panics, later) = (bad(&b, Some("panics")), bad(&b, Some("later")));
    b.until("the other one is told", 60, |b| b.told(&later) == [Reason::DeletionFailed]).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(b.metrics.text().contains("account=\"controller\",kind=\"internal\""));
    assert!(b.cluster.object(&panics).is_some() && !b.running.is_finished());
    b.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_errors_rule_says_when_it_is_tried_again() {
    let b = bad_bench();
    let (later, never) = (bad(&b, Some("later")), bad(&b, Some("never")));
    tokio::time::sleep(Duration::from_secs(1100)).await;
    let reads = |key: &Key| b.cluster.calls().iter().filter(|(op, k)| *op == "get" && k == key).count();
    assert_eq!(reads(&later), 3, "at once, after 500 s and after 1000 s");
    assert!((4..40).contains(&reads(&never)), "{}", reads(&never));
    b.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_cannot_release_is_told_with_the_way_out() {
    let b = bad_bench();
    let key = bad(&b, None);
    b.until("it is told", 60, |b| b.told(&key) == [Reason::CannotRelease]).await;
    assert!(b.condition(&key).is_some_and(|c| c.0 == "Stuck" && c.2.contains("by hand")));
    b.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_end_is_prompt_even_where_a_provider_ignores_it() {
    let b = bad_bench();
    let key = bad(&b, Some("hangs"));
    b.until("it is at work", 60, |b| b.told(&key) == [Reason::Deleting]).await;
    let begun = Instant::now();
    b.end().await;
    assert!(begun.elapsed() <= STOP_LIMIT + Duration::from_millis(100), "{:?}", begun.elapsed());
}
