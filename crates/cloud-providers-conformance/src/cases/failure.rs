//! Creates that do not come to their end.

use std::{collections::BTreeSet, time::Duration};

use cloud_providers::{CancellationToken, CreateRequest, ErrorKind, Instance, OpContext, Resource, Result};
use tokio::time::sleep;

use crate::{
    Effect, Obstacle, Offer,
    context::{Context, Snapshot, ensure, refused},
    interrupt::{Act, Cut, JOURNAL_FULL, Profile, Recorder, Way, strays},
};

/// The kind of a leftover that nobody could look for.
const UNCONFIRMED: &str = "unconfirmed";

pub(crate) async fn leaves_nothing(c: &Context) {
    c.check("record-fails", record_fails(c)).await;
    c.check("remote-call-fails", remote_call(c, Effect::Fail)).await;
    c.check("reply-is-lost", remote_call(c, Effect::LoseReply)).await;
}

async fn record_fails(c: &Context) -> Offer<()> {
    let profile = c.profile().await?;
    for n in c.points(profile.records) {
        let (before, request) = (c.look().await?, c.request());
        let recorder = Recorder::at(n, Act::Fail);
        let result = c.try_create(&recorder.context(), &request).await?;
        let when = format!("record {n} failed");
        let Err(error) = result else {
            return Err(Obstacle::failed(format!("{when}, and the create gave {result:?}")));
        };
        ensure!(error.report().contains(JOURNAL_FULL), "{when}, and the error says {error:?}");
        ensure!(error.leftovers().is_empty(), "{when}, and something is left: {error:?}");
        c.unchanged(&before, &when).await?;
        if n == profile.records {
            c.create(&request).await?;
        }
    }
    Ok(())
}

async fn remote_call(c: &Context, effect: Effect) -> Offer<()> {
    c.can(effect)?;
    let profile = c.profile().await?;
    let mut failed = 0;
    for nth in c.points(profile.calls()?) {
        let (before, request) = (c.look().await?, c.request());
        let recorder = Recorder::new();
        c.fault(nth, effect).await?;
        let result = c.try_create(&recorder.context(), &request).await?;
        failed += usize::from(result.is_err());
        nothing_or_all(c, &before, &request, result, &recorder.kept(), &format!("{effect:?} of call {nth}"))
            .await?;
    }
    // A provider may survive every lost reply by looking what became of its call.
    ensure!(
        failed > 0 || effect == Effect::LoseReply,
        "no fault of {} remote calls made a create fail",
        profile.calls()?
    );
    Ok(())
}

/// After a disturbed create: it failed and nothing is left, or it succeeded and is complete.
async fn nothing_or_all(
    c: &Context,
    before: &Snapshot,
    request: &CreateRequest,
    result: Result<Instance>,
    kept: &[Resource],
    when: &str,
) -> Offer<()> {
    c.harness.clear_faults().await?;
    match result {
        Ok(instance) => {
            let id = c.one_instance(before, when).await?;
            ensure!(id == instance.id.as_str(), "{when}: {id} is there and not {instance:?}");
            c.remove(request, kept).await?;
        }
        Err(error) if error.leftovers().is_empty() => {}
        Err(error) => {
            // Only that nobody could look is an excuse, and it must have been recorded.
            let excused = error.leftovers().iter().all(|r| r.kind == UNCONFIRMED && kept.contains(r));
            ensure!(excused, "{when}: something is left although it could be removed: {error:?}");
            c.remove(request, kept).await?;
        }
    }
    c.unchanged(before, when).await
}

pub(crate) async fn cancelled(c: &Context) {
    c.check("before-it-begins", cancelled_before(c)).await;
    c.check("at-each-record", cancelled_at_records(c)).await;
    c.check("at-moments", cancelled_at_moments(c)).await;
    c.check("at-each-remote-call", cancelled_at_calls(c)).await;
}

