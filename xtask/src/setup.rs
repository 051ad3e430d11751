//! Installs what a task needs and says so; elsewhere prints the one line to run.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::command::Run;
use crate::context::Context;

/// What the programs are needed for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Need {
    /// The demo and the benchmark on the provider `local`.
    Demo,
    /// Building an image of a pod VM.
    Image,
    /// Programs that link to libraries of the system.
    Link,
    /// The demo and the benchmark on the provider `libvirt`; includes the three above.
    Libvirt,
    /// The emulator of EC2.
    Emulator,
    /// Building a Kubernetes API server; it is kept, so only who builds it needs this.
    Kubernetes,
    /// Building an image of a whole system, with [`Need::Image`]; it is kept as well.
    Debian,
    /// Programs for other architectures; their compilers take half a gigabyte.
    Targets,
    /// The tests; includes all the others but the three before.
    Tests,
}

impl Need {
    /// Whether whatever this is for uses what `other` uses.
    fn includes(self, other: Self) -> bool {
        match self {
            Self::Demo
            | Self::Image
            | Self::Link
            | Self::Emulator
            | Self::Kubernetes
            | Self::Debian
            | Self::Targets => self == other,
            Self::Libvirt => matches!(other, Self::Demo | Self::Image | Self::Link | Self::Libvirt),
            Self::Tests => !matches!(other, Self::Kubernetes | Self::Debian | Self::Targets),
        }
    }
}

