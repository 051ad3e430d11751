//! The scripted cloud: everything in memory and in virtual time, for every run of the tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use cloud_providers::scripted::{Gate, ScriptedProvider, World};
use cloud_providers::{Error, ErrorKind, Provider};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

use crate::{Options, Sky};

/// A provider over a world in memory.
#[derive(Debug)]
pub struct Scripted {
    world: World,
    weather: Arc<Weather>,
    provider: Arc<dyn Provider>,
}

/// Stands between provider and world, counts calls and does faults to them.
#[derive(Debug)]
struct Weather {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    chance: StdRng,
    throttled: f64,
    faults: f64,
    calls: Vec<(Instant, &'static str)>,
}

impl Default for Scripted {
    fn default() -> Self {
        Self::new()
    }
}

impl Scripted {
    /// An empty world.
    pub fn new() -> Self {
        let world = World::new();
        world.set_latency(Duration::from_millis(20));
        world.set_boot_time(Duration::from_millis(700));
        world.set_shutdown_time(Duration::from_millis(700));
        let chance = StdRng::seed_from_u64(0);
        let state = State { chance, throttled: 0.0, faults: 0.0, calls: Vec::new() };
        let weather = Arc::new(Weather { state: Mutex::new(state) });
        let gate: Arc<Weather> = Arc::clone(&weather);
        let provider = crate::stacked("scripted", Arc::new(ScriptedProvider::new(&world.gated(gate))));
        Self { world, weather, provider }
    }
}

impl Weather {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Gate for Weather {
    async fn before(&self, operation: &'static str, _: &str) -> cloud_providers::Result<()> {
        let mut state = self.lock();
        state.calls.push((Instant::now(), operation));
        let drawn: f64 = state.chance.random();
        if drawn < state.throttled {
            return Err(Error::new(ErrorKind::Throttled, "too many calls"));
        }
        if drawn < state.throttled + state.faults {
            return Err(Error::new(ErrorKind::Transient, "the server broke"));
        }
        Ok(())
    }

    async fn after(&self, _: &'static str, _: &str) -> cloud_providers::Result<()> {
        let mut state = self.lock();
        let drawn: f64 = state.chance.random();
        if drawn < state.faults {
            return Err(Error::new(ErrorKind::Transient, "the reply was lost"));
        }
        Ok(())
    }
}

#[async_trait]
impl Sky for Scripted {
    fn provider(&self) -> Arc<dyn Provider> {
        Arc::clone(&self.provider)
    }

    fn begin(&self, options: &Options) -> Result<()> {
        let mut state = self.weather.lock();
        state.chance = StdRng::seed_from_u64(options.seed);
        (state.throttled, state.faults) = (options.throttled, options.faults);
        Ok(())
    }

    fn calm(&self) {
        let mut state = self.weather.lock();
        (state.throttled, state.faults) = (0.0, 0.0);
    }

    async fn contents(&self) -> Result<Vec<String>> {
        let there = self.world.resources().into_iter().filter(|one| !one.is_going());
        Ok(there.map(|one| one.resource.id).collect())
    }

    fn calls(&self) -> BTreeMap<String, u64> {
        let mut calls = BTreeMap::new();
        for (_, operation) in &self.weather.lock().calls {
            *calls.entry((*operation).to_owned()).or_default() += 1;
        }
        calls
    }

    fn peak(&self) -> u64 {
        let state = self.weather.lock();
        let second = Duration::from_secs(1);
        let mut first = 0;
        let mut most = 0;
        for (last, (at, _)) in state.calls.iter().enumerate() {
            while at.duration_since(state.calls[first].0) >= second {
                first += 1;
            }
            most = most.max(last - first + 1);
        }
        most as u64
    }
}
