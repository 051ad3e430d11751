//! What the light part of the workspace is: every package and feature that compiles no SDK of a vendor.
//!
//! A manifest marks what is heavy, and all that turns it on is heavy with it:
//!
//! ```toml
//! [package.metadata.cloud-providers]
//! heavy = "why"             # the package, or only what the next line names
//! heavy-features = ["sdk"]  # without them the package is as light as others
//! ```

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use cargo_metadata::{Dependency, Metadata, Package};

use crate::command::Run;
use crate::context::Context;

const TABLE: &str = "cloud-providers";

/// A package with a heavy part.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Heavy {
    /// The package.
    pub(crate) package: String,
    /// Why it is heavy.
    pub(crate) why: String,
    /// Its heavy features; none where all of it is heavy.
    pub(crate) features: Vec<String>,
}

/// Returns the packages that are marked, sorted.
pub(crate) fn heavy(metadata: &Metadata) -> Vec<Heavy> {
    let marked = metadata.workspace_packages().into_iter().filter_map(|package| {
        let table = package.metadata.get(TABLE)?;
        let why = table.get("heavy")?.as_str()?.to_owned();
        let features =
            table.get("heavy-features").and_then(|list| list.as_array()).cloned().unwrap_or_default();
        let features = features.iter().filter_map(|feature| Some(feature.as_str()?.to_owned())).collect();
        Some(Heavy { package: package.name.to_string(), why, features })
    });
    let mut marked: Vec<Heavy> = marked.collect();
    marked.sort_by(|a, b| a.package.cmp(&b.package));
    marked
}

/// The arguments of cargo that choose every light package with every light feature.
///
/// # Errors
///
/// When a package needs a heavy one and is not marked itself.
pub(crate) fn arguments(metadata: &Metadata) -> Result<Vec<String>> {
    let mut arguments = vec!["--workspace".to_owned()];
    let found = Found::new(metadata)?;
    for package in &found.packages {
        arguments.extend(["--exclude".to_owned(), package.clone()]);
    }
    if found.packages.is_empty() && found.features.is_empty() {
        arguments.push("--all-features".to_owned());
        return Ok(arguments);
    }
    let mut features = Vec::new();
    // Where another package may have it as a dependency, cargo takes `name/feature` of a command line for a wish of that
    // package too, and turns the dependency on with its default features.
    for package in found.light(metadata).filter(|package| !found.has(&package.name, "default")) {
        let light = |feature: &&String| !found.has(&package.name, feature);
        features.extend(
            package.features.keys().filter(light).map(|feature| format!("{}/{feature}", package.name)),
        );
    }
    arguments.extend(["--no-default-features".to_owned(), "--features".to_owned(), features.join(",")]);
    Ok(arguments)
}

/// The beginning of a cargo command for every light package with every light feature.
///
/// All stages choose the same: other packages or features would compile shared dependencies once more.
///
/// # Errors
///
/// As [`arguments`].
pub(crate) fn command(context: &Context, command: &str) -> Result<Run> {
    Ok(context.cargo().args([command, "--locked"]).args(arguments(&context.metadata()?)?))
}

/// The arguments of cargo that choose the light features of one package; nothing where all of them are light.
pub(crate) fn features(metadata: &Metadata, package: &str) -> Option<Vec<String>> {
    let found = Found::look(metadata);
    let package = metadata.workspace_packages().into_iter().find(|found| found.name == package)?;
    let light: Vec<String> =
        package.features.keys().filter(|feature| !found.has(&package.name, feature)).cloned().collect();
    if light.len() == package.features.len() {
        return None;
    }
    Some(vec!["--no-default-features".to_owned(), "--features".to_owned(), light.join(",")])
}

/// Whether `package` and its `features` are light.
pub(crate) fn is_light(metadata: &Metadata, package: &Package, features: &[String]) -> bool {
    let found = Found::look(metadata);
    let heavy = features.iter().any(|feature| found.has(&package.name, feature));
    !heavy && !found.packages.contains(package.name.as_str())
}

