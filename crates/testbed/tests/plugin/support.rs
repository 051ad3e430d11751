//! Programs for the tests, and contexts that remember.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use cloud_providers::MapEnv;
use serde_json::Value;
use testbed::{
    Context, Error, Event, Group, Keep, Machine, Progress, ProviderConfig, Reservation, Result, async_trait,
    find::Search,
    plugin::{Executable, Limits},
};

/// No wait of a test is longer.
pub(crate) const BOUND: Duration = Duration::from_secs(30);

/// A folder with one executable provider in it.
pub(crate) struct Program {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) file: PathBuf,
}

impl Program {
    pub(crate) fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("testbed-provider-try");
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder, file }
    }

    /// A shell script that says hello, and then runs `rest` with `$id` as the id of the first call.
    pub(crate) fn sh(rest: &str) -> Self {
        let hello = r#"#!/bin/sh
read -r hello
echo '{"type":"hello","version":1,"name":"try"}'
read -r call
id=1
"#;
        Self::new(&format!("{hello}{rest}"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn search(&self) -> Search {
        let folder = self.path().to_str().unwrap().to_owned();
        Search::new(Arc::new(MapEnv::new([("TESTBED_PROVIDER_PATH", folder)]))).with_limits(limits())
    }

    pub(crate) async fn open(&self) -> Result<Executable> {
        tokio::time::timeout(BOUND, Executable::open(&self.file, &ProviderConfig::new("try"), limits()))
            .await
            .expect("opening is bounded")
    }
}

pub(crate) fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.cancel = Duration::from_millis(500);
    limits.end = Duration::from_millis(500);
    limits
}

pub(crate) fn reservation(experiment: &str, machines: usize) -> Reservation {
    let mut reservation = Reservation::new(experiment, ProviderConfig::new("try"));
    reservation.groups.push(Group::new("all", machines));
    reservation.machines = (0..machines).map(|n| Machine::new(format!("m{n}"), 0, ["r"])).collect();
    reservation
}

/// Remembers what was told and kept.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) told: Mutex<Vec<(String, Event)>>,
    pub(crate) kept: Mutex<BTreeMap<String, Value>>,
    /// Keeping fails.
    pub(crate) full: bool,
}

impl Progress for Memory {
    fn tell(&self, machine: &str, event: &Event) {
        self.told.lock().unwrap().push((machine.to_owned(), event.clone()));
    }
}

#[async_trait]
impl Keep for Memory {
    async fn keep(&self, key: &str, value: Option<Value>) -> Result<()> {
        if self.full {
            return Err(Error::new(testbed::ErrorKind::Quota, "the disk is full"));
        }
        let mut kept = self.kept.lock().unwrap();
        match value {
            Some(value) => _ = kept.insert(key.to_owned(), value),
            None => _ = kept.remove(key),
        }
        Ok(())
    }
}

pub(crate) fn context(memory: &Arc<Memory>) -> Context {
    let mut context = Context::new("/nowhere");
    context.progress = memory.clone();
    context.keep = memory.clone();
    context
}
