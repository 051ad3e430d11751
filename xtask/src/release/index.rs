//! What a registry has, asked through cargo: it knows the protocols, the certificates and the tokens.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use cargo_metadata::MetadataCommand;
use semver::Version;
use serde::Deserialize;

use crate::context::Context;

/// A registry.
pub(super) struct Index<'a> {
    context: &'a Context,
    registry: Option<String>,
    /// A package outside of any workspace that depends on what is looked for.
    probe: tempfile::TempDir,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: Version,
    checksum: Option<String>,
}

impl<'a> Index<'a> {
    /// The registry of this name in the configuration of cargo, or crates.io.
    ///
    /// # Errors
    ///
    /// When a temporary folder cannot be made.
    pub(super) fn new(context: &'a Context, registry: Option<&str>) -> Result<Self> {
        let probe = tempfile::tempdir().context("cannot make a temporary folder")?;
        std::fs::create_dir(probe.path().join("src"))?;
        std::fs::write(probe.path().join("src/lib.rs"), "")?;
        Ok(Self { context, registry: registry.map(str::to_owned), probe })
    }

    /// How cargo is told to read from this registry.
    ///
    /// Dependencies without a registry are of crates.io, also in a package that is published elsewhere. So another
    /// registry stands in for crates.io, or the packages would not find each other.
    pub(super) fn config(&self) -> Vec<String> {
        match self.registry.as_deref() {
            None | Some("crates-io") => Vec::new(),
            Some(name) => vec!["--config".to_owned(), format!("source.crates-io.replace-with=\"{name}\"")],
        }
    }

    /// How cargo is told to pack for this registry, or to publish to it.
    pub(super) fn args(&self) -> Vec<String> {
        let mut args = self.config();
        args.extend(self.registry.iter().flat_map(|name| ["--registry".to_owned(), name.clone()]));
        args
    }

    /// Its name for people.
    pub(super) fn name(&self) -> &str {
        self.registry.as_deref().unwrap_or("crates.io")
    }

    /// The newest version that meets a requirement, with the checksum of its package.
    ///
    /// # Errors
    ///
    /// When the registry does not answer, when the version was withdrawn, or when what it needs is missing.
    pub(super) fn find(&self, name: &str, requirement: &str) -> Result<Option<(Version, String)>> {
        let manifest = self.write_probe(name, requirement)?;
        let lock = self.probe.path().join("Cargo.lock");
        let _ = std::fs::remove_file(&lock);
        let cargo =
            self.context.cargo().args(["generate-lockfile", "--quiet", "--manifest-path"]).arg(manifest);
        if let Err(error) = cargo.args(self.config()).stdout() {
            let text = error.to_string();
            if text.contains("is yanked") || text.contains("are yanked") {
                bail!(
                    "{name} {requirement} was withdrawn (yanked) from {}: it needs a new version",
                    self.name()
                );
            }
            let missing = [
                format!("no matching package named `{name}` found"),
                format!("failed to select a version for the requirement `{name} = \"{requirement}\"`"),
            ];
            if missing.iter().any(|missing| text.contains(missing)) {
                return Ok(None);
            }
            return Err(error.context(format!("cannot look for {name} {requirement} in {}", self.name())));
        }
        let lock: Lock =
            toml::from_str(&std::fs::read_to_string(lock)?).context("cargo wrote no lock file")?;
        let found = lock.package.into_iter().filter(|package| package.name == name);
        let newest = found.max_by(|left, right| left.version.cmp(&right.version));
        Ok(newest.and_then(|package| Some((package.version, package.checksum?))))
    }

    /// The folder to which cargo unpacked a version that the registry has.
    ///
    /// # Errors
    ///
    /// When it cannot be fetched.
    pub(super) fn fetch(&self, name: &str, version: &Version) -> Result<PathBuf> {
        let manifest = self.write_probe(name, &format!("={version}"))?;
        let metadata = MetadataCommand::new()
            .cargo_path(&self.context.cargo)
            .current_dir(&self.context.root)
            .manifest_path(manifest)
            .other_options(self.config())
            .exec()
            .with_context(|| format!("cannot fetch {name} {version} from {}", self.name()))?;
        let package =
            metadata.packages.iter().find(|package| package.name == name && package.version == *version);
        let folder =
            package.and_then(|package| package.manifest_path.parent()).context("cargo fetched nothing")?;
        Ok(folder.as_std_path().to_owned())
    }

    fn write_probe(&self, name: &str, requirement: &str) -> Result<PathBuf> {
        let manifest = self.probe.path().join("Cargo.toml");
        let text = format!(
            "[package]\nname = \"release-probe\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n\
             [dependencies]\n{name} = \"{requirement}\"\n"
        );
        std::fs::write(&manifest, text)?;
        Ok(manifest)
    }
}
