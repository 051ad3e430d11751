//! The first process of a guest that has no systemd: instances of the `local` provider, and initramfs images.
//!
//! It prepares the pod's namespace, runs `process-user-data`, starts the agent, waits for its socket, starts the
//! forwarder, and from then on reaps, restarts and at last ends what it started. Each step is a line on the console.

mod children;
pub mod machine;
mod mounts;

use std::fmt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::Signal;
use tracing::{error, info, warn};

use self::children::{Children, Event};
use self::machine::Network;
use crate::paths;

/// Name of the pod's network namespace below `/run/netns`.
const PODNS: &str = "podns";
/// Pause between two looks for the agent's socket.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// First pause before a restart; it doubles with every further one.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// What the init is told.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Folder of `process-user-data` and `agent-protocol-forwarder`.
    pub guest_dir: PathBuf,
    /// The agent.
    pub agent: PathBuf,
    /// Arguments of the agent.
    pub agent_args: Vec<String>,
    /// Socket the agent makes.
    pub agent_socket: PathBuf,
    /// How long the agent may take to make it.
    pub agent_timeout: Duration,
    /// Port of the forwarder.
    pub forwarder_port: u16,
    /// Further options of the forwarder.
    pub forwarder_args: Vec<String>,
    /// Folder with the user data; the usual places when unset.
    pub user_data_dir: Option<PathBuf>,
    /// How long to wait for user data.
    pub user_data_timeout: Duration,
    /// How long a child may take to end after SIGTERM. The forwarder unmounts volumes meanwhile.
    pub end_timeout: Duration,
    /// Whether to mount `/proc`, `/sys`, `/dev` and `/run` where they are missing.
    pub mount: bool,
    /// How often the agent, and how often the forwarder, is started again.
    pub restarts: u32,
    /// How long a machine waits for an address; see [`machine`].
    pub address_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let guest_dir = PathBuf::from("/usr/libexec/peerpod");
        Self {
            agent: guest_dir.join("kata-agent"),
            guest_dir,
            agent_args: Vec::new(),
            agent_socket: paths::INIT_AGENT_SOCKET.into(),
            agent_timeout: Duration::from_secs(60),
            forwarder_port: 15150,
            forwarder_args: Vec::new(),
            user_data_dir: None,
            user_data_timeout: Duration::from_secs(180),
            end_timeout: Duration::from_secs(10),
            mount: false,
            restarts: 3,
            address_timeout: Duration::from_secs(120),
        }
    }
}

/// The step at which a guest failed, with an exit code of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Mounting, code 10.
    Mounts,
    /// Making the pod's namespace, code 11.
    Netns,
    /// `process-user-data`, code 12.
    UserData,
    /// The agent did not make its socket, code 13.
    AgentStart,
    /// The agent ended for good, code 14.
    Agent,
    /// The forwarder ended for good, code 15.
    Forwarder,
    /// Something of the init itself, code 16.
    Init,
    /// Leaving the initramfs of a machine, code 17.
    Root,
    /// Loading the drivers of a machine, code 18.
    Modules,
    /// The address of a machine, code 19.
    Network,
    /// The program of a machine that one logs in to ended for good, code 20.
    Machine,
}

impl Step {
    /// Every step, by exit code.
    pub const ALL: [Self; 11] = [
        Self::Mounts,
        Self::Netns,
        Self::UserData,
        Self::AgentStart,
        Self::Agent,
        Self::Forwarder,
        Self::Init,
        Self::Root,
        Self::Modules,
        Self::Network,
        Self::Machine,
    ];

    /// Says what a failure at this step means, in a few words.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Mounts => "mounts",
            Self::Netns => "pod namespace",
            Self::UserData => "user data",
            Self::AgentStart => "the agent made no socket in time",
            Self::Agent => "the agent cannot be started, or ended for good",
            Self::Forwarder => "the forwarder cannot be started, or ended for good",
            Self::Init => "something of the init itself",
            Self::Root => "move to the root; as process 1 of a machine, seen on its console only",
            Self::Modules => "drivers; likewise",
            Self::Network => "the machine's network; likewise",
            Self::Machine => "the program of a machine to log in to ended for good; likewise",
        }
    }

    /// Exit code of a failure at this step.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Mounts => 10,
            Self::Netns => 11,
            Self::UserData => 12,
            Self::AgentStart => 13,
            Self::Agent => 14,
            Self::Forwarder => 15,
            Self::Init => 16,
            Self::Root => 17,
            Self::Modules => 18,
            Self::Network => 19,
            Self::Machine => 20,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mounts => "mounts",
            Self::Netns => "pod namespace",
            Self::UserData => "user data",
            Self::AgentStart => "start of the agent",
            Self::Agent => "agent",
            Self::Forwarder => "forwarder",
            Self::Init => "init",
            Self::Root => "move to the root",
            Self::Modules => "drivers",
            Self::Network => "network",
            Self::Machine => "machine",
        })
    }
}

