//! A folder with a document, the world of its machines, and programs that play `ssh`, `tc` and `ip`.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

/// The variable that makes this file the program under test.
pub(crate) const AS_PROGRAM: &str = "TESTBED_TEST_AS_PROGRAM";
/// What may be written nowhere.
pub(crate) const PASSWORD: &str = "canary-password-1";

/// Plays ssh: what follows `--` is a machine and a command, which runs here. Machines named in `down` refuse.
const SSH: &str = r#"#!/bin/sh
echo "$@" >> "$WORLD/ssh.log"
[ "$1" = -F ] && [ -r "$2" ] || { echo "no configuration" >&2; exit 254; }
while [ $# -gt 0 ] && [ "$1" != -- ]; do shift; done
shift; host=$1; shift
if grep -qsx "$host" "$WORLD/down"; then echo "connect to host $host: Connection refused" >&2; exit 255; fi
if grep -qsx "$host" "$WORLD/other-key"; then echo "Host key verification failed." >&2; exit 255; fi
[ $# -gt 0 ] || { echo "a shell on $host"; exit 0; }
HOST=$host exec sh -c "$*"
"#;

/// What a command did.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or_default());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let ran = Self { code, out: text(output.stdout), err: text(output.stderr) };
        assert!(
            !ran.out.contains(PASSWORD) && !ran.err.contains(PASSWORD),
            "a secret is shown: {}{}",
            ran.out,
            ran.err
        );
        ran
    }

    /// Demands an exit code.
    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "out: {}\nerr: {}", self.out, self.err);
        self
    }

    /// Demands a text on standard error.
    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(self.err.contains(text), "{text:?} is not in: {}", self.err);
        self
    }

    /// Returns the one JSON document.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }

    /// Returns the JSON lines.
    #[track_caller]
    pub(crate) fn lines(&self) -> Vec<Value> {
        self.out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }
}

pub(crate) struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    /// Makes a desk whose document asks for two machines `web` and one `db`.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let desk = Self { dir };
        fs::create_dir_all(desk.path("world/machines")).unwrap();
        fs::create_dir_all(desk.path("bin")).unwrap();
        desk.program("ssh", SSH);
        desk.document("");
        desk
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn program(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Writes the document, with more at its end.
    pub(crate) fn document(&self, more: &str) {
        self.document_of("  small: {web: 2, db: 1}\n", more);
    }

    pub(crate) fn document_of(&self, resources: &str, more: &str) {
        let world = self.path("world");
        let text = format!(
            "experiment: exp\nprovider:\n  type: scripted\n  world: {}\n  password: {PASSWORD}\nresources:\n{resources}{more}",
            world.display()
        );
        fs::write(self.path("reservation.yaml"), text).unwrap();
    }

    /// Makes a step fail, wait, hang or kill: `meddle("kill-at", "create:x")`.
    pub(crate) fn meddle(&self, how: &str, step: &str) {
        fs::write(self.path("world").join(how), step).unwrap();
    }

    pub(crate) fn leave(&self, how: &str) {
        let _ = fs::remove_file(self.path("world").join(how));
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.path("bin").display());
        command
            .args(args)
            .env_clear()
            .env(AS_PROGRAM, "1")
            .env("PATH", path)
            .env("HOME", self.dir.path())
            .env("WORLD", self.path("world"))
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }

    /// Starts a command and waits until the step at which it waits or hangs.
    pub(crate) fn start(&self, args: &[&str], marker: &str) -> Child {
        let child = self.command(args).spawn().unwrap();
        let marker = self.path("world").join(marker);
        self.wait("the step", || marker.exists());
        fs::remove_file(marker).unwrap();
        child
    }

    pub(crate) fn end(&self, child: Child) -> Ran {
        Ran::of(child.wait_with_output().unwrap())
    }

    #[track_caller]
    pub(crate) fn wait(&self, what: &str, mut there: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !there() {
            assert!(Instant::now() < end, "no sign of {what} within a minute");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Returns the steps of the world since the last time, without those of machines.
    pub(crate) fn calls(&self) -> Vec<String> {
        let log = self.path("world/log");
        let text = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(log);
        text.lines().filter(|line| !line.contains(':')).map(str::to_owned).collect()
    }

    /// Returns the machines that are there, with their ids.
    pub(crate) fn machines(&self) -> Vec<(String, String)> {
        let folder = self.path("world/machines/exp");
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut all: Vec<_> = entries
            .map(|e| (e.file_name().to_string_lossy().into_owned(), fs::read_to_string(e.path()).unwrap()))
            .collect();
        all.sort();
        all
    }

    pub(crate) fn environment(&self) -> PathBuf {
        self.path("testbed_exp")
    }

    pub(crate) fn state(&self) -> Value {
        let text = fs::read(self.environment().join("env")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    pub(crate) fn phase(&self) -> String {
        self.state()["environment"]["phase"].as_str().unwrap().to_owned()
    }

    /// Looks through every file of the environment for what may not be there, and at its rights.
    #[track_caller]
    pub(crate) fn inspect(&self) {
        let mut folders = vec![self.environment()];
        while let Some(folder) = folders.pop() {
            assert_eq!(mode(&folder), 0o700, "{}", folder.display());
            for entry in fs::read_dir(folder).unwrap().flatten() {
                if entry.path().is_dir() {
                    folders.push(entry.path());
                    continue;
                }
                assert_eq!(mode(&entry.path()), 0o600, "{}", entry.path().display());
                let text = String::from_utf8_lossy(&fs::read(entry.path()).unwrap()).into_owned();
                assert!(!text.contains(PASSWORD), "a secret is in {}", entry.path().display());
            }
        }
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}
