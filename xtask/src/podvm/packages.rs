//! Gets the distribution's packages, and what is in them, without installing anything.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::command::Run;
use crate::context::Context;
use crate::inputs::Digest;
use crate::podvm::Flavour;
use crate::setup::Missing;

/// The package that depends on the newest kernel for machines of clouds.
const KERNEL: &str = "linux-image-cloud-amd64";
/// What else an image is made of.
const PACKAGES: &[&str] = &[
    // A shell and its tools, and the client of DHCP.
    "busybox-static",
    // Makes file systems on cloud volumes.
    "e2fsprogs",
    "libext2fs2",
    "libcom-err2",
    // Tells what is on a disk.
    "util-linux",
    "libblkid1",
    "libuuid1",
    // Traffic control and addresses.
    "iproute2",
    "libbpf1",
    "libbsd0",
    "libcap2",
    "libelf1",
    "libmd0",
    "libmnl0",
    "libxtables12",
    "zlib1g",
    // What programs in C and Rust need.
    "libc6",
    "libgcc-s1",
];
/// What a machine that one logs in to has more: the server of SSH with its libraries, of which a guest has no use.
const LOGIN_PACKAGES: &[&str] = &[
    "openssh-server",
    "openssh-sftp-server",
    "libaudit1",
    "libcap-ng0",
    "libcrypt1",
    "libgcrypt20",
    "libgpg-error0",
    "libgssapi-krb5-2",
    "libk5crypto3",
    "libkeyutils1",
    "libkrb5-3",
    "libkrb5support0",
    "liblz4-1",
    "liblzma5",
    "libnsl2",
    "libpam0g",
    "libpcre2-8-0",
    "libselinux1",
    "libssl3",
    "libsystemd0",
    "libtirpc3",
    "libwrap0",
    "libzstd1",
];
const DOWNLOAD: Duration = Duration::from_secs(15 * 60);

/// A package with its content.
#[derive(Clone, Debug)]
pub(crate) struct Package {
    /// File name of the package: name, version and architecture.
    pub(crate) file: String,
    /// Its content.
    pub(crate) folder: PathBuf,
}

/// What `apt-get` says of a package it would download.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Offer {
    file: String,
    size: u64,
    hash: String,
}

/// Downloads what the cache lacks and unpacks it, kernel first.
///
/// # Errors
///
/// [`Missing`] where there is no apt, or it knows no such package.
pub(crate) fn get(context: &Context, flavour: Flavour) -> Result<Vec<Package>> {
    let Some(_) = context.find_program("apt-get") else {
        let text =
            "an image is made of packages of Debian, and this machine has no apt-get: build it on Debian";
        return Err(Missing(text.to_owned()).into());
    };
    let kernel = match newest_kernel() {
        Ok(kernel) => kernel,
        Err(_) => {
            // The lists of a machine that was just made are empty.
            update(context)?;
            newest_kernel()?
        }
    };
    let more = if flavour == Flavour::Machine { LOGIN_PACKAGES } else { &[] };
    let names: Vec<&str> =
        std::iter::once(kernel.as_str()).chain(PACKAGES.iter().chain(more).copied()).collect();
    let offers = match offers(&names) {
        Ok(offers) => offers,
        Err(_) => {
            update(context)?;
            offers(&names)?
        }
    };
    let cache = context.cache.join("podvm");
    let debs = cache.join("packages");
    std::fs::create_dir_all(&debs).with_context(|| format!("cannot make {}", debs.display()))?;
    let missing: Vec<&str> =
        offers.iter().filter(|(_, offer)| !is_here(&debs, offer)).map(|(name, _)| *name).collect();
    if !missing.is_empty() {
        let run = context.program("apt-get").args(["download", "-q"]).args(&missing).current_dir(&debs);
        if run.visible(DOWNLOAD).is_err() {
            // A list that is too old names files that the server no longer has.
            update(context)?;
            bail!("packages could not be downloaded; their lists are fresh now, run it again");
        }
    }
    offers.into_iter().map(|(_, offer)| unpack(&cache, &debs, &offer)).collect()
}

fn update(context: &Context) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        let text = format!("apt knows no package {KERNEL}; run: sudo apt-get update");
        return Err(Missing(text).into());
    }
    context.program("apt-get").args(["update", "-q"]).visible(DOWNLOAD).map(drop)
}

/// The name of the kernel's package has its version in it, which the package without a version depends on.
fn newest_kernel() -> Result<String> {
    let text = Run::new("apt-cache").args(["depends", KERNEL]).stdout()?;
    kernel_in(&text).with_context(|| {
        format!("apt knows no kernel behind {KERNEL}; images are built on Debian, see docs/images.md")
    })
}

