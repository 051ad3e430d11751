//! The provider.

use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use cloud_providers::{
    Architecture, Capabilities, ConsoleTail, CreateRequest, Error, ErrorKind, Finding, Instance, InstanceId,
    InstanceState, OpContext, Owned, OwnedList, Ownership, Provider, Result, Role, Scope, Token,
    VerifyReport, async_trait, names::instance_name, tags,
};
use nix::sched::{CloneFlags, unshare};

use crate::{
    error::{io_error, path_error},
    host::{Host, missing_rights, on_thread},
    launch::{self, Existing},
    mounts,
    network::{Link, LinkTag, Network},
    process::ProcessId,
    remove::{self, folder_resource, instance_resource, link_resource},
    state::{Found, Phase, Plan, Record, id_of, interface_of, is_id},
};

/// The most characters of an instance's name, which is its host name too.
const NAME_LIMIT: usize = 63;
/// The most bytes of user data: far more than any cloud takes, and bounded as it lies in memory.
const USER_DATA_LIMIT: usize = 16 << 20;

/// Makes instances out of Linux namespaces on this host.
pub struct LocalProvider {
    host: Arc<Host>,
}

impl fmt::Debug for LocalProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalProvider").field("config", &self.host.config).finish()
    }
}

impl LocalProvider {
    pub(crate) fn new(host: Host) -> Self {
        Self { host: Arc::new(host) }
    }

    /// Refuses what the provider does not have, and works out every name that follows from the request.
    fn plan(&self, request: &CreateRequest) -> Result<Plan> {
        request.check(&self.capabilities())?;
        let mut refused = Vec::new();
        if let Some(kind) = &request.spec.instance_type {
            refused.push(format!("instance type {kind}"));
        }
        let network = request.networks.first();
        if let Some(name) = network.and_then(|n| n.network.as_ref()) {
            refused.push(format!("network {name}"));
        }
        if network.is_some_and(|n| n.public) {
            refused.push("a public address".into());
        }
        let wanted_address = match network.and_then(|n| n.address) {
            Some(IpAddr::V6(address)) => {
                refused.push(format!("address {address}"));
                None
            }
            Some(IpAddr::V4(address)) => Some(address),
            None => None,
        };
        if !refused.is_empty() {
            return Err(Error::unsupported(format!("the provider cannot give {}", refused.join(", "))));
        }
        if let Some(address) = wanted_address {
            self.check_address(address)?;
        }
        let id = id_of(&request.token);
        Ok(Plan {
            interface: interface_of(&id),
            id,
            name: instance_name(&request.unit.name_hint, &request.unit.id, NAME_LIMIT)?,
            token: request.token.clone(),
            holder: request.holder.clone(),
            fingerprint: request.fingerprint(),
            wanted_address,
            user_data: request.user_data.clone(),
            role: request.role,
        })
    }

    fn check_address(&self, address: Ipv4Addr) -> Result<()> {
        let config = &self.host.config;
        let net = config.subnet;
        if !net.contains(&address) || [net.network(), net.broadcast(), config.gateway()].contains(&address) {
            return Err(Error::config("the address wanted is none that instances can have")
                .with("address", address)
                .with("subnet", net));
        }
        Ok(())
    }
}

#[async_trait]
impl Provider for LocalProvider {
    async fn create_instance(&self, ctx: &OpContext, request: &CreateRequest) -> Result<Instance> {
        ctx.check()?;
        let plan = self.plan(request)?;
        let programs = self.host.config.programs(plan.role)?;
        let lock = self.host.lock_instance(ctx, &plan.id).await?;
        if let Existing::Instance(instance) = launch::look(&self.host, &plan)? {
            return Ok(instance);
        }
        // All ids follow from the token, so everything is recorded before any of it exists. From here on it does not
        // matter where this process is killed or this future is dropped.
        let resources =
            [folder_resource(&self.host, &plan.id), link_resource(&plan.id), instance_resource(&plan.id)];
        ctx.record_all(&resources).await?;
        ctx.check()?;
        let ctx = ctx.clone();
        on_thread(&self.host, move |host| {
            let _lock = lock;
            launch::launch(host, &ctx, &plan, &programs)
        })
        .await
    }

