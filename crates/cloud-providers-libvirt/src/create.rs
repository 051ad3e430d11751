//! Makes an instance.
//!
//! libvirt's volumes carry no tags, so the definition of the domain is the record of everything: it is made first, with
//! the token and the names of the volumes that are about to come, and removed last.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cloud_providers::{
    CreateRequest, Error, ErrorKind, Instance, InstanceId, OpContext, Resource, Result, names::instance_name,
    tags,
};
use tokio::time::Instant;
use uuid::Uuid;
use virt::{connect::Connect, domain::Domain, error::ErrorNumber, storage_vol::StorageVol};
use zeroize::Zeroizing;

use crate::{
    boot::Boot,
    client::{CallResult, Step, Turn, step},
    config::AddressSource,
    look::{self, Seen},
    provider::{LibvirtProvider, NAME_LIMIT},
    remove::{self, Doomed, instance_resource, volume_resource},
    seed, sizing,
    xml::{
        DataDisk, DomainPlan, DomainType, Metadata, Nic, OwnVolume, PoolFacts, VolumeFacts, VolumePlan,
        root_name, seed_name,
    },
};

/// How often a step is tried whose connection broke.
const TRIES: u32 = 3;
/// How old a definition without a running machine must be before it is taken for one that nobody is at work on.
const FOREIGN_LIMIT: Duration = Duration::from_secs(5);
/// How often such a definition is looked at.
const FOREIGN_POLL: Duration = Duration::from_millis(200);
/// How long an undo waits for a call that its operation left behind.
const SETTLE: Duration = Duration::from_secs(30);
/// The longest that an undo may take.
const UNDO_LIMIT: Duration = Duration::from_secs(120);

const DEFINE: Step = step("virDomainDefineXML", "cannot define the machine");
const CREATE_VOLUME: Step = step("virStorageVolCreateXML", "cannot make the volume");
const UPLOAD: Step = step("virStorageVolUpload", "cannot fill the disk with the user data");
const START: Step =
    Step { limit: Duration::from_secs(120), ..step("virDomainCreate", "cannot start the machine") };

/// What a create has done so far.
#[derive(Debug, Default)]
pub(crate) struct Made {
    uuid: Option<Uuid>,
    /// Volumes that this call made or may have made.
    volumes: Vec<OwnVolume>,
    /// The definition was there before: this call takes nothing back.
    adopted: bool,
}

/// Everything that is known before anything is made.
struct Prepared {
    plan: DomainPlan,
    xml: String,
    root: VolumePlan,
    seed: VolumePlan,
    user_data: Zeroizing<Vec<u8>>,
    /// Names of volumes that are there before we made them.
    taken: Vec<String>,
}

/// What the pool and its neighbours say.
struct Ground {
    base: VolumeFacts,
    root_path: String,
    seed_path: String,
    data: Vec<DataDisk>,
    /// Names that are taken already.
    taken: Vec<String>,
}

impl LibvirtProvider {
    /// Makes the instance of `request`, or returns the one that its token has.
    pub(crate) async fn build(
        &self,
        ctx: &OpContext,
        request: &CreateRequest,
        turn: &Turn,
        made: &mut Made,
    ) -> Result<Instance> {
        let name = instance_name(&request.unit.name_hint, &request.unit.id, NAME_LIMIT)?;
        for _ in 0..TRIES {
            if let Some(seen) = self.find(ctx, request, &name).await? {
                made.adopted = true;
                match self.adopt(ctx, request, turn, &seen, made).await? {
                    Some(instance) => return Ok(instance),
                    // Whoever had it took it back.
                    None => {
                        made.adopted = false;
                        continue;
                    }
                }
            }
            let mut prepared = self.prepare(ctx, request, &name, Uuid::new_v4()).await?;
            if !prepared.taken.is_empty() && self.find(ctx, request, &name).await?.is_some() {
                // Another process was quicker, and its volumes are this token's: it defines before it makes them.
                continue;
            }
            if self.define(ctx, turn, &prepared, made).await? {
                self.make_volumes(ctx, turn, &mut prepared, made).await?;
                return self.start(ctx, request, turn, &name, prepared.plan.uuid).await;
            }
            // Another process was quicker: the name is taken now, perhaps by this token.
            made.uuid = None;
        }
        Err(Error::new(ErrorKind::Conflict, "the name is taken and given back again and again")
            .with("name", name))
    }

