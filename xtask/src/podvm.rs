//! Builds images of pod VMs from packages of the distribution, without mounting anything.
//!
//! The flavour "tiny" is a kernel and an initramfs; there is no other file system. It is for tests and for trying
//! things out: nothing in it is measured or attested.

mod cpio;
mod disk;
pub(crate) mod elf;
mod modules;
mod packages;
mod tree;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::{Arg, ArgMatches, Command};

use crate::command::Run;
use crate::context::Context;
use crate::inputs::Digest;
use crate::{programs, setup};

/// The kernel's command line. The last console is the one that process 1 writes to.
const COMMAND_LINE: &str = "console=tty0 console=ttyS0,115200 quiet loglevel=4 panic=10 random.trust_cpu=on";
/// What these sources do is part of an image as well.
const SOURCES: &[&str] = &[
    include_str!("podvm.rs"),
    include_str!("podvm/cpio.rs"),
    include_str!("podvm/dhcp-event.sh"),
    include_str!("podvm/disk.rs"),
    include_str!("podvm/modules.rs"),
    include_str!("podvm/tree.rs"),
];
/// The only architecture whose boot programs are known here.
const ARCHITECTURE: &str = "x86_64";

/// The form of an image.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Format {
    /// A disk that takes no more room than its content.
    #[default]
    Qcow2,
    /// A disk as it is.
    Raw,
    /// A folder with `vmlinuz`, `initrd` and `cmdline`, to be started without a boot program.
    Initrd,
}

impl Format {
    const NAMES: [&'static str; 3] = ["qcow2", "raw", "initrd"];

    fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    fn from_name(name: &str) -> Self {
        match name {
            "raw" => Self::Raw,
            "initrd" => Self::Initrd,
            _ => Self::Qcow2,
        }
    }
}

/// What to build.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// The agent; the test agent when unset.
    pub(crate) agent: Option<PathBuf>,
    /// The form.
    pub(crate) format: Format,
    /// Where to put it; the cache when unset.
    pub(crate) output: Option<PathBuf>,
}

/// An image that was built, or was there already.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// The file, or the folder of kernel and initramfs.
    pub(crate) path: PathBuf,
}

impl Options {
    /// Reads the command line of `podvm build`.
    pub(crate) fn from_matches(matches: &ArgMatches) -> Self {
        let path = |name: &str| matches.get_one::<PathBuf>(name).cloned();
        let format = matches.get_one::<String>("format").expect("it has a default");
        Self { agent: path("agent"), format: Format::from_name(format), output: path("output") }
    }
}