/// A child that is kept running.
struct Kept {
    name: &'static str,
    step: Step,
    pid: Option<i32>,
    restarts: u32,
    restarts_allowed: u32,
    start_at: Option<Instant>,
}

/// Runs the guest until a signal ends it or a child is gone for good.
///
/// # Errors
///
/// The step that failed, and why. Everything started was ended by then.
pub fn run(options: &Options) -> Result<(), (Step, anyhow::Error)> {
    let mut children = Children::new(None).map_err(|error| (Step::Init, error))?;
    info!(version = crate::VERSION, pid = std::process::id(), "init is up");
    run_with(options, &mut children, None)
}

/// Runs the guest with children that may be there already, and ends all of them.
fn run_with(
    options: &Options,
    children: &mut Children,
    network: Option<Network>,
) -> Result<(), (Step, anyhow::Error)> {
    ended_with(options, children, |children| boot_and_watch(options, children, network))
}

/// Runs `work`, tells why it failed, and ends all children.
fn ended_with(
    options: &Options,
    children: &mut Children,
    work: impl FnOnce(&mut Children) -> Result<(), (Step, anyhow::Error)>,
) -> Result<(), (Step, anyhow::Error)> {
    let result = work(children);
    if let Err((step, reason)) = &result {
        error!(step = %step, reason = format!("{reason:#}"), "the guest ends");
    }
    end_all(children, options.end_timeout);
    result
}

fn boot_and_watch(
    options: &Options,
    children: &mut Children,
    mut network: Option<Network>,
) -> Result<(), (Step, anyhow::Error)> {
    if options.mount {
        mounts::mount_missing().map_err(|error| (Step::Mounts, error))?;
    }
    make_netns().map_err(|error| (Step::Netns, error))?;
    let provision = children.start("process-user-data", &mut provision(options));
    let provision = provision.map_err(|error| (Step::UserData, error))?;
    loop {
        match children.next(None) {
            Event::Stop => return Ok(()),
            Event::Ended { pid, how } if pid == provision => match how.success() {
                true => break,
                false => return Err((Step::UserData, anyhow!("process-user-data ended ({how})"))),
            },
            Event::Ended { pid, how } => network_ended(&mut network, pid, &how)?,
            Event::Timeout => {}
        }
    }
    let mut agent = Kept::new("agent", Step::Agent, options.restarts);
    let mut forwarder = Kept::new("forwarder", Step::Forwarder, options.restarts);
    make_socket_folder(options).map_err(|error| (Step::AgentStart, error))?;
    forget_socket(options);
    agent.start(children, &mut agent_command(options))?;
    let deadline = Instant::now() + options.agent_timeout;
    while !is_socket(&options.agent_socket) {
        if Instant::now() >= deadline {
            let (socket, seconds) = (options.agent_socket.display(), options.agent_timeout.as_secs());
            return Err((Step::AgentStart, anyhow!("no socket {socket} after {seconds} s")));
        }
        match children.next(Some(LOOK_AGAIN)) {
            Event::Stop => return Ok(()),
            Event::Ended { pid, how } if agent.pid == Some(pid) => agent.ended(&how.to_string())?,
            Event::Ended { pid, how } => network_ended(&mut network, pid, &how)?,
            Event::Timeout => {}
        }
        agent.restart_when_due(children, || agent_command(options))?;
    }
    info!(socket = %options.agent_socket.display(), "the agent listens");
    if let Some(network) = &mut network
        && !network.wait(children)?
    {
        return Ok(());
    }
    forwarder.start(children, &mut forwarder_command(options))?;
    loop {
        let clients = network.as_ref().and_then(Network::due);
        let due = [agent.start_at, forwarder.start_at, clients].into_iter().flatten().min();
        let wait = due.map(|due| due.saturating_duration_since(Instant::now()));
        match children.next(wait) {
            Event::Stop => {
                info!("stopping");
                // The forwarder goes first: it unmounts volumes and closes the way in.
                end(children, &forwarder, options.end_timeout);
                return Ok(());
            }
            Event::Ended { pid, how } if agent.pid == Some(pid) => {
                forget_socket(options);
                agent.ended(&how.to_string())?;
            }
            Event::Ended { pid, how } if forwarder.pid == Some(pid) => forwarder.ended(&how.to_string())?,
            Event::Ended { pid, how } => network_ended(&mut network, pid, &how)?,
            Event::Timeout => {}
        }
        if let Some(network) = &mut network {
            network.restart_when_due(children)?;
        }
        agent.restart_when_due(children, || agent_command(options))?;
        forwarder.restart_when_due(children, || forwarder_command(options))?;
    }
}

