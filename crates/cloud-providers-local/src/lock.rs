//! Locks between processes: one per instance, one per data folder, one per network namespace.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cloud_providers::{Error, ErrorKind, OpContext, Result};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::error::path_error;

/// How often a lock that somebody else holds is tried again.
const REST: Duration = Duration::from_millis(2);
/// How long a thread waits for a lock that is held for milliseconds.
const LIMIT: Duration = Duration::from_secs(30);

/// A locked file. The file goes with the lock, so that no lock leaves a trace.
#[derive(Debug)]
pub(crate) struct FileLock {
    // Declared first, but unlinked in `drop` before it is released: a waiter that gets the lock of an unlinked file
    // sees that and starts again.
    _lock: Flock<File>,
    path: PathBuf,
}

impl FileLock {
    /// Takes the lock when nobody holds it.
    pub(crate) fn try_take(path: &Path) -> Result<Option<Self>> {
        let failed = |e: io::Error| path_error("cannot lock", path, e);
        loop {
            let file = fs::OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(path)
                .map_err(failed)?;
            let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, errno)) => return Err(failed(errno.into())),
            };
            let ours = lock.metadata().map_err(failed)?;
            if fs::metadata(path).is_ok_and(|m| m.ino() == ours.ino() && m.dev() == ours.dev()) {
                return Ok(Some(Self { _lock: lock, path: path.to_owned() }));
            }
        }
    }

    /// Waits for the lock as long as the call may last.
    pub(crate) async fn take(ctx: &OpContext, path: &Path) -> Result<Self> {
        loop {
            ctx.check()?;
            if let Some(lock) = Self::try_take(path)? {
                return Ok(lock);
            }
            ctx.sleep(REST).await?;
        }
    }

    /// Waits for a lock that is held shortly, on a thread.
    pub(crate) fn take_blocking(ctx: &OpContext, path: &Path) -> Result<Self> {
        wait(ctx, path, || Self::try_take(path))
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Without the file there is nothing to unlink, and the lock ends with the descriptor all the same.
        let _ = fs::remove_file(&self.path);
    }
}

/// The lock of a network namespace: providers with different data folders may share a bridge.
///
/// It is a lock on the namespace's own file, so it needs no place in the file system.
#[derive(Debug)]
pub(crate) struct NetworkLock {
    _lock: Flock<OwnedFd>,
}

impl NetworkLock {
    /// Waits for the lock of the calling thread's network namespace.
    pub(crate) fn take_blocking(ctx: &OpContext) -> Result<Self> {
        let path = Path::new("/proc/thread-self/ns/net");
        let failed = |e: io::Error| path_error("cannot lock the network namespace", path, e);
        let mut file = Some(File::open(path).map(OwnedFd::from).map_err(failed)?);
        wait(ctx, path, || {
            let Some(fd) = file.take() else { return Ok(None) };
            match Flock::lock(fd, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => Ok(Some(Self { _lock: lock })),
                Err((fd, Errno::EWOULDBLOCK)) => {
                    file = Some(fd);
                    Ok(None)
                }
                Err((_, errno)) => Err(failed(errno.into())),
            }
        })
    }
}

/// Tries until there is a lock, the call ends or it took too long.
fn wait<T>(ctx: &OpContext, path: &Path, mut take: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + LIMIT;
    loop {
        ctx.check()?;
        if let Some(lock) = take()? {
            return Ok(lock);
        }
        if Instant::now() >= end {
            return Err(Error::new(ErrorKind::Transient, "another process holds the lock for too long")
                .with("lock", path.display())
                .with("waited", format!("{LIMIT:?}")));
        }
        std::thread::sleep(REST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_excludes_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let lock = FileLock::try_take(&path).unwrap().expect("nobody holds it");
        assert!(FileLock::try_take(&path).unwrap().is_none());
        drop(lock);
        assert!(!path.exists());
        assert!(FileLock::try_take(&path).unwrap().is_some());
    }

    #[tokio::test]
    async fn waiting_for_a_lock_ends_with_the_call() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let _held = FileLock::try_take(&path).unwrap();
        let ctx = OpContext::new().with_timeout(Duration::from_millis(20));
        assert_eq!(FileLock::take(&ctx, &path).await.unwrap_err().kind().label(), "cancelled");
    }

    #[test]
    fn many_threads_hold_a_lock_one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let inside = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let _lock = FileLock::take_blocking(&OpContext::new(), &path).unwrap();
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(!path.exists());
    }
}
