//! Plays the part of a Kata shim: the calls in its order, with its timeouts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use peerpod_proto::client::Client;
use peerpod_proto::messages::agent::{self, method};
use peerpod_proto::messages::oci::{
    Linux, LinuxCapabilities, LinuxCpu, LinuxMemory, LinuxNamespace, LinuxResources, Mount, Process, Root,
    Spec, User,
};
use peerpod_proto::messages::{health, hypervisor, podvminfo};
use peerpod_proto::status::Status;
use tokio::net::UnixStream;

use crate::wait_for_async;

/// How long a shim waits for StartVM: its setting is taken as seconds where milliseconds were meant.
const START_VM_TIMEOUT: Duration = Duration::from_secs(10_000);
/// How long a shim waits for StopVM.
const STOP_VM_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a shim waits for a call to the agent.
const AGENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Where an instance of the provider `local` has its programs. Containers see it too, since they have no image.
pub const PROGRAMS: &str = "/run/peerpod-local/guest";
/// What containerd lets containers do, in the spelling of runtime-rs.
const CAPABILITIES: &str = "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP \
                            NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE";
/// How long a shim tries to reach the agent socket.
const DIAL_LIMIT: Duration = Duration::from_secs(30);

/// A shim with its one connection to the hypervisor socket, which it keeps for the life of the sandbox.
#[derive(Clone, Debug)]
pub struct ShimPlayer {
    client: Client,
    /// The sandbox that this shim serves.
    pub sandbox_id: String,
}

impl ShimPlayer {
    /// Connects to `hypervisor.sock`.
    ///
    /// # Errors
    ///
    /// When nobody listens there.
    pub async fn connect(socket: &Path, sandbox_id: &str) -> Result<Self> {
        let client = Client::connect_unix(socket).await;
        let client = client.with_context(|| format!("nobody listens at {}", socket.display()))?;
        Ok(Self { client, sandbox_id: sandbox_id.to_owned() })
    }

    /// Returns the nine annotations that every shim sends, for a pod in namespace `default`.
    pub fn annotations(pod_name: &str) -> HashMap<String, String> {
        let hypervisor = |key: &str| format!("io.katacontainers.config.hypervisor.{key}");
        [
            ("io.kubernetes.cri.sandbox-name".to_owned(), pod_name),
            ("io.kubernetes.cri.sandbox-namespace".to_owned(), "default"),
            (hypervisor("machine_type"), ""),
            (hypervisor("image"), ""),
            (hypervisor("default_vcpus"), "1"),
            (hypervisor("default_memory"), "2048"),
            (hypervisor("cc_init_data"), ""),
            (hypervisor("default_gpus"), "0"),
            (hypervisor("default_gpu_model"), ""),
        ]
        .map(|(key, value)| (key, value.to_owned()))
        .into()
    }

    /// Sends CreateVM for a pod and returns the path of the agent socket. As a shim does, it sets no deadline.
    ///
    /// # Errors
    ///
    /// The status of the answer.
    pub async fn create_vm(&self, pod_name: &str, netns: &Path) -> Result<PathBuf, Status> {
        self.create_vm_with(Self::annotations(pod_name), netns).await
    }

    /// Sends CreateVM with the given annotations.
    ///
    /// # Errors
    ///
    /// The status of the answer.
    pub async fn create_vm_with(
        &self,
        annotations: HashMap<String, String>,
        netns: &Path,
    ) -> Result<PathBuf, Status> {
        let request = hypervisor::CreateVmRequest {
            id: self.sandbox_id.clone(),
            annotations,
            network_namespace_path: netns.to_string_lossy().into_owned(),
        };
        let (service, call) = (hypervisor::SERVICE, hypervisor::CREATE_VM);
        let response: hypervisor::CreateVmResponse = self.client.call(service, call, &request, None).await?;
        Ok(response.agent_socket_path.into())
    }

    /// Sends StartVM and waits for its end.
    ///
    /// # Errors
    ///
    /// The status of the answer.
    pub async fn start_vm(&self) -> Result<(), Status> {
        let request = hypervisor::StartVmRequest { id: self.sandbox_id.clone() };
        let (service, call) = (hypervisor::SERVICE, hypervisor::START_VM);
        let answer = self.client.call(service, call, &request, Some(START_VM_TIMEOUT)).await;
        answer.map(|hypervisor::StartVmResponse {}| ())
    }

