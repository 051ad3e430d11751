//! Where it all happens: programs, a folder, a network namespace, certificates and an agent.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde_json::Value;
use test_support::{Netns, ProcessGuard, wait_for};

use crate::context::Context;
use crate::dist::build::Builder;

/// What the names of the namespaces begin with.
const PREFIX: &str = "ppbench";
/// How long a program may take to serve.
const START: Duration = Duration::from_secs(30);
/// How long one measurement may take beyond the time it was given.
const SLACK: Duration = Duration::from_secs(60);
/// The pause between two looks at what happens.
const LOOK: Duration = Duration::from_millis(10);
/// Nothing moves any more when so many looks in a row find everybody as before: fewer than fit between two looks of a
/// relay whether a client has begun to read again.
const STILL_LOOKS: usize = 5;
const SEARCH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The programs, as they ship.
#[derive(Clone, Debug)]
pub(in crate::bench) struct Programs {
    pub(super) gateway: PathBuf,
    pub(super) forwarder: PathBuf,
    bench: PathBuf,
}

impl Programs {
    /// Builds them as `dist` does, and the parts of the measurement in the same way, so that the floor has no other
    /// compiler's work than ours.
    pub(in crate::bench) fn build(context: &Context) -> Result<Self> {
        let builder = Builder::new(context, &context.metadata()?)?;
        let build = |package: &str, program: &str| -> Result<PathBuf> {
            Ok(builder.build(context, package, program, &[], true)?.path)
        };
        Ok(Self {
            gateway: build("peerpod-gateway", "peerpod-gateway")?,
            forwarder: build("podvm", "agent-protocol-forwarder")?,
            bench: build("path-bench", "path-bench")?,
        })
    }

    /// Finds them in a folder.
    pub(super) fn find(folder: &Path) -> Result<Self> {
        let find = |name: &str| {
            let program = folder.join(name);
            ensure!(program.is_file(), "there is no {}", program.display());
            Ok(program)
        };
        Ok(Self {
            gateway: find("peerpod-gateway")?,
            forwarder: find("agent-protocol-forwarder")?,
            bench: find("path-bench")?,
        })
    }
}

/// A program that serves, and its process.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) guard: ProcessGuard,
    /// Of the program itself, not of the shell that ties it to us.
    pid: i32,
}

impl Serving {
    /// The CPU time of all its threads so far.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let clock = clock_getcpuclockid(Pid::from_raw(self.pid)).and_then(clock_gettime);
        Ok(clock.with_context(|| format!("no clock for process {}", self.pid))?.into())
    }

    /// How long it has run so far, if it does not at the moment: all of its threads wait for something.
    fn asleep(&self) -> Result<Option<Duration>> {
        asleep(self.pid)
    }

    /// Its resident memory in KiB.
    pub(super) fn resident_kib(&self) -> Result<u64> {
        memory_kib(self.pid, "VmRSS:")
    }

    /// The most resident memory it had since the peak was forgotten, in KiB.
    pub(super) fn peak_kib(&self) -> Result<u64> {
        memory_kib(self.pid, "VmHWM:")
    }

    /// Lets the peak begin at what is resident now.
    pub(super) fn forget_peak(&self) -> Result<()> {
        forget_peak(self.pid)
    }
}

/// What a program says when it serves.
pub(super) enum Sign {
    /// It accepts connections at a unix socket.
    Unix(PathBuf),
    /// It accepts connections at an address of the namespace.
    Tcp(String),
}

/// The place. Dropping it ends every program and deletes the namespaces.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) programs: Programs,
    // Before the folder and the namespaces: it ends first.
    agent: Option<Serving>,
    dir: tempfile::TempDir,
    net: Netns,
    pod: Netns,
    pub(super) recorded: PathBuf,
    stop: Arc<AtomicBool>,
}

impl Place {
    /// Makes the namespaces and the certificates, and starts the agent.
    pub(super) fn new(context: &Context, programs: Programs, stop: Arc<AtomicBool>) -> Result<Self> {
        sweep();
        let dir = tempfile::Builder::new().prefix("ppbench-").tempdir_in("/tmp")?;
        let net = Netns::unique(PREFIX)?;
        // The forwarder waits for a way to its node, as a guest has one.
        net.ip(&["link", "add", "eth0", "type", "veth", "peer", "name", "far0"])?;
        net.ip(&["addr", "add", "10.77.0.2/24", "dev", "eth0"])?;
        net.ip(&["link", "set", "far0", "up"])?;
        net.ip(&["link", "set", "eth0", "up"])?;
        net.default_route([10, 77, 0, 1].into())?;
        let recorded = context.root.join("tests/fixtures/kata-4.1.0-runtime-rs/agent.c2s.bin");
        let pod = Netns::unique(PREFIX)?;
        let mut place = Self { programs, agent: None, dir, net, pod, recorded, stop };
        place.ask(&["certificates", "--folder", &place.text("")])?;
        place.agent = Some(place.agent("agent.sock", false)?);
        Ok(place)
    }

