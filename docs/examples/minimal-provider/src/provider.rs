//! The provider: a folder with a file for each machine that is taken.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use cloud_providers::{
    Capabilities, CreateRequest, Error, ErrorKind, Finding, Instance, InstanceId, OpContext, Owned,
    OwnedList, Ownership, Provider, Resource, Result, Retry, Scope, Token, UserData, VerifyReport,
    async_trait, names::instance_name, tags,
};
use serde::{Deserialize, Serialize};

use crate::Config;

const NAME_LIMIT: usize = 63;
const USER_DATA_LIMIT: usize = 1 << 20;
/// An undo does not end with the call that it undoes.
const UNDO_LIMIT: Duration = Duration::from_secs(30);

/// Hands out machines that stand ready.
#[derive(Debug)]
pub struct MinimalProvider(Config);

/// One file of the folder: `<name>.json`.
#[derive(Serialize, Deserialize)]
struct Taken {
    instance: Instance,
    token: Token,
    tags: BTreeMap<String, String>,
    /// For whatever starts the machine.
    user_data: UserData,
}

impl MinimalProvider {
    pub(crate) fn new(config: Config) -> Result<Self> {
        fs::create_dir_all(&config.folder).map_err(|e| failed("make the folder", e))?;
        Ok(Self(config))
    }

    /// Waits until no other call, of this process or another one, looks at the folder. Dropping the file ends it.
    async fn lock(&self, ctx: &OpContext) -> Result<File> {
        ctx.check()?;
        let folder = File::open(&self.0.folder).map_err(|e| failed("open the folder", e))?;
        let attempt = || match folder.try_lock() {
            Ok(()) => Ok(Some(())),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed("lock the folder", error)),
        };
        let limit = Duration::from_secs(20);
        ctx.poll("the lock of the folder", Duration::from_millis(10), limit, async || attempt()).await?;
        Ok(folder)
    }

    /// Reads what is taken, under the lock.
    async fn taken(&self, ctx: &OpContext) -> Result<Vec<Taken>> {
        let read = async {
            let mut taken = Vec::new();
            let mut files = tokio::fs::read_dir(&self.0.folder).await?;
            while let Some(file) = files.next_entry().await? {
                if file.path().extension().is_some_and(|e| e == "json") {
                    taken.push(serde_json::from_slice(&tokio::fs::read(file.path()).await?)?);
                }
            }
            io::Result::Ok(taken)
        };
        ctx.run(async { read.await.map_err(|e| failed("read the folder", e)) }).await
    }

    fn path(&self, name: &str, extension: &str) -> PathBuf {
        self.0.folder.join(format!("{name}.{extension}"))
    }

    /// Writes a file, under the lock. There is no `.await` in it: it is written whole, or the call never came here.
    fn take(&self, new: &Taken) -> io::Result<()> {
        // Of an earlier machine of this name, whose last word came too late.
        let _ = fs::remove_file(self.path(&new.instance.name, "up"));
        let file = tempfile::NamedTempFile::new_in(&self.0.folder)?;
        serde_json::to_writer(&file, new)?;
        file.persist(self.path(&new.instance.name, "json"))?;
        Ok(())
    }

    /// Removes a machine's files, under the lock, the one by which it is found last.
    fn give_back(&self, taken: &Taken) -> Result<()> {
        let name = &taken.instance.name;
        for path in [self.path(name, "up"), self.path(name, "json")] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    let left = Resource::new(Resource::INSTANCE, name);
                    return Err(failed("give a machine back", error).with_leftovers([left]));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits until whoever starts the machine says that it is up.
    async fn wait_up(&self, ctx: &OpContext, instance: &Instance) -> Result<()> {
        let (up, json) = (self.path(&instance.name, "up"), self.path(&instance.name, "json"));
        let probe = async || {
            if !json.exists() {
                let gone = Error::new(ErrorKind::Transient, "the machine was given back while it came up");
                return Err(gone.with_retry(Retry::Never).with("name", &instance.name));
            }
            Ok(up.exists().then_some(()))
        };
        ctx.poll("the machine to come up", Duration::from_millis(50), self.0.start_timeout, probe).await
    }

    /// Finds the machine of the token, or takes a free one. Returns whether it was taken by this call.
    async fn find_or_take(&self, ctx: &OpContext, request: &CreateRequest) -> Result<(Instance, bool)> {
        let name = instance_name(&request.unit.name_hint, &request.unit.id, NAME_LIMIT)?;
        let _lock = self.lock(ctx).await?;
        let taken = self.taken(ctx).await?;
        let conflict = |what| Error::new(ErrorKind::Conflict, what).with("name", &name);
        if let Some(own) = taken.iter().find(|t| t.token == request.token) {
            let same = own.tags.get(tags::REQUEST) == Some(&request.fingerprint());
            return if same {
                Ok((own.instance.clone(), false))
            } else {
                Err(conflict("the token has another request"))
            };
        }
        // Names are short, and two tokens may have the same: the other one's machine is left alone.
        if taken.iter().any(|t| t.instance.name == name) {
            return Err(conflict("the name is taken"));
        }
        let wanted = request.networks.first().and_then(|n| n.address);
        let is_free = |a: &&_| !taken.iter().any(|t| t.instance.addresses.contains(a));
        let address = self.0.addresses.iter().filter(is_free).find(|a| wanted.is_none_or(|w| w == **a));
        let Some(address) = address else {
            let kind = ErrorKind::Capacity { zone: None, instance_type: None };
            return Err(Error::new(kind, "no machine is free")
                .with("taken", taken.len())
                .with("add to", "MINIMAL_ADDRESSES"));
        };
        let instance = Instance::new(InstanceId::new(&name), &name, vec![*address]);
        // First the caller's note, then the thing: a crash in between leaves nothing that nobody knows of.
        ctx.record(&Resource::new(Resource::INSTANCE, &name)).await?;
        ctx.check()?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let tags = tags::for_request(request, now).into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        let (token, user_data) = (request.token.clone(), request.user_data.clone());
        let new = Taken { instance: instance.clone(), token, tags, user_data };
        self.take(&new).map_err(|e| failed("take a machine", e))?;
        Ok((instance, true))
    }
}

