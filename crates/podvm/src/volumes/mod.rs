//! Cloud volumes: block devices attached to the VM that a container mounts.
//!
//! The node tells them in an annotation of CreateContainer. [`Volumes`] mounts each one once, however many containers
//! use it, and unmounts all at the end. What touches devices and mounts is behind [`MountLayer`].

mod device;
mod system;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};

pub use device::{Devices, Platform};
pub use system::SystemLayer;
pub(crate) use system::mount_source;

/// Annotation of CreateContainer that tells the volumes.
pub const ANNOTATION: &str = "io.confidentialcontainers.org.cloud_volumes";

const FILE_SYSTEMS: [&str; 3] = ["ext4", "ext3", "xfs"];
const LUKS_MAGIC: &[u8] = b"LUKS\xba\xbe";

/// One volume as the node describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Volume {
    /// Name, unique in the sandbox; also the name of its mount folder.
    pub name: String,
    /// Where the container wants it.
    pub mount_point: String,
    /// File system.
    pub fs_type: String,
    /// Number of the device at its controller.
    pub lun: u32,
    /// The cloud's id of the disk; empty when not told.
    pub disk_id: String,
    /// Group that owns the content.
    pub fs_group: Option<u32>,
    /// Id of the key at the key broker; present for an encrypted volume.
    pub key_id: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    mount_point: String,
    #[serde(default)]
    fs_type: String,
    #[serde(default)]
    lun: String,
    #[serde(default)]
    disk_id: String,
    #[serde(default)]
    fs_group: String,
    #[serde(default)]
    encrypt_type: String,
    #[serde(default)]
    key_id: String,
}

impl Volume {
    /// Reads the annotation: an object of names and volumes, in the order of the names.
    ///
    /// # Errors
    ///
    /// JSON of another shape, or a volume whose name, number, file system or encryption cannot be used.
    pub fn parse_all(annotation: &str) -> Result<Vec<Self>> {
        let entries: BTreeMap<String, Entry> =
            serde_json::from_str(annotation).with_context(|| format!("annotation {ANNOTATION}"))?;
        entries
            .into_iter()
            .map(|(name, entry)| Self::check(&name, entry).with_context(|| format!("cloud volume {name:?}")))
            .collect()
    }

    fn check(name: &str, entry: Entry) -> Result<Self> {
        // The name becomes a folder and part of a device name.
        let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        ensure!(plain, "the name is no plain file name");
        ensure!(!entry.mount_point.is_empty(), "mount_point is missing");
        let fs_type = if entry.fs_type.is_empty() { FILE_SYSTEMS[0] } else { &entry.fs_type };
        ensure!(FILE_SYSTEMS.contains(&fs_type), "fs_type is {fs_type:?}, must be one of {FILE_SYSTEMS:?}");
        let lun = entry.lun.parse().with_context(|| format!("lun {:?} is not a number", entry.lun))?;
        let fs_group = match entry.fs_group.as_str() {
            "" => None,
            text => Some(text.parse().with_context(|| format!("fs_group {text:?} is not a group id"))?),
        };
        let key_id = match entry.encrypt_type.to_ascii_lowercase().as_str() {
            "" => None,
            "luks" | "luks2" if !entry.key_id.is_empty() => Some(entry.key_id),
            "luks" | "luks2" => bail!("key_id is missing for an encrypted volume"),
            other => bail!("encrypt_type is {other:?}, must be luks or luks2"),
        };
        Ok(Self {
            name: name.to_owned(),
            mount_point: entry.mount_point,
            fs_type: fs_type.to_owned(),
            lun,
            disk_id: entry.disk_id,
            fs_group,
            key_id,
        })
    }

    /// Name of the decrypted device.
    pub fn mapper_name(&self) -> String {
        format!("caa-{}", self.name)
    }
}

/// What is known of the content of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signature {
    /// Nothing that is known.
    Empty,
    /// A file system or something else of that name.
    Of(String),
}