/// What is heavy.
#[derive(Debug, Default)]
struct Found {
    /// Packages of which no part is light.
    packages: BTreeSet<String>,
    /// Features, by package.
    features: BTreeSet<(String, String)>,
}

impl Found {
    fn look(metadata: &Metadata) -> Self {
        let mut found = Self::default();
        for marked in heavy(metadata) {
            if marked.features.is_empty() {
                found.packages.insert(marked.package);
            } else {
                let package = marked.package;
                found.features.extend(marked.features.into_iter().map(|feature| (package.clone(), feature)));
            }
        }
        // Each round finds what turns on something of the round before.
        loop {
            let more: Vec<(String, String)> =
                found.light(metadata).flat_map(|package| found.turning_on(metadata, package)).collect();
            let before = found.features.len();
            found.features.extend(more);
            if found.features.len() == before {
                return found;
            }
        }
    }

    fn new(metadata: &Metadata) -> Result<Self> {
        let found = Self::look(metadata);
        for package in found.light(metadata) {
            let needs = package.dependencies.iter().filter(|dependency| !dependency.optional);
            for dependency in needs {
                ensure!(
                    !found.is_heavy(metadata, dependency),
                    "{} cannot be built without the heavy part of {}: make the dependency optional, choose its features, \
                     or mark the package with `heavy` in [package.metadata.{TABLE}]",
                    package.name,
                    dependency.name
                );
            }
        }
        Ok(found)
    }

