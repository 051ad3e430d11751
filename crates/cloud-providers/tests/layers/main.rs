//! What each layer promises, for whatever a provider answers and whenever a caller gives up, by virtual time.

mod mutants;
mod observed;
mod rate;
mod script;

use std::{sync::Arc, time::Duration};

use cloud_providers::{
    CancellationToken, Error, ErrorKind, OpContext, Provider, Resource, Retry,
    layers::{
        CallOutcome, Layer, LayerSettings, NoObserver, Operation, RateLimit, RetryPolicy, Stack, Timeouts,
        standard,
    },
};
use proptest::prelude::*;
use tokio::time::{Instant, sleep};

use crate::script::{Answer, Manner, Script, call, request, run};

/// What a layer may add to the time that a provider needs after a cancel.
const SOON: Duration = Duration::from_millis(100);

fn one(layer: Layer, inner: &Script) -> Arc<dyn Provider> {
    Stack::new("cloud").with(layer).wrap(Arc::new(inner.clone())).unwrap()
}

/// The whole stack around a provider.
fn whole(inner: &Script, settings: &LayerSettings) -> Arc<dyn Provider> {
    standard("cloud", Arc::new(inner.clone()), settings, Arc::new(NoObserver))
}

fn millis() -> impl Strategy<Value = Duration> {
    (0u64..20_000).prop_map(Duration::from_millis)
}

fn errors() -> impl Strategy<Value = Error> {
    let kinds = prop_oneof![
        Just(ErrorKind::Transient),
        Just(ErrorKind::Throttled),
        Just(ErrorKind::Quota),
        Just(ErrorKind::Auth),
        Just(ErrorKind::Cancelled),
        Just(ErrorKind::Capacity { zone: None, instance_type: None }),
    ];
    let retry = prop_oneof![
        3 => (0u64..40_000).prop_map(|ms| Retry::After { delay: Duration::from_millis(ms) }),
        1 => Just(Retry::Never),
        1 => Just(Retry::Elsewhere),
    ];
    (kinds, retry, prop::bool::weighted(0.1), prop::option::of("[A-Z][a-z]{3,9}")).prop_map(
        |(kind, retry, leftover, code)| {
            let error = Error::new(kind, "no").with_retry(retry);
            let error = if leftover { error.with_leftovers([Resource::new("disk", "d-1")]) } else { error };
            match code {
                Some(code) => error.with_cloud(code, "as told"),
                None => error,
            }
        },
    )
}

fn scripts() -> impl Strategy<Value = Vec<Answer>> {
    let result = prop_oneof![1 => Just(Ok(())), 3 => errors().prop_map(Err)];
    prop::collection::vec((millis(), result).prop_map(|(after, result)| Answer { after, result }), 1..8)
}

fn policies() -> impl Strategy<Value = RetryPolicy> {
    (0u32..6, millis(), millis())
        .prop_map(|(n, base, cap)| RetryPolicy::default().with_repeats(n).with_base(base).with_cap(cap))
}

fn operations() -> impl Strategy<Value = Operation> {
    prop::sample::select(Operation::ALL.to_vec())
}

fn context(timeout: Option<Duration>) -> OpContext {
    match timeout {
        Some(limit) => OpContext::new().with_timeout(limit),
        None => OpContext::new(),
    }
}

/// Checks every pause between attempts against the rule of the error before it.
fn check_repetitions(inner: &Script, policy: RetryPolicy, deadline: Option<Instant>) -> Result<(), String> {
    let attempts = inner.attempts();
    if attempts.len() as u32 > policy.repeats + 1 {
        return Err(format!("{} attempts where {} repetitions are allowed", attempts.len(), policy.repeats));
    }
    for pair in attempts.windows(2) {
        let Some(Err(error)) = &pair[0].result else { return Err(format!("{:?} was repeated", pair[0])) };
        let pause = pair[1].start - pair[0].end.ok_or("an attempt began before the last one ended")?;
        let Retry::After { delay } = error.retry() else { return Err(format!("{error:?} was repeated")) };
        if pause < delay {
            return Err(format!("repeated after {pause:?} although {error:?} asks for {delay:?}"));
        }
        // The clock of the runtime counts in milliseconds and never wakes early.
        if pause > policy.cap + Duration::from_millis(1) {
            return Err(format!("a pause of {pause:?} is above the cap {:?}", policy.cap));
        }
        if deadline.is_some_and(|deadline| pair[1].start > deadline + Duration::from_millis(1)) {
            return Err("an attempt began after the deadline".into());
        }
        if *error.kind() == ErrorKind::Cancelled || !error.leftovers().is_empty() {
            return Err(format!("{error:?} was repeated"));
        }
    }
    Ok(())
}

