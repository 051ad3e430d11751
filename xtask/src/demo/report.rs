//! What the demo found: phases with times, the picture, the leftovers.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::machines::Provider;
use crate::world::{FORWARDER_PORT, GatewayMode, NODE_POD_SIDE};

/// Packets that an interface received and sent.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Counters {
    pub(crate) rx: u64,
    pub(crate) tx: u64,
}

impl Counters {
    /// Reads the line of an interface in the format of `/proc/net/dev`.
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub(crate) fn parse(text: &str, interface: &str) -> Result<Self> {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'));
        let line = line.with_context(|| format!("there is no interface {interface} in:\n{text}"))?;
        let fields: Vec<u64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        match (fields.get(1), fields.get(9)) {
            (Some(rx), Some(tx)) => Ok(Self { rx: *rx, tx: *tx }),
            _ => anyhow::bail!("the counters of {interface} cannot be read: {line}"),
        }
    }

    /// Returns how much was added since.
    pub(crate) fn since(self, before: Self) -> Self {
        Self { rx: self.rx.saturating_sub(before.rx), tx: self.tx.saturating_sub(before.tx) }
    }
}

/// What the second disk showed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Volume {
    /// The file on the host.
    pub(crate) disk: PathBuf,
    /// The line of the container's mounts.
    pub(crate) mounted: String,
    /// The id that the file system got when it was made.
    pub(crate) file_system: String,
    /// The boot id that the first pod wrote and the second one read.
    pub(crate) written: String,
    /// The boot id of the machine that read it.
    pub(crate) read_by: String,
}

/// Everything that is printed in the end.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) provider: Provider,
    gateway: GatewayMode,
    /// Whether libvirtd was there before the demo.
    server_stays: bool,
    phases: Vec<(String, Duration, bool)>,
    /// What the names of phases begin with.
    prefix: &'static str,
    pub(crate) guest: String,
    pub(crate) daemon_pid: Option<u32>,
    pub(crate) gateway_pid: Option<u32>,
    pub(crate) socket: PathBuf,
    pub(crate) agent_socket: PathBuf,
    pub(crate) instance: String,
    pub(crate) instance_address: Option<Ipv4Addr>,
    pub(crate) pod_address: Option<Ipv4Addr>,
    pub(crate) tunnel: String,
    pub(crate) page: serde_json::Value,
    pub(crate) netns_host: u64,
    pub(crate) netns_node: u64,
    pub(crate) netns_pod: u64,
    pub(crate) netns_instance: u64,
    pub(crate) host_boot_id: String,
    pub(crate) boot_id: String,
    pub(crate) volume: Option<Volume>,
    pub(crate) node_counters: Counters,
    pub(crate) guest_counters: Counters,
    pub(crate) leftovers: Vec<String>,
    pub(crate) error: Option<String>,
}

impl Report {
    /// Starts with nothing found.
    pub(crate) fn new(provider: Provider, gateway: GatewayMode, server_stays: bool) -> Self {
        Self {
            provider,
            gateway,
            server_stays,
            phases: Vec::new(),
            prefix: "",
            guest: String::new(),
            daemon_pid: None,
            gateway_pid: None,
            socket: PathBuf::new(),
            agent_socket: PathBuf::new(),
            instance: String::new(),
            instance_address: None,
            pod_address: None,
            tunnel: String::new(),
            page: serde_json::Value::Null,
            netns_host: 0,
            netns_node: 0,
            netns_pod: 0,
            netns_instance: 0,
            host_boot_id: String::new(),
            boot_id: String::new(),
            volume: None,
            node_counters: Counters::default(),
            guest_counters: Counters::default(),
            leftovers: Vec::new(),
            error: None,
        }
    }

    /// Notes a phase.
    pub(crate) fn phase(&mut self, name: &str, took: Duration) {
        self.phases.push((format!("{}{name}", self.prefix), took, false));
    }

