//! One command at a time changes an environment.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use cloud_providers::{Error, ErrorKind, Result};

/// The lock of an environment, held until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock at `path` and writes who has it.
    pub(super) fn take(path: &Path, command: &str) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::config("cannot lock the environment").with("path", path.display()).with_source(error)
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let holder = holder.trim();
                return Err(Error::new(ErrorKind::Conflict, "another command works on this environment")
                    .with("it is", if holder.is_empty() { "just starting" } else { holder })
                    .with("lock", path.display())
                    .with("mend", "wait for it, or end it with Ctrl-C"));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "testbed {command}, process {}", std::process::id()).map_err(failed)?;
        Ok(Self { file })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The words are for the one who waits: without a holder there are none.
        let _ = self.file.set_len(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_command_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::take(&path, "up").unwrap();
        let error = Lock::take(&path, "destroy").unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Conflict);
        let text = error.to_string();
        assert!(text.contains("testbed up") && text.contains(&std::process::id().to_string()), "{text}");
        drop(first);
        Lock::take(&path, "destroy").unwrap();
    }
}
