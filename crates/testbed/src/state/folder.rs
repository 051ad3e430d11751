//! The folder of an environment.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cloud_providers::{Error, Result};
use serde_json::Value;

use super::{Lock, Saved, file::private_folder, store::FORMAT};

/// The folder of an environment. Whoever changes something in it holds its [`Lock`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Names the folder at `path`, which need not be there yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of the state.
    pub fn file(&self) -> PathBuf {
        self.path.join("env")
    }

    /// Returns the path of the file that `ssh -F` reads.
    pub fn ssh_config(&self) -> PathBuf {
        self.path.join("ssh_config")
    }

    /// Returns the folder where the provider called `name` may put files.
    pub fn of_provider(&self, name: &str) -> PathBuf {
        // Names of providers come from documents and are no paths.
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' };
        self.path.join("providers").join(name.chars().map(plain).collect::<String>())
    }

    /// Makes the folder, for the user alone.
    ///
    /// # Errors
    ///
    /// When it cannot be made, or something else is there.
    pub fn create(&self) -> Result<()> {
        private_folder(&self.path)
    }

    /// Takes the lock for a command that changes something.
    ///
    /// # Errors
    ///
    /// [`cloud_providers::ErrorKind::Conflict`] when another command holds it, naming that command.
    pub fn lock(&self, command: &str) -> Result<Lock> {
        Lock::take(&self.path.join("lock"), command)
    }

    /// Reads the state; `None` when there is none yet.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is damaged, or was written by a newer program. It is left as it is.
    pub fn load(&self) -> Result<Option<Saved>> {
        let path = self.file();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(Error::config("cannot read the state")
                    .with("path", path.display())
                    .with_source(error));
            }
        };
        let damaged = |source: serde_json::Error| {
            Error::config("the state is damaged and was left as it is")
                .with("path", path.display())
                .with("mend", "put a copy of it back, or move it away and run `testbed destroy -f reservation.yaml`: machines are found by the experiment's name")
                .with_source(source)
        };
        // The version is looked at before anything else: a newer form need not resemble ours.
        let value: Value = serde_json::from_slice(&text).map_err(damaged)?;
        match value.get("version").and_then(Value::as_u64) {
            Some(version) if version > u64::from(FORMAT) => {
                Err(Error::config("the state was written by a newer testbed and was left as it is")
                    .with("path", path.display())
                    .with("version", version)
                    .with("known here", FORMAT)
                    .with("mend", "run the newer program"))
            }
            _ => serde_json::from_value(value).map(Some).map_err(damaged),
        }
    }
}
