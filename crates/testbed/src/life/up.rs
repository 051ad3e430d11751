//! From a reservation to machines that are provisioned.

use std::collections::{BTreeMap, BTreeSet};

use cloud_providers::{Error, ErrorKind, Result};
use serde_json::{Map, Value};

use super::{Session, preflight, wait_for_ssh};
use crate::{
    Environment, Obtained, Phase, Point, ProviderState, Reservation, several,
    ssh::Remote,
    state::{Saved, Through},
};

/// How far `up` goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Machines that are there: the command `init`.
    Init,
    /// Everything; with `again`, the provisioning is run again also where nothing changed.
    Up {
        /// Run the provisioning again.
        again: bool,
    },
}

/// What became of an `up`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Done {
    /// The machines that were made by this call.
    pub made: Vec<String>,
    /// The provisioning ran, at least a part of it.
    pub provisioned: bool,
    /// Machines of an earlier call that the document no longer asks for. They stay until `destroy`.
    pub unwanted: Vec<String>,
}

/// Brings the state in line with the document that `up` was called with.
#[derive(Debug)]
pub struct Start;

impl Start {
    /// Returns the state to start with.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`] when machines of another experiment or another provider are in this environment: they
    /// would be forgotten.
    pub fn merge(old: Option<Saved>, mut fresh: Saved) -> Result<Saved> {
        let Some(old) = old else { return Ok(fresh) };
        let mend = "run `testbed destroy` first, or use another folder with --env";
        let (had, wants) = (old.environment.experiment(), fresh.environment.experiment());
        if old.environment.phase == Phase::Destroyed || old.environment.phase == Phase::New {
            if had == wants {
                fresh.environment.state = lasting(&old.environment, &fresh.environment);
                fresh.outlived = fresh.environment.state.clone();
            }
            return Ok(fresh);
        }
        if had != wants {
            return Err(Error::new(ErrorKind::Conflict, "this environment is of another experiment")
                .with("its experiment", had)
                .with("the document's", wants)
                .with("mend", mend));
        }
        let now = |old: &&Reservation| {
            let same = |new: &Reservation| {
                new.provider.name == old.provider.name && new.provider.kind == old.provider.kind
            };
            !fresh.environment.reservations.iter().any(same)
        };
        let gone: Vec<&str> =
            old.environment.reservations.iter().filter(now).map(|r| r.provider.name.as_str()).collect();
        if !gone.is_empty() {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the document no longer names a provider whose machines are in this environment",
            )
            .with("providers", gone.join(", "))
            .with("mend", mend));
        }
        // In another region, or with another account, what is there would not be found, and never given back.
        for before in &old.environment.reservations {
            let name = &before.provider.name;
            let there = old.environment.obtained.hosts.iter().any(|host| host.provider == *name)
                || old.environment.state.get(name) != old.outlived.get(name);
            let now = fresh.environment.reservations.iter().find(|new| new.provider.name == *name);
            let changed =
                now.map(|now| changed(&before.provider.extra, &now.provider.extra)).unwrap_or_default();
            if there && !changed.is_empty() {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    "what is said to a provider changed while its machines are there: they might not be found again",
                )
                .with("provider", name)
                .with("changed", changed.join(", "))
                .with("mend", "put it back, or run `testbed destroy` first, which uses what was said before"));
            }
        }
        fresh.environment = Environment { reservations: fresh.environment.reservations, ..old.environment };
        fresh.through = old.through;
        fresh.emulated = old.emulated;
        fresh.outlived = old.outlived;
        Ok(fresh)
    }
}

/// Gets machines, waits until they answer, and provisions them.
///
/// Called again after a failure it goes on where it stopped; called again after a success it looks whether everything is
/// there and makes what is not. The provisioning runs once: again only when a machine is another one, or when asked for.
///
/// # Errors
///
/// The first failure, which is also kept in the state.
pub async fn up(session: &Session, extent: Extent) -> Result<Done> {
    let result = Box::pin(stages(session, extent)).await;
    result.map_err(|error| session.keep_error(error))
}

