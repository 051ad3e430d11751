//! A copy of the workspace that a test may change.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The copy. It lies at the same place in every run, so that what was compiled for it is used again.
pub(crate) struct Scratch {
    root: PathBuf,
}

/// A program that is about to run.
pub(crate) struct Call(Command);

impl Scratch {
    /// Copies what git knows of, and what it would. A file that is the same already keeps its time, so that cargo compiles
    /// again only what differs from the last run.
    pub(crate) fn new() -> Self {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in a workspace");
        let scratch = Self { root: Path::new(env!("CARGO_TARGET_TMPDIR")).join("generated") };
        let trusted = format!("safe.directory={}", from.display());
        let list = ["-c", &trusted, "ls-files", "-z", "--cached", "--others", "--exclude-standard"];
        let list = Call::new("git", from).with(&list).success();
        let wanted: BTreeSet<PathBuf> = list
            .split('\0')
            .filter(|path| !path.is_empty() && from.join(path).is_file())
            .map(|path| scratch.path(path))
            .collect();
        fs::create_dir_all(&scratch.root).unwrap();
        remove_others(&scratch.root, &wanted);
        for to in &wanted {
            let bytes =
                fs::read(from.join(to.strip_prefix(&scratch.root).expect("it lies in the copy"))).unwrap();
            if fs::read(to).ok().as_ref() != Some(&bytes) {
                fs::create_dir_all(to.parent().expect("a file lies in a folder")).unwrap();
                fs::write(to, bytes).unwrap();
            }
        }
        scratch.git(&["init", "--quiet"]);
        scratch.commit("the workspace");
        scratch
    }

    /// Returns a path in the copy.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Runs the task program on the copy.
    pub(crate) fn xtask(&self, args: &[&str]) -> Call {
        let mut call = self.call(env!("CARGO_BIN_EXE_xtask")).with(args);
        call.0.env("CARGO_MANIFEST_DIR", self.path("xtask"));
        call
    }

    /// Runs cargo in the copy.
    pub(crate) fn cargo(&self, args: &[&str]) -> Call {
        self.call(env!("CARGO")).with(args)
    }

    /// Runs git in the copy and returns what it prints.
    pub(crate) fn git(&self, args: &[&str]) -> String {
        self.call("git").with(args).success()
    }

    /// Keeps the copy as it is now, to compare with.
    pub(crate) fn commit(&self, message: &str) {
        self.git(&["add", "--all"]);
        let author =
            ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"];
        self.call("git").with(&author).with(&["commit", "--quiet", "--allow-empty", "-m", message]).success();
    }

    /// Demands that nothing differs from the last commit.
    pub(crate) fn is_unchanged(&self, after: &str) {
        let status = self.git(&["status", "--porcelain"]);
        assert!(status.is_empty(), "after {after}:\n{status}");
    }

    /// Returns how many lines were added since the last commit, in all files but some.
    pub(crate) fn added_lines(&self, but: &[&str]) -> usize {
        self.git(&["add", "--all"]);
        let changes = self.git(&["diff", "--cached", "--numstat", "--", ".", ":!Cargo.lock"]);
        let mut sum = 0;
        for line in changes.lines() {
            let mut words = line.split('\t');
            let (added, path) = (words.next().unwrap_or_default(), words.nth(1).unwrap_or_default());
            if !but.contains(&path) {
                println!("{added:>6} lines in {path}");
                sum += added.parse::<usize>().unwrap_or_else(|_| panic!("{line:?} counts no lines"));
            }
        }
        sum
    }

    fn call(&self, program: &str) -> Call {
        Call::new(program, &self.root)
    }
}

impl Call {
    fn new(program: &str, folder: &Path) -> Self {
        let mut command = Command::new(program);
        // One target directory for all: what does not lie in the workspace is compiled already.
        let target =
            Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it lies in the target directory");
        command.current_dir(folder).env("CARGO_TARGET_DIR", target).env("CARGO_TERM_COLOR", "never");
        Self(command)
    }

    /// Adds arguments.
    pub(crate) fn with(mut self, args: &[&str]) -> Self {
        self.0.args(args);
        self
    }

    /// Sets a variable.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.0.env(name, value);
        self
    }

    fn run(mut self) -> (bool, String, String) {
        let out = self.0.output().unwrap_or_else(|error| panic!("{:?}: {error}", self.0));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (out.status.success(), text(&out.stdout), text(&out.stderr))
    }

    /// Demands success and returns standard output.
    pub(crate) fn success(self) -> String {
        let line = format!("{:?}", self.0);
        let (success, out, errors) = self.run();
        assert!(success, "{line}\n{out}\n{errors}");
        out
    }

    /// Demands a failure that says `why`, and returns everything that was printed.
    pub(crate) fn failure(self, why: &str) -> String {
        let line = format!("{:?}", self.0);
        let (success, out, errors) = self.run();
        assert!(
            !success && (out.contains(why) || errors.contains(why)),
            "{line}: not {why:?}\n{out}\n{errors}"
        );
        out
    }
}

/// Removes everything that is none of `wanted`: what an earlier run made, and its history.
fn remove_others(folder: &Path, wanted: &BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let is_folder = path.symlink_metadata().unwrap().is_dir();
        if is_folder && wanted.iter().any(|file| file.starts_with(&path)) {
            remove_others(&path, wanted);
        } else if is_folder {
            fs::remove_dir_all(&path).unwrap();
        } else if !wanted.contains(&path) {
            fs::remove_file(&path).unwrap();
        }
    }
}
