//! The provider: who may do what to which domain, one operation at a time for one token.

use std::time::Duration;

use cloud_providers::{
    Capabilities, ConfidentialType, ConsoleTail, CreateRequest, Error, ErrorKind, Instance, InstanceId,
    OpContext, Owned, OwnedList, Ownership, Provider, Result, Scope, Token, VerifyReport, async_trait, tags,
};
use uuid::Uuid;

use crate::{
    client::{Client, Consoles, Turns, step},
    config::Config,
    create::Made,
    host::Hosts,
    look::{self, Seen},
    remove::{self, Doomed, instance_resource, volume_resource},
    xml::{DomainFacts, root_name, seed_name},
};

/// The most characters of an instance name.
pub(crate) const NAME_LIMIT: usize = 63;
/// The most bytes of user data: far more than the existing programs send, and little enough to be held twice.
const USER_DATA_LIMIT: usize = 4 << 20;
/// How long the threads may take to end.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// Makes virtual machines through libvirt.
#[derive(Debug)]
pub struct LibvirtProvider {
    pub(crate) config: Config,
    pub(crate) client: Client,
    pub(crate) hosts: Hosts,
    turns: Turns,
    pub(crate) consoles: Consoles,
}

impl LibvirtProvider {
    /// Makes a provider; connects when the first call comes.
    pub(crate) fn new(config: Config) -> Result<Self> {
        let client = Client::new(&config.uri.connect_text())?;
        Ok(Self {
            config,
            client,
            hosts: Hosts::default(),
            turns: Turns::default(),
            consoles: Consoles::default(),
        })
    }

    /// Learns what the host can do, for [`Provider::capabilities`].
    pub(crate) async fn learn(&self, ctx: &OpContext) -> Result<()> {
        let host = self.hosts.get(ctx, &self.client).await?;
        host.learn(ctx, &self.client, &self.config).await
    }

    /// Finds every domain that `wanted` wants.
    async fn scan(
        &self,
        ctx: &OpContext,
        wanted: impl Fn(&Seen) -> bool + Send + Sync + 'static,
    ) -> Result<look::Scan> {
        let ask = step("virConnectListAllDomains", "cannot list the domains");
        self.client.read(ctx, ask, move |c| look::scan(c, &wanted)).await
    }

    async fn facts(&self, ctx: &OpContext, uuid: Uuid) -> Result<Option<DomainFacts>> {
        let ask = step("virDomainGetXMLDesc", "cannot look at the instance");
        self.client.read(ctx, ask, move |c| look::definition(c, uuid)).await
    }

    /// Deletes what an existing program left of an instance whose definition is gone.
    async fn delete_remains(&self, ctx: &OpContext, ownership: &Ownership) -> Result<()> {
        let Ownership::Recorded { name } = ownership else { return Ok(()) };
        let turn = self.turns.take(ctx, name).await?;
        let holder = name.clone();
        if !self.scan(ctx, move |seen| seen.name == holder).await?.domains.is_empty() {
            // Another instance has the name, and the volumes with it.
            return Ok(());
        }
        let own = |name: String| crate::xml::OwnVolume { pool: self.config.pool.clone(), name };
        let doomed = [root_name(name), seed_name(name)].map(|name| Doomed::Named(own(name)));
        remove::volumes(ctx, &self.client, &turn, &doomed).await
    }
}

#[async_trait]
impl Provider for LibvirtProvider {
    async fn create_instance(&self, ctx: &OpContext, request: &CreateRequest) -> Result<Instance> {
        let mut can = self.capabilities();
        if self.hosts.known().is_none() {
            // Nobody could ask yet. It is asked before anything is made, and refused with what the host has.
            can.confidential = ALL_CONFIDENTIAL.to_vec();
        }
        request.check(&can)?;
        ctx.check()?;
        let turn = self.turns.take(ctx, &request.token.tag_value()).await?;
        let mut made = Made::default();
        match self.build(ctx, request, &turn, &mut made).await {
            Ok(instance) => Ok(instance),
            Err(error) => Err(error.with_leftovers(self.undo(ctx, request, &turn, made).await)),
        }
    }

    async fn delete_instance(&self, ctx: &OpContext, id: &InstanceId, ownership: &Ownership) -> Result<()> {
        // What is no UUID was never an id of ours.
        let Ok(uuid) = id.as_str().parse::<Uuid>() else { return self.delete_remains(ctx, ownership).await };
        let Some(facts) = self.facts(ctx, uuid).await? else {
            return self.delete_remains(ctx, ownership).await;
        };
        check_ownership(&facts, ownership)?;
        let key = facts.metadata.as_ref().map_or(id.as_str(), |m| m.tag(tags::TOKEN)).to_owned();
        let turn = self.turns.take(ctx, &key).await?;
        // Asked again: a create of the same token may have ended meanwhile, or another deletion.
        let Some(facts) = self.facts(ctx, uuid).await? else { return Ok(()) };
        check_ownership(&facts, ownership)?;
        self.consoles.forget(uuid);
        remove::instance(ctx, &self.client, &turn, uuid, &parts(&facts)).await
    }

