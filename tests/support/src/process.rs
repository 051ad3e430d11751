//! A child process that cannot outlive its test.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::wait_for;

/// Runs a program with its output kept in a file; kills its process group on drop.
#[derive(Debug)]
pub struct ProcessGuard {
    child: Child,
    name: String,
    log: PathBuf,
    status: Option<ExitStatus>,
    armed: bool,
}

impl ProcessGuard {
    /// Starts `command`, standard output and standard error appended to `log`, standard input empty.
    ///
    /// # Errors
    ///
    /// Names the program that cannot be started, or the log that cannot be written.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let open = || File::options().create(true).append(true).open(log);
        let file = open().with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { child, name: name.to_owned(), log: log.to_owned(), status: None, armed: true })
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns where the output goes.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Returns what the program has written so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Returns the last `count` lines that the program has written.
    pub fn last_lines(&self, count: usize) -> String {
        let all = self.output();
        let lines: Vec<&str> = all.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }

    /// Returns the exit status when the program has ended.
    pub fn try_status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Waits until the output contains `text`.
    ///
    /// # Errors
    ///
    /// Shows the last lines when the program ends, or `limit` passes, before that.
    pub fn wait_for_output(&mut self, text: &str, limit: Duration) -> Result<()> {
        let what = format!("{:?} in the output of {}", text, self.name);
        let seen = wait_for(&what, limit, || {
            if self.output().contains(text) {
                return Some(Ok(()));
            }
            // Look once more after the end: the last line may have come between the two looks.
            let status = self.try_status()?;
            if self.output().contains(text) { Some(Ok(())) } else { Some(Err(status)) }
        });
        match seen {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => {
                bail!("{} ended ({status}) before it wrote {text:?}:\n{}", self.name, self.last_lines(30))
            }
            Err(error) => Err(error.context(self.last_lines(30))),
        }
    }

    /// Sends a signal to the process (not to its group).
    ///
    /// # Errors
    ///
    /// Fails when the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?);
        kill(pid, signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// Waits for the end.
    ///
    /// # Errors
    ///
    /// Shows the last lines when `limit` passes first.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        let status = wait_for(&what, limit, || self.try_status());
        status.with_context(|| self.last_lines(30))
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    ///
    /// Shows the last lines when the process does not end within `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        if self.try_status().is_none() {
            self.signal(Signal::SIGTERM)?;
        }
        self.wait_exit(limit)
    }

    /// Leaves the process running when the value is dropped.
    pub fn keep(mut self) {
        self.armed = false;
    }
}

impl Drop for ProcessGuard {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // Children of a program that ended badly are ended too; the group may be empty already.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if self.status.is_none() {
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn shell(script: &str, dir: &Path) -> ProcessGuard {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        ProcessGuard::spawn("sh", &mut command, &dir.join("log")).unwrap()
    }

    #[test]
    fn output_is_kept_and_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut guard = shell("echo ready; exec sleep 1000", dir.path());
        guard.wait_for_output("ready", Duration::from_secs(10)).unwrap();
        let status = guard.terminate(Duration::from_secs(10)).unwrap();
        assert_eq!(status.signal(), Some(15));
    }

    #[test]
    fn an_early_end_is_told_with_the_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let mut guard = shell("echo broken >&2; exit 3", dir.path());
        let error = guard.wait_for_output("ready", Duration::from_secs(10)).unwrap_err().to_string();
        assert!(error.contains("broken") && error.contains('3'), "{error}");
    }

    #[test]
    fn a_dropped_guard_ends_the_whole_group() {
        let dir = tempfile::tempdir().unwrap();
        let marker = crate::unique("pps-group");
        let mut guard = shell(&format!("sh -c \"sleep 1000; : {marker}\" & echo up; wait"), dir.path());
        guard.wait_for_output("up", Duration::from_secs(10)).unwrap();
        drop(guard);
        wait_for("the group to end", Duration::from_secs(5), || {
            crate::processes_matching(&marker).is_empty().then_some(())
        })
        .unwrap();
    }
}
