//! The packages of the workspace, and who needs whom.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{DependencyKind, MetadataCommand, TargetKind};
use semver::{Version, VersionReq};

use super::version::is_pin;
use crate::context::Context;

/// A package of the workspace.
#[derive(Debug)]
pub(super) struct Package {
    /// Its name.
    pub(super) name: String,
    /// The version in its manifest.
    pub(super) version: Version,
    /// Where it lies, from the root.
    pub(super) folder: PathBuf,
    /// Whether it is published at all.
    pub(super) published: bool,
    /// What it needs of the workspace.
    pub(super) needs: Vec<Need>,
    /// Whether it has a library.
    pub(super) library: bool,
    /// Fields of the manifest that a registry or a reader misses.
    pub(super) missing: Vec<&'static str>,
}

/// A dependency on a package of the workspace.
#[derive(Clone, Debug)]
pub(super) struct Need {
    /// The package that is needed.
    pub(super) name: String,
    /// Which versions do; none when it is by path alone.
    pub(super) requirement: Option<VersionReq>,
    /// What it is needed for.
    pub(super) kind: DependencyKind,
}

impl Need {
    /// Whether a published package has this dependency too, and not only its tests.
    pub(super) fn ships(&self) -> bool {
        self.kind != DependencyKind::Development && self.requirement.is_some()
    }

    /// Whether one version only will do.
    pub(super) fn pinned(&self) -> bool {
        self.requirement.as_ref().is_some_and(is_pin)
    }
}

/// All packages of the workspace, by name.
#[derive(Debug)]
pub(super) struct Packages {
    list: BTreeMap<String, Package>,
}

impl Packages {
    /// Asks cargo for the manifests. Requirements that contradict each other are no error here: they are to be found.
    ///
    /// # Errors
    ///
    /// When a manifest cannot be read.
    pub(super) fn load(context: &Context) -> Result<Self> {
        let metadata = MetadataCommand::new()
            .cargo_path(&context.cargo)
            .current_dir(&context.root)
            .no_deps()
            .exec()
            .context("cargo cannot read the manifests")?;
        let root = metadata.workspace_root.as_std_path();
        let members = metadata.workspace_packages();
        let names: BTreeMap<&Path, &str> = members
            .iter()
            .filter_map(|package| {
                Some((package.manifest_path.as_std_path().parent()?, package.name.as_str()))
            })
            .collect();
        let mut list = BTreeMap::new();
        for package in &members {
            let folder =
                package.manifest_path.as_std_path().parent().context("a manifest lies in a folder")?;
            let needs = package.dependencies.iter().filter_map(|dependency| {
                let name = *names.get(dependency.path.as_ref()?.as_std_path())?;
                let requirement = Some(&dependency.req).filter(|req| **req != VersionReq::STAR).cloned();
                Some(Need { name: name.to_owned(), requirement, kind: dependency.kind })
            });
            let fields = [
                ("description", package.description.is_none()),
                ("license", package.license.is_none()),
                ("repository", package.repository.is_none()),
                ("readme", package.readme.is_none()),
            ];
            let library = |kind: &TargetKind| matches!(kind, TargetKind::Lib | TargetKind::ProcMacro);
            let loaded = Package {
                name: package.name.to_string(),
                version: package.version.clone(),
                folder: folder.strip_prefix(root).unwrap_or(folder).to_owned(),
                // An empty list of registries is what `publish = false` is.
                published: package.publish.as_ref().is_none_or(|registries| !registries.is_empty()),
                needs: needs.collect(),
                library: package.targets.iter().any(|target| target.kind.iter().any(library)),
                missing: fields.into_iter().filter_map(|(field, missing)| missing.then_some(field)).collect(),
            };
            list.insert(loaded.name.clone(), loaded);
        }
        Ok(Self { list })
    }

    /// Every package.
    pub(super) fn all(&self) -> impl Iterator<Item = &Package> {
        self.list.values()
    }

    /// Those that are published.
    pub(super) fn published(&self) -> impl Iterator<Item = &Package> {
        self.list.values().filter(|package| package.published)
    }

    /// The package with this name, which is compared whole.
    pub(super) fn find(&self, name: &str) -> Option<&Package> {
        self.list.get(name)
    }

    /// The published package with this name.
    ///
    /// # Errors
    ///
    /// Lists the packages when there is none of this name, or says that it is not published.
    pub(super) fn get(&self, name: &str) -> Result<&Package> {
        match self.list.get(name) {
            Some(package) if package.published => Ok(package),
            Some(_) => bail!("{name} is not published: its manifest says `publish = false`"),
            None => {
                let names: Vec<&str> = self.published().map(|package| package.name.as_str()).collect();
                bail!("there is no package `{name}`: the packages are {}", names.join(", "))
            }
        }
    }

    /// The published packages that have `name` as a dependency in what they publish.
    pub(super) fn dependents(&self, name: &str) -> impl Iterator<Item = &Package> {
        self.published()
            .filter(move |package| package.needs.iter().any(|need| need.name == name && need.ships()))
    }

    /// The names and all that they need of the workspace, by what is published.
    pub(super) fn closure(&self, names: impl IntoIterator<Item = String>) -> BTreeSet<String> {
        let mut open: Vec<String> = names.into_iter().collect();
        let mut closure = BTreeSet::new();
        while let Some(name) = open.pop() {
            if let Some(package) = self.list.get(&name).filter(|_| !closure.contains(&name)) {
                open.extend(package.needs.iter().filter(|need| need.ships()).map(|need| need.name.clone()));
                closure.insert(name);
            }
        }
        closure
    }

    /// The published packages, each after what it needs. Dependencies of tests count when they have a version, since
    /// registries and lock files have those too.
    ///
    /// # Errors
    ///
    /// Names a circle.
    pub(super) fn order(&self) -> Result<Vec<&Package>> {
        let mut order: Vec<&Package> = Vec::new();
        let mut open: Vec<&Package> = self.published().collect();
        while !open.is_empty() {
            let waits = |package: &Package| {
                let versioned = package.needs.iter().filter(|need| need.requirement.is_some());
                versioned.into_iter().any(|need| open.iter().any(|other| other.name == need.name))
            };
            let Some(at) = open.iter().position(|package| !waits(package)) else {
                let circle = self.circle(open[0], &open).join(" needs ");
                bail!("packages need each other in a circle: {circle}");
            };
            order.push(open.remove(at));
        }
        Ok(order)
    }

    /// Follows needs among `open`, of which each has one, until a package comes again.
    fn circle<'a>(&self, start: &'a Package, open: &[&'a Package]) -> Vec<String> {
        let mut path: Vec<String> = vec![start.name.clone()];
        loop {
            let last = &self.list[path.last().expect("the path has a start")];
            let next = last
                .needs
                .iter()
                .filter(|need| need.requirement.is_some())
                .find(|need| open.iter().any(|package| package.name == need.name))
                .expect("every package of the rest waits for another one");
            if let Some(at) = path.iter().position(|name| *name == next.name) {
                let mut circle = path.split_off(at);
                circle.push(next.name.clone());
                return circle;
            }
            path.push(next.name.clone());
        }
    }
}
