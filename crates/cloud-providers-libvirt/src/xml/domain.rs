//! A domain's definition.

use cloud_providers::{Architecture, Error, Result};
use uuid::Uuid;

use super::{
    Element, Metadata,
    parts::{CpuMode, DataDisk, DiskBus, DomainType, Firmware, Nic, SeedBus},
};
use crate::config::LaunchSecurity;

/// The guest agent's port, by its fixed name.
const AGENT_PORT: &str = "org.qemu.guest_agent.0";
/// SEV-SNP: no debugging, no migration; simultaneous threads allowed, and the bit that must be set.
const SNP_POLICY: &str = "0x30000";
/// TDX: no debugging; page faults of the host's making are not handed to the guest.
const TDX_POLICY: &str = "0x10000000";

/// Everything that a domain's definition depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DomainPlan {
    pub(crate) name: String,
    pub(crate) uuid: Uuid,
    pub(crate) metadata: Metadata,
    pub(crate) domain_type: DomainType,
    pub(crate) arch: Architecture,
    /// `None` leaves the choice to libvirt.
    pub(crate) machine: Option<String>,
    /// `None` leaves the choice to libvirt.
    pub(crate) emulator: Option<String>,
    pub(crate) firmware: Firmware,
    pub(crate) vcpus: u32,
    /// Processors of the host that the vCPUs may run on.
    pub(crate) cpuset: Option<String>,
    pub(crate) memory_mib: u64,
    pub(crate) security: Option<LaunchSecurity>,
    /// Path of the root disk, an overlay in qcow2.
    pub(crate) root: String,
    pub(crate) data: Vec<DataDisk>,
    /// Path of the seed.
    pub(crate) seed: String,
    pub(crate) disk_bus: DiskBus,
    pub(crate) seed_bus: SeedBus,
    pub(crate) nics: Vec<Nic>,
    /// Whether the guest agent gets a port.
    pub(crate) agent: bool,
}

impl DomainPlan {
    /// Writes the definition.
    ///
    /// # Errors
    ///
    /// A combination that no machine has, or a text that XML cannot carry.
    pub(crate) fn to_xml(&self) -> Result<String> {
        self.check()?;
        let on_reboot = if self.security.is_some() { "destroy" } else { "restart" };
        let mut domain = Element::new("domain")
            .attr("type", self.domain_type.as_str())
            .child(Element::new("name").text(&self.name))
            .child(Element::new("uuid").text(self.uuid))
            .child(Element::new("description").text("Peer pod VM"))
            .child(Element::new("metadata").child(self.metadata.element()))
            // The memory holds keys, which have no business in a core file of the host.
            .child(Element::new("memory").attr("unit", "MiB").attr("dumpCore", "off").text(self.memory_mib))
            .child(Element::new("currentMemory").attr("unit", "MiB").text(self.memory_mib));
        if self.security == Some(LaunchSecurity::SevSnp) {
            domain = domain.child(
                Element::new("memoryBacking")
                    .child(Element::new("source").attr("type", "memfd"))
                    .child(Element::new("access").attr("mode", "shared")),
            );
        }
        let mut vcpu = Element::new("vcpu").attr("placement", "static");
        if let Some(cpuset) = &self.cpuset {
            vcpu = vcpu.attr("cpuset", cpuset);
        }
        domain = domain.child(vcpu.text(self.vcpus)).child(self.os());
        if let Some(features) = self.features() {
            domain = domain.child(features);
        }
        if self.domain_type != DomainType::Test {
            let mode = CpuMode::choose(self.arch, self.domain_type, self.security);
            domain = domain.child(Element::new("cpu").attr("mode", mode.as_str()));
        }
        let event = |name: &str, action: &str| Element::new(name).text(action);
        domain
            .child(Element::new("clock").attr("offset", "utc"))
            .child(event("on_poweroff", "destroy"))
            .child(event("on_reboot", on_reboot))
            .child(event("on_crash", "destroy"))
            .child(self.devices())
            .children(self.launch_security())
            .to_xml()
    }

