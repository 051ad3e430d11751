//! A namespace, a data folder and a provider for one test, and a look at what is left afterwards.

use std::{
    collections::BTreeSet,
    fs,
    future::Future,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use cloud_providers::{
    Cloud, CreateRequest, Instance, MapEnv, OpContext, Provider, Record, Resource, Scope, Token, Unit,
    async_trait,
};
use cloud_providers_local::LocalCloud;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};
use tempfile::TempDir;
use test_support::{NamespaceState, Netns, processes, wait_for};

use crate::guest::{self, Report};

/// Long enough for a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// The surroundings of one test.
pub(crate) struct Setup {
    pub(crate) netns: Netns,
    pub(crate) dir: TempDir,
    pub(crate) env: Vec<(&'static str, String)>,
    before: NamespaceState,
    mounts: BTreeSet<String>,
}

impl Setup {
    /// Makes the surroundings.
    pub(crate) fn new() -> Result<Self> {
        Self::in_netns(Netns::unique("ppl")?)
    }

    /// Makes the surroundings in a namespace that the test has prepared.
    pub(crate) fn in_netns(netns: Netns) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("ppl-").tempdir()?;
        let guest_dir = dir.path().join("guest");
        fs::create_dir(&guest_dir)?;
        let program = guest_dir.join("init");
        fs::copy(std::env::current_exe()?, &program)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let env = vec![
            ("LOCAL_DATA_DIR", dir.path().join("data").display().to_string()),
            ("LOCAL_GUEST_DIR", guest_dir.display().to_string()),
            ("LOCAL_INIT", program.display().to_string()),
            ("LOCAL_INIT_ARGS", guest::ROLE.to_owned()),
            ("LOCAL_SUBNET", "198.51.100.0/24".to_owned()),
        ];
        let before = NamespaceState::take(&netns)?;
        Ok(Self { netns, dir, env, before, mounts: mounts()? })
    }

    /// Sets an option by its variable.
    pub(crate) fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.env.retain(|(k, _)| *k != key);
        self.env.push((key, value.into()));
        self
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Runs a future on a thread inside the namespace.
    pub(crate) fn run<T: Send>(&self, future: impl Future<Output = Result<T>> + Send) -> Result<T> {
        self.netns.run(|| {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(future)
        })
    }

    /// Builds a provider from the options.
    pub(crate) async fn provider(&self) -> Result<Arc<dyn Provider>> {
        provider(&self.env).await
    }

    /// Asks an instance for something.
    pub(crate) fn ask(&self, instance: &Instance, line: &str) -> Result<String> {
        let address = SocketAddr::new(address(instance)?, guest::PORT);
        let stream = wait_for("the guest to answer", LIMIT, || {
            self.netns.run(|| Ok(TcpStream::connect_timeout(&address, Duration::from_secs(5))?)).ok()
        })?;
        talk(stream, line)
    }

    /// Asks an instance for its report.
    pub(crate) fn report(&self, instance: &Instance) -> Result<Report> {
        Ok(serde_json::from_str(&self.ask(instance, "report")?)?)
    }

    /// Checks that links, mounts, processes and files are as they were at the beginning.
    pub(crate) fn check_clean(&self) -> Result<()> {
        let now = NamespaceState::take(&self.netns)?;
        ensure!(now == self.before, "in the namespace: {:?}", now.added_since(&self.before));
        let left = self.instance_processes();
        ensure!(left.is_empty(), "processes: {left:?}");
        let zombies = zombie_children();
        ensure!(zombies.is_empty(), "zombies: {zombies:?}");
        let added: Vec<String> = mounts()?.difference(&self.mounts).cloned().collect();
        // Other tests on this machine mount things too; ours carry the folder's name.
        let name = self.dir.path().display().to_string();
        ensure!(!added.iter().any(|m| m.contains(&name)), "mounts: {added:?}");
        let groups = self.groups()?;
        ensure!(groups.is_empty(), "control groups: {groups:?}");
        let files = files(&self.data_dir())?;
        ensure!(files == ["instances", "locks"], "files: {files:?}");
        Ok(())
    }

    /// Control groups of instances of this test, by the folder's hash in their names.
    pub(crate) fn groups(&self) -> Result<Vec<PathBuf>> {
        let hash = cloud_providers::tags::hash(&self.data_dir().to_string_lossy(), 8);
        let base = Path::new("/sys/fs/cgroup");
        let inner = fs::read_dir(base)?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
        let all = std::iter::once(base.to_owned()).chain(inner);
        let entries = all.filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
        let ours = |path: &PathBuf| path.to_string_lossy().contains(&format!("/peerpod-{hash}-"));
        Ok(entries.map(|entry| entry.path()).filter(|path| path.is_dir() && ours(path)).collect())
    }

