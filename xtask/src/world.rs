//! A stand-in for a node with pods: namespaces, a bridge as a CNI plugin makes it, the daemon and its gateway.
//!
//! ```text
//! outside ── veth ── node: eth0 192.0.2.2/24, default route
//!                      │ daemon, gateway, ppbr0 with the instances
//!                      │ cni0 10.244.1.1/24 ── veth ── pod N: eth0 10.244.1.(10+N)/24
//! ```
//!
//! The namespace in which we run is never touched.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use test_support::{NamespaceState, Netns, ProcessGuard, ShimPlayer, wait_for_async};

use crate::leftovers::{self, Seen};
use crate::machines::{GuestSystem, Machines, Provider};
use crate::programs::Node;

/// What every folder of a stand-in begins with, under the folder for temporary files.
pub(crate) const PREFIX: &str = "ppdemo-";
/// The address of the node on its bridge for pods.
pub(crate) const NODE_POD_SIDE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
/// The address of what is outside of the node, as the node reaches it.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The port on which the forwarder of a guest listens.
pub(crate) const FORWARDER_PORT: u16 = 15150;

const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9201);
const START_LIMIT: Duration = Duration::from_secs(30);
const END_LIMIT: Duration = Duration::from_secs(90);

/// Who owns the agent sockets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum GatewayMode {
    /// The program `peerpod-gateway`, as on a real node.
    Process,
    /// The daemon itself.
    InProcess,
}

/// A pod's network namespace.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) netns: Netns,
    pub(crate) address: Ipv4Addr,
    before: NamespaceState,
}

/// How the daemon is started beside what every stand-in needs.
#[derive(Clone, Debug)]
pub(crate) struct DaemonSettings {
    /// More arguments.
    pub(crate) args: Vec<OsString>,
    /// Its environment, beside the search path.
    pub(crate) env: Vec<(String, OsString)>,
}

impl Default for DaemonSettings {
    fn default() -> Self {
        // The played shim ends with this task, and with --keep its pod is to stay.
        let args = ["-pod-loss-grace", "8760h", "-peerpods-limit-per-node", "-1"];
        Self { args: args.map(OsString::from).into(), env: Vec::new() }
    }
}

/// What is written down so that `--clean` finds it.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Marker {
    /// The processes to end, the daemon first.
    pub(crate) pids: Vec<u32>,
    /// The namespaces to delete.
    pub(crate) netns: Vec<String>,
    /// The task that made it; when it is gone, nobody else will clean up.
    pub(crate) owner: u32,
    /// Whether it is meant to stay when its owner ends.
    pub(crate) kept: bool,
}

/// The stand-in. Dropping it ends and deletes everything.
#[derive(Debug)]
pub(crate) struct World {
    /// All files are in here.
    pub(crate) dir: PathBuf,
    /// The node's namespace.
    pub(crate) node: Netns,
    /// What makes the instances. It is gone when the world is kept.
    machines: Option<Box<dyn Machines>>,
    provider: Provider,
    outside: Netns,
    pods: Vec<Pod>,
    daemon: Option<ProcessGuard>,
    gateway: Option<ProcessGuard>,
    caactl: PathBuf,
    settings: DaemonSettings,
    before: NamespaceState,
    /// Namespaces of instances that were seen.
    instances: Seen,
    /// Ids of instances that were seen.
    ids: BTreeSet<String>,
    host_links: BTreeSet<String>,
    kept: bool,
}

