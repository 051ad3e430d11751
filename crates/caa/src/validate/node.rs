//! Ports, limits, rights and interfaces of the node.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use cloud_providers::Finding;
use nix::ifaddrs::getifaddrs;
use tokio::net::{TcpSocket, UdpSocket};

use super::checks;
use crate::config::DaemonConfig;

const METRICS: &str = "-metrics-address or METRICS_ADDRESS";
const PROBE: &str = "PROBE_PORT";
const VXLAN_PORT: &str = "-vxlan-port or VXLAN_PORT";
const LIMIT: &str = "-peerpods-limit-per-node or PEERPODS_LIMIT_PER_NODE";
const HOST_INTERFACE: &str = "-host-interface";

/// Files that the daemon has open without a pod, and for each pod: sockets, and its connections to shim and guest.
const FILES: i64 = 64;
const FILES_OF_POD: i64 = 16;

/// The bits of capabilities.
const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;

/// Binds what the daemon would bind, without listening.
pub(super) async fn ports(config: &DaemonConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    let failed = |option: &str, detail: String, remedy: &str| {
        Finding::failed(checks::PORTS, detail).with_option(option).with_remedy(remedy)
    };
    let probe: SocketAddr = ([127, 0, 0, 1], config.probe_port).into();
    let mut addresses: Vec<(SocketAddr, &str)> =
        config.metrics_address.map(|a| (a, METRICS)).into_iter().collect();
    if config.in_cluster && config.probe_port != 0 {
        addresses.push((probe, PROBE));
    }
    let same = |metrics: SocketAddr| {
        metrics.port() == probe.port() && (metrics.ip().is_unspecified() || metrics.ip() == probe.ip())
    };
    if let [(metrics, _), _] = addresses[..]
        && same(metrics)
    {
        let detail = format!("{metrics} and {probe} are one port, which metrics and probe cannot share");
        findings.push(failed(&format!("{METRICS}, {PROBE}"), detail, "give another port to one of them"));
        addresses.pop();
    }
    for (address, option) in addresses {
        if address.port() == 0 {
            findings.push(
                Finding::warning(
                    checks::PORTS,
                    format!("{address} is another port at every start: nobody finds the metrics"),
                )
                .with_option(option)
                .with_remedy("give a port"),
            );
        } else if let Err(error) = bind(address) {
            let (what, remedy) = match error.kind() {
                io::ErrorKind::AddrInUse => {
                    ("is in use by another program", "end that program, or give another port")
                }
                io::ErrorKind::AddrNotAvailable => {
                    ("is no address of this node", "give an address of this node, or 127.0.0.1")
                }
                _ => ("cannot be served", "give another address"),
            };
            findings.push(failed(option, format!("{address} {what}: {error}"), remedy));
        }
    }
    if config.vxlan_port != 0 {
        findings.extend(tunnel_port(config.vxlan_port).await);
    }
    if findings.is_empty() {
        findings.push(Finding::ok(checks::PORTS, "those of metrics, probe and tunnels are free"));
    }
    findings
}

/// As the daemon does it, so that one that runs is no reason to fail.
fn bind(address: SocketAddr) -> io::Result<()> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseport(true)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)
}

async fn tunnel_port(port: u16) -> Option<Finding> {
    if let Err(error) = UdpSocket::bind(("0.0.0.0", port)).await
        && error.kind() == io::ErrorKind::AddrInUse
        && let Some(program) = program_at(port)
    {
        let detail = format!("UDP port {port} is in use by {program}: no tunnel can be made");
        return Some(
            Finding::failed(checks::PORTS, detail)
                .with_option(VXLAN_PORT)
                .with_remedy("end that program, or give another port, also in the guests' firewall rules"),
        );
    }
    let own =
        fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok().and_then(|text| range(&text))?;
    let reserved = fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    let kept = reserved.trim().split(',').filter_map(range).any(|range| range.contains(&port));
    (own.contains(&port) && !kept).then(|| {
        Finding::warning(
            checks::PORTS,
            format!(
                "UDP port {port} is among those that the kernel gives to programs ({} to {}), one of which may have it when \
                 a tunnel is made",
                own.start(),
                own.end()
            ),
        )
        .with_option(VXLAN_PORT)
        .with_remedy(format!("sysctl net.ipv4.ip_local_reserved_ports={port}, or give another port"))
    })
}

