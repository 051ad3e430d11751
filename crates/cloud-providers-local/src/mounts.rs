//! The file system that an instance sees.
//!
//! One tmpfs of bounded size holds everything that the instance may write. Its root is an overlay over the running
//! system or a given folder. After the root has changed, every path is resolved inside, so that symbolic links of a
//! given folder lead nowhere else.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Component, Path, PathBuf},
};

use cloud_providers::{Error, Result, Role};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        stat::{Mode, SFlag, makedev, mknod},
        statvfs::{FsFlags, statvfs},
    },
    unistd::{chdir, pivot_root},
};

use crate::{
    GUEST_DIR, USER_DATA_DIR,
    cgroups::{self, Groups},
    config::{Config, Programs},
    error::{io_error, path_error},
    rootless::in_first_namespace,
    state::Plan,
};

/// The old root inside the new one, for the time of building.
const OLD_ROOT: &str = ".peerpod-old-root";
/// Where single programs from outside the guest folder are found inside.
const PROGRAM_DIR: &str = "/run/peerpod-local/programs";
/// Folders of the running system that instances have no business in; they see an empty one.
const HIDDEN_DIRS: &[&str] = &[
    "/boot",
    "/etc/kubernetes",
    "/etc/ssh",
    "/etc/ssl/private",
    "/home",
    "/mnt",
    "/srv",
    "/var/lib/containerd",
    "/var/lib/docker",
    "/var/lib/kubelet",
    "/var/lib/peerpod",
];
/// Files of the running system that instances have no business in; they read as empty.
const HIDDEN_FILES: &[&str] = &["/etc/gshadow", "/etc/gshadow-", "/etc/shadow", "/etc/shadow-"];
/// Folders of the running system that instances have their own of, or none.
const OWN_DIRS: &[&str] = &[
    "/boot",
    "/dev",
    "/home",
    "/lost+found",
    "/media",
    "/mnt",
    "/proc",
    "/root",
    "/run",
    "/srv",
    "/sys",
    "/tmp",
];
/// Where the running system may be made of several file systems; an overlay shows only one.
const SYSTEM_DIRS: &[&str] = &["/bin", "/etc", "/lib", "/lib32", "/lib64", "/nix", "/opt", "/sbin", "/usr"];
/// Devices that every program expects: name, major, minor.
const DEVICES: &[(&str, u64, u64)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// The programs' paths inside an instance.
#[derive(Debug)]
pub(crate) struct Inside {
    pub(crate) init: String,
    pub(crate) agent: Option<String>,
    pub(crate) guest_dir: bool,
}

/// Builds the root of an instance and moves the calling thread into it.
///
/// The thread has unshared its mount and network namespaces. `/proc` is left to the first process.
pub(crate) fn enter_root(
    config: &Config,
    programs: &Programs,
    plan: &Plan,
    mount_point: &Path,
    data_dir: &Path,
    groups: &Groups,
) -> Result<Inside> {
    // Looked at now: there is no /proc for a while.
    let rootless = !in_first_namespace();
    let mounts = match config.root {
        None => system_mounts(
            &fs::read_to_string("/proc/thread-self/mountinfo")
                .map_err(|e| io_error("cannot read the mounts of this host", e))?,
        ),
        Some(_) => Vec::new(),
    };
    private()?;
    let size = format!("size={}m,mode=0700", config.tmpfs_size_mib);
    do_mount("tmpfs", mount_point, "tmpfs", MsFlags::MS_NOSUID, &size)?;
    // Relative names keep awkward characters of the data folder out of the overlay's options.
    chdir(mount_point).map_err(|e| path_error("cannot enter", mount_point, e))?;
    for (name, mode) in [
        ("upper", 0o755),
        ("work", 0o700),
        ("root", 0o755),
        ("run", 0o755),
        ("tmp", 0o1777),
        ("media", 0o755),
    ]
    .into_iter()
    .chain([("dev", 0o755), ("home", 0o700), ("empty", 0o755)])
    {
        make_dir(Path::new(name), mode)?;
    }
    base(config, rootless)?;

    // The name is ours alone: should the lower root have such a folder, it is hidden by the mount.
    let old = Path::new("root").join(OLD_ROOT);
    make_dir(&old, 0o700)?;
    pivot_root(Path::new("root"), &old)
        .map_err(|e| path_error("cannot change to the root", mount_point, e))?;
    chdir("/").map_err(|e| io_error("cannot enter the instance's root", e))?;
    let old = Path::new("/").join(OLD_ROOT);
    let tmpfs = under(&old, mount_point);

    for mount_point in &mounts {
        let target = Path::new(mount_point);
        if target.exists() {
            bind(&under(&old, target), target, true)?;
        }
    }
    let plain = plan.role == Role::Plain;
    if config.root.is_none() {
        let hidden = HIDDEN_DIRS.iter().map(Path::new).chain([data_dir]);
        for (n, dir) in hidden.enumerate().filter(|(_, dir)| is_real(dir, fs::Metadata::is_dir)) {
            if plain {
                // Empty too, but whoever logs in to a machine makes homes, keys and engines' state there.
                let own = tmpfs.join(format!("own-{n}"));
                make_dir(&own, 0o755)?;
                bind(&own, dir, false)?;
            } else {
                bind(&tmpfs.join("empty"), dir, true)?;
            }
        }
    }
    for (name, target) in [
        ("run", "/run"),
        ("tmp", "/tmp"),
        ("tmp", "/var/tmp"),
        ("media", "/media"),
        ("home", "/root"),
        ("dev", "/dev"),
    ] {
        let target = dir_inside(target)?;
        bind(&tmpfs.join(name), &target, false)?;
    }
    devices(&old, rootless)?;
    if config.root.is_none() {
        for file in HIDDEN_FILES.iter().map(Path::new).filter(|f| is_real(f, fs::Metadata::is_file)) {
            // Emptied in the overlay alone, so that programs of a machine may replace it as they are used to; hidden
            // behind a device where the file system is one of its own and cannot be written.
            if !plain || fs::write(file, "").is_err() {
                bind(Path::new("/dev/null"), file, false)?;
            }
        }
    }
    sys(&old, rootless)?;
    control_groups(&old, groups)?;
    let proc = dir_inside("/proc")?;
    if rootless {
        // The kernel lets the first process mount its own only where one is in sight already.
        bind(&under(&old, Path::new("/proc")), &proc, false)?;
    }
    dir_inside("/run/lock")?;
    let inside = place_programs(&old, programs)?;
    user_data(plan)?;

    umount2(&old, MntFlags::MNT_DETACH).map_err(|e| io_error("cannot leave the host's root", e))?;
    fs::remove_dir(&old).map_err(|e| path_error("cannot remove", &old, e))?;
    Ok(inside)
}

/// Tries on a scratch folder whether a root can be built. The thread has unshared its mount namespace.
pub(crate) fn probe(config: &Config, scratch: &Path) -> Result<()> {
    private()?;
    do_mount("tmpfs", scratch, "tmpfs", MsFlags::empty(), "size=1m")?;
    chdir(scratch).map_err(|e| path_error("cannot enter", scratch, e))?;
    for name in ["upper", "work", "root"] {
        make_dir(Path::new(name), 0o755)?;
    }
    base(config, !in_first_namespace())
}

fn private() -> Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(|e| io_error("cannot separate the mounts from the host's", e))
}

