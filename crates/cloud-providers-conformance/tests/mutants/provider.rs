//! Providers that each break one rule.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cloud_providers::{
    CancellationToken, Capabilities, Confidential, ConsoleTail, CreateRequest, Error, ErrorKind, Instance,
    InstanceId, InstanceState, OpContext, Owned, OwnedList, Ownership, Provider, Record, Resource, Result,
    Retry, Scope, Token, VerifyReport, async_trait,
    scripted::{DISK, Remote, ScriptedProvider, VOLUME, World},
    tags,
};

/// What a provider does wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    MakesAnother,
    IgnoresWhoIsAtWork,
    AsksAgainForAnother,
    ReturnsWhatTheTokenHas,
    AdoptsByName,
    LeavesADiskBehind,
    LeavesADiskWhenCancelled,
    HidesLeftovers,
    RecordsAtTheEnd,
    GoesOnUnrecorded,
    Downgrades,
    PassesOverGpus,
    LooksBeforeItChecks,
    DemandsThatItExists,
    DeletesTheInstanceOnly,
    BelievesThatMissingIsClean,
    DeletesVolumes,
    DeletesAnything,
    KnowsNoNames,
    ListsPartsApart,
    AlwaysComplete,
    CallsEverythingStopped,
    ListsEverything,
    ReleasesInstancesOnly,
    ReleasesWhatExists,
    ReleasesTheScope,
    ForgetsTheHolder,
    DoesNotEncode,
    TearsInstancesDown,
    TearsDownOnce,
    TriesOut,
    /// Says that all is well and does not say what was looked at.
    LooksAtNothing,
    TellsWholeConsoles,
    /// Takes an instance that is not there for a silent one.
    ReadsWhatIsGone,
    Boasts,
    SaysThatItFailed,
    WaitsForEver,
    DoesNotListen,
    LogsUserData,
    LooksAtTheDeadlineOnce,
    DoesNotWaitForTheRecord,
    RecordsTheInstanceOnly,
    IgnoresTheRecord,
    RemovesWhatIsInTheWay,
    PromisesToDelete,
    ForgetsDisks,
    ListsNothingInstead,
    KnowsNoTime,
    DeniesWhatItDoes,
    NeverTriesAgain,
    ReturnsTooEarly,
    NoticesLate,
}

/// A provider that does everything right but one thing.
#[derive(Debug)]
pub(crate) struct Broken {
    inner: Arc<dyn Provider>,
    world: World,
    how: Break,
    torn_down: AtomicBool,
}

impl Broken {
    pub(crate) fn new(inner: Arc<dyn Provider>, world: &World, how: Break) -> Self {
        let inner = match how {
            Break::WaitsForEver => {
                let years = Duration::from_secs(100_000_000);
                Arc::new(ScriptedProvider::new(world).with_call_limit(years).with_state_limit(years))
            }
            _ => inner,
        };
        Self { inner, world: world.clone(), how, torn_down: AtomicBool::new(false) }
    }

    fn of_token(&self, token: &Token) -> Vec<Remote> {
        let all = self.world.resources().into_iter();
        all.filter(|r| r.tags.get(tags::TOKEN) == Some(&token.tag_value())).collect()
    }

    fn by_id(&self, id: &str) -> Option<Remote> {
        self.world.resources().into_iter().find(|r| r.resource.id == id)
    }

    fn leave_a_disk(&self, token: &Token) {
        let tag = token.tag_value();
        self.world.add(DISK, "forgotten", &[(tags::TOKEN, &tag)]);
    }
}

/// Asks for the same under another unit.
fn under_another_unit(request: &CreateRequest) -> CreateRequest {
    let mut other = request.clone();
    other.unit.id = tags::hash(&format!("another {}", request.unit.id), 64);
    other.token.unit.clone_from(&other.unit.id);
    other
}

fn instance_of(remote: &Remote) -> Instance {
    Instance::new(InstanceId::new(&remote.resource.id), &remote.name, remote.address.into_iter().collect())
}

fn is_instance(remote: &Remote) -> bool {
    remote.resource.kind == Resource::INSTANCE
}

/// Keeps resources back until it is told that all is done.
#[derive(Default)]
struct Later(Mutex<Vec<Resource>>);

#[async_trait]
impl Record for Later {
    async fn record(&self, resource: &Resource) -> Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(resource.clone());
        Ok(())
    }
}

