//! Folders and sockets of the node, looked at without making anything.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use cloud_providers::Finding;
use nix::unistd::{AccessFlags, access, geteuid};

use super::checks;
use crate::{
    config::DaemonConfig,
    daemon, files, handover,
    journal::{self, Disk as _, Journal},
};

/// The most bytes of the path of a unix socket.
const SOCKET_PATH_MAX: usize = 107;
/// The length of a sandbox's id.
const ID_LENGTH: usize = 64;
/// What a socket is called until it takes its place: `.<process id>.new` instead of its extension.
const PASSING_LENGTH: usize = ".4194304.new".len();

const SOCKET: &str = "-socket or REMOTE_HYPERVISOR_ENDPOINT";
const PODS_DIR: &str = "-pods-dir or PODS_DIR";
const STATE_DIR: &str = "-state-dir or STATE_DIR";
const VOLUMES_DIR: &str = "-direct-volumes-dir or DIRECT_VOLUMES_DIR";
const GATEWAY: &str = "-gateway-socket or GATEWAY_SOCKET";

/// Looks at everything that the daemon keeps on this node.
pub(super) async fn look(config: &DaemonConfig) -> Vec<Finding> {
    let mut findings = paths(config);
    let state_dir = daemon::state_dir(config);
    let held = handover::is_free(&state_dir).is_ok_and(|free| !free);
    findings.push(socket(config, held));
    findings.push(
        writable(checks::PODS_DIR, PODS_DIR, &config.pods_dir)
            .unwrap_or_else(|place| Finding::ok(checks::PODS_DIR, place.words(&config.pods_dir))),
    );
    match writable(checks::STATE_DIR, STATE_DIR, &state_dir) {
        Err(place) => findings.extend(state(config, &state_dir, place, held).await),
        Ok(wrong) => findings.push(wrong),
    }
    findings
}

/// Paths that cannot be right, whatever is on the disk.
fn paths(config: &DaemonConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut failed = |option: &str, detail: String, remedy: &str| {
        findings.push(Finding::failed(checks::PATHS, detail).with_option(option).with_remedy(remedy));
    };
    let mut named: Vec<(&str, &Path)> = vec![
        (SOCKET, &config.socket),
        (PODS_DIR, &config.pods_dir),
        (STATE_DIR, &config.state_dir),
        (VOLUMES_DIR, &config.direct_volumes_dir),
    ];
    named.extend(config.gateway_socket.as_deref().map(|path| (GATEWAY, path)));
    for (option, path) in &named {
        // Those of the shims' URLs are refused by the settings.
        if !path.is_absolute() && ![SOCKET, PODS_DIR].contains(option) {
            failed(
                option,
                format!(
                    "{option} is {:?}, which depends on where the daemon is started",
                    path.display().to_string()
                ),
                "give an absolute path",
            );
        }
    }
    for (at, (option, path)) in named.iter().enumerate() {
        if let Some((other, _)) = named[..at].iter().find(|(_, other)| other == path) {
            failed(
                &format!("{other}, {option}"),
                format!("{} is meant for two things", path.display()),
                "give each a path of its own",
            );
        }
    }
    let length = |path: &Path| path.as_os_str().len();
    let passing = |path: &Path| length(&path.with_extension("")) + PASSING_LENGTH;
    let agent = length(&config.pods_dir) + 1 + ID_LENGTH + 1 + files::AGENT_SOCKET.len();
    let mut sockets = vec![
        (SOCKET, "the socket", passing(&config.socket).max(length(&config.socket))),
        (PODS_DIR, "the socket of a sandbox's agent in it", agent),
        (
            STATE_DIR,
            "the socket in it at which the next daemon asks",
            passing(&config.state_dir.join(handover::SOCKET)),
        ),
    ];
    if let Some(path) = &config.gateway_socket {
        let own = passing(&path.with_file_name(daemon::OWN_SOCKET));
        sockets.push((GATEWAY, "the socket, or the daemon's own beside it", own.max(length(path))));
    }
    for (option, what, length) in sockets {
        if length > SOCKET_PATH_MAX {
            failed(
                option,
                format!(
                    "{what} has a path of {length} bytes, and {SOCKET_PATH_MAX} is the most that a socket can have"
                ),
                &format!("give a path that is {} bytes shorter", length - SOCKET_PATH_MAX),
            );
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(checks::PATHS, "each is absolute, short enough, and used once"));
    }
    findings
}

