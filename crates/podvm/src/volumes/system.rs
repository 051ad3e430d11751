//! Mounts for real: system calls, and the programs that know file systems and encryption.

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use peerpod_proto::Client;
use peerpod_proto::messages::cdh;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::{Devices, MountLayer, Platform, Signature, Volume};
use crate::paths::{self, Paths};

/// Bound of one program. Making a file system on a large disk takes a while.
const PROGRAM: Duration = Duration::from_secs(300);
/// How long the confidential data hub may take to be there, and to answer.
const CDH_START: Duration = Duration::from_secs(20);
const CDH_ANSWER: Duration = Duration::from_secs(120);
/// How long a busy mount is waited for.
const BUSY: Duration = Duration::from_secs(2);

/// The mounts of this machine.
#[derive(Debug, Clone)]
pub struct SystemLayer {
    paths: Paths,
    devices: Devices,
}

impl SystemLayer {
    /// Works on the machine whose root is that of `paths`.
    pub fn new(paths: Paths) -> Self {
        let devices = Devices::new(paths.clone());
        Self { paths, devices }
    }
}

#[async_trait]
impl MountLayer for SystemLayer {
    async fn find_device(&self, volume: &Volume) -> Result<Option<PathBuf>> {
        if self.devices.platform() == Platform::Azure {
            // The links are udev's work. Without udev the search goes on by address.
            for args in [&["trigger", "--subsystem-match=block"][..], &["settle", "--timeout=5"]] {
                if let Err(error) = run("udevadm", args).await {
                    warn!(error = format!("{error:#}"), "udev could not be asked for links");
                    break;
                }
            }
        }
        self.devices.find(volume)
    }

    async fn mounted_from(&self, folder: &Path) -> Result<Option<PathBuf>> {
        let path = self.paths.at("/proc/thread-self/mounts");
        let mounts = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(mount_source(&mounts, folder))
    }

    async fn mount(&self, device: &Path, folder: &Path, fs_type: &str) -> Result<()> {
        make_folder(folder)?;
        let none: Option<&str> = None;
        mount(Some(device), folder, Some(fs_type), MsFlags::empty(), none)
            .with_context(|| format!("mount {} on {} as {fs_type}", device.display(), folder.display()))?;
        info!(device = %device.display(), folder = %folder.display(), fs_type, "mounted");
        Ok(())
    }

    async fn unmount(&self, folder: &Path) -> Result<()> {
        let end = Instant::now() + BUSY;
        loop {
            match umount2(folder, MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => break,
                // It is not mounted, or gone altogether.
                Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
                Err(Errno::EBUSY) if Instant::now() < end => sleep(Duration::from_millis(50)).await,
                Err(Errno::EBUSY) => {
                    // Everything written reaches the disk; the mount goes with its last user.
                    nix::unistd::sync();
                    umount2(folder, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
                        .with_context(|| format!("detach {}", folder.display()))?;
                    warn!(folder = %folder.display(), "was in use, detached");
                    break;
                }
                Err(error) => return Err(error).with_context(|| format!("unmount {}", folder.display())),
            }
        }
        match std::fs::remove_dir(folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                warn!(folder = %folder.display(), %error, "mount folder stays");
            }
            _ => {}
        }
        Ok(())
    }

    async fn signature(&self, device: &Path) -> Result<Signature> {
        // The program answers the same for a device without content that it knows and for one that it cannot read.
        self.head(device).await?;
        let device = device.to_string_lossy();
        let output = output("blkid", &["-p", "-o", "value", "-s", "TYPE", "-s", "PTTYPE", &device]).await?;
        match output.status.code() {
            Some(0) => {
                let text = String::from_utf8_lossy(&output.stdout);
                let name = text.split_whitespace().next().unwrap_or("something unknown");
                Ok(Signature::Of(name.to_owned()))
            }
            Some(2) => Ok(Signature::Empty),
            code => bail!(
                "blkid {device} ended with {code:?}: {}: what might be data is not overwritten",
                String::from_utf8_lossy(&output.stderr).trim()
            ),
        }
    }

    async fn make_file_system(&self, device: &Path, fs_type: &str) -> Result<()> {
        run(&format!("mkfs.{fs_type}"), &[&device.to_string_lossy()]).await
    }

    async fn head(&self, device: &Path) -> Result<Vec<u8>> {
        let mut head = Vec::new();
        let file = std::fs::File::open(device).with_context(|| format!("open {}", device.display()))?;
        file.take(6).read_to_end(&mut head).with_context(|| format!("read {}", device.display()))?;
        Ok(head)
    }

    async fn mapper(&self, name: &str) -> Option<PathBuf> {
        Some(self.paths.at("/dev/mapper").join(name)).filter(|path| path.exists())
    }

