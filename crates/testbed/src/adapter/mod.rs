//! Any provider of instances as a testbed.
//!
//! One instance is one machine, with the experiment as its scope. What an earlier call made is found by asking the
//! provider; what is kept beside it are the attempts, so that a machine made anew is never mistaken for the one before,
//! and the public host keys.

mod create;
mod destroy;
mod found;
mod kept;
mod local;
mod plan;
mod request;

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use cloud_providers::{
    Capabilities, EnvSource, Error, Mapping, OptionSpec, Provider, Registration, Result, Scope, Settings,
    layers::{self, LayerSettings, NoObserver},
};
use futures_util::{StreamExt, stream};

use crate::{
    Context, Environment, Features, MachineStatus, Obtained, Plan, ProviderConfig, Reservation, Testbed,
};

use local::Local;

/// How many machines are made or deleted at once.
const PARALLEL: OptionSpec =
    OptionSpec::int("parallel", 1, 1000, "Machines that are made or deleted at the same time").default("20");

/// Whose machines they are.
const HOLDER: OptionSpec = OptionSpec::text(
    "holder",
    "Whom the machines belong to: those of anybody else are neither used nor deleted (default: the account that runs \
     this program)",
);

/// What every cloud has beside its own options.
pub const OPTIONS: &[OptionSpec] = &[
    PARALLEL,
    HOLDER,
    layers::RETRIES,
    layers::RETRY_CAP,
    layers::CREATE_RATE,
    layers::DELETE_RATE,
    layers::LIST_RATE,
];

/// The same for machines on this host: nobody there counts calls.
const LOCAL_OPTIONS: &[OptionSpec] = &[
    PARALLEL,
    HOLDER,
    layers::RETRIES,
    layers::RETRY_CAP,
    layers::CREATE_RATE.default("0"),
    layers::DELETE_RATE.default("0"),
    layers::LIST_RATE.default("0"),
];

fn own_options(registration: &Registration) -> &'static [OptionSpec] {
    if registration.name == local::NAME { LOCAL_OPTIONS } else { OPTIONS }
}

/// Returns every key that `provider:` may have beside `type` where the provider is this cloud.
pub fn keys(registration: &Registration) -> Vec<OptionSpec> {
    registration.options.iter().chain(own_options(registration)).cloned().collect()
}

/// Makes a testbed of a cloud.
///
/// The keys of `config` are the cloud's flags, whose prefix may be left out; what they leave open is taken from `env`,
/// credentials above all.
///
/// # Errors
///
/// [`cloud_providers::ErrorKind::Config`] for keys that the cloud does not have, with those that it has, and for
/// values that it cannot read; whatever else the cloud says of its configuration.
pub async fn open(
    registration: &Registration,
    config: &ProviderConfig,
    env: &dyn EnvSource,
) -> Result<Arc<dyn Testbed>> {
    let mapping = Mapping::new(registration.name, &config.extra, &keys(registration))?;
    let mut own = Settings::new(own_options(registration));
    own.load_env(&mapping);
    own.load_env(env);
    let mut cloud = (registration.new)();
    cloud.load_env(&mapping)?;
    cloud.load_env(env)?;
    let local = match registration.name == local::NAME {
        true => Some(Local::prepare(cloud.as_mut())?),
        false => None,
    };
    let (values, problems) = own.parse_all();
    let mut problems = problems;
    problems.extend(cloud.problems());
    if let Some(error) = Error::all(cloud_providers::ErrorKind::Config, problems) {
        return Err(error.with("provider", registration.name));
    }
    let provider = cloud.new_provider().await?;
    let settings = LayerSettings::from_values(&values);
    let provider = layers::standard(registration.name, provider, &settings, Arc::new(NoObserver));
    let parallel = usize::try_from(values.int(PARALLEL.flag)).unwrap_or(1);
    let holder = Some(values.text(HOLDER.flag)).filter(|h| !h.is_empty()).unwrap_or_else(account);
    Ok(Arc::new(CloudTestbed { name: config.name.clone(), provider, parallel, holder, local, pause: PAUSE }))
}

/// Makes a testbed of a provider that is there already, with `parallel` machines at once.
///
/// For programs and tests that build their provider themselves. The machines belong to the account that runs this program.
pub fn over(name: impl Into<String>, provider: Arc<dyn Provider>, parallel: usize) -> Arc<dyn Testbed> {
    Arc::new(CloudTestbed {
        name: name.into(),
        provider,
        parallel: parallel.max(1),
        holder: account(),
        local: None,
        pause: PAUSE,
    })
}

/// The account that runs this program.
fn account() -> String {
    let id = nix::unistd::geteuid();
    let user = nix::unistd::User::from_uid(id).ok().flatten();
    user.map_or_else(|| id.to_string(), |u| u.name)
}

/// Between two questions whether everything is gone.
const PAUSE: Duration = Duration::from_millis(500);

/// A cloud as a testbed.
#[derive(Debug)]
struct CloudTestbed {
    /// [`ProviderConfig::name`].
    name: String,
    provider: Arc<dyn Provider>,
    parallel: usize,
    /// Whom the machines belong to.
    holder: String,
    /// What is particular about machines on this host.
    local: Option<Local>,
    pause: Duration,
}

impl CloudTestbed {
    fn can(&self) -> Capabilities {
        self.provider.capabilities()
    }
}

fn scope(experiment: &str) -> Scope {
    Scope::Experiment(experiment.to_owned())
}

#[async_trait]
impl Testbed for CloudTestbed {
    fn features(&self) -> Features {
        let can = self.can();
        Features {
            status: can.list_owned,
            proves_empty: can.list_owned,
            pools: self.local.is_some(),
            makes_machines: true,
        }
    }

    async fn init(&self, ctx: &Context, reservation: &Reservation) -> Result<Obtained> {
        create::init(self, ctx, reservation).await
    }

    async fn destroy(&self, ctx: &Context, environment: &Environment) -> Result<()> {
        destroy::everything(self, ctx, environment.experiment()).await
    }

    async fn give_back(
        &self,
        ctx: &Context,
        environment: &Environment,
        machines: &BTreeSet<String>,
    ) -> Result<()> {
        destroy::some(self, ctx, environment.experiment(), machines).await
    }

    async fn plan(&self, ctx: &Context, reservation: &Reservation) -> Result<Plan> {
        plan::plan(self, ctx, reservation).await
    }

    async fn status(&self, ctx: &Context, environment: &Environment) -> Result<Vec<MachineStatus>> {
        plan::status(self, ctx, environment).await
    }
}

/// One of many calls.
type Work<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Makes many calls, so many at a time, and returns their answers in the order of the calls.
async fn all<T>(parallel: usize, works: Vec<Work<'_, T>>) -> Vec<T> {
    stream::iter(works).buffered(parallel).collect().await
}

/// Machines by name with the error of each.
type Failures = BTreeMap<String, Error>;
