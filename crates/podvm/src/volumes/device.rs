//! Finds the block device of a volume.
//!
//! A disk is known best by its serial number, which clouds set to their id. Where no serial matches, each platform
//! has its own way to number disks, and only on a platform that was recognised is that way used.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tracing::debug;

use super::Volume;
use crate::paths::Paths;
use crate::userdata::is_user_data_disk;

const AZURE_ASSET_TAG: &str = "7783-7084-3265-9085-8269-3286-77";
const AWS_LINK: &str = "nvme-Amazon_Elastic_Block_Store_";
/// virtio cuts serial numbers to this length.
const VIRTIO_SERIAL: usize = 20;

/// Where the VM runs, as far as disks are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Platform {
    /// Azure: disks are linked by number.
    Azure,
    /// Amazon: NVMe disks are linked by id.
    Aws,
    /// QEMU with virtio disks: letters follow the number.
    Libvirt,
    /// Anything else.
    Generic,
}

/// The disks of a machine.
#[derive(Debug, Clone)]
pub struct Devices {
    paths: Paths,
}

impl Devices {
    /// Looks below the root of `paths`.
    pub fn new(paths: Paths) -> Self {
        Self { paths }
    }

    /// Recognises the platform. A virtio disk alone says nothing: the firmware must name QEMU as well.
    pub fn platform(&self) -> Platform {
        let dmi = |name: &str| {
            let path = self.paths.at("/sys/class/dmi/id").join(name);
            fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
        };
        if self.paths.at("/dev/disk/azure").exists() || dmi("chassis_asset_tag") == AZURE_ASSET_TAG {
            Platform::Azure
        } else if !self.links("/dev/disk/by-id", |name| name.starts_with(AWS_LINK)).is_empty() {
            Platform::Aws
        } else if dmi("sys_vendor") == "QEMU" && self.disks().iter().any(|name| name.starts_with("vd")) {
            Platform::Libvirt
        } else {
            Platform::Generic
        }
    }

    /// Looks once; `None` when the disk is not there yet.
    ///
    /// # Errors
    ///
    /// When the mounts of this machine cannot be read: a disk in use could be taken for a free one.
    pub fn find(&self, volume: &Volume) -> Result<Option<PathBuf>> {
        let busy = self.busy()?;
        if let Some(name) = self.by_serial(volume, &busy) {
            return Ok(Some(self.node(&name)));
        }
        let platform = self.platform();
        let found = match platform {
            Platform::Azure => self.azure(volume, &busy),
            Platform::Aws => self.aws(volume, &busy),
            Platform::Libvirt => self.libvirt(volume, &busy),
            Platform::Generic => None,
        };
        let found = found.or_else(|| self.scsi(volume, &busy));
        debug!(volume = volume.name, ?platform, ?found, "looked for a device");
        Ok(found)
    }

    /// Whole disks by name.
    fn disks(&self) -> BTreeSet<String> {
        names(&self.paths.at("/sys/block"))
            .into_iter()
            .filter(|name| ["sd", "vd", "nvme", "xvd"].iter().any(|prefix| name.starts_with(prefix)))
            .collect()
    }

    fn node(&self, name: &str) -> PathBuf {
        self.paths.at("/dev").join(name)
    }

    /// Disks that are mounted, or of which a partition is.
    fn busy(&self) -> Result<BTreeSet<String>> {
        let path = self.paths.at("/proc/thread-self/mounts");
        let mounts = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let mounted: BTreeSet<String> = mounts
            .lines()
            .filter_map(|line| line.split(' ').next())
            .filter(|source| source.starts_with("/dev/"))
            .filter_map(|source| self.resolve(&self.paths.at(source)))
            .collect();
        Ok(self
            .disks()
            .into_iter()
            .filter(|disk| {
                mounted.contains(disk) || self.partitions(disk).iter().any(|part| mounted.contains(part))
            })
            .collect())
    }

    /// Partitions are folders of their disk; a common beginning of names says nothing (sda and sdaa).
    fn partitions(&self, disk: &str) -> Vec<String> {
        let folder = self.paths.at("/sys/block").join(disk);
        names(&folder).into_iter().filter(|name| folder.join(name).join("partition").exists()).collect()
    }

    /// Name of the device that a path or link leads to.
    fn resolve(&self, path: &Path) -> Option<String> {
        let path = fs::canonicalize(path).ok()?;
        path.file_name()?.to_str().map(str::to_owned)
    }

