//! Starts a process in the namespaces of its container.
//!
//! A thread of its own enters the namespaces and starts the process, which inherits them; the same thread then waits
//! for the process and ends with it. So the agent itself never changes its namespaces.
#![expect(unsafe_code, reason = "a terminal becomes the controlling one only between fork and exec")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, chdir, chroot, sethostname};
use peerpod_proto::messages::oci;
use tokio::sync::{oneshot, watch};
use tracing::warn;

use crate::stdio::Streams;

/// What a process needs beside its own description.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    /// Path of the network namespace.
    pub(crate) netns: PathBuf,
    /// Name the machine has for the process.
    pub(crate) hostname: String,
    /// Folder that becomes the root.
    pub(crate) rootfs: Option<PathBuf>,
    /// What is bound where: source, destination, read-only.
    pub(crate) binds: Vec<(PathBuf, PathBuf, bool)>,
    /// A running process whose mounts and host name are used instead of new ones.
    pub(crate) join: Option<i32>,
}

/// A process that was started.
pub(crate) struct Started {
    pub(crate) pid: i32,
    pub(crate) streams: Streams,
    /// Holds the exit code once there is one: the process's own, or 128 plus the signal that ended it.
    pub(crate) exit: watch::Receiver<Option<i32>>,
}

/// Starts `process`; the answer comes once the program runs.
pub(crate) async fn start(process: oci::Process, around: Surroundings) -> Result<Started> {
    let (told, answer) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new().name("container".to_owned()).spawn(move || {
        // Async pipes register with the runtime of the thread that makes them.
        let _inside = runtime.enter();
        let (exit, watcher) = watch::channel(None);
        let child = match launch(&process, &around) {
            Ok((child, streams)) => {
                let pid = child.id() as i32;
                if told.send(Ok(Started { pid, streams, exit: watcher })).is_err() {
                    warn!(pid, "nobody waits for this process any more");
                }
                child
            }
            Err(error) => {
                let _ = told.send(Err(error));
                return;
            }
        };
        exit.send_replace(Some(wait(child)));
    })?;
    answer.await.context("the thread of the container ended")?
}

fn launch(process: &oci::Process, around: &Surroundings) -> Result<(std::process::Child, Streams)> {
    enter(around)?;
    let Some((program, args)) = process.args.split_first() else { bail!("the process has no arguments") };
    let mut command = Command::new(program);
    command.args(args).env_clear();
    command.envs(process.env.iter().filter_map(|entry| entry.split_once('=')));
    command.current_dir(if process.cwd.is_empty() { "/" } else { &process.cwd });
    if let Some(user) = &process.user {
        // Setting an id drops the agent's own groups, which a root process keeps otherwise.
        if (user.uid, user.gid) != (0, 0) {
            command.uid(user.uid).gid(user.gid);
        }
    }
    let streams = if process.terminal { on_terminal(&mut command, process)? } else { None };
    if let Some((child, streams)) = streams {
        return Ok((child, streams));
    }
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    let streams = Streams::pipes(&mut child)?;
    Ok((child, streams))
}

fn on_terminal(
    command: &mut Command,
    process: &oci::Process,
) -> Result<Option<(std::process::Child, Streams)>> {
    let size = process.console_size.as_ref().map(|size| Winsize {
        ws_row: size.height as u16,
        ws_col: size.width as u16,
        ws_xpixel: 0,
        ws_ypixel: 0,
    });
    let OpenptyResult { master, slave } = openpty(size.as_ref(), None).context("open a terminal")?;
    let dup = |fd: &OwnedFd| fd.try_clone().map(Stdio::from);
    command.stdin(dup(&slave)?).stdout(dup(&slave)?).stderr(dup(&slave)?);
    // SAFETY: between fork and exec only async-signal-safe calls are made: setsid and ioctl.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            match nix::libc::ioctl(0, nix::libc::TIOCSCTTY, 0) {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            }
        });
    }
    let child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    // The command keeps copies of its ends; while any is open the reader never sees the end.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    drop(slave);
    Ok(Some((child, Streams::terminal(master)?)))
}

/// Puts this thread into the namespaces and the root of the container.
fn enter(around: &Surroundings) -> Result<()> {
    let netns = File::open(&around.netns)
        .with_context(|| format!("network namespace {} cannot be opened", around.netns.display()))?;
    setns(&netns, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("{} is not a network namespace", around.netns.display()))?;
    match around.join {
        Some(pid) => {
            let open = |kind: &str| File::open(format!("/proc/{pid}/ns/{kind}"));
            let (mounts, names) = (open("mnt")?, open("uts")?);
            unshare(CloneFlags::CLONE_FS)?;
            setns(names, CloneFlags::CLONE_NEWUTS).context("join the container's host name")?;
            setns(mounts, CloneFlags::CLONE_NEWNS).context("join the container's mounts")?;
        }
        None => {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
                .context("make namespaces of its own")?;
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
                .context("keep mounts private")?;
            for (source, destination, read_only) in &around.binds {
                bind(around, source, destination, *read_only)?;
            }
            if !around.hostname.is_empty() {
                sethostname(&around.hostname).context("set the host name")?;
            }
        }
    }
    if let Some(rootfs) = &around.rootfs {
        chroot(rootfs).with_context(|| format!("enter the root {}", rootfs.display()))?;
        chdir("/")?;
    }
    Ok(())
}

fn bind(around: &Surroundings, source: &Path, destination: &Path, read_only: bool) -> Result<()> {
    let target = match &around.rootfs {
        Some(rootfs) => rootfs.join(destination.strip_prefix("/").unwrap_or(destination)),
        None => destination.to_owned(),
    };
    if around.rootfs.is_some() && !target.exists() {
        if source.is_dir() {
            std::fs::create_dir_all(&target)?;
        } else {
            std::fs::create_dir_all(target.parent().unwrap_or(Path::new("/")))?;
            File::create(&target)?;
        }
    }
    if !target.exists() {
        // The agent's own root is not the container's to change.
        warn!(destination = %target.display(), "mount left out: this root has no such place");
        return Ok(());
    }
    let none: Option<&str> = None;
    mount(Some(source), &target, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
        .with_context(|| format!("bind {} to {}", source.display(), target.display()))?;
    if read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, &target, none, flags, none)
            .with_context(|| format!("make {} read-only", target.display()))?;
    }
    Ok(())
}

/// Waits for the process, ends what is left of its group, and answers its exit code.
fn wait(mut child: std::process::Child) -> i32 {
    let pid = Pid::from_raw(child.id() as i32);
    // The process stays a zombie until its group is gone, so that its id cannot belong to somebody else meanwhile.
    loop {
        match waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => {
                warn!(%pid, %error, "cannot wait for the process");
                break;
            }
            Ok(_) => break,
        }
    }
    let _ = killpg(pid, Signal::SIGKILL);
    child.wait().map_or(255, exit_code)
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255)
}

/// Changes the size of a terminal.
pub(crate) fn resize(master: &Arc<OwnedFd>, rows: u16, columns: u16) -> io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open and the argument points to a winsize, as the request demands.
    match unsafe { nix::libc::ioctl(master.as_raw_fd(), nix::libc::TIOCSWINSZ, &size) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
