//! Containers and their processes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Error;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use peerpod_proto::messages::oci;
use peerpod_proto::status::{Code, Status};
use tokio::sync::watch;

use crate::spawn::{self, Started, Surroundings};
use crate::stdio::Streams;

/// A container between CreateContainer and RemoveContainer.
pub(crate) struct Container {
    pub(crate) init: Arc<Process>,
    around: Surroundings,
    execs: Mutex<HashMap<String, Arc<Process>>>,
}

/// A process that is described, then runs, then has ended.
pub(crate) struct Process {
    description: oci::Process,
    state: watch::Sender<State>,
    waited: Mutex<bool>,
}

#[derive(Clone, Default)]
enum State {
    #[default]
    Described,
    Running {
        pid: i32,
        streams: Arc<Streams>,
        exit: watch::Receiver<Option<i32>>,
    },
    /// It never ran and never will.
    Failed,
}

impl Container {
    /// Reads what is needed from the specification.
    ///
    /// # Errors
    ///
    /// No specification, no process, or no network namespace: without one the process would run in the network of
    /// the agent, which is the mistake this agent exists to show.
    pub(crate) fn new(root: &Path, hostname: &str, spec: Option<oci::Spec>) -> Result<Self, Status> {
        let spec = spec.ok_or_else(|| Status::invalid_argument("the request has no OCI specification"))?;
        let process =
            spec.process.ok_or_else(|| Status::invalid_argument("the OCI specification has no process"))?;
        let namespaces = spec.linux.map(|linux| linux.namespaces).unwrap_or_default();
        let paths: Vec<_> = namespaces.iter().filter(|n| n.kind == "network").map(|n| &n.path).collect();
        let netns = match paths.as_slice() {
            [path] if !path.is_empty() => PathBuf::from(path),
            [] => {
                return Err(Status::invalid_argument(
                    "the OCI specification names no network namespace: the forwarder should have added one",
                ));
            }
            _ => {
                return Err(Status::invalid_argument(format!(
                    "network namespaces {paths:?}: one path is needed"
                )));
            }
        };
        let below = |path: &str| root.join(path.strip_prefix('/').unwrap_or(path));
        let binds = spec
            .mounts
            .iter()
            .filter(|mount| mount.kind == "bind" || mount.options.iter().any(|o| o == "bind" || o == "rbind"))
            .map(|mount| {
                let read_only = mount.options.iter().any(|option| option == "ro");
                (below(&mount.source), PathBuf::from(&mount.destination), read_only)
            })
            .collect();
        let rootfs = spec.root.map(|root| below(&root.path)).filter(|path| has_entries(path));
        let hostname = if spec.hostname.is_empty() { hostname.to_owned() } else { spec.hostname };
        let around = Surroundings { netns, hostname, rootfs, binds, join: None };
        Ok(Self { init: Arc::new(Process::new(process)), around, execs: Mutex::default() })
    }

    /// Starts the container's first process.
    pub(crate) async fn start(&self) -> Result<i32, Status> {
        if !matches!(*self.init.state.borrow(), State::Described) {
            return Err(Status::new(Code::FailedPrecondition, "the container was started before"));
        }
        self.init.start(self.around.clone()).await
    }

    /// Starts a further process beside the first one.
    pub(crate) async fn exec(&self, id: &str, description: oci::Process) -> Result<i32, Status> {
        let join = match (self.init.pid(), self.init.exit_code()) {
            (Some(pid), None) => pid,
            _ => return Err(Status::new(Code::FailedPrecondition, "the container is not running")),
        };
        let process = Arc::new(Process::new(description));
        {
            let mut execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
            if execs.contains_key(id) {
                return Err(Status::new(Code::AlreadyExists, format!("exec {id} exists")));
            }
            execs.insert(id.to_owned(), process.clone());
        }
        let started = process.start(Surroundings { join: Some(join), ..self.around.clone() }).await;
        if started.is_err() {
            self.execs.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        }
        started
    }

