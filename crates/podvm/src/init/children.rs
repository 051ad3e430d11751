//! Children of the init: started, reaped, signalled.

use std::collections::HashMap;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{debug, info, warn};

/// Something the init has to act on.
pub(super) enum Event {
    /// The guest is to end.
    Stop,
    /// A child has ended; or an orphan, which became a child.
    Ended { pid: i32, how: ExitStatus },
    /// Nothing happened in the given time.
    Timeout,
}

/// The children, and the signals of the process.
pub(super) struct Children {
    signals: Receiver<Signal>,
    running: HashMap<i32, String>,
    ended: Vec<(i32, ExitStatus)>,
    /// Where the children look up programs; as the init itself when unset.
    programs: Option<&'static str>,
}

impl Children {
    /// Takes over the signals of the process.
    pub(super) fn new(programs: Option<&'static str>) -> Result<Self> {
        let (sender, signals) = channel();
        let (ready, started) = channel();
        // Handlers rather than blocked signals: programs inherit what is blocked, but not handlers.
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || listen(&sender, &ready))?;
        started.recv().context("the thread for signals ended")?.context("handle signals")?;
        Ok(Self { signals, running: HashMap::new(), ended: Vec::new(), programs })
    }

    /// Starts a program with the console as its output.
    pub(super) fn start(&mut self, name: &str, command: &mut Command) -> Result<i32> {
        // Each gets a group of its own, so that a signal to the init's group reaches only the init.
        command.stdin(Stdio::null()).process_group(0);
        if let Some(programs) = self.programs {
            command.env("PATH", programs);
        }
        let child = command.spawn().with_context(|| format!("start {:?}", command.get_program()))?;
        let pid = child.id() as i32;
        info!(child = name, pid, "started");
        self.running.insert(pid, name.to_owned());
        Ok(pid)
    }

    /// Waits for something to act on.
    pub(super) fn next(&mut self, limit: Option<Duration>) -> Event {
        let end = limit.map(|limit| Instant::now() + limit);
        loop {
            // Several ends may share one signal, and one may come before anybody waits.
            self.reap();
            if let Some((pid, how)) = self.ended.pop() {
                return Event::Ended { pid, how };
            }
            let signal = match end {
                None => self.signals.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(end) => self.signals.recv_timeout(end.saturating_duration_since(Instant::now())),
            };
            match signal {
                Ok(Signal::SIGCHLD) => {}
                Ok(signal) => {
                    info!(%signal, "asked to stop");
                    return Event::Stop;
                }
                Err(RecvTimeoutError::Timeout) => return Event::Timeout,
                Err(RecvTimeoutError::Disconnected) => return Event::Stop,
            }
        }
    }

    fn reap(&mut self) {
        loop {
            let (pid, how) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, ExitStatus::from_raw(code << 8)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, ExitStatus::from_raw(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => {
                    warn!(%error, "cannot reap");
                    return;
                }
            };
            match self.running.remove(&pid.as_raw()) {
                Some(name) => info!(child = name, pid = pid.as_raw(), how = %how, "ended"),
                None => debug!(pid = pid.as_raw(), how = %how, "reaped an orphan"),
            }
            self.ended.push((pid.as_raw(), how));
        }
    }

    /// Sends a signal to a child of ours.
    pub(super) fn signal(&self, pid: i32, signal: Signal) {
        // A child that was not reaped keeps its number, so nobody else is hit.
        if self.running.contains_key(&pid) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Sends a signal to all children of ours.
    pub(super) fn signal_all(&self, signal: Signal) {
        for pid in self.running.keys() {
            let _ = kill(Pid::from_raw(*pid), signal);
        }
    }

    /// Waits for the end of one child or of all; answers whether it came.
    pub(super) fn wait_for_end(&mut self, pid: Option<i32>, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            self.reap();
            let gone = match pid {
                Some(pid) => !self.running.contains_key(&pid),
                None => self.running.is_empty(),
            };
            let left = end.saturating_duration_since(Instant::now());
            if gone || left.is_zero() {
                return gone;
            }
            // Further requests to stop change nothing now.
            let _ = self.signals.recv_timeout(left);
        }
    }
}

/// Passes signals on for as long as the process lives; says first whether the handlers are in place.
fn listen(sender: &Sender<Signal>, ready: &Sender<std::io::Result<()>>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    runtime.block_on(async {
        let handle = |signal_: Signal| signal(SignalKind::from_raw(signal_ as i32));
        let handlers = (|| {
            let child = handle(Signal::SIGCHLD)?;
            let ends = (handle(Signal::SIGTERM)?, handle(Signal::SIGINT)?, handle(Signal::SIGPWR)?);
            std::io::Result::Ok((child, ends))
        })();
        let (mut child, mut ends) = match handlers {
            Ok(handlers) => handlers,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        let _ = ready.send(Ok(()));
        loop {
            let came = tokio::select! {
                _ = child.recv() => Signal::SIGCHLD,
                _ = ends.0.recv() => Signal::SIGTERM,
                _ = ends.1.recv() => Signal::SIGINT,
                _ = ends.2.recv() => Signal::SIGPWR,
            };
            if sender.send(came).is_err() {
                return;
            }
        }
    });
}
