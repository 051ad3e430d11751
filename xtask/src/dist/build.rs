//! Builds a program as it ships: optimised, static where possible, and the same bytes wherever it is built.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cargo_metadata::Metadata;

use crate::command::Run;
use crate::context::Context;
use crate::podvm::elf::{Elf, Needs};
use crate::programs::static_triple;
use crate::setup::{self, Need};

const LIMIT: Duration = Duration::from_secs(40 * 60);

/// Packages whose programs are optimised as one whole, which takes a tenth off their size. With the SDK of a vendor
/// that would take more memory than most machines have.
const WHOLE: [&str; 2] = ["peerpod-gateway", "podvm"];

/// What carries the messages of those programs: there speed is worth more than size.
const CARRIERS: [&str; 6] = ["aws-lc-rs", "mio", "rustls", "tokio", "tokio-rustls", "tokio-util"];

/// Where and for what is built.
#[derive(Clone, Debug)]
pub(crate) struct Builder {
    /// The source.
    pub(crate) root: PathBuf,
    /// Where cargo builds to.
    pub(crate) target: PathBuf,
    /// What is built for.
    pub(crate) triple: String,
    /// The commit that programs tell with their version; nothing for builds that do not ship.
    pub(crate) commit: Option<String>,
    /// The time of that commit, in Unix seconds: the only time in what is built.
    pub(crate) epoch: u64,
    /// The folder of the sources that cargo unpacked.
    pub(crate) registry: Option<PathBuf>,
}

/// A program that was built.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    /// The file.
    pub(crate) path: PathBuf,
    /// What it needs to be started; nothing for a static one.
    pub(crate) needs: Needs,
}

impl Builder {
    /// Builds from the workspace.
    ///
    /// # Errors
    ///
    /// When the workspace is no git work tree.
    pub(crate) fn new(context: &Context, metadata: &Metadata) -> Result<Self> {
        let time = context.git().args(["log", "-1", "--format=%ct"]).stdout()?;
        let mut packages = metadata.packages.iter().filter(|package| package.source.is_some());
        let registry = packages.find_map(|package| package.manifest_path.ancestors().nth(2));
        Ok(Self {
            root: context.root.clone(),
            target: context.target.clone(),
            triple: static_triple(context)?,
            commit: None,
            epoch: time.trim().parse().context("git tells no time of the last commit")?,
            registry: registry.map(|path| path.as_std_path().to_owned()),
        })
    }

    /// Builds one program with these features, static or not. What the latter links to is installed.
    ///
    /// # Errors
    ///
    /// When cargo fails, a program that must be static is not, or a library is missing and cannot be installed.
    pub(crate) fn build(
        &self,
        context: &Context,
        package: &str,
        bin: &str,
        features: &[String],
        is_static: bool,
    ) -> Result<Built> {
        if !is_static {
            setup::install(context, Need::Link)?;
        }
        // Only the last step differs between static and dynamic programs, so that both share all that comes before it.
        let how: &[&str] = if is_static {
            &["-C", "target-feature=+crt-static"]
        } else {
            &["-C", "target-feature=-crt-static"]
        };
        let (whole, carriers): (&[&str], _) =
            if WHOLE.contains(&package) { (&["-C", "lto=fat"], &CARRIERS[..]) } else { (&[], &[][..]) };
        let args = ["rustc", "--quiet", "--locked", "--release", "--target", &self.triple];
        let run = self.cargo(context).args(args).args(["--package", package, "--bin", bin]);
        let quick = carriers
            .iter()
            .flat_map(|name| ["--config".to_owned(), format!("profile.release.package.{name}.opt-level=3")]);
        run.args(features).args(quick).arg("--").args(how).args(whole).visible(LIMIT)?;
        let path = self.target.join(&self.triple).join("release").join(bin);
        let bytes = std::fs::read(&path).with_context(|| format!("cargo built no {}", path.display()))?;
        let needs = Elf::parse(&bytes)?.needs()?;
        ensure!(
            !is_static || needs == Needs::default(),
            "{bin} was to be static and needs {}",
            needs.libraries.join(", ")
        );
        Ok(Built { path, needs })
    }

    /// A cargo command in the source, with flags by which no path of this machine gets into what is built.
    pub(crate) fn cargo(&self, context: &Context) -> Run {
        let flags = self.flags("--remap-path-prefix=").join("\x1f");
        let run = context
            .program(&context.cargo)
            .current_dir(&self.root)
            .env("CARGO_TARGET_DIR", &self.target)
            // Flags of the caller would change what is built. These may have blanks, and the separator has none.
            .env_remove("RUSTFLAGS")
            .env("CARGO_ENCODED_RUSTFLAGS", flags)
            .env("CFLAGS", self.flags("-ffile-prefix-map=").join(" "))
            .env("SOURCE_DATE_EPOCH", self.epoch.to_string());
        match &self.commit {
            Some(commit) => run.env("CAA_COMMIT", commit),
            None => run.env_remove("CAA_COMMIT"),
        }
    }

    /// One flag for each folder whose place differs between machines. Cargo names files of the workspace by their path
    /// from its root, so the root is none of them; and with it every clone would compile all packages anew.
    fn flags(&self, flag: &str) -> Vec<String> {
        let to = |from: &Path, to: &str| format!("{flag}{}={to}", from.display());
        let mut flags = vec![to(&self.target, "/target")];
        flags.extend(self.registry.iter().map(|path| to(path, "/registry")));
        flags
    }
}
