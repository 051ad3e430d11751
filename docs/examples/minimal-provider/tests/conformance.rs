//! The conformance suite: each case has a folder and three machines of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use cloud_providers::{Cloud, CreateRequest, InstanceId, Resource, async_trait};
use cloud_providers_conformance::{Bounds, Found, Harness, Obstacle, Offer, Suite};
use minimal_provider::MinimalCloud;
use serde_json::Value;

/// How long a machine takes to come up, when a case says nothing of it.
const START: u64 = 20;
/// For machines that never come up.
const NEVER: u64 = u64::MAX;

struct Account {
    folder: tempfile::TempDir,
    /// Milliseconds.
    start: Arc<AtomicU64>,
}

impl Account {
    fn open() -> Offer<Arc<dyn Harness>> {
        let folder = tempfile::tempdir().map_err(|e| Obstacle::failed(format!("no folder: {e}")))?;
        let start = Arc::new(AtomicU64::new(START));
        let (path, time) = (folder.path().to_owned(), Arc::clone(&start));
        thread::spawn(move || machine_room(&path, &time));
        Ok(Arc::new(Self { folder, start }))
    }

    /// Reads the files around the provider, as a person with `cat` would.
    fn files(&self) -> Vec<Value> {
        let files = paths(self.folder.path(), "json");
        files.into_iter().map(|file| serde_json::from_slice(&fs::read(file).unwrap()).unwrap()).collect()
    }
}

fn paths(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).into_iter().flatten().map_while(Result::ok).map(|file| file.path());
    files.filter(|file| file.extension().is_some_and(|found| found == extension)).collect()
}

/// Starts each machine that is taken, as the program of a real machine room would, until the folder is gone.
fn machine_room(folder: &Path, start: &AtomicU64) {
    while folder.exists() {
        for file in paths(folder, "json") {
            let age =
                fs::metadata(&file).and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
            let up = file.with_extension("up");
            let wanted = Duration::from_millis(start.load(Ordering::SeqCst));
            if age.is_some_and(|age| age >= wanted) && !up.exists() {
                let _ = fs::write(up, "");
            }
        }
        thread::park_timeout(Duration::from_millis(2));
    }
}

#[async_trait]
impl Harness for Account {
    fn cloud(&self) -> Box<dyn Cloud> {
        Box::new(MinimalCloud::new())
    }

    fn variables(&self) -> Vec<(String, String)> {
        let addresses: Vec<String> = (1..=32).map(|n| format!("192.0.2.{n}")).collect();
        vec![
            ("MINIMAL_FOLDER".into(), self.folder.path().display().to_string()),
            ("MINIMAL_ADDRESSES".into(), addresses.join(",")),
            ("MINIMAL_START_TIMEOUT".into(), "4s".into()),
        ]
    }

    fn bad_variables(&self) -> Vec<(String, String)> {
        vec![("MINIMAL_ADDRESSES".into(), "192.0.2.1,somewhere".into())]
    }

    fn request(&self, blank: CreateRequest) -> CreateRequest {
        blank.with_user_data("#cloud-config\n")
    }

    fn bounds(&self) -> Bounds {
        Bounds::default().with_operation(Duration::from_secs(10)).with_cancel(Duration::from_secs(5))
    }

    async fn never_ready(&self) -> Offer<()> {
        self.start.store(NEVER, Ordering::SeqCst);
        Ok(())
    }

    async fn ready_after(&self, time: Duration) -> Offer<()> {
        self.start.store(u64::try_from(time.as_millis()).unwrap_or(NEVER), Ordering::SeqCst);
        Ok(())
    }

    async fn clear_faults(&self) -> Offer<()> {
        self.start.store(START, Ordering::SeqCst);
        Ok(())
    }

    async fn leftovers(&self) -> Offer<Vec<Found>> {
        let found = |file: Value| {
            let id = file["instance"]["id"].as_str().unwrap();
            let tags = serde_json::from_value(file["tags"].clone()).unwrap();
            Found::new(Resource::new(Resource::INSTANCE, id)).with_tags(tags)
        };
        Ok(self.files().into_iter().map(found).collect())
    }

    async fn user_data(&self, id: &InstanceId) -> Offer<Vec<u8>> {
        let file = self.files().into_iter().find(|file| file["instance"]["id"] == id.as_str());
        let file = file.ok_or_else(|| Obstacle::failed(format!("there is no {id}")))?;
        let data: cloud_providers::UserData = serde_json::from_value(file["user_data"].clone()).unwrap();
        Ok(data.as_bytes().to_vec())
    }

    async fn other_account(&self) -> Offer<Arc<dyn Harness>> {
        Self::open()
    }
}

fn main() -> ExitCode {
    Suite::new("minimal")
        .allowed_skips(include_str!("conformance-skips.toml"))
        .main(|_case| async { Account::open() })
}
