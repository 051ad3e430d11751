//! What is kept on disk: one folder per instance, with a record that is written before anything else is made.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::Ipv4Addr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use cloud_providers::{Error, Instance, InstanceId, Result, Role, Token, UserData, tags};
use serde::{Deserialize, Serialize};

use crate::{error::path_error, lock::FileLock, process::ProcessId};

/// Format of [`Record`].
const VERSION: u32 = 1;
/// What every id begins with.
const ID_PREFIX: &str = "local-";
/// Hexadecimal digits of the token's hash in an id.
const ID_DIGITS: usize = 16;
const RECORD: &str = "instance.json";
const NEW: &str = ".new-";
const TRASH: &str = ".trash-";

/// How far a creation came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Begun; what there is of it is undone by the next call that meets it.
    Creating,
    /// The first program runs, or ran.
    Running,
}

/// Everything needed to find an instance again and to remove it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) token: Token,
    pub(crate) holder: String,
    pub(crate) fingerprint: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) interface: String,
    pub(crate) phase: Phase,
    pub(crate) process: Option<ProcessId>,
    pub(crate) created_unix: u64,
}

impl Record {
    pub(crate) fn instance(&self) -> Instance {
        Instance::new(InstanceId::new(&self.id), &self.name, vec![self.address.into()])
    }
}

/// The names that follow from a token and a request.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) token: Token,
    pub(crate) holder: String,
    pub(crate) fingerprint: String,
    pub(crate) interface: String,
    pub(crate) wanted_address: Option<Ipv4Addr>,
    pub(crate) user_data: UserData,
    pub(crate) role: Role,
}

impl Plan {
    pub(crate) fn record(&self, address: Ipv4Addr) -> Record {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Record {
            version: VERSION,
            id: self.id.clone(),
            name: self.name.clone(),
            token: self.token.clone(),
            holder: self.holder.clone(),
            fingerprint: self.fingerprint.clone(),
            address,
            interface: self.interface.clone(),
            phase: Phase::Creating,
            process: None,
            created_unix: now.as_secs(),
        }
    }
}

/// Returns the id of a token's instance. It follows from the token alone, so that a token finds its instance even
/// when the record is damaged.
pub(crate) fn id_of(token: &Token) -> String {
    format!("{ID_PREFIX}{}", &token.tag_value()[..ID_DIGITS])
}

/// Returns the name of an instance's link on this host.
pub(crate) fn interface_of(id: &str) -> String {
    // The kernel takes 15 characters.
    format!("ppl{}", &id[ID_PREFIX.len()..ID_PREFIX.len() + 12])
}

