//! Process 1 of a machine: prepares it, keeps its SSH server running, and takes the exit status of orphans.

use std::{
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::SignalFd,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{COMMAND, Options, THIS_PROGRAM, Words, log, start};

/// Between two starts of a server that ends by itself.
const PAUSE: Duration = Duration::from_millis(200);
/// A server that ends so often within [`WINDOW`] never comes up.
const MOST_STARTS: usize = 10;
const WINDOW: Duration = Duration::from_secs(30);
/// How long everything may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// Runs until the machine is told to end.
pub(super) fn run(options: &Options) -> Result<(), String> {
    let failed = |e: Errno| format!("cannot handle signals: {e}");
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        signals.add(signal);
    }
    // Blocked and read from a file; see `unblocked` for the programs that are started.
    signals.thread_block().map_err(failed)?;
    let signals = SignalFd::new(&signals).map_err(failed)?;

    let server = start::prepare(options)?;
    let mut starts = Vec::new();
    let mut child = launch(&server, &mut starts)?;
    loop {
        if reap(pid(&child)) {
            log("the SSH server ended and is started again");
            thread::sleep(PAUSE);
            child = launch(&server, &mut starts)?;
        }
        let signal = match signals.read_signal() {
            Ok(Some(signal)) => signal,
            Ok(None) | Err(Errno::EINTR) => continue,
            Err(error) => return Err(failed(error)),
        };
        if signal.ssi_signo != Signal::SIGCHLD as u32 {
            return stop(pid(&child));
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX))
}

fn launch(server: &start::Server, starts: &mut Vec<Instant>) -> Result<Child, String> {
    starts.retain(|at| at.elapsed() < WINDOW);
    if starts.len() >= MOST_STARTS {
        return Err("the SSH server does not stay up".into());
    }
    starts.push(Instant::now());
    Command::new(THIS_PROGRAM)
        .args([COMMAND, "exec"])
        .arg(&server.program)
        .args(&server.args)
        .stdin(Stdio::null())
        .spawn()
        .map_err(|e| format!("cannot start {}: {e}", server.program.display()))
}

/// Becomes another program, with no signal blocked. Returns only when it failed.
///
/// A program inherits what process 1 blocks, and whatever it starts does too: nobody could end any of them politely.
pub(super) fn unblocked(words: Words) -> Result<(), String> {
    SigSet::all().thread_unblock().map_err(|e| format!("cannot unblock signals: {e}"))?;
    let mut words = words.0.into_iter();
    let program = words.next().ok_or("exec needs a program")?;
    let error = Command::new(&program).args(words).exec();
    Err(format!("cannot run {}: {error}", program.display()))
}

/// Takes the exit status of everything that ended, and says whether the server is among it.
fn reap(server: Pid) -> bool {
    let mut ended = false;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return ended,
            Ok(status) => ended |= status.pid() == Some(server),
            Err(Errno::EINTR) => {}
            Err(error) => {
                log(format!("cannot wait for processes: {error}"));
                return ended;
            }
        }
    }
}

/// Ends every process of the machine. What does not end in time goes with process 1.
///
/// Where another program is process 1, as in an image of a virtual machine, only the server is ours to end.
fn stop(server: Pid) -> Result<(), String> {
    let whom = if Pid::this().as_raw() == 1 { Pid::from_raw(-1) } else { server };
    let _ = kill(whom, Signal::SIGTERM);
    let end = Instant::now() + STOP_LIMIT;
    while Instant::now() < end {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => break,
            Ok(WaitStatus::StillAlive) => thread::sleep(Duration::from_millis(10)),
            _ => {}
        }
    }
    Ok(())
}
