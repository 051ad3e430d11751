//! What a stage depends on, as one hash; and which commit it was last green at.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use cargo_metadata::{Metadata, PackageId};
use sha2::{Digest as _, Sha256};

use crate::context::Context;

/// A hash over named parts.
#[derive(Clone, Default)]
pub(crate) struct Digest(Sha256);

impl Digest {
    /// Starts with nothing.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds bytes, with their length, so that neighbouring parts cannot run into each other.
    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
        self
    }

    /// Adds text.
    pub(crate) fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    /// Returns the first 16 hexadecimal digits.
    pub(crate) fn short(self) -> String {
        self.0.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The inputs of stages: files of packages, their dependencies in the workspace, and their lock entries.
pub(crate) struct Inputs<'a> {
    context: &'a Context,
    metadata: &'a Metadata,
    files: Vec<PathBuf>,
    base: Digest,
}

impl<'a> Inputs<'a> {
    /// Lists the files of the workspace once.
    ///
    /// # Errors
    ///
    /// Fails when the workspace is no git work tree.
    pub(crate) fn new(context: &'a Context, metadata: &'a Metadata) -> Result<Self> {
        // The kernel is an input as well: most heavy stages make namespaces and tunnels.
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let base = Digest::new().text(&context.rustc).text(&kernel);
        Ok(Self { context, metadata, files: context.files()?, base })
    }

    /// Returns the hash over everything that `packages` are built and tested from, and over `extra` files or folders.
    ///
    /// # Errors
    ///
    /// Names a package that does not exist or a file that cannot be read.
    pub(crate) fn hash(&self, packages: &[&str], extra: &[&str]) -> Result<String> {
        let closure = self.closure(packages)?;
        let mut folders: BTreeSet<PathBuf> = extra.iter().map(PathBuf::from).collect();
        folders.extend(["Cargo.toml", "rust-toolchain.toml", ".cargo", "tests/fixtures"].map(PathBuf::from));
        let mut digest = self.base.clone();
        for id in closure {
            let package = &self.metadata[id];
            if package.source.is_none() {
                let manifest = package.manifest_path.as_std_path();
                let folder = manifest.parent().context("a manifest lies in a folder")?;
                folders.insert(folder.strip_prefix(&self.context.root).unwrap_or(folder).to_owned());
            } else {
                digest = digest.text(&id.repr);
            }
        }
        for file in self.files.iter().filter(|file| lies_in(file, &folders)) {
            let path = self.context.root.join(file);
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            digest = digest.text(&file.to_string_lossy()).bytes(&bytes);
        }
        Ok(digest.short())
    }

    /// Returns the packages and all that they depend on, for whatever purpose.
    fn closure(&self, packages: &[&str]) -> Result<BTreeSet<&'a PackageId>> {
        let resolve = self.metadata.resolve.as_ref().context("cargo metadata has no dependency graph")?;
        let mut open = Vec::new();
        for name in packages {
            let found = self.metadata.workspace_packages().into_iter().find(|package| package.name == *name);
            open.push(&found.with_context(|| format!("there is no package {name} in the workspace"))?.id);
        }
        let mut seen = BTreeSet::new();
        while let Some(id) = open.pop() {
            if seen.insert(id) {
                let node = resolve.nodes.iter().find(|node| node.id == *id);
                open.extend(node.into_iter().flat_map(|node| &node.dependencies));
            }
        }
        Ok(seen)
    }
}

/// Whether `file` is one of `folders` or lies in one, but not in a package nested in it.
fn lies_in(file: &Path, folders: &BTreeSet<PathBuf>) -> bool {
    file.ancestors().any(|ancestor| folders.contains(ancestor))
}

/// Remembers with which inputs a stage was green, and at which commit.
#[derive(Debug)]
pub(crate) struct GreenRuns {
    folder: PathBuf,
}

impl GreenRuns {
    /// Keeps the records in the cache.
    pub(crate) fn new(context: &Context) -> Self {
        Self { folder: context.cache.join("green") }
    }

    /// Returns the commit at which `stage` was green with these inputs, and what it said of itself.
    pub(crate) fn find(&self, stage: &str, hash: &str) -> Option<(String, String)> {
        let text = std::fs::read_to_string(self.file(stage, hash)).ok()?;
        let (commit, summary) = text.split_once('\n').unwrap_or((&text, ""));
        Some((commit.trim().to_owned(), summary.trim().to_owned())).filter(|(commit, _)| !commit.is_empty())
    }

    /// Records that `stage` was green with these inputs.
    ///
    /// # Errors
    ///
    /// Fails when the cache cannot be written.
    pub(crate) fn record(&self, stage: &str, hash: &str, commit: &str, summary: &str) -> Result<()> {
        std::fs::create_dir_all(&self.folder)
            .and_then(|()| std::fs::write(self.file(stage, hash), format!("{commit}\n{summary}\n")))
            .with_context(|| format!("cannot write to {}", self.folder.display()))
    }

    fn file(&self, stage: &str, hash: &str) -> PathBuf {
        self.folder.join(format!("{}-{hash}", stage.replace([':', '/'], "-")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cannot_run_into_each_other() {
        assert_ne!(Digest::new().text("ab").text("c").short(), Digest::new().text("a").text("bc").short());
        assert_eq!(Digest::new().text("a").short(), Digest::new().text("a").short());
    }

    #[test]
    fn a_file_lies_in_its_folder_or_is_it() {
        let folders = BTreeSet::from([PathBuf::from("crates/caa"), PathBuf::from("Cargo.toml")]);
        assert!(lies_in(Path::new("crates/caa/src/lib.rs"), &folders));
        assert!(lies_in(Path::new("Cargo.toml"), &folders));
        assert!(!lies_in(Path::new("crates/caa-more/src/lib.rs"), &folders));
        assert!(!lies_in(Path::new("xtask/Cargo.toml"), &folders));
    }

    #[test]
    fn inputs_of_a_package_change_with_its_dependencies_only() {
        let context = Context::from_process().unwrap();
        let metadata = context.metadata().unwrap();
        let inputs = Inputs::new(&context, &metadata).unwrap();
        let proto = inputs.closure(&["peerpod-proto"]).unwrap();
        let gateway = inputs.closure(&["peerpod-gateway"]).unwrap();
        assert!(gateway.is_superset(&proto) && gateway != proto);
        assert_ne!(
            inputs.hash(&["peerpod-proto"], &[]).unwrap(),
            inputs.hash(&["peerpod-gateway"], &[]).unwrap()
        );
        assert!(inputs.hash(&["no-such-package"], &[]).is_err());
    }

    #[test]
    fn a_green_run_is_found_again_by_its_inputs() {
        let dir = tempfile::tempdir().unwrap();
        let runs = GreenRuns { folder: dir.path().join("green") };
        assert_eq!(runs.find("demo", "1"), None);
        runs.record("demo", "1", "abc", "4 tests").unwrap();
        assert_eq!(runs.find("demo", "1"), Some(("abc".to_owned(), "4 tests".to_owned())));
        assert_eq!(runs.find("demo", "2"), None);
        assert_eq!(runs.find("bench", "1"), None);
    }
}
