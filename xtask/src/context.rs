//! Where things are: the workspace, the cache, the programs.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use cargo_metadata::{Metadata, MetadataCommand};

use crate::command::Run;
use crate::inputs::Digest;
use crate::kubernetes;

/// What the tasks know of their surroundings; the process environment is read here and nowhere else.
#[derive(Debug)]
pub(crate) struct Context {
    /// The root of the workspace.
    pub(crate) root: PathBuf,
    /// Where caches live, outside the clone.
    pub(crate) cache: PathBuf,
    /// Where cargo builds to.
    pub(crate) target: PathBuf,
    /// Whether somebody said so; otherwise all clones of a user build to the same place.
    pub(crate) target_is_given: bool,
    /// The cargo that runs us.
    pub(crate) cargo: OsString,
    /// Directories in which programs are looked up.
    pub(crate) path: Vec<PathBuf>,
    /// What `rustc -vV` prints.
    pub(crate) rustc: String,
    /// A copy of the advisory database, where somebody gave one.
    pub(crate) advisory_db: Option<PathBuf>,
    /// A folder with etcd, a Kubernetes API server and its controller manager, where somebody gave one.
    pub(crate) kubebuilder_assets: Option<PathBuf>,
    /// What time the files of what is built have, where somebody says so; in seconds since 1970.
    pub(crate) source_date_epoch: Option<String>,
    /// Whether standard output is kept for a result, and everything else goes to standard error.
    pub(crate) quiet_stdout: bool,
}

