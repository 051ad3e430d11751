//! The folder of a registry: index, archives, token and port.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context as _, Result, bail, ensure};
use cargo_metadata::semver::Version;

use super::entry::{self, Entry};
use super::publish::Upload;
use super::upstream::Upstream;

/// Everything that outlives the server lies in its folder:
/// `index/` as cargo reads it, `archives/<name>-<version>.crate`, `token` and `port`.
pub(super) struct Store {
    folder: PathBuf,
    upstream: Upstream,
    token: String,
    /// Held while an index file is read and written again.
    writing: Mutex<()>,
    /// Locked while the folder is served.
    _lock: File,
    #[cfg(test)]
    pub(super) faults: Faults,
}

impl Store {
    pub(super) fn open(folder: &Path, upstream: Upstream) -> Result<Self> {
        for part in ["index", "archives"] {
            let part = folder.join(part);
            std::fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
        }
        let folder = folder.canonicalize()?;
        let lock = File::options().create(true).append(true).open(folder.join("lock"))?;
        if lock.try_lock().is_err() {
            bail!("{} is served by another process", folder.display());
        }
        let token = token(&folder.join("token"))?;
        Ok(Self {
            folder,
            upstream,
            token,
            writing: Mutex::new(()),
            _lock: lock,
            #[cfg(test)]
            faults: Faults::default(),
        })
    }

    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// The port of the last time.
    pub(super) fn port(&self) -> Option<u16> {
        std::fs::read_to_string(self.folder.join("port")).ok()?.trim().parse().ok()
    }

    pub(super) fn set_port(&self, port: u16) -> Result<()> {
        replace(&self.folder.join("port"), format!("{port}\n").as_bytes())
    }

    /// The index file of a package, given by its path; nothing when there is no such package.
    pub(super) fn index(&self, path: &str) -> Result<Option<String>> {
        let Some(name) = path.rsplit('/').next().filter(|name| entry::path(name).as_deref() == Some(path))
        else {
            return Ok(None);
        };
        let mut entries = self.published(name)?;
        #[cfg(test)]
        self.faults.hide(&mut entries);
        if entries.is_empty() {
            entries = self.upstream.entries(name).to_vec();
        }
        (!entries.is_empty()).then(|| entry::write(&entries)).transpose()
    }

    /// The archive of one version; nothing when there is none.
    pub(super) fn archive(&self, name: &str, version: &str) -> Result<Option<Vec<u8>>> {
        let Some(lower) = entry::path(name).and_then(|path| Some(path.rsplit_once('/')?.1.to_owned())) else {
            return Ok(None);
        };
        let known =
            self.published(&lower)?.into_iter().find(|entry| entry.name == name && entry.vers == version);
        let path = match known {
            Some(_) => self.archive_path(name, version),
            None => match self.upstream.archive(name, version) {
                Some(path) => path.clone(),
                None => return Ok(None),
            },
        };
        let bytes = std::fs::read(&path)
            .with_context(|| format!("cannot read {}: run `cargo fetch` in the workspace", path.display()))?;
        Ok(Some(bytes))
    }

    /// Takes what was uploaded.
    ///
    /// # Errors
    ///
    /// In the inner result, a sentence for the one who publishes.
    pub(super) fn publish(&self, upload: &Upload<'_>) -> Result<Result<(), String>> {
        let _guard = self.writing.lock().expect("no writer panics");
        let new = &upload.entry;
        #[cfg(test)]
        if self.faults.refuses(&new.name) {
            bail!("the registry is not well");
        }
        let mut entries = self.published(&new.name.to_ascii_lowercase())?;
        if let Some(problem) = self.problem(new, &entries)? {
            return Ok(Err(problem));
        }
        replace(&self.archive_path(&new.name, &new.vers), upload.archive)?;
        entries.push(new.clone());
        self.write(&new.name, &entries)?;
        #[cfg(test)]
        if self.faults.loses_answer(&new.name) {
            bail!("the answer is lost");
        }
        Ok(Ok(()))
    }

