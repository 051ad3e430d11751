//! One token, one instance.

use std::time::Duration;

use cloud_providers::{ErrorKind, Instance, OpContext, Provider, Resource, Result, Scope, Token};
use tokio::time::sleep;

use crate::{
    Effect, Obstacle, Offer,
    context::{Context, Snapshot, ensure, refused},
};

pub(crate) async fn idempotent(c: &Context) {
    c.check("same-request-same-instance", same_request(c)).await;
    c.check("a-token-that-was-released-gives-a-new-instance", after_release(c)).await;
}

async fn same_request(c: &Context) -> Offer<()> {
    let (before, request) = (c.look().await?, c.request());
    let provider = c.provider().await?;
    let ctx = OpContext::new();
    let first = c.create(&request).await?;
    // Another provider value, as after a restart of the program; then the same value twice.
    let second = c.create(&request).await?;
    ensure!(first == second, "the same request gave {first:?}, then {second:?}");
    for _ in 0..2 {
        let again =
            c.within(c.bounds.operation, "the create", provider.create_instance(&ctx, &request)).await?;
        ensure!(again.as_ref() == Ok(&first), "the same request gave {first:?}, then {again:?}");
    }
    let id = c.one_instance(&before, "after four creates").await?;
    ensure!(id == first.id.as_str(), "the instance {id} is not the one that was returned: {first:?}");
    let other = c.create(&c.request()).await?;
    ensure!(other.id != first.id, "another token got the same instance {}", first.id);
    ensure!(
        other.addresses.iter().all(|a| !first.addresses.contains(a)),
        "two instances have the same address: {first:?}, {other:?}"
    );
    Ok(())
}

async fn after_release(c: &Context) -> Offer<()> {
    let (before, request) = (c.look().await?, c.request());
    let first = c.create(&request).await?;
    c.delete(&first).await?;
    c.create(&request).await?;
    c.one_instance(&before, "after create, delete and create").await?;
    Ok(())
}

pub(crate) async fn race(c: &Context) {
    c.check("one-process", one_process(c)).await;
    c.check("two-processes", two_processes(c)).await;
    c.check("two-processes-one-later", one_later(c)).await;
    c.check("tokens-do-not-disturb-each-other", other_tokens(c)).await;
}

async fn one_process(c: &Context) -> Offer<()> {
    let provider = c.provider().await?;
    two_at_once(c, &*provider, &*provider, Duration::ZERO).await
}

async fn two_processes(c: &Context) -> Offer<()> {
    let (one, two) = (c.provider().await?, c.provider().await?);
    two_at_once(c, &*one, &*two, Duration::ZERO).await
}

async fn one_later(c: &Context) -> Offer<()> {
    let profile = c.profile().await?;
    for moment in c.moments(profile.took) {
        let (one, two) = (c.provider().await?, c.provider().await?);
        two_at_once(c, &*one, &*two, moment).await?;
    }
    Ok(())
}

async fn two_at_once(c: &Context, one: &dyn Provider, two: &dyn Provider, offset: Duration) -> Offer<()> {
    let (before, request, ctx) = (c.look().await?, c.request(), OpContext::new());
    let late = async {
        sleep(offset).await;
        two.create_instance(&ctx, &request).await
    };
    // One may wait for the other.
    let limit = c.bounds.operation * 2;
    let both = async { tokio::join!(one.create_instance(&ctx, &request), late) };
    let results: [Result<Instance>; 2] = c.within(limit, "two creates at once", both).await?.into();
    let when = format!("two creates of one token, the second {offset:?} later, gave {results:?}");
    ensure!(results.iter().any(Result::is_ok), "{when}");
    let again = c.create(&request).await?;
    for instance in results.iter().flatten() {
        ensure!(*instance == again, "{when}, and a third one {again:?}");
    }
    let id = c.one_instance(&before, &when).await?;
    ensure!(id == again.id.as_str(), "{when}, and {id} is there");
    c.remove(&request, &[Resource::new(Resource::INSTANCE, id)]).await?;
    c.unchanged(&before, format!("{when}; after the removal")).await
}

async fn other_tokens(c: &Context) -> Offer<()> {
    let (provider, ctx) = (c.provider().await?, OpContext::new());
    let requests = [c.request(), c.request(), c.request()];
    let create = |i: usize| provider.create_instance(&ctx, &requests[i]);
    let all = async { tokio::join!(create(0), create(1), create(2)) };
    let results: [Result<Instance>; 3] =
        c.within(c.bounds.operation * 3, "three creates at once", all).await?.into();
    let mut seen: Vec<&Instance> = Vec::new();
    for result in &results {
        let instance =
            result.as_ref().map_err(|e| Obstacle::failed(format!("one of three failed: {e:?}")))?;
        let shared = seen
            .iter()
            .any(|o| o.id == instance.id || o.addresses.iter().any(|a| instance.addresses.contains(a)));
        ensure!(!shared, "two tokens share an instance or an address: {results:?}");
        seen.push(instance);
    }
    Ok(())
}

