//! Makes, finds and removes machines by their tags, over any [`Client`].
//!
//! This keeps the rules of the contract for a cloud whose machines are made by one call and take everything that
//! belongs to them along when they go. Where a machine needs more calls (a disk, an address), make each thing here before
//! the launch, record it, remember it in [`Made`], and remove it after the machine.

mod owned;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use cloud_providers::{
    Architecture, Capabilities, CreateRequest, Error, ErrorKind, Finding, Instance, InstanceId, OpContext, OwnedList, Ownership,
    Provider, Resource, Result, Scope, Token, VerifyReport, async_trait, names::instance_name, tags,
};
use tokio::time::{Instant, timeout};

use self::owned::{Wanted, check_ownership, entries, instance_of};
use crate::{
    client::{Client, Launch, Launched, Machine, State, Tags},
    config::{Config, TAG_LIMIT},
};

/// The architectures of the cloud's machines.
const ARCHITECTURES: &[Architecture] = &[Architecture::X86_64];
/// The most bytes of user data that the cloud takes.
const USER_DATA_LIMIT: usize = 16 * 1024;
/// The most characters of a machine's name.
const NAME_LIMIT: usize = 63;
/// How often a state is asked for.
const POLL: Duration = Duration::from_millis(500);
/// The longest that taking back a failed create may take.
const UNDO_LIMIT: Duration = Duration::from_secs(600);
/// How long the answer to a launch is waited for after the caller gave up: without it nobody knows the machine's id.
const GRACE: Duration = Duration::from_secs(5);
/// How many machines of one token may be gone before its idempotency values are given up.
const GENERATIONS: u32 = 16;
/// How often a removal is tried.
const TRIES: u32 = 3;

/// Makes and deletes machines of __name__.
#[derive(Debug)]
pub struct __Type__Provider {
    client: Arc<dyn Client>,
    /// Tags of the user.
    tags: Tags,
    /// The longest that one remote call may take.
    call_limit: Duration,
    /// The longest that a machine may need to come up or to go.
    state_limit: Duration,
    /// One lock per token: two creates of one token take turns within a process.
    turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// What a create has done so far.
#[derive(Debug, Default)]
struct Made {
    /// Machines that this call made.
    ids: Vec<String>,
    /// Something of this token was there before. Then this call takes back only what it knows that it made.
    adopted: bool,
    /// A launch ended without telling whether it made a machine.
    unclear: bool,
}

impl __Type__Provider {
    pub(crate) fn new(client: Arc<dyn Client>, config: &Config) -> Self {
        Self {
            client,
            tags: config.tags.iter().cloned().collect(),
            call_limit: config.call_timeout,
            state_limit: config.start_timeout,
            turns: Mutex::default(),
        }
    }

    /// Refuses what the request asks for and the provider does not pass on.
    fn check(&self, request: &CreateRequest) -> Result<()> {
        request.check(&self.capabilities())?;
        let mut refused = Vec::new();
        refused.extend(request.spec.instance_type.as_ref().map(|name| format!("instance type {name}")));
        for network in &request.networks {
            refused.extend(network.network.as_ref().map(|name| format!("network {name}")));
            refused.extend(network.address.map(|address| format!("address {address}")));
            refused.extend(network.public.then(|| "a public address".to_owned()));
        }
        if refused.is_empty() {
            return Ok(());
        }
        Err(Error::unsupported(format!("the provider cannot give {}", refused.join(", "))))
    }

    /// Makes one remote call, which ends with the caller, with its deadline, and after the time of a single call.
    async fn remote<T>(
        &self,
        ctx: &OpContext,
        operation: &'static str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        ctx.check()?;
        let limited = async { timeout(self.call_limit, call).await.unwrap_or_else(|_| Err(self.too_late())) };
        ctx.run(limited).await.map_err(|error| named(error, operation))
    }

