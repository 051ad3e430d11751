//! A node in network namespaces of its own, with the real daemon in it.

use std::{
    collections::HashMap,
    fs,
    net::Ipv4Addr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use peerpod_proto::Status;
use tempfile::TempDir;
use test_support::{
    AgentPlayer, Libvirtd, NamespaceState, Netns, ProcessGuard, ProcessInfo, ShimPlayer,
    processes_using_namespaces, wait_for, wait_for_async,
};

/// Longest wait of a test for something that comes soon when all is well, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// Address of the node's bridge for pods.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);

/// Returns the folder with the guest programs; they are built once for each run of the tests.
///
/// `PEERPOD_GUEST_DIR` names a folder that has them already.
pub(crate) fn guest_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        if let Some(dir) = std::env::var_os("PEERPOD_GUEST_DIR") {
            return dir.into();
        }
        let dir = Path::new(env!("CARGO_BIN_EXE_cloud-api-adaptor")).parent().unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "podvm", "--package", "test-agent", "--target-dir"]);
        let built =
            cargo.arg(dir.parent().unwrap()).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        assert!(
            built.status.success(),
            "the guest programs do not build: {}",
            String::from_utf8_lossy(&built.stderr)
        );
        dir.to_owned()
    })
}

/// Returns the gateway's program, built once for each run of the tests.
pub(crate) fn gateway_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| built("peerpod-gateway", "peerpod-gateway"))
}

/// Returns the program that plays a shim, built once for each run of the tests.
fn shim_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| built("test-support", "shim-player"))
}

/// Builds a program of another package beside the daemon's.
fn built(package: &str, program: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_BIN_EXE_cloud-api-adaptor")).parent().unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--package", package, "--bin", program, "--target-dir"]);
    let built = cargo.arg(dir.parent().unwrap()).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(built.status.success(), "{program} does not build: {}", String::from_utf8_lossy(&built.stderr));
    dir.join(program)
}

/// A shell script in a file of its own, to be the first program of instances.
pub(crate) struct Script {
    _dir: TempDir,
    path: String,
}

impl Script {
    pub(crate) fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("init.sh");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Self { path: path.to_str().unwrap().to_owned(), _dir: dir }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

/// A pod's network namespace as a CNI plugin leaves it.
pub(crate) struct Pod {
    pub(crate) netns: Netns,
    pub(crate) address: Ipv4Addr,
    before: NamespaceState,
}

/// What surrounds the daemon of a node.
#[derive(Clone, Copy, Default)]
struct Place {
    behind_gateway: bool,
    own_processes: bool,
    libvirtd: bool,
    /// Variables of the daemon.
    env: &'static [(&'static str, &'static str)],
}

/// The node. Dropping it ends everything in it.
pub(crate) struct Node {
    pub(crate) daemon: ProcessGuard,
    pub(crate) gateway: Option<ProcessGuard>,
    pub(crate) pods: Vec<Pod>,
    /// Ends before the namespace that its network is in.
    #[cfg_attr(not(feature = "libvirt"), expect(dead_code, reason = "it is ended by its drop"))]
    pub(crate) libvirtd: Option<Libvirtd>,
    pub(crate) netns: Netns,
    before: NamespaceState,
    pub(crate) dir: TempDir,
}

impl Node {
    /// Starts a node with `pods` pods whose daemon gets `args` beside the paths.
    pub(crate) async fn start(pods: usize, args: &[&str]) -> Result<Self> {
        Self::start_with("local", pods, args).await
    }

    /// Starts a node whose daemon uses another provider.
    pub(crate) async fn start_with(provider: &str, pods: usize, args: &[&str]) -> Result<Self> {
        Self::launch(provider, pods, args, Place::default()).await
    }

    /// Starts a node whose daemon has these variables.
    #[cfg(feature = "otlp")]
    pub(crate) async fn with_variables(
        pods: usize,
        args: &[&str],
        env: &'static [(&'static str, &'static str)],
    ) -> Result<Self> {
        Self::launch("local", pods, args, Place { env, ..Place::default() }).await
    }

    /// Starts a node whose gateway is a program of its own.
    pub(crate) async fn behind_gateway(pods: usize) -> Result<Self> {
        Self::behind_gateway_with(pods, &[]).await
    }

    /// Starts such a node whose daemon gets `args` beside the paths.
    pub(crate) async fn behind_gateway_with(pods: usize, args: &[&str]) -> Result<Self> {
        Self::launch("local", pods, args, Place { behind_gateway: true, ..Place::default() }).await
    }

    /// Starts a node whose daemon sees no process but its own, as in a pod without `hostPID`.
    pub(crate) async fn in_own_process_namespace(pods: usize, args: &[&str]) -> Result<Self> {
        Self::launch("local", pods, args, Place { own_processes: true, ..Place::default() }).await
    }

