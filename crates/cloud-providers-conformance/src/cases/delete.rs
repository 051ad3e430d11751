//! Deletions.

use cloud_providers::{ErrorKind, InstanceId, OpContext, Ownership, Resource, Scope, names};

use crate::{
    Effect, Offer,
    context::{Context, ensure, refused},
};

pub(crate) async fn missing(c: &Context) {
    c.check("never-existed", never_existed(c)).await;
    c.check("deleted-before", deleted_before(c)).await;
    c.check("ids-of-another-form", odd_ids(c)).await;
}

async fn never_existed(c: &Context) -> Offer<()> {
    let (before, provider, ctx) = (c.look().await?, c.provider().await?, OpContext::new());
    let (name, id) = (names::instance_name("conformance", "never", 63)?, c.harness.missing_id());
    for ownership in [Ownership::Tagged(c.scope()), Ownership::Recorded { name }] {
        let call = provider.delete_instance(&ctx, &id, &ownership);
        let result = c.within(c.bounds.answer, "the delete of a missing instance", call).await?;
        ensure!(result.is_ok(), "with {ownership:?}: {result:?}");
    }
    c.unchanged(&before, "after deletes of a missing instance").await
}

async fn deleted_before(c: &Context) -> Offer<()> {
    let instance = c.create(&c.request()).await?;
    c.delete(&instance).await?;
    for _ in 0..2 {
        c.delete(&instance).await?;
    }
    let recorded = Ownership::Recorded { name: instance.name.clone() };
    let result = c.try_delete(&instance, &recorded).await?;
    ensure!(result.is_ok(), "as recorded: {result:?}");
    Ok(())
}

async fn odd_ids(c: &Context) -> Offer<()> {
    c.create(&c.request()).await?;
    let (before, provider, ctx) = (c.look().await?, c.provider().await?, OpContext::new());
    for id in ["", "/", "..", "../../etc", "a b", "ä", "%s", "*"] {
        let ownership = Ownership::Tagged(c.scope());
        let id = InstanceId::new(id);
        let call = provider.delete_instance(&ctx, &id, &ownership);
        let result = c.within(c.bounds.answer, "the delete of an odd id", call).await?;
        // Clouds may refuse the form; nothing may happen.
        let fine = match &result {
            Ok(()) => true,
            Err(e) => matches!(e.kind(), ErrorKind::Config | ErrorKind::NotFound),
        };
        ensure!(fine, "the id {id:?} gave {result:?}");
        c.unchanged(&before, format!("after a delete of {id:?}")).await?;
    }
    Ok(())
}

pub(crate) async fn no_leftovers(c: &Context) {
    c.check("once", once(c)).await;
    c.check("twice-at-once", twice_at_once(c)).await;
    c.check("one-of-two", one_of_two(c)).await;
}

async fn once(c: &Context) -> Offer<()> {
    let before = c.look().await?;
    let instance = c.create(&c.request()).await?;
    c.delete(&instance).await?;
    c.unchanged(&before, "when the delete returned").await
}

async fn twice_at_once(c: &Context) -> Offer<()> {
    let before = c.look().await?;
    let instance = c.create(&c.request()).await?;
    let ownership = Ownership::Tagged(c.scope());
    let (one, two, ctx) = (c.provider().await?, c.provider().await?, OpContext::new());
    for (first, second) in [(&one, &two), (&one, &one)] {
        let both = async {
            tokio::join!(
                first.delete_instance(&ctx, &instance.id, &ownership),
                second.delete_instance(&ctx, &instance.id, &ownership)
            )
        };
        let results = c.within(c.bounds.operation, "two deletes at once", both).await?;
        ensure!(results == (Ok(()), Ok(())), "two deletes at once gave {results:?}");
        c.unchanged(&before, "after two deletes at once").await?;
    }
    Ok(())
}

async fn one_of_two(c: &Context) -> Offer<()> {
    let stays = c.create(&c.request()).await?;
    let before = c.look().await?;
    let goes = c.create(&c.request()).await?;
    c.delete(&goes).await?;
    c.unchanged(&before, "after the delete of the other instance").await?;
    c.delete(&stays).await
}

pub(crate) async fn repeat(c: &Context) {
    c.check("dropped-at-moments", dropped(c)).await;
    c.check("remote-calls-fail", failing_calls(c)).await;
    c.check("instance-removed-by-hand", instance_gone(c)).await;
}

