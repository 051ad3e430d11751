//! A small workspace in a repository of its own, with a cargo that sees nothing of this machine's.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::command::Run;
use crate::context::Context;
use crate::registry::{NAME, Registry, Upstream};
use crate::release::{command, run_to};

pub(super) const CONTRACT: &str = "cloud-providers";
pub(super) const LOCAL: &str = "cloud-providers-local";
/// With `-v` behind it, the name of the contract is the beginning of this one.
pub(super) const VSPHERE: &str = "cloud-providers-vsphere";
pub(super) const BUNDLE: &str = "cloud-providers-bundle";
pub(super) const CAA: &str = "caa";
pub(super) const ALL: [&str; 5] = [CONTRACT, LOCAL, VSPHERE, BUNDLE, CAA];

const ROOT: &str = r#"[workspace]
resolver = "3"
members = ["crates/*", "helper"]

[workspace.package]
edition = "2024"
license = "Apache-2.0"
repository = "https://example.org/scratch"

[workspace.dependencies]
# Comments stay.
cloud-providers = { version = "0.1.0", path = "crates/cloud-providers" }
cloud-providers-bundle = { version = "=0.1.0", path = "crates/cloud-providers-bundle" }
cloud-providers-local = { version = "=0.1.0", path = "crates/cloud-providers-local" } # the first one
cloud-providers-vsphere = { version = "=0.1.0", path = "crates/cloud-providers-vsphere" }
helper = { path = "helper" }

[profile.dev]
debug = 0
"#;

/// A workspace in a repository; it goes with the value.
pub(super) struct Scratch {
    dir: tempfile::TempDir,
    pub(super) context: Context,
    pub(super) registry: Option<Registry>,
}

impl Scratch {
    /// Five packages that were never released, committed.
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let real = Context::from_process().unwrap();
        // A home of its own: what an earlier registry at the same port had must not be found in a cache.
        let script = format!(
            "#!/bin/sh\nCARGO_TERM_QUIET=true CARGO_HOME={:?} exec {:?} \"$@\"\n",
            path("cargo-home"),
            real.cargo
        );
        std::fs::write(path("cargo"), script).unwrap();
        std::fs::set_permissions(path("cargo"), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::create_dir_all(path(".cargo")).unwrap();
        std::fs::write(path(".cargo/config.toml"), "[net]\noffline = true\n").unwrap();
        let context = Context {
            root: path("ws"),
            cache: path("cache"),
            target: path("target"),
            target_is_given: true,
            cargo: path("cargo").into(),
            // No program of this machine is found by chance.
            path: vec![path("bin")],
            rustc: real.rustc,
            advisory_db: None,
            kubebuilder_assets: None,
            source_date_epoch: None,
            quiet_stdout: false,
        };
        let scratch = Self { dir, context, registry: None };
        scratch.write("Cargo.toml", ROOT);
        scratch.write("LICENSE", "Do what the licence says.\n");
        let by_path = "\n[dev-dependencies]\nhelper.workspace = true\n";
        scratch.package(
            CONTRACT,
            &format!("[features]\nscripted = []\n{by_path}"),
            "pub const LEVEL: u32 = 1;\n",
        );
        let code = "pub fn level() -> u32 {\n    cloud_providers::LEVEL\n}\n";
        scratch.package(LOCAL, "[dependencies]\ncloud-providers.workspace = true\n", code);
        scratch.package(VSPHERE, "[dependencies]\ncloud-providers.workspace = true\n", code);
        let needs = "[dependencies]\ncloud-providers.workspace = true\ncloud-providers-local.workspace = true\n\
                     cloud-providers-vsphere.workspace = true\n";
        scratch.package(BUNDLE, needs, "pub use cloud_providers_local::level;\n");
        let needs = "[dependencies]\ncloud-providers-bundle.workspace = true\n\n\
                     [dev-dependencies]\ncloud-providers = { workspace = true, features = [\"scripted\"] }\n";
        scratch.package(CAA, needs, "pub use cloud_providers_bundle::level;\n");
        scratch.write("crates/caa/src/main.rs", "fn main() {\n    println!(\"{}\", caa::level());\n}\n");
        scratch.write(
            "helper/Cargo.toml",
            "[package]\nname = \"helper\"\nversion = \"0.0.0\"\nedition.workspace = true\npublish = false\n\n\
             [dependencies]\ncloud-providers.workspace = true\n",
        );
        scratch.write("helper/src/lib.rs", "");
        scratch.write("helper/CHANGELOG.md", "# Changelog of helper\n\n## Unreleased\n");
        scratch.git(&["init", "--quiet", "--initial-branch", "main"]);
        for (key, value) in [("user.name", "Tester"), ("user.email", "tester@example.org")] {
            scratch.git(&["config", key, value]);
        }
        scratch.context.cargo().args(["generate-lockfile", "--quiet"]).stdout().unwrap();
        scratch.xtask(&["table", "--execute"]).unwrap();
        scratch.commit("[all] begin");
        scratch
    }

