//! The provider: who may do what to which instance, one operation at a time for one token.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use cloud_providers::{
    Architecture, Capabilities, ConfidentialType, ConsoleTail, CreateRequest, Error, ErrorKind, Instance,
    InstanceId, OpContext, OwnedList, Ownership, Provider, Result, Scope, Token, VerifyReport, async_trait,
    batch::Batch, placement::Memory, tags,
};

use crate::{
    client::{CONSOLE_KEPT, Ec2, Query, State},
    config::{Config, TAG_LIMIT},
    create::Made,
    known::{Known, architecture_of},
    look::Young,
    owned::{Entries, Wanted, check_ownership, scope_tag},
    remote::{Calls, Instances, Volumes, pages},
    remove::{Doomed, is_instance_id, resources},
    user_data,
};

/// The most characters of an instance's name.
pub(crate) const NAME_LIMIT: usize = 63;

/// Makes and deletes instances of EC2.
#[derive(Debug)]
pub struct AwsProvider {
    pub(crate) calls: Calls,
    pub(crate) config: Config,
    pub(crate) known: Known,
    /// Places without room.
    pub(crate) memory: Memory,
    pub(crate) instances: Batch<Instances>,
    pub(crate) volumes: Batch<Volumes>,
    pub(crate) young: Young,
    /// Why no instance can be made, when something that nobody set was not found either.
    pub(crate) missing: Option<Error>,
    /// One lock per token: operations of one token take turns within a process.
    turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl AwsProvider {
    pub(crate) fn new(ec2: Arc<dyn Ec2>, config: Config, missing: Option<Error>) -> Self {
        let calls = Calls { ec2, limit: config.access.call_timeout };
        Self {
            instances: calls.instances(),
            volumes: calls.volumes(),
            memory: Memory::new(config.capacity_memory),
            known: Known::default(),
            young: Young::default(),
            turns: Mutex::default(),
            missing,
            calls,
            config,
        }
    }

    /// Asks EC2 about what every instance is made of, so that the first create need not.
    pub(crate) async fn learn(&self, ctx: &OpContext) -> Result<()> {
        self.blank(ctx, &self.known).await.map(|_| ())
    }

    /// Waits for the turn of a token, and says whether somebody else had it.
    async fn turn(&self, ctx: &OpContext, token: &str) -> Result<(tokio::sync::OwnedMutexGuard<()>, bool)> {
        let lock = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, lock| lock.strong_count() > 0);
            turns.get(token).and_then(Weak::upgrade).unwrap_or_else(|| {
                let lock = Arc::default();
                turns.insert(token.to_owned(), Arc::downgrade(&lock));
                lock
            })
        };
        if let Ok(turn) = lock.clone().try_lock_owned() {
            return Ok((turn, false));
        }
        ctx.run(async { Ok((lock.lock_owned().await, true)) }).await
    }

    /// Refuses what the request asks for and EC2 does not have.
    fn check(&self, request: &CreateRequest) -> Result<()> {
        request.check(&self.capabilities())?;
        let mut refused = Vec::new();
        for volume in request.spec.volumes.iter().filter(|v| v.serial.is_some()) {
            refused.push(format!("a serial number of volume {}", volume.disk_id));
        }
        for network in &request.networks {
            refused.extend(network.address.filter(|a| a.is_ipv6()).map(|a| format!("the IPv6 address {a}")));
        }
        if refused.is_empty() {
            return Ok(());
        }
        Err(Error::unsupported(format!("the provider cannot give {}", refused.join(", "))))
    }
}

#[async_trait]
impl Provider for AwsProvider {
    async fn create_instance(&self, ctx: &OpContext, request: &CreateRequest) -> Result<Instance> {
        self.check(request)?;
        if let Some(missing) = &self.missing {
            return Err(missing.clone());
        }
        let user_data = user_data::fit(&request.user_data)?;
        let wanted = Wanted::new(request, &self.config.tags, Self::name_of(request)?);
        ctx.check()?;
        let _turn = self.turn(ctx, &request.token.tag_value()).await?;
        let made = Made::default();
        match Box::pin(self.build(ctx, request, user_data, &wanted, &made)).await {
            Ok(instance) => Ok(instance),
            Err(error) => Err(error.with_leftovers(Box::pin(self.undo(ctx, &wanted, &made)).await)),
        }
    }

    async fn delete_instance(&self, ctx: &OpContext, id: &InstanceId, ownership: &Ownership) -> Result<()> {
        ctx.check()?;
        // What EC2 cannot have made was never an id of ours.
        if !is_instance_id(id.as_str()) {
            return Ok(());
        }
        let Some(mut found) = self.look_up(ctx, id.as_str()).await? else {
            return self.remove_remains(ctx, id.as_str(), ownership).await;
        };
        check_ownership(&found, ownership)?;
        let token = found.tags.get(tags::TOKEN).map_or(id.as_str(), String::as_str).to_owned();
        let (_turn, waited) = self.turn(ctx, &token).await?;
        if waited {
            // Whoever had the turn may have made more of it, or removed it.
            found = self.instances.get(ctx, id.as_str().to_owned()).await?.unwrap_or(found);
        }
        self.remove_instance(ctx, &found, ownership).await
    }

