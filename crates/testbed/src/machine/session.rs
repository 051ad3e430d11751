//! Becomes what somebody who logged in runs: takes the account's rights, and is replaced by its shell.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::Path,
    process::Command,
};

use nix::{
    sys::stat::{Mode, umask},
    unistd::{Gid, Uid, User as Account, fchown, initgroups, setgid, setsid, setuid},
};

use super::{Words, accounts};

/// Where a program that transfers files may be installed.
const SFTP: &[&str] = &[
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/libexec/sftp-server",
];

/// What is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A shell that one types to.
    Shell,
    /// A command of the shell.
    Command(OsString),
    /// The transfer of files, by the installed program where there is one.
    Sftp,
    /// The transfer of files, by this program.
    OwnSftp,
}

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) user: String,
    pub(super) tty: bool,
    pub(super) what: What,
}

impl Session {
    /// Returns the arguments by which [`Session::parse`] finds the same again.
    pub(super) fn args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["session".into(), "--user".into(), self.user.clone().into()];
        if self.tty {
            args.push("--tty".into());
        }
        match &self.what {
            What::Shell => args.push("--shell".into()),
            What::Command(command) => args.extend(["--command".into(), command.clone()]),
            What::Sftp => args.push("--sftp".into()),
            What::OwnSftp => args.push("--own-sftp".into()),
        }
        args
    }

    pub(super) fn parse(mut words: Words) -> Result<Self, String> {
        let (mut user, mut tty, mut what) = (None, false, None);
        while let Some(flag) = words.flag()? {
            match flag.as_str() {
                "--user" => user = Some(words.text(&flag)?),
                "--tty" => tty = true,
                "--shell" => what = Some(What::Shell),
                "--command" => what = Some(What::Command(words.value(&flag)?)),
                "--sftp" => what = Some(What::Sftp),
                "--own-sftp" => what = Some(What::OwnSftp),
                _ => return Err(format!("unknown flag {flag}")),
            }
        }
        match (user, what) {
            (Some(user), Some(what)) => Ok(Self { user, tty, what }),
            _ => Err("a session needs --user and one of --shell, --command, --sftp, --own-sftp".into()),
        }
    }

    /// Returns only when it failed.
    pub(super) fn become_it(self) -> Result<(), String> {
        let account =
            accounts::find(&self.user)?.ok_or_else(|| format!("there is no account {}", self.user))?;
        self.terminal(&account)?;
        drop_rights(&account).map_err(|e| format!("cannot become {}: {e}", self.user))?;
        umask(Mode::from_bits_truncate(0o022));
        // A home that cannot be entered is no reason to shut somebody out.
        if std::env::set_current_dir(&account.dir).is_err() {
            std::env::set_current_dir("/").map_err(|e| format!("cannot enter /: {e}"))?;
        }
        let shell = accounts::shell(&account);
        let name = shell.file_name().unwrap_or(OsStr::new("sh"));
        let mut command = Command::new(&shell);
        match &self.what {
            What::Shell => {
                // The dash asks for a login shell.
                let login = OsString::from_iter([OsStr::new("-"), name]);
                command.arg0(login);
            }
            What::Command(line) => {
                command.arg0(name).arg("-c").arg(line);
            }
            What::Sftp => match sftp_server() {
                Some(program) => command = Command::new(program),
                None => return super::sftp::run(),
            },
            What::OwnSftp => return super::sftp::run(),
        }
        let error = command.exec();
        Err(format!("cannot run {}: {error}", shell.display()))
    }

    /// Makes a session of its own, with the terminal as its controlling one.
    fn terminal(&self, account: &Account) -> Result<(), String> {
        setsid().map_err(|e| format!("cannot make a session: {e}"))?;
        if self.tty {
            let stdin = io::stdin();
            rustix::process::ioctl_tiocsctty(&stdin).map_err(|e| format!("cannot take the terminal: {e}"))?;
            // The shell's programs open it by name.
            fchown(&stdin, Some(account.uid), None)
                .map_err(|e| format!("cannot hand over the terminal: {e}"))?;
        }
        Ok(())
    }
}

/// Returns the installed program that transfers files.
fn sftp_server() -> Option<&'static str> {
    SFTP.iter().copied().find(|path| Path::new(path).is_file())
}

fn drop_rights(account: &Account) -> nix::Result<()> {
    if account.uid == Uid::current() && account.gid == Gid::current() {
        return Ok(());
    }
    let name = std::ffi::CString::new(account.name.as_bytes()).map_err(|_| nix::Error::EINVAL)?;
    initgroups(&name, account.gid)?;
    setgid(account.gid)?;
    setuid(account.uid)
}

/// Returns a command as it came over the wire.
pub(super) fn command(bytes: &[u8]) -> OsString {
    OsStr::from_bytes(bytes).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_survives_its_arguments() {
        for (tty, what) in [
            (true, What::Shell),
            (false, What::Command("echo --user; exit 3".into())),
            (false, What::Command(command(b"printf '\xff'"))),
            (false, What::Sftp),
            (false, What::OwnSftp),
        ] {
            let args = Session { user: "ada".into(), tty, what: what.clone() }.args();
            let mut words = Words::new(&args);
            assert_eq!(words.part().as_deref(), Some("session"));
            let again = Session::parse(words).unwrap();
            assert_eq!((again.user.as_str(), again.tty, again.what), ("ada", tty, what));
        }
        assert!(Session::parse(Words::new(&["--user".into(), "a".into()])).is_err());
    }
}