    /// Starts a node with a libvirtd of its own, whose machines boot `image`.
    #[cfg(feature = "libvirt")]
    pub(crate) async fn with_libvirtd(pods: usize, image: &Path, args: &[&str]) -> Result<Self> {
        let mut node =
            Self::launch("libvirt", pods, args, Place { libvirtd: true, ..Place::default() }).await?;
        let libvirtd = node.libvirtd.as_mut().context("it was started")?;
        libvirtd.add_volume("base.qcow2", image)?;
        Ok(node)
    }

    async fn launch(provider: &str, pods: usize, args: &[&str], place: Place) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let netns = Netns::unique("caa-node")?;
        netns.bridge("up0", "192.0.2.2/24")?;
        netns.default_route(Ipv4Addr::new(192, 0, 2, 1).into())?;
        netns.bridge("cni0", &format!("{GATEWAY}/24"))?;
        let pods = (0..pods).map(|n| pod(&netns, n)).collect::<Result<Vec<_>>>()?;
        let libvirtd = place
            .libvirtd
            .then(|| {
                fs::create_dir(dir.path().join("libvirt"))?;
                Libvirtd::start_in(&netns, &dir.path().join("libvirt"))
            })
            .transpose()?;
        let before = NamespaceState::take(&netns)?;
        let gateway = place.behind_gateway.then(|| start_gateway(&netns, dir.path())).transpose()?;
        let mut command = command(&netns, dir.path(), provider, args);
        command.envs(place.env.iter().copied());
        if let Some(libvirtd) = &libvirtd {
            command.args(["-uri", &libvirtd.uri(), "-vol-name", "base.qcow2", "-firmware=", "-cpu", "1"]);
            command.args(["-memory", "512", "-root-disk-size", "1", "-domain-type", "qemu"]);
        }
        if place.own_processes {
            command = in_own_process_namespace(&command);
        }
        if gateway.is_some() {
            command.arg("-gateway-socket").arg(dir.path().join("gateway.sock"));
        }
        let log = dir.path().join("daemon.log");
        let daemon = ProcessGuard::spawn("cloud-api-adaptor", &mut command, &log)?;
        let mut node = Self { daemon, gateway, pods, libvirtd, netns, before, dir };
        node.wait_serving().await?;
        Ok(node)
    }

    /// Kills the gateway as a crash would, and starts another one in its place.
    pub(crate) fn crash_and_restart_gateway(&mut self) -> Result<()> {
        let gateway = self.gateway.as_mut().context("this node has no gateway of its own")?;
        gateway.signal(nix::sys::signal::Signal::SIGKILL)?;
        gateway.wait_exit(SOON)?;
        self.gateway = Some(start_gateway(&self.netns, self.dir.path())?);
        Ok(())
    }

    /// Kills the daemon as a crash would, and starts another one in its place.
    pub(crate) async fn crash_and_restart(&mut self, args: &[&str]) -> Result<()> {
        self.daemon.signal(nix::sys::signal::Signal::SIGKILL)?;
        self.daemon.wait_exit(SOON)?;
        self.restart(args).await
    }

    /// Starts another daemon in the place of one that ended.
    pub(crate) async fn restart(&mut self, args: &[&str]) -> Result<()> {
        let mut command = command(&self.netns, self.dir.path(), "local", args);
        if self.gateway.is_some() {
            command.arg("-gateway-socket").arg(self.dir.path().join("gateway.sock"));
        }
        self.daemon =
            ProcessGuard::spawn("cloud-api-adaptor", &mut command, &self.dir.path().join("daemon.2.log"))?;
        self.wait_serving().await
    }

    /// Starts another daemon with the same files beside the one that runs.
    pub(crate) fn second(&self, args: &[&str]) -> Result<ProcessGuard> {
        let mut command = command(&self.netns, self.dir.path(), "local", args);
        if self.gateway.is_some() {
            command.arg("-gateway-socket").arg(self.dir.path().join("gateway.sock"));
        }
        let log = tempfile::Builder::new().prefix("daemon.").suffix(".log").tempfile_in(self.dir.path())?;
        ProcessGuard::spawn("cloud-api-adaptor", &mut command, &log.into_temp_path().keep()?)
    }

