//! The forwarder as a program, in a guest made of network namespaces, asked over TLS from the node.

mod common;

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use bytes::Bytes;
use common::{Certificates, GUEST_IP, Guest, LIMIT};
use nix::sys::signal::Signal;
use peerpod_proto::messages::agent::{self, CreateContainerRequest, method};
use peerpod_proto::messages::oci::{Linux, LinuxNamespace, Mount, Spec};
use peerpod_proto::messages::peer;
use peerpod_proto::{Client, Code, Status};
use prost::Message;
use serde_json::Value;
use test_support::wait_for;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn ask(client: &Client, name: &str, payload: &[u8]) -> Result<Bytes, Status> {
    client.request(agent::SERVICE, name, Bytes::copy_from_slice(payload), Some(LIMIT), Vec::new()).await
}

fn create_container() -> Vec<u8> {
    let oci = Spec { linux: Some(Linux::default()), ..Spec::default() };
    CreateContainerRequest { container_id: "c".to_owned(), oci: Some(oci), ..Default::default() }
        .encode_to_vec()
}

#[tokio::test]
async fn the_agent_is_served_over_mutual_tls_and_the_pod_joins_its_network() {
    let guest = Guest::new();
    let _agent = guest.agent.serve(&guest.agent_socket());
    let mut forwarder = guest.start(&[]);
    assert!(guest.network.pod_is_up());
    let client = guest.client().await;

    let reply = ask(&client, method::CREATE_CONTAINER, &create_container()).await.unwrap();
    let request = CreateContainerRequest::decode(reply).unwrap();
    let path = guest.network.podns.path().to_string_lossy().into_owned();
    let expected = LinuxNamespace { kind: "network".to_owned(), path };
    assert_eq!(request.oci.unwrap().linux.unwrap().namespaces, [expected]);

    let opaque = b"\xfa\x01\x03abc";
    assert_eq!(&ask(&client, "SomethingNew", opaque).await.unwrap()[..], opaque);
    assert_eq!(guest.agent.last(), ("SomethingNew".to_owned(), Bytes::from_static(opaque)));

    let level: peer::LevelResponse =
        client.call(peer::SERVICE, peer::LEVEL, &peer::LevelRequest::default(), Some(LIMIT)).await.unwrap();
    assert_eq!(level.name, "agent-protocol-forwarder");
    assert_eq!(guest.agent.last().0, "SomethingNew", "the agent is not asked for levels");

    let status = forwarder.terminate(LIMIT).unwrap();
    assert_eq!(status.code(), Some(0), "{}", forwarder.output());
    assert!(!guest.network.pod_is_up());
    let log = forwarder.output();
    assert!(!log.contains("PRIVATE KEY"), "{log}");
}

/// A frame of the recorded conversation, by its number.
fn recorded(file: &str, number: usize) -> Vec<u8> {
    let folder =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/kata-4.1.0-runtime-rs");
    let bytes = std::fs::read(folder.join(file)).unwrap();
    let mut rest = &bytes[..];
    for _ in 0..number {
        rest = &rest[length(rest)..];
    }
    rest[..length(rest)].to_vec()
}

/// The length of the first frame, with its header.
fn length(bytes: &[u8]) -> usize {
    10 + u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize
}

async fn read_frame(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut frame = vec![0; 10];
    tokio::time::timeout(LIMIT, stream.read_exact(&mut frame)).await.unwrap().unwrap();
    frame.resize(length(&frame), 0);
    tokio::time::timeout(LIMIT, stream.read_exact(&mut frame[10..])).await.unwrap().unwrap();
    frame
}

#[tokio::test]
async fn a_node_that_knows_no_levels_is_served_byte_for_byte() {
    // An existing node asks for no level: the first frame on its connection is a call of the shim.
    const DETAILS: usize = 1;
    let (asked, answered) = (recorded("agent.c2s.bin", DETAILS), recorded("agent.s2c.bin", DETAILS));
    let guest = Guest::new();
    let agent = tokio::net::UnixListener::bind(guest.agent_socket()).unwrap();
    let mut forwarder = guest.start(&[]);
    let (request, response) = (asked.clone(), answered.clone());
    let agent = tokio::spawn(async move {
        let (mut stream, _) = agent.accept().await.unwrap();
        let frame = read_frame(&mut stream).await;
        // The agent is asked what the shim asked, and nothing of ours before it; streams have numbers of their own.
        assert_eq!(frame[8..], request[8..], "{frame:02x?}");
        let mut reply = response;
        reply[4..8].copy_from_slice(&frame[4..8]);
        stream.write_all(&reply).await.unwrap();
        stream
    });
    let mut node = guest.certificates.stream(guest.network.connect(15150).unwrap()).await.unwrap();
    let mut first = asked.clone();
    first[4..8].copy_from_slice(&1_u32.to_be_bytes());
    node.write_all(&first).await.unwrap();
    let frame = read_frame(&mut node).await;
    assert_eq!((&frame[..4], &frame[8..]), (&answered[..4], &answered[8..]), "{}", forwarder.output());
    assert_eq!(frame[4..8], 1_u32.to_be_bytes());
    drop(agent.await.unwrap());
    forwarder.terminate(LIMIT).unwrap();
}