async fn stages(session: &Session, extent: Extent) -> Result<Done> {
    let reservations: Vec<_> = session.members.iter().map(|(reservation, _)| reservation.clone()).collect();
    preflight(session.env.as_ref(), &reservations)?;
    session.prepare()?;
    let contexts = |name: &str| session.context(name);

    let before = session.store.saved();
    session.enter(Phase::Initialising)?;
    let obtained = several::init(&session.members, &contexts).await?;
    let machines: BTreeMap<String, String> =
        obtained.hosts.iter().map(|host| (host.alias.clone(), host.id.clone())).collect();
    let through = &before.through;
    let fresh: Vec<String> = machines
        .iter()
        .filter(|(alias, id)| obtained.made.contains(*alias) || through.machines.get(*alias) != Some(id))
        .map(|(alias, _)| alias.clone())
        .collect();
    let mut done = Done {
        made: obtained.made.iter().filter(|alias| machines.contains_key(*alias)).cloned().collect(),
        unwanted: unwanted(&before, &obtained),
        ..Done::default()
    };
    // Another machine knows nothing of what ran before, and hooks may tell machines of each other.
    let passed = if fresh.is_empty() && through.machines == machines && !session.force {
        through.phase
    } else {
        Phase::Initialised
    };
    session.store.update(|saved| {
        saved.environment.obtained = keep_taken(&before.environment.obtained, obtained);
        saved.environment.phase = Phase::Initialised;
        saved.through = Through { phase: passed, machines: machines.clone() };
        // A machine that was made anew has no emulation.
        saved.emulated.retain(|alias, _| !fresh.contains(alias));
    })?;
    let stale: Vec<&str> = fresh.iter().map(String::as_str).collect();
    session.write_files(&stale)?;
    if extent == Extent::Init {
        session.store.update(|saved| saved.environment.last_error = None)?;
        return Ok(done);
    }

    let hosts = session.store.saved().environment.obtained.hosts;
    let remote = Remote::new(session.env.as_ref(), session.store.folder())?;
    wait_for_ssh(&session.op, &remote, &hosts, session.ssh_limit, &session.progress).await?;
    session.enter(Phase::Reachable)?;

    let passed = if extent == (Extent::Up { again: true }) { Phase::Reachable } else { passed };
    for (phase, point) in [
        (Phase::BeforePreinstall, Point::BeforePreinstall),
        (Phase::Preinstalled, Point::Preinstall),
        (Phase::Ready, Point::AfterPreinstall),
    ] {
        if passed < phase {
            session.op.check()?;
            done.provisioned = true;
            match point {
                Point::BeforePreinstall => {
                    several::before_preinstall(&session.members, &contexts, &session.environment()).await?;
                }
                Point::AfterPreinstall => {
                    several::after_preinstall(&session.members, &contexts, &session.environment()).await?;
                }
                _ => {}
            }
            session.hooks(point).await?;
        }
        session.store.update(|saved| {
            saved.environment.phase = phase;
            saved.through.phase = saved.through.phase.max(phase);
            if phase == Phase::Ready {
                saved.through.phase = phase;
                saved.environment.last_error = None;
            }
        })?;
    }
    Ok(done)
}

/// What providers kept beyond the end of the same experiment, as far as they are the same ones.
fn lasting(old: &Environment, fresh: &Environment) -> BTreeMap<String, ProviderState> {
    let same = |name: &str| {
        let of = |e: &Environment| {
            e.reservations.iter().find(|r| r.provider.name == name).map(|r| r.provider.kind.clone())
        };
        of(old).is_some() && of(old) == of(fresh)
    };
    old.state
        .iter()
        .filter(|(name, _)| same(name))
        .map(|(name, state)| (name.clone(), state.clone()))
        .collect()
}

/// Names the keys whose values differ.
fn changed(before: &Map<String, Value>, now: &Map<String, Value>) -> Vec<String> {
    let keys: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    keys.into_iter().filter(|key| before.get(*key) != now.get(*key)).cloned().collect()
}

/// Names the machines of an earlier call that are no longer asked for.
fn unwanted(before: &Saved, now: &Obtained) -> Vec<String> {
    let there = before.environment.obtained.hosts.iter();
    let gone = there.filter(|old| {
        !now.hosts.iter().any(|host| host.alias == old.alias) && !now.missing.contains_key(&old.alias)
    });
    gone.map(|host| host.alias.clone()).collect()
}