async fn cancelled_before(c: &Context) -> Offer<()> {
    let (before, request) = (c.look().await?, c.request());
    let cancel = CancellationToken::new();
    cancel.cancel();
    for ctx in [OpContext::new().with_cancel(cancel), OpContext::new().with_timeout(Duration::ZERO)] {
        let result = c.try_create(&ctx, &request).await?;
        refused(result, &ErrorKind::Cancelled, "a create that was cancelled before it began")?;
        c.unchanged(&before, "cancelled before it began").await?;
    }
    Ok(())
}

async fn cancelled_at_records(c: &Context) -> Offer<()> {
    let profile = c.profile().await?;
    for n in c.points(profile.records) {
        let (before, request) = (c.look().await?, c.request());
        let (result, kept) = c.cut(&request, &Cut::Record(n), Way::Cancel, &profile).await?;
        let when = format!("cancelled at record {n}");
        let result = result.ok_or_else(|| Obstacle::failed("a cancelled create did not return"))?;
        ensure!(n == profile.records || result.is_err(), "{when}: the create went on and gave {result:?}");
        ended_by_cancelling(c, &before, &request, result, &kept, &when).await?;
    }
    Ok(())
}

async fn cancelled_at_moments(c: &Context) -> Offer<()> {
    let profile = c.profile().await?;
    for way in [Way::Cancel, Way::Deadline] {
        let mut ended = 0;
        // On a machine that was busy while the create was measured, the moments may all be too late.
        for part in [1, 8, 64] {
            for moment in c.moments(profile.took / part) {
                let (before, request) = (c.look().await?, c.request());
                let (result, kept) = c.cut(&request, &Cut::After(moment), way, &profile).await?;
                let result = result.ok_or_else(|| Obstacle::failed("a cancelled create did not return"))?;
                // A deadline that has passed already is seen by every provider that looks at it once.
                ended += usize::from(result.is_err() && !moment.is_zero());
                let when = format!("{way:?} after {moment:?} of {:?}", profile.took);
                ended_by_cancelling(c, &before, &request, result, &kept, &when).await?;
            }
            if ended > 0 || c.bounds.moments < 2 {
                break;
            }
        }
        let moments = c.bounds.moments;
        ensure!(
            ended > 0 || moments < 2,
            "no create ended early by {way:?} at {moments} moments of {:?}",
            profile.took
        );
    }
    Ok(())
}

async fn cancelled_at_calls(c: &Context) -> Offer<()> {
    c.can(Effect::HangBefore)?;
    let profile = c.profile().await?;
    for nth in c.points(profile.calls()?) {
        for (effect, way) in [
            (Effect::HangBefore, Way::Cancel),
            (Effect::HangAfter, Way::Cancel),
            (Effect::HangAfter, Way::Deadline),
        ] {
            let (before, request) = (c.look().await?, c.request());
            let (result, kept) = c.cut(&request, &Cut::Call(nth, effect), way, &profile).await?;
            let result = result.ok_or_else(|| Obstacle::failed("a cancelled create did not return"))?;
            let when = format!("{way:?} while call {nth} hangs ({effect:?})");
            ended_by_cancelling(c, &before, &request, result, &kept, &when).await?;
        }
    }
    Ok(())
}

async fn ended_by_cancelling(
    c: &Context,
    before: &Snapshot,
    request: &CreateRequest,
    result: Result<Instance>,
    kept: &[Resource],
    when: &str,
) -> Offer<()> {
    if let Err(error) = &result {
        ensure!(*error.kind() == ErrorKind::Cancelled, "{when}: the error is {error:?}");
    }
    nothing_or_all(c, before, request, result, kept, when).await
}

pub(crate) async fn leftovers_are_told(c: &Context) {
    c.check("removal-fails-too", removal_fails(c)).await;
}

async fn removal_fails(c: &Context) -> Offer<()> {
    let profile = c.profile().await?;
    let mut left = 0;
    if let Ok(calls) = c.can(Effect::Fail).and_then(|()| profile.calls()) {
        for nth in c.points(calls) {
            left += left_at(c, &Cut::Call(nth, Effect::Fail)).await?;
        }
    }
    // Without faults of remote calls, or where the last call is the one that makes the instance, the recorder is what
    // fails.
    if left == 0 {
        for nth in c.points(profile.records) {
            left += left_at(c, &Cut::Record(nth)).await?;
        }
    }
    ensure!(left > 0, "nothing was ever left although every removal fails");
    Ok(())
}

