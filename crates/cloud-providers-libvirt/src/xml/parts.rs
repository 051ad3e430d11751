//! What a machine is put together from.

use cloud_providers::{Architecture, Error, Result, tags};

use crate::config::LaunchSecurity;

/// virtio cuts serial numbers to this length; the other buses take at least as much.
const SERIAL_MAX: usize = 20;

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DomainType {
    Kvm,
    Qemu,
    /// libvirt's test driver, which runs nothing.
    Test,
}

impl DomainType {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
            Self::Test => "test",
        }
    }
}

/// What the guest starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Firmware {
    Bios,
    /// UEFI that libvirt chooses.
    Efi,
    /// UEFI from this file on the host.
    Loader(String),
}

/// Which processor the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CpuMode {
    HostModel,
    HostPassthrough,
    Maximum,
}

impl CpuMode {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::HostModel => "host-model",
            Self::HostPassthrough => "host-passthrough",
            Self::Maximum => "maximum",
        }
    }

    /// Returns the mode that works for a guest of this kind.
    pub(crate) fn choose(
        arch: Architecture,
        domain_type: DomainType,
        security: Option<LaunchSecurity>,
    ) -> Self {
        match (domain_type, arch) {
            // Emulation has no host processor to take after.
            (DomainType::Qemu, _) => Self::Maximum,
            // libvirt knows no models of Arm processors, and the TDX module decides what a trust domain sees.
            (_, Architecture::Aarch64) => Self::HostPassthrough,
            _ if security == Some(LaunchSecurity::Tdx) => Self::HostPassthrough,
            _ => Self::HostModel,
        }
    }
}

/// How disks are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskBus {
    Virtio,
    Scsi,
    Sata,
}

/// How the seed is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SeedBus {
    /// A read-only disk, since virtio has no CD drives.
    Virtio,
    Scsi,
    Sata,
    Ide,
}

impl From<DiskBus> for SeedBus {
    fn from(bus: DiskBus) -> Self {
        match bus {
            DiskBus::Virtio => Self::Virtio,
            DiskBus::Scsi => Self::Scsi,
            DiskBus::Sata => Self::Sata,
        }
    }
}

impl SeedBus {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::Scsi => "scsi",
            Self::Sata => "sata",
            Self::Ide => "ide",
        }
    }

    /// Returns how device names on this bus begin.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Virtio => "vd",
            Self::Scsi | Self::Sata => "sd",
            Self::Ide => "hd",
        }
    }
}

/// A volume of the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DataDisk {
    pub(crate) path: String,
    /// A block device, not a file.
    pub(crate) block: bool,
    pub(crate) format: String,
    pub(crate) serial: String,
}

impl DataDisk {
    /// Returns the serial number by which a guest finds the volume.
    ///
    /// It is the given one, else the id when that is short and plain, else 20 digits of its hash: the ids are paths, whose
    /// first 20 characters are often the same.
    ///
    /// # Errors
    ///
    /// A given serial number that a disk cannot have.
    pub(crate) fn serial_of(id: &str, given: Option<&str>) -> Result<String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let fits = |text: &str| (1..=SERIAL_MAX).contains(&text.len()) && text.chars().all(plain);
        match given {
            Some(serial) if fits(serial) => Ok(serial.to_owned()),
            Some(serial) => Err(Error::config("a disk cannot have this serial number")
                .with("volume", id)
                .with("serial", serial)
                .with("expected", format!("1 to {SERIAL_MAX} letters, digits, dots, dashes or underscores"))),
            None if fits(id) => Ok(id.to_owned()),
            None => Ok(tags::hash(id, SERIAL_MAX)),
        }
    }
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Nic {
    /// In a network of libvirt's.
    Network(String),
    /// On a bridge of the host's.
    Bridge(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_fit_and_differ() {
        let serial = |id: &str, given| DataDisk::serial_of(id, given);
        assert_eq!(serial("vol-1", None).unwrap(), "vol-1");
        let (one, two) = ("/var/lib/libvirt/images/one", "/var/lib/libvirt/images/two");
        let hashed = serial(one, None).unwrap();
        assert_eq!(hashed.len(), 20);
        assert_ne!(hashed, serial(two, None).unwrap());
        assert_eq!(serial(one, Some("s-1")).unwrap(), "s-1");
        for bad in ["", "a b", "a'b", "aaaaaaaaaaaaaaaaaaaaa"] {
            assert!(serial(one, Some(bad)).is_err(), "{bad:?}");
        }
    }
}
