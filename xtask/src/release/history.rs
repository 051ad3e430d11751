//! What git knows: the tags of releases, and what changed since.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result};
use semver::{Version, VersionReq};
use toml::{Table, Value};

use super::packages::{Package, Packages};
use crate::context::Context;

/// Files of a package whose change is none for those who use it.
const UNSEEN: &[&str] = &["CHANGELOG.md", "benches", "tests"];

/// The name of the tag of a release.
pub(super) fn tag_name(package: &str, version: &Version) -> String {
    format!("{package}-v{version}")
}

/// The version that a tag is of, when it is one of this package.
///
/// The name is compared whole: what follows it has to be a version, so `a-b-v0.1.0` is no tag of `a`.
fn version_of(tag: &str, package: &str) -> Option<Version> {
    Version::parse(tag.strip_prefix(package)?.strip_prefix("-v")?).ok()
}

/// The tags of the repository.
#[derive(Debug)]
pub(super) struct Tags {
    /// The commit of each.
    all: BTreeMap<String, String>,
    /// Those that are part of what is checked out.
    merged: BTreeSet<String>,
}

impl Tags {
    /// Asks git.
    ///
    /// # Errors
    ///
    /// When this is no repository, or it has no commit.
    pub(super) fn load(context: &Context) -> Result<Self> {
        // The commit of an annotated tag stands in the second place, of another one in the first.
        let format = "--format=%(refname:strip=2) %(objectname) %(*objectname)";
        let list = |more: &[&str]| -> Result<BTreeMap<String, String>> {
            let text = context.git().args(["for-each-ref", format]).args(more).arg("refs/tags").stdout()?;
            let line = |line: &str| {
                let mut words = line.split_whitespace();
                Some((words.next()?.to_owned(), words.next_back()?.to_owned()))
            };
            Ok(text.lines().filter_map(line).collect())
        };
        Ok(Self { all: list(&[])?, merged: list(&["--merged=HEAD"])?.into_keys().collect() })
    }

    /// The last release of a package in what is checked out.
    pub(super) fn last(&self, package: &str) -> Option<Version> {
        self.merged.iter().filter_map(|tag| version_of(tag, package)).max()
    }

    /// The commit at which a version was tagged, wherever that is.
    pub(super) fn commit(&self, package: &str, version: &Version) -> Option<&str> {
        self.all.get(&tag_name(package, version)).map(String::as_str)
    }
}

/// What changed in a package since its last release.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// The commits that touch it.
    pub(super) commits: usize,
    /// What differs for those who use it, in words. Empty when nothing does.
    pub(super) what: Vec<String>,
    /// What it required of the workspace when it was released.
    pub(super) required: BTreeMap<String, VersionReq>,
}

/// Compares what is on disk with the last release.
///
/// # Errors
///
/// When git fails or a manifest cannot be read.
pub(super) fn changes(
    context: &Context,
    packages: &Packages,
    package: &Package,
    last: &Version,
) -> Result<Changes> {
    let tag = tag_name(&package.name, last);
    let mut git = Git { context, tag: &tag };
    let count = git.run(&["rev-list", "--count", &format!("{tag}..HEAD")], package)?;
    let mut changes = Changes { commits: count.trim().parse().unwrap_or(0), ..Changes::default() };
    // Packages that lie in the folder of another one are no part of it.
    let nested: Vec<&Path> = packages
        .all()
        .filter(|other| other.name != package.name && other.folder.starts_with(&package.folder))
        .map(|other| other.folder.as_path())
        .collect();
    let mut files: BTreeSet<String> = BTreeSet::new();
    for args in [
        &["diff", "--name-only", "--no-renames", "-z", &tag][..],
        &["ls-files", "--others", "--exclude-standard", "-z"],
    ] {
        files.extend(git.run(args, package)?.split('\0').filter(|file| !file.is_empty()).map(str::to_owned));
    }
    let seen = |file: &&String| {
        let path = Path::new(file.as_str());
        let inside = path.strip_prefix(&package.folder).unwrap_or(path);
        let unseen = inside.iter().next().is_some_and(|first| UNSEEN.iter().any(|name| first == *name));
        !unseen && !nested.iter().any(|folder| path.starts_with(folder))
    };
    changes.what.extend(files.iter().filter(seen).cloned());

    let manifest = package.folder.join("Cargo.toml");
    let old = (git.table(Path::new("Cargo.toml"))?, git.table(&manifest)?);
    let new = (read(context, Path::new("Cargo.toml"))?, read(context, &manifest)?);
    changes.required = required(&old.0, &old.1, packages);
    for (name, requirement) in &changes.required {
        if let Some(needed) = packages.find(name).filter(|needed| !requirement.matches(&needed.version)) {
            changes.what.push(format!("needs {name} {} and not {requirement}", needed.version));
        }
    }
    changes.what.extend(inherited(&old, &new, packages));
    Ok(changes)
}

