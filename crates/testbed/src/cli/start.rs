//! From nothing to machines, and back.

use std::{collections::BTreeSet, io::Write as _, path::Path, time::Duration};

use clap::ArgMatches;
use cloud_providers::{Error, ErrorKind};
use serde_json::json;

use super::{App, failure::Failure, open, output::table};
use crate::{
    Context, ProviderConfig, document, find,
    life::{self, Extent},
    several,
    state::{Folder, pretend_access},
};

pub(super) async fn new(app: &App, matches: &ArgMatches) -> Result<(), Failure> {
    let provider = matches.get_one::<String>("provider").map_or("", String::as_str);
    let text = match document::sample(provider) {
        Ok(text) => text,
        // It may be an executable, which is asked for its keys; the finder's error says where was looked.
        Err(_) => {
            let found = find::find(&app.search, &ProviderConfig::new(provider)).await?;
            document::sample_of(&found.name, &found.summary, &found.keys)
        }
    };
    let to = matches.get_one::<std::path::PathBuf>("to").map_or(Path::new("-"), |path| path.as_path());
    if to == Path::new("-") {
        app.ui.raw(&text);
        return Ok(());
    }
    let path = app.cwd.join(to);
    let written =
        std::fs::OpenOptions::new().write(true).create_new(true).open(&path).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Error::config("there is such a file already, and it was left as it is")
                .with("path", path.display())
                .with("mend", "name another file, or - to print the sample")
        }
        _ => Error::config("cannot write the sample").with("path", path.display()).with_source(error),
    })?;
    let text = format!("{} is written; `testbed up` makes what it says", path.display());
    app.ui.result(json!({ "path": path }), &text);
    Ok(())
}

pub(super) async fn check(app: &App) -> Result<(), Failure> {
    let reservations = open::read(app)?;
    several::check(&reservations)?;
    life::preflight(app.env.as_ref(), &reservations)?;
    let (members, _) = open::members(app, reservations).await?;
    let machines: usize = members.iter().map(|(r, _)| r.machines.len()).sum();
    let providers: Vec<&str> = members.iter().map(|(r, _)| r.provider.name.as_str()).collect();
    let experiment = members.first().map_or("", |(r, _)| r.experiment.as_str());
    let value =
        json!({ "result": "ok", "experiment": experiment, "machines": machines, "providers": providers });
    app.ui.answer(&value, || {
        format!("ok: experiment {experiment}, {machines} machines of {}\n", providers.join(", "))
    });
    Ok(())
}

pub(super) async fn plan(app: &App) -> Result<(), Failure> {
    let reservations = open::read(app)?;
    several::check(&reservations)?;
    life::preflight(app.env.as_ref(), &reservations)?;
    let default = open::folder_of(&reservations).unwrap_or_default();
    let (mut members, secrets) = open::members(app, reservations).await?;
    let folder = Folder::new(app.folder.as_deref().map_or(default, |named| app.cwd.join(named)));
    for (reservation, _) in &mut members {
        pretend_access(&folder, &mut reservation.access)?;
    }
    // What providers kept makes them find their machines again; a folder is not made for a look.
    let state = folder.load()?.map(|saved| saved.environment.state).unwrap_or_default();
    let contexts = |name: &str| {
        let mut context = Context::new(folder.of_provider(name));
        context.op = app.op.clone();
        context.state = state.get(name).cloned().unwrap_or_default();
        context
    };
    let plan = several::plan(&members, &contexts).await.map_err(|error| secrets.blank_error(error))?;
    app.ui.answer(&plan, || {
        let rows: Vec<Vec<String>> = plan
            .machines
            .iter()
            .map(|m| {
                let what = if m.exists { "is there" } else { "is made" };
                vec![m.name.clone(), what.into(), m.what.clone(), m.roles.join(",")]
            })
            .collect();
        let mut text = table(&["MACHINE", "PLAN", "WHAT", "ROLES"], &rows);
        plan.notes.iter().for_each(|note| text.push_str(&format!("note: {note}\n")));
        text
    });
    Ok(())
}