impl World {
    /// Makes the namespaces and sets up what makes instances.
    ///
    /// # Errors
    ///
    /// When a namespace cannot be made, most often for lack of rights, or a server does not come up.
    pub(crate) fn new(provider: Provider, guest: &GuestSystem, uri: Option<&str>) -> Result<Self> {
        let host_links = leftovers::host_links();
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in("/tmp")?.keep();
        let name = |part: &str| format!("{PREFIX}{}-{part}", std::process::id());
        let (node_name, outside_name) = (name("node"), name("net"));
        let built = (|| {
            // Whoever is killed from here on leaves what `--clean` finds.
            let marker = Marker {
                netns: vec![node_name.clone(), outside_name.clone()],
                owner: std::process::id(),
                ..Marker::default()
            };
            std::fs::write(dir.join("demo.json"), serde_json::to_vec_pretty(&marker)?)?;
            let node = Netns::create(&node_name)?;
            let outside = Netns::create(&outside_name)?;
            node.veth("eth0", &outside, "node")?;
            node.ip(&["addr", "add", "192.0.2.2/24", "dev", "eth0"])?;
            outside.ip(&["addr", "add", &format!("{OUTSIDE}/24"), "dev", "node"])?;
            node.default_route(OUTSIDE.into())?;
            node.bridge("cni0", &format!("{NODE_POD_SIDE}/24"))?;
            let machines = provider.set_up(&node, &dir, guest, uri)?;
            let before = NamespaceState::take(&node)?;
            anyhow::Ok((node, outside, machines, before))
        })();
        let (node, outside, machines, before) = built.inspect_err(|_| {
            let _ = std::fs::remove_dir_all(&dir);
        })?;
        let world = Self {
            dir,
            node,
            machines: Some(machines),
            provider,
            outside,
            pods: Vec::new(),
            daemon: None,
            gateway: None,
            caactl: PathBuf::new(),
            settings: DaemonSettings::default(),
            before,
            instances: Seen::default(),
            ids: BTreeSet::new(),
            host_links,
            kept: false,
        };
        world.write_marker()?;
        Ok(world)
    }

    /// Makes the namespace of one more pod and returns its index.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be made.
    pub(crate) fn add_pod(&mut self) -> Result<usize> {
        let index = self.pods.len();
        let last = u8::try_from(10 + index % 240)?;
        let address = Ipv4Addr::new(10, 244, 1, last);
        let netns = Netns::create(&format!("{PREFIX}{}-pod{index}", std::process::id()))?;
        let host_end = format!("veth{index}");
        self.node.veth(&host_end, &netns, "eth0")?;
        self.node.ip(&["link", "set", &host_end, "master", "cni0"])?;
        netns.ip(&["addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        netns.default_route(NODE_POD_SIDE.into())?;
        let before = NamespaceState::take(&netns)?;
        self.pods.push(Pod { netns, address, before });
        self.before =
            NamespaceState::take(&self.node).map(|now| self.before.clone().with(&now, &host_end))?;
        self.write_marker()?;
        Ok(index)
    }

    /// Returns a pod.
    pub(crate) fn pod(&self, index: usize) -> &Pod {
        &self.pods[index]
    }

    /// Has the daemon started otherwise from now on.
    pub(crate) fn set_daemon(&mut self, settings: DaemonSettings) {
        self.settings = settings;
    }

    /// The namespace outside of the node, reached from it at [`OUTSIDE`].
    pub(crate) fn outside(&self) -> &Netns {
        &self.outside
    }

    /// Starts the gateway, when it is a program of its own, and the daemon, and waits until the daemon answers.
    ///
    /// # Errors
    ///
    /// Shows the last lines of a program that does not come up.
    pub(crate) async fn start(&mut self, node: &Node, mode: GatewayMode) -> Result<()> {
        let dir = self.dir.clone();
        if let Some(caactl) = &node.caactl {
            self.caactl.clone_from(caactl);
        }
        if mode == GatewayMode::Process {
            let mut command = self.clean_command(&node.gateway);
            command.arg("--control-socket").arg(self.gateway_socket());
            let mut gateway = ProcessGuard::spawn("peerpod-gateway", &mut command, &dir.join("gateway.log"))?;
            let socket = self.gateway_socket();
            let up = wait_for_async("the gateway's control socket", START_LIMIT, || {
                let up = gateway.try_status().map(|_| false).or_else(|| socket.exists().then_some(true));
                async move { up }
            })
            .await;
            ensure!(up.is_ok_and(|up| up), "peerpod-gateway does not come up:\n{}", gateway.last_lines(20));
            self.gateway = Some(gateway);
        }
        self.start_daemon(node).await
    }

    /// Kills the daemon as a crash would.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub(crate) fn kill_daemon(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        daemon.signal(Signal::SIGKILL)?;
        daemon.wait_exit(START_LIMIT).map(drop)
    }

    /// Starts the daemon, and waits until it answers.
    ///
    /// # Errors
    ///
    /// Shows the last lines of a daemon that does not come up.
    pub(crate) async fn start_daemon(&mut self, node: &Node) -> Result<()> {
        let dir = self.dir.clone();
        let mut command = self.clean_command(&node.daemon);
        command.arg(self.provider.name()).arg("-socket").arg(self.socket());
        for (flag, folder) in
            [("-pods-dir", "pods"), ("-state-dir", "state"), ("-direct-volumes-dir", "direct-volumes")]
        {
            command.arg(flag).arg(dir.join(folder));
        }
        command.arg("-metrics-address").arg(METRICS.to_string()).args(self.machines().flags());
        command.args(&self.settings.args).envs(self.settings.env.iter().cloned());
        if self.gateway.is_some() {
            command.arg("-gateway-socket").arg(self.gateway_socket());
        }
        let mut daemon = ProcessGuard::spawn("cloud-api-adaptor", &mut command, &dir.join("daemon.log"))?;
        let socket = self.socket();
        let up = wait_for_async("an answer of the daemon", START_LIMIT, || {
            let (socket, ended) = (socket.clone(), daemon.try_status().is_some());
            async move {
                if ended {
                    return Some(false);
                }
                let shim = ShimPlayer::connect(&socket, "probe").await.ok()?;
                shim.version().await.ok().map(|_| true)
            }
        })
        .await;
        ensure!(up.is_ok_and(|up| up), "cloud-api-adaptor does not come up:\n{}", daemon.last_lines(40));
        self.daemon = Some(daemon);
        self.write_marker()
    }

    /// A command inside the node, without our environment: a variable of the caller must not change the daemon.
    pub(crate) fn clean_command(&self, program: &Path) -> Command {
        let mut command = self.node.command(program);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("RUST_BACKTRACE", "1");
        command
    }

    /// The socket that shims call.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("hypervisor.sock")
    }

