//! Network namespaces: run code in one, make, delete and compare them.
//!
//! A thread that changed its namespace is never handed back to a pool: every call here uses a fresh thread that
//! ends with the call, so no other task ever finds itself in a strange namespace.

use std::fs::File;
use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::oneshot;

use crate::netlink::RouteSocket;
use crate::{NetError, NetErrorKind};

/// The folder of named namespaces, shared with `ip netns`.
pub const NETNS_DIR: &str = "/run/netns";

const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// Runs a future in the network namespace at `path`, on a thread and a runtime of its own.
///
/// Sockets keep the namespace in which they were made, so a listener may be made here and handed back. Dropping the
/// returned future does not stop the work: it runs to its end unnoticed.
///
/// # Errors
///
/// [`NetErrorKind::NetnsMissing`] when `path` is no network namespace, [`NetErrorKind::System`] when the thread or
/// its runtime cannot be made, or the future panicked.
pub async fn run_in<F, Fut, T>(path: &Path, f: F) -> Result<T, NetError>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = T>,
    T: Send + 'static,
{
    let path = path.to_owned();
    on_thread("netns", move || {
        enter(&open(&path)?, &path)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| {
            NetError::new(NetErrorKind::System, "cannot make a runtime for a namespace thread").with_source(e)
        })?;
        Ok(runtime.block_on(f()))
    })
    .await
}

/// Makes the named namespace `/run/netns/<name>` with its loopback interface up, and returns the path.
///
/// # Errors
///
/// [`NetErrorKind::NameTaken`] when the name is in use, [`NetErrorKind::InvalidInput`] when it is no file name,
/// [`NetErrorKind::System`] when the kernel refuses.
pub async fn create(name: &str) -> Result<PathBuf, NetError> {
    let path = named(name)?;
    on_thread("netns", move || create_named(&path).map(|()| path)).await
}

/// Deletes the named namespace `/run/netns/<name>`. One that is not there is fine.
///
/// The namespace itself lives on until the last process and the last open socket in it are gone.
///
/// # Errors
///
/// [`NetErrorKind::System`] when the name cannot be removed.
pub fn delete(name: &str) -> Result<(), NetError> {
    delete_path(&named(name)?)
}

/// The number that identifies a network namespace, as in `net:[4026531840]`.
///
/// # Errors
///
/// [`NetErrorKind::NetnsMissing`] when there is nothing at `path`.
pub fn inode(path: &Path) -> Result<u64, NetError> {
    std::fs::metadata(path).map(|meta| meta.ino()).map_err(|e| missing(path).with_source(e))
}

/// The number of the calling thread's network namespace.
///
/// # Errors
///
/// [`NetErrorKind::System`] when `/proc` cannot be read.
pub fn current_inode() -> Result<u64, NetError> {
    std::fs::metadata(OWN_NAMESPACE).map(|meta| meta.ino()).map_err(|e| {
        NetError::new(NetErrorKind::System, "cannot read the network namespace of this thread").with_source(e)
    })
}

/// A named namespace that is deleted when the guard goes.
#[derive(Debug)]
pub struct NetnsGuard {
    path: PathBuf,
}

impl NetnsGuard {
    /// Makes the named namespace, as [`create`] does.
    ///
    /// # Errors
    ///
    /// Those of [`create`].
    pub async fn create(name: &str) -> Result<Self, NetError> {
        create(name).await.map(|path| Self { path })
    }

    /// Where the namespace is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for NetnsGuard {
    fn drop(&mut self) {
        if let Err(error) = delete_path(&self.path) {
            tracing::warn!(error = error.chain(), "a network namespace is left");
        }
    }
}

/// Runs blocking work on a fresh thread, in the caller's namespace.
pub(crate) async fn on_thread<F, T>(name: &str, work: F) -> Result<T, NetError>
where
    F: FnOnce() -> Result<T, NetError> + Send + 'static,
    T: Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    let span = tracing::Span::current();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let _entered = span.entered();
            // The receiver is gone when the caller stopped waiting; the work was done all the same.
            let _ = sender.send(work());
        })
        .map_err(|e| {
            NetError::new(NetErrorKind::System, "cannot start a thread for network set-up").with_source(e)
        })?;
    receiver
        .await
        .map_err(|_| NetError::new(NetErrorKind::System, "the thread for network set-up panicked"))?
}

/// Opens a namespace by path.
pub(crate) fn open(path: &Path) -> Result<File, NetError> {
    File::open(path).map_err(|e| missing(path).with_source(e))
}

/// Moves the calling thread, which must be a fresh one, into a namespace.
pub(crate) fn enter(namespace: &File, path: &Path) -> Result<(), NetError> {
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
        // The file of a deleted named namespace stays for a moment as an ordinary empty file.
        Errno::EINVAL => missing(path).with_source(errno),
        _ => NetError::new(
            NetErrorKind::System,
            format!("cannot enter network namespace {} (root and CAP_SYS_ADMIN are needed)", path.display()),
        )
        .with_source(errno),
    })
}

/// Opens the calling thread's own namespace.
pub(crate) fn open_own() -> Result<File, NetError> {
    File::open(OWN_NAMESPACE).map_err(|e| {
        NetError::new(NetErrorKind::System, "cannot open the network namespace of this thread").with_source(e)
    })
}

fn missing(path: &Path) -> NetError {
    NetError::new(NetErrorKind::NetnsMissing, format!("there is no network namespace at {}", path.display()))
}

fn named(name: &str) -> Result<PathBuf, NetError> {
    if name.is_empty() || name == "." || name == ".." || name.contains('/') || name.contains('\0') {
        return Err(NetError::new(
            NetErrorKind::InvalidInput,
            format!("{name:?} is no name for a network namespace"),
        ));
    }
    Ok(Path::new(NETNS_DIR).join(name))
}

/// Unshares the calling thread, which must be a fresh one, and pins its new namespace to `path`.
fn create_named(path: &Path) -> Result<(), NetError> {
    let refused =
        |what: &str| NetError::new(NetErrorKind::System, format!("cannot {what} for {}", path.display()));
    std::fs::create_dir_all(NETNS_DIR).map_err(|e| refused("make the folder").with_source(e))?;
    File::create_new(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            NetError::new(NetErrorKind::NameTaken, format!("{} exists already", path.display()))
        }
        _ => refused("make the file").with_source(e),
    })?;
    let pinned = unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|e| refused("make a network namespace").with_source(e))
        .and_then(|()| {
            mount(Some(OWN_NAMESPACE), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(|e| refused("bind the network namespace").with_source(e))
        })
        .and_then(|()| RouteSocket::open(path.display())?.set_loopback_up());
    if pinned.is_err() {
        let _ = delete_path(path);
    }
    pinned
}

fn delete_path(path: &Path) -> Result<(), NetError> {
    let refused = |e: std::io::Error| {
        NetError::new(NetErrorKind::System, format!("cannot remove network namespace {}", path.display()))
            .with_source(e)
    };
    match umount2(path, MntFlags::MNT_DETACH) {
        // EINVAL: an ordinary file, left by a deletion that was cut short.
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
        Err(errno) => return Err(refused(errno.into())),
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(refused(e)),
        _ => Ok(()),
    }
}
