//! Teardown, verification, errors.

use cloud_providers::{
    CancellationToken, Confidential, Error, ErrorKind, OpContext, Ownership, Retry, Scope, VerifyReport,
};

use crate::{
    Effect, Obstacle, Offer,
    context::{Context, ensure, refused},
};

pub(crate) async fn instances_stay(c: &Context) {
    c.check("with-an-instance", teardown_with_instance(c)).await;
}

async fn teardown_with_instance(c: &Context) -> Offer<()> {
    let (before, request) = (c.look().await?, c.request());
    let (provider, ctx) = (c.provider().await?, OpContext::new());
    let made = c.within(c.bounds.operation, "the create", provider.create_instance(&ctx, &request)).await??;
    let there = c.look().await?;
    let result = c.within(c.bounds.operation, "teardown", provider.teardown()).await?;
    ensure!(result.is_ok(), "teardown gave {result:?}");
    c.unchanged(&there, "after teardown").await?;
    drop(provider);
    c.unchanged(&there, "after the value was dropped").await?;
    let again = c.create(&request).await?;
    ensure!(again == made, "after teardown the same request gives {again:?} and not {made:?}");
    c.delete(&made).await?;
    c.unchanged(&before, "after teardown and delete").await
}

pub(crate) async fn teardown_twice(c: &Context) {
    c.check("used-and-unused", twice(c)).await;
}

async fn twice(c: &Context) -> Offer<()> {
    let (used, unused, ctx) = (c.provider().await?, c.provider().await?, OpContext::new());
    let request = c.request();
    c.within(c.bounds.operation, "the create", used.create_instance(&ctx, &request)).await??;
    let there = c.look().await?;
    for provider in [&used, &unused] {
        for n in 1..=2 {
            let result = c.within(c.bounds.operation, "teardown", provider.teardown()).await?;
            ensure!(result.is_ok(), "teardown number {n} gave {result:?}");
        }
    }
    c.unchanged(&there, "after teardown twice").await
}

pub(crate) async fn verify(c: &Context) {
    c.check("with-and-without-an-instance", verify_changes_nothing(c)).await;
}

async fn verify_changes_nothing(c: &Context) -> Offer<()> {
    c.needs("verify_config", |can| can.verify_config).await?;
    let (provider, ctx) = (c.provider().await?, OpContext::new());
    for instances in 0..2 {
        let request = c.request();
        if instances > 0 {
            c.create(&request).await?;
        }
        let before = c.look().await?;
        for _ in 0..2 {
            let result = c.within(c.bounds.operation, "verify_config", provider.verify_config(&ctx)).await?;
            let works = matches!(&result, Ok(report) if report.is_ok());
            ensure!(works, "a configuration that works does not verify: {result:?}");
            let named = |report: &VerifyReport| {
                !report.findings.is_empty() && report.findings.iter().all(|f| !f.check.is_empty())
            };
            ensure!(result.is_ok_and(|r| named(&r)), "the report does not say what was looked at");
            c.unchanged(&before, "after verify_config").await?;
        }
        if instances > 0 {
            let instance = c.create(&request).await?;
            c.one_instance(&Default::default(), "after verify_config").await?;
            c.delete(&instance).await?;
        }
    }
    Ok(())
}

pub(crate) async fn console(c: &Context) {
    c.check("of-an-instance", console_of_an_instance(c)).await;
}

async fn console_of_an_instance(c: &Context) -> Offer<()> {
    const LIMIT: usize = 16;
    let (provider, ctx) = (c.provider().await?, OpContext::new());
    let instance = c.create(&c.request()).await?;
    let before = c.look().await?;
    let read = |limit| c.within(c.bounds.operation, "console", provider.console(&ctx, &instance.id, limit));
    if !c.capabilities().await?.console {
        let error = read(LIMIT).await?.err();
        let told = error.as_ref().map(|e| e.kind().clone());
        ensure!(told == Some(ErrorKind::Unsupported), "it is denied and gives {error:?}");
        return c.delete(&instance).await;
    }
    for limit in [LIMIT, 64 * 1024] {
        let tail = match read(limit).await? {
            Ok(tail) => tail,
            Err(error) => return Err(Obstacle::failed(format!("the console gives {error:?}"))),
        };
        let text = tail.text();
        ensure!(text.len() <= limit, "{} bytes came where {limit} were wanted", text.len());
        let raw = text.chars().find(|c| c.is_control() && *c != '\n');
        ensure!(raw.is_none(), "a terminal would act on {raw:?} in {text:?}");
    }
    c.unchanged(&before, "after the console was read").await?;
    c.delete(&instance).await?;
    let error = read(LIMIT).await?.err();
    let told = error.as_ref().map(|e| e.kind().clone());
    ensure!(told == Some(ErrorKind::NotFound), "the console of what is gone gives {error:?}");
    Ok(())
}

