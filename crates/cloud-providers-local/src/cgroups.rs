//! Control groups of an instance: one folder in each hierarchy that this host shows below `/sys/fs/cgroup`.
//!
//! A Kata agent makes a group for each container and kills through it. The folders lie at the top of the hierarchies
//! and are named after data folder and instance, so that they are found again without any record. Inside, they are
//! the roots.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use cloud_providers::Result;
use nix::errno::Errno;

use crate::{
    error::{io_error, path_error},
    mounts::unescape,
};

/// Where hierarchies are looked for, and where an instance finds them.
pub(crate) const BASE: &str = "/sys/fs/cgroup";
/// The group of the first process below the instance's root of a unified hierarchy: there, only groups without
/// processes can hand controllers to the groups below them.
const LEAF: &str = "init";
/// How long processes that were killed may still be in a group.
const EMPTY_LIMIT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A hierarchy of this host.
#[derive(Debug, PartialEq)]
struct Hierarchy {
    mount_point: PathBuf,
    /// Version 2.
    unified: bool,
}

/// The groups of one instance.
#[derive(Debug, Default)]
pub(crate) struct Groups(Vec<Group>);

/// The group of one instance in one hierarchy.
#[derive(Debug)]
pub(crate) struct Group {
    /// Folder on the host.
    pub(crate) path: PathBuf,
    /// Name below [`BASE`], empty when the hierarchy is mounted there itself.
    pub(crate) name: PathBuf,
    /// Further names, as links.
    pub(crate) aliases: Vec<String>,
    /// Takes the process before it leaves the host's view.
    pub(crate) root: File,
    /// Takes the process afterwards.
    pub(crate) leaf: Option<File>,
}

impl Groups {
    /// Makes the groups of an instance.
    pub(crate) fn make(name: &str) -> Result<Self> {
        let all = hierarchies()?;
        let groups: Result<Vec<Group>> = all.iter().map(|hierarchy| make(hierarchy, name)).collect();
        groups.map(Self).inspect_err(|_| {
            // No process is in them yet, so nothing holds them.
            let _ = remove_from(&all, name);
        })
    }

    /// Returns the group of each hierarchy.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Group> {
        self.0.iter()
    }
}

/// Removes the groups of an instance, whose processes have ended.
pub(crate) fn remove(name: &str) -> Result<()> {
    remove_from(&hierarchies()?, name)
}

fn hierarchies() -> Result<Vec<Hierarchy>> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo")
        .map_err(|e| io_error("cannot read the mounts of this host", e))?;
    Ok(parse(&text))
}

fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let kind = right.split(' ').next().unwrap_or_default();
        let Some(path) = left.split(' ').nth(4) else { continue };
        let mount_point = PathBuf::from(unescape(path));
        // What is mounted later hides what was there.
        found.retain(|earlier| !earlier.mount_point.starts_with(&mount_point));
        let place = mount_point.strip_prefix(BASE).map(|rest| rest.components().count());
        if kind.starts_with("cgroup") && matches!(place, Ok(0 | 1)) {
            found.push(Hierarchy { mount_point, unified: kind == "cgroup2" });
        }
    }
    found
}

fn make(hierarchy: &Hierarchy, name: &str) -> Result<Group> {
    let path = hierarchy.mount_point.join(name);
    let make_dir =
        |path: &Path| fs::create_dir(path).map_err(|e| path_error("cannot make the group", path, e));
    let open = |path: &Path| {
        let path = path.join("cgroup.procs");
        File::options().write(true).open(&path).map_err(|e| path_error("cannot open the group", &path, e))
    };
    make_dir(&path)?;
    if !hierarchy.unified {
        // A new group of this controller has neither processors nor memory and takes no process.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let (from, to) = (hierarchy.mount_point.join(file), path.join(file));
            if to.exists() {
                fs::read(&from)
                    .and_then(|value| fs::write(&to, value))
                    .map_err(|e| path_error("cannot fill the group", &to, e))?;
            }
        }
    }
    let leaf = match hierarchy.unified {
        true => {
            let leaf = path.join(LEAF);
            make_dir(&leaf)?;
            Some(open(&leaf)?)
        }
        false => None,
    };
    let place = hierarchy.mount_point.strip_prefix(BASE).unwrap_or(Path::new("")).to_owned();
    // Controllers that share a hierarchy, such as `cpu,cpuacct`, are found by each name alone too, as on the host.
    let names = place.to_str().unwrap_or_default();
    let aliases = names.split(',').filter(|alias| *alias != names).map(str::to_owned).collect();
    Ok(Group { root: open(&path)?, path, name: place, aliases, leaf })
}

fn remove_from(hierarchies: &[Hierarchy], name: &str) -> Result<()> {
    let end = Instant::now() + EMPTY_LIMIT;
    for hierarchy in hierarchies {
        let path = hierarchy.mount_point.join(name);
        loop {
            match remove_tree(&path) {
                Ok(()) => break,
                // The kernel lets go of the last processes a moment after they have ended.
                Err(e) if e.raw_os_error() == Some(Errno::EBUSY as i32) && Instant::now() < end => {
                    thread::sleep(LOOK_AGAIN);
                }
                Err(e) => return Err(path_error("cannot remove the group", &path, e)),
            }
        }
    }
    Ok(())
}

/// Removes the folders only: the files of a group cannot be removed and go with it.
fn remove_tree(path: &Path) -> io::Result<()> {
    let gone = |e: io::Error| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) };
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) => return gone(e),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path).or_else(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(mount_point: &str, unified: bool) -> Hierarchy {
        Hierarchy { mount_point: mount_point.into(), unified }
    }

    #[test]
    fn hierarchies_of_both_versions_are_found_side_by_side() {
        let info = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:3 - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
42 31 0:39 / /mnt/elsewhere rw - cgroup cgroup rw,pids
";
        let wanted = [
            hierarchy("/sys/fs/cgroup/cpu,cpuacct", false),
            hierarchy("/sys/fs/cgroup/systemd", false),
            hierarchy("/sys/fs/cgroup/unified", true),
        ];
        assert_eq!(parse(info), wanted);
    }

    #[test]
    fn the_unified_hierarchy_alone_is_found_and_a_hidden_one_is_not() {
        let unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(parse(unified), [hierarchy("/sys/fs/cgroup", true)]);
        let hidden = format!("{unified}50 30 0:60 / /sys/fs rw - tmpfs tmpfs rw\n");
        assert_eq!(parse(&hidden), []);
    }

    #[test]
    fn removing_what_is_not_there_is_done() {
        remove("peerpod-none-such").unwrap();
    }
}
