//! Layers that break a promise: the checks see each of them.

use std::{sync::Arc, time::Duration};

use cloud_providers::{
    CreateRequest, Error, ErrorKind, Instance, InstanceId, OpContext, Ownership, Provider, Result, Retry,
    async_trait,
    layers::{Layer, LayerSettings, Operation, RetryPolicy},
};
use tokio::time::sleep;

use crate::{
    SOON, cancel_after, check_repetitions, one,
    script::{Answer, Script, call, run},
    whole,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Break {
    SwallowsCancel,
    SleepsThroughCancel,
    RepeatsWhateverFails,
    ComesBackTooEarly,
    WaitsBeyondTheCap,
    NeverGivesUp,
}

#[derive(Debug)]
struct Broken {
    how: Break,
    inner: Script,
}

#[async_trait]
impl Provider for Broken {
    async fn create_instance(&self, ctx: &OpContext, request: &CreateRequest) -> Result<Instance> {
        let policy = RetryPolicy::default();
        let own = OpContext::new();
        let below = if self.how == Break::SwallowsCancel { &own } else { ctx };
        let mut repeats = 0;
        loop {
            let error = match self.inner.create_instance(below, request).await {
                Ok(instance) => return Ok(instance),
                Err(error) => error,
            };
            let delay = match error.retry() {
                Retry::After { delay } => delay,
                _ if self.how == Break::RepeatsWhateverFails => Duration::from_secs(1),
                _ => return Err(error),
            };
            if repeats == policy.repeats && self.how != Break::NeverGivesUp {
                return Err(error);
            }
            repeats += 1;
            match self.how {
                Break::SleepsThroughCancel => sleep(delay.max(policy.base)).await,
                Break::ComesBackTooEarly => ctx.sleep(delay / 2).await?,
                Break::WaitsBeyondTheCap => ctx.sleep(policy.cap * 2).await?,
                _ => ctx.sleep(delay).await?,
            }
        }
    }

    async fn delete_instance(&self, _: &OpContext, _: &InstanceId, _: &Ownership) -> Result<()> {
        unreachable!("only creates are made")
    }

    async fn teardown(&self) -> Result<()> {
        Ok(())
    }
}

fn answers() -> Vec<Answer> {
    let slow =
        Error::new(ErrorKind::Throttled, "no").with_retry(Retry::After { delay: Duration::from_secs(4) });
    let mut answers = vec![Answer { after: Duration::from_secs(5), result: Err(slow) }; 6];
    answers.push(Answer { after: Duration::ZERO, result: Err(Error::new(ErrorKind::Quota, "never")) });
    answers
}

/// Makes a call and a call that is cancelled, and returns what is wrong with them.
fn judge(make: impl Fn(&Script) -> Arc<dyn Provider>) -> Vec<String> {
    let mut wrong = Vec::new();
    for answers in [answers(), answers()[6..].to_vec()] {
        let inner = Script::new(answers);
        // Its answer is judged by the attempts alone.
        let _ = run(async { call(&*make(&inner), Operation::Create, &OpContext::new()).await });
        wrong.extend(check_repetitions(&inner, RetryPolicy::default(), None).err());
    }
    for after in [1, 6, 8, 10] {
        let cancelled = run(async {
            let inner = Script::new(answers());
            cancel_after(make(&inner), Operation::Create, Duration::from_secs(after)).await
        });
        if let Some((took, _)) = cancelled.filter(|(took, _)| *took > SOON) {
            wrong.push(format!("came back {took:?} after the cancel"));
        }
    }
    wrong
}

#[test]
fn the_checks_see_every_layer_that_breaks_a_promise_and_none_that_keeps_it() {
    assert_eq!(judge(|inner| one(Layer::Retry(RetryPolicy::default()), inner)), Vec::<String>::new());
    assert_eq!(judge(|inner| whole(inner, &LayerSettings::default())), Vec::<String>::new());
    for (how, sign) in [
        (Break::SwallowsCancel, "after the cancel"),
        (Break::SleepsThroughCancel, "after the cancel"),
        (Break::RepeatsWhateverFails, "was repeated"),
        (Break::ComesBackTooEarly, "asks for"),
        (Break::WaitsBeyondTheCap, "above the cap"),
        (Break::NeverGivesUp, "repetitions are allowed"),
    ] {
        let wrong = judge(|inner| Arc::new(Broken { how, inner: inner.clone() }));
        assert!(wrong.iter().any(|text| text.contains(sign)), "{how:?} is not seen: {wrong:?}");
    }
}
