//! Forwarder and gateway as programs, and a link between them that breaks as links do.

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use common::{GUEST_IP, Guest, LIMIT, SERVER_NAME};
use nix::sys::signal::Signal;
use peerpod_gateway::{AgentProxies, ProxySpec, ProxyState, RemoteGateway, TlsSpec};
use peerpod_proto::messages::agent::{self, method};
use peerpod_proto::messages::peer;
use peerpod_proto::{CallContext, Client, Code, Server, Service, Status};
use test_support::{Netns, ProcessGuard, wait_for_async};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What a stream has at an offset.
fn generated(offset: u64, length: usize) -> Vec<u8> {
    (offset..).take(length).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// An agent whose output is generated, and which counts what it carries out.
#[derive(Default)]
struct Agent {
    read: Mutex<u64>,
    seen: Mutex<HashMap<Bytes, u64>>,
    waits: AtomicUsize,
    exit: Notify,
}

#[async_trait]
impl Service for Agent {
    async fn call(&self, _: CallContext, _: &str, name: &str, payload: Bytes) -> Result<Bytes, Status> {
        match name {
            method::READ_STDOUT => {
                let mut read = self.read.lock().unwrap();
                let bytes = generated(*read, 3_000);
                *read += 3_000;
                Ok(bytes.into())
            }
            method::WAIT_PROCESS | "Slow" => {
                self.waits.fetch_add(1, Ordering::SeqCst);
                self.exit.notified().await;
                Ok("ended".into())
            }
            _ => {
                *self.seen.lock().unwrap().entry(payload.clone()).or_default() += 1;
                Ok(payload)
            }
        }
    }
}

/// The gateway's program, built once for each run of the tests.
fn gateway_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let dir = Path::new(env!("CARGO_BIN_EXE_agent-protocol-forwarder")).parent().unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "peerpod-gateway", "--target-dir"]);
        let built =
            cargo.arg(dir.parent().unwrap()).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        let errors = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "the gateway does not build: {errors}");
        dir.join("peerpod-gateway")
    })
}

/// A guest with its programs, and a node with its gateway.
struct Set {
    agent: Arc<Agent>,
    forwarder: ProcessGuard,
    gateway: ProcessGuard,
    daemon: RemoteGateway,
    shim: Client,
    guest: Guest,
    _agent: tokio_util::sync::DropGuard,
}

impl Set {
    async fn new() -> Self {
        let guest = Guest::new();
        let (agent, stop) = (Arc::<Agent>::default(), CancellationToken::new());
        let listener = UnixListener::bind(guest.agent_socket()).unwrap();
        let (server, stopping) = (Server::new(agent.clone()), stop.clone());
        tokio::spawn(async move { server.serve_unix(listener, stopping).await });
        let forwarder = guest.start(&[]);
        let control = guest.dir.path().join("control.sock");
        let mut command = guest.network.node.command(gateway_program());
        command.arg("--control-socket").arg(&control);
        let mut gateway =
            ProcessGuard::spawn("peerpod-gateway", &mut command, &guest.dir.path().join("gateway.log"))
                .unwrap();
        gateway.wait_for_output("gateway is ready", LIMIT).unwrap();
        let daemon = RemoteGateway::new(control);
        let certificates = &guest.certificates;
        let tls = TlsSpec::new(
            &certificates.ca,
            &certificates.client_cert,
            certificates.client_key.as_str(),
            SERVER_NAME,
        );
        let socket = guest.dir.path().join("pod/agent.ttrpc");
        let spec = ProxySpec::new("s1", &socket, [format!("{GUEST_IP}:15150")]).with_tls(tls);
        daemon.register(spec).await.unwrap();
        daemon.wait_ready("s1", CancellationToken::new()).await.unwrap();
        let shim = Client::connect_unix(&socket).await.unwrap();
        let _agent = stop.drop_guard();
        let set = Self { agent, forwarder, gateway, daemon, shim, guest, _agent };
        wait_for_async("sessions are agreed on", LIMIT, || async {
            (set.daemon.list().await.unwrap()[0].peer_level == Some(2)).then_some(())
        })
        .await
        .unwrap();
        set
    }

    fn call(&self, name: &'static str, payload: impl Into<Bytes>) -> JoinHandle<Result<Bytes, Status>> {
        let (shim, payload) = (self.shim.clone(), payload.into());
        tokio::spawn(async move { shim.request(agent::SERVICE, name, payload, None, Vec::new()).await })
    }

    async fn under_way(&self, count: usize) {
        let waits = || async { (self.agent.waits.load(Ordering::SeqCst) >= count).then_some(()) };
        wait_for_async("the calls are under way", LIMIT, waits).await.unwrap();
    }

    /// How many connections to the guest there were, once there is one.
    async fn connections(&self, least: u64) -> u64 {
        wait_for_async("the guest is connected", LIMIT, || async {
            match self.daemon.list().await.unwrap()[0].state {
                ProxyState::Connected { connections, .. } if connections >= least => Some(connections),
                _ => None,
            }
        })
        .await
        .unwrap()
    }
}

/// A rule of the node's packet filter for the link, for as long as it lives.
struct Rule<'a>(&'a Netns);

impl<'a> Rule<'a> {
    /// Has nothing pass, in silence.
    fn drop_all(node: &'a Netns) -> Self {
        Self::new(node, &[("output", "dport"), ("input", "sport")], "drop")
    }

    /// Answers the node's next packet with a reset. The guest learns nothing of it.
    fn reset(node: &'a Netns) -> Self {
        Self::new(node, &[("output", "dport")], "reject with tcp reset")
    }