async fn dropped(c: &Context) -> Offer<()> {
    let before = c.look().await?;
    let instance = c.create(&c.request()).await?;
    let start = tokio::time::Instant::now();
    c.delete(&instance).await?;
    for moment in c.moments(start.elapsed()) {
        let request = c.request();
        let instance = c.create(&request).await?;
        let (provider, ctx, ownership) =
            (c.provider().await?, OpContext::new(), Ownership::Tagged(c.scope()));
        // Whether it was in time does not matter.
        let _ = tokio::time::timeout(moment, provider.delete_instance(&ctx, &instance.id, &ownership)).await;
        c.delete(&instance).await?;
        c.settles_to(&before, format!("a delete dropped after {moment:?} and repeated")).await?;
    }
    Ok(())
}

async fn failing_calls(c: &Context) -> Offer<()> {
    c.can(Effect::Fail)?;
    let before = c.look().await?;
    let instance = c.create(&c.request()).await?;
    let first = c.harness.calls().await?;
    c.delete(&instance).await?;
    let calls = c.harness.calls().await? - first;
    let mut failed = 0;
    for nth in c.points(calls) {
        for effect in [Effect::Fail, Effect::LoseReply].into_iter().filter(|e| c.can(*e).is_ok()) {
            let instance = c.create(&c.request()).await?;
            c.fault(nth, effect).await?;
            let result = c.try_delete(&instance, &Ownership::Tagged(c.scope())).await?;
            c.harness.clear_faults().await?;
            failed += usize::from(result.is_err());
            let when = format!("{effect:?} of call {nth} of a delete, which gave {result:?}");
            if result.is_ok() {
                c.unchanged(&before, &when).await?;
            }
            c.delete(&instance).await?;
            c.unchanged(&before, format!("{when}; after its repetition")).await?;
        }
    }
    ensure!(failed > 0, "no fault of {calls} remote calls made a delete fail");
    Ok(())
}

async fn instance_gone(c: &Context) -> Offer<()> {
    let before = c.look().await?;
    let instance = c.create(&c.request()).await?;
    c.harness.remove_instance_only(&instance.id).await?;
    c.delete(&instance).await?;
    c.unchanged(&before, "after the delete of what the instance left").await
}

pub(crate) async fn volumes_stay(c: &Context) {
    c.check("after-delete", volume_after_delete(c)).await;
    c.check("after-release", volume_after_release(c)).await;
}

async fn volume_after_delete(c: &Context) -> Offer<()> {
    c.needs("volumes", |can| can.volumes).await?;
    let mut request = c.request();
    request.spec.volumes.push(c.harness.add_volume().await?);
    c.keep(&request);
    let before = c.look().await?;
    let instance = c.create(&request).await?;
    c.delete(&instance).await?;
    c.unchanged(&before, "after the delete of an instance with a volume").await
}

async fn volume_after_release(c: &Context) -> Offer<()> {
    c.needs("volumes", |can| can.volumes && can.release).await?;
    let mut request = c.request();
    request.spec.volumes.push(c.harness.add_volume().await?);
    c.keep(&request);
    let before = c.look().await?;
    c.create(&request).await?;
    c.remove(&request, &[]).await?;
    c.unchanged(&before, "after the release of an instance with a volume").await
}

pub(crate) async fn foreign(c: &Context) {
    c.check("another-scope", another_scope(c)).await;
    c.check("without-tags", without_tags(c)).await;
    c.check("another-name", another_name(c)).await;
    c.check("part-attached-by-hand", attached_by_hand(c)).await;
}

async fn another_scope(c: &Context) -> Offer<()> {
    let instance = c.create(&c.request()).await?;
    let before = c.look().await?;
    let id = c.scope().id().to_owned();
    // Neither a leading part nor the same id of another kind is the same scope.
    let shorter = Scope::Cluster(id[..id.len() - 1].to_owned());
    for scope in [shorter, Scope::Cluster(format!("{id}0")), Scope::Experiment(id)] {
        let result = c.try_delete(&instance, &Ownership::Tagged(scope.clone())).await?;
        refused(result, &ErrorKind::Permission, &format!("a delete in the name of {scope}"))?;
        c.unchanged(&before, "after a delete in the name of another scope").await?;
    }
    Ok(())
}