    async fn teardown(&self) -> Result<()> {
        // Nothing is held that would have to be given back.
        Ok(())
    }

    async fn verify_config(&self, ctx: &OpContext) -> Result<VerifyReport> {
        Box::pin(self.verify(ctx)).await
    }

    async fn list_owned(&self, ctx: &OpContext, scope: &Scope) -> Result<OwnedList> {
        let query = Query::tag(tags::SCOPE, scope_tag(scope));
        let mut entries = Entries::default();
        let (instances, failed) = pages!(self.calls, ctx, "DescribeInstances", describe_instances, &query);
        let nothing = instances.is_empty();
        instances.iter().filter(|i| i.state != State::Terminated).for_each(|i| entries.add_instance(i));
        let mut errors: Vec<Error> = failed.into_iter().collect();
        let (interfaces, failed) =
            pages!(self.calls, ctx, "DescribeNetworkInterfaces", describe_network_interfaces, &query);
        errors.extend(failed);
        let (volumes, failed) = pages!(self.calls, ctx, "DescribeVolumes", describe_volumes, &query);
        errors.extend(failed);
        let call = self.calls.ec2.describe_addresses(&query);
        let addresses = match self.calls.call(ctx, "DescribeAddresses", call).await {
            Ok(addresses) => addresses,
            Err(error) => {
                errors.push(error);
                Vec::new()
            }
        };
        resources(&mut entries, &interfaces, &addresses, &volumes);
        let complete = errors.is_empty();
        for error in errors {
            // Nothing came at all, or the caller ended it: no list to speak of.
            let empty = nothing && interfaces.is_empty() && volumes.is_empty() && addresses.is_empty();
            if empty || *error.kind() == ErrorKind::Cancelled {
                return Err(error);
            }
            tracing::warn!(
                provider = crate::NAME,
                error = error.report(),
                "the list of what is owned is incomplete"
            );
        }
        Ok(OwnedList::new(entries.into_vec(), complete))
    }

    async fn release(&self, ctx: &OpContext, token: &Token) -> Result<()> {
        ctx.check()?;
        let tag = token.tag_value();
        let _turn = self.turn(ctx, &tag).await?;
        let found = Box::pin(self.find_settled(ctx, &tag)).await?;
        let mut doomed = Doomed::default();
        found.instances.iter().filter(|i| i.state != State::Terminated).for_each(|i| doomed.add_instance(i));
        // Those that go with the instance are gone by the time of their turn.
        doomed.interfaces.extend(found.interfaces.iter().map(|i| i.id.clone()));
        doomed.addresses.extend(found.addresses.iter().map(|a| a.allocation.clone()));
        self.remove_or_report(ctx, doomed).await
    }

    async fn console(&self, ctx: &OpContext, id: &InstanceId, limit: usize) -> Result<ConsoleTail> {
        ctx.check()?;
        let found = match is_instance_id(id.as_str()) {
            true => self.look_up(ctx, id.as_str()).await?,
            false => None,
        };
        // EC2 tells the console of a terminated instance for another hour; for us it is gone.
        if found.is_none_or(|instance| instance.state == State::Terminated) {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no instance {id}")));
        }
        let read = |latest| {
            let call = self.calls.ec2.get_console_output(id.as_str(), latest);
            self.calls.call(ctx, "GetConsoleOutput", call)
        };
        let bytes = match read(true).await {
            Err(error) if *error.kind() == ErrorKind::Unsupported => read(false).await?,
            answer => answer?,
        };
        let tail = ConsoleTail::new(&bytes, limit);
        Ok(if bytes.len() < CONSOLE_KEPT { tail } else { tail.with_more_before() })
    }

    fn capabilities(&self) -> Capabilities {
        let types = self.known.seen();
        let mut can = Capabilities::default();
        can.verify_config = true;
        can.list_owned = true;
        can.release = true;
        can.isolation = true;
        can.console = true;
        // Until EC2 has described the types, what they can be is checked by the create.
        if types.is_empty() || types.iter().any(|t| t.sev_snp) {
            can.confidential = vec![ConfidentialType::SevSnp];
        }
        can.architectures = match types.is_empty() {
            true => vec![Architecture::X86_64, Architecture::Aarch64],
            false => {
                let words = types.iter().flat_map(|t| &t.architectures);
                let mut all: Vec<Architecture> = words.filter_map(|word| architecture_of(word)).collect();
                all.sort();
                all.dedup();
                all
            }
        };
        can.gpus = types.is_empty() || types.iter().any(|t| t.gpus > 0);
        // In a launch template the operator chose the type.
        can.sizes = self.config.template.is_none() || !self.config.instance_types.is_empty();
        can.volumes = true;
        can.root_disk_size = true;
        can.multi_nic = true;
        can.images = true;
        can.instance_types = true;
        can.plain_machines = true;
        can.user_data_limit = Some(user_data::LIMIT);
        can.name_limit = Some(NAME_LIMIT);
        can.tag_limit = Some(TAG_LIMIT);
        can
    }
}
