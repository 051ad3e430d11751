//! Batched questions, by virtual time.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use cloud_providers::{
    Error, ErrorKind, OpContext, Result, Retry, async_trait,
    batch::{Batch, BatchSettings, Describe},
};
use proptest::prelude::*;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

const SECOND: Duration = Duration::from_secs(1);

/// Machines that come up at a set time, and a cloud that counts questions.
#[derive(Clone, Default)]
struct Cloud(Arc<Inner>);

#[derive(Default)]
struct Inner {
    up_at: Mutex<HashMap<u32, Instant>>,
    calls: Mutex<Vec<(Instant, usize)>>,
    latency: Duration,
    /// Answers to the next calls, instead of the truth.
    failures: Mutex<Vec<Error>>,
    under_way: AtomicU32,
}

struct Under<'a>(&'a AtomicU32);

impl Drop for Under<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Describe for Cloud {
    type Id = u32;
    type State = bool;

    async fn describe(&self, ids: &[u32]) -> Result<HashMap<u32, bool>> {
        self.0.calls.lock().unwrap().push((Instant::now(), ids.len()));
        self.0.under_way.fetch_add(1, Ordering::SeqCst);
        let _under = Under(&self.0.under_way);
        sleep(self.0.latency).await;
        if let Some(error) = self.0.failures.lock().unwrap().pop() {
            return Err(error);
        }
        let up_at = self.0.up_at.lock().unwrap();
        Ok(ids.iter().filter_map(|id| up_at.get(id).map(|at| (*id, Instant::now() >= *at))).collect())
    }
}

impl Cloud {
    fn with(latency: Duration, ups: impl IntoIterator<Item = (u32, Duration)>) -> Self {
        let now = Instant::now();
        let up_at = ups.into_iter().map(|(id, after)| (id, now + after)).collect();
        Self(Arc::new(Inner { latency, up_at: Mutex::new(up_at), ..Inner::default() }))
    }

    fn fail(&self, errors: impl IntoIterator<Item = Error>) {
        *self.0.failures.lock().unwrap() = errors.into_iter().collect();
    }

    fn calls(&self) -> Vec<(Instant, usize)> {
        self.0.calls.lock().unwrap().clone()
    }
}

fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// Lets tasks end that have nothing left to do, without letting time pass.
async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

async fn up(batch: &Batch<Cloud>, ctx: &OpContext, id: u32, limit: Duration) -> Result<()> {
    batch.wait(ctx, "the machine", &id, limit, |state| Ok(state.unwrap_or_default().then_some(()))).await
}

