//! What the daemon knows of its sandboxes, on disk, so that no VM is forgotten with the process.
//!
//! One file, `journal.redb` in `-state-dir`, readable by root alone: it holds TLS keys and user data. A record is one
//! entry of JSON under the sandbox's id. Every change is on the disk (`fsync`) when the call returns.
//!
//! A file that is damaged, or that a newer version wrote, ends the start and is not touched: what cannot be read must
//! not be replaced by something empty, or its VMs are lost. To be sure of that, the file is tried as a copy in memory
//! first, since opening repairs in place.

mod disk;
#[cfg(test)]
mod fuzz;

use std::{
    any::Any,
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, Result, anyhow, bail};
use async_trait::async_trait;
use redb::{
    Builder, Database, Durability, ReadableDatabase as _, ReadableTable as _, StorageBackend,
    TableDefinition, WriteTransaction, backends::InMemoryBackend,
};

pub use disk::{Disk, SystemDisk};

use crate::{
    hooks::{Hooks, Protection},
    store::{SandboxRecord, SandboxStore, lock},
};

/// Name of the file in `-state-dir`.
pub const FILE: &str = "journal.redb";
/// What must be free on the disk before a new sandbox is taken on: the running ones need room for their next steps.
pub(crate) const ROOM: u64 = 16 * 1024 * 1024;
/// A node's journal is far below this; the library's default would be a gibibyte.
const CACHE: usize = 1024 * 1024;

const META: TableDefinition<&str, u32> = TableDefinition::new("meta");
const SANDBOXES: TableDefinition<&str, &[u8]> = TableDefinition::new("sandboxes");
const SCHEMA: &str = "schema";

/// Brings a journal from one version of the schema to the next.
type Migration = fn(&WriteTransaction) -> Result<()>;

/// Each entry leads from the version of its index plus one to the next; their number plus one is the version we write.
const MIGRATIONS: &[Migration] = &[];

/// Keeps records in a file.
#[derive(Clone, Debug)]
pub struct Journal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// `None` after a failed write: the library refuses everything from then on, until the file is opened again.
    database: Mutex<Option<Database>>,
    migrations: &'static [Migration],
    hooks: Hooks,
    _hold: Box<dyn Any + Send + Sync>,
}

impl Journal {
    /// Opens the journal in `dir`, and makes both where they are missing.
    ///
    /// Another daemon that is just ending is waited for.
    ///
    /// # Errors
    ///
    /// A file that is damaged, newer or held by another daemon, and what the file system refuses. A file that cannot be
    /// read is not changed.
    pub async fn open(dir: &Path) -> Result<Self> {
        Self::open_on(Arc::new(SystemDisk), dir, Hooks::default()).await
    }

    /// Opens the journal in the folder `dir` of a disk.
    ///
    /// # Errors
    ///
    /// As [`Journal::open`].
    pub async fn open_on(disk: Arc<dyn Disk>, dir: &Path, hooks: Hooks) -> Result<Self> {
        let dir = dir.to_owned();
        run(disk.clone(), move || Self::open_with(disk, &dir, MIGRATIONS, hooks)).await
    }

    fn open_with(
        disk: Arc<dyn Disk>,
        dir: &Path,
        migrations: &'static [Migration],
        hooks: Hooks,
    ) -> Result<Self> {
        let hold = disk.hold(dir)?;
        let path = dir.join(FILE);
        let database = open_file(&*disk, &path, migrations)?;
        let inner =
            Inner { disk, path, database: Mutex::new(Some(database)), migrations, hooks, _hold: hold };
        Ok(Self(Arc::new(inner)))
    }

    /// Reads the journal in `dir` without holding or changing it, for when no daemon runs.
    ///
    /// # Errors
    ///
    /// A file that is not there, damaged or newer. While a daemon writes, a copy may look damaged.
    pub async fn peek(dir: &Path) -> Result<Vec<SandboxRecord>> {
        let path = dir.join(FILE);
        run(Arc::new(SystemDisk), move || {
            let bytes = fs::read(&path).with_context(|| format!("read the journal {}", path.display()))?;
            let (version, database) =
                try_copy(&bytes).with_context(|| format!("the journal {} cannot be read", path.display()))?;
            if version != newest(MIGRATIONS) {
                bail!("the journal {} has version {version}: use the caactl of its daemon", path.display());
            }
            records(&database)
        })
        .await
    }

    /// Does `work` on the database, which is opened again after a failure.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.0.clone();
        run(inner.disk.clone(), move || {
            let mut slot = lock(&inner.database);
            let database = match slot.take() {
                Some(database) => database,
                None => open_file(&*inner.disk, &inner.path, inner.migrations)?,
            };
            let result = work(&database);
            if result.is_ok() {
                *slot = Some(database);
            }
            result.with_context(|| format!("journal {}", inner.path.display()))
        })
        .await
    }
}

#[async_trait]
impl SandboxStore for Journal {
    async fn room(&self) -> Result<()> {
        let folder = self.0.path.parent().unwrap_or(&self.0.path).to_owned();
        let free =
            self.0.disk.free(&folder).with_context(|| format!("look at the disk of {}", folder.display()))?;
        if free < ROOM {
            bail!("only {free} bytes are free at {} (-state-dir), {ROOM} are needed", folder.display());
        }
        Ok(())
    }