    fn too_late(&self) -> Error {
        Error::new(ErrorKind::Transient, "the cloud did not answer in time")
            .with("waited", format!("{:?}", self.call_limit))
            .with_code("Timeout")
    }

    /// Makes the call that makes a machine. When the caller gives up meanwhile, its answer is still waited for a little.
    async fn launch(&self, ctx: &OpContext, launch: &Launch) -> Result<Launched> {
        ctx.check()?;
        let limited = timeout(self.call_limit, self.client.launch(launch));
        tokio::pin!(limited);
        let answer = match ctx.run(async { Ok(limited.as_mut().await) }).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(self.too_late())),
            // The next step of the create sees that the caller gave up, and takes back what is known by then.
            Err(given_up) => match timeout(GRACE, limited).await {
                Ok(Ok(Ok(launched))) => Ok(launched),
                _ => Err(given_up),
            },
        };
        answer.map_err(|error| named(error, "launch"))
    }

    /// Lists every machine whose tag `key` is `value`.
    async fn find(&self, ctx: &OpContext, key: &str, value: &str) -> Result<Vec<Machine>> {
        match self.pages(ctx, key, value).await {
            (machines, None) => Ok(machines),
            (_, Some(error)) => Err(error),
        }
    }

    /// Lists page by page and returns what came, and the error that ended it early.
    async fn pages(&self, ctx: &OpContext, key: &str, value: &str) -> (Vec<Machine>, Option<Error>) {
        let mut machines = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let call = self.client.list_machines(key, value, after.as_deref());
            match self.remote(ctx, "list_machines", call).await {
                Ok(page) => {
                    machines.extend(page.machines);
                    match page.next {
                        Some(next) => after = Some(next),
                        None => return (machines, None),
                    }
                }
                Err(error) => return (machines, Some(error)),
            }
        }
    }

    /// Lists what carries the token until changes made before this call must show.
    async fn find_settled(&self, ctx: &OpContext, token: &Token) -> Result<Vec<Machine>> {
        let end = Instant::now() + self.client.list_lag();
        let mut all: Vec<Machine> = Vec::new();
        loop {
            for machine in self.find(ctx, tags::TOKEN, &token.tag_value()).await? {
                if !all.iter().any(|known| known.id == machine.id) {
                    all.push(machine);
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(all);
            }
            ctx.sleep(left.min(POLL)).await?;
        }
    }

    fn turn(&self, token: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = turns.get(token).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        turns.insert(token.to_owned(), Arc::downgrade(&lock));
        lock
    }

    async fn build(&self, ctx: &OpContext, request: &CreateRequest, made: &mut Made) -> Result<Instance> {
        let name = instance_name(&request.unit.name_hint, &request.unit.id, NAME_LIMIT)?;
        let wanted = Wanted::new(request, &self.tags);
        // Looked for first: an earlier call may have been cut off after its launch, in this process or another one.
        let found = self.find(ctx, tags::TOKEN, &wanted.tag).await?;
        if let Some(machine) = self.adoptable(&found, &wanted)? {
            made.adopted = true;
            return self.finish(ctx, &machine.id).await;
        }
        let mut strangers = 0;
        let mut generation = 0;
        while generation < GENERATIONS {
            let launch = Launch {
                name: name.clone(),
                // A cloud may repeat its answer for a machine that is gone, so each generation has a value of its own.
                client_token: request.token.client_token(&format!("generation {generation}")),
                tags: wanted.tags.clone(),
                user_data: request.user_data.clone(),
            };
            match self.launch(ctx, &launch).await {
                Ok(Launched::New(machine)) => {
                    made.ids.push(machine.id.clone());
                    return self.finish(ctx, &machine.id).await;
                }
                Ok(Launched::Known(machine)) if machine.state == State::Going => generation += 1,
                Ok(Launched::Known(machine)) => {
                    made.adopted = true;
                    wanted.adopts(&machine)?;
                    return self.finish(ctx, &machine.id).await;
                }
                Ok(Launched::TokenTaken) => {
                    let found = self.find_settled(ctx, &request.token).await?;
                    if let Some(machine) = self.adoptable(&found, &wanted)? {
                        made.adopted = true;
                        return self.finish(ctx, &machine.id).await;
                    }
                    generation += 1;
                }
                Ok(Launched::NameTaken) => {
                    let found = self.find_settled(ctx, &request.token).await?;
                    if let Some(machine) = self.adoptable(&found, &wanted)? {
                        made.adopted = true;
                        return self.finish(ctx, &machine.id).await;
                    }
                    for going in &found {
                        self.wait_gone(ctx, &going.id).await?;
                    }
                    // Whoever had the name may have gone between the two calls, once.
                    strangers += u32::from(found.is_empty());
                    generation += u32::from(!found.is_empty());
                    if strangers > 1 {
                        let what = "the name is held by a machine that is not of this token";
                        return Err(Error::new(ErrorKind::Conflict, what).with("name", &name));
                    }
                }
                Err(error) => {
                    made.unclear |= is_unclear(&error);
                    return Err(error);
                }
            }
        }
        Err(Error::new(ErrorKind::Conflict, "every machine of this token is gone: take the next attempt")
            .with("token", &request.token))
    }

    /// Returns the machine of this token that is not going, after a look whether it was made for the same request.
    fn adoptable<'a>(&self, found: &'a [Machine], wanted: &Wanted) -> Result<Option<&'a Machine>> {
        found.iter().try_for_each(|machine| wanted.adopts(machine))?;
        Ok(found.iter().find(|machine| machine.state != State::Going))
    }

    /// Records the machine and waits until it is up.
    async fn finish(&self, ctx: &OpContext, id: &str) -> Result<Instance> {
        ctx.record(&Resource::new(Resource::INSTANCE, id)).await?;
        ctx.poll("the machine to start", POLL, self.state_limit, || async {
            match self.remote(ctx, "get_machine", self.client.get_machine(id)).await? {
                Some(machine) if machine.state == State::Starting => Ok(None),
                Some(machine) if machine.state == State::Running && machine.addresses.is_empty() => Ok(None),
                Some(machine) if machine.state == State::Running => Ok(Some(instance_of(&machine))),
                _ => Err(Error::new(ErrorKind::NotFound, "the machine does not run any more").with("id", id)),
            }
        })
        .await
    }

    async fn wait_gone(&self, ctx: &OpContext, id: &str) -> Result<()> {
        ctx.poll("the machine to go", POLL, self.state_limit, || async {
            let machine = self.remote(ctx, "get_machine", self.client.get_machine(id)).await?;
            Ok(machine.is_none().then_some(()))
        })
        .await
    }

    /// Takes back a failed create and returns what is left, each of it recorded.
    async fn undo(&self, ctx: &OpContext, token: &Token, made: Made) -> Vec<Resource> {
        // The call may be cancelled or late; its undo has its own time.
        let ctx = ctx.for_undo(UNDO_LIMIT);
        let mut ids = made.ids;
        let mut left = Vec::new();
        if made.unclear {
            match self.find_settled(&ctx, token).await {
                Ok(found) if !made.adopted => ids.extend(found.into_iter().map(|machine| machine.id)),
                // Kept in the record, so that whoever reads it releases the token.
                _ => left.push(Resource::new("unconfirmed", token.tag_value())),
            }
            ids.sort();
            ids.dedup();
        }
        left.extend(self.remove_all(&ctx, ids).await.into_iter().map(|(resource, _)| resource));
        for resource in &left {
            // The error tells it as well, so a recorder that fails now loses nothing.
            let _ = ctx.record(resource).await;
        }
        left
    }

    /// Removes every machine, goes on after a failure, and returns what is left with its error.
    async fn remove_all(&self, ctx: &OpContext, ids: Vec<String>) -> Vec<(Resource, Error)> {
        let mut left = Vec::new();
        for id in ids {
            if let Err(error) = self.remove(ctx, &id).await {
                left.push((Resource::new(Resource::INSTANCE, id), error));
            }
        }
        left
    }

    async fn remove(&self, ctx: &OpContext, id: &str) -> Result<()> {
        let mut tries = 1;
        loop {
            let removed = async {
                self.remote(ctx, "remove_machine", self.client.remove_machine(id)).await?;
                self.wait_gone(ctx, id).await
            };
            match removed.await {
                Err(error) if tries < TRIES && *error.kind() == ErrorKind::Transient => tries += 1,
                result => return result,
            }
            ctx.sleep(POLL).await?;
        }
    }

    async fn remove_or_report(&self, ctx: &OpContext, ids: Vec<String>) -> Result<()> {
        let left = self.remove_all(ctx, ids).await;
        let Some((_, first)) = left.first() else { return Ok(()) };
        let error = first.clone();
        Err(error.with_leftovers(left.into_iter().map(|(resource, _)| resource)))
    }
}

