//! What the bundle offers: providers by feature, the programs that choose among them, and sets worth building.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use cargo_metadata::{DependencyKind, Metadata, Package, TargetKind};

use crate::context::Context;

/// The package whose features are the providers.
pub(crate) const BUNDLE: &str = "cloud-providers-bundle";
/// The table of a provider's manifest that says how it is built: `[package.metadata.cloud-providers]`.
const TABLE: &str = "cloud-providers";

/// A provider, as the bundle's manifest has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Listed {
    /// Its feature, which is also the name it registers.
    pub(crate) feature: String,
    /// Its package.
    pub(crate) package: String,
    /// Why it is not built unless asked for, such as the SDK of a vendor.
    pub(crate) heavy: Option<String>,
    /// Why a program with it cannot be linked statically.
    pub(crate) dynamic: Option<String>,
}

/// A package with programs that choose among the providers by features of their own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Chooser {
    /// The package.
    pub(crate) package: String,
    /// Its programs.
    pub(crate) bins: Vec<String>,
    /// They are of use without any provider: `providers = "optional"` in the manifest's metadata.
    pub(crate) optional: bool,
}

/// A choice of providers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Set {
    /// What it is called: `none`, a provider, `light` or `all`.
    pub(crate) name: String,
    /// The features.
    pub(crate) features: BTreeSet<String>,
    /// Whether one of them is heavy.
    pub(crate) heavy: bool,
}

/// Returns the providers, sorted by feature.
///
/// # Errors
///
/// When a feature of the bundle names no provider, or a provider has no feature.
pub(crate) fn providers(metadata: &Metadata) -> Result<Vec<Listed>> {
    let bundle = package(metadata, BUNDLE)?;
    let mut listed = Vec::new();
    for (feature, enables) in bundle.features.iter().filter(|(feature, _)| *feature != "default") {
        let name = enables.iter().find_map(|enabled| enabled.strip_prefix("dep:"));
        let name = name.with_context(|| {
            format!("feature {feature} of {BUNDLE} turns on no provider: write {feature} = [\"dep:…\"]")
        })?;
        let provider = package(metadata, name)?;
        let note = |key: &str| Some(provider.metadata.get(TABLE)?.get(key)?.as_str()?.to_owned());
        let (heavy, dynamic) = (note("heavy"), note("dynamic"));
        listed.push(Listed { feature: feature.clone(), package: name.to_owned(), heavy, dynamic });
    }
    for dependency in bundle.dependencies.iter().filter(|dependency| dependency.optional) {
        let has_feature = listed.iter().any(|provider| provider.package == dependency.name);
        ensure!(has_feature, "{BUNDLE} depends on {} without a feature for it", dependency.name);
    }
    Ok(listed)
}

/// Returns the packages with programs that depend on the bundle and are published.
///
/// # Errors
///
/// When one of them does not forward every provider: its users could not choose it.
pub(crate) fn choosers(metadata: &Metadata, providers: &[Listed]) -> Result<Vec<Chooser>> {
    let mut choosers = Vec::new();
    for package in metadata.workspace_packages() {
        let uses = |dependency: &&cargo_metadata::Dependency| {
            dependency.name == BUNDLE && dependency.kind == DependencyKind::Normal
        };
        let bins: Vec<String> = package.targets.iter().filter(is_bin).map(|bin| bin.name.clone()).collect();
        // What is never published has no users who would choose.
        let published = package.publish.as_ref().is_none_or(|registries| !registries.is_empty());
        if bins.is_empty() || !published || !package.dependencies.iter().any(|dependency| uses(&dependency)) {
            continue;
        }
        for feature in providers.iter().map(|provider| &provider.feature) {
            let forwarded = format!("{BUNDLE}/{feature}");
            ensure!(
                package.features.get(feature).is_some_and(|enables| enables.contains(&forwarded)),
                "{} does not forward the provider {feature}: add {feature} = [\"{forwarded}\"] to its features",
                package.name
            );
        }
        let optional = package.metadata["cloud-providers"]["providers"] == "optional";
        choosers.push(Chooser { package: package.name.to_string(), bins, optional });
    }
    ensure!(!choosers.is_empty(), "no program depends on {BUNDLE}");
    Ok(choosers)
}

/// Returns the sets: none, each provider alone, all light ones, and with `heavy` also all of them.
pub(crate) fn sets(providers: &[Listed], heavy: bool) -> Vec<Set> {
    let of = |name: &str, chosen: &dyn Fn(&Listed) -> bool| {
        let chosen: Vec<&Listed> = providers.iter().filter(|provider| chosen(provider)).collect();
        let features = chosen.iter().map(|provider| provider.feature.clone()).collect();
        Set { name: name.to_owned(), features, heavy: chosen.iter().any(|provider| provider.heavy.is_some()) }
    };
    let mut sets = vec![of("none", &|_| false)];
    sets.extend(providers.iter().map(|one| of(&one.feature, &|provider| provider == one)));
    sets.push(of("light", &|provider| provider.heavy.is_none()));
    if providers.iter().any(|provider| provider.heavy.is_some()) {
        sets.push(of("all", &|_| true));
    }
    sets.retain(|set| heavy || !set.heavy);
    sets
}

