//! Releases from the first change to the tags, as docs/development/releasing.md tells them.

use super::scratch::*;

#[test]
fn a_first_release_of_everything() {
    let scratch = Scratch::new();
    let status = scratch.xtask(&["status"]).unwrap();
    let row = status.lines().find(|line| line.starts_with("cloud-providers-local ")).unwrap();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells, [LOCAL, "0.1.0", "-", "1", "1", BUNDLE]);
    assert!(status.contains("never published: helper"), "{status}");
    let plan = scratch.xtask(&["plan"]).unwrap();
    assert_eq!(plan.matches("first release").count(), 5, "{plan}");
    scratch.xtask(&["check"]).unwrap();
    // Nothing has a section in its changelog yet.
    assert!(scratch.xtask(&["tag"]).unwrap().contains("nothing to tag"));
    assert!(scratch.refused(&["tag", CAA]).contains("is not prepared"));

    let shown = scratch.xtask(&["prepare", "--all"]).unwrap();
    assert!(shown.contains("+## 0.1.0 - 2") && shown.contains("add --execute"), "{shown}");
    assert_eq!(scratch.git(&["status", "--porcelain"]), "");

    scratch.xtask(&["prepare", "--all", "--execute"]).unwrap();
    assert!(scratch.refused(&["tag", "--execute"]).contains("differs from its commit"));
    scratch.commit("[release] 5 packages");
    scratch.xtask(&["check"]).unwrap();
    scratch.xtask(&["tag"]).unwrap();
    assert_eq!(scratch.tags().len(), 0);
    scratch.xtask(&["tag", "--execute"]).unwrap();
    assert_eq!(
        scratch.tags(),
        ALL.map(|package| format!("{package}-v0.1.0"))
            .iter()
            .map(String::as_str)
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    );
    assert_eq!(scratch.git(&["cat-file", "-t", "caa-v0.1.0"]), "tag");
    let text = scratch.git(&["for-each-ref", "--format=%(contents)", "refs/tags/caa-v0.1.0"]);
    assert_eq!(text, "caa 0.1.0\n\n- **added:** everything");

    // Another time, nothing is left to do.
    assert!(scratch.xtask(&["tag", "--execute"]).unwrap().contains("nothing to tag"));
    assert!(scratch.xtask(&["tag", CAA]).unwrap().contains("caa-v0.1.0 is there already"));
    assert!(scratch.xtask(&["plan"]).unwrap().contains("nothing to release"));
    assert!(scratch.xtask(&["prepare", "--all"]).unwrap().contains("nothing to release"));
    scratch.xtask(&["check"]).unwrap();
}