/// Where a folder is, or would be.
enum Place {
    There,
    /// It would be made below this one.
    Below(PathBuf),
}

impl Place {
    fn words(&self, path: &Path) -> String {
        match self {
            Self::There => format!("{} can be written to", path.display()),
            Self::Below(parent) => format!("{} will be made in {}", path.display(), parent.display()),
        }
    }

    fn existing<'a>(&'a self, path: &'a Path) -> &'a Path {
        match self {
            Self::There => path,
            Self::Below(parent) => parent,
        }
    }
}

/// Returns what is wrong with a folder, and where it is when nothing is.
fn writable(check: &str, option: &str, path: &Path) -> Result<Finding, Place> {
    let failed = |detail: String, remedy: &str| {
        Ok(Finding::failed(check, detail).with_option(option).with_remedy(remedy))
    };
    let mut existing = path;
    let meta =
        loop {
            match fs::metadata(existing) {
                Ok(meta) => break meta,
                Err(error) if error.kind() == io::ErrorKind::NotFound => match existing.parent() {
                    Some(parent) if !parent.as_os_str().is_empty() => existing = parent,
                    _ => {
                        return failed(
                            format!("{} has no folder to be made in", path.display()),
                            "give an absolute path",
                        );
                    }
                },
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                    let blocking = existing.ancestors().find(|p| fs::metadata(p).is_ok_and(|m| !m.is_dir()));
                    let blocking = blocking.unwrap_or(existing).display().to_string();
                    return failed(
                        format!("{blocking} is in the way: it is no folder"),
                        "remove it, or give another path",
                    );
                }
                Err(error) => {
                    let detail = format!("{} cannot be looked at: {error}", existing.display());
                    return match error.kind() == io::ErrorKind::PermissionDenied && !geteuid().is_root() {
                        true => Ok(Finding::not_checked(check, detail)
                            .with_remedy("run it as root, as the daemon runs")),
                        false => failed(detail, "mend the file system, or give another path"),
                    };
                }
            }
        };
    if !meta.is_dir() {
        return failed(
            format!("{} is in the way: it is no folder", existing.display()),
            "remove it, or give another path",
        );
    }
    match access(existing, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) if existing == path => Err(Place::There),
        Ok(()) => Err(Place::Below(existing.to_owned())),
        Err(errno) => {
            let detail = format!("nothing can be written to {}: {}", existing.display(), errno.desc());
            match geteuid().is_root() || errno == nix::errno::Errno::EROFS {
                true => failed(detail, "mount a folder of the node there, or give another path"),
                false => {
                    Ok(Finding::not_checked(check, detail).with_remedy("run it as root, as the daemon runs"))
                }
            }
        }
    }
}