    /// Looks for what carries the token, and for what holds the name.
    async fn find(&self, ctx: &OpContext, request: &CreateRequest, name: &str) -> Result<Option<Seen>> {
        let token_tag = request.token.tag_value();
        let (wanted_name, wanted_token) = (name.to_owned(), token_tag.clone());
        let ask = step("virConnectListAllDomains", "cannot look for the instance");
        let scan = self
            .client
            .read(ctx, ask, move |c| {
                look::scan(c, &|seen: &Seen| seen.name == wanted_name || look::has_token(seen, &wanted_token))
            })
            .await?;
        if !scan.complete {
            return Err(Error::new(ErrorKind::Transient, "not every domain tells what it is"));
        }
        let conflict = |message: &str, seen: &Seen| {
            Error::new(ErrorKind::Conflict, message).with("domain", seen.uuid).with("name", &seen.name)
        };
        let fingerprint = request.fingerprint();
        for seen in &scan.domains {
            if !look::has_token(seen, &token_tag) {
                return Err(conflict("the name is held by a domain that is not of this token", seen));
            }
            if seen.metadata.as_ref().is_none_or(|m| m.tag(tags::REQUEST) != fingerprint) {
                return Err(conflict("the token was used with another request", seen));
            }
        }
        Ok(scan.domains.into_iter().next())
    }

    /// Returns the instance of an earlier call, or of another process that is still at work.
    ///
    /// What nobody brings to its end within a bounded time is finished here. `None` when it went meanwhile.
    async fn adopt(
        &self,
        ctx: &OpContext,
        request: &CreateRequest,
        turn: &Turn,
        seen: &Seen,
        made: &mut Made,
    ) -> Result<Option<Instance>> {
        let uuid = seen.uuid;
        ctx.record(&instance_resource(uuid)).await?;
        let volumes = seen.metadata.as_ref().map(|m| m.volumes.clone()).unwrap_or_default();
        for volume in &volumes {
            ctx.record(&volume_resource(volume)).await?;
        }
        let made_at = seen.metadata.as_ref().and_then(|m| m.created_unix()).unwrap_or_default();
        let age = Duration::from_secs(unix_now().saturating_sub(made_at));
        let end = Instant::now() + FOREIGN_LIMIT.saturating_sub(age);
        let mut active = seen.active;
        while !active && Instant::now() < end {
            ctx.sleep(FOREIGN_POLL).await?;
            let ask = step("virDomainLookupByUUID", "cannot look at the instance");
            match self.client.read(ctx, ask, move |c| look::seen(c, uuid)).await? {
                Some(now) => active = now.active,
                None => return Ok(None),
            }
        }
        if !active {
            let mut prepared = self.prepare(ctx, request, &seen.name, uuid).await?;
            if !volumes.is_empty() {
                prepared.plan.metadata.volumes = volumes;
            }
            self.make_volumes(ctx, turn, &mut prepared, made).await?;
        }
        self.start(ctx, request, turn, &seen.name, uuid).await.map(Some)
    }