#[test]
fn a_patch_of_one_provider_moves_what_pins_it() {
    let scratch = Scratch::released();
    scratch.touch(LOCAL);
    assert!(scratch.refused(&["check", "--pending"]).contains("its changelog does not tell"));
    scratch.news(LOCAL, "- **fixed:** a bridge is removed\n  # also a second one");
    scratch.commit("[cloud-providers-local] remove the bridge");
    // The change may wait, but it is no release as it is.
    scratch.xtask(&["check", "--pending"]).unwrap();
    assert!(scratch.refused(&["check"]).contains("has the version of that release"));
    let status = scratch.xtask(&["status"]).unwrap();
    let row = status.lines().find(|line| line.starts_with("cloud-providers-local ")).unwrap();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells, [LOCAL, "0.1.0", "cloud-providers-local-v0.1.0", "1", "1", BUNDLE]);
    let status = scratch.xtask(&["status", LOCAL]).unwrap();
    assert!(status.contains("cloud-providers-local 0.1.0, since cloud-providers-local-v0.1.0\n"), "{status}");
    assert!(status.contains(" [cloud-providers-local] remove the bridge\n"), "{status}");
    assert!(status.contains("- **fixed:** a bridge is removed\n  # also a second one"), "{status}");

    let plan = scratch.xtask(&["plan"]).unwrap();
    let due: Vec<Vec<&str>> = plan
        .lines()
        .filter(|line| line.contains("0.1.1"))
        .map(|line| line.split_whitespace().take(3).collect())
        .collect();
    assert_eq!(
        due[..3],
        [[LOCAL, "0.1.0", "0.1.1"], [BUNDLE, "0.1.0", "0.1.1"], [CAA, "0.1.0", "0.1.1"]],
        "{plan}"
    );
    assert!(
        plan.contains("prepare cloud-providers-local 0.1.1 --execute") && !plan.contains("prepare caa"),
        "{plan}"
    );

    scratch.xtask(&["prepare", LOCAL, "patch", "--execute"]).unwrap();
    let root = scratch.read("Cargo.toml");
    for line in [
        "# Comments stay.",
        "cloud-providers = { version = \"0.1.0\", path",
        "cloud-providers-bundle = { version = \"=0.1.1\", path",
        "cloud-providers-local = { version = \"=0.1.1\", path = \"crates/cloud-providers-local\" } # the first one",
        "cloud-providers-vsphere = { version = \"=0.1.0\", path",
    ] {
        assert!(root.contains(line), "{line}\n{root}");
    }
    assert!(scratch.read("crates/caa/Cargo.toml").contains("version = \"0.1.1\" # by cargo xtask release"));
    let log = scratch.read("crates/cloud-providers-bundle/CHANGELOG.md");
    assert!(log.contains("\n\n- **changed:** uses cloud-providers-local 0.1.1\n\n## 0.1.0 - "), "{log}");
    let lock = scratch.read("Cargo.lock");
    assert_eq!(lock.matches("version = \"0.1.1\"").count(), 3, "{lock}");
    let page = scratch.read("docs/versions.md");
    assert!(page.contains("| cloud-providers-bundle | 0.1.1 | 2"), "{page}");
    assert!(page.contains("cloud-providers-local =0.1.1, cloud-providers-vsphere =0.1.0 |"), "{page}");
    scratch.xtask(&["check"]).unwrap();
    scratch.commit("[cloud-providers-local] version 0.1.1");
    scratch.xtask(&["tag", "--execute"]).unwrap();
    let tags: Vec<String> = scratch.tags().into_iter().filter(|tag| tag.ends_with("v0.1.1")).collect();
    assert_eq!(tags, ["caa-v0.1.1", "cloud-providers-bundle-v0.1.1", "cloud-providers-local-v0.1.1"]);
    let text =
        scratch.git(&["for-each-ref", "--format=%(contents)", "refs/tags/cloud-providers-local-v0.1.1"]);
    assert!(text.ends_with("- **fixed:** a bridge is removed\n  # also a second one"), "{text}");
    scratch.xtask(&["check"]).unwrap();
}

#[test]
fn a_breaking_change_of_the_contract_moves_everything() {
    let scratch = Scratch::released();
    scratch.touch(CONTRACT);
    scratch.news(CONTRACT, "- **removed:** `Provider::restart`");
    scratch.touch(VSPHERE);
    scratch.news(VSPHERE, "- **fixed:** a leak");
    scratch.commit("[cloud-providers] take out restart");
    let plan = scratch.xtask(&["plan"]).unwrap();
    for package in ALL {
        let row = plan.lines().find(|line| line.split_whitespace().next() == Some(package)).unwrap();
        assert_eq!(row.split_whitespace().nth(2), Some("0.2.0"), "{plan}");
    }
    // A patch would promise that nothing breaks.
    let refusal = scratch.refused(&["prepare", CONTRACT, "patch"]);
    assert!(refusal.contains("promises less") && refusal.contains("0.2.0"), "{refusal}");

    scratch.xtask(&["prepare", CONTRACT, "breaking", "--execute"]).unwrap();
    let root = scratch.read("Cargo.toml");
    assert_eq!(root.matches("version = \"=0.2.0\"").count(), 3, "{root}");
    assert!(root.contains("cloud-providers = { version = \"0.2.0\", path"), "{root}");
    let log = scratch.read("crates/cloud-providers-vsphere/CHANGELOG.md");
    assert!(
        log.contains("- **fixed:** a leak\n- **breaking:** uses cloud-providers 0.2.0\n\n## 0.1.0"),
        "{log}"
    );
    scratch.xtask(&["check"]).unwrap();
    scratch.commit("[cloud-providers] version 0.2.0");
    let tagged = scratch.xtask(&["tag", "--execute"]).unwrap();
    let order: Vec<usize> = [CONTRACT, LOCAL, BUNDLE, CAA]
        .map(|package| tagged.find(&format!("{package}-v0.2.0\n")).unwrap())
        .to_vec();
    assert!(order.is_sorted(), "{tagged}");
    assert_eq!(scratch.tags().iter().filter(|tag| tag.ends_with("v0.2.0")).count(), 5);
}