pub(crate) async fn errors(c: &Context) {
    c.check("our-own-refusals", own_refusals(c)).await;
    c.check("failed-remote-calls", failed_calls(c)).await;
    c.check("refusals-of-the-cloud", cloud_refusals(c)).await;
}

/// What holds for every error.
fn check_error(error: &Error, retry: Retry, what: &str) -> Offer<()> {
    ensure!(error.retry() == retry, "{what}: the retry rule must be {retry:?}: {error:?}");
    let text = error.to_string();
    ensure!(text.trim().len() > 5, "{what}: the text says nothing: {text:?}");
    ensure!(!text.contains("Error {"), "{what}: the text is a dump: {text:?}");
    Ok(())
}

async fn own_refusals(c: &Context) -> Offer<()> {
    let request = c.request();
    let instance = c.create(&request).await?;
    let other = request.clone().with_user_data("#cloud-config\n# another one\n");
    let error =
        refused(c.try_create(&OpContext::new(), &other).await?, &ErrorKind::Conflict, "a used token")?;
    check_error(&error, Retry::Never, "a used token")?;
    let elsewhere = Ownership::Tagged(Scope::Experiment("elsewhere".into()));
    let error =
        refused(c.try_delete(&instance, &elsewhere).await?, &ErrorKind::Permission, "a foreign scope")?;
    check_error(&error, Retry::Never, "a foreign scope")?;
    ensure!(error.report().contains(instance.id.as_str()), "the instance is not named: {error:?}");
    if c.capabilities().await?.confidential.is_empty() {
        let mut wanted = c.request();
        wanted.spec.confidential = Confidential::Yes;
        c.keep(&wanted);
        let result = c.try_create(&OpContext::new(), &wanted).await?;
        check_error(
            &refused(result, &ErrorKind::Unsupported, "a denied feature")?,
            Retry::Never,
            "a denied feature",
        )?;
    }
    let cancel = CancellationToken::new();
    cancel.cancel();
    let ctx = OpContext::new().with_cancel(cancel);
    let error = refused(c.try_create(&ctx, &c.request()).await?, &ErrorKind::Cancelled, "a cancelled call")?;
    check_error(&error, Retry::Never, "a cancelled call")
}

async fn failed_calls(c: &Context) -> Offer<()> {
    c.can(Effect::Fail)?;
    let profile = c.profile().await?;
    let mut seen = 0;
    for nth in c.points(profile.calls()?) {
        let request = c.request();
        c.fault(nth, Effect::Fail).await?;
        let result = c.try_create(&OpContext::new(), &request).await?;
        c.harness.clear_faults().await?;
        let Err(error) = result else { continue };
        seen += 1;
        let what = format!("the failure of call {nth}");
        ensure!(error.operation().is_some(), "{what}: the operation is not named: {error:?}");
        let told = error.code().is_some() || error.cloud_message().is_some();
        ensure!(told, "{what}: neither code nor message of the cloud is told: {error:?}");
        ensure!(*error.kind() != ErrorKind::Cancelled, "{what}: nobody cancelled: {error:?}");
    }
    ensure!(seen > 0, "no fault made a create fail");
    Ok(())
}

async fn cloud_refusals(c: &Context) -> Offer<()> {
    let refusals = c.harness.refusals();
    if refusals.is_empty() {
        return Err(Obstacle::unsupported("refusals"));
    }
    for refusal in refusals {
        let (before, request) = (c.look().await?, c.request());
        c.harness.refuse(&refusal).await?;
        let result = c.try_create(&OpContext::new(), &request).await?;
        c.harness.clear_faults().await?;
        let what = format!("the refusal {}", refusal.name);
        let error = refused(result, &refusal.kind, &what)?;
        check_error(&error, refusal.retry, &what)?;
        ensure!(error.operation().is_some(), "{what}: the operation is not named: {error:?}");
        ensure!(
            error.code() == refusal.code.as_deref(),
            "{what}: the code {:?} is not told: {error:?}",
            refusal.code
        );
        c.unchanged(&before, format!("after {what}")).await?;
    }
    Ok(())
}
