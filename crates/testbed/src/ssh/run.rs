//! Runs commands on machines.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use cloud_providers::{EnvSource, Error, OpContext, Result};
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
};

use crate::state::Folder;

/// Finds a program on the search path.
///
/// # Errors
///
/// When there is none of this name; `mend` says what to do then.
pub fn program(env: &dyn EnvSource, name: &str, mend: &str) -> Result<PathBuf> {
    let path = env.variable("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| executable(file));
    found.ok_or_else(|| {
        Error::config(format!("there is no program `{name}` on this machine"))
            .with("looked in", if path.is_empty() { "PATH, which is empty" } else { &path })
            .with("mend", mend)
    })
}

fn executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(file).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// The way to the machines of an environment.
#[derive(Clone, Debug)]
pub struct Remote {
    program: PathBuf,
    config: PathBuf,
}

/// What came of a command.
#[derive(Clone, Debug)]
pub struct Answer {
    /// How it ended.
    pub outcome: Outcome,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it, and ssh, complained about.
    pub stderr: Vec<u8>,
}

/// How a command on a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this status of its own; 255 is also what ssh says when it did not get there.
    Status(i32),
    /// By a signal to the ssh of this side.
    Signal(i32),
}

impl Outcome {
    /// Reads the status of a process.
    pub fn of(status: ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Status(code),
            (None, signal) => Self::Signal(signal.unwrap_or_default()),
        }
    }

    /// Returns the code for our own exit, as a shell has it.
    pub fn code(self) -> i32 {
        match self {
            Self::Status(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }

    /// Whether all went well.
    pub fn success(self) -> bool {
        self == Self::Status(0)
    }
}

impl Answer {
    /// Returns the last lines of what it complained about, or wrote.
    pub fn tail(&self) -> String {
        let text = if self.stderr.iter().all(u8::is_ascii_whitespace) { &self.stdout } else { &self.stderr };
        tail(&String::from_utf8_lossy(text))
    }
}

/// Returns the last lines of a text, for an error.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

impl Remote {
    /// Finds the system's `ssh` and uses it with the configuration in `folder`.
    ///
    /// # Errors
    ///
    /// When there is no `ssh`.
    pub fn new(env: &dyn EnvSource, folder: &Folder) -> Result<Self> {
        let program =
            program(env, "ssh", "install the OpenSSH client (package openssh-client or openssh-clients)")?;
        Ok(Self { program, config: folder.ssh_config() })
    }

    /// Returns the arguments that lead to `host` with `options` of ssh before its name.
    pub fn args<'a>(&self, options: &[&'a str], host: &'a str) -> Vec<OsString> {
        let mut args = vec![OsString::from("-F"), self.config.clone().into()];
        args.extend(options.iter().map(OsString::from));
        // What follows is a name, whatever it looks like.
        args.extend(["--", host].map(OsString::from));
        args
    }

    /// Returns the program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Starts `command` on `host` without anybody at a keyboard.
    ///
    /// # Errors
    ///
    /// When ssh cannot be started.
    pub fn spawn(&self, host: &str, command: &str, stdin: Stdio) -> Result<Child> {
        let options = ["-o", "BatchMode=yes", "-T"];
        Command::new(&self.program)
            .args(self.args(&options, host))
            .arg(OsStr::new(command))
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            // Ctrl-C is for us: we end what we started.
            .process_group(0)
            .spawn()
            .map_err(|error| {
                Error::internal("cannot start ssh").with("program", self.program.display()).with_source(error)
            })
    }

    /// Runs `command` on `host` with `input` and waits for its end.
    ///
    /// # Errors
    ///
    /// When ssh cannot be started, and when the call is cancelled.
    pub async fn run(&self, op: &OpContext, host: &str, command: &str, input: &[u8]) -> Result<Answer> {
        let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
        let mut child = self.spawn(host, command, stdin)?;
        op.run(async {
            let writing = child.stdin.take();
            let write = async {
                if let Some(mut stdin) = writing {
                    // A command that does not read its input is no failure.
                    let _ = stdin.write_all(input).await;
                }
            };
            let (output, ()) = tokio::join!(child.wait_with_output(), write);
            let output = output.map_err(|error| Error::internal("cannot wait for ssh").with_source(error))?;
            Ok(Answer { outcome: Outcome::of(output.status), stdout: output.stdout, stderr: output.stderr })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use cloud_providers::MapEnv;

    use super::*;

    #[test]
    fn a_missing_program_is_told_with_what_to_install() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ssh"), "no program").unwrap();
        let env = MapEnv::new([("PATH", dir.path().to_str().unwrap())]);
        let text = Remote::new(&env, &Folder::new("/x")).unwrap_err().to_string();
        assert!(text.contains("no program `ssh`") && text.contains("openssh-client"), "{text}");
    }

    #[test]
    fn the_tail_is_the_last_lines_without_empty_ones() {
        assert_eq!(tail("1\n\n2\n3\n4\n5\n6\n\n"), "2\n3\n4\n5\n6");
    }
}
