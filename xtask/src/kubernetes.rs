//! Gets a real Kubernetes API server with etcd and the controller manager, for tests.
//!
//! `KUBEBUILDER_ASSETS` names a folder that has them. Otherwise they are compiled from the source package of Debian 12,
//! once, and kept in the cache: it has its Go dependencies with it, so no other server is asked for anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Command;
use nix::fcntl::{Flock, FlockArg};

use crate::command::{Beside, Run};
use crate::context::Context;
use crate::inputs::Digest;
use crate::setup::{self, Missing};

/// This file: an input of every stage that uses what it builds.
pub(crate) const FILE: &str = "xtask/src/kubernetes.rs";
/// What a folder of it has.
const PROGRAMS: [&str; 3] = ["etcd", "kube-apiserver", "kube-controller-manager"];
/// The variable by which tests are told the folder, and by which anybody may name another.
pub(crate) const VARIABLE: &str = "KUBEBUILDER_ASSETS";

const SUITE: &str = "bookworm";
const MIRROR: &str = "http://deb.debian.org/debian/";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The source as Debian names it, and what it says of itself.
const SOURCE: &str = "kubernetes_1.20.5+really1.20.2.orig.tar.gz";
const FOLDER: &str = "kubernetes-1.20.2";
/// Without a commit the build takes the version for unknown.
const VERSION: &str = "KUBE_GIT_COMMIT='0000000000000000000000000000000000000000'\n\
                       KUBE_GIT_TREE_STATE='archive'\nKUBE_GIT_VERSION='v1.20.2'\n\
                       KUBE_GIT_MAJOR='1'\nKUBE_GIT_MINOR='20'\n";
/// The reflect2 that the source brings crashes in programs of Go 1.18 and later.
const REFLECT: (&str, &str, &str) = (
    "golang-github-modern-go-reflect2-dev",
    "usr/share/gocode/src/github.com/modern-go/reflect2",
    "vendor/github.com/modern-go/reflect2",
);
const ETCD: (&str, &str) = ("etcd-server", "usr/bin/etcd");
/// The compiler that this source is known to work with; the newest Go refuses it.
const GO: &str = "/usr/lib/go-1.19/bin";
const TARGETS: &str = "WHAT=cmd/kube-apiserver cmd/kube-controller-manager";
/// To be raised when steps change in a way that makes other programs.
const RECIPE: &str = "1";

const DOWNLOAD: Duration = Duration::from_secs(15 * 60);
const BUILD: Duration = Duration::from_secs(60 * 60);

/// The subcommand.
pub(crate) fn command() -> Command {
    Command::new("kubernetes").about(
        "Builds a Kubernetes API server, etcd and controller manager for tests, once, and prints the folder",
    )
}

/// Runs `kubernetes`.
///
/// # Errors
///
/// As [`assets`].
pub(crate) fn run(context: &Context) -> Result<()> {
    println!("{}", assets(context)?.display());
    Ok(())
}

