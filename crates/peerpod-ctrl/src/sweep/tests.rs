//! What the sweep decides, and what it does over a cluster and clouds in memory.

use std::sync::Arc;

use cloud_providers::{
    CreateRequest, Instance, InstanceId, OpContext, Provider, Unit,
    scripted::{Fault, ScriptedProvider, World},
};
use peerpod_api::{Claim, PodOwner, writes};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    memory::{Memory as Cluster, MemoryClient},
    metrics::Metrics,
    providers::Fixed,
    settings::Settings,
    sweeper::Sweeper,
    work::Parts,
};

fn scope() -> Scope {
    Scope::Cluster("c".into())
}

struct Bench {
    cluster: Cluster,
    client: MemoryClient,
    world: World,
    provider: Arc<ScriptedProvider>,
    metrics: Arc<Metrics>,
    sweeper: Sweeper,
}

fn settings() -> SweepSettings {
    SweepSettings { mode: Mode::Delete, cluster_uid: Some("memory".into()), ..SweepSettings::default() }
}

fn bench(hooks: Hooks, sweep: SweepSettings) -> Bench {
    let (cluster, world, metrics) = (Cluster::new(), World::new(), Metrics::new());
    let (client, provider) = (cluster.client(), Arc::new(ScriptedProvider::new(&world)));
    let accounts = [("one", provider.clone() as Arc<dyn Provider>)];
    let parts = Parts {
        cluster: Arc::new(client.clone()),
        providers: Arc::new(Fixed::new(accounts)),
        metrics: metrics.clone(),
        hooks,
    };
    let sweeper = Sweeper::new(parts, Settings::new(scope()), sweep, CancellationToken::new());
    Bench { cluster, client, world, provider, metrics, sweeper }
}

impl Bench {
    async fn vm(&self, scope: Scope, pod: &str, sandbox: &str) -> Instance {
        let unit = Unit { id: sandbox.into(), name_hint: pod.into() };
        let request = CreateRequest::new(Token::new(scope, sandbox, 1), unit, "node");
        self.provider.create_instance(&OpContext::new(), &request).await.unwrap()
    }

    fn record(&self, pod: &Pod, sandbox: &str) -> Key {
        self.record_planned(pod, sandbox, None)
    }

    fn record_planned(&self, pod: &Pod, sandbox: &str, order: Option<u64>) -> Key {
        let owner = PodOwner::new(&pod.key.namespace, &pod.key.name, &pod.uid);
        let mut claim = Claim::new(sandbox, Token::new(scope(), sandbox, 1), owner);
        (claim.provider, claim.order) = ("one".into(), order);
        Record::new(self.cluster.create(writes::early(&claim)).unwrap()).key
    }

    fn vms(&self) -> usize {
        self.world.resources().iter().filter(|r| r.resource.kind == "instance").count()
    }

    /// Sweeps every minute for `minutes`, and returns the last report.
    async fn sweep(&mut self, minutes: u64) -> Report {
        let mut report = self.sweeper.once().await;
        for _ in 0..minutes {
            tokio::time::sleep(Duration::from_secs(60)).await;
            report = self.sweeper.once().await;
        }
        report
    }
}

/// The double dates what it makes by the clock of this machine, which stands still in these tests.
fn real_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn later() -> Hooks {
    Hooks::default().with_clock(Arc::new((real_now() + 86400).into()))
}