/// The subcommand.
pub(crate) fn command() -> Command {
    let path = |name: &'static str, help: &'static str| {
        let parser = clap::value_parser!(PathBuf);
        Arg::new(name).long(name).value_name("PATH").value_parser(parser).help(help)
    };
    let choice = |name: &'static str, values: &'static [&'static str], default: &'static str| {
        Arg::new(name).long(name).value_name("NAME").value_parser(values.to_vec()).default_value(default)
    };
    let build = Command::new("build")
        .about("Builds an image from packages of Debian, without mounting anything")
        .arg(choice("flavour", &["tiny"], "tiny").help("What is in it: tiny is a kernel and an initramfs"))
        .arg(choice("arch", &["x86_64", "aarch64", "s390x"], ARCHITECTURE).help("Architecture of the image"))
        .arg(
            choice("format", &Format::NAMES, "qcow2")
                .help("A disk, or kernel and initramfs beside each other"),
        )
        .arg(path("agent", "Put this agent into it in place of the test agent"))
        .arg(path("output", "Write it here; it is kept in the cache as well"));
    Command::new("podvm")
        .about("Works on images of pod VMs")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(build)
}

/// Runs `podvm build`.
///
/// # Errors
///
/// As [`build`]; also for an architecture other than that of this machine.
pub(crate) fn run(context: &Context, matches: &ArgMatches) -> Result<()> {
    let arch = matches.get_one::<String>("arch").expect("it has a default");
    ensure!(
        arch == ARCHITECTURE && arch == std::env::consts::ARCH,
        "an image for {arch} cannot be built on {}: images are built for {ARCHITECTURE}, on a machine of that kind",
        std::env::consts::ARCH
    );
    let options = Options::from_matches(matches);
    let image = build(context, &options)?;
    println!("{}", image.path.display());
    Ok(())
}

fn check_agent(agent: &Path) -> Result<()> {
    let file =
        std::fs::metadata(agent).with_context(|| format!("cannot find --agent {}", agent.display()))?;
    ensure!(file.is_file(), "--agent {} is not a file", agent.display());
    Ok(())
}

/// Builds an image, or finds it in the cache when nothing that goes into it has changed.
///
/// # Errors
///
/// [`setup::Missing`] when programs or packages are missing, and when a step fails.
pub(crate) fn build(context: &Context, options: &Options) -> Result<Image> {
    ensure!(
        std::env::consts::ARCH == ARCHITECTURE,
        "images are built for {ARCHITECTURE}, and this machine is {}",
        std::env::consts::ARCH
    );
    // Before minutes go into programs.
    options.agent.as_deref().map_or(Ok(()), check_agent)?;
    setup::install(context, setup::Need::Image)?;
    let guest = programs::build_guest(context)?;
    let start = Instant::now();
    let packages = packages::get(context)?;
    let own = guest.folder.join("test-agent");
    let agent = options.agent.as_deref().unwrap_or(&own);
    let key = key(&packages, &guest, agent, options.format)?;
    let images = context.cache.join("podvm/images");
    std::fs::create_dir_all(&images).with_context(|| format!("cannot make {}", images.display()))?;
    let kept = images.join(format!("podvm-tiny-{key}.{}", options.format.name()));
    let found = kept.exists();
    if !found {
        make(context, &packages, &guest, agent, options.format, &kept)?;
        forget_old(&images, &kept)?;
    }
    let path = match &options.output {
        Some(output) => {
            copy(&kept, output)?;
            output.clone()
        }
        None => kept,
    };
    let (verb, seconds) = (if found { "unchanged" } else { "built" }, start.elapsed().as_secs_f64());
    let size = size_of(&path)? as f64 / 1e6;
    context.say(format!("image of flavour tiny: {verb} in {seconds:.1} s, {size:.1} MB, {}", path.display()));
    Ok(Image { path })
}

/// Depends on all that goes into an image.
fn key(
    packages: &[packages::Package],
    guest: &programs::Guest,
    agent: &Path,
    format: Format,
) -> Result<String> {
    let mut digest = SOURCES.iter().fold(Digest::new(), |digest, source| digest.text(source));
    digest = digest.text(format.name());
    for package in packages {
        digest = digest.text(&package.folder.to_string_lossy());
    }
    let mut files: Vec<PathBuf> = programs::GUEST.iter().map(|name| guest.folder.join(name)).collect();
    files.push(agent.to_owned());
    if format != Format::Initrd {
        files.extend([disk::MBR, disk::EFI].map(PathBuf::from));
    }
    for sum in sums(&files)? {
        digest = digest.text(&sum);
    }
    Ok(digest.short())
}

/// Asks for the sums of files, of which there are tens of megabytes: our own code is not optimised.
fn sums(files: &[PathBuf]) -> Result<Vec<String>> {
    let text = Run::new("sha256sum").arg("--").args(files).stdout()?;
    let sums: Vec<String> =
        text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    ensure!(sums.len() == files.len(), "sha256sum answered for {} of {} files", sums.len(), files.len());
    Ok(sums)
}

/// Makes the image under a name that it gets last, so that a build that was killed leaves none.
fn make(
    context: &Context,
    packages: &[packages::Package],
    guest: &programs::Guest,
    agent: &Path,
    format: Format,
    path: &Path,
) -> Result<()> {
    let kernel = tree::kernel_image(&packages[0])?;
    let modules = modules::choose(&tree::modules_folder(&packages[0])?)?;
    let tree = tree::Tree::assemble(packages, &modules, guest, agent)?;
    let initramfs = disk::compress(&tree.archive())?;
    let parent = path.parent().context("an image lies in a folder")?;
    let work = tempfile::Builder::new().prefix(".half-").tempdir_in(parent)?;
    let done = work.path().join("done");
    if format == Format::Initrd {
        std::fs::create_dir(&done)?;
        std::fs::write(done.join("vmlinuz"), &kernel)?;
        std::fs::write(done.join("initrd"), &initramfs)?;
        std::fs::write(done.join("cmdline"), COMMAND_LINE)?;
    } else {
        let raw = work.path().join("raw");
        let boot = disk::Boot { kernel: &kernel, initramfs: &initramfs, command_line: COMMAND_LINE };
        disk::write(context, &raw, &boot)?;
        match format {
            Format::Qcow2 => disk::to_qcow2(&raw, &done)?,
            _ => std::fs::rename(&raw, &done)?,
        }
    }
    match std::fs::rename(&done, path) {
        // Another build of the same image was faster.
        Err(_) if path.exists() => Ok(()),
        result => result.with_context(|| format!("cannot make {}", path.display())),
    }
}

/// Keeps the newest images; each has some tens of megabytes.
fn forget_old(images: &Path, newest: &Path) -> Result<()> {
    const KEPT: usize = 8;
    let mut all: Vec<_> = std::fs::read_dir(images)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("podvm-") && entry.path() != newest)
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    all.sort();
    for (_, path) in all.iter().rev().skip(KEPT - 1) {
        let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = |from: &Path, to: &Path| {
        std::fs::copy(from, to).map(drop).with_context(|| format!("cannot write {}", to.display()))
    };
    if !from.is_dir() {
        return copied(from, to);
    }
    std::fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in std::fs::read_dir(from)?.flatten() {
        copied(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

fn size_of(path: &Path) -> Result<u64> {
    if !path.is_dir() {
        return Ok(path.metadata()?.len());
    }
    std::fs::read_dir(path)?.flatten().map(|entry| Ok(entry.metadata()?.len())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_says_what_is_built() {
        let parse = |args: &[&str]| {
            let matches = command().try_get_matches_from(args).unwrap();
            Options::from_matches(matches.subcommand_matches("build").unwrap())
        };
        let options = parse(&["podvm", "build", "--flavour", "tiny", "--format", "initrd", "--output", "x"]);
        assert_eq!((options.format, options.output), (Format::Initrd, Some("x".into())));
        assert_eq!(parse(&["podvm", "build"]).format, Format::Qcow2);
        assert!(command().try_get_matches_from(["podvm", "build", "--flavour", "huge"]).is_err());
        for name in Format::NAMES {
            assert_eq!(Format::from_name(name).name(), name);
        }
    }

    #[test]
    fn an_agent_that_is_no_file_is_named_with_its_option() {
        let dir = tempfile::tempdir().unwrap();
        let none = check_agent(&dir.path().join("none")).unwrap_err();
        assert!(format!("{none:#}").contains("--agent") && format!("{none:#}").contains("none"), "{none:#}");
        assert!(check_agent(dir.path()).unwrap_err().to_string().contains("is not a file"));
        let file = dir.path().join("agent");
        std::fs::write(&file, "").unwrap();
        check_agent(&file).unwrap();
    }

    #[test]
    fn a_changed_file_changes_its_sum_and_its_place_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["a", "b", "c"].map(|name| dir.path().join(name));
        for (file, text) in files.iter().zip(["one", "one", "two"]) {
            std::fs::write(file, text).unwrap();
        }
        let sums = sums(&files).unwrap();
        assert_eq!(sums[0], sums[1]);
        assert_ne!(sums[0], sums[2]);
        assert!(super::sums(&[dir.path().join("none")]).is_err());
    }

    #[test]
    fn old_images_go_and_the_new_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..12 {
            let file = std::fs::File::create(dir.path().join(format!("podvm-tiny-{number}.raw"))).unwrap();
            let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number);
            file.set_modified(time).unwrap();
        }
        let newest = dir.path().join("podvm-tiny-0.raw");
        forget_old(dir.path(), &newest).unwrap();
        assert!(newest.exists(), "the one that was just made, whatever its time");
        assert!(dir.path().join("podvm-tiny-11.raw").exists());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 8);
    }
}