#[async_trait]
impl Provider for __Type__Provider {
    async fn create_instance(&self, ctx: &OpContext, request: &CreateRequest) -> Result<Instance> {
        self.check(request)?;
        ctx.check()?;
        let lock = self.turn(&request.token.tag_value());
        let _turn = ctx.run(async { Ok(lock.lock().await) }).await?;
        let mut made = Made::default();
        match self.build(ctx, request, &mut made).await {
            Ok(instance) => Ok(instance),
            Err(error) => Err(error.with_leftovers(self.undo(ctx, &request.token, made).await)),
        }
    }

    async fn delete_instance(&self, ctx: &OpContext, id: &InstanceId, ownership: &Ownership) -> Result<()> {
        let call = self.client.get_machine(id.as_str());
        let Some(machine) = self.remote(ctx, "get_machine", call).await? else { return Ok(()) };
        check_ownership(&machine, ownership)?;
        self.remove_or_report(ctx, vec![machine.id]).await
    }

    async fn teardown(&self) -> Result<()> {
        // Nothing is held that would have to be given back.
        Ok(())
    }

    async fn verify_config(&self, ctx: &OpContext) -> Result<VerifyReport> {
        // One finding for each thing that may be wrong: image, network, permissions come beside this one.
        let mut report = VerifyReport::new();
        self.remote(ctx, "check_account", self.client.check_account()).await?;
        report.push(Finding::ok("account", "the cloud takes the credentials"));
        Ok(report)
    }

