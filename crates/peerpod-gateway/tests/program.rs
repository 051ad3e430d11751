//! The program and its control socket, as a daemon in another process uses them.

mod common;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::Signal;
use peerpod_gateway::{
    AgentProxies, ControlServer, Gateway, GatewayErrorKind, ProxyState, RemoteGateway, SERVICE,
};
use peerpod_proto::{CallContext, Client, Code, Server, Service, Status};
use test_support::ProcessGuard;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use common::{Guest, LIMIT, Pki, Pods, Valid, call, echo, free_address, wait_for, within};

/// The program, with its control socket.
struct Program {
    process: ProcessGuard,
    socket: PathBuf,
}

impl Program {
    async fn start(directory: &Path) -> Self {
        Self::start_at(directory, "trace").await
    }

    async fn start_at(directory: &Path, level: &str) -> Self {
        let socket = directory.join("control.sock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_peerpod-gateway"));
        command.arg("--control-socket").arg(&socket).args(["--log-format", "json", "--log-level", level]);
        let process = ProcessGuard::spawn("peerpod-gateway", &mut command, &directory.join("log")).unwrap();
        wait_for("the control socket is there", || socket.exists()).await;
        Self { process, socket }
    }

    fn daemon(&self) -> RemoteGateway {
        RemoteGateway::new(&self.socket)
    }
}

#[tokio::test]
async fn a_daemon_uses_the_program_like_its_own_gateway() {
    let (pki, pods) = (Pki::new(Valid::Now), Pods::new());
    let mut program = Program::start(pods.0.path()).await;
    let mode = std::fs::metadata(&program.socket).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let guest = Guest::start(Some(pki.acceptor())).await;
    let daemon = program.daemon();
    let spec = pods.spec("s1", guest.address).with_tls(pki.spec());
    within(daemon.register(spec.clone())).await.unwrap();
    within(daemon.register(spec)).await.unwrap();
    let info = within(daemon.wait_ready("s1", CancellationToken::new())).await.unwrap();
    assert_eq!(info.target, guest.address.to_string());
    let shim = pods.shim("s1").await;
    echo(&shim, "through two processes").await;

    // Another daemon, or the same one after a restart, finds everything as it was.
    drop(daemon);
    let daemon = program.daemon();
    echo(&shim, "no daemon needed").await;
    let list = within(daemon.list()).await.unwrap();
    assert_eq!((list.len(), list[0].fronts), (1, 1));
    assert!(matches!(list[0].state, ProxyState::Connected { connections: 1, .. }));
    within(daemon.unregister("s1")).await.unwrap();
    within(daemon.unregister("s1")).await.unwrap();
    assert!(!pods.socket("s1").exists());
    assert!(within(daemon.list()).await.unwrap().is_empty());

    within(daemon.register(pods.spec("s2", free_address().await))).await.unwrap();
    program.process.signal(Signal::SIGTERM).unwrap();
    let status = program.process.wait_exit(LIMIT).unwrap();
    assert_eq!(status.code(), Some(0), "{}", program.process.output());
    assert!(!program.socket.exists() && !pods.socket("s2").exists(), "the sockets are removed");
    let log = program.process.output();
    assert!(log.contains("sandbox is registered") && !log.contains("PRIVATE KEY"), "{log}");
    let mut canaries = test_support::Canaries::new();
    canaries.add_pem("the node's key", pki.spec().key_pem.expose());
    canaries.assert_not_in("the log at trace level", log);
    canaries.assert_not_in("the debug form of a specification", format!("{:?}", pki.spec()));
}

/// Level and message of each line of the log.
fn levels(log: &str) -> Vec<(String, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.map(|line| (text(&line["level"]), text(&line["fields"]["message"]))).collect()
}

