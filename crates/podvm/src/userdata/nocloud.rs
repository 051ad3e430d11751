//! A disk labelled `cidata` that carries a file `user-data`.
//!
//! The disk is read here rather than mounted: it needs no kernel driver for ISO 9660 or FAT, no mount point to clean
//! up, and whatever the host put on the disk never reaches the kernel's file system code.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use tracing::debug;

use super::{MAX_USER_DATA, iso9660};
use crate::paths::Paths;

const LABEL: &str = "cidata";
const USER_DATA: &str = "user-data";
const META_DATA: &str = "meta-data";

/// Finds the disk: by the links udev makes when it runs, else by reading the labels of all block devices.
pub(super) fn find_disk(paths: &Paths) -> Option<PathBuf> {
    for label in ["cidata", "CIDATA"] {
        let link = paths.at("/dev/disk/by-label").join(label);
        if link.exists() {
            return Some(link);
        }
    }
    let mut names: Vec<_> = std::fs::read_dir(paths.at("/sys/class/block"))
        .ok()?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        // Memory disks hold nothing of the cloud's, and opening an empty floppy drive takes seconds.
        .filter(|name| !["loop", "ram", "zram", "fd"].iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    names.sort();
    names.into_iter().map(|name| paths.at("/dev").join(name)).find(|device| is_user_data_disk(device))
}

/// Whether a device carries the label of user data.
pub(crate) fn is_user_data_disk(device: &Path) -> bool {
    match label(device) {
        Ok(label) => label.is_some_and(|label| label.eq_ignore_ascii_case(LABEL)),
        Err(error) => {
            debug!(device = %device.display(), "cannot read the label: {error:#}");
            false
        }
    }
}

fn label(device: &Path) -> Result<Option<String>> {
    let mut file = File::open(device)?;
    if let Some(label) = iso9660::label(&mut file)? {
        return Ok(Some(label));
    }
    // Cheap test before the FAT reader looks at a large disk: a boot sector ends with 55 aa.
    let mut sector = [0; 512];
    file.seek(SeekFrom::Start(0))?;
    if file.read_exact(&mut sector).is_err() || sector[510..] != [0x55, 0xaa] {
        return Ok(None);
    }
    Ok(with_fat(device, |fat| {
        let from_root = fat.read_volume_label_from_root_dir()?;
        Ok(Some(from_root.unwrap_or_else(|| fat.volume_label()).trim().to_owned()))
    })
    .unwrap_or(None))
}

/// Reads `user-data` from the disk.
pub(super) fn read_user_data(device: &Path) -> Result<Vec<u8>> {
    read_file(device, USER_DATA)
}

/// Reads `meta-data` from the disk.
pub(super) fn read_meta_data(device: &Path) -> Result<Vec<u8>> {
    read_file(device, META_DATA)
}

fn read_file(device: &Path, name: &str) -> Result<Vec<u8>> {
    let mut file = File::open(device).with_context(|| format!("open {}", device.display()))?;
    if iso9660::label(&mut file)?.is_some() {
        return iso9660::read_root_file(&mut file, name, MAX_USER_DATA);
    }
    with_fat(device, |fat| {
        let mut content = Vec::new();
        fat.root_dir().open_file(name)?.take(MAX_USER_DATA + 1).read_to_end(&mut content)?;
        Ok(content)
    })
    .and_then(|content| {
        ensure!(content.len() as u64 <= MAX_USER_DATA, "{name} is larger than {MAX_USER_DATA} bytes");
        Ok(content)
    })
    .with_context(|| format!("read {name} from the FAT file system"))
}

fn with_fat<T>(device: &Path, f: impl FnOnce(&fatfs::FileSystem<ReadOnly>) -> io::Result<T>) -> Result<T> {
    let disk = ReadOnly(File::open(device)?);
    // The bytes are the host's, and the reader was not written for hostile ones: a panic is one more way to be
    // unreadable.
    catch_unwind(AssertUnwindSafe(|| {
        let fat = fatfs::FileSystem::new(disk, fatfs::FsOptions::new().update_accessed_date(false))?;
        f(&fat)
    }))
    .map_err(|_| anyhow!("the file system is damaged"))?
    .map_err(Into::into)
}

/// A disk that refuses every write; the FAT reader wants a writable type even for reading.
struct ReadOnly(File);

impl Read for ReadOnly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Seek for ReadOnly {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

impl Write for ReadOnly {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
