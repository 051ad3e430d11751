//! Configuration.

use std::ffi::OsString;

use cloud_providers::{
    Capabilities, Cloud, ErrorKind, MapEnv, OpContext, OptionKind, OptionSpec, Ownership, clap,
};

use crate::{
    Obstacle, Offer,
    context::{Context, ensure},
};

/// Text that is no value of any typed option.
const NONSENSE: &str = "not-a-value";

pub(crate) async fn no_globals(c: &Context) {
    c.check("settings", settings_apart(c)).await;
    c.check("accounts", accounts_apart(c)).await;
}

async fn settings_apart(c: &Context) -> Offer<()> {
    let fresh = format!("{:?}", c.harness.cloud().settings().parse_all().0.shown());
    let mut one = c.harness.cloud();
    one.load_env(&c.environment(&[]))?;
    let loaded = format!("{:?}", one.settings().parse_all().0.shown());
    let mut two = c.harness.cloud();
    let other = format!("{:?}", two.settings().parse_all().0.shown());
    ensure!(other == fresh, "a second value begins with {other}, a first one with {fresh}");
    two.load_env(&MapEnv::default())?;
    let _ = two.problems();
    let after = format!("{:?}", one.settings().parse_all().0.shown());
    ensure!(
        after == loaded,
        "the first value says {after} once the second one was loaded, before that {loaded}"
    );
    Ok(())
}

async fn accounts_apart(c: &Context) -> Offer<()> {
    let there = c.harness.other_account().await?;
    let (ours, theirs) = (c.provider().await?, there.provider().await?);
    let request = c.request();
    let ctx = OpContext::new();
    let (here_before, there_before) = (c.look().await?.len(), there.leftovers().await?.len());
    let first = c.within(c.bounds.operation, "the create", ours.create_instance(&ctx, &request)).await??;
    ensure!(
        there.leftovers().await?.len() == there_before,
        "a create in one account made something in the other"
    );
    let here = c.look().await?;
    let other = there.request(request.clone());
    let second = c.within(c.bounds.operation, "the create", theirs.create_instance(&ctx, &other)).await??;
    c.unchanged(&here, "after a create in the other account").await?;
    if theirs.capabilities().list_owned {
        let list = theirs.list_owned(&ctx, &c.scope()).await?;
        ensure!(list.entries.len() == 1, "one instance is in the other account: {list:?}");
    }
    let ownership = Ownership::Tagged(c.scope());
    c.within(c.bounds.operation, "the delete", theirs.delete_instance(&ctx, &second.id, &ownership))
        .await??;
    c.unchanged(&here, "after a delete in the other account").await?;
    c.within(c.bounds.operation, "the delete", ours.delete_instance(&ctx, &first.id, &ownership)).await??;
    let left = (c.look().await?.len(), there.leftovers().await?.len());
    let cleaned = there.clean_up().await;
    ensure!(left == (here_before, there_before), "the accounts hold {left:?} things after both deletes");
    cleaned
}

pub(crate) async fn strict(c: &Context) {
    c.check("variables", bad_variables(c)).await;
    c.check("flags", bad_flags(c)).await;
    c.check("empty-counts-as-not-set", empty_variables(c)).await;
    c.check("precedence", precedence(c)).await;
}

fn is_typed(spec: &OptionSpec) -> bool {
    !matches!(spec.kind, OptionKind::Text | OptionKind::List)
}

fn specs(c: &Context) -> &'static [OptionSpec] {
    c.harness.cloud().settings().specs()
}

fn typed(c: &Context) -> Offer<Vec<&'static OptionSpec>> {
    let all: Vec<&OptionSpec> = specs(c).iter().filter(|s| is_typed(s)).collect();
    if all.is_empty() { Err(Obstacle::unsupported("typed options")) } else { Ok(all) }
}

/// Checks the problems that a bad value gives, before and at the making of the provider.
async fn told(mut cloud: Box<dyn Cloud>, spec: &OptionSpec, key: &str) -> Offer<()> {
    let problems = cloud.problems().join("\n");
    let error = match cloud.new_provider().await {
        Ok(_) => return Err(Obstacle::failed(format!("{key} was {NONSENSE:?}, and that was accepted"))),
        Err(error) => error,
    };
    ensure!(*error.kind() == ErrorKind::Config, "{key} is {NONSENSE:?}: {error:?}");
    for text in [problems, error.to_string()] {
        ensure!(text.contains(key), "{key} is not named in {text:?}");
        let form = match spec.kind {
            // It tells which of the pairs is none.
            OptionKind::Map => "key=value".to_owned(),
            kind => kind.expected(),
        };
        ensure!(text.contains(&form), "{key}: the expected form is not told in {text:?}");
        ensure!(
            text.contains(NONSENSE) != spec.secret,
            "{key}: the value must be told unless secret: {text:?}"
        );
    }
    Ok(())
}

async fn bad_variables(c: &Context) -> Offer<()> {
    for spec in typed(c)? {
        let Some(name) = spec.env else { continue };
        let mut cloud = c.harness.cloud();
        cloud.load_env(&c.environment(&[(name.to_owned(), NONSENSE.to_owned())]))?;
        told(cloud, spec, name).await?;
    }
    Ok(())
}

