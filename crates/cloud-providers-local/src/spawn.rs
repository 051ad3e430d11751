//! Starts the first process of an instance.
#![expect(
    unsafe_code,
    reason = "the new process namespace's /proc can be mounted only by its first process, between fork and exec"
)]

use std::{fs::File, io, io::Write, os::unix::process::CommandExt, process::Command};

use cloud_providers::Result;
use nix::{
    libc,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::setsid,
};

use crate::{cgroups::Groups, error::io_error};

/// What to start.
pub(crate) struct Init {
    /// Path inside the instance.
    pub(crate) program: String,
    /// Arguments.
    pub(crate) args: Vec<String>,
    /// The whole environment.
    pub(crate) env: Vec<(String, String)>,
    /// Takes standard output and standard error.
    pub(crate) console: File,
}

/// Starts the process and returns its number on this host.
///
/// The caller is a thread that has already unshared its namespaces and changed its root. The process gets a session
/// of its own and no tie to us: it lives on when we end.
pub(crate) fn spawn(init: Init, groups: Groups) -> Result<i32> {
    let Init { program, args, env, console } = init;
    let failed =
        |e: io::Error| io_error("cannot start the instance's first program", e).with("program", &program);
    let mut command = Command::new(&program);
    command.args(args).env_clear().envs(env).current_dir("/");
    command.stdin(File::open("/dev/null").map_err(failed)?);
    command.stdout(console.try_clone().map_err(failed)?).stderr(console);
    // SAFETY: the closure runs in the forked child of a process with many threads, where only calls that take no
    // lock and allocate nothing are allowed. `setsid` is a bare system call. `mount` copies its short paths to the
    // stack and makes a bare system call; `close_range` and `unshare` are bare system calls on numbers, and
    // writing to a file is one on a buffer that is part of the program.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            // Zero stands for the writer. Which groups are the roots is settled when the namespace is made.
            for group in groups.iter() {
                (&group.root).write_all(b"0")?;
            }
            unshare(CloneFlags::CLONE_NEWCGROUP)?;
            for leaf in groups.iter().filter_map(|group| group.leaf.as_ref()) {
                let mut leaf: &File = leaf;
                leaf.write_all(b"0")?;
            }
            // What our own parent left open in us is none of the instance's business.
            let last = libc::c_uint::MAX;
            if libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, last, libc::CLOSE_RANGE_CLOEXEC) != 0 {
                return Err(io::Error::last_os_error());
            }
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>)?;
            Ok(())
        });
    }
    let child = command.spawn().map_err(failed)?;
    // Dropping the handle neither ends nor waits for the process.
    i32::try_from(child.id()).map_err(|e| failed(io::Error::other(e)))
}
