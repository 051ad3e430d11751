//! Where the journal lies.

use std::{
    any::Any,
    fmt, fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use redb::{Builder, Database, DatabaseError};

/// Held by the daemon that uses the journal.
pub(super) const LOCK: &str = "journal.lock";
/// How long a daemon that is ending may still hold the journal.
const LOCK_LIMIT: Duration = Duration::from_secs(30);
const LOCK_STEP: Duration = Duration::from_millis(50);

/// What the journal needs of the disk it lies on.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Makes the folder and holds it for one daemon, as long as what is returned lives.
    ///
    /// # Errors
    ///
    /// When another daemon holds it and does not end soon, and what the file system refuses.
    fn hold(&self, folder: &Path) -> Result<Box<dyn Any + Send + Sync>>;

    /// Reads a whole file.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`] when it is not there.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Makes a new database, in place of what there is.
    ///
    /// # Errors
    ///
    /// What the file system refuses.
    fn create(&self, builder: &Builder, path: &Path) -> Result<Database, DatabaseError>;

    /// Opens a database.
    ///
    /// # Errors
    ///
    /// What the file system refuses, or a file that is none.
    fn open(&self, builder: &Builder, path: &Path) -> Result<Database, DatabaseError>;

    /// Renames a file so that a crash afterwards does not undo it.
    ///
    /// # Errors
    ///
    /// What the file system refuses.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Keeps a file from everybody but its owner.
    ///
    /// # Errors
    ///
    /// What the file system refuses.
    fn restrict(&self, path: &Path) -> io::Result<()>;

    /// Bytes that are free at a folder.
    ///
    /// # Errors
    ///
    /// What the file system refuses.
    fn free(&self, folder: &Path) -> io::Result<u64>;

    /// Whether its calls may wait, and must not hold up a thread of the runtime.
    fn waits(&self) -> bool {
        true
    }
}

/// The file system of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn hold(&self, folder: &Path) -> Result<Box<dyn Any + Send + Sync>> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("make the folder {} (-state-dir)", folder.display()))?;
        Ok(Box::new(take_lock(&folder.join(LOCK))?))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn create(&self, builder: &Builder, path: &Path) -> Result<Database, DatabaseError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
        builder.create(path)
    }

    fn open(&self, builder: &Builder, path: &Path) -> Result<Database, DatabaseError> {
        builder.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)?;
        match to.parent() {
            Some(folder) => fs::File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }

    fn restrict(&self, path: &Path) -> io::Result<()> {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
    }

    fn free(&self, folder: &Path) -> io::Result<u64> {
        let disk = nix::sys::statvfs::statvfs(folder)?;
        Ok(disk.blocks_available() * disk.fragment_size())
    }
}

fn take_lock(path: &Path) -> Result<Flock<fs::File>> {
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    let mut file = file.with_context(|| format!("open {}", path.display()))?;
    let begun = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => return Ok(held),
            Err((back, Errno::EWOULDBLOCK)) if begun.elapsed() < LOCK_LIMIT => {
                file = back;
                std::thread::sleep(LOCK_STEP);
            }
            Err((_, Errno::EWOULDBLOCK)) => bail!(
                "another daemon holds {}: end it, or give this one a -state-dir of its own",
                path.display()
            ),
            Err((_, errno)) => return Err(errno).with_context(|| format!("lock {}", path.display())),
        }
    }
}