    async fn secure_mount(&self, device: &Path, folder: &Path, volume: &Volume, empty: bool) -> Result<()> {
        make_folder(folder)?;
        let request = secure_mount_request(device, folder, volume, empty)?;
        let socket = self.paths.at(paths::CDH_SOCKET);
        let end = Instant::now() + CDH_START;
        let client = loop {
            match Client::connect_unix(&socket).await {
                Ok(client) => break client,
                Err(error) if Instant::now() >= end => {
                    return Err(error)
                        .with_context(|| format!("confidential data hub at {}", socket.display()));
                }
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        };
        client
            .call::<_, cdh::SecureMountResponse>(cdh::SERVICE, cdh::SECURE_MOUNT, &request, Some(CDH_ANSWER))
            .await
            .map(|_| ())
            .map_err(|status| anyhow::anyhow!("the confidential data hub refused: {}", status.message))
    }

    async fn close_mapper(&self, name: &str) -> Result<()> {
        match self.mapper(name).await {
            Some(_) => run("cryptsetup", &["close", name]).await,
            None => Ok(()),
        }
    }

    async fn set_group(&self, folder: &Path, group: u32) -> Result<()> {
        chown(folder, None, Some(group)).with_context(|| format!("chown {}", folder.display()))?;
        let mode = std::fs::Permissions::from_mode(0o2775);
        std::fs::set_permissions(folder, mode).with_context(|| format!("chmod {}", folder.display()))
    }
}

fn secure_mount_request(
    device: &Path,
    folder: &Path,
    volume: &Volume,
    empty: bool,
) -> Result<cdh::SecureMountRequest> {
    let key = volume.key_id.as_deref().context("the volume has no key")?;
    let options = [
        ("devicePath", device.to_string_lossy().into_owned()),
        ("sourceType", if empty { "empty" } else { "encrypted" }.to_owned()),
        ("targetType", "fileSystem".to_owned()),
        ("encryptionType", "luks2".to_owned()),
        ("filesystemType", volume.fs_type.clone()),
        ("key", format!("kbs:///{key}")),
        ("mapperName", volume.mapper_name()),
    ];
    Ok(cdh::SecureMountRequest {
        volume_type: "block-device".to_owned(),
        options: options.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<HashMap<_, _>>(),
        flags: Vec::new(),
        mount_point: folder.to_string_lossy().into_owned(),
    })
}

/// Source of the topmost mount at a folder, from text in the form of `/proc/thread-self/mounts`.
pub(crate) fn mount_source(mounts: &str, folder: &Path) -> Option<PathBuf> {
    // Blanks and backslashes are written as octal numbers there.
    let unescape = |text: &str| text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\");
    mounts.lines().rev().find_map(|line| {
        let mut fields = line.split(' ');
        let (source, target) = (fields.next()?, fields.next()?);
        let target = unescape(target);
        (Path::new(&target) == folder).then(|| PathBuf::from(unescape(source)))
    })
}

fn make_folder(folder: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(folder)
        .with_context(|| format!("make {}", folder.display()))
}

async fn output(program: &str, args: &[&str]) -> Result<std::process::Output> {
    let running = Command::new(program).args(args).kill_on_drop(true).output();
    timeout(PROGRAM, running)
        .await
        .with_context(|| format!("{program} took more than {} s", PROGRAM.as_secs()))?
        .with_context(|| format!("start {program}"))
}

async fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = output(program, args).await?;
    ensure!(
        output.status.success(),
        "{program} {} failed: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_last_mount_at_a_folder_counts() {
        let mounts = "/dev/a /run/cloud-volumes/vol-0 ext4 rw 0 0\n/dev/b /run/cloud-volumes/vol-0 ext4 rw 0 0\n\
                      /dev/c /run/with\\040blank xfs rw 0 0\n";
        assert_eq!(mount_source(mounts, Path::new("/run/cloud-volumes/vol-0")), Some("/dev/b".into()));
        assert_eq!(mount_source(mounts, Path::new("/run/with blank")), Some("/dev/c".into()));
        assert_eq!(mount_source(mounts, Path::new("/run/cloud-volumes/vol")), None);
    }

    #[test]
    fn the_data_hub_is_asked_in_the_words_of_its_interface() {
        let volume = &Volume::parse_all(
            "{\"vol-1\":{\"mount_point\":\"/d\",\"lun\":\"1\",\"encrypt_type\":\"LUKS\",\"key_id\":\"r/k/1\"}}",
        )
        .unwrap()[0];
        let request = secure_mount_request(Path::new("/dev/vdc"), Path::new("/run/x"), volume, true).unwrap();
        assert_eq!(request.volume_type, "block-device");
        assert_eq!(request.mount_point, "/run/x");
        let expected = [
            ("devicePath", "/dev/vdc"),
            ("sourceType", "empty"),
            ("targetType", "fileSystem"),
            ("encryptionType", "luks2"),
            ("filesystemType", "ext4"),
            ("key", "kbs:///r/k/1"),
            ("mapperName", "caa-vol-1"),
        ];
        assert_eq!(request.options.len(), expected.len());
        for (name, value) in expected {
            assert_eq!(request.options[name], value, "{name}");
        }
    }

