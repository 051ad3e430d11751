//! The first program of a plain machine on this host, and its SSH server.
//!
//! Parts of one program, each called by its name: `machine` is process 1 of a machine, `machine serve` its SSH server,
//! `machine session` becomes what somebody who logged in runs, and `machine connect` runs on
//! the host and is the way to a machine that cannot be reached directly.

mod accounts;
pub(crate) mod connect;
mod init;
mod server;
mod session;
mod sftp;
mod spawn;
mod start;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// The argument by which a program is asked to be this.
pub const COMMAND: &str = "machine";

/// Where the program of each part is found: this one, also after its file was replaced.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// What belongs to the running machine; in memory, for root only.
const RUN_DIR: &str = "/run/testbed-machine";
/// Where an SSH server may be installed.
const SSHD: &[&str] = &["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/bin/sshd"];

/// Returns the installed SSH server.
pub(crate) fn host_sshd() -> Option<PathBuf> {
    SSHD.iter().map(PathBuf::from).find(|path| path.is_file())
}

/// Which SSH server a machine has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum SshServer {
    /// The installed one where there is one, else ours.
    #[default]
    Auto,
    /// Ours, and our transfer of files too.
    Ours,
    /// The installed one.
    Sshd,
}

/// Runs the part that `args` name; they are what follows [`COMMAND`] on the command line.
///
/// A program whose library calls make machines on this host dispatches to it first of all, as `testbed::main` does.
pub fn main(args: &[OsString]) -> ExitCode {
    let mut words = Words::new(args);
    let result = match words.part().as_deref() {
        None => Options::parse(words).and_then(|options| init::run(&options)),
        Some("exec") => init::unblocked(words),
        Some("serve") => Options::parse(words).and_then(|options| server::run(options.ssh_server)),
        Some("session") => session::Session::parse(words).and_then(session::Session::become_it),
        Some("connect") => connect::Connect::parse(words).and_then(|c| c.run()),
        Some(other) => Err(format!("{other:?} is none of: exec, serve, session, connect")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(&error);
            ExitCode::FAILURE
        }
    }
}

/// Tells the console.
fn log(text: impl std::fmt::Display) {
    use std::io::Write;
    // Nobody may read the console; that is no reason to end.
    let _ = writeln!(std::io::stderr().lock(), "testbed machine: {text}");
}

/// Options of process 1.
#[derive(Debug)]
struct Options {
    user_data_dir: PathBuf,
    ssh_server: SshServer,
}

impl Options {
    fn parse(mut words: Words) -> Result<Self, String> {
        let mut options = Self { user_data_dir: "/media/cidata".into(), ssh_server: SshServer::Auto };
        while let Some(flag) = words.flag()? {
            match flag.as_str() {
                "--user-data-dir" => options.user_data_dir = words.value(&flag)?.into(),
                "--ssh-server" => {
                    let value = words.text(&flag)?;
                    options.ssh_server = match value.as_str() {
                        "auto" => SshServer::Auto,
                        "ours" => SshServer::Ours,
                        "sshd" => SshServer::Sshd,
                        _ => return Err(format!("--ssh-server is {value:?}, expected auto, ours or sshd")),
                    };
                }
                _ => return Err(format!("unknown flag {flag}, expected --user-data-dir or --ssh-server")),
            }
        }
        Ok(options)
    }
}

/// Arguments, one after the other.
struct Words(std::collections::VecDeque<OsString>);

impl Words {
    fn new(args: &[OsString]) -> Self {
        Self(args.iter().cloned().collect())
    }

    /// Takes the first word unless it is a flag.
    fn part(&mut self) -> Option<String> {
        let first = self.0.front()?.to_string_lossy().into_owned();
        if first.starts_with('-') {
            return None;
        }
        self.0.pop_front();
        Some(first)
    }

    fn flag(&mut self) -> Result<Option<String>, String> {
        let Some(word) = self.0.pop_front() else { return Ok(None) };
        match word.to_str() {
            Some(flag) if flag.starts_with("--") => Ok(Some(flag.to_owned())),
            _ => Err(format!("unexpected argument {word:?}")),
        }
    }

    fn value(&mut self, flag: &str) -> Result<OsString, String> {
        self.0.pop_front().ok_or_else(|| format!("{flag} needs a value"))
    }

    fn text(&mut self, flag: &str) -> Result<String, String> {
        self.value(flag)?.into_string().map_err(|v| format!("{flag} is {v:?}, which is no text"))
    }
}

/// Writes a file that only root reads.
fn write_private(path: &Path, content: &[u8]) -> Result<(), String> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    // A file of before may be open to others.
    let _ = std::fs::remove_file(path);
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content))
        .map_err(|e| format!("cannot write {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(args: &[&str]) -> Result<Options, String> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        Options::parse(Words::new(&args))
    }

    #[test]
    fn the_ssh_server_is_chosen_by_name() {
        assert_eq!(options(&[]).unwrap().ssh_server, SshServer::Auto);
        assert_eq!(options(&["--ssh-server", "ours"]).unwrap().ssh_server, SshServer::Ours);
        let error = options(&["--ssh-server", "mine"]).unwrap_err();
        assert!(error.contains("auto, ours or sshd"), "{error}");
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for bad in [&["--no-such"][..], &["word"], &["--user-data-dir"]] {
            assert!(options(bad).is_err(), "{bad:?}");
        }
        assert_eq!(main(&["no-such-part".into()]), ExitCode::FAILURE);
    }
}
