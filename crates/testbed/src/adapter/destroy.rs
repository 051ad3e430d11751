//! Gives machines back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use cloud_providers::{Error, ErrorKind, InstanceId, OpContext, Ownership, Resource, Result, Token};

use crate::{
    Context, Event,
    adapter::{
        CloudTestbed, Work, all,
        found::{self, Entry},
        kept::{Keeper, Kept},
        request, scope,
    },
};

/// How often the provider is asked whether anything is left.
const ROUNDS: u32 = 60;

/// Gives back everything of the experiment, and proves that nothing is left.
pub(super) async fn everything(testbed: &CloudTestbed, ctx: &Context, experiment: &str) -> Result<()> {
    rounds(testbed, ctx, &Keeper::new(ctx)?, experiment, None).await?;
    match &testbed.local {
        Some(local) => local.forget(experiment),
        None => Ok(()),
    }
}

/// Gives back these machines, and proves that nothing of them is left.
pub(super) async fn some(
    testbed: &CloudTestbed,
    ctx: &Context,
    experiment: &str,
    machines: &BTreeSet<String>,
) -> Result<()> {
    rounds(testbed, ctx, &Keeper::new(ctx)?, experiment, Some(machines)).await
}

/// Deletes and asks until nothing is left. What is kept is changed through `keeper`.
pub(super) async fn rounds(
    testbed: &CloudTestbed,
    ctx: &Context,
    keeper: &Keeper,
    experiment: &str,
    only: Option<&BTreeSet<String>>,
) -> Result<()> {
    let can = testbed.can();
    let kept = keeper.all().await;
    let wanted = |name: &str| only.is_none_or(|only| only.contains(name));
    if !can.list_owned {
        return by_kept(testbed, ctx, experiment, keeper, &wanted).await;
    }
    let scope = scope(experiment);
    let machines: Vec<&str> = only.into_iter().flatten().map(String::as_str).collect();
    // Tokens whose creation was begun, and which a list that lags behind may not show yet.
    let mut unseen: BTreeMap<&str, Token> = kept
        .iter()
        .filter(|(name, kept)| wanted(name) && !kept.gone && can.release)
        .map(|(name, kept)| (name.as_str(), Token::new(scope.clone(), name, kept.attempt)))
        .collect();
    let told = Mutex::new(BTreeSet::new());
    let mut last: Option<Error> = None;
    let mut left = Vec::new();
    for round in 0..ROUNDS {
        // A deletion has waited until the cloud said gone: the first look after it needs no pause.
        if round > 1 {
            ctx.op.sleep(testbed.pause).await?;
        }
        let entries =
            found::list(&*testbed.provider, &ctx.op, &scope, testbed.pause, &kept, &machines).await?;
        found::ours(&entries, &testbed.holder, experiment)?;
        let entries: Vec<Entry> = entries
            .into_iter()
            .filter(|e| !e.is_gone())
            .filter(|e| match &e.token {
                Some(token) => wanted(&token.unit),
                None => only.is_none(),
            })
            .collect();
        let shown: BTreeSet<&Token> = entries.iter().filter_map(|e| e.token.as_ref()).collect();
        unseen.retain(|_, token| !shown.contains(token));
        if entries.is_empty() && unseen.is_empty() {
            let gone: Vec<String> =
                told.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect();
            for name in gone {
                ctx.tell(&name, Event::Deleted);
            }
            return mark_gone(keeper, &wanted).await;
        }
        let tokens: Vec<Token> = shown.into_iter().chain(unseen.values()).cloned().collect();
        keeper.leaving(&tokens).await?;
        let works = unseen.values().map(|token| testbed.provider.release(&ctx.op, token)).collect();
        let failed: Vec<Error> =
            all(testbed.parallel, works).await.into_iter().filter_map(Result::err).collect();
        if failed.is_empty() {
            unseen.clear();
        }
        let mut works: Vec<Work<'_, Result<()>>> = Vec::new();
        for entry in &entries {
            let (scope, told) = (&scope, &told);
            works.push(Box::pin(async move {
                if told.lock().unwrap_or_else(PoisonError::into_inner).insert(entry.name()) {
                    ctx.tell(&entry.name(), Event::Deleting);
                }
                found::remove(&*testbed.provider, &ctx.op, scope, entry).await
            }));
        }
        let failed = all(testbed.parallel, works).await.into_iter().filter_map(Result::err).chain(failed);
        ctx.op.check()?;
        let failed: Vec<Error> = failed.collect();
        left = entries.iter().flat_map(|e| e.owned.resources.clone()).collect::<Vec<Resource>>();
        // What no other try can mend ends it; the rest of the round was done all the same.
        let hopeless = failed.iter().any(|error| {
            matches!(
                error.kind(),
                ErrorKind::Auth | ErrorKind::Permission | ErrorKind::Unsupported | ErrorKind::Config
            )
        });
        last = failed.into_iter().next().or(last);
        if hopeless {
            break;
        }
    }
    let error = last.unwrap_or_else(|| Error::new(ErrorKind::Transient, "what was deleted is still there"));
    let known: BTreeSet<Resource> = error.leftovers().iter().cloned().collect();
    left.retain(|resource| !known.contains(resource));
    Err(error.with("experiment", experiment).with_leftovers(left))
}

