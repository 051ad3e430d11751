//! What must not be there afterwards: processes, namespaces, links, rules, mounts, control groups, sockets, files.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use test_support::{NamespaceState, ProcessInfo, wait_for};

/// What may stay in the folder: what is meant to outlive the daemon, logs, and what we put there ourselves.
/// The folder of libvirtd is looked through by what started it.
const MAY_STAY: &[&str] = &["guest", "state", "demo.json", "libvirt", "direct-volumes"];

/// Names what a namespace has more or less than before.
pub(crate) fn in_namespace(name: &str, now: &NamespaceState, before: &NamespaceState) -> Vec<String> {
    let added = now.added_since(before).into_iter().map(|line| format!("{name} has a new {line}"));
    let missing = now.missing_since(before).into_iter().map(|line| format!("{name} has lost {line}"));
    added.chain(missing).collect()
}

/// Returns the processes that use files of `dir`, by command line or mounts. We are none of them.
pub(crate) fn processes_of(dir: &Path) -> Vec<ProcessInfo> {
    let marker = marker(dir);
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let mounted = |pid: i32| {
        std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).is_ok_and(|text| text.contains(&marker))
    };
    let ours = |process: &ProcessInfo| process.command.contains(&marker) || mounted(process.pid);
    test_support::processes().into_iter().filter(|process| process.pid != own && ours(process)).collect()
}

/// The folder's own name. It is unique, and mounts show it even where the folder's file system is mounted elsewhere.
fn marker(dir: &Path) -> String {
    dir.file_name().map_or_else(|| dir.to_string_lossy(), |name| name.to_string_lossy()).into_owned()
}

/// The namespaces of instances, each with the time until which processes in it belong to its instance.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(BTreeMap<u64, u64>);

impl Seen {
    /// Notes the namespaces of processes that live in instances now. Ours and those in `shared` are no instance's.
    ///
    /// Everything in them that runs now belongs to them; what is started there later may be a stranger's.
    pub(crate) fn note(&mut self, instances: &[ProcessInfo], shared: &BTreeSet<u64>) {
        let newest = test_support::processes().iter().map(|process| process.started).max();
        let now = newest.unwrap_or_default();
        for (_, inode) in instances.iter().flat_map(|process| &process.namespaces) {
            if !shared.contains(inode) {
                self.0.insert(*inode, now);
            }
        }
    }

    /// The processes in those namespaces.
    ///
    /// The kernel gives the number of a namespace that is gone to the next one, perhaps of a stranger. A stranger's
    /// process was started after the instance was last seen, so the time of its start tells them apart.
    fn processes(&self) -> Vec<ProcessInfo> {
        let inodes: Vec<u64> = self.0.keys().copied().collect();
        let mut found = test_support::processes_using_namespaces(&inodes);
        found.retain(|process| {
            let until = |(_, inode): &(String, u64)| self.0.get(inode).copied();
            process.namespaces.iter().filter_map(until).any(|until| process.started <= until)
        });
        found
    }
}

/// Names the processes that still run: those that use `dir`, and those in the namespaces of instances.
pub(crate) fn processes(dir: &Path, seen: &Seen) -> Vec<String> {
    let mut found = processes_of(dir);
    found.extend(seen.processes());
    found.sort_by_key(|process| process.pid);
    found.dedup_by_key(|process| process.pid);
    found.into_iter().map(|process| format!("process: {} {}", process.pid, process.command)).collect()
}

/// Names the mounts that lie in `dir` or come from it.
pub(crate) fn mounts(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let marker = marker(dir);
    text.lines().filter(|line| line.contains(&marker)).map(|line| format!("mount: {line}")).collect()
}