fn network_ended(
    network: &mut Option<Network>,
    pid: i32,
    how: &ExitStatus,
) -> Result<(), (Step, anyhow::Error)> {
    match network {
        Some(network) => network.ended(pid, &how.to_string()).map(drop),
        None => Ok(()),
    }
}

impl Kept {
    fn new(name: &'static str, step: Step, restarts: u32) -> Self {
        Self { name, step, pid: None, restarts: 0, restarts_allowed: restarts, start_at: None }
    }

    fn start(&mut self, children: &mut Children, command: &mut Command) -> Result<(), (Step, anyhow::Error)> {
        self.pid = Some(children.start(self.name, command).map_err(|error| (self.step, error))?);
        self.start_at = None;
        Ok(())
    }

    /// Plans a restart, or gives up.
    fn ended(&mut self, how: &str) -> Result<(), (Step, anyhow::Error)> {
        self.pid = None;
        if self.restarts == self.restarts_allowed {
            return Err((
                self.step,
                anyhow!("the {} ended ({how}) after {} restarts", self.name, self.restarts),
            ));
        }
        let pause = RESTART_PAUSE * (1 << self.restarts.min(5));
        self.restarts += 1;
        warn!(child = self.name, how, pause = ?pause, restart = self.restarts, "ended, starting again");
        self.start_at = Some(Instant::now() + pause);
        Ok(())
    }

    fn restart_when_due(
        &mut self,
        children: &mut Children,
        command: impl FnOnce() -> Command,
    ) -> Result<(), (Step, anyhow::Error)> {
        match self.start_at {
            Some(due) if due <= Instant::now() => self.start(children, &mut command()),
            _ => Ok(()),
        }
    }
}

fn end(children: &mut Children, kept: &Kept, limit: Duration) {
    if let Some(pid) = kept.pid {
        children.signal(pid, Signal::SIGTERM);
        if !children.wait_for_end(Some(pid), limit) {
            warn!(child = kept.name, "did not end in time");
        }
    }
}

/// Asks everything that is left to end, and insists after a while.
fn end_all(children: &mut Children, limit: Duration) {
    children.signal_all(Signal::SIGTERM);
    if !children.wait_for_end(None, limit) {
        warn!("some children did not end in time and are killed");
        children.signal_all(Signal::SIGKILL);
        children.wait_for_end(None, limit);
    }
    info!("init ends");
}

fn provision(options: &Options) -> Command {
    let mut command = Command::new(options.guest_dir.join("process-user-data"));
    command.arg("provision-files");
    command.args(["--user-data-fetch-timeout", &options.user_data_timeout.as_secs().to_string()]);
    if let Some(dir) = &options.user_data_dir {
        command.arg("--user-data-dir").arg(dir);
    }
    command
}

fn agent_command(options: &Options) -> Command {
    let mut command = Command::new(&options.agent);
    command.args(&options.agent_args);
    // The Kata agent listens on a vsock unless it is told.
    command.env("KATA_AGENT_SERVER_ADDR", format!("unix://{}", options.agent_socket.display()));
    command
}

fn forwarder_command(options: &Options) -> Command {
    let mut command = Command::new(options.guest_dir.join("agent-protocol-forwarder"));
    command.arg("-listen").arg(format!("0.0.0.0:{}", options.forwarder_port));
    command.arg("-kata-agent-socket").arg(&options.agent_socket);
    command.args(&options.forwarder_args);
    command
}

fn make_netns() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // A namespace of that name is left by an init that was killed in the same mounts; its devices are stale.
        peerpod_net::netns::delete(PODNS).context("remove the old namespace")?;
        let path = peerpod_net::netns::create(PODNS).await.context("make the namespace")?;
        info!(path = %path.display(), "pod namespace is made");
        Ok(())
    })
}

/// The Kata agent binds its socket only in a folder that is there.
fn make_socket_folder(options: &Options) -> Result<()> {
    let Some(folder) = options.agent_socket.parent() else { return Ok(()) };
    std::fs::create_dir_all(folder).with_context(|| format!("make {} (set --agent-socket)", folder.display()))
}

/// Removes a socket without an owner: it would make the next agent look ready at once.
fn forget_socket(options: &Options) {
    if is_socket(&options.agent_socket)
        && let Err(error) = std::fs::remove_file(&options.agent_socket)
    {
        warn!(socket = %options.agent_socket.display(), %error, "a stale socket stays");
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}