/// Reads `32768 60999`, `8000-8010` or `8000`.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut ends = text.trim().split([' ', '\t', '-']).filter(|end| !end.is_empty());
    let first = ends.next()?.parse().ok()?;
    let last = ends.next().map_or(Some(first), |end| end.parse().ok())?;
    Some(first..=last)
}

/// The program that has a UDP port of this network namespace, as far as this process sees others.
///
/// Tunnels of the kernel share their port, and are no program: their sockets are in no process.
fn program_at(port: u16) -> Option<String> {
    let tables = ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"];
    let tables = tables.iter().filter_map(|table| fs::read_to_string(table).ok());
    let inodes: Vec<String> = tables.flat_map(|table| inodes_at(&table, port)).collect();
    let files: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let has = |process: &fs::DirEntry| {
        let open = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let mut links = open.filter_map(|file| fs::read_link(file.path()).ok());
        links.any(|link| files.iter().any(|file| link.as_os_str() == file.as_str()))
    };
    let number = |process: &fs::DirEntry| process.file_name().to_str()?.parse::<u32>().ok();
    let mut processes = fs::read_dir("/proc").ok()?.flatten().filter(|process| number(process).is_some());
    let process = processes.find(|process| !files.is_empty() && has(process))?;
    let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
    Some(format!("process {} ({})", number(&process)?, name.trim()))
}

/// The inodes of sockets at a port in a table of `/proc/net`.
fn inodes_at(table: &str, port: u16) -> Vec<String> {
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let local = fields.get(1).and_then(|local| local.rsplit(':').next());
        let is_port = local.and_then(|hex| u16::from_str_radix(hex, 16).ok()) == Some(port);
        fields.get(9).filter(|inode| is_port && **inode != "0").map(|inode| (*inode).to_owned())
    };
    table.lines().skip(1).filter_map(of_line).collect()
}

/// What the kernel lets this process have.
pub(super) fn limits(config: &DaemonConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    if config.limit > 0
        && let Some(most) = fs::read_to_string("/proc/self/limits").ok().and_then(|text| open_files(&text))
    {
        let needed = FILES + FILES_OF_POD.saturating_mul(config.limit);
        if needed > most {
            findings.push(
                Finding::warning(
                    checks::LIMITS,
                    format!(
                        "{} pods need about {needed} open files, and this process may have {most}",
                        config.limit
                    ),
                )
                .with_option(LIMIT)
                .with_remedy(format!("lower it, or raise the limit: LimitNOFILE={needed} in a systemd unit")),
            );
        }
    }
    let namespaces = fs::read_to_string("/proc/sys/user/max_net_namespaces").ok();
    let namespaces: Option<i64> = namespaces.and_then(|text| text.trim().parse().ok());
    if let Some(most) = namespaces.filter(|most| *most < config.limit.max(1)) {
        findings.push(
            Finding::failed(
                checks::LIMITS,
                format!("the kernel allows {most} network namespaces, and every pod has one"),
            )
            .with_option(LIMIT)
            .with_remedy("raise the sysctl user.max_net_namespaces"),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::ok(checks::LIMITS, "open files and network namespaces suffice"));
    }
    findings
}

fn open_files(text: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(i64::MAX),
        number => number.parse().ok(),
    }
}

/// The rights that a daemon needs. `daemon` says that this process is one; another one may have more.
pub(super) fn rights(daemon: bool) -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let missing: Vec<&str> = [("CAP_NET_ADMIN", NET_ADMIN), ("CAP_SYS_ADMIN", SYS_ADMIN)]
        .into_iter()
        .filter(|(_, bit)| !has(&status, *bit))
        .map(|(name, _)| name)
        .collect();
    match missing[..] {
        [] => Finding::ok(checks::RIGHTS, "tunnels can be made and pods' namespaces entered"),
        _ if daemon => {
            Finding::failed(checks::RIGHTS, format!("this process has no {}", missing.join(" and no ")))
                .with_remedy("run it as root, or add the capabilities to its container or unit")
        }
        _ => Finding::not_checked(
            checks::RIGHTS,
            format!("this process has no {}: what the daemon may do is not known", missing.join(" and no ")),
        )
        .with_remedy("run it as root, as the daemon runs"),
    }
}

fn has(status: &str, bit: u32) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or_default();
    effective & (1 << bit) != 0
}

