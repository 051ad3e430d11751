//! Lists of what is owned, and releases by token.

use std::time::Duration;

use cloud_providers::{ErrorKind, OpContext, Owned, OwnedList, Provider, Resource, Scope, Token};
use tokio::time::{Instant, sleep};

use crate::{
    Effect, ListFault, Obstacle, Offer,
    context::{Context, ensure},
    interrupt::{Cut, Way},
};

async fn can_list(c: &Context) -> Offer<()> {
    c.needs("list_owned", |can| can.list_owned).await
}

async fn can_release(c: &Context) -> Offer<()> {
    c.needs("release", |can| can.release).await
}

async fn list(c: &Context, scope: &Scope) -> Offer<cloud_providers::Result<OwnedList>> {
    list_by(c, &*c.provider().await?, scope).await
}

async fn list_by(
    c: &Context,
    provider: &dyn Provider,
    scope: &Scope,
) -> Offer<cloud_providers::Result<OwnedList>> {
    c.within(c.bounds.operation, "the list", provider.list_owned(&OpContext::new(), scope)).await
}

/// Lists until the list is as it must be, since lists may lag behind.
async fn list_until(
    c: &Context,
    scope: &Scope,
    mut check: impl FnMut(&OwnedList) -> Offer<()> + Send,
) -> Offer<()> {
    let end = Instant::now() + c.bounds.settle;
    loop {
        let found = list(c, scope).await?.map_err(|e| Obstacle::failed(format!("the list failed: {e:?}")))?;
        match check(&found) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= end => return Err(error),
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

fn entry<'a>(list: &'a OwnedList, token: &Token) -> Offer<&'a Owned> {
    let of_token: Vec<&Owned> = list.entries.iter().filter(|e| e.token_tag == token.tag_value()).collect();
    match of_token[..] {
        [one] => Ok(one),
        _ => Err(Obstacle::failed(format!("one entry was wanted for {token}, found {of_token:?}"))),
    }
}

pub(crate) async fn one_entry(c: &Context) {
    c.check("with-instance", with_instance(c)).await;
    c.check("without-instance", without_instance(c)).await;
    c.check("empty", empty(c)).await;
}

pub(crate) async fn what_runs(c: &Context) {
    c.check("of-a-running-instance", of_a_running_instance(c)).await;
}

async fn of_a_running_instance(c: &Context) -> Offer<()> {
    can_list(c).await?;
    let request = c.request();
    c.create(&request).await?;
    list_until(c, &c.scope(), |list| {
        let entry = entry(list, &request.token)?;
        ensure!(entry.instance.is_some(), "the instance is missing: {entry:?}");
        ensure!(!entry.state.is_over(), "an instance that runs is called {}: {entry:?}", entry.state);
        Ok(())
    })
    .await
}

async fn with_instance(c: &Context) -> Offer<()> {
    can_list(c).await?;
    let before = c.look().await?;
    let requests = [c.request(), c.request()];
    let mut instances = Vec::new();
    for request in &requests {
        instances.push(c.create(request).await?);
    }
    let now = c.look().await?;
    let new: Vec<&Resource> =
        now.values().filter(|f| !before.contains_key(&f.resource)).map(|f| f.recorded_as()).collect();
    list_until(c, &c.scope(), |list| {
        ensure!(list.complete, "the list says that it is incomplete: {list:?}");
        ensure!(list.entries.len() == 2, "two entries were wanted: {list:?}");
        let mut told = Vec::new();
        for (request, instance) in requests.iter().zip(&instances) {
            let entry = entry(list, &request.token)?;
            let token_fits = entry.token.as_ref().is_none_or(|t| *t == request.token);
            ensure!(token_fits, "the token is wrong: {entry:?}");
            let id = entry.instance.as_ref().map(|i| &i.id);
            ensure!(id == Some(&instance.id), "the instance is wrong: {entry:?}");
            let holder_fits = entry.holder.as_ref().is_none_or(|h| *h == request.holder);
            ensure!(holder_fits, "the holder is wrong: {entry:?}");
            let id = Resource::new(Resource::INSTANCE, instance.id.as_str());
            ensure!(entry.resources.contains(&id), "{id} is not among the resources: {entry:?}");
            told.extend(entry.resources.iter().cloned());
        }
        let untold: Vec<&&Resource> = new.iter().filter(|r| !told.contains(r)).collect();
        ensure!(untold.is_empty(), "{untold:?} is there and in no entry: {list:?}");
        Ok(())
    })
    .await
}