    fn by_serial(&self, volume: &Volume, busy: &BTreeSet<String>) -> Option<String> {
        if volume.disk_id.is_empty() {
            return None;
        }
        // Amazon leaves out the dashes.
        let plain = |text: &str| text.trim().replace('-', "").to_ascii_lowercase();
        let wanted = plain(&volume.disk_id);
        let cut = volume.disk_id.get(..VIRTIO_SERIAL).map(plain);
        // An id that is a path is no serial number: our libvirt provider sets this in its place.
        let hashed = cloud_providers::tags::hash(&volume.disk_id, VIRTIO_SERIAL);
        self.disks().into_iter().filter(|disk| !busy.contains(disk)).find(|disk| {
            let folder = self.paths.at("/sys/block").join(disk);
            ["serial", "device/serial", "device/vpd_pg80"].iter().any(|file| {
                let Ok(bytes) = fs::read(folder.join(file)) else { return false };
                let text: String =
                    bytes.iter().copied().filter(u8::is_ascii_graphic).map(char::from).collect();
                let serial = plain(&text);
                let is_cut = disk.starts_with("vd") && cut.as_ref() == Some(&serial);
                !serial.is_empty() && (serial == wanted || serial == hashed || is_cut)
            })
        })
    }

    /// Takes a device only when it is a free disk or partition.
    fn free(&self, path: &Path, busy: &BTreeSet<String>) -> Option<PathBuf> {
        let name = self.resolve(path)?;
        (!busy.contains(&name)).then(|| self.node(&name)).filter(|node| node.exists())
    }

    fn azure(&self, volume: &Volume, busy: &BTreeSet<String>) -> Option<PathBuf> {
        let lun = volume.lun;
        let by_number =
            [format!("/dev/disk/azure/data/by-lun/{lun}"), format!("/dev/disk/azure/scsi1/lun{lun}")];
        if let Some(device) = by_number.iter().find_map(|link| self.free(&self.paths.at(link), busy)) {
            return Some(device);
        }
        let suffix = format!("-lun-{lun}");
        self.links("/dev/disk/by-path", |name| name.contains("vmbus") && name.ends_with(&suffix))
            .into_iter()
            .filter_map(|link| self.free(&link, busy))
            // Host 0 carries the system's own disks.
            .find(|device| self.address(device).is_some_and(|address| address.host != 0))
    }

    fn aws(&self, volume: &Volume, busy: &BTreeSet<String>) -> Option<PathBuf> {
        let id = volume.disk_id.replace('-', "");
        let links =
            self.links("/dev/disk/by-id", |name| name.starts_with(AWS_LINK) && !name.contains("-part"));
        if !id.is_empty() {
            let exact = |link: &PathBuf| {
                let name = link.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                // Newer systems add the namespace: ..._vol0123_1.
                name[AWS_LINK.len()..].split('_').next() == Some(&id)
            };
            return links.iter().filter(|link| exact(link)).find_map(|link| self.free(link, busy));
        }
        let disks: BTreeSet<PathBuf> = links.iter().filter_map(|link| self.free(link, busy)).collect();
        disks.into_iter().nth(volume.lun as usize)
    }

    /// The first disk is the system's, the next ones follow the numbers. Where the disk with the user data sits
    /// among them (machines without CD drives), the numbers begin after it.
    fn libvirt(&self, volume: &Volume, busy: &BTreeSet<String>) -> Option<PathBuf> {
        let shift = u8::from(is_user_data_disk(&self.node("vdb")));
        let offset = u8::try_from(volume.lun).ok()?.checked_add(shift)?;
        let letter = b'b'.checked_add(offset).filter(u8::is_ascii_lowercase)?;
        let name = format!("vd{}", char::from(letter));
        self.disks().contains(&name).then(|| self.free(&self.node(&name), busy)).flatten()
    }