    fn gateway_socket(&self) -> PathBuf {
        self.dir.join("gateway.sock")
    }

    /// The tool that talks to the daemon.
    pub(crate) fn caactl(&self) -> &Path {
        &self.caactl
    }

    /// Returns the daemon's process id.
    pub(crate) fn daemon_pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(ProcessGuard::pid)
    }

    /// Returns the gateway's process id, when it is a program of its own.
    pub(crate) fn gateway_pid(&self) -> Option<u32> {
        self.gateway.as_ref().map(ProcessGuard::pid)
    }

    /// Fetches the daemon's metrics.
    ///
    /// # Errors
    ///
    /// When the daemon does not answer.
    pub(crate) fn metrics(&self) -> Result<String> {
        crate::http::get(&self.node, METRICS, "/metrics")
    }

    /// How long a start may take.
    pub(crate) fn start_limit(&self) -> Duration {
        self.provider.start_limit()
    }

    /// What makes the instances.
    pub(crate) fn machines(&self) -> &dyn Machines {
        self.machines.as_deref().expect("it is taken only by what consumes the world")
    }

    /// Returns the ids of the instances that there are.
    ///
    /// # Errors
    ///
    /// When they cannot be listed.
    pub(crate) fn instances(&self) -> Result<Vec<String>> {
        self.machines().instances()
    }

    /// The folder in which the daemon looks for descriptions of direct volumes.
    pub(crate) fn direct_volumes(&self) -> PathBuf {
        self.dir.join("direct-volumes")
    }

    /// Remembers the namespaces of the instances that run now, to look for them later.
    pub(crate) fn note_instances(&mut self) {
        let mut shared = leftovers::own_namespaces();
        shared.extend(self.node.inode());
        shared.extend(self.pods.iter().filter_map(|pod| pod.netns.inode().ok()));
        let programs =
            [self.daemon_pid(), self.gateway_pid()].map(|pid| pid.and_then(|pid| i32::try_from(pid).ok()));
        let mut living = leftovers::processes_of(&self.dir);
        living.retain(|process| !programs.contains(&Some(process.pid)));
        self.instances.note(&living, &shared);
        self.ids.extend(self.instances().unwrap_or_default());
    }

    /// Waits until no instance is left.
    ///
    /// # Errors
    ///
    /// Names those that stay.
    pub(crate) async fn wait_until_empty(&self, limit: Duration) -> Result<()> {
        let empty = wait_for_async("the instances to go", limit, || async {
            self.instances().is_ok_and(|ids| ids.is_empty()).then_some(())
        });
        empty.await.with_context(|| format!("still there: {:?}", self.instances()))
    }

    /// Ends the daemon and the gateway as a service manager does.
    ///
    /// # Errors
    ///
    /// When one of them does not end, or ends with a failure.
    pub(crate) fn end(&mut self) -> Result<()> {
        for guard in [&mut self.daemon, &mut self.gateway] {
            if let Some(process) = guard.as_mut() {
                let status: ExitStatus = process.terminate(END_LIMIT)?;
                ensure!(status.success(), "a program ended with {status}:\n{}", process.last_lines(20));
            }
        }
        self.daemon = None;
        self.gateway = None;
        Ok(())
    }

    /// Names everything that the programs left behind, while the stand-in namespaces are still there.
    ///
    /// # Errors
    ///
    /// When a namespace cannot be looked at.
    pub(crate) fn leftovers(&mut self) -> Result<Vec<String>> {
        let mut found = leftovers::in_namespace("node", &NamespaceState::take(&self.node)?, &self.before);
        for (index, pod) in self.pods.iter().enumerate() {
            let now = NamespaceState::take(&pod.netns)?;
            found.extend(leftovers::in_namespace(&format!("pod {index}"), &now, &pod.before));
        }
        found.extend(self.machines().leftovers()?);
        if let Some(machines) = &mut self.machines {
            found.extend(machines.end()?);
        }
        found.extend(leftovers::processes(&self.dir, &self.instances));
        found.extend(leftovers::mounts(&self.dir));
        found.extend(leftovers::control_groups(&self.ids));
        found.extend(leftovers::files(&self.dir));
        Ok(found)
    }

    /// Deletes the stand-in and names what the host still has of it.
    pub(crate) fn delete(mut self) -> Vec<String> {
        self.remove_all();
        let mut found = leftovers::on_host(&format!("{PREFIX}{}-", std::process::id()), &self.host_links);
        if self.dir.exists() {
            found.push(format!("file: {}", self.dir.display()));
        }
        self.kept = true;
        found
    }

    /// Leaves everything running.
    ///
    /// # Errors
    ///
    /// When the marker for `--clean` cannot be written.
    pub(crate) fn keep(mut self) -> Result<()> {
        self.kept = true;
        self.write_marker()?;
        for guard in [self.daemon.take(), self.gateway.take()].into_iter().flatten() {
            guard.keep();
        }
        if let Some(machines) = self.machines.take() {
            machines.keep()?;
        }
        // Their guards would delete them.
        std::mem::forget(self);
        Ok(())
    }

    /// Returns the last lines of the daemon's log and of what instances wrote.
    pub(crate) fn logs(&self, lines: usize) -> String {
        let mut files = vec![self.dir.join("daemon.log"), self.dir.join("gateway.log")];
        files.extend(self.machines().logs());
        let mut out = String::new();
        for file in files {
            let Ok(bytes) = std::fs::read(&file) else { continue };
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            let tail = all[all.len().saturating_sub(lines)..].join("\n");
            out.push_str(&format!("--- {} ---\n{tail}\n", file.display()));
        }
        out
    }

    fn write_marker(&self) -> Result<()> {
        let netns =
            std::iter::once(&self.node).chain([&self.outside]).chain(self.pods.iter().map(|pod| &pod.netns));
        let marker = Marker {
            pids: [self.daemon_pid(), self.gateway_pid()].into_iter().flatten().collect(),
            netns: netns.map(|netns| netns.name().to_owned()).collect(),
            owner: std::process::id(),
            kept: self.kept,
        };
        Ok(std::fs::write(self.dir.join("demo.json"), serde_json::to_vec_pretty(&marker)?)?)
    }

    /// Ends what runs, by force where asking does not help, and deletes namespaces and files.
    fn remove_all(&mut self) {
        if self.machines.is_some() {
            self.note_instances();
        }
        for guard in [&mut self.daemon, &mut self.gateway] {
            // The daemon removes its instances when it is asked to end; the guard kills it when it does not.
            if let Some(mut process) = guard.take()
                && process.terminate(Duration::from_secs(20)).is_err()
            {
                let _ = process.signal(Signal::SIGKILL);
            }
        }
        self.machines = None;
        leftovers::kill_all(&self.dir, &self.instances);
        self.pods.clear();
        for netns in [self.node.name().to_owned(), self.outside.name().to_owned()] {
            // The guards of these two are fields; deleting by a second guard makes theirs do nothing.
            drop(Netns::adopt(&netns));
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("{} could not be removed: {error}", self.dir.display());
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !self.kept {
            self.remove_all();
        }
    }
}
