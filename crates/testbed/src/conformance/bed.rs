//! One experiment of a case: its state, and calls that are interrupted.

use std::{
    collections::BTreeMap,
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cloud_providers::{CancellationToken, Error, ErrorKind, OpContext, Result};
use serde_json::Value;
use tokio::time::timeout;

use super::{Harness, Outcome};
use crate::{
    Context, Environment, Event, Features, Keep, Obtained, Progress, ProviderState, Reservation, Testbed,
    async_trait, several,
};

/// No call of a case takes longer.
const BOUND: Duration = Duration::from_secs(300);

/// What a case returns: nothing, or why the testbed does not have it.
pub(super) type Checked = std::result::Result<Option<&'static str>, String>;

/// A case.
pub(super) type Case = for<'a> fn(&'a Bed<'a>) -> Pin<Box<dyn Future<Output = Checked> + Send + 'a>>;

/// Runs one case in experiments of its own, and gives back what it leaves.
pub(super) async fn run(harness: &dyn Harness, name: &str, case: Case) -> Outcome {
    let bed = Bed::new(harness, &name.replace('/', "-"));
    let outcome = match timeout(BOUND, case(&bed)).await {
        Ok(Ok(None)) => Outcome::Passed,
        Ok(Ok(Some(reason))) => Outcome::Skipped(reason.to_owned()),
        Ok(Err(reason)) => Outcome::Failed(reason),
        Err(_) => Outcome::Failed(format!("it did not end within {BOUND:?}")),
    };
    let left = match bed.clean().await {
        Ok(()) => return outcome,
        Err(left) => left,
    };
    match outcome {
        Outcome::Failed(reason) => Outcome::Failed(format!("{reason}; and then: {left}")),
        _ => Outcome::Failed(left),
    }
}

/// Fails a case with words.
pub(super) fn ensure(holds: bool, what: impl Into<String>) -> std::result::Result<(), String> {
    if holds { Ok(()) } else { Err(what.into()) }
}

/// The text of an error.
pub(super) fn text(error: Error) -> String {
    error.report()
}

/// How a call ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Its future is dropped, as when the program is killed.
    Dropped,
    /// It is cancelled, and its answer is waited for.
    Cancelled,
}

pub(super) struct Bed<'a> {
    harness: &'a dyn Harness,
    experiment: String,
    store: Arc<Store>,
    dir: PathBuf,
}

/// Keeps what a provider keeps, and counts what it says.
#[derive(Debug, Default)]
struct Store {
    state: Mutex<ProviderState>,
    told: Mutex<Vec<(String, Event)>>,
    moments: Mutex<(usize, BTreeMap<usize, CancellationToken>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Something was kept or told.
    fn moment(&self) {
        let mut moments = lock(&self.moments);
        moments.0 += 1;
        let now = moments.0;
        if let Some(token) = moments.1.get(&now) {
            token.cancel();
        }
    }
}

#[async_trait]
impl Keep for Store {
    async fn keep(&self, key: &str, value: Option<Value>) -> Result<()> {
        {
            let mut state = lock(&self.state);
            match value {
                Some(value) => _ = state.insert(key.to_owned(), value),
                None => _ = state.remove(key),
            }
        }
        self.moment();
        // A disk takes its time: whoever does not wait is seen not to.
        tokio::task::yield_now().await;
        Ok(())
    }
}

impl Progress for Store {
    fn tell(&self, machine: &str, event: &Event) {
        lock(&self.told).push((machine.to_owned(), event.clone()));
        self.moment();
    }
}

impl<'a> Bed<'a> {
    fn new(harness: &'a dyn Harness, experiment: &str) -> Self {
        let dir =
            std::env::temp_dir().join(format!("testbed-conformance-{}", std::process::id())).join(experiment);
        Self { harness, experiment: experiment.to_owned(), store: Arc::default(), dir }
    }

    /// Another experiment beside this one.
    pub(super) fn other(&self) -> Bed<'a> {
        Self::new(self.harness, &format!("{}-other", self.experiment))
    }

    pub(super) fn takes(&self) -> bool {
        self.harness.takes()
    }

    pub(super) fn reservation(&self, machines: usize) -> Reservation {
        self.harness.reservation(&self.experiment, machines)
    }

    pub(super) async fn open(&self) -> std::result::Result<Arc<dyn Testbed>, String> {
        timeout(BOUND, self.harness.open()).await.map_err(|_| "opening never ends".to_owned())?.map_err(text)
    }