    /// Decides everything, asking as little as possible.
    async fn prepare(
        &self,
        ctx: &OpContext,
        request: &CreateRequest,
        name: &str,
        uuid: Uuid,
    ) -> Result<Prepared> {
        let config = &self.config;
        let size = sizing::Size::of(config, &request.spec)?;
        let nics = sizing::nics(config, request)?;
        let mut data = Vec::new();
        for volume in &request.spec.volumes {
            let serial = DataDisk::serial_of(&volume.disk_id, volume.serial.as_deref())?;
            data.push((checked("volume", &volume.disk_id)?, serial));
        }
        let image = checked("image", request.spec.image.as_deref().unwrap_or(&config.base_volume))?;

        let host = self.hosts.get(ctx, &self.client).await?;
        let arch = host.architecture(request.spec.architecture)?;
        let domain_type = host.domain_type(ctx, &self.client, config, arch).await?;
        let (machine, emulator) = host.machine(config, arch);
        let caps = host.caps(ctx, &self.client, arch, domain_type, machine.as_deref()).await?;
        let security = sizing::security(config, &request.spec.confidential, &caps)?;

        let names = [root_name(name), seed_name(name)];
        let ground = self.ground(ctx, image, data, names.clone()).await?;
        let volumes = names.map(|name| OwnVolume { pool: config.pool.clone(), name });
        let plan = DomainPlan {
            name: name.to_owned(),
            uuid,
            metadata: Metadata::for_request(request, unix_now(), volumes.to_vec()),
            domain_type,
            arch,
            machine,
            emulator,
            firmware: sizing::firmware(config, arch, security, &caps)?,
            vcpus: size.vcpus,
            cpuset: config.cpuset.clone(),
            memory_mib: size.memory_mib,
            security,
            root: ground.root_path,
            data: ground.data,
            seed: ground.seed_path,
            disk_bus: config.disk_bus,
            seed_bus: config.seed_bus,
            agent: match config.address_source {
                AddressSource::Agent => true,
                // libvirt's own networks tell leases; nobody else tells those of a bridge.
                AddressSource::Auto => nics.iter().any(|n| matches!(n, Nic::Bridge(_))),
                AddressSource::Lease | AddressSource::Arp => false,
            },
            nics,
        };
        let user_data = seed::for_instance(name, uuid, request.user_data.as_bytes());
        Ok(Prepared {
            root: VolumePlan::root(name, size.root_disk_gib, &ground.base)?,
            seed: VolumePlan::seed(name, user_data.len() as u64),
            taken: ground.taken,
            xml: plan.to_xml()?,
            plan,
            user_data,
        })
    }

    /// Looks at everything that must be there, and at what must not, in one go.
    async fn ground(
        &self,
        ctx: &OpContext,
        image: String,
        data: Vec<(String, String)>,
        names: [String; 2],
    ) -> Result<Ground> {
        let pool = self.config.pool.clone();
        let ask = step("virStorageVolLookupByName", "cannot look at the volumes");
        self.client
            .read(ctx, ask, move |c| {
                let pool = look::pool(c, &pool)?;
                let facts = PoolFacts::parse(&pool.get_xml_desc(0)?)?;
                let [root, seed] = &names;
                let mut taken = Vec::new();
                for name in &names {
                    if look::known_volume(&pool, name)?.is_some() {
                        taken.push(name.clone());
                    }
                }
                let data = data
                    .iter()
                    .map(|(id, serial)| look::data_disk(c, &pool, id, serial))
                    .collect::<CallResult<Vec<_>>>()?;
                check_once(&data)?;
                Ok(Ground {
                    base: look::base_volume(c, &pool, &image)?,
                    root_path: facts.path_of(root)?,
                    seed_path: facts.path_of(seed)?,
                    data,
                    taken,
                })
            })
            .await
    }

