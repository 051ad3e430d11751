//! Token buckets, whoever comes and goes.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use cloud_providers::{
    Error, ErrorKind, OpContext, Retry,
    layers::{Layer, LayerSettings, NoObserver, Operation, Rate, RateLimit, RateLimiter, Stack, standard},
};
use proptest::prelude::*;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::script::{Answer, Script, call, run};

/// Returns the first window in which more passed than the bucket holds and gains.
fn too_many(times: &[Instant], rate: Rate) -> Option<String> {
    for (i, first) in times.iter().enumerate() {
        for (j, last) in times.iter().enumerate().skip(i) {
            let window = (*last - *first).as_secs_f64();
            // The clock counts in whole milliseconds.
            let allowed = f64::from(rate.burst) + (window + 0.002) * rate.per_second;
            let passed = (j - i + 1) as f64;
            if passed > allowed + 1e-6 {
                return Some(format!("{passed} passed within {window} s, {allowed} are allowed: {times:?}"));
            }
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn no_window_has_more_calls_than_the_bucket_holds_and_nobody_is_overtaken(
        comers in prop::collection::vec((0u64..3000, prop::option::weighted(0.3, 0u64..4000)), 1..60),
        per_second in 0.5f64..50.0,
        burst in 1u32..20,
    ) {
        run(async {
            let (rate, limiter) = (Rate::new(per_second, burst), Arc::new(RateLimiter::new()));
            let passed = Arc::new(Mutex::new(Vec::new()));
            let mut tasks = JoinSet::new();
            let mut at = 0;
            for (number, (pause, patience)) in comers.iter().copied().enumerate() {
                // Every comer has a moment of its own, so that the order of coming is known.
                at += pause / 20 + 1;
                let (limiter, passed) = (limiter.clone(), passed.clone());
                tasks.spawn(async move {
                    sleep(Duration::from_millis(at)).await;
                    let ctx = OpContext::new();
                    let ctx = patience.map_or(ctx.clone(), |ms| ctx.with_timeout(Duration::from_millis(ms)));
                    let came = Instant::now();
                    match limiter.take(&ctx, "account", "create", rate).await {
                        Ok(waited) => {
                            assert_eq!(waited, came.elapsed());
                            passed.lock().unwrap().push((number, Instant::now()));
                        }
                        Err(error) => {
                            assert!(*error.kind() == ErrorKind::Cancelled && patience.is_some());
                            assert!(came.elapsed() <= Duration::from_millis(patience.unwrap() + 1));
                        }
                    }
                });
            }
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
            let passed = passed.lock().unwrap();
            assert!(passed.windows(2).all(|p| p[0].0 < p[1].0), "somebody was overtaken: {passed:?}");
            let patient = comers.iter().filter(|c| c.1.is_none()).count();
            assert!(passed.len() >= patient, "only {} of {patient} came through", passed.len());
            let times: Vec<Instant> = passed.iter().map(|p| p.1).collect();
            if let Some(problem) = too_many(&times, rate) {
                panic!("{problem}");
            }
        });
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_is_cancelled_takes_no_token_along() {
    let (rate, limiter) = (Rate::new(1.0, 1), Arc::new(RateLimiter::new()));
    let ctx = OpContext::new();
    limiter.take(&ctx, "a", "create", rate).await.unwrap();
    // A thousand pods wait, and all of them are given up.
    let mut tasks = JoinSet::new();
    for _ in 0..1000 {
        let limiter = limiter.clone();
        tasks.spawn(async move {
            let ctx = OpContext::new().with_timeout(Duration::from_millis(500));
            limiter.take(&ctx, "a", "create", rate).await.unwrap_err()
        });
    }
    while tasks.join_next().await.is_some() {}
    assert!(limiter.take(&ctx, "a", "create", rate).await.unwrap() <= Duration::from_millis(501));
}

#[tokio::test(start_paused = true)]
async fn accounts_and_operations_have_buckets_of_their_own_and_share_them_by_name() {
    let (rate, limiter) = (Rate::new(1.0, 1), Arc::new(RateLimiter::new()));
    let limit = RateLimit::default()
        .with_limiter(limiter)
        .with_create(Some(rate))
        .with_delete(Some(rate))
        .with_list(None);
    let provider = |account: &str| {
        let stack = Stack::new("cloud").with_account(account).with(Layer::RateLimit(limit.clone()));
        stack.wrap(Arc::new(Script::new(vec![]))).unwrap()
    };
    let (one, same, other) = (provider("a"), provider("a"), provider("b"));
    let start = Instant::now();
    let ctx = OpContext::new();
    for operation in [Operation::Create, Operation::Delete, Operation::Release] {
        call(&*one, operation, &ctx).await.unwrap();
        call(&*other, operation, &ctx).await.unwrap();
    }
    for _ in 0..100 {
        call(&*one, Operation::List, &ctx).await.unwrap();
        call(&*one, Operation::Verify, &ctx).await.unwrap();
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    call(&*same, Operation::Create, &ctx).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(999), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_throttled_answer_is_a_pause_for_everybody() {
    let throttled = |delay| Answer {
        after: Duration::ZERO,
        result: Err(Error::new(ErrorKind::Throttled, "slow down").with_retry(Retry::After { delay })),
    };
    for (wanted, pause) in [(3, 3), (3600, 20)] {
        let inner = Script::new(vec![throttled(Duration::from_secs(wanted))]);
        let settings = LayerSettings::default();
        let provider = standard("cloud", Arc::new(inner.clone()), &settings, Arc::new(NoObserver));
        let (ctx, other) = (OpContext::new(), OpContext::new());
        let start = Instant::now();
        let later = async {
            sleep(Duration::from_millis(10)).await;
            call(&*provider, Operation::Create, &other).await
        };
        let (_, second) = tokio::join!(call(&*provider, Operation::Create, &ctx), later);
        second.unwrap();
        let began: Vec<u64> = inner.attempts().iter().map(|a| (a.start - start).as_secs()).collect();
        assert!(began[0] == 0 && began[1..].iter().all(|second| *second >= pause), "{began:?}");
        assert!(start.elapsed() <= Duration::from_secs(21), "no longer than the cap");
    }
}

#[tokio::test(start_paused = true)]
async fn a_repetition_costs_a_token_like_every_other_call() {
    let failed = Answer {
        after: Duration::ZERO,
        result: Err(
            Error::new(ErrorKind::Transient, "reset").with_retry(Retry::After { delay: Duration::ZERO })
        ),
    };
    let inner = Script::new(vec![failed; 4]);
    let rate = RateLimit::default().with_create(Some(Rate::new(0.1, 1)));
    let settings = LayerSettings::default().with_rate(rate);
    let counts = Arc::new(crate::observed::Counts::default());
    let provider = standard("cloud", Arc::new(inner.clone()), &settings, counts.clone());
    call(&*provider, Operation::Create, &OpContext::new()).await.unwrap();
    let times: Vec<Instant> = inner.attempts().iter().map(|a| a.start).collect();
    assert_eq!((times.len(), counts.retried.lock().unwrap().len()), (5, 4));
    assert!(times.windows(2).all(|t| t[1] - t[0] >= Duration::from_millis(9_990)), "{times:?}");
    assert_eq!(counts.waited.lock().unwrap().len(), 4);
}
