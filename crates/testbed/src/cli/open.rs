//! From what the user names to a session.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use cloud_providers::{Error, ErrorKind, Result};

use super::App;
use crate::{
    Environment, Reservation, document, find,
    life::{self, Session},
    several::{self, Member},
    state::{self, Folder, Saved, Secrets, Store, provide_access},
};

/// How long machines may take to answer, where the command has no option for it.
const SSH_LIMIT: Duration = Duration::from_secs(600);

/// Reads the document.
pub(super) fn read(app: &App) -> Result<Vec<Reservation>> {
    let path = app.document();
    if !path.exists() {
        return Err(Error::new(ErrorKind::NotFound, "there is no document")
            .with("path", path.display())
            .with("mend", "`testbed new local` writes one; --file names another"));
    }
    let mut reservations = document::read(&path)?;
    if let Some(home) = app.env.variable("HOME") {
        document::expand_home(&mut reservations, Path::new(&home));
    }
    Ok(reservations)
}

/// Returns the default folder of the environment of a document.
pub(super) fn folder_of(reservations: &[Reservation]) -> Option<PathBuf> {
    let first = reservations.first()?;
    Some(first.base.join(format!("testbed_{}", first.experiment)))
}

/// Opens the provider of each reservation, and notes what is secret.
pub(super) async fn members(app: &App, reservations: Vec<Reservation>) -> Result<(Vec<Member>, Secrets)> {
    let mut members = Vec::new();
    let mut secret: Vec<(String, String)> = Vec::new();
    for reservation in reservations {
        let config = &reservation.provider;
        let found = find::find(&app.search, config).await?;
        let public = found.without_secrets(config);
        for key in config.extra.keys().filter(|key| !public.extra.contains_key(*key)) {
            secret.push((config.name.clone(), key.clone()));
        }
        let testbed = found.open(&app.search, config).await?;
        members.push((reservation, testbed));
    }
    let reservations: Vec<Reservation> = members.iter().map(|(r, _)| r.clone()).collect();
    let secrets = Secrets::of(&reservations, |provider, key| {
        secret.iter().any(|(name, secret)| *name == provider.name && secret == key)
    });
    Ok((members, secrets))
}

/// Opens the environment of the document for `up` and `init`: made when there is none.
pub(super) async fn for_up(app: &App, command: &str, force: bool, ssh_limit: Duration) -> Result<Session> {
    let path = app.document();
    let reservations = read(app)?;
    // Before anything is made, also the folder: a document that cannot work leaves nothing.
    several::check(&reservations)?;
    life::preflight(app.env.as_ref(), &reservations)?;
    let default = folder_of(&reservations).unwrap_or_default();
    let (mut members, secrets) = members(app, reservations).await?;

    let folder = Folder::new(app.folder.as_deref().map_or(default, |named| app.cwd.join(named)));
    let folder = Folder::new(std::path::absolute(folder.path()).unwrap_or_else(|_| folder.path().to_owned()));
    folder.create()?;
    let lock = folder.lock(command)?;
    let old = folder.load()?;
    for (reservation, _) in &mut members {
        provide_access(&folder, &mut reservation.access)?;
    }
    let document = std::path::absolute(&path).unwrap_or(path);
    let mut reservations: Vec<Reservation> = members.iter().map(|(r, _)| r.clone()).collect();
    // What is compared with the state is what the state holds.
    secrets.take_out(&mut reservations);
    let saved = life::Start::merge(old, Saved::new(Some(document), Environment::new(reservations)))?;
    let store = Store::open(folder, lock, saved, secrets)?;
    // Commands that follow find the environment without being told; it is no harm where they must be.
    if let Err(error) = state::point_current(&app.cwd, store.folder().path()) {
        app.ui.warn(&error.report());
    }
    Ok(session(app, members, store, force, ssh_limit))
}

/// Returns the folder of the environment that a later command is about.
pub(super) fn folder(app: &App) -> Result<Folder> {
    let default = || read(app).ok().as_deref().and_then(folder_of);
    // A document that is named leads to its own environment, whatever was worked on last.
    if let (None, Some(_)) = (&app.folder, &app.file) {
        let found = Folder::new(folder_of(&read(app)?).unwrap_or_default());
        if found.file().exists() {
            return Ok(found);
        }
    }
    state::find(&app.cwd, app.folder.as_deref(), default())
}

