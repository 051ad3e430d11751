//! What a request comes to on this host: sizes, security, networks.

use cloud_providers::{Architecture, Confidential, CreateRequest, Error, ErrorKind, InstanceSpec, Result};

use crate::{
    config::{Config, LaunchSecurity, parse_network},
    xml::{DomainCaps, Firmware, Nic},
};

/// Sizes of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u64,
    pub(crate) root_disk_gib: u64,
}

impl Size {
    /// Takes each size from the request when it names one, else from the options.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] for an instance type: libvirt has none.
    pub(crate) fn of(config: &Config, spec: &InstanceSpec) -> Result<Self> {
        if let Some(name) = spec.instance_type.as_deref().filter(|n| !n.trim().is_empty()) {
            return Err(Error::unsupported(
                "libvirt has no instance types: ask for vCPUs and memory instead",
            )
            .with("requested", name));
        }
        Ok(Self {
            vcpus: if spec.vcpus > 0 { spec.vcpus } else { config.vcpus },
            memory_mib: if spec.memory_mib > 0 { spec.memory_mib } else { config.memory_mib },
            root_disk_gib: spec.root_disk_gib.map_or(config.root_disk_gib, |gib| match gib {
                0 => config.root_disk_gib,
                gib => u64::from(gib),
            }),
        })
    }
}

/// Chooses how the machine is protected; `None` is a plain machine.
///
/// # Errors
///
/// A confidential machine is asked for, by the request or by the options, and the host cannot have it. It is never
/// replaced by a plain one.
pub(crate) fn security(
    config: &Config,
    wanted: &Confidential,
    host: &DomainCaps,
) -> Result<Option<LaunchSecurity>> {
    let can = |security: LaunchSecurity| host.confidential.contains(&security.confidential_type());
    let choice = match wanted {
        Confidential::No => return Ok(None),
        Confidential::Default if config.disable_cvm => return Ok(None),
        Confidential::Type(kind) => {
            LaunchSecurity::ALL.into_iter().find(|s| s.confidential_type() == *kind).ok_or_else(|| {
                Error::unsupported("libvirt cannot give this type of confidential machine").with("type", kind)
            })?
        }
        _ => match config.launch_security.or_else(|| LaunchSecurity::ALL.into_iter().find(|s| can(*s))) {
            Some(security) => security,
            None => return Err(refused(host).with("set", "DISABLECVM to true for plain machines")),
        },
    };
    if can(choice) { Ok(Some(choice)) } else { Err(refused(host).with("wanted", choice.as_str())) }
}

fn refused(host: &DomainCaps) -> Error {
    let has: Vec<&str> = host.confidential.iter().map(|c| c.as_str()).collect();
    let has = if has.is_empty() { "nothing".to_owned() } else { has.join(", ") };
    Error::new(ErrorKind::Unsupported, "the host cannot run the confidential machine that is asked for")
        .with("the host has", has)
        .with("see", "virt-host-validate and virsh domcapabilities on the host")
}

/// Returns the firmware for this architecture and protection.
///
/// # Errors
///
/// [`ErrorKind::Config`] with what there is and what to set, when the host has no such firmware.
pub(crate) fn firmware(
    config: &Config,
    arch: Architecture,
    security: Option<LaunchSecurity>,
    host: &DomainCaps,
) -> Result<Firmware> {
    let firmware = match arch {
        Architecture::X86_64 => match security {
            // The default file is no firmware for protected machines, and nobody chose it.
            Some(_) if config.firmware_is_default => Firmware::Efi,
            _ => config.firmware.clone(),
        },
        // The machine has no other firmware.
        Architecture::Aarch64 => Firmware::Efi,
        _ => Firmware::Bios,
    };
    let found = match &firmware {
        // libvirt's test driver tells nothing.
        _ if host.emulator.is_empty() => true,
        Firmware::Bios => true,
        Firmware::Efi => host.efi,
        // libvirt lists the files that exist and whose store of variables it knows how to make. The firmware of a
        // protected machine has no store and need not be in the list.
        Firmware::Loader(path) => security.is_some() || host.loaders.contains(path),
    };
    if found {
        return Ok(firmware);
    }
    let has = if host.loaders.is_empty() { "none".to_owned() } else { host.loaders.join(", ") };
    let error = Error::config("the hypervisor's host does not have the UEFI firmware of the machine")
        .with("wanted", if let Firmware::Loader(path) = &firmware { path } else { "any" })
        .with("libvirt knows", has)
        .with("install", "ovmf or edk2 on the hypervisor's host");
    Err(match arch {
        Architecture::X86_64 => {
            error.with("or set", "LIBVIRT_EFI_FIRMWARE to a file that libvirt knows, to efi or to bios")
        }
        _ => error,
    })
}

