//! One document, one or several providers: all or nothing.
//!
//! A single provider goes the same way, so what comes back is checked in one place: machines that nobody asked for,
//! machines twice, fewer than allowed, a pool that is none.

mod check;

use std::{collections::BTreeSet, future::Future, sync::Arc, time::Duration};

use cloud_providers::{Error, ErrorKind, Result};
use futures_util::future::{BoxFuture, join_all};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{Context, Environment, MachineStatus, Obtained, Plan, Reservation, Testbed};

pub use check::{check, settle};

/// How long giving back may take after a failure.
const UNDO: Duration = Duration::from_secs(300);

/// A part of a document with the testbed that it is for.
pub type Member = (Reservation, Arc<dyn Testbed>);

/// Makes the context of a provider, given by [`crate::ProviderConfig::name`], with what it has kept until now.
pub type Contexts<'a> = &'a (dyn Fn(&str) -> Context + Send + Sync);

/// What a provider says is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ProviderStatus {
    /// The provider's name in the document.
    pub provider: String,
    /// Its machines; `None` when it cannot tell.
    pub machines: Option<Vec<MachineStatus>>,
}

/// Gets what all members ask for, or nothing.
///
/// All are asked at the same time. When one fails, or returns what it may not, the others are cancelled and what this call
/// made is given back; what was only found again stays.
///
/// # Errors
///
/// The first failure, with the provider's name; what could not be given back is in [`Error::leftovers`].
pub async fn init(members: &[Member], contexts: Contexts<'_>) -> Result<Obtained> {
    check(members.iter().map(|(reservation, _)| reservation))?;
    let stop = CancellationToken::new();
    let results = join_all(members.iter().map(|(reservation, testbed)| {
        let (mut context, stop) = (contexts(&reservation.provider.name), stop.clone());
        async move {
            let user = context.op.cancel.clone();
            let both = user.child_token();
            context.op.cancel = both.clone();
            let init = testbed.init(&context, reservation);
            let result = following(init, &stop, &both).await;
            // Whatever it got by then counts: it is checked here, so that another provider's failure hides no fault.
            let result = result.map(|got| (got.clone(), settle(reservation, got)));
            if !matches!(result, Ok((_, Ok(_)))) {
                stop.cancel();
            }
            result
        }
    }))
    .await;

    let mut parts = Vec::new();
    let mut failures = Vec::new();
    let mut kept = Vec::new();
    for ((reservation, testbed), result) in members.iter().zip(results) {
        let name = &reservation.provider.name;
        match result {
            Err(error) => failures.push(told(members, name, error)),
            Ok((got, Err(error))) => {
                kept.push((reservation, testbed, got));
                failures.push(told(members, name, error));
            }
            Ok((got, Ok(part))) => {
                kept.push((reservation, testbed, got));
                parts.push(part);
            }
        }
    }
    if failures.is_empty() {
        return Ok(merge(parts));
    }
    let undone = join_all(kept.into_iter().map(|(reservation, testbed, got)| {
        let context = contexts(&reservation.provider.name);
        async move { (&reservation.provider.name, give_back(&context, reservation, testbed, got).await) }
    }));
    let mut error = first(failures);
    for (name, result) in undone.await {
        let Err(left) = result else { continue };
        warn!(provider = %name, error = %left.report(), "what was made could not be given back");
        error = error.with(format!("still there at {name}"), left.report());
        error = error.with_leftovers(left.leftovers().to_vec());
    }
    Err(error)
}

/// Runs `call` and passes a stop on to its token.
async fn following<T>(
    call: impl Future<Output = T>,
    stop: &CancellationToken,
    both: &CancellationToken,
) -> T {
    let mut call = std::pin::pin!(call);
    tokio::select! {
        biased;
        result = &mut call => return result,
        () = stop.cancelled() => both.cancel(),
    }
    call.await
}

