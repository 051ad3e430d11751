//! What every case works with: the account, the checks done so far, and looks at what is there.

use std::{
    collections::BTreeMap,
    fmt::Display,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use cloud_providers::{
    Capabilities, CreateRequest, Error, ErrorKind, Instance, MapEnv, OpContext, Ownership, Provider,
    Resource, Result, Scope, Token, Unit, tags,
};
use tokio::time::{Instant, sleep, timeout};

use crate::{Bounds, CaseReport, Found, Harness, Obstacle, Offer, Outcome, interrupt::Profile, skips::Skips};

/// How often a state is looked at.
const REST: Duration = Duration::from_millis(20);

/// Ends a check unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::Obstacle::failed(format!($($text)+)));
        }
    };
}
pub(crate) use ensure;

/// What the checks of a case gave so far.
#[derive(Debug, Default)]
pub(crate) struct Checks(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    current: &'static str,
    passed: Vec<String>,
    skipped: Vec<(String, String)>,
    failed: Vec<String>,
}

impl Checks {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the report of a case.
    pub(crate) fn report(
        &self,
        id: &'static str,
        ended: Option<String>,
        skips: &Skips,
        took: Duration,
    ) -> CaseReport {
        let mut state = self.lock();
        let current = state.current;
        state.failed.extend(ended.map(|text| format!("{current}: {text}")));
        let mut skipped = Vec::new();
        let outcome = if !state.failed.is_empty() {
            Outcome::Failed(state.failed.clone())
        } else if !state.passed.is_empty() {
            Outcome::Passed
        } else if state.skipped.is_empty() {
            Outcome::Failed(vec!["no check ran".into()])
        } else {
            let missing: std::collections::BTreeSet<&str> =
                state.skipped.iter().map(|(_, c)| c.as_str()).collect();
            let capability = missing.into_iter().collect::<Vec<_>>().join(", ");
            Outcome::Skipped { capability, allowed: skips.reason(id).map(str::to_owned) }
        };
        if !matches!(outcome, Outcome::Skipped { .. }) {
            for (check, capability) in &state.skipped {
                let id = format!("{id}#{check}");
                let allowed = skips.reason(&id).map(str::to_owned);
                skipped.push((id, capability.clone(), allowed));
            }
        }
        CaseReport { id, outcome, checks: state.passed.clone(), skipped, took }
    }
}

/// One case at work.
pub(crate) struct Context {
    pub(crate) harness: Arc<dyn Harness>,
    pub(crate) bounds: Bounds,
    case: &'static str,
    checks: Arc<Checks>,
    /// Requests made, so that each check can be tidied up after.
    requests: Mutex<Vec<CreateRequest>>,
    /// What an undisturbed create takes, once it was measured.
    pub(crate) profile: Mutex<Option<Profile>>,
}

/// Everything in the account at one moment.
pub(crate) type Snapshot = BTreeMap<Resource, Found>;

impl Context {
    pub(crate) fn new(case: &'static str, harness: Arc<dyn Harness>, checks: Arc<Checks>) -> Self {
        Self {
            bounds: harness.bounds(),
            harness,
            case,
            checks,
            requests: Mutex::default(),
            profile: Mutex::default(),
        }
    }

    /// Runs one check of the case. The case goes on whatever comes of it.
    pub(crate) async fn check(&self, name: &'static str, check: impl Future<Output = Offer<()>> + Send) {
        self.checks.lock().current = name;
        let result = Box::pin(check).await;
        let result = result.and(self.harness.clear_faults().await);
        self.tidy_up().await;
        let mut state = self.checks.lock();
        match result {
            Ok(()) => state.passed.push(name.to_owned()),
            Err(Obstacle::Unsupported(capability)) => state.skipped.push((name.to_owned(), capability)),
            Err(Obstacle::Failed(text)) => state.failed.push(format!("{name}: {text}")),
        }
        state.current = "after the checks";
    }

    /// Removes what the check made, so that the next one begins with room. A failure shows in the next check.
    async fn tidy_up(&self) {
        let requests = std::mem::take(&mut *lock(&self.requests));
        if requests.is_empty() {
            return;
        }
        let Ok(provider) = self.harness.provider().await else { return };
        for request in requests {
            let ctx = OpContext::new().with_timeout(self.bounds.operation);
            // The clean-up of a check that failed may fail too; the account is thrown away at the end of the case.
            let _ = timeout(self.bounds.operation, provider.release(&ctx, &request.token)).await;
        }
    }