async fn without_instance(c: &Context) -> Offer<()> {
    can_list(c).await?;
    let profile = c.profile().await?;
    let mut cuts: Vec<Cut> = c.points(profile.records).into_iter().map(Cut::Record).collect();
    if let (Ok(()), Ok(calls)) = (c.can(Effect::HangAfter), profile.calls()) {
        cuts.extend(c.points(calls).into_iter().map(|n| Cut::Call(n, Effect::HangAfter)));
    }
    let mut seen = false;
    for cut in cuts {
        let (before, request) = (c.look().await?, c.request());
        let (_, kept) = c.cut(&request, &cut, Way::Drop, &profile).await?;
        c.harness.clear_faults().await?;
        let now = c.still().await?;
        let new: Vec<_> = now.values().filter(|f| !before.contains_key(&f.resource)).collect();
        if !new.is_empty() {
            let made = new.iter().any(|f| f.resource.kind == Resource::INSTANCE);
            list_until(c, &c.scope(), |list| {
                let entry = entry(list, &request.token)?;
                let recorded = new.iter().map(|f| f.recorded_as());
                let untold: Vec<_> = recorded.filter(|r| !entry.resources.contains(r)).collect();
                ensure!(untold.is_empty(), "dropped at {cut:?}: {untold:?} is there and not in {entry:?}");
                let invented = !made && entry.instance.is_some();
                ensure!(!invented, "dropped at {cut:?}: no instance is there: {entry:?}");
                Ok(())
            })
            .await?;
            seen |= !made;
        }
        c.remove(&request, &kept).await?;
        c.settles_to(&before, format!("dropped at {cut:?} and released")).await?;
    }
    if seen { Ok(()) } else { Err(Obstacle::unsupported("resources without an instance")) }
}

async fn empty(c: &Context) -> Offer<()> {
    can_list(c).await?;
    let nobody = Scope::Cluster(format!("{}-nobody", c.scope().id()));
    let list = list(c, &nobody).await?;
    let fine = list.as_ref().is_ok_and(|l| l.entries.is_empty() && l.complete);
    ensure!(fine, "the list of a scope without anything is {list:?}");
    Ok(())
}

pub(crate) async fn incomplete(c: &Context) {
    c.check("a-part-is-missing", partly(c)).await;
    c.check("nothing-answers", wholly(c)).await;
}

async fn partly(c: &Context) -> Offer<()> {
    can_list(c).await?;
    let requests = [c.request(), c.request()];
    for request in &requests {
        c.create(request).await?;
    }
    list_until(c, &c.scope(), |list| {
        requests.iter().try_for_each(|request| entry(list, &request.token).map(|_| ()))
    })
    .await?;
    let provider = c.provider().await?;
    c.harness.break_lists(ListFault::Partly).await?;
    let list = list_by(c, &*provider, &c.scope()).await?;
    c.harness.clear_faults().await?;
    let fine = list.as_ref().map_or(true, |l| !l.complete);
    ensure!(fine, "a part did not answer, and the list says that it is complete: {list:?}");
    Ok(())
}

async fn wholly(c: &Context) -> Offer<()> {
    can_list(c).await?;
    c.create(&c.request()).await?;
    let provider = c.provider().await?;
    c.harness.break_lists(ListFault::Wholly).await?;
    let list = list_by(c, &*provider, &c.scope()).await?;
    c.harness.clear_faults().await?;
    ensure!(list.is_err(), "nothing answered, and the list is {list:?}");
    Ok(())
}

pub(crate) async fn other_scopes(c: &Context) {
    c.check("other-scopes", scopes_apart(c)).await;
    c.check("without-tags", without_tags(c)).await;
}

async fn scopes_apart(c: &Context) -> Offer<()> {
    can_list(c).await?;
    let id = c.scope().id().to_owned();
    let others = [Scope::Cluster(format!("{id}0")), Scope::Experiment(id)];
    let ours = c.request();
    c.create(&ours).await?;
    let mut theirs = Vec::new();
    for scope in &others {
        let request = c.request_in(scope.clone());
        c.create(&request).await?;
        theirs.push(request);
    }
    for request in theirs.iter().chain([&ours]) {
        list_until(c, &request.token.scope, |list| {
            entry(list, &request.token)?;
            ensure!(list.entries.len() == 1, "only {} belongs to its scope: {list:?}", request.token);
            Ok(())
        })
        .await?;
    }
    Ok(())
}