/// Records what a rule says, but not as it says.
struct Careless {
    to: Arc<dyn Record>,
    how: Break,
}

#[async_trait]
impl Record for Careless {
    async fn record(&self, resource: &Resource) -> Result<()> {
        match self.how {
            Break::DoesNotWaitForTheRecord => {
                let (to, resource) = (self.to.clone(), resource.clone());
                tokio::spawn(async move { to.record(&resource).await });
                Ok(())
            }
            Break::RecordsTheInstanceOnly if resource.kind != Resource::INSTANCE => Ok(()),
            _ => {
                // Whether it was kept does not matter to it.
                let _ = self.to.record(resource).await;
                Ok(())
            }
        }
    }
}

/// Records as long as somebody waits for the call.
struct WhileAwaited {
    to: Arc<dyn Record>,
    dropped: CancellationToken,
}

#[async_trait]
impl Record for WhileAwaited {
    async fn record(&self, resource: &Resource) -> Result<()> {
        if self.dropped.is_cancelled() { Ok(()) } else { self.to.record(resource).await }
    }
}

#[async_trait]
impl Provider for Broken {
    async fn create_instance(&self, ctx: &OpContext, request: &CreateRequest) -> Result<Instance> {
        let inner = &self.inner;
        match self.how {
            Break::MakesAnother if !self.of_token(&request.token).is_empty() => {
                inner.create_instance(ctx, &under_another_unit(request)).await
            }
            Break::IgnoresWhoIsAtWork
                if !self.of_token(&request.token).is_empty()
                    && !self.of_token(&request.token).iter().any(is_instance) =>
            {
                inner.create_instance(ctx, &under_another_unit(request)).await
            }
            Break::AsksAgainForAnother => match inner.create_instance(ctx, request).await {
                Err(error) if *error.kind() == ErrorKind::Transient => {
                    inner.create_instance(ctx, &under_another_unit(request)).await
                }
                result => result,
            },
            Break::ReturnsWhatTheTokenHas => match inner.create_instance(ctx, request).await {
                Err(error) if *error.kind() == ErrorKind::Conflict => self
                    .of_token(&request.token)
                    .iter()
                    .find(|r| is_instance(r))
                    .map(instance_of)
                    .ok_or(error),
                result => result,
            },
            Break::AdoptsByName => match inner.create_instance(ctx, request).await {
                Err(error) if *error.kind() == ErrorKind::Conflict => {
                    let all = self.world.resources();
                    let named = all.iter().find(|r| is_instance(r) && !r.tags.contains_key(tags::TOKEN));
                    named.map(instance_of).ok_or(error)
                }
                result => result,
            },
            Break::LeavesADiskBehind | Break::LeavesADiskWhenCancelled => {
                let result = inner.create_instance(ctx, request).await;
                let wanted = match self.how {
                    Break::LeavesADiskBehind => [ErrorKind::Quota, ErrorKind::Transient],
                    _ => [ErrorKind::Cancelled, ErrorKind::Cancelled],
                };
                if result.as_ref().is_err_and(|e| wanted.contains(e.kind())) {
                    self.leave_a_disk(&request.token);
                }
                result
            }
            Break::HidesLeftovers => inner.create_instance(ctx, request).await.map_err(|error| {
                let mut data = serde_json::to_value(&error).expect("errors are plain data");
                data["leftovers"] = serde_json::json!([]);
                serde_json::from_value(data).expect("it was an error")
            }),
            Break::RecordsAtTheEnd => {
                let later = Arc::new(Later::default());
                let result = inner.create_instance(&ctx.clone().with_record(later.clone()), request).await;
                let kept = later.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
                for resource in &kept {
                    ctx.record(resource).await?;
                }
                result
            }
            Break::GoesOnUnrecorded => {
                let dropped = CancellationToken::new();
                let _guard = dropped.clone().drop_guard();
                let record = Arc::new(WhileAwaited { to: ctx.record.clone(), dropped });
                let (inner, ctx, request) = (inner.clone(), ctx.clone().with_record(record), request.clone());
                let task = tokio::spawn(async move { inner.create_instance(&ctx, &request).await });
                task.await.map_err(|e| Error::internal(e.to_string()))?
            }
            Break::Downgrades => {
                let mut request = request.clone();
                request.spec.confidential = Confidential::No;
                inner.create_instance(ctx, &request).await
            }
            Break::PassesOverGpus => {
                let mut request = request.clone();
                request.spec.gpus = 0;
                inner.create_instance(ctx, &request).await
            }
            Break::LooksBeforeItChecks => {
                inner.list_owned(ctx, &request.token.scope).await?;
                inner.create_instance(ctx, request).await
            }
            Break::ForgetsTheHolder | Break::DoesNotEncode => {
                let instance = inner.create_instance(ctx, request).await?;
                let value = (self.how == Break::DoesNotEncode).then_some(request.holder.as_str());
                for remote in self.of_token(&request.token) {
                    self.world.set_tag(&remote.resource.id, tags::HOLDER, value)?;
                }
                Ok(instance)
            }
            Break::SaysThatItFailed => inner
                .create_instance(ctx, request)
                .await
                .map_err(|e| Error::new(e.kind().clone(), "it failed")),
            Break::DoesNotListen => {
                let deaf = OpContext::new().with_record(ctx.record.clone());
                inner.create_instance(&deaf, request).await
            }
            Break::LooksAtTheDeadlineOnce => {
                ctx.check()?;
                let mut without = ctx.clone();
                without.deadline = None;
                inner.create_instance(&without, request).await
            }
            Break::DoesNotWaitForTheRecord | Break::RecordsTheInstanceOnly | Break::IgnoresTheRecord => {
                let record = Arc::new(Careless { to: ctx.record.clone(), how: self.how });
                inner.create_instance(&ctx.clone().with_record(record), request).await
            }
            Break::RemovesWhatIsInTheWay => match inner.create_instance(ctx, request).await {
                Err(error) if *error.kind() == ErrorKind::Conflict => {
                    let foreign =
                        |r: &&Remote| !r.tags.contains_key(tags::TOKEN) && r.resource.kind != VOLUME;
                    for remote in self.world.resources().iter().filter(foreign) {
                        self.world.remove(&remote.resource.id)?;
                    }
                    inner.create_instance(ctx, request).await
                }
                result => result,
            },
            Break::KnowsNoTime => {
                let instance = inner.create_instance(ctx, request).await?;
                for remote in self.of_token(&request.token) {
                    self.world.set_tag(&remote.resource.id, tags::CREATED, Some("0"))?;
                }
                Ok(instance)
            }
            Break::NeverTriesAgain => {
                inner.create_instance(ctx, request).await.map_err(|e| e.with_retry(Retry::Never))
            }
            Break::ReturnsTooEarly => {
                self.world.set_boot_time(Duration::ZERO);
                inner.create_instance(ctx, request).await
            }
            Break::NoticesLate => {
                let start = tokio::time::Instant::now();
                let instance = inner.create_instance(ctx, request).await?;
                // It was not up at the first look, and the second one comes much later.
                if start.elapsed() > Duration::from_millis(500) {
                    tokio::time::sleep(Duration::from_secs(2)).await;
                }
                Ok(instance)
            }
            Break::LogsUserData => {
                let text = String::from_utf8_lossy(request.user_data.as_bytes());
                tracing::debug!(user_data = %text, "creating");
                inner.create_instance(ctx, request).await
            }
            _ => inner.create_instance(ctx, request).await,
        }
    }

