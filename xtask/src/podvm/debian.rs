//! The flavour "debian": a whole system with systemd, on a root that nothing can write to.
//!
//! Packages come from a mirror or a snapshot of the distribution, through mmdebstrap. What they make is kept as an archive, by
//! the sums of the lists of packages; our own files are merged into it, and the result becomes a squashfs. The first file
//! system puts memory over it. The same packages, programs and options give the same bytes.

mod base;
mod merge;
mod units;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use super::tree::{self, Tree};
use super::{Format, Options, disk, modules, sums};
use crate::context::Context;
use crate::inputs::Digest;
use crate::{programs, setup};

pub(crate) use base::Source;

/// What these sources do is part of an image as well.
const SOURCES: &[&str] = &[
    include_str!("debian.rs"),
    include_str!("debian/init.sh"),
    include_str!("debian/merge.rs"),
    include_str!("debian/units.rs"),
    include_str!("disk.rs"),
    include_str!("modules.rs"),
];
/// First process of the first file system.
const INIT: &str = include_str!("debian/init.sh");
/// Drivers of what a root can lie on, with the file systems of the root.
const BOOT_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "ata_piix",
    "nvme",
    "hv_vmbus",
    "hv_storvsc",
    "xen_blkfront",
    "squashfs",
    "overlay",
];
/// How many bytes of a squashfs its first block has. It counts and places all the rest, so its sum names one root.
const FIRST_BLOCK: usize = 96;
/// Programs of confidential containers, where somebody has them.
const COMPONENTS: [&str; 3] = ["attestation-agent", "confidential-data-hub", "api-server-rest"];

/// Builds the image, or finds it in the cache, and returns where it is and whether it was there.
///
/// # Errors
///
/// [`setup::Missing`] when programs are missing; when the mirror cannot be reached, and when a step fails.
pub(super) fn build(context: &Context, options: &Options) -> Result<(PathBuf, bool)> {
    let source = options.source.clone().unwrap_or_default();
    source.check()?;
    let components = options.components.as_deref().map(components_in).transpose()?.unwrap_or_default();
    setup::install(context, setup::Need::Image)?;
    setup::install(context, setup::Need::Debian)?;
    let guest = programs::build_guest(context)?;
    let own = guest.folder.join("test-agent");
    let agent = options.agent.clone().unwrap_or(own);
    let base = base::get(context, &source)?;

    let mut programs: Vec<(String, PathBuf)> = ["process-user-data", "agent-protocol-forwarder"]
        .map(|name| (name.to_owned(), guest.folder.join(name)))
        .into();
    programs.push(("kata-agent".to_owned(), agent));
    programs.extend(components.into_iter().map(|path| (file_name(&path), path)));
    let mut digest = SOURCES.iter().fold(Digest::new(), |digest, source| digest.text(source));
    digest = digest.text(&base.key).text(options.format.name()).text(&command_line(options.console, ""));
    for (name, text, _) in units::FILES {
        digest = digest.text(name).text(text);
    }
    let mut files: Vec<PathBuf> = programs.iter().map(|(_, path)| path.clone()).collect();
    if options.format != Format::Initrd {
        files.extend([disk::MBR, disk::EFI].map(PathBuf::from));
    }
    for sum in programs.iter().map(|(name, _)| name.clone()).chain(sums(&files)?) {
        digest = digest.text(&sum);
    }
    let name = format!("podvm-debian-{}.{}", digest.short(), options.format.name());
    super::keep(context, &name, |done| make(context, &base, &programs, options, done))
}

fn components_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let all = COMPONENTS.map(|name| folder.join(name));
    let found: Vec<PathBuf> = all.into_iter().filter(|path| path.is_file()).collect();
    ensure!(
        !found.is_empty(),
        "--components {} has none of {}: build them, or leave the option out",
        folder.display(),
        COMPONENTS.join(", ")
    );
    Ok(found)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The kernel's command line. Unless a console is asked for nothing is written anywhere: what a guest says may be of use to
/// who reads its console from outside, and that is the host.
fn command_line(console: bool, root: &str) -> String {
    let shown = if console {
        "console=tty0 console=ttyS0,115200 loglevel=4 systemd.journald.forward_to_console=1"
    } else {
        "console=null loglevel=0 systemd.show_status=no"
    };
    format!("{shown} quiet panic=10 net.ifnames=0 random.trust_cpu=on podvm.root={root}")
}

