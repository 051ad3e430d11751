//! Creates that are looked at, made to fail, cancelled or dropped on the way.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cloud_providers::{
    CancellationToken, CreateRequest, Error, Instance, OpContext, Record, Resource, Result, async_trait,
};
use tokio::time::{Instant, sleep};

use crate::{
    Effect, Fault, Found, Harness, Obstacle, Offer,
    context::{Context, Snapshot, ensure},
};

/// What a recorder that cannot keep a resource says.
pub(crate) const JOURNAL_FULL: &str = "the journal of the suite is full";

/// What a recorder does at one resource, beside keeping it.
pub(crate) enum Act {
    /// Cancels the call.
    Cancel(CancellationToken),
    /// Says that it cannot keep the resource.
    Fail,
    /// Cancels the token and never returns.
    Hang(CancellationToken),
}

/// What was in the account when a resource was recorded, and what had been recorded until then.
pub(crate) type Look = (Vec<Found>, Vec<Resource>);

/// Keeps what it is told; may do something at one resource, and may look at the account at each.
#[derive(Default)]
pub(crate) struct Recorder {
    kept: Mutex<Vec<Resource>>,
    act: Option<(usize, Act)>,
    observed: Option<Arc<dyn Harness>>,
    looks: Mutex<Vec<Look>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    /// Keeps only.
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Acts at the `n`-th resource, counted from 1.
    pub(crate) fn at(n: usize, act: Act) -> Arc<Self> {
        Arc::new(Self { act: Some((n, act)), ..Self::default() })
    }

    /// Looks at the account before each resource is kept.
    pub(crate) fn looking(harness: Arc<dyn Harness>) -> Arc<Self> {
        Arc::new(Self { observed: Some(harness), ..Self::default() })
    }

    /// Returns what was recorded.
    pub(crate) fn kept(&self) -> Vec<Resource> {
        lock(&self.kept).clone()
    }

    /// Returns what was seen at each resource.
    pub(crate) fn looks(&self) -> Vec<Look> {
        lock(&self.looks).clone()
    }

    /// Returns a context that records here.
    pub(crate) fn context(self: &Arc<Self>) -> OpContext {
        OpContext::new().with_record(self.clone())
    }
}

#[async_trait]
impl Record for Recorder {
    async fn record(&self, resource: &Resource) -> Result<()> {
        let kept = {
            let mut kept = lock(&self.kept);
            kept.push(resource.clone());
            kept.clone()
        };
        if let Some(harness) = &self.observed {
            let found = harness.leftovers().await.map_err(|e| Error::internal(e.to_string()))?;
            lock(&self.looks).push((found, kept.clone()));
        }
        match &self.act {
            Some((at, Act::Cancel(cancel))) if kept.len() == *at => cancel.cancel(),
            Some((at, Act::Fail)) if kept.len() == *at => return Err(Error::internal(JOURNAL_FULL)),
            Some((at, Act::Hang(told))) if kept.len() == *at => {
                told.cancel();
                std::future::pending::<()>().await;
            }
            _ => {}
        }
        Ok(())
    }
}

/// What an undisturbed create looks like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Profile {
    /// How many resources it records.
    pub(crate) records: usize,
    /// How many remote calls it makes, where they can be counted.
    calls: Option<usize>,
    /// How long it takes.
    pub(crate) took: Duration,
}

impl Profile {
    /// Returns the number of remote calls, or skips the check.
    pub(crate) fn calls(&self) -> Offer<usize> {
        self.calls.ok_or_else(|| Obstacle::unsupported("counted calls"))
    }
}

/// How a create is cut short.
#[derive(Clone, Debug)]
pub(crate) enum Cut {
    /// When the n-th resource is recorded.
    Record(usize),
    /// When the n-th remote call hangs, before or after its effect.
    Call(usize, Effect),
    /// After a while.
    After(Duration),
}

/// What is done to it then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Its token is cancelled.
    Cancel,
    /// Its deadline passes.
    Deadline,
    /// Its future is dropped.
    Drop,
}

impl Context {
    /// Says what an undisturbed create takes. It is made once in a case.
    pub(crate) async fn profile(&self) -> Offer<Profile> {
        if let Some(known) = *lock(&self.profile) {
            return Ok(known);
        }
        let profile = self.measure().await?;
        *lock(&self.profile) = Some(profile);
        Ok(profile)
    }