    /// Returns a scope that belongs to this case.
    pub(crate) fn scope(&self) -> Scope {
        Scope::Cluster(format!("conformance-{}-{}", self.case.replace('/', "-"), std::process::id()))
    }

    /// Returns a valid request for a unit of its own.
    pub(crate) fn request(&self) -> CreateRequest {
        self.request_in(self.scope())
    }

    /// Returns a valid request for a unit of its own in a scope.
    pub(crate) fn request_in(&self, scope: Scope) -> CreateRequest {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        // The first eight characters stand in names, so they tell units apart also when several processes run.
        let id = tags::hash(&format!("{} {} {n}", self.case, std::process::id()), 64);
        self.request_for(Token::new(scope, id, 1))
    }

    /// Returns a valid request for a token.
    pub(crate) fn request_for(&self, token: Token) -> CreateRequest {
        let unit = Unit { id: token.unit.clone(), name_hint: "conformance".into() };
        let request = self.harness.request(CreateRequest::new(token, unit, "node-1"));
        lock(&self.requests).push(request.clone());
        request
    }

    /// Lets a request that differs from those given out be tidied up after the check.
    pub(crate) fn keep(&self, request: &CreateRequest) {
        lock(&self.requests).push(request.clone());
    }

    pub(crate) async fn provider(&self) -> Offer<Arc<dyn Provider>> {
        self.harness.provider().await
    }

    pub(crate) async fn capabilities(&self) -> Offer<Capabilities> {
        Ok(self.provider().await?.capabilities())
    }

    /// Returns the variables of this account with `more` on top.
    pub(crate) fn environment(&self, more: &[(String, String)]) -> MapEnv {
        MapEnv::new(self.harness.variables().into_iter().chain(more.iter().cloned()))
    }

    /// Skips the check unless the provider has a capability.
    pub(crate) async fn needs(&self, what: &str, has: impl FnOnce(&Capabilities) -> bool) -> Offer<()> {
        if has(&self.capabilities().await?) { Ok(()) } else { Err(Obstacle::unsupported(what)) }
    }

    /// Returns everything that is in the account now.
    pub(crate) async fn look(&self) -> Offer<Snapshot> {
        let found = self.harness.leftovers().await?;
        Ok(found.into_iter().map(|f| (f.resource.clone(), f)).collect())
    }

    /// Checks that the account holds exactly what it held at `before`.
    pub(crate) async fn unchanged(&self, before: &Snapshot, when: impl Display) -> Offer<()> {
        match difference(before, &self.look().await?) {
            None => Ok(()),
            Some(text) => Err(Obstacle::failed(format!("{when}: {text}"))),
        }
    }

    /// Waits until the account holds what it held at `before`, for work that a dropped call has begun.
    pub(crate) async fn settles_to(&self, before: &Snapshot, when: impl Display) -> Offer<()> {
        let end = Instant::now() + self.bounds.settle;
        loop {
            let Some(text) = difference(before, &self.look().await?) else { return Ok(()) };
            if Instant::now() >= end {
                return Err(Obstacle::failed(format!(
                    "{when}: {text}, {:?} later still",
                    self.bounds.settle
                )));
            }
            sleep(REST).await;
        }
    }

    /// Waits until two looks a moment apart show the same, and returns it.
    pub(crate) async fn still(&self) -> Offer<Snapshot> {
        let end = Instant::now() + self.bounds.settle;
        let mut last = self.look().await?;
        loop {
            sleep(REST).await;
            let now = self.look().await?;
            if now.keys().eq(last.keys()) {
                return Ok(now);
            }
            ensure!(
                Instant::now() < end,
                "the account does not come to rest within {:?}",
                self.bounds.settle
            );
            last = now;
        }
    }

    /// Waits for a call within a bound.
    pub(crate) async fn within<T>(
        &self,
        limit: Duration,
        what: &str,
        call: impl Future<Output = T> + Send,
    ) -> Offer<T> {
        let late = |_| Obstacle::failed(format!("{what} did not end within {limit:?}"));
        timeout(limit, call).await.map_err(late)
    }

    /// Creates through a provider value of its own, within the bound of operations.
    pub(crate) async fn try_create(
        &self,
        ctx: &OpContext,
        request: &CreateRequest,
    ) -> Offer<Result<Instance>> {
        let provider = self.provider().await?;
        self.within(self.bounds.operation, "the create", provider.create_instance(ctx, request)).await
    }

