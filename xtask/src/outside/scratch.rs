//! The folder in which everything lies, and what of it is kept from run to run.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use cargo_metadata::{Metadata, Package};

use super::LIMIT;
use super::project::Project;
use crate::command::Run;
use crate::context::Context;
use crate::registry::Registry;

/// ```text
/// .cargo/config.toml   leads to the registry
/// registry/            what is published in this run
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
    pub(super) fn new(context: &Context, metadata: &Metadata) -> Result<Self> {
        let root = context.cache.join("outside");
        std::fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        let root = root.canonicalize()?;
        ensure!(
            !root.starts_with(metadata.workspace_root.as_std_path()),
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
        Run::new(&self.cargo)
            .current_dir(folder)
            .env("CARGO_HOME", self.path("cargo-home"))
            .env("CARGO_TARGET_DIR", self.path("target"))
            // Nobody debugs what is built here.
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
    }

    /// Publishes every package that may be published, in the order of their dependencies.
    ///
    /// They are not built one by one before: the project builds them as they were published.
    pub(super) fn publish(&self) -> Result<()> {
        let cargo = self.cargo(&self.path("workspace"));
        cargo.args(super::publish_args()).args(["--workspace", "--no-verify"]).visible(LIMIT).map(drop)
    }

    /// Names and versions of what is published.
    pub(super) fn published(&self, metadata: &Metadata) -> Vec<String> {
        ours(metadata).map(|package| format!("{} {}", package.name, package.version)).collect()
    }

    /// Forgets what an earlier run fetched and built of our packages.
    pub(super) fn forget(&self, project: &Project, metadata: &Metadata) -> Result<()> {
        let names: Vec<String> = ours(metadata).map(|package| package.name.to_string()).collect();
        for kind in ["src", "cache"] {
            let registries = self.path("cargo-home/registry").join(kind);
            for registry in entries(&registries) {
                for entry in entries(&registry) {
                    let file = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    // `<name>-<version>`: a name may be the beginning of another one.
                    let is_ours = |name: &String| {
                        let rest = file.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix('-'));
                        rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
                    };
                    if names.iter().any(is_ours) {
                        remove(&entry)?;
                    }
                }
            }
        }
        if self.path("target").exists() {
            let packages = names.iter().flat_map(|name| ["--package", name]);
            // A name that the project does not use is no error of the project.
            let lock = project.lock(self)?;
            let used = |name: &&str| *name == "--package" || lock.contains(&format!("name = \"{name}\"\n"));
            let args: Vec<&str> = packages.collect();
            let args: Vec<&str> = args.chunks(2).filter(|pair| used(&pair[1])).flatten().copied().collect();
            project.cargo(self).arg("clean").args(args).stdout()?;
        }
        Ok(())
    }
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
