//! Elections over a Lease in memory.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use super::*;
use crate::memory::{Memory, MemoryClient};

struct Candidate {
    client: MemoryClient,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
    running: tokio::task::JoinHandle<()>,
}

/// Counts who works, and remembers the most at one time.
#[derive(Default)]
struct Working {
    now: AtomicUsize,
    most: AtomicUsize,
    story: Mutex<Vec<(String, bool, Instant)>>,
}

struct Shift<'a>(&'a Working, String);

impl<'a> Shift<'a> {
    fn begin(working: &'a Working, name: &str) -> Self {
        let now = working.now.fetch_add(1, Ordering::SeqCst) + 1;
        working.most.fetch_max(now, Ordering::SeqCst);
        working.story.lock().unwrap().push((name.into(), true, Instant::now()));
        Self(working, name.into())
    }
}

impl Drop for Shift<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
        self.0.story.lock().unwrap().push((self.1.clone(), false, Instant::now()));
    }
}

/// `obeys`: ends its work when it is told to.
fn candidate(memory: &Memory, working: &Arc<Working>, name: &str, obeys: bool, hooks: Hooks) -> Candidate {
    let (client, stop, metrics) = (memory.client(), CancellationToken::new(), Metrics::new());
    let (leases, working, name) = (Arc::new(client.clone()), working.clone(), name.to_owned());
    let settings = ElectionSettings::new(&name);
    let running =
        tokio::spawn(take_part(leases, settings, metrics.clone(), hooks, stop.clone(), move |end| {
            let (working, name) = (working.clone(), name.clone());
            async move {
                let _shift = Shift::begin(&working, &name);
                match obeys {
                    true => end.cancelled().await,
                    false => std::future::pending().await,
                }
            }
        }));
    Candidate { client, stop, metrics, running }
}

async fn seconds(n: u64) {
    tokio::time::sleep(Duration::from_secs(n)).await;
}

#[tokio::test(start_paused = true)]
async fn one_of_several_leads_and_the_next_begins_at_once_after_a_graceful_end() {
    let (memory, working) = (Memory::new(), Arc::default());
    let a = candidate(&memory, &working, "a", true, Hooks::default());
    seconds(5).await;
    let b = candidate(&memory, &working, "b", true, Hooks::default());
    seconds(600).await;
    assert_eq!(working.now.load(Ordering::SeqCst), 1);
    assert!(a.metrics.text().contains("leader 1") && b.metrics.text().contains("leader 0"));
    a.stop.cancel();
    a.running.await.unwrap();
    seconds(5).await;
    assert!(b.metrics.text().contains("leader 1"), "the Lease was given back");
    assert_eq!(working.most.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_leader_behind_a_broken_link_stops_before_the_next_one_begins() {
    for obeys in [true, false] {
        let (memory, working) = (Memory::new(), Arc::default());
        let a = candidate(&memory, &working, "a", obeys, Hooks::default());
        seconds(5).await;
        let _b = candidate(&memory, &working, "b", true, Hooks::default());
        seconds(60).await;
        a.client.set_link(|link| link.down = true);
        seconds(60).await;
        let story: Vec<_> = working.story.lock().unwrap().iter().map(|(n, s, _)| (n.clone(), *s)).collect();
        let is = |name: &str, began: bool| (name.to_owned(), began);
        assert_eq!(story, [is("a", true), is("a", false), is("b", true)], "obeys: {obeys}");
        assert_eq!(working.most.load(Ordering::SeqCst), 1);
        // And when the link is back it waits like any other.
        a.client.set_link(|link| link.down = false);
        seconds(60).await;
        assert_eq!(working.now.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_key_two_work_at_once() {
    let (memory, working) = (Memory::new(), Arc::default());
    let hooks = Hooks::default().without(SafetyKey::StopBeforeLease);
    let a = candidate(&memory, &working, "a", true, hooks);
    seconds(5).await;
    let _b = candidate(&memory, &working, "b", true, Hooks::default());
    a.client.set_link(|link| link.down = true);
    seconds(60).await;
    assert_eq!(working.most.load(Ordering::SeqCst), 2, "so the key is what prevents it");
}

#[tokio::test(start_paused = true)]
async fn replies_that_are_lost_cost_no_leadership() {
    let (memory, working) = (Memory::new(), Arc::default());
    let a = candidate(&memory, &working, "a", true, Hooks::default());
    seconds(5).await;
    a.client.set_link(|link| link.loses_replies = true);
    seconds(5).await;
    a.client.set_link(|link| link.loses_replies = false);
    seconds(60).await;
    assert_eq!(working.story.lock().unwrap().len(), 1, "it began once and never ended");
}

#[tokio::test(start_paused = true)]
async fn the_existing_controllers_lease_is_waited_for() {
    let memory = Memory::new();
    let others = memory.client();
    let theirs = LeaseState { holder: "manager-0_uuid".into(), seconds: 15, ..LeaseState::default() };
    let mut theirs = others.write(&theirs).await.unwrap();
    let working = Arc::default();
    let _a = candidate(&memory, &working, "a", true, Hooks::default());
    for _ in 0..30 {
        seconds(2).await;
        theirs = others.write(&theirs).await.unwrap();
    }
    assert_eq!(working.now.load(Ordering::SeqCst), 0, "it is renewed");
    seconds(20).await;
    assert_eq!(working.now.load(Ordering::SeqCst), 1, "it ran out");
}
