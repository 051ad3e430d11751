//! The accounts of a machine: those of the root, and one that is added where it is missing.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{DirBuilderExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use nix::unistd::{Gid, Uid, User as Account};
use ssh_key::{AuthorizedKeys, PublicKey};

use crate::userdata::{User, is_account};

use super::log;

/// The first number of an account that people use.
const FIRST_ID: u32 = 1000;
/// A shell that every system has.
const SHELL: &str = "/bin/sh";

/// Makes sure that an account is there, with its home and its keys.
pub(super) fn ensure(user: &User) -> Result<(), String> {
    let name = &user.name;
    if !is_account(name) {
        return Err(format!("{name:?} of the user data is no account"));
    }
    let account = match find(name)? {
        Some(account) => account,
        None => {
            add(user)?;
            find(name)?.ok_or_else(|| format!("the account {name} was added and cannot be found"))?
        }
    };
    home(&account)?;
    keys(&account, &user.ssh_authorized_keys)?;
    if let Some(rule) = user.sudo.as_deref().filter(|_| Path::new("/etc/sudoers.d").is_dir()) {
        let path = Path::new("/etc/sudoers.d/90-testbed");
        let written = fs::write(path, format!("{name} {rule}\n"))
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o440)));
        if let Err(error) = written {
            log(format!("{name} cannot use sudo: {error}"));
        }
    }
    Ok(())
}

/// Looks up an account.
pub(super) fn find(name: &str) -> Result<Option<Account>, String> {
    Account::from_name(name).map_err(|e| format!("cannot look up the account {name}: {e}"))
}

/// Returns the shell of an account that is there to be run.
pub(super) fn shell(account: &Account) -> PathBuf {
    if account.shell.is_file() { account.shell.clone() } else { SHELL.into() }
}

fn add(user: &User) -> Result<(), String> {
    let name = &user.name;
    let id = (FIRST_ID..FIRST_ID + 10_000)
        .find(|id| {
            let taken = Account::from_uid(Uid::from_raw(*id)).ok().flatten().is_some();
            !taken && nix::unistd::Group::from_gid(Gid::from_raw(*id)).ok().flatten().is_none()
        })
        .ok_or("no number is free for another account")?;
    let shell = user.shell.as_deref().filter(|shell| Path::new(shell).is_file()).unwrap_or(SHELL);
    append("/etc/group", &format!("{name}:x:{id}:"))?;
    append("/etc/passwd", &format!("{name}:x:{id}:{id}::/home/{name}:{shell}"))?;
    // An asterisk is no password and, other than an exclamation mark, no locked account either.
    append("/etc/shadow", &format!("{name}:*:::::::"))
}

fn append(path: &str, line: &str) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("cannot add an account to {path}: {e}");
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut file = OpenOptions::new().append(true).create(true).open(path).map_err(failed)?;
    let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    writeln!(file, "{gap}{line}").map_err(failed)
}

fn home(account: &Account) -> Result<(), String> {
    if account.dir.is_dir() {
        return Ok(());
    }
    let failed = |e: std::io::Error| format!("cannot make the home {}: {e}", account.dir.display());
    if let Some(folder) = account.dir.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    fs::DirBuilder::new().mode(0o700).create(&account.dir).map_err(failed)?;
    chown(&account.dir, Some(account.uid.as_raw()), Some(account.gid.as_raw())).map_err(failed)
}

fn keys_file(account: &Account) -> PathBuf {
    account.dir.join(".ssh/authorized_keys")
}

fn keys(account: &Account, keys: &[String]) -> Result<(), String> {
    let path = keys_file(account);
    let failed = |e: std::io::Error| format!("cannot write {}: {e}", path.display());
    let folder = path.parent().unwrap_or(Path::new("/"));
    if !folder.is_dir() {
        fs::DirBuilder::new().mode(0o700).create(folder).map_err(failed)?;
    }
    super::write_private(&path, format!("{}\n", keys.join("\n")).as_bytes())?;
    for path in [folder, &path] {
        chown(path, Some(account.uid.as_raw()), Some(account.gid.as_raw())).map_err(failed)?;
    }
    Ok(())
}

/// Whether `key` may log in to an account. The file is read each time, so that a key added to it counts at once.
pub(super) fn may_log_in(account: &Account, key: &PublicKey) -> bool {
    let text = fs::read_to_string(keys_file(account)).unwrap_or_default();
    is_listed(&text, key)
}

fn is_listed(text: &str, key: &PublicKey) -> bool {
    // An entry with options restricts what its key may do, which nobody here would see to.
    AuthorizedKeys::new(text)
        .filter_map(Result::ok)
        .any(|entry| entry.config_opts().is_empty() && entry.public_key().key_data() == key.key_data())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::userdata::HostKey;

    #[test]
    fn only_listed_keys_without_restrictions_count() {
        let (one, two) = (HostKey::generate().unwrap(), HostKey::generate().unwrap());
        let key = |k: &HostKey| PublicKey::from_openssh(k.public()).unwrap();
        let text =
            format!("# mine\n\n{} me@home\ncommand=\"/bin/true\" {}\nno key\n", one.public(), two.public());
        assert!(is_listed(&text, &key(&one)));
        assert!(!is_listed(&text, &key(&two)));
        assert!(!is_listed("", &key(&one)));
    }
}
