//! The services of the agent.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use peerpod_proto::messages::agent::{self, method};
use peerpod_proto::messages::health;
use peerpod_proto::server::{CallContext, Service, decode, encode};
use peerpod_proto::status::{Code, Status};
use prost::Message;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::container::Container;
use crate::stdio::Out;
use crate::{files, spawn};

/// How long the processes of a container may take to die.
const KILL_BOUND: Duration = Duration::from_secs(10);

/// An agent of one sandbox.
pub(crate) struct Agent {
    root: PathBuf,
    sandbox: Mutex<Option<(String, String)>>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    /// Cancelled when the sandbox goes.
    destroyed: CancellationToken,
}

impl Agent {
    /// Serves a sandbox whose files lie below `root`.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self {
            root,
            sandbox: Mutex::default(),
            containers: Mutex::default(),
            destroyed: CancellationToken::new(),
        }
    }

    /// Ends every process and everyone's waiting.
    pub(crate) async fn destroy(&self) {
        let all: Vec<_> = {
            let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
            containers.drain().map(|(_, container)| container).collect()
        };
        for container in all {
            container.kill_all(KILL_BOUND).await;
        }
        self.destroyed.cancel();
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, Status> {
        let containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        containers.get(id).cloned().ok_or_else(|| Status::new(Code::NotFound, "Invalid container id"))
    }

    async fn agent_call(&self, ctx: &CallContext, method: &str, payload: Bytes) -> Result<Bytes, Status> {
        match method {
            method::CREATE_SANDBOX => self.create_sandbox(decode(payload)?),
            method::DESTROY_SANDBOX => {
                decode::<agent::DestroySandboxRequest>(payload)?;
                self.destroy().await;
                done()
            }
            method::GET_GUEST_DETAILS => answer(&guest_details(&decode(payload)?)),
            method::GET_OOM_EVENT => {
                // Nothing here limits memory, so the answer is the end of the sandbox.
                self.until_gone(ctx, std::future::pending()).await
            }
            method::COPY_FILE => self.copy_file(decode(payload)?).await,
            method::CREATE_CONTAINER => self.create_container(decode(payload)?),
            method::START_CONTAINER => {
                let request: agent::StartContainerRequest = decode(payload)?;
                let pid = self.container(&request.container_id)?.start().await?;
                info!(container = request.container_id, pid, "container started");
                done()
            }
            method::EXEC_PROCESS => self.exec_process(decode(payload)?).await,
            method::SIGNAL_PROCESS => {
                let request: agent::SignalProcessRequest = decode(payload)?;
                let process = self.container(&request.container_id)?.process(&request.exec_id)?;
                process.signal(request.signal, !request.exec_id.is_empty())?;
                done()
            }
            method::WAIT_PROCESS => {
                let request: agent::WaitProcessRequest = decode(payload)?;
                let process = self.container(&request.container_id)?.process(&request.exec_id)?;
                let status = self.until_gone(ctx, async { Ok(process.wait().await) }).await?;
                process.set_waited();
                answer(&agent::WaitProcessResponse { status })
            }
            method::READ_STDOUT => self.read(ctx, Out::Stdout, decode(payload)?).await,
            method::READ_STDERR => self.read(ctx, Out::Stderr, decode(payload)?).await,
            method::WRITE_STDIN => self.write_stdin(ctx, decode(payload)?).await,
            method::CLOSE_STDIN => {
                let request: agent::CloseStdinRequest = decode(payload)?;
                let process = self.container(&request.container_id)?.process(&request.exec_id)?;
                process.streams().await?.close_stdin().await;
                done()
            }
            method::TTY_WIN_RESIZE => {
                let request: agent::TtyWinResizeRequest = decode(payload)?;
                let process = self.container(&request.container_id)?.process(&request.exec_id)?;
                if let Some(master) = process.streams().await?.master() {
                    spawn::resize(master, request.row as u16, request.column as u16).map_err(failed)?;
                }
                done()
            }
            method::REMOVE_CONTAINER => self.remove_container(decode(payload)?).await,
            method::STATS_CONTAINER => {
                let request: agent::StatsContainerRequest = decode(payload)?;
                answer(&stats(self.container(&request.container_id)?.init.pid()))
            }
            method::UPDATE_CONTAINER => {
                let request: agent::UpdateContainerRequest = decode(payload)?;
                self.container(&request.container_id)?;
                done()
            }
            // Accepted without effect: there is no policy engine, no hot-plug and no clock of its own here.
            method::SET_POLICY => accepted::<agent::SetPolicyRequest>(payload),
            method::ONLINE_CPU_MEM => accepted::<agent::OnlineCpuMemRequest>(payload),
            method::RESEED_RANDOM_DEV => accepted::<agent::ReseedRandomDevRequest>(payload),
            method::SET_GUEST_DATE_TIME => accepted::<agent::SetGuestDateTimeRequest>(payload),
            method::UPDATE_EPHEMERAL_MOUNTS => accepted::<agent::UpdateEphemeralMountsRequest>(payload),
            _ => Err(Status::unknown_method(method)),
        }
    }

    fn create_sandbox(&self, request: agent::CreateSandboxRequest) -> Result<Bytes, Status> {
        let mut sandbox = self.sandbox.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((id, _)) = &*sandbox
            && *id != request.sandbox_id
        {
            return Err(Status::new(Code::AlreadyExists, format!("this agent serves sandbox {id}")));
        }
        for storage in &request.storages {
            // Mount points are made, not mounted: they belong to nobody but this sandbox anyway.
            if let Ok(place) = files::place(&self.root, &storage.mount_point) {
                std::fs::create_dir_all(place).map_err(failed)?;
            }
        }
        info!(
            sandbox = request.sandbox_id,
            hostname = request.hostname,
            dns = request.dns.len(),
            "sandbox created"
        );
        *sandbox = Some((request.sandbox_id, request.hostname));
        done()
    }

    async fn copy_file(&self, request: agent::CopyFileRequest) -> Result<Bytes, Status> {
        let root = self.root.clone();
        let copied = tokio::task::spawn_blocking(move || files::copy(&root, &request)).await;
        copied.map_err(failed)?.map_err(|error| Status::internal(format!("{error:#}")))?;
        done()
    }

    fn create_container(&self, request: agent::CreateContainerRequest) -> Result<Bytes, Status> {
        let hostname = {
            let sandbox = self.sandbox.lock().unwrap_or_else(PoisonError::into_inner);
            sandbox.as_ref().map(|(_, hostname)| hostname.clone()).unwrap_or_default()
        };
        let container = Container::new(&self.root, &hostname, request.oci)?;
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        if containers.contains_key(&request.container_id) {
            return Err(Status::new(
                Code::AlreadyExists,
                format!("container {} exists", request.container_id),
            ));
        }
        containers.insert(request.container_id, Arc::new(container));
        done()
    }

    async fn exec_process(&self, request: agent::ExecProcessRequest) -> Result<Bytes, Status> {
        let process =
            request.process.ok_or_else(|| Status::invalid_argument("the request has no process"))?;
        if request.exec_id.is_empty() {
            return Err(Status::invalid_argument("the request has no exec id"));
        }
        let pid = self.container(&request.container_id)?.exec(&request.exec_id, process).await?;
        info!(container = request.container_id, exec = request.exec_id, pid, "process started");
        done()
    }

    async fn read(
        &self,
        ctx: &CallContext,
        out: Out,
        request: agent::ReadStreamRequest,
    ) -> Result<Bytes, Status> {
        let process = self.container(&request.container_id)?.process(&request.exec_id)?;
        let read = async {
            let streams = process.streams().await?;
            streams.read(out, request.len as usize).await.map_err(failed)
        };
        answer(&agent::ReadStreamResponse { data: self.until_gone(ctx, read).await? })
    }

    async fn write_stdin(
        &self,
        ctx: &CallContext,
        request: agent::WriteStreamRequest,
    ) -> Result<Bytes, Status> {
        let process = self.container(&request.container_id)?.process(&request.exec_id)?;
        let len = request.data.len() as u32;
        let write = async {
            let streams = process.streams().await?;
            streams.write(&request.data).await.map_err(failed)
        };
        self.until_gone(ctx, write).await?;
        answer(&agent::WriteStreamResponse { len })
    }

    async fn remove_container(&self, request: agent::RemoveContainerRequest) -> Result<Bytes, Status> {
        let container = self.container(&request.container_id)?;
        let bound = match request.timeout {
            0 => KILL_BOUND,
            seconds => Duration::from_secs(seconds.into()),
        };
        if !container.kill_all(bound).await {
            return Err(Status::new(Code::DeadlineExceeded, "processes of the container are still there"));
        }
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).remove(&request.container_id);
        done()
    }

    /// Waits for `work`, the caller's end, or the end of the sandbox.
    async fn until_gone<T>(
        &self,
        ctx: &CallContext,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        tokio::select! {
            biased;
            result = work => result,
            () = ctx.cancel.cancelled() => Err(Status::new(Code::Canceled, "the caller is gone")),
            () = self.destroyed.cancelled() => Err(Status::new(Code::Canceled, "the sandbox is destroyed")),
        }
    }
}