    /// Creates and removes an instance undisturbed.
    async fn measure(&self) -> Offer<Profile> {
        let (before, request, recorder) = (self.look().await?, self.request(), Recorder::new());
        let counted = self.harness.calls().await.ok();
        let start = Instant::now();
        let result = self.try_create(&recorder.context(), &request).await?;
        let took = start.elapsed();
        result.map_err(|e| Obstacle::failed(format!("an undisturbed create failed: {e:?}")))?;
        let calls = match counted {
            Some(first) => Some(self.harness.calls().await?.saturating_sub(first)),
            None => None,
        };
        self.remove(&request, &recorder.kept()).await?;
        self.unchanged(&before, "after an undisturbed create and its removal").await?;
        ensure!(!recorder.kept().is_empty(), "the create recorded nothing");
        Ok(Profile { records: recorder.kept().len(), calls, took })
    }

    /// Skips the check unless the harness can do this to remote calls.
    pub(crate) fn can(&self, effect: Effect) -> Offer<()> {
        if self.harness.effects().contains(&effect) {
            return Ok(());
        }
        Err(Obstacle::unsupported(match effect {
            Effect::Fail => "calls that fail",
            Effect::LoseReply => "lost replies",
            Effect::HangBefore | Effect::HangAfter => "calls that hang",
        }))
    }

    /// Scripts a fault and returns the token that tells when it strikes.
    pub(crate) async fn fault(&self, nth: usize, effect: Effect) -> Offer<CancellationToken> {
        let struck = CancellationToken::new();
        self.harness.inject(Fault { nth, effect, struck: struck.clone() }).await?;
        Ok(struck)
    }

    /// Creates, and cuts the create short. Returns `None` when it was dropped, and what was recorded.
    pub(crate) async fn cut(
        &self,
        request: &CreateRequest,
        cut: &Cut,
        way: Way,
        profile: &Profile,
    ) -> Offer<(Option<Result<Instance>>, Vec<Resource>)> {
        let (moment, cancel) = (CancellationToken::new(), CancellationToken::new());
        let recorder = match (cut, way) {
            (Cut::Record(n), Way::Cancel) => Recorder::at(*n, Act::Cancel(cancel.clone())),
            (Cut::Record(n), _) => Recorder::at(*n, Act::Hang(moment.clone())),
            _ => Recorder::new(),
        };
        let moment = match cut {
            Cut::Call(nth, effect) => self.fault(*nth, *effect).await?,
            _ => moment,
        };
        let mut ctx = recorder.context().with_cancel(cancel.clone());
        if way == Way::Deadline {
            ctx = ctx.with_timeout(match cut {
                Cut::After(time) => *time,
                // Late enough for the call to have come where it hangs.
                _ => profile.took * 2 + Duration::from_millis(200),
            });
        }
        let come = async {
            match cut {
                Cut::After(time) if way != Way::Deadline => sleep(*time).await,
                Cut::After(_) => std::future::pending().await,
                _ => moment.cancelled().await,
            }
        };
        let provider = self.provider().await?;
        let create = provider.create_instance(&ctx, request);
        tokio::pin!(create);
        let limit = self.bounds.operation;
        let what = format!("the create with {cut:?}");
        let early = self
            .within(limit, &what, async {
                tokio::select! {
                    biased;
                    result = &mut create => Some(result),
                    () = come => None,
                }
            })
            .await?;
        let result = match (early, way) {
            (Some(result), _) => Some(result),
            (None, Way::Drop) => None,
            (None, way) => {
                if way == Way::Cancel {
                    cancel.cancel();
                }
                let limit = match way {
                    Way::Cancel => self.bounds.cancel,
                    _ => profile.took * 2 + Duration::from_millis(200) + self.bounds.cancel,
                };
                Some(self.within(limit, &format!("the create after {way:?} at {cut:?}"), &mut create).await?)
            }
        };
        Ok((result, recorder.kept()))
    }
}

/// Returns what came since `before` and is recorded under nothing of `kept`.
pub(crate) fn strays(before: &Snapshot, now: &Snapshot, kept: &[Resource]) -> BTreeSet<Resource> {
    now.values()
        .filter(|f| !before.contains_key(&f.resource))
        .map(|f| f.recorded_as().clone())
        .filter(|r| !kept.contains(r))
        .collect()
}