    /// Sends StopVM once, with a shim's deadline of one second.
    ///
    /// # Errors
    ///
    /// The status of the answer.
    pub async fn stop_vm(&self) -> Result<(), Status> {
        let request = hypervisor::StopVmRequest { id: self.sandbox_id.clone() };
        let (service, call) = (hypervisor::SERVICE, hypervisor::STOP_VM);
        let answer = self.client.call(service, call, &request, Some(STOP_VM_TIMEOUT)).await;
        answer.map(|hypervisor::StopVmResponse {}| ())
    }

    /// Asks for the version of the hypervisor service.
    ///
    /// # Errors
    ///
    /// The status of the answer.
    pub async fn version(&self) -> Result<String, Status> {
        let request = hypervisor::VersionRequest { version: String::new() };
        let (service, call) = (hypervisor::SERVICE, hypervisor::VERSION);
        let answer = self.client.call(service, call, &request, Some(AGENT_TIMEOUT)).await;
        answer.map(|hypervisor::VersionResponse { version }| version)
    }

    /// Asks which instance serves a pod.
    ///
    /// # Errors
    ///
    /// The status of the answer.
    pub async fn instance_of(&self, namespace: &str, pod_name: &str, wait: bool) -> Result<String, Status> {
        let (pod_name, pod_namespace) = (pod_name.to_owned(), namespace.to_owned());
        let request = podvminfo::GetInfoRequest { pod_name, pod_namespace, wait };
        let (service, call) = (podvminfo::SERVICE, podvminfo::GET_INFO);
        let answer = self.client.call(service, call, &request, Some(AGENT_TIMEOUT)).await;
        answer.map(|podvminfo::GetInfoResponse { vm_id }| vm_id)
    }

    /// The connection, for calls that are not listed here.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

/// The shim's two connections to the agent socket.
#[derive(Debug)]
pub struct AgentPlayer {
    client: Client,
    /// The connection of the shim's log forwarder, which never sends a byte.
    _silent: Option<UnixStream>,
}

impl AgentPlayer {
    /// Connects twice, trying as long as a shim does.
    ///
    /// # Errors
    ///
    /// When the socket does not appear in time.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let what = format!("the agent socket {}", socket.display());
        let stream =
            wait_for_async(&what, DIAL_LIMIT, || async { UnixStream::connect(socket).await.ok() }).await?;
        let silent = UnixStream::connect(socket).await.context("the agent socket refuses a second client")?;
        Ok(Self { client: Client::connect(stream), _silent: Some(silent) })
    }

    /// Plays over a connection that was made otherwise, as the daemon's to a guest.
    pub fn over(client: Client) -> Self {
        Self { client, _silent: None }
    }

    /// Sends Health/Check.
    ///
    /// # Errors
    ///
    /// The status of the answer, or that the agent does not serve.
    pub async fn check(&self) -> Result<()> {
        let request = health::CheckRequest { service: String::new() };
        let (service, call) = (health::SERVICE, health::CHECK);
        let answer: health::HealthCheckResponse =
            self.client.call(service, call, &request, Some(AGENT_TIMEOUT)).await.context("Check failed")?;
        let serving = health::ServingStatus::Serving as i32;
        ensure!(answer.status == serving, "the agent answers Check with status {}", answer.status);
        Ok(())
    }

    /// Sends CreateSandbox.
    ///
    /// # Errors
    ///
    /// The status of the answer.
    pub async fn create_sandbox(&self, sandbox_id: &str, hostname: &str) -> Result<(), Status> {
        let request = agent::CreateSandboxRequest {
            hostname: hostname.to_owned(),
            dns: vec!["10.96.0.10".to_owned()],
            sandbox_id: sandbox_id.to_owned(),
            ..Default::default()
        };
        self.call(method::CREATE_SANDBOX, &request).await
    }

    /// Sends CreateContainer with an OCI spec as a shim sends it, then StartContainer.
    ///
    /// # Errors
    ///
    /// The status of the first call that fails.
    pub async fn start_container(&self, container_id: &str, args: &[&str]) -> Result<(), Status> {
        let mut oci = spec(args);
        if let Some(linux) = &mut oci.linux {
            linux.cgroups_path = format!("/k8s.io/{container_id}");
        }
        self.start_container_of(container_id, oci).await
    }

    /// Sends CreateContainer with the given OCI spec, then StartContainer.
    ///
    /// # Errors
    ///
    /// The status of the first call that fails.
    pub async fn start_container_of(&self, container_id: &str, oci: Spec) -> Result<(), Status> {
        self.create_container(container_id, oci).await?;
        self.call(
            method::START_CONTAINER,
            &agent::StartContainerRequest { container_id: container_id.to_owned() },
        )
        .await
    }