pub(super) async fn up(app: &App, matches: &ArgMatches) -> Result<(), Failure> {
    let limit = matches.get_one::<Duration>("ssh-timeout").copied().unwrap_or(Duration::from_secs(600));
    let extent = Extent::Up { again: matches.get_flag("provision") };
    raise(app, "up", matches.get_flag("force-deploy"), limit, extent).await
}

pub(super) async fn init(app: &App, matches: &ArgMatches) -> Result<(), Failure> {
    raise(app, "init", matches.get_flag("force-deploy"), Duration::from_secs(600), Extent::Init).await
}

async fn raise(
    app: &App,
    command: &str,
    force: bool,
    limit: Duration,
    extent: Extent,
) -> Result<(), Failure> {
    let session = open::for_up(app, command, force, limit).await?;
    let folder = session.store.folder().path().to_owned();
    let done = life::up(&session, extent).await.map_err(|error| {
        let hint = match error.kind() {
            ErrorKind::Capacity { .. } | ErrorKind::Quota => {
                "ask for fewer machines, or say with `min` or `role_distribution: lenient` how few will do"
            }
            _ => "mend the cause and run `testbed up` again: it goes on; `testbed destroy` gives everything back",
        };
        Failure::from(error).hint(hint)
    })?;
    let saved = session.store.saved();
    let obtained = &saved.environment.obtained;
    if !done.unwanted.is_empty() {
        app.ui.warn(&format!(
            "the document no longer asks for {}, which stay until `testbed destroy`",
            done.unwanted.join(", ")
        ));
    }
    for (machine, reason) in &obtained.missing {
        app.ui.warn(&format!("{machine} is not there: {reason}"));
    }
    let hosts: Vec<&str> = obtained.hosts.iter().map(|host| host.alias.as_str()).collect();
    let value = json!({
        "environment": folder,
        "phase": saved.environment.phase,
        "machines": hosts,
        "made": done.made,
        "missing": obtained.missing,
        "unwanted": done.unwanted,
        "provisioned": done.provisioned,
    });
    let made = match done.made.len() {
        0 => "all were there already".into(),
        n if n == hosts.len() => "all are new".into(),
        n => format!("{n} are new"),
    };
    let provisioned = match (extent, done.provisioned) {
        (Extent::Up { again: false }, false) => "; nothing was left to provision (--provision does it again)",
        _ => "",
    };
    let next = hosts.first().map(|host| format!("\nlog in with `testbed ssh {host}`")).unwrap_or_default();
    app.ui.result(value, &format!("{} machines are there, {made}{provisioned}{next}", hosts.len()));
    Ok(())
}

pub(super) async fn destroy(app: &App, matches: &ArgMatches) -> Result<(), Failure> {
    let again = "run `testbed destroy` again: it goes on where this stopped";
    if matches.get_flag("soft") {
        let session = open::for_later(app, "destroy --soft").await?;
        life::soft(&session).await.map_err(|error| Failure::from(error).hint(again))?;
        let left = session.store.saved().environment.obtained.hosts.len();
        app.ui.result(json!({ "soft": true, "machines": left }), &format!("done; {left} machines are kept"));
        return Ok(());
    }
    let session = open::for_destroy(app).await?;
    let unproven = life::destroy(&session, matches.get_flag("no-hooks"))
        .await
        .map_err(|error| Failure::from(error).hint(again))?;
    let providers: BTreeSet<&str> = session.members.iter().map(|(r, _)| r.provider.name.as_str()).collect();
    let proven: Vec<&&str> = providers.iter().filter(|name| !unproven.iter().any(|u| u == **name)).collect();
    let text = if unproven.is_empty() {
        "everything is given back; the providers say that nothing is left".to_owned()
    } else {
        format!(
            "everything that was known is given back; {} cannot say whether anything is left",
            unproven.join(", ")
        )
    };
    app.ui.result(json!({ "soft": false, "proven": proven, "unproven": unproven }), &text);
    Ok(())
}