    /// Refuses what libvirt would refuse with less to go by.
    fn check(&self) -> Result<()> {
        let s390 = self.arch == Architecture::S390x;
        let pc = self.arch == Architecture::X86_64;
        let q35 = self.machine.as_deref().is_some_and(|m| m.contains("q35")) || self.x86_protected();
        let mut problems = Vec::new();
        if !pc && (self.disk_bus == DiskBus::Sata || self.seed_bus == SeedBus::Sata) {
            problems.push(format!(
                "{} machines have no SATA: set LIBVIRT_DISK_BUS and LIBVIRT_SEED_BUS to auto, virtio or scsi",
                self.arch
            ));
        }
        if self.seed_bus == SeedBus::Ide && (!pc || q35) {
            problems.push(format!(
                "this {} machine has no IDE: set LIBVIRT_SEED_BUS to auto, virtio or scsi",
                self.arch
            ));
        }
        if s390 && !matches!(self.firmware, Firmware::Bios) {
            problems.push("s390x machines have no UEFI".into());
        }
        if self.x86_protected() && self.firmware == Firmware::Bios {
            problems.push(
                "a confidential x86_64 machine needs UEFI: set LIBVIRT_EFI_FIRMWARE to efi or a firmware file".into(),
            );
        }
        let fits = match self.security {
            None => true,
            Some(LaunchSecurity::S390Pv) => s390,
            Some(LaunchSecurity::SevSnp | LaunchSecurity::Tdx) => pc,
        };
        if !fits || (self.security.is_some() && self.domain_type == DomainType::Qemu) {
            problems.push(format!(
                "launch security {} needs another machine than {} of type {}",
                self.security.map(LaunchSecurity::as_str).unwrap_or_default(),
                self.arch,
                self.domain_type.as_str()
            ));
        }
        match Error::all(cloud_providers::ErrorKind::Config, problems) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn x86_protected(&self) -> bool {
        matches!(self.security, Some(LaunchSecurity::SevSnp | LaunchSecurity::Tdx))
    }

    /// Whether devices must go through the guest's own memory protection.
    fn iommu(&self) -> bool {
        self.security.is_some() || matches!(self.arch, Architecture::S390x | Architecture::Aarch64)
    }

    fn os(&self) -> Element {
        let mut kind = Element::new("type").attr("arch", self.arch);
        match &self.machine {
            Some(machine) => kind = kind.attr("machine", machine),
            None if self.x86_protected() => kind = kind.attr("machine", "q35"),
            None => {}
        }
        let os = Element::new("os");
        let kind = kind.text("hvm");
        match &self.firmware {
            Firmware::Bios => os.child(kind),
            Firmware::Efi => {
                let os = os.attr("firmware", "efi").child(kind);
                if self.x86_protected() {
                    // Variables that the host could change would not be part of what is measured.
                    return os.child(Element::new("loader").attr("stateless", "yes"));
                }
                let off = |name: &str| Element::new("feature").attr("enabled", "no").attr("name", name);
                // Images are not signed by whoever the firmware trusts.
                os.child(Element::new("firmware").child(off("enrolled-keys")).child(off("secure-boot")))
            }
            Firmware::Loader(path) if self.x86_protected() => {
                os.child(kind).child(Element::new("loader").attr("type", "rom").text(path))
            }
            Firmware::Loader(path) => os.child(kind).child(
                Element::new("loader")
                    .attr("readonly", "yes")
                    .attr("secure", "no")
                    .attr("type", "pflash")
                    .text(path),
            ),
        }
    }

    fn features(&self) -> Option<Element> {
        let features = Element::new("features");
        match self.arch {
            Architecture::X86_64 => {
                let off = |name: &str| Element::new(name).attr("state", "off");
                let features =
                    features.child(Element::new("acpi")).child(Element::new("apic")).child(off("vmport"));
                Some(match self.security {
                    Some(LaunchSecurity::Tdx) => {
                        features.child(off("smm")).child(Element::new("ioapic").attr("driver", "qemu"))
                    }
                    Some(_) => features.child(off("smm")),
                    None => features,
                })
            }
            // UEFI on Arm hands its tables over by ACPI.
            Architecture::Aarch64 => Some(features.child(Element::new("acpi"))),
            _ => None,
        }
    }

    fn devices(&self) -> Element {
        let mut devices = Element::new("devices");
        if let Some(emulator) = &self.emulator {
            devices = devices.child(Element::new("emulator").text(emulator));
        }
        devices = devices.children(self.disks());
        if self.disk_bus == DiskBus::Scsi || self.seed_bus == SeedBus::Scsi {
            let mut controller =
                Element::new("controller").attr("type", "scsi").attr("index", 0).attr("model", "virtio-scsi");
            if self.iommu() {
                controller = controller.child(Element::new("driver").attr("iommu", "on"));
            }
            devices = devices.child(controller);
        }
        devices = devices.children(self.nics.iter().map(|nic| self.nic(nic)));
        devices.children(self.consoles()).children(self.agent_port()).children(self.small_devices())
    }

    fn disks(&self) -> Vec<Element> {
        let mut names = Names::default();
        let bus = SeedBus::from(self.disk_bus);
        let mut disks = vec![self.disk("file", "qcow2", &self.root, bus, &mut names, Some(1), None)];
        for data in &self.data {
            let kind = if data.block { "block" } else { "file" };
            disks.push(self.disk(kind, &data.format, &data.path, bus, &mut names, None, Some(&data.serial)));
        }
        // Last, so that data volumes have the letters that guests count on.
        let seed = self.disk("file", "raw", &self.seed, self.seed_bus, &mut names, None, None);
        disks.push(seed.child(Element::new("readonly")));
        let at = disks.len() - 1;
        if self.seed_bus != SeedBus::Virtio {
            disks[at] = disks[at].clone().set("device", "cdrom");
        }
        disks
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one element, all of them text")]
    fn disk(
        &self,
        kind: &str,
        format: &str,
        path: &str,
        bus: SeedBus,
        names: &mut Names,
        boot: Option<u32>,
        serial: Option<&str>,
    ) -> Element {
        let (target, unit) = names.next(bus);
        let mut driver = Element::new("driver").attr("name", "qemu").attr("type", format);
        if bus == SeedBus::Virtio && self.iommu() {
            driver = driver.attr("iommu", "on");
        }
        let source = if kind == "block" { "dev" } else { "file" };
        let mut disk = Element::new("disk")
            .attr("type", kind)
            .attr("device", "disk")
            .child(driver)
            .child(Element::new("source").attr(source, path))
            .child(Element::new("target").attr("dev", target).attr("bus", bus.as_str()));
        if let Some(serial) = serial {
            disk = disk.child(Element::new("serial").text(serial));
        }
        if let Some(order) = boot {
            disk = disk.child(Element::new("boot").attr("order", order));
        }
        if bus == SeedBus::Scsi {
            // Without an address libvirt would add a controller of another model for each seven disks.
            disk = disk.child(
                Element::new("address")
                    .attr("type", "drive")
                    .attr("controller", 0)
                    .attr("bus", 0)
                    .attr("target", 0)
                    .attr("unit", unit),
            );
        }
        disk
    }

    fn nic(&self, nic: &Nic) -> Element {
        let (kind, source) = match nic {
            Nic::Network(name) => ("network", Element::new("source").attr("network", name)),
            Nic::Bridge(name) => ("bridge", Element::new("source").attr("bridge", name)),
        };
        let mut element = Element::new("interface")
            .attr("type", kind)
            .child(source)
            .child(Element::new("model").attr("type", "virtio"));
        if self.iommu() {
            element = element.child(Element::new("driver").attr("iommu", "on"));
        }
        if self.x86_protected() {
            // An option ROM is code of the host's, and would be measured.
            element = element.child(Element::new("rom").attr("enabled", "no"));
        }
        element
    }

    fn consoles(&self) -> Vec<Element> {
        let console = |target: &str| {
            Element::new("console")
                .attr("type", "pty")
                .child(Element::new("target").attr("type", target).attr("port", 0))
        };
        if self.arch == Architecture::S390x {
            return vec![console("sclp")];
        }
        let serial = Element::new("serial").attr("type", "pty").child(Element::new("target").attr("port", 0));
        vec![serial, console("serial")]
    }

    fn agent_port(&self) -> Option<Element> {
        // An agent that obeys the host has no place in a machine that is protected from it.
        (self.agent && self.security.is_none()).then(|| {
            Element::new("channel")
                .attr("type", "unix")
                .child(Element::new("target").attr("type", "virtio").attr("name", AGENT_PORT))
        })
    }

    fn small_devices(&self) -> Vec<Element> {
        let driver = || self.iommu().then(|| Element::new("driver").attr("iommu", "on"));
        // Memory that is private to the guest cannot be taken back by a balloon.
        let model = if self.x86_protected() { "none" } else { "virtio" };
        let balloon = Element::new("memballoon")
            .attr("model", model)
            .children(driver().filter(|_| !self.x86_protected()));
        let rng = Element::new("rng")
            .attr("model", "virtio")
            .child(Element::new("backend").attr("model", "random").text("/dev/urandom"))
            .children(driver());
        vec![balloon, rng]
    }

    fn launch_security(&self) -> Option<Element> {
        let element =
            |security: LaunchSecurity| Element::new("launchSecurity").attr("type", security.as_str());
        self.security.map(|security| match security {
            LaunchSecurity::S390Pv => element(security),
            LaunchSecurity::SevSnp => element(security).child(Element::new("policy").text(SNP_POLICY)),
            LaunchSecurity::Tdx => element(security)
                .child(Element::new("policy").text(TDX_POLICY))
                .child(Element::new("quoteGenerationService")),
        })
    }
}

/// Gives out device names: each prefix counts on its own, also across buses.
#[derive(Default)]
struct Names {
    used: Vec<(&'static str, usize)>,
}

impl Names {
    /// Returns the next name on a bus, and its number among the names of this prefix.
    fn next(&mut self, bus: SeedBus) -> (String, usize) {
        let prefix = bus.prefix();
        let at = self.used.iter().position(|(p, _)| *p == prefix).unwrap_or_else(|| {
            self.used.push((prefix, 0));
            self.used.len() - 1
        });
        let number = self.used[at].1;
        self.used[at].1 += 1;
        (format!("{prefix}{}", letters(number)), number)
    }
}

/// `a` to `z`, then `aa`, as the kernel counts disks.
fn letters(number: usize) -> String {
    let mut rest = number;
    let mut text = String::new();
    loop {
        text.insert(0, char::from(b'a' + u8::try_from(rest % 26).unwrap_or_default()));
        match rest / 26 {
            0 => return text,
            more => rest = more - 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::golden::plan, *};

    #[test]
    fn letters_go_on_as_the_kernel_counts() {
        for (number, text) in
            [(0, "a"), (25, "z"), (26, "aa"), (51, "az"), (52, "ba"), (701, "zz"), (702, "aaa")]
        {
            assert_eq!(letters(number), text);
        }
    }

    #[test]
    fn combinations_that_no_machine_has_are_refused_by_option() {
        use Architecture::{Aarch64, S390x, X86_64};
        let arm = |plan: DomainPlan| DomainPlan { arch: Aarch64, ..plan };
        for (plan, part) in [
            (DomainPlan { disk_bus: DiskBus::Sata, ..plan(S390x) }, "LIBVIRT_DISK_BUS"),
            (arm(DomainPlan { seed_bus: SeedBus::Ide, ..plan(Aarch64) }), "LIBVIRT_SEED_BUS"),
            (
                DomainPlan { seed_bus: SeedBus::Ide, machine: Some("pc-q35-7.2".into()), ..plan(X86_64) },
                "no IDE",
            ),
            (DomainPlan { firmware: Firmware::Efi, ..plan(S390x) }, "no UEFI"),
            (DomainPlan { security: Some(LaunchSecurity::SevSnp), ..plan(X86_64) }, "LIBVIRT_EFI_FIRMWARE"),
            (DomainPlan { security: Some(LaunchSecurity::S390Pv), ..plan(X86_64) }, "s390-pv needs another"),
            (
                DomainPlan {
                    security: Some(LaunchSecurity::S390Pv),
                    domain_type: DomainType::Qemu,
                    ..plan(S390x)
                },
                "of type qemu",
            ),
        ] {
            let error = plan.to_xml().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn protected_machines_have_no_agent_and_no_option_rom() {
        let plan = DomainPlan {
            security: Some(LaunchSecurity::Tdx),
            firmware: Firmware::Efi,
            ..plan(Architecture::X86_64)
        };
        let xml = plan.to_xml().unwrap();
        assert!(!xml.contains(AGENT_PORT) && xml.contains("<rom enabled='no'/>"), "{xml}");
        assert!(xml.contains("machine='q35'") && xml.contains("<memballoon model='none'/>"), "{xml}");
    }
}