/// Returns a folder with the programs, built first when the cache has none.
///
/// # Errors
///
/// Names what is missing where `KUBEBUILDER_ASSETS` is set; [`Missing`] where this machine cannot build them.
pub(crate) fn assets(context: &Context) -> Result<PathBuf> {
    if let Some(folder) = &context.kubebuilder_assets {
        check(folder)?;
        return Ok(folder.clone());
    }
    let folder = context.cache.join(format!("kubernetes-{}", key()));
    if check(&folder).is_ok() {
        return Ok(folder);
    }
    fs::create_dir_all(&context.cache).with_context(|| format!("cannot make {}", context.cache.display()))?;
    // Whoever comes second finds it built.
    let lock = fs::File::create(context.cache.join("kubernetes.lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    if check(&folder).is_err() {
        build(context, &folder)?;
    }
    Ok(folder)
}

/// Begins to build what [`assets`] will be asked for, beside whatever else is done; nothing where it is there already.
///
/// # Errors
///
/// When the build cannot be started.
pub(crate) fn begin(context: &Context) -> Result<Option<Beside>> {
    if context.kubebuilder_assets.is_some()
        || check(&context.cache.join(format!("kubernetes-{}", key()))).is_ok()
    {
        return Ok(None);
    }
    let log = context.cache.join("kubernetes.log");
    context.say(format!(
        "an API server is built beside the first stages, once; it tells of it in {}",
        log.display()
    ));
    let program = std::env::current_exe().context("this program does not know where it lies")?;
    Ok(Some(context.program(program).arg("kubernetes").beside(&log)?))
}

/// Says what a folder lacks.
fn check(folder: &Path) -> Result<()> {
    let missing: Vec<&str> = PROGRAMS.into_iter().filter(|program| !folder.join(program).is_file()).collect();
    ensure!(
        missing.is_empty(),
        "{VARIABLE}={} has no {}: put it there, or unset the variable and it is built",
        folder.display(),
        missing.join(" and no ")
    );
    Ok(())
}

fn key() -> String {
    let parts = [RECIPE, std::env::consts::ARCH, SOURCE, VERSION, REFLECT.0, ETCD.0, GO, TARGETS];
    parts.into_iter().fold(Digest::new(), Digest::text).short()
}

fn build(context: &Context, folder: &Path) -> Result<()> {
    setup::install(context, setup::Need::Kubernetes)?;
    if !Path::new(GO).join("go").is_file() {
        let text = format!(
            "a Kubernetes API server is built with Go 1.19 of Debian 12, which is not in {GO} here: set {VARIABLE} to \
             a folder with {}",
            PROGRAMS.join(", ")
        );
        return Err(Missing(text).into());
    }
    context.say("building a Kubernetes API server from Debian's source, about ten minutes, once");
    let start = Instant::now();
    // What an earlier build left when it was killed has three gigabytes; the lock says that nobody works in it.
    let work = context.cache.join("kubernetes-build");
    remove(&work)?;
    let built = compile(context, &work).and_then(|()| publish(&work, folder));
    remove(&work)?;
    built?;
    context.say(format!("built {} in {:.0} s", folder.display(), start.elapsed().as_secs_f64()));
    Ok(())
}

fn compile(context: &Context, work: &Path) -> Result<()> {
    let apt = Apt::new(context, work)?;
    apt.run(&["update", "-q"])?;
    apt.run(&["source", "-q", "--download-only", "kubernetes"])?;
    apt.run(&["download", "-q", REFLECT.0, ETCD.0])?;
    ensure!(
        work.join(SOURCE).is_file(),
        "{SUITE} has another version of Kubernetes than {SOURCE}: xtask/src/kubernetes.rs names the one to build"
    );
    for package in [REFLECT.0, ETCD.0] {
        let file = named(work, &format!("{package}_"))?;
        Run::new("dpkg-deb").arg("-x").arg(file).arg(work.join(package)).stdout()?;
    }
    Run::new("tar").arg("-xzf").arg(work.join(SOURCE)).arg("-C").arg(work).stdout()?;
    let tree = work.join(FOLDER);
    replace_sources(&work.join(REFLECT.0).join(REFLECT.1), &tree.join(REFLECT.2))?;
    fs::write(work.join("version"), VERSION)?;
    let path = std::env::join_paths(std::iter::once(PathBuf::from(GO)).chain(context.path.iter().cloned()))?;
    for target in ["generated_files", TARGETS] {
        // Others may be working on this machine, and nobody waits for this alone.
        let make = context.program("nice").args(["-n", "10", "make", "--silent", target]);
        let make = make.arg("GOLDFLAGS=-s -w").current_dir(&tree).env("PATH", &path);
        let make = make.env("GOPROXY", "off").env("GOFLAGS", "-mod=vendor").env("GOTOOLCHAIN", "local");
        let make = make.env_remove("GOPATH").env_remove("GOROOT").env_remove("GOBIN").env_remove("MAKEFLAGS");
        make.env("KUBE_GIT_VERSION_FILE", work.join("version")).visible(BUILD)?;
    }
    Ok(())
}

/// Puts the programs where tests look; the name comes last, since a task may be killed half way.
fn publish(work: &Path, folder: &Path) -> Result<()> {
    let done = work.join("done");
    fs::create_dir(&done)?;
    for program in PROGRAMS {
        let from = match program {
            "etcd" => work.join(ETCD.0).join(ETCD.1),
            program => work.join(FOLDER).join("_output/bin").join(program),
        };
        fs::copy(&from, done.join(program))
            .with_context(|| format!("the build left no {}", from.display()))?;
    }
    remove(folder)?;
    fs::rename(&done, folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// apt with sources and lists of our own: those of the machine stay as they are.
struct Apt<'a> {
    context: &'a Context,
    work: &'a Path,
}

impl<'a> Apt<'a> {
    fn new(context: &'a Context, work: &'a Path) -> Result<Self> {
        for folder in ["apt/lists/partial", "apt/archives/partial"] {
            fs::create_dir_all(work.join(folder))
                .with_context(|| format!("cannot make {}", work.join(folder).display()))?;
        }
        let format = "$(RELEASE) $(COMPONENT) $(REPO_URI)";
        let targets = Run::new("apt-get").args(["indextargets", "--format", format]).stdout();
        let mirror = mirror(&targets.unwrap_or_default()).unwrap_or(MIRROR.to_owned());
        let line = |kind: &str| format!("{kind} [signed-by={KEYRING}] {mirror} {SUITE} main\n");
        fs::write(work.join("apt/sources.list"), line("deb") + &line("deb-src"))?;
        Ok(Self { context, work })
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        let at = |option: &str, path: &str| format!("{option}={}", self.work.join(path).display());
        let options = [
            at("Dir::Etc::sourcelist", "apt/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            at("Dir::State::lists", "apt/lists"),
            at("Dir::Cache::archives", "apt/archives"),
            // The caches of the machine speak of the sources of the machine.
            "Dir::Cache::pkgcache=".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
            // The user that apt downloads as cannot write into a cache in a home.
            "APT::Sandbox::User=root".to_owned(),
        ];
        let options = options.iter().flat_map(|option| ["-o", option]);
        let run = self.context.program("apt-get").args(options).args(args).current_dir(self.work);
        run.visible(DOWNLOAD).map(drop)
    }
}

/// Finds the mirror that this machine uses in what `apt-get indextargets` prints.
fn mirror(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        (words.len() == 3 && words[..2] == [SUITE, "main"]).then(|| words[2].to_owned())
    })
}

fn named(folder: &Path, beginning: &str) -> Result<PathBuf> {
    let names = fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_it = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(beginning) && name.ends_with(".deb")
    };
    names.into_iter().find(is_it).with_context(|| format!("apt-get downloaded no {beginning}*.deb"))
}

