//! A disk that loses what was not synced when its daemon is killed.

use std::{
    any::Any,
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use caa::journal::Disk;
use rand::{Rng as _, rngs::StdRng};
use redb::{Builder, Database, DatabaseError, StorageBackend};

use crate::sim::{Life, Point, Sim};

enum Change {
    Write(usize, Vec<u8>),
    Len(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Len(len) => bytes.resize(*len, 0),
            Self::Write(at, data) => {
                if bytes.len() < at + data.len() {
                    bytes.resize(at + data.len(), 0);
                }
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
        }
    }
}

#[derive(Default)]
struct File {
    /// What a crash cannot take.
    durable: Vec<u8>,
    /// What a reader sees.
    current: Vec<u8>,
    /// What lies between the two, in order.
    pending: Vec<Change>,
}

/// What outlives daemons.
#[derive(Default)]
pub(crate) struct Device(BTreeMap<PathBuf, File>);

impl Device {
    /// Takes away what was not synced: all of it, nothing, or any part, since disks reorder.
    pub(crate) fn crash(&mut self, rng: &mut StdRng) {
        let mode = rng.random_range(0..3);
        for file in self.0.values_mut() {
            for change in std::mem::take(&mut file.pending) {
                if mode == 0 || (mode == 1 && rng.random()) {
                    change.apply(&mut file.durable);
                }
            }
            file.current.clone_from(&file.durable);
        }
    }
}

/// The device as one daemon uses it.
#[derive(Clone)]
pub(crate) struct SimDisk {
    pub sim: Sim,
    pub life: Life,
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimDisk")
    }
}

impl SimDisk {
    fn device(&self) -> Arc<Mutex<Device>> {
        self.sim.device.clone()
    }

    fn pass(&self, operation: &'static str) -> io::Result<()> {
        match self.sim.pass_now(&self.life, Point("journal", operation, "at")) {
            true => Ok(()),
            false => Err(io::Error::other("scripted failure of the disk")),
        }
    }
}

impl Disk for SimDisk {
    fn hold(&self, _: &Path) -> anyhow::Result<Box<dyn Any + Send + Sync>> {
        Ok(Box::new(()))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.pass("open")?;
        let device = self.device();
        let device = device.lock().unwrap();
        device.0.get(path).map(|f| f.current.clone()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn create(&self, builder: &Builder, path: &Path) -> Result<Database, DatabaseError> {
        self.pass("create")?;
        self.device().lock().unwrap().0.insert(path.to_owned(), File::default());
        self.open(builder, path)
    }

    fn open(&self, builder: &Builder, path: &Path) -> Result<Database, DatabaseError> {
        builder.create_with_backend(SimFile { disk: self.clone(), path: path.to_owned() })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.pass("rename")?;
        let device = self.device();
        let mut device = device.lock().unwrap();
        let file = device.0.remove(from).ok_or(io::ErrorKind::NotFound)?;
        device.0.insert(to.to_owned(), file);
        Ok(())
    }

    fn restrict(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn free(&self, _: &Path) -> io::Result<u64> {
        Ok(if self.pass("free").is_ok() { u64::MAX } else { 0 })
    }

    fn waits(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    path: PathBuf,
}

impl SimFile {
    fn with<T>(&self, work: impl FnOnce(&mut File) -> io::Result<T>) -> io::Result<T> {
        if self.disk.life.is_over() {
            return Err(io::Error::other("the daemon is dead"));
        }
        let device = self.disk.device();
        let mut device = device.lock().unwrap();
        // A database that is made keeps its handle while the file is renamed.
        let renamed = self.path.with_extension("redb");
        let path = if device.0.contains_key(&self.path) { &self.path } else { &renamed };
        work(device.0.get_mut(path).ok_or(io::ErrorKind::NotFound)?)
    }

    fn change(&self, operation: &'static str, change: Change) -> io::Result<()> {
        self.disk.pass(operation)?;
        self.with(|file| {
            change.apply(&mut file.current);
            file.pending.push(change);
            Ok(())
        })
    }
}

impl StorageBackend for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|file| Ok(file.current.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        self.with(|file| {
            let bytes = file.current.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change("set_len", Change::Len(usize::try_from(len).map_err(io::Error::other)?))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.pass("fsync")?;
        self.with(|file| {
            for change in std::mem::take(&mut file.pending) {
                change.apply(&mut file.durable);
            }
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change("write", Change::Write(usize::try_from(offset).map_err(io::Error::other)?, data.to_vec()))
    }
}