pub(crate) async fn lost_reply(c: &Context) {
    c.check("at-each-remote-call", lost_replies(c)).await;
}

async fn lost_replies(c: &Context) -> Offer<()> {
    c.can(Effect::LoseReply)?;
    let profile = c.profile().await?;
    for nth in c.points(profile.calls()?) {
        let (before, request) = (c.look().await?, c.request());
        let struck = c.fault(nth, Effect::LoseReply).await?;
        let first = c.try_create(&OpContext::new(), &request).await?;
        ensure!(struck.is_cancelled(), "call {nth} was not made: {first:?}");
        let when = format!("the reply of call {nth} was lost and the create gave {first:?}");
        let second = c.try_create(&OpContext::new(), &request).await?;
        let second = second.map_err(|e| Obstacle::failed(format!("{when}; its repetition failed: {e:?}")))?;
        if let Ok(first) = first {
            ensure!(first == second, "{when}; its repetition gave {second:?}");
        }
        c.one_instance(&before, &when).await?;
        c.delete(&second).await?;
        c.unchanged(&before, format!("{when}; after the delete")).await?;
    }
    Ok(())
}

pub(crate) async fn other_request(c: &Context) {
    c.check("conflict-and-nothing-changes", other_requests(c)).await;
}

async fn other_requests(c: &Context) -> Offer<()> {
    let request = c.request();
    let first = c.create(&request).await?;
    let before = c.look().await?;
    let mut other_holder = request.clone();
    other_holder.holder = "node-2".into();
    let mut other_size = request.clone();
    other_size.spec.memory_mib += 64;
    let other_data = request.clone().with_user_data("#cloud-config\n# another one\n");
    for (what, other) in [("holder", other_holder), ("size", other_size), ("user data", other_data)] {
        let result = c.try_create(&OpContext::new(), &other).await?;
        refused(result, &ErrorKind::Conflict, &format!("a used token with another {what}"))?;
        c.unchanged(&before, format!("after a used token with another {what}")).await?;
    }
    let again = c.create(&request).await?;
    ensure!(again == first, "after the conflicts the first request gives {again:?} and not {first:?}");
    Ok(())
}

pub(crate) async fn foreign_name(c: &Context) {
    c.check("untagged", untagged_name(c)).await;
    c.check("part-in-the-way", part_in_the_way(c)).await;
    c.check("another-scope", name_of_another_scope(c)).await;
    c.check("another-attempt", name_of_another_attempt(c)).await;
}

async fn untagged_name(c: &Context) -> Offer<()> {
    let request = c.request();
    let id = c.harness.add_foreign(&request).await?;
    let before = c.look().await?;
    let result = c.try_create(&OpContext::new(), &request).await?;
    left_alone(c, &before, id.as_str(), result).await
}

async fn part_in_the_way(c: &Context) -> Offer<()> {
    let request = c.request();
    c.harness.add_obstacle(&request).await?;
    let before = c.look().await?;
    let result = c.try_create(&OpContext::new(), &request).await?;
    refused(result, &ErrorKind::Conflict, "a create a part of whose name is taken")?;
    c.unchanged(&before, "after a create a part of whose name was taken").await?;
    c.remove(&request, &[]).await?;
    c.unchanged(&before, "after a release of a token a part of whose name was taken").await
}

async fn name_of_another_scope(c: &Context) -> Offer<()> {
    let first = c.request();
    let other = Scope::Cluster(format!("{}-other", c.scope().id()));
    same_name(c, &first, Token::new(other, first.token.unit.clone(), 1)).await
}

async fn name_of_another_attempt(c: &Context) -> Offer<()> {
    let first = c.request();
    same_name(c, &first, Token::new(c.scope(), first.token.unit.clone(), 2)).await
}

async fn same_name(c: &Context, first: &cloud_providers::CreateRequest, token: Token) -> Offer<()> {
    let instance = c.create(first).await?;
    let before = c.look().await?;
    let second = c.request_for(token);
    let result = c.try_create(&OpContext::new(), &second).await?;
    left_alone(c, &before, instance.id.as_str(), result).await
}

/// Checks that an instance in the way was neither adopted nor removed.
async fn left_alone(c: &Context, before: &Snapshot, id: &str, result: Result<Instance>) -> Offer<()> {
    match result {
        Ok(made) if c.harness.names_are_unique() => {
            Err(Obstacle::failed(format!("the name of {id} was taken, and yet the create gave {made:?}")))
        }
        Ok(made) => {
            ensure!(made.id.as_str() != id, "the instance {id} of somebody else was adopted");
            let there = c.look().await?.contains_key(&Resource::new(Resource::INSTANCE, id));
            ensure!(there, "the instance {id} of somebody else is gone");
            Ok(())
        }
        Err(error) => {
            refused::<()>(Err(error), &ErrorKind::Conflict, "a create whose name is taken")?;
            c.unchanged(before, "after a create whose name was taken").await
        }
    }
}