/// The folder of the shims' socket, and what is where the socket is to be.
fn socket(config: &DaemonConfig, held: bool) -> Finding {
    let path = &config.socket;
    let failed = |detail: String, remedy: &str| {
        Finding::failed(checks::SOCKET, detail).with_option(SOCKET).with_remedy(remedy)
    };
    let place = match writable(checks::SOCKET, SOCKET, path.parent().unwrap_or(path)) {
        Ok(wrong) => return wrong,
        Err(place) => place,
    };
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => failed(
            format!("{} is in the way: it is no socket", path.display()),
            "remove it, or give another path",
        ),
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Finding::ok(
                checks::SOCKET,
                format!("{} is left of an earlier daemon and is replaced", path.display()),
            ),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !geteuid().is_root() => {
                Finding::not_checked(checks::SOCKET, format!("{}: {error}", path.display()))
                    .with_remedy("run it as root, as the daemon runs")
            }
            _ if held || config.in_cluster || config.gateway_socket.is_some() => Finding::ok(
                checks::SOCKET,
                format!("{} is served, and is taken over at a start", path.display()),
            ),
            _ => failed(
                format!("{} is in use by another process, which does not hold -state-dir", path.display()),
                "end that process, or give another path",
            ),
        },
        Err(_) => {
            let folder = place.existing(path.parent().unwrap_or(path)).display();
            Finding::ok(checks::SOCKET, format!("{} will be made in {folder}", path.display()))
        }
    }
}

async fn state(config: &DaemonConfig, path: &Path, place: Place, held: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let failed = |detail: String, remedy: &str| {
        Finding::failed(checks::STATE_DIR, detail).with_option(STATE_DIR).with_remedy(remedy)
    };
    let meta = fs::metadata(path).ok();
    findings.push(match &meta {
        _ if path != config.state_dir => Finding::warning(
            checks::STATE_DIR,
            format!(
                "{} is part of the container and goes with it: the journal is kept in {}, which a reboot empties",
                config.state_dir.display(),
                path.display()
            ),
        )
        .with_option(STATE_DIR)
        .with_remedy("mount a folder of the node there"),
        Some(meta) if meta.mode() & 0o022 != 0 => failed(
            format!(
                "{} can be changed by others (mode {:o}), and holds the keys of guests",
                path.display(),
                meta.mode() & 0o7777
            ),
            &format!("chmod 700 {}", path.display()),
        ),
        Some(meta) if meta.uid() != 0 && meta.uid() != geteuid().as_raw() => failed(
            format!("{} belongs to user {}, who can change the journal", path.display(), meta.uid()),
            "chown it to the user of the daemon",
        ),
        _ if held => Finding::ok(
            checks::STATE_DIR,
            format!(
                "{} is held by a running daemon ({}), which hands it over to one that starts",
                path.display(),
                handover::holder(path)
            ),
        ),
        _ => Finding::ok(checks::STATE_DIR, place.words(path)),
    });
    findings.push(match journal::SystemDisk.free(place.existing(path)) {
        Ok(free) if free < journal::ROOM => Finding::failed(
            checks::DISK,
            format!(
                "{} has {} KiB left, and new pods are refused below {} KiB",
                path.display(),
                free / 1024,
                journal::ROOM / 1024
            ),
        )
        .with_option(STATE_DIR)
        .with_remedy("make room there, or give another path"),
        Ok(free) => {
            Finding::ok(checks::DISK, format!("{} MiB are left at {}", free / (1024 * 1024), path.display()))
        }
        Err(error) => Finding::not_checked(checks::DISK, format!("{}: {error}", path.display())),
    });
    let file = path.join(journal::FILE);
    findings.push(match fs::File::open(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Finding::ok(checks::JOURNAL, format!("{} is made by the first daemon", file.display()))
        }
        _ if held => Finding::not_checked(
            checks::JOURNAL,
            format!("{} is in use by the running daemon", file.display()),
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !geteuid().is_root() => {
            Finding::not_checked(checks::JOURNAL, format!("{}: {error}", file.display()))
                .with_remedy("run it as root, as the daemon runs")
        }
        _ => match Journal::peek(path).await {
            Ok(records) => {
                Finding::ok(checks::JOURNAL, format!("{} has {} sandboxes", file.display(), records.len()))
            }
            Err(error) => Finding::failed(checks::JOURNAL, format!("{error:#}"))
                .with_option(STATE_DIR)
                .with_remedy("put a copy back, or move it away and delete the VMs of its sandboxes by hand"),
        },
    });
    findings
}
