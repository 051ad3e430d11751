//! The gateway itself: a proxy for each sandbox, in this process.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::AgentProxies;
use crate::error::{GatewayError, GatewayErrorKind};
use crate::proxy::Proxy;
use crate::spec::{ProxySpec, ProxyStatus, ReadyInfo};
use crate::thread::Threads;

/// The longest path a unix socket can have.
const MAX_SOCKET_PATH: usize = 107;

/// How long a program that listens at a socket path may take to accept.
const PROBE_TIME: Duration = Duration::from_secs(1);

/// The agent proxies of a node, in this process. Clones are handles of the same gateway.
///
/// Must be used within a Tokio runtime. When the last handle is dropped, all proxies end and their socket files
/// are removed; [`Gateway::shutdown`] waits for that.
#[derive(Clone, Default)]
pub struct Gateway {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    proxies: Mutex<BTreeMap<String, Arc<Proxy>>>,
    /// Held while a socket is bound, so that two registrations do not race for one path.
    binding: tokio::sync::Mutex<()>,
    /// Threads that carry nothing but sandboxes; the runtime of the caller does without.
    threads: Option<Threads>,
}

impl Gateway {
    /// Makes a gateway without sandboxes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a gateway that carries sandboxes on threads of its own, so that they hardly wait for each other, and not for
    /// anything else.
    pub fn with_threads() -> Self {
        Self { inner: Arc::new(Inner { threads: Some(Threads::default()), ..Inner::default() }) }
    }

    /// Ends all proxies, side by side.
    pub async fn shutdown(&self) {
        let proxies = std::mem::take(&mut *self.proxies());
        let ending: Vec<_> =
            proxies.into_values().map(|proxy| tokio::spawn(async move { proxy.end().await })).collect();
        for end in ending {
            // Ending a proxy logs what goes wrong itself.
            let _ = end.await;
        }
    }

    fn proxies(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Proxy>>> {
        self.inner.proxies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, sandbox_id: &str) -> Option<Arc<Proxy>> {
        self.proxies().get(sandbox_id).cloned()
    }
}

#[async_trait::async_trait]
impl AgentProxies for Gateway {
    async fn register(&self, spec: ProxySpec) -> Result<(), GatewayError> {
        check(&spec)?;
        let _binding = self.inner.binding.lock().await;
        if let Some(proxy) = self.find(&spec.sandbox_id) {
            if proxy.takes(&spec)? {
                return Ok(());
            }
            let message = format!("sandbox {} is registered with another specification", spec.sandbox_id);
            return Err(GatewayError::new(GatewayErrorKind::Conflict, message));
        }
        let starting = Proxy::prepare(spec)?;
        let thread = self.inner.threads.as_ref().map(Threads::take).transpose().map_err(|error| {
            let message = format!("no thread for sandbox {}: {error}", starting.spec().sandbox_id);
            GatewayError::new(GatewayErrorKind::Internal, message)
        })?;
        let socket = Socket::bind(&starting.spec().socket).await?;
        let proxy = starting.start(socket, thread);
        let spec = proxy.spec();
        info!(sandbox_id = %spec.sandbox_id, socket = %spec.socket.display(), trace = spec.trace, "sandbox is registered");
        self.proxies().insert(proxy.spec().sandbox_id.clone(), proxy);
        Ok(())
    }

    async fn wait_ready(
        &self,
        sandbox_id: &str,
        cancel: CancellationToken,
    ) -> Result<ReadyInfo, GatewayError> {
        let proxy = self.find(sandbox_id).ok_or_else(|| GatewayError::not_found(sandbox_id))?;
        tokio::select! {
            ready = proxy.wait_ready() => ready,
            () = cancel.cancelled() => Err(GatewayError::new(
                GatewayErrorKind::Cancelled,
                format!("waiting for the guest of sandbox {sandbox_id} was cancelled"),
            )),
        }
    }

    async fn unregister(&self, sandbox_id: &str) -> Result<(), GatewayError> {
        let proxy = self.proxies().remove(sandbox_id);
        match proxy {
            Some(proxy) => {
                info!(sandbox_id, "sandbox is unregistered");
                proxy.end().await
            }
            None => Ok(()),
        }
    }

    async fn list(&self) -> Result<Vec<ProxyStatus>, GatewayError> {
        Ok(self.proxies().values().map(|proxy| proxy.status()).collect())
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("sandboxes", &self.proxies().keys()).finish()
    }
}

/// Checks what can be checked without touching anything.
fn check(spec: &ProxySpec) -> Result<(), GatewayError> {
    if spec.sandbox_id.is_empty() {
        return Err(GatewayError::invalid("the specification names no sandbox"));
    }
    let path = spec.socket.as_os_str();
    let problem = if !spec.socket.is_absolute() {
        "is not absolute"
    } else if path.len() > MAX_SOCKET_PATH {
        "is longer than the 107 bytes a unix socket can have"
    } else if path.as_encoded_bytes().contains(&b':') {
        // The shims write the path into a URL and take what follows a colon for a port.
        "contains a colon"
    } else {
        return Ok(());
    };
    Err(GatewayError::invalid(format!("socket path {} {problem}", spec.socket.display())))
}

/// A unix socket that takes its file with it.
pub(crate) struct Socket {
    path: PathBuf,
    /// Device and inode, so that a file another program put in its place is left alone.
    file: (u64, u64),
    /// Taken by the one who accepts.
    listener: Option<UnixListener>,
}

impl Socket {
    /// Binds a socket only its owner can use. Makes the directory where it is missing, and removes a socket
    /// that nobody listens at.
    pub(crate) async fn bind(path: &Path) -> Result<Self, GatewayError> {
        let io = |step: &'static str| move |error: io::Error| GatewayError::io(step, path, &error);
        if let Some(parent) = path.parent()
            && !parent.exists()
        {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(|error| GatewayError::io("making the directory", parent, &error))?;
        }
        remove_stale(path).await?;
        let listener = UnixListener::bind(path).map_err(io("binding the socket"))?;
        let mut socket = Self { path: path.to_owned(), file: (0, 0), listener: Some(listener) };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(io("restricting the socket"))?;
        let metadata = std::fs::symlink_metadata(path).map_err(io("reading the socket"))?;
        socket.file = (metadata.dev(), metadata.ino());
        Ok(socket)
    }

    pub(crate) fn take_listener(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }

    /// Removes the file, if it is still the one that was bound.
    pub(crate) fn remove(&self) -> Result<(), GatewayError> {
        let metadata = match std::fs::symlink_metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(GatewayError::io("reading the socket", &self.path, &error)),
        };
        // Zero is no inode: the file was just bound and never looked at.
        if self.file.1 != 0 && self.file != (metadata.dev(), metadata.ino()) {
            return Ok(());
        }
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(GatewayError::io("removing the socket", &self.path, &error))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(%error, "a socket file is left behind");
        }
    }
}

/// Removes a socket file that nobody listens at.
async fn remove_stale(path: &Path) -> Result<(), GatewayError> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(GatewayError::io("reading the socket path", path, &error)),
    };
    if !metadata.file_type().is_socket() {
        let message = format!("{} exists and is no socket", path.display());
        return Err(GatewayError::invalid(message));
    }
    let refused = timeout(PROBE_TIME, UnixStream::connect(path)).await;
    match refused {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // A full queue of a slow program counts as a live one, and so does an error nobody expects.
        _ => {
            let message = format!("a program listens at {} already", path.display());
            return Err(GatewayError::new(GatewayErrorKind::SocketInUse, message));
        }
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(GatewayError::io("removing the stale socket", path, &error))
        }
        _ => Ok(()),
    }
}