/// Whether a text has the form of our ids. Everything else can be no instance of ours, nor part of a path.
pub(crate) fn is_id(text: &str) -> bool {
    text.strip_prefix(ID_PREFIX)
        .is_some_and(|hex| hex.len() == ID_DIGITS && hex.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')))
}

/// What reading a record gave.
#[derive(Debug)]
pub(crate) enum Found {
    /// No such instance.
    Nothing,
    /// The record.
    Record(Box<Record>),
    /// There is a folder, but its record cannot be read.
    Damaged(Error),
}

/// The data folder.
#[derive(Clone, Debug)]
pub(crate) struct DataDir {
    root: PathBuf,
    /// Tells the instances of this folder from those of another one.
    pub(crate) hash: String,
}

impl DataDir {
    /// Opens the folder, making it where needed, and removes what killed processes left in it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let make =
            |p: &Path| {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(p).map_err(|e| {
                    path_error("cannot make the data folder", p, e).with("set", "LOCAL_DATA_DIR")
                })
            };
        make(path)?;
        let root = fs::canonicalize(path).map_err(|e| path_error("cannot open the data folder", path, e))?;
        let dir = Self { hash: tags::hash(&root.to_string_lossy(), 8), root };
        make(&dir.instances())?;
        make(&dir.locks())?;
        dir.sweep()?;
        Ok(dir)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn instances(&self) -> PathBuf {
        self.root.join("instances")
    }

    fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    /// The folder of an instance.
    pub(crate) fn folder(&self, id: &str) -> PathBuf {
        self.instances().join(id)
    }

    /// Where an instance's root is built; empty but in the instance's own mount namespace.
    pub(crate) fn mount_point(&self, id: &str) -> PathBuf {
        self.folder(id).join("mnt")
    }

    /// What an instance's programs print.
    pub(crate) fn console(&self, id: &str) -> PathBuf {
        self.folder(id).join("console.log")
    }

    /// The lock of an instance.
    pub(crate) fn lock_path(&self, id: &str) -> PathBuf {
        self.locks().join(id)
    }

    /// The lock under which addresses and names are given out.
    pub(crate) fn records_lock_path(&self) -> PathBuf {
        self.locks().join("records")
    }

    /// The text by which the processes of an instance are recognised in their environment.
    pub(crate) fn marker(&self, id: &str) -> String {
        format!("{}={id}@{}", crate::process::MARKER, self.hash)
    }

    /// The name of an instance's control groups.
    pub(crate) fn group(&self, id: &str) -> String {
        format!("peerpod-{}-{id}", self.hash)
    }

    /// Reads the record of an instance.
    pub(crate) fn read(&self, id: &str) -> Found {
        let folder = self.folder(id);
        let path = folder.join(RECORD);
        let damaged = |why: Error| {
            Found::Damaged(
                why.with("path", path.display()).with("mend", "restore the file or release the token"),
            )
        };
        match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Record>(&bytes) {
                Ok(record) if record.id == id && record.version == VERSION => Found::Record(Box::new(record)),
                Ok(record) => damaged(
                    Error::internal("the record is another instance's or of another version")
                        .with("id", record.id)
                        .with("version", record.version),
                ),
                Err(error) => damaged(
                    Error::internal("the record of an instance cannot be understood").with_source(error),
                ),
            },
            Err(_) if !folder.exists() => Found::Nothing,
            Err(error) => damaged(path_error("the record of an instance cannot be read", &path, error)),
        }
    }

    /// Lists the ids of all folders.
    pub(crate) fn ids(&self) -> Result<Vec<String>> {
        Ok(self.names()?.into_iter().filter(|name| is_id(name)).collect())
    }

    fn names(&self) -> Result<Vec<String>> {
        let dir = self.instances();
        let failed = |e: io::Error| path_error("cannot list the instances", &dir, e);
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed)? {
            names.extend(entry.map_err(failed)?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    /// Makes the folder of an instance with its record in it, in one step.
    pub(crate) fn create(&self, record: &Record) -> Result<()> {
        let new = self.instances().join(format!("{NEW}{}", record.id));
        let folder = self.folder(&record.id);
        let failed = |e: io::Error| path_error("cannot make the instance's folder", &folder, e);
        remove_tree(&new).map_err(failed)?;
        let make = |p: &Path| fs::DirBuilder::new().mode(0o700).create(p).map_err(failed);
        make(&new)?;
        make(&new.join("mnt"))?;
        let made =
            write_file(&new.join(RECORD), record).and_then(|()| fs::rename(&new, &folder).map_err(failed));
        if made.is_err() {
            // A full disk is a likely reason, so what was written goes at once.
            let _ = remove_tree(&new);
        }
        made
    }

    /// Replaces the record of an instance.
    pub(crate) fn write(&self, record: &Record) -> Result<()> {
        let folder = self.folder(&record.id);
        let (new, path) = (folder.join(format!("{RECORD}.new")), folder.join(RECORD));
        write_file(&new, record)?;
        fs::rename(&new, &path).map_err(|e| path_error("cannot replace the instance's record", &path, e))
    }

    /// Removes the folder of an instance; it is gone from the list at once.
    pub(crate) fn remove(&self, id: &str) -> Result<()> {
        let (folder, trash) = (self.folder(id), self.instances().join(format!("{TRASH}{id}")));
        let failed = |e: io::Error| path_error("cannot remove the instance's folder", &folder, e);
        for old in [&trash, &self.instances().join(format!("{NEW}{id}"))] {
            remove_tree(old).map_err(failed)?;
        }
        match fs::rename(&folder, &trash) {
            Ok(()) => remove_tree(&trash).map_err(failed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Removes half-made and half-removed folders that nobody works on, and locks that nobody holds.
    fn sweep(&self) -> Result<()> {
        for name in self.names()? {
            let Some(id) = name.strip_prefix(NEW).or_else(|| name.strip_prefix(TRASH)).filter(|id| is_id(id))
            else {
                continue;
            };
            if let Some(_lock) = FileLock::try_take(&self.lock_path(id))? {
                let path = self.instances().join(&name);
                remove_tree(&path).map_err(|e| path_error("cannot remove a left-over folder", &path, e))?;
            }
        }
        let locks = self.locks();
        let failed = |e: io::Error| path_error("cannot list the locks", &locks, e);
        for entry in fs::read_dir(&locks).map_err(failed)? {
            // A lock removes its file when it is released; this one belonged to a process that was killed.
            drop(FileLock::try_take(&entry.map_err(failed)?.path())?);
        }
        Ok(())
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Writes a record so that it is complete on disk before it gets its name.
fn write_file(path: &Path, record: &Record) -> Result<()> {
    let failed = |e: io::Error| path_error("cannot write the instance's record", path, e);
    let text = serde_json::to_vec_pretty(record).map_err(|e| failed(e.into()))?;
    let open = || File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
    let mut file = open().map_err(failed)?;
    file.write_all(&text).and_then(|()| file.sync_data()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use cloud_providers::Scope;

    use super::*;

    fn record(unit: &str) -> Record {
        let token = Token::new(Scope::Cluster("c".into()), unit, 1);
        let id = id_of(&token);
        let plan = Plan {
            interface: interface_of(&id),
            id,
            name: format!("podvm-{unit}"),
            token,
            holder: "node".into(),
            fingerprint: "f".into(),
            wanted_address: None,
            user_data: UserData::default(),
            role: Role::Guest,
        };
        plan.record(Ipv4Addr::new(10, 88, 0, 2))
    }

    #[test]
    fn ids_follow_from_the_token_and_hold_no_path() {
        let record = record("s");
        assert!(is_id(&record.id), "{}", record.id);
        assert_eq!(record.id, id_of(&record.token));
        assert!(record.interface.len() <= 15);
        for text in
            ["", "local-", "local-../../etc/passwd", "local-0123456789ABCDEF", "local-0123456789abcdef0"]
        {
            assert!(!is_id(text), "{text}");
        }
    }

    #[test]
    fn a_record_is_private_and_found_again() {
        use std::os::unix::fs::PermissionsExt;
        let tmp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(&tmp.path().join("a/b")).unwrap();
        let mut record = record("s");
        dir.create(&record).unwrap();
        record.phase = Phase::Running;
        dir.write(&record).unwrap();
        let Found::Record(read) = dir.read(&record.id) else { panic!("not found") };
        assert_eq!(*read, record);
        assert_eq!(dir.ids().unwrap(), [record.id.clone()]);
        let path = dir.folder(&record.id).join(RECORD);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(dir.root()).unwrap().permissions().mode() & 0o777, 0o700);
        dir.remove(&record.id).unwrap();
        assert!(matches!(dir.read(&record.id), Found::Nothing));
        assert!(dir.names().unwrap().is_empty());
    }

    #[test]
    fn a_damaged_record_is_told_from_none() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(tmp.path()).unwrap();
        let (one, other) = (record("one"), record("other"));
        assert!(matches!(dir.read(&one.id), Found::Nothing));
        dir.create(&one).unwrap();
        let path = dir.folder(&one.id).join(RECORD);
        for text in ["", "{", "[]", &serde_json::to_string(&other).unwrap()] {
            fs::write(&path, text).unwrap();
            assert!(matches!(dir.read(&one.id), Found::Damaged(_)), "{text:?}");
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(dir.read(&one.id), Found::Damaged(_)));
        dir.remove(&one.id).unwrap();
        assert!(matches!(dir.read(&one.id), Found::Nothing));
    }

    #[test]
    fn half_made_folders_go_at_the_next_start_unless_somebody_works_on_them() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(tmp.path()).unwrap();
        let (one, two) = (record("one").id, record("two").id);
        for name in [format!("{NEW}{one}"), format!("{TRASH}{two}")] {
            fs::create_dir(dir.instances().join(name)).unwrap();
        }
        let lock = FileLock::try_take(&dir.lock_path(&two)).unwrap();
        fs::write(dir.records_lock_path(), "").unwrap();
        DataDir::open(tmp.path()).unwrap();
        assert_eq!(dir.names().unwrap(), [format!("{TRASH}{two}")]);
        assert!(!dir.records_lock_path().exists() && dir.lock_path(&two).exists());
        drop(lock);
        DataDir::open(tmp.path()).unwrap();
        assert!(dir.names().unwrap().is_empty());
    }
}