/// Cancels a call after `after` and returns how long it took to come back from then on; `None` when it ended before.
async fn cancel_after(
    provider: Arc<dyn Provider>,
    operation: Operation,
    after: Duration,
) -> Option<(Duration, Result<(), Error>)> {
    let token = CancellationToken::new();
    let ctx = OpContext::new().with_cancel(token.clone());
    let mut task = tokio::spawn(async move { call(&*provider, operation, &ctx).await });
    tokio::select! {
        biased;
        _ = &mut task => return None,
        () = sleep(after) => {}
    }
    let start = Instant::now();
    token.cancel();
    let result = task.await.unwrap();
    Some((start.elapsed(), result))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_pause_is_within_its_bounds(policy in policies(), nth in 1u32..200, least in millis(), jitter in 0.0f64..=1.0) {
        match policy.pause(nth, least, jitter) {
            None => prop_assert!(least > policy.cap),
            Some(pause) => {
                prop_assert!(least <= pause && pause <= policy.cap);
                let bound = policy.base.saturating_mul(1u32.checked_shl(nth - 1).unwrap_or(u32::MAX));
                prop_assert!(pause <= least + bound, "{pause:?} is beyond {bound:?} after {least:?}");
            }
        }
    }

    #[test]
    fn only_what_the_rule_allows_is_repeated_after_the_right_pause(
        script in scripts(), policy in policies(), timeout in prop::option::of(millis()), operation in operations(),
    ) {
        run(async {
            let inner = Script::new(script);
            let provider = one(Layer::Retry(policy), &inner);
            let ctx = context(timeout);
            let result = call(&*provider, operation, &ctx).await;
            // Teardown has no context: its deadline is that of the layer, which is not here.
            let deadline = ctx.deadline.filter(|_| operation != Operation::Teardown);
            check_repetitions(&inner, policy, deadline).unwrap();
            let attempts = inner.attempts();
            if operation == Operation::Teardown {
                assert_eq!(attempts.len(), 1);
            }
            let last = attempts.last().unwrap().result.as_ref();
            match (result, last) {
                (Ok(()), last) => assert!(last.is_some_and(Result::is_ok)),
                (Err(error), Some(Err(last))) => {
                    assert_eq!((error.kind(), error.retry(), error.code()), (last.kind(), last.retry(), last.code()));
                    assert_eq!(error.leftovers(), last.leftovers());
                }
                (Err(error), _) => panic!("{error:?} is nobody's answer"),
            }
        });
    }

    #[test]
    fn a_call_ends_at_its_deadline_whatever_the_provider_does(
        script in scripts(), limit in millis(), undo in millis(), timeout in prop::option::of(millis()),
        operation in operations(), listens in any::<bool>(),
    ) {
        run(async {
            let manner = if listens { Manner::Listens } else { Manner::IsDeaf };
            let inner = Script::new(script).with_manner(manner);
            let limits = Timeouts::default().with_create(limit).with_delete(limit).with_read(limit).with_undo(undo);
            let provider = one(Layer::Timeout(limits), &inner);
            let start = Instant::now();
            let result = call(&*provider, operation, &context(timeout)).await;
            let most = match operation {
                Operation::Teardown => limits.teardown,
                _ => timeout.unwrap_or(limit).min(limit),
            };
            let grace = match (operation, listens) {
                (Operation::Create | Operation::Delete | Operation::Release, false) => undo,
                _ => Duration::ZERO,
            };
            let most = most + grace + Duration::from_millis(2);
            assert!(start.elapsed() <= most, "{operation} took {:?}, {most:?} is the most", start.elapsed());
            // Whoever is told that nothing is left may forget the call, so one that was dropped never says so.
            let cut = inner.attempts()[0].end.is_none();
            let changes = matches!(operation, Operation::Create | Operation::Delete | Operation::Release);
            if let (true, true, Err(error)) = (cut, changes, &result) {
                assert_eq!(error.leftovers().len(), 1, "{error:?}");
            }
            // Nothing is cut short: an answer within the time is the answer.
            let first = &inner.attempts()[0];
            if let (Some(answer), Some(end)) = (&first.result, first.end)
                && end - start < most - grace - Duration::from_millis(2)
            {
                assert_eq!(answer.is_ok(), result.is_ok());
            }
        });
    }

    #[test]
    fn an_error_keeps_what_it_says_and_gets_its_context(error in errors(), operation in operations()) {
        run(async {
            let inner = Script::new(vec![Answer { after: Duration::ZERO, result: Err(error.clone()) }]);
            let got = call(&*one(Layer::ErrorContext, &inner), operation, &OpContext::new()).await.unwrap_err();
            assert_eq!((got.kind(), got.retry(), got.code()), (error.kind(), error.retry(), error.code()));
            assert_eq!((got.leftovers(), got.cloud_message()), (error.leftovers(), error.cloud_message()));
            assert_eq!(got.operation(), Some(operation.label()));
            let text = got.to_string();
            let subject = match operation {
                Operation::Create => "unit: sandbox-1",
                Operation::Delete | Operation::Console => "instance_id: i-1",
                Operation::List => "scope: cluster:c",
                Operation::Release => "token: cluster:c/sandbox-1/1",
                _ => "provider: cloud",
            };
            assert!(text.contains(subject) && text.contains("provider: cloud"), "{text}");
        });
    }

    #[test]
    fn a_cancelled_call_comes_back_within_100_ms_through_every_layer(
        script in scripts(), policy in policies(), after in (0u64..60_000).prop_map(Duration::from_millis),
        operation in operations(), busy in any::<bool>(),
    ) {
        run(async {
            let inner = Script::new(script);
            let rate = RateLimit::default();
            let settings = LayerSettings::default().with_retry(policy).with_rate(rate.clone());
            if busy {
                // Nobody gets a token for a long time.
                let of = rate.of(Operation::Create).unwrap();
                for operation in Operation::ALL {
                    rate.limiter.close("cloud", operation.label(), of, Duration::from_secs(3600));
                }
            }
            if operation == Operation::Teardown {
                // It has no context: whoever wants it to end drops it.
                return;
            }
            if let Some((took, result)) = cancel_after(whole(&inner, &settings), operation, after).await {
                assert!(took <= SOON, "{operation} took {took:?} after it was cancelled");
                assert!(result.is_err());
            }
        });
    }

    #[test]
    fn every_call_that_begins_is_told_to_end_once(
        script in scripts(), policy in policies(), operation in operations(), drop_after in prop::option::of(millis()),
    ) {
        run(async {
            let inner = Script::new(script);
            let counts = Arc::new(observed::Counts::default());
            let settings = LayerSettings::default().with_retry(policy);
            let provider = standard("cloud", Arc::new(inner.clone()), &settings, counts.clone());
            let ctx = OpContext::new();
            let work = call(&*provider, operation, &ctx);
            let start = Instant::now();
            let result = match drop_after {
                Some(after) => tokio::time::timeout(after, work).await.ok(),
                None => Some(work.await),
            };
            let outcome = match &result {
                None => CallOutcome::Dropped,
                Some(Ok(())) => CallOutcome::Ok,
                Some(Err(error)) => CallOutcome::Failed(error.kind().label()),
            };
            assert_eq!(*counts.started.lock().unwrap(), [operation]);
            assert_eq!(*counts.finished.lock().unwrap(), [(operation, outcome, start.elapsed())]);
            if result.is_some() {
                let attempts = inner.attempts().len();
                assert_eq!(counts.retried.lock().unwrap().len(), attempts - 1);
            }
        });
    }
}