    /// The process with an exec id; without one the first process.
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>, Status> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        execs.get(exec_id).cloned().ok_or_else(invalid_exec)
    }

    /// Ends every process of the container; answers whether all were gone within `bound`.
    pub(crate) async fn kill_all(&self, bound: Duration) -> bool {
        let mut all: Vec<_> =
            self.execs.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.push(self.init.clone());
        let ended = async {
            for process in all {
                if process.pid().is_some() {
                    process.kill_group();
                    process.wait().await;
                } else {
                    // Whoever waits for its start or its end learns that neither will come.
                    process.state.send_replace(State::Failed);
                }
            }
        };
        tokio::time::timeout(bound, ended).await.is_ok()
    }
}

impl Process {
    fn new(description: oci::Process) -> Self {
        Self { description, state: watch::Sender::default(), waited: Mutex::default() }
    }

    async fn start(&self, around: Surroundings) -> Result<i32, Status> {
        match spawn::start(self.description.clone(), around).await {
            Ok(Started { pid, streams, exit }) => {
                self.state.send_replace(State::Running { pid, streams: Arc::new(streams), exit });
                Ok(pid)
            }
            Err(error) => {
                self.state.send_replace(State::Failed);
                Err(refused(&error))
            }
        }
    }

    /// Its id, once it was started.
    pub(crate) fn pid(&self) -> Option<i32> {
        match &*self.state.borrow() {
            State::Running { pid, .. } => Some(*pid),
            _ => None,
        }
    }

    /// Its exit code, once it has ended.
    pub(crate) fn exit_code(&self) -> Option<i32> {
        match &*self.state.borrow() {
            State::Running { exit, .. } => *exit.borrow(),
            _ => None,
        }
    }

    /// Its streams, as soon as it is started.
    pub(crate) async fn streams(&self) -> Result<Arc<Streams>, Status> {
        let mut state = self.state.subscribe();
        let state = state.wait_for(|state| !matches!(state, State::Described)).await;
        match state.as_deref() {
            Ok(State::Running { streams, .. }) => Ok(streams.clone()),
            _ => Err(Status::new(Code::FailedPrecondition, "the process was not started")),
        }
    }

    /// Waits for its end; the code is the same for everyone who asks.
    pub(crate) async fn wait(&self) -> i32 {
        let exit = {
            let mut state = self.state.subscribe();
            match state.wait_for(|state| !matches!(state, State::Described)).await.as_deref() {
                Ok(State::Running { exit, .. }) => Some(exit.clone()),
                _ => None,
            }
        };
        match exit {
            Some(mut exit) => exit.wait_for(Option::is_some).await.map_or(255, |code| code.unwrap_or(255)),
            None => 255,
        }
    }

    /// Remembers that somebody was told how it ended.
    pub(crate) fn set_waited(&self) {
        *self.waited.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Sends a signal: the one that cannot be caught to the whole group, others to the process.
    ///
    /// # Errors
    ///
    /// For an exec whose end was told: the agent has forgotten it by then.
    pub(crate) fn signal(&self, number: u32, is_exec: bool) -> Result<(), Status> {
        if is_exec && *self.waited.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(invalid_exec());
        }
        let signal = i32::try_from(number)
            .ok()
            .and_then(|number| Signal::try_from(number).ok())
            .ok_or_else(|| Status::invalid_argument(format!("there is no signal {number}")))?;
        match (self.pid(), self.exit_code()) {
            (Some(_), None) if signal == Signal::SIGKILL => self.kill_group(),
            (Some(pid), None) => match kill(Pid::from_raw(pid), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(Status::internal(format!("signal {signal}: {error}"))),
            },
            _ => {}
        }
        Ok(())
    }

    fn kill_group(&self) {
        if let (Some(pid), None) = (self.pid(), self.exit_code()) {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn has_entries(folder: &Path) -> bool {
    folder.read_dir().is_ok_and(|mut entries| entries.next().is_some())
}

fn invalid_exec() -> Status {
    Status::new(Code::NotFound, "InvalidExecId")
}

fn refused(error: &Error) -> Status {
    Status::internal(format!("{error:#}"))
}
