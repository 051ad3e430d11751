//! The trait and what goes with each call.

use std::{collections::BTreeSet, fmt::Debug, net::IpAddr, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use cloud_providers::{Error, OpContext, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Environment, Obtained, ProviderState, Reservation};

/// Gets machines for experiments, and gives them back.
///
/// The life is `init`, `before_preinstall`, the provisioning, `after_preinstall`, and at the end `destroy`. Commands come
/// in processes of their own: what a later call needs is in the [`Environment`] or in the provider's cloud.
#[async_trait]
pub trait Testbed: Send + Sync + Debug {
    /// Says what this provider can do.
    fn features(&self) -> Features {
        Features::default()
    }

    /// Gets everything that the reservation asks for.
    ///
    /// Idempotent by the experiment's name: what an earlier call made is found again, also when that call was killed,
    /// and only what is missing is made. A failure gives back what this call made, and never what it only found again.
    ///
    /// # Errors
    ///
    /// The provider's own. A machine that is not to be had is no error: it goes to [`Obtained::missing`], and whoever
    /// called decides by the reservation whether the rest will do, see [`crate::several::settle`].
    async fn init(&self, ctx: &Context, reservation: &Reservation) -> Result<Obtained>;

    /// Gives back everything of the experiment and proves with the provider that nothing is left.
    ///
    /// Nothing there is success: it may be called twice, and after an `init` that was killed.
    ///
    /// # Errors
    ///
    /// What is still there is in [`Error::leftovers`].
    async fn destroy(&self, ctx: &Context, environment: &Environment) -> Result<()>;

    /// Gives back these machines and keeps the others, when something else of the document failed after they were made.
    ///
    /// `environment` holds what `init` returned. Where `machines` is everything that is there, `destroy` is called
    /// instead, so that a provider without this only keeps machines in an experiment that was there before.
    ///
    /// # Errors
    ///
    /// [`cloud_providers::ErrorKind::Unsupported`] when it cannot: the user is told which machines are still there.
    async fn give_back(
        &self,
        ctx: &Context,
        environment: &Environment,
        machines: &BTreeSet<String>,
    ) -> Result<()> {
        let _ = (ctx, environment, machines);
        Err(Error::unsupported("this provider cannot give back single machines"))
    }

    /// Runs once for each `up`, after all machines answer and before the provisioning.
    ///
    /// # Errors
    ///
    /// The provider's own; `up` ends with it.
    async fn before_preinstall(&self, ctx: &Context, environment: &Environment) -> Result<()> {
        let _ = (ctx, environment);
        Ok(())
    }

    /// Runs once for each `up`, after the provisioning.
    ///
    /// # Errors
    ///
    /// The provider's own; `up` ends with it.
    async fn after_preinstall(&self, ctx: &Context, environment: &Environment) -> Result<()> {
        let _ = (ctx, environment);
        Ok(())
    }

    /// Says what `init` would make, and makes nothing.
    ///
    /// # Errors
    ///
    /// What `init` would refuse.
    async fn plan(&self, ctx: &Context, reservation: &Reservation) -> Result<Plan> {
        let _ = ctx;
        Ok(Plan::of(reservation))
    }

    /// Asks the provider what is there of the experiment.
    ///
    /// # Errors
    ///
    /// [`cloud_providers::ErrorKind::Unsupported`] when it cannot tell.
    async fn status(&self, ctx: &Context, environment: &Environment) -> Result<Vec<MachineStatus>> {
        let _ = (ctx, environment);
        Err(Error::unsupported("this provider cannot tell what is there"))
    }
}

/// What a provider can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Features {
    /// [`Testbed::status`] works.
    pub status: bool,
    /// `destroy` asks the provider whether anything is left. Without it, it relies on what was recorded.
    pub proves_empty: bool,
    /// Networks give a pool of free addresses without the user naming one.
    pub pools: bool,
    /// Machines are made and deleted; `false` for those that exist already.
    pub makes_machines: bool,
}