impl Context {
    /// Reads the process environment.
    ///
    /// # Errors
    ///
    /// Fails when neither `XDG_CACHE_HOME` nor `HOME` is set, or when `rustc` does not answer.
    pub(crate) fn from_process() -> Result<Self> {
        let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        // `cargo run` says where the package lies; the path at compile time may be that of another clone.
        let package =
            var("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let root = package.parent().context("xtask does not lie in a workspace")?.to_owned();
        let here = std::env::current_dir().context("look up the current folder")?;
        // Started by itself it would work on the clone that it was compiled in, and might even publish that one.
        ensure!(
            var("CARGO_MANIFEST_DIR").is_some() || here.starts_with(&root),
            "this program belongs to {}: say `cargo xtask` in the clone that is meant",
            root.display()
        );
        let cache = var("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(var("HOME")?).join(".cache")))
            .context("neither XDG_CACHE_HOME nor HOME is set: set one, the caches go there")?
            .join("cloud-providers");
        let mut path: Vec<PathBuf> =
            var("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
        // A plain user's PATH lacks the directories of `ip` and `mkfs.vfat`.
        for dir in ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from) {
            if !path.contains(&dir) {
                path.push(dir);
            }
        }
        // Programs that were built already run without a compiler; what needs one says so.
        let given = var("CARGO_TARGET_DIR").map(PathBuf::from);
        let rustc = match Run::new("rustc").arg("-vV").current_dir(&root).stdout() {
            Err(_) if given.is_some() => String::new(),
            answer => answer?,
        };
        // Cargo tells apart what it built from which inputs; only artefacts of another compiler are useless.
        let key = Digest::new().text(&rustc).short();
        let target_is_given = given.is_some();
        let target = given.unwrap_or_else(|| cache.join(format!("target-{key}")));
        let cargo = var("CARGO").unwrap_or_else(|| "cargo".into());
        let advisory_db = var("CLOUD_PROVIDERS_ADVISORY_DB").map(PathBuf::from);
        let kubebuilder_assets = var(kubernetes::VARIABLE).map(PathBuf::from);
        let source_date_epoch = var("SOURCE_DATE_EPOCH").map(|text| text.to_string_lossy().into_owned());
        let quiet_stdout = false;
        Ok(Self {
            root,
            cache,
            target,
            target_is_given,
            cargo,
            path,
            rustc,
            advisory_db,
            kubebuilder_assets,
            source_date_epoch,
            quiet_stdout,
        })
    }

    /// Returns a cargo command in the workspace, building to the cached target directory.
    pub(crate) fn cargo(&self) -> Run {
        let cargo = self.program(&self.cargo).env("CARGO_TARGET_DIR", &self.target);
        // What is kept to compile a part of a package again took more room than all that was compiled, and whole runs
        // have no second change to use it for.
        if self.owns_target() { cargo.env("CARGO_INCREMENTAL", "0") } else { cargo }
    }

    /// Whether the target directory is ours; one that the caller chose is the caller's.
    fn owns_target(&self) -> bool {
        self.target.starts_with(&self.cache)
    }

    /// Returns a command in the workspace, its output going where ours goes.
    pub(crate) fn program(&self, program: impl AsRef<OsStr>) -> Run {
        Run::new(program).current_dir(&self.root).on_stderr(self.quiet_stdout)
    }

    /// Tells the reader something that is no result.
    pub(crate) fn say(&self, text: impl std::fmt::Display) {
        if self.quiet_stdout {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    }

    /// Returns a git command in the workspace.
    pub(crate) fn git(&self) -> Run {
        // A clone made by another user is read all the same; nothing in it is executed by git.
        Run::new("git")
            .arg("-c")
            .arg(format!("safe.directory={}", self.root.display()))
            .current_dir(&self.root)
    }

    /// Returns the commit that is checked out, with `+changes` when the tree differs from it.
    pub(crate) fn commit(&self) -> String {
        let head = self.git().args(["rev-parse", "--short=12", "HEAD"]).stdout();
        let Ok(head) = head else { return "no commit".to_owned() };
        let changed = self.git().args(["status", "--porcelain"]).stdout().is_ok_and(|text| !text.is_empty());
        format!("{}{}", head.trim(), if changed { "+changes" } else { "" })
    }

    /// Returns the files of the workspace that git tracks or would track, relative to the root, sorted.
    ///
    /// # Errors
    ///
    /// Fails when the workspace is no git work tree.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let list =
            self.git().args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).stdout()?;
        let mut files: Vec<PathBuf> =
            list.split('\0').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
        // A file deleted but not committed is still in git's list.
        files.retain(|path| self.root.join(path).is_file());
        files.sort();
        files.dedup();
        Ok(files)
    }

    /// Asks cargo for the packages and the resolved dependency graph.
    ///
    /// # Errors
    ///
    /// Fails when a manifest is wrong or `Cargo.lock` is not up to date.
    pub(crate) fn metadata(&self) -> Result<Metadata> {
        MetadataCommand::new()
            .cargo_path(&self.cargo)
            .current_dir(&self.root)
            .other_options(vec!["--locked".to_owned()])
            .exec()
            .context("cargo metadata --locked failed; run `cargo check` once when Cargo.lock is out of date")
    }

    /// Empties the cached target directory when it has grown over `limit` bytes.
    ///
    /// Each clone in another folder leaves its own artefacts there, and cargo removes none by itself.
    ///
    /// # Errors
    ///
    /// When the folder cannot be removed.
    pub(crate) fn bound_target(&self, limit: u64) -> Result<()> {
        if !self.owns_target() {
            return Ok(());
        }
        let size = size_of(&self.target);
        if size > limit {
            self.say(format!("{} has {} GB and is emptied", self.target.display(), size / 1_000_000_000));
            std::fs::remove_dir_all(&self.target)
                .with_context(|| format!("cannot remove {}", self.target.display()))?;
        }
        Ok(())
    }

    /// Keeps the target directory for this clone for as long as the returned value lives, and waits while tasks of another
    /// clone have it. When another clone was the last one, cargo compiles the packages of the workspace anew.
    ///
    /// Cargo takes what a clone of the same state compiled for its own, and programs in it know the path of their clone:
    /// tests would read the files of another one, or miss them. Dependencies know no such path and stay.
    ///
    /// # Errors
    ///
    /// When the directory cannot be written to.
    pub(crate) fn claim_target(&self) -> Result<Option<File>> {
        if self.target_is_given {
            return Ok(None);
        }
        let path = self.target.join("clone");
        let cannot = || format!("cannot use {}", path.display());
        std::fs::create_dir_all(&self.target).with_context(cannot)?;
        let mut options = File::options();
        let mut note =
            options.create(true).truncate(false).read(true).write(true).open(&path).with_context(cannot)?;
        let ours = self.root.as_os_str().as_encoded_bytes();
        loop {
            // Tasks of one clone may run beside each other: cargo itself keeps their builds apart.
            note.lock_shared().with_context(cannot)?;
            let last = read_from_start(&mut note).with_context(cannot)?;
            if last == ours {
                return Ok(Some(note));
            }
            note.unlock().with_context(cannot)?;
            if let Err(TryLockError::WouldBlock) = note.try_lock() {
                let (of, target) = (String::from_utf8_lossy(&last), self.target.display());
                eprintln!(
                    "a task of the clone {of} uses {target}: waiting; CARGO_TARGET_DIR names another place"
                );
                note.lock().with_context(cannot)?;
            }
            // Who had it may have been of this clone.
            if read_from_start(&mut note).with_context(cannot)? != ours {
                let metadata = self.metadata()?;
                let packages = metadata.workspace_packages();
                forget(&self.target, &packages.iter().map(|package| package.name.to_string()).collect())?;
                note.rewind()
                    .and_then(|()| note.set_len(0))
                    .and_then(|()| note.write_all(ours))
                    .with_context(cannot)?;
            }
            note.unlock().with_context(cannot)?;
        }
    }

    /// Refuses to begin what would fail half-way for want of disk space.
    ///
    /// `whole` is what a build from nothing and its tests write, in bytes; what the target directory has of it already
    /// is not written again.
    ///
    /// # Errors
    ///
    /// When less is free where the target directory is.
    pub(crate) fn require_space(&self, whole: u64) -> Result<()> {
        std::fs::create_dir_all(&self.target)
            .with_context(|| format!("cannot make {}", self.target.display()))?;
        let disk = nix::sys::statvfs::statvfs(&self.target)
            .with_context(|| format!("look up the free space of {}", self.target.display()))?;
        let free = disk.blocks_available() * disk.fragment_size();
        let wanted = whole.saturating_sub(size_of(&self.target));
        ensure!(
            free >= wanted,
            "{} has {:.1} GB free and a whole run writes up to {:.1} GB more there: make room, or name another disk \
             with CARGO_TARGET_DIR or XDG_CACHE_HOME",
            self.target.display(),
            free as f64 / 1e9,
            wanted as f64 / 1e9,
        );
        Ok(())
    }

    /// The target triple of this machine.
    ///
    /// # Errors
    ///
    /// When rustc does not name it.
    pub(crate) fn host(&self) -> Result<String> {
        let host = self.rustc.lines().find_map(|line| line.strip_prefix("host: "));
        Ok(host.context("`rustc -vV` names no host")?.to_owned())
    }

    /// Finds a program on the search path.
    pub(crate) fn find_program(&self, name: &str) -> Option<PathBuf> {
        self.path.iter().map(|dir| dir.join(name)).find(|file| is_executable(file))
    }
}

/// Returns the bytes that files below `folder` take; a file with several names counts once for each.
fn size_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size_of(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

fn read_from_start(file: &mut File) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Removes what cargo knows of packages that it built, for every profile and target.
fn forget(target: &Path, packages: &BTreeSet<String>) -> Result<()> {
    let folders = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    };
    let profiles = folders(target).into_iter().flat_map(|folder| {
        let below = folders(&folder);
        below.into_iter().chain([folder])
    });
    for fingerprint in profiles.flat_map(|profile| folders(&profile.join(".fingerprint"))) {
        let name = fingerprint.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.rsplit_once('-').is_some_and(|(package, _)| packages.contains(package)) {
            std::fs::remove_dir_all(&fingerprint)
                .with_context(|| format!("cannot remove {}", fingerprint.display()))?;
        }
    }
    Ok(())
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(cache: &Path, target: &Path) -> Context {
        Context { cache: cache.to_owned(), target: target.to_owned(), ..Context::from_process().unwrap() }
    }

    #[test]
    fn only_a_target_directory_of_the_cache_that_is_too_big_is_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, inside, outside) =
            (dir.path().join("c"), dir.path().join("c/target"), dir.path().join("t"));
        for folder in [&inside, &outside] {
            std::fs::create_dir_all(folder.join("debug")).unwrap();
            std::fs::write(folder.join("debug/x"), [0; 1000]).unwrap();
        }
        context(&cache, &inside).bound_target(1000).unwrap();
        assert!(inside.exists());
        context(&cache, &outside).bound_target(999).unwrap();
        assert!(outside.exists());
        context(&cache, &inside).bound_target(999).unwrap();
        assert!(!inside.exists());
    }

    #[test]
    fn what_another_clone_compiled_is_compiled_anew_and_dependencies_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        let made = ["debug", "x86_64-unknown-linux-gnu/release"].map(|profile| target.join(profile));
        let make = || {
            for name in ["caa-0123", "cloud-providers-0123", "tokio-0123", "caa-of-others-0123"] {
                made.iter().for_each(|profile| {
                    std::fs::create_dir_all(profile.join(".fingerprint").join(name)).unwrap();
                });
            }
        };
        let left = || {
            let count = |profile: &PathBuf| profile.join(".fingerprint").read_dir().unwrap().count();
            made.iter().map(count).collect::<Vec<_>>()
        };
        let given = |target_is_given| Context { target_is_given, ..context(dir.path(), &target) };
        make();
        given(true).claim_target().unwrap();
        assert_eq!(left(), [4, 4], "who names a directory keeps it as it is");
        drop(given(false).claim_target().unwrap());
        assert_eq!(left(), [2, 2]);
        make();
        let first = given(false).claim_target().unwrap();
        let second = given(false).claim_target().unwrap();
        assert_eq!(left(), [4, 4], "it is ours now");
        let other = Context { root: "/elsewhere".into(), ..given(false) };
        let note = File::open(target.join("clone")).unwrap();
        assert!(matches!(note.try_lock(), Err(TryLockError::WouldBlock)), "another clone has to wait");
        drop((first, second));
        note.try_lock().unwrap();
        drop(note);
        assert!(other.claim_target().is_err(), "there is no workspace");
        std::fs::write(target.join("clone"), "/elsewhere").unwrap();
        drop(given(false).claim_target().unwrap());
        assert_eq!(left(), [2, 2]);
    }

    #[test]
    fn a_full_disk_is_told_before_anything_is_built() {
        let dir = tempfile::tempdir().unwrap();
        let context = context(dir.path(), &dir.path().join("target"));
        context.require_space(1000).unwrap();
        let told = context.require_space(u64::MAX).unwrap_err().to_string();
        assert!(told.contains("CARGO_TARGET_DIR") && told.contains("target has"), "{told}");
    }

    #[test]
    fn what_is_kept_for_a_second_change_is_kept_in_the_callers_folder_only() {
        let dir = tempfile::tempdir().unwrap();
        let set =
            |target: &Path| context(&dir.path().join("c"), target).cargo().variable("CARGO_INCREMENTAL");
        assert_eq!(set(&dir.path().join("c/target")).as_deref(), Some("0"));
        assert_eq!(set(&dir.path().join("t")), None);
    }

    #[test]
    fn a_program_is_found_on_the_path_and_a_folder_is_none() {
        let context = Context::from_process().unwrap();
        assert!(context.find_program("sh").is_some());
        assert!(context.find_program("no-such-program").is_none());
    }
}
