//! A provider that answers what it is told, when it is told.

use std::{
    collections::VecDeque,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use cloud_providers::{
    Capabilities, ConsoleTail, CreateRequest, Error, Finding, Instance, InstanceId, OpContext, OwnedList,
    Ownership, Provider, Result, Scope, Token, Unit, VerifyReport, async_trait, layers::Operation,
};
use tokio::time::{Instant, sleep};

/// One answer to an attempt.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) after: Duration,
    pub(crate) result: Result<(), Error>,
}

/// What came of an attempt.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) start: Instant,
    pub(crate) end: Option<Instant>,
    pub(crate) result: Option<Result<(), Error>>,
}

/// How it takes a cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Listens,
    IsDeaf,
}

/// Clones are the same provider. When the answers are used up, all is well.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    manner: Manner,
    inside: Arc<Mutex<Inside>>,
}

#[derive(Debug, Default)]
struct Inside {
    answers: VecDeque<Answer>,
    attempts: Vec<Attempt>,
    requests: Vec<CreateRequest>,
}

impl Script {
    pub(crate) fn new(answers: Vec<Answer>) -> Self {
        let inside = Inside { answers: answers.into(), ..Inside::default() };
        Self { manner: Manner::Listens, inside: Arc::new(Mutex::new(inside)) }
    }

    pub(crate) fn with_manner(mut self, manner: Manner) -> Self {
        self.manner = manner;
        self
    }

    pub(crate) fn attempts(&self) -> Vec<Attempt> {
        self.inside.lock().unwrap().attempts.clone()
    }

    pub(crate) fn requests(&self) -> Vec<CreateRequest> {
        self.inside.lock().unwrap().requests.clone()
    }

    async fn answer(&self, ctx: &OpContext) -> Result<()> {
        let (index, answer) = {
            let mut inside = self.inside.lock().unwrap();
            inside.attempts.push(Attempt { start: Instant::now(), end: None, result: None });
            (inside.attempts.len() - 1, inside.answers.pop_front())
        };
        let Answer { after, result } = answer.unwrap_or(Answer { after: Duration::ZERO, result: Ok(()) });
        let work = async {
            sleep(after).await;
            result
        };
        let result = match self.manner {
            Manner::Listens => ctx.run(work).await,
            Manner::IsDeaf => work.await,
        };
        let attempt = &mut self.inside.lock().unwrap().attempts[index];
        (attempt.end, attempt.result) = (Some(Instant::now()), Some(result.clone()));
        result
    }
}

#[async_trait]
impl Provider for Script {
    async fn create_instance(&self, ctx: &OpContext, request: &CreateRequest) -> Result<Instance> {
        self.inside.lock().unwrap().requests.push(request.clone());
        self.answer(ctx).await?;
        Ok(Instance::new(InstanceId::new("i-1"), "podvm-x", vec![]))
    }

    async fn delete_instance(&self, ctx: &OpContext, _: &InstanceId, _: &Ownership) -> Result<()> {
        self.answer(ctx).await
    }

    async fn teardown(&self) -> Result<()> {
        self.answer(&OpContext::new()).await
    }

    async fn verify_config(&self, ctx: &OpContext) -> Result<VerifyReport> {
        self.answer(ctx).await?;
        Ok([Finding::ok("script", "as told")].into_iter().collect())
    }

    async fn list_owned(&self, ctx: &OpContext, _: &Scope) -> Result<OwnedList> {
        self.answer(ctx).await?;
        Ok(OwnedList::new(Vec::new(), true))
    }

    async fn release(&self, ctx: &OpContext, _: &Token) -> Result<()> {
        self.answer(ctx).await
    }

    async fn console(&self, ctx: &OpContext, _: &InstanceId, limit: usize) -> Result<ConsoleTail> {
        self.answer(ctx).await?;
        Ok(ConsoleTail::new(b"up", limit))
    }

    fn capabilities(&self) -> Capabilities {
        let mut can = Capabilities::default();
        can.volumes = true;
        can.name_limit = Some(17);
        can
    }
}

pub(crate) fn request() -> CreateRequest {
    let unit = Unit { id: "sandbox-1".into(), name_hint: "web".into() };
    CreateRequest::new(Token::new(scope(), "sandbox-1", 1), unit, "node").with_user_data("canary")
}

fn scope() -> Scope {
    Scope::Cluster("c".into())
}

/// Makes one call of an operation.
pub(crate) async fn call(provider: &dyn Provider, operation: Operation, ctx: &OpContext) -> Result<()> {
    let id = InstanceId::new("i-1");
    match operation {
        Operation::Create => provider.create_instance(ctx, &request()).await.map(drop),
        Operation::Delete => provider.delete_instance(ctx, &id, &Ownership::Tagged(scope())).await,
        Operation::List => provider.list_owned(ctx, &scope()).await.map(drop),
        Operation::Release => provider.release(ctx, &request().token).await,
        Operation::Verify => provider.verify_config(ctx).await.map(drop),
        Operation::Console => provider.console(ctx, &id, 99).await.map(drop),
        _ => provider.teardown().await,
    }
}

/// Runs by a clock that goes ahead while everybody waits.
pub(crate) fn run<T>(work: impl Future<Output = T>) -> T {
    let builder = &mut tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap().block_on(work)
}
