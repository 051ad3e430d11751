//! A cloud in memory for unit tests, whose calls fail and lose their replies as a test says.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cloud_providers::{Error, ErrorKind, Result, async_trait};

use super::{Client, Launch, Launched, Machine, Page, State, Tags};

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is refused and changes nothing.
    Refuse,
    /// It takes effect and its reply is lost.
    LoseReply,
    /// Nothing changes and no reply comes.
    Hang,
}

#[derive(Debug, Default)]
struct World {
    machines: BTreeMap<String, Machine>,
    /// Idempotency value to the tags and the machine's id; never forgotten, as in clouds.
    launches: BTreeMap<String, (Tags, String)>,
    user_data: BTreeMap<String, Vec<u8>>,
    faults: VecDeque<(&'static str, Fault)>,
    calls: Vec<&'static str>,
}

/// The cloud.
#[derive(Debug, Default)]
pub(crate) struct Scripted(Mutex<World>);

impl Scripted {
    fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the next call of `operation` end badly.
    pub(crate) fn script(&self, operation: &'static str, fault: Fault) {
        self.lock().faults.push_back((operation, fault));
    }

    /// Puts a machine there that no provider made.
    pub(crate) fn add(&self, machine: Machine) {
        self.lock().machines.insert(machine.id.clone(), machine);
    }

    /// Returns what exists.
    pub(crate) fn machines(&self) -> Vec<Machine> {
        self.lock().machines.values().cloned().collect()
    }

    /// Returns the user data that a machine was given.
    pub(crate) fn user_data(&self, id: &str) -> Vec<u8> {
        self.lock().user_data.get(id).cloned().unwrap_or_default()
    }

    /// Returns the calls so far.
    pub(crate) fn calls(&self) -> Vec<&'static str> {
        self.lock().calls.clone()
    }

    async fn call<T>(&self, operation: &'static str, effect: impl FnOnce(&mut World) -> T + Send) -> Result<T> {
        let fault = {
            let mut world = self.lock();
            world.calls.push(operation);
            let at = world.faults.iter().position(|(wanted, _)| *wanted == operation);
            at.and_then(|at| world.faults.remove(at)).map(|(_, fault)| fault)
        };
        match fault {
            None => Ok(effect(&mut self.lock())),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Refuse) => {
                Err(Error::new(ErrorKind::Quota, "refused as scripted").with_cloud("Scripted", "no"))
            }
            Some(Fault::LoseReply) => {
                effect(&mut self.lock());
                Err(Error::new(ErrorKind::Transient, "the connection broke"))
            }
        }
    }
}

#[async_trait]
impl Client for Scripted {
    async fn check_account(&self) -> Result<()> {
        self.call("check_account", |_| ()).await
    }

    async fn list_machines(&self, key: &str, value: &str, after: Option<&str>) -> Result<Page> {
        self.call("list_machines", |world| {
            // Pages of one, so that every list has several.
            let mut found = world.machines.values().filter(|machine| {
                machine.tags.get(key).is_some_and(|v| v == value) && after.is_none_or(|after| machine.id.as_str() > after)
            });
            let machines: Vec<Machine> = found.next().cloned().into_iter().collect();
            let next = found.next().and(machines.last().map(|machine| machine.id.clone()));
            Page { machines, next }
        })
        .await
    }

    async fn launch(&self, launch: &Launch) -> Result<Launched> {
        self.call("launch", |world| {
            if let Some((tags, id)) = world.launches.get(&launch.client_token) {
                if *tags != launch.tags {
                    return Launched::TokenTaken;
                }
                let gone = || Machine { state: State::Going, ..machine(id, launch) };
                return Launched::Known(world.machines.get(id).cloned().unwrap_or_else(gone));
            }
            if world.machines.values().any(|machine| machine.name == launch.name) {
                return Launched::NameTaken;
            }
            let made = machine(&format!("m-{}", world.launches.len() + 1), launch);
            world.launches.insert(launch.client_token.clone(), (launch.tags.clone(), made.id.clone()));
            world.user_data.insert(made.id.clone(), launch.user_data.as_bytes().to_vec());
            world.machines.insert(made.id.clone(), made.clone());
            Launched::New(Machine { state: State::Starting, ..made })
        })
        .await
    }

    async fn get_machine(&self, id: &str) -> Result<Option<Machine>> {
        self.call("get_machine", |world| world.machines.get(id).cloned()).await
    }

    async fn remove_machine(&self, id: &str) -> Result<()> {
        self.call("remove_machine", |world| drop(world.machines.remove(id))).await
    }

    fn list_lag(&self) -> Duration {
        Duration::from_secs(2)
    }
}

fn machine(id: &str, launch: &Launch) -> Machine {
    Machine {
        id: id.to_owned(),
        name: launch.name.clone(),
        tags: launch.tags.clone(),
        addresses: vec![IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7))],
        state: State::Running,
    }
}