/// Accompanies every call of a [`Testbed`].
#[derive(Clone, Debug)]
pub struct Context {
    /// Cancellation and deadline.
    pub op: OpContext,
    /// Takes what is to be told while it lasts.
    pub progress: Arc<dyn Progress>,
    /// Keeps the provider's state at once, also when the call fails later.
    pub keep: Arc<dyn Keep>,
    /// What this provider kept in earlier calls for this experiment. It outlives `destroy`: a provider removes what has no
    /// meaning afterwards.
    pub state: ProviderState,
    /// Machines are made anew even where they are there already (`--force-deploy`).
    pub force: bool,
    /// A folder of the environment, private to the user, where a provider may put files.
    pub dir: PathBuf,
}

impl Context {
    /// Makes a context whose files go to `dir`, without cancellation, progress, and state.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            op: OpContext::new(),
            progress: Arc::new(Silent),
            keep: Arc::new(NoKeep),
            state: ProviderState::new(),
            force: false,
            dir: dir.into(),
        }
    }

    /// Tells how far a machine is.
    pub fn tell(&self, machine: &str, event: Event) {
        self.progress.tell(machine, &event);
    }
}

/// Keeps what a provider must know in a later command.
#[async_trait]
pub trait Keep: Send + Sync + Debug {
    /// Keeps `value` under `key`, or removes the key with `None`; returns when it is safe against a crash.
    ///
    /// # Errors
    ///
    /// When it could not be kept. The provider then undoes what it made and returns this error.
    async fn keep(&self, key: &str, value: Option<Value>) -> Result<()>;
}

/// Keeps nothing: for tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoKeep;

#[async_trait]
impl Keep for NoKeep {
    async fn keep(&self, _: &str, _: Option<Value>) -> Result<()> {
        Ok(())
    }
}

/// Takes what is to be told of a machine.
pub trait Progress: Send + Sync + Debug {
    /// Takes an event of `machine`.
    fn tell(&self, machine: &str, event: &Event);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn tell(&self, _: &str, _: &Event) {}
}

/// Something that happened to a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
#[non_exhaustive]
pub enum Event {
    /// It is being made.
    Creating,
    /// It was there already.
    Found,
    /// It is made, with this address.
    Created {
        /// The address to connect to.
        address: String,
    },
    /// It answers over SSH.
    Reachable,
    /// It is being deleted.
    Deleting,
    /// It is gone.
    Deleted,
    /// It failed.
    Failed {
        /// The reason.
        error: String,
    },
    /// Anything else, in words.
    Note {
        /// The words.
        text: String,
    },
}

/// What an `init` would make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Plan {
    /// The machines.
    pub machines: Vec<PlannedMachine>,
    /// More to know, in sentences: a price, a quota, what cannot be said beforehand.
    pub notes: Vec<String>,
}

/// One machine of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PlannedMachine {
    /// Its name.
    pub name: String,
    /// Its roles.
    pub roles: Vec<String>,
    /// What it will be at the provider: an instance type, a size.
    pub what: String,
    /// It is there already.
    pub exists: bool,
}

impl Plan {
    /// Makes the plan that follows from the document alone.
    pub fn of(reservation: &Reservation) -> Self {
        let machines = reservation.machines.iter().map(|machine| PlannedMachine {
            name: machine.name.clone(),
            roles: machine.roles.clone(),
            what: machine.kind.clone().unwrap_or_else(|| "default".into()),
            exists: machine.host.is_some(),
        });
        Self { machines: machines.collect(), notes: Vec::new() }
    }
}

/// What a provider says of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MachineStatus {
    /// Its name in the experiment, or the provider's id where it has none.
    pub name: String,
    /// The provider's id.
    pub id: String,
    /// What it is doing: `pending`, `running`, `paused`, `stopping`, `stopped`, `terminated`, `unknown`.
    pub state: String,
    /// Its addresses.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

impl MachineStatus {
    /// Makes the status of a machine.
    pub fn new(name: impl Into<String>, id: impl Into<String>, state: impl Into<String>) -> Self {
        Self { name: name.into(), id: id.into(), state: state.into(), addresses: Vec::new() }
    }
}
