//! The registry under the cargo that runs the tests.

use std::path::PathBuf;

use super::*;
use crate::command::Run;

/// A folder above packages, with a configuration that leads to the registry and a home of its own for cargo.
struct Scratch {
    dir: tempfile::TempDir,
    registry: Option<Registry>,
}

impl Scratch {
    fn new(upstream: Upstream) -> Self {
        let mut scratch = Self { dir: tempfile::tempdir().unwrap(), registry: None };
        scratch.serve(upstream);
        scratch
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn registry(&self) -> &Registry {
        self.registry.as_ref().unwrap()
    }

    fn serve(&mut self, upstream: Upstream) {
        let registry = Registry::serve(&self.path("registry"), upstream).unwrap();
        std::fs::create_dir_all(self.path(".cargo")).unwrap();
        std::fs::write(self.path(".cargo/config.toml"), registry.cargo_config()).unwrap();
        self.registry = Some(registry);
    }

    fn package(&self, name: &str, version: &str, dependencies: &str, code: &str) {
        let folder = self.path(name);
        std::fs::create_dir_all(folder.join("src")).unwrap();
        std::fs::write(
            folder.join("Cargo.toml"),
            format!(
                "[package]\nname = \"{name}\"\nversion = \"{version}\"\nedition = \"2024\"\n\
                 description = \"For a test.\"\nlicense = \"MIT\"\n\n[dependencies]\n{dependencies}"
            ),
        )
        .unwrap();
        std::fs::write(folder.join("src/lib.rs"), code).unwrap();
    }

    fn cargo(&self, package: &str) -> Run {
        Run::new(Context::from_process().unwrap().cargo)
            .current_dir(&self.path(package))
            .env("CARGO_HOME", self.path("cargo-home"))
            .env("CARGO_TARGET_DIR", self.path("target"))
    }

    fn publish(&self, package: &str) -> Result<String> {
        self.cargo(package).args(["publish", "--registry", NAME]).stdout()
    }
}

const BASE: &str = "/// Answers.\npub fn answer() -> u32 {\n    42\n}\n";

#[test]
fn packages_are_published_and_used_by_version_beside_those_of_others() {
    let mut scratch = Scratch::new(Upstream::of_workspace(&Context::from_process().unwrap()).unwrap());
    scratch.package("base-of-test", "0.1.0", "", BASE);
    let dependency =
        "base = { package = \"base-of-test\", version = \"0.1.0\", path = \"../base-of-test\" }\n";
    scratch.package("upper-of-test", "0.1.0", dependency, "pub use base::answer;\n");
    scratch.publish("base-of-test").unwrap();
    // The second one is verified by cargo: it is built from the archive, with its dependency from the registry.
    scratch.publish("upper-of-test").unwrap();

    let code =
        "pub fn text() -> String {\n    itoa::Buffer::new().format(upper_of_test::answer()).to_owned()\n}\n";
    scratch.package("user", "0.0.0", "upper-of-test = \"0.1\"\nitoa = \"1\"\n", code);
    scratch.cargo("user").args(["check", "--quiet"]).stdout().unwrap();
    let lock = std::fs::read_to_string(scratch.path("user/Cargo.lock")).unwrap();
    assert!(lock.contains("\"base-of-test\"") && !lock.contains("127.0.0.1"), "{lock}");

    // Another start of the server over the same folder, and another home for cargo.
    let before = (scratch.registry().index(), scratch.registry().token().to_owned());
    drop(scratch.registry.take());
    std::fs::remove_dir_all(scratch.path("cargo-home")).unwrap();
    scratch.serve(Upstream::of_workspace(&Context::from_process().unwrap()).unwrap());
    assert_eq!(scratch.registry().token(), before.1);
    scratch.cargo("user").args(["check", "--quiet", "--locked"]).stdout().unwrap();
}

#[test]
fn cargo_shows_why_the_registry_refuses() {
    let scratch = Scratch::new(Upstream::none());
    scratch.package("base-of-test", "0.1.0", "", BASE);
    scratch.publish("base-of-test").unwrap();
    let error = format!("{:#}", scratch.publish("base-of-test").unwrap_err());
    assert!(error.contains("already"), "{error}");

    scratch.package("base_of_test", "0.1.0", "", BASE);
    let error = format!("{:#}", scratch.publish("base_of_test").unwrap_err());
    assert!(error.contains("previously named `base-of-test`"), "{error}");

    scratch.package("upper-of-test", "0.1.0", "", BASE);
    let wrong = scratch.cargo("upper-of-test").env("CARGO_REGISTRIES_REHEARSAL_TOKEN", "wrong");
    let error = format!("{:#}", wrong.args(["publish", "--registry", NAME]).stdout().unwrap_err());
    assert!(error.contains("403") || error.contains("token"), "{error}");

    let without = scratch.path("upper-of-test/Cargo.toml");
    let text = std::fs::read_to_string(&without).unwrap().replace("license = \"MIT\"\n", "");
    std::fs::write(&without, text).unwrap();
    let error = format!("{:#}", scratch.publish("upper-of-test").unwrap_err());
    assert!(error.contains("missing or empty metadata fields: license"), "{error}");
}

#[test]
fn a_yanked_version_is_not_chosen() {
    let scratch = Scratch::new(Upstream::none());
    for version in ["0.1.0", "0.1.1"] {
        scratch.package("base-of-test", version, "", BASE);
        scratch.publish("base-of-test").unwrap();
    }
    scratch.package("user", "0.0.0", "base-of-test = \"0.1\"\n", "");
    let chosen = |scratch: &Scratch| {
        let _ = std::fs::remove_file(scratch.path("user/Cargo.lock"));
        scratch.cargo("user").args(["generate-lockfile", "--quiet"]).stdout().unwrap();
        std::fs::read_to_string(scratch.path("user/Cargo.lock")).unwrap().contains("version = \"0.1.1\"")
    };
    assert!(chosen(&scratch));
    let yank = ["yank", "--registry", NAME, "--version", "0.1.1"];
    scratch.cargo("base-of-test").args(yank).stdout().unwrap();
    assert!(!chosen(&scratch));
    scratch.cargo("base-of-test").args(yank).arg("--undo").stdout().unwrap();
    assert!(chosen(&scratch));
    let error =
        scratch.cargo("base-of-test").args(["yank", "--registry", NAME, "--version", "9.9.9"]).stdout();
    assert!(error.unwrap_err().to_string().contains("does not have a version `9.9.9`"));
}

#[test]
fn a_registry_that_is_not_well_can_be_asked_again() {
    let scratch = Scratch::new(Upstream::none());
    scratch.package("base-of-test", "0.1.0", "", BASE);
    scratch.registry().faults().refuse(Some("base-of-test"));
    let error = format!("{:#}", scratch.publish("base-of-test").unwrap_err());
    assert!(error.contains("the registry is not well"), "{error}");
    scratch.registry().faults().refuse(None);

    // The version is there although publishing failed: whoever resumes must look at the index.
    scratch.registry().faults().lose_answer("base-of-test");
    assert!(scratch.publish("base-of-test").is_err());
    let error = format!("{:#}", scratch.publish("base-of-test").unwrap_err());
    assert!(error.contains("already"), "{error}");

    // Cargo reads the index until the version is there.
    scratch.package("base-of-test", "0.1.1", "", BASE);
    scratch.registry().faults().hide_newest(2);
    scratch.publish("base-of-test").unwrap();
}

#[test]
fn a_folder_is_served_once() {
    let scratch = Scratch::new(Upstream::none());
    let error = Registry::serve(&scratch.path("registry"), Upstream::none()).err().unwrap();
    assert!(error.to_string().contains("served by another process"), "{error:#}");
}