    /// A path in the folder.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as text.
    pub(super) fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    /// The namespace of the pods.
    pub(super) fn pod_namespace(&self) -> PathBuf {
        self.pod.path()
    }

    /// Whether somebody asked us to end.
    pub(super) fn is_interrupted(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The last words of every program.
    pub(super) fn logs(&self) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let log = std::fs::read_to_string(&path).unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                let last = &lines[lines.len().saturating_sub(5)..];
                if !last.is_empty() {
                    text += &format!("--- {}\n{}\n", path.display(), last.join("\n"));
                }
            }
        }
        text
    }

    /// Starts an agent of ours at a socket in the folder.
    pub(super) fn agent(&self, socket: &str, polite: bool) -> Result<Serving> {
        let words = ["agent".to_owned(), "--listen".to_owned(), self.text(socket)];
        self.bench(socket, &words, polite, &Sign::Unix(self.path(socket)))
    }

    /// Starts a part of our bench that serves.
    pub(super) fn bench(&self, name: &str, words: &[String], polite: bool, sign: &Sign) -> Result<Serving> {
        let program = self.programs.bench.to_string_lossy().into_owned();
        let all: Vec<String> = std::iter::once(program).chain(words.iter().cloned()).collect();
        self.serve(name, &all, polite, sign)
    }

    /// Starts a program in the namespace and waits until it serves. A polite one gives way to all others.
    pub(super) fn serve(&self, name: &str, words: &[String], polite: bool, sign: &Sign) -> Result<Serving> {
        let (program, args) = words.split_first().context("an empty command")?;
        let mut command = if polite {
            let mut command = self.net.command("chrt");
            command.args(["--idle", "0"]).arg(program);
            command
        } else {
            self.net.command(program)
        };
        command.args(args).env("PATH", SEARCH);
        let log = self.path(&format!("{}.log", name.replace('/', "-")));
        let mut guard = ProcessGuard::spawn_tied(name, &command, &log)?;
        let up = wait_for(name, START, || {
            if self.is_interrupted() || guard.try_status().is_some() {
                return Some(false);
            }
            let up = match sign {
                Sign::Unix(path) => UnixStream::connect(path).is_ok(),
                Sign::Tcp(address) => self.net.run(|| Ok(std::net::TcpStream::connect(address)?)).is_ok(),
            };
            up.then_some(true)
        });
        ensure!(!self.is_interrupted(), "interrupted");
        if !up.is_ok_and(|up| up) {
            bail!("{name} does not serve (`{}`):\n{}", words.join(" "), guard.last_lines(20));
        }
        let pid = program_below(guard.pid()).with_context(|| format!("{name} has no process"))?;
        Ok(Serving { guard, pid })
    }

    /// Waits until nothing moves any more: nobody is about to run or has run for a while. A program that only has to wait
    /// for a processor is about to run, so that a busy machine delays this and does not deceive it.
    pub(super) fn settle(&self, programs: &[&Serving], asked: &[Asked<'_>]) -> Result<()> {
        let end = Instant::now() + SLACK;
        let (mut before, mut still) = (None, 0);
        while still < STILL_LOOKS {
            ensure!(!self.is_interrupted(), "interrupted");
            ensure!(Instant::now() < end, "something still moves after {SLACK:?}");
            let agent = self.agent.iter().map(Serving::asleep);
            let times = agent.chain(programs.iter().map(|program| program.asleep()));
            let asked = asked.iter().map(|asked| asleep(asked.child.id() as i32));
            let now: Option<Vec<_>> = times.chain(asked).collect::<Result<_>>()?;
            still = if now.is_some() && now == before { still + 1 } else { 0 };
            before = now;
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Runs a part of our bench that ends by itself, in the namespace, and returns the JSON it prints.
    pub(super) fn ask(&self, words: &[&str]) -> Result<Value> {
        self.begin(words, false)?.end(SLACK)
    }

    /// Begins the same and returns at once.
    pub(super) fn begin(&self, words: &[&str], polite: bool) -> Result<Asked<'_>> {
        let mut command = if polite {
            let mut command = self.net.command("chrt");
            command.args(["--idle", "0"]).arg(&self.programs.bench);
            command
        } else {
            self.net.command(&self.programs.bench)
        };
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Asked::start(self, command)
    }
}

/// A measurement under way. Dropping it ends it.
pub(super) struct Asked<'a> {
    place: &'a Place,
    child: Child,
    what: String,
}