/// Gives back what a call made, and nothing else.
async fn give_back(
    context: &Context,
    reservation: &Reservation,
    testbed: &Arc<dyn Testbed>,
    mut got: Obtained,
) -> Result<()> {
    // Only what is there can be given back, whatever else the provider says that it made.
    let there: BTreeSet<String> = got.hosts.iter().map(|host| host.alias.clone()).collect();
    let made: BTreeSet<String> = got.made.intersection(&there).cloned().collect();
    if made.is_empty() {
        return Ok(());
    }
    let context = Context { op: context.op.for_undo(UNDO), ..context.clone() };
    let mut environment = Environment::new(vec![reservation.clone()]);
    environment.state.insert(reservation.provider.name.clone(), context.state.clone());
    for host in &mut got.hosts {
        host.provider.clone_from(&reservation.provider.name);
    }
    environment.obtained = got;
    let result = if made == there {
        testbed.destroy(&context, &environment).await
    } else {
        testbed.give_back(&context, &environment, &made).await
    };
    result.map_err(|error| {
        let made = made.into_iter().collect::<Vec<_>>().join(", ");
        Error::new(error.kind().clone(), "machines could not be given back")
            .with("machines", made)
            .with_leftovers(error.leftovers().to_vec())
            .with_source(error)
    })
}

/// Gives back everything at every provider, also when one fails.
///
/// # Errors
///
/// All failures together, each with the provider's name; what is still there is in [`Error::leftovers`].
pub async fn destroy(members: &[Member], contexts: Contexts<'_>, environment: &Environment) -> Result<()> {
    let results = join_all(members.iter().map(|(reservation, testbed)| {
        let context = contexts(&reservation.provider.name);
        let own = part_of(environment, reservation);
        async move {
            let result = testbed.destroy(&context, &own).await;
            result.map_err(|error| told(members, &reservation.provider.name, error))
        }
    }))
    .await;
    let failures: Vec<Error> = results.into_iter().filter_map(Result::err).collect();
    if failures.is_empty() { Ok(()) } else { Err(together(failures)) }
}

/// Calls every provider's `before_preinstall`, in the order of the document.
///
/// # Errors
///
/// The first failure, with the provider's name; those after it are not called.
pub async fn before_preinstall(
    members: &[Member],
    contexts: Contexts<'_>,
    environment: &Environment,
) -> Result<()> {
    at(members, contexts, environment, |testbed, ctx, part| {
        Box::pin(async move { testbed.before_preinstall(&ctx, &part).await })
    })
    .await
}

/// Calls every provider's `after_preinstall`, in the order of the document.
///
/// # Errors
///
/// The first failure, with the provider's name; those after it are not called.
pub async fn after_preinstall(
    members: &[Member],
    contexts: Contexts<'_>,
    environment: &Environment,
) -> Result<()> {
    at(members, contexts, environment, |testbed, ctx, part| {
        Box::pin(async move { testbed.after_preinstall(&ctx, &part).await })
    })
    .await
}

/// Calls every provider at a point, one after the other.
async fn at(
    members: &[Member],
    contexts: Contexts<'_>,
    environment: &Environment,
    call: impl Fn(Arc<dyn Testbed>, Context, Environment) -> BoxFuture<'static, Result<()>>,
) -> Result<()> {
    for (reservation, testbed) in members {
        let name = &reservation.provider.name;
        let result = call(testbed.clone(), contexts(name), part_of(environment, reservation)).await;
        result.map_err(|error| told(members, name, error))?;
    }
    Ok(())
}

