//! Running other programs: quietly for their output, or visibly under a limit.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A command under construction.
///
/// Variables may hold credentials: those that are not [shown on purpose](Run::shown_env) are in no line, error or debug form.
pub(crate) struct Run {
    command: Command,
    shown_env: Vec<String>,
    to_stderr: bool,
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The command's own form has the values of variables.
        f.debug_tuple("Run").field(&self.line()).finish()
    }
}

impl Run {
    /// Starts with a program and no arguments; standard input is empty.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        Self { command, shown_env: Vec::new(), to_stderr: false }
    }

    /// Adds an argument.
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets the directory to run in.
    pub(crate) fn current_dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Sets an environment variable for the program.
    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Takes an environment variable away from the program.
    pub(crate) fn env_remove(mut self, key: &str) -> Self {
        self.command.env_remove(key);
        self
    }

    /// Runs the program without the variables of this process.
    pub(crate) fn env_clear(mut self) -> Self {
        self.command.env_clear();
        self
    }

    /// Sets an environment variable that matters for the outcome: it is shown with the command line.
    pub(crate) fn shown_env(mut self, key: &str, value: &str) -> Self {
        self.shown_env.push(format!("{key}={value:?}"));
        self.command.env(key, value);
        self
    }

    /// Lets [`Run::visible`] show everything on standard error.
    pub(crate) fn on_stderr(mut self, to_stderr: bool) -> Self {
        self.to_stderr = to_stderr;
        self
    }

    /// What a variable is set to.
    #[cfg(test)]
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        let (_, value) = self.command.get_envs().find(|(key, _)| *key == name)?;
        Some(value?.to_string_lossy().into_owned())
    }

    /// Returns the command line as one would type it.
    pub(crate) fn line(&self) -> String {
        let mut words = self.shown_env.clone();
        let program = Path::new(self.command.get_program());
        words.push(program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned());
        words.extend(self.command.get_args().map(quote));
        words.join(" ")
    }

    /// Runs to the end and returns standard output.
    ///
    /// # Errors
    ///
    /// Carries the command line and standard error when the program is missing or fails.
    pub(crate) fn stdout(mut self) -> Result<String> {
        let line = self.line();
        let out = self.command.output().with_context(|| format!("cannot start `{line}`"))?;
        if !out.status.success() {
            bail!("`{line}` failed ({}): {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Runs to the end, well or not, and returns the exit code, standard output and standard error.
    ///
    /// # Errors
    ///
    /// When the program is missing, or still runs after `limit`; then it is killed with its descendants.
    pub(crate) fn answer(mut self, limit: Duration) -> Result<(Option<i32>, String, String)> {
        let line = self.line();
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().with_context(|| format!("cannot start `{line}`"))?;
        let (stdout, stderr) = (read_all(child.stdout.take()), read_all(child.stderr.take()));
        let start = Instant::now();
        let mut pause = Duration::from_millis(1);
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if start.elapsed() > limit {
                kill_tree(child.id());
                let _ = child.wait();
                bail!("`{line}` was still running after {} s and was killed", limit.as_secs());
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        };
        let text = |reader: std::thread::JoinHandle<Vec<u8>>| {
            String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
        };
        Ok((status.code(), text(stdout), text(stderr)))
    }

    /// Starts it and returns at once; what it prints goes to a file.
    ///
    /// # Errors
    ///
    /// When the program is missing or the file cannot be made.
    pub(crate) fn beside(mut self, log: &Path) -> Result<Beside> {
        let line = self.line();
        let file = std::fs::File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
        self.command.stdout(file.try_clone()?).stderr(file);
        let child = self.command.spawn().with_context(|| format!("cannot start `{line}`"))?;
        Ok(Beside { child, line, log: log.to_owned() })
    }

    /// Runs visibly, output going where ours goes, and returns the lines of standard output.
    ///
    /// # Errors
    ///
    /// Fails when the program fails, or when it still runs after `limit`; then it is killed with its descendants.
    pub(crate) fn visible(mut self, limit: Duration) -> Result<Vec<String>> {
        let line = self.line();
        let to_stderr = self.to_stderr;
        show(to_stderr, &format!("$ {line}"));
        self.command.stdout(Stdio::piped());
        let mut child = self.command.spawn().with_context(|| format!("cannot start `{line}`"))?;
        let stdout = child.stdout.take().expect("standard output is a pipe");
        let (sender, receiver) = mpsc::channel();
        // The reader ends when the last holder of the pipe does; a daemon left behind must not make us wait.
        std::thread::spawn(move || {
            for text in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let text = String::from_utf8_lossy(&text).into_owned();
                show(to_stderr, &text);
                if sender.send(text).is_err() {
                    break;
                }
            }
        });
        let start = Instant::now();
        let mut lines = Vec::new();
        loop {
            match receiver.recv_timeout(Duration::from_millis(100)) {
                Ok(text) => lines.push(text),
                Err(mpsc::RecvTimeoutError::Timeout | mpsc::RecvTimeoutError::Disconnected) => {
                    if let Some(status) = child.try_wait()? {
                        lines.extend(receiver.try_iter());
                        if status.success() {
                            return Ok(lines);
                        }
                        bail!("`{line}` failed ({status})");
                    }
                }
            }
            if start.elapsed() > limit {
                kill_tree(child.id());
                let _ = child.wait();
                bail!("`{line}` was still running after {} s and was killed", limit.as_secs());
            }
        }
    }
}

/// A program that runs while others do, and is killed with its descendants when it is still running at the end.
#[derive(Debug)]
pub(crate) struct Beside {
    child: std::process::Child,
    line: String,
    log: PathBuf,
}

impl Beside {
    /// Waits for its end, shows what it printed, and returns the lines.
    ///
    /// # Errors
    ///
    /// Fails when the program fails, or when it still runs after `limit`; then it is killed with its descendants.
    pub(crate) fn finish(mut self, limit: Duration) -> Result<Vec<String>> {
        let line = self.line.clone();
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break Some(status);
            }
            if start.elapsed() > limit {
                break None;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let log = std::fs::read(&self.log);
        let text = log.with_context(|| format!("cannot read {}", self.log.display()))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        println!("$ {line}\n{}", text.trim_end());
        match status {
            Some(status) if status.success() => Ok(text.lines().map(str::to_owned).collect()),
            Some(status) => bail!("`{line}` failed ({status})"),
            None => bail!("`{line}` was still running after {} s more and was killed", limit.as_secs()),
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            kill_tree(self.child.id());
        }
        let _ = self.child.wait();
    }
}

/// Reads a pipe to its end beside the program that writes to it, which would stop when the pipe is full.
fn read_all(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn show(to_stderr: bool, text: &str) {
    if to_stderr {
        eprintln!("{text}");
    } else {
        println!("{text}");
        let _ = std::io::stdout().flush();
    }
}

fn quote(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@+*".contains(c);
    if !word.is_empty() && word.chars().all(plain) && !word.contains('*') {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Kills a process and all its descendants.
fn kill_tree(pid: u32) {
    let Ok(root) = i32::try_from(pid) else { return };
    let mut doomed = BTreeSet::from([root]);
    // Children may be forked while we look: repeat until a look finds no new one.
    loop {
        let found: Vec<i32> = parents()
            .into_iter()
            .filter(|(_, parent)| doomed.contains(parent))
            .map(|(child, _)| child)
            .collect();
        let before = doomed.len();
        doomed.extend(found);
        for pid in &doomed {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGSTOP);
        }
        if doomed.len() == before {
            break;
        }
    }
    for pid in doomed {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Returns every process with its parent.
fn parents() -> Vec<(i32, i32)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let read = |name: OsString| {
        let pid: i32 = name.to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold blanks; state and parent follow it.
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        Some((pid, parent))
    };
    entries.filter_map(|entry| read(entry.ok()?.file_name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_the_line_and_the_complaint() {
        let error = Run::new("sh").args(["-c", "echo no >&2; exit 3"]).stdout().unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.contains("no"), "{error}");
    }

    #[test]
    fn a_program_beside_us_ends_with_its_descendants_when_nobody_waits_for_it_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let beside = Run::new("sh").args(["-c", "sleep 600 & echo $!; wait"]).beside(&log).unwrap();
        let start = Instant::now();
        let grandchild = loop {
            let text = std::fs::read_to_string(&log).unwrap();
            if text.ends_with('\n') {
                break text.trim().parse::<i32>().unwrap();
            }
            assert!(start.elapsed() < Duration::from_secs(30), "it says nothing");
            std::thread::yield_now();
        };
        drop(beside);
        // Whoever takes orphans in may not have asked for its end yet.
        let runs = || {
            let stat = std::fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z")
        };
        while runs() {
            assert!(start.elapsed() < Duration::from_secs(30), "it still runs");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_program_beside_us_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let begin = |name: &str, script: &str| {
            Run::new("sh").args(["-c", script]).beside(&dir.path().join(name)).unwrap()
        };
        let lines = begin("good", "echo one; echo two").finish(Duration::from_secs(30)).unwrap();
        assert_eq!(lines, ["one", "two"]);
        let error = begin("bad", "exit 3").finish(Duration::from_secs(30)).unwrap_err().to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        let error = begin("slow", "sleep 600").finish(Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("was killed"), "{error}");
    }

    #[test]
    fn lines_of_a_visible_program_are_kept() {
        let lines =
            Run::new("sh").args(["-c", "echo one; echo two"]).visible(Duration::from_secs(30)).unwrap();
        assert_eq!(lines, ["one", "two"]);
    }

    #[test]
    fn what_runs_too_long_is_killed_with_its_children() {
        let marker = format!("xtask-kill-{}", std::process::id());
        let script = format!("sh -c 'sleep 1000; : {marker}' & sleep 1000");
        let error =
            Run::new("sh").args(["-c", &script]).visible(Duration::from_millis(300)).unwrap_err().to_string();
        assert!(error.contains("was killed"), "{error}");
        test_support::wait_for("the children to go", Duration::from_secs(5), || {
            test_support::processes_matching(&marker).is_empty().then_some(())
        })
        .unwrap();
    }

    #[test]
    fn an_answer_has_the_code_and_both_outputs() {
        let (code, stdout, stderr) = Run::new("sh")
            .args(["-c", "echo out; echo err >&2; exit 3"])
            .answer(Duration::from_secs(30))
            .unwrap();
        assert_eq!((code, stdout.as_str(), stderr.as_str()), (Some(3), "out\n", "err\n"));
        let error = Run::new("sleep").arg("1000").answer(Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("was killed"), "{error}");
    }

    #[test]
    fn credentials_in_variables_are_in_no_line_error_or_debug_form() {
        let mut canaries = test_support::Canaries::new();
        let secret = canaries.plant("a key of an account");
        let run = |program: &str| Run::new(program).env("AWS_SECRET_ACCESS_KEY", &secret);
        let limit = Duration::from_secs(30);
        // The program has it, or nothing would be seen here.
        let has = run("sh").args(["-c", "echo \"$AWS_SECRET_ACCESS_KEY\""]).stdout().unwrap();
        assert_eq!(has.trim(), secret);
        let fails = || run("sh").args(["-c", "exit 3"]);
        let said = [
            run("sh").line(),
            format!("{:?}", run("sh")),
            format!("{:#}", fails().stdout().unwrap_err()),
            format!("{:?}", fails().visible(limit).unwrap_err()),
            format!("{:?}", run("sleep").arg("1000").answer(Duration::from_millis(50)).unwrap_err()),
            format!("{:?}", run("/no/such/program").stdout().unwrap_err()),
        ];
        canaries.assert_not_in("what is said of a command", said.join("\n"));
    }

    #[test]
    fn a_line_can_be_typed_again() {
        let run =
            Run::new("/usr/bin/cargo").args(["test", "--test", "*"]).shown_env("RUSTDOCFLAGS", "-D warnings");
        assert_eq!(run.line(), "RUSTDOCFLAGS=\"-D warnings\" cargo test --test '*'");
    }
}