    async fn delete_instance(&self, ctx: &OpContext, id: &InstanceId, ownership: &Ownership) -> Result<()> {
        let there = self.by_id(id.as_str());
        match (self.how, there) {
            (Break::DemandsThatItExists, None) => {
                Err(Error::new(ErrorKind::NotFound, "there is no such instance").with("id", id))
            }
            (Break::PromisesToDelete, Some(_)) => {
                let (inner, ctx, id, ownership) =
                    (self.inner.clone(), ctx.clone(), id.clone(), ownership.clone());
                tokio::spawn(async move { inner.delete_instance(&ctx, &id, &ownership).await });
                Ok(())
            }
            (Break::BelievesThatMissingIsClean, None) => Ok(()),
            (Break::DeletesTheInstanceOnly, Some(there)) if there.tags.contains_key(tags::TOKEN) => {
                self.world.remove(id.as_str())
            }
            (Break::DeletesVolumes, Some(there)) => {
                self.inner.delete_instance(ctx, id, ownership).await?;
                let mut volumes = there.attached.iter().filter(|r| r.kind == VOLUME);
                volumes.try_for_each(|volume| self.world.remove(&volume.id))
            }
            (Break::DeletesAnything, Some(there)) => {
                self.inner.delete_instance(ctx, id, &Ownership::Recorded { name: there.name }).await
            }
            (Break::KnowsNoNames, Some(_)) if matches!(ownership, Ownership::Recorded { .. }) => {
                Err(Error::new(ErrorKind::Permission, "names prove nothing").with("id", id))
            }
            _ => self.inner.delete_instance(ctx, id, ownership).await,
        }
    }

