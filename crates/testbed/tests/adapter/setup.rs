//! A cloud in memory, testbeds over it, and what is kept between two commands.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use cloud_providers::{
    Capabilities, Provider, Resource, Scope, Token,
    scripted::{ScriptedProvider, World},
    tags,
};
use serde_json::Value;
use testbed::{
    Context, Environment, Group, Keep, Machine, Obtained, ProviderConfig, Reservation, Result, Testbed,
    adapter, userdata::HostKey,
};

pub(crate) const EXPERIMENT: &str = "exp";

/// One user with one cloud.
pub(crate) struct User {
    pub(crate) world: World,
    kept: Kept,
    key: String,
    capabilities: Option<Capabilities>,
}

impl User {
    pub(crate) fn new() -> Self {
        Self::of(&World::new())
    }

    pub(crate) fn of(world: &World) -> Self {
        let key = HostKey::generate().unwrap().public().to_owned();
        Self { world: world.clone(), kept: Kept::default(), key, capabilities: None }
    }

    /// Has a provider that can do this only.
    pub(crate) fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = Some(capabilities);
        self
    }

    /// Forgets what was kept, as somebody does who removes the environment's folder.
    pub(crate) fn forgetful(&self) -> Self {
        Self { world: self.world.clone(), kept: Kept::default(), key: self.key.clone(), capabilities: None }
    }

    /// Makes a new testbed, as each command does.
    pub(crate) fn testbed(&self) -> Arc<dyn Testbed> {
        let mut provider = ScriptedProvider::new(&self.world);
        if let Some(capabilities) = &self.capabilities {
            provider = provider.with_capabilities(capabilities.clone());
        }
        adapter::over("scripted", Arc::new(provider), 3)
    }

    pub(crate) fn context(&self) -> Context {
        let mut context = Context::new("/nowhere");
        context.keep = Arc::new(self.kept.clone());
        context.state = self.kept.0.lock().unwrap().clone();
        context
    }

    pub(crate) fn reservation(&self, machines: usize) -> Reservation {
        let mut reservation = Reservation::new(EXPERIMENT, ProviderConfig::new("scripted"));
        reservation.groups.push(Group::new("node", machines));
        for n in 1..=machines {
            reservation.machines.push(Machine::new(format!("node-{n}"), 0, ["node"]));
        }
        reservation.access.public_key = Some(self.key.clone());
        reservation
    }

    pub(crate) fn environment(&self) -> Environment {
        Environment::new(vec![self.reservation(0)])
    }

    pub(crate) async fn init(&self, machines: usize) -> Result<Obtained> {
        self.testbed().init(&self.context(), &self.reservation(machines)).await
    }

    pub(crate) async fn destroy(&self) -> Result<()> {
        self.testbed().destroy(&self.context(), &self.environment()).await
    }

    /// Returns the machines that are there, asked past the testbed: their names with the number of instances.
    pub(crate) fn there(&self) -> BTreeMap<String, usize> {
        let scope = tags::encode_value(&Scope::Experiment(EXPERIMENT.into()).to_string());
        let mut names = BTreeMap::new();
        for remote in self.world.resources() {
            let ours = remote.tags.get(tags::SCOPE).is_some_and(|s| *s == scope);
            if remote.resource.kind == Resource::INSTANCE && ours {
                let token: Token = remote.tags[tags::TOKEN_TEXT].parse().unwrap();
                *names.entry(token.unit).or_default() += 1;
            }
        }
        names
    }

    /// Whether nothing at all is there.
    pub(crate) fn is_empty(&self) -> bool {
        self.world.resources().is_empty()
    }

    /// Returns how often an instance was asked for.
    pub(crate) fn runs(&self) -> usize {
        self.world.operations().iter().filter(|o| **o == "run_instance").count()
    }

    /// Returns each machine once.
    pub(crate) fn once(machines: usize) -> BTreeMap<String, usize> {
        (1..=machines).map(|n| (format!("node-{n}"), 1)).collect()
    }
}

/// A provider with the three calls only, and plain machines.
pub(crate) fn least() -> Capabilities {
    let mut can = ScriptedProvider::new(&World::new()).capabilities();
    can.list_owned = false;
    can.release = false;
    can
}

/// Keeps in memory.
#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<BTreeMap<String, Value>>>);

#[async_trait]
impl Keep for Kept {
    async fn keep(&self, key: &str, value: Option<Value>) -> Result<()> {
        let mut kept = self.0.lock().unwrap();
        match value {
            Some(value) => drop(kept.insert(key.to_owned(), value)),
            None => drop(kept.remove(key)),
        }
        Ok(())
    }
}