#[async_trait]
impl Provider for MinimalProvider {
    async fn create_instance(&self, ctx: &OpContext, request: &CreateRequest) -> Result<Instance> {
        request.check(&self.capabilities())?;
        let network = request.networks.first();
        if request.spec.instance_type.is_some() || network.is_some_and(|n| n.public || n.network.is_some()) {
            return Err(Error::unsupported(
                "machines that stand ready have neither types nor networks to choose",
            ));
        }
        let (instance, taken_now) = self.find_or_take(ctx, request).await?;
        match self.wait_up(ctx, &instance).await {
            Ok(()) => Ok(instance),
            // What this call made it takes back; what it found stays with the call that made it.
            Err(error) if taken_now => match self.release(&ctx.for_undo(UNDO_LIMIT), &request.token).await {
                Ok(()) => Err(error),
                Err(undo) => Err(error.with_leftovers(undo.leftovers().to_vec())),
            },
            Err(error) => Err(error),
        }
    }

    async fn delete_instance(&self, ctx: &OpContext, id: &InstanceId, ownership: &Ownership) -> Result<()> {
        let _lock = self.lock(ctx).await?;
        let taken = self.taken(ctx).await?;
        let Some(found) = taken.iter().find(|t| t.instance.id == *id) else { return Ok(()) };
        let ours = match ownership {
            Ownership::Tagged(scope) => found.token.scope == *scope,
            recorded => recorded.accepts_name(&found.instance.name),
        };
        if !ours {
            return Err(
                Error::new(ErrorKind::Permission, "the machine was taken by somebody else").with("id", id)
            );
        }
        self.give_back(found)
    }

    async fn teardown(&self) -> Result<()> {
        Ok(())
    }

    async fn verify_config(&self, ctx: &OpContext) -> Result<VerifyReport> {
        let _lock = self.lock(ctx).await?;
        let mut report = VerifyReport::new();
        report.push(match self.taken(ctx).await {
            Ok(taken) => Finding::ok("folder", format!("it can be read and holds {} machines", taken.len())),
            // The caller ended it: nothing was found out.
            Err(error) if *error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) => Finding::of_error("folder", &error).with_option("MINIMAL_FOLDER"),
        });
        Ok(report)
    }

    async fn list_owned(&self, ctx: &OpContext, scope: &Scope) -> Result<OwnedList> {
        let _lock = self.lock(ctx).await?;
        let mut taken = self.taken(ctx).await?;
        taken.retain(|t| t.token.scope == *scope);
        let entry = |t: Taken| {
            let mut entry = Owned::new(t.token.tag_value());
            entry.holder = t.tags.get(tags::HOLDER).cloned();
            entry.created_unix = t.tags.get(tags::CREATED).and_then(|text| text.parse().ok());
            entry.resources.push(Resource::new(Resource::INSTANCE, t.instance.id.as_str()));
            (entry.token, entry.instance) = (Some(t.token), Some(t.instance));
            entry
        };
        Ok(OwnedList::new(taken.into_iter().map(entry).collect(), true))
    }

    async fn release(&self, ctx: &OpContext, token: &Token) -> Result<()> {
        let _lock = self.lock(ctx).await?;
        let taken = self.taken(ctx).await?;
        taken.iter().filter(|t| t.token == *token).try_for_each(|t| self.give_back(t))
    }

    fn capabilities(&self) -> Capabilities {
        let mut can = Capabilities::default();
        (can.verify_config, can.list_owned, can.release, can.isolation) = (true, true, true, true);
        (can.user_data_limit, can.name_limit) = (Some(USER_DATA_LIMIT), Some(NAME_LIMIT));
        can
    }
}

/// Decides kind and retry by the system's own word.
fn failed(operation: &str, error: io::Error) -> Error {
    let (kind, retry) = match error.kind() {
        io::ErrorKind::PermissionDenied => (ErrorKind::Permission, Retry::Never),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (ErrorKind::Quota, Retry::Never),
        io::ErrorKind::InvalidData => (ErrorKind::Internal, Retry::Never),
        _ => (ErrorKind::Transient, Retry::After { delay: Duration::from_millis(500) }),
    };
    Error::new(kind, format!("cannot {operation}"))
        .with_retry(retry)
        .with_operation(operation)
        .with_source(error)
}
