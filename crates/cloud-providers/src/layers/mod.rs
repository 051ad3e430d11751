//! What every call of a provider has around it, whatever the cloud.
//!
//! [`standard`] puts all layers around a provider and is what programs use. [`Stack`] puts some of them, in the one order
//! in which they are right:
//!
//! | | layer | what it does |
//! |---|---|---|
//! | 1 | [`Layer::ErrorContext`] | writes provider, operation and subject on every error, those of the layers below too |
//! | 2 | [`Layer::Tracing`] | one span for each call, with its end and its time |
//! | 3 | [`Layer::Metrics`] | tells an [`Observer`] of each call, its end and its time |
//! | 4 | [`Layer::Timeout`] | gives each call a deadline, and an end also where the provider knows none |
//! | 5 | [`Layer::Retry`] | repeats what the error's rule allows, with full jitter, within the deadline |
//! | 6 | [`Layer::RateLimit`] | lets each attempt wait for its token of the account and operation |
//!
//! The first is the outermost. The deadline stands outside of the repetitions, so that they all fit into it; the rate
//! limit stands inside, so that a repetition costs a token like every other call; what observes stands outside of both,
//! so that a call is one call, and hears of repetitions and waits through the observer.
//!
//! A layer adds no wait that a cancelled call would sit out: it returns within 100 ms, plus what the provider needs to
//! undo.

use std::{future::Future, pin::Pin, sync::Arc};

use async_trait::async_trait;

use crate::{
    Capabilities, ConsoleTail, CreateRequest, Instance, InstanceId, OpContext, OwnedList, Ownership,
    Provider, Result, Scope, Token, VerifyReport,
};

mod error_context;
mod metrics;
mod rate;
mod retry;
mod settings;
mod stack;
mod timeout;
mod trace;

pub use metrics::{CallOutcome, NoObserver, Observer};
pub use rate::{Rate, RateLimiter};
pub use retry::RetryPolicy;
pub use settings::{
    CREATE_RATE, DELETE_RATE, LIST_RATE, LayerSettings, OPTIONS, RETRIES, RETRY_CAP, standard,
};
pub use stack::{Layer, RateLimit, Stack};
pub use timeout::Timeouts;

/// An operation of a provider, for limits and labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Operation {
    /// [`Provider::create_instance`].
    Create,
    /// [`Provider::delete_instance`].
    Delete,
    /// [`Provider::list_owned`].
    List,
    /// [`Provider::release`].
    Release,
    /// [`Provider::verify_config`].
    Verify,
    /// [`Provider::console`].
    Console,
    /// [`Provider::teardown`].
    Teardown,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 7] =
        [Self::Create, Self::Delete, Self::List, Self::Release, Self::Verify, Self::Console, Self::Teardown];

    /// Returns the fixed word for logs and metric labels.
    pub fn label(self) -> &'static str {
        match self {
            Self::Create => "create_instance",
            Self::Delete => "delete_instance",
            Self::List => "list_owned",
            Self::Release => "release",
            Self::Verify => "verify_config",
            Self::Console => "console",
            Self::Teardown => "teardown",
        }
    }

    /// Whether it changes nothing, so that it can be dropped at any moment without loss.
    pub fn only_reads(self) -> bool {
        matches!(self, Self::List | Self::Verify | Self::Console)
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

/// One call as a layer sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    pub(crate) operation: Operation,
    pub(crate) subject: Subject<'a>,
}