/// Returns the interfaces that a request asks for; without networks, one in the configured network.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`] for fixed and public addresses.
pub(crate) fn nics(config: &Config, request: &CreateRequest) -> Result<Vec<Nic>> {
    if request.networks.is_empty() {
        return Ok(vec![config.network.clone()]);
    }
    let mut nics = Vec::new();
    for network in &request.networks {
        if network.address.is_some() {
            return Err(Error::unsupported("libvirt cannot give a fixed address: its DHCP server chooses"));
        }
        if network.public {
            return Err(Error::unsupported("libvirt has no public addresses"));
        }
        nics.push(match network.network.as_deref().filter(|n| !n.is_empty()) {
            None => config.network.clone(),
            Some(name) => parse_network(name).map_err(|why| Error::config(why).with("network", name))?,
        });
    }
    Ok(nics)
}

#[cfg(test)]
mod tests {
    use cloud_providers::{ConfidentialType, MapEnv, NetworkRequest, Scope, Settings, Token, Unit};

    use super::*;

    fn config(env: &[(&str, &str)]) -> Config {
        let mut settings = Settings::new(crate::OPTIONS);
        settings.load_env(&MapEnv::new(env.iter().copied()));
        let (values, mut problems) = settings.parse_all();
        let config = Config::read(&values, &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        config
    }

    fn host(confidential: &[ConfidentialType]) -> DomainCaps {
        DomainCaps { confidential: confidential.to_vec(), ..DomainCaps::default() }
    }

    fn request() -> CreateRequest {
        let token = Token::new(Scope::Cluster("c".into()), "s", 1);
        CreateRequest::new(token, Unit { id: "s".into(), name_hint: "web".into() }, "node")
    }

    #[test]
    fn each_size_comes_from_the_request_or_the_options() {
        let config = config(&[]);
        let mut spec = InstanceSpec::default();
        assert_eq!(Size::of(&config, &spec).unwrap(), Size { vcpus: 2, memory_mib: 8192, root_disk_gib: 10 });
        spec.vcpus = 3;
        assert_eq!(Size::of(&config, &spec).unwrap(), Size { vcpus: 3, memory_mib: 8192, root_disk_gib: 10 });
        spec.memory_mib = 512;
        spec.root_disk_gib = Some(40);
        assert_eq!(Size::of(&config, &spec).unwrap(), Size { vcpus: 3, memory_mib: 512, root_disk_gib: 40 });
        spec.instance_type = Some("m9.huge".into());
        assert_eq!(*Size::of(&config, &spec).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn a_confidential_machine_is_given_or_refused_and_never_replaced() {
        let plain = config(&[]);
        let wants = config(&[("DISABLECVM", "false")]);
        let names = config(&[("DISABLECVM", "false"), ("LIBVIRT_LAUNCH_SECURITY", "tdx")]);
        let (snp, tdx, none) = (host(&[ConfidentialType::SevSnp]), host(&[ConfidentialType::Tdx]), host(&[]));
        let ok = |config: &Config, wanted: &Confidential, host: &DomainCaps| {
            security(config, wanted, host).unwrap()
        };
        assert_eq!(ok(&plain, &Confidential::Default, &snp), None);
        assert_eq!(ok(&wants, &Confidential::No, &none), None);
        assert_eq!(ok(&plain, &Confidential::Yes, &snp), Some(LaunchSecurity::SevSnp));
        assert_eq!(ok(&wants, &Confidential::Default, &tdx), Some(LaunchSecurity::Tdx));
        assert_eq!(ok(&names, &Confidential::Default, &tdx), Some(LaunchSecurity::Tdx));
        let typed = Confidential::Type(ConfidentialType::SecureExecution);
        let s390 = host(&[ConfidentialType::SecureExecution]);
        assert_eq!(ok(&plain, &typed, &s390), Some(LaunchSecurity::S390Pv));
        for (config, wanted, host) in [
            (&wants, Confidential::Default, &none),
            (&plain, Confidential::Yes, &none),
            (&names, Confidential::Default, &snp),
            (&plain, typed, &snp),
            (&plain, Confidential::Type(ConfidentialType::Sev), &snp),
        ] {
            let error = security(config, &wanted, host).unwrap_err();
            assert_eq!(*error.kind(), ErrorKind::Unsupported, "{error}");
        }
    }

    #[test]
    fn a_protected_machine_gets_no_ordinary_firmware_by_default() {
        let default = config(&[]);
        let chosen = config(&[("LIBVIRT_EFI_FIRMWARE", "/fw/ovmf.fd")]);
        let loader = Firmware::Loader("/fw/ovmf.fd".into());
        let snp = Some(LaunchSecurity::SevSnp);
        let has = DomainCaps { efi: true, emulator: "/usr/bin/qemu".into(), ..host(&[]) };
        let unknown = host(&[]);
        let ok = |config: &Config, arch, security, host: &DomainCaps| {
            firmware(config, arch, security, host).unwrap()
        };
        assert_eq!(ok(&default, Architecture::X86_64, snp, &has), Firmware::Efi);
        assert_eq!(ok(&default, Architecture::X86_64, None, &unknown), default.firmware);
        assert_eq!(ok(&chosen, Architecture::X86_64, snp, &has), loader);
        assert_eq!(ok(&chosen, Architecture::Aarch64, None, &has), Firmware::Efi);
        assert_eq!(ok(&chosen, Architecture::S390x, None, &has), Firmware::Bios);
    }

    #[test]
    fn a_firmware_that_the_host_lacks_is_named_with_what_there_is() {
        let has = DomainCaps {
            emulator: "/usr/bin/qemu".into(),
            loaders: vec!["/usr/share/edk2/OVMF_CODE.fd".into()],
            ..host(&[])
        };
        let error = firmware(&config(&[]), Architecture::X86_64, None, &has).unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Config);
        for part in ["OVMF_CODE_4M.fd", "/usr/share/edk2/OVMF_CODE.fd", "LIBVIRT_EFI_FIRMWARE", "bios"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        let arm = firmware(&config(&[]), Architecture::Aarch64, None, &has).unwrap_err().to_string();
        assert!(arm.contains("install") && !arm.contains("LIBVIRT_EFI_FIRMWARE"), "{arm}");
    }

    #[test]
    fn networks_are_those_of_the_request() {
        let config = config(&[("LIBVIRT_NET", "bridge:br0")]);
        let mut request = request();
        assert_eq!(nics(&config, &request).unwrap(), [Nic::Bridge("br0".into())]);
        let network = |change: fn(&mut NetworkRequest)| {
            let mut network = NetworkRequest::default();
            change(&mut network);
            network
        };
        request.networks = vec![NetworkRequest::default(), network(|n| n.network = Some("lab".into()))];
        assert_eq!(nics(&config, &request).unwrap(), [Nic::Bridge("br0".into()), Nic::Network("lab".into())]);
        for bad in [
            network(|n| n.address = Some([192, 0, 2, 1].into())),
            network(|n| n.public = true),
            network(|n| n.network = Some("bridge:".into())),
        ] {
            request.networks = vec![bad];
            assert!(nics(&config, &request).is_err());
        }
    }
}