    /// Processes that run in instances of this test, by the folder's hash in their environment or their program.
    pub(crate) fn instance_processes(&self) -> Vec<i32> {
        let hash = cloud_providers::tags::hash(&self.data_dir().to_string_lossy(), 8);
        let mark = format!("@{hash}");
        let marked = |pid: i32| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let mut variables = environ.split(|b| *b == 0);
            variables.any(|v| v.starts_with(b"PEERPOD_LOCAL_INSTANCE=") && v.ends_with(mark.as_bytes()))
        };
        processes().into_iter().map(|p| p.pid).filter(|pid| marked(*pid)).collect()
    }

    /// Handles on the processes that instances have now, which say when each has ended.
    pub(crate) fn process_handles(&self) -> Result<Vec<OwnedFd>> {
        let mut handles = Vec::new();
        for pid in self.instance_processes() {
            match pidfd_open(Pid::from_raw(pid).context("a number of a process")?, PidfdFlags::empty()) {
                Ok(handle) => handles.push(handle),
                // It ended since.
                Err(Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(handles)
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        // Only after a failed test there is anything left.
        for pid in self.instance_processes() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        let _ = wait_for("the control groups to go", LIMIT, || {
            let groups = self.groups().ok()?;
            groups.iter().for_each(|group| remove_group(group));
            groups.is_empty().then_some(())
        });
    }
}

/// Builds a provider from variables.
pub(crate) async fn provider(env: &[(&'static str, String)]) -> Result<Arc<dyn Provider>> {
    let mut cloud = LocalCloud::new();
    cloud.load_env(&MapEnv::new(env.iter().map(|(k, v)| (*k, v.as_str()))))?;
    Ok(cloud.new_provider().await?)
}

pub(crate) fn scope() -> Scope {
    Scope::Cluster("test".into())
}

pub(crate) fn token(unit: &str) -> Token {
    Token::new(scope(), unit, 1)
}

/// A request for a guest named after `unit`.
pub(crate) fn request(unit: &str) -> CreateRequest {
    CreateRequest::new(token(unit), Unit { id: unit.into(), name_hint: format!("pod-{unit}") }, "node-1")
        .with_user_data("#cloud-config\n")
}

pub(crate) fn address(instance: &Instance) -> Result<IpAddr> {
    instance.addresses.first().copied().context("the instance has no address")
}

pub(crate) fn talk(mut stream: TcpStream, line: &str) -> Result<String> {
    stream.set_read_timeout(Some(LIMIT))?;
    writeln!(stream, "{line}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Lists everything below a folder, by path.
pub(crate) fn files(dir: &Path) -> Result<Vec<String>> {
    fn walk(dir: &Path, base: &Path, found: &mut Vec<String>) -> Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            found.push(path.strip_prefix(base)?.display().to_string());
            if path.is_dir() && !path.is_symlink() {
                walk(&path, base, found)?;
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(dir, dir, &mut found)?;
    found.sort();
    Ok(found)
}

/// Children of this process that ended and that nobody waited for.
fn zombie_children() -> Vec<String> {
    let own = std::process::id().to_string();
    let stats = fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats = stats.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let zombie = |stat: &String| {
        let tail = stat.rsplit_once(')').map_or("", |(_, tail)| tail);
        let fields: Vec<&str> = tail.split_whitespace().collect();
        fields.first() == Some(&"Z") && fields.get(1) == Some(&own.as_str())
    };
    stats.filter(zombie).collect()
}

fn remove_group(group: &Path) {
    let inner = fs::read_dir(group).into_iter().flatten().flatten().map(|entry| entry.path());
    inner.filter(|path| path.is_dir()).for_each(|path| remove_group(&path));
    let _ = fs::remove_dir(group);
}

fn mounts() -> Result<BTreeSet<String>> {
    Ok(fs::read_to_string("/proc/self/mountinfo")?.lines().map(str::to_owned).collect())
}

/// Keeps what it is told; does something at the n-th resource.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) seen: Mutex<Vec<Resource>>,
    action: Option<(usize, Action)>,
}

/// What a recorder does beside keeping.
pub(crate) enum Action {
    /// Cancels the call.
    Cancel(cloud_providers::CancellationToken),
    /// Says that it cannot keep the resource.
    Fail,
    /// Never returns, and says so.
    Hang(tokio::sync::mpsc::UnboundedSender<()>),
}

impl Recorder {
    pub(crate) fn at(n: usize, action: Action) -> Arc<Self> {
        Arc::new(Self { seen: Mutex::default(), action: Some((n, action)) })
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.lock().expect("no test panics here").len()
    }
}

#[async_trait]
impl Record for Recorder {
    async fn record(&self, resource: &Resource) -> cloud_providers::Result<()> {
        let n = {
            let mut seen = self.seen.lock().expect("no test panics here");
            seen.push(resource.clone());
            seen.len()
        };
        match &self.action {
            Some((at, Action::Cancel(cancel))) if n == *at => cancel.cancel(),
            Some((at, Action::Fail)) if n == *at => {
                return Err(cloud_providers::Error::internal("the journal is full"));
            }
            Some((at, Action::Hang(told))) if n == *at => {
                let _ = told.send(());
                std::future::pending::<()>().await;
            }
            _ => {}
        }
        Ok(())
    }
}

/// A context that records into `recorder`.
pub(crate) fn recording(recorder: &Arc<Recorder>) -> OpContext {
    OpContext::new().with_record(recorder.clone())
}

/// Whether the process of a handle has ended, with all of its threads.
pub(crate) fn has_ended(handle: &OwnedFd) -> bool {
    let mut handles = [PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
    poll(&mut handles, PollTimeout::ZERO) == Ok(1)
}
