//! Waits and their ends.

use std::{future::Future, time::Duration};

use cloud_providers::{
    CancellationToken, Error, ErrorKind, Instance, OpContext, Ownership, Provider, Result, VerifyReport,
};
use tokio::time::Instant;

use crate::{
    Effect, Obstacle, Offer,
    context::{Context, ensure, refused},
    interrupt::{Act, Recorder},
};

pub(crate) async fn bounded(c: &Context) {
    c.check("create-with-a-call-that-hangs", create_hangs(c)).await;
    c.check("other-calls-that-hang", others_hang(c)).await;
    c.check("instance-that-never-comes-up", never_up(c)).await;
    c.check("noticed-soon", noticed(c)).await;
}

async fn create_hangs(c: &Context) -> Offer<()> {
    c.can(Effect::HangBefore)?;
    let profile = c.profile().await?;
    for nth in c.points(profile.calls()?) {
        for effect in [Effect::HangBefore, Effect::HangAfter] {
            let (before, request, recorder) = (c.look().await?, c.request(), Recorder::new());
            c.fault(nth, effect).await?;
            let result = c.try_create(&recorder.context(), &request).await;
            c.harness.clear_faults().await?;
            let when = format!("call {nth} hangs ({effect:?})");
            let result = result.map_err(|e| Obstacle::failed(format!("{when}: {e}")))?;
            c.remove(&request, &recorder.kept()).await?;
            c.settles_to(&before, format!("{when}, which gave {result:?}; after the release")).await?;
        }
    }
    Ok(())
}

/// The calls that are not a create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Delete,
    Release,
    List,
    Verify,
}

impl Call {
    const ALL: [Self; 4] = [Self::Delete, Self::Release, Self::List, Self::Verify];

    /// Returns whether the provider has it.
    fn is_there(self, provider: &dyn Provider) -> bool {
        let can = provider.capabilities();
        match self {
            Self::Delete => true,
            Self::Release => can.release,
            Self::List => can.list_owned,
            Self::Verify => can.verify_config,
        }
    }

    async fn make(self, c: &Context, provider: &dyn Provider, ctx: &OpContext, work: &Work) -> Result<()> {
        match self {
            Self::Delete => {
                provider.delete_instance(ctx, &work.instance.id, &Ownership::Tagged(c.scope())).await
            }
            Self::Release => provider.release(ctx, &work.request.token).await,
            Self::List => provider.list_owned(ctx, &c.scope()).await.and_then(|list| {
                // An incomplete list is an answer to a page that never came.
                if list.complete { Ok(()) } else { Err(Error::new(ErrorKind::Transient, "incomplete list")) }
            }),
            Self::Verify => provider.verify_config(ctx).await.and_then(VerifyReport::into_result),
        }
    }
}

struct Work {
    request: cloud_providers::CreateRequest,
    instance: Instance,
}

async fn work(c: &Context) -> Offer<Work> {
    let request = c.request();
    let instance = c.create(&request).await?;
    Ok(Work { request, instance })
}

/// Returns how many remote calls a call makes.
async fn count(c: &Context, call: Call) -> Offer<usize> {
    let (provider, work, ctx) = (c.provider().await?, work(c).await?, OpContext::new());
    let first = c.harness.calls().await?;
    let result =
        c.within(c.bounds.operation, "an undisturbed call", call.make(c, &*provider, &ctx, &work)).await?;
    ensure!(result.is_ok(), "undisturbed, {call:?} gave {result:?}");
    let calls = c.harness.calls().await? - first;
    c.remove(&work.request, &[]).await?;
    Ok(calls)
}