async fn without_tags(c: &Context) -> Offer<()> {
    let request = c.request();
    let id = c.harness.add_foreign(&request).await?;
    let (before, provider, ctx) = (c.look().await?, c.provider().await?, OpContext::new());
    let ownership = Ownership::Tagged(c.scope());
    let call = provider.delete_instance(&ctx, &id, &ownership);
    let result = c.within(c.bounds.operation, "the delete", call).await?;
    refused(result, &ErrorKind::Permission, "a delete of an instance without our tags")?;
    c.unchanged(&before, "after a delete of an instance without our tags").await
}

async fn another_name(c: &Context) -> Offer<()> {
    let instance = c.create(&c.request()).await?;
    let before = c.look().await?;
    let shorter = instance.name[..instance.name.len() - 1].to_owned();
    for name in [format!("{}0", instance.name), shorter, String::new()] {
        let result = c.try_delete(&instance, &Ownership::Recorded { name: name.clone() }).await?;
        refused(result, &ErrorKind::Permission, &format!("a delete as {name:?} of {:?}", instance.name))?;
        c.unchanged(&before, "after a delete under another name").await?;
    }
    Ok(())
}

async fn attached_by_hand(c: &Context) -> Offer<()> {
    let before = c.look().await?;
    let instance = c.create(&c.request()).await?;
    c.harness.attach_foreign(&instance.id).await?;
    c.delete(&instance).await?;
    let now = c.look().await?;
    let stayed = now.keys().filter(|r| !before.contains_key(r)).count();
    ensure!(stayed == 1, "one thing was attached by hand, and {stayed} are there after the delete: {now:?}");
    Ok(())
}

pub(crate) async fn recorded(c: &Context) {
    c.check("our-own-by-name", own_by_name(c)).await;
    c.check("untagged-by-name", untagged_by_name(c)).await;
}

async fn own_by_name(c: &Context) -> Offer<()> {
    let before = c.look().await?;
    let instance = c.create(&c.request()).await?;
    let result = c.try_delete(&instance, &Ownership::Recorded { name: instance.name.clone() }).await?;
    ensure!(result.is_ok(), "the recorded name was refused: {result:?}");
    c.unchanged(&before, "after the delete by the recorded name").await
}

async fn untagged_by_name(c: &Context) -> Offer<()> {
    let before = c.look().await?;
    let name = names::instance_name("old", "0a1b2c3d4e5f", 63)?;
    let id = c.harness.add_untagged(&name).await?;
    // Its name begins like the other one's.
    let neighbour = c.harness.add_untagged(&format!("{name}0")).await?;
    let all = c.look().await?;
    let (provider, ctx) = (c.provider().await?, OpContext::new());
    let wrong_pods = ["old-0a1b2c3d", "ol", ""].map(|pod| Ownership::RecordedFor { pod: pod.into() });
    let wrong = [Ownership::Tagged(c.scope()), Ownership::Recorded { name: format!("{name}1") }];
    for ownership in wrong.into_iter().chain(wrong_pods) {
        let call = provider.delete_instance(&ctx, &id, &ownership);
        let result = c.within(c.bounds.operation, "the delete", call).await?;
        refused(
            result,
            &ErrorKind::Permission,
            &format!("a delete of an untagged instance with {ownership:?}"),
        )?;
        c.unchanged(&all, "after a refused delete of an untagged instance").await?;
    }
    let longer = Ownership::Recorded { name: format!("{name}0") };
    let of_pod = c.harness.add_untagged(&names::instance_name("of-pod", "0a1b2c3d4e5f", 63)?).await?;
    for (id, ownership) in [
        (&of_pod, Ownership::RecordedFor { pod: "of-pod".into() }),
        (&id, Ownership::Recorded { name: name.clone() }),
        (&neighbour, longer),
    ] {
        let call = provider.delete_instance(&ctx, id, &ownership);
        let result = c.within(c.bounds.operation, "the delete", call).await?;
        ensure!(result.is_ok(), "{ownership:?} was refused: {result:?}");
        let there = c.look().await?.contains_key(&Resource::new(Resource::INSTANCE, neighbour.as_str()));
        ensure!(id == &neighbour || there, "the instance with the longer name went, too");
    }
    c.unchanged(&before, "after the deletes of untagged instances").await
}
