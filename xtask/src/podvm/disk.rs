//! Makes a disk that both BIOS and UEFI start, without mounting anything.
//!
//! The first partition has a FAT file system. A BIOS runs the boot code of the disk, which runs SYSLINUX in the
//! partition; UEFI runs systemd-boot from the path for disks that are not known yet. Both load the same kernel and
//! the same initramfs, so the disk holds them once. A root of its own is the second partition.

use std::io::{Cursor, Read, Write};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};

use crate::command::Run;
use crate::context::Context;

const SECTOR: usize = 512;
/// The partition starts at one megabyte, as partitioning programs have it.
const START: usize = 1 << 20;
/// Room for the boot programs and what the file system itself takes.
const SLACK: usize = 4 << 20;
/// Smallest disk: FAT16 wants enough clusters.
const SMALLEST: usize = 32 << 20;
const SECTORS_PER_TRACK: u16 = 63;
const HEADS: u16 = 255;
/// Type of an EFI system partition; a BIOS looks at the active flag only.
const EFI_SYSTEM: u8 = 0xef;
const ACTIVE: u8 = 0x80;
const LINUX: u8 = 0x83;
/// Partitions begin at whole megabytes.
const ALIGNED: usize = 1 << 20;

/// Boot code of the disk, for a BIOS.
pub(crate) const MBR: &str = "/usr/lib/syslinux/mbr/mbr.bin";
/// The boot program for UEFI.
pub(crate) const EFI: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";

/// What a disk starts.
#[derive(Debug)]
pub(crate) struct Boot<'a> {
    /// The kernel.
    pub(crate) kernel: &'a [u8],
    /// Its first file system.
    pub(crate) initramfs: &'a [u8],
    /// Its command line.
    pub(crate) command_line: &'a str,
    /// The root that the initramfs looks for; empty where the initramfs is all there is.
    pub(crate) root: &'a [u8],
}

/// Writes a raw disk to `path`.
///
/// # Errors
///
/// When a boot program is missing or a step fails.
pub(crate) fn write(context: &Context, path: &Path, boot: &Boot<'_>) -> Result<()> {
    let read = |path: &str| std::fs::read(path).with_context(|| format!("cannot read {path}"));
    let (mbr, efi) = (read(MBR)?, read(EFI)?);
    let content = boot.kernel.len() + boot.initramfs.len() + efi.len();
    let end = (START + content + SLACK).next_multiple_of(ALIGNED).max(SMALLEST);
    let size = end + boot.root.len().next_multiple_of(ALIGNED);
    let mut disk = vec![0; size];
    disk[..SECTOR].copy_from_slice(&first_sector(&mbr, end, size)?);
    fill(&mut disk[START..end], boot, &efi).context("cannot write the file system")?;
    disk[end..end + boot.root.len()].copy_from_slice(boot.root);
    std::fs::write(path, &disk).with_context(|| format!("cannot write {}", path.display()))?;
    install_syslinux(context, path)
}

/// The boot code and a table: a partition up to `end`, and another up to the end of the disk where that is more.
fn first_sector(code: &[u8], end: usize, size: usize) -> Result<[u8; SECTOR]> {
    const TABLE: usize = 446;
    let mut sector = [0; SECTOR];
    ensure!(code.len() <= 440, "the boot code in {MBR} does not fit into a disk's first sector");
    sector[..code.len()].copy_from_slice(code);
    let partitions = [(ACTIVE, EFI_SYSTEM, START, end), (0, LINUX, end, size)];
    for (number, (active, kind, from, to)) in
        partitions.into_iter().filter(|(.., from, to)| from < to).enumerate()
    {
        let start = u32::try_from(from / SECTOR)?;
        let length = u32::try_from((to - from) / SECTOR)?;
        let entry = &mut sector[TABLE + 16 * number..][..16];
        entry[0] = active;
        entry[1..4].copy_from_slice(&cylinders(start));
        entry[4] = kind;
        entry[5..8].copy_from_slice(&cylinders(start + length - 1));
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..].copy_from_slice(&length.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    Ok(sector)
}

/// Head, sector and cylinder of a sector, as old programs count.
fn cylinders(sector: u32) -> [u8; 3] {
    let (per_track, heads) = (u32::from(SECTORS_PER_TRACK), u32::from(HEADS));
    let (cylinder, rest) = (sector / (per_track * heads), sector % (per_track * heads));
    let (head, sector) = (rest / per_track, rest % per_track + 1);
    // The two upper bits of the cylinder stand above those of the sector.
    [head as u8, (sector | ((cylinder >> 2) & 0xc0)) as u8, cylinder as u8]
}

/// Makes the file system with everything that is loaded from it.
fn fill(partition: &mut [u8], boot: &Boot<'_>, efi: &[u8]) -> Result<()> {
    let line = boot.command_line;
    let syslinux = format!(
        "DEFAULT podvm\nPROMPT 0\nTIMEOUT 0\nLABEL podvm\n KERNEL /vmlinuz\n INITRD /initrd\n APPEND {line}\n"
    );
    let entry = format!("title pod VM\nlinux /vmlinuz\ninitrd /initrd\noptions {line}\n");
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat16)
        .bytes_per_cluster(4096)
        .sectors_per_track(SECTORS_PER_TRACK)
        .heads(HEADS)
        // A number of its own would differ from one build to the next.
        .volume_id(0x706f_6476)
        .volume_label(*b"PODVM      ");
    format_volume(Cursor::new(&mut *partition), options)?;
    // How many sectors lie before the file system; boot code that is not told by the disk's looks here.
    partition[28..32].copy_from_slice(&u32::try_from(START / SECTOR)?.to_le_bytes());
    let fat = FileSystem::new(Cursor::new(&mut *partition), FsOptions::new())?;
    let root = fat.root_dir();
    for folder in ["EFI", "EFI/BOOT", "loader", "loader/entries"] {
        root.create_dir(folder)?;
    }
    let files: [(&str, &[u8]); 6] = [
        ("vmlinuz", boot.kernel),
        ("initrd", boot.initramfs),
        ("syslinux.cfg", syslinux.as_bytes()),
        ("EFI/BOOT/BOOTX64.EFI", efi),
        ("loader/loader.conf", b"timeout 0\ndefault podvm.conf\neditor no\n"),
        ("loader/entries/podvm.conf", entry.as_bytes()),
    ];
    for (name, bytes) in files {
        let mut file = root.create_file(name).with_context(|| format!("make {name}"))?;
        file.write_all(bytes).with_context(|| format!("write {name}"))?;
    }
    Ok(())
}