/// Makes `root` of the folders `upper` and `work` beside it: the running system or the given folder, in a copy.
fn base(config: &Config, rootless: bool) -> Result<()> {
    match &config.root {
        None if rootless => patchwork(),
        lower => overlay(
            lower.as_deref().unwrap_or(Path::new("/")),
            ["root", "upper", "work"].map(Path::new),
            rootless,
        ),
    }
}

/// Makes `root` of one overlay for each folder at the top of the running system.
///
/// In a user namespace the kernel lays no overlay over a file system on which others are mounted that came with the
/// namespace: it would show what they cover.
fn patchwork() -> Result<()> {
    let root = Path::new("root");
    // What is mounted as the root must be a mount of its own.
    bind(root, root, false)?;
    let failed = |e: io::Error| path_error("cannot look at the root", Path::new("/"), e);
    for (n, entry) in fs::read_dir("/").map_err(failed)?.enumerate() {
        let entry = entry.map_err(failed)?;
        let (source, target) = (entry.path(), root.join(entry.file_name()));
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_symlink() {
            let to = fs::read_link(&source).map_err(|e| path_error("cannot read the link", &source, e))?;
            symlink(to, &target).map_err(|e| path_error("cannot make the link", &target, e))?;
        } else if kind.is_dir() {
            make_dir(&target, 0o755)?;
            if OWN_DIRS.iter().any(|own| source == Path::new(own)) {
                continue;
            }
            let (upper, work) = (format!("upper/{n}"), format!("work/{n}"));
            make_dir(Path::new(&upper), 0o755)?;
            make_dir(Path::new(&work), 0o700)?;
            if overlay(&source, [&target, Path::new(&upper), Path::new(&work)], true).is_err() {
                // Others are mounted on this one: it can be shown, and not written.
                bind(&source, &target, true)?;
            }
        }
    }
    Ok(())
}