impl Set {
    /// Whether a program with it can be linked statically.
    pub(crate) fn is_static(&self, providers: &[Listed]) -> bool {
        !providers
            .iter()
            .any(|provider| provider.dynamic.is_some() && self.features.contains(&provider.feature))
    }

    /// The arguments of cargo that choose exactly this set.
    pub(crate) fn args(&self) -> Vec<String> {
        let mut args = vec!["--no-default-features".to_owned()];
        if !self.features.is_empty() {
            args.push("--features".to_owned());
            args.push(self.features.iter().cloned().collect::<Vec<_>>().join(","));
        }
        args
    }
}

/// The packages that are linked into `package` with these features, as `name vX.Y.Z`, for one target.
///
/// # Errors
///
/// When `cargo tree` fails.
pub(crate) fn linked(context: &Context, package: &str, set: &Set, triple: &str) -> Result<BTreeSet<String>> {
    let args = ["tree", "--locked", "--edges", "normal,no-proc-macro", "--prefix", "none"];
    let run = context.cargo().args(args).args(["--format", "{p}", "--package", package]);
    let tree = run.args(["--target", triple]).args(set.args()).stdout()?;
    let name = |line: &str| {
        let mut words = line.split_whitespace();
        Some(format!("{} {}", words.next()?, words.next()?))
    };
    Ok(tree.lines().filter_map(name).collect())
}

/// A package of the workspace.
///
/// # Errors
///
/// When there is none of this name.
pub(crate) fn package<'a>(metadata: &'a Metadata, name: &str) -> Result<&'a Package> {
    let found = metadata.workspace_packages().into_iter().find(|package| package.name == name);
    found.with_context(|| format!("there is no package {name} in the workspace"))
}

/// Whether a target is a program.
pub(crate) fn is_bin(target: &&cargo_metadata::Target) -> bool {
    target.kind.contains(&TargetKind::Bin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(feature: &str, heavy: bool) -> Listed {
        let heavy = heavy.then(|| "the SDK of a vendor".to_owned());
        Listed {
            feature: feature.into(),
            package: format!("cloud-providers-{feature}"),
            heavy,
            dynamic: None,
        }
    }

    fn names(sets: &[Set]) -> Vec<&str> {
        sets.iter().map(|set| set.name.as_str()).collect()
    }

    #[test]
    fn providers_and_programs_are_those_of_the_manifests() {
        let context = Context::from_process().unwrap();
        let metadata = context.metadata().unwrap();
        let providers = providers(&metadata).unwrap();
        let of = |feature: &str| providers.iter().find(|provider| provider.feature == feature).unwrap();
        assert_eq!(of("local").package, "cloud-providers-local");
        assert_eq!((of("local").heavy.as_ref(), of("local").dynamic.as_ref()), (None, None));
        assert!(of("libvirt").dynamic.is_some());
        let choosers = choosers(&metadata, &providers).unwrap();
        let caa = choosers.iter().find(|chooser| chooser.package == "caa").unwrap();
        assert!(caa.bins.contains(&"cloud-api-adaptor".to_owned()), "{caa:?}");
    }

    #[test]
    fn a_provider_that_a_program_does_not_forward_is_named() {
        let context = Context::from_process().unwrap();
        let metadata = context.metadata().unwrap();
        let error = choosers(&metadata, &[listed("nowhere", false)]).unwrap_err().to_string();
        assert!(error.contains("nowhere = [\"cloud-providers-bundle/nowhere\"]"), "{error}");
    }

    #[test]
    fn heavy_providers_are_built_when_asked_for_only() {
        let providers = [listed("aws", true), listed("docker", false), listed("local", false)];
        assert_eq!(names(&sets(&providers, false)), ["none", "docker", "local", "light"]);
        let all = sets(&providers, true);
        assert_eq!(names(&all), ["none", "aws", "docker", "local", "light", "all"]);
        assert_eq!(all[4].args(), ["--no-default-features", "--features", "docker,local"]);
        assert_eq!(all[0].args(), ["--no-default-features"]);
    }

    #[test]
    fn without_features_no_provider_is_linked() {
        let context = Context::from_process().unwrap();
        let metadata = context.metadata().unwrap();
        let providers = providers(&metadata).unwrap();
        let set = sets(&providers, false).remove(0);
        let linked = linked(&context, "caa", &set, "x86_64-unknown-linux-gnu").unwrap();
        assert!(linked.iter().any(|package| package.starts_with("cloud-providers-bundle v")), "{linked:?}");
        for provider in &providers {
            let prefix = format!("{} v", provider.package);
            assert!(!linked.iter().any(|package| package.starts_with(&prefix)), "{prefix}");
        }
    }
}
