//! The distribution's part of an image: an archive of what its packages install, and the kernel beside it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::command::Run;
use crate::context::Context;
use crate::inputs::Digest;
use crate::setup::Missing;

/// What is installed.
const SUITE: &str = "bookworm";
/// Where its packages are offered unless told otherwise, with what keeps former days.
const MIRROR: &str = "http://deb.debian.org";
const SNAPSHOTS: &str = "http://snapshot.debian.org";
/// The beginning of 1980, the first moment that FAT can write down.
const EPOCH: u64 = 315_532_800;
/// Beside the essential packages.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "ca-certificates",
    "dbus",
    "e2fsprogs",
    "iproute2",
    "kmod",
    "libgcc-s1",
    "nftables",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
];
/// Nobody reads these in a guest.
const LEFT_OUT: &[&str] =
    &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];
const KERNEL: &str = include_str!("kernel.sh");
const THIS: &str = include_str!("base.rs");
const LIMIT: Duration = Duration::from_secs(20 * 60);
const HELPER: &str = "/usr/lib/apt/apt-helper";

/// The archive below a base's folder.
pub(super) const ARCHIVE: &str = "root.tar";

/// Where packages come from, and what time the files of an image have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Source {
    /// The address below which `debian` and `debian-security` lie.
    pub(crate) mirror: Option<String>,
    /// A moment such as `20260101T000000Z`, whose packages are taken.
    pub(crate) snapshot: Option<String>,
    /// Seconds since 1970, as a text of `SOURCE_DATE_EPOCH`.
    pub(crate) epoch: Option<String>,
}

/// What was made of packages.
#[derive(Debug)]
pub(super) struct Base {
    /// Has the archive, `boot` and `usr/lib/modules`.
    pub(super) folder: PathBuf,
    /// Depends on everything that went into it.
    pub(super) key: String,
    /// The time of all files.
    pub(super) epoch: u64,
}

impl Source {
    /// Checks what was typed before anything takes time.
    ///
    /// # Errors
    ///
    /// Names the option and what it should look like.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(mirror) = &self.mirror {
            let known = ["http://", "https://", "file:/", "copy:/"];
            ensure!(
                known.iter().any(|scheme| mirror.starts_with(scheme)),
                "--mirror {mirror} is no address: give the one below which debian and debian-security lie, such as {MIRROR}"
            );
        }
        if let Some(snapshot) = &self.snapshot {
            let form = snapshot.bytes().enumerate().all(|(index, byte)| match index {
                8 => byte == b'T',
                15 => byte == b'Z',
                _ => byte.is_ascii_digit(),
            });
            ensure!(
                snapshot.len() == 16 && form,
                "--snapshot {snapshot} is no moment: write it as 20260101T000000Z"
            );
        }
        self.seconds().map(drop)
    }

    fn seconds(&self) -> Result<u64> {
        match &self.epoch {
            None => Ok(EPOCH),
            Some(text) => text
                .parse()
                .with_context(|| format!("SOURCE_DATE_EPOCH is {text:?}, and must be seconds since 1970")),
        }
    }

    /// Address and suite of each source.
    fn suites(&self) -> Vec<(String, String)> {
        let below = match (&self.mirror, &self.snapshot) {
            (mirror, None) => {
                let mirror = mirror.as_deref().unwrap_or(MIRROR).trim_end_matches('/');
                [format!("{mirror}/debian"), format!("{mirror}/debian-security")]
            }
            (mirror, Some(moment)) => {
                let mirror = mirror.as_deref().unwrap_or(SNAPSHOTS).trim_end_matches('/');
                [
                    format!("{mirror}/archive/debian/{moment}"),
                    format!("{mirror}/archive/debian-security/{moment}"),
                ]
            }
        };
        let [main, security] = below;
        vec![
            (main.clone(), SUITE.to_owned()),
            (main, format!("{SUITE}-updates")),
            (security, format!("{SUITE}-security")),
        ]
    }

    /// The lines of apt.
    fn lines(&self) -> Vec<String> {
        // Lists of former days have expired.
        let valid = if self.snapshot.is_some() { " check-valid-until=no" } else { "" };
        let suites = self.suites().into_iter();
        suites.map(|(at, suite)| format!("deb [arch=amd64{valid}] {at} {suite} main")).collect()
    }
}

/// Makes the base of a source, or finds it in the cache.
///
/// # Errors
///
/// [`Missing`] when the mirror cannot be reached; when a step fails.
pub(super) fn get(context: &Context, source: &Source) -> Result<Base> {
    let mut digest = Digest::new().text(THIS).text(KERNEL).text(&source.seconds()?.to_string());
    for list in lists(context, source)? {
        digest = digest.text(&list);
    }
    let key = digest.short();
    let bases = context.cache.join("podvm/bases");
    std::fs::create_dir_all(&bases).with_context(|| format!("cannot make {}", bases.display()))?;
    let folder = bases.join(format!("{SUITE}-{key}"));
    if folder.is_dir() {
        return Ok(Base { folder, key, epoch: source.seconds()? });
    }
    let half = tempfile::Builder::new().prefix(".half-").tempdir_in(&bases)?;
    let made = make(context, source, &key, half.path())?;
    super::super::forget_old_of(&bases, &folder, SUITE, 2)?;
    match std::fs::rename(half.path(), &folder) {
        // Another build was faster.
        Err(_) if folder.is_dir() => {}
        result => result.with_context(|| format!("cannot make {}", folder.display()))?,
    }
    Ok(Base { folder, ..made })
}