async fn others_hang(c: &Context) -> Offer<()> {
    c.can(Effect::HangBefore)?;
    for call in Call::ALL {
        let provider = c.provider().await?;
        if !call.is_there(&*provider) {
            continue;
        }
        for nth in c.points(count(c, call).await?) {
            let (work, ctx) = (work(c).await?, OpContext::new());
            c.fault(nth, Effect::HangBefore).await?;
            let what = format!("{call:?} whose remote call {nth} hangs");
            let result = c.within(c.bounds.operation, &what, call.make(c, &*provider, &ctx, &work)).await;
            c.harness.clear_faults().await?;
            result?.or_else(|error| {
                // It gave up, and says that it may be tried again.
                ensure!(*error.kind() == ErrorKind::Transient, "{what}: {error:?}");
                Ok(())
            })?;
            c.remove(&work.request, &[]).await?;
        }
    }
    Ok(())
}

async fn never_up(c: &Context) -> Offer<()> {
    let (before, request) = (c.look().await?, c.request());
    c.harness.never_ready().await?;
    let result = c.try_create(&OpContext::new(), &request).await?;
    c.harness.clear_faults().await?;
    ensure!(result.is_err(), "an instance that never comes up gave {result:?}");
    c.unchanged(&before, "after an instance that never came up").await
}

async fn noticed(c: &Context) -> Offer<()> {
    let profile = c.profile().await?;
    for time in [Duration::from_millis(50), Duration::from_millis(730)] {
        let request = c.request();
        c.harness.ready_after(time).await?;
        let start = Instant::now();
        c.create(&request).await?;
        let took = start.elapsed();
        c.harness.clear_faults().await?;
        ensure!(took >= time, "an instance that was up after {time:?} was returned after {took:?}");
        let limit = profile.took + time + c.bounds.notice;
        ensure!(
            took <= limit,
            "an instance that was up after {time:?} was noticed after {took:?}, not {limit:?}"
        );
    }
    if c.can(Effect::LoseReply).is_err() {
        return Ok(());
    }
    // So long that there are questions beyond those of a create whose instance is up at once.
    c.harness.ready_after(Duration::from_secs(3)).await?;
    let struck = c.fault(profile.calls()? + 2, Effect::LoseReply).await?;
    let result = c.try_create(&OpContext::new(), &c.request()).await?;
    c.harness.clear_faults().await?;
    ensure!(struck.is_cancelled(), "nothing was asked while the instance came up: {result:?}");
    ensure!(
        result.is_ok(),
        "one question was not answered while the instance came up, and that ended it: {result:?}"
    );
    Ok(())
}

pub(crate) async fn cancellable(c: &Context) {
    c.check("before-they-begin", before_they_begin(c)).await;
    c.check("create-with-a-call-that-hangs", cancel_hanging_create(c)).await;
    c.check("other-calls-that-hang", cancel_others(c)).await;
    c.check("instance-that-never-comes-up", cancel_boot(c)).await;
    c.check("waiting-for-another-create", cancel_turn(c)).await;
}

async fn before_they_begin(c: &Context) -> Offer<()> {
    let (provider, work) = (c.provider().await?, work(c).await?);
    let before = c.look().await?;
    let cancel = CancellationToken::new();
    cancel.cancel();
    for call in Call::ALL.into_iter().filter(|call| call.is_there(&*provider)) {
        for ctx in
            [OpContext::new().with_cancel(cancel.clone()), OpContext::new().with_timeout(Duration::ZERO)]
        {
            let what = format!("{call:?} that was cancelled before it began");
            let result = c.within(c.bounds.cancel, &what, call.make(c, &*provider, &ctx, &work)).await?;
            refused(result, &ErrorKind::Cancelled, &what)?;
            c.unchanged(&before, &what).await?;
        }
    }
    Ok(())
}

/// Cancels a call at `moment` and demands that it ends within the bound.
async fn cancel_at<T: std::fmt::Debug>(
    c: &Context,
    what: &str,
    moment: impl Future<Output = ()> + Send,
    cancel: &CancellationToken,
    call: impl Future<Output = Result<T>> + Send,
) -> Offer<Result<T>> {
    tokio::pin!(call);
    let early = c
        .within(c.bounds.operation, what, async {
            tokio::select! {
                biased;
                result = &mut call => Some(result),
                () = moment => None,
            }
        })
        .await?;
    if let Some(result) = early {
        return Ok(result);
    }
    cancel.cancel();
    c.within(c.bounds.cancel, &format!("{what}, once cancelled,"), call).await
}