    async fn teardown(&self) -> Result<()> {
        match self.how {
            Break::TearsInstancesDown => {
                let all = self.world.resources();
                all.iter().filter(|r| is_instance(r)).try_for_each(|r| self.world.remove(&r.resource.id))
            }
            Break::TearsDownOnce if self.torn_down.swap(true, Ordering::Relaxed) => {
                Err(Error::internal("this was torn down before"))
            }
            _ => self.inner.teardown().await,
        }
    }

    async fn verify_config(&self, ctx: &OpContext) -> Result<VerifyReport> {
        if self.how == Break::TriesOut {
            self.world.add(DISK, "tried-out", &[]);
        }
        match self.inner.verify_config(ctx).await {
            Ok(_) if self.how == Break::LooksAtNothing => Ok(VerifyReport::new()),
            other => other,
        }
    }

    async fn list_owned(&self, ctx: &OpContext, scope: &Scope) -> Result<OwnedList> {
        let list = self.inner.list_owned(ctx, scope).await;
        if self.how == Break::ListsNothingInstead && list.is_err() {
            return Ok(OwnedList::new(Vec::new(), false));
        }
        let mut list = list?;
        match self.how {
            Break::ListsPartsApart => {
                let apart = |entry: &Owned| -> Vec<Owned> {
                    let one = |resource: &Resource| {
                        let mut one = entry.clone();
                        one.resources = vec![resource.clone()];
                        one
                    };
                    entry.resources.iter().map(one).collect()
                };
                list.entries = list.entries.iter().flat_map(apart).collect();
            }
            Break::ForgetsDisks => {
                list.entries.iter_mut().for_each(|entry| entry.resources.retain(|r| r.kind != DISK));
            }
            Break::AlwaysComplete => list.complete = true,
            Break::CallsEverythingStopped => {
                list.entries.iter_mut().for_each(|entry| entry.state = InstanceState::Stopped);
            }
            Break::ListsEverything => {
                for remote in self.world.resources() {
                    let Some(tag) = remote.tags.get(tags::TOKEN) else { continue };
                    if list.entries.iter().all(|e| e.token_tag != *tag) {
                        list.entries.push(Owned::new(tag));
                    }
                }
            }
            _ => {}
        }
        Ok(list)
    }

    async fn release(&self, ctx: &OpContext, token: &Token) -> Result<()> {
        match self.how {
            Break::ReleasesInstancesOnly if !self.of_token(token).iter().any(is_instance) => Ok(()),
            Break::ReleasesWhatExists if self.of_token(token).is_empty() => {
                Err(Error::new(ErrorKind::NotFound, "nothing carries the token").with("token", token))
            }
            Break::ReleasesTheScope => {
                let list = self.inner.list_owned(ctx, &token.scope).await?;
                for token in list.entries.into_iter().filter_map(|entry| entry.token) {
                    self.inner.release(ctx, &token).await?;
                }
                Ok(())
            }
            _ => self.inner.release(ctx, token).await,
        }
    }

    async fn console(&self, ctx: &OpContext, id: &InstanceId, limit: usize) -> Result<ConsoleTail> {
        match (self.how, self.inner.console(ctx, id, limit).await) {
            (Break::TellsWholeConsoles, Ok(_)) => self.inner.console(ctx, id, usize::MAX).await,
            (Break::ReadsWhatIsGone, Err(_)) => Ok(ConsoleTail::default()),
            (_, read) => read,
        }
    }

    fn capabilities(&self) -> Capabilities {
        let mut can = self.inner.capabilities();
        can.multi_nic |= self.how == Break::Boasts;
        can.verify_config &= self.how != Break::DeniesWhatItDoes;
        can
    }
}