/// Names the control groups of instances, which carry their ids.
pub(crate) fn control_groups(ids: &BTreeSet<String>) -> Vec<String> {
    let base = Path::new("/sys/fs/cgroup");
    let folders = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect::<Vec<_>>()
    };
    // Hierarchies of version 1 lie below the base; version 2 may be the base itself.
    let mut groups = folders(base);
    groups.extend(groups.clone().iter().flat_map(|hierarchy| folders(hierarchy)));
    let of_instance = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        name.starts_with("peerpod-") && ids.iter().any(|id| name.ends_with(&format!("-{id}")))
    };
    let found = groups.iter().filter(|path| of_instance(path));
    found.map(|path| format!("control group: {}", path.display())).collect()
}

/// Names the sockets in `dir`, and the files that belong to sandboxes or instances.
pub(crate) fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for path in walk(dir) {
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        let inside = path.strip_prefix(dir).unwrap_or(&path);
        if meta.file_type().is_socket() {
            found.push(format!("socket: {}", path.display()));
        } else if meta.is_file() && !may_stay(inside) {
            found.push(format!("file: {}", path.display()));
        } else if meta.is_dir()
            && inside.components().count() > 1
            && !may_stay(inside)
            && inside != Path::new("local/instances")
        {
            found.push(format!("folder: {}", path.display()));
        }
    }
    found
}