    async fn delete_instance(&self, ctx: &OpContext, id: &InstanceId, ownership: &Ownership) -> Result<()> {
        ctx.check()?;
        // No instance of ours can have an id of another form, and no path is made from one.
        if !is_id(id.as_str()) {
            return Ok(());
        }
        let lock = self.host.lock_instance(ctx, id.as_str()).await?;
        let (id, ownership) = (id.as_str().to_owned(), ownership.clone());
        on_thread(&self.host, move |host| {
            let _lock = lock;
            let damage = match host.data.read(&id) {
                Found::Record(record) => {
                    check_owner(&record, &ownership)?;
                    return remove::remove(host, &id);
                }
                Found::Damaged(error) => Some(error),
                Found::Nothing => None,
            };
            // The record is gone or damaged; while the instance runs its link still says whose it is.
            let tag = Network::open()?.link(&interface_of(&id))?.and_then(|link| link.tag());
            match tag.filter(|tag| tag.folder == host.data.hash && tag.id == id) {
                Some(tag) => {
                    check_link_owner(&tag, &ownership)?;
                    remove::remove(host, &id)
                }
                None => damage.map_or(Ok(()), Err),
            }
        })
        .await
    }

    async fn teardown(&self) -> Result<()> {
        // Threads live for one operation and nothing else is held.
        Ok(())
    }

    async fn verify_config(&self, ctx: &OpContext) -> Result<VerifyReport> {
        ctx.check()?;
        on_thread(&self.host, |host| Ok(verify(host))).await
    }

    async fn list_owned(&self, ctx: &OpContext, scope: &Scope) -> Result<OwnedList> {
        ctx.check()?;
        let scope = scope.clone();
        on_thread(&self.host, move |host| list(host, &scope)).await
    }

    async fn release(&self, ctx: &OpContext, token: &Token) -> Result<()> {
        ctx.check()?;
        let id = id_of(token);
        let lock = self.host.lock_instance(ctx, &id).await?;
        if let Found::Record(record) = self.host.data.read(&id)
            && record.token != *token
        {
            // Another token with the same short hash: nothing here carries ours.
            return Ok(());
        }
        on_thread(&self.host, move |host| {
            let _lock = lock;
            remove::remove(host, &id)
        })
        .await
    }

    async fn console(&self, ctx: &OpContext, id: &InstanceId, limit: usize) -> Result<ConsoleTail> {
        ctx.check()?;
        let gone = Error::new(ErrorKind::NotFound, "the instance is not there").with("instance_id", id);
        // No path is made from an id of another form.
        if !is_id(id.as_str()) {
            return Err(gone);
        }
        let id = id.as_str().to_owned();
        on_thread(&self.host, move |host| match host.data.read(&id) {
            Found::Nothing => Err(gone),
            _ => launch::console(host, &id, limit),
        })
        .await
    }

    fn capabilities(&self) -> Capabilities {
        let mut can = Capabilities::default();
        can.console = true;
        can.verify_config = true;
        can.list_owned = true;
        can.release = true;
        // Every port of an instance is reachable from this host.
        can.ports = true;
        can.architectures = std::env::consts::ARCH.parse::<Architecture>().into_iter().collect();
        can.plain_machines = self.host.config.machine_init.is_some();
        can.user_data_limit = Some(USER_DATA_LIMIT);
        can.name_limit = Some(NAME_LIMIT);
        can
    }
}

fn check_owner(record: &Record, ownership: &Ownership) -> Result<()> {
    let refused = |message: &str, wanted: String| {
        Err(Error::new(ErrorKind::Permission, message)
            .with("instance", &record.id)
            .with("scope", &record.token.scope)
            .with("name", &record.name)
            .with("wanted", wanted))
    };
    match ownership {
        Ownership::Tagged(scope) if record.token.scope == *scope => Ok(()),
        Ownership::Tagged(scope) => refused("the instance belongs to another scope", scope.to_string()),
        recorded if recorded.accepts_name(&record.name) => Ok(()),
        Ownership::Recorded { name } => refused("the instance has another name", name.clone()),
        Ownership::RecordedFor { pod } => refused("the instance has no name of this pod", pod.clone()),
        _ => refused("the kind of ownership is not known here", "a scope or a name".into()),
    }
}

fn check_link_owner(tag: &LinkTag, ownership: &Ownership) -> Result<()> {
    match ownership {
        Ownership::Tagged(scope) if tag.scope == tags::encode_value(&scope.to_string()) => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Permission,
            "the instance's record is lost and its link names another owner",
        )
        .with("instance", &tag.id)
        .with("scope", &tag.scope)),
    }
}

