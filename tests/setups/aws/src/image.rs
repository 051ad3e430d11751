//! A disk becomes an image: its blocks go straight into a snapshot, without a bucket and a role for importing.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use aws_sdk_ebs::primitives::ByteStream;
use aws_sdk_ebs::types::ChecksumAlgorithm;
use aws_sdk_ec2::types::{
    ArchitectureValues, BlockDeviceMapping, BootModeValues, EbsBlockDevice, ImageState, ImdsSupportValues,
    ResourceType, SnapshotState, VolumeType,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt as _, TryStreamExt as _};
use sha2::{Digest as _, Sha256};

use crate::account::{Account, Said, code};
use crate::tags::{Name, filter, tag};

/// The size of a block; EBS knows no other.
const BLOCK: usize = 512 << 10;
const GIB: u64 = 1 << 30;
/// How many blocks are on their way at once.
const AT_ONCE: usize = 8;
/// What the disk is called in the image.
const ROOT: &str = "/dev/xvda";
/// The key of the tag that tells images of other disks apart.
const DIGEST: &str = "peerpod-disk";

/// Which disk, and for which machines.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// A raw disk.
    pub disk: PathBuf,
    /// The architecture of its programs: `x86_64` or `arm64`.
    pub architecture: String,
}

/// What an upload came to.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Uploaded {
    /// The image.
    pub image: String,
    /// How many blocks were sent; none where the image was there.
    pub blocks: u64,
}

impl Account {
    /// Makes an image of a disk, or finds the one that was made of the same bytes.
    ///
    /// # Errors
    ///
    /// When the disk is none, or what the service said. A snapshot that was begun is deleted by the next call, and by
    /// deleting.
    pub async fn image(&self, name: &Name, options: &ImageOptions) -> Result<Uploaded> {
        let disk = options.disk.clone();
        let (digest, size) = tokio::task::spawn_blocking(move || digest(&disk)).await??;
        if let Some(image) = self.image_of(name, &digest).await? {
            return Ok(Uploaded { image, blocks: 0 });
        }
        self.delete_begun(name, &digest).await?;
        let (snapshot, blocks) = self.snapshot(name, &options.disk, &digest, size).await?;
        let image = self.register(name, options, &digest, &snapshot).await?;
        Ok(Uploaded { image, blocks })
    }

    async fn image_of(&self, name: &Name, digest: &str) -> Result<Option<String>> {
        let mut filters = name.filters("image");
        filters.push(filter(&format!("tag:{DIGEST}"), &[digest]));
        let said = self.ec2.describe_images().owners("self").set_filters(Some(filters)).send().await;
        let said = said.said("cannot list images")?;
        let there = said.images().iter().find(|image| image.state() == Some(&ImageState::Available));
        Ok(there.and_then(|image| image.image_id()).map(str::to_owned))
    }

    /// Snapshots of an upload that did not come to its end.
    async fn delete_begun(&self, name: &Name, digest: &str) -> Result<()> {
        let mut filters = name.filters("snapshot");
        filters.push(filter(&format!("tag:{DIGEST}"), &[digest]));
        let said = self.ec2.describe_snapshots().owner_ids("self").set_filters(Some(filters)).send().await;
        let said = said.said("cannot list snapshots")?;
        for id in said.snapshots().iter().filter_map(|snapshot| snapshot.snapshot_id()) {
            self.ec2.delete_snapshot().snapshot_id(id).send().await.said("cannot delete a snapshot")?;
        }
        Ok(())
    }

    async fn snapshot(&self, name: &Name, disk: &Path, digest: &str, size: u64) -> Result<(String, u64)> {
        let gib = i64::try_from(size.div_ceil(GIB))?;
        let mut tags: Vec<_> = name
            .tags("snapshot")
            .into_iter()
            .map(|(key, value)| aws_sdk_ebs::types::Tag::builder().key(key).value(value).build())
            .collect();
        tags.push(aws_sdk_ebs::types::Tag::builder().key(DIGEST).value(digest).build());
        let said = self
            .ebs
            .start_snapshot()
            .volume_size(gib)
            .description(format!("disk of pod VMs, set-up {}", name.as_str()))
            .set_tags(Some(tags))
            .send()
            .await
            .said("cannot begin a snapshot")?;
        let id = said.snapshot_id().context("a snapshot without an id")?.to_owned();
        let file = Arc::new(File::open(disk).with_context(|| format!("cannot open {}", disk.display()))?);
        let count = i32::try_from(size.div_ceil(BLOCK as u64))?;
        let sent = futures_util::stream::iter(0..count)
            .map(|index| {
                let (file, id) = (Arc::clone(&file), id.as_str());
                async move { self.send_block(id, &file, index).await }
            })
            .buffer_unordered(AT_ONCE)
            .try_fold(0, |sent, one| async move { Ok(sent + u64::from(one)) })
            .await?;
        let complete =
            self.ebs.complete_snapshot().snapshot_id(&id).changed_blocks_count(i32::try_from(sent)?);
        complete.send().await.said("cannot finish the snapshot")?;
        self.wait("the snapshot to be complete", || async {
            let said = self.ec2.describe_snapshots().snapshot_ids(&id).send().await;
            let said = match said {
                Err(error) if crate::account::is_missing(&error) => return Ok(None),
                said => said.said("cannot look at the snapshot")?,
            };
            match said.snapshots().first().and_then(|snapshot| snapshot.state()) {
                Some(SnapshotState::Completed) => Ok(Some(())),
                Some(SnapshotState::Error) => bail!("the service could not make snapshot {id}"),
                _ => Ok(None),
            }
        })
        .await?;
        Ok((id, sent))
    }

