//! An agent of one test: its socket, its files and its pod network.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use peerpod_proto::messages::agent::{self, method};
use peerpod_proto::messages::oci;
use peerpod_proto::{Client, Status};
use prost::Message;
use test_support::{Netns, ProcessGuard};

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct TestAgent {
    pub(crate) process: ProcessGuard,
    pub(crate) netns: Netns,
    pub(crate) root: tempfile::TempDir,
    pub(crate) socket: PathBuf,
}

impl TestAgent {
    pub(crate) fn start() -> Self {
        let netns = Netns::unique("agent").unwrap();
        let root = tempfile::tempdir().unwrap();
        let socket = root.path().join("agent.sock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_test-agent"));
        command.arg("--listen").arg(&socket).arg("--root").arg(root.path());
        let log = root.path().join("log");
        let mut process = ProcessGuard::spawn("test-agent", &mut command, &log).unwrap();
        process.wait_for_output("ready", LIMIT).unwrap();
        Self { process, netns, root, socket }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect_unix(&self.socket).await.unwrap()
    }

    /// A container that runs a shell script in the pod's network.
    pub(crate) fn container(&self, id: &str, script: &str) -> agent::CreateContainerRequest {
        agent::CreateContainerRequest {
            container_id: id.to_owned(),
            oci: Some(oci::Spec {
                process: Some(shell(script)),
                linux: Some(oci::Linux {
                    namespaces: vec![oci::LinuxNamespace {
                        kind: "network".to_owned(),
                        path: self.netns.path().to_string_lossy().into_owned(),
                    }],
                    ..oci::Linux::default()
                }),
                annotations: HashMap::new(),
                ..oci::Spec::default()
            }),
            ..agent::CreateContainerRequest::default()
        }
    }
}

pub(crate) fn shell(script: &str) -> oci::Process {
    oci::Process {
        args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec!["PATH=/usr/bin:/bin".to_owned(), "GREETING=hello".to_owned()],
        cwd: "/".to_owned(),
        ..oci::Process::default()
    }
}

pub(crate) async fn call<Req: Message, Resp: Message + Default>(
    client: &Client,
    method: &str,
    request: &Req,
) -> Result<Resp, Status> {
    client.call(agent::SERVICE, method, request, Some(LIMIT)).await
}

pub(crate) async fn create_and_start(client: &Client, request: &agent::CreateContainerRequest) {
    call::<_, agent::Empty>(client, method::CREATE_CONTAINER, request).await.unwrap();
    let start = agent::StartContainerRequest { container_id: request.container_id.clone() };
    call::<_, agent::Empty>(client, method::START_CONTAINER, &start).await.unwrap();
}

/// Everything a process writes to one of its streams.
pub(crate) async fn read_all(client: &Client, method: &str, container: &str, exec: &str) -> String {
    let request =
        agent::ReadStreamRequest { container_id: container.to_owned(), exec_id: exec.to_owned(), len: 4096 };
    let mut all = Vec::new();
    loop {
        let part: agent::ReadStreamResponse = call(client, method, &request).await.unwrap();
        if part.data.is_empty() {
            return String::from_utf8(all).unwrap();
        }
        all.extend_from_slice(&part.data);
    }
}

pub(crate) async fn wait(client: &Client, container: &str, exec: &str) -> i32 {
    let request = agent::WaitProcessRequest { container_id: container.to_owned(), exec_id: exec.to_owned() };
    call::<_, agent::WaitProcessResponse>(client, method::WAIT_PROCESS, &request).await.unwrap().status
}

pub(crate) async fn signal(client: &Client, container: &str, exec: &str, signal: u32) -> Result<(), Status> {
    let request =
        agent::SignalProcessRequest { container_id: container.to_owned(), exec_id: exec.to_owned(), signal };
    call::<_, agent::Empty>(client, method::SIGNAL_PROCESS, &request).await.map(|_| ())
}