#[async_trait::async_trait]
impl Service for Agent {
    async fn call(
        &self,
        ctx: CallContext,
        service: &str,
        method: &str,
        payload: Bytes,
    ) -> Result<Bytes, Status> {
        let result = match (service, method) {
            (agent::SERVICE, method) => self.agent_call(&ctx, method, payload).await,
            (health::SERVICE, health::CHECK) => {
                answer(&health::HealthCheckResponse { status: health::ServingStatus::Serving.into() })
            }
            (health::SERVICE, health::VERSION) => answer(&health::VersionCheckResponse {
                grpc_version: "0.0.1".to_owned(),
                agent_version: format!("test-agent-{}", env!("CARGO_PKG_VERSION")),
            }),
            (health::SERVICE, method) => Err(Status::unknown_method(method)),
            (service, _) => Err(Status::unknown_service(service)),
        };
        match &result {
            Ok(_) => debug!(method, "answered"),
            Err(status) => info!(method, code = ?status.code(), reason = status.message, "refused"),
        }
        result
    }
}

/// A failed system call as a status.
fn failed(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

fn done() -> Result<Bytes, Status> {
    answer(&agent::Empty {})
}

fn answer<M: Message>(message: &M) -> Result<Bytes, Status> {
    Ok(encode(message))
}

fn accepted<M: Message + Default>(payload: Bytes) -> Result<Bytes, Status> {
    decode::<M>(payload)?;
    done()
}

fn guest_details(request: &agent::GuestDetailsRequest) -> agent::GuestDetailsResponse {
    agent::GuestDetailsResponse {
        mem_block_size_bytes: if request.mem_block_size { 128 << 20 } else { 0 },
        agent_details: Some(agent::AgentDetails {
            version: format!("test-agent-{}", env!("CARGO_PKG_VERSION")),
            init_daemon: std::process::id() == 1,
            storage_handlers: vec!["ephemeral".to_owned(), "local".to_owned()],
            ..agent::AgentDetails::default()
        }),
        support_mem_hotplug_probe: false,
    }
}

fn stats(pid: Option<i32>) -> agent::StatsContainerResponse {
    let field = |name: &str| -> u64 {
        let Some(status) = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok())
        else {
            return 0;
        };
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    agent::StatsContainerResponse {
        cgroup_stats: Some(agent::CgroupStats {
            memory_stats: Some(agent::MemoryStats {
                usage: Some(agent::MemoryData {
                    usage: field("VmRSS:") * 1024,
                    ..agent::MemoryData::default()
                }),
                ..agent::MemoryStats::default()
            }),
            pids_stats: Some(agent::PidsStats { current: field("Threads:"), ..agent::PidsStats::default() }),
            ..agent::CgroupStats::default()
        }),
        network_stats: Vec::new(),
    }
}