/// One sandbox from its registration to its end, at a level of the log; and one whose guest answers nobody.
async fn life_at(level: &str) -> Vec<(String, String)> {
    let pods = Pods::new();
    let mut program = Program::start_at(pods.0.path(), level).await;
    // Lines about a link are written beside the work; those that the level shows are waited for.
    let told = |program: &mut Program, least: &[&str], message: &str| {
        if least.contains(&level) {
            program.process.wait_for_output(message, LIMIT).unwrap();
        }
    };
    let guest = Guest::start(None).await;
    let daemon = program.daemon();
    within(daemon.register(pods.spec("s1", guest.address))).await.unwrap();
    within(daemon.wait_ready("s1", CancellationToken::new())).await.unwrap();
    told(&mut program, &["trace", "debug", "info"], "guest is connected");
    echo(&pods.shim("s1").await, "hello").await;
    within(daemon.unregister("s1")).await.unwrap();
    let lost = pods.spec("s2", free_address().await).with_connect_timeout(Duration::from_millis(100));
    within(daemon.register(lost)).await.unwrap();
    within(daemon.wait_ready("s2", CancellationToken::new())).await.unwrap_err();
    told(&mut program, &["trace", "debug", "info", "warn"], "guest cannot be reached");
    program.process.signal(Signal::SIGTERM).unwrap();
    program.process.wait_exit(LIMIT).unwrap();
    levels(&program.process.output())
}

#[tokio::test]
async fn each_level_of_the_log_shows_what_the_book_says() {
    // Whether a message comes once or more often is not what this is about.
    let of = |log: &[(String, String)], wanted: &str| -> BTreeSet<String> {
        let lines = log.iter().filter(|(level, _)| level == wanted);
        lines.map(|(_, message)| message.clone()).collect()
    };
    let lost = || BTreeSet::from(["guest cannot be reached".to_owned()]);
    let all = life_at("trace").await;
    // Nothing failed that somebody asked the program for, and one guest is odd.
    assert_eq!((of(&all, "ERROR"), of(&all, "WARN")), (BTreeSet::new(), lost()));
    let info = of(&all, "INFO");
    for part in [
        "gateway is ready",
        "a daemon is connected",
        "sandbox is registered",
        "guest is connected",
        "sandbox is unregistered",
        "gateway ends",
    ] {
        assert!(info.contains(part), "{part} is missing in {info:?}");
    }
    assert!(info.len() <= 10, "rare changes, not a diary: {info:?}");
    assert!(of(&all, "DEBUG").contains("dialling"), "{all:?}");
    // Each level leaves out those below it, and nothing else.
    for (level, out) in [("debug", &["TRACE"][..]), ("info", &["TRACE", "DEBUG"])] {
        let log = life_at(level).await;
        assert!(out.iter().all(|level| of(&log, level).is_empty()), "{level}: {log:?}");
        assert_eq!(of(&log, "INFO"), info, "{level}");
    }
    let warnings = life_at("warn").await;
    assert_eq!((of(&warnings, "WARN"), warnings.len()), (lost(), 1), "{warnings:?}");
    assert!(life_at("error").await.is_empty());
}

#[tokio::test]
async fn what_a_daemon_sends_wrongly_is_not_quoted() {
    let (pki, pods) = (Pki::new(Valid::Now), Pods::new());
    let mut program = Program::start(pods.0.path()).await;
    let mut canaries = test_support::Canaries::new();
    canaries.add_pem("the node's key", pki.spec().key_pem.expose());
    let spec = serde_json::to_value(pods.spec("s1", free_address().await).with_tls(pki.spec())).unwrap();
    let mut said = String::new();
    for (path, value) in [
        ("/tls/ca_pem", serde_json::json!("no certificate")),
        ("/tls/cert_pem", spec["tls"]["key_pem"].clone()),
        ("/tls/key_pem", serde_json::json!({ "x": spec["tls"]["key_pem"] })),
        ("/connect_timeout", serde_json::json!("soon")),
    ] {
        let mut broken = spec.clone();
        *broken.pointer_mut(path).unwrap() = value;
        let client = Client::connect_unix(&program.socket).await.unwrap();
        let payload = Bytes::from(serde_json::to_vec(&serde_json::json!({ "spec": broken })).unwrap());
        let answer = within(client.request(SERVICE, "Register", payload, Some(LIMIT), Vec::new())).await;
        said += &format!("{path}: {:?}\n", answer.unwrap_err());
    }
    program.process.signal(Signal::SIGTERM).unwrap();
    program.process.wait_exit(LIMIT).unwrap();
    canaries.assert_not_in("the answers", &said);
    canaries.assert_not_in("the log at trace level", program.process.output());
}