    /// Creates, and demands that it succeeds and gives id, name and address.
    pub(crate) async fn create(&self, request: &CreateRequest) -> Offer<Instance> {
        let result = self.try_create(&OpContext::new(), request).await?;
        let instance = result.map_err(|e| Obstacle::failed(format!("the create failed: {e:?}")))?;
        ensure!(!instance.id.as_str().is_empty(), "the instance has no id: {instance:?}");
        ensure!(!instance.name.is_empty(), "the instance has no name: {instance:?}");
        ensure!(!instance.addresses.is_empty(), "the instance has no address: {instance:?}");
        Ok(instance)
    }

    /// Deletes through a provider value of its own, within the bound of operations.
    pub(crate) async fn try_delete(&self, instance: &Instance, ownership: &Ownership) -> Offer<Result<()>> {
        let (provider, ctx) = (self.provider().await?, OpContext::new());
        let call = provider.delete_instance(&ctx, &instance.id, ownership);
        self.within(self.bounds.operation, "the delete", call).await
    }

    /// Deletes an instance of this case's scope and demands that it succeeds.
    pub(crate) async fn delete(&self, instance: &Instance) -> Offer<()> {
        let result = self.try_delete(instance, &Ownership::Tagged(self.scope())).await?;
        result.map_err(|e| Obstacle::failed(format!("the delete failed: {e:?}")))
    }

    /// Removes everything of a request: by its token, or else by the ids that were recorded.
    pub(crate) async fn remove(&self, request: &CreateRequest, recorded: &[Resource]) -> Offer<()> {
        let (provider, ctx) = (self.provider().await?, OpContext::new());
        if provider.capabilities().release {
            let call = provider.release(&ctx, &request.token);
            let result = self.within(self.bounds.operation, "the release", call).await?;
            return result.map_err(|e| Obstacle::failed(format!("the release failed: {e:?}")));
        }
        for resource in recorded.iter().filter(|r| r.kind == Resource::INSTANCE) {
            let id = cloud_providers::InstanceId::new(&resource.id);
            let ownership = Ownership::Tagged(request.token.scope.clone());
            let call = provider.delete_instance(&ctx, &id, &ownership);
            let result = self.within(self.bounds.operation, "the delete", call).await?;
            result.map_err(|e| Obstacle::failed(format!("the delete of {resource} failed: {e:?}")))?;
        }
        Ok(())
    }

    /// Checks that exactly one instance came since `before`, and returns its id.
    pub(crate) async fn one_instance(&self, before: &Snapshot, when: impl Display) -> Offer<String> {
        let now = self.look().await?;
        let new: Vec<&str> = now
            .keys()
            .filter(|r| r.kind == Resource::INSTANCE && !before.contains_key(r))
            .map(|r| r.id.as_str())
            .collect();
        match new[..] {
            [one] => Ok(one.to_owned()),
            _ => Err(Obstacle::failed(format!("{when}: one instance was to be there, found {new:?}"))),
        }
    }

    /// Returns up to `bounds.points` numbers from 1 to `count`, spread evenly, the last one among them.
    pub(crate) fn points(&self, count: usize) -> Vec<usize> {
        let wanted = self.bounds.points.min(count);
        let mut all: Vec<usize> = (1..=wanted).map(|i| i * count / wanted.max(1)).collect();
        all.dedup();
        all
    }

    /// Returns moments from 0 to `time`, the earlier the denser: the next create may be quicker than the measured one.
    pub(crate) fn moments(&self, time: Duration) -> Vec<Duration> {
        let count = u32::try_from(self.bounds.moments).unwrap_or(u32::MAX);
        (0..count).map(|i| time.mul_f64((f64::from(i) / f64::from(count)).powi(2))).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says how two snapshots differ.
fn difference(before: &Snapshot, now: &Snapshot) -> Option<String> {
    let list =
        |resources: Vec<&Resource>| resources.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let came: Vec<&Resource> = now.keys().filter(|r| !before.contains_key(r)).collect();
    let went: Vec<&Resource> = before.keys().filter(|r| !now.contains_key(r)).collect();
    let mut parts = Vec::new();
    if !came.is_empty() {
        parts.push(format!("there is {}", list(came)));
    }
    if !went.is_empty() {
        parts.push(format!("{} is gone", list(went)));
    }
    (!parts.is_empty()).then(|| parts.join(" and "))
}

/// Demands an error of a kind.
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T>, kind: &ErrorKind, what: &str) -> Offer<Error> {
    match result {
        Err(error) if error.kind() == kind => Ok(error),
        other => Err(Obstacle::failed(format!("{what} must be {kind}, and is {other:?}"))),
    }
}
