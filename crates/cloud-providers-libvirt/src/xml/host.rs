//! What a host says it can do.

use cloud_providers::{Architecture, ConfidentialType, Result};
use roxmltree::Node;

use super::{DomainType, all, attr, find, parse, text};

/// A host's capabilities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostFacts {
    /// Architecture of the host's processor, as libvirt writes it.
    pub(crate) arch: String,
    /// What guests it can run.
    pub(crate) guests: Vec<GuestFacts>,
    /// Security drivers in use, such as `apparmor` and `dac`.
    pub(crate) security_models: Vec<String>,
}

/// What a host offers for one architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GuestFacts {
    pub(crate) arch: String,
    pub(crate) os_type: String,
    pub(crate) emulator: String,
    /// Names of machines, and what each one stands for.
    pub(crate) machines: Vec<(String, String)>,
    /// `qemu`, `kvm`…
    pub(crate) domain_types: Vec<String>,
}

impl HostFacts {
    /// Reads the capabilities.
    pub(crate) fn parse(xml: &str) -> Result<Self> {
        let document = parse("capabilities", xml)?;
        let root = document.root_element();
        let host = find(root, "host");
        Ok(Self {
            arch: host.map(|h| text(h, "cpu/arch")).unwrap_or_default(),
            guests: all(root, "guest").map(guest).collect(),
            security_models: host
                .into_iter()
                .flat_map(|h| all(h, "secmodel"))
                .map(|m| text(m, "model"))
                .filter(|m| !m.is_empty())
                .collect(),
        })
    }

    /// Returns the host's own architecture.
    pub(crate) fn architecture(&self) -> Option<Architecture> {
        self.arch.parse().ok()
    }

    /// Returns what the host offers for fully virtualised guests of `arch`.
    pub(crate) fn guest(&self, arch: Architecture) -> Option<&GuestFacts> {
        self.guests.iter().find(|g| g.os_type == "hvm" && g.arch == arch.as_str())
    }
}

impl GuestFacts {
    /// Returns the full name of a machine, such as `virt-7.2` for `virt`.
    pub(crate) fn canonical_machine(&self, name: &str) -> String {
        let found = self.machines.iter().find(|(short, _)| short == name);
        found.map_or_else(|| name.to_owned(), |(_, full)| full.clone())
    }

    /// Returns whether the host says that it has this type. For KVM that proves nothing.
    pub(crate) fn advertises(&self, domain_type: DomainType) -> bool {
        self.domain_types.iter().any(|t| t == domain_type.as_str())
    }
}

fn guest(node: Node<'_, '_>) -> GuestFacts {
    let arch = find(node, "arch");
    let domains = || arch.into_iter().flat_map(|a| all(a, "domain"));
    // A domain type may have machines of its own; the first name found counts.
    let machines = arch.into_iter().chain(domains()).flat_map(|n| all(n, "machine")).filter_map(|m| {
        let name = m.text()?.trim().to_owned();
        Some((name.clone(), attr(m, "", "canonical").unwrap_or(name)))
    });
    GuestFacts {
        arch: arch.and_then(|a| attr(a, "", "name")).unwrap_or_default(),
        os_type: text(node, "os_type"),
        emulator: arch.map(|a| text(a, "emulator")).unwrap_or_default(),
        machines: machines.collect(),
        domain_types: domains().filter_map(|d| attr(d, "", "type")).collect(),
    }
}

/// What one combination of emulator, architecture, machine and domain type can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DomainCaps {
    pub(crate) emulator: String,
    pub(crate) machine: String,
    pub(crate) cpu_modes: Vec<String>,
    /// libvirt can choose a UEFI firmware itself.
    pub(crate) efi: bool,
    /// Firmware files that exist on the host.
    pub(crate) loaders: Vec<String>,
    pub(crate) disk_buses: Vec<String>,
    pub(crate) confidential: Vec<ConfidentialType>,
}

impl DomainCaps {
    /// Reads domain capabilities.
    pub(crate) fn parse(xml: &str) -> Result<Self> {
        let document = parse("domain capabilities", xml)?;
        let root = document.root_element();
        let supported = |node: &Node<'_, '_>| node.attribute("supported") == Some("yes");
        let os = find(root, "os").filter(supported);
        let features = find(root, "features");
        let feature = |name: &str| features.and_then(|f| find(f, name)).is_some_and(|n| supported(&n));
        // From libvirt 10.5 on the types are listed; before, and for s390, each has an element of its own.
        let listed = features.and_then(|f| find(f, "launchSecurity")).filter(supported);
        let types = listed.map(|l| values(l, "sectype")).unwrap_or_default();
        let mut confidential = Vec::new();
        for (kind, element, word) in [
            (ConfidentialType::SecureExecution, "s390-pv", "s390-pv"),
            (ConfidentialType::SevSnp, "sev-snp", "sev-snp"),
            (ConfidentialType::Tdx, "tdx", "tdx"),
        ] {
            if types.iter().any(|t| t == word) || (types.is_empty() && feature(element)) {
                confidential.push(kind);
            }
        }
        let loader = os.and_then(|o| find(o, "loader")).filter(supported);
        Ok(Self {
            emulator: text(root, "path"),
            machine: text(root, "machine"),
            cpu_modes: find(root, "cpu")
                .into_iter()
                .flat_map(|cpu| all(cpu, "mode"))
                .filter(supported)
                .filter_map(|mode| attr(mode, "", "name"))
                .collect(),
            efi: os.is_some_and(|o| values(o, "firmware").iter().any(|v| v == "efi")),
            loaders: loader
                .into_iter()
                .flat_map(|l| all(l, "value"))
                .filter_map(|v| v.text().map(str::to_owned))
                .collect(),
            disk_buses: find(root, "devices/disk")
                .filter(supported)
                .map(|d| values(d, "bus"))
                .unwrap_or_default(),
            confidential,
        })
    }
}

/// The values of a named enumeration.
fn values(node: Node<'_, '_>, name: &str) -> Vec<String> {
    all(node, "enum")
        .filter(|e| e.attribute("name") == Some(name))
        .flat_map(|e| all(e, "value"))
        .filter_map(|v| v.text().map(|t| t.trim().to_owned()))
        .collect()
}

/// A virtual network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NetworkFacts {
    pub(crate) name: String,
    pub(crate) bridge: Option<String>,
    /// libvirt's own DHCP server gives out the addresses, so that leases tell them.
    pub(crate) dhcp: bool,
}

impl NetworkFacts {
    /// Reads a network's description.
    pub(crate) fn parse(xml: &str) -> Result<Self> {
        let document = parse("network", xml)?;
        let root = document.root_element();
        Ok(Self {
            name: text(root, "name"),
            bridge: attr(root, "bridge", "name"),
            dhcp: all(root, "ip").any(|ip| find(ip, "dhcp").is_some()),
        })
    }
}