    /// The same after a release of everything as 0.1.0.
    pub(super) fn released() -> Self {
        let scratch = Self::new();
        scratch.xtask(&["prepare", "--all", "--execute"]).unwrap();
        scratch.commit("[release] 5 packages");
        for package in ALL {
            scratch.git(&["tag", "--annotate", "--message", "a release", &format!("{package}-v0.1.0")]);
        }
        scratch
    }

    fn package(&self, name: &str, more: &str, code: &str) {
        let folder = format!("crates/{name}");
        self.write(
            &format!("{folder}/Cargo.toml"),
            &format!(
                "[package]\nname = \"{name}\"\nversion = \"0.1.0\" # by cargo xtask release\n\
                 description = \"For a test.\"\nedition.workspace = true\nlicense.workspace = true\n\
                 repository.workspace = true\nreadme = \"README.md\"\n\n{more}"
            ),
        );
        self.write(&format!("{folder}/src/lib.rs"), code);
        self.write(&format!("{folder}/README.md"), &format!("# {name}\n"));
        self.write(
            &format!("{folder}/CHANGELOG.md"),
            &format!("# Changelog of {name}\n\n## Unreleased\n\n- **added:** everything\n"),
        );
        std::os::unix::fs::symlink("../../LICENSE", self.path(&format!("{folder}/LICENSE"))).unwrap();
    }

    /// A path in the workspace.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.context.root.join(path)
    }

    /// Writes a file of the workspace.
    pub(super) fn write(&self, path: &str, text: &str) {
        let file = self.path(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }

    /// Reads a file of the workspace.
    pub(super) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Replaces a text that stands in a file.
    pub(super) fn replace(&self, path: &str, from: &str, to: &str) {
        let text = self.read(path);
        assert!(text.contains(from), "{path} has no {from:?}:\n{text}");
        self.write(path, &text.replace(from, to));
    }

    /// Adds a line to the news of a package.
    pub(super) fn news(&self, package: &str, line: &str) {
        let log = format!("crates/{package}/CHANGELOG.md");
        self.replace(&log, "## Unreleased\n", &format!("## Unreleased\n\n{line}\n"));
    }

    /// Changes the code of a package in a way that breaks nobody.
    pub(super) fn touch(&self, package: &str) {
        let file = format!("crates/{package}/src/lib.rs");
        self.write(&file, &format!("// Another thought.\n{}", self.read(&file)));
    }

    pub(super) fn git(&self, args: &[&str]) -> String {
        Run::new("git").current_dir(&self.context.root).args(args).stdout().unwrap().trim().to_owned()
    }

    pub(super) fn commit(&self, message: &str) {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message", message]);
    }

    /// The tags, sorted.
    pub(super) fn tags(&self) -> Vec<String> {
        self.git(&["tag", "--list"]).lines().map(str::to_owned).collect()
    }

    /// Runs `cargo xtask release` with these words and returns what it prints; a failure carries that too.
    pub(super) fn xtask(&self, args: &[&str]) -> Result<String> {
        let matches = command().try_get_matches_from(std::iter::once(&"release").chain(args))?;
        let mut out = Vec::new();
        let code = run_to(&self.context, &matches, &mut out);
        let out = String::from_utf8(out).unwrap();
        match code {
            Ok(code) if code == std::process::ExitCode::SUCCESS => Ok(out),
            Ok(_) => bail!("{out}"),
            Err(error) => bail!("{out}{error:#}"),
        }
    }

    /// Runs it and returns why it fails.
    pub(super) fn refused(&self, args: &[&str]) -> String {
        let before = self.git(&["status", "--porcelain"]);
        let answer = self.xtask(args);
        assert_eq!(self.git(&["status", "--porcelain"]), before, "{args:?} changed files");
        match answer {
            Ok(out) => panic!("{args:?} was not refused:\n{out}"),
            Err(error) => format!("{error:#}"),
        }
    }

    /// Starts the registry, or starts it again with what it had.
    pub(super) fn serve(&mut self) {
        self.registry = None;
        let registry = Registry::serve(&self.dir.path().join("registry"), Upstream::none()).unwrap();
        std::fs::write(self.dir.path().join(".cargo/config.toml"), registry.cargo_config()).unwrap();
        self.registry = Some(registry);
    }

    /// Publishes to the registry.
    pub(super) fn publish(&self, more: &[&str]) -> Result<String> {
        self.xtask(&[&["publish", "--registry", NAME, "--wait", "60"], more].concat())
    }

    /// What the registry has, as `<name> <version>`, sorted.
    pub(super) fn published(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut open = vec![self.dir.path().join("registry/index")];
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    open.push(entry.path());
                    continue;
                }
                for line in std::fs::read_to_string(entry.path()).unwrap().lines() {
                    let line: serde_json::Value = serde_json::from_str(line).unwrap();
                    found.push(format!(
                        "{} {}",
                        line["name"].as_str().unwrap(),
                        line["vers"].as_str().unwrap()
                    ));
                }
            }
        }
        found.sort();
        found
    }

    /// Puts a program on the search path.
    pub(super) fn program(&self, name: &str, script: &str) {
        let file = self.dir.path().join("bin").join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, script).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}
