//! Volumes over a layer that only remembers.

use std::collections::BTreeMap;
use std::sync::Mutex as StdMutex;

use anyhow::anyhow;

use super::*;

#[derive(Default)]
struct Fake {
    state: StdMutex<State>,
}

#[derive(Default)]
struct State {
    calls: Vec<String>,
    /// Devices by number; one that is absent appears after so many looks.
    appears_after: u32,
    content: BTreeMap<String, Signature>,
    mounted: BTreeMap<PathBuf, PathBuf>,
    luks: bool,
    mapper_open: bool,
    unmount_fails: bool,
}

impl Fake {
    fn with(change: impl FnOnce(&mut State)) -> Arc<Self> {
        let fake = Self::default();
        change(&mut fake.state.lock().unwrap());
        Arc::new(fake)
    }

    fn calls(&self) -> Vec<String> {
        self.state.lock().unwrap().calls.clone()
    }

    fn note(&self, call: String) -> std::sync::MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap();
        state.calls.push(call);
        state
    }
}

#[async_trait]
impl MountLayer for Fake {
    async fn find_device(&self, volume: &Volume) -> Result<Option<PathBuf>> {
        let mut state = self.note(format!("find {}", volume.lun));
        if state.appears_after > 0 {
            state.appears_after -= 1;
            return Ok(None);
        }
        Ok(Some(format!("/dev/disk{}", volume.lun).into()))
    }

    async fn mounted_from(&self, folder: &Path) -> Result<Option<PathBuf>> {
        Ok(self.state.lock().unwrap().mounted.get(folder).cloned())
    }

    async fn mount(&self, device: &Path, folder: &Path, fs_type: &str) -> Result<()> {
        let mut state = self.note(format!("mount {} {fs_type}", device.display()));
        let content = state.content.get(device.to_str().unwrap()).cloned();
        match content {
            None => {}
            Some(Signature::Of(name)) if name == fs_type && name != "broken" => {}
            other => return Err(anyhow!("wrong fs type ({other:?})")),
        }
        state.mounted.insert(folder.to_owned(), device.to_owned());
        Ok(())
    }

    async fn unmount(&self, folder: &Path) -> Result<()> {
        let mut state = self.note(format!("unmount {}", folder.display()));
        if state.unmount_fails {
            return Err(anyhow!("busy"));
        }
        state.mounted.remove(folder);
        Ok(())
    }

    async fn signature(&self, device: &Path) -> Result<Signature> {
        let state = self.note(format!("signature {}", device.display()));
        Ok(state.content.get(device.to_str().unwrap()).cloned().unwrap_or(Signature::Empty))
    }

    async fn make_file_system(&self, device: &Path, fs_type: &str) -> Result<()> {
        let mut state = self.note(format!("mkfs {} {fs_type}", device.display()));
        state.content.insert(device.to_str().unwrap().to_owned(), Signature::Of(fs_type.to_owned()));
        Ok(())
    }

    async fn head(&self, _: &Path) -> Result<Vec<u8>> {
        Ok(if self.state.lock().unwrap().luks { LUKS_MAGIC.to_vec() } else { vec![0; 6] })
    }

    async fn mapper(&self, name: &str) -> Option<PathBuf> {
        self.state.lock().unwrap().mapper_open.then(|| Path::new("/dev/mapper").join(name))
    }

    async fn secure_mount(&self, device: &Path, folder: &Path, volume: &Volume, empty: bool) -> Result<()> {
        let mut state =
            self.note(format!("secure {} {} empty={empty}", device.display(), volume.mapper_name()));
        state.mounted.insert(folder.to_owned(), device.to_owned());
        Ok(())
    }

    async fn close_mapper(&self, name: &str) -> Result<()> {
        drop(self.note(format!("close {name}")));
        Ok(())
    }

    async fn set_group(&self, folder: &Path, group: u32) -> Result<()> {
        drop(self.note(format!("group {group} {}", folder.display())));
        Ok(())
    }
}

const PATIENCE: Patience = Patience { total: Duration::from_secs(5), pause: Duration::from_millis(1) };

