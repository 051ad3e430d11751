//! What `release check` finds.

use super::scratch::*;
use crate::release::stale;

#[test]
fn a_forgotten_pin_is_found() {
    let scratch = Scratch::released();
    // The version was written by hand, and the pins were not.
    scratch.replace(
        "crates/cloud-providers-local/Cargo.toml",
        "version = \"0.1.0\" #",
        "version = \"0.1.1\" #",
    );
    let refusal = scratch.refused(&["check", "--pending"]);
    assert!(
        refusal.contains("requires cloud-providers-local =0.1.0, and cloud-providers-local is 0.1.1"),
        "{refusal}"
    );
    assert!(refusal.contains("write `version = \"=0.1.1\"` for cloud-providers-local"), "{refusal}");
    assert!(refusal.contains("cloud-providers-bundle: requires cloud-providers-local =0.1.0"), "{refusal}");
    // The pin was mended, and the one who pins was not released with it.
    scratch.replace(
        "Cargo.toml",
        "{ version = \"=0.1.0\", path = \"crates/cloud-providers-local\" }",
        "{ version = \"=0.1.1\", path = \"crates/cloud-providers-local\" }",
    );
    scratch.context.cargo().args(["update", "--workspace", "--quiet"]).stdout().unwrap();
    let refusal = scratch.refused(&["check"]);
    let says = "cloud-providers-bundle: changed since cloud-providers-bundle-v0.1.0 (needs cloud-providers-local 0.1.1 and not =0.1.0)";
    assert!(refusal.contains(says), "{refusal}");
}

#[test]
fn a_requirement_that_is_no_pin_is_found_where_one_has_to_be() {
    for (package, by) in [(LOCAL, BUNDLE), (BUNDLE, CAA)] {
        let scratch = Scratch::released();
        scratch.replace(
            "Cargo.toml",
            &format!("{package} = {{ version = \"=0.1.0\""),
            &format!("{package} = {{ version = \"0.1.0\""),
        );
        let refusal = scratch.refused(&["check", "--pending"]);
        assert!(
            refusal.contains(&format!("{by}: requires {package} ^0.1.0, which other versions meet too")),
            "{refusal}"
        );
        assert!(refusal.contains("pin it: `version = \"=0.1.0\"`"), "{refusal}");
    }
}

#[test]
fn a_circle_and_a_dependency_that_cannot_be_published_are_found() {
    let scratch = Scratch::released();
    let manifest = "crates/cloud-providers/Cargo.toml";
    let circle = "cloud-providers-local.workspace = true\n";
    scratch.replace(manifest, "helper.workspace = true\n", &format!("helper.workspace = true\n{circle}"));
    let refusal = scratch.refused(&["check", "--pending"]);
    assert!(
        refusal.contains("in a circle: cloud-providers needs cloud-providers-local needs cloud-providers"),
        "{refusal}"
    );
    // By path alone it is none: that is not published.
    scratch.replace(manifest, circle, "cloud-providers-local = { path = \"../cloud-providers-local\" }\n");
    scratch.context.cargo().args(["update", "--workspace", "--quiet"]).stdout().unwrap();
    scratch.news(CONTRACT, "- **fixed:** a fault");
    scratch.xtask(&["check", "--pending"]).unwrap();

    let scratch = Scratch::released();
    scratch.replace(
        "crates/cloud-providers-local/Cargo.toml",
        "[dependencies]\n",
        "[dependencies]\nhelper = { path = \"../../helper\" }\n",
    );
    assert!(scratch.refused(&["check", "--pending"]).contains("needs helper by path alone"));
    scratch.replace(
        "crates/cloud-providers-local/Cargo.toml",
        "helper = { path",
        "helper = { version = \"0.0.0\", path",
    );
    assert!(
        scratch.refused(&["check", "--pending"]).contains("needs helper by version, which is not published")
    );
}

#[test]
fn what_is_missing_inside_of_a_package_is_found() {
    let scratch = Scratch::released();
    std::fs::remove_file(scratch.path("crates/caa/LICENSE")).unwrap();
    scratch.replace(
        "crates/caa/Cargo.toml",
        "readme = \"README.md\"\n",
        "readme = false\nexclude = [\"README.md\"]\n",
    );
    scratch.replace("crates/cloud-providers-local/Cargo.toml", "description = \"For a test.\"\n", "");
    let refusal = scratch.refused(&["check", "--pending"]);
    for says in [
        "caa: is packed without LICENSE\n    mend: ln -s ../../LICENSE crates/caa/LICENSE",
        "caa: is packed without README.md",
        "cloud-providers-local: has no description",
    ] {
        assert!(refusal.contains(says), "{says}\n{refusal}");
    }
}

