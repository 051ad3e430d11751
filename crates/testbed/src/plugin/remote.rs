//! The testbed that stands for an executable.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use cloud_providers::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{sync::Mutex, time::Instant};

use super::{CallContext, Hello, Limits, Method, Opened, message::Params, process::Process};
use crate::{
    Context, Environment, Features, Key, MachineStatus, Obtained, Plan, ProviderConfig, Reservation, Testbed,
    async_trait,
};

/// A testbed in another process. The program is ended when the value is dropped.
///
/// It is killed when the future of a call is dropped, and started anew for the next call.
#[derive(Debug)]
pub struct Executable {
    file: PathBuf,
    config: ProviderConfig,
    limits: Limits,
    process: Mutex<Process>,
    hello: Hello,
    features: Features,
}

/// A program that runs and has said what it is, and was not told anything yet.
#[derive(Debug)]
pub(crate) struct Started {
    file: PathBuf,
    process: Process,
    pub(crate) hello: Hello,
    limits: Limits,
}

impl Started {
    pub(crate) async fn new(file: &Path, limits: Limits) -> Result<Self> {
        let (process, hello) = Process::start(file, limits).await?;
        Ok(Self { file: file.to_owned(), process, hello, limits })
    }

    /// Gives it its configuration, which was checked against its keys.
    pub(crate) async fn open(self, config: &ProviderConfig) -> Result<Executable> {
        let secret = |key: &&Key| key.secret;
        let secrets = self.hello.keys.iter().filter(secret).filter_map(|key| config.extra.get(&*key.name));
        // What stands in a list or a mapping is as secret as a text.
        let mut texts = Vec::new();
        secrets.for_each(|value| texts_of(value, &mut texts));
        self.process.hide(texts);
        let mut ctx = Context::new(PathBuf::new());
        ctx.op = ctx.op.with_timeout(self.limits.open);
        let params = Params { config: Some(config.clone()), ..Params::default() };
        let value = self.process.call(&ctx, Method::Open, params).await?;
        let opened: Option<Opened> = answer(Method::Open, value)?;
        let features =
            opened.and_then(|opened| opened.features).unwrap_or_else(|| self.hello.features.clone());
        let Self { file, process, hello, limits } = self;
        let (config, process) = (config.clone(), Mutex::new(process));
        Ok(Executable { file, config, limits, process, hello, features })
    }
}

fn texts_of(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::String(text) => texts.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| texts_of(item, texts)),
        Value::Object(map) => map.values().for_each(|item| texts_of(item, texts)),
        _ => {}
    }
}

fn answer<T: DeserializeOwned>(method: Method, value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|e| {
        Error::internal("the provider's program answered something else than what was asked for")
            .with("call", method.label())
            .with_source(e)
    })
}

impl Executable {
    /// Starts `file` and gives it its configuration as it is: [`crate::find::open`] checks it first.
    ///
    /// # Errors
    ///
    /// When the program cannot be started, does not keep to the protocol, speaks no version that we speak, or refuses the
    /// configuration.
    pub async fn open(file: &Path, config: &ProviderConfig, limits: Limits) -> Result<Self> {
        Started::new(file, limits).await?.open(config).await
    }

    /// Returns what the program said of itself.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    async fn call<T: DeserializeOwned>(
        &self,
        ctx: &Context,
        method: Method,
        mut params: Params,
    ) -> Result<T> {
        ctx.op.check()?;
        let left = |end: Instant| end.saturating_duration_since(Instant::now()).as_millis();
        params.context = Some(CallContext {
            state: ctx.state.clone(),
            force: ctx.force,
            dir: ctx.dir.clone(),
            deadline_ms: ctx.op.deadline.map(|end| u64::try_from(left(end)).unwrap_or(u64::MAX)),
        });
        let process = self.running().await?;
        answer(method, process.call(ctx, method, params).await?)
    }

    /// Returns the program, started anew when it was killed with a call.
    async fn running(&self) -> Result<Process> {
        let mut process = self.process.lock().await;
        if process.was_dropped() {
            let started = Started::new(&self.file, self.limits).await?;
            *process = started.open(&self.config).await?.process.into_inner();
        }
        Ok(process.clone())
    }
}

fn asking(reservation: &Reservation) -> Params {
    Params { reservation: Some(reservation.clone()), ..Params::default() }
}

fn about(environment: &Environment) -> Params {
    Params { environment: Some(environment.clone()), ..Params::default() }
}

/// Whatever a call that returns nothing is answered with.
type Nothing = serde::de::IgnoredAny;

#[async_trait]
impl Testbed for Executable {
    fn features(&self) -> Features {
        self.features.clone()
    }

    async fn init(&self, ctx: &Context, reservation: &Reservation) -> Result<Obtained> {
        self.call(ctx, Method::Init, asking(reservation)).await
    }

    async fn destroy(&self, ctx: &Context, environment: &Environment) -> Result<()> {
        self.call::<Nothing>(ctx, Method::Destroy, about(environment)).await.map(drop)
    }

    async fn give_back(
        &self,
        ctx: &Context,
        environment: &Environment,
        machines: &BTreeSet<String>,
    ) -> Result<()> {
        let params = Params { machines: Some(machines.clone()), ..about(environment) };
        self.call::<Nothing>(ctx, Method::GiveBack, params).await.map(drop)
    }

    async fn before_preinstall(&self, ctx: &Context, environment: &Environment) -> Result<()> {
        self.call::<Nothing>(ctx, Method::BeforePreinstall, about(environment)).await.map(drop)
    }

    async fn after_preinstall(&self, ctx: &Context, environment: &Environment) -> Result<()> {
        self.call::<Nothing>(ctx, Method::AfterPreinstall, about(environment)).await.map(drop)
    }

    async fn plan(&self, ctx: &Context, reservation: &Reservation) -> Result<Plan> {
        // A provider may leave it to what the document says.
        let plan: Option<Plan> = self.call(ctx, Method::Plan, asking(reservation)).await?;
        Ok(plan.unwrap_or_else(|| Plan::of(reservation)))
    }

    async fn status(&self, ctx: &Context, environment: &Environment) -> Result<Vec<MachineStatus>> {
        self.call(ctx, Method::Status, about(environment)).await
    }
}
