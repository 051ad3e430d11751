//! The folder in which everything lies, and what of it is kept from run to run.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use cargo_metadata::{Metadata, Package};

use super::LIMIT;
use crate::command::Run;
use crate::context::Context;
use crate::registry::{NAME, Registry};

/// ```text
/// .cargo/config.toml   leads to the registry
/// registry/            what is published in this run, its token and port kept
/// workspace/           a copy of the files that git knows, as a repository of its own
/// project/  skew/      the projects outside
/// cargo-home/ target/  kept: packages of others are built once
/// ```
pub(super) struct Scratch {
    cargo: std::ffi::OsString,
    root: PathBuf,
}

impl Scratch {
    /// Makes the folder, and copies the workspace as it is, with what is not committed.
    pub(super) fn new(context: &Context) -> Result<Self> {
        let root = context.cache.join("outside");
        std::fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        let root = root.canonicalize()?;
        ensure!(
            !root.starts_with(&context.root),
            "{} lies in the workspace, which is no outside: set XDG_CACHE_HOME to another folder",
            root.display()
        );
        let scratch = Self { cargo: context.cargo.clone(), root };
        for part in ["registry/index", "registry/archives", "workspace", "project", "skew"] {
            remove(&scratch.path(part))?;
        }
        for file in context.files()? {
            copy(&context.root.join(&file), &scratch.path("workspace").join(&file))?;
        }
        // Cargo publishes what is committed.
        for args in [
            &["init", "--quiet", "--initial-branch", "main"][..],
            &["add", "--all", "--force"],
            &[
                "-c",
                "user.name=xtask",
                "-c",
                "user.email=xtask@localhost",
                "commit",
                "--quiet",
                "-m",
                "as it is",
            ],
        ] {
            Run::new("git").current_dir(&scratch.path("workspace")).args(args).stdout()?;
        }
        Ok(scratch)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(super) fn registry(&self) -> PathBuf {
        self.path("registry")
    }

    /// Tells cargo of the registry, everywhere beneath the folder.
    pub(super) fn configure(&self, registry: &Registry) -> Result<()> {
        std::fs::create_dir_all(self.path(".cargo"))?;
        Ok(std::fs::write(self.path(".cargo/config.toml"), registry.cargo_config())?)
    }

    /// A cargo that shares nothing with the one of the workspace.
    pub(super) fn cargo(&self, folder: &Path) -> Run {
        self.with_own_home(Run::new(&self.cargo).current_dir(folder))
    }

    fn with_own_home(&self, run: Run) -> Run {
        run.env("CARGO_HOME", self.path("cargo-home"))
            .env("CARGO_TARGET_DIR", self.path("target"))
            // Nobody debugs what is built here.
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
    }

    /// Asks cargo for the packages of the copy.
    pub(super) fn metadata(&self) -> Result<Metadata> {
        let mut command = cargo_metadata::MetadataCommand::new();
        command
            .cargo_path(&self.cargo)
            .current_dir(self.path("workspace"))
            .env("CARGO_HOME", self.path("cargo-home"));
        command.no_deps().exec().context("cargo does not understand the copy of the workspace")
    }

    /// Releases every package of the copy as a maintainer would: prepared, committed, tagged, published.
    pub(super) fn release(&self) -> Result<()> {
        self.task(&["prepare", "--all", "--no-semver-checks", "--execute"])?;
        self.commit("release of everything")?;
        self.task(&["tag", "--execute"])?;
        self.task(&["publish", "--registry", NAME, "--execute"])
    }

    /// Runs `cargo xtask release` in the copy, by this very program.
    fn task(&self, args: &[&str]) -> Result<()> {
        let program = std::env::current_exe().context("this program does not know where it is")?;
        let run = self.with_own_home(Run::new(program).current_dir(&self.path("workspace")));
        // By this variable the tasks know which workspace they are for.
        let run = run.env("CARGO_MANIFEST_DIR", self.path("workspace/xtask"));
        run.arg("release").args(args).visible(LIMIT).map(drop)
    }

    /// Commits all files: only what is committed is published. The tasks tag with the same name.
    fn commit(&self, message: &str) -> Result<()> {
        for args in [&["add", "--all", "--force"][..], &["commit", "--quiet", "--message", message]] {
            Run::new("git").current_dir(&self.path("workspace")).args(args).stdout()?;
        }
        Ok(())
    }

    /// Forgets what an earlier run fetched and built of our packages.
    ///
    /// What comes from a registry is taken for unchangeable, and here the same version has other content each time.
    pub(super) fn forget(&self, metadata: &Metadata) -> Result<()> {
        let names: Vec<String> = ours(metadata).map(|package| package.name.to_string()).collect();
        for kind in ["src", "cache"] {
            for registry in entries(&self.path("cargo-home/registry").join(kind)) {
                for entry in entries(&registry) {
                    let file = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    if names.iter().any(|name| is_version_of(name, &file)) {
                        remove(&entry)?;
                    }
                }
            }
        }
        if self.path("target").exists() {
            let packages = names.iter().flat_map(|name| ["--package", name]);
            self.cargo(&self.path("workspace")).args(["clean", "--quiet"]).args(packages).stdout()?;
        }
        Ok(())
    }
}

/// Whether a file is called `<name>-<version>…`. One name may be the beginning of another one.
fn is_version_of(name: &str, file: &str) -> bool {
    let rest = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
    rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The packages that are published.
pub(super) fn ours(metadata: &Metadata) -> impl Iterator<Item = &Package> {
    let published =
        |package: &&Package| package.publish.as_ref().is_none_or(|registries| !registries.is_empty());
    metadata.workspace_packages().into_iter().filter(published)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let list = std::fs::read_dir(folder).into_iter().flatten();
    list.filter_map(Result::ok).map(|entry| entry.path()).collect()
}

pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to.parent().context("a file lies in a folder")?)?;
    std::fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Removes a file or a folder, which may be missing.
fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_versions_of_the_very_package_are_its_files() {
        for file in ["cloud-providers-0.1.0", "cloud-providers-0.1.0.crate", "cloud-providers-10.0.0-rc.1"] {
            assert!(is_version_of("cloud-providers", file), "{file}");
        }
        for file in ["cloud-providers", "cloud-providers-local-0.1.0", "caa-0.1.0", "cloud-providersx-0.1.0"]
        {
            assert!(!is_version_of("cloud-providers", file), "{file}");
        }
    }
}