    fn new(node: &'a Netns, chains: &[(&str, &str)], verdict: &str) -> Self {
        let nft = |rule: &str| node.exec("nft", &rule.split(' ').collect::<Vec<_>>()).unwrap();
        nft("add table inet link");
        for (chain, port) in chains {
            nft(&format!("add chain inet link {chain} {{ type filter hook {chain} priority 0 ; }}"));
            nft(&format!("add rule inet link {chain} tcp {port} 15150 {verdict}"));
        }
        Self(node)
    }
}

impl Drop for Rule<'_> {
    fn drop(&mut self) {
        // The namespace goes with the test in any case.
        let _ = self.0.exec("nft", &["delete", "table", "inet", "link"]);
    }
}

async fn done(call: JoinHandle<Result<Bytes, Status>>) -> Result<Bytes, Status> {
    tokio::time::timeout(LIMIT, call).await.expect("it is answered").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_and_calls_are_whole_over_a_link_that_is_reset() {
    let set = Set::new().await;
    let waiting = set.call(method::WAIT_PROCESS, "p");
    let stop = CancellationToken::new();
    let reading = async {
        let mut offset = 0;
        while !stop.is_cancelled() {
            let bytes = done(set.call(method::READ_STDOUT, "")).await.unwrap();
            assert!(bytes == generated(offset, 3_000), "at {offset}");
            offset += 3_000;
        }
        offset
    };
    let calling = async {
        let mut number = 0_u32;
        while !stop.is_cancelled() {
            number += 1;
            let payload = Bytes::from(number.to_string().repeat(50));
            assert_eq!(done(set.call("Echo", payload.clone())).await.unwrap(), payload);
        }
        number
    };
    let breaking = async {
        for connection in 2..=21 {
            let rule = Rule::reset(&set.guest.network.node);
            // Under load the next packet meets the rule.
            wait_for_async("the link is broken", LIMIT, || async {
                let state = set.daemon.list().await.unwrap().remove(0).state;
                matches!(state, ProxyState::Connecting { .. }).then_some(())
            })
            .await
            .unwrap();
            drop(rule);
            set.connections(connection).await;
        }
        stop.cancel();
    };
    let (read, calls, ()) = tokio::join!(reading, calling, breaking);
    assert_eq!(*set.agent.read.lock().unwrap(), read, "no output was taken and lost");
    let seen = set.agent.seen.lock().unwrap().values().map(|count| assert_eq!(*count, 1)).count();
    assert_eq!(seen, calls as usize, "each request is carried out once");
    set.agent.exit.notify_waiters();
    assert_eq!(done(waiting).await.unwrap(), "ended");
    assert_eq!(set.agent.waits.load(Ordering::SeqCst), 1);
    assert!(set.gateway.output().contains("resumed=true"), "{}", set.gateway.last_lines(20));
}

#[tokio::test]
async fn a_link_that_is_silent_is_noticed_and_its_calls_go_on() {
    let set = Set::new().await;
    let waiting = set.call(method::WAIT_PROCESS, "p");
    set.under_way(1).await;
    let rule = Rule::drop_all(&set.guest.network.node);
    let asked = set.call("Echo", "into the silence");
    wait_for_async("the silence is noticed", LIMIT, || async {
        let state = set.daemon.list().await.unwrap().remove(0).state;
        matches!(state, ProxyState::Connecting { .. }).then_some(())
    })
    .await
    .unwrap();
    set.agent.exit.notify_waiters();
    drop(rule);
    assert_eq!(done(asked).await.unwrap(), "into the silence");
    assert_eq!(done(waiting).await.unwrap(), "ended");
    assert_eq!(set.agent.waits.load(Ordering::SeqCst), 1);
    assert_eq!(set.agent.seen.lock().unwrap()[&b"into the silence"[..]], 1);
}

#[tokio::test]
async fn a_forwarder_that_is_started_again_is_asked_again_for_what_waits() {
    let mut set = Set::new().await;
    let (waiting, slow) = (set.call(method::WAIT_PROCESS, "p"), set.call("Slow", "x"));
    set.under_way(2).await;
    set.forwarder.signal(Signal::SIGKILL).unwrap();
    set.forwarder.wait_exit(LIMIT).unwrap();
    let new = set.call("Echo", "while there is none");
    let _again = set.guest.start(&[]);
    let status = done(slow).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message.contains("the connection to the guest at 10.77.0.2:15150 broke"), "{status}");
    assert_eq!(done(new).await.unwrap(), "while there is none");
    set.under_way(3).await;
    set.agent.exit.notify_waiters();
    assert_eq!(done(waiting).await.unwrap(), "ended");
}

#[tokio::test]
async fn a_grace_time_that_is_no_duration_is_refused() {
    let guest = Guest::new();
    let output = guest.command(&["-link-grace", "soon"]).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && log.contains("-link-grace"), "{log}");
}

/// Without a grace time the forwarder is one of the level before in this.
#[tokio::test]
async fn no_grace_time_means_no_session() {
    let guest = Guest::new();
    let _agent = guest.agent.serve(&guest.agent_socket());
    let _forwarder = guest.start(&["-link-grace", "0"]);
    let request = peer::LevelRequest { max_level: 2, session: vec![7; 32].into(), ..Default::default() };
    let client = guest.client().await;
    let answer: peer::LevelResponse =
        client.call(peer::SERVICE, peer::LEVEL, &request, Some(Duration::from_secs(10))).await.unwrap();
    assert!(!answer.kept && answer.max_level == 2);
}