#[test]
fn a_compatible_release_of_the_contract_moves_nothing_else_and_raises_what_the_next_ones_require() {
    let scratch = Scratch::released();
    scratch.touch(CONTRACT);
    scratch.news(CONTRACT, "- **added:** `Provider::pause`");
    scratch.xtask(&["prepare", CONTRACT, "auto", "--execute"]).unwrap();
    assert!(scratch.read("Cargo.toml").contains("cloud-providers = { version = \"0.1.1\", path"));
    scratch.xtask(&["check"]).unwrap();
    scratch.commit("[cloud-providers] version 0.1.1");
    assert_eq!(scratch.xtask(&["tag", "--execute"]).unwrap().matches("-v0.1.1\n\n").count(), 1);
    assert!(scratch.xtask(&["plan"]).unwrap().contains("nothing to release"));
}

#[test]
fn preparing_twice_before_the_tags_comes_to_one_release() {
    let scratch = Scratch::released();
    for package in [LOCAL, VSPHERE] {
        scratch.touch(package);
        scratch.news(package, "- **fixed:** a fault");
        scratch.xtask(&["prepare", package, "patch", "--execute"]).unwrap();
    }
    let log = scratch.read("crates/cloud-providers-bundle/CHANGELOG.md");
    assert_eq!(log.matches("## 0.1.1 - ").count(), 1, "{log}");
    for line in ["uses cloud-providers-local 0.1.1", "uses cloud-providers-vsphere 0.1.1"] {
        assert_eq!(log.matches(line).count(), 1, "{log}");
    }
    let log = scratch.read("crates/caa/CHANGELOG.md");
    assert_eq!(log.matches("uses cloud-providers-bundle 0.1.1").count(), 1, "{log}");
    // A line that came later is missing in the section, until the package is prepared again.
    scratch.news(LOCAL, "- **fixed:** another fault");
    assert!(scratch.refused(&["check"]).contains("lines under `## Unreleased` that 0.1.1 would not tell"));
    scratch.xtask(&["prepare", LOCAL, "patch", "--execute"]).unwrap();
    scratch.xtask(&["check"]).unwrap();
    // And one that breaks turns it into another version, with all that follows.
    scratch.news(LOCAL, "- **breaking:** another key");
    scratch.xtask(&["prepare", LOCAL, "breaking", "--execute"]).unwrap();
    for package in [LOCAL, BUNDLE, CAA] {
        let log = scratch.read(&format!("crates/{package}/CHANGELOG.md"));
        assert!(log.contains("## 0.2.0 - ") && !log.contains("0.1.1 - "), "{log}");
    }
    scratch.xtask(&["check"]).unwrap();
}

#[test]
fn a_new_provider_and_a_pre_release() {
    let scratch = Scratch::new();
    // All but one provider are released.
    scratch.xtask(&["prepare", "--all", "--execute"]).unwrap();
    scratch.commit("[release] 5 packages");
    for package in ALL.into_iter().filter(|package| *package != VSPHERE) {
        scratch.git(&["tag", "--annotate", "--message", "a release", &format!("{package}-v0.1.0")]);
    }
    let plan = scratch.xtask(&["plan"]).unwrap();
    assert!(plan.contains("cloud-providers-vsphere  never     0.1.0  first release (prepared)"), "{plan}");

    scratch.touch(LOCAL);
    scratch.news(LOCAL, "- **breaking:** another key");
    scratch.xtask(&["prepare", LOCAL, "0.2.0-rc.1", "--execute"]).unwrap();
    scratch.xtask(&["check"]).unwrap();
    scratch.commit("[cloud-providers-local] version 0.2.0-rc.1");
    scratch.xtask(&["tag", "--execute"]).unwrap();
    scratch.touch(LOCAL);
    scratch.news(LOCAL, "- **fixed:** a fault");
    scratch.xtask(&["prepare", LOCAL, "minor", "--execute"]).unwrap();
    assert!(scratch.read("Cargo.toml").contains("cloud-providers-local = { version = \"=0.2.0\""));
    scratch.xtask(&["check"]).unwrap();
}