/// Lets a create fail at `cut` while nothing can be removed, and returns how much it left, all of which it told.
async fn left_at(c: &Context, cut: &Cut) -> Offer<usize> {
    let Some(expected) = kind_of_failure(c, cut).await? else { return Ok(0) };
    let (before, request) = (c.look().await?, c.request());
    c.harness.block_removals().await?;
    let (error, kept) = failing_create(c, cut, &request).await?;
    let now = c.look().await?;
    c.harness.clear_faults().await?;
    let when = format!("{cut:?} with an undo that fails");
    let Some(error) = error else {
        return Err(Obstacle::failed(format!("{when}: the create succeeded")));
    };
    ensure!(
        *error.kind() == expected,
        "{when}: the kind of the first failure is {expected}, told is {error:?}"
    );
    let told: BTreeSet<&Resource> = error.leftovers().iter().collect();
    let untold = strays(&before, &now, error.leftovers());
    let excused = told.iter().any(|r| r.kind == UNCONFIRMED);
    ensure!(untold.is_empty() || excused, "{when}: {untold:?} is left and the error tells {told:?}");
    let unrecorded: Vec<_> = told.iter().filter(|r| !kept.contains(r)).collect();
    ensure!(unrecorded.is_empty(), "{when}: {unrecorded:?} is told and was not recorded");
    c.remove(&request, &kept).await?;
    c.unchanged(&before, format!("{when}; after the release")).await?;
    Ok(now.len().saturating_sub(before.len()))
}

/// Lets a create fail at `cut` without a blockade and returns the kind of its error, if it has one.
async fn kind_of_failure(c: &Context, cut: &Cut) -> Offer<Option<ErrorKind>> {
    let request = c.request();
    let (error, kept) = failing_create(c, cut, &request).await?;
    c.harness.clear_faults().await?;
    if error.is_none() {
        c.remove(&request, &kept).await?;
    }
    Ok(error.map(|e| e.kind().clone()))
}

async fn failing_create(
    c: &Context,
    cut: &Cut,
    request: &CreateRequest,
) -> Offer<(Option<cloud_providers::Error>, Vec<Resource>)> {
    let recorder = match cut {
        Cut::Record(n) => Recorder::at(*n, Act::Fail),
        _ => Recorder::new(),
    };
    if let Cut::Call(nth, effect) = cut {
        c.fault(*nth, *effect).await?;
    }
    let result = c.try_create(&recorder.context(), request).await?;
    Ok((result.err(), recorder.kept()))
}

pub(crate) async fn records_first(c: &Context) {
    c.check("seen-from-outside", seen_from_outside(c)).await;
    c.check("nothing-happens-while-recording", still_while_recording(c)).await;
    c.check("everything-is-recorded", all_recorded(c)).await;
}

async fn seen_from_outside(c: &Context) -> Offer<()> {
    let (before, request) = (c.look().await?, c.request());
    let recorder = Recorder::looking(c.harness.clone());
    let result = c.try_create(&recorder.context(), &request).await?;
    result.map_err(|e| Obstacle::failed(format!("the create failed: {e:?}")))?;
    for (n, (found, kept)) in recorder.looks().into_iter().enumerate() {
        let now = found.into_iter().map(|f| (f.resource.clone(), f)).collect();
        let early = strays(&before, &now, &kept);
        ensure!(early.is_empty(), "at record {} there was {early:?}, and recorded was only {kept:?}", n + 1);
    }
    Ok(())
}

