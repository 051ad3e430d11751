//! A network namespace, a data folder, a key and a testbed over the provider `local`.

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use cloud_providers::MapEnv;
use cloud_providers_local as _;
use serde_json::Value;
use tempfile::TempDir;
use test_support::{NamespaceState, Netns, processes, wait_for};
use testbed::{
    Access, Context, Environment, Group, Host, Keep, Machine, ProviderConfig, Reservation, Testbed, adapter,
};

/// Long enough for a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Setup {
    pub(crate) netns: Netns,
    pub(crate) dir: TempDir,
    before: NamespaceState,
}

impl Setup {
    pub(crate) fn new() -> Result<Self> {
        let netns = Netns::unique("tbm")?;
        let dir = tempfile::Builder::new().prefix("tbm-").tempdir()?;
        let before = NamespaceState::take(&netns)?;
        let setup = Self { netns, dir, before };
        setup.keygen("key", &["-t", "ed25519"])?;
        Ok(setup)
    }

    /// Makes a key pair and returns the private one's file.
    pub(crate) fn keygen(&self, name: &str, args: &[&str]) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        let out = Command::new("ssh-keygen").args(["-q", "-N", "", "-f"]).arg(&path).args(args).output()?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Ok(path)
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn config(&self) -> ProviderConfig {
        ProviderConfig::new("local")
            .with("data-dir", self.data_dir().display().to_string())
            .with("subnet", "198.51.100.0/24")
            // Names stand for themselves, without the provider's prefix or with it.
            .with("tmpfs-size-mib", 64)
    }

    /// Makes the testbed in the namespace.
    pub(crate) fn testbed(&self) -> Result<Arc<dyn Testbed>> {
        self.testbed_of(&self.config())
    }

    pub(crate) fn testbed_of(&self, config: &ProviderConfig) -> Result<Arc<dyn Testbed>> {
        let registration = cloud_providers::lookup("local")?;
        self.run(async { Ok(adapter::open(registration, config, &MapEnv::default()).await?) })
    }

    /// Runs a future on threads inside the namespace.
    pub(crate) fn run<T: Send>(&self, future: impl Future<Output = Result<T>> + Send) -> Result<T> {
        self.netns.run(|| outside(future))
    }

    pub(crate) fn reservation(&self, machines: usize) -> Result<Reservation> {
        let mut reservation = Reservation::new("exp", self.config());
        reservation.groups.push(Group::new("node", machines));
        for n in 1..=machines {
            reservation.machines.push(Machine::new(format!("node-{n}"), 0, ["node"]));
        }
        let mut access = Access::default();
        access.private_key = Some(self.key());
        access.public_key = Some(fs::read_to_string(self.dir.path().join("key.pub"))?);
        reservation.access = access;
        Ok(reservation)
    }

    pub(crate) fn context(&self) -> Context {
        Context::new(self.dir.path())
    }

    /// Returns the system's client with what a host needs, and nothing of the user's own configuration.
    pub(crate) fn client(&self, program: &str, host: &Host) -> Result<Command> {
        let known = self.dir.path().join(format!("known-{}", host.alias));
        let key = host.host_key.as_deref().context("the host key is not known")?;
        fs::write(&known, format!("{} {key}\n", host.alias))?;
        let mut command = Command::new(program);
        command.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "IdentityAgent=none",
        ]);
        command.args([
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "GlobalKnownHostsFile=none",
            "-o",
            "ConnectTimeout=20",
        ]);
        command.arg("-o").arg(format!("UserKnownHostsFile={}", known.display()));
        command.arg("-o").arg(format!("HostKeyAlias={}", host.alias));
        if let Some(proxy) = &host.proxy_command {
            command.arg("-o").arg(format!("ProxyCommand={proxy}"));
        }
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// Returns `ssh` to a host, with its key.
    pub(crate) fn ssh(&self, host: &Host) -> Result<Command> {
        let mut command = self.client("ssh", host)?;
        command.arg("-i").arg(host.key.as_ref().context("there is a key")?);
        command.args(["-l", host.user.as_deref().unwrap_or("root"), &host.address]);
        Ok(command)
    }

    /// Runs a command on a host from inside the namespace.
    pub(crate) fn on(&self, host: &Host, line: &str) -> Result<Output> {
        self.netns.run(|| Ok(self.ssh(host)?.arg(line).output()?))
    }

    pub(crate) fn destroy(&self, testbed: &Arc<dyn Testbed>, kept: &Kept) -> Result<()> {
        let environment = Environment::new(vec![self.reservation(0)?]);
        self.run(async { Ok(testbed.destroy(&kept.context(self), &environment).await?) })
    }

    /// Checks that links, processes and files are as they were at the beginning.
    pub(crate) fn check_clean(&self) -> Result<()> {
        let now = NamespaceState::take(&self.netns)?;
        ensure!(now == self.before, "in the namespace: {:?}", now.added_since(&self.before));
        let left = self.processes();
        ensure!(left.is_empty(), "processes: {left:?}");
        let left: Vec<String> = fs::read_dir(self.data_dir().join("instances"))?
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        ensure!(left.is_empty(), "folders: {left:?}");
        ensure!(!self.data_dir().join("pools").exists(), "addresses are still given out");
        Ok(())
    }

    /// Processes of the machines of this test, by the folder's hash in the environment of the first ones.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let hash = cloud_providers::tags::hash(&self.data_dir().to_string_lossy(), 8);
        let mark = format!("@{hash}");
        let marked = |pid: i32| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let mut variables = environ.split(|b| *b == 0);
            variables.any(|v| v.starts_with(b"PEERPOD_LOCAL_INSTANCE=") && v.ends_with(mark.as_bytes()))
        };
        processes().into_iter().map(|p| p.pid).filter(|pid| marked(*pid)).collect()
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        // Only after a failed test there is anything left.
        for pid in self.processes() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        let _ = wait_for("the machines to end", LIMIT, || self.processes().is_empty().then_some(()));
    }
}

/// Runs a future on threads of the namespace that this program was started in.
pub(crate) fn outside<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(future)
}

/// Keeps in memory what a provider wants to be kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept(Arc<Mutex<BTreeMap<String, Value>>>);

impl Kept {
    /// Returns the context of the next command.
    pub(crate) fn context(&self, setup: &Setup) -> Context {
        let mut context = setup.context();
        context.keep = Arc::new(self.clone());
        context.state = self.0.lock().expect("no test panics here").clone();
        context
    }
}

#[async_trait]
impl Keep for Kept {
    async fn keep(&self, key: &str, value: Option<Value>) -> testbed::Result<()> {
        let mut kept = self.0.lock().expect("no test panics here");
        match value {
            Some(value) => drop(kept.insert(key.to_owned(), value)),
            None => drop(kept.remove(key)),
        }
        Ok(())
    }
}
