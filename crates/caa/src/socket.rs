//! The hypervisor socket: bound without a gap, unlinked only by its owner.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use tokio::net::{UnixListener, UnixStream};

/// A bound socket file.
#[derive(Debug)]
pub struct BoundSocket {
    path: PathBuf,
    inode: u64,
}

impl BoundSocket {
    /// Binds `path` (0600).
    ///
    /// The file appears ready to be connected to, and replaces a stale one in a single step: a shim resolves the path
    /// once and does not try again. A file that a living process serves is taken over only with `take_over`, which is
    /// how a new daemon follows an old one during a rolling update.
    ///
    /// # Errors
    ///
    /// When the path is in use, or the file system refuses.
    pub async fn bind(path: &Path, take_over: bool) -> Result<(Self, UnixListener)> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("make the folder of the socket {}", path.display()))?;
        }
        match fs::symlink_metadata(path) {
            Ok(meta) if !std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) => {
                bail!("{} is in the way: it is not a socket; remove it or set -socket", path.display())
            }
            Ok(_) if !take_over && is_served(path).await => {
                bail!("socket {} is in use by another process: stop it or set -socket", path.display())
            }
            _ => {}
        }
        let fresh = path.with_extension(format!("{}.new", std::process::id()));
        let _ = fs::remove_file(&fresh);
        let listener =
            UnixListener::bind(&fresh).with_context(|| format!("bind the socket {}", path.display()))?;
        let placed = fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::symlink_metadata(&fresh))
            .and_then(|meta| fs::rename(&fresh, path).map(|()| meta.ino()));
        match placed {
            Ok(inode) => Ok((Self { path: path.to_owned(), inode }, listener)),
            Err(error) => {
                let _ = fs::remove_file(&fresh);
                Err(error).with_context(|| format!("place the socket {}", path.display()))
            }
        }
    }

    /// Returns whether the path still leads to this socket.
    pub fn is_ours(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode)
    }
}

/// Whether a process serves the socket file. One that is too busy to take more connections serves it, too.
async fn is_served(path: &Path) -> bool {
    match UnixStream::connect(path).await {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound),
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        // A successor may own the path by now.
        if self.is_ours()
            && let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "the socket could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_served_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/hypervisor.sock");
        let (first, listener) = BoundSocket::bind(&path, false).await.unwrap();
        let error = BoundSocket::bind(&path, false).await.unwrap_err();
        assert!(format!("{error:#}").contains("in use"), "{error:#}");
        // Its process died: the file stays, nobody listens.
        drop(listener);
        let (second, _listener) = BoundSocket::bind(&path, false).await.unwrap();
        drop(first);
        assert!(second.is_ours(), "the earlier owner must not remove its successor's file");
        drop(second);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_whose_owner_accepts_nothing_more_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hypervisor.sock");
        let owner = std::os::unix::net::UnixListener::bind(&path).unwrap();
        // A shorter queue, so that few connections fill it.
        nix::sys::socket::listen(&owner, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        let mut queued = Vec::new();
        let full = loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => queued.push(stream),
                Err(error) => break error,
            }
            assert!(queued.len() < 100, "the queue is short");
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let error = BoundSocket::bind(&path, false).await.unwrap_err();
        assert!(error.to_string().contains("in use"), "{error:#}");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, "data").unwrap();
        assert!(BoundSocket::bind(&path, true).await.unwrap_err().to_string().contains("not a socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }
}
