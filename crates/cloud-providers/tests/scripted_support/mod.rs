//! What the tests of the double share.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use cloud_providers::{
    CreateRequest, Error, Instance, OpContext, Provider, Record, Resource, Result, Scope, Token, Unit,
    async_trait,
    scripted::{ScriptedProvider, World},
};

/// Longer than every call of a slow world together.
pub(crate) const SLOW: Duration = Duration::from_millis(500);

pub(crate) fn scope() -> Scope {
    Scope::Cluster("c1".into())
}

pub(crate) fn request(sandbox: &str) -> CreateRequest {
    let unit = Unit { id: sandbox.into(), name_hint: "web".into() };
    CreateRequest::new(Token::new(scope(), sandbox, 1), unit, "node-1").with_user_data("#cloud-config\n")
}

/// A world in which each call takes 10 ms.
pub(crate) fn slow_world() -> World {
    let world = World::new();
    world.set_latency(Duration::from_millis(10));
    world
}

/// Creates through a provider value of its own, as another process would.
pub(crate) async fn create(world: &World, request: &CreateRequest) -> Result<Instance> {
    ScriptedProvider::new(world).create_instance(&OpContext::new(), request).await
}

/// Returns the kinds of everything that is there, oldest first.
pub(crate) fn settled(world: &World) -> Vec<String> {
    world.resources().into_iter().map(|r| r.resource.kind).collect()
}

/// Keeps what was recorded, and the last remote call before it.
pub(crate) struct Notes {
    world: World,
    kept: Mutex<Vec<(Resource, &'static str)>>,
    fail_at: usize,
}

impl Notes {
    pub(crate) fn new(world: &World) -> Arc<Self> {
        Self::failing_at(world, usize::MAX)
    }

    pub(crate) fn failing_at(world: &World, nth: usize) -> Arc<Self> {
        Arc::new(Self { world: world.clone(), kept: Mutex::default(), fail_at: nth })
    }

    pub(crate) fn resources(&self) -> Vec<Resource> {
        self.kept.lock().unwrap().iter().map(|(r, _)| r.clone()).collect()
    }

    pub(crate) fn last_operations(&self) -> Vec<&'static str> {
        self.kept.lock().unwrap().iter().map(|(_, o)| *o).collect()
    }
}

#[async_trait]
impl Record for Notes {
    async fn record(&self, resource: &Resource) -> Result<()> {
        let last = self.world.operations().last().copied().unwrap_or_default();
        let mut kept = self.kept.lock().unwrap();
        if kept.len() + 1 == self.fail_at {
            return Err(Error::internal("the journal is full"));
        }
        kept.push((resource.clone(), last));
        Ok(())
    }
}