    /// Sends one block unless it is all zero; whether it was sent.
    async fn send_block(&self, snapshot: &str, file: &Arc<File>, index: i32) -> Result<bool> {
        let file = Arc::clone(file);
        let offset = u64::try_from(index)? * BLOCK as u64;
        let block = tokio::task::spawn_blocking(move || read_block(&file, offset)).await??;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(false);
        }
        let checksum = STANDARD.encode(Sha256::digest(&block));
        self.ebs
            .put_snapshot_block()
            .snapshot_id(snapshot)
            .block_index(index)
            .data_length(i32::try_from(block.len())?)
            .checksum(checksum)
            .checksum_algorithm(ChecksumAlgorithm::ChecksumAlgorithmSha256)
            .block_data(ByteStream::from(block))
            .send()
            .await
            .said("cannot send a block of the disk")?;
        Ok(true)
    }

    async fn register(
        &self,
        name: &Name,
        options: &ImageOptions,
        digest: &str,
        snapshot: &str,
    ) -> Result<String> {
        let disk = EbsBlockDevice::builder()
            .snapshot_id(snapshot)
            .volume_type(VolumeType::Gp3)
            .delete_on_termination(true)
            .build();
        let mut spec = name.spec(ResourceType::Image, "image");
        spec.tags.get_or_insert_default().push(tag(DIGEST, digest));
        let said = self
            .ec2
            .register_image()
            .name(format!("{}-{}", name.as_str(), &digest[..16]))
            .description("pod VM")
            .architecture(ArchitectureValues::from(options.architecture.as_str()))
            .virtualization_type("hvm")
            // Machines with SEV-SNP start with UEFI only.
            .boot_mode(BootModeValues::Uefi)
            .ena_support(true)
            // Instances of it answer version 2 of the metadata service only, unless told otherwise.
            .imds_support(ImdsSupportValues::V20)
            .root_device_name(ROOT)
            .block_device_mappings(BlockDeviceMapping::builder().device_name(ROOT).ebs(disk).build())
            .tag_specifications(spec)
            .send()
            .await;
        let image = match said {
            Ok(said) => said.image_id().map(str::to_owned).context("an image without an id")?,
            // The answer to an earlier try was lost: tags show that it is ours.
            Err(error) if code(&error) == Some("InvalidAMIName.Duplicate") => {
                let found = self.image_of(name, digest).await?;
                found.context("an image of this name is there and is not of this set-up")?
            }
            Err(error) => return Err(error).said("cannot register the image"),
        };
        self.wait("the image to be available", || async {
            let said = self.ec2.describe_images().image_ids(&image).send().await;
            let said = match said {
                Err(error) if crate::account::is_missing(&error) => return Ok(None),
                said => said.said("cannot look at the image")?,
            };
            match said.images().first().and_then(|image| image.state()) {
                Some(ImageState::Available) => Ok(Some(())),
                Some(ImageState::Failed | ImageState::Error | ImageState::Invalid) => {
                    bail!("the service could not make image {image}")
                }
                _ => Ok(None),
            }
        })
        .await?;
        Ok(image)
    }
}

/// Reads one block, filled up with zeros at the end of the disk.
fn read_block(file: &File, offset: u64) -> Result<Vec<u8>> {
    let mut block = vec![0; BLOCK];
    let mut filled = 0;
    while filled < BLOCK {
        match file.read_at(&mut block[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(block)
}

/// Returns the digest of a raw disk, as long as a tag may be, and its size.
fn digest(disk: &Path) -> Result<(String, u64)> {
    let mut file = File::open(disk).with_context(|| format!("cannot open {}", disk.display()))?;
    let size = file.metadata()?.len();
    ensure!(size > 0, "{} is empty", disk.display());
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    let mut first = true;
    loop {
        let count = file.read(&mut piece)?;
        if count == 0 {
            break;
        }
        ensure!(
            !(first && piece.starts_with(b"QFI\xfb")),
            "{} is a qcow2 image; make a raw disk of it: qemu-img convert -O raw",
            disk.display()
        );
        first = false;
        hash.update(&piece[..count]);
    }
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((digest[..63].to_owned(), size))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_last_block_is_filled_up_with_zeros() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; BLOCK + 10]).unwrap();
        let block = read_block(&file, BLOCK as u64).unwrap();
        assert_eq!((block.len(), block[9], block[10]), (BLOCK, 7, 0));
    }

    #[test]
    fn a_packed_image_is_refused_with_the_way_to_unpack_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, b"QFI\xfb and more").unwrap();
        assert!(digest(&path).unwrap_err().to_string().contains("qemu-img convert"));
        std::fs::write(&path, "").unwrap();
        assert!(digest(&path).unwrap_err().to_string().contains("empty"));
        std::fs::write(&path, "disk").unwrap();
        assert_eq!(digest(&path).unwrap().0.len(), 63);
    }
}