    /// Defines the domain: from here on everything can be found. Returns `false` when the name has just been taken.
    async fn define(
        &self,
        ctx: &OpContext,
        turn: &Turn,
        prepared: &Prepared,
        made: &mut Made,
    ) -> Result<bool> {
        let plan = &prepared.plan;
        if let Some(taken) = prepared.taken.first() {
            return Err(Error::new(
                ErrorKind::Conflict,
                "a volume of this name is there already, and not of this token",
            )
            .with("volume", taken)
            .with("pool", &self.config.pool));
        }
        let uuid = plan.uuid;
        // Recorded before they are: a crash between leaves records of what never was, and they are deleted like others.
        ctx.record(&instance_resource(uuid)).await?;
        for volume in &plan.metadata.volumes {
            ctx.record(&volume_resource(volume)).await?;
        }
        for attempt in 1.. {
            ctx.check()?;
            let xml = prepared.xml.clone();
            made.uuid = Some(uuid);
            let call = self.client.effect(
                ctx,
                DEFINE,
                turn,
                move |c| Ok(Domain::define_xml(c, &xml).map(drop)?),
                move |c, ()| remove::late_definition(c, uuid),
            );
            match call.await {
                Ok(()) => return Ok(true),
                // Nobody else knows this UUID, so defining it again changes nothing.
                Err(failed) if failed.may_repeat && attempt < TRIES => {}
                Err(failed) if *failed.error.kind() == ErrorKind::Conflict => return Ok(false),
                Err(failed) => return Err(failed.error),
            }
        }
        unreachable!("the loop ends by its own")
    }

    /// Makes both volumes and fills the seed.
    async fn make_volumes(
        &self,
        ctx: &OpContext,
        turn: &Turn,
        prepared: &mut Prepared,
        made: &mut Made,
    ) -> Result<()> {
        let own = prepared.plan.metadata.volumes.clone();
        for (plan, volume) in [&prepared.root, &prepared.seed].into_iter().zip(&own) {
            self.make_volume(ctx, turn, prepared.plan.uuid, plan, volume, made).await?;
        }
        if prepared.plan.domain_type == DomainType::Test {
            // libvirt's test driver has volumes without content.
            return Ok(());
        }
        let Some(seed) = own.last() else { return Ok(()) };
        let bytes = Arc::new(std::mem::take(&mut prepared.user_data));
        for attempt in 1.. {
            ctx.check()?;
            let seed = seed.clone();
            let find = move |c: &Connect| {
                let pool = look::pool(c, &seed.pool)?;
                let found = look::volume(&pool, &seed.name)?;
                found.ok_or_else(|| {
                    Error::new(ErrorKind::NotFound, "the volume for the user data went").into()
                })
            };
            match self.client.upload(ctx, UPLOAD, turn, bytes.clone(), find).await {
                Ok(()) => return Ok(()),
                // The same bytes at the same place.
                Err(failed) if failed.may_repeat && attempt < TRIES => {}
                Err(failed) => return Err(failed.error),
            }
        }
        unreachable!("the loop ends by its own")
    }

    async fn make_volume(
        &self,
        ctx: &OpContext,
        turn: &Turn,
        uuid: Uuid,
        plan: &VolumePlan,
        volume: &OwnVolume,
        made: &mut Made,
    ) -> Result<()> {
        // A volume that is there is ours when the definition that names it was there first, or when a reply was lost.
        let mut may_exist = made.adopted;
        let xml = plan.to_xml()?;
        for attempt in 1.. {
            ctx.check()?;
            let (xml, pool, late) = (xml.clone(), volume.pool.clone(), volume.clone());
            let call = self.client.effect(
                ctx,
                CREATE_VOLUME,
                turn,
                move |c| Ok(StorageVol::create_xml(&look::pool(c, &pool)?, &xml, 0).map(drop)?),
                move |c, ()| remove::late_volume(c, uuid, &late),
            );
            match call.await {
                Ok(()) => {
                    made.volumes.push(volume.clone());
                    return Ok(());
                }
                Err(failed) if may_exist && *failed.error.kind() == ErrorKind::Conflict => {
                    made.volumes.push(volume.clone());
                    return Ok(());
                }
                Err(failed) if failed.may_repeat && attempt < TRIES => may_exist = true,
                Err(failed) => {
                    if failed.unclear {
                        made.volumes.push(volume.clone());
                    }
                    return Err(failed.error.with("volume", &volume.name));
                }
            }
        }
        unreachable!("the loop ends by its own")
    }