fn may_stay(inside: &Path) -> bool {
    let ours = inside
        .components()
        .next()
        .is_some_and(|first| MAY_STAY.iter().any(|name| first.as_os_str() == *name));
    let kind = inside.extension().and_then(|extension| extension.to_str());
    // Locks are left on purpose: removing one while another process opens it breaks the lock.
    let lock = kind == Some("lock") || inside.starts_with("local/locks");
    ours || lock || (kind == Some("log") && inside.components().count() == 1)
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok) {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// Returns the links of the namespace in which we run.
pub(crate) fn host_links() -> BTreeSet<String> {
    let entries = std::fs::read_dir("/sys/class/net").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// Names what the host has more than before: named namespaces with our prefix, and links.
pub(crate) fn on_host(prefix: &str, links_before: &BTreeSet<String>) -> Vec<String> {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten();
    let names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut found: Vec<String> = names
        .filter(|name| name.starts_with(prefix))
        .map(|name| format!("network namespace: {name}"))
        .collect();
    found.extend(host_links().difference(links_before).map(|link| format!("link of the host: {link}")));
    found
}

/// Returns the inodes of our own namespaces, which no leftover is judged by.
pub(crate) fn own_namespaces() -> BTreeSet<u64> {
    let entries = std::fs::read_dir("/proc/self/ns").into_iter().flatten();
    entries.filter_map(|entry| Some(std::fs::metadata(entry.ok()?.path()).ok()?.ino())).collect()
}

/// Kills what uses `dir` or runs in a namespace of an instance. For cleaning up after a failure only.
pub(crate) fn kill_all(dir: &Path, seen: &Seen) {
    let left = wait_for("the last processes to go", Duration::from_secs(10), || {
        let mut doomed = processes_of(dir);
        doomed.extend(seen.processes());
        for process in &doomed {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        doomed.is_empty().then_some(())
    });
    if left.is_err() {
        eprintln!("could not be killed: {}", processes(dir, seen).join(", "));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::*;

    #[test]
    fn sockets_and_files_of_sandboxes_are_found_and_logs_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for folder in ["pods/s1", "state", "local/instances", "local/locks", "guest"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        for file in ["daemon.log", "state/cluster-id", "guest/test-agent", "local/locks/address", "demo.json"]
        {
            std::fs::write(root.join(file), "").unwrap();
        }
        std::fs::remove_dir(root.join("pods/s1")).unwrap();
        assert_eq!(files(root), Vec::<String>::new());
        std::fs::create_dir_all(root.join("pods/s1")).unwrap();
        std::fs::write(root.join("pods/s1/apf.json"), "").unwrap();
        let _listener = UnixListener::bind(root.join("hypervisor.sock")).unwrap();
        let found = files(root);
        assert_eq!(found.len(), 3, "{found:?}");
        for part in ["socket: ", "file: ", "folder: "] {
            assert!(found.iter().any(|line| line.starts_with(part)), "{part} is not in {found:?}");
        }
    }

    #[test]
    fn a_process_that_names_the_folder_is_found_and_killed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let mut child = Command::new("tail").arg("-f").arg(dir.path().join("file")).spawn().unwrap();
        wait_for("the process", Duration::from_secs(5), || {
            (!processes_of(dir.path()).is_empty()).then_some(())
        })
        .unwrap();
        assert!(processes(dir.path(), &Seen::default())[0].starts_with("process: "));
        kill_all(dir.path(), &Seen::default());
        assert!(!child.wait().unwrap().success());
        assert!(processes_of(dir.path()).is_empty());
    }

    #[test]
    fn a_process_in_an_instance_is_found_and_one_that_got_its_number_later_is_not() {
        let netns = test_support::Netns::unique("xl").unwrap();
        let find = |child: &std::process::Child| {
            let pid = i32::try_from(child.id()).unwrap();
            let inode = netns.inode().unwrap();
            wait_for("sleep to enter", Duration::from_secs(5), || {
                test_support::processes_using_namespaces(&[inode])
                    .into_iter()
                    .find(|process| process.pid == pid)
            })
            .unwrap()
        };
        let mut early = netns.command("sleep").arg("1000").spawn().unwrap();
        let mut seen = Seen::default();
        seen.note(&[find(&early)], &own_namespaces());
        assert_eq!(seen.processes().len(), 1);
        let until = seen.0.values().copied().max().unwrap();
        // The clock of start times has ticks of ten milliseconds.
        wait_for("a later tick", Duration::from_secs(5), || {
            let mut late = netns.command("sleep").arg("1000").spawn().unwrap();
            let later = find(&late).started > until;
            let found = seen.processes().len();
            late.kill().unwrap();
            late.wait().unwrap();
            later.then(|| assert_eq!(found, 1))
        })
        .unwrap();
        early.kill().unwrap();
        early.wait().unwrap();
        assert!(seen.processes().is_empty());
        // A stranger in a namespace of the same number stays one, whatever is seen of other instances meanwhile.
        let mut stranger = netns.command("sleep").arg("1000").spawn().unwrap();
        let other = test_support::Netns::unique("xl").unwrap();
        let mut elsewhere = other.command("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(elsewhere.id()).unwrap();
        let found = wait_for("sleep to enter", Duration::from_secs(5), || {
            let inside = test_support::processes_using_namespaces(&[other.inode().unwrap()]);
            inside.into_iter().find(|process| process.pid == pid)
        });
        find(&stranger);
        seen.note(&[found.unwrap()], &own_namespaces());
        let left: Vec<i32> = seen.processes().iter().map(|process| process.pid).collect();
        for child in [&mut stranger, &mut elsewhere] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(left, [pid]);
    }

    #[test]
    fn a_control_group_of_an_instance_is_told() {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let kinds = |line: &&str| line.split(' ').nth(2).is_some_and(|kind| kind.starts_with("cgroup"));
        let hierarchy = mounts.lines().find(kinds).and_then(|line| line.split(' ').nth(1)).unwrap();
        let id = test_support::unique("xgroup");
        let group = Path::new(hierarchy).join(format!("peerpod-00000000-{id}"));
        std::fs::create_dir(&group).unwrap();
        let ids = BTreeSet::from([id]);
        let found = control_groups(&ids);
        std::fs::remove_dir(&group).unwrap();
        assert_eq!(found, [format!("control group: {}", group.display())]);
        assert_eq!(control_groups(&ids), Vec::<String>::new());
    }

    #[test]
    fn a_link_and_a_named_namespace_are_told() {
        let before = host_links();
        assert_eq!(on_host("no-such-prefix", &before), Vec::<String>::new());
        let netns = test_support::Netns::unique("xhost").unwrap();
        assert!(on_host(netns.name(), &before)[0].contains(netns.name()));
        assert!(on_host("no-such-prefix", &BTreeSet::new()).iter().any(|line| line.ends_with(": lo")));
    }
}