fn list(host: &Host, scope: &Scope) -> Result<OwnedList> {
    let links = host.step("list the links", || Network::open()?.links())?;
    let scope_tag = tags::encode_value(&scope.to_string());
    let ours = |link: &&Link| link.tag().is_some_and(|t| t.folder == host.data.hash && t.scope == scope_tag);
    let mut entries = Vec::new();
    let mut complete = true;
    let ids = host.data.ids()?;
    for id in &ids {
        let record = match host.data.read(id) {
            Found::Nothing => continue,
            Found::Damaged(error) => {
                tracing::warn!(
                    provider = crate::NAME,
                    instance_id = id,
                    error = error.report(),
                    "list is incomplete"
                );
                complete = false;
                // What its link says is still good for an entry.
                entries.extend(links.iter().filter(ours).filter(|l| l.name == interface_of(id)).filter_map(
                    |link| {
                        let mut entry = Owned::new(link.tag()?.token);
                        entry.resources =
                            vec![folder_resource(host, id), link_resource(id), instance_resource(id)];
                        Some(entry)
                    },
                ));
                continue;
            }
            Found::Record(record) => record,
        };
        if record.token.scope != *scope {
            continue;
        }
        let mut entry = Owned::new(record.token.tag_value());
        entry.holder = Some(record.holder.clone());
        entry.created_unix = Some(record.created_unix);
        entry.protected = host.data.folder(id).join("protect").exists();
        entry.resources.push(folder_resource(host, id));
        if links.iter().filter(ours).any(|l| l.name == record.interface) {
            entry.resources.push(link_resource(id));
        }
        if record.phase == Phase::Running {
            entry.resources.push(instance_resource(id));
            entry.instance = Some(record.instance());
            entry.state = state_of(&record);
        }
        entry.token = Some(record.token);
        entries.push(entry);
    }
    // Links whose folder somebody removed by hand; the instance behind each still runs.
    for link in links.iter().filter(ours) {
        let Some(tag) = link.tag().filter(|tag| !ids.contains(&tag.id)) else { continue };
        let mut entry = Owned::new(tag.token);
        entry.resources = vec![link_resource(&tag.id), instance_resource(&tag.id)];
        entries.push(entry);
    }
    Ok(OwnedList::new(entries, complete))
}

/// Whether the first program of an instance runs; with its end the others are gone too.
fn state_of(record: &Record) -> InstanceState {
    match record.process.as_ref().map(ProcessId::is_alive) {
        Some(Ok(true)) => InstanceState::Running,
        Some(Ok(false)) => InstanceState::Stopped,
        // What cannot be looked at says nothing.
        Some(Err(_)) | None => InstanceState::Unknown,
    }
}

fn verify(host: &Host) -> VerifyReport {
    let network = || {
        let mut network = Network::open()?;
        let links = network.links()?;
        network.check(&host.config, &links).map(drop)
    };
    let finding = |check: &str, ok: &str, result: Result<()>| match result {
        Ok(()) => Finding::ok(check, ok),
        Err(error) => Finding::of_error(check, &error),
    };
    let rights = missing_rights().map_or(Ok(()), Err);
    // Who has named a program for plain machines only has no guest programs, and misses none.
    let plain_only = host.config.machine_init.is_some() && host.config.guest_programs_are_default();
    let mut programs = match plain_only {
        true => Ok(()),
        false => host.config.programs(Role::Guest).map(drop),
    };
    if host.config.machine_init.is_some() {
        programs = programs.and(host.config.programs(Role::Plain).map(drop));
    }
    [
        finding("rights", "this process may make namespaces, mounts and links", rights),
        finding("programs", "all programs of instances are there", programs),
        finding("network", "bridge and subnet are free or ours", network()),
        finding("probe", "namespaces, a link on a bridge and an overlay can be made", probe(host)),
    ]
    .into_iter()
    .collect()
}

/// Builds an overlay on a scratch folder and a link on a bridge, on a thread whose namespaces end with it.
fn probe(host: &Host) -> Result<()> {
    let scratch = host.data.root().join(format!("probe-{}", std::process::id()));
    fs::create_dir_all(&scratch).map_err(|e| path_error("cannot write to the data folder", &scratch, e))?;
    let result = std::thread::scope(|scope| {
        let probe = || {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
                .map_err(|e| io_error("cannot make namespaces", e))?;
            Network::probe(&host.config)?;
            mounts::probe(&host.config, &scratch)
        };
        scope.spawn(probe).join().unwrap_or_else(|_| Err(Error::internal("the probe panicked")))
    });
    // The folder stays only when its parent became read-only meanwhile; then the next check says so.
    let _ = fs::remove_dir(&scratch);
    result
}