    async fn put(&self, record: &SandboxRecord) -> Result<()> {
        let (id, json) = (record.id.clone(), serde_json::to_vec(record)?);
        let durable = self.0.hooks.has(Protection::Fsync);
        self.with(move |database| {
            let change = begin(database, durable)?;
            change.open_table(SANDBOXES)?.insert(id.as_str(), json.as_slice())?;
            Ok(change.commit()?)
        })
        .await
    }

    async fn remove(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        let durable = self.0.hooks.has(Protection::Fsync);
        self.with(move |database| {
            let change = begin(database, durable)?;
            change.open_table(SANDBOXES)?.remove(id.as_str())?;
            Ok(change.commit()?)
        })
        .await
    }

    async fn list(&self) -> Result<Vec<SandboxRecord>> {
        self.with(records).await
    }
}

fn records(database: &Database) -> Result<Vec<SandboxRecord>> {
    let table = database.begin_read()?.open_table(SANDBOXES)?;
    let mut records = Vec::new();
    for entry in table.iter()? {
        let (id, json) = entry?;
        // Only where it is: the parser's words quote the entry, which has keys and user data.
        let record = serde_json::from_slice(json.value()).map_err(|error| {
            let (id, line, column) = (id.value(), error.line(), error.column());
            anyhow!("the entry of sandbox {id} cannot be read at line {line}, column {column}")
        })?;
        records.push(record);
    }
    Ok(records)
}

/// Begins a change that is on the disk when its commit returns.
fn begin(database: &Database, durable: bool) -> Result<WriteTransaction> {
    let mut change = database.begin_write()?;
    if !durable {
        change.set_durability(Durability::None)?;
    }
    Ok(change)
}

/// Runs what waits for a disk beside the runtime's own threads.
async fn run<T: Send + 'static>(
    disk: Arc<dyn Disk>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if !disk.waits() {
        return work();
    }
    tokio::task::spawn_blocking(work).await.context("the journal's thread ended")?
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE);
    builder
}

fn open_file(disk: &dyn Disk, path: &Path, migrations: &[Migration]) -> Result<Database> {
    let bytes = match disk.read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_file(disk, path, migrations)
                .with_context(|| format!("make the journal {}", path.display()))?;
            return Ok(disk.open(&builder(), path)?);
        }
        Err(error) => return Err(error).with_context(|| format!("read the journal {}", path.display())),
    };
    let (version, _) = try_copy(&bytes).map_err(|error| {
        anyhow!(
            "the journal {} is damaged and was not touched ({error:#}): put a copy of it back, or move it away and \
             delete the VMs of its sandboxes by hand",
            path.display()
        )
    })?;
    let ours = newest(migrations);
    if version > ours {
        bail!(
            "the journal {} has version {version} and was not touched, since this program knows versions up to {ours}: \
             start the newer program that wrote it",
            path.display()
        );
    }
    disk.restrict(path).with_context(|| format!("restrict {}", path.display()))?;
    let database =
        disk.open(&builder(), path).with_context(|| format!("open the journal {}", path.display()))?;
    migrate(&database, version, migrations)
        .with_context(|| format!("bring the journal {} to version {ours}", path.display()))?;
    Ok(database)
}

/// Checks a copy in memory, every page of it, and returns it with the version of its schema.
fn try_copy(bytes: &[u8]) -> Result<(u32, Database)> {
    // An empty file would be taken for a new one.
    if bytes.is_empty() {
        bail!("it is empty");
    }
    let memory = InMemoryBackend::new();
    memory.set_len(bytes.len() as u64)?;
    memory.write(0, bytes)?;
    // The library says of itself that a damaged file can make it panic.
    let read = catch_unwind(AssertUnwindSafe(|| {
        let database = builder().set_check_integrity_on_open(true).create_with_backend(memory)?;
        let reading = database.begin_read()?;
        reading.open_table(SANDBOXES)?;
        let version = reading.open_table(META)?.get(SCHEMA)?.map(|v| v.value());
        drop(reading);
        Ok((version.context("it names no version")?, database))
    }));
    read.unwrap_or_else(|_| Err(anyhow!("its pages contradict each other")))
}

/// Makes an empty journal under another name first: a crash leaves none rather than half of one.
fn make_file(disk: &dyn Disk, path: &Path, migrations: &[Migration]) -> Result<()> {
    let fresh = path.with_extension("new");
    let database = disk.create(&builder(), &fresh)?;
    let change = database.begin_write()?;
    change.open_table(META)?.insert(SCHEMA, newest(migrations))?;
    change.open_table(SANDBOXES)?;
    change.commit()?;
    drop(database);
    Ok(disk.rename(&fresh, path)?)
}

/// The version of the schema that this program writes.
pub(crate) fn schema() -> u32 {
    newest(MIGRATIONS)
}

/// The file that the daemon that uses the journal in `dir` holds locked.
pub(crate) fn lock_path(dir: &Path) -> PathBuf {
    dir.join(disk::LOCK)
}

fn newest(migrations: &[Migration]) -> u32 {
    u32::try_from(migrations.len()).unwrap_or(u32::MAX).saturating_add(1)
}

/// Takes every step in one transaction: a crash leaves the old version or the new one.
fn migrate(database: &Database, version: u32, migrations: &[Migration]) -> Result<()> {
    let ours = newest(migrations);
    if version == ours {
        return Ok(());
    }
    let first = version.checked_sub(1).context("version 0 never was")? as usize;
    let change = database.begin_write()?;
    for step in &migrations[first..] {
        step(&change)?;
    }
    change.open_table(META)?.insert(SCHEMA, ours)?;
    change.commit()?;
    tracing::info!(from = version, to = ours, "the journal is migrated");
    Ok(())
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
