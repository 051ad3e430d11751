//! The worker machine as a node: pods with a network, gateway and daemon.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use test_support::{Netns, ProcessGuard, ShimPlayer, run, wait_for_async};

/// The address of the node on the network of its pods, which is their gateway and name server.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
const BRIDGE: &str = "cni0";
/// How long a program may take to come up, or to end.
const LIMIT: Duration = Duration::from_secs(60);

/// A pod's network on the node.
#[derive(Debug)]
pub struct PodNetwork {
    /// The pod's namespace.
    pub netns: Netns,
    /// The pod's address.
    pub address: Ipv4Addr,
}

/// The node. Everything that it made goes when it is dropped.
#[derive(Debug)]
pub struct Node {
    dir: PathBuf,
    programs: PathBuf,
    flags: Vec<OsString>,
    gateway: Option<ProcessGuard>,
    daemon: Option<ProcessGuard>,
    before: BTreeSet<String>,
    pods: u8,
}

impl Node {
    /// Makes the bridge of the pods, and keeps what the machine had before.
    ///
    /// # Errors
    ///
    /// When the bridge cannot be made, for lack of rights or since one of that name is there.
    pub fn new(dir: &Path, programs: &Path, flags: Vec<OsString>) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let before = links()?;
        run("ip", &["link", "add", BRIDGE, "type", "bridge"])?;
        let node = Self {
            dir: dir.to_owned(),
            programs: programs.to_owned(),
            flags,
            gateway: None,
            daemon: None,
            before,
            pods: 0,
        };
        run("ip", &["addr", "add", &format!("{NODE}/24"), "dev", BRIDGE])?;
        run("ip", &["link", "set", BRIDGE, "up"])?;
        Ok(node)
    }

    /// Makes the network of one more pod, as a plugin of the node's network would.
    ///
    /// # Errors
    ///
    /// When a namespace or a link cannot be made.
    pub fn add_pod(&mut self) -> Result<PodNetwork> {
        self.pods += 1;
        let address = Ipv4Addr::new(10, 244, 1, 9 + self.pods);
        let netns = Netns::unique("e2e-pod")?;
        let here = format!("veth{}", self.pods);
        let peer = ["peer", "name", "eth0", "netns", netns.name()];
        run("ip", &[["link", "add", &here, "type", "veth"].as_slice(), &peer].concat())?;
        run("ip", &["link", "set", &here, "master", BRIDGE, "up"])?;
        netns.ip(&["link", "set", "eth0", "up"])?;
        netns.ip(&["addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        netns.default_route(NODE.into())?;
        Ok(PodNetwork { netns, address })
    }

    /// Starts the gateway and the daemon, and waits until the daemon answers.
    ///
    /// # Errors
    ///
    /// Shows the last lines of a program that does not come up.
    pub async fn start(&mut self) -> Result<()> {
        let mut command = Command::new(self.programs.join("peerpod-gateway"));
        command.arg("--control-socket").arg(self.gateway_socket());
        let log = self.dir.join("gateway.log");
        let mut gateway = ProcessGuard::spawn("peerpod-gateway", &mut command, &log)?;
        let socket = self.gateway_socket();
        let up = wait_for_async("the gateway's control socket", LIMIT, || {
            let up = gateway.try_status().map(|_| false).or_else(|| socket.exists().then_some(true));
            async move { up }
        })
        .await;
        ensure!(up.is_ok_and(|up| up), "peerpod-gateway does not come up:\n{}", gateway.last_lines(20));
        self.gateway = Some(gateway);
        self.start_daemon().await
    }

    /// Starts the daemon, and waits until it answers.
    ///
    /// # Errors
    ///
    /// Shows the last lines of a daemon that does not come up.
    pub async fn start_daemon(&mut self) -> Result<()> {
        let mut command = Command::new(self.programs.join("cloud-api-adaptor"));
        command.arg("local").arg("-socket").arg(self.socket());
        for (flag, folder) in [("-pods-dir", "pods"), ("-state-dir", "state")] {
            command.arg(flag).arg(self.dir.join(folder));
        }
        command.arg("-data-dir").arg(self.data_dir()).arg("-guest-dir").arg(&self.programs);
        command.arg("-agent").arg(self.programs.join("test-agent"));
        command.arg("-gateway-socket").arg(self.gateway_socket()).args(&self.flags);
        let log = self.dir.join("daemon.log");
        let mut daemon = ProcessGuard::spawn("cloud-api-adaptor", &mut command, &log)?;
        let socket = self.socket();
        let up = wait_for_async("an answer of the daemon", LIMIT, || {
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
        Ok(())
    }

    /// Kills the daemon as a crash would.
    ///
    /// # Errors
    ///
    /// When none runs.
    pub fn kill_daemon(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        daemon.signal(Signal::SIGKILL)?;
        daemon.wait_exit(LIMIT).map(drop)
    }

    /// Ends daemon and gateway by the signal that asks for it.
    ///
    /// # Errors
    ///
    /// When one does not end, or not well.
    pub fn end(&mut self) -> Result<()> {
        for (name, program) in [("the daemon", self.daemon.take()), ("the gateway", self.gateway.take())] {
            let Some(mut program) = program else { continue };
            let status = program.terminate(LIMIT)?;
            ensure!(status.success(), "{name} ended with {status}:\n{}", program.last_lines(20));
        }
        Ok(())
    }

    /// The socket that shims call.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("hypervisor.sock")
    }

    fn gateway_socket(&self) -> PathBuf {
        self.dir.join("gateway.sock")
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.join("instances")
    }

    /// Ids of the instances that the daemon's provider has.
    pub fn instances(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.data_dir().join("instances")).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| !name.starts_with('.')).collect()
    }

    /// Names what pods left on the machine, once none is there.
    ///
    /// # Errors
    ///
    /// When it cannot be looked at.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        let mut left: Vec<String> = self.instances().into_iter().map(|id| format!("instance {id}")).collect();
        // The bridges of the pods and of the instances stay for the next ones.
        let ours = |name: &String| name != BRIDGE && !name.starts_with("ppbr");
        let now = links()?;
        left.extend(
            now.difference(&self.before).filter(|name| ours(name)).map(|name| format!("link {name}")),
        );
        left.extend(self.before.difference(&now).map(|name| format!("link {name} is gone")));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let dir = self.data_dir().display().to_string();
        left.extend(mounts.lines().filter(|line| line.contains(&dir)).map(|line| format!("mount {line}")));
        // The programs of guests are found there, whatever their folder is outside.
        let guests = test_support::processes_matching(test_support::PROGRAMS);
        left.extend(guests.iter().map(|process| format!("process {} {}", process.pid, process.command)));
        Ok(left)
    }

    /// The last lines of the logs.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let consoles = self.instances().into_iter().map(|id| format!("instances/instances/{id}/console.log"));
        for name in ["gateway.log".to_owned(), "daemon.log".to_owned()].into_iter().chain(consoles) {
            let all = std::fs::read(self.dir.join(&name)).unwrap_or_default();
            let all = String::from_utf8_lossy(&all).into_owned();
            let lines: Vec<&str> = all.lines().collect();
            text.push_str(&format!(
                "--- {name} ---\n{}\n",
                lines[lines.len().saturating_sub(40)..].join("\n")
            ));
        }
        text
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The machine goes with everything on it; this is for one that is used again.
        let _ = run("ip", &["link", "del", BRIDGE]);
    }
}

/// The names of the machine's links.
fn links() -> Result<BTreeSet<String>> {
    let text = run("ip", &["-oneline", "link", "show"])?;
    let name = |line: &str| {
        let name = line.split_whitespace().nth(1)?.trim_end_matches(':');
        Some(name.split('@').next()?.to_owned())
    };
    Ok(text.lines().filter_map(name).collect())
}