    /// Disks with a SCSI address of that number: first those of added controllers, then bare ones of the first.
    fn scsi(&self, volume: &Volume, busy: &BTreeSet<String>) -> Option<PathBuf> {
        let numbered: Vec<_> = self
            .disks()
            .into_iter()
            .filter(|disk| !busy.contains(disk))
            .map(|disk| self.node(&disk))
            .filter_map(|node| self.address(&node).map(|address| (node, address)))
            .filter(|(_, address)| address.lun == volume.lun)
            .collect();
        let added = numbered.iter().find(|(_, address)| address.host > 0);
        let bare = || {
            numbered
                .iter()
                .find(|(node, _)| self.resolve(node).is_some_and(|name| self.partitions(&name).is_empty()))
        };
        added.or_else(bare).map(|(node, _)| node.clone())
    }

    fn address(&self, device: &Path) -> Option<Address> {
        let link = self.paths.at("/sys/block").join(device.file_name()?).join("device");
        let target = fs::read_link(link).ok()?;
        let mut parts = target.file_name()?.to_str()?.split(':');
        let host = parts.next()?.parse().ok()?;
        let lun = parts.nth(2)?.parse().ok()?;
        Some(Address { host, lun })
    }

    fn links(&self, folder: &str, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
        let folder = self.paths.at(folder);
        names(&folder).into_iter().filter(|name| wanted(name)).map(|name| folder.join(name)).collect()
    }
}

struct Address {
    host: u32,
    lun: u32,
}

