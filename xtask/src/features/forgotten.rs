//! The check at a program's start, put to the test: a bundle that forgets a provider's line.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use cargo_metadata::Metadata;

use super::{bins, build};
use crate::bundle::{self, BUNDLE, Chooser, Listed, Set};
use crate::command::Run;
use crate::context::Context;

/// Builds each program with one provider and a bundle in whose source the line of that provider is missing, and demands
/// that the program ends at its start and names the provider. Programs of one group are built at once.
///
/// # Errors
///
/// When such a program starts all the same.
pub(super) fn check(
    context: &Context,
    metadata: &Metadata,
    providers: &[Listed],
    groups: &[&[Chooser]],
) -> Result<()> {
    // All are linked in the same way, so the first light one stands for all.
    let provider = providers.iter().find(|provider| provider.heavy.is_none() && provider.dynamic.is_none());
    let provider = provider.context("there is no light provider to forget")?;
    // Always the same folder: cargo keeps what it builds by the path.
    let folder = context.target.join("forgotten-bundle");
    write_bundle(metadata, &folder, provider)?;
    // Cargo takes a package of the same name and version from there; the lock file stays as it is.
    let config = ["--config".to_owned(), format!("paths=[{folder:?}]")];
    let feature = provider.feature.as_str();
    let set = Set { name: feature.to_owned(), features: [feature.to_owned()].into(), heavy: false };
    for group in groups {
        build(context, group, &set, &config)?;
        for chooser in *group {
            is_refused(context, chooser, feature)?;
        }
    }
    Ok(())
}

/// Demands that a program of the package refuses to start, and removes what was built.
fn is_refused(context: &Context, chooser: &Chooser, feature: &str) -> Result<()> {
    let mut refused = 0;
    for bin in bins(context, chooser) {
        let (code, _, stderr) = Run::new(&bin).arg("help").env_clear().answer(Duration::from_secs(30))?;
        let told = stderr.contains(&format!("provider {feature} was compiled in but did not register"));
        refused += usize::from(told && code.is_some_and(|code| code != 0));
        // What was built here must never be taken for the real one.
        std::fs::remove_file(&bin).with_context(|| format!("cannot remove {}", bin.display()))?;
    }
    if refused == 0 {
        bail!(
            "no program of {} notices at its start that {feature} did not register: call {}::check() first",
            chooser.package,
            BUNDLE.replace('-', "_")
        );
    }
    context.say(format!("{} with a bundle that forgets {feature}: refused at its start", chooser.package));
    Ok(())
}

/// Writes a copy of the bundle without the line that names the provider.
fn write_bundle(metadata: &Metadata, folder: &Path, provider: &Listed) -> Result<()> {
    let bundle = bundle::package(metadata, BUNDLE)?;
    let source = bundle.manifest_path.parent().context("a manifest lies in a folder")?;
    std::fs::create_dir_all(folder.join("src"))
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    std::fs::copy(source.join("README.md"), folder.join("README.md"))?;
    let text = std::fs::read_to_string(source.join("src/lib.rs")).context("the bundle has a src/lib.rs")?;
    std::fs::write(folder.join("src/lib.rs"), without_line(&text, &provider.package)?)?;

    let mut manifest = format!("[package]\nname = {BUNDLE:?}\nversion = \"{}\"\n", bundle.version);
    writeln!(manifest, "edition = \"{}\"\n\n[dependencies]", bundle.edition)?;
    for dependency in &bundle.dependencies {
        let path =
            dependency.path.as_ref().context("the bundle depends on packages of the workspace only")?;
        let (name, req, optional) = (&dependency.name, &dependency.req, dependency.optional);
        writeln!(manifest, "{name} = {{ path = {path:?}, version = \"{req}\", optional = {optional} }}")?;
    }
    manifest.push_str("\n[features]\n");
    for (feature, enables) in &bundle.features {
        writeln!(manifest, "{feature} = {enables:?}")?;
    }
    std::fs::write(folder.join("Cargo.toml"), manifest)?;
    Ok(())
}

/// Takes the line out that names the package.
fn without_line(text: &str, package: &str) -> Result<String> {
    let line = format!("use {} as _;", package.replace('-', "_"));
    ensure!(text.lines().any(|found| found == line), "src/lib.rs of {BUNDLE} has no line `{line}`");
    // The line before it is the condition on the feature, and an attribute needs something to stand on.
    Ok(text.replace(&line, "const _: () = ();"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_provider_is_taken_out() {
        let text = "#[cfg(feature = \"a\")]\nuse cloud_providers_a as _;\nfn f() {}\n";
        let without = without_line(text, "cloud-providers-a").unwrap();
        assert_eq!(without, "#[cfg(feature = \"a\")]\nconst _: () = ();\nfn f() {}\n");
        assert!(
            without_line(text, "cloud-providers-b").unwrap_err().to_string().contains("cloud_providers_b")
        );
    }
}