    /// Sends CreateContainer.
    ///
    /// # Errors
    ///
    /// The status of the answer.
    pub async fn create_container(&self, container_id: &str, oci: Spec) -> Result<(), Status> {
        let id = container_id.to_owned();
        let request = agent::CreateContainerRequest {
            container_id: id.clone(),
            exec_id: id,
            oci: Some(oci),
            ..Default::default()
        };
        self.call(method::CREATE_CONTAINER, &request).await
    }

    /// Runs a command in a container and returns its exit code with what it wrote to standard output.
    ///
    /// # Errors
    ///
    /// The status of the call that fails.
    pub async fn exec(
        &self,
        container_id: &str,
        exec_id: &str,
        args: &[&str],
    ) -> Result<(i32, String), Status> {
        let (container, exec) = (container_id.to_owned(), exec_id.to_owned());
        let request = agent::ExecProcessRequest {
            container_id: container.clone(),
            exec_id: exec.clone(),
            process: Some(process(args)),
            ..Default::default()
        };
        self.call(method::EXEC_PROCESS, &request).await?;
        let output = self.read_stdout(container_id, exec_id).await?;
        let request = agent::WaitProcessRequest { container_id: container, exec_id: exec };
        let ended: agent::WaitProcessResponse =
            self.client.call(agent::SERVICE, method::WAIT_PROCESS, &request, None).await?;
        Ok((ended.status, String::from_utf8_lossy(&output).into_owned()))
    }

    /// Reads standard output of a process to its end.
    ///
    /// # Errors
    ///
    /// The status of an answer other than the end of the stream.
    pub async fn read_stdout(&self, container_id: &str, exec_id: &str) -> Result<Bytes, Status> {
        let mut output = Vec::new();
        let request = agent::ReadStreamRequest {
            container_id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
            len: 32 << 10,
        };
        loop {
            let answer = self.client.call(agent::SERVICE, method::READ_STDOUT, &request, None).await;
            match answer {
                Ok(agent::ReadStreamResponse { data }) if data.is_empty() => break,
                Ok(agent::ReadStreamResponse { data }) => output.extend_from_slice(&data),
                // Agents end a stream by an error whose text speaks of the end.
                Err(status) if is_end(&status) => break,
                Err(status) => return Err(status),
            }
        }
        Ok(output.into())
    }

    /// Sends a signal to the first process of a container, waits for its end, and removes the container.
    ///
    /// # Errors
    ///
    /// The status of the call that fails.
    pub async fn stop_container(&self, container_id: &str, signal: u32) -> Result<i32, Status> {
        // An empty exec id means the container's first process.
        let (container, exec) = (container_id.to_owned(), String::new());
        let wait = agent::WaitProcessRequest { container_id: container.clone(), exec_id: exec.clone() };
        let kill = agent::SignalProcessRequest { container_id: container.clone(), exec_id: exec, signal };
        self.call(method::SIGNAL_PROCESS, &kill).await?;
        let ended: agent::WaitProcessResponse =
            self.client.call(agent::SERVICE, method::WAIT_PROCESS, &wait, None).await?;
        let remove = agent::RemoveContainerRequest { container_id: container, timeout: 0 };
        self.call(method::REMOVE_CONTAINER, &remove).await?;
        Ok(ended.status)
    }

    /// Makes a call to the agent whose answer is empty.
    ///
    /// # Errors
    ///
    /// The status of the answer.
    pub async fn call<Req: prost::Message>(&self, method: &str, request: &Req) -> Result<(), Status> {
        let answer = self.client.call(agent::SERVICE, method, request, Some(AGENT_TIMEOUT)).await;
        answer.map(|agent::Empty {}| ())
    }