async fn bad_flags(c: &Context) -> Offer<()> {
    for spec in typed(c)? {
        let mut cloud = c.harness.cloud();
        let args = [OsString::from(format!("-{}={NONSENSE}", spec.flag))];
        cloud.parse_cmd(clap::Command::new("x"), &args)?;
        cloud.load_env(&c.environment(&[]))?;
        told(cloud, spec, &format!("-{}", spec.flag)).await?;
    }
    let mut cloud = c.harness.cloud();
    cloud.parse_cmd(clap::Command::new("x"), &["-no-such-flag=1".into()])?;
    cloud.load_env(&c.environment(&[]))?;
    let text = cloud.new_provider().await.err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(text.contains("no-such-flag"), "an unknown flag was passed over: {text:?}");
    Ok(())
}

async fn empty_variables(c: &Context) -> Offer<()> {
    let mut without = c.harness.cloud();
    without.load_env(&c.environment(&[]))?;
    let set: Vec<String> = c.harness.variables().into_iter().map(|(name, _)| name).collect();
    let unset = specs(c).iter().filter_map(|s| s.env).filter(|name| !set.iter().any(|s| s == name));
    let empty: Vec<(String, String)> = unset.map(|name| (name.to_owned(), String::new())).collect();
    let mut with = c.harness.cloud();
    with.load_env(&c.environment(&empty))?;
    let (one, two) = (without.settings().parse_all(), with.settings().parse_all());
    ensure!(one.0.shown() == two.0.shown(), "empty variables change values: {:?}, {:?}", one.0, two.0);
    ensure!(without.problems() == with.problems(), "empty variables are problems: {:?}", with.problems());
    Ok(())
}

async fn precedence(c: &Context) -> Offer<()> {
    let plain = |spec: &&OptionSpec| spec.env.is_some() && !spec.secret;
    let of_kind = |kind| specs(c).iter().filter(plain).find(move |s| s.kind == kind);
    let options = [of_kind(OptionKind::List), of_kind(OptionKind::Text)];
    ensure!(options.iter().any(Option::is_some), "there is neither a list nor a text among the options");
    for spec in options.into_iter().flatten() {
        let mut cloud = c.harness.cloud();
        let args = [OsString::from(format!("-{}=from-flag", spec.flag))];
        cloud.parse_cmd(clap::Command::new("x"), &args)?;
        let name = spec.env.unwrap_or_default().to_owned();
        cloud.load_env(&c.environment(&[(name, "from-variable,another".to_owned())]))?;
        let values = cloud.settings().parse_all().0;
        let got = match spec.kind {
            OptionKind::List => values.list(spec.flag),
            _ => vec![values.text(spec.flag)],
        };
        ensure!(got == ["from-flag"], "{}: the flag must replace the variable: {got:?}", spec.flag);
    }
    Ok(())
}

pub(crate) async fn all_problems(c: &Context) {
    c.check("every-bad-key-at-once", every_bad_key(c)).await;
    c.check("nothing-happens", nothing_happens(c)).await;
}

/// Returns variables that are all wrong, and those of them that must be named.
fn all_wrong(c: &Context) -> (Vec<(String, String)>, Vec<String>) {
    let own = c.harness.bad_variables();
    let mut variables = Vec::new();
    let mut keys: Vec<String> = own.iter().map(|(key, _)| key.clone()).collect();
    for spec in specs(c) {
        let Some(name) = spec.env else { continue };
        if own.iter().any(|(key, _)| key == name) {
            continue;
        }
        if is_typed(spec) {
            variables.push((name.to_owned(), NONSENSE.to_owned()));
            keys.push(name.to_owned());
        } else if spec.required && spec.default.is_none() {
            keys.push(name.to_owned());
        }
    }
    variables.extend(own);
    (variables, keys)
}

async fn every_bad_key(c: &Context) -> Offer<()> {
    let (variables, keys) = all_wrong(c);
    if keys.len() < 2 {
        return Err(Obstacle::unsupported("two options that can be wrong"));
    }
    let mut cloud = c.harness.cloud();
    cloud.load_env(&MapEnv::new(variables))?;
    let error = match cloud.new_provider().await {
        Ok(_) => return Err(Obstacle::failed(format!("{keys:?} are all wrong, and that was accepted"))),
        Err(error) => error,
    };
    ensure!(*error.kind() == ErrorKind::Config, "the kind is {}: {error:?}", error.kind());
    let text = error.to_string();
    let untold: Vec<&String> = keys.iter().filter(|key| !text.contains(key.as_str())).collect();
    ensure!(untold.is_empty(), "{untold:?} are wrong, too, and not named in {text:?}");
    Ok(())
}

async fn nothing_happens(c: &Context) -> Offer<()> {
    let before = c.look().await?;
    let calls = c.harness.calls().await.ok();
    let mut cloud = c.harness.cloud();
    cloud.load_env(&MapEnv::new(all_wrong(c).0))?;
    let _: Option<Capabilities> = cloud.new_provider().await.ok().map(|p| p.capabilities());
    let later = c.harness.calls().await.ok();
    ensure!(calls == later, "a bad configuration made remote calls: {calls:?}, then {later:?}");
    c.unchanged(&before, "after a bad configuration").await
}