fn volumes(fake: &Arc<Fake>) -> Volumes {
    Volumes::new(fake.clone(), "/v", PATIENCE)
}

fn one(text: &str) -> Volume {
    Volume::parse_all(text).unwrap().remove(0)
}

fn plain() -> Volume {
    one(r#"{"vol-0":{"mount_point":"/data","lun":"0","fs_group":"1000"}}"#)
}

fn encrypted() -> Volume {
    one(r#"{"vol-1":{"mount_point":"/data","lun":"1","encrypt_type":"LUKS2","key_id":"a/b/c"}}"#)
}

#[test]
fn the_annotation_is_read_in_the_order_of_names() {
    let text = r#"{"vol-10":{"mount_point":"/b","lun":"10","fs_type":"xfs","disk_id":"d"},
                   "vol-1":{"mount_point":"/a","lun":"1","new_key":"ignored"}}"#;
    let all = Volume::parse_all(text).unwrap();
    assert_eq!(all.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), ["vol-1", "vol-10"]);
    assert_eq!((all[0].fs_type.as_str(), all[1].fs_type.as_str()), ("ext4", "xfs"));
}

#[test]
fn volumes_that_cannot_be_used_are_errors_that_name_volume_and_key() {
    for (text, word) in [
        ("[]", "cloud_volumes"),
        (r#"{"vol-0":{"lun":"0"}}"#, "mount_point"),
        (r#"{"vol-0":{"mount_point":"/d"}}"#, "lun"),
        (r#"{"vol-0":{"mount_point":"/d","lun":"-1"}}"#, "lun"),
        (r#"{"vol-0":{"mount_point":"/d","lun":"0","fs_type":"btrfs"}}"#, "fs_type"),
        (r#"{"vol-0":{"mount_point":"/d","lun":"0","encrypt_type":"luks"}}"#, "key_id"),
        (r#"{"vol-0":{"mount_point":"/d","lun":"0","encrypt_type":"zip"}}"#, "encrypt_type"),
        (r#"{"../x":{"mount_point":"/d","lun":"0"}}"#, "name"),
        (r#"{"..":{"mount_point":"/d","lun":"0"}}"#, "name"),
        (r#"{"":{"mount_point":"/d","lun":"0"}}"#, "name"),
    ] {
        let error = format!("{:#}", Volume::parse_all(text).unwrap_err());
        assert!(error.contains(word), "{error}");
    }
}

#[tokio::test]
async fn a_volume_is_mounted_once_for_all_containers() {
    let fake = Fake::with(|_| {});
    let volumes = volumes(&fake);
    assert_eq!(volumes.mount(&plain(), "a").await.unwrap(), Path::new("/v/vol-0"));
    assert_eq!(volumes.mount(&plain(), "b").await.unwrap(), Path::new("/v/vol-0"));
    assert_eq!(fake.calls(), ["find 0", "mount /dev/disk0 ext4", "group 1000 /v/vol-0"]);
}

#[tokio::test]
async fn two_containers_at_once_open_an_encrypted_volume_once() {
    let fake = Fake::with(|state| state.appears_after = 3);
    let volumes = volumes(&fake);
    let (volume, other) = (encrypted(), encrypted());
    let (a, b) = tokio::join!(volumes.mount(&volume, "a"), volumes.mount(&other, "b"));
    assert_eq!(a.unwrap(), b.unwrap());
    let secure: Vec<_> = fake.calls().into_iter().filter(|call| call.starts_with("secure")).collect();
    assert_eq!(secure, ["secure /dev/disk1 caa-vol-1 empty=true"]);
}

#[tokio::test]
async fn a_failed_mount_is_tried_again_by_the_next_container() {
    let fake = Fake::with(|state| state.appears_after = u32::MAX);
    let mut volumes = volumes(&fake);
    volumes.patience.total = Duration::from_millis(5);
    let error = format!("{:#}", volumes.mount(&plain(), "a").await.unwrap_err());
    assert!(error.contains("vol-0") && error.contains("lun 0"), "{error}");
    fake.state.lock().unwrap().appears_after = 0;
    volumes.mount(&plain(), "b").await.unwrap();
}

#[tokio::test]
async fn an_empty_disk_gets_a_file_system_and_an_unknown_one_does_not() {
    let disk = "/dev/disk0".to_owned();
    let empty = Fake::with(|state| drop(state.content.insert(disk.clone(), Signature::Empty)));
    volumes(&empty).mount(&plain(), "a").await.unwrap();
    assert!(empty.calls().contains(&"mkfs /dev/disk0 ext4".to_owned()));

    let other = Fake::with(|state| drop(state.content.insert(disk.clone(), Signature::Of("xfs".to_owned()))));
    volumes(&other).mount(&plain(), "a").await.unwrap();
    assert!(other.calls().contains(&"mount /dev/disk0 xfs".to_owned()));

    let broken =
        Fake::with(|state| drop(state.content.insert(disk.clone(), Signature::Of("broken".to_owned()))));
    let error = format!("{:#}", volumes(&broken).mount(&plain(), "a").await.unwrap_err());
    assert!(error.contains("broken"), "{error}");
    assert!(!broken.calls().iter().any(|call| call.starts_with("mkfs")));
}

#[tokio::test]
async fn an_encrypted_volume_with_other_content_is_not_overwritten() {
    let known = Fake::with(|state| state.luks = true);
    volumes(&known).mount(&encrypted(), "a").await.unwrap();
    assert!(known.calls().contains(&"secure /dev/disk1 caa-vol-1 empty=false".to_owned()));

    let content = ("/dev/disk1".to_owned(), Signature::Of("ext4".to_owned()));
    let data = Fake::with(|state| drop(state.content.insert(content.0, content.1)));
    let error = format!("{:#}", volumes(&data).mount(&encrypted(), "a").await.unwrap_err());
    assert!(error.contains("not overwritten"), "{error}");

    let open = Fake::with(|state| state.mapper_open = true);
    volumes(&open).mount(&encrypted(), "a").await.unwrap();
    assert!(open.calls().contains(&"mount /dev/mapper/caa-vol-1 ext4".to_owned()));
}

#[tokio::test]
async fn a_mount_of_an_earlier_forwarder_is_taken_over() {
    let fake = Fake::with(|state| drop(state.mounted.insert("/v/vol-0".into(), "/dev/disk0".into())));
    let volumes = volumes(&fake);
    volumes.mount(&plain(), "a").await.unwrap();
    assert!(!fake.calls().iter().any(|call| call.starts_with("mount")));
    assert_eq!(volumes.unmount_all().await, 0);
    assert!(fake.calls().contains(&"unmount /v/vol-0".to_owned()));
}

#[tokio::test]
async fn one_name_for_two_disks_is_refused() {
    let fake = Fake::with(|_| {});
    let volumes = volumes(&fake);
    volumes.mount(&plain(), "a").await.unwrap();
    let other = Volume { lun: 4, ..plain() };
    assert!(volumes.mount(&other, "b").await.unwrap_err().to_string().contains("another disk"));
}

#[tokio::test]
async fn all_are_unmounted_last_first_and_mapped_devices_closed() {
    let fake = Fake::with(|_| {});
    let volumes = volumes(&fake);
    volumes.mount(&plain(), "a").await.unwrap();
    volumes.mount(&encrypted(), "a").await.unwrap();
    assert_eq!(volumes.unmount_all().await, 0);
    let ends: Vec<_> =
        fake.calls().into_iter().filter(|c| c.starts_with("un") || c.starts_with("close")).collect();
    assert_eq!(ends, ["unmount /v/vol-1", "close caa-vol-1", "unmount /v/vol-0"]);
    assert_eq!(volumes.unmount_all().await, 0, "a second time there is nothing left");
}

#[tokio::test]
async fn a_failed_unmount_does_not_stop_the_others() {
    let fake = Fake::with(|state| state.unmount_fails = true);
    let volumes = volumes(&fake);
    volumes.mount(&plain(), "a").await.unwrap();
    volumes.mount(&encrypted(), "a").await.unwrap();
    assert_eq!(volumes.unmount_all().await, 2);
    assert_eq!(fake.calls().iter().filter(|call| call.starts_with("unmount")).count(), 2);
}
