//! A child process that cannot outlive its test.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::snapshot::group_runs;
use crate::wait_for;

/// Runs a program, and kills it at the end of standard input, which is the end of our owner, however it ended.
const TIED: &str = r#"
exec 3<&0
"$@" </dev/null 3<&- &
program=$!
{ read -r line <&3; kill -KILL "$program"; } &
watcher=$!
exec 3<&-
wait "$program"
status=$?
kill -KILL "$watcher"
exit "$status"
"#;

/// What was killed is gone in a moment, unless the machine is very busy.
const GONE_LIMIT: Duration = Duration::from_secs(30);

/// Runs a program with its output kept in a file; on drop kills its process group, and waits until it is gone.
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
        Self::launch(name, command.stdin(Stdio::null()), log)
    }

    /// Starts `command` as [`spawn`](Self::spawn) does, and ends it also when this process is killed.
    ///
    /// A shell stands between: [`pid`](Self::pid) and [`signal`](Self::signal) are about the shell, and
    /// [`signal_group`](Self::signal_group) reaches the program. Only program, arguments, working directory and the
    /// variables that `command` sets are taken over; no variable of this process is.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn).
    pub fn spawn_tied(name: &str, command: &Command, log: &Path) -> Result<Self> {
        let mut tied = Command::new("sh");
        tied.args(["-c", TIED, name]).arg(command.get_program()).args(command.get_args());
        tied.env_clear().envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        if let Some(dir) = command.get_current_dir() {
            tied.current_dir(dir);
        }
        Self::launch(name, tied.stdin(Stdio::piped()), log)
    }

    fn launch(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let open = || File::options().create(true).append(true).open(log);
        let file = open().with_context(|| format!("cannot write {}", log.display()))?;
        command.stdout(file.try_clone()?).stderr(file).process_group(0);
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

    /// Sends a signal to the process and all that it started.
    ///
    /// # Errors
    ///
    /// Fails when all are gone.
    pub fn signal_group(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?);
        killpg(pid, signal).with_context(|| format!("cannot send {signal} to {}", self.name))
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
        let Ok(group) = i32::try_from(self.child.id()) else { return };
        // Children of a program that ended badly are ended too; the group may be empty already.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        if self.status.is_none() {
            let _ = self.child.wait();
        }
        // A killed program still holds its ports and files until the kernel has taken it apart, and we may wait for
        // our own child only. Nobody can be told when the limit passes.
        let _ = wait_for("the end of a group", GONE_LIMIT, || (!group_runs(group)).then_some(()));
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
    fn a_tied_program_ends_with_its_standard_input_and_its_own_end_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let marker = crate::unique("pps-tied");
        let mut command = Command::new("sh");
        command.args(["-c", &format!("echo up; sleep 1000; : {marker}")]).env("PATH", "/usr/bin:/bin");
        let mut guard = ProcessGuard::spawn_tied("sh", &command, &dir.path().join("log")).unwrap();
        guard.wait_for_output("up", Duration::from_secs(10)).unwrap();
        // Whoever holds the other end ended: this is what the kernel does to it then.
        drop(guard.child.stdin.take());
        assert!(!guard.wait_exit(Duration::from_secs(10)).unwrap().success());
        let mut command = Command::new("sh");
        command.args(["-c", "exit 3"]);
        let mut guard = ProcessGuard::spawn_tied("sh", &command, &dir.path().join("log")).unwrap();
        assert_eq!(guard.wait_exit(Duration::from_secs(10)).unwrap().code(), Some(3));
    }

    #[test]
    fn a_dropped_guard_ends_the_whole_group() {
        let dir = tempfile::tempdir().unwrap();
        let marker = crate::unique("pps-group");
        let mut guard = shell(&format!("sh -c \"sleep 1000; : {marker}\" & echo up; wait"), dir.path());
        guard.wait_for_output("up", Duration::from_secs(10)).unwrap();
        drop(guard);
        assert!(crate::processes_matching(&marker).is_empty());
    }
}