async fn still_while_recording(c: &Context) -> Offer<()> {
    let profile = c.profile().await?;
    for n in c.points(profile.records) {
        let (before, request) = (c.look().await?, c.request());
        let hung = CancellationToken::new();
        let recorder = Recorder::at(n, Act::Hang(hung.clone()));
        let (provider, ctx) = (c.provider().await?, recorder.context());
        let observe = async {
            hung.cancelled().await;
            let calls = c.harness.calls().await.ok();
            let there = c.look().await?;
            // Long enough for a call that does not wait for the record; too short a time would only miss one.
            sleep(profile.took.clamp(Duration::from_millis(30), Duration::from_secs(1))).await;
            c.unchanged(&there, format!("while record {n} was not done")).await?;
            let later = c.harness.calls().await.ok();
            ensure!(calls == later, "{later:?} remote calls after {calls:?} while record {n} was not done");
            Ok(there)
        };
        let both = async {
            tokio::select! {
                biased;
                result = provider.create_instance(&ctx, &request) => {
                    Err(Obstacle::failed(format!("record {n} was not waited for: {result:?}")))
                }
                there = observe => there,
            }
        };
        let there = c.within(c.bounds.operation, "a create whose record hangs", both).await??;
        let early = strays(&before, &there, &recorder.kept());
        ensure!(early.is_empty(), "at record {n} there was {early:?} that was not recorded");
        c.remove(&request, &recorder.kept()).await?;
        c.settles_to(&before, format!("dropped at record {n} and released")).await?;
    }
    Ok(())
}

async fn all_recorded(c: &Context) -> Offer<()> {
    let (before, request, recorder) = (c.look().await?, c.request(), Recorder::new());
    let instance = c.try_create(&recorder.context(), &request).await?;
    let instance = instance.map_err(|e| Obstacle::failed(format!("the create failed: {e:?}")))?;
    let missing = strays(&before, &c.look().await?, &recorder.kept());
    ensure!(missing.is_empty(), "{missing:?} was made and never recorded");
    let id = Resource::new(Resource::INSTANCE, instance.id.as_str());
    ensure!(recorder.kept().contains(&id), "{id} was never recorded");
    Ok(())
}

pub(crate) async fn dropped(c: &Context) {
    c.check("at-each-record", dropped_at_records(c)).await;
    c.check("at-moments", dropped_at_moments(c)).await;
    c.check("at-each-remote-call", dropped_at_calls(c)).await;
}

async fn dropped_at_records(c: &Context) -> Offer<()> {
    let profile = c.profile().await?;
    for n in c.points(profile.records) {
        // No remote call is under way then.
        drop_at(c, &Cut::Record(n), &profile, 0, n % 2 == 0).await?;
    }
    Ok(())
}

async fn dropped_at_moments(c: &Context) -> Offer<()> {
    let profile = c.profile().await?;
    for (i, moment) in c.moments(profile.took).into_iter().enumerate() {
        drop_at(c, &Cut::After(moment), &profile, 1, i % 2 == 0).await?;
    }
    Ok(())
}

async fn dropped_at_calls(c: &Context) -> Offer<()> {
    c.can(Effect::HangAfter)?;
    let profile = c.profile().await?;
    for nth in c.points(profile.calls()?) {
        for effect in [Effect::HangBefore, Effect::HangAfter] {
            drop_at(c, &Cut::Call(nth, effect), &profile, 1, nth % 2 == 0).await?;
        }
    }
    Ok(())
}

/// Drops a create and checks what is left, and that it can be removed, or completed by a repetition.
async fn drop_at(c: &Context, cut: &Cut, profile: &Profile, unrecorded: usize, repeat: bool) -> Offer<()> {
    let (before, request) = (c.look().await?, c.request());
    let (result, mut kept) = c.cut(&request, cut, Way::Drop, profile).await?;
    let when = format!("dropped at {cut:?}");
    if result.is_none() {
        let strays = strays(&before, &c.still().await?, &kept);
        ensure!(strays.len() <= unrecorded, "{when}: {strays:?} is there, and only {kept:?} was recorded");
    }
    c.harness.clear_faults().await?;
    if repeat {
        let instance = c.create(&request).await?;
        c.one_instance(&before, format!("{when} and repeated")).await?;
        kept.push(Resource::new(Resource::INSTANCE, instance.id.as_str()));
    }
    c.remove(&request, &kept).await?;
    c.settles_to(&before, format!("{when}, then {}released", if repeat { "repeated and " } else { "" })).await
}