async fn cancel_hanging_create(c: &Context) -> Offer<()> {
    c.can(Effect::HangBefore)?;
    let profile = c.profile().await?;
    for nth in c.points(profile.calls()?) {
        let (before, request, recorder) = (c.look().await?, c.request(), Recorder::new());
        let struck = c.fault(nth, Effect::HangBefore).await?;
        let (provider, cancel) = (c.provider().await?, CancellationToken::new());
        let ctx = recorder.context().with_cancel(cancel.clone());
        let what = format!("a create whose call {nth} hangs");
        let call = provider.create_instance(&ctx, &request);
        let result = cancel_at(c, &what, struck.cancelled(), &cancel, call).await;
        c.harness.clear_faults().await?;
        if struck.is_cancelled() {
            refused(result?, &ErrorKind::Cancelled, &what)?;
        }
        c.remove(&request, &recorder.kept()).await?;
        c.settles_to(&before, what).await?;
    }
    Ok(())
}

async fn cancel_others(c: &Context) -> Offer<()> {
    c.can(Effect::HangBefore)?;
    for call in Call::ALL {
        let provider = c.provider().await?;
        if !call.is_there(&*provider) {
            continue;
        }
        for nth in c.points(count(c, call).await?) {
            let (work, cancel) = (work(c).await?, CancellationToken::new());
            let struck = c.fault(nth, Effect::HangBefore).await?;
            let ctx = OpContext::new().with_cancel(cancel.clone());
            let what = format!("{call:?} whose remote call {nth} hangs");
            let result =
                cancel_at(c, &what, struck.cancelled(), &cancel, call.make(c, &*provider, &ctx, &work)).await;
            c.harness.clear_faults().await?;
            ensure!(struck.is_cancelled(), "{what}: the call was not made");
            refused(result?, &ErrorKind::Cancelled, &what)?;
            c.remove(&work.request, &[]).await?;
        }
    }
    Ok(())
}

async fn cancel_boot(c: &Context) -> Offer<()> {
    let profile = c.profile().await?;
    let (before, request, recorder) = (c.look().await?, c.request(), Recorder::new());
    c.harness.never_ready().await?;
    let (provider, cancel) = (c.provider().await?, CancellationToken::new());
    let ctx = recorder.context().with_cancel(cancel.clone());
    let booting = tokio::time::sleep(profile.took + Duration::from_millis(500));
    let call = provider.create_instance(&ctx, &request);
    let result = cancel_at(c, "a create that waits for its instance", booting, &cancel, call).await;
    c.harness.clear_faults().await?;
    refused(result?, &ErrorKind::Cancelled, "a create that waits for its instance")?;
    c.unchanged(&before, "cancelled while the instance came up").await
}

async fn cancel_turn(c: &Context) -> Offer<()> {
    let (before, request, hung) = (c.look().await?, c.request(), CancellationToken::new());
    let recorder = Recorder::at(1, Act::Hang(hung.clone()));
    let (provider, cancel) = (c.provider().await?, CancellationToken::new());
    let (first, second) = (recorder.context(), OpContext::new().with_cancel(cancel.clone()));
    let both = async {
        let late = async {
            hung.cancelled().await;
            let soon = tokio::time::sleep(Duration::from_millis(100));
            let call = provider.create_instance(&second, &request);
            cancel_at(c, "a create that waits for another one", soon, &cancel, call).await
        };
        tokio::select! {
            biased;
            result = provider.create_instance(&first, &request) => {
                Err(Obstacle::failed(format!("record 1 was not waited for: {result:?}")))
            }
            second = late => second,
        }
    };
    let limit = c.bounds.operation + c.bounds.cancel;
    let result = c.within(limit, "two creates", both).await??;
    if let Err(error) = &result {
        ensure!(*error.kind() == ErrorKind::Cancelled, "the create that waited gave {error:?}");
    }
    c.remove(&request, &recorder.kept()).await?;
    c.settles_to(&before, "two creates, one dropped, one cancelled").await
}