/// Replaces the sources in a folder by those of another, and keeps what else is there.
fn replace_sources(from: &Path, to: &Path) -> Result<()> {
    let sources = |folder: &Path| -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
        Ok(files.filter(|path| path.extension().is_some_and(|end| end == "go" || end == "s")).collect())
    };
    for file in sources(to)? {
        fs::remove_file(file)?;
    }
    let new = sources(from)?;
    if new.is_empty() {
        bail!("{} has no Go sources", from.display());
    }
    for file in new {
        let name = file.file_name().context("a file has a name")?;
        fs::copy(&file, to.join(name))?;
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_lacks_programs_is_told_with_their_names_and_the_variable() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("etcd"), "").unwrap();
        let error = check(dir.path()).unwrap_err().to_string();
        assert!(error.contains("KUBEBUILDER_ASSETS") && error.contains("kube-apiserver"), "{error}");
        assert!(error.contains("kube-controller-manager") && !error.contains("no etcd"), "{error}");
        for program in PROGRAMS {
            fs::write(dir.path().join(program), "").unwrap();
        }
        check(dir.path()).unwrap();
    }

    #[test]
    fn the_mirror_of_this_machine_is_used() {
        let targets =
            "bookworm-security main http://s/\nbookworm contrib http://c/\nbookworm main http://m/\n";
        assert_eq!(mirror(targets).as_deref(), Some("http://m/"));
        assert_eq!(mirror("trixie main http://m/\n"), None);
    }

    #[test]
    fn sources_are_replaced_and_other_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for folder in [&from, &to] {
            fs::create_dir(folder).unwrap();
        }
        assert!(replace_sources(&from, &to).unwrap_err().to_string().contains("no Go sources"));
        for (file, text) in
            [("to/old.go", ""), ("to/LICENSE", ""), ("from/new.s", "new"), ("from/README", "")]
        {
            fs::write(dir.path().join(file), text).unwrap();
        }
        replace_sources(&from, &to).unwrap();
        let there = |name: &str| to.join(name).exists();
        assert!(!there("old.go") && there("LICENSE") && there("new.s") && !there("README"));
    }
}
