//! A provider for another version of the contract in one program with our daemon.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use cargo_metadata::Metadata;
use cargo_metadata::semver::Version;
use toml::{Table, Value};

use super::project::Project;
use super::scratch::{Scratch, ours};
use crate::command::Run;
use crate::registry::NAME;

const CONTRACT: &str = "cloud-providers";

/// Publishes the contract once more, under the next version that is not compatible, and checks that cargo refuses a
/// project whose provider is for that one while its daemon is for this one.
///
/// Each version would have a list of registrations of its own, and the daemon would not find the provider.
pub(super) fn refused(scratch: &Scratch, project: &Project, metadata: &Metadata) -> Result<()> {
    let contract = ours(metadata).find(|package| package.name == CONTRACT).context("there is no contract")?;
    let next = next_incompatible(&contract.version);
    publish_as(scratch, &contract.version, &next)?;

    let mut manifest = project.manifest.clone();
    let dependency = manifest.get_mut("dependencies").and_then(|all| all.get_mut(CONTRACT));
    let dependency =
        dependency.and_then(Value::as_table_mut).context("the project does not use the contract")?;
    dependency.insert("version".to_owned(), next.to_string().into());
    let skewed = Project::write(scratch, "skew", manifest)?;
    let error =
        skewed.lock(scratch).err().context("a provider for another version of the contract is accepted")?;
    let text = format!("{error:#}");
    let old = contract.version.to_string();
    for part in [&format!("links = \"{CONTRACT}\""), &old, &next.to_string(), "caa", "minimal-provider"] {
        ensure!(text.contains(part), "the refusal does not name {part}: {text}");
    }
    println!("a provider for {CONTRACT} {next} beside a daemon for {old} is refused:\n{text}");
    Ok(())
}

/// Takes the published archive, gives it another version and publishes it.
fn publish_as(scratch: &Scratch, version: &Version, next: &Version) -> Result<()> {
    let archive = scratch.registry().join("archives").join(format!("{CONTRACT}-{version}.crate"));
    let folder = scratch.path("skew");
    std::fs::create_dir_all(&folder)?;
    Run::new("tar").arg("xzf").arg(archive).arg("-C").arg(&folder).stdout()?;
    let package = folder.join(format!("{CONTRACT}-{version}"));
    let path = package.join("Cargo.toml");
    let mut manifest: Table = std::fs::read_to_string(&path)?.parse()?;
    let table =
        manifest.get_mut("package").and_then(Value::as_table_mut).context("the archive is no package")?;
    table.insert("version".to_owned(), next.to_string().into());
    std::fs::write(&path, toml::to_string(&manifest)?)?;
    publish(scratch, &package)
}

fn publish(scratch: &Scratch, package: &Path) -> Result<()> {
    // Cargo made these for the archive, and packs no folder that has them already.
    for made in ["Cargo.toml.orig", ".cargo_vcs_info.json"] {
        let _ = std::fs::remove_file(package.join(made));
    }
    scratch.cargo(package).args(["publish", "--registry", NAME, "--no-verify"]).stdout()?;
    std::fs::remove_dir_all(package)?;
    Ok(())
}

/// The least version that a requirement of `version` does not accept.
fn next_incompatible(version: &Version) -> Version {
    match (version.major, version.minor) {
        (0, 0) => Version::new(0, 0, version.patch + 1),
        (0, minor) => Version::new(0, minor + 1, 0),
        (major, _) => Version::new(major + 1, 0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_incompatible_version_changes_the_leftmost_digit_that_counts() {
        for (version, wanted) in [("0.0.3", "0.0.4"), ("0.1.7", "0.2.0"), ("1.4.2", "2.0.0")] {
            assert_eq!(next_incompatible(&version.parse().unwrap()).to_string(), wanted);
        }
    }
}
