//! A second disk that outlives the pods: described as Kata's storage driver describes it, formatted on first use only.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use peerpod_proto::messages::oci::Mount;

use super::Pod;
use super::report::{Report, Volume};
use crate::world::World;

/// Where the container sees it. Every root has this folder.
const MOUNT_POINT: &str = "/mnt";
/// The file that the first pod writes.
const FILE: &str = "/mnt/written-by";
const SIZE: u64 = 64 << 20;
/// The superblock of ext2 and its successors, with the magic number and the id in it.
const SUPERBLOCK: u64 = 1024;
const MAGIC: (u64, [u8; 2]) = (SUPERBLOCK + 0x38, [0x53, 0xef]);
const ID: u64 = SUPERBLOCK + 0x68;

/// A disk image on the host, removed with the value: it belongs to its user and not to any instance.
#[derive(Debug)]
pub(super) struct Disk {
    file: PathBuf,
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.file) {
            eprintln!("{} could not be removed: {error}", self.file.display());
        }
    }
}

impl Disk {
    /// Makes an empty disk where instances can have a second one.
    pub(super) fn make(world: &World) -> Result<Option<Self>> {
        let Some(folder) = world.machines().disks() else { return Ok(None) };
        let file = folder.join(format!("{}.raw", test_support::unique("demo-data")));
        File::create_new(&file)?.set_len(SIZE)?;
        std::fs::create_dir_all(world.direct_volumes())?;
        Ok(Some(Self { file }))
    }

    /// The path by which the kubelet knows the volume in a pod.
    fn source(pod: usize) -> String {
        format!("/var/lib/kubelet/pods/demo-uid-{pod}/volumes/kubernetes.io~csi/demo-volume/mount")
    }

    /// Describes the volume for a pod as the storage driver does, and returns the annotation that names the pod.
    pub(super) fn describe(&self, world: &World, pod: usize) -> Result<HashMap<String, String>> {
        let folder = world.direct_volumes().join(URL_SAFE.encode(Self::source(pod)));
        std::fs::create_dir(&folder)?;
        let info = serde_json::json!({
            "volume-type": "block",
            "device": self.file,
            "fstype": "ext4",
            "metadata": { "cloud-volume-path": self.file },
            "options": [],
        });
        std::fs::write(folder.join("mountInfo.json"), info.to_string())?;
        Ok([("io.kubernetes.cri.sandbox-uid".to_owned(), format!("demo-uid-{pod}"))].into())
    }

    /// The mount in the container's specification, as the shim passes it on.
    pub(super) fn mount(&self, pod: usize) -> Mount {
        Mount {
            destination: MOUNT_POINT.to_owned(),
            source: Self::source(pod),
            kind: "bind".to_owned(),
            options: ["rbind", "rprivate", "rw"].map(str::to_owned).into(),
        }
    }

    /// Writes the boot id of the machine to the volume in the first pod.
    pub(super) async fn write_in(&self, pod: &Pod, report: &mut Report) -> Result<()> {
        let mounted = mounted(pod).await?;
        let (code, _) = super::exec(&pod.agent, "look", &["cat", FILE]).await?;
        ensure!(code != 0, "a new disk has a file already");
        // Whoever stops a machine does not wait for its memory to reach the disk: a program that cares says so.
        let script = format!("cat /proc/sys/kernel/random/boot_id > {FILE} && sync");
        pod.output("write", &["sh", "-c", &script]).await?;
        let written = pod.output("read", &["cat", FILE]).await?.trim().to_owned();
        ensure!(written == report.boot_id, "the file has {written:?}, not the boot id {}", report.boot_id);
        report.volume = Some(Volume { disk: self.file.clone(), mounted, written, ..Volume::default() });
        Ok(())
    }

    /// Reads in the second pod what the first one wrote.
    pub(super) async fn read_in(&self, pod: &Pod, report: &mut Report) -> Result<()> {
        mounted(pod).await?;
        let read = pod.output("read", &["cat", FILE]).await?.trim().to_owned();
        let now = pod.output("boot", &["cat", "/proc/sys/kernel/random/boot_id"]).await?.trim().to_owned();
        let volume = report.volume.as_mut().context("nothing was written yet")?;
        ensure!(read == volume.written, "the second pod reads {read:?}, the first wrote {}", volume.written);
        ensure!(now != read && now != report.host_boot_id, "the second pod runs on the machine {now} again");
        volume.read_by = now;
        Ok(())
    }

    /// Looks at the disk while no machine has it: it holds the file system that the first pod got.
    pub(super) fn check_alone(&self, report: &mut Report) -> Result<()> {
        let disk =
            File::open(&self.file).with_context(|| format!("the disk {} is gone", self.file.display()))?;
        let (mut magic, mut id) = ([0; 2], [0; 16]);
        disk.read_exact_at(&mut magic, MAGIC.0)?;
        disk.read_exact_at(&mut id, ID)?;
        ensure!(magic == MAGIC.1, "{} has no file system", self.file.display());
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let volume = report.volume.as_mut().context("nothing was written yet")?;
        ensure!(
            volume.file_system.is_empty() || volume.file_system == id,
            "the disk was formatted again: its file system was {}, now it is {id}",
            volume.file_system
        );
        volume.file_system = id;
        Ok(())
    }

    /// Leaves the disk where it is.
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }
}

/// Returns the line of the container's mounts for the volume: it is a file system on a disk.
async fn mounted(pod: &Pod) -> Result<String> {
    let text = pod.output("mounts", &["cat", "/proc/self/mounts"]).await?;
    let line = text.lines().find(|line| line.split(' ').nth(1) == Some(MOUNT_POINT));
    let line = line.with_context(|| format!("nothing is mounted on {MOUNT_POINT} in:\n{text}"))?;
    let words: Vec<&str> = line.split(' ').collect();
    ensure!(words.get(2) == Some(&"ext4") && words[0].starts_with("/dev/"), "{MOUNT_POINT} is {line}");
    Ok(line.to_owned())
}