struct Git<'a> {
    context: &'a Context,
    tag: &'a str,
}

impl Git<'_> {
    fn run(&mut self, args: &[&str], package: &Package) -> Result<String> {
        self.context.git().args(args).arg("--").arg(&package.folder).stdout()
    }

    /// A manifest as it was at the tag; empty when it was not there.
    fn table(&mut self, path: &Path) -> Result<Table> {
        let object = format!("{}:{}", self.tag, path.display());
        if self.context.git().args(["cat-file", "-e", &object]).stdout().is_err() {
            return Ok(Table::new());
        }
        let text = self.context.git().args(["show", &object]).stdout()?;
        text.parse().with_context(|| format!("{object} is not understood"))
    }
}

fn read(context: &Context, path: &Path) -> Result<Table> {
    let path = context.root.join(path);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    text.parse().with_context(|| format!("{} is not understood", path.display()))
}

const KINDS: &[&str] = &["dependencies", "build-dependencies"];

/// Every dependency that ships, by the name in the manifest.
fn dependencies(manifest: &Table) -> Vec<(&String, &Value)> {
    let targets = manifest.get("target").and_then(Value::as_table);
    let targets = targets.into_iter().flat_map(Table::values).filter_map(Value::as_table);
    std::iter::once(manifest)
        .chain(targets)
        .flat_map(|table| KINDS.iter().filter_map(|kind| table.get(*kind)?.as_table()))
        .flatten()
        .collect()
}

fn is_inherited(value: &Value) -> bool {
    value.get("workspace").and_then(Value::as_bool) == Some(true)
}

fn shared<'a>(root: &'a Table, table: &str, name: &str) -> Option<&'a Value> {
    root.get("workspace")?.get(table)?.get(name)
}

/// The requirements on packages of the workspace.
fn required(root: &Table, manifest: &Table, packages: &Packages) -> BTreeMap<String, VersionReq> {
    let mut required = BTreeMap::new();
    for (name, value) in dependencies(manifest) {
        let value = if is_inherited(value) { shared(root, "dependencies", name) } else { Some(value) };
        let package = value.and_then(|value| value.get("package")?.as_str()).unwrap_or(name);
        let text = value.and_then(|value| value.as_str().or_else(|| value.get("version")?.as_str()));
        if let (Some(package), Some(Ok(requirement))) = (packages.find(package), text.map(VersionReq::parse))
        {
            required.insert(package.name.clone(), requirement);
        }
    }
    required
}

/// What the root of the workspace changed for this package: fields and foreign dependencies.
fn inherited(old: &(Table, Table), new: &(Table, Table), packages: &Packages) -> Vec<String> {
    let mut what = Vec::new();
    for (name, _) in dependencies(&new.1).into_iter().filter(|(_, value)| is_inherited(value)) {
        let (was, is) = (shared(&old.0, "dependencies", name), shared(&new.0, "dependencies", name));
        let ours = |value: &Value| value.get("path").is_some() && packages.find(name).is_some();
        if was != is && !is.is_some_and(ours) && was.is_some() {
            what.push(format!("Cargo.toml: the dependency {name}"));
        }
    }
    let fields = new.1.get("package").and_then(Value::as_table);
    for (field, _) in fields.into_iter().flatten().filter(|(_, value)| is_inherited(value)) {
        if shared(&old.0, "package", field) != shared(&new.0, "package", field) {
            what.push(format!("Cargo.toml: the field {field}"));
        }
    }
    what
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tags_are_compared_whole() {
        for (tag, package, version) in [
            ("cloud-providers-v0.1.0", "cloud-providers", Some("0.1.0")),
            ("cloud-providers-local-v0.1.0", "cloud-providers", None),
            ("cloud-providers-vsphere-v0.1.0", "cloud-providers", None),
            ("cloud-providers-vsphere-v0.1.0", "cloud-providers-vsphere", Some("0.1.0")),
            ("cloud-providers-v0.2.0-v1", "cloud-providers", Some("0.2.0-v1")),
            ("cloud-providers-v0.1", "cloud-providers", None),
            ("cloud-providers-0.1.0", "cloud-providers", None),
            ("x-cloud-providers-v0.1.0", "cloud-providers", None),
        ] {
            assert_eq!(version_of(tag, package), version.map(|text| Version::parse(text).unwrap()), "{tag}");
        }
    }
}
