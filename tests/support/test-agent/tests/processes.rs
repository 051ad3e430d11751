//! Processes in the pod's network, their streams, signals and ends.

mod common;

use common::{TestAgent, call, create_and_start, read_all, shell, signal, wait};
use peerpod_proto::messages::agent::{self, method};
use peerpod_proto::messages::{health, oci};
use peerpod_proto::status::Code;
use test_support::wait_for_async;

#[tokio::test]
async fn a_container_runs_in_the_namespace_of_its_specification() {
    let agent = TestAgent::start();
    let client = agent.client().await;
    let sandbox = agent::CreateSandboxRequest { hostname: "pod-1".to_owned(), ..Default::default() };
    call::<_, agent::Empty>(&client, method::CREATE_SANDBOX, &sandbox).await.unwrap();
    let request = agent
        .container("c", "readlink /proc/self/ns/net; hostname; echo $GREETING; pwd; echo oops >&2; exit 7");
    create_and_start(&client, &request).await;
    let out = read_all(&client, method::READ_STDOUT, "c", "").await;
    assert_eq!(out, format!("net:[{}]\npod-1\nhello\n/\n", agent.netns.inode().unwrap()));
    assert_eq!(read_all(&client, method::READ_STDERR, "c", "").await, "oops\n");
    assert_eq!(wait(&client, "c", "").await, 7);
    assert_eq!(wait(&client, "c", "").await, 7, "a repeated wait has the same answer");
}

