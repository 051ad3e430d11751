//! The options and what they mean once parsed.

use std::time::Duration;

use cloud_providers::{ConfidentialType, OptionKind, OptionSpec, Values};

use crate::xml::{DiskBus, Firmware, Nic, SeedBus};

/// The firmware file of the default, which the existing programs use.
const DEFAULT_FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// Before a network's name: it is a plain bridge of the host, not one of libvirt's networks.
const BRIDGE: &str = "bridge:";
/// The longest name of a network interface.
const IFNAME_MAX: usize = 15;
/// Size of the root disk when the option says 0.
const ROOT_DISK_GIB: u64 = 10;

/// Every option of the provider.
pub const OPTIONS: &[OptionSpec] = &[
    OptionSpec::text("uri", "Connection of libvirt, such as qemu:///system or qemu+ssh://user@host/system")
        .env("LIBVIRT_URI")
        .default("qemu+ssh://root@192.168.122.1/system?no_verify=1"),
    OptionSpec::text("pool-name", "Storage pool of the root and seed volumes, with files in a folder")
        .env("LIBVIRT_POOL")
        .default("default"),
    OptionSpec::text("network-name", "Network of libvirt, or bridge:NAME for a bridge of the host")
        .env("LIBVIRT_NET")
        .default("default"),
    OptionSpec::text("vol-name", "Base volume: name in the pool, or key, of the image that instances boot")
        .env("LIBVIRT_VOL_NAME")
        .default("podvm-base.qcow2"),
    OptionSpec::text("data-dir", "Accepted and without effect, as in the existing programs")
        .default("/var/lib/libvirt/images"),
    OptionSpec::bool("disable-cvm", "Instances are not confidential unless the request says so")
        .env("DISABLECVM")
        .default("true"),
    OptionSpec::new(
        "launch-security",
        OptionKind::Word(&["s390-pv", "sev-snp", "tdx"]),
        "Technology of confidential instances; empty takes what the host has",
    )
    .env("LIBVIRT_LAUNCH_SECURITY")
    .default(""),
    OptionSpec::text(
        "firmware",
        "UEFI firmware file on the hypervisor's host, for x86_64; efi lets libvirt choose one; bios, or empty, boots by BIOS",
    )
    .env("LIBVIRT_EFI_FIRMWARE")
    .default(DEFAULT_FIRMWARE),
    OptionSpec::int("cpu", 1, 4096, "vCPUs of an instance whose request names none")
        .env("LIBVIRT_CPU")
        .default("2"),
    OptionSpec::int("memory", 1, 1 << 30, "MiB of memory of an instance whose request names none")
        .env("LIBVIRT_MEMORY")
        .default("8192"),
    OptionSpec::text("cpuset", "Processors of the host that vCPUs may run on, such as 0-3,8")
        .env("LIBVIRT_CPUSET")
        .default(""),
    OptionSpec::int(
        "root-disk-size",
        0,
        1 << 20,
        "GiB of the root disk, at least the size of the base volume; 0 means 10",
    )
    .env("LIBVIRT_ROOT_DISK_SIZE")
    .default("10"),
    OptionSpec::new(
        "domain-type",
        OptionKind::Word(&["auto", "kvm", "qemu"]),
        "kvm, qemu (software emulation), or auto: kvm where a probe proves that it works",
    )
    .env("LIBVIRT_DOMAIN_TYPE")
    .default("auto"),
    OptionSpec::text("machine", "Machine of instances, such as q35; empty takes the default of architecture and host")
        .env("LIBVIRT_MACHINE")
        .default(""),
    OptionSpec::new(
        "disk-bus",
        OptionKind::Word(&["auto", "virtio", "scsi", "sata"]),
        "How the root disk and data volumes are attached; auto means virtio",
    )
    .env("LIBVIRT_DISK_BUS")
    .default("auto"),
    OptionSpec::new(
        "seed-bus",
        OptionKind::Word(&["auto", "virtio", "scsi", "sata", "ide"]),
        "How the disk with the user data is attached: virtio as a read-only disk, else as a CD; auto means virtio",
    )
    .env("LIBVIRT_SEED_BUS")
    .default("auto"),
    OptionSpec::new(
        "address-source",
        OptionKind::Word(&["auto", "lease", "agent", "arp"]),
        "Who tells an instance's address: libvirt's DHCP server, the guest agent, the host's ARP table, or all in this order",
    )
    .env("LIBVIRT_ADDRESS_SOURCE")
    .default("auto"),
    OptionSpec::new(
        "boot-timeout",
        OptionKind::Duration,
        "An instance without an address after this time makes the creation fail",
    )
    .env("LIBVIRT_BOOT_TIMEOUT")
    .default("5m0s"),
];