#[tokio::test(start_paused = true)]
async fn an_orphan_goes_after_the_grace_time_and_nothing_else_does() {
    let mut b = bench(later(), settings());
    let pod = b.cluster.add_pod("default", "web", "node");
    b.record(&pod, "a1a1a1a1a1");
    b.vm(scope(), "web", "a1a1a1a1a1").await;
    b.vm(scope(), "lost", "b2b2b2b2b2").await;
    b.vm(Scope::Cluster("other".into()), "theirs", "c3c3c3c3c3").await;
    b.world.add("instance", "podvm-by-hand", &[]);
    let report = b.sweep(14).await;
    assert_eq!((report.orphans, report.deleted, b.vms()), (1, 0, 4), "{report:?}");
    assert!(matches!(report.accounts[0].findings[0].verdict, Verdict::Young { watched: 840 }), "{report:?}");
    let report = b.sweep(1).await;
    assert_eq!((report.deleted, b.vms()), (1, 3));
    assert_eq!(report.accounts[0].findings[0].outcome.as_deref(), Some("deleted"));
    let text = b.metrics.text();
    assert!(text.contains("peerpod_ctrl_swept_total{account=\"one\"} 1"), "{text}");
    assert_eq!(b.sweep(60).await.orphans, 0);
    assert_eq!(b.vms(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_report_deletes_nothing_and_names_everything() {
    let mut b = bench(later(), SweepSettings { mode: Mode::Report, ..settings() });
    let vm = b.vm(scope(), "lost", "b2b2b2b2b2").await;
    let report = b.sweep(60).await;
    assert_eq!((report.orphans, b.vms()), (1, 1));
    let json = serde_json::to_value(&report).unwrap();
    let finding = &json["accounts"][0]["findings"][0];
    assert_eq!(finding["verdict"], "due");
    assert_eq!(finding["instance_id"], vm.id.as_str());
    assert_eq!(finding["token"], "cluster:c/b2b2b2b2b2/1");
    assert!(finding["resources"].as_array().unwrap().len() > 1 && finding.get("outcome").is_none(), "{json}");
    assert!(b.metrics.text().contains("peerpod_ctrl_orphans{account=\"one\",verdict=\"due\"} 1"));
}

#[tokio::test(start_paused = true)]
async fn an_incomplete_list_of_either_side_deletes_nothing() {
    let mut b = bench(later(), settings());
    b.vm(scope(), "lost", "b2b2b2b2b2").await;
    b.sweep(14).await;
    b.world.set_page_size(1);
    b.world.script(Fault::on("list_resources").nth(2));
    let report = b.sweeper.once().await;
    assert!(!report.accounts[0].complete, "{report:?}");
    tokio::time::sleep(Duration::from_secs(600)).await;
    b.client.set_link(|link| link.cut_view = Some(0));
    let report = b.sweeper.once().await;
    assert!(report.frozen.as_ref().is_some_and(|why| why.contains("not complete")), "{report:?}");
    b.client.set_link(|link| (link.cut_view, link.down) = (None, true));
    let report = b.sweeper.once().await;
    assert!(report.frozen.is_some() && b.metrics.text().contains("sweep_frozen 1"));
    b.world.clear_faults();
    b.world.script(Fault::on("list_resources").forever());
    b.client.set_link(|link| link.down = false);
    let report = b.sweeper.once().await;
    assert!(report.accounts[0].error.is_some(), "{report:?}");
    assert_eq!(b.vms(), 1);
    b.world.clear_faults();
    assert_eq!(b.sweep(1).await.deleted + usize::from(b.vms() == 0), 1);
}

#[tokio::test(start_paused = true)]
async fn a_view_of_another_cluster_or_of_an_earlier_time_deletes_nothing() {
    let mut b = bench(later(), settings());
    let pod = b.cluster.add_pod("default", "web", "node");
    b.record(&pod, "a1a1a1a1a1");
    b.vm(scope(), "web", "a1a1a1a1a1").await;
    assert_eq!(b.sweep(1).await.orphans, 0);
    for (uid, revision, part) in [("another", 1 << 40, "another cluster"), ("memory", 0, "earlier time")] {
        b.client.set_link(|link| link.view_of = Some((uid.into(), revision)));
        let report = b.sweep(60).await;
        assert!(report.frozen.as_ref().is_some_and(|why| why.contains(part)), "{report:?}");
        assert_eq!(b.vms(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_serve_a_living_pod_stays_although_its_record_is_lost() {
    let mut b = bench(later(), settings());
    let pod = b.cluster.add_pod("default", "web", "node");
    b.vm(scope(), "web", "a1a1a1a1a1").await;
    let report = b.sweep(60).await;
    assert!(
        matches!(&report.accounts[0].findings[0].verdict, Verdict::PodLives { pod } if pod == "default/web")
    );
    // A later sandbox of this pod has a record: what is left of the earlier one is an orphan.
    b.record_planned(&pod, "b2b2b2b2b2", Some((real_now() + 60) * 1000));
    let report = b.sweep(60).await;
    assert_eq!(b.vms(), 0, "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn the_record_of_an_earlier_sandbox_does_not_stand_for_a_later_one_that_lost_its_own() {
    let mut b = bench(later(), settings());
    let pod = b.cluster.add_pod("default", "web", "node");
    b.record_planned(&pod, "a1a1a1a1a1", Some((real_now() - 60) * 1000));
    b.vm(scope(), "web", "b2b2b2b2b2").await;
    let report = b.sweep(60).await;
    assert!(matches!(report.accounts[0].findings[0].verdict, Verdict::PodLives { .. }), "{report:?}");
    assert_eq!(b.vms(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_same_id_in_another_account_is_another_instance() {
    let mut b = bench(later(), settings());
    let vm = b.vm(scope(), "lost", "b2b2b2b2b2").await;
    let pod = b.cluster.add_pod("default", "web", "node");
    let key = b.record(&pod, "a1a1a1a1a1");
    let name = |provider: &str| serde_json::json!({"spec": {"cloudProvider": provider, "instanceID": vm.id.as_str()}});
    b.cluster.patch(&key, &name("one")).unwrap();
    assert_eq!((b.sweep(60).await.accounts[0].known, b.vms()), (1, 1));
    b.cluster.patch(&key, &name("two")).unwrap();
    assert_eq!((b.sweep(60).await.accounts[0].known, b.vms()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_protected_stays() {
    let mut b = bench(later(), settings());
    let vm = b.vm(scope(), "lost", "b2b2b2b2b2").await;
    b.world.set_tag(vm.id.as_str(), tags::PROTECT, Some("true")).unwrap();
    let report = b.sweep(60).await;
    assert!(matches!(report.accounts[0].findings[0].verdict, Verdict::Protected), "{report:?}");
    b.world.set_tag(vm.id.as_str(), tags::PROTECT, Some("false")).unwrap();
    b.sweep(16).await;
    assert_eq!(b.vms(), 0);
}

#[tokio::test(start_paused = true)]
async fn no_sweep_deletes_more_than_its_cap() {
    let mut b = bench(later(), SweepSettings { cap: 3, ..settings() });
    for n in 0..8 {
        b.vm(scope(), "lost", &format!("{n}0000000")).await;
    }
    let report = b.sweep(15).await;
    assert_eq!((report.deleted, report.over_cap, b.vms()), (3, 5, 5));
    b.sweeper.once().await;
    assert_eq!(b.vms(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_was_known_in_between_begins_anew() {
    let mut b = bench(later(), settings());
    b.vm(scope(), "lost", "b2b2b2b2b2").await;
    b.sweep(10).await;
    let pod = b.cluster.add_pod("default", "other", "node");
    let key = b.record(&pod, "b2b2b2b2b2");
    assert_eq!(b.sweeper.once().await.orphans, 0);
    b.cluster.patch(&key, &serde_json::json!({"metadata": {"finalizers": null}})).unwrap();
    b.cluster.delete(&key);
    b.sweep(14).await;
    assert_eq!(b.vms(), 1);
    b.sweep(1).await;
    assert_eq!(b.vms(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_record_whose_pod_is_gone_is_deleted_where_nobody_collects() {
    let mut b = bench(later(), settings());
    b.cluster.set_collects(false);
    let pod = b.cluster.add_pod("default", "web", "node");
    let key = b.record(&pod, "a1a1a1a1a1");
    b.sweep(60).await;
    assert!(b.cluster.object(&key).unwrap().metadata.deletion_timestamp.is_none());
    b.cluster.remove_pod(&pod.key);
    let report = b.sweep(15).await;
    assert_eq!(report.abandoned, ["default/web-resource-".to_owned() + key.name.rsplit('-').next().unwrap()]);
    assert!(b.cluster.object(&key).unwrap().metadata.deletion_timestamp.is_some());
}

#[test]
fn what_has_no_full_token_is_told_and_stays() {
    let mut entry = Owned::new("0a1b2c");
    entry.instance = Some(Instance::new(InstanceId::new("i-1"), "podvm-x-01234567", Vec::new()));
    let (settings, hooks, scope) = (settings(), Hooks::default(), scope());
    let judge =
        Judge { scope: &scope, settings: &settings, hooks: &hooks, now: Instant::now(), now_unix: 1 << 40 };
    let view = View::new("memory", Vec::new(), Vec::new());
    let list = OwnedList::new(vec![entry], true);
    let (report, due) = plan(&judge, "one", &list, &view, &mut Memory::default());
    assert_eq!(report.findings[0].verdict, Verdict::NoToken);
    assert!(due.is_empty());
}

#[test]
fn clocks_that_differ_keep_nothing_for_ever_and_the_young_stay() {
    let (settings, hooks, scope) = (settings(), Hooks::default(), scope());
    let view = View::new("memory", Vec::new(), Vec::new());
    let begun = Instant::now();
    let mut entry = Owned::new("tag");
    entry.token = Some(Token::new(Scope::Cluster("c".into()), "s", 1));
    let mut decide = |created: u64, now_unix: u64| {
        entry.created_unix = Some(created);
        let mut memory = Memory::default();
        let list = OwnedList::new(vec![entry.clone()], true);
        let mut at = |seconds| {
            let now = begun + Duration::from_secs(seconds);
            let judge = Judge { scope: &scope, settings: &settings, hooks: &hooks, now, now_unix };
            plan(&judge, "one", &list, &view, &mut memory).1.len()
        };
        at(0);
        at(900)
    };
    assert_eq!(decide(1_000_000, 1_000_899), 0, "made less than the grace time ago");
    assert_eq!(decide(1_000_000, 1_000_900), 1);
    assert_eq!(
        decide(1_000_000, 5),
        1,
        "made in the future: a clock is wrong, and it was watched for long enough"
    );
}