    /// Runs work in mounts of its own, which go with their thread.
    fn in_private_mounts(work: impl Future<Output = ()> + Send + 'static) {
        let thread = std::thread::spawn(move || {
            let none: Option<&str> = None;
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("needs root");
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_mount_is_made_found_and_removed_and_removing_it_again_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cloud-volumes/vol-0");
        in_private_mounts(async move {
            let layer = SystemLayer::new(Paths::host());
            let device = Path::new("stand-in");
            assert_eq!(layer.mounted_from(&folder).await.unwrap(), None);
            layer.mount(device, &folder, "tmpfs").await.unwrap();
            assert_eq!(layer.mounted_from(&folder).await.unwrap().as_deref(), Some(device));
            layer.set_group(&folder, 4242).await.unwrap();
            let metadata = std::fs::metadata(&folder).unwrap();
            assert_eq!((metadata.gid(), metadata.mode() & 0o7777), (4242, 0o2775));
            layer.unmount(&folder).await.unwrap();
            assert!(!folder.exists());
            layer.unmount(&folder).await.unwrap();
            let error = layer.mount(Path::new("/dev/null"), &folder, "ext4").await.unwrap_err();
            assert!(format!("{error:#}").contains("/dev/null"), "{error:#}");
        });
    }

    #[test]
    fn a_mount_in_use_is_detached() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("vol-0");
        in_private_mounts(async move {
            let layer = SystemLayer::new(Paths::host());
            layer.mount(Path::new("stand-in"), &folder, "tmpfs").await.unwrap();
            let user = std::fs::File::create(folder.join("open")).unwrap();
            layer.unmount(&folder).await.unwrap();
            assert_eq!(layer.mounted_from(&folder).await.unwrap(), None);
            drop(user);
        });
    }

    #[tokio::test]
    async fn an_encrypted_volume_is_left_to_the_data_hub() {
        use std::sync::Mutex;

        use bytes::Bytes;
        use peerpod_proto::{CallContext, Server, Service, Status};
        use prost::Message;
        use tokio_util::sync::CancellationToken;

        #[derive(Default)]
        struct Hub {
            asked: Mutex<Vec<cdh::SecureMountRequest>>,
        }

        #[async_trait]
        impl Service for Hub {
            async fn call(
                &self,
                _: CallContext,
                service: &str,
                method: &str,
                payload: Bytes,
            ) -> Result<Bytes, Status> {
                assert_eq!((service, method), (cdh::SERVICE, cdh::SECURE_MOUNT));
                let request = cdh::SecureMountRequest::decode(payload).map_err(Status::bad_payload)?;
                let refused = request.options["key"].contains("forbidden");
                self.asked.lock().unwrap().push(request);
                if refused { Err(Status::internal("no such key")) } else { Ok(Bytes::new()) }
            }
        }

        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path());
        let socket = paths.at(paths::CDH_SOCKET);
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let hub = std::sync::Arc::new(Hub::default());
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let server = Server::new(hub.clone());
        tokio::spawn(async move { server.serve_unix(listener, CancellationToken::new()).await });

        let layer = SystemLayer::new(paths);
        let folder = dir.path().join("vol-1");
        let text = r#"{"vol-1":{"mount_point":"/d","lun":"1","encrypt_type":"luks2","key_id":"a/b/c"}}"#;
        let mut volume = Volume::parse_all(text).unwrap().remove(0);
        layer.secure_mount(Path::new("/dev/vdc"), &folder, &volume, false).await.unwrap();
        volume.key_id = Some("forbidden".to_owned());
        let error = layer.secure_mount(Path::new("/dev/vdc"), &folder, &volume, true).await.unwrap_err();
        assert!(error.to_string().contains("no such key"), "{error}");
        let asked = hub.asked.lock().unwrap();
        assert_eq!(asked.len(), 2);
        assert_eq!(asked[0].options["sourceType"], "encrypted");
        assert!(folder.is_dir());
    }

    #[tokio::test]
    async fn a_disk_in_a_file_is_recognised_as_empty_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        std::fs::write(&disk, vec![0; 8 << 20]).unwrap();
        let layer = SystemLayer::new(Paths::host());
        assert_eq!(layer.signature(&disk).await.unwrap(), Signature::Empty);
        layer.make_file_system(&disk, "ext4").await.unwrap();
        assert_eq!(layer.signature(&disk).await.unwrap(), Signature::Of("ext4".to_owned()));
        assert!(layer.signature(&dir.path().join("missing")).await.is_err());
    }
}