/// The lines of a level.
fn lines_of(log: &str, level: &str) -> Vec<String> {
    let word = format!(" {level} ");
    let head = |line: &str| line.chars().take(60).collect::<String>();
    log.lines().filter(|line| head(line).contains(&word)).map(str::to_owned).collect()
}

/// A life with a call that has details, and a stranger in it.
async fn life(args: &[&str]) -> String {
    let guest = Guest::new();
    let agent = guest.agent.serve(&guest.agent_socket());
    let folder = guest.dir.path().display().to_string();
    let mut forwarder = guest.start(&[&["-bind-source-dirs", &folder], args].concat());
    let client = guest.client().await;
    let source = format!("{folder}/missing");
    let oci = Spec {
        linux: Some(Linux::default()),
        mounts: vec![Mount {
            source,
            kind: "bind".to_owned(),
            destination: "/x".to_owned(),
            ..Mount::default()
        }],
        ..Spec::default()
    };
    let request =
        CreateContainerRequest { container_id: "c".to_owned(), oci: Some(oci), ..Default::default() };
    ask(&client, method::CREATE_CONTAINER, &request.encode_to_vec()).await.unwrap();
    let plain = Client::connect(guest.network.connect(15150).unwrap());
    assert!(ask(&plain, "Check", b"").await.is_err());
    forwarder.wait_for_output("peer refused", LIMIT).unwrap();
    forwarder.terminate(LIMIT).unwrap();
    drop(agent);
    forwarder.output()
}

#[tokio::test]
async fn the_log_has_rare_changes_and_details_only_when_asked_for() {
    let quiet = life(&[]).await;
    assert_eq!((lines_of(&quiet, "ERROR"), lines_of(&quiet, "DEBUG")), (vec![], vec![]), "{quiet}");
    let warnings = lines_of(&quiet, "WARN");
    assert!(warnings.len() == 1 && warnings[0].contains("peer refused"), "{quiet}");
    for part in
        ["starting", "joining the pod's network", "listening", "peer connected", "stopping", "stopped"]
    {
        assert!(lines_of(&quiet, "INFO").iter().any(|line| line.contains(part)), "{part}: {quiet}");
    }
    let verbose = life(&["-verbose"]).await;
    let details = lines_of(&verbose, "DEBUG");
    assert!(details.iter().any(|line| line.contains("made the missing source of a bind mount")), "{verbose}");
}

#[tokio::test]
async fn peers_that_say_nothing_do_not_delay_the_end() {
    let guest = Guest::new();
    let mut forwarder = guest.start(&[]);
    // More than may shake hands at the same time; each may stay silent for ten seconds.
    let _silent: Vec<_> = (0..80).map(|_| guest.network.connect(15150).unwrap()).collect();
    forwarder.signal(Signal::SIGTERM).unwrap();
    assert!(forwarder.wait_exit(Duration::from_secs(5)).unwrap().success(), "{}", forwarder.output());
}

#[tokio::test]
async fn systemd_is_told_of_start_and_stop() {
    let guest = Guest::new();
    let path = guest.dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let mut command = guest.command(&[]);
    command.env("NOTIFY_SOCKET", &path);
    let log = guest.dir.path().join("log");
    let mut forwarder = test_support::ProcessGuard::spawn("forwarder", &mut command, &log).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let state = || {
        let mut buffer = [0; 64];
        let size = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..size].to_vec()).unwrap()
    };
    assert_eq!(state(), "READY=1");
    assert!(guest.network.connect(15150).is_ok(), "ready means that it listens");
    forwarder.signal(Signal::SIGINT).unwrap();
    assert_eq!(state(), "STOPPING=1");
    assert!(forwarder.wait_exit(LIMIT).unwrap().success());
}