/// Takes over from `old` which addresses of the pools are taken: only we know.
fn keep_taken(old: &Obtained, mut new: Obtained) -> Obtained {
    for network in &mut new.networks {
        let before = old.networks.iter().find(|n| n.name == network.name).and_then(|n| n.pool.as_ref());
        if let (Some(pool), Some(before)) = (&mut network.pool, before) {
            for (address, owner) in &before.taken {
                pool.taken.entry(*address).or_insert_with(|| owner.clone());
            }
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Host, Network, Pool, ProviderConfig};

    fn saved(experiment: &str, provider: &str, phase: Phase) -> Saved {
        let reservation = Reservation::new(experiment, ProviderConfig::new(provider));
        let mut saved = Saved::new(None, Environment::new(vec![reservation]));
        saved.environment.phase = phase;
        saved.environment.obtained.hosts.push(Host::new("a", "10.0.0.1", "i-1"));
        saved
    }

    #[test]
    fn machines_of_another_experiment_or_provider_are_never_forgotten() {
        let new = |experiment, provider| saved(experiment, provider, Phase::New);
        for phase in [Phase::Initialising, Phase::Ready, Phase::Destroying] {
            for (experiment, provider, part) in [("y", "rack", "another experiment"), ("x", "aws", "rack")] {
                let error =
                    Start::merge(Some(saved("x", "rack", phase)), new(experiment, provider)).unwrap_err();
                assert_eq!(*error.kind(), ErrorKind::Conflict);
                assert!(error.to_string().contains(part) && error.to_string().contains("testbed destroy"));
            }
            let merged = Start::merge(Some(saved("x", "rack", phase)), new("x", "rack")).unwrap();
            assert_eq!((merged.environment.phase, merged.environment.obtained.hosts.len()), (phase, 1));
        }
        let over = Start::merge(Some(saved("x", "rack", Phase::Destroyed)), new("y", "aws")).unwrap();
        assert_eq!(over.environment.experiment(), "y");
    }

    #[test]
    fn what_a_provider_keeps_beyond_the_end_is_there_for_the_same_experiment_only() {
        let kept = |experiment: &str, provider: &str| {
            let mut old = saved("x", "rack", Phase::Destroyed);
            let state = ProviderState::from([("attempt".to_owned(), 3.into())]);
            old.environment.state.insert("rack".into(), state);
            let mut merged = Start::merge(Some(old), saved(experiment, provider, Phase::New)).unwrap();
            // Nothing is there yet: what is said to the provider can be mended.
            merged.environment.phase = Phase::Initialising;
            merged.environment.obtained.hosts.clear();
            let mut other = saved(experiment, provider, Phase::New);
            other.environment.reservations[0].provider.extra.insert("region".into(), "us".into());
            Start::merge(Some(merged), other).unwrap().environment.state
        };
        assert_eq!(kept("x", "rack")["rack"]["attempt"], 3);
        assert!(kept("y", "rack").is_empty());
        assert!(kept("x", "aws").is_empty());
    }

    #[test]
    fn what_is_said_to_a_provider_stays_while_its_machines_are_there() {
        let with = |region: &str, hosts: bool| {
            let mut saved = saved("x", "rack", Phase::Initialising);
            saved.environment.reservations[0].provider.extra.insert("region".into(), region.into());
            saved.environment.obtained.hosts.iter_mut().for_each(|host| host.provider = "rack".into());
            saved.environment.obtained.hosts.retain(|_| hosts);
            saved
        };
        let error = Start::merge(Some(with("eu", true)), with("us", false)).unwrap_err();
        assert!(
            error.to_string().contains("region") && error.to_string().contains("testbed destroy"),
            "{error}"
        );
        // Nothing came of the wrong region: it can be mended.
        Start::merge(Some(with("eu", false)), with("us", false)).unwrap();
        Start::merge(Some(with("eu", true)), with("eu", false)).unwrap();
    }

    #[test]
    fn addresses_that_are_taken_stay_taken() {
        let network = |pool: Pool| {
            let network = Network { name: "n".into(), pool: Some(pool), ..Network::default() };
            Obtained::new(Vec::new(), vec![network])
        };
        let pool = || Pool::new("10.0.0.1".parse().unwrap(), "10.0.0.9".parse().unwrap());
        let mut old = pool();
        old.taken.insert("10.0.0.9".parse().unwrap(), "vip".into());
        let new = keep_taken(&network(old), network(pool()));
        let taken = &new.networks[0].pool.as_ref().unwrap().taken;
        assert_eq!(taken.values().collect::<Vec<_>>(), ["vip"]);
    }
}