    fn problem(&self, new: &Entry, entries: &[Entry]) -> Result<Option<String>> {
        for name in self.names()? {
            if name != new.name && entry::canonical(&name) == entry::canonical(&new.name) {
                return Ok(Some(format!(
                    "crate was previously named `{name}`: names differ by more than case, `-` and `_`"
                )));
            }
        }
        if !self.upstream.entries(&new.name.to_ascii_lowercase()).is_empty() {
            return Ok(Some(format!(
                "this crate exists but you don't seem to be an owner: `{}` is a package of Cargo.lock",
                new.name
            )));
        }
        // Build metadata tells no versions apart.
        let bare = |text: &str| {
            Version::parse(text).map(|version| Version { build: Default::default(), ..version }).ok()
        };
        if entries.iter().any(|old| bare(&old.vers) == bare(&new.vers)) {
            return Ok(Some(format!("crate version `{}` is already uploaded", new.vers)));
        }
        for dependency in &new.deps {
            let name = dependency.package();
            let lower = name.to_ascii_lowercase();
            let known = !self.published(&lower)?.is_empty() || !self.upstream.entries(&lower).is_empty();
            if !known {
                return Ok(Some(format!("no known crate named `{name}`")));
            }
        }
        Ok(None)
    }

    /// Sets or takes back the mark of a version that is not to be chosen anew; tells whether there is such a version.
    pub(super) fn yank(&self, name: &str, version: &str, yanked: bool) -> Result<bool> {
        let _guard = self.writing.lock().expect("no writer panics");
        let mut entries = self.published(&name.to_ascii_lowercase())?;
        let Some(entry) = entries.iter_mut().find(|entry| entry.name == name && entry.vers == version) else {
            return Ok(false);
        };
        entry.yanked = yanked;
        self.write(name, &entries)?;
        Ok(true)
    }

    /// What was published under a name in lower case.
    fn published(&self, name: &str) -> Result<Vec<Entry>> {
        let Some(path) = entry::path(name) else { return Ok(Vec::new()) };
        let path = self.folder.join("index").join(path);
        match std::fs::read_to_string(&path) {
            Ok(text) => entry::read(&text).with_context(|| format!("{} is damaged", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// The names of everything that was published.
    fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut open = vec![self.folder.join("index")];
        while let Some(folder) = open.pop() {
            for item in std::fs::read_dir(folder)? {
                let item = item?;
                if item.file_type()?.is_dir() {
                    open.push(item.path());
                } else if let Some(name) = item.file_name().to_str() {
                    names.extend(self.published(name)?.into_iter().next().map(|entry| entry.name));
                }
            }
        }
        Ok(names)
    }

    fn write(&self, name: &str, entries: &[Entry]) -> Result<()> {
        let path = entry::path(name).context("the name was checked")?;
        let path = self.folder.join("index").join(path);
        std::fs::create_dir_all(path.parent().context("an index file lies in a folder")?)?;
        replace(&path, entry::write(entries)?.as_bytes())
    }

    fn archive_path(&self, name: &str, version: &str) -> PathBuf {
        self.folder.join("archives").join(format!("{name}-{version}.crate"))
    }
}

/// Reads the token, or makes one that nobody else on this host can guess or read.
fn token(path: &Path) -> Result<String> {
    use std::os::unix::fs::OpenOptionsExt as _;
    if let Ok(text) = std::fs::read_to_string(path) {
        let text = text.trim();
        ensure!(!text.is_empty(), "{} is empty: remove it, and a new one is made", path.display());
        return Ok(text.to_owned());
    }
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(token.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(token)
}

/// Writes a file whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().context("a file lies in a folder")?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// What tests make a registry do wrong.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Faults {
    hidden_reads: std::sync::atomic::AtomicUsize,
    refused: Mutex<Option<String>>,
    lost: Mutex<Option<String>>,
}

#[cfg(test)]
impl Faults {
    /// Leaves the newest version of every package out of the next `reads` answers of the index.
    pub(crate) fn hide_newest(&self, reads: usize) {
        self.hidden_reads.store(reads, std::sync::atomic::Ordering::SeqCst);
    }

    /// Fails each upload of this package, before anything is stored, until another one or none is named.
    pub(crate) fn refuse(&self, name: Option<&str>) {
        *self.refused.lock().unwrap() = name.map(str::to_owned);
    }

    /// Stores the next upload of this package and then answers as if it had failed.
    pub(crate) fn lose_answer(&self, name: &str) {
        *self.lost.lock().unwrap() = Some(name.to_owned());
    }

    fn hide(&self, entries: &mut Vec<Entry>) {
        use std::sync::atomic::Ordering::SeqCst;
        let took = self.hidden_reads.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        if !entries.is_empty() && took.is_ok() {
            entries.pop();
        }
    }

    fn refuses(&self, name: &str) -> bool {
        self.refused.lock().unwrap().as_deref() == Some(name)
    }

    fn loses_answer(&self, name: &str) -> bool {
        self.lost.lock().unwrap().take_if(|lost| lost == name).is_some()
    }
}
