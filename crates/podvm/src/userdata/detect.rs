//! Decides where this machine's user data comes from.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tracing::debug;

use super::{MAX_USER_DATA, Provisioner, imds, nocloud};
use crate::paths::{self, Paths};

/// Chassis asset tag of every Azure virtual machine.
const AZURE_ASSET_TAG: &str = "7783-7084-3265-9085-8269-3286-77";

/// How long a file must keep its content before it counts as written, when nothing else says that it is.
const SETTLE: Duration = Duration::from_millis(100);

/// A place that user data comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// A file named `user-data` in a folder.
    File(PathBuf),
    /// A block device labelled `cidata`, as ISO 9660 or FAT.
    Disk(PathBuf),
    /// Azure's metadata server.
    Azure,
    /// Amazon's metadata server.
    Aws,
    /// Google's metadata server.
    Gcp,
    /// Alibaba Cloud's metadata server.
    Alibaba,
    /// None found: somebody else, such as cloud-init, writes the files.
    None,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Disk(path) => write!(f, "disk {}", path.display()),
            Self::Azure => f.write_str("azure"),
            Self::Aws => f.write_str("aws"),
            Self::Gcp => f.write_str("gcp"),
            Self::Alibaba => f.write_str("alibabacloud"),
            Self::None => f.write_str("nowhere"),
        }
    }
}

impl Source {
    /// Reads the user data as the source holds it, still possibly compressed.
    pub(super) fn fetch(&self, p: &Provisioner, deadline: Instant) -> Result<Vec<u8>> {
        match self {
            Self::File(path) => read_settled(path, p),
            Self::Disk(path) => nocloud::read_user_data(path),
            Self::Azure => imds::azure(&p.endpoints, deadline),
            Self::Aws => imds::aws(&p.endpoints, deadline),
            Self::Gcp => imds::gcp(&p.endpoints, deadline),
            Self::Alibaba => imds::alibaba(&p.endpoints, deadline),
            Self::None => Ok(Vec::new()),
        }
    }
}

/// Looks in the order file, disk, then what the firmware tables say the machine is.
///
/// The firmware tables come before any network access: asking an unknown network for user data would let whoever
/// answers choose it.
pub(super) fn detect(p: &Provisioner) -> Result<Source> {
    let file = match &p.user_data_dir {
        Some(dir) => dir.join("user-data"),
        None => p.paths.at(paths::USER_DATA_FILE),
    };
    // Only a regular file counts: a folder in its place or an unreadable parent is not user data.
    if std::fs::metadata(&file).is_ok_and(|m| m.is_file()) {
        return Ok(Source::File(file));
    }
    ensure!(p.user_data_dir.is_none(), "{} does not exist", file.display());
    if let Some(disk) = nocloud::find_disk(&p.paths) {
        return Ok(Source::Disk(disk));
    }
    Ok(by_firmware(&p.paths))
}

fn by_firmware(paths: &Paths) -> Source {
    let dmi = |name: &str| {
        std::fs::read_to_string(paths.at("/sys/class/dmi/id").join(name))
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    };
    let (vendor, product) = (dmi("sys_vendor"), dmi("product_name"));
    debug!(vendor, product, "firmware tables");
    match (vendor.as_str(), product.as_str()) {
        _ if dmi("chassis_asset_tag") == AZURE_ASSET_TAG => Source::Azure,
        ("Microsoft Corporation", "Virtual Machine") => Source::Azure,
        ("Amazon EC2", _) => Source::Aws,
        ("Google", _) | (_, "Google Compute Engine") => Source::Gcp,
        ("Alibaba Cloud", _) => Source::Alibaba,
        _ => Source::None,
    }
}

/// Reads a file that may still be growing.
///
/// A NoCloud folder with `meta-data` was prepared as a whole. A lone `user-data` may be on its way over SFTP, whose
/// server creates the file first and fills it then: it counts when it stayed the same for [`SETTLE`].
fn read_settled(path: &Path, p: &Provisioner) -> Result<Vec<u8>> {
    let first = read(path)?;
    if path.with_file_name("meta-data").is_file() {
        return Ok(first);
    }
    p.cancel.wait(SETTLE);
    ensure!(read(path)? == first, "the file is still being written");
    Ok(first)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let size = std::fs::metadata(path).context("look at the file")?.len();
    ensure!(size <= MAX_USER_DATA, "{size} bytes are more than {MAX_USER_DATA}");
    std::fs::read(path).context("read the file")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(dmi: &[(&str, &str)]) -> (tempfile::TempDir, Provisioner) {
        let root = tempfile::tempdir().unwrap();
        let id = root.path().join("sys/class/dmi/id");
        std::fs::create_dir_all(&id).unwrap();
        for (name, text) in dmi {
            std::fs::write(id.join(name), format!("{text}\n")).unwrap();
        }
        let p = Provisioner::new(Paths::new(root.path()));
        (root, p)
    }

    #[test]
    fn firmware_tables_name_the_cloud() {
        for (dmi, source) in [
            (vec![("chassis_asset_tag", AZURE_ASSET_TAG)], Source::Azure),
            (
                vec![("sys_vendor", "Microsoft Corporation"), ("product_name", "Virtual Machine")],
                Source::Azure,
            ),
            (vec![("sys_vendor", "Amazon EC2")], Source::Aws),
            (vec![("sys_vendor", "Google"), ("product_name", "Google Compute Engine")], Source::Gcp),
            (vec![("sys_vendor", "Alibaba Cloud")], Source::Alibaba),
            (vec![("sys_vendor", "QEMU")], Source::None),
            (vec![], Source::None),
        ] {
            let (_root, p) = machine(&dmi);
            assert_eq!(detect(&p).unwrap(), source, "{dmi:?}");
        }
    }

    #[test]
    fn a_file_comes_before_the_cloud_but_a_folder_in_its_place_does_not() {
        let (root, p) = machine(&[("sys_vendor", "Amazon EC2")]);
        let file = root.path().join("media/cidata/user-data");
        std::fs::create_dir_all(&file).unwrap();
        assert_eq!(detect(&p).unwrap(), Source::Aws);
        std::fs::remove_dir(&file).unwrap();
        std::fs::write(&file, "").unwrap();
        assert_eq!(detect(&p).unwrap(), Source::File(file));
    }

    #[test]
    fn a_given_folder_is_the_only_place_looked_at() {
        let (root, mut p) = machine(&[("sys_vendor", "Amazon EC2")]);
        p.user_data_dir = Some(root.path().join("seed"));
        assert!(detect(&p).unwrap_err().to_string().contains("seed/user-data"));
        std::fs::create_dir(root.path().join("seed")).unwrap();
        std::fs::write(root.path().join("seed/user-data"), "").unwrap();
        assert_eq!(detect(&p).unwrap(), Source::File(root.path().join("seed/user-data")));
    }

    #[test]
    fn a_lone_file_that_grows_meanwhile_is_not_taken() {
        let (root, p) = machine(&[]);
        let file = root.path().join("user-data");
        std::fs::write(&file, "a").unwrap();
        let grower = std::thread::spawn({
            let file = file.clone();
            let stop = p.cancel.clone();
            move || {
                let mut size = 0usize;
                while !stop.wait(Duration::from_millis(1)) {
                    size += 1;
                    std::fs::write(&file, "a".repeat(size)).unwrap();
                }
            }
        });
        let reader = Provisioner::new(p.paths.clone());
        let result = read_settled(&file, &reader);
        p.cancel.cancel();
        grower.join().unwrap();
        assert!(result.unwrap_err().to_string().contains("still being written"));
        assert!(read_settled(&file, &reader).is_ok());
    }
}
