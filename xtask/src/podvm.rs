//! Builds images of pod VMs from packages of the distribution, without mounting anything.
//!
//! The flavour "debian" is a whole system, and the one to begin with for images that are used. The flavour "tiny" is a kernel and an initramfs; there is no other file system. It is for tests and for trying
//! things out: nothing in it is measured or attested.

mod cpio;
mod debian;
mod disk;
pub(crate) mod elf;
mod modules;
mod packages;
mod tree;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Arg, ArgMatches, Command};

use crate::command::Run;
use crate::context::Context;
use crate::inputs::Digest;
use crate::machines::Provider;
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

/// What is in an image.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Flavour {
    /// A guest.
    #[default]
    Tiny,
    /// A machine that one logs in to.
    Machine,
    /// A guest on a whole system.
    Debian,
}

impl Flavour {
    const NAMES: [&'static str; 3] = ["tiny", "machine", "debian"];

    fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    fn from_name(name: &str) -> Self {
        match name {
            "machine" => Self::Machine,
            "debian" => Self::Debian,
            _ => Self::Tiny,
        }
    }
}

/// What to build.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// What is in it.
    pub(crate) flavour: Flavour,
    /// The agent; the test agent when unset.
    pub(crate) agent: Option<PathBuf>,
    /// The form.
    pub(crate) format: Format,
    /// Where to put it; the cache when unset.
    pub(crate) output: Option<PathBuf>,
    /// Whether what the system says goes to its console.
    pub(crate) console: bool,
    /// A folder with the programs of confidential containers.
    pub(crate) components: Option<PathBuf>,
    /// Where packages come from; the flavours other than "debian" ask the apt of this machine.
    pub(crate) source: Option<debian::Source>,
}

/// An image that was built, or was there already.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// The file, or the folder of kernel and initramfs.
    pub(crate) path: PathBuf,
}

impl Options {
    /// Reads the command line of `podvm build`.
    pub(crate) fn from_matches(context: &Context, matches: &ArgMatches) -> Self {
        let path = |name: &str| matches.get_one::<PathBuf>(name).cloned();
        let format = matches.get_one::<String>("format").expect("it has a default");
        let flavour = matches.get_one::<String>("flavour").expect("it has a default");
        let text = |name: &str| matches.get_one::<String>(name).cloned();
        let source = debian::Source {
            mirror: text("mirror"),
            snapshot: text("snapshot"),
            epoch: context.source_date_epoch.clone(),
        };
        Self {
            flavour: Flavour::from_name(flavour),
            agent: path("agent"),
            format: Format::from_name(format),
            output: path("output"),
            console: matches.get_flag("console"),
            components: path("components"),
            source: Some(source),
        }
    }
}