    pub(super) async fn features(&self) -> std::result::Result<Features, String> {
        Ok(self.open().await?.features())
    }

    pub(super) fn context(&self) -> Context {
        let mut ctx = Context::new(&self.dir);
        ctx.op = OpContext::new().with_timeout(BOUND);
        ctx.progress = self.store.clone();
        ctx.keep = self.store.clone();
        ctx.state = lock(&self.store.state).clone();
        ctx
    }

    /// Returns the environment as a later command reads it.
    pub(super) fn environment(&self, reservation: &Reservation, obtained: &Obtained) -> Environment {
        let mut environment = Environment::new(vec![reservation.clone()]);
        environment.obtained = obtained.clone();
        let state = lock(&self.store.state).clone();
        environment.state.insert(reservation.provider.name.clone(), state);
        environment
    }

    /// Forgets what was kept, as when the environment's folder is lost.
    pub(super) fn forget(&self) {
        lock(&self.store.state).clear();
    }

    /// Calls `init` with a new value, and checks what it returns as every program does.
    pub(super) async fn init(&self, machines: usize) -> std::result::Result<Obtained, String> {
        let reservation = self.reservation(machines);
        let got = self.open().await?.init(&self.context(), &reservation).await.map_err(text)?;
        several::settle(&reservation, got).map_err(text)
    }

    /// Calls `init` and ends it early, at the `moment`-th thing that it keeps or tells; 0 is before it starts.
    ///
    /// Returns what it returned, or `None` for a call that was dropped.
    pub(super) async fn interrupted(
        &self,
        machines: usize,
        moment: usize,
        how: How,
    ) -> std::result::Result<Option<Result<Obtained>>, String> {
        let now = CancellationToken::new();
        {
            let mut moments = lock(&self.store.moments);
            *moments = (0, [(moment, now.clone())].into());
        }
        if moment == 0 {
            now.cancel();
        }
        let (testbed, mut ctx, reservation) =
            (self.open().await?, self.context(), self.reservation(machines));
        if how == How::Cancelled {
            ctx.op.cancel = now.clone();
        }
        let init = testbed.init(&ctx, &reservation);
        let ended = tokio::select! {
            biased;
            () = now.cancelled(), if how == How::Dropped => None,
            result = init => Some(result),
        };
        lock(&self.store.moments).1.clear();
        Ok(ended)
    }

    /// Calls `destroy` with a new value.
    pub(super) async fn destroy(&self, obtained: &Obtained) -> std::result::Result<(), String> {
        let environment = self.environment(&self.reservation(3), obtained);
        self.open().await?.destroy(&self.context(), &environment).await.map_err(text)
    }

    /// Checks what is there, asked past the testbed.
    pub(super) async fn expect(&self, machines: usize, when: &str) -> std::result::Result<(), String> {
        let there = self.harness.there(&self.experiment).await.map_err(text)?;
        let wanted = if self.takes() { machines } else { 0 };
        ensure(
            there.len() == wanted,
            format!("{when}, {wanted} machines should be there, and these are: {there:?}"),
        )
    }

    /// Waits until as many are there: a program that was told to end is not through with it at once.
    pub(super) async fn settles_at_most(
        &self,
        machines: usize,
        when: &str,
    ) -> std::result::Result<(), String> {
        let op = OpContext::new();
        let waited = op
            .poll("machines to go", Duration::from_millis(20), Duration::from_secs(30), || async {
                let there = self.harness.there(&self.experiment).await?;
                Ok((there.len() <= machines).then_some(()))
            })
            .await;
        waited.map_err(|error| format!("{when}: {}", error.report()))
    }

    /// Gives back what is left.
    async fn clean(&self) -> std::result::Result<(), String> {
        let others = self.other();
        for bed in [self, &others] {
            let there = bed.harness.there(&bed.experiment).await.map_err(text)?;
            if !there.is_empty() {
                let none = Obtained::default();
                timeout(BOUND, bed.destroy(&none)).await.map_err(|_| "destroy never ends".to_owned())??;
                bed.expect(0, "after the case was cleaned up").await?;
            }
        }
        // The provider may have put files there, or never made it.
        _ = std::fs::remove_dir_all(&self.dir);
        Ok(())
    }
}

/// Says whether an error is what a cancelled call returns.
pub(super) fn is_cancelled(error: &Error) -> bool {
    *error.kind() == ErrorKind::Cancelled
}