#[tokio::test(start_paused = true)]
async fn a_hundred_waiters_cost_one_call_per_interval() {
    let cloud = Cloud::with(Duration::from_millis(100), (0..100).map(|id| (id, Duration::from_secs(10))));
    let batch = Batch::new(cloud.clone(), BatchSettings::default());
    let start = Instant::now();
    let mut waiters = JoinSet::new();
    for id in 0..100 {
        let batch = batch.clone();
        waiters.spawn(async move { up(&batch, &OpContext::new(), id, SECOND * 60).await });
    }
    while let Some(done) = waiters.join_next().await {
        done.unwrap().unwrap();
    }
    let calls = cloud.calls();
    assert!(start.elapsed() < Duration::from_millis(11_200), "{:?}", start.elapsed());
    assert_eq!(calls.len(), 11, "{calls:?}");
    assert!(calls[0].0 - start < Duration::from_millis(50), "the first look is at once");
    assert!(calls.windows(2).all(|w| w[1].0 - w[0].0 >= SECOND), "{calls:?}");
    assert!(calls.iter().all(|(_, ids)| *ids == 100), "{calls:?}");
    settle().await;
    assert_eq!((tasks(), batch.waiting()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn more_ids_than_a_call_takes_are_asked_in_several() {
    let cloud = Cloud::with(Duration::ZERO, (0..250).map(|id| (id, Duration::ZERO)));
    let batch = Batch::new(cloud.clone(), BatchSettings::default().with_ids_per_call(100));
    let mut waiters = JoinSet::new();
    for id in 0..250 {
        let batch = batch.clone();
        waiters.spawn(async move { batch.get(&OpContext::new(), id).await });
    }
    while let Some(done) = waiters.join_next().await {
        assert_eq!(done.unwrap().unwrap(), Some(true));
    }
    assert_eq!(cloud.calls().iter().map(|c| c.1).collect::<Vec<_>>(), [100, 100, 50]);
}

#[tokio::test(start_paused = true)]
async fn an_id_that_the_cloud_does_not_know_has_no_state() {
    let batch = Batch::new(Cloud::default(), BatchSettings::default());
    assert_eq!(batch.get(&OpContext::new(), 7).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_failed_batch_is_asked_once_more_and_then_everybody_hears_it() {
    let throttled = || {
        Error::new(ErrorKind::Throttled, "slow down")
            .with_retry(Retry::After { delay: Duration::from_secs(3) })
    };
    for failures in [1, 2] {
        let cloud = Cloud::with(Duration::ZERO, (0..5).map(|id| (id, Duration::ZERO)));
        cloud.fail((0..failures).map(|_| throttled()));
        let batch = Batch::new(cloud.clone(), BatchSettings::default());
        let mut waiters = JoinSet::new();
        for id in 0..5 {
            let batch = batch.clone();
            waiters.spawn(async move { batch.get(&OpContext::new(), id).await });
        }
        let mut errors = 0;
        while let Some(done) = waiters.join_next().await {
            match done.unwrap() {
                Ok(state) => assert_eq!(state, Some(true)),
                Err(error) => {
                    assert_eq!(error, throttled());
                    errors += 1;
                }
            }
        }
        assert_eq!(errors, if failures == 2 { 5 } else { 0 });
        let calls = cloud.calls();
        assert_eq!(calls.len(), 2);
        assert!(calls[1].0 - calls[0].0 >= SECOND * 3, "the server's delay is followed");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_that_never_passes_is_not_asked_again() {
    let cloud = Cloud::default();
    cloud.fail([Error::new(ErrorKind::Permission, "no"), Error::new(ErrorKind::Permission, "no")]);
    let batch = Batch::new(cloud.clone(), BatchSettings::default());
    assert_eq!(*batch.get(&OpContext::new(), 1).await.unwrap_err().kind(), ErrorKind::Permission);
    assert_eq!(cloud.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_wait_outlives_a_batch_that_failed_twice() {
    let cloud = Cloud::with(Duration::ZERO, [(1, Duration::from_secs(5))]);
    cloud.fail((0..4).map(|_| Error::new(ErrorKind::Transient, "reset")));
    let batch = Batch::new(cloud.clone(), BatchSettings::default());
    up(&batch, &OpContext::new(), 1, SECOND * 30).await.unwrap();
    let error = up(&batch, &OpContext::new(), 2, SECOND * 5).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Transient);
    assert!(error.to_string().contains("the machine"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_ends_at_its_limit_and_is_asked_once_more() {
    let cloud = Cloud::with(SECOND * 1000, [(1, Duration::ZERO)]);
    let batch = Batch::new(cloud.clone(), BatchSettings::default().with_call_limit(SECOND * 2));
    let start = Instant::now();
    let error = batch.get(&OpContext::new(), 1).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Transient);
    assert!(start.elapsed() < SECOND * 6 && cloud.calls().len() == 2, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_is_cancelled_leaves_and_the_last_one_ends_the_call_and_the_task() {
    let cloud = Cloud::with(SECOND * 20, [(1, Duration::ZERO), (2, Duration::ZERO)]);
    let batch = Batch::new(cloud.clone(), BatchSettings::default());
    let (one, two) = (OpContext::new(), OpContext::new());
    let spawn = |ctx: &OpContext, id| {
        let (batch, ctx) = (batch.clone(), ctx.clone());
        tokio::spawn(async move { batch.get(&ctx, id).await })
    };
    let (first, second) = (spawn(&one, 1), spawn(&two, 2));
    sleep(SECOND).await;
    assert_eq!((cloud.0.under_way.load(Ordering::SeqCst), batch.waiting()), (1, 2));
    let start = Instant::now();
    one.cancel.cancel();
    assert_eq!(*first.await.unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(
        (cloud.0.under_way.load(Ordering::SeqCst), batch.waiting()),
        (1, 1),
        "the other one still waits"
    );
    two.cancel.cancel();
    assert!(second.await.unwrap().is_err());
    settle().await;
    assert_eq!((cloud.0.under_way.load(Ordering::SeqCst), batch.waiting(), tasks()), (0, 0, 0));
    assert!(start.elapsed() < Duration::from_millis(100));
    // Between two questions as well.
    let third = spawn(&OpContext::new(), 1);
    settle().await;
    third.abort();
    assert!(third.await.unwrap_err().is_cancelled());
    settle().await;
    assert_eq!((tasks(), cloud.calls().len()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn the_answer_is_never_older_than_the_question() {
    let cloud = Cloud::with(SECOND, [(1, Duration::from_millis(1500))]);
    let batch = Batch::new(cloud.clone(), BatchSettings::default());
    let (ctx, late) = (OpContext::new(), OpContext::new());
    // The second one comes while the call of the first is under way: it gets a call of its own.
    let later = async {
        sleep(Duration::from_millis(500)).await;
        batch.get(&late, 1).await
    };
    let (first, second) = tokio::join!(batch.get(&ctx, 1), later);
    assert_eq!((first.unwrap(), second.unwrap()), (Some(false), Some(true)));
    assert_eq!(cloud.calls().len(), 2);
}

struct Panics;

#[async_trait]
impl Describe for Panics {
    type Id = u32;
    type State = ();

    async fn describe(&self, _: &[u32]) -> Result<HashMap<u32, ()>> {
        panic!("on purpose")
    }
}

#[tokio::test(start_paused = true)]
async fn a_question_that_panics_leaves_nobody_waiting() {
    let batch = Batch::new(Panics, BatchSettings::default());
    for _ in 0..2 {
        let ctx = OpContext::new();
        let (a, b) = tokio::join!(batch.get(&ctx, 1), batch.get(&ctx, 2));
        assert_eq!(*a.unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(*b.unwrap_err().kind(), ErrorKind::Internal);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whoever comes and goes whenever: calls keep their interval and size, every answer is true, nothing stays.
    #[test]
    fn the_rate_holds_whoever_comes_and_goes(
        comers in prop::collection::vec((0u64..8000, 0u32..40, 0u64..6000, prop::option::of(0u64..4000)), 1..60),
        latency in 0u64..900,
        failures in 0usize..6,
        size in 1usize..50,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let ups = comers.iter().map(|(_, id, up, _)| (*id, Duration::from_millis(*up)));
            let cloud = Cloud::with(Duration::from_millis(latency), ups);
            cloud.fail((0..failures).map(|_| Error::new(ErrorKind::Transient, "reset")));
            let settings = BatchSettings::default().with_ids_per_call(size);
            let batch = Batch::new(cloud.clone(), settings);
            let mut waiters = JoinSet::new();
            for (at, id, _, leaves) in comers.clone() {
                let (batch, cloud) = (batch.clone(), cloud.clone());
                waiters.spawn(async move {
                    sleep(Duration::from_millis(at)).await;
                    let ctx = match leaves {
                        Some(after) => OpContext::new().with_timeout(Duration::from_millis(after)),
                        None => OpContext::new(),
                    };
                    let result = up(&batch, &ctx, id, SECOND * 100).await;
                    match leaves {
                        None => result.unwrap(),
                        Some(_) => assert!(result.is_ok_and(|()| true) || ctx.check().is_err()),
                    }
                    let at = cloud.0.up_at.lock().unwrap()[&id];
                    assert!(leaves.is_some() || Instant::now() >= at);
                });
            }
            while let Some(done) = waiters.join_next().await {
                done.unwrap();
            }
            let calls = cloud.calls();
            assert!(calls.iter().all(|(_, ids)| (1..=size).contains(ids)), "{calls:?}");
            // Each second has the calls of one round at most; 40 ids are the most that anybody waits for.
            let per_round = 40usize.div_ceil(size) + failures;
            for (first, _) in &calls {
                let near = calls.iter().filter(|(at, _)| *at >= *first && *at - *first < SECOND).count();
                assert!(near <= per_round, "{near} calls in one second, {per_round} allowed: {calls:?}");
            }
            settle().await;
            assert_eq!((tasks(), batch.waiting()), (0, 0));
        });
    }
}