/// How to see whether a package is there. Packages are not asked for by name: other distributions name them otherwise.
#[derive(Clone, Copy, Debug)]
enum Sign {
    /// A program on the search path.
    Program(&'static str),
    /// A library that pkg-config knows, with what is needed to link to it.
    Library(&'static str),
    /// A file; `{arch}` stands for the architecture of this machine.
    File(&'static str),
}

/// What a task uses, the Debian package that has it, and what it is for.
struct Tool {
    sign: Sign,
    package: &'static str,
    why: &'static str,
    need: Need,
}

const TOOLS: &[Tool] = &[
    program("ip", "iproute2", "makes the stand-in node and pod namespaces", Need::Demo),
    program("tc", "iproute2", "looks for traffic rules that were left behind", Need::Demo),
    program("nft", "nftables", "looks for firewall rules that were left behind", Need::Demo),
    program("nsenter", "util-linux", "starts programs in a namespace", Need::Demo),
    program("git", "git", "tells which files changed", Need::Demo),
    program("cc", "gcc", "compiles the cryptography library and links", Need::Demo),
    program("apt-get", "apt", "downloads the packages of which an image is made", Need::Image),
    program("dpkg-deb", "dpkg", "unpacks the packages of which an image is made", Need::Image),
    program("qemu-img", "qemu-utils", "converts images", Need::Image),
    program("mkfs.vfat", "dosfstools", "makes FAT seed disks for tests", Need::Tests),
    program("mcopy", "mtools", "is what SYSLINUX is put into images with", Need::Image),
    program("syslinux", "syslinux", "makes images start with a BIOS", Need::Image),
    file("/usr/lib/syslinux/mbr/mbr.bin", "syslinux-common", "makes images start with a BIOS", Need::Image),
    program("zstd", "zstd", "compresses the first file system of images", Need::Image),
    file(EFI_BOOT, "systemd-boot-efi", "makes images start with UEFI", Need::Image),
    program("pkg-config", "pkg-config", "finds the library of libvirt", Need::Link),
    library("libvirt", "libvirt-dev", "is what the provider libvirt links to", Need::Link),
    program("libvirtd", "libvirt-daemon", "manages the virtual machines of demo and tests", Need::Libvirt),
    file(QEMU_DRIVER, "libvirt-daemon-driver-qemu", "lets libvirt start QEMU", Need::Libvirt),
    program("virsh", "libvirt-clients", "looks independently at what libvirt has", Need::Libvirt),
    program("qemu-system-x86_64", "qemu-system-x86", "runs the virtual machines", Need::Libvirt),
    program("dnsmasq", "dnsmasq-base", "gives the virtual machines addresses", Need::Libvirt),
    program("iptables", "iptables", "is what libvirt sets up its network with", Need::Libvirt),
    program("bash", "bash", "keeps the namespaces of libvirtd", Need::Libvirt),
    file("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf", "is the UEFI of virtual machines", Need::Tests),
    program("busybox", "busybox-static", "reads archives independently", Need::Tests),
    program("genisoimage", "genisoimage", "makes ISO seed disks for tests", Need::Tests),
    program("isoinfo", "genisoimage", "reads ISO seed disks independently", Need::Tests),
    program("xmllint", "libxml2-utils", "checks definitions by the schema of libvirt", Need::Tests),
    program("dropbear", "dropbear-bin", "is the SSH server of a hypervisor's host in tests", Need::Tests),
    program(
        "ssh",
        "openssh-client",
        "connects to machines of testbeds, and to libvirt on another host",
        Need::Demo,
    ),
    program("newuidmap", "uidmap", "maps ranges of ids for users that are not root", Need::Tests),
    program("curl", "curl", "asks the daemon for probe and metrics as others do", Need::Tests),
    program("openssl", "openssl", "checks certificates independently", Need::Tests),
    file("/usr/lib/go-1.19/bin/go", "golang-1.19-go", "compiles a Kubernetes API server", Need::Kubernetes),
    program("rsync", "rsync", "is what the build of Kubernetes copies files with", Need::Kubernetes),
    program("make", "make", "runs the build of Kubernetes", Need::Kubernetes),
    program("systemd-analyze", "systemd", "checks units", Need::Tests),
    program("mmdebstrap", "mmdebstrap", "installs packages into an image", Need::Debian),
    program("mksquashfs", "squashfs-tools", "makes the root of an image", Need::Debian),
    file(KEYRING, "debian-archive-keyring", "has the keys of what Debian offers", Need::Debian),
    program(
        "aarch64-linux-gnu-gcc",
        "gcc-aarch64-linux-gnu",
        "compiles C and links for aarch64",
        Need::Targets,
    ),
    program("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu", "compiles C++ for aarch64", Need::Targets),
    program("s390x-linux-gnu-gcc", "gcc-s390x-linux-gnu", "compiles C and links for s390x", Need::Targets),
    program("s390x-linux-gnu-g++", "g++-s390x-linux-gnu", "compiles C++ for s390x", Need::Targets),
    file(
        "/usr/aarch64-linux-gnu/include/stdio.h",
        "libc6-dev-arm64-cross",
        "is the C library of aarch64",
        Need::Targets,
    ),
    file(
        "/usr/s390x-linux-gnu/include/stdio.h",
        "libc6-dev-s390x-cross",
        "is the C library of s390x",
        Need::Targets,
    ),
    program("qemu-aarch64-static", "qemu-user-static", "runs programs of aarch64", Need::Targets),
    program("qemu-s390x-static", "qemu-user-static", "runs programs of s390x", Need::Targets),
    program("python3", "python3", "runs PyYAML, the reader of user data that counts", Need::Tests),
];

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const EFI_BOOT: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";
const QEMU_DRIVER: &str = "/usr/lib/{arch}-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so";

const fn program(name: &'static str, package: &'static str, why: &'static str, need: Need) -> Tool {
    Tool { sign: Sign::Program(name), package, why, need }
}

const fn library(name: &'static str, package: &'static str, why: &'static str, need: Need) -> Tool {
    Tool { sign: Sign::Library(name), package, why, need }
}

const fn file(path: &'static str, package: &'static str, why: &'static str, need: Need) -> Tool {
    Tool { sign: Sign::File(path), package, why, need }
}

impl Sign {
    fn is_there(self, context: &Context) -> bool {
        match self {
            Self::Program(name) => context.find_program(name).is_some(),
            Self::Library(name) => {
                let found = context.find_program("pkg-config");
                found.is_some_and(|program| Run::new(program).args(["--exists", name]).stdout().is_ok())
            }
            Self::File(path) => Path::new(&path.replace("{arch}", std::env::consts::ARCH)).exists(),
        }
    }
}

/// Something that only the reader can mend: the one line to run.
#[derive(Debug)]
pub(crate) struct Missing(pub(crate) String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// Installs what is missing for `need`.
///
/// # Errors
///
/// [`Missing`] with the line to run, where this is no Debian or Ubuntu or we are not root.
pub(crate) fn install(context: &Context, need: Need) -> Result<()> {
    let missing = missing(context, need);
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().map(|(package, _)| *package).collect();
    packages.sort_unstable();
    packages.dedup();
    let apt = context.find_program("apt-get");
    if apt.is_none() || !owns_the_system() {
        return Err(Missing(advice(apt.is_some(), &packages)).into());
    }
    context.say("installing with apt-get:");
    for (package, why) in &missing {
        context.say(format!("  {package:<26} {why}"));
    }
    // A machine that was just made has no package lists; a stale list is noticed by the failure.
    if !has_package_lists(Path::new("/var/lib/apt/lists")) {
        apt_get(context, &["update", "-q"])?;
    }
    if apt_get(context, &install_args(context, &packages)).is_err() {
        apt_get(context, &["update", "-q"])?;
        apt_get(context, &install_args(context, &packages))
            .context("mend the package sources of this machine and run again")?;
    }
    let left = self::missing(context, need);
    if left.is_empty() {
        return Ok(());
    }
    let left: Vec<&str> = left.iter().map(|(package, _)| *package).collect();
    Err(Missing(format!(
        "apt-get installed {} but what was looked for in them is still not found",
        left.join(" ")
    ))
    .into())
}

/// Whether we are root of this system, and not of a namespace alone in which its files belong to others.
pub(crate) fn owns_the_system() -> bool {
    use std::os::unix::fs::MetadataExt;
    nix::unistd::geteuid().is_root() && std::fs::metadata("/").is_ok_and(|root| root.uid() == 0)
}

/// Fails with one clear line unless we are root.
///
/// # Errors
///
/// [`Missing`] naming `task`.
pub(crate) fn require_root(task: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let text =
        format!("{task} makes network namespaces and mounts and needs root: run it with sudo, or as root");
    Err(Missing(text).into())
}

/// Returns the arguments with which `apt-get` installs `packages`, and takes nothing away that is here already.
///
/// A `qemu-utils` of a newer suite may be here, and it refuses the QEMU of this one. Only then it is taken back to the
/// version that goes with it.
fn install_args(context: &Context, packages: &[&str]) -> Vec<String> {
    let mut args: Vec<String> =
        ["install", "-q", "-y", "--no-install-recommends", "--no-remove"].map(str::to_owned).into();
    args.extend(packages.iter().map(|package| (*package).to_owned()));
    let possible = || Run::new("apt-get").arg("--simulate").args(&args).stdout().is_ok();
    if packages.contains(&"qemu-system-x86") && is_installed("qemu-utils") && !possible() {
        let policy = Run::new("apt-cache").args(["policy", "qemu-system-x86"]).stdout().unwrap_or_default();
        if let Some(version) = candidate(&policy) {
            context.say(format!("qemu-utils is too new for the other parts of QEMU: it becomes {version}"));
            args.extend(["--allow-downgrades".to_owned(), format!("qemu-utils={version}")]);
        }
    }
    args
}

fn is_installed(package: &str) -> bool {
    let status = Run::new("dpkg-query").args(["--show", "--showformat", "${Status}", package]).stdout();
    status.is_ok_and(|status| status.ends_with(" installed"))
}

/// Reads the version that would be installed from what `apt-cache policy` prints.
fn candidate(policy: &str) -> Option<&str> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    Some(version).filter(|version| *version != "(none)")
}

fn missing(context: &Context, need: Need) -> Vec<(&'static str, &'static str)> {
    let mut missing: Vec<_> = TOOLS
        .iter()
        .filter(|tool| need.includes(tool.need) && !tool.sign.is_there(context))
        .map(|tool| (tool.package, tool.why))
        .collect();
    if need == Need::Tests && !python_with(context, "yaml") {
        missing.push(("python3-yaml", "reads generated user data as cloud-init does"));
    }
    if matches!(need, Need::Tests | Need::Emulator) && !python_with(context, "ensurepip, venv") {
        missing.push(("python3-venv", "makes the environment of the emulator of EC2"));
    }
    missing
}

/// Whether one of the interpreters that the tests try has all of `modules`.
fn python_with(context: &Context, modules: &str) -> bool {
    let import = format!("import {modules}");
    let candidates = context.find_program("python3").into_iter().chain(["/usr/bin/python3".into()]);
    candidates
        .filter(|python| python.exists())
        .any(|python| Run::new(python).args(["-c", &import]).stdout().is_ok())
}

fn advice(has_apt: bool, packages: &[&str]) -> String {
    let list = packages.join(" ");
    if has_apt {
        format!("packages are missing and only root can install them; run: sudo apt-get install -y {list}")
    } else {
        format!("packages are missing; install what your distribution calls (Debian names): {list}")
    }
}

fn has_package_lists(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(Result::ok).any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

fn apt_get(context: &Context, args: &[impl AsRef<std::ffi::OsStr>]) -> Result<()> {
    let run = context.program("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(args);
    run.visible(std::time::Duration::from_secs(900)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_apt_the_advice_is_one_line_with_every_package() {
        let text = advice(false, &["iproute2", "nftables"]);
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains("iproute2 nftables"), "{text}");
        assert!(advice(true, &["git"]).contains("sudo apt-get install -y git"));
    }

    #[test]
    fn package_lists_are_told_from_an_empty_folder() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!has_package_lists(dir.path()));
        assert!(!has_package_lists(&dir.path().join("nosuch")));
        std::fs::write(dir.path().join("deb.example_main_binary-amd64_Packages.lz4"), "").unwrap();
        assert!(has_package_lists(dir.path()));
    }

    #[test]
    fn every_tool_says_why() {
        for tool in TOOLS {
            assert!(!tool.why.is_empty() && !tool.package.is_empty(), "{:?}", tool.sign);
        }
    }

    #[test]
    fn the_demo_on_local_needs_no_part_of_libvirt_and_the_tests_need_all() {
        let of = |need: Need| -> Vec<&str> {
            TOOLS.iter().filter(|tool| need.includes(tool.need)).map(|tool| tool.package).collect()
        };
        for part in ["libvirt-dev", "libvirt-daemon", "qemu-system-x86", "syslinux", "mtools", "pkg-config"] {
            assert!(!of(Need::Demo).contains(&part), "{part}");
            assert!(of(Need::Libvirt).contains(&part), "{part}");
        }
        assert!(!of(Need::Image).contains(&"libvirt-dev"));
        // Who builds the provider needs no machine of it.
        assert_eq!(of(Need::Link), ["pkg-config", "libvirt-dev"]);
        // A Kubernetes API server is built once and kept: the compiler of Go is for whoever builds it.
        let kept = [Need::Kubernetes, Need::Debian, Need::Targets];
        let built = TOOLS.iter().filter(|tool| kept.contains(&tool.need)).count();
        assert_eq!(of(Need::Tests).len() + built, TOOLS.len());
        assert_eq!(kept.map(|need| of(need).len()).iter().sum::<usize>(), built);
    }

    #[test]
    fn a_library_is_looked_for_by_pkg_config_and_a_file_by_its_path() {
        let context = Context::from_process().unwrap();
        assert!(!Sign::Library("no-such-library").is_there(&context));
        assert!(!Sign::File("/usr/lib/{arch}-linux-gnu/no-such-file").is_there(&context));
        assert!(Sign::File("/etc/passwd").is_there(&context));
    }

    #[test]
    fn the_candidate_of_a_package_is_read() {
        let policy = "qemu-system-x86:\n  Installed: (none)\n  Candidate: 1:7.2+dfsg-7\n  Version table:\n";
        assert_eq!(candidate(policy), Some("1:7.2+dfsg-7"));
        assert_eq!(candidate("x:\n  Candidate: (none)\n"), None);
        assert_eq!(candidate(""), None);
    }
}
