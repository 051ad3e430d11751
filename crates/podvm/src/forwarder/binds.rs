//! Missing sources of bind mounts.
//!
//! A volume of the node has no counterpart in the VM, and the agent refuses a bind mount without a source. So missing
//! sources are made, empty, as the existing forwarder does. This happens before the agent's policy is asked, thus on
//! the word of the node alone; therefore only below folders that hold nothing but such things.

use std::fs::{DirBuilder, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use peerpod_proto::messages::oci::Mount;
use tracing::{debug, warn};

use crate::paths::Paths;

/// Destinations that Kubernetes always mounts as files.
const FILES: [&str; 4] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log"];

/// Makes the missing sources among `mounts`, below `permitted` folders only.
///
/// Failures are logged and left to the agent, whose own error names the mount.
pub(crate) fn make_sources(root: &Paths, permitted: &[PathBuf], mounts: &[Mount]) {
    for mount in mounts.iter().filter(|mount| mount.kind == "bind") {
        let source = Path::new(&mount.source);
        let target = root.at(source);
        if target.symlink_metadata().is_ok() {
            continue;
        }
        if !is_below(source, permitted) {
            warn!(
                source = mount.source,
                destination = mount.destination,
                "source of a bind mount is missing and outside the permitted folders (set -bind-source-dirs)"
            );
            continue;
        }
        let made = match FILES.contains(&mount.destination.as_str()) {
            true => make_file(&target),
            false => make_folder(&target),
        };
        match made {
            Ok(()) => debug!(source = mount.source, "made the missing source of a bind mount"),
            Err(error) => warn!(source = mount.source, %error, "cannot make the source of a bind mount"),
        }
    }
}

/// Compares whole components, and accepts no path that climbs.
fn is_below(path: &Path, permitted: &[PathBuf]) -> bool {
    path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
        && permitted.iter().any(|folder| path.starts_with(folder) && path != folder)
}

fn make_folder(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)
}

fn make_file(path: &Path) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o644).open(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forwarder::config::BIND_SOURCE_DIRS;

    fn mount(source: &str, destination: &str, kind: &str) -> Mount {
        Mount {
            source: source.to_owned(),
            destination: destination.to_owned(),
            kind: kind.to_owned(),
            ..Mount::default()
        }
    }

    fn made(mounts: &[Mount]) -> (tempfile::TempDir, impl Fn(&str) -> Option<bool> + use<>) {
        let root = tempfile::tempdir().unwrap();
        make_sources(&Paths::new(root.path()), &BIND_SOURCE_DIRS.map(PathBuf::from), mounts);
        let base = root.path().to_owned();
        let kind = move |path: &str| std::fs::metadata(base.join(&path[1..])).ok().map(|m| m.is_dir());
        (root, kind)
    }

    #[test]
    fn missing_sources_become_folders_and_those_of_known_files_become_files() {
        let (_root, is_folder) = made(&[
            mount("/var/lib/kubelet/pods/u/volumes/x", "/data", "bind"),
            mount("/var/lib/kubelet/pods/u/etc-hosts", "/etc/hosts", "bind"),
            mount("/var/lib/kubelet/pods/u/containers/c/0a1b", "/dev/termination-log", "bind"),
        ]);
        assert_eq!(is_folder("/var/lib/kubelet/pods/u/volumes/x"), Some(true));
        assert_eq!(is_folder("/var/lib/kubelet/pods/u/etc-hosts"), Some(false));
        assert_eq!(is_folder("/var/lib/kubelet/pods/u/containers/c/0a1b"), Some(false));
    }

    #[test]
    fn nothing_is_made_outside_the_permitted_folders_or_for_other_mounts() {
        let (root, _) = made(&[
            mount("/etc/cron.d/x", "/data", "bind"),
            mount("/run/kata-containers/../../etc/x", "/data", "bind"),
            mount("/run/kata-containersx/y", "/data", "bind"),
            mount("run/kata-containers/y", "/data", "bind"),
            mount("/run/kata-containers/y", "/data", "tmpfs"),
            mount("", "/data", "bind"),
        ]);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_there_stays() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run/kata-containers/f");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "x").unwrap();
        let mounts = [mount("/run/kata-containers/f", "/data", "bind")];
        make_sources(&Paths::new(root.path()), &BIND_SOURCE_DIRS.map(PathBuf::from), &mounts);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "x");
    }
}