fn overlay(lower: &Path, [target, upper, work]: [&Path; 3], rootless: bool) -> Result<()> {
    let mut options = b"lowerdir=".to_vec();
    for byte in lower.as_os_str().as_encoded_bytes() {
        if matches!(byte, b':' | b',' | b'\\') {
            options.push(b'\\');
        }
        options.push(*byte);
    }
    options.extend_from_slice(format!(",upperdir={},workdir={}", upper.display(), work.display()).as_bytes());
    if rootless {
        // The usual attributes are for the machine's root alone.
        options.extend_from_slice(b",userxattr");
    }
    mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options.as_slice()))
        .map_err(|e| path_error("cannot lay an overlay over the root", lower, e).with("set", "LOCAL_ROOT"))
}

/// Puts the guest folder and programs from outside it to their places, read-only.
fn place_programs(old: &Path, programs: &Programs) -> Result<Inside> {
    if let Some(dir) = &programs.guest_dir {
        bind(&under(old, dir), &dir_inside(GUEST_DIR)?, true)?;
    }
    let place = |program: &Path, name: &str| -> Result<String> {
        if let Some(rest) = programs.guest_dir.as_ref().and_then(|d| program.strip_prefix(d).ok()) {
            return text(&Path::new(GUEST_DIR).join(rest));
        }
        let target = dir_inside(PROGRAM_DIR)?.join(name);
        fs::File::create(&target).map_err(|e| path_error("cannot make", &target, e))?;
        bind(&under(old, program), &target, true)?;
        text(&target)
    };
    Ok(Inside {
        init: place(&programs.init, "init")?,
        agent: programs.agent.as_deref().map(|p| place(p, "agent")).transpose()?,
        guest_dir: programs.guest_dir.is_some(),
    })
}

/// Writes the NoCloud folder. It is in memory: it holds keys, and goes with the instance.
fn user_data(plan: &Plan) -> Result<()> {
    let dir = dir_inside(USER_DATA_DIR)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))
        .map_err(|e| path_error("cannot protect", &dir, e))?;
    let meta = format!("instance-id: {}\nlocal-hostname: {}\n", plan.id, plan.name);
    for (name, content) in
        [("user-data", plan.user_data.as_bytes()), ("meta-data", meta.as_bytes()), ("vendor-data", b"")]
    {
        let path = dir.join(name);
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(content))
            .map_err(|e| {
                path_error("cannot write the user data", &path, e).with("set", "LOCAL_TMPFS_SIZE_MIB")
            })?;
    }
    Ok(())
}

/// Shows the instance its own control groups as the roots of their hierarchies.
fn control_groups(old: &Path, groups: &Groups) -> Result<()> {
    let base = Path::new(cgroups::BASE);
    if groups.iter().any(|group| group.name != Path::new("")) {
        // As on hosts with hierarchies of version 1: `/sys` itself takes no folder.
        do_mount("tmpfs", base, "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "size=1m,mode=0755")?;
    }
    for group in groups.iter() {
        let target = base.join(&group.name);
        if target != base {
            make_dir(&target, 0o755)?;
        }
        bind(&under(old, &group.path), &target, false)?;
        for alias in &group.aliases {
            let link = base.join(alias);
            symlink(&group.name, &link).map_err(|e| path_error("cannot make the link", &link, e))?;
        }
    }
    Ok(())
}

/// Mounts the view of the instance's devices and network.
fn sys(old: &Path, rootless: bool) -> Result<()> {
    let target = dir_inside("/sys")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    match do_mount("sysfs", &target, "sysfs", flags, "") {
        // The kernel refuses a new one where a part of the old one is covered, as in containers.
        Err(_) if rootless => bind(&under(old, Path::new("/sys")), &target, true),
        other => other,
    }
}

fn devices(old: &Path, rootless: bool) -> Result<()> {
    let dev = Path::new("/dev");
    for (name, major, minor) in DEVICES {
        let path = dev.join(name);
        if rootless {
            // Only the machine's root makes devices; those of the host are the same.
            fs::File::create(&path).map_err(|e| path_error("cannot make", &path, e))?;
            bind(&under(old, &path), &path, false)?;
            continue;
        }
        mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(*major, *minor))
            .map_err(|e| path_error("cannot make the device", &path, e))?;
        // The umask took its part.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))
            .map_err(|e| path_error("cannot set the mode of", &path, e))?;
    }
    for (link, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
    ] {
        let path = dev.join(link);
        symlink(target, &path).map_err(|e| path_error("cannot make the link", &path, e))?;
    }
    make_dir(&dev.join("shm"), 0o1777)?;
    let pts = dev.join("pts");
    make_dir(&pts, 0o755)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    do_mount("devpts", &pts, "devpts", flags, "newinstance,ptmxmode=0666,mode=0620")
}

