//! What a bare machine lacks: `/proc`, `/sys`, `/dev` and `/run`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use tracing::info;

/// Mounts each of them unless it is there.
pub(super) fn mount_missing() -> Result<()> {
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // The mount of another process namespace knows this process by another number.
    let own = std::process::id().to_string();
    if !fs::read_link("/proc/self").is_ok_and(|link| link.as_os_str() == own.as_str()) {
        attach("proc", "/proc", strict, "")?;
    }
    if !Path::new("/sys/kernel").exists() {
        attach("sysfs", "/sys", strict, "")?;
    }
    if !Path::new("/dev/null").exists() {
        attach("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755")?;
    }
    if !Path::new("/dev/pts/ptmx").exists() {
        attach(
            "devpts",
            "/dev/pts",
            MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
            "newinstance,ptmxmode=0666,mode=0620",
        )?;
    }
    if !is_mount_point("/run")? {
        attach("tmpfs", "/run", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=0755")?;
    }
    Ok(())
}

/// Mounts what containers and their tools expect of a machine.
pub(super) fn mount_for_containers() -> Result<()> {
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    attach("tmpfs", "/dev/shm", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    attach("mqueue", "/dev/mqueue", strict, "")?;
    attach("tmpfs", "/tmp", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    attach("cgroup2", "/sys/fs/cgroup", strict, "nsdelegate")
}

fn attach(kind: &str, target: &str, flags: MsFlags, options: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("make {target}"))?;
    mount(Some(kind), target, Some(kind), flags, Some(options))
        .with_context(|| format!("mount {kind} on {target}"))?;
    info!(kind, target, "mounted");
    Ok(())
}

fn is_mount_point(path: &str) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/thread-self/mounts").context("read /proc/thread-self/mounts")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(1) == Some(path)))
}