#[tokio::test]
async fn a_container_without_a_network_namespace_is_refused() {
    let agent = TestAgent::start();
    let client = agent.client().await;
    let mut request = agent.container("c", "true");
    request.oci.as_mut().unwrap().linux.as_mut().unwrap().namespaces.clear();
    let error = call::<_, agent::Empty>(&client, method::CREATE_CONTAINER, &request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message.contains("network namespace"), "{error:?}");
    request.oci = None;
    let error = call::<_, agent::Empty>(&client, method::CREATE_CONTAINER, &request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_namespace_or_program_that_does_not_exist_fails_the_start_and_names_it() {
    let agent = TestAgent::start();
    let client = agent.client().await;
    let mut request = agent.container("c", "true");
    request.oci.as_mut().unwrap().linux.as_mut().unwrap().namespaces[0].path =
        "/run/netns/no-such".to_owned();
    call::<_, agent::Empty>(&client, method::CREATE_CONTAINER, &request).await.unwrap();
    let start = agent::StartContainerRequest { container_id: "c".to_owned() };
    let error = call::<_, agent::Empty>(&client, method::START_CONTAINER, &start).await.unwrap_err();
    assert!(error.message.contains("/run/netns/no-such"), "{error:?}");

    let mut request = agent.container("d", "true");
    request.oci.as_mut().unwrap().process.as_mut().unwrap().args = vec!["/no/such/program".to_owned()];
    call::<_, agent::Empty>(&client, method::CREATE_CONTAINER, &request).await.unwrap();
    let start = agent::StartContainerRequest { container_id: "d".to_owned() };
    let error = call::<_, agent::Empty>(&client, method::START_CONTAINER, &start).await.unwrap_err();
    assert!(error.message.contains("/no/such/program"), "{error:?}");
}

#[tokio::test]
async fn standard_input_reaches_the_process_until_it_is_closed() {
    let agent = TestAgent::start();
    let client = agent.client().await;
    create_and_start(&client, &agent.container("c", "tr a-z A-Z")).await;
    for part in ["one ", "two"] {
        let write = agent::WriteStreamRequest {
            container_id: "c".to_owned(),
            exec_id: String::new(),
            data: part.into(),
        };
        let written: agent::WriteStreamResponse = call(&client, method::WRITE_STDIN, &write).await.unwrap();
        assert_eq!(written.len as usize, part.len());
    }
    let close = agent::CloseStdinRequest { container_id: "c".to_owned(), exec_id: String::new() };
    call::<_, agent::Empty>(&client, method::CLOSE_STDIN, &close).await.unwrap();
    assert_eq!(read_all(&client, method::READ_STDOUT, "c", "").await, "ONE TWO");
    assert_eq!(wait(&client, "c", "").await, 0);
}

#[tokio::test]
async fn exec_runs_beside_the_container_on_a_terminal() {
    let agent = TestAgent::start();
    let client = agent.client().await;
    create_and_start(&client, &agent.container("c", "hostname inside; exec sleep 1000")).await;
    let mut process =
        shell("until [ $(hostname) = inside ]; do :; done; stty size; tty; readlink /proc/self/ns/net");
    process.terminal = true;
    process.console_size = Some(oci::ConsoleBox { height: 30, width: 90 });
    let exec = agent::ExecProcessRequest {
        container_id: "c".to_owned(),
        exec_id: "e".to_owned(),
        process: Some(process),
        ..Default::default()
    };
    call::<_, agent::Empty>(&client, method::EXEC_PROCESS, &exec).await.unwrap();
    let resize =
        agent::TtyWinResizeRequest { container_id: "c".into(), exec_id: "e".into(), row: 30, column: 90 };
    call::<_, agent::Empty>(&client, method::TTY_WIN_RESIZE, &resize).await.unwrap();
    let out = read_all(&client, method::READ_STDOUT, "c", "e").await;
    let lines: Vec<_> = out.lines().map(str::trim).collect();
    assert_eq!(lines[0], "30 90", "{out}");
    assert!(lines[1].starts_with("/dev/pts/"), "{out}");
    assert_eq!(lines[2], format!("net:[{}]", agent.netns.inode().unwrap()), "{out}");
    assert_eq!(wait(&client, "c", "e").await, 0);
    let error = signal(&client, "c", "e", 9).await.unwrap_err();
    assert_eq!((error.code(), error.message.as_str()), (Code::NotFound, "InvalidExecId"));
    signal(&client, "c", "", 9).await.unwrap();
    assert_eq!(wait(&client, "c", "").await, 137);
}

#[tokio::test]
async fn signals_end_in_128_plus_their_number_and_take_the_group_along() {
    let agent = TestAgent::start();
    let client = agent.client().await;
    create_and_start(&client, &agent.container("c", "sleep 1000 & echo $!; wait")).await;
    let read = agent::ReadStreamRequest { container_id: "c".to_owned(), exec_id: String::new(), len: 100 };
    let first: agent::ReadStreamResponse = call(&client, method::READ_STDOUT, &read).await.unwrap();
    let child = String::from_utf8(first.data.to_vec()).unwrap().trim().to_owned();
    assert!(agent.netns.pids().contains(&child.parse().unwrap()));
    signal(&client, "c", "", 15).await.unwrap();
    assert_eq!(wait(&client, "c", "").await, 143);
    let gone = || async { agent.netns.pids().is_empty().then_some(()) };
    wait_for_async("the child of the container to go", common::LIMIT, gone).await.unwrap();
    signal(&client, "c", "", 9).await.unwrap();
    assert_eq!(signal(&client, "c", "", 999).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn removing_a_container_ends_its_processes_and_answers_who_waits() {
    let agent = TestAgent::start();
    let client = agent.client().await;
    create_and_start(&client, &agent.container("c", "trap '' TERM; sleep 1000")).await;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { wait(&client, "c", "").await }
    });
    let remove = agent::RemoveContainerRequest { container_id: "c".to_owned(), timeout: 10 };
    call::<_, agent::Empty>(&client, method::REMOVE_CONTAINER, &remove).await.unwrap();
    assert_eq!(waiting.await.unwrap(), 137);
    assert!(agent.netns.pids().is_empty());
    let error = call::<_, agent::Empty>(&client, method::REMOVE_CONTAINER, &remove).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test]
async fn files_that_were_copied_are_bound_into_the_container_only() {
    let agent = TestAgent::start();
    let client = agent.client().await;
    let source = "/run/kata-containers/shared/containers/c-resolv.conf";
    let copy = agent::CopyFileRequest {
        path: source.to_owned(),
        file_size: 5,
        file_mode: 0o100_644,
        data: "copy\n".into(),
        ..Default::default()
    };
    call::<_, agent::Empty>(&client, method::COPY_FILE, &copy).await.unwrap();
    assert!(agent.root.path().join(&source[1..]).is_file());
    let mut request = agent.container("c", "cat /etc/hosts; echo x > /etc/hosts || echo read-only");
    request.oci.as_mut().unwrap().mounts.push(oci::Mount {
        destination: "/etc/hosts".to_owned(),
        source: source.to_owned(),
        kind: "bind".to_owned(),
        options: vec!["rbind".to_owned(), "ro".to_owned()],
    });
    let before = std::fs::read("/etc/hosts").unwrap();
    create_and_start(&client, &request).await;
    assert_eq!(read_all(&client, method::READ_STDOUT, "c", "").await, "copy\nread-only\n");
    assert_eq!(std::fs::read("/etc/hosts").unwrap(), before);
}

#[tokio::test]
async fn the_user_of_the_specification_runs_the_process() {
    let agent = TestAgent::start();
    let client = agent.client().await;
    let mut request = agent.container("c", "id -u; id -g; id -G");
    request.oci.as_mut().unwrap().process.as_mut().unwrap().user =
        Some(oci::User { uid: 65534, gid: 65533, ..oci::User::default() });
    create_and_start(&client, &request).await;
    assert_eq!(read_all(&client, method::READ_STDOUT, "c", "").await, "65534\n65533\n65533\n");
}

#[tokio::test]
async fn destroying_the_sandbox_ends_the_wait_for_oom_events_and_every_process() {
    let agent = TestAgent::start();
    let client = agent.client().await;
    create_and_start(&client, &agent.container("c", "sleep 1000")).await;
    let oom = tokio::spawn({
        let client = client.clone();
        async move {
            call::<_, agent::OomEvent>(&client, method::GET_OOM_EVENT, &agent::GetOomEventRequest {}).await
        }
    });
    call::<_, agent::Empty>(&client, method::DESTROY_SANDBOX, &agent::DestroySandboxRequest {})
        .await
        .unwrap();
    assert_eq!(oom.await.unwrap().unwrap_err().code(), Code::Canceled);
    assert!(agent.netns.pids().is_empty());
}

#[tokio::test]
async fn health_and_unknown_names_are_answered() {
    let agent = TestAgent::start();
    let client = agent.client().await;
    let request = health::CheckRequest::default();
    let check: health::HealthCheckResponse =
        client.call(health::SERVICE, health::CHECK, &request, None).await.unwrap();
    assert_eq!(check.status, health::ServingStatus::Serving as i32);
    let version: health::VersionCheckResponse =
        client.call(health::SERVICE, health::VERSION, &request, None).await.unwrap();
    assert!(version.agent_version.starts_with("test-agent"));
    let unknown = client.request(agent::SERVICE, "NoSuch", bytes::Bytes::new(), None, Vec::new()).await;
    assert_eq!(unknown.unwrap_err().code(), Code::Unimplemented);
    let stats = agent::StatsContainerRequest { container_id: "none".to_owned() };
    let error =
        call::<_, agent::StatsContainerResponse>(&client, method::STATS_CONTAINER, &stats).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test]
async fn an_agent_that_is_told_to_stop_leaves_no_process_and_no_socket() {
    let mut agent = TestAgent::start();
    let client = agent.client().await;
    create_and_start(&client, &agent.container("c", "sleep 1000")).await;
    let status = agent.process.terminate(common::LIMIT).unwrap();
    assert!(status.success(), "{status:?}");
    assert!(agent.netns.pids().is_empty());
    assert!(!agent.socket.exists());
}

#[tokio::test]
async fn the_web_server_tells_its_network_and_sends_what_is_asked() {
    let agent = TestAgent::start();
    let client = agent.client().await;
    let mut request = agent.container("c", "");
    request.oci.as_mut().unwrap().process.as_mut().unwrap().args =
        [env!("CARGO_BIN_EXE_test-agent"), "web", "--listen", "127.0.0.1:8080"].map(str::to_owned).to_vec();
    create_and_start(&client, &request).await;
    let read = agent::ReadStreamRequest { container_id: "c".to_owned(), exec_id: String::new(), len: 100 };
    call::<_, agent::ReadStreamResponse>(&client, method::READ_STDOUT, &read).await.unwrap();
    let get = |target: &str, body: &str| {
        let request =
            format!("GET {target} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        agent
            .netns
            .run(move || {
                use std::io::{Read, Write};
                let mut stream = std::net::TcpStream::connect("127.0.0.1:8080")?;
                stream.write_all(request.as_bytes())?;
                let mut reply = String::new();
                stream.read_to_string(&mut reply)?;
                Ok(reply)
            })
            .unwrap()
    };
    let page = get("/", "");
    assert!(page.contains(&format!("\"netns\":{}", agent.netns.inode().unwrap())), "{page}");
    assert!(page.contains("\"peer\":\"127.0.0.1:"), "{page}");
    assert!(get("/echo", "ping").ends_with("\r\n\r\nping"));
    let big = get("/big?bytes=100000", "");
    assert_eq!(big.len() - big.find("\r\n\r\n").unwrap() - 4, 100_000);
    assert!(get("/nothing", "").starts_with("HTTP/1.1 404"));
}
