//! A node, a pod on it and a guest beside it, all in network namespaces that vanish with the value.
//!
//! The programs `ip` and `nft` build and observe; the code under test uses neither.

#![allow(dead_code, reason = "each test program uses its part")]

use std::future::Future;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use peerpod_net::netns::{self, NetnsGuard};
use peerpod_net::{Family, InspectOptions, NetError, PodNetwork, TeardownReport, guest, inspect, worker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

pub(crate) const NODE_IP: &str = "10.99.0.1";
pub(crate) const GUEST_IP: &str = "10.99.0.2";
pub(crate) const POD_IP: &str = "10.244.1.23";
pub(crate) const CNI_GATEWAY: &str = "10.244.1.1";
pub(crate) const PORT: u16 = 4789;
pub(crate) const NODE_IP6: &str = "fd99::1";
pub(crate) const GUEST_IP6: &str = "fd99::2";
pub(crate) const POD_IP6: &str = "fd44::23";
pub(crate) const CNI_GATEWAY6: &str = "fd44::1";

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

/// What the machines are joined by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Underlay {
    pub(crate) family: Family,
    pub(crate) mtu: u32,
}

impl Default for Underlay {
    fn default() -> Self {
        Self { family: Family::V4, mtu: 1500 }
    }
}

/// A node with one pod, and a guest with its pod namespace, joined by a bridge.
pub(crate) struct Cluster {
    pub(crate) underlay: Underlay,
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
        Self::over(Underlay::default(), configure).await
    }

    /// A pod with addresses of both families on a bridge, as the bridge plugin leaves it.
    pub(crate) async fn dual(underlay: Underlay, pod_mtu: u32) -> Self {
        let pod_network = |cluster: &Self| {
            ips(
                cluster.pod.path(),
                &format!(
                    "addr add {POD_IP}/24 dev eth0
                     addr add {POD_IP6}/64 dev eth0 nodad
                     link set eth0 address 6a:1b:2c:3d:4e:5f
                     link set eth0 mtu {pod_mtu}
                     link set eth0 up
                     route add default via {CNI_GATEWAY}
                     -6 route add default via {CNI_GATEWAY6}"
                ),
            );
            ips(cluster.node.path(), &format!("link set pod0 mtu {pod_mtu}"));
        };
        Self::over(underlay, pod_network).await
    }

    pub(crate) async fn over(underlay: Underlay, configure: impl FnOnce(&Self)) -> Self {
        let cluster = Self {
            underlay,
            podns: netns("podns").await,
            guest: netns("guest").await,
            pod: netns("pod").await,
            node: netns("node").await,
        };
        let (node, guest, gateway) = match underlay.family {
            Family::V4 => (NODE_IP.to_owned() + "/24", GUEST_IP.to_owned() + "/24", "10.99.0.254"),
            Family::V6 => (NODE_IP6.to_owned() + "/64 nodad", GUEST_IP6.to_owned() + "/64 nodad", "fd99::fe"),
        };
        let mtu = underlay.mtu;
        ips(
            cluster.node.path(),
            &format!(
                "link add br0 type bridge
                 link set br0 up
                 link add guest0 mtu {mtu} type veth peer name ens3 mtu {mtu} netns {guest_ns}
                 link set guest0 master br0
                 link set guest0 up
                 link set br0 mtu {mtu}
                 addr add {node} dev br0
                 route add default via {gateway}
                 link add cni0 type bridge
                 link set cni0 up
                 addr add {CNI_GATEWAY}/24 dev cni0
                 addr add {CNI_GATEWAY6}/64 dev cni0 nodad
                 link add pod0 type veth peer name eth0 netns {pod_ns}
                 link set pod0 master cni0
                 link set pod0 up",
                guest_ns = name(cluster.guest.path()),
                pod_ns = name(cluster.pod.path()),
            ),
        );
        let node_address = node.split('/').next().unwrap_or_default();
        ips(
            cluster.guest.path(),
            &format!(
                "addr add {guest} dev ens3
                 link set ens3 up
                 route add default via {node_address}"
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
        let (pod, underlay) = (self.pod_path(), self.underlay.family);
        self.on_node(move || async move { worker::reserve(&pod, vni, PORT, underlay).await }).await
    }

    pub(crate) async fn connect(&self, vni: u32) -> Result<(), NetError> {
        let pod = self.pod_path();
        let tunnel = worker::TunnelSpec::new(vni, PORT, self.guest_address(), "eth0");
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

    pub(crate) fn guest_address(&self) -> IpAddr {
        match self.underlay.family {
            Family::V4 => GUEST_IP.parse().unwrap(),
            Family::V6 => GUEST_IP6.parse().unwrap(),
        }
    }

    /// Another pod of the node, which is no peer pod, beside the one under test.
    pub(crate) async fn neighbour(&self, mtu: u32) -> NetnsGuard {
        let other = netns("other").await;
        ips(
            self.node.path(),
            &format!(
                "link add other0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}
                 link set other0 master cni0
                 link set other0 up",
                name(other.path())
            ),
        );
        ips(
            other.path(),
            "addr add 10.244.1.77/24 dev eth0
             addr add fd44::77/64 dev eth0 nodad
             link set eth0 up",
        );
        other
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
    let address = std::net::SocketAddr::new(ip.parse().unwrap(), port);
    let got = netns::run_in(client, move || async move {
        let talk = async {
            let mut stream = TcpStream::connect(address).await?;
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
    let address = std::net::SocketAddr::new(ip.parse().unwrap(), 0);
    netns::run_in(server, move || async move {
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    })
    .await
    .unwrap()
}

/// Sends an echo request of that many bytes, headers included; whether the answer came.
pub(crate) async fn ping(from: &Path, to: &str, size: usize) -> bool {
    let to: IpAddr = to.parse().unwrap();
    netns::run_in(from, move || async move { ping_here(to, size) }).await.unwrap()
}

fn ping_here(to: IpAddr, size: usize) -> bool {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto, setsockopt,
        socket, sockopt,
    };
    let (family, protocol, request, reply, header, ip_header) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0, 20, 20),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129, 0, 40),
    };
    let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
    let pause = nix::sys::time::TimeVal::new(0, 300_000);
    setsockopt(&raw, sockopt::ReceiveTimeout, &pause).unwrap();
    let mut message = vec![0; size - ip_header];
    message[0] = request;
    message[4..6].copy_from_slice(&(std::process::id() as u16).to_be_bytes());
    if to.is_ipv4() {
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let target = SockaddrStorage::from(std::net::SocketAddr::new(to, 0));
    let mut buffer = vec![0; size + 128];
    let own = message[4..6].to_vec();
    let deadline = Instant::now() + Duration::from_secs(15);
    // A first packet may be lost to a neighbour that is not known yet.
    while Instant::now() < deadline {
        if sendto(std::os::fd::AsRawFd::as_raw_fd(&raw), &message, &target, MsgFlags::empty()).is_err() {
            return false;
        }
        while let Ok(length) = recv(std::os::fd::AsRawFd::as_raw_fd(&raw), &mut buffer, MsgFlags::empty()) {
            let answer = &buffer[header.min(length)..length];
            if answer.len() >= 8 && answer[0] == reply && answer[4..6] == own[..] {
                return true;
            }
        }
    }
    false
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// How many packets a namespace made fragments of, or put together from fragments, in either family.
pub(crate) fn fragments(netns: &Path) -> u64 {
    let net = format!("--net={}", netns.display());
    let v4 = run("nsenter", &[&net, "cat", "/proc/net/snmp"]);
    let mut lines = v4.lines().filter(|line| line.starts_with("Ip:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let of_v4 = names.split_whitespace().zip(values.split_whitespace());
    let v6 = run("nsenter", &[&net, "cat", "/proc/net/snmp6"]);
    let of_v6 = v6.lines().filter_map(|line| line.split_once(char::is_whitespace));
    of_v4
        .chain(of_v6)
        .filter(|(name, _)| name.ends_with("FragCreates") || name.ends_with("ReasmReqds"))
        .map(|(_, value)| value.trim().parse::<u64>().unwrap())
        .sum()
}
