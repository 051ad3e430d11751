//! A whole provider over the double's cloud.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::{Instant, timeout};

use super::{
    DISK, INSTANCE_TAG, INTERFACE, VOLUME,
    client::{EXISTS, RunRequest, Tags},
    undo::{Made, is_unclear},
    world::{Remote, World},
};
use crate::{
    Capabilities, Confidential, ConsoleTail, CreateRequest, Error, ErrorKind, Finding, Instance, InstanceId,
    InstanceState, OpContext, Owned, OwnedList, Ownership, Provider, Resource, Result, Scope, Token,
    UserData, VerifyReport, names::instance_name, tags,
};

/// How often a state is asked for.
pub(super) const POLL: Duration = Duration::from_millis(100);
/// How many instances of one token may be gone before its idempotency values are given up.
const GENERATIONS: u32 = 16;

/// A provider in memory that follows every rule of the contract.
#[derive(Debug)]
pub struct ScriptedProvider {
    pub(super) world: World,
    capabilities: Capabilities,
    /// The longest that one remote call may take.
    call_limit: Duration,
    /// The longest that an instance may need to come or go.
    pub(super) state_limit: Duration,
    /// Tags that the user wants on everything.
    user_tags: Tags,
    /// Whether a request that says nothing asks for a confidential machine.
    confidential: bool,
    /// One lock per token: two creates of one token take turns within a process.
    tokens: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl ScriptedProvider {
    /// Makes a provider over `world`.
    pub fn new(world: &World) -> Self {
        Self {
            world: world.clone(),
            capabilities: Capabilities {
                verify_config: true,
                list_owned: true,
                release: true,
                console: true,
                volumes: true,
                instance_types: true,
                plain_machines: true,
                user_data_limit: Some(16 * 1024),
                name_limit: Some(63),
                ..Capabilities::default()
            },
            call_limit: Duration::from_secs(30),
            state_limit: Duration::from_secs(300),
            user_tags: Tags::new(),
            confidential: false,
            tokens: Mutex::default(),
        }
    }

    /// Puts tags of the user on everything that is made.
    #[must_use]
    pub fn with_user_tags(mut self, tags: impl IntoIterator<Item = (String, String)>) -> Self {
        self.user_tags = tags.into_iter().collect();
        self
    }

    /// Lets requests that say nothing about it ask for a confidential machine.
    #[must_use]
    pub fn with_confidential(mut self, confidential: bool) -> Self {
        self.confidential = confidential;
        self
    }

    /// Replaces the capabilities: what is switched off there is refused.
    #[must_use]
    pub fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// Sets how long a remote call may stay unanswered.
    #[must_use]
    pub fn with_call_limit(mut self, limit: Duration) -> Self {
        self.call_limit = limit;
        self
    }

    /// Sets how long an instance may need to come or go.
    #[must_use]
    pub fn with_state_limit(mut self, limit: Duration) -> Self {
        self.state_limit = limit;
        self
    }

    /// Runs a remote call within the bounds of the operation and of a single call.
    pub(super) async fn remote<T>(
        &self,
        ctx: &OpContext,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let limit = self.call_limit;
        ctx.run(async {
            let late = || Error::new(ErrorKind::Transient, "the cloud did not answer in time");
            timeout(limit, call).await.unwrap_or_else(|_| Err(late().with("waited", format!("{limit:?}"))))
        })
        .await
    }

    /// Lists everything whose tag `key` is `value`, over all pages.
    pub(super) async fn find(&self, ctx: &OpContext, key: &str, value: &str) -> Result<Vec<Remote>> {
        match self.pages(ctx, key, value).await {
            (found, None) => Ok(found),
            (_, Some(error)) => Err(error),
        }
    }

    /// Lists page by page and returns what came, and the error that ended it early.
    async fn pages(&self, ctx: &OpContext, key: &str, value: &str) -> (Vec<Remote>, Option<Error>) {
        let mut found = Vec::new();
        let mut next = None;
        loop {
            match self.remote(ctx, self.world.list_resources(key, value, next)).await {
                Ok((page, mark)) => {
                    found.extend(page);
                    match mark {
                        Some(mark) => next = Some(mark),
                        None => return (found, None),
                    }
                }
                Err(error) => return (found, Some(error)),
            }
        }
    }

    fn token_lock(&self, token: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = tokens.get(token).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        tokens.insert(token.to_owned(), Arc::downgrade(&lock));
        lock
    }

    async fn build(&self, ctx: &OpContext, request: &CreateRequest, made: &mut Made) -> Result<Instance> {
        let name = instance_name(
            &request.unit.name_hint,
            &request.unit.id,
            self.capabilities.name_limit.unwrap_or_default(),
        )?;
        let wanted = Wanted::new(request, &self.user_tags);
        let found = self.find(ctx, tags::TOKEN, &wanted.tag).await?;
        for remote in &found {
            wanted.adopts(remote)?;
        }
        if let Some(instance) = found.iter().find(|r| r.resource.kind == Resource::INSTANCE && !r.is_going())
        {
            made.adopted = true;
            for remote in &found {
                ctx.record(&remote.resource).await?;
            }
            return self.finish(ctx, &instance.resource.id, &wanted).await;
        }
        let disk = self.ensure(ctx, DISK, &format!("{name}-disk"), &wanted, made).await?;
        let interface = self.ensure(ctx, INTERFACE, &format!("{name}-nic"), &wanted, made).await?;
        let mut attached = vec![disk, interface];
        attached.extend(request.spec.volumes.iter().map(|v| Resource::new(VOLUME, &v.disk_id)));
        let id = self.run(ctx, &name, &attached, &wanted, made).await?;
        self.finish(ctx, &id, &wanted).await
    }

    /// Makes a disk or interface, or adopts the one of this token.
    async fn ensure(
        &self,
        ctx: &OpContext,
        kind: &'static str,
        name: &str,
        wanted: &Wanted,
        made: &mut Made,
    ) -> Result<Resource> {
        ctx.check()?;
        let result = match kind {
            DISK => self.remote(ctx, self.world.create_disk(name, wanted.tags.clone())).await,
            _ => self.remote(ctx, self.world.create_interface(name, wanted.tags.clone())).await,
        };
        let resource = match result {
            Ok(id) => {
                let resource = Resource::new(kind, id);
                made.resources.push(resource.clone());
                resource
            }
            Err(error) if error.code() == Some(EXISTS) => {
                let there = self.remote(ctx, self.world.get_by_name(kind, name)).await?;
                // Gone between the two calls: whoever had it is undoing it, and the same request succeeds soon.
                let there = there
                    .ok_or_else(|| Error::new(ErrorKind::Transient, "a resource of this name just went"))?;
                wanted.adopts(&there)?;
                made.adopted = true;
                there.resource
            }
            Err(error) => {
                made.unclear |= is_unclear(&error);
                return Err(error);
            }
        };
        ctx.record(&resource).await?;
        Ok(resource)
    }

    /// Starts the instance, or adopts the one of this token.
    async fn run(
        &self,
        ctx: &OpContext,
        name: &str,
        attached: &[Resource],
        wanted: &Wanted,
        made: &mut Made,
    ) -> Result<String> {
        for generation in 0..GENERATIONS {
            ctx.check()?;
            // A cloud replays a used value even when its instance is gone, so each generation has its own.
            let client_token = wanted.token.client_token(&format!("generation {generation}"));
            let call = self.world.run_instance(RunRequest {
                name,
                client_token: &client_token,
                parameters: &wanted.fingerprint,
                tags: wanted.tags.clone(),
                attached: attached.to_vec(),
                user_data: wanted.user_data.clone(),
            });
            let id = match self.remote(ctx, call).await {
                Ok(run) if !run.alive => continue,
                Ok(run) => {
                    let resource = Resource::new(Resource::INSTANCE, &run.id);
                    if run.created {
                        made.resources.push(resource);
                    } else {
                        made.adopted = true;
                    }
                    run.id
                }
                Err(error) if error.code() == Some(EXISTS) => {
                    let there = self.remote(ctx, self.world.get_by_name(Resource::INSTANCE, name)).await?;
                    let Some(there) = there else { continue };
                    wanted.adopts(&there)?;
                    if there.is_going() {
                        self.wait_gone(ctx, &there.resource.id).await?;
                        continue;
                    }
                    made.adopted = true;
                    there.resource.id
                }
                Err(error) => {
                    made.unclear |= is_unclear(&error);
                    return Err(error);
                }
            };
            ctx.record(&Resource::new(Resource::INSTANCE, &id)).await?;
            return Ok(id);
        }
        Err(Error::new(ErrorKind::Conflict, "every instance of this token is gone: take the next attempt")
            .with("token", &wanted.token))
    }

    /// Ties the parts to the instance and waits until it is up.
    async fn finish(&self, ctx: &OpContext, id: &str, wanted: &Wanted) -> Result<Instance> {
        let (remote, _) = self.remote(ctx, self.world.get_instance(id)).await?;
        for part in remote.attached.iter().filter(|r| r.kind != VOLUME) {
            ctx.check()?;
            let tag = Tags::from([(INSTANCE_TAG.to_owned(), id.to_owned())]);
            self.remote(ctx, self.world.tag_resource(&part.id, tag)).await?;
        }
        self.remote(ctx, self.world.tag_resource(id, wanted.readable.clone())).await?;
        ctx.poll("the instance to start", POLL, self.state_limit, || async {
            let (remote, up) = self.remote(ctx, self.world.get_instance(id)).await?;
            if remote.is_going() {
                return Err(
                    Error::new(ErrorKind::NotFound, "the instance went while it started").with("id", id)
                );
            }
            Ok(up.then(|| instance_of(&remote)))
        })
        .await
    }

    /// Waits until an instance is gone.
    pub(super) async fn wait_gone(&self, ctx: &OpContext, id: &str) -> Result<()> {
        ctx.poll("the instance to go", POLL, self.state_limit, || async {
            match self.remote(ctx, self.world.get_instance(id)).await {
                Ok(_) => Ok(None),
                Err(error) if *error.kind() == ErrorKind::NotFound => Ok(Some(())),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Refuses what the request asks for and the double does not have, beyond what capabilities tell.
    fn check(&self, request: &CreateRequest) -> Result<()> {
        let mut request = request.clone();
        if self.confidential && request.spec.confidential == Confidential::Default {
            request.spec.confidential = Confidential::Yes;
        }
        request.check(&self.capabilities)?;
        let mut refused = Vec::new();
        if let Some(name) = &request.spec.instance_type {
            refused.push(format!("instance type {name}"));
        }
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

    fn supports(&self, has: bool, what: &str) -> Result<()> {
        if has { Ok(()) } else { Err(Error::unsupported(format!("this provider cannot {what}"))) }
    }
}

#[async_trait]
impl Provider for ScriptedProvider {
    async fn create_instance(&self, ctx: &OpContext, request: &CreateRequest) -> Result<Instance> {
        self.check(request)?;
        ctx.check()?;
        let lock = self.token_lock(&request.token.tag_value());
        let _turn = ctx.run(async { Ok(lock.lock().await) }).await?;
        let mut made = Made::default();
        match self.build(ctx, request, &mut made).await {
            Ok(instance) => Ok(instance),
            Err(error) => Err(error.with_leftovers(self.undo(ctx, &request.token, made).await)),
        }
    }

    async fn delete_instance(&self, ctx: &OpContext, id: &InstanceId, ownership: &Ownership) -> Result<()> {
        let instance = match self.remote(ctx, self.world.get_instance(id.as_str())).await {
            Ok((remote, _)) => Some(remote),
            Err(error) if *error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut todo = Vec::new();
        let mut belongs = Vec::new();
        match &instance {
            Some(instance) => {
                check_ownership(instance, ownership)?;
                todo.push(instance.resource.clone());
                for part in instance.attached.iter().filter(|r| r.kind != VOLUME) {
                    match self.remote(ctx, self.world.get_resource(&part.id)).await {
                        Ok(remote) => belongs.push(remote),
                        Err(error) if *error.kind() == ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                }
                if let Some(token) = instance.tags.get(tags::TOKEN) {
                    belongs.extend(self.find(ctx, tags::TOKEN, token).await?);
                }
            }
            // An earlier deletion may have ended half-way: what was made for the instance is looked for all the same.
            None => belongs = self.find_settled(ctx, INSTANCE_TAG, id.as_str()).await?,
        }
        for remote in belongs {
            if !is_part(&remote, instance.as_ref(), ownership) || todo.contains(&remote.resource) {
                continue;
            }
            // A create that was cut off tied it to nothing yet; once the instance is gone nobody would find it any more.
            if instance.is_some() && remote.tags.get(INSTANCE_TAG).is_none_or(|of| of != id.as_str()) {
                self.tie(ctx, &remote.resource, id.as_str()).await?;
            }
            todo.push(remote.resource);
        }
        self.remove_or_report(ctx, todo).await
    }

    async fn teardown(&self) -> Result<()> {
        // Nothing is held: no connection, no thread.
        Ok(())
    }

    async fn verify_config(&self, ctx: &OpContext) -> Result<VerifyReport> {
        self.supports(self.capabilities.verify_config, "verify its configuration")?;
        self.remote(ctx, self.world.describe_account()).await?;
        let mut report = VerifyReport::new();
        report.push(Finding::ok("account", "the account answers"));
        if self.confidential && self.capabilities.confidential.is_empty() {
            let finding = Finding::failed("confidential", "this cloud has no confidential machines");
            report.push(finding.with_option("SCRIPTED_CONFIDENTIAL"));
        }
        Ok(report)
    }

    async fn list_owned(&self, ctx: &OpContext, scope: &Scope) -> Result<OwnedList> {
        self.supports(self.capabilities.list_owned, "list what it owns")?;
        let (found, error) = self.pages(ctx, tags::SCOPE, &tags::encode_value(&scope.to_string())).await;
        match error {
            // Nothing came at all, or the caller ended it: no list to speak of.
            Some(error) if found.is_empty() || *error.kind() == ErrorKind::Cancelled => Err(error),
            error => Ok(OwnedList::new(entries(&found), error.is_none())),
        }
    }

    async fn release(&self, ctx: &OpContext, token: &Token) -> Result<()> {
        self.supports(self.capabilities.release, "release by token")?;
        let found = self.find_settled(ctx, tags::TOKEN, &token.tag_value()).await?;
        let todo = found.into_iter().map(|r| r.resource).filter(|r| r.kind != VOLUME).collect();
        self.remove_or_report(ctx, todo).await
    }

    async fn console(&self, ctx: &OpContext, id: &InstanceId, limit: usize) -> Result<ConsoleTail> {
        self.supports(self.capabilities.console, "read consoles")?;
        let bytes = self.remote(ctx, self.world.get_console(id.as_str())).await?;
        Ok(ConsoleTail::new(&bytes, limit))
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }
}

/// What a create works with.
struct Wanted {
    token: Token,
    tag: String,
    fingerprint: String,
    tags: Tags,
    readable: Tags,
    user_data: UserData,
}

impl Wanted {
    fn new(request: &CreateRequest, user_tags: &Tags) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let own = |map: std::collections::BTreeMap<&'static str, String>| -> Tags {
            map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
        };
        let readable = own(tags::readable_for_request(request));
        let mut all = user_tags.clone();
        all.extend(own(tags::for_request(request, now.as_secs())));
        // The full token goes with the first call: without it nobody could adopt what a crash left.
        all.extend(readable.get(tags::TOKEN_TEXT).map(|t| (tags::TOKEN_TEXT.to_owned(), t.clone())));
        Self {
            token: request.token.clone(),
            tag: request.token.tag_value(),
            fingerprint: request.fingerprint(),
            tags: all,
            readable,
            user_data: request.user_data.clone(),
        }
    }

    /// Checks that `remote` was made for the same token and the same request.
    fn adopts(&self, remote: &Remote) -> Result<()> {
        let conflict = |message: &str| {
            Error::new(ErrorKind::Conflict, message.to_owned())
                .with("resource", &remote.resource)
                .with("name", &remote.name)
        };
        if remote.tags.get(tags::TOKEN) != Some(&self.tag) {
            return Err(conflict("the name is held by something that is not of this token"));
        }
        if remote.tags.get(tags::REQUEST) != Some(&self.fingerprint) {
            return Err(conflict("the token was used with another request"));
        }
        Ok(())
    }
}

fn instance_of(remote: &Remote) -> Instance {
    Instance::new(InstanceId::new(&remote.resource.id), &remote.name, remote.address.into_iter().collect())
}

fn in_scope(remote: &Remote, scope: &Scope) -> bool {
    remote.tags.get(tags::SCOPE) == Some(&tags::encode_value(&scope.to_string()))
}

fn check_ownership(instance: &Remote, ownership: &Ownership) -> Result<()> {
    let refused = |why: &str| {
        Err(Error::new(ErrorKind::Permission, format!("the instance is not deleted: {why}"))
            .with("instance", &instance.resource.id)
            .with("name", &instance.name))
    };
    match ownership {
        Ownership::Tagged(scope) if in_scope(instance, scope) => Ok(()),
        Ownership::Tagged(_) => refused("it does not carry the tags of this scope"),
        recorded if recorded.accepts_name(&instance.name) => Ok(()),
        _ => refused("its name is not the recorded one"),
    }
}

/// Returns whether `remote` was made for the instance that is being deleted.
fn is_part(remote: &Remote, instance: Option<&Remote>, ownership: &Ownership) -> bool {
    let tagged = remote.tags.contains_key(tags::TOKEN);
    let same_token = instance.is_none_or(|i| i.tags.get(tags::TOKEN) == remote.tags.get(tags::TOKEN));
    remote.resource.kind != VOLUME
        && match ownership {
            Ownership::Tagged(scope) => tagged && same_token && in_scope(remote, scope),
            // Without tags the name is all there is: parts are named after their instance.
            recorded => {
                let rest = match (recorded, instance) {
                    (Ownership::Recorded { name }, _) => remote.name.strip_prefix(name.as_str()),
                    (_, Some(instance)) => remote.name.strip_prefix(instance.name.as_str()),
                    (_, None) => None,
                };
                same_token && rest.is_some_and(|r| r.starts_with('-'))
            }
        }
}

/// Groups resources by token.
fn entries(found: &[Remote]) -> Vec<Owned> {
    let mut entries: Vec<Owned> = Vec::new();
    for remote in found {
        let tag = |key: &str| remote.tags.get(key).cloned();
        let token_tag = tag(tags::TOKEN).unwrap_or_default();
        let at = entries.iter().position(|e| e.token_tag == token_tag).unwrap_or_else(|| {
            entries.push(Owned::new(&token_tag));
            entries.len() - 1
        });
        let entry = &mut entries[at];
        entry.resources.push(remote.resource.clone());
        if entry.token.is_none() {
            let token = tag(tags::TOKEN_TEXT).and_then(|t| t.parse::<Token>().ok());
            entry.token = token.filter(|t| t.tag_value() == token_tag);
        }
        entry.holder = entry.holder.take().or_else(|| tag(tags::HOLDER));
        let created = tag(tags::CREATED).and_then(|t| t.parse().ok());
        entry.created_unix = [entry.created_unix, created].into_iter().flatten().min();
        entry.protected |= tags::protects(tag(tags::PROTECT).as_deref());
        if remote.resource.kind == Resource::INSTANCE {
            entry.instance = Some(instance_of(remote));
            entry.state = match remote.stopped {
                true => InstanceState::Stopped,
                false if remote.ready_at > Instant::now() => InstanceState::Pending,
                false => InstanceState::Running,
            };
        }
    }
    entries
}