/// Reads the environment that a later command is about.
pub(super) fn saved(app: &App) -> Result<(Folder, Saved)> {
    let folder = folder(app)?;
    let saved = folder.load()?.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "the environment has no state")
            .with("folder", folder.path().display())
    })?;
    Ok((folder, saved))
}

/// Returns the reservations of a state with the secrets that were left out of it.
fn complete(app: &App, saved: &Saved) -> Result<Vec<Reservation>> {
    let mut reservations = saved.environment.reservations.clone();
    if saved.omitted.is_empty() {
        return Ok(reservations);
    }
    let path = match (&app.file, &saved.document) {
        (None, Some(document)) => document.clone(),
        _ => app.document(),
    };
    let keys = saved.omitted.values().flatten().cloned().collect::<Vec<_>>().join(", ");
    let document = document::read(&path).map_err(|error| {
        Error::new(
            error.kind().clone(),
            "secrets are not kept in the environment, and the document cannot be read for them",
        )
        .with("secrets", keys)
        .with("document", path.display())
        .with("mend", "put the document back, or name it with --file")
        .with_source(error)
    })?;
    Secrets::put_back(&saved.omitted, &mut reservations, &document, &path)?;
    Ok(reservations)
}

/// Opens the state alone, for a later command that changes it and needs no provider.
pub(super) fn for_state(app: &App, command: &str) -> Result<Arc<Store>> {
    let folder = folder(app)?;
    let lock = folder.lock(command)?;
    let saved = folder.load()?.ok_or_else(|| stateless(&folder))?;
    Store::resume(folder, lock, saved)
}

fn stateless(folder: &Folder) -> Error {
    Error::new(ErrorKind::NotFound, "the environment has no state").with("folder", folder.path().display())
}

/// Opens the environment for a later command that changes it.
pub(super) async fn for_later(app: &App, command: &str) -> Result<Session> {
    let folder = folder(app)?;
    let lock = folder.lock(command)?;
    let saved = folder.load()?.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "the environment has no state")
            .with("folder", folder.path().display())
    })?;
    let (members, secrets) = members(app, complete(app, &saved)?).await?;
    let store = Store::open(folder, lock, saved, secrets)?;
    Ok(session(app, members, store, false, SSH_LIMIT))
}

/// Opens the environment for `destroy`: where it is lost, that of the document, since machines are found by the
/// experiment's name.
pub(super) async fn for_destroy(app: &App) -> Result<Session> {
    let lost = match folder(app) {
        Err(error) if *error.kind() == ErrorKind::NotFound && app.folder.is_none() => error,
        Err(error) => return Err(error),
        Ok(_) => return for_later(app, "destroy").await,
    };
    if !app.document().exists() {
        return Err(lost);
    }
    let reservations = read(app)?;
    app.ui.say("there is no environment of this document: its providers are asked by the experiment's name");
    let folder = Folder::new(folder_of(&reservations).unwrap_or_default());
    let (members, secrets) = members(app, reservations.clone()).await?;
    folder.create()?;
    let lock = folder.lock("destroy")?;
    let path = app.document();
    let document = std::path::absolute(&path).unwrap_or(path);
    let store =
        Store::open(folder, lock, Saved::new(Some(document), Environment::new(reservations)), secrets)?;
    Ok(session(app, members, store, false, SSH_LIMIT))
}

/// Opens the environment for a command that only asks the providers.
pub(super) async fn for_looking(app: &App) -> Result<(Folder, Saved, Vec<Member>, Secrets)> {
    let (folder, saved) = saved(app)?;
    let (members, secrets) = members(app, complete(app, &saved)?).await?;
    Ok((folder, saved, members, secrets))
}

fn session(app: &App, members: Vec<Member>, store: Arc<Store>, force: bool, ssh_limit: Duration) -> Session {
    let progress = store.secrets().over(app.ui.progress());
    let (op, env) = (app.op.clone(), app.env.clone());
    Session { members, store, progress, op, env, force, ssh_limit }
}