/// A technology that protects a machine's memory, by libvirt's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaunchSecurity {
    S390Pv,
    SevSnp,
    Tdx,
}

impl LaunchSecurity {
    pub(crate) const ALL: [Self; 3] = [Self::S390Pv, Self::SevSnp, Self::Tdx];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::S390Pv => "s390-pv",
            Self::SevSnp => "sev-snp",
            Self::Tdx => "tdx",
        }
    }

    pub(crate) fn confidential_type(self) -> ConfidentialType {
        match self {
            Self::S390Pv => ConfidentialType::SecureExecution,
            Self::SevSnp => ConfidentialType::SevSnp,
            Self::Tdx => ConfidentialType::Tdx,
        }
    }
}

/// Which domain type instances get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DomainTypeChoice {
    Auto,
    Kvm,
    Qemu,
}

/// Who tells addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressSource {
    Auto,
    Lease,
    Agent,
    Arp,
}

/// How libvirt is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Uri {
    text: String,
    /// Empty on the local machine.
    transport: String,
    query: Vec<(String, String)>,
}

impl Uri {
    fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or("it has no ://")?;
        let (driver, transport) = scheme.split_once('+').unwrap_or((scheme, ""));
        if !matches!(driver, "qemu" | "test") {
            return Err(format!("{driver:?} is neither qemu nor test"));
        }
        if !matches!(transport, "" | "unix" | "ssh" | "tcp" | "tls" | "libssh" | "libssh2" | "ext") {
            return Err(format!("{transport:?} is none of unix, ssh, tcp, tls, libssh, libssh2, ext"));
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("it holds blanks".into());
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = place.split_once('/').ok_or("it has no path such as /system")?;
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        if user.contains(':') {
            // Options are shown in logs, and libvirt has no use for a password there.
            return Err("it holds a password, which libvirt does not use: set up keys".into());
        }
        let remote = matches!(transport, "ssh" | "tcp" | "tls" | "libssh" | "libssh2");
        if remote && host.is_empty() {
            return Err(format!("{transport} needs a host"));
        }
        if !authority.is_empty() && !remote && transport != "ext" {
            return Err("it has a host but no transport such as +ssh".into());
        }
        if driver == "qemu" && !matches!(path, "system" | "session") {
            return Err("its path is neither /system nor /session".into());
        }
        if driver == "test" && path.is_empty() {
            return Err("its path is empty; /default is the built-in one".into());
        }
        let query = query
            .split('&')
            .filter(|part| !part.is_empty())
            .map(|part| part.split_once('=').unwrap_or((part, "")))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Ok(Self { text: text.into(), transport: transport.into(), query })
    }

    /// Returns the text to connect with.
    ///
    /// A daemon has nobody to answer the questions of `ssh`, so it is told not to ask unless the URI says otherwise.
    pub(crate) fn connect_text(&self) -> String {
        let asks = self.transport == "ssh" && !self.query.iter().any(|(key, _)| key == "no_tty");
        match (asks, self.text.contains('?')) {
            (false, _) => self.text.clone(),
            (true, true) => format!("{}&no_tty=1", self.text.trim_end_matches('&')),
            (true, false) => format!("{}?no_tty=1", self.text),
        }
    }