    fn light<'a>(&self, metadata: &'a Metadata) -> impl Iterator<Item = &'a Package> {
        let packages = metadata.workspace_packages().into_iter();
        let light = packages.filter(|package| !self.packages.contains(package.name.as_str()));
        light.collect::<Vec<_>>().into_iter()
    }

    fn has(&self, package: &str, feature: &str) -> bool {
        self.features.contains(&(package.to_owned(), feature.to_owned()))
    }

    /// The features of `package` that turn on something heavy.
    fn turning_on(&self, metadata: &Metadata, package: &Package) -> Vec<(String, String)> {
        let by_name: BTreeMap<&str, &Dependency> = package
            .dependencies
            .iter()
            .map(|dependency| (dependency.rename.as_deref().unwrap_or(&dependency.name), dependency))
            .collect();
        let heavy = |enabled: &String| match (enabled.strip_prefix("dep:"), enabled.split_once('/')) {
            (Some(name), _) => by_name.get(name).is_some_and(|d| self.is_heavy(metadata, d)),
            (None, Some((name, feature))) => {
                by_name.get(name.trim_end_matches('?')).is_some_and(|dependency| {
                    self.has(&dependency.name, feature)
                        || !name.ends_with('?') && dependency.optional && self.is_heavy(metadata, dependency)
                })
            }
            (None, None) => self.has(&package.name, enabled),
        };
        let found = package.features.iter().filter(|(_, enables)| enables.iter().any(heavy));
        found.map(|(feature, _)| (package.name.to_string(), feature.clone())).collect()
    }

    /// Whether a dependency as it is declared brings something heavy.
    fn is_heavy(&self, metadata: &Metadata, dependency: &Dependency) -> bool {
        let ours = metadata.workspace_packages().into_iter().any(|package| package.name == dependency.name);
        ours && (self.packages.contains(&dependency.name)
            || dependency.uses_default_features && self.has(&dependency.name, "default")
            || dependency.features.iter().any(|feature| self.has(&dependency.name, feature)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A workspace of packages given by name and the rest of their manifests.
    fn workspace(folder: &Path, packages: &[(&str, &str)]) -> Metadata {
        let names: Vec<String> = packages.iter().map(|(name, _)| format!("{name:?}")).collect();
        let root = format!("[workspace]\nresolver = \"3\"\nmembers = [{}]\n", names.join(", "));
        std::fs::write(folder.join("Cargo.toml"), root).unwrap();
        for (name, rest) in packages {
            std::fs::create_dir_all(folder.join(name).join("src")).unwrap();
            std::fs::write(folder.join(name).join("src/lib.rs"), "").unwrap();
            let manifest =
                format!("[package]\nname = {name:?}\nversion = \"0.1.0\"\nedition = \"2024\"\n{rest}");
            std::fs::write(folder.join(name).join("Cargo.toml"), manifest).unwrap();
        }
        let mut command = cargo_metadata::MetadataCommand::new();
        command
            .current_dir(folder)
            .manifest_path(folder.join("Cargo.toml"))
            .other_options(vec!["--offline".into()]);
        command.exec().unwrap()
    }

    const CLOUD: &str = "[features]\ndefault = [\"sdk\"]\nsdk = []\nfast = []\n[package.metadata.cloud-providers]\nheavy = \"big\"\n";
    const BUNDLE: &str = "[features]\ndefault = [\"small\"]\nsmall = []\ncloud = [\"dep:cloud\"]\n\
                          both = [\"cloud\", \"small\"]\n[dependencies]\n";

    #[test]
    fn everything_is_light_where_nothing_is_marked() {
        let folder = tempfile::tempdir().unwrap();
        let metadata = workspace(folder.path(), &[("one", ""), ("two", "[features]\na = []\n")]);
        assert_eq!(arguments(&metadata).unwrap(), ["--workspace", "--all-features"]);
    }

    #[test]
    fn a_heavy_feature_takes_all_that_turn_it_on_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let cloud = format!("{CLOUD}heavy-features = [\"sdk\"]\n");
        let bundle = format!("{BUNDLE}cloud = {{ path = \"../cloud\", optional = true }}\n");
        let program = "[features]\ncloud = [\"bundle/cloud\"]\nown = []\n[dependencies]\nbundle = { path = \"../bundle\" }\n";
        let packages = [("cloud", cloud.as_str()), ("bundle", &bundle), ("program", program)];
        let metadata = workspace(folder.path(), &packages);
        let arguments = arguments(&metadata).unwrap();
        assert_eq!(arguments[..3], ["--workspace", "--no-default-features", "--features"]);
        let features: BTreeSet<&str> = arguments[3].split(',').collect();
        assert_eq!(features, BTreeSet::from(["bundle/default", "bundle/small", "program/own"]));
        let of_program = super::features(&metadata, "program").unwrap();
        assert_eq!(of_program, ["--no-default-features", "--features", "own"]);
    }

    #[test]
    fn a_heavy_package_is_left_out_whole() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = format!("{BUNDLE}cloud = {{ path = \"../cloud\", optional = true }}\n");
        let metadata = workspace(folder.path(), &[("cloud", CLOUD), ("bundle", &bundle)]);
        let arguments = arguments(&metadata).unwrap();
        assert_eq!(arguments[..3], ["--workspace", "--exclude", "cloud"]);
        assert!(
            arguments
                .last()
                .is_some_and(|features| !features.contains("cloud/") && !features.contains("both"))
        );
        let cloud = crate::bundle::package(&metadata, "cloud").unwrap();
        assert!(!is_light(&metadata, cloud, &[]));
    }

    #[test]
    fn a_package_that_needs_a_heavy_one_has_to_say_so() {
        let folder = tempfile::tempdir().unwrap();
        let cloud = format!("{CLOUD}heavy-features = [\"sdk\"]\n");
        let user = "[dependencies]\ncloud = { path = \"../cloud\" }\n";
        let metadata = workspace(folder.path(), &[("cloud", &cloud), ("user", user)]);
        let error = arguments(&metadata).unwrap_err().to_string();
        assert!(error.contains("user cannot be built without the heavy part of cloud"), "{error}");
        let light = "[dependencies]\ncloud = { path = \"../cloud\", default-features = false }\n";
        let folder = tempfile::tempdir().unwrap();
        assert!(arguments(&workspace(folder.path(), &[("cloud", &cloud), ("user", light)])).is_ok());
    }
}