    /// Removes all instances through the provider, as nobody else knows of them any more.
    pub(crate) fn release_all(&self) -> Result<()> {
        let tokens = self.instances().into_iter().map(|dir| {
            let record: serde_json::Value = serde_json::from_slice(&fs::read(dir.join("instance.json"))?)?;
            Ok(serde_json::from_value::<cloud_providers::Token>(record["token"].clone())?)
        });
        let tokens = tokens.collect::<Result<Vec<_>>>()?;
        let data = self.dir.path().join("local").to_str().context("the path is text")?.to_owned();
        self.netns.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut cloud = (cloud_providers::lookup("local")?.new)();
                cloud.load_env(&cloud_providers::MapEnv::new([("LOCAL_DATA_DIR", data)]))?;
                let provider = cloud.new_provider().await?;
                for token in &tokens {
                    provider.release(&cloud_providers::OpContext::new(), token).await?;
                }
                Ok(provider.teardown().await?)
            })
        })
    }

    async fn wait_serving(&mut self) -> Result<()> {
        let socket = self.socket();
        let up = wait_for_async("the daemon to serve", SOON, || {
            let ended = self.daemon.try_status().is_some();
            let socket = socket.clone();
            async move {
                let answers =
                    async { ShimPlayer::connect(&socket, "probe").await.ok()?.version().await.ok() };
                if ended { Some(false) } else { answers.await.map(|_| true) }
            }
        });
        ensure!(up.await?, "the daemon ended: {}", self.daemon.last_lines(30));
        Ok(())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("hypervisor.sock")
    }

    pub(crate) async fn shim(&self, id: &str) -> Result<ShimPlayer> {
        ShimPlayer::connect(&self.socket(), id).await
    }

    /// Starts a shim in a process of its own, which calls at `socket`. It asks the agent for its health every quarter of
    /// a second and waits `patience` for the answer.
    pub(crate) fn shim_process(
        &self,
        socket: &Path,
        id: &str,
        pod: usize,
        patience: Duration,
    ) -> Result<ProcessGuard> {
        let mut command = Command::new(shim_program());
        command.env_clear().arg(socket).arg(id).arg(format!("pod-{pod}"));
        command.arg(self.pods[pod].netns.path()).arg("250").arg(patience.as_millis().to_string());
        ProcessGuard::spawn("shim-player", &mut command, &self.dir.path().join(format!("{id}.shim.log")))
    }

    /// Processes of the instance that serves a sandbox, with our process ids.
    pub(crate) fn processes_of(&self, sandbox: &str) -> Result<Vec<ProcessInfo>> {
        let (_, record) = self.record_of(sandbox)?;
        let first = record["process"]["pid"].as_i64().context("the record names the first process")?;
        let inode = fs::metadata(format!("/proc/{first}/ns/pid"))?.ino();
        Ok(processes_using_namespaces(&[inode]))
    }

    /// Takes a sandbox through CreateVM and StartVM.
    pub(crate) async fn sandbox(&self, id: &str, pod: usize) -> Result<(ShimPlayer, PathBuf), Status> {
        let shim = self.shim(id).await.map_err(|e| Status::internal(format!("{e:#}")))?;
        let socket = shim.create_vm(&format!("pod-{pod}"), &self.pods[pod].netns.path()).await?;
        shim.start_vm().await?;
        Ok((shim, socket))
    }

    /// Starts the web server of the test agent in a container of the sandbox.
    pub(crate) async fn web(&self, socket: &Path, id: &str) -> Result<AgentPlayer> {
        let agent = AgentPlayer::connect(socket).await?;
        agent.create_sandbox(id, "web").await?;
        agent
            .start_container(
                "web",
                &["/run/peerpod-local/guest/test-agent", "web", "--listen", "0.0.0.0:8080"],
            )
            .await?;
        Ok(agent)
    }

    /// Fetches the page of a pod from the node's side of the pod's interface.
    pub(crate) fn page(&self, pod: usize) -> Result<String> {
        let url = format!("http://{}:8080/", self.pods[pod].address);
        wait_for(&format!("a page at {url}"), SOON, || {
            self.netns.exec("curl", &["-s", "-m", "2", &url]).ok().filter(|t| !t.is_empty())
        })
    }

    /// Folders of the instances that there are.
    pub(crate) fn instances(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.path().join("local/instances")).into_iter().flatten();
        entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect()
    }

    /// Holds the locks of all instances, so that the provider cannot delete one until the answer is dropped.
    pub(crate) fn hold_locks(&self) -> Result<Vec<nix::fcntl::Flock<fs::File>>> {
        let lock = |dir: PathBuf| {
            let id = dir.file_name().context("an instance's folder has a name")?.to_owned();
            let path = self.dir.path().join("local/locks").join(id);
            let file = fs::File::options().create(true).truncate(false).write(true).open(&path)?;
            let arg = nix::fcntl::FlockArg::LockExclusiveNonblock;
            nix::fcntl::Flock::lock(file, arg)
                .map_err(|(_, errno)| anyhow::anyhow!("{}: {errno}", path.display()))
        };
        self.instances().into_iter().map(lock).collect()
    }

    /// The record of the instance that serves a sandbox.
    pub(crate) fn record_of(&self, sandbox: &str) -> Result<(PathBuf, serde_json::Value)> {
        for dir in self.instances() {
            let Ok(text) = fs::read_to_string(dir.join("instance.json")) else { continue };
            if text.contains(&format!("\"{sandbox}\"")) {
                return Ok((dir, serde_json::from_str(&text)?));
            }
        }
        bail!("no instance serves sandbox {sandbox}")
    }

    /// What is left of sandboxes and instances, in words.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> =
            self.instances().iter().map(|p| format!("instance {}", p.display())).collect();
        let pods = fs::read_dir(self.dir.path().join("pods")).into_iter().flatten();
        left.extend(pods.flatten().map(|e| format!("folder {}", e.path().display())));
        let mut compare =
            |name: &str, netns: &Netns, before: &NamespaceState| match NamespaceState::take(netns) {
                Ok(now) => {
                    left.extend(now.added_since(before).into_iter().map(|line| format!("{name}: {line}")));
                    left.extend(
                        now.missing_since(before).into_iter().map(|line| format!("{name} lost: {line}")),
                    );
                }
                Err(error) => left.push(format!("{name}: {error:#}")),
            };
        compare("node", &self.netns, &self.before);
        for pod in &self.pods {
            compare(pod.netns.name(), &pod.netns, &pod.before);
        }
        left
    }

    pub(crate) fn wait_empty(&self) -> Result<()> {
        wait_for("nothing to be left", SOON, || self.leftovers().is_empty().then_some(()))
            .with_context(|| format!("{:?}\n{}", self.leftovers(), self.daemon.last_lines(30)))
    }

    /// The daemon's log and the consoles, for a failing test.
    pub(crate) fn logs(&self) -> String {
        let mut text = self.daemon.last_lines(60);
        for dir in self.instances() {
            let console = fs::read_to_string(dir.join("console.log")).unwrap_or_default();
            text.push_str(&format!("\n--- {}\n{console}", dir.display()));
        }
        text
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A test that failed leaves its pods running: the daemon removes them when it is asked to end, and the provider does
        // when there is no daemon any more. Nothing can be done about a failure here but to say it.
        let ended = self.daemon.terminate(SOON);
        if !self.instances().is_empty()
            && let Err(error) = self.release_all()
        {
            eprintln!("instances are left in {}: {error:#} ({ended:?})", self.dir.path().display());
        }
    }
}