    /// Lets the names of the phases that follow begin with `prefix`.
    pub(crate) fn later_pod(&mut self, prefix: &'static str) {
        self.prefix = prefix;
    }

    /// What was looked for in the end.
    pub(crate) fn looked_for(&self) -> &'static str {
        match self.provider {
            Provider::Local => "process, namespace, link, rule, mount, control group, socket and file",
            // A network that stays keeps its leases for their time.
            Provider::Libvirt if self.server_stays => {
                "domain, volume, seed, process, namespace, link, rule, mount, control group, socket and file"
            }
            Provider::Libvirt => {
                "domain, volume, seed, lease, console file, process, namespace, link, rule, mount, control group, \
                 socket and file"
            }
            Provider::Aws => {
                "instance, interface, address, disk, process, namespace, link, rule, mount, control group, socket and file"
            }
        }
    }

    /// Notes a phase that the daemon timed, a part of those before.
    pub(crate) fn inner_phase(&mut self, name: &str, took: Duration) {
        self.phases.push((name.to_owned(), took, true));
    }

    /// Prints the table and the picture, or one JSON object.
    pub(crate) fn print(&self, as_json: bool) {
        if as_json {
            println!("{}", self.json());
            return;
        }
        println!("\n{}", self.table());
        if self.netns_instance != 0 {
            println!("{}", self.picture());
            println!("page: {}", self.page);
        }
        if let Some(volume) = &self.volume {
            println!("{}", volume.text());
        }
        match (&self.error, self.leftovers.is_empty()) {
            (Some(error), _) => println!("failed: {error}"),
            (None, true) if self.phases.iter().any(|(name, _, _)| name.starts_with("SIGTERM")) => {
                println!("nothing is left: no {}", self.looked_for().replace(" and ", " or "));
            }
            _ => {}
        }
        for line in &self.leftovers {
            println!("LEFT BEHIND  {line}");
        }
    }

    fn table(&self) -> String {
        let mut text = format!("{:<56} {:>10}\n", "phase", "ms");
        for (name, took, inner) in &self.phases {
            let name = if *inner { format!("    of which, by the daemon: {name}") } else { name.clone() };
            text.push_str(&format!("{name:<56} {:>10.1}\n", took.as_secs_f64() * 1e3));
        }
        text
    }

    fn picture(&self) -> String {
        let address =
            |address: Option<Ipv4Addr>| address.map_or_else(|| "?".to_owned(), |address| address.to_string());
        let (instance, pod) = (address(self.instance_address), address(self.pod_address));
        let pid = |pid: Option<u32>| pid.map_or_else(String::new, |pid| format!(" (process {pid})"));
        let owner = match self.gateway {
            GatewayMode::Process => format!("peerpod-gateway{}", pid(self.gateway_pid)),
            GatewayMode::InProcess => "the gateway inside the daemon".to_owned(),
        };
        let counted = |counters: Counters| format!("+{} received, +{} sent", counters.rx, counters.tx);
        format!(
            "\
calls     shim ──▶ {socket}
               ──▶ cloud-api-adaptor{daemon} ──▶ provider {provider} ──▶ instance {id}

agent     shim ──▶ {agent}
               ──▶ {owner}
               ══ mutual TLS ══▶ {instance}:{FORWARDER_PORT} agent-protocol-forwarder ──▶ agent ──▶ container

network   client {NODE_POD_SIDE} in the node            netns {node}
               ──▶ eth0 {pod} of the pod           netns {podns}
               ──tc──▶ vxlan1                            {near} packets
               ══ {tunnel} ══▶ {instance}
               ══▶ eth0 {pod} in the instance      netns {inside}   {far} packets
               ──▶ web server, which says so on its page
          the host's own netns is {host}: nothing of this touches it
{machine}",
            provider = self.provider.name(),
            machine = self.machine(),
            socket = self.socket.display(),
            agent = self.agent_socket.display(),
            daemon = pid(self.daemon_pid),
            id = self.instance,
            node = self.netns_node,
            podns = self.netns_pod,
            inside = self.netns_instance,
            host = self.netns_host,
            tunnel = self.tunnel,
            near = counted(self.node_counters),
            far = counted(self.guest_counters),
        )
    }

    /// Says which kernel runs the pod, where that is a kernel of its own.
    fn machine(&self) -> String {
        match self.provider {
            Provider::Local | Provider::Aws => String::new(),
            Provider::Libvirt => format!(
                "\nmachine   a kernel of its own: boot id {}\n          that of this host:      {}\n",
                self.boot_id, self.host_boot_id
            ),
        }
    }

    fn json(&self) -> serde_json::Value {
        let phase = |(name, took, inner): &(String, Duration, bool)| json!({ "name": name, "ms": took.as_secs_f64() * 1e3, "timed_by": if *inner { "daemon" } else { "demo" } });
        let counters = |counters: Counters| json!({ "rx_packets": counters.rx, "tx_packets": counters.tx });
        json!({
            "ok": self.error.is_none() && self.leftovers.is_empty(),
            "error": self.error,
            "gateway": if self.gateway == GatewayMode::Process { "process" } else { "in-process" },
            "provider": self.provider.name(),
            "guest": self.guest,
            "boot_id": { "host": self.host_boot_id, "instance": self.boot_id },
            "volume": self.volume.as_ref().map(Volume::json),
            "phases": self.phases.iter().map(phase).collect::<Vec<_>>(),
            "daemon_pid": self.daemon_pid,
            "gateway_pid": self.gateway_pid,
            "hypervisor_socket": self.socket,
            "agent_socket": self.agent_socket,
            "instance": { "id": self.instance, "address": self.instance_address },
            "pod_address": self.pod_address,
            "tunnel": self.tunnel,
            "netns": {
                "host": self.netns_host,
                "node": self.netns_node,
                "pod": self.netns_pod,
                "instance": self.netns_instance,
            },
            "packets": { "vxlan1": counters(self.node_counters), "guest_eth0": counters(self.guest_counters) },
            "page": self.page,
            "leftovers": self.leftovers,
        })
    }
}