fn make(
    context: &Context,
    base: &base::Base,
    programs: &[(String, PathBuf)],
    options: &Options,
    done: &Path,
) -> Result<()> {
    let mut own = units::nodes();
    for (name, path) in programs {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        own.insert(format!("usr/local/bin/{name}"), super::cpio::Node::File(bytes, true));
    }
    let root = squash(base, &own)?;
    let sum = Sha256::digest(root.get(..FIRST_BLOCK).context("mksquashfs made nothing")?);
    let line =
        command_line(options.console, &sum.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let package = super::packages::Package { file: "linux-image".to_owned(), folder: base.folder.clone() };
    let kernel = tree::kernel_image(&package)?;
    let chosen = modules::choose(&tree::modules_folder(&package)?, BOOT_MODULES, &[])?;
    let initramfs = disk::compress(&Tree::first(&package, &chosen, INIT, BOOT_MODULES)?.archive())?;
    if options.format == Format::Initrd {
        std::fs::create_dir(done)?;
        for (name, bytes) in [
            ("vmlinuz", &kernel),
            ("initrd", &initramfs),
            ("root.squashfs", &root),
            ("cmdline", &line.into_bytes()),
        ] {
            std::fs::write(done.join(name), bytes).with_context(|| format!("cannot write {name}"))?;
        }
        return Ok(());
    }
    let raw = done.with_extension("raw");
    let boot = disk::Boot { kernel: &kernel, initramfs: &initramfs, command_line: &line, root: &root };
    disk::write(context, &raw, &boot)?;
    match options.format {
        Format::Qcow2 => disk::to_qcow2(&raw, done),
        _ => std::fs::rename(&raw, done).context("cannot rename the disk"),
    }
}

/// Merges and compresses. At this level it takes some seconds, and is within a few per cent of the smallest.
fn squash(base: &base::Base, own: &merge::Nodes) -> Result<Vec<u8>> {
    let file = tempfile::Builder::new().prefix("root").tempdir()?;
    let path = file.path().join("squashfs");
    let mut child = Command::new("mksquashfs")
        .arg("-")
        .arg(&path)
        .args(["-tar", "-noappend", "-no-progress", "-quiet", "-comp", "zstd", "-Xcompression-level", "12"])
        .args(["-root-mode", "0755", "-root-uid", "0", "-root-gid", "0"])
        // Every time in it is this one.
        .env("SOURCE_DATE_EPOCH", base.epoch.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start mksquashfs")?;
    let mut input = std::io::BufWriter::with_capacity(1 << 20, child.stdin.take().expect("it is a pipe"));
    let mut errors = child.stderr.take().expect("it is a pipe");
    let said = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = errors.read_to_string(&mut text);
        text
    });
    let archive = std::fs::File::open(base.folder.join(base::ARCHIVE)).context("the base has no archive")?;
    let merged = merge::merge(std::io::BufReader::new(archive), own, base.epoch, &mut input);
    let merged = merged.and_then(|()| input.flush().context("cannot write to mksquashfs"));
    drop(input);
    let status = child.wait()?;
    let said = said.join().unwrap_or_default();
    ensure!(status.success(), "mksquashfs failed ({status}): {}", said.trim());
    merged?;
    std::fs::read(&path).context("mksquashfs made no file")
}

/// Builds the base twice and compares, for the stage of the test.
///
/// # Errors
///
/// When the second base, or the image over it, has other bytes.
pub(crate) fn twice(context: &Context, source: &Source) -> Result<String> {
    let own = units::nodes();
    let first = base::get(context, source)?;
    let folder = tempfile::tempdir()?;
    let second = base::make(context, source, &first.key, folder.path())?;
    let sum = |base: &base::Base| -> Result<String> {
        let sums = sums(&[base.folder.join(base::ARCHIVE)])?;
        Ok(sums.concat())
    };
    ensure!(
        sum(&first)? == sum(&second)?,
        "two bases of the same packages differ: {}",
        first.folder.display()
    );
    let (one, other) = (squash(&first, &own)?, squash(&second, &own)?);
    ensure!(one == other, "two roots of the same base differ");
    Ok(format!("two builds of the root are the same {} bytes", one.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_to_a_console_unless_asked() {
        let silent = command_line(false, "ab");
        assert!(
            silent.contains("console=null") && !silent.contains("ttyS0") && !silent.contains("tty0"),
            "{silent}"
        );
        let loud = command_line(true, "ab");
        assert!(loud.contains("console=ttyS0,115200") && loud.contains("forward_to_console=1"), "{loud}");
        for line in [silent, loud] {
            assert!(line.ends_with("podvm.root=ab"), "{line}");
        }
    }

    #[test]
    fn a_folder_without_any_component_is_named_with_its_option() {
        let dir = tempfile::tempdir().unwrap();
        let error = components_in(dir.path()).unwrap_err().to_string();
        assert!(error.contains("--components") && error.contains("attestation-agent"), "{error}");
        std::fs::write(dir.path().join("confidential-data-hub"), "").unwrap();
        let found = components_in(dir.path()).unwrap();
        assert_eq!(found, [dir.path().join("confidential-data-hub")]);
    }

    #[test]
    fn the_first_process_looks_for_the_root_as_the_command_line_names_it() {
        assert!(command_line(false, "x").contains("podvm.root="));
        for part in
            ["podvm.root=*)", &format!("bs={FIRST_BLOCK} "), "sha256sum", "-t overlay", "ro,nodev,nosuid"]
        {
            assert!(INIT.contains(part), "{part}");
        }
        // A shell for whoever sits at the console would be a way into the guest.
        assert!(!INIT.contains("exec sh") && !INIT.contains("setsid") && !INIT.contains("getty"));
    }
}
