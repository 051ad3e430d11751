//! A node, a pod on it and a guest beside it, all in network namespaces that vanish with the value.
//!
//! The programs `ip` and `nft` build and observe; the code under test uses neither.

#![allow(dead_code, reason = "each test program uses its part")]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use peerpod_net::netns::{self, NetnsGuard};
use peerpod_net::{InspectOptions, NetError, PodNetwork, TeardownReport, guest, inspect, worker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

pub(crate) const NODE_IP: &str = "10.99.0.1";
pub(crate) const GUEST_IP: &str = "10.99.0.2";
pub(crate) const POD_IP: &str = "10.244.1.23";
pub(crate) const CNI_GATEWAY: &str = "10.244.1.1";
pub(crate) const PORT: u16 = 4789;

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A name no other test of this machine uses.
pub(crate) fn unique(what: &str) -> String {
    format!("ppn{}-{}-{what}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

pub(crate) async fn netns(what: &str) -> NetnsGuard {
    NetnsGuard::create(&unique(what)).await.expect("tests run as root")
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// Runs a program; its output, or a panic with its error text.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| {
        panic!("{program} is needed (apt-get install iproute2 nftables): {e}");
    });
    assert!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `ip` in a namespace.
pub(crate) fn ip(netns: &Path, command: &str) -> String {
    let mut arguments = vec!["-n", name(netns)];
    arguments.extend(command.split_whitespace());
    run("ip", &arguments)
}

/// Runs several `ip` commands, one a line.
pub(crate) fn ips(netns: &Path, commands: &str) {
    for command in commands.lines().map(str::trim).filter(|line| !line.is_empty()) {
        ip(netns, command);
    }
}

/// Runs `tc` in a namespace.
pub(crate) fn tc(netns: &Path, command: &str) -> String {
    let mut arguments = vec!["-n", name(netns)];
    arguments.extend(command.split_whitespace());
    run("tc", &arguments)
}

/// The packet filter of a namespace as `nft` prints it.
pub(crate) fn ruleset(netns: &Path) -> String {
    let path = format!("--net={}", netns.display());
    run("nsenter", &[&path, "nft", "list", "ruleset"])
}

/// Polls until `check` gives a value.
pub(crate) async fn wait_for<T, Fut: Future<Output = Option<T>>>(
    what: &str,
    mut check: impl FnMut() -> Fut,
) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(Instant::now() < deadline, "{what} did not happen within 30 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A node with one pod, and a guest with its pod namespace, joined by a bridge.
pub(crate) struct Cluster {
    pub(crate) podns: NetnsGuard,
    pub(crate) guest: NetnsGuard,
    pub(crate) pod: NetnsGuard,
    pub(crate) node: NetnsGuard,
}

impl Cluster {
    pub(crate) async fn new() -> Self {
        Self::with_pod(|cluster| {
            ips(
                cluster.pod.path(),
                "addr add 10.244.1.23/24 dev eth0
                 link set eth0 address 6a:1b:2c:3d:4e:5f
                 link set eth0 mtu 1400
                 link set eth0 up
                 route add default via 10.244.1.1",
            );
        })
        .await
    }

    /// The pod has an unconfigured `eth0`; `configure` gives it what a plugin would.
    pub(crate) async fn with_pod(configure: impl FnOnce(&Self)) -> Self {
        let cluster = Self {
            podns: netns("podns").await,
            guest: netns("guest").await,
            pod: netns("pod").await,
            node: netns("node").await,
        };
        ips(
            cluster.node.path(),
            &format!(
                "link add br0 type bridge
                 link set br0 up
                 addr add {NODE_IP}/24 dev br0
                 route add default via 10.99.0.254
                 link add guest0 type veth peer name ens3 netns {guest}
                 link set guest0 master br0
                 link set guest0 up
                 link add cni0 type bridge
                 link set cni0 up
                 addr add {CNI_GATEWAY}/24 dev cni0
                 link add pod0 type veth peer name eth0 netns {pod}
                 link set pod0 master cni0
                 link set pod0 up",
                guest = name(cluster.guest.path()),
                pod = name(cluster.pod.path()),
            ),
        );
        ips(
            cluster.guest.path(),
            &format!(
                "addr add {GUEST_IP}/24 dev ens3
                 link set ens3 up
                 route add default via {NODE_IP}"
            ),
        );
        configure(&cluster);
        cluster
    }

    /// Runs a future in the node's namespace.
    pub(crate) async fn on_node<F, Fut, T>(&self, f: F) -> T
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T>,
        T: Send + 'static,
    {
        netns::run_in(self.node.path(), f).await.unwrap()
    }

    pub(crate) async fn inspect(&self, opts: InspectOptions) -> Result<PodNetwork, NetError> {
        let pod = self.pod_path();
        self.on_node(move || async move { inspect(&pod, &opts).await }).await
    }

    pub(crate) async fn reserve(&self, vni: u32) -> Result<(), NetError> {
        let pod = self.pod_path();
        self.on_node(move || async move { worker::reserve(&pod, vni, PORT).await }).await
    }

    pub(crate) async fn connect(&self, vni: u32) -> Result<(), NetError> {
        let pod = self.pod_path();
        let tunnel = worker::TunnelSpec::new(vni, PORT, GUEST_IP.parse().unwrap(), "eth0");
        self.on_node(move || async move { worker::connect(&pod, &tunnel).await }).await
    }

    pub(crate) async fn teardown(&self, vni: u32) -> TeardownReport {
        let pod = self.pod_path();
        self.on_node(move || async move { worker::teardown(&pod, vni, PORT).await }).await
    }

    pub(crate) async fn guest_setup(&self, network: &PodNetwork) -> Result<(), NetError> {
        self.guest_setup_with(network, None, &CancellationToken::new()).await
    }

    pub(crate) async fn guest_setup_with(
        &self,
        network: &PodNetwork,
        host_interface: Option<&'static str>,
        cancel: &CancellationToken,
    ) -> Result<(), NetError> {
        let (podns, network, cancel) = (self.podns.path().to_owned(), network.clone(), cancel.clone());
        netns::run_in(self.guest.path(), move || async move {
            guest::setup(&podns, &network, host_interface, &cancel).await
        })
        .await
        .unwrap()
    }

    pub(crate) async fn guest_teardown(&self, network: &PodNetwork) -> TeardownReport {
        let (podns, network) = (self.podns.path().to_owned(), network.clone());
        netns::run_in(self.guest.path(), move || async move { guest::teardown(&podns, &network).await })
            .await
            .unwrap()
    }

    /// Inspects, reserves, and sets both ends up.
    pub(crate) async fn join(&self, vni: u32) -> PodNetwork {
        let mut network = self.inspect(InspectOptions::default()).await.unwrap();
        self.reserve(vni).await.unwrap();
        network.vxlan_id = vni;
        self.guest_setup(&network).await.unwrap();
        self.connect(vni).await.unwrap();
        network
    }

    /// Sends `bytes` bytes from the node to the pod's address and back; what came back.
    pub(crate) async fn echo(&self, bytes: usize) -> usize {
        echo(self.podns.path(), self.node.path(), POD_IP, bytes).await
    }

    pub(crate) fn pod_path(&self) -> PathBuf {
        self.pod.path().to_owned()
    }
}

/// Serves one connection on `ip` in `server` and talks to it from `client`; the length of the echo.
pub(crate) async fn echo(server: &Path, client: &Path, ip: &str, bytes: usize) -> usize {
    let listener = listen(server, ip).await;
    let port = listener.local_addr().unwrap().port();
    let served = tokio::spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut received = vec![0; bytes];
        stream.read_exact(&mut received).await.unwrap();
        stream.write_all(&received).await.unwrap();
    });
    let address = format!("{ip}:{port}");
    let got = netns::run_in(client, move || async move {
        let talk = async {
            let mut stream = TcpStream::connect(&address).await?;
            stream.write_all(&vec![7; bytes]).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(answer.len())
        };
        tokio::time::timeout(Duration::from_secs(20), talk).await.expect("the pod answers").unwrap()
    })
    .await
    .unwrap();
    served.await.unwrap();
    got
}

/// A listener made in a namespace; sockets stay where they were made.
async fn listen(server: &Path, ip: &str) -> std::net::TcpListener {
    let address = format!("{ip}:0");
    netns::run_in(server, move || async move {
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    })
    .await
    .unwrap()
}