/// What a call is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Subject<'a> {
    Request(&'a CreateRequest),
    Instance(&'a InstanceId),
    Scope(&'a Scope),
    Token(&'a Token),
    Nothing,
}

impl Subject<'_> {
    /// Returns the field's name and its value, for logs and errors.
    pub(crate) fn shown(self) -> Option<(&'static str, String)> {
        match self {
            Self::Request(request) => Some(("unit", request.unit.id.clone())),
            Self::Instance(id) => Some(("instance_id", id.to_string())),
            Self::Scope(scope) => Some(("scope", scope.to_string())),
            Self::Token(token) => Some(("token", token.to_string())),
            Self::Nothing => None,
        }
    }
}

pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;
/// Makes the call below once; a layer may do so several times.
pub(crate) type Next<'a, T> = &'a (dyn Fn(OpContext) -> Answer<'a, T> + Send + Sync + 'a);

/// What a layer does around any call.
pub(crate) trait Around: std::fmt::Debug + Send + Sync + 'static {
    fn around<'a, T: Send + 'a>(
        &'a self,
        ctx: &'a OpContext,
        call: Call<'a>,
        next: Next<'a, T>,
    ) -> impl Future<Output = Result<T>> + Send + 'a;
}

/// A provider with one layer around it.
#[derive(Debug)]
pub(crate) struct Layered<L> {
    pub(crate) layer: L,
    pub(crate) inner: Arc<dyn Provider>,
}

#[async_trait]
impl<L: Around> Provider for Layered<L> {
    async fn create_instance(&self, ctx: &OpContext, request: &CreateRequest) -> Result<Instance> {
        let call = Call { operation: Operation::Create, subject: Subject::Request(request) };
        let next = |ctx: OpContext| -> Answer<'_, Instance> {
            Box::pin(async move { self.inner.create_instance(&ctx, request).await })
        };
        self.layer.around(ctx, call, &next).await
    }

    async fn delete_instance(&self, ctx: &OpContext, id: &InstanceId, ownership: &Ownership) -> Result<()> {
        let call = Call { operation: Operation::Delete, subject: Subject::Instance(id) };
        let next = |ctx: OpContext| -> Answer<'_, ()> {
            Box::pin(async move { self.inner.delete_instance(&ctx, id, ownership).await })
        };
        self.layer.around(ctx, call, &next).await
    }

    async fn teardown(&self) -> Result<()> {
        let call = Call { operation: Operation::Teardown, subject: Subject::Nothing };
        let next = |_: OpContext| -> Answer<'_, ()> { Box::pin(async move { self.inner.teardown().await }) };
        self.layer.around(&OpContext::new(), call, &next).await
    }

    async fn verify_config(&self, ctx: &OpContext) -> Result<VerifyReport> {
        let call = Call { operation: Operation::Verify, subject: Subject::Nothing };
        let next = |ctx: OpContext| -> Answer<'_, VerifyReport> {
            Box::pin(async move { self.inner.verify_config(&ctx).await })
        };
        self.layer.around(ctx, call, &next).await
    }

    async fn list_owned(&self, ctx: &OpContext, scope: &Scope) -> Result<OwnedList> {
        let call = Call { operation: Operation::List, subject: Subject::Scope(scope) };
        let next = |ctx: OpContext| -> Answer<'_, OwnedList> {
            Box::pin(async move { self.inner.list_owned(&ctx, scope).await })
        };
        self.layer.around(ctx, call, &next).await
    }

    async fn release(&self, ctx: &OpContext, token: &Token) -> Result<()> {
        let call = Call { operation: Operation::Release, subject: Subject::Token(token) };
        let next = |ctx: OpContext| -> Answer<'_, ()> {
            Box::pin(async move { self.inner.release(&ctx, token).await })
        };
        self.layer.around(ctx, call, &next).await
    }

    async fn console(&self, ctx: &OpContext, id: &InstanceId, limit: usize) -> Result<ConsoleTail> {
        let call = Call { operation: Operation::Console, subject: Subject::Instance(id) };
        let next = |ctx: OpContext| -> Answer<'_, ConsoleTail> {
            Box::pin(async move { self.inner.console(&ctx, id, limit).await })
        };
        self.layer.around(ctx, call, &next).await
    }

    fn capabilities(&self) -> Capabilities {
        // Known without a call, so there is nothing to be around.
        self.inner.capabilities()
    }
}
