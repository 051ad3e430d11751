//! Finds and ends the first process of an instance, and never another one that got its number.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cloud_providers::{Error, ErrorKind, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::wait::{Id, WaitPidFlag, waitid},
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::error::io_error;

/// First processes that this program started, by marker: it is their parent and has to take their exit status, also
/// when a record is lost. Of the whole program, as children are.
static CHILDREN: Mutex<BTreeMap<String, ProcessId>> = Mutex::new(BTreeMap::new());

/// Name of the variable that every process of an instance starts with.
pub(crate) const MARKER: &str = "PEERPOD_LOCAL_INSTANCE";

/// Names one process for ever: its number may be used again, but not with the same start time in the same boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    start_ticks: u64,
    boot_id: String,
}

impl ProcessId {
    /// Describes a process that is there now.
    pub(crate) fn of(pid: i32) -> Result<Self> {
        let stat = stat(pid).ok_or_else(|| {
            Error::internal("the instance's first process has no entry in /proc").with("pid", pid)
        })?;
        Ok(Self { pid, start_ticks: stat.start_ticks, boot_id: boot_id()? })
    }

    /// Returns a handle on the process, `None` when it has ended.
    pub(crate) fn open(&self) -> Result<Option<Process>> {
        if boot_id()? != self.boot_id {
            return Ok(None);
        }
        let Some(process) = Process::open(self.pid)? else { return Ok(None) };
        // The handle was opened first: should the number be another process's by now, so is the start time.
        Ok(stat(self.pid).filter(|s| s.start_ticks == self.start_ticks).map(|_| process))
    }

    /// Whether the process runs.
    pub(crate) fn is_alive(&self) -> Result<bool> {
        Ok(self.open()?.is_some_and(|process| !process.has_ended()))
    }
}

/// A handle on a process, which stays on that process.
#[derive(Debug)]
pub(crate) struct Process {
    pid: i32,
    handle: OwnedFd,
}

impl Process {
    fn open(pid: i32) -> Result<Option<Self>> {
        let Some(raw) = Pid::from_raw(pid) else { return Ok(None) };
        match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(handle) => Ok(Some(Self { pid, handle })),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(io_error("cannot open the instance's first process", error).with("pid", pid)),
        }
    }

    /// Whether the process has ended; of a first process that means that its whole namespace has.
    fn has_ended(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    /// Waits for the end of the process, at most for `limit`.
    pub(crate) fn ends_within(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            // Rounded up, so that the last wait is not a busy one.
            let left = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
            let mut handles = [PollFd::new(self.handle.as_fd(), PollFlags::POLLIN)];
            match poll(&mut handles, left) {
                Ok(1..) => return true,
                Ok(_) if Instant::now() >= end => return false,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Kills the process and waits until it and everything in its process namespace is gone.
    pub(crate) fn kill(&self, limit: Duration) -> Result<()> {
        match pidfd_send_signal(&self.handle, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => {
                return Err(io_error("cannot kill the instance's first process", error).with("pid", self.pid));
            }
        }
        // The kernel reports the end of a namespace's first process only after all others in it have ended.
        if !self.ends_within(limit) {
            return Err(Error::new(ErrorKind::Transient, "the instance's processes do not end")
                .with("pid", self.pid)
                .with("waited", format!("{limit:?}")));
        }
        self.reap();
        Ok(())
    }

    /// Takes the exit status when the process is a child of ours, so that no zombie stays.
    fn reap(&self) {
        // Any other process is reaped by its own parent, which the error says.
        let _ = waitid(Id::PIDFd(self.handle.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
    }
}

/// Keeps in mind that a process is a child of ours.
pub(crate) fn remember_child(marker: String, process: ProcessId) {
    children().insert(marker, process);
}

/// Returns the child of ours that was started with `marker`, and forgets it.
pub(crate) fn forget_child(marker: &str) -> Option<ProcessId> {
    children().remove(marker)
}

fn children() -> MutexGuard<'static, BTreeMap<String, ProcessId>> {
    // Nothing panics while it is locked; the map is good in any case.
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Finds the first processes that carry `marker` in their environment.
///
/// For creations that were killed between starting the process and writing down its number.
pub(crate) fn find_marked(marker: &str) -> Result<Vec<Process>> {
    let mut found = Vec::new();
    let entries = fs::read_dir("/proc").map_err(|e| io_error("cannot list the processes", e))?;
    for pid in entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok()) {
        let marked = || -> Option<bool> {
            let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let marked = environ.split(|b| *b == 0).any(|v| v == marker.as_bytes());
            Some(
                marked && is_first_of_its_namespace(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?),
            )
        };
        if marked() == Some(true)
            && let Some(process) = Process::open(pid)?
            // Looked at again: the number may have changed hands before the handle was open.
            && marked() == Some(true)
        {
            found.push(process);
        }
    }
    Ok(found)
}

/// Whether the status text is that of process 1 of a namespace below ours.
fn is_first_of_its_namespace(status: &str) -> bool {
    let line = status.lines().find_map(|l| l.strip_prefix("NSpid:"));
    let ids: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
    ids.len() >= 2 && ids.last() == Some(&"1")
}

struct Stat {
    start_ticks: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name may hold blanks and parentheses; what follows the last one are numbers. The start time is field 22.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(Stat { start_ticks: fields.get(19)?.parse().ok()? })
}

fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path)
        .map_err(|e| io_error("cannot read the boot id", e).with("path", path))?
        .trim()
        .into())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_recycled_number_is_not_taken_for_the_process() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let real = ProcessId::of(pid).unwrap();
        assert!(real.is_alive().unwrap());
        for other in [
            ProcessId { start_ticks: real.start_ticks + 1, ..real.clone() },
            ProcessId { boot_id: "another boot".into(), ..real.clone() },
        ] {
            assert!(!other.is_alive().unwrap());
            assert!(other.open().unwrap().is_none());
        }
        real.open().unwrap().unwrap().kill(Duration::from_secs(10)).unwrap();
        assert!(!real.is_alive().unwrap());
        assert!(child.try_wait().is_err() || stat(pid).is_none(), "the child was reaped");
    }

    #[test]
    fn the_stat_of_a_process_with_a_wild_name_is_read() {
        let text = "7 (a b) c) S 1 7 7 0 -1 0 0 0 0 0 1 2 3 4 20 0 1 0 4242 0 0";
        assert_eq!(parse_stat(text).unwrap().start_ticks, 4242);
        assert!(parse_stat("7 (x) S 1").is_none());
    }

    #[test]
    fn only_the_first_process_of_a_lower_namespace_counts() {
        assert!(is_first_of_its_namespace("Name:\tx\nNSpid:\t4711\t1\n"));
        for status in ["NSpid:\t4711\t12\n", "NSpid:\t1\n", "Name:\tx\n"] {
            assert!(!is_first_of_its_namespace(status), "{status}");
        }
    }

    #[test]
    fn waiting_for_an_end_is_bounded() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap().unwrap();
        assert!(!process.ends_within(Duration::from_millis(5)));
        child.kill().unwrap();
        assert!(process.ends_within(Duration::from_secs(10)));
        child.wait().unwrap();
    }
}
