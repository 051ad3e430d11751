//! Programs that are compiled together with the SDK of a vendor.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cargo_metadata::{Metadata, Package};

use crate::context::Context;
use crate::light;

/// The SDK of EC2 takes ten minutes on two slow processors.
const LIMIT: Duration = Duration::from_secs(60 * 60);

/// The marked packages that stand on no other marked one: the providers that bring an SDK.
pub(crate) fn providers(metadata: &Metadata) -> Vec<String> {
    let marked: Vec<String> = light::heavy(metadata).into_iter().map(|heavy| heavy.package).collect();
    let alone = |name: &&String| !marked.iter().any(|other| stands_on(metadata, name, other));
    marked.iter().filter(alone).cloned().collect()
}

/// The provider `provider` and all that is marked as heavy and stands on it: what is compiled in one go, so that the SDK is
/// compiled once.
pub(crate) fn group(metadata: &Metadata, provider: &str) -> Vec<String> {
    let marked = light::heavy(metadata).into_iter().map(|heavy| heavy.package);
    let above = marked.filter(|name| stands_on(metadata, name, provider));
    std::iter::once(provider.to_owned()).chain(above).collect()
}

/// Whether a package needs another one; for its tests a package may need itself.
fn stands_on(metadata: &Metadata, package: &str, other: &str) -> bool {
    let packages = metadata.workspace_packages();
    let found: Option<&&Package> = packages.iter().find(|found| found.name == package);
    let needs = |package: &&Package| package.dependencies.iter().any(|dependency| dependency.name == other);
    package != other && found.is_some_and(needs)
}

/// Builds a program of the group as the tests of the group build it, and returns where it is.
///
/// # Errors
///
/// When cargo fails.
pub(crate) fn program(context: &Context, provider: &str, name: &str) -> Result<PathBuf> {
    let mut cargo =
        context.cargo().args(["test", "--locked", "--all-features", "--lib", "--bins", "--tests"]);
    for package in group(&context.metadata()?, provider) {
        cargo = cargo.args(["--package", &package]);
    }
    context.say(format!("building {name} with the SDK of a vendor: minutes and gigabytes, the first time"));
    cargo.args(["--no-run", "--quiet"]).visible(LIMIT)?;
    let path = context.target.join("debug").join(name);
    ensure!(path.is_file(), "cargo built no {}", path.display());
    path.canonicalize().context("a program that was built has a path")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_on_the_sdk_of_ec2_is_compiled_with_it() {
        let metadata = Context::from_process().unwrap().metadata().unwrap();
        assert!(providers(&metadata).contains(&"cloud-providers-aws".to_owned()));
        assert!(!providers(&metadata).contains(&"storm".to_owned()));
        let group = group(&metadata, "cloud-providers-aws");
        assert_eq!(group, ["cloud-providers-aws", "setup-aws", "storm"]);
    }
}
