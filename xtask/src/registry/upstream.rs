//! The packages of others: those of `Cargo.lock`, from cargo's own cache.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use cargo_metadata::{DependencyKind, Metadata, Package};
use serde::Deserialize;

use super::entry::{Dependency, Entry};
use crate::context::Context;

/// What a registry answers beside what was published to it.
#[derive(Debug, Default)]
pub(crate) struct Upstream {
    entries: BTreeMap<String, Vec<Entry>>,
    archives: BTreeMap<(String, String), PathBuf>,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

impl Upstream {
    /// Nothing: for tests whose packages depend only on each other.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self::default()
    }

    /// Every package of `Cargo.lock` that is not of the workspace.
    ///
    /// # Errors
    ///
    /// When cargo cannot say what the packages are, or `Cargo.lock` cannot be read.
    pub(crate) fn of_workspace(context: &Context) -> Result<Self> {
        let path = context.root.join("Cargo.lock");
        let lock =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // Asking for the metadata makes cargo download what its cache lacks.
        Self::new(&context.metadata()?, &lock)
    }

    fn new(metadata: &Metadata, lock: &str) -> Result<Self> {
        let lock: Lock = toml::from_str(lock).context("Cargo.lock is not understood")?;
        let mut sums: BTreeMap<(String, String), String> = BTreeMap::new();
        for package in lock.package {
            if let Some(sum) = package.checksum {
                sums.insert((package.name, package.version), sum);
            }
        }
        let mut upstream = Self::default();
        for package in &metadata.packages {
            let key = (package.name.to_string(), package.version.to_string());
            // Packages of the workspace, and those of git, have none.
            let Some(sum) = sums.remove(&key) else { continue };
            if let Some(archive) = archive(package) {
                upstream.archives.insert(key, archive);
            }
            let entries = upstream.entries.entry(package.name.to_ascii_lowercase()).or_default();
            entries.push(entry(package, sum));
        }
        Ok(upstream)
    }

    /// Every version of a package, by its name in lower case.
    pub(super) fn entries(&self, name: &str) -> &[Entry] {
        self.entries.get(name).map_or(&[], Vec::as_slice)
    }

    /// The archive of one version.
    pub(super) fn archive(&self, name: &str, version: &str) -> Option<&PathBuf> {
        self.archives.get(&(name.to_owned(), version.to_owned()))
    }
}

/// Cargo unpacks `cache/<registry>/<name>-<version>.crate` to `src/<registry>/<name>-<version>/`.
fn archive(package: &Package) -> Option<PathBuf> {
    let folder = package.manifest_path.as_std_path().parent()?;
    let registry = folder.parent()?;
    let cache = registry.parent()?.parent()?.join("cache").join(registry.file_name()?);
    Some(cache.join(format!("{}-{}.crate", package.name, package.version)))
}

fn entry(package: &Package, cksum: String) -> Entry {
    // Those for development are listed, too: features may name them.
    let deps = package.dependencies.iter().map(dependency).collect();
    let entry = Entry {
        name: package.name.to_string(),
        vers: package.version.to_string(),
        deps,
        cksum,
        features: BTreeMap::new(),
        features2: BTreeMap::new(),
        yanked: false,
        links: package.links.clone(),
        rust_version: package.rust_version.as_ref().map(ToString::to_string),
        v: 1,
    };
    entry.with_features(package.features.clone().into_iter().collect())
}

fn dependency(dependency: &cargo_metadata::Dependency) -> Dependency {
    let kind = match dependency.kind {
        DependencyKind::Build => "build",
        DependencyKind::Development => "dev",
        _ => "normal",
    };
    Dependency {
        name: dependency.rename.clone().unwrap_or_else(|| dependency.name.clone()),
        req: dependency.req.to_string(),
        features: dependency.features.clone(),
        optional: dependency.optional,
        default_features: dependency.uses_default_features,
        target: dependency.target.as_ref().map(ToString::to_string),
        kind: kind.to_owned(),
        registry: None,
        package: dependency.rename.is_some().then(|| dependency.name.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_of_the_lock_file_has_an_entry_and_an_archive() {
        let context = Context::from_process().unwrap();
        let upstream = Upstream::of_workspace(&context).unwrap();
        assert!(upstream.entries.len() > 100, "{}", upstream.entries.len());
        for ((name, version), archive) in &upstream.archives {
            assert!(archive.is_file(), "{name} {version}: {}", archive.display());
        }
        let count: usize = upstream.entries.values().map(Vec::len).sum();
        assert_eq!(count, upstream.archives.len());
        assert!(upstream.entries("cloud-providers").is_empty(), "it is ours");
        // A feature of this one names a dependency for development.
        let syn = upstream.entries("syn");
        assert!(syn.iter().flat_map(|entry| &entry.deps).any(|dep| dep.kind == "dev"), "{syn:?}");
        let serde = &upstream.entries("serde")[0];
        assert!(serde.deps.iter().any(|dep| dep.name == "serde_derive" && dep.optional), "{serde:?}");
    }
}