    /// The connection, for calls that are not listed here.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

fn is_end(status: &Status) -> bool {
    let text = status.message.to_ascii_lowercase();
    text.contains("eof") || text.contains("end of")
}

/// Returns a process as a shim describes it: root, in `/`, with a plain environment and containerd's capabilities,
/// without which the Kata agent starts nothing.
pub fn process(args: &[&str]) -> Process {
    let capabilities: Vec<String> = CAPABILITIES.split(' ').map(str::to_owned).collect();
    Process {
        capabilities: Some(LinuxCapabilities {
            bounding: capabilities.clone(),
            effective: capabilities.clone(),
            permitted: capabilities,
            ..Default::default()
        }),
        no_new_privileges: true,
        user: Some(User::default()),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
        cwd: "/".to_owned(),
        ..Default::default()
    }
}

/// Returns an OCI spec as a shim sends it: the network namespace is already taken out. The root is that of the guest,
/// without the file systems that are mounted in it.
pub fn spec(args: &[&str]) -> Spec {
    let namespace = |kind: &str| LinuxNamespace { kind: kind.to_owned(), path: String::new() };
    Spec {
        version: "1.1.0".to_owned(),
        process: Some(process(args)),
        root: Some(Root { path: "/".to_owned(), readonly: false }),
        hostname: "demo".to_owned(),
        mounts: mounts(),
        annotations: HashMap::from([
            ("io.kubernetes.cri.container-type".to_owned(), "container".to_owned()),
            ("io.kubernetes.cri.container-name".to_owned(), "web".to_owned()),
        ]),
        linux: Some(Linux {
            namespaces: ["ipc", "uts", "mnt"].map(namespace).into(),
            resources: Some(LinuxResources {
                memory: Some(LinuxMemory { limit: 64 << 20, ..Default::default() }),
                cpu: Some(LinuxCpu { shares: 2, ..Default::default() }),
                ..Default::default()
            }),
            masked_paths: ["/proc/kcore", "/sys/firmware"].map(str::to_owned).into(),
            readonly_paths: ["/proc/sys", "/proc/sysrq-trigger"].map(str::to_owned).into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The mounts of every container under containerd, and the folder of programs.
fn mounts() -> Vec<Mount> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| Mount {
        destination: destination.to_owned(),
        source: source.to_owned(),
        kind: kind.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    };
    let strict = ["nosuid", "noexec", "nodev"];
    let strict_read_only = ["nosuid", "noexec", "nodev", "ro"];
    let pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    vec![
        mount("/proc", "proc", "proc", &strict),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", &pts),
        mount("/dev/mqueue", "mqueue", "mqueue", &strict),
        mount("/sys", "sysfs", "sysfs", &strict_read_only),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &strict_read_only),
        mount(PROGRAMS, "bind", PROGRAMS, &["rbind", "ro"]),
    ]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use peerpod_proto::server::{CallContext, Server, Service, decode, encode};
    use tokio::net::UnixListener;
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// Answers as a daemon and an agent in one.
    struct Stub;

    #[async_trait::async_trait]
    impl Service for Stub {
        async fn call(
            &self,
            _: CallContext,
            service: &str,
            method: &str,
            payload: Bytes,
        ) -> Result<Bytes, Status> {
            match (service, method) {
                (hypervisor::SERVICE, hypervisor::CREATE_VM) => {
                    let request: hypervisor::CreateVmRequest = decode(payload)?;
                    assert_eq!(request.annotations.len(), 9);
                    let agent_socket_path = format!("/run/{}/agent.ttrpc", request.id);
                    Ok(encode(&hypervisor::CreateVmResponse { agent_socket_path }))
                }
                (health::SERVICE, health::CHECK) => {
                    Ok(encode(&health::HealthCheckResponse { status: health::ServingStatus::Serving as i32 }))
                }
                (agent::SERVICE, method::READ_STDOUT) => Err(Status::new(2.into(), "EOF")),
                (agent::SERVICE, method::WAIT_PROCESS) => {
                    Ok(encode(&agent::WaitProcessResponse { status: 7 }))
                }
                (agent::SERVICE, _) => Ok(Bytes::new()),
                _ => Err(Status::unknown_service(service)),
            }
        }
    }

    #[tokio::test]
    async fn a_shim_is_played_against_a_server() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let stop = CancellationToken::new();
        let serving = stop.clone();
        tokio::spawn(async move { Server::new(Arc::new(Stub)).serve_unix(listener, serving).await });

        let shim = ShimPlayer::connect(&socket, "s1").await.unwrap();
        assert_eq!(
            shim.create_vm("web", Path::new("/run/netns/x")).await.unwrap(),
            Path::new("/run/s1/agent.ttrpc")
        );
        let agent = AgentPlayer::connect(&socket).await.unwrap();
        agent.check().await.unwrap();
        agent.create_sandbox("s1", "web").await.unwrap();
        agent.start_container("c1", &["true"]).await.unwrap();
        assert_eq!(agent.exec("c1", "e1", &["true"]).await.unwrap(), (7, String::new()));
        assert_eq!(agent.stop_container("c1", 15).await.unwrap(), 7);
        stop.cancel();
    }
}