/// What mounting needs from the machine.
#[async_trait]
pub trait MountLayer: Send + Sync + 'static {
    /// Looks once for the device of a volume.
    async fn find_device(&self, volume: &Volume) -> Result<Option<PathBuf>>;
    /// The source of the mount at a folder, if there is one.
    async fn mounted_from(&self, folder: &Path) -> Result<Option<PathBuf>>;
    /// Mounts a device.
    async fn mount(&self, device: &Path, folder: &Path, fs_type: &str) -> Result<()>;
    /// Unmounts a folder.
    async fn unmount(&self, folder: &Path) -> Result<()>;
    /// Reads what is on a device.
    async fn signature(&self, device: &Path) -> Result<Signature>;
    /// Makes a file system.
    async fn make_file_system(&self, device: &Path, fs_type: &str) -> Result<()>;
    /// Reads the first bytes of a device.
    async fn head(&self, device: &Path) -> Result<Vec<u8>>;
    /// The decrypted device of that name, if it is open.
    async fn mapper(&self, name: &str) -> Option<PathBuf>;
    /// Has the confidential data hub open the device and mount it.
    async fn secure_mount(&self, device: &Path, folder: &Path, volume: &Volume, empty: bool) -> Result<()>;
    /// Closes a decrypted device.
    async fn close_mapper(&self, name: &str) -> Result<()>;
    /// Gives the content of a folder to a group.
    async fn set_group(&self, folder: &Path, group: u32) -> Result<()>;
}

/// How often and how long a device is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Bound of the whole search.
    pub total: Duration,
    /// Pause between two looks.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        // Clouds attach disks while the VM boots; the bound is that of the existing forwarder.
        Self { total: Duration::from_secs(30), pause: Duration::from_millis(200) }
    }
}

/// The volumes of a sandbox.
pub struct Volumes {
    layer: Arc<dyn MountLayer>,
    folder: PathBuf,
    patience: Patience,
    slots: Mutex<BTreeMap<String, Arc<Mutex<Slot>>>>,
    /// Names in the order in which they were mounted.
    order: Mutex<Vec<String>>,
}

#[derive(Default)]
struct Slot {
    mounted: Option<Volume>,
    users: BTreeSet<String>,
}

impl Volumes {
    /// Mounts below `folder`.
    pub fn new(layer: Arc<dyn MountLayer>, folder: impl Into<PathBuf>, patience: Patience) -> Self {
        let (slots, order) = (Mutex::default(), Mutex::default());
        Self { layer, folder: folder.into(), patience, slots, order }
    }

    /// Mounts a volume for a container, or finds it mounted; answers the folder.
    ///
    /// Two containers that ask at once get the same mount: the second waits for the first.
    ///
    /// # Errors
    ///
    /// When the device does not come in time, when it cannot be mounted, or when its content is not known: what might
    /// be somebody's data is never formatted. Also when the name stands for another volume already.
    pub async fn mount(&self, volume: &Volume, container: &str) -> Result<PathBuf> {
        let slot = self.slots.lock().await.entry(volume.name.clone()).or_default().clone();
        let mut slot = slot.lock().await;
        let folder = self.folder.join(&volume.name);
        match &slot.mounted {
            Some(known)
                if (&known.disk_id, known.lun, &known.key_id)
                    != (&volume.disk_id, volume.lun, &volume.key_id) =>
            {
                bail!("cloud volume {} stands for another disk already", volume.name);
            }
            Some(_) => {}
            None => {
                self.mount_first(volume, &folder)
                    .await
                    .with_context(|| format!("cloud volume {}", volume.name))?;
                slot.mounted = Some(volume.clone());
                self.order.lock().await.push(volume.name.clone());
            }
        }
        slot.users.insert(container.to_owned());
        info!(volume = volume.name, users = slot.users.len(), "cloud volume is in place");
        Ok(folder)
    }

