//! The project outside: the example, with versions in place of the workspace.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use cargo_metadata::Metadata;
use toml::{Table, Value};

use super::scratch::{Scratch, copy, ours};
use crate::command::Run;

const EXAMPLE: &str = "docs/examples/minimal-provider";

/// A project that depends on our crates by version.
pub(super) struct Project {
    folder: PathBuf,
    /// Its manifest, for whoever makes another one of it.
    pub(super) manifest: Table,
}

impl Project {
    /// Copies the example and writes its manifest anew.
    pub(super) fn create(scratch: &Scratch, metadata: &Metadata) -> Result<Self> {
        let workspace = scratch.path("workspace");
        let read = |path: &Path| -> Result<Table> {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            text.parse().with_context(|| format!("{} is not understood", path.display()))
        };
        let example = read(&workspace.join(EXAMPLE).join("Cargo.toml"))?;
        let root = read(&workspace.join("Cargo.toml"))?;
        let versions: Vec<(String, String)> =
            ours(metadata).map(|package| (package.name.to_string(), package.version.to_string())).collect();
        let manifest = detach(example, &root, &versions)?;
        Self::write(scratch, "project", manifest)
    }

    /// Writes a project with this manifest and the code of the example.
    pub(super) fn write(scratch: &Scratch, name: &str, manifest: Table) -> Result<Self> {
        let (from, folder) = (scratch.path("workspace").join(EXAMPLE), scratch.path(name));
        let mut open = vec![from.clone()];
        while let Some(next) = open.pop() {
            for entry in std::fs::read_dir(&next)? {
                let path = entry?.path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    copy(&path, &folder.join(path.strip_prefix(&from)?))?;
                }
            }
        }
        std::fs::write(folder.join("Cargo.toml"), toml::to_string(&manifest)?)?;
        Ok(Self { folder, manifest })
    }

    pub(super) fn cargo(&self, scratch: &Scratch) -> Run {
        scratch.cargo(&self.folder)
    }

    /// Resolves the dependencies and returns `Cargo.lock`.
    pub(super) fn lock(&self, scratch: &Scratch) -> Result<String> {
        self.cargo(scratch).args(["generate-lockfile", "--quiet"]).stdout()?;
        Ok(std::fs::read_to_string(self.folder.join("Cargo.lock"))?)
    }

    /// Builds the daemon and returns its path.
    pub(super) fn build(&self, scratch: &Scratch, features: &[&str]) -> Result<PathBuf> {
        self.cargo(scratch).arg("build").args(features).visible(super::LIMIT)?;
        Ok(scratch.path("target/debug/cloud-api-adaptor"))
    }

    /// Checks that our crates came from the registry, in the versions of the workspace, and nothing from a path.
    pub(super) fn knows_versions_only(&self, metadata: &Metadata) -> Result<()> {
        let lock: Table = std::fs::read_to_string(self.folder.join("Cargo.lock"))?.parse()?;
        let packages = lock.get("package").and_then(Value::as_array).context("Cargo.lock has no packages")?;
        let text = |package: &Value, key: &str| package.get(key).and_then(Value::as_str).map(str::to_owned);
        for name in ["caa", "cloud-providers", "cloud-providers-conformance"] {
            let found = packages.iter().find(|package| text(package, "name").as_deref() == Some(name));
            let found = found.with_context(|| format!("the project does not use {name}"))?;
            let wanted = ours(metadata).find(|package| package.name == name).map(|p| p.version.to_string());
            ensure!(
                text(found, "version") == wanted,
                "the project uses another {name} than {wanted:?}: {found}"
            );
        }
        let without: Vec<String> =
            packages.iter().filter(|p| p.get("source").is_none()).filter_map(|p| text(p, "name")).collect();
        ensure!(without == ["minimal-provider"], "these came from no registry: {without:?}");
        Ok(())
    }
}

/// Replaces everything that a package takes from its workspace.
fn detach(mut example: Table, root: &Table, versions: &[(String, String)]) -> Result<Table> {
    let shared = root.get("workspace").and_then(Value::as_table).context("Cargo.toml has no workspace")?;
    let package =
        example.get_mut("package").and_then(Value::as_table_mut).context("the example is no package")?;
    for (key, value) in package.iter_mut() {
        if value.get("workspace").is_some() {
            let of_workspace = shared.get("package").and_then(|package| package.get(key));
            *value = of_workspace.with_context(|| format!("the workspace has no {key}"))?.clone();
        }
    }
    example.remove("lints");
    for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(dependencies) = example.get_mut(kind).and_then(Value::as_table_mut) else { continue };
        for (name, dependency) in dependencies.iter_mut() {
            let of_workspace = shared.get("dependencies").and_then(|dependencies| dependencies.get(name));
            let of_workspace = of_workspace.with_context(|| format!("the workspace does not know {name}"))?;
            *dependency = merged(name, dependency, of_workspace, versions)?;
        }
    }
    let bins = example.get_mut("bin").and_then(Value::as_array_mut).context("the example has no program")?;
    for bin in bins.iter_mut().filter_map(Value::as_table_mut) {
        bin.insert("name".to_owned(), "cloud-api-adaptor".into());
    }
    // No workspace above may claim it.
    example.insert("workspace".to_owned(), Table::new().into());
    Ok(example)
}

/// The dependency of the workspace with what the package adds, and a version in place of a path.
fn merged(name: &str, own: &Value, shared: &Value, versions: &[(String, String)]) -> Result<Value> {
    let mut table = match shared {
        Value::Table(table) => table.clone(),
        version => Table::from_iter([("version".to_owned(), version.clone())]),
    };
    if table.remove("path").is_some() {
        let (_, version) = versions
            .iter()
            .find(|(package, _)| package == name)
            .with_context(|| format!("{name} is not published, so that nobody outside can use it"))?;
        table.entry("version").or_insert_with(|| version.clone().into());
    }
    for (key, value) in own.as_table().into_iter().flatten().filter(|(key, _)| *key != "workspace") {
        ensure!(key != "path", "{name} has a path of its own: use the workspace's");
        table.insert(key.clone(), value.clone());
    }
    Ok(table.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_workspace_is_left_in_the_manifest() {
        let example: Table = r#"
            [package]
            name = "x"
            edition.workspace = true
            [lints]
            workspace = true
            [dependencies]
            ours.workspace = true
            theirs = { workspace = true, features = ["more"] }
            [dev-dependencies]
            suite.workspace = true
            [[bin]]
            name = "y"
        "#
        .parse()
        .unwrap();
        let root: Table = r#"
            [workspace.package]
            edition = "2024"
            [workspace.dependencies]
            ours = { version = "0.1.0", path = "crates/ours", default-features = false }
            suite = { path = "crates/suite" }
            theirs = "1"
        "#
        .parse()
        .unwrap();
        let versions = [("ours", "0.1.0"), ("suite", "0.3.0")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        let text = toml::to_string(&detach(example.clone(), &root, &versions).unwrap()).unwrap();
        for part in
            ["edition = \"2024\"", "version = \"0.3.0\"", "features = [\"more\"]", "default-features = false"]
        {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        for part in ["path", "workspace = true", "[lints]"] {
            assert!(!text.contains(part), "{part} is in {text}");
        }
        let error = detach(example, &root, &versions[..1]).unwrap_err();
        assert!(error.to_string().contains("suite is not published"), "{error:#}");
    }
}