    /// Starts the machine, unless it runs, and waits for its address.
    async fn start(
        &self,
        ctx: &OpContext,
        request: &CreateRequest,
        turn: &Turn,
        name: &str,
        uuid: Uuid,
    ) -> Result<Instance> {
        for attempt in 1.. {
            ctx.check()?;
            let call = self.client.effect(
                ctx,
                START,
                turn,
                move |c| start(c, uuid),
                move |c, ()| remove::late_start(c, uuid),
            );
            match call.await {
                Ok(()) => break,
                Err(failed) if failed.may_repeat && attempt < TRIES => {}
                Err(failed) => return Err(failed.error),
            }
        }
        // Right after the start: QEMU throws away what a guest writes while nobody listens.
        let console = match self.client.console(ctx, uuid, false).await {
            Ok(console) => Some(console),
            Err(error) if *error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) => {
                tracing::debug!(provider = crate::NAME, instance_id = %uuid, error = %error.report(), "no console");
                None
            }
        };
        let mut boot = Boot {
            client: &self.client,
            uuid,
            source: self.config.address_source,
            limit: self.config.boot_timeout,
            user_data: &request.user_data,
            console,
        };
        let addresses = boot.addresses(ctx).await?;
        // For whoever asks later why its guest does not answer.
        if let Some(console) = boot.console.take() {
            self.consoles.keep(uuid, console);
        }
        Ok(Instance::new(InstanceId::new(uuid.to_string()), name, addresses))
    }

    /// Takes back a failed create and returns what is left, each of it recorded.
    pub(crate) async fn undo(
        &self,
        ctx: &OpContext,
        request: &CreateRequest,
        turn: &Turn,
        made: Made,
    ) -> Vec<Resource> {
        let Some(uuid) = made.uuid.filter(|_| !made.adopted) else { return Vec::new() };
        // The call may be cancelled or late; its undo has its own time.
        let ctx = ctx.for_undo(UNDO_LIMIT);
        let mut left = Vec::new();
        if !turn.settle(SETTLE).await {
            // It takes back itself what it makes, if it ever ends; until then nobody knows.
            left.push(Resource::new("unconfirmed", request.token.tag_value()));
        }
        let doomed: Vec<Doomed> = made.volumes.into_iter().map(Doomed::Named).collect();
        if let Err(error) = remove::instance(&ctx, &self.client, turn, uuid, &doomed).await {
            left.extend(error.leftovers().iter().cloned());
        }
        for resource in &left {
            // The error tells it as well, so a recorder that fails now loses nothing.
            let _ = ctx.record(resource).await;
        }
        left
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Starts a domain unless it runs.
fn start(connection: &Connect, uuid: Uuid) -> CallResult<()> {
    let domain = look::domain(connection, uuid)?
        .ok_or_else(|| Error::new(ErrorKind::NotFound, "the machine's definition went before it started"))?;
    if domain.is_active()? {
        return Ok(());
    }
    match domain.create() {
        Ok(_) => Ok(()),
        // Another process was quicker.
        Err(error) if error.code() == ErrorNumber::OperationInvalid && domain.is_active()? => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Refuses the same disk twice: QEMU would, when everything else is made, and say less.
fn check_once(data: &[DataDisk]) -> Result<()> {
    for (at, disk) in data.iter().enumerate() {
        if data[..at].iter().any(|other| other.path == disk.path || other.serial == disk.serial) {
            return Err(Error::config("a data volume is asked for twice, or two have one serial number")
                .with("volume", &disk.path)
                .with("serial", &disk.serial));
        }
    }
    Ok(())
}

/// Refuses what the library behind libvirt's calls cannot carry.
fn checked(what: &str, text: &str) -> Result<String> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(Error::config(format!("the {what} has no name that libvirt could have"))
            .with(what, format!("{text:?}")));
    }
    Ok(text.to_owned())
}