    async fn list_owned(&self, ctx: &OpContext, scope: &Scope) -> Result<OwnedList> {
        let (machines, error) =
            self.pages(ctx, tags::SCOPE, &tags::encode_value(&scope.to_string())).await;
        match error {
            // Nothing came at all, or the caller ended it: no list to speak of.
            Some(error) if machines.is_empty() || *error.kind() == ErrorKind::Cancelled => Err(error),
            error => Ok(OwnedList::new(entries(&machines), error.is_none())),
        }
    }

    async fn release(&self, ctx: &OpContext, token: &Token) -> Result<()> {
        let found = self.find_settled(ctx, token).await?;
        self.remove_or_report(ctx, found.into_iter().map(|machine| machine.id).collect()).await
    }

    fn capabilities(&self) -> Capabilities {
        let mut can = Capabilities::default();
        can.verify_config = true;
        can.list_owned = true;
        can.release = true;
        can.isolation = true;
        can.architectures = ARCHITECTURES.to_vec();
        can.user_data_limit = Some(USER_DATA_LIMIT);
        can.name_limit = Some(NAME_LIMIT);
        can.tag_limit = Some(TAG_LIMIT);
        can
    }
}

/// Returns whether a launch that ended with `error` may have made a machine.
fn is_unclear(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Transient | ErrorKind::Cancelled | ErrorKind::Internal)
}

fn named(error: Error, operation: &'static str) -> Error {
    if error.operation().is_some() { error } else { error.with_operation(operation) }
}
