//! Tags.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use cloud_providers::{CreateRequest, ErrorKind, Ownership, Resource, Scope, Token, tags};

use crate::{
    Effect, Found, Obstacle, Offer,
    context::{Context, Snapshot, ensure},
    interrupt::{Cut, Recorder, Way},
};

type Tags = BTreeMap<String, String>;

/// Returns the tags of a thing, or of what it is a part of.
fn tags_of<'a>(found: &'a Found, all: &'a Snapshot) -> Option<&'a Tags> {
    found.tags.as_ref().or_else(|| all.get(found.part_of.as_ref()?)?.tags.as_ref())
}

/// Returns what came since `before` with its tags; skips the check when the harness shows no tags at all.
fn new_with_tags(before: &Snapshot, now: &Snapshot) -> Offer<Vec<(Resource, Tags)>> {
    let new: Vec<&Found> = now.values().filter(|f| !before.contains_key(&f.resource)).collect();
    if !new.is_empty() && new.iter().all(|f| tags_of(f, now).is_none()) {
        return Err(Obstacle::unsupported("a look at tags"));
    }
    Ok(new.into_iter().map(|f| (f.resource.clone(), tags_of(f, now).cloned().unwrap_or_default())).collect())
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Checks that the tags are those of the request.
fn check_tags(resource: &Resource, found: &Tags, request: &CreateRequest, since: u64) -> Offer<()> {
    for (key, value) in tags::for_request(request, 0) {
        let got = found.get(key);
        if key == tags::CREATED {
            let created = got.and_then(|t| t.parse::<u64>().ok()).unwrap_or_default();
            // Clocks of hosts differ a little.
            let fits = (since.saturating_sub(120)..=unix_now() + 120).contains(&created);
            ensure!(fits, "{resource} was made now, and {key} is {got:?}");
        } else {
            ensure!(got == Some(&value), "{resource} has {key} = {got:?}, expected {value:?}");
        }
    }
    Ok(())
}

pub(crate) async fn on_everything(c: &Context) {
    c.check("of-a-whole-instance", whole(c)).await;
    c.check("at-each-record", from_birth(c)).await;
    c.check("cut-at-each-remote-call", cut_off(c)).await;
}

async fn whole(c: &Context) -> Offer<()> {
    let (before, request, since) = (c.look().await?, c.request(), unix_now());
    c.create(&request).await?;
    let new = new_with_tags(&before, &c.look().await?)?;
    ensure!(!new.is_empty(), "nothing was made");
    new.iter().try_for_each(|(resource, found)| check_tags(resource, found, &request, since))
}

async fn from_birth(c: &Context) -> Offer<()> {
    let (before, request, since) = (c.look().await?, c.request(), unix_now());
    let recorder = Recorder::looking(c.harness.clone());
    let result = c.try_create(&recorder.context(), &request).await?;
    result.map_err(|e| Obstacle::failed(format!("the create failed: {e:?}")))?;
    for (found, _) in recorder.looks() {
        let now: Snapshot = found.into_iter().map(|f| (f.resource.clone(), f)).collect();
        for (resource, found) in new_with_tags(&before, &now)? {
            check_tags(&resource, &found, &request, since)?;
        }
    }
    Ok(())
}

async fn cut_off(c: &Context) -> Offer<()> {
    c.can(Effect::HangAfter)?;
    let profile = c.profile().await?;
    for nth in c.points(profile.calls()?) {
        let (before, request, since) = (c.look().await?, c.request(), unix_now());
        let (_, kept) = c.cut(&request, &Cut::Call(nth, Effect::HangAfter), Way::Drop, &profile).await?;
        c.harness.clear_faults().await?;
        for (resource, found) in new_with_tags(&before, &c.still().await?)? {
            let checked = check_tags(&resource, &found, &request, since);
            checked.map_err(|e| Obstacle::failed(format!("cut off at call {nth}: {e}")))?;
        }
        c.remove(&request, &kept).await?;
    }
    Ok(())
}

pub(crate) async fn plain_values(c: &Context) {
    c.check("of-any-text", any_text(c)).await;
}

async fn any_text(c: &Context) -> Offer<()> {
    let scope = Scope::Cluster(format!("{} Ä/ü_{}", c.scope().id(), "x".repeat(80)));
    let (before, since) = (c.look().await?, unix_now());
    let mut request = c.request();
    request.token = Token::new(scope.clone(), format!("Unit {} ß", request.token.unit), 1);
    request.holder = format!("Node.Example_1 {}", "ö".repeat(60));
    request.unit.id = request.token.unit.clone();
    request.unit.name_hint = "My.Pod_ä".into();
    c.keep(&request);
    let instance = c.create(&request).await?;
    for (resource, found) in new_with_tags(&before, &c.look().await?)? {
        check_tags(&resource, &found, &request, since)?;
        let readable = [tags::TOKEN_TEXT, tags::HOLDER_TEXT, tags::UNIT_TEXT];
        for (key, value) in &found {
            let Some(word) = key.strip_prefix(tags::PREFIX) else { continue };
            ensure!(tags::is_plain(word), "{resource} has the key {key:?}");
            let free = readable.contains(&key.as_str());
            ensure!(free || tags::is_plain(value), "{resource} has {key} = {value:?}");
        }
        if let Some(text) = found.get(tags::TOKEN_TEXT) {
            ensure!(*text == request.token.to_string(), "{resource} has {} = {text:?}", tags::TOKEN_TEXT);
        }
    }
    // What the tags say is understood again.
    let result = c.try_delete(&instance, &Ownership::Tagged(scope)).await?;
    ensure!(result.is_ok(), "the scope is not recognised: {result:?}");
    c.unchanged(&before, "after the delete of an instance with odd names").await
}

pub(crate) async fn user_tags(c: &Context) {
    c.check("prefix-is-refused", prefix_is_refused(c)).await;
    c.check("others-are-set", others_are_set(c)).await;
}

async fn prefix_is_refused(c: &Context) -> Offer<()> {
    let variable = c.harness.user_tags_variable()?;
    for key in ["peerpod-scope", "PeerPod-x", "PEERPOD-TOKEN"] {
        let mut cloud = c.harness.cloud();
        cloud.load_env(&c.environment(&[(variable.clone(), format!("team=a,{key}=b"))]))?;
        match cloud.new_provider().await {
            Ok(_) => return Err(Obstacle::failed(format!("a user tag {key} was accepted"))),
            Err(error) => {
                let told = *error.kind() == ErrorKind::Config && error.report().contains(key);
                ensure!(told, "a user tag {key} is refused with {error:?}");
            }
        }
    }
    Ok(())
}

async fn others_are_set(c: &Context) -> Offer<()> {
    let variable = c.harness.user_tags_variable()?;
    let (before, request, since) = (c.look().await?, c.request(), unix_now());
    let mut cloud = c.harness.cloud();
    cloud.load_env(&c.environment(&[(variable, "team=a".into())]))?;
    let provider = cloud.new_provider().await?;
    let ctx = cloud_providers::OpContext::new();
    let result = c.within(c.bounds.operation, "the create", provider.create_instance(&ctx, &request)).await?;
    result.map_err(|e| Obstacle::failed(format!("the create failed: {e:?}")))?;
    let new = new_with_tags(&before, &c.look().await?)?;
    for (resource, found) in &new {
        check_tags(resource, found, &request, since)?;
    }
    let set =
        new.iter().any(|(r, t)| r.kind == Resource::INSTANCE && t.get("team").is_some_and(|v| v == "a"));
    ensure!(set, "the user's tag is not on the instance: {new:?}");
    Ok(())
}