    async fn mount_first(&self, volume: &Volume, folder: &Path) -> Result<()> {
        let device = self.wait_for_device(volume).await?;
        match self.layer.mounted_from(folder).await? {
            // A forwarder before this one mounted it.
            Some(source) => info!(volume = volume.name, source = %source.display(), "was mounted before"),
            None => match &volume.key_id {
                Some(_) => self.mount_encrypted(volume, &device, folder).await?,
                None => self.mount_plain(volume, &device, folder).await?,
            },
        }
        if let Some(group) = volume.fs_group
            && let Err(error) = self.layer.set_group(folder, group).await
        {
            warn!(
                volume = volume.name,
                group,
                error = format!("{error:#}"),
                "group of the volume is not set"
            );
        }
        Ok(())
    }

    async fn wait_for_device(&self, volume: &Volume) -> Result<PathBuf> {
        let end = Instant::now() + self.patience.total;
        loop {
            if let Some(device) = self.layer.find_device(volume).await? {
                return Ok(device);
            }
            let left = end.saturating_duration_since(Instant::now());
            ensure!(
                !left.is_zero(),
                "no device with lun {} and disk id {:?} appeared within {} s",
                volume.lun,
                volume.disk_id,
                self.patience.total.as_secs()
            );
            tokio::time::sleep(self.patience.pause.min(left)).await;
        }
    }

    async fn mount_plain(&self, volume: &Volume, device: &Path, folder: &Path) -> Result<()> {
        let first = match self.layer.mount(device, folder, &volume.fs_type).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        match self.layer.signature(device).await? {
            Signature::Empty => {
                info!(volume = volume.name, device = %device.display(), "the device is empty, making a file system");
                self.layer.make_file_system(device, &volume.fs_type).await?;
                self.layer.mount(device, folder, &volume.fs_type).await
            }
            Signature::Of(name) if name == volume.fs_type => Err(first),
            Signature::Of(name) => {
                // Volumes that were formatted by somebody else are welcome as they are.
                let mounted = self.layer.mount(device, folder, &name).await;
                mounted.with_context(|| format!("{} holds {name}, not {}", device.display(), volume.fs_type))
            }
        }
    }

    async fn mount_encrypted(&self, volume: &Volume, device: &Path, folder: &Path) -> Result<()> {
        // An open device cannot be opened again under the same name.
        if let Some(open) = self.layer.mapper(&volume.mapper_name()).await {
            return self.layer.mount(&open, folder, &volume.fs_type).await;
        }
        let empty = !self.layer.head(device).await?.starts_with(LUKS_MAGIC);
        if empty {
            // What is neither LUKS nor empty may be somebody's data.
            let signature = self.layer.signature(device).await?;
            ensure!(
                signature == Signature::Empty,
                "{} is not encrypted but holds {signature:?}: it is not overwritten",
                device.display()
            );
        }
        self.layer.secure_mount(device, folder, volume, empty).await
    }

    /// Unmounts everything, last first. Goes on after failures and logs them; answers how many there were.
    pub async fn unmount_all(&self) -> usize {
        let names: Vec<_> = self.order.lock().await.drain(..).rev().collect();
        let mut failures = 0;
        for name in names {
            let Some(slot) = self.slots.lock().await.get(&name).cloned() else { continue };
            let mut slot = slot.lock().await;
            let Some(volume) = slot.mounted.take() else { continue };
            slot.users.clear();
            let mut result = self.layer.unmount(&self.folder.join(&name)).await;
            if result.is_ok() && volume.key_id.is_some() {
                result = self.layer.close_mapper(&volume.mapper_name()).await;
            }
            match result {
                Ok(()) => info!(volume = name, "cloud volume is unmounted"),
                Err(error) => {
                    failures += 1;
                    warn!(
                        volume = name,
                        error = format!("{error:#}"),
                        "cloud volume is not cleanly unmounted"
                    );
                }
            }
        }
        failures
    }
}

#[cfg(test)]
mod tests;