/// Notes that nothing is left of machines, and forgets no attempt.
async fn mark_gone(keeper: &Keeper, wanted: &(dyn Fn(&str) -> bool + Sync)) -> Result<()> {
    keeper
        .change(|all| {
            for (_, machine) in all.iter_mut().filter(|(name, _)| wanted(name)) {
                *machine = Kept { attempt: machine.attempt, gone: true, ..Kept::default() };
            }
        })
        .await
}

/// Gives back by what was kept, where the provider cannot be asked.
async fn by_kept(
    testbed: &CloudTestbed,
    ctx: &Context,
    experiment: &str,
    keeper: &Keeper,
    wanted: &(dyn Fn(&str) -> bool + Sync),
) -> Result<()> {
    let known = keeper.all().await;
    let mut works: Vec<Work<'_, Result<()>>> = Vec::new();
    let tokens: Vec<Token> = known
        .iter()
        .filter(|(name, kept)| wanted(name) && !kept.gone)
        .map(|(name, kept)| Token::new(scope(experiment), name, kept.attempt))
        .collect();
    keeper.leaving(&tokens).await?;
    for (name, machine) in known.iter().filter(|(name, kept)| wanted(name) && !kept.gone) {
        works.push(Box::pin(async move {
            ctx.tell(name, Event::Deleting);
            kept(testbed, &ctx.op, experiment, name, machine).await?;
            ctx.tell(name, Event::Deleted);
            let name = name.clone();
            keeper
                .change(|all| {
                    if let Some(machine) = all.get_mut(&name) {
                        *machine = Kept { attempt: machine.attempt, gone: true, ..Kept::default() };
                    }
                })
                .await
        }));
    }
    let mut failed = all(testbed.parallel, works).await.into_iter().filter_map(Result::err);
    let Some(first) = failed.next() else { return Ok(()) };
    let left: Vec<Resource> = failed.flat_map(|e| e.leftovers().to_vec()).collect();
    Err(first.with_leftovers(left))
}

/// Gives back one machine by what was kept of it.
pub(super) async fn kept(
    testbed: &CloudTestbed,
    op: &OpContext,
    experiment: &str,
    name: &str,
    kept: &Kept,
) -> Result<()> {
    let scope = scope(experiment);
    if testbed.can().release {
        return testbed.provider.release(op, &Token::new(scope, name, kept.attempt)).await;
    }
    let begun = kept.begun.as_ref().map(|id| InstanceId::new(id.clone()));
    match kept.instance.as_ref().map(|i| i.id.clone()).or(begun) {
        Some(id) => testbed
            .provider
            .delete_instance(op, &id, &Ownership::Tagged(scope))
            .await
            .map_err(|e| e.with_leftovers([Resource::new(Resource::INSTANCE, id.as_str())])),
        None => Ok(()),
    }
    .map_err(|e| e.with("machine", request::several(&[name])))
}