    /// Returns the URI as it was given; it holds no secret.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the other side need not prove who it is: what it is sent holds keys.
    pub(crate) fn is_unverified(&self) -> bool {
        let off = |key: &str| self.query.iter().any(|(k, v)| k == key && v != "0");
        match self.transport.as_str() {
            "tcp" => true,
            "ssh" | "libssh" | "libssh2" | "tls" => {
                off("no_verify") || self.query.iter().any(|(k, v)| k == "known_hosts_verify" && v == "ignore")
            }
            _ => false,
        }
    }
}

/// Parsed options.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) uri: Uri,
    pub(crate) pool: String,
    /// Where instances are unless the request names networks.
    pub(crate) network: Nic,
    /// Name in the pool, or key, of the base volume.
    pub(crate) base_volume: String,
    pub(crate) disable_cvm: bool,
    pub(crate) launch_security: Option<LaunchSecurity>,
    /// For x86_64 only.
    pub(crate) firmware: Firmware,
    /// The firmware was not chosen by anybody.
    pub(crate) firmware_is_default: bool,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u64,
    pub(crate) cpuset: Option<String>,
    pub(crate) root_disk_gib: u64,
    pub(crate) domain_type: DomainTypeChoice,
    pub(crate) machine: Option<String>,
    pub(crate) disk_bus: DiskBus,
    pub(crate) seed_bus: SeedBus,
    pub(crate) address_source: AddressSource,
    pub(crate) boot_timeout: Duration,
}

impl Config {
    /// Reads the parsed values and adds what is wrong with them to `problems`.
    pub(crate) fn read(values: &Values, problems: &mut Vec<String>) -> Self {
        let uri = Uri::parse(&values.text("uri")).unwrap_or_else(|why| {
            problems.push(format!(
                "-uri or LIBVIRT_URI is {:?}, expected a URI such as qemu:///system or qemu+ssh://user@host/system: {why}",
                without_password(&values.text("uri"))
            ));
            Uri { text: String::new(), transport: String::new(), query: Vec::new() }
        });
        let mut name = |flag: &str, names: &str, slash: bool| {
            let text = values.text(flag);
            if text.is_empty() || (!slash && text.contains('/')) || text.chars().any(char::is_control) {
                problems.push(format!("{names} is {text:?}, expected a name"));
            }
            text
        };
        let pool = name("pool-name", "-pool-name or LIBVIRT_POOL", false);
        let network = name("network-name", "-network-name or LIBVIRT_NET", false);
        // The key of a volume is a path.
        let base_volume = name("vol-name", "-vol-name or LIBVIRT_VOL_NAME", true);
        let network = parse_network(&network).unwrap_or_else(|why| {
            problems.push(format!("-network-name or LIBVIRT_NET is {network:?}: {why}"));
            Nic::Network(String::new())
        });
        let firmware = parse_firmware(&values.text("firmware")).unwrap_or_else(|text| {
            problems.push(format!(
                "-firmware or LIBVIRT_EFI_FIRMWARE is {text:?}, expected an absolute path on the hypervisor's host, \
                 efi, or bios"
            ));
            Firmware::Bios
        });
        let cpuset = values.optional("cpuset");
        if let Some(why) = cpuset.as_deref().and_then(|set| check_cpuset(set).err()) {
            problems.push(format!(
                "-cpuset or LIBVIRT_CPUSET is {:?}, expected numbers and ranges such as 0-3,8: {why}",
                values.text("cpuset")
            ));
        }
        let machine = values.optional("machine");
        let machine_ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if let Some(machine) = machine.as_deref().filter(|m| !m.chars().all(machine_ok)) {
            problems.push(format!(
                "-machine or LIBVIRT_MACHINE is {machine:?}, expected letters, digits, dots, dashes or underscores"
            ));
        }
        let boot_timeout = values.duration("boot-timeout");
        if boot_timeout.is_zero() {
            problems.push("-boot-timeout or LIBVIRT_BOOT_TIMEOUT is 0s, expected a longer time".into());
        }
        let disk_bus = match values.text("disk-bus").as_str() {
            "scsi" => DiskBus::Scsi,
            "sata" => DiskBus::Sata,
            // Every kernel made for machines like these has virtio; small ones lack AHCI.
            _ => DiskBus::Virtio,
        };
        let number = |flag: &str| u64::try_from(values.int(flag)).unwrap_or_default();
        Self {
            uri,
            pool,
            network,
            base_volume,
            disable_cvm: values.bool("disable-cvm"),
            launch_security: LaunchSecurity::ALL
                .into_iter()
                .find(|s| s.as_str() == values.text("launch-security")),
            firmware_is_default: firmware == Firmware::Loader(DEFAULT_FIRMWARE.into()),
            firmware,
            vcpus: u32::try_from(values.int("cpu")).unwrap_or_default(),
            memory_mib: number("memory"),
            cpuset,
            root_disk_gib: match number("root-disk-size") {
                0 => ROOT_DISK_GIB,
                gib => gib,
            },
            domain_type: match values.text("domain-type").as_str() {
                "kvm" => DomainTypeChoice::Kvm,
                "qemu" => DomainTypeChoice::Qemu,
                _ => DomainTypeChoice::Auto,
            },
            machine,
            disk_bus,
            seed_bus: match values.text("seed-bus").as_str() {
                "scsi" => SeedBus::Scsi,
                "sata" => SeedBus::Sata,
                "ide" => SeedBus::Ide,
                _ => SeedBus::Virtio,
            },
            address_source: match values.text("address-source").as_str() {
                "lease" => AddressSource::Lease,
                "agent" => AddressSource::Agent,
                "arp" => AddressSource::Arp,
                _ => AddressSource::Auto,
            },
            boot_timeout,
        }
    }
}