#[test]
fn names_of_packages_are_compared_whole() {
    let scratch = Scratch::released();
    // Each begins with the name of the contract and with what a tag of it begins with.
    for tag in ["cloud-providers-vsphere-v9.0.0", "cloud-providers-bundle-v8.0.0", "cloud-providers-v7"] {
        scratch.git(&["tag", "--annotate", "--message", "x", tag]);
    }
    let status = scratch.xtask(&["status"]).unwrap();
    let row = status.lines().find(|line| line.split_whitespace().next() == Some(CONTRACT)).unwrap();
    assert_eq!(row.split_whitespace().nth(2), Some("cloud-providers-v0.1.0"), "{status}");
    let row = status.lines().find(|line| line.split_whitespace().next() == Some(VSPHERE)).unwrap();
    assert_eq!(row.split_whitespace().nth(2), Some("cloud-providers-vsphere-v9.0.0"), "{status}");
    scratch.touch(CONTRACT);
    scratch.news(CONTRACT, "- **fixed:** a fault");
    let shown = scratch.xtask(&["prepare", CONTRACT, "patch"]).unwrap();
    assert!(shown.starts_with("cloud-providers: 0.1.0 -> 0.1.1\n"), "{shown}");
    assert!(scratch.refused(&["prepare", "cloud", "patch"]).contains("there is no package `cloud`"));
}

#[test]
fn what_the_comparison_of_public_items_finds_counts() {
    let scratch = Scratch::released();
    for package in [CONTRACT, LOCAL] {
        scratch.touch(package);
        scratch.news(package, "- **fixed:** a fault");
    }
    scratch.commit("[all] mend");
    assert!(scratch.xtask(&["plan"]).unwrap().contains("cargo-semver-checks is not installed"));
    // The program itself takes minutes; this stands in for it with the line that it ends with.
    scratch.program(
        "cargo-semver-checks",
        "#!/bin/sh\necho \"$@\" >> \"$0.calls\"\ncase \"$*\" in *cloud-providers-local*) \
         echo 'Summary semver requires new major version: 1 major and 0 minor checks failed' >&2; exit 1;; esac\n",
    );
    let plan = scratch.xtask(&["plan"]).unwrap();
    assert!(plan.contains("breaking by cargo-semver-checks"), "{plan}");
    let row = plan.lines().find(|line| line.starts_with("cloud-providers-local ")).unwrap();
    assert_eq!(row.split_whitespace().nth(2), Some("0.2.0"), "{plan}");
    let row = plan.lines().find(|line| line.split_whitespace().next() == Some(CONTRACT)).unwrap();
    assert_eq!(row.split_whitespace().nth(2), Some("0.1.1"), "{plan}");
    let calls = std::fs::read_to_string(scratch.context.path[0].join("cargo-semver-checks.calls")).unwrap();
    assert!(
        calls.contains("semver-checks --package cloud-providers --baseline-rev cloud-providers-v0.1.0 --release-type patch\n"),
        "{calls}"
    );
    assert!(!scratch.xtask(&["plan", "--no-semver-checks"]).unwrap().contains("by cargo-semver-checks"));
    // What does not come to an end is told, and the changelog counts.
    scratch.program("cargo-semver-checks", "#!/bin/sh\necho 'error: no rustdoc' >&2\nexit 1\n");
    let plan = scratch.xtask(&["plan"]).unwrap();
    assert!(
        plan.contains("came to no end for cloud-providers-local") && plan.contains("no rustdoc"),
        "{plan}"
    );
}