/// The interface that carries the tunnels.
pub(super) fn underlay(config: &DaemonConfig) -> Finding {
    let failed = |detail: String, remedy: &str| {
        Finding::failed(checks::UNDERLAY, detail).with_option(HOST_INTERFACE).with_remedy(remedy)
    };
    let read = |table: &str| fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
    let (routes, routes_v6) = (read("route"), read("ipv6_route"));
    let Some(primary) = default_route(&routes).or_else(|| default_route_v6(&routes_v6)) else {
        return failed(
            "this node has no default route, by which the interface of the tunnels is found".into(),
            "add a default route",
        );
    };
    let name = config.host_interface.as_deref().unwrap_or(primary);
    let Ok(addresses) = getifaddrs() else {
        return Finding::not_checked(checks::UNDERLAY, "the interfaces of this node cannot be listed");
    };
    let all: Vec<_> = addresses.filter(|address| address.interface_name == name).collect();
    let Some(first) = all.first() else {
        return failed(
            format!("there is no interface {name} on this node"),
            "give the name of one that is there",
        );
    };
    let v4 = all.iter().find_map(|a| Some(IpAddr::V4(a.address.as_ref()?.as_sockaddr_in()?.ip())));
    let v6 = all.iter().filter_map(|a| Some(a.address.as_ref()?.as_sockaddr_in6()?.ip()));
    let v6 = v6.filter(|ip| !ip.is_unicast_link_local()).map(IpAddr::V6).next();
    let Some(address) = v4.or(v6) else {
        return failed(
            format!("interface {name} has no address but those of its link"),
            "give it an address, or give another interface",
        );
    };
    if !first.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP) {
        return failed(format!("interface {name} is down"), "set it up, or give another interface");
    }
    Finding::ok(checks::UNDERLAY, format!("tunnels start at {address} on {name}"))
}

/// The interface of the default route with the lowest metric in `/proc/net/route`.
fn default_route(text: &str) -> Option<&str> {
    let routes = text.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [name, destination, _, _, _, _, metric, mask, ..] = fields[..] else { return None };
        (destination == "00000000" && mask == "00000000").then(|| (metric.parse::<u32>().unwrap_or(0), name))
    });
    routes.min_by_key(|(metric, _)| *metric).map(|(_, name)| name)
}

/// The same in `/proc/net/ipv6_route`. The kernel's own refusal of everything is on the loopback interface.
fn default_route_v6(text: &str) -> Option<&str> {
    let routes = text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [destination, length, _, _, _, metric, _, _, _, name] = fields[..] else { return None };
        let is_default = length == "00" && destination.bytes().all(|digit| digit == b'0') && name != "lo";
        is_default.then(|| (u32::from_str_radix(metric, 16).unwrap_or(0), name))
    });
    routes.min_by_key(|(metric, _)| *metric).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_at_a_port_are_read_as_the_kernel_writes_them() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             12: 00000000:12B5 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0 0\n";
        assert_eq!(inodes_at(table, 4789), ["4711"]);
        assert!(inodes_at(table, 4790).is_empty());
    }

    #[test]
    fn ranges_limits_and_rights_are_read_as_the_kernel_writes_them() {
        assert_eq!(range("32768\t60999\n"), Some(32768..=60999));
        assert_eq!((range("8000-8010"), range("15"), range("")), (Some(8000..=8010), Some(15..=15), None));
        assert_eq!(
            open_files("Max open files            1024                 524288               files\n"),
            Some(1024)
        );
        assert_eq!(open_files("Max open files            unlimited  unlimited files\n"), Some(i64::MAX));
        let status = "Name:\tx\nCapEff:\t0000000000201000\n";
        assert!(has(status, NET_ADMIN) && has(status, SYS_ADMIN) && !has(status, 0));
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
                      eth1\t00000000\t0102A8C0\t0003\t0\t0\t200\t00000000\t0\t0\t0\n\
                      eth0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                      eth2\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!((default_route(routes), default_route("Iface\n")), (Some("eth0"), None));
        let (zero, gateway) = ("0".repeat(32), "fe800000000000000000000000000001");
        let route = |metric: &str, name: &str| {
            format!("{zero} 00 {zero} 00 {gateway} {metric} 00000001 00000000 00000003 {name:>8}\n")
        };
        let routes = [route("ffffffff", "lo"), route("00000400", "eth1"), route("00000100", "eth0")].concat();
        assert_eq!((default_route_v6(&routes), default_route_v6(&route("0", "lo"))), (Some("eth0"), None));
    }
}
