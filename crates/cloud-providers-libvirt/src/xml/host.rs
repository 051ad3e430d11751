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

#[cfg(test)]
mod tests {
    use super::*;

    const CAPABILITIES: &str = "<capabilities><host><cpu><arch>x86_64</arch></cpu>\
        <secmodel><model>apparmor</model><doi>0</doi></secmodel><secmodel><model/></secmodel></host>\
        <guest><os_type>hvm</os_type><arch name='aarch64'><emulator>/usr/bin/qemu-system-aarch64</emulator>\
          <machine maxCpus='512'>virt-7.2</machine><machine canonical='virt-7.2' maxCpus='512'>virt</machine>\
          <domain type='qemu'/></arch></guest>\
        <guest><os_type>hvm</os_type><arch name='x86_64'><wordsize>64</wordsize><future/>\
          <emulator>/usr/bin/qemu-system-x86_64</emulator>\
          <machine canonical='pc-i440fx-7.2' maxCpus='255'>pc</machine>\
          <domain type='qemu'/><domain type='kvm'><machine canonical='pc-q35-7.2'>q35</machine></domain>\
        </arch></guest></capabilities>";

    #[test]
    fn capabilities_tell_emulators_and_machines() {
        let host = HostFacts::parse(CAPABILITIES).unwrap();
        assert_eq!(host.architecture(), Some(Architecture::X86_64));
        assert_eq!(host.security_models, ["apparmor"]);
        let arm = host.guest(Architecture::Aarch64).unwrap();
        assert_eq!(arm.emulator, "/usr/bin/qemu-system-aarch64");
        assert_eq!(arm.canonical_machine("virt"), "virt-7.2");
        assert!(!arm.advertises(DomainType::Kvm) && arm.advertises(DomainType::Qemu));
        let x86 = host.guest(Architecture::X86_64).unwrap();
        assert_eq!(x86.canonical_machine("q35"), "pc-q35-7.2");
        assert_eq!(x86.canonical_machine("microvm"), "microvm");
        assert!(x86.advertises(DomainType::Kvm));
        assert!(host.guest(Architecture::S390x).is_none());
    }

    fn domain(features: &str) -> DomainCaps {
        let xml = format!(
            "<domainCapabilities><path>/usr/bin/qemu</path><machine>pc-q35-10.1</machine><arch>x86_64</arch>\
             <os supported='yes'><enum name='firmware'><value>efi</value></enum>\
             <loader supported='yes'><value>/fw/code.fd</value><enum name='type'><value>rom</value></enum></loader></os>\
             <cpu><mode name='host-passthrough' supported='no'/><mode name='maximum' supported='yes'/></cpu>\
             <devices><disk supported='yes'><enum name='bus'><value>ide</value><value>virtio</value></enum></disk></devices>\
             <features>{features}</features></domainCapabilities>"
        );
        DomainCaps::parse(&xml).unwrap()
    }

    #[test]
    fn domain_capabilities_tell_firmware_and_buses() {
        let caps = domain("<sev supported='yes'><cbitpos>47</cbitpos></sev>");
        assert!(caps.efi);
        assert_eq!(caps.loaders, ["/fw/code.fd"]);
        assert_eq!(caps.cpu_modes, ["maximum"]);
        assert_eq!(caps.disk_buses, ["ide", "virtio"]);
        assert_eq!((caps.emulator.as_str(), caps.machine.as_str()), ("/usr/bin/qemu", "pc-q35-10.1"));
        // SEV without SNP protects no registers; nobody gets it in place of what was asked for.
        assert_eq!(caps.confidential, []);
    }

    #[test]
    fn protection_is_read_from_the_list_or_from_single_elements() {
        use ConfidentialType::{SecureExecution, SevSnp, Tdx};
        let list = "<launchSecurity supported='yes'><enum name='sectype'><value>sev</value><value>sev-snp</value></enum>\
            </launchSecurity>";
        for (features, expected) in [
            ("<s390-pv supported='yes'/>", vec![SecureExecution]),
            ("<s390-pv supported='no'/>", vec![]),
            ("<tdx supported='yes'/>", vec![Tdx]),
            (list, vec![SevSnp]),
            ("<launchSecurity supported='no'/>", vec![]),
        ] {
            assert_eq!(domain(features).confidential, expected, "{features}");
        }
    }
}