#[tokio::test]
async fn errors_cross_the_control_socket_unchanged() {
    let pods = Pods::new();
    let program = Program::start(pods.0.path()).await;
    let daemon = program.daemon();
    let address = free_address().await;
    let invalid = daemon.register(pods.spec("", address)).await.unwrap_err();
    assert_eq!(invalid.kind(), GatewayErrorKind::Invalid);
    assert_eq!(invalid.to_string(), "the specification names no sandbox");
    let spec = pods.spec("s1", address).with_connect_timeout(Duration::from_millis(100));
    within(daemon.register(spec)).await.unwrap();
    let timeout = within(daemon.wait_ready("s1", CancellationToken::new())).await.unwrap_err();
    assert_eq!(timeout.kind(), GatewayErrorKind::Timeout);
    let conflict = within(daemon.register(pods.spec("s1", address))).await.unwrap_err();
    assert_eq!(conflict.kind(), GatewayErrorKind::Conflict);
    let missing = within(daemon.wait_ready("s9", CancellationToken::new())).await.unwrap_err();
    assert_eq!(
        (missing.kind(), missing.to_string().as_str()),
        (GatewayErrorKind::NotFound, "sandbox s9 is not registered")
    );
}

#[tokio::test]
async fn a_second_program_leaves_the_first_one_alone() {
    let pods = Pods::new();
    let program = Program::start(pods.0.path()).await;
    let output = Command::new(env!("CARGO_BIN_EXE_peerpod-gateway"))
        .arg("--control-socket")
        .arg(&program.socket)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("listens at") && text.contains("control.sock"), "{text}");
    assert!(within(program.daemon().list()).await.unwrap().is_empty());
}