#[test]
fn a_file_that_the_manifest_names_and_that_is_not_there_is_one_of_the_findings() {
    let scratch = Scratch::released();
    // Cargo then packs nothing, and says nothing of the licence.
    for file in ["LICENSE", "README.md"] {
        std::fs::remove_file(scratch.path(&format!("crates/caa/{file}"))).unwrap();
    }
    std::fs::remove_file(scratch.path("crates/cloud-providers-local/LICENSE")).unwrap();
    let refusal = scratch.refused(&["check", "--pending"]);
    for says in [
        "caa: is packed without LICENSE\n    mend: ln -s ../../LICENSE crates/caa/LICENSE",
        "caa: is packed without README.md\n    mend: write crates/caa/README.md",
        "cloud-providers-local: is packed without LICENSE",
    ] {
        assert!(refusal.contains(says), "{says}\n{refusal}");
    }
    let stale = stale(&scratch.context).unwrap();
    let places: Vec<&str> = stale
        .iter()
        .filter(|found| found.what == "has no LICENSE")
        .map(|found| found.place.as_str())
        .collect();
    assert_eq!(places, ["caa", "cloud-providers-local"]);
}

#[test]
fn tidy_is_told_of_a_circle_with_everything_else() {
    let scratch = Scratch::released();
    scratch.replace(
        "crates/cloud-providers/Cargo.toml",
        "helper.workspace = true\n",
        "helper.workspace = true\ncloud-providers-local.workspace = true\n",
    );
    scratch.news(CAA, "- no kind");
    let found: Vec<String> = stale(&scratch.context).unwrap().iter().map(ToString::to_string).collect();
    assert!(
        found.iter().any(|found| found.contains("in a circle") && found.contains("mend: leave out")),
        "{found:?}"
    );
    assert!(found.iter().any(|found| found.contains("has no kind")), "{found:?}");
}

#[test]
fn a_page_and_a_lock_file_that_are_out_of_date_are_found() {
    let scratch = Scratch::released();
    scratch.replace("docs/versions.md", "| caa | 0.1.0 |", "| caa | 0.0.9 |");
    scratch.replace(
        "Cargo.lock",
        "name = \"caa\"\nversion = \"0.1.0\"",
        "name = \"caa\"\nversion = \"0.0.9\"",
    );
    let refusal = scratch.refused(&["check", "--pending"]);
    assert!(refusal.contains("docs/versions.md: is out of date"), "{refusal}");
    assert!(refusal.contains("Cargo.lock: cargo metadata --locked failed"), "{refusal}");
    let shown = scratch.xtask(&["table"]).unwrap();
    assert!(shown.contains("+| caa | 0.1.0 |"), "{shown}");
    scratch.xtask(&["table", "--execute"]).unwrap();
    assert!(!scratch.refused(&["check", "--pending"]).contains("versions.md"));
}

#[test]
fn changes_that_nobody_sees_need_no_release_and_inherited_ones_do() {
    let scratch = Scratch::released();
    scratch.write("crates/cloud-providers-local/tests/more.rs", "// A test.\n");
    scratch.commit("[cloud-providers-local] a test");
    scratch.xtask(&["check"]).unwrap();
    assert!(scratch.xtask(&["plan"]).unwrap().contains("nothing to release"));
    scratch.replace("Cargo.toml", "https://example.org/scratch", "https://example.org/moved");
    let refusal = scratch.refused(&["check", "--pending"]);
    assert_eq!(
        refusal.matches("(Cargo.toml: the field repository), and its changelog does not tell").count(),
        5,
        "{refusal}"
    );
}

#[test]
fn one_package_is_released_while_others_wait() {
    let scratch = Scratch::released();
    for package in [LOCAL, VSPHERE] {
        scratch.touch(package);
        scratch.news(package, "- **fixed:** a fault");
    }
    scratch.commit("[all] mend");
    scratch.xtask(&["prepare", LOCAL, "patch", "--execute"]).unwrap();
    // The bundle needs the other provider as it was released: what is here was never tested with that.
    let refusal = scratch.refused(&["check", LOCAL, BUNDLE]);
    assert!(refusal.contains("cloud-providers-vsphere: changed since"), "{refusal}");
    assert!(scratch.refused(&["check", "--pending"]).contains("cloud-providers-vsphere: changed since"));
    let again = scratch.xtask(&["prepare", LOCAL, "patch"]).unwrap();
    assert!(again.contains("warning: cloud-providers-vsphere is needed and changed"), "{again}");
    // By itself the provider can be released.
    scratch.xtask(&["check", LOCAL]).unwrap();
}

#[test]
fn packed_packages_are_built_without_the_workspace() {
    let scratch = Scratch::released();
    scratch.xtask(&["check", "--all"]).unwrap();
    // A file of the repository is there for every build but that of a user.
    scratch.replace(
        "crates/cloud-providers-vsphere/src/lib.rs",
        "pub fn level",
        "pub const LICENCE: &str = include_str!(\"../../../LICENSE\");\n\npub fn level",
    );
    scratch.news(VSPHERE, "- **added:** the licence");
    scratch.context.cargo().args(["check", "--quiet"]).stdout().unwrap();
    // This one was built before, in the same folder: what has changed since is built anew.
    let refusal = scratch.refused(&["check", "--pending", "--all"]);
    assert!(refusal.contains("cloud-providers-vsphere: does not build by itself"), "{refusal}");
    assert!(!refusal.contains("cloud-providers-local: does not build"), "{refusal}");
}
