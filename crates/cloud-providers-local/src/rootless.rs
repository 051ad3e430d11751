//! The provider without root: a program that runs others in a user, network and mount namespace of their own.
//!
//! In it they are root, of what they make and of nothing else. Daemon, gateway, bridge and instances must share one, since
//! links join only what is in it.
//!
//! ```text
//! ordinary user ── local-rootless ── namespaces: user (0 is the user, 1… are its subordinate ids), network, mount
//!                    └ helper, outside:            └ the program, in place of local-rootless
//!                      newuidmap, newgidmap
//! ```

mod ids;

use std::{
    ffi::OsString,
    fs, io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode},
    time::{Duration, Instant},
};

use cloud_providers::{Error, ErrorKind, Result};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::{Gid, Uid},
};

use self::ids::Ranges;
use crate::{
    error::{io_error, path_error},
    network::Network,
};

/// What `--help` prints.
pub const USAGE: &str = "\
Runs a program as root of a user, network and mount namespace of its own, for the provider `local` without root.

Usage: local-rootless [--one-id] [--] PROGRAM [ARGUMENTS]

      --one-id  Map your user alone. Without it, the ranges of /etc/subuid and /etc/subgid are mapped, too, which
                programs in containers that change their user need
  -h, --help    Print this

Inside, /run is empty and can be written, loopback is the only interface, and everything else is as outside.
The program takes the place of this one. Exit code 2 says that something is missing and what.";

/// Hidden: the helper that maps the ids of the process that follows.
const MAP: &str = "--map";

/// What is missing was told.
const MISSING: u8 = 2;

/// How long the other side may take for its step.
const STEP_LIMIT: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The `main` of `local-rootless`; `args` are without the program's name.
///
/// It must be called before any thread is started: the kernel lets only a process of one thread change its user namespace.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let result = match args.first().and_then(|arg| arg.to_str()) {
        Some(MAP) => help(&args[1..]).map(|()| ExitCode::SUCCESS),
        Some("-h" | "--help") => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("local-rootless: {}", error.report());
        ExitCode::from(MISSING)
    })
}