/// Returns the mount points of the host below the folders that make up the system, outer ones first.
fn system_mounts(mountinfo: &str) -> Vec<String> {
    let field = |line: &str| line.split(' ').nth(4).map(unescape);
    let system = |path: &String| SYSTEM_DIRS.iter().any(|dir| Path::new(path).starts_with(dir));
    let mut all: Vec<String> = mountinfo.lines().filter_map(field).filter(system).collect();
    // Binds are recursive, so that a mount below another one of the list comes with it.
    all.sort();
    all.dedup();
    let mut outer: Vec<String> = Vec::new();
    for path in all {
        if !outer.iter().any(|o| Path::new(&path).starts_with(o)) {
            outer.push(path);
        }
    }
    outer
}

/// Turns the octal escapes of mountinfo (blank, tab, newline, backslash) back.
pub(crate) fn unescape(field: &str) -> String {
    let mut out = field.to_owned();
    for (escape, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        out = out.replace(escape, plain);
    }
    out
}

fn is_real(path: &Path, is: impl Fn(&fs::Metadata) -> bool) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| is(&m))
}

/// Returns the folder behind `path`, made with its parents where needed.
fn dir_inside(path: &str) -> Result<PathBuf> {
    let path = Path::new(path);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|e| path_error("cannot make the folder", path, e))?;
    fs::canonicalize(path).map_err(|e| path_error("cannot resolve", path, e))
}

fn make_dir(path: &Path, mode: u32) -> Result<()> {
    let failed = |e: io::Error| path_error("cannot make the folder", path, e);
    fs::create_dir(path).map_err(failed)?;
    // Set apart from making, because of the umask.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)
}

/// Returns the absolute path `path` below `root`.
fn under(root: &Path, path: &Path) -> PathBuf {
    root.join(path.components().filter(|c| !matches!(c, Component::RootDir)).collect::<PathBuf>())
}

fn bind(source: &Path, target: &Path, read_only: bool) -> Result<()> {
    let failed = |e: nix::Error| path_error("cannot bind", target, e).with("source", source.display());
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source), target, None::<&str>, flags, None::<&str>).map_err(failed)?;
    if read_only {
        // What the mount forbids already must stay forbidden: without root the kernel refuses anything else.
        let now = statvfs(target).map_err(failed)?.flags();
        let kept = [
            (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
            (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
            (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        ];
        let kept = kept.into_iter().filter(|(flag, _)| now.contains(*flag)).map(|(_, flag)| flag);
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let flags = kept.fold(flags, |flags, flag| flags | flag);
        mount(None::<&str>, target, None::<&str>, flags, None::<&str>).map_err(failed)?;
    }
    Ok(())
}

fn do_mount(source: &str, target: &Path, kind: &str, flags: MsFlags, options: &str) -> Result<()> {
    mount(Some(source), target, Some(kind), flags, Some(options).filter(|o| !o.is_empty()))
        .map_err(|e| path_error(&format!("cannot mount {kind}"), target, e))
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::config("the path of a guest program is not valid UTF-8").with("path", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separate_file_systems_of_the_running_system_are_found() {
        let info = "\
22 27 0:21 / /proc rw - proc proc rw
27 1 254:0 / / rw - ext4 /dev/vda rw
28 27 254:1 / /usr rw - ext4 /dev/vdb rw
29 28 254:2 / /usr/local rw - ext4 /dev/vdc rw
30 27 254:3 /hosts /etc/hosts rw - ext4 /dev/vda rw
31 27 254:3 / /opt/with\\040blank rw - ext4 /dev/vda rw
32 27 254:3 / /home rw - ext4 /dev/vda rw
33 27 254:3 / /usrlocal rw - ext4 /dev/vda rw
";
        assert_eq!(system_mounts(info), ["/etc/hosts", "/opt/with blank", "/usr"]);
    }

    #[test]
    fn a_path_moves_below_another_root() {
        assert_eq!(under(Path::new("/old"), Path::new("/a/b")), Path::new("/old/a/b"));
        assert_eq!(under(Path::new("/old"), Path::new("/")), Path::new("/old/"));
    }
}