    async fn teardown(&self) -> Result<()> {
        if self.client.close(CLOSE_LIMIT).await {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Transient, "a call to libvirt does not end, so its connection stays open")
            .with("uri", self.client.uri())
            .with("waited", format!("{CLOSE_LIMIT:?}")))
    }

    async fn verify_config(&self, ctx: &OpContext) -> Result<VerifyReport> {
        self.verify(ctx).await
    }

    async fn list_owned(&self, ctx: &OpContext, scope: &Scope) -> Result<OwnedList> {
        let wanted = scope.clone();
        let scan =
            self.scan(ctx, move |seen| seen.metadata.as_ref().is_some_and(|m| m.has_scope(&wanted))).await?;
        let mut entries: Vec<Owned> = Vec::new();
        for seen in &scan.domains {
            add_entry(&mut entries, seen);
        }
        Ok(OwnedList::new(entries, scan.complete))
    }

    async fn release(&self, ctx: &OpContext, token: &Token) -> Result<()> {
        let tag = token.tag_value();
        let turn = self.turns.take(ctx, &tag).await?;
        let scan = self.scan(ctx, move |seen| look::has_token(seen, &tag)).await?;
        if !scan.complete && scan.domains.is_empty() {
            return Err(Error::new(ErrorKind::Transient, "not every domain tells what it is"));
        }
        let mut failed: Option<Error> = None;
        for seen in &scan.domains {
            let doomed = doomed(seen);
            self.consoles.forget(seen.uuid);
            if let Err(error) = remove::instance(ctx, &self.client, &turn, seen.uuid, &doomed).await {
                failed = Some(match failed {
                    None => error,
                    Some(first) => first.with_leftovers(error.leftovers().iter().cloned()),
                });
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn console(&self, ctx: &OpContext, id: &InstanceId, limit: usize) -> Result<ConsoleTail> {
        let gone = || Error::new(ErrorKind::NotFound, "the instance is not there").with("instance_id", id);
        let uuid = id.as_str().parse::<Uuid>().map_err(|_| gone())?;
        self.facts(ctx, uuid).await?.ok_or_else(gone)?;
        self.consoles.read(ctx, &self.client, uuid, limit).await
    }

    fn capabilities(&self) -> Capabilities {
        let mut can = Capabilities::default();
        can.console = true;
        can.verify_config = true;
        can.list_owned = true;
        can.release = true;
        can.isolation = true;
        can.sizes = true;
        can.volumes = true;
        can.root_disk_size = true;
        can.multi_nic = true;
        can.images = true;
        can.plain_machines = true;
        // Nothing stands between a machine and its network, so every port is open.
        can.ports = true;
        can.user_data_limit = Some(USER_DATA_LIMIT);
        can.name_limit = Some(NAME_LIMIT);
        if let Some(host) = self.hosts.known() {
            can.confidential = host.confidential();
            can.architectures = host.architectures();
        }
        can
    }
}

const ALL_CONFIDENTIAL: &[ConfidentialType] =
    &[ConfidentialType::SecureExecution, ConfidentialType::SevSnp, ConfidentialType::Tdx];

fn check_ownership(facts: &DomainFacts, ownership: &Ownership) -> Result<()> {
    let refused = |why: &str| {
        Err(Error::new(ErrorKind::Permission, format!("the instance is not deleted: {why}"))
            .with("domain", &facts.uuid)
            .with("name", &facts.name))
    };
    match ownership {
        Ownership::Tagged(scope) if facts.metadata.as_ref().is_some_and(|m| m.has_scope(scope)) => Ok(()),
        Ownership::Tagged(_) => refused("it does not carry the tags of this scope"),
        recorded if recorded.accepts_name(&facts.name) => Ok(()),
        Ownership::Recorded { .. } => refused("its name is not the recorded one"),
        Ownership::RecordedFor { .. } => refused("its name is none that is generated for the recorded pod"),
        _ => refused("the proof of ownership is of a kind unknown here"),
    }
}

/// Returns the volumes that go with an instance.
///
/// Without metadata these are the disks of exactly the generated names, by the paths that the domain really uses: a
/// volume of the same name elsewhere, and what somebody attached, belong to others.
fn parts(facts: &DomainFacts) -> Vec<Doomed> {
    if let Some(metadata) = &facts.metadata {
        return metadata.volumes.iter().cloned().map(Doomed::Named).collect();
    }
    let generated = [root_name(&facts.name), seed_name(&facts.name)];
    let is_generated = |path: &String| {
        path.rsplit_once('/').is_some_and(|(_, file)| generated.iter().any(|name| name == file))
    };
    facts.disks.iter().filter_map(|d| d.path.clone()).filter(is_generated).map(Doomed::AtPath).collect()
}

fn doomed(seen: &Seen) -> Vec<Doomed> {
    let volumes = seen.metadata.iter().flat_map(|m| m.volumes.iter().cloned());
    volumes.map(Doomed::Named).collect()
}

/// Adds a domain to the entry of its token.
fn add_entry(entries: &mut Vec<Owned>, seen: &Seen) {
    let Some(metadata) = &seen.metadata else { return };
    let token_tag = metadata.tag(tags::TOKEN);
    let at = entries.iter().position(|e| e.token_tag == token_tag).unwrap_or_else(|| {
        entries.push(Owned::new(token_tag));
        entries.len() - 1
    });
    let entry = &mut entries[at];
    entry.token = entry.token.take().or_else(|| metadata.token());
    entry.holder =
        entry.holder.take().or_else(|| Some(metadata.tag(tags::HOLDER).to_owned()).filter(|h| !h.is_empty()));
    entry.created_unix = [entry.created_unix, metadata.created_unix()].into_iter().flatten().min();
    entry.protected |= tags::protects(metadata.tags.get(tags::PROTECT).map(String::as_str));
    entry.resources.push(instance_resource(seen.uuid));
    entry.resources.extend(metadata.volumes.iter().map(volume_resource));
    if seen.active || seen.state.is_over() {
        entry.state = seen.state;
        entry.instance = Some(Instance::new(InstanceId::new(seen.uuid.to_string()), &seen.name, Vec::new()));
    }
}