/// Reads the name of a network, or `bridge:` and that of a bridge.
pub(crate) fn parse_network(text: &str) -> Result<Nic, String> {
    let Some(bridge) = text.strip_prefix(BRIDGE) else { return Ok(Nic::Network(text.into())) };
    let name_ok = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':');
    if (1..=IFNAME_MAX).contains(&bridge.len()) && bridge.chars().all(name_ok) {
        return Ok(Nic::Bridge(bridge.into()));
    }
    Err(format!("a bridge has a name of 1 to {IFNAME_MAX} characters without blanks, slashes and colons"))
}

fn parse_firmware(text: &str) -> Result<Firmware, String> {
    match text {
        // A variable cannot be empty.
        "" | "bios" => Ok(Firmware::Bios),
        "efi" => Ok(Firmware::Efi),
        path if path.starts_with('/') && !path.chars().any(char::is_control) => {
            Ok(Firmware::Loader(path.into()))
        }
        _ => Err(text.to_owned()),
    }
}

/// Accepts what the existing programs do, `N(-N)?(,N(-N)?)*`, and refuses ranges that run backwards.
fn check_cpuset(text: &str) -> Result<(), String> {
    for part in text.split(',') {
        let number = |text: &str| {
            let digits = !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
            digits
                .then(|| text.parse::<u32>().ok())
                .flatten()
                .ok_or(format!("{part:?} is no number or range"))
        };
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if number(first)? > number(last)? {
            return Err(format!("{part:?} runs backwards"));
        }
    }
    Ok(())
}

