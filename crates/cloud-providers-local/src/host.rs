//! What all operations share: the configuration, the data folder and the network namespace to work in.

use std::{
    fs::{self, File},
    os::fd::AsFd,
    path::Path,
    sync::Arc,
    thread,
};

use cloud_providers::{Error, ErrorKind, OpContext, Result};
use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

use crate::{
    config::Config,
    error::{io_error, path_error},
    lock::FileLock,
    state::DataDir,
};

/// Capabilities that the work needs, with their bits.
const CAPABILITIES: &[(&str, u32)] = &[
    ("CAP_KILL", 5),
    ("CAP_NET_ADMIN", 12),
    ("CAP_SYS_CHROOT", 18),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_MKNOD", 27),
];

/// The host as one provider value sees it.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) config: Config,
    pub(crate) data: DataDir,
    /// The namespace of the thread that built the provider. Worker threads enter it, whatever thread starts them.
    netns: File,
}

impl Host {
    /// Opens the host for a provider.
    pub(crate) fn open(config: Config) -> Result<Self> {
        let path = Path::new("/proc/thread-self/ns/net");
        let netns = File::open(path).map_err(|e| path_error("cannot open the network namespace", path, e))?;
        let data = DataDir::open(&config.data_dir)?;
        Ok(Self { config, data, netns })
    }

    /// Takes one step of an operation and names it in the error.
    pub(crate) fn step<T>(&self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        #[cfg(feature = "testing")]
        let result = crate::testing::step(self.data.root(), name, work);
        #[cfg(not(feature = "testing"))]
        let result = work();
        result.map_err(|error| match error.operation() {
            Some(_) => error,
            None => error.with_operation(name),
        })
    }

    /// Moves the calling thread into the provider's network namespace.
    fn enter_netns(&self) -> Result<()> {
        setns(self.netns.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|e| io_error("cannot enter the provider's network namespace", e))
    }

    /// Waits for the lock of an instance, as long as the call may last.
    pub(crate) async fn lock_instance(&self, ctx: &OpContext, id: &str) -> Result<FileLock> {
        FileLock::take(ctx, &self.data.lock_path(id)).await
    }
}

/// Runs `work` on a thread of its own in the provider's network namespace.
///
/// The work goes on when the future is dropped: an operation of a few milliseconds is better finished than left.
pub(crate) async fn on_thread<T: Send + 'static>(
    host: &Arc<Host>,
    work: impl FnOnce(&Host) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (send, receive) = oneshot::channel();
    let host = host.clone();
    thread::Builder::new()
        .name("local-provider".into())
        .spawn(move || {
            let result = host.enter_netns().and_then(|()| work(&host));
            // Nobody waits when the caller dropped the future.
            let _ = send.send(result);
        })
        .map_err(|e| io_error("cannot start a thread", e))?;
    receive.await.unwrap_or_else(|_| Err(Error::internal("a worker thread of the provider panicked")))
}

/// Returns what this process lacks to work with namespaces.
pub(crate) fn missing_rights() -> Option<Error> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    rights_error(nix::unistd::geteuid().is_root(), &status)
}

fn rights_error(root: bool, status: &str) -> Option<Error> {
    let hint = "run it as root, or under local-rootless, which gives it namespaces of its own";
    if !root {
        return Some(
            Error::new(
                ErrorKind::Permission,
                "the local provider makes namespaces, mounts and links and needs root",
            )
            .with("mend", hint),
        );
    }
    let effective = status
        .lines()
        .find_map(|l| u64::from_str_radix(l.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or_default();
    let missing: Vec<&str> =
        CAPABILITIES.iter().filter(|(_, bit)| effective & (1 << bit) == 0).map(|(name, _)| *name).collect();
    (!missing.is_empty()).then(|| {
        Error::new(ErrorKind::Permission, "the local provider lacks capabilities")
            .with("missing", missing.join(" "))
            .with("mend", "run it as root outside of a container, or in a privileged one")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_root_the_error_says_so() {
        let error = rights_error(false, "CapEff:\t0000000000000000\n").unwrap();
        assert_eq!(*error.kind(), ErrorKind::Permission);
        assert!(error.to_string().contains("needs root"), "{error}");
    }

    #[test]
    fn root_without_capabilities_is_told_which_are_missing() {
        let all = CAPABILITIES.iter().fold(0u64, |bits, (_, bit)| bits | 1 << bit);
        assert!(rights_error(true, &format!("Name:\tx\nCapEff:\t{all:016x}\n")).is_none());
        let without = all & !(1 << 21);
        let text = rights_error(true, &format!("CapEff:\t{without:016x}\n")).unwrap().to_string();
        assert!(text.contains("missing: CAP_SYS_ADMIN,"), "{text}");
    }
}
