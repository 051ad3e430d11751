//! Prepares a machine as its user data say, and chooses its SSH server.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use cloud_providers::secrecy::ExposeSecret;

use crate::userdata::{CloudInit, File};

use super::{COMMAND, Options, RUN_DIR, SshServer, THIS_PROGRAM, accounts, host_sshd, log, write_private};

/// The SSH server to be started.
pub(super) struct Server {
    pub(super) program: PathBuf,
    pub(super) args: Vec<OsString>,
}

/// The host key's file.
pub(super) fn host_key() -> PathBuf {
    Path::new(RUN_DIR).join("host_key")
}

pub(super) fn prepare(options: &Options) -> Result<Server, String> {
    let path = options.user_data_dir.join("user-data");
    let text = fs::read_to_string(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let data = CloudInit::parse(&text).map_err(|e| e.report())?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(RUN_DIR)
        .map_err(|e| format!("cannot make {RUN_DIR}: {e}"))?;
    if let Some(name) = &data.hostname {
        hostname(name)?;
    }
    let key =
        data.ssh_keys.ed25519_private.ok_or("the user data have no host key (ssh_keys, ed25519_private)")?;
    write_private(&host_key(), key.expose_secret().as_bytes())?;
    if data.users.is_empty() {
        return Err("the user data have no account (users)".into());
    }
    for user in &data.users {
        accounts::ensure(user)?;
    }
    for file in &data.write_files {
        write(file)?;
    }
    match (options.ssh_server, host_sshd()) {
        (SshServer::Ours, _) => Ok(ours(&["serve", "--ssh-server", "ours"])),
        (SshServer::Auto, None) => Ok(ours(&["serve"])),
        (SshServer::Auto | SshServer::Sshd, Some(sshd)) => system(sshd),
        (SshServer::Sshd, None) => Err("--ssh-server is sshd, and no sshd is installed".into()),
    }
}

fn ours(args: &[&str]) -> Server {
    let args = std::iter::once(&COMMAND).chain(args).map(OsString::from).collect();
    Server { program: THIS_PROGRAM.into(), args }
}

fn hostname(name: &str) -> Result<(), String> {
    nix::unistd::sethostname(name).map_err(|e| format!("cannot set the host name {name:?}: {e}"))?;
    // Programs such as sudo look their own host up. Where /etc cannot be written they have to do without.
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let written = fs::write("/etc/hostname", format!("{name}\n"))
        .and_then(|()| fs::write("/etc/hosts", format!("{}\n127.0.1.1 {name}\n", hosts.trim_end())));
    if let Err(error) = written {
        log(format!("the host name is not in /etc: {error}"));
    }
    Ok(())
}

fn write(file: &File) -> Result<(), String> {
    let path = Path::new(&file.path);
    let failed = |e: std::io::Error| format!("cannot write {}: {e}", file.path);
    let mode = file.permissions.as_deref().unwrap_or("0644");
    let mode =
        u32::from_str_radix(mode, 8).map_err(|_| format!("{mode:?} of {} are no permissions", file.path))?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    write_private(path, file.content.as_bytes())?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)
}

/// Returns the installed server with a configuration of its own: the host's is none of the machine's business.
fn system(sshd: PathBuf) -> Result<Server, String> {
    let config = Path::new(RUN_DIR).join("sshd_config");
    write_private(&config, sshd_config().as_bytes())?;
    // Where it shuts its unprivileged part in.
    for folder in ["/run/sshd", "/var/empty"] {
        if let Err(error) = fs::create_dir_all(folder) {
            log(format!("cannot make {folder}: {error}"));
        }
    }
    Ok(Server { program: sshd, args: vec!["-D".into(), "-e".into(), "-f".into(), config.into()] })
}

fn sshd_config() -> String {
    let key = host_key();
    format!(
        "Port 22\nHostKey {}\nPidFile none\nAuthorizedKeysFile .ssh/authorized_keys\nPasswordAuthentication no\n\
         KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nUsePAM no\nUseDNS no\nPrintMotd no\n\
         AcceptEnv *\nMaxStartups 200\nMaxSessions 200\nSubsystem sftp internal-sftp\n",
        key.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_installed_server_takes_keys_only() {
        let config = sshd_config();
        for line in ["PasswordAuthentication no", "KbdInteractiveAuthentication no", "UsePAM no"] {
            assert!(config.lines().any(|l| l == line), "{line} is not in {config}");
        }
    }
}