/// Takes a password out of a URI that is about to be shown.
fn without_password(uri: &str) -> String {
    let Some((scheme, rest)) = uri.split_once("://") else { return uri.to_owned() };
    let place = rest.find(['/', '?']).unwrap_or(rest.len());
    match rest[..place].rsplit_once('@') {
        Some((user, _)) if user.contains(':') => {
            let name = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{name}:[redacted]{}", &rest[user.len()..])
        }
        _ => uri.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use cloud_providers::{MapEnv, Settings, clap::Command};

    use super::*;

    fn read(env: &[(&str, &str)]) -> (Config, Vec<String>) {
        let mut settings = Settings::new(OPTIONS);
        settings.load_env(&MapEnv::new(env.iter().copied()));
        let (values, mut problems) = settings.parse_all();
        let config = Config::read(&values, &mut problems);
        (config, problems)
    }

    #[test]
    fn defaults_are_those_of_the_existing_programs() {
        let (config, problems) = read(&[]);
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(config.uri.as_str(), "qemu+ssh://root@192.168.122.1/system?no_verify=1");
        assert_eq!((config.pool.as_str(), config.base_volume.as_str()), ("default", "podvm-base.qcow2"));
        assert_eq!(config.network, Nic::Network("default".into()));
        assert_eq!(config.firmware, Firmware::Loader("/usr/share/OVMF/OVMF_CODE_4M.fd".into()));
        assert!(config.disable_cvm && config.firmware_is_default && config.launch_security.is_none());
        assert_eq!((config.vcpus, config.memory_mib, config.root_disk_gib), (2, 8192, 10));
        let expected = [
            ("uri", Some("LIBVIRT_URI")),
            ("pool-name", Some("LIBVIRT_POOL")),
            ("network-name", Some("LIBVIRT_NET")),
            ("vol-name", Some("LIBVIRT_VOL_NAME")),
            ("data-dir", None),
            ("disable-cvm", Some("DISABLECVM")),
            ("launch-security", Some("LIBVIRT_LAUNCH_SECURITY")),
            ("firmware", Some("LIBVIRT_EFI_FIRMWARE")),
            ("cpu", Some("LIBVIRT_CPU")),
            ("memory", Some("LIBVIRT_MEMORY")),
            ("cpuset", Some("LIBVIRT_CPUSET")),
            ("root-disk-size", Some("LIBVIRT_ROOT_DISK_SIZE")),
        ];
        for (flag, env) in expected {
            let spec = OPTIONS.iter().find(|s| s.flag == flag).unwrap();
            assert_eq!(spec.env, env);
            assert!(!spec.secret && !spec.required);
        }
    }

    #[test]
    fn a_root_disk_size_of_zero_means_ten() {
        assert_eq!(read(&[("LIBVIRT_ROOT_DISK_SIZE", "0")]).0.root_disk_gib, 10);
    }

    #[test]
    fn firmware_can_be_blanked_on_the_command_line_only() {
        let mut settings = Settings::new(OPTIONS);
        let args = ["-firmware=".into(), "-uri=test:///default".into()];
        settings.parse_cmd(Command::new("x"), &args).unwrap();
        settings.load_env(&MapEnv::new([("LIBVIRT_EFI_FIRMWARE", "/fw")]));
        let (values, mut problems) = settings.parse_all();
        let config = Config::read(&values, &mut problems);
        assert_eq!((config.firmware, problems), (Firmware::Bios, vec![]));
        assert_eq!(read(&[("LIBVIRT_EFI_FIRMWARE", "efi")]).0.firmware, Firmware::Efi);
        assert_eq!(read(&[("LIBVIRT_EFI_FIRMWARE", "bios")]).0.firmware, Firmware::Bios);
    }

    #[test]
    fn all_problems_are_named_together() {
        let bad = [
            ("LIBVIRT_URI", "xen:///system"),
            ("LIBVIRT_POOL", "a/b"),
            ("LIBVIRT_NET", "bridge:a-name-that-is-too-long"),
            ("LIBVIRT_VOL_NAME", "a\u{1}"),
            ("DISABLECVM", "perhaps"),
            ("LIBVIRT_LAUNCH_SECURITY", "sev"),
            ("LIBVIRT_EFI_FIRMWARE", "OVMF.fd"),
            ("LIBVIRT_CPU", "0"),
            ("LIBVIRT_MEMORY", "30GB"),
            ("LIBVIRT_CPUSET", "3-1"),
            ("LIBVIRT_ROOT_DISK_SIZE", "-1"),
            ("LIBVIRT_DOMAIN_TYPE", "xen"),
            ("LIBVIRT_MACHINE", "q35 "),
            ("LIBVIRT_DISK_BUS", "ide"),
            ("LIBVIRT_SEED_BUS", "usb"),
            ("LIBVIRT_ADDRESS_SOURCE", "dns"),
            ("LIBVIRT_BOOT_TIMEOUT", "0s"),
        ];
        let (_, problems) = read(&bad);
        assert_eq!(problems.len(), bad.len(), "{problems:#?}");
        let text = problems.join("\n");
        for (key, _) in bad {
            assert!(text.contains(key), "{key} is not in {text}");
        }
    }

    #[test]
    fn processor_sets_follow_the_existing_syntax() {
        for good in ["0", "0-3", "0,2,4", "0-3,8,10-11"] {
            assert_eq!(check_cpuset(good), Ok(()), "{good}");
        }
        for bad in ["-", "1-", "-1", "a", "1,,2", "1, 2", "^1", "1-2-3", "4-2", "999999999999"] {
            assert!(check_cpuset(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn uris_of_this_driver_are_understood_and_others_refused() {
        for (text, unverified) in [
            ("qemu:///system", false),
            ("qemu:///session", false),
            ("qemu+unix:///system?socket=/run/x", false),
            ("qemu+ssh://root@10.0.0.1/system?no_verify=1", true),
            ("qemu+ssh://root@10.0.0.1:2222/system?keyfile=/root/.ssh/id_rsa", false),
            ("qemu+ssh://[fd00::1]/system", false),
            ("qemu+libssh2://u@h/session?known_hosts_verify=ignore", true),
            ("qemu+tcp://h/system", true),
            ("qemu+tls://h/system", false),
            ("test:///default", false),
        ] {
            let uri = Uri::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!(uri.is_unverified(), unverified, "{text}");
        }
        for bad in [
            "",
            "qemu",
            "qemu:/system",
            "lxc:///system",
            "qemu+smoke://h/system",
            "qemu+ssh:///system",
            "qemu://h/system",
            "qemu:///",
            "qemu:///embed?root=/x",
            "qemu+ssh://root@h",
            "test://",
            "qemu:///system?socket=/a b",
        ] {
            assert!(Uri::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ssh_never_asks_a_daemon() {
        let text = |uri: &str| Uri::parse(uri).unwrap().connect_text();
        assert_eq!(text("qemu+ssh://h/system"), "qemu+ssh://h/system?no_tty=1");
        assert_eq!(text("qemu+ssh://h/system?no_verify=1"), "qemu+ssh://h/system?no_verify=1&no_tty=1");
        assert_eq!(text("qemu+ssh://h/system?no_tty=0"), "qemu+ssh://h/system?no_tty=0");
        assert_eq!(text("qemu:///system"), "qemu:///system");
    }

    #[test]
    fn a_password_in_a_uri_is_refused_and_not_shown() {
        let (_, problems) = read(&[("LIBVIRT_URI", "qemu+ssh://root:canary@h/system")]);
        let text = problems.join("\n");
        assert!(text.contains("password") && text.contains("root:[redacted]@h"), "{text}");
        assert!(!text.contains("canary"), "{text}");
    }

    #[test]
    fn a_bridge_is_told_from_a_network() {
        assert_eq!(parse_network("lab"), Ok(Nic::Network("lab".into())));
        assert_eq!(parse_network("bridge:br0"), Ok(Nic::Bridge("br0".into())));
        assert!(parse_network("bridge:").is_err() && parse_network("bridge:a/b").is_err());
    }
}