#[tokio::test(start_paused = true)]
async fn full_jitter_spreads_what_failed_together() {
    let policy = RetryPolicy::default().with_base(Duration::from_secs(10));
    let mut pauses = Vec::new();
    for _ in 0..100 {
        let error = Error::new(ErrorKind::Transient, "no").with_retry(Retry::After { delay: Duration::ZERO });
        let inner = Script::new(vec![
            Answer { after: Duration::ZERO, result: Err(error) },
            Answer { after: Duration::ZERO, result: Ok(()) },
        ]);
        call(&*one(Layer::Retry(policy), &inner), Operation::Create, &OpContext::new()).await.unwrap();
        let attempts = inner.attempts();
        pauses.push((attempts[1].start - attempts[0].end.unwrap()).as_secs());
    }
    for second in 0..10 {
        assert!(pauses.contains(&second), "no pause of about {second} s in {pauses:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_wants_a_longer_pause_than_the_cap_is_not_asked_again() {
    let long =
        Error::new(ErrorKind::Throttled, "no").with_retry(Retry::After { delay: Duration::from_secs(3600) });
    let inner = Script::new(vec![Answer { after: Duration::ZERO, result: Err(long.clone()) }]);
    let start = Instant::now();
    let error =
        call(&*one(Layer::Retry(RetryPolicy::default()), &inner), Operation::Create, &OpContext::new()).await;
    assert_eq!((error.unwrap_err(), start.elapsed(), inner.attempts().len()), (long, Duration::ZERO, 1));
}

#[tokio::test(start_paused = true)]
async fn capabilities_and_requests_pass_every_layer_unchanged() {
    let inner = Script::new(vec![]);
    let provider = whole(&inner, &LayerSettings::default());
    assert_eq!(provider.capabilities(), inner.capabilities());
    let instance = provider.create_instance(&OpContext::new(), &request()).await.unwrap();
    assert_eq!(instance.name, "podvm-x");
    assert_eq!(inner.requests(), [request()]);
}