#[tokio::test]
async fn strangers_are_refused_and_disturb_nobody() {
    let guest = Guest::new();
    let _agent = guest.agent.serve(&guest.agent_socket());
    let mut forwarder = guest.start(&[]);
    let client = guest.client().await;
    // Another daemon's client, plain text, and silence.
    let mut stranger = Certificates::new();
    stranger.ca = guest.certificates.ca.clone();
    let refused = match stranger.client(guest.network.connect(15150).unwrap()).await {
        Err(_) => true,
        // In TLS 1.3 the client learns of the refusal with its first call.
        Ok(client) => ask(&client, "Check", b"").await.is_err(),
    };
    assert!(refused);
    let plain = Client::connect(guest.network.connect(15150).unwrap());
    assert!(ask(&plain, "Check", b"").await.is_err());
    let _silent = guest.network.connect(15150).unwrap();
    ask(&client, "Check", b"").await.unwrap();
    assert_eq!(guest.agent.calls.lock().unwrap().len(), 1);
    forwarder.wait_for_output("peer refused", LIMIT).unwrap();
}

#[tokio::test]
async fn a_forwarder_that_was_killed_starts_again() {
    let guest = Guest::new();
    let _agent = guest.agent.serve(&guest.agent_socket());
    let mut first = guest.start(&[]);
    let client = guest.client().await;
    ask(&client, "Check", b"").await.unwrap();
    first.signal(Signal::SIGKILL).unwrap();
    first.wait_exit(LIMIT).unwrap();
    assert!(guest.network.pod_is_up(), "the interface of the first one is still there");
    let _second = guest.start(&[]);
    ask(&guest.client().await, "Check", b"").await.unwrap();
    assert!(guest.network.pod_is_up());
}

#[tokio::test]
async fn a_forwarder_that_starts_again_reaches_an_agent_that_removed_its_socket() {
    let guest = Guest::new();
    let _agent = guest.agent.serve(&guest.agent_socket());
    let mut first = guest.start(&[]);
    ask(&guest.client().await, "Check", b"").await.unwrap();
    // As the Kata agent does on CreateSandbox.
    std::fs::remove_file(guest.agent_socket()).unwrap();
    first.signal(Signal::SIGKILL).unwrap();
    first.wait_exit(LIMIT).unwrap();
    let mut second = guest.start(&[]);
    ask(&guest.client().await, "Check", b"").await.unwrap();
    // A socket with the first name belongs to a newer agent, and is preferred.
    let newer = std::sync::Arc::new(common::Recorder::default());
    let _newer = newer.serve(&guest.agent_socket());
    second.signal(Signal::SIGKILL).unwrap();
    second.wait_exit(LIMIT).unwrap();
    let _third = guest.start(&[]);
    ask(&guest.client().await, "Check", b"newer").await.unwrap();
    assert_eq!(&newer.last().1[..], b"newer");
}

#[tokio::test]
async fn an_agent_that_comes_late_or_again_is_waited_for() {
    let guest = Guest::new();
    let _forwarder = guest.start(&[]);
    let client = guest.client().await;
    let early = tokio::spawn({
        let client = client.clone();
        async move { ask(&client, "Check", b"early").await }
    });
    let agent = guest.agent.serve(&guest.agent_socket());
    assert_eq!(&early.await.unwrap().unwrap()[..], b"early");
    agent.cancel();
    let again = wait_for("a new socket", LIMIT, || Some(guest.agent.serve(&guest.agent_socket()))).unwrap();
    // The first call after the break may meet the old connection's end.
    let mut answered = false;
    for _ in 0..100 {
        if ask(&client, "Check", b"again").await.is_ok() {
            answered = true;
            break;
        }
    }
    assert!(answered);
    again.cancel();
}

#[tokio::test]
async fn plain_tcp_is_served_only_when_asked_for() {
    let guest = Guest::new();
    let _agent = guest.agent.serve(&guest.agent_socket());
    let mut forwarder = guest.start(&["-disable-tls", "-listen", &format!("{GUEST_IP}:16000")]);
    let client = Client::connect(guest.network.connect(16000).unwrap());
    ask(&client, "Check", b"").await.unwrap();
    forwarder.wait_for_output("TLS is switched off", LIMIT).unwrap();
}

