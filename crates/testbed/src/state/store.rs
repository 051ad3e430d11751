//! The state while a command works on it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use cloud_providers::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Folder, Lock, Secrets, file::write_private};
use crate::{Environment, Keep, Phase, ProviderState};

/// The form of the state that this program writes.
pub const FORMAT: u32 = 1;

/// The content of the state's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Saved {
    /// The form, see [`FORMAT`].
    pub version: u32,
    /// The program that wrote it, for people.
    pub program: String,
    /// The document, from which secrets are read again.
    pub document: Option<PathBuf>,
    /// The keys that were left out because they are secret, by provider.
    #[serde(default)]
    pub omitted: BTreeMap<String, Vec<String>>,
    /// How far the provisioning came, and with which machines.
    #[serde(default)]
    pub through: Through,
    /// The interfaces on which delay, rate or loss are emulated, by machine.
    #[serde(default)]
    pub emulated: BTreeMap<String, Vec<String>>,
    /// What providers still kept when everything had been given back: there is nothing to it that could be lost.
    #[serde(default)]
    pub outlived: BTreeMap<String, ProviderState>,
    /// The environment.
    pub environment: Environment,
}

/// How far the provisioning came, and with which machines: others make it start again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Through {
    /// The last phase that ended well.
    pub phase: Phase,
    /// The provider's id of each machine.
    pub machines: BTreeMap<String, String>,
}

impl Saved {
    /// Makes the state of an experiment that has nothing yet.
    pub fn new(document: Option<PathBuf>, environment: Environment) -> Self {
        Self {
            version: FORMAT,
            program: concat!("testbed ", env!("CARGO_PKG_VERSION")).into(),
            document,
            omitted: BTreeMap::new(),
            through: Through::default(),
            emulated: BTreeMap::new(),
            outlived: BTreeMap::new(),
            environment,
        }
    }
}

/// The state of an environment, locked for one command. Each change is on disk before it is known to anybody.
#[derive(Debug)]
pub struct Store {
    folder: Folder,
    secrets: Secrets,
    saved: Mutex<Saved>,
    _lock: Lock,
}

impl Store {
    /// Takes over `saved`, whose reservations may hold the `secrets`, and writes it without them.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn open(folder: Folder, lock: Lock, mut saved: Saved, secrets: Secrets) -> Result<Arc<Self>> {
        saved.omitted = secrets.keys();
        secrets.take_out(&mut saved.environment.reservations);
        Self::start(folder, lock, saved, secrets)
    }

    /// Takes over `saved` as it was read, for what needs no provider and so no secrets.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn resume(folder: Folder, lock: Lock, saved: Saved) -> Result<Arc<Self>> {
        Self::start(folder, lock, saved, Secrets::default())
    }

    fn start(folder: Folder, lock: Lock, mut saved: Saved, secrets: Secrets) -> Result<Arc<Self>> {
        saved.version = FORMAT;
        saved.program = concat!("testbed ", env!("CARGO_PKG_VERSION")).into();
        let store = Self { folder, secrets, saved: Mutex::new(saved), _lock: lock };
        store.update(|_| {})?;
        Ok(Arc::new(store))
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Returns the secrets.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Returns a copy of what is saved.
    pub fn saved(&self) -> Saved {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the state; returns when it is safe against a crash.
    ///
    /// # Errors
    ///
    /// When it could not be written. The state is as before then.
    pub fn update(&self, change: impl FnOnce(&mut Saved)) -> Result<()> {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = saved.clone();
        change(&mut next);
        let failed = |error: serde_json::Error| {
            Error::internal("the state cannot be put into words").with_source(error)
        };
        let mut value = serde_json::to_value(&next).map_err(failed)?;
        self.secrets.blank_all(&mut value);
        let mut text = serde_json::to_vec_pretty(&value).map_err(failed)?;
        text.push(b'\n');
        write_private(&self.folder.file(), &text)?;
        *saved = next;
        Ok(())
    }

    /// Returns what a provider called `name` keeps its state with.
    pub fn keeper(self: &Arc<Self>, name: &str) -> Arc<dyn Keep> {
        Arc::new(Keeper { store: self.clone(), provider: name.to_owned() })
    }
}

#[derive(Debug)]
struct Keeper {
    store: Arc<Store>,
    provider: String,
}

#[async_trait]
impl Keep for Keeper {
    async fn keep(&self, key: &str, value: Option<Value>) -> Result<()> {
        self.store.update(|saved| {
            let state = saved.environment.state.entry(self.provider.clone()).or_default();
            match value {
                Some(value) => _ = state.insert(key.to_owned(), value),
                None => _ = state.remove(key),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::{ProviderConfig, Reservation};

    fn open(dir: &std::path::Path) -> Arc<Store> {
        let folder = Folder::new(dir.join("env"));
        folder.create().unwrap();
        let provider = ProviderConfig::new("rack").with("password", "canary-7").with("room", "b12");
        let reservations = vec![Reservation::new("x", provider)];
        let secrets = Secrets::of(&reservations, |_, key| key == "password");
        let lock = folder.lock("test").unwrap();
        Store::open(folder, lock, Saved::new(None, Environment::new(reservations)), secrets).unwrap()
    }

    #[tokio::test]
    async fn what_is_kept_is_on_disk_at_once_and_without_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let keeper = store.keeper("rack");
        keeper.keep("attempt", Some(json!({"n": 1, "note": "with canary-7"}))).await.unwrap();
        keeper.keep("gone", Some(json!(1))).await.unwrap();
        keeper.keep("gone", None).await.unwrap();
        store.update(|saved| saved.environment.last_error = Some("bad canary-7".into())).unwrap();
        let text = fs::read_to_string(store.folder().file()).unwrap();
        assert!(!text.contains("canary-7"), "{text}");
        let back = store.folder().load().unwrap().unwrap();
        assert_eq!(back.environment.state["rack"]["attempt"]["n"], 1);
        assert!(!back.environment.state["rack"].contains_key("gone"));
        assert_eq!(back.omitted["rack"], ["password"]);
        assert_eq!(back.environment.last_error.as_deref(), Some("bad [redacted]"));
    }

    #[test]
    fn a_damaged_or_newer_state_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let folder = open(dir.path()).folder().clone();
        let good = fs::read_to_string(folder.file()).unwrap();
        for (bad, part) in [
            (good[..good.len() / 2].to_owned(), "damaged"),
            (String::new(), "damaged"),
            ("{}".into(), "damaged"),
            (json!({"version": FORMAT + 1, "other": true}).to_string(), "newer"),
        ] {
            fs::write(folder.file(), &bad).unwrap();
            let text = folder.load().unwrap_err().to_string();
            assert!(text.contains(part) && text.contains("left as it is"), "{text}");
            assert_eq!(fs::read_to_string(folder.file()).unwrap(), bad);
        }
    }

    #[test]
    fn a_state_that_cannot_be_written_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        fs::remove_dir_all(store.folder().path()).unwrap();
        assert!(store.update(|saved| saved.environment.phase = Phase::Ready).is_err());
        assert_eq!(store.saved().environment.phase, Phase::New);
    }
}
