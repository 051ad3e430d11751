//! What is kept between two commands: attempts and public host keys.

use std::{collections::BTreeMap, sync::Arc};

use cloud_providers::{Error, Instance, Result, Token};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::{Context, Keep, ProviderState};

/// The key under which all machines are kept.
const KEY: &str = "machines";

/// What is kept of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// The last attempt that was begun.
    pub(super) attempt: u32,
    /// The public host key of that attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) host_key: Option<String>,
    /// The instance, where the provider cannot be asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) instance: Option<Instance>,
    /// Id of the instance whose creation was begun, where the provider cannot be asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) begun: Option<String>,
    /// It came to be. A list that does not show it is late, or somebody deleted it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) made: bool,
    /// Giving it back was begun. A part of it may be gone, and a list that lags behind shows it as it was.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) leaving: bool,
    /// It was given back: nothing of the attempt is left.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) gone: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Kept {
    /// Whether something of `attempt` that a list shows may be the machine: what is older was given back, and a list
    /// that lags behind shows it all the same.
    pub(super) fn allows(&self, attempt: u32) -> bool {
        attempt > self.attempt || (attempt == self.attempt && self.is_usable())
    }

    /// Whether nobody began to give it back.
    pub(super) fn is_usable(&self) -> bool {
        !self.gone && !self.leaving
    }
}

/// Reads what was kept.
pub(super) fn read(state: &ProviderState) -> Result<BTreeMap<String, Kept>> {
    let Some(value) = state.get(KEY) else { return Ok(BTreeMap::new()) };
    serde_json::from_value(value.clone()).map_err(|e| {
        Error::internal("what was kept of the machines cannot be read: the environment is of another version")
            .with_source(e)
    })
}

/// What is kept while a call lasts; written as a whole with each change.
#[derive(Debug)]
pub(super) struct Keeper {
    keep: Arc<dyn Keep>,
    machines: Mutex<BTreeMap<String, Kept>>,
}

impl Keeper {
    pub(super) fn new(ctx: &Context) -> Result<Self> {
        Ok(Self { keep: ctx.keep.clone(), machines: Mutex::new(read(&ctx.state)?) })
    }

    pub(super) async fn all(&self) -> BTreeMap<String, Kept> {
        self.machines.lock().await.clone()
    }

    /// Notes that giving back these attempts begins: from then on nobody uses them.
    pub(super) async fn leaving(&self, tokens: &[Token]) -> Result<()> {
        self.change(|all| {
            for token in tokens {
                let machine = all.entry(token.unit.clone()).or_default();
                if token.attempt > machine.attempt {
                    *machine = Kept { attempt: token.attempt, leaving: true, ..Kept::default() };
                } else if token.attempt == machine.attempt && !machine.gone {
                    machine.leaving = true;
                }
            }
        })
        .await
    }

    /// Changes what is kept, and returns when it is safe.
    pub(super) async fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Kept>)) -> Result<()> {
        // Held while it is written, so that a later change is never overtaken by an earlier one.
        let mut machines = self.machines.lock().await;
        let before = machines.clone();
        change(&mut machines);
        if *machines == before {
            return Ok(());
        }
        let value = serde_json::to_value(&*machines)
            .map_err(|e| Error::internal("what is to be kept cannot be written").with_source(e))?;
        self.keep.keep(KEY, Some(value)).await
    }
}
