//! Where things are: the workspace, the cache, the programs.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use cargo_metadata::{Metadata, MetadataCommand};

use crate::command::Run;
use crate::inputs::Digest;

/// What the tasks know of their surroundings; the process environment is read here and nowhere else.
#[derive(Debug)]
pub(crate) struct Context {
    /// The root of the workspace.
    pub(crate) root: PathBuf,
    /// Where caches live, outside the clone.
    pub(crate) cache: PathBuf,
    /// Where cargo builds to.
    pub(crate) target: PathBuf,
    /// The cargo that runs us.
    pub(crate) cargo: OsString,
    /// Directories in which programs are looked up.
    pub(crate) path: Vec<PathBuf>,
    /// What `rustc -vV` prints.
    pub(crate) rustc: String,
    /// A copy of the advisory database, where somebody gave one.
    pub(crate) advisory_db: Option<PathBuf>,
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
        let rustc = Run::new("rustc").arg("-vV").current_dir(&root).stdout()?;
        // Cargo tells apart what it built from which inputs; only artefacts of another compiler are useless.
        let key = Digest::new().text(&rustc).short();
        let target =
            var("CARGO_TARGET_DIR").map_or_else(|| cache.join(format!("target-{key}")), PathBuf::from);
        let cargo = var("CARGO").unwrap_or_else(|| "cargo".into());
        let advisory_db = var("CLOUD_PROVIDERS_ADVISORY_DB").map(PathBuf::from);
        Ok(Self { root, cache, target, cargo, path, rustc, advisory_db, quiet_stdout: false })
    }

    /// Returns a cargo command in the workspace, building to the cached target directory.
    pub(crate) fn cargo(&self) -> Run {
        self.program(&self.cargo).env("CARGO_TARGET_DIR", &self.target)
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
        // A folder that the caller chose is the caller's.
        if !self.target.starts_with(&self.cache) {
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
    fn a_program_is_found_on_the_path_and_a_folder_is_none() {
        let context = Context::from_process().unwrap();
        assert!(context.find_program("sh").is_some());
        assert!(context.find_program("no-such-program").is_none());
    }
}
