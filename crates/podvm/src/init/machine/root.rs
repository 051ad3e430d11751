//! Moves from the kernel's first file system to one that behaves like every other.
//!
//! The file system that an initramfs is unpacked to cannot be left by `pivot_root`, which container runtimes use.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use nix::unistd::{chdir, chroot};
use tracing::info;

const NEW_ROOT: &str = "/sysroot";
/// The kind of the first file system of kernels without tmpfs.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// Moves everything to a tmpfs of its own and makes that the root; does nothing where the root is a disk.
pub(super) fn leave_initramfs() -> Result<()> {
    let kind: FsType = statfs("/").context("look at the root")?.filesystem_type();
    if kind != TMPFS_MAGIC && kind != RAMFS_MAGIC {
        return Ok(());
    }
    let new = Path::new(NEW_ROOT);
    fs::create_dir_all(new).with_context(|| format!("make {NEW_ROOT}"))?;
    mount(Some("tmpfs"), new, Some("tmpfs"), MsFlags::empty(), Some("mode=0755,size=75%"))
        .with_context(|| format!("mount a tmpfs on {NEW_ROOT}"))?;
    let moved = move_into(Path::new("/"), new)?;
    let none: Option<&str> = None;
    chdir(new).with_context(|| format!("go to {NEW_ROOT}"))?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none).context("move the new root over the old one")?;
    chroot(".").context("take the new root")?;
    chdir("/").context("go to the new root")?;
    info!(files = moved, "left the initramfs");
    Ok(())
}

/// Moves what lies in `from`, file by file, so that no more memory is taken than the largest file needs.
fn move_into(from: &Path, to: &Path) -> Result<u32> {
    let mut moved = 0;
    let entries = fs::read_dir(from).with_context(|| format!("read {}", from.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", from.display()))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().with_context(|| format!("look at {}", source.display()))?;
        if source == Path::new(NEW_ROOT) {
            continue;
        }
        let step = || format!("move {}", source.display());
        if kind.is_dir() {
            fs::create_dir(&target).with_context(step)?;
            let permissions = entry.metadata().with_context(step)?.permissions();
            fs::set_permissions(&target, permissions).with_context(step)?;
            moved += move_into(&source, &target)?;
            fs::remove_dir(&source).with_context(step)?;
            continue;
        }
        if kind.is_symlink() {
            symlink(fs::read_link(&source).with_context(step)?, &target).with_context(step)?;
        } else if kind.is_file() {
            fs::copy(&source, &target).with_context(step)?;
            moved += 1;
        }
        // Devices are not moved: the kernel has them in a file system of its own.
        fs::remove_file(&source).with_context(step)?;
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_tree_is_moved_with_its_links_and_modes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("usr/bin")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("usr/bin/tool"), "text").unwrap();
        fs::set_permissions(from.join("usr/bin/tool"), fs::Permissions::from_mode(0o751)).unwrap();
        fs::set_permissions(from.join("usr"), fs::Permissions::from_mode(0o711)).unwrap();
        symlink("usr/bin", from.join("bin")).unwrap();
        assert_eq!(move_into(&from, &to).unwrap(), 1);
        assert_eq!(fs::read_to_string(to.join("bin/tool")).unwrap(), "text");
        let mode = |path: &str| fs::metadata(to.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("usr/bin/tool"), mode("usr")), (0o751, 0o711));
        assert_eq!(fs::read_dir(&from).unwrap().count(), 0, "nothing stays behind");
    }
}