fn kernel_in(text: &str) -> Option<String> {
    let mut words = text.lines().filter_map(|line| line.trim().strip_prefix("Depends:"));
    words.find(|name| name.trim().starts_with("linux-image-")).map(|name| name.trim().to_owned())
}

/// Asks what would be downloaded, with the names we asked for.
fn offers<'a>(names: &[&'a str]) -> Result<Vec<(&'a str, Offer)>> {
    let text = Run::new("apt-get").args(["download", "--print-uris", "-q"]).args(names).stdout()?;
    let offers: Vec<Offer> = text.lines().filter_map(offer_in).collect();
    let of = |name: &&'a str| {
        let found = offers.iter().find(|offer| offer.file.split('_').next() == Some(*name));
        found.map(|offer| (*name, offer.clone())).with_context(|| format!("apt offers no package {name}"))
    };
    names.iter().map(of).collect()
}

/// Reads a line `'address' file size method:hash`.
fn offer_in(line: &str) -> Option<Offer> {
    let mut words = line.strip_prefix('\'')?.split_once("' ")?.1.split(' ');
    let (file, size, hash) = (words.next()?, words.next()?, words.next()?);
    Some(Offer { file: file.to_owned(), size: size.parse().ok()?, hash: hash.to_owned() })
}

/// apt checks hashes when it downloads; afterwards the size tells a file that was cut off.
fn is_here(folder: &Path, offer: &Offer) -> bool {
    std::fs::metadata(folder.join(&offer.file)).is_ok_and(|meta| meta.len() == offer.size)
}

/// Unpacks a package into a folder named by its hash, unless it is there.
fn unpack(cache: &Path, debs: &Path, offer: &Offer) -> Result<Package> {
    let key = Digest::new().text(&offer.file).text(&offer.hash).short();
    let name = offer.file.split('_').next().unwrap_or(&offer.file);
    let unpacked = cache.join("unpacked");
    let folder = unpacked.join(format!("{name}-{key}"));
    let deb = debs.join(&offer.file);
    if !folder.is_dir() {
        ensure!(deb.is_file(), "apt downloaded no {}", deb.display());
        std::fs::create_dir_all(&unpacked).with_context(|| format!("cannot make {}", unpacked.display()))?;
        // Two tasks may do this at once, and one may be killed half way: the name comes last.
        let half = tempfile::Builder::new().prefix(".half-").tempdir_in(&unpacked)?;
        Run::new("dpkg-deb").arg("-x").arg(&deb).arg(half.path().join("x")).stdout()?;
        forget_others(&unpacked, name)?;
        match std::fs::rename(half.path().join("x"), &folder) {
            Err(_) if folder.is_dir() => {}
            result => result.with_context(|| format!("cannot make {}", folder.display()))?,
        }
    }
    Ok(Package { file: offer.file.clone(), folder })
}

/// Removes other versions of a package, which nothing would remove otherwise.
fn forget_others(unpacked: &Path, name: &str) -> Result<()> {
    for entry in std::fs::read_dir(unpacked)?.flatten() {
        let file = entry.file_name();
        let of_it = file.to_str().and_then(|file| file.rsplit_once('-')).is_some_and(|(of, _)| of == name);
        if of_it {
            std::fs::remove_dir_all(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_what_the_package_without_a_version_depends_on() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(kernel_in(text).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(kernel_in("linux-image-cloud-amd64\n"), None);
    }

    #[test]
    fn what_apt_would_download_is_read_with_size_and_hash() {
        let line = "'http://deb.debian.org/pool/l/libc6_2.36-9%2bdeb12u14_amd64.deb' \
                    libc6_2.36-9+deb12u14_amd64.deb 2759320 SHA256:ba4f";
        let offer = offer_in(line).unwrap();
        assert_eq!(offer.file, "libc6_2.36-9+deb12u14_amd64.deb");
        assert_eq!((offer.size, offer.hash.as_str()), (2_759_320, "SHA256:ba4f"));
        assert_eq!(offer_in("W: something"), None);
    }

    #[test]
    fn a_cut_off_download_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let offer = Offer { file: "x.deb".to_owned(), size: 3, hash: String::new() };
        assert!(!is_here(dir.path(), &offer));
        std::fs::write(dir.path().join("x.deb"), "ab").unwrap();
        assert!(!is_here(dir.path(), &offer));
        std::fs::write(dir.path().join("x.deb"), "abc").unwrap();
        assert!(is_here(dir.path(), &offer));
    }

    #[test]
    fn only_other_versions_of_the_same_package_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["libc6-1", "libc6-dev-2", ".half-x", "libc62-3"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        forget_others(dir.path(), "libc6").unwrap();
        let left = |name: &str| dir.path().join(name).exists();
        assert!(!left("libc6-1") && left("libc6-dev-2") && left(".half-x") && left("libc62-3"));
    }
}