fn start_gateway(netns: &Netns, dir: &Path) -> Result<ProcessGuard> {
    let mut command = netns.command(gateway_program());
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let socket = dir.join("gateway.sock");
    command.arg("--control-socket").arg(&socket);
    let gateway = ProcessGuard::spawn("peerpod-gateway", &mut command, &dir.join("gateway.log"))?;
    wait_for("the gateway's socket", SOON, || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok().then_some(())
    })?;
    Ok(gateway)
}

/// Returns the command of a daemon whose files are all in `dir`, without our environment.
pub(crate) fn command(netns: &Netns, dir: &Path, provider: &str, args: &[&str]) -> Command {
    let mut command = netns.command(env!("CARGO_BIN_EXE_cloud-api-adaptor"));
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").arg(provider);
    for (flag, name) in [("-socket", "hypervisor.sock"), ("-pods-dir", "pods"), ("-state-dir", "state")] {
        command.arg(flag).arg(dir.join(name));
    }
    if provider == "local" {
        command.arg("-data-dir").arg(dir.join("local")).arg("-guest-dir").arg(guest_dir());
        command.arg("-agent").arg(guest_dir().join("test-agent"));
    }
    command.arg("-direct-volumes-dir").arg(dir.join("direct-volumes"));
    command.args(["-cluster-id", "caa-tests"]).args(args);
    command
}

/// Returns a command of a network namespace with a process namespace of its own around its program.
fn in_own_process_namespace(command: &Command) -> Command {
    let mut wrapped = Command::new(command.get_program());
    wrapped.env_clear();
    for (key, value) in command.get_envs() {
        wrapped.env(key, value.unwrap_or_default());
    }
    for arg in command.get_args() {
        wrapped.arg(arg);
        if arg == "--" {
            wrapped.args(["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--"]);
        }
    }
    wrapped
}

fn pod(node: &Netns, n: usize) -> Result<Pod> {
    let netns = Netns::unique("caa-pod")?;
    let (host_end, address) = (format!("veth{n}"), Ipv4Addr::new(10, 244, 1, u8::try_from(10 + n)?));
    node.veth(&host_end, &netns, "eth0")?;
    node.ip(&["link", "set", &host_end, "master", "cni0"])?;
    netns.ip(&["addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
    netns.default_route(GATEWAY.into())?;
    let before = NamespaceState::take(&netns)?;
    Ok(Pod { netns, address, before })
}

/// The nine annotations with some replaced.
pub(crate) fn annotations(pod: &str, more: &[(&str, &str)]) -> HashMap<String, String> {
    let mut all = ShimPlayer::annotations(pod);
    all.extend(more.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    all
}