/// Asks the mirror for the sums of its lists of packages, which say what would be installed.
fn lists(context: &Context, source: &Source) -> Result<Vec<String>> {
    let folder = tempfile::tempdir()?;
    let mut found = Vec::new();
    for (at, suite) in source.suites() {
        let address = format!("{at}/dists/{suite}/InRelease");
        let file = folder.path().join(&suite);
        let run = context.program(HELPER).args(["download-file", &address]).arg(&file);
        if let Err(error) = run.stdout() {
            let text = format!(
                "cannot read {address}: give a mirror that this machine reaches with --mirror, set apt's proxy, or check --snapshot \
                 ({error:#})"
            );
            return Err(Missing(text).into());
        }
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let sum = sum_in(&text).with_context(|| format!("{address} names no packages for amd64"))?;
        found.push(format!("{suite} {sum}"));
    }
    Ok(found)
}

/// The SHA-256 of the list of packages. Everything else in such a file changes from day to day.
fn sum_in(release: &str) -> Option<&str> {
    let mut sums = release.lines().skip_while(|line| *line != "SHA256:").skip(1);
    sums.find_map(|line| {
        let mut words = line.split_whitespace();
        let (sum, _, name) = (words.next()?, words.next()?, words.next()?);
        (name == "main/binary-amd64/Packages" || name == "main/binary-amd64/Packages.xz").then_some(sum)
    })
}

/// Installs the packages into an archive, and takes the kernel out of it.
pub(super) fn make(context: &Context, source: &Source, key: &str, folder: &Path) -> Result<Base> {
    let start = Instant::now();
    let epoch = source.seconds()?;
    context.say("installing the packages of the image with mmdebstrap, about two minutes, once for each state of the mirror");
    let hook = folder.join("kernel.sh");
    std::fs::write(&hook, KERNEL).with_context(|| format!("cannot write {}", hook.display()))?;
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755))?;
    let archive = folder.join(ARCHIVE);
    let run = context
        .program("mmdebstrap")
        .args(["--quiet", "--variant=essential", "--architectures=amd64"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .args(LEFT_OUT.iter().map(|path| format!("--dpkgopt=path-exclude={path}")))
        .arg(format!("--customize-hook={}", hook.display()))
        .arg(SUITE)
        .arg(&archive)
        .args(source.lines())
        .env("SOURCE_DATE_EPOCH", epoch.to_string())
        .env("LC_ALL", "C.UTF-8");
    run.visible(LIMIT).context("the packages cannot be installed; what mmdebstrap said is above")?;
    // As files of ours: nothing of the image is installed here.
    let out = Run::new("tar").arg("-xf").arg(&archive).arg("-C").arg(folder);
    out.args(["--no-same-owner", "./boot", "./usr/lib/modules", "./usr/bin/busybox"]).stdout()?;
    std::fs::remove_file(&hook)?;
    context.say(format!("installed the packages in {:.0} s", start.elapsed().as_secs_f64()));
    Ok(Base { folder: folder.to_owned(), key: key.to_owned(), epoch })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_or_a_moment_of_another_form_is_named_with_its_option() {
        let of = |mirror: Option<&str>, snapshot: Option<&str>, epoch: Option<&str>| {
            let own = |text: Option<&str>| text.map(str::to_owned);
            Source { mirror: own(mirror), snapshot: own(snapshot), epoch: own(epoch) }.check()
        };
        of(None, None, None).unwrap();
        of(Some("https://mirror.example"), Some("20260101T000000Z"), Some("1767225600")).unwrap();
        for (found, word) in [
            (of(Some("mirror.example"), None, None), "--mirror"),
            (of(None, Some("2026-01-01"), None), "--snapshot"),
            (of(None, Some("20260101X000000Z"), None), "--snapshot"),
            (of(None, None, Some("yesterday")), "SOURCE_DATE_EPOCH"),
        ] {
            let error = format!("{:#}", found.unwrap_err());
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn packages_of_a_moment_come_from_where_moments_are_kept() {
        let now = Source::default().lines();
        assert_eq!(now[0], "deb [arch=amd64] http://deb.debian.org/debian bookworm main");
        assert_eq!(now[2], "deb [arch=amd64] http://deb.debian.org/debian-security bookworm-security main");
        let then = Source {
            mirror: Some("https://kept.example/".to_owned()),
            snapshot: Some("20260101T000000Z".to_owned()),
            ..Source::default()
        };
        assert_eq!(
            then.lines()[1],
            "deb [arch=amd64 check-valid-until=no] https://kept.example/archive/debian/20260101T000000Z bookworm-updates main"
        );
    }

    #[test]
    fn only_the_sum_of_the_packages_counts_of_a_release() {
        let release = "Date: Sat, 01 Jan 2026\nMD5Sum:\n aa 1 main/binary-amd64/Packages.xz\nSHA256:\n 11 2 main/binary-arm64/Packages.xz\n 22 3 main/binary-amd64/Packages.xz\n";
        assert_eq!(sum_in(release), Some("22"));
        assert_eq!(sum_in(&release.replace("Sat, 01", "Sun, 02")), Some("22"));
        assert_eq!(sum_in("Date: x\n"), None);
    }
}