/// Says what `init` would make at all providers.
///
/// # Errors
///
/// What any of them refuses, all together.
pub async fn plan(members: &[Member], contexts: Contexts<'_>) -> Result<Plan> {
    check(members.iter().map(|(reservation, _)| reservation))?;
    let results = join_all(members.iter().map(|(reservation, testbed)| {
        let context = contexts(&reservation.provider.name);
        async move { testbed.plan(&context, reservation).await }
    }))
    .await;
    let mut plan = Plan::default();
    let mut failures = Vec::new();
    for ((reservation, _), result) in members.iter().zip(results) {
        let name = &reservation.provider.name;
        match result {
            Ok(part) => {
                plan.machines.extend(part.machines);
                let told = |note| if members.len() > 1 { format!("{name}: {note}") } else { note };
                plan.notes.extend(part.notes.into_iter().map(told));
            }
            Err(error) => failures.push(told(members, name, error)),
        }
    }
    if failures.is_empty() { Ok(plan) } else { Err(together(failures)) }
}

/// Asks every provider what is there.
///
/// # Errors
///
/// All failures together; a provider that cannot tell is none.
pub async fn status(
    members: &[Member],
    contexts: Contexts<'_>,
    environment: &Environment,
) -> Result<Vec<ProviderStatus>> {
    let results = join_all(members.iter().map(|(reservation, testbed)| {
        let context = contexts(&reservation.provider.name);
        let own = part_of(environment, reservation);
        async move { testbed.status(&context, &own).await }
    }))
    .await;
    let mut all = Vec::new();
    let mut failures = Vec::new();
    for ((reservation, _), result) in members.iter().zip(results) {
        let provider = reservation.provider.name.clone();
        match result {
            Ok(machines) => all.push(ProviderStatus { provider, machines: Some(machines) }),
            Err(error) if *error.kind() == ErrorKind::Unsupported => {
                all.push(ProviderStatus { provider, machines: None });
            }
            Err(error) => failures.push(told(members, &provider, error)),
        }
    }
    if failures.is_empty() { Ok(all) } else { Err(together(failures)) }
}

/// Returns the environment as one provider sees it: its own reservation, hosts and state.
pub fn part_of(environment: &Environment, reservation: &Reservation) -> Environment {
    let name = &reservation.provider.name;
    let mut own = environment.clone();
    own.reservations = vec![reservation.clone()];
    own.obtained.hosts.retain(|host| host.provider == *name);
    own.state.retain(|provider, _| provider == name);
    own
}

/// Puts what all members returned together.
fn merge(parts: Vec<Obtained>) -> Obtained {
    let mut all = Obtained::default();
    for part in parts {
        all.hosts.extend(part.hosts);
        all.networks.extend(part.networks);
        all.missing.extend(part.missing);
        all.made.extend(part.made);
    }
    // Networks of two providers may have the same name, and are not the same network.
    let names: Vec<String> = all.networks.iter().map(|network| network.name.clone()).collect();
    for network in &mut all.networks {
        if names.iter().filter(|name| **name == network.name).count() > 1
            && let Some(provider) = network.roles.last()
        {
            network.name = format!("{provider}-{}", network.name);
        }
    }
    all
}

/// Adds the provider's name, where there are several.
fn told(members: &[Member], provider: &str, error: Error) -> Error {
    if members.len() > 1 { error.with("provider", provider) } else { error }
}

/// Returns what the user is told of several failures: the first that is no cancellation, since that is only what the
/// others get when one fails.
fn first(mut failures: Vec<Error>) -> Error {
    let real = failures.iter().position(|error| *error.kind() != ErrorKind::Cancelled).unwrap_or_default();
    let error = failures.swap_remove(real);
    let left = failures.iter().flat_map(|other| other.leftovers().to_vec()).collect::<Vec<_>>();
    error.with_leftovers(left)
}

/// Joins failures that are all of interest.
fn together(mut failures: Vec<Error>) -> Error {
    if failures.len() == 1 {
        return failures.remove(0);
    }
    let kind = failures[0].kind().clone();
    let leftovers = failures.iter().flat_map(|error| error.leftovers().to_vec()).collect::<Vec<_>>();
    let reports = failures.iter().map(Error::report).collect();
    Error::all(kind, reports).unwrap_or_else(|| failures.remove(0)).with_leftovers(leftovers)
}