impl Volume {
    fn text(&self) -> String {
        let (disk, mounted, written) = (self.disk.display(), &self.mounted, &self.written);
        let mut text = format!(
            "\
volume    {disk}
               in the container: {mounted}
               the machine {written} wrote a file
"
        );
        // A demo that is kept has no second pod.
        if !self.read_by.is_empty() {
            let (reader, uuid) = (&self.read_by, &self.file_system);
            let indent = " ".repeat(15);
            text.push_str(&format!(
                "{indent}the machine {reader} read it in the second pod\n\
                 {indent}file system {uuid}, made for the first pod and found by the second\n"
            ));
        }
        text
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "disk": self.disk,
            "mounted": self.mounted,
            "file_system": self.file_system,
            "written_by_boot_id": self.written,
            "read_by_boot_id": self.read_by,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "Inter-|   Receive                                                |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n \
        lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0\n\
        vxlan1:    1500      12    0    0    0     0          0         0     2400       9    0    0    0     0       0          0\n";

    #[test]
    fn packets_are_read_from_the_line_of_the_interface() {
        assert_eq!(Counters::parse(DEV, "vxlan1").unwrap(), Counters { rx: 12, tx: 9 });
        assert_eq!(Counters::parse(DEV, "lo").unwrap(), Counters { rx: 0, tx: 0 });
        assert!(Counters::parse(DEV, "vxlan").is_err());
    }

    #[test]
    fn a_leftover_makes_the_report_bad() {
        let mut report = Report::new(Provider::Local, GatewayMode::Process, false);
        report.phase("CreateVM", Duration::from_millis(12));
        assert_eq!(report.json()["ok"], true);
        report.leftovers.push("socket: /x".to_owned());
        assert_eq!(report.json()["ok"], false);
        assert!(report.table().contains("CreateVM"));
    }
}