#[test]
fn bad_options_end_the_program_with_code_2() {
    for arguments in [&["--log-format", "xml"][..], &["--unknown"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_peerpod-gateway")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

#[tokio::test]
async fn a_daemon_waits_for_a_gateway_that_restarts() {
    let pods = Pods::new();
    let path = pods.0.path().join("control.sock");
    let gateway = Gateway::new();
    let serve = |gateway: Gateway| {
        let path = path.clone();
        async move {
            let stop = CancellationToken::new();
            let control = ControlServer::bind(gateway, &path).await.unwrap();
            let task = tokio::spawn(control.serve(stop.clone()));
            (stop, task)
        }
    };
    let (stop, task) = serve(gateway.clone()).await;
    let daemon = Arc::new(RemoteGateway::new(&path));
    within(daemon.register(pods.spec("s1", free_address().await))).await.unwrap();
    let connection = within(daemon.connection()).await.unwrap();
    assert!(!connection.is_cancelled());
    stop.cancel();
    within(task).await.unwrap().unwrap();
    assert!(!path.exists());
    let early = tokio::spawn({
        let daemon = Arc::clone(&daemon);
        async move { daemon.list().await }
    });
    let (_stop, _task) = serve(gateway).await;
    assert_eq!(within(early).await.unwrap().unwrap().len(), 1);
    within(daemon.list()).await.unwrap();
    assert!(
        connection.is_cancelled(),
        "whoever told the first one learns of it, although a call has connected since"
    );
}

#[tokio::test]
async fn a_gateway_that_is_not_there_is_named() {
    let pods = Pods::new();
    let path = pods.0.path().join("nothing.sock");
    let daemon = RemoteGateway::new(&path).with_reconnect_time(Duration::from_millis(50));
    let error = within(daemon.list()).await.unwrap_err();
    assert_eq!(error.kind(), GatewayErrorKind::Unavailable);
    assert!(error.to_string().contains("nothing.sock"), "{error}");
}

/// A gateway from the far future.
struct Future;

#[async_trait::async_trait]
impl Service for Future {
    async fn call(&self, _: CallContext, _: &str, called: &str, _: Bytes) -> Result<Bytes, Status> {
        match called {
            "Hello" => Ok(r#"{"name":"gw","version":"9.0","min_level":8,"max_level":9,"more":1}"#.into()),
            called => Err(Status::unknown_method(called)),
        }
    }
}

#[tokio::test]
async fn levels_that_do_not_meet_are_told_apart() {
    let pods = Pods::new();
    let path = pods.0.path().join("control.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    tokio::spawn(async move { Server::new(Arc::new(Future)).serve_unix(listener, stop).await });
    let error = within(RemoteGateway::new(&path).list()).await.unwrap_err();
    assert_eq!(error.kind(), GatewayErrorKind::Unavailable);
    assert!(error.to_string().contains("levels 1 to 2") && error.to_string().contains("8 to 9"), "{error}");
}

#[tokio::test]
async fn requests_that_are_no_json_are_refused() {
    let pods = Pods::new();
    let program = Program::start(pods.0.path()).await;
    let client = Client::connect_unix(&program.socket).await.unwrap();
    for (service, method, payload, code) in [
        (SERVICE, "Register", "{", Code::InvalidArgument),
        (SERVICE, "Register", r#"{"spec":{"sandbox_id":"s"}}"#, Code::InvalidArgument),
        (SERVICE, "Nope", "{}", Code::Unimplemented),
        ("x.Y", "List", "{}", Code::Unimplemented),
    ] {
        let status =
            within(client.request(service, method, payload.into(), None, Vec::new())).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
    }
    // A key this version does not know is no error.
    let hello = r#"{"name":"d","version":"2","min_level":1,"max_level":3,"more":true}"#;
    let answer = within(client.request(SERVICE, "Hello", hello.into(), None, Vec::new())).await.unwrap();
    assert!(String::from_utf8_lossy(&answer).contains(r#""max_level":2"#));
    assert!(call(&client, "Echo", "x").await.is_err());
}

/// What a daemon says, word for word: the spelling of each version is fixed by what was released.
async fn served(program: &Program, spec: &str, hello: &str, sandbox: &str) {
    let client = Client::connect_unix(&program.socket).await.unwrap();
    let ask = |method: &'static str, payload: String| {
        let client = client.clone();
        async move { within(client.request(SERVICE, method, payload.into(), None, Vec::new())).await.unwrap() }
    };
    let answer = ask("Hello", hello.to_owned()).await;
    assert!(String::from_utf8_lossy(&answer).contains(r#""min_level":1,"max_level":2"#));
    ask("Register", format!(r#"{{"spec":{spec}}}"#)).await;
    let sandbox = format!(r#"{{"sandbox_id":"{sandbox}"}}"#);
    let ready = ask("WaitReady", sandbox.clone()).await;
    assert!(String::from_utf8_lossy(&ready).contains(r#""target":"127.0.0.1"#));
    let list = ask("List", "{}".to_owned()).await;
    assert!(String::from_utf8_lossy(&list).contains(r#""state":"connected""#));
    ask("Unregister", sandbox).await;
}

#[tokio::test]
async fn daemons_before_and_after_this_version_are_served() {
    let pods = Pods::new();
    let program = Program::start(pods.0.path()).await;
    let guest = Guest::start(None).await;
    let target = guest.address;
    let socket = |sandbox| pods.socket(sandbox).display().to_string();
    // The version before, which leaves out what has a default.
    let spec = format!(
        r#"{{"sandbox_id":"before","socket":"{}","targets":["{target}"],"tls":null}}"#,
        socket("before")
    );
    served(&program, &spec, r#"{"name":"d","version":"0","min_level":1,"max_level":1}"#, "before").await;
    // The version after has keys that nobody here knows.
    let spec = format!(
        r#"{{"sandbox_id":"after","socket":"{}","targets":["{target}"],"tls":null,"volumes":[],"new":{{"a":1}}}}"#,
        socket("after")
    );
    let hello = r#"{"name":"d","version":"9","min_level":2,"max_level":3,"more":[1]}"#;
    served(&program, &spec, hello, "after").await;
}