async fn without_tags(c: &Context) -> Offer<()> {
    can_list(c).await?;
    c.harness.add_foreign(&c.request()).await?;
    let list = list(c, &c.scope()).await?;
    ensure!(list.as_ref().is_ok_and(|l| l.entries.is_empty()), "what is not ours is in the list: {list:?}");
    Ok(())
}

pub(crate) async fn release_without_instance(c: &Context) {
    c.check("cut-at-each-record", release_after(c, false)).await;
    c.check("cut-at-each-remote-call", release_after(c, true)).await;
    c.check("with-instance", release_with_instance(c)).await;
}

async fn release_after(c: &Context, calls: bool) -> Offer<()> {
    can_release(c).await?;
    let profile = c.profile().await?;
    let cuts: Vec<Cut> = if calls {
        c.can(Effect::HangAfter)?;
        c.points(profile.calls()?).into_iter().map(|n| Cut::Call(n, Effect::HangAfter)).collect()
    } else {
        c.points(profile.records).into_iter().map(Cut::Record).collect()
    };
    for cut in cuts {
        let (before, request) = (c.look().await?, c.request());
        c.cut(&request, &cut, Way::Drop, &profile).await?;
        c.harness.clear_faults().await?;
        c.remove(&request, &[]).await?;
        c.settles_to(&before, format!("dropped at {cut:?} and released")).await?;
    }
    Ok(())
}

async fn release_with_instance(c: &Context) -> Offer<()> {
    can_release(c).await?;
    let (before, request) = (c.look().await?, c.request());
    let instance = c.create(&request).await?;
    c.remove(&request, &[]).await?;
    c.unchanged(&before, "after the release of a token with an instance").await?;
    c.delete(&instance).await
}

pub(crate) async fn release_nothing(c: &Context) {
    c.check("never-used", release_twice(c, false)).await;
    c.check("released-before", release_twice(c, true)).await;
}

async fn release_twice(c: &Context, used: bool) -> Offer<()> {
    can_release(c).await?;
    let (before, request) = (c.look().await?, c.request());
    if used {
        c.create(&request).await?;
    }
    for _ in 0..2 {
        c.remove(&request, &[]).await?;
    }
    c.unchanged(&before, "after two releases").await
}

pub(crate) async fn release_others_stay(c: &Context) {
    c.check("tokens-that-look-alike", look_alike(c)).await;
    c.check("things-without-tags", foreign_stays(c)).await;
}

async fn look_alike(c: &Context) -> Offer<()> {
    can_release(c).await?;
    let scope = c.scope();
    let first = c.request();
    c.create(&c.request()).await?;
    let mut longer = c.request();
    longer.token.unit = format!("{}0", first.token.unit);
    c.keep(&longer);
    c.create(&longer).await?;
    let elsewhere = c.request_in(Scope::Cluster(format!("{}0", scope.id())));
    c.create(&elsewhere).await?;
    let before = c.look().await?;
    c.create(&first).await?;
    // A later attempt of the same unit was never made.
    let never = Token::new(scope, first.token.unit.clone(), 2);
    let (provider, ctx) = (c.provider().await?, OpContext::new());
    let with_first = c.look().await?;
    let result = c.within(c.bounds.operation, "the release", provider.release(&ctx, &never)).await?;
    ensure!(result.is_ok(), "the release of an attempt that was never made: {result:?}");
    c.unchanged(&with_first, "after the release of an attempt that was never made").await?;
    c.remove(&first, &[]).await?;
    c.unchanged(&before, "after the release of one of several tokens").await
}

async fn foreign_stays(c: &Context) -> Offer<()> {
    can_release(c).await?;
    let request = c.request();
    c.harness.add_foreign(&request).await?;
    let before = c.look().await?;
    let result = c.try_create(&OpContext::new(), &request).await?;
    if let Err(error) = &result {
        ensure!(*error.kind() == ErrorKind::Conflict, "a create whose name is taken: {error:?}");
    }
    c.remove(&request, &[]).await?;
    c.unchanged(&before, "after the release of a token whose name somebody else has").await
}