/// Puts SYSLINUX into the partition.
fn install_syslinux(context: &Context, disk: &Path) -> Result<()> {
    context
        .program("syslinux")
        .args(["--offset", &START.to_string(), "--install"])
        .arg(disk)
        // Its tools put the time into the file system, and refuse geometries that nothing uses any more.
        .env("SOURCE_DATE_EPOCH", "315532800")
        .env("TZ", "UTC")
        .env("MTOOLS_SKIP_CHECK", "1")
        .stdout()
        .map(drop)
}

/// Compresses an initramfs with zstd: at level 9 this takes a second, and a machine under software emulation unpacks
/// it half a second faster than gzip.
///
/// # Errors
///
/// When `zstd` fails.
pub(crate) fn compress(archive: &[u8]) -> Result<Vec<u8>> {
    use std::process::{Command, Stdio};

    let mut zstd = Command::new("zstd")
        // One thread: with more the bytes depend on their number.
        .args(["-q", "-9", "--single-thread", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start zstd")?;
    let (mut input, mut output) =
        (zstd.stdin.take().expect("it is a pipe"), zstd.stdout.take().expect("it is a pipe"));
    let mut compressed = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(move || input.write_all(archive));
        output.read_to_end(&mut compressed).context("cannot read from zstd")?;
        writer.join().expect("writing does not panic").context("cannot write to zstd")
    })?;
    ensure!(zstd.wait()?.success(), "zstd failed");
    Ok(compressed)
}

/// Turns a raw disk into the format of QEMU.
///
/// # Errors
///
/// When `qemu-img` fails.
pub(crate) fn to_qcow2(raw: &Path, qcow2: &Path) -> Result<()> {
    let run = Run::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(raw).arg(qcow2);
    run.stdout().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sector_has_one_active_partition_up_to_the_end() {
        let sector = first_sector(&[0xfa; 440], 64 << 20, 64 << 20).unwrap();
        assert_eq!(sector[439], 0xfa);
        assert_eq!((sector[446], sector[450]), (ACTIVE, EFI_SYSTEM));
        assert_eq!(sector[454..458], 2048_u32.to_le_bytes());
        assert_eq!(sector[458..462], (63 * 2048_u32).to_le_bytes());
        assert_eq!(sector[462..510], [0; 48], "no other partition");
        assert_eq!(sector[510..], [0x55, 0xaa]);
        assert!(first_sector(&[0; 441], 64 << 20, 64 << 20).is_err());
    }

    #[test]
    fn a_root_is_a_second_partition_that_nothing_starts_from() {
        let sector = first_sector(&[0; 440], 64 << 20, 96 << 20).unwrap();
        assert_eq!(sector[458..462], (63 * 2048_u32).to_le_bytes());
        assert_eq!((sector[462], sector[466]), (0, LINUX));
        assert_eq!(sector[470..474], (64 * 2048_u32).to_le_bytes());
        assert_eq!(sector[474..478], (32 * 2048_u32).to_le_bytes());
        assert_eq!(sector[478..510], [0; 32], "no third one");
    }

    #[test]
    fn sectors_are_counted_as_old_programs_do() {
        assert_eq!(cylinders(0), [0, 1, 0]);
        assert_eq!(cylinders(2048), [32, 33, 0]);
        assert_eq!(cylinders(63 * 255), [0, 1, 1]);
        assert_eq!(cylinders(63 * 255 * 300), [0, 0x41, 44]);
    }

    #[test]
    fn both_boot_programs_find_the_same_kernel_and_command_line() {
        let boot = Boot {
            kernel: b"kernel",
            initramfs: b"initramfs",
            command_line: "console=ttyS0 quiet",
            root: &[],
        };
        let mut first = vec![0; 32 << 20];
        fill(&mut first, &boot, b"efi").unwrap();
        let mut second = vec![0; 32 << 20];
        fill(&mut second, &boot, b"efi").unwrap();
        assert!(first == second, "the same inputs give the same bytes");

        let fat = FileSystem::new(Cursor::new(first), FsOptions::new()).unwrap();
        let read = |name: &str| {
            let mut text = String::new();
            fat.root_dir().open_file(name).unwrap().read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(fat.fat_type(), FatType::Fat16);
        assert_eq!((read("vmlinuz").as_str(), read("initrd").as_str()), ("kernel", "initramfs"));
        assert_eq!(read("efi/boot/bootx64.efi"), "efi");
        for config in ["syslinux.cfg", "loader/entries/podvm.conf"] {
            let text = read(config);
            assert!(text.contains("console=ttyS0 quiet") && text.contains("/vmlinuz"), "{text}");
            assert!(text.contains("/initrd"), "{text}");
        }
    }
}