/// Runs a forwarder that ends by itself and answers exit code and log.
fn fails(guest: &Guest, args: &[&str]) -> (Option<i32>, String) {
    let output = guest.command(args).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn what_cannot_work_is_refused_at_start_with_the_thing_to_mend() {
    let guest = Guest::new();
    let without = |keys: &[&str]| {
        let mut apf = guest.certificates.apf();
        for key in keys {
            apf.as_object_mut().unwrap().remove(*key);
        }
        apf
    };
    let mut null = guest.certificates.apf();
    null["pod-network"] = Value::Null;
    let mut bad_route = guest.certificates.apf();
    bad_route["pod-network"]["tunnel-type"] = "carrier-pigeon".into();
    for (apf, args, word) in [
        (without(&["tls-client-ca"]), &[][..], "-ca-cert-file"),
        (without(&["tls-server-key"]), &[], "-cert-key"),
        (null, &[], "pod-network"),
        (bad_route, &[], "tunnel-type"),
        (without(&[]), &["-tls-skip-verify"], "-tls-skip-verify"),
        (without(&[]), &["-listen", "nowhere"], "-listen"),
        (without(&[]), &["-ca-cert-file", "/no/such/ca.crt"], "/no/such/ca.crt"),
        (without(&[]), &["-pod-namespace", "/no/such/netns"], "/no/such/netns"),
        (without(&[]), &["-config", "/no/such/apf.json"], "/no/such/apf.json"),
        (without(&[]), &["-lisen", "x"], "-lisen"),
    ] {
        guest.configure(&apf);
        let (code, log) = fails(&guest, args);
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains(word), "{word}: {log}");
        assert!(!guest.network.pod_is_up());
    }
}

#[tokio::test]
async fn a_port_in_use_is_refused_and_the_network_is_undone() {
    let guest = Guest::new();
    let _other = guest.network.guest.run(|| Ok(std::net::TcpListener::bind("0.0.0.0:15150")?)).unwrap();
    let (code, log) = fails(&guest, &[]);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("listen on 0.0.0.0:15150"), "{log}");
    assert!(!guest.network.pod_is_up());
}

#[tokio::test]
async fn a_stop_while_waiting_for_the_network_is_no_failure() {
    let guest = Guest::new();
    guest.network.guest.ip(&["route", "del", "default"]).unwrap();
    let log = guest.dir.path().join("log");
    let mut forwarder =
        test_support::ProcessGuard::spawn("forwarder", &mut guest.command(&[]), &log).unwrap();
    forwarder.wait_for_output("joining the pod's network", LIMIT).unwrap();
    assert_eq!(forwarder.terminate(LIMIT).unwrap().code(), Some(0), "{}", forwarder.output());
}

#[tokio::test]
async fn the_second_signal_ends_the_program_at_once() {
    let guest = Guest::new();
    let mut forwarder = guest.start(&[]);
    // Stopped, it cannot act on the first signal before the second is there as well.
    forwarder.signal(Signal::SIGSTOP).unwrap();
    forwarder.signal(Signal::SIGTERM).unwrap();
    forwarder.signal(Signal::SIGINT).unwrap();
    forwarder.signal(Signal::SIGCONT).unwrap();
    assert_eq!(forwarder.wait_exit(LIMIT).unwrap().code(), Some(1), "{}", forwarder.output());
}

#[tokio::test]
async fn certificates_given_by_flags_win() {
    let guest = Guest::new();
    let _agent = guest.agent.serve(&guest.agent_socket());
    let mine = Certificates::new();
    let file = |name: &str, text: &str| {
        let path = guest.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    };
    let args = [
        format!("--ca-cert-file={}", file("ca.crt", &mine.client_cert)),
        format!("--cert-file={}", file("tls.crt", &mine.server_cert)),
        format!("--cert-key={}", file("tls.key", &mine.server_key)),
    ];
    let _forwarder = guest.start(&args.each_ref().map(String::as_str));
    let client = mine.client(guest.network.connect(15150).unwrap()).await.unwrap();
    ask(&client, "Check", b"").await.unwrap();
    let other = guest.certificates.client(guest.network.connect(15150).unwrap()).await;
    assert!(other.is_err(), "the certificates of the configuration are not used");
}

#[tokio::test]
async fn an_agent_error_reaches_the_caller_as_it_is() {
    struct Refuses;
    #[async_trait::async_trait]
    impl peerpod_proto::Service for Refuses {
        async fn call(
            &self,
            _: peerpod_proto::CallContext,
            _: &str,
            _: &str,
            _: Bytes,
        ) -> Result<Bytes, Status> {
            Err(Status::new(Code::NotFound, "InvalidExecId"))
        }
    }
    let guest = Guest::new();
    let listener = tokio::net::UnixListener::bind(guest.agent_socket()).unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let server = peerpod_proto::Server::new(std::sync::Arc::new(Refuses));
    let serving = tokio::spawn({
        let stop = stop.clone();
        async move { server.serve_unix(listener, stop).await }
    });
    let mut forwarder = guest.start(&[]);
    let status = ask(&guest.client().await, method::SIGNAL_PROCESS, b"").await.unwrap_err();
    assert_eq!((status.code(), status.message.as_str()), (Code::NotFound, "InvalidExecId"));
    forwarder.terminate(LIMIT).unwrap();
    stop.cancel();
    serving.await.unwrap();
}