impl Options {
    /// Refuses options that another flavour would leave aside.
    fn check_debian(&self) -> Result<()> {
        let source = self.source.clone().unwrap_or_default();
        let given = [
            ("console", self.console),
            ("components", self.components.is_some()),
            ("mirror", source.mirror.is_some()),
            ("snapshot", source.snapshot.is_some()),
        ];
        let other = given.iter().find(|(_, given)| *given && self.flavour != Flavour::Debian);
        match other {
            Some((name, _)) => bail!("--{name} is for --flavour debian, and this is {}", self.flavour.name()),
            None => Ok(()),
        }
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
        .arg(choice("flavour", &Flavour::NAMES, "tiny").help(
            "What is in it: a guest in memory (tiny), a server of SSH (machine), or a guest on a whole system (debian)",
        ))
        .arg(choice("arch", &["x86_64", "aarch64", "s390x"], ARCHITECTURE).help("Architecture of the image"))
        .arg(
            choice("format", &Format::NAMES, "qcow2")
                .help("A disk, or kernel and initramfs beside each other"),
        )
        .arg(path("agent", "Put this agent into it in place of the test agent"))
        .arg(path("output", "Write it here; it is kept in the cache as well"))
        .arg(
            Arg::new("console")
                .long("console")
                .action(clap::ArgAction::SetTrue)
                .help("Let a debian image write what it does to its serial port; nobody can log in there either"),
        )
        .arg(path("components", "Put attestation-agent, confidential-data-hub and api-server-rest of this folder into a debian image"))
        .arg(
            Arg::new("mirror")
                .long("mirror")
                .value_name("URL")
                .help("Where debian and debian-security lie, for a debian image [default: http://deb.debian.org]"),
        )
        .arg(Arg::new("snapshot").long("snapshot").value_name("TIME").help(
            "Take the packages of a moment such as 20260101T000000Z, from snapshot.debian.org unless --mirror names another",
        ));
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
    let options = Options::from_matches(context, matches);
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
    let flavour = options.flavour;
    ensure!(
        flavour != Flavour::Machine || options.agent.is_none(),
        "--agent is for --flavour tiny or debian: there is none in a machine that one logs in to"
    );
    options.check_debian()?;
    let start = Instant::now();
    let (kept, found) = if flavour == Flavour::Debian {
        debian::build(context, options)?
    } else {
        build_small(context, options)?
    };
    let path = match &options.output {
        Some(output) => {
            copy(&kept, output)?;
            output.clone()
        }
        None => kept,
    };
    let (verb, seconds) = (if found { "unchanged" } else { "built" }, start.elapsed().as_secs_f64());
    let size = size_of(&path)? as f64 / 1e6;
    let (flavour, place) = (flavour.name(), path.display());
    context.say(format!("image of flavour {flavour}: {verb} in {seconds:.1} s, {size:.1} MB, {place}"));
    Ok(Image { path })
}

/// Builds the root of the flavour "debian" twice and compares.
///
/// # Errors
///
/// When the two differ, and as [`build`].
pub(crate) fn twice(context: &Context) -> Result<String> {
    debian::twice(context, &debian::Source::default())
}

/// Builds an image of which everything is in memory.
fn build_small(context: &Context, options: &Options) -> Result<(PathBuf, bool)> {
    let flavour = options.flavour;
    setup::install(context, setup::Need::Image)?;
    let guest = programs::build_guest(context)?;
    let packages = packages::get(context, flavour)?;
    let own = match flavour {
        Flavour::Tiny => guest.folder.join("test-agent"),
        Flavour::Machine | Flavour::Debian => {
            // All of the image is in memory.
            let stripped = context.target.join("machine");
            programs::strip(&programs::build_testbed(context, Provider::Local)?, &stripped)?;
            stripped
        }
    };
    let program = options.agent.as_deref().unwrap_or(&own);
    let key = key(&packages, &guest, program, options.format)?;
    let name = format!("podvm-{}-{key}.{}", flavour.name(), options.format.name());
    keep(context, &name, |done| make(context, &packages, &guest, flavour, program, options.format, done))
}

/// Makes an image under a name that it gets last, so that a build that was killed leaves none; or finds it, and says so.
fn keep(context: &Context, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<(PathBuf, bool)> {
    let images = context.cache.join("podvm/images");
    std::fs::create_dir_all(&images).with_context(|| format!("cannot make {}", images.display()))?;
    let kept = images.join(name);
    if kept.exists() {
        return Ok((kept, true));
    }
    let work = tempfile::Builder::new().prefix(".half-").tempdir_in(&images)?;
    let done = work.path().join("done");
    make(&done)?;
    match std::fs::rename(&done, &kept) {
        // Another build of the same image was faster.
        Err(_) if kept.exists() => {}
        result => result.with_context(|| format!("cannot make {}", kept.display()))?,
    }
    forget_old(&images, &kept)?;
    Ok((kept, false))
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
    // The flavour is in the packages.
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

/// Makes the image.
fn make(
    context: &Context,
    packages: &[packages::Package],
    guest: &programs::Guest,
    flavour: Flavour,
    program: &Path,
    format: Format,
    done: &Path,
) -> Result<()> {
    let kernel = tree::kernel_image(&packages[0])?;
    let folder = tree::modules_folder(&packages[0])?;
    let modules = modules::choose(&folder, modules::NAMES, modules::FOLDERS)?;
    let tree = tree::Tree::assemble(packages, &modules, guest, flavour, program)?;
    let initramfs = disk::compress(&tree.archive())?;
    if format == Format::Initrd {
        std::fs::create_dir(done)?;
        std::fs::write(done.join("vmlinuz"), &kernel)?;
        std::fs::write(done.join("initrd"), &initramfs)?;
        std::fs::write(done.join("cmdline"), COMMAND_LINE)?;
        return Ok(());
    }
    let raw = done.with_extension("raw");
    let boot = disk::Boot { kernel: &kernel, initramfs: &initramfs, command_line: COMMAND_LINE, root: &[] };
    disk::write(context, &raw, &boot)?;
    match format {
        Format::Qcow2 => disk::to_qcow2(&raw, done),
        _ => std::fs::rename(&raw, done).context("cannot rename the disk"),
    }
}

/// Keeps the newest images; each has some tens of megabytes.
fn forget_old(images: &Path, newest: &Path) -> Result<()> {
    forget_old_of(images, newest, "podvm-", 8)
}

/// Keeps the newest entries of a kind.
fn forget_old_of(folder: &Path, newest: &Path, kind: &str, kept: usize) -> Result<()> {
    let mut all: Vec<_> = std::fs::read_dir(folder)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(kind) && entry.path() != newest)
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    all.sort();
    for (_, path) in all.iter().rev().skip(kept - 1) {
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
        let context = Context::from_process().unwrap();
        let parse = |args: &[&str]| {
            let matches = command().try_get_matches_from(args).unwrap();
            Options::from_matches(&context, matches.subcommand_matches("build").unwrap())
        };
        let options = parse(&["podvm", "build", "--flavour", "tiny", "--format", "initrd", "--output", "x"]);
        assert_eq!((options.format, options.output), (Format::Initrd, Some("x".into())));
        assert_eq!(parse(&["podvm", "build"]).format, Format::Qcow2);
        assert!(command().try_get_matches_from(["podvm", "build", "--flavour", "huge"]).is_err());
        for name in Format::NAMES {
            assert_eq!(Format::from_name(name).name(), name);
        }
        for name in Flavour::NAMES {
            assert_eq!(Flavour::from_name(name).name(), name);
        }
        let args = ["podvm", "build", "--flavour", "debian", "--console", "--snapshot", "20260101T000000Z"];
        let options = parse(&args);
        assert!(options.console && options.check_debian().is_ok());
        for option in
            [&["--console"][..], &["--mirror", "http://x"], &["--snapshot", "x"], &["--components", "/x"]]
        {
            let error =
                parse(&[&["podvm", "build"], option].concat()).check_debian().unwrap_err().to_string();
            assert!(error.contains(option[0]) && error.contains("--flavour debian"), "{error}");
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