/// Entries of a folder in order; none when it does not exist.
fn names(folder: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A machine made of folders: disks with partitions, serial numbers, addresses and mounts.
    struct Machine {
        root: tempfile::TempDir,
    }

    impl Machine {
        fn new() -> Self {
            let machine = Self { root: tempfile::tempdir().unwrap() };
            machine.write("proc/thread-self/mounts", "/dev/vda1 / ext4 rw 0 0\n/dev/sda1 / ext4 rw 0 0\n");
            machine
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn disk(&self, name: &str, partitions: u32, serial: &str) -> &Self {
            self.write(&format!("dev/{name}"), "");
            self.write(&format!("sys/block/{name}/size"), "1");
            for number in 1..=partitions {
                self.write(&format!("dev/{name}{number}"), "");
                self.write(&format!("sys/block/{name}/{name}{number}/partition"), "1");
            }
            if !serial.is_empty() {
                self.write(&format!("sys/block/{name}/serial"), serial);
            }
            self
        }

        fn address(&self, disk: &str, address: &str) -> &Self {
            symlink(format!("../../{address}"), self.root.path().join(format!("sys/block/{disk}/device")))
                .unwrap();
            self
        }

        fn link(&self, path: &str, disk: &str) -> &Self {
            let link = self.root.path().join(path);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(self.root.path().join("dev").join(disk), link).unwrap();
            self
        }

        fn devices(&self) -> Devices {
            Devices::new(Paths::new(self.root.path()))
        }

        fn finds(&self, lun: u32, disk_id: &str) -> Option<String> {
            let volume = Volume {
                name: format!("vol-{lun}"),
                mount_point: "/data".to_owned(),
                fs_type: "ext4".to_owned(),
                lun,
                disk_id: disk_id.to_owned(),
                fs_group: None,
                key_id: None,
            };
            let found = self.devices().find(&volume).unwrap();
            found.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        }
    }

    fn qemu() -> Machine {
        let machine = Machine::new();
        machine.write("sys/class/dmi/id/sys_vendor", "QEMU\n");
        machine.disk("vda", 1, "");
        machine
    }

    #[test]
    fn a_serial_number_comes_before_every_other_way() {
        let machine = qemu();
        machine.disk("vdb", 0, "other").disk("vdc", 0, "pvc-0123-4567-89ab-c"); // cut to 20 by virtio
        assert_eq!(machine.finds(0, "pvc-0123-4567-89ab-cdef-0000").as_deref(), Some("vdc"));
        assert_eq!(machine.finds(0, "").as_deref(), Some("vdb"));
    }

    #[test]
    fn a_disk_whose_id_is_a_path_is_found_by_the_hash_of_it() {
        let path = "/var/lib/libvirt/images/data-2.raw";
        let machine = qemu();
        machine.disk("vdb", 0, "other").disk("vdc", 0, &cloud_providers::tags::hash(path, 20));
        assert_eq!(machine.finds(0, path).as_deref(), Some("vdc"));
    }

    #[test]
    fn a_virtio_disk_alone_does_not_make_the_platform_libvirt() {
        let machine = Machine::new();
        machine.disk("vda", 1, "").disk("vdb", 0, "");
        assert_eq!(machine.devices().platform(), Platform::Generic);
        assert_eq!(machine.finds(0, ""), None);
        assert_eq!(qemu().devices().platform(), Platform::Libvirt);
    }

    #[test]
    fn libvirt_letters_follow_the_number_and_begin_after_the_user_data() {
        let machine = qemu();
        machine.disk("vdb", 0, "").disk("vdc", 0, "");
        assert_eq!(machine.finds(0, "").as_deref(), Some("vdb"));
        assert_eq!(machine.finds(1, "").as_deref(), Some("vdc"));
        assert_eq!(machine.finds(2, ""), None);
        assert_eq!(machine.finds(24, ""), None);
        assert_eq!(machine.finds(300, ""), None);

        let mut image = vec![0; 34 * 1024];
        image[32_768..][..6].copy_from_slice(b"\x01CD001");
        image[32_768 + 40..][..6].copy_from_slice(b"cidata");
        image[32_768 + 129] = 8;
        fs::write(machine.root.path().join("dev/vdb"), image).unwrap();
        assert_eq!(machine.finds(0, "").as_deref(), Some("vdc"));
    }

    #[test]
    fn a_mounted_disk_is_never_taken_and_similar_names_do_not_matter() {
        let machine = Machine::new();
        machine.disk("sda", 1, "").address("sda", "3:0:0:0");
        machine.disk("sdaa", 0, "").address("sdaa", "4:0:0:0");
        assert_eq!(machine.finds(0, "").as_deref(), Some("sdaa"));
        let machine = Machine::new();
        machine.disk("sda", 1, "vol1").address("sda", "3:0:0:0");
        assert_eq!(machine.finds(0, "vol1"), None);
    }

    #[test]
    fn azure_disks_are_found_by_their_links() {
        let machine = Machine::new();
        machine.disk("sda", 1, "").disk("sdb", 0, "").disk("sdc", 0, "").disk("sdd", 0, "");
        machine.link("dev/disk/azure/scsi1/lun1", "sdb").link("dev/disk/azure/data/by-lun/2", "sdc");
        assert_eq!(machine.devices().platform(), Platform::Azure);
        assert_eq!(machine.finds(1, "").as_deref(), Some("sdb"));
        assert_eq!(machine.finds(2, "").as_deref(), Some("sdc"));
        assert_eq!(machine.finds(3, ""), None);
        machine.link("dev/disk/by-path/acpi-vmbus-lun-3", "sdd").address("sdd", "1:0:0:3");
        assert_eq!(machine.finds(3, "").as_deref(), Some("sdd"));
    }

    #[test]
    fn amazon_disks_are_found_by_their_id_and_by_number_only_without_one() {
        let machine = Machine::new();
        for (disk, id) in [("nvme0n1", "vol0a"), ("nvme1n1", "vol0ab"), ("nvme2n1", "vol0c")] {
            machine.disk(disk, 0, "");
            machine.link(&format!("dev/disk/by-id/{AWS_LINK}{id}"), disk);
            machine.link(&format!("dev/disk/by-id/{AWS_LINK}{id}_1"), disk);
        }
        machine.write("proc/thread-self/mounts", "/dev/nvme0n1 / ext4 rw 0 0\n");
        assert_eq!(machine.finds(0, "vol-0c").as_deref(), Some("nvme2n1"));
        assert_eq!(machine.finds(0, "vol-0ab").as_deref(), Some("nvme1n1"));
        assert_eq!(machine.finds(0, "vol-0"), None, "a part of an id is not the id");
        assert_eq!(machine.finds(0, "").as_deref(), Some("nvme1n1"));
        assert_eq!(machine.finds(1, "").as_deref(), Some("nvme2n1"));
    }

    #[test]
    fn scsi_numbers_are_taken_from_added_controllers_first() {
        let machine = Machine::new();
        machine.disk("sda", 1, "").address("sda", "0:0:0:0");
        machine.disk("sdb", 0, "").address("sdb", "0:0:0:1");
        machine.disk("sdc", 0, "").address("sdc", "2:0:0:1");
        assert_eq!(machine.finds(1, "").as_deref(), Some("sdc"));
        assert_eq!(machine.finds(0, ""), None);
        let machine = Machine::new();
        machine.disk("sdb", 0, "").address("sdb", "0:0:0:1");
        assert_eq!(machine.finds(1, "").as_deref(), Some("sdb"));
    }
}