impl<'a> Asked<'a> {
    fn start(place: &'a Place, mut command: Command) -> Result<Self> {
        let what = format!("{command:?}");
        let child = command.spawn().with_context(|| format!("cannot start {what}"))?;
        Ok(Self { place, child, what })
    }

    /// Waits for its end and returns the JSON that it prints; nothing for one that prints none.
    pub(super) fn end(mut self, limit: Duration) -> Result<Value> {
        // Its standard input ends when nobody waits for anything but its end.
        drop(self.child.stdin.take());
        let end = Instant::now() + limit;
        loop {
            ensure!(!self.place.is_interrupted(), "interrupted");
            if self.child.try_wait()?.is_some() {
                break;
            }
            ensure!(Instant::now() < end, "{} does not end", self.what);
            std::thread::sleep(Duration::from_millis(2));
        }
        let (mut out, mut said) = (String::new(), String::new());
        read(self.child.stdout.take(), &mut out)?;
        read(self.child.stderr.take(), &mut said)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{} failed ({status}): {}", self.what, said.trim());
        if out.trim().is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_str(out.trim())?) }
    }
}

fn read(pipe: Option<impl std::io::Read>, text: &mut String) -> Result<()> {
    if let Some(mut pipe) = pipe {
        pipe.read_to_string(text)?;
    }
    Ok(())
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// What the kernel tells of a process' memory under this name, in KiB.
fn memory_kib(pid: i32, name: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no memory is told")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Lets `VmHWM` of a process begin anew: <https://man7.org/linux/man-pages/man5/proc_pid_clear_refs.5.html>.
fn forget_peak(pid: i32) -> Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5")
        .with_context(|| format!("forget the peak of memory of process {pid}"))
}

/// How long a process has run so far, if none of its threads runs or is about to.
fn asleep(pid: i32) -> Result<Option<Duration>> {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).context("a program is gone")? {
        // A thread that ends while it is looked at is one that runs.
        let Ok(stat) = std::fs::read_to_string(thread?.path().join("stat")) else { return Ok(None) };
        if !is_waiting(&stat) {
            return Ok(None);
        }
    }
    let clock = clock_getcpuclockid(Pid::from_raw(pid)).and_then(clock_gettime);
    Ok(Some(clock.with_context(|| format!("no clock for process {pid}"))?.into()))
}

/// Whether a line of `/proc/…/stat` is that of a thread which waits, was stopped, or has ended.
fn is_waiting(stat: &str) -> bool {
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| matches!(state, 'S' | 'T' | 'Z' | 'I'))
}

/// The program that a tying shell runs: its child that is no shell itself.
fn program_below(shell: u32) -> Option<i32> {
    let exe = |pid: &str| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    let own = exe(&shell.to_string())?;
    let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).ok()?;
    let program = children.split_whitespace().find(|pid| exe(pid).is_some_and(|path| path != own))?;
    program.parse().ok()
}

/// Deletes namespaces of measurements that were killed.
fn sweep() {
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('-')?.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Dropping it deletes it.
            drop(Netns::adopt(&name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_has_to_wait_for_a_processor_does_not_wait() {
        assert!(is_waiting("17 (a) R (b) S 1 17 17 0"), "its name says nothing");
        assert!(!is_waiting("17 (a) S (b) R 1 17 17 0"));
        assert!(!is_waiting("17 (a) D 1"), "it will go on without anybody's help");
        assert!(is_waiting("17 (a) T 1") && !is_waiting(""));
    }

    #[test]
    fn a_peak_is_that_since_it_was_forgotten() {
        let own = i32::try_from(std::process::id()).unwrap();
        let touched = |mib: usize| drop(std::hint::black_box(vec![1u8; mib << 20]));
        touched(256);
        let before = memory_kib(own, "VmHWM:").unwrap();
        assert!(before >= 256 << 10);
        forget_peak(own).unwrap();
        assert!(memory_kib(own, "VmHWM:").unwrap() < before);
        touched(300);
        assert!(memory_kib(own, "VmHWM:").unwrap() >= 300 << 10);
    }

    #[test]
    fn a_process_that_runs_is_not_asleep() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(asleep(own).unwrap(), None, "it is running this test");
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let asleep = wait_for("it waits for its input", START, || asleep(pid).ok().flatten());
        drop(child.stdin.take());
        child.wait().unwrap();
        asleep.unwrap();
    }
}