/// Whether this process is in the first user namespace, whose root is the root of the machine.
pub fn in_first_namespace() -> bool {
    // The map of the first one is the whole range onto itself.
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn run(args: &[OsString]) -> Result<ExitCode> {
    let mut rest = args;
    let mut one_id = false;
    while let Some((arg, after)) = rest.split_first() {
        match arg.to_str() {
            Some("--one-id") => one_id = true,
            Some("--") => {
                rest = after;
                break;
            }
            Some(flag) if flag.starts_with('-') => {
                return Err(Error::config("there is no such flag").with("flag", flag).with("see", "--help"));
            }
            _ => break,
        }
        rest = after;
    }
    let Some((program, arguments)) = rest.split_first() else {
        return Err(Error::config("the program to run is missing").with("see", "--help"));
    };
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    if uid.is_root() {
        return Err(Error::config("this is root already: run the program itself"));
    }
    refused_by_sysctl(Path::new("/proc/sys"))?;
    let ranges = if one_id { None } else { Some(Ranges::of(uid)?) };
    enter(uid, gid, ranges.as_ref())?;
    prepare()?;
    let error = Command::new(program).args(arguments).exec();
    Err(io_error("cannot start the program", error).with("program", program.display()))
}

/// Tells which setting of the kernel keeps users from making namespaces.
fn refused_by_sysctl(base: &Path) -> Result<()> {
    for (setting, refusing, mend) in [
        ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"),
        ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    ] {
        let value = fs::read_to_string(base.join(setting)).unwrap_or_default();
        if value.trim() == refusing {
            return Err(Error::new(ErrorKind::Permission, "this machine lets users make no user namespaces")
                .with("setting", setting.replace('/', "."))
                .with("value", refusing)
                .with("mend", mend));
        }
    }
    Ok(())
}

/// Adds the setting of Ubuntu, under which a namespace can be made but gives no rights, to an error.
fn with_apparmor(error: Error) -> Error {
    let setting = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
    if fs::read_to_string(setting).is_ok_and(|value| value.trim() == "1") {
        return error.with("setting", "kernel.apparmor_restrict_unprivileged_userns").with(
            "mend",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or a profile with `userns,`",
        );
    }
    error
}

/// Moves this process into new namespaces, of whose first it is root.
fn enter(uid: Uid, gid: Gid, ranges: Option<&Ranges>) -> Result<()> {
    // Outside, as the programs that map ranges want it; it waits until we are inside.
    let mut helper = match ranges {
        Some(ranges) => Some(start_helper(uid, gid, ranges)?),
        None => None,
    };
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    if let Err(error) = unshare(flags) {
        if let Some(helper) = &mut helper {
            let _ = helper.kill();
            let _ = helper.wait();
        }
        return Err(with_apparmor(io_error("cannot make a user, network and mount namespace", error)));
    }
    let Some(helper) = &mut helper else {
        let write = |file: &str, text: String| {
            let path = Path::new("/proc/self").join(file);
            fs::write(&path, text).map_err(|e| with_apparmor(path_error("cannot map the user", &path, e)))
        };
        // The kernel demands it of whoever maps the group without a right outside.
        write("setgroups", "deny".into())?;
        write("uid_map", format!("0 {uid} 1"))?;
        return write("gid_map", format!("0 {gid} 1"));
    };
    let status = helper.wait().map_err(|e| io_error("cannot wait for the helper", e))?;
    if !status.success() {
        // It told why.
        return Err(Error::new(ErrorKind::Permission, "the ids could not be mapped")
            .with("helper", status)
            .with("or run with", "--one-id"));
    }
    Ok(())
}

fn start_helper(uid: Uid, gid: Gid, ranges: &Ranges) -> Result<Child> {
    let own = std::env::current_exe().map_err(|e| io_error("cannot find this program", e))?;
    let numbers = [std::process::id(), uid.as_raw(), gid.as_raw()];
    let mut command = Command::new(own);
    command.arg(MAP).args(numbers.map(|number| number.to_string())).args(ranges.arguments());
    command.spawn().map_err(|e| io_error("cannot start the helper", e))
}

/// The helper: waits until its parent is in a namespace of its own, and has its ids mapped.
fn help(args: &[OsString]) -> Result<()> {
    let texts: Option<Vec<&str>> = args.iter().map(|arg| arg.to_str()).collect();
    let Some([pid, uid, gid, rest @ ..]) = texts.as_deref() else {
        return Err(Error::config("this flag is for the program itself"));
    };
    let ranges = Ranges::parse(rest)?;
    let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user"));
    let own = link("self").map_err(|e| io_error("cannot look at the user namespace", e))?;
    let end = Instant::now() + STEP_LIMIT;
    loop {
        match link(pid) {
            Ok(theirs) if theirs != own => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::internal("the program that was to be helped has ended"));
            }
            _ if Instant::now() >= end => {
                return Err(Error::internal("the program makes no user namespace"));
            }
            _ => std::thread::sleep(LOOK_AGAIN),
        }
    }
    for (program, id, (start, count)) in
        [(ids::NEWUIDMAP, uid, ranges.uids), (ids::NEWGIDMAP, gid, ranges.gids)]
    {
        let failed = |what: String| {
            Error::new(ErrorKind::Permission, "the ids are not mapped")
                .with("program", program)
                .with("says", what)
        };
        let (start, count) = (start.to_string(), count.to_string());
        let out = Command::new(program).args([*pid, "0", *id, "1", "1", &start, &count]).output();
        let out = out.map_err(|e| failed(e.to_string()))?;
        if !out.status.success() {
            return Err(failed(String::from_utf8_lossy(&out.stderr).trim().to_owned()));
        }
    }
    Ok(())
}

/// Makes of the namespaces what programs expect: an own `/run`, and loopback.
fn prepare() -> Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(|e| with_apparmor(io_error("cannot separate the mounts from the host's", e)))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), flags, Some("mode=0755"))
        .map_err(|e| with_apparmor(io_error("cannot mount a /run of its own", e)))?;
    for folder in ["/run/netns", "/run/lock", "/run/peerpod"].map(PathBuf::from) {
        fs::create_dir(&folder).map_err(|e| path_error("cannot make the folder", &folder, e))?;
    }
    Network::open()?.set_loopback_up()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_refuses_is_named_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        assert!(refused_by_sysctl(folder.path()).is_ok(), "kernels without these settings refuse nothing");
        for (group, name, value, refused) in [
            ("user", "max_user_namespaces", "0\n", true),
            ("user", "max_user_namespaces", "96365\n", false),
            ("kernel", "unprivileged_userns_clone", "0\n", true),
            ("kernel", "unprivileged_userns_clone", "1\n", false),
        ] {
            let base = tempfile::tempdir().unwrap();
            fs::create_dir(base.path().join(group)).unwrap();
            fs::write(base.path().join(group).join(name), value).unwrap();
            let result = refused_by_sysctl(base.path());
            assert_eq!(result.is_err(), refused, "{name} {value}");
            if let Err(error) = result {
                let text = error.report();
                assert!(text.contains(name) && text.contains("sysctl -w"), "{text}");
            }
        }
    }

    #[test]
    fn root_and_wrong_command_lines_are_told() {
        let run =
            |args: &[&str]| run(&args.iter().map(OsString::from).collect::<Vec<_>>()).unwrap_err().report();
        assert!(run(&[]).contains("the program to run is missing"));
        assert!(run(&["--one-id"]).contains("the program to run is missing"));
        assert!(run(&["--oneid", "sh"]).contains("--oneid"));
        if nix::unistd::geteuid().is_root() {
            assert!(run(&["--one-id", "--", "true"]).contains("root already"));
        }
    }
}
