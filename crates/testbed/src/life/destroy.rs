//! The end of an experiment.

use std::collections::BTreeMap;

use cloud_providers::Result;

use super::Session;
use crate::{Features, Obtained, Phase, Point, emulate, several, ssh::Remote, state::Through};

/// Gives back everything, and proves with the providers that nothing is left.
///
/// Nothing there is success. The hooks of the point `destroy` run first where machines were there; one that fails stops
/// the destruction, unless `regardless`.
///
/// # Errors
///
/// What is still there is in [`cloud_providers::Error::leftovers`]; the state says so, too, and the next call goes on.
pub async fn destroy(session: &Session, regardless: bool) -> Result<Vec<String>> {
    let result = Box::pin(hard(session, regardless)).await;
    result.map_err(|error| session.keep_error(error))
}

async fn hard(session: &Session, regardless: bool) -> Result<Vec<String>> {
    session.prepare()?;
    let saved = session.store.saved();
    // Once it was begun, machines may be gone that a hook would speak to.
    let reached = (Phase::Initialised..=Phase::Ready).contains(&saved.environment.phase);
    if reached
        && !saved.environment.obtained.hosts.is_empty()
        && let Err(error) = session.hooks(Point::Destroy).await
    {
        session.op.check()?;
        if !regardless {
            return Err(error.with("mend", "mend the hook, or destroy without it: --no-hooks"));
        }
        session.note(format!("passed over: {}", error.report()));
    }
    session.enter(Phase::Destroying)?;
    let contexts = |name: &str| session.context(name);
    several::destroy(&session.members, &contexts, &session.environment()).await?;
    session.store.update(|saved| {
        saved.environment.phase = Phase::Destroyed;
        saved.environment.obtained = Obtained::default();
        saved.outlived = saved.environment.state.clone();
        // What providers keep beyond the end stays: a cloud replays the token of a machine that is gone, and only the
        // number of its attempt tells the next machine of that name apart.
        saved.environment.last_error = None;
        saved.through = Through::default();
        saved.emulated.clear();
    })?;
    session.write_files(&[])?;
    let asks = |features: Features| features.proves_empty;
    let unproven = session.members.iter().filter(|(_, testbed)| !asks(testbed.features()));
    Ok(unproven.map(|(reservation, _)| reservation.provider.name.clone()).collect())
}

/// Undoes what was done on and around the machines, and keeps them: the emulation goes, hooks of the point `destroy` run,
/// addresses are given back to the pools. The next `up` provisions again.
///
/// # Errors
///
/// The first failure; the next call goes on.
pub async fn soft(session: &Session) -> Result<()> {
    let result = Box::pin(softly(session)).await;
    result.map_err(|error| session.keep_error(error))
}

async fn softly(session: &Session) -> Result<()> {
    session.prepare()?;
    let saved = session.store.saved();
    if !saved.emulated.is_empty() {
        let remote = Remote::new(session.env.as_ref(), session.store.folder())?;
        emulate::clear(&session.op, &remote, &session.store, &session.progress).await?;
    }
    let reached = (Phase::Initialised..=Phase::Ready).contains(&saved.environment.phase);
    if reached && !saved.environment.obtained.hosts.is_empty() {
        session.hooks(Point::Destroy).await?;
    }
    session.store.update(|saved| {
        for pool in saved.environment.obtained.networks.iter_mut().filter_map(|n| n.pool.as_mut()) {
            pool.taken = BTreeMap::new();
        }
        if reached {
            saved.environment.phase = Phase::Initialised;
        }
        saved.through.phase = saved.through.phase.min(Phase::Initialised);
        saved.environment.last_error = None;
    })
}
